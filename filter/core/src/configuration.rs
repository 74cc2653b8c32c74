//! The plugin configuration: parsed once into types that cannot be wrong.
//!
//! What it is not: policy. Configuration says whom to trust and where to fetch; policy says who may
//! call what.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::credential::IssuerRules;
use crate::document::{Faults, Node, Object, Report};
use crate::jose::{Algorithm, KeySet};
use crate::json;
use crate::limits::Limits;
use crate::policy::Policy;
use crate::quote::quote;
use crate::time::Span;

/// The configuration of one filter instance.
#[derive(Debug)]
pub struct Configuration {
    /// Whether a request needs an access token.
    pub token: Requirement,
    /// Issuers of access tokens.
    pub issuers: Vec<Issuer>,
    /// Whether a request needs an Airflow identity.
    pub identity: Requirement,
    /// Issuers of Airflow identities.
    pub airflow_issuers: Vec<Issuer>,
    /// Where the policy comes from.
    pub policy: PolicySource,
    /// Whether the upstream gets the access token that was verified.
    pub forward_token: bool,
    /// Bounds of the requests that wait for keys or policy.
    pub waiting: Waiting,
    /// Whether decisions are carried out.
    pub mode: Mode,
    /// The path at which the filter itself answers how it is; `None`: nowhere.
    pub status_path: Option<String>,
}

/// Whether decisions are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What is not permitted is refused.
    Enforce,
    /// Everything is decided, counted and recorded, and nothing is refused.
    Shadow,
}

impl Mode {
    /// Its name in the configuration and the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
        }
    }
}

/// Whether a request must carry a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// Refused without it.
    Required,
    /// Verified if it is there, and refused if it is there and wrong.
    Optional,
    /// Never looked at.
    Off,
}

/// An issuer of credentials: what it may issue and where its keys are.
#[derive(Debug)]
pub struct Issuer {
    /// What its credentials must look like.
    pub rules: IssuerRules,
    /// Its keys.
    pub keys: KeySource,
}

/// Where keys come from.
#[derive(Debug)]
pub enum KeySource {
    /// From the configuration itself.
    Inline(KeySet),
    /// By HTTP callout.
    Remote(Endpoint),
}

/// Where the policy comes from.
#[derive(Debug)]
pub enum PolicySource {
    /// From the configuration itself.
    Inline(Box<Policy>),
    /// By HTTP callout.
    Remote(Endpoint),
}

/// A document that is fetched by HTTP callout, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name in logs and metrics: letters, digits, `-` and `_`.
    pub name: String,
    /// The Envoy cluster that the callout goes to; the URI's host never chooses one.
    pub cluster: String,
    /// `http` or `https`, for the `:scheme` of the callout; TLS is the cluster's own.
    pub scheme: &'static str,
    /// The `:authority` of the callout.
    pub authority: String,
    /// The `:path` of the callout.
    pub path: String,
    /// Time between the end of a fetch and the next one.
    pub interval: Span,
    /// Time after which a callout is given up.
    pub timeout: Span,
    /// Age after which a document that could not be confirmed is no longer used.
    pub max_age: Span,
}

/// Bounds of the requests that wait for keys or policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Most requests that may wait at once, per worker.
    pub requests: usize,
    /// Longest time that one may wait.
    pub time: Span,
}

impl Configuration {
    /// Reads the configuration from the plugin's JSON.
    ///
    /// # Errors
    /// Every fault with its path.
    pub fn parse(document: &[u8], limits: &Limits) -> Result<Self, Faults> {
        let mut report = Report::new();
        let value = match json::parse(document, limits.json_depth) {
            Ok(value) => value,
            Err(error) => {
                report.fault("", error.to_string());
                return report.finish(None);
            }
        };
        let configuration = read(&Node::root(&value), &mut report, limits);
        report.finish(configuration)
    }
}

const TOKEN_DEFAULTS: Defaults = Defaults {
    algorithms: &[Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa],
    token_types: &["at+jwt", "JWT"],
    max_lifetime: None,
};

const IDENTITY_DEFAULTS: Defaults = Defaults {
    algorithms: &[Algorithm::Es256, Algorithm::EdDsa],
    token_types: &["airflow-task+jwt"],
    max_lifetime: Some(Span::from_secs(600)),
};

/// What an issuer gets when its configuration is silent.
struct Defaults {
    algorithms: &'static [Algorithm],
    token_types: &'static [&'static str],
    max_lifetime: Option<Span>,
}

const MODES: [(&str, Mode); 2] =
    [(Mode::Enforce.name(), Mode::Enforce), (Mode::Shadow.name(), Mode::Shadow)];

const REQUIREMENTS: [(&str, Requirement); 3] = [
    ("required", Requirement::Required),
    ("optional", Requirement::Optional),
    ("off", Requirement::Off),
];

fn read(root: &Node<'_>, report: &mut Report, limits: &Limits) -> Option<Configuration> {
    let mut root = root.object(report)?;
    let mut names = BTreeSet::new();

    let token = requirement(&mut root, report, "token");
    let issuers = read_issuers(&mut root, report, limits, token, &TOKEN_DEFAULTS, &mut names);

    let airflow = root.optional("airflow");
    let (identity, airflow_issuers) = match airflow.and_then(|node| node.object(report)) {
        Some(mut airflow) => {
            let identity = requirement(&mut airflow, report, "identity");
            let defaults = &IDENTITY_DEFAULTS;
            let issuers =
                read_issuers(&mut airflow, report, limits, identity, defaults, &mut names);
            airflow.finish(report);
            (identity, issuers)
        }
        None => {
            report.fault("", "`airflow` is missing; say `{\"identity\": \"off\"}` to do without");
            (Requirement::Off, Some(Vec::new()))
        }
    };
    if token == Requirement::Off && identity == Requirement::Off {
        report.fault("token", "is `off` as `airflow.identity` is: nobody would be identified");
    }

    for token_issuer in issuers.iter().flatten() {
        let mut identities = airflow_issuers.iter().flatten();
        if identities.any(|issuer| issuer.rules.overlaps(&token_issuer.rules)) {
            let name = quote(&token_issuer.rules.issuer);
            let problem = format!(
                "{name} issues identities of these `token_types` too: one could pass for the other"
            );
            report.fault("issuers", problem);
        }
    }

    let policy = root
        .required(report, "policy")
        .and_then(|node| read_policy(&node, report, limits, &mut names));
    let forward_token =
        root.optional("forward_token").map_or(Some(false), |node| node.boolean(report));
    let waiting = read_waiting(&mut root, report);
    let mode =
        root.optional("mode").map_or(Some(Mode::Enforce), |node| node.choice(report, &MODES));
    let status_path = read_status_path(&mut root, report);
    root.finish(report);

    Some(Configuration {
        token,
        issuers: issuers?,
        identity,
        airflow_issuers: airflow_issuers?,
        policy: policy?,
        forward_token: forward_token?,
        waiting: waiting?,
        mode: mode?,
        status_path: status_path?,
    })
}

fn requirement(object: &mut Object<'_>, report: &mut Report, name: &'static str) -> Requirement {
    object
        .optional(name)
        .and_then(|node| node.choice(report, &REQUIREMENTS))
        .unwrap_or(Requirement::Required)
}

fn read_issuers(
    object: &mut Object<'_>,
    report: &mut Report,
    limits: &Limits,
    requirement: Requirement,
    defaults: &Defaults,
    names: &mut BTreeSet<String>,
) -> Option<Vec<Issuer>> {
    if requirement == Requirement::Off {
        if let Some(node) = object.optional("issuers") {
            node.fault(report, "are not used, because this credential is `off`");
        }
        return Some(Vec::new());
    }
    let nodes = object.required(report, "issuers")?.nonempty_array(report)?;
    let read: Vec<_> =
        nodes.iter().map(|node| read_issuer(node, report, limits, defaults, names)).collect();
    let issuers: Vec<Issuer> = read.into_iter().collect::<Option<_>>()?;
    let mut seen = BTreeSet::new();
    for (issuer, node) in issuers.iter().zip(&nodes) {
        if !seen.insert(issuer.rules.issuer.as_str()) {
            let problem = format!("issuer {} is configured twice", quote(&issuer.rules.issuer));
            node.fault(report, problem);
        }
    }
    Some(issuers)
}

fn read_issuer(
    node: &Node<'_>,
    report: &mut Report,
    limits: &Limits,
    defaults: &Defaults,
    names: &mut BTreeSet<String>,
) -> Option<Issuer> {
    let mut object = node.object(report)?;
    let name = object.required(report, "name").and_then(|node| read_name(&node, report, names));
    let issuer = object.required(report, "issuer").and_then(|node| node.string(report));
    let audiences = object.required(report, "audiences").and_then(|node| node.strings(report));
    let algorithms = match object.optional("algorithms") {
        Some(node) => read_algorithms(&node, report),
        None => Some(defaults.algorithms.to_vec()),
    };
    let token_types = match object.optional("token_types") {
        // `typ` is the only thing that tells token kinds apart (RFC 8725 §3.11), so giving it up has
        // to be said in words.
        Some(node) if node.value == "any" => Some(Vec::new()),
        Some(node) => node.strings(report),
        None => Some(defaults.token_types.to_vec()),
    };
    let max_lifetime = match object.optional("max_lifetime") {
        Some(node) => positive_span(&node, report).map(Some),
        None => Some(defaults.max_lifetime),
    };
    let clock_skew = match object.optional("clock_skew") {
        Some(node) => bounded_span(&node, report, Span::ZERO, Span::from_secs(600)),
        None => Some(Span::from_secs(30)),
    };
    let keys = object
        .required(report, "jwks")
        .and_then(|node| read_keys(&node, report, limits, name.unwrap_or("issuer")));
    object.finish(report);
    Some(Issuer {
        rules: IssuerRules {
            name: name?.to_owned(),
            issuer: issuer?.to_owned(),
            audiences: audiences?.into_iter().map(str::to_owned).collect(),
            algorithms: algorithms?,
            token_types: token_types?.into_iter().map(str::to_owned).collect(),
            max_lifetime: max_lifetime?,
            clock_skew: clock_skew?,
        },
        keys: keys?,
    })
}

fn read_algorithms(node: &Node<'_>, report: &mut Report) -> Option<Vec<Algorithm>> {
    let elements = node.nonempty_array(report)?;
    let mut algorithms = Vec::new();
    for element in &elements {
        let name = element.string(report)?;
        match Algorithm::from_name(name) {
            Some(algorithm) => algorithms.push(algorithm),
            None => {
                let known: Vec<_> = Algorithm::ALL.iter().map(|known| known.name()).collect();
                let problem = format!("{} is none of {}", quote(name), known.join(", "));
                element.fault(report, problem);
            }
        }
    }
    Some(algorithms)
}

fn read_keys(
    node: &Node<'_>,
    report: &mut Report,
    limits: &Limits,
    name: &str,
) -> Option<KeySource> {
    let mut object = node.object(report)?;
    let keys = match object.optional("inline") {
        Some(inline) => read_inline_keys(&inline, report, limits).map(KeySource::Inline),
        None => {
            let read = read_endpoint(&mut object, report, name, "refresh", &KEYS);
            if let Some(endpoint) = &read {
                check_max_age(endpoint, node, "refresh", report);
            }
            read.map(KeySource::Remote)
        }
    };
    object.finish(report);
    keys
}

fn read_inline_keys(node: &Node<'_>, report: &mut Report, limits: &Limits) -> Option<KeySet> {
    match KeySet::from_value(node.value, limits) {
        // One unusable key must not spoil a set, but a set without a usable key is a mistake.
        Ok((keys, skipped)) if keys.is_empty() => {
            node.fault(report, "holds no usable key");
            for key in &skipped {
                node.fault(report, key.to_string());
            }
            None
        }
        Ok((keys, _)) => Some(keys),
        Err(error) => {
            node.fault(report, error.to_string());
            None
        }
    }
}

fn read_policy(
    node: &Node<'_>,
    report: &mut Report,
    limits: &Limits,
    names: &mut BTreeSet<String>,
) -> Option<PolicySource> {
    let mut object = node.object(report)?;
    let max_age = match object.optional("max_age") {
        Some(node) => positive_span(&node, report),
        None => Some(POLICY.max_age),
    };
    let sources = object.required(report, "sources").and_then(|node| node.nonempty_array(report));
    object.finish(report);
    let sources = sources?;
    if let Some(second) = sources.get(1) {
        second.fault(report, "more than one policy source is not supported");
    }
    let source = sources.first()?;
    let mut object = source.object(report)?;
    let name = object.required(report, "name").and_then(|node| read_name(&node, report, names));
    let inline = object.optional("inline");
    let http = object.optional("http");
    object.finish(report);
    match (inline, http) {
        (Some(inline), None) => match Policy::from_value(inline.value, limits) {
            Ok(policy) => Some(PolicySource::Inline(Box::new(policy))),
            Err(faults) => {
                for fault in faults.0 {
                    let separator = if fault.path.is_empty() { "" } else { "." };
                    let path = format!("{}{separator}{}", inline.path, fault.path);
                    report.fault(path, fault.problem);
                }
                None
            }
        },
        (None, Some(http)) => {
            let mut object = http.object(report)?;
            let read = read_endpoint(&mut object, report, name?, "poll", &POLICY);
            object.finish(report);
            let endpoint = Endpoint { max_age: max_age?, ..read? };
            check_max_age(&endpoint, &http, "poll", report);
            Some(PolicySource::Remote(endpoint))
        }
        _ => {
            source.fault(report, "needs exactly one of `inline` and `http`");
            None
        }
    }
}

/// What an endpoint gets when its configuration is silent.
struct EndpointDefaults {
    interval: Span,
    max_age: Span,
    /// Whether `max_age` is a member of the endpoint itself.
    own_max_age: bool,
}

const KEYS: EndpointDefaults = EndpointDefaults {
    interval: Span::from_secs(300),
    max_age: Span::from_secs(24 * 3600),
    own_max_age: true,
};

const POLICY: EndpointDefaults = EndpointDefaults {
    interval: Span::from_secs(5),
    max_age: Span::from_secs(15 * 60),
    own_max_age: false,
};

fn read_endpoint(
    object: &mut Object<'_>,
    report: &mut Report,
    name: &str,
    interval_name: &'static str,
    defaults: &EndpointDefaults,
) -> Option<Endpoint> {
    let cluster = object.required(report, "cluster").and_then(|node| node.string(report));
    let uri = object.required(report, "uri").and_then(|node| read_uri(&node, report));
    let interval = match object.optional(interval_name) {
        Some(node) => {
            bounded_span(&node, report, Span::from_millis(100), Span::from_secs(24 * 3600))
        }
        None => Some(defaults.interval),
    };
    let timeout = match object.optional("timeout") {
        Some(node) => bounded_span(&node, report, Span::from_millis(10), Span::from_secs(60)),
        None => Some(Span::from_secs(5)),
    };
    let max_age = match defaults.own_max_age.then(|| object.optional("max_age")).flatten() {
        Some(node) => positive_span(&node, report),
        None => Some(defaults.max_age),
    };
    let (scheme, authority, path) = uri?;
    Some(Endpoint {
        name: name.to_owned(),
        cluster: cluster?.to_owned(),
        scheme,
        authority,
        path,
        interval: interval?,
        timeout: timeout?,
        max_age: max_age?,
    })
}

/// A document that is too old before it is asked for again would be missing now and then, with no fault anywhere.
fn check_max_age(endpoint: &Endpoint, node: &Node<'_>, interval_name: &str, report: &mut Report) {
    let Endpoint { interval, timeout, max_age, .. } = *endpoint;
    if max_age < interval || max_age < timeout {
        let problem = format!(
            "`max_age` {max_age} is shorter than `{interval_name}` {interval} or `timeout` {timeout}"
        );
        node.fault(report, problem);
    }
}

/// Scheme, authority and path of an absolute `http` or `https` URI without userinfo or fragment.
fn read_uri(node: &Node<'_>, report: &mut Report) -> Option<(&'static str, String, String)> {
    let text = node.string(report)?;
    let split = ["http", "https"].into_iter().find_map(|scheme| {
        let rest = text.strip_prefix(scheme)?.strip_prefix("://")?;
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at_checked(at)?,
            None => (rest, ""),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        (printable && !authority.is_empty() && !authority.contains('@'))
            .then(|| (scheme, authority.to_owned(), path))
    });
    if split.is_none() {
        node.fault(report, format!("{} is not an absolute http or https URI", quote(text)));
    }
    split
}

/// A name for logs and metrics, unique in the configuration.
fn read_name<'a>(
    node: &Node<'a>,
    report: &mut Report,
    names: &mut BTreeSet<String>,
) -> Option<&'a str> {
    let name = node.string(report)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.len() > 64 || !name.bytes().all(plain) {
        node.fault(
            report,
            format!("{} is not a name of up to 64 letters, digits, `-` and `_`", quote(name)),
        );
        return None;
    }
    if !names.insert(name.to_owned()) {
        node.fault(report, format!("the name `{name}` is used twice"));
        return None;
    }
    Some(name)
}

fn read_waiting(root: &mut Object<'_>, report: &mut Report) -> Option<Waiting> {
    let mut waiting = Waiting { requests: 200, time: Span::from_secs(2) };
    let Some(node) = root.optional("waiting") else { return Some(waiting) };
    let mut object = node.object(report)?;
    if let Some(node) = object.optional("requests") {
        waiting.requests = usize::try_from(node.integer(report, 0, 100_000)?).ok()?;
    }
    if let Some(node) = object.optional("time") {
        waiting.time = bounded_span(&node, report, Span::ZERO, Span::from_secs(60))?;
    }
    object.finish(report);
    Some(waiting)
}

/// The path of the status answer, if there is to be one. It is compared with requests byte for byte.
fn read_status_path(root: &mut Object<'_>, report: &mut Report) -> Option<Option<String>> {
    let Some(node) = root.optional("status") else { return Some(None) };
    let mut object = node.object(report)?;
    let node = object.required(report, "path");
    object.finish(report);
    let node = node?;
    let path = node.string(report)?;
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    if !plain || path.len() < 2 || !path.starts_with('/') {
        let problem =
            format!("{} is not a path: `/` and more, without query and fragment", quote(path));
        node.fault(report, problem);
        return None;
    }
    Some(Some(path.to_owned()))
}

fn positive_span(node: &Node<'_>, report: &mut Report) -> Option<Span> {
    bounded_span(node, report, Span::from_secs(1), Span::from_secs(366 * 24 * 3600))
}

fn bounded_span(node: &Node<'_>, report: &mut Report, least: Span, most: Span) -> Option<Span> {
    let span = node.span(report)?;
    if !(least..=most).contains(&span) {
        node.fault(report, format!("{span} is not between {least} and {most}"));
        return None;
    }
    Some(span)
}

/// A configuration for tests and examples: the value as the plugin would get it.
impl TryFrom<&Value> for Configuration {
    type Error = Faults;

    fn try_from(value: &Value) -> Result<Self, Faults> {
        Self::parse(value.to_string().as_bytes(), &Limits::DEFAULT)
    }
}
