//! Policy tests as they are written: cases, each with its expectation, and assertions that only some
//! callers may do something.
//!
//! What it is not: it decides nothing, see [`crate::evaluate`].

use std::path::PathBuf;

use airflow_envoy_core::arrival::CONNECT;
use airflow_envoy_core::document::{Faults, Node as Reading, Object, Report, suggestion};
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;
use serde_json::{Map, Value};

use crate::evaluate::{Peer, Request, Said, Token};
use crate::source::merge::Problem;
use crate::source::{Node, Place};

/// The tests of one file.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The file.
    pub file: String,
    /// The policy that it is about, as written: relative to the file.
    pub policy: Option<PathBuf>,
    /// Single calls.
    pub cases: Vec<Case>,
    /// Assertions about everybody.
    pub only: Vec<Only>,
    /// Every caller that has a name.
    pub callers: Vec<Said>,
}

/// A call and what must be decided.
#[derive(Debug, Clone)]
pub struct Case {
    /// Where it stands.
    pub place: Place,
    /// Its name; without one of its own what it asks.
    pub name: String,
    /// Who calls.
    pub said: Said,
    /// For what.
    pub request: Request,
    /// When; `None`: whenever the test runs.
    pub at: Option<UnixTime>,
    /// What must be decided.
    pub expected: Expected,
}

/// What must be decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected {
    /// It is permitted; otherwise it is refused.
    pub permit: bool,
    /// The code of the refusal; `None` for any.
    pub code: Option<String>,
    /// The rule that decides; `None` for any.
    pub rule: Option<String>,
    /// The rule that comes nearest.
    pub nearest: Option<String>,
    /// What the explanation contains.
    pub detail: Option<String>,
    /// Shadow rules that are reported; `None` for any.
    pub shadow: Option<Vec<String>>,
}

/// "permit by rule `x`" or "reject policy_denied, rule `y`".
impl std::fmt::Display for Expected {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.permit, &self.code) {
            (true, _) => formatter.write_str("permit")?,
            (false, None) => formatter.write_str("reject")?,
            (false, Some(code)) => write!(formatter, "reject {code}")?,
        }
        if let Some(rule) = &self.rule {
            write!(formatter, " by rule {}", quote(rule))?;
        }
        if let Some(nearest) = &self.nearest {
            write!(formatter, ", nearest rule {}", quote(nearest))?;
        }
        if let Some(detail) = &self.detail {
            write!(formatter, ", because {}", quote(detail))?;
        }
        if let Some(shadow) = &self.shadow {
            let shadow: Vec<String> = shadow.iter().map(|rule| quote(rule)).collect();
            write!(formatter, ", shadow rules {}", shadow.join(" "))?;
        }
        Ok(())
    }
}

/// An assertion: only callers that match one of some selectors may do something.
#[derive(Debug, Clone)]
pub struct Only {
    /// Where it stands.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// Selectors in the language of the policy.
    pub may: Vec<Value>,
    /// Names of destinations, or `*`.
    pub to: Vec<String>,
    /// `None` for every method that somebody names.
    pub methods: Option<Vec<String>>,
    /// Patterns; `None` for every path that somebody names.
    pub paths: Option<Vec<String>>,
    /// When; `None`: whenever a rule begins, and whenever the test runs.
    pub at: Option<UnixTime>,
}

/// Reads a file of tests.
///
/// # Errors
/// All faults with their places.
pub fn read(document: &Node) -> Result<Suite, Vec<Problem>> {
    let value = document.value();
    let mut report = Report::new();
    let suite = read_suite(document, &value, &mut report);
    report.finish(suite).map_err(|Faults(faults)| {
        let problem = |fault: airflow_envoy_core::document::Fault| Problem {
            place: document.locate(&fault.path, &fault.problem),
            path: fault.path,
            problem: fault.problem,
        };
        faults.into_iter().map(problem).collect()
    })
}

/// What cases may refer to by name.
#[derive(Default)]
struct Names<'a> {
    identities: Option<&'a Map<String, Value>>,
    tokens: Option<&'a Map<String, Value>>,
    peers: Option<&'a Map<String, Value>>,
}

/// What is said about a call, layer upon layer.
#[derive(Clone, Default)]
struct Layers {
    identity: Option<Value>,
    token: Option<Value>,
    peer: Option<Value>,
    request: Option<Value>,
    at: Option<UnixTime>,
}

fn read_suite(document: &Node, value: &Value, report: &mut Report) -> Option<Suite> {
    let mut top = Reading::root(value).object(report)?;
    let policy = top.optional("policy").and_then(|node| node.string(report)).map(PathBuf::from);
    let mut names = Names::default();
    let mut callers = Vec::new();
    for (name, list) in [
        ("identities", &mut names.identities),
        ("tokens", &mut names.tokens),
        ("peers", &mut names.peers),
    ] {
        let Some(node) = top.optional(name) else { continue };
        for (_, entry) in node.entries(report).unwrap_or_default() {
            if entry.object(report).is_some() && name == "identities" {
                let identity = entry.value.as_object().cloned();
                callers.extend(checked(Said { identity, ..Said::default() }, &entry, report));
            }
        }
        *list = node.value.as_object();
    }
    let mut layers = Layers::default();
    if let Some(node) = top.optional("defaults")
        && let Some(mut defaults) = node.object(report)
    {
        layers.add(&mut defaults, &names, report);
        defaults.finish(report);
    }
    let mut cases = Vec::new();
    for node in top.optional("cases").and_then(|node| node.array(report)).unwrap_or_default() {
        read_case(document, &node, &layers, &names, &mut cases, report);
    }
    let mut only = Vec::new();
    for node in top.optional("only").and_then(|node| node.array(report)).unwrap_or_default() {
        only.extend(read_only(document, &node, layers.at, report));
    }
    top.finish(report);
    if cases.is_empty() && only.is_empty() {
        report.fault("", "has neither `cases` nor `only`: a file without tests passes for nothing");
    }
    Some(Suite { file: document.place.file.to_string(), policy, cases, only, callers })
}

impl Layers {
    /// Lays what `object` says over what is known.
    fn add(&mut self, object: &mut Object<'_>, names: &Names<'_>, report: &mut Report) {
        for (name, kind, slot, known) in [
            ("identity", "identities", &mut self.identity, names.identities),
            ("token", "tokens", &mut self.token, names.tokens),
            ("peer", "peers", &mut self.peer, names.peers),
        ] {
            let Some(node) = object.optional(name) else { continue };
            match node.value {
                Value::Null => *slot = None,
                Value::String(called) => match known.and_then(|known| known.get(called)) {
                    Some(value) => *slot = Some(value.clone()),
                    None => {
                        let known = known.into_iter().flat_map(|known| known.keys());
                        let known: Vec<&str> = known.map(String::as_str).collect();
                        let close = suggestion(called, &known);
                        let close = close.map(|close| format!(", did you mean `{close}`?"));
                        let shown = quote(called);
                        let close = close.unwrap_or_default();
                        node.fault(report, format!("`{kind}` has no {shown}{close}"));
                    }
                },
                Value::Object(_) => overlay(slot, node.value),
                _ => node.fault(report, format!("expected a name of `{kind}`, an object or null")),
            }
        }
        if let Some(node) = object.optional("request") {
            match node.value {
                Value::String(text) => match Request::parse(text) {
                    Ok(Request { method, scheme, host, path }) => {
                        let mut map = Map::new();
                        let path = Some(path).filter(|path| !path.is_empty());
                        for (name, value) in [
                            ("method", Some(method)),
                            ("scheme", Some(scheme)),
                            ("host", Some(host)),
                            ("path", path),
                        ] {
                            let Some(value) = value else { continue };
                            map.insert(name.to_owned(), value.into());
                        }
                        self.request = Some(Value::Object(map));
                    }
                    Err(problem) => node.fault(report, problem),
                },
                Value::Object(_) => {
                    if let Some(mut request) = node.object(report) {
                        for name in ["method", "scheme", "host", "path"] {
                            request.optional(name).and_then(|node| node.string(report));
                        }
                        request.finish(report);
                    }
                    overlay(&mut self.request, node.value);
                }
                _ => node.fault(report, "expected `METHOD URL` or an object"),
            }
        }
        if let Some(node) = object.optional("at") {
            self.at = node.time(report);
        }
    }

    fn said(&self) -> Result<Said, String> {
        let object = |value: &Option<Value>| value.as_ref().and_then(Value::as_object).cloned();
        let token = match object(&self.token) {
            None => None,
            Some(mut members) => {
                let mut text = |name: &str| match members.remove(name) {
                    None | Some(Value::Null) => Ok(None),
                    Some(Value::String(text)) => Ok(Some(text)),
                    Some(_) => Err(format!("`{name}` of the token is not a text")),
                };
                let (issuer, key_id) = (text("issuer")?, text("key_id")?);
                let claims = match members.remove("claims") {
                    None => Map::new(),
                    Some(Value::Object(claims)) => claims,
                    Some(_) => return Err("`claims` of the token is not an object".to_owned()),
                };
                if let Some(unknown) = members.keys().next() {
                    let shown = quote(unknown);
                    return Err(format!(
                        "a token has `issuer`, `key_id` and `claims`, and no {shown}"
                    ));
                }
                let issuer = issuer.unwrap_or_else(|| "idp".to_owned());
                Some(Token { issuer, key_id, claims })
            }
        };
        let peer = match object(&self.peer) {
            None => None,
            Some(members) => {
                let mut peer = Peer::default();
                for (name, value) in &members {
                    let text = value.as_str().map(str::to_owned);
                    match (name.as_str(), text) {
                        ("service", Some(text)) => peer.service = Some(text),
                        ("spiffe_id", Some(text)) => peer.spiffe_id = Some(text),
                        _ => return Err("a peer has `service` and `spiffe_id`, texts".to_owned()),
                    }
                }
                Some(peer)
            }
        };
        Ok(Said { identity: object(&self.identity), token, peer })
    }

    fn call(&self) -> Result<Request, String> {
        let text = |name: &str| {
            self.request.as_ref().and_then(|request| request.get(name)?.as_str().map(str::to_owned))
        };
        let need = |name: &str| text(name).ok_or_else(|| format!("the request has no `{name}`"));
        let method = need("method")?;
        Ok(Request {
            scheme: text("scheme").unwrap_or_else(|| "http".to_owned()),
            host: need("host")?,
            // A tunnel has none.
            path: if method == CONNECT { text("path").unwrap_or_default() } else { need("path")? },
            method,
        })
    }
}

/// Replaces the members of an object by those of another one.
fn overlay(slot: &mut Option<Value>, over: &Value) {
    match (slot, over) {
        (Some(Value::Object(known)), Value::Object(over)) => {
            known.extend(over.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        (slot, over) => *slot = Some(over.clone()),
    }
}

fn checked(said: Said, node: &Reading<'_>, report: &mut Report) -> Option<Said> {
    match said.caller() {
        Ok(_) => Some(said),
        Err(problem) => {
            node.fault(report, problem);
            None
        }
    }
}

fn read_case(
    document: &Node,
    node: &Reading<'_>,
    defaults: &Layers,
    names: &Names<'_>,
    cases: &mut Vec<Case>,
    report: &mut Report,
) {
    let Some(mut object) = node.object(report) else { return };
    let name = object.optional("name").and_then(|node| node.string(report));
    let mut layers = defaults.clone();
    layers.add(&mut object, names, report);
    let expected = read_expected(&mut object, None, report);
    let rows = object.optional("rows").map(|rows| rows.nonempty_array(report).unwrap_or_default());
    object.finish(report);
    let Some(rows) = rows else {
        cases.extend(finish_case(document, node, name, &layers, expected, report));
        return;
    };
    for row in rows {
        let Some(mut object) = row.object(report) else { continue };
        let own = object.optional("name").and_then(|node| node.string(report));
        let mut layers = layers.clone();
        layers.add(&mut object, names, report);
        let expected = read_expected(&mut object, expected.as_ref(), report);
        object.finish(report);
        let full = match (name, own) {
            (Some(name), Some(own)) => Some(format!("{name}: {own}")),
            (name, own) => name.or(own).map(str::to_owned),
        };
        cases.extend(finish_case(document, &row, full.as_deref(), &layers, expected, report));
    }
}

fn finish_case(
    document: &Node,
    node: &Reading<'_>,
    name: Option<&str>,
    layers: &Layers,
    expected: Option<Expected>,
    report: &mut Report,
) -> Option<Case> {
    let Some(expected) = expected else {
        node.fault(report, "says neither `permit` nor `reject`");
        return None;
    };
    let parts = layers.said().and_then(|said| Ok((said, layers.call()?)));
    let (said, request) = match parts {
        Ok(parts) => parts,
        Err(problem) => {
            node.fault(report, problem);
            return None;
        }
    };
    let said = checked(said, node, report)?;
    let name = name.map_or_else(|| format!("{request} as {}", said.describe()), str::to_owned);
    let place = document.locate(&node.path.to_string(), "");
    Some(Case { place, name, said, request, at: layers.at, expected })
}

/// What is expected; without a verdict of its own that of `base`, with what is said besides.
fn read_expected(
    object: &mut Object<'_>,
    base: Option<&Expected>,
    report: &mut Report,
) -> Option<Expected> {
    let permit = object.optional("permit");
    let reject = object.optional("reject");
    let rule = object.optional("rule").and_then(|node| node.string(report)).map(str::to_owned);
    let nearest =
        object.optional("nearest").and_then(|node| node.string(report)).map(str::to_owned);
    let detail = object.optional("detail").and_then(|node| node.string(report)).map(str::to_owned);
    let shadow = object.optional("shadow").map(|node| {
        let elements = node.array(report).unwrap_or_default();
        elements.iter().filter_map(|rule| rule.string(report).map(str::to_owned)).collect()
    });
    let mut expected = Expected { rule, nearest, detail, shadow, ..Expected::default() };
    match (permit, reject) {
        (Some(_), Some(reject)) => {
            reject.fault(report, "stands beside `permit`");
            None
        }
        (Some(permit), None) => {
            expected.permit = true;
            match permit.value {
                Value::Bool(true) => {}
                Value::String(rule) if expected.rule.is_none() => {
                    expected.rule = Some(rule.clone());
                }
                _ => permit.fault(report, "expected the id of a rule, or true for any"),
            }
            if expected.nearest.is_some() || expected.detail.is_some() {
                permit.fault(report, "a permit has neither `nearest` nor `detail`");
            }
            Some(expected)
        }
        (None, Some(reject)) => {
            match reject.value {
                Value::Bool(true) => {}
                Value::String(code) => {
                    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
                    if !codes.contains(&code.as_str()) {
                        let close = suggestion(code, &codes);
                        let close = close.map(|close| format!(", did you mean `{close}`?"));
                        let shown = quote(code);
                        let close = close.unwrap_or_default();
                        reject.fault(report, format!("there is no code {shown}{close}"));
                    }
                    expected.code = Some(code.clone());
                }
                _ => reject.fault(report, "expected a code, or true for any"),
            }
            Some(expected)
        }
        (None, None) => {
            let said = expected;
            let is_silent = said == Expected::default();
            let Some(base) = base else {
                if !is_silent {
                    let path = object.path().to_string();
                    report.fault(path, "says neither `permit` nor `reject`");
                }
                return None;
            };
            if base.permit && (said.nearest.is_some() || said.detail.is_some()) {
                let path = object.path().to_string();
                report.fault(path, "a permit has neither `nearest` nor `detail`");
            }
            Some(Expected {
                permit: base.permit,
                code: base.code.clone(),
                rule: said.rule.or_else(|| base.rule.clone()),
                nearest: said.nearest.or_else(|| base.nearest.clone()),
                detail: said.detail.or_else(|| base.detail.clone()),
                shadow: said.shadow.or_else(|| base.shadow.clone()),
            })
        }
    }
}

fn read_only(
    document: &Node,
    node: &Reading<'_>,
    at: Option<UnixTime>,
    report: &mut Report,
) -> Option<Only> {
    let mut object = node.object(report)?;
    let name = object.required(report, "name").and_then(|node| node.string(report));
    let may = object.required(report, "may").and_then(|node| {
        let elements = node.array(report)?;
        Some(elements.iter().map(|element| element.value.clone()).collect())
    });
    let list = |node: Reading<'_>, report: &mut Report| {
        node.strings(report).map(|texts| texts.into_iter().map(str::to_owned).collect())
    };
    let to = object.required(report, "to").and_then(|node| list(node, report));
    let methods = object.optional("methods").and_then(|node| list(node, report));
    let paths = object.optional("paths").and_then(|node| list(node, report));
    let at = object.optional("at").map_or(at, |node| node.time(report));
    object.finish(report);
    let place = document.locate(&node.path.to_string(), "");
    Some(Only { place, name: name?.to_owned(), may: may?, to: to?, methods, paths, at })
}
