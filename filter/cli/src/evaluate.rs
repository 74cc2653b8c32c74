//! The one way from a described call to a decision: test, explain and whatever comes take it.
//!
//! Credentials are taken as verified: what is said about the caller is turned into facts by the code
//! that does it in the filter, the request is read and decided as there.

use std::rc::Rc;

use airflow_envoy_core::arrival::{CONNECT, Request as Arrived};
use airflow_envoy_core::credential::Verified;
use airflow_envoy_core::document::suggestion;
use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::gate;
use airflow_envoy_core::identity::TaskIdentity;
use airflow_envoy_core::jose::{Algorithm, RustCrypto};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::peer::SpiffeId;
use airflow_envoy_core::policy::explain::Inquiry;
use airflow_envoy_core::policy::{GrantDocument, Outcome, Policy, PolicySet, ShadowVerdict, Unfit};
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::reject::{Credential, Reject};
use airflow_envoy_core::time::UnixTime;
use serde_json::{Map, Value};

use crate::intentions::Mesh;

/// Claims of an identity's `airflow` object, and what else is said about an identity.
pub const IDENTITY: [&str; 18] = [
    "dag_id",
    "task_id",
    "run_id",
    "try_number",
    "map_index",
    "run_type",
    "owners",
    "tags",
    "team",
    "roles",
    "queue",
    "ti_id",
    "state",
    "pool",
    "hostname",
    "triggering_user_name",
    "issuer",
    "key_id",
];

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `:method`.
    pub method: String,
    /// `:scheme`.
    pub scheme: String,
    /// `:authority`.
    pub host: String,
    /// `:path`; empty for a tunnel, which has none.
    pub path: String,
}

impl std::fmt::Display for Request {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { method, scheme, host, path } = self;
        if self.is_tunnel() {
            return write!(formatter, "{method} {host}{path}");
        }
        write!(formatter, "{method} {scheme}://{host}{path}")
    }
}

impl Request {
    /// Reads `GET https://orders.internal/v1/orders/7`; without a scheme it is `http`. A tunnel is
    /// `CONNECT orders.internal:443`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let problem =
            || format!("{} is not a method and a URL such as `GET https://host/path`", quote(text));
        let (method, url) = text.split_once(' ').ok_or_else(problem)?;
        if method == CONNECT {
            let host = url.trim();
            if host.is_empty() || host.contains('/') {
                let shown = quote(text);
                return Err(format!("{shown} is not a tunnel such as `CONNECT host:443`"));
            }
            return Ok(Self::tunnel(host));
        }
        let (scheme, rest) = url.trim().split_once("://").unwrap_or(("http", url.trim()));
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at_checked(at).ok_or_else(problem)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if host.is_empty() || method.is_empty() {
            return Err(problem());
        }
        Ok(Self {
            method: method.to_owned(),
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            path,
        })
    }

    /// The one that asks for a tunnel to `host`, which has a port.
    pub fn tunnel(host: &str) -> Self {
        Self {
            method: CONNECT.to_owned(),
            // A CONNECT has none; the default port is that of `https`.
            scheme: "https".to_owned(),
            host: host.to_owned(),
            path: String::new(),
        }
    }

    /// Whether it asks for a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.method == CONNECT
    }

    /// The call that it is, read as the filter reads it.
    fn call(&self) -> Result<Call<'_>, Reject> {
        let Self { method, scheme, host, path } = self;
        let mut headers = vec![(":method", method), (":authority", host)];
        if !self.is_tunnel() {
            headers.push((":scheme", scheme));
        }
        if !self.is_tunnel() || !path.is_empty() {
            headers.push((":path", path));
        }
        let headers: Vec<(&[u8], &[u8])> =
            headers.into_iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        Arrived::read(&headers).map(|arrived| arrived.call())
    }
}

/// What is said about a caller, as verified credentials would say it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Said {
    /// Claims of the object `airflow`, with `issuer` and `key_id`; `None` without an identity.
    pub identity: Option<Map<String, Value>>,
    /// Claims of the access token, with `issuer` and `key_id` beside them; `None` without one.
    pub token: Option<Token>,
    /// The mesh peer.
    pub peer: Option<Peer>,
}

/// What is said about an access token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The configured name of its issuer.
    pub issuer: String,
    /// The key that signed it.
    pub key_id: Option<String>,
    /// Its claims.
    pub claims: Map<String, Value>,
}

/// What is said about a mesh peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// The name of its Consul service.
    pub service: Option<String>,
    /// Its SPIFFE ID.
    pub spiffe_id: Option<String>,
}

impl Peer {
    /// The facts that the policy sees. A SPIFFE ID says which service it is, as in the filter. Of a service
    /// alone the SPIFFE ID is unknown.
    fn describe(&self, caller: &mut Caller) -> Result<(), String> {
        let Self { service, spiffe_id } = self;
        let Some(id) = spiffe_id else {
            caller.services = service.clone().map_or(Fact::Unknown, Fact::one);
            return Ok(());
        };
        let shown = quote(id);
        let parsed = SpiffeId::parse(id.as_bytes());
        let parsed =
            parsed.map_err(|problem| format!("the peer's `spiffe_id` {shown} {problem}"))?;
        parsed.describe(caller);
        let known = caller.services.values().and_then(|services| services.first());
        match service {
            Some(service) if known != Some(service) => Err(format!(
                "the peer's `spiffe_id` {shown} is not that of the service {}",
                quote(service)
            )),
            _ => Ok(()),
        }
    }

    /// For people: its service, or else its SPIFFE ID.
    pub fn name(&self) -> &str {
        self.service.as_deref().or(self.spiffe_id.as_deref()).unwrap_or("?")
    }
}

impl Said {
    /// The facts that the policy sees.
    ///
    /// # Errors
    /// What is wrong with the claims, as the filter would say it.
    pub fn caller(&self) -> Result<Caller, String> {
        let (mut identity, mut task) = (None, None);
        if let Some(said) = &self.identity {
            let (issuer, key_id) = issuer_and_key(said, "airflow")?;
            let claims = claims(said)?;
            let read = TaskIdentity::read(&claims).map_err(|reject| reject.detail)?;
            task = Some(read);
            identity = Some(verified(Credential::Identity, issuer, key_id, claims));
        }
        let token = self.token.as_ref().map(|Token { issuer, key_id, claims }| {
            verified(Credential::Token, issuer.clone(), key_id.clone(), claims.clone())
        });
        let mut caller = gate::caller(token.as_ref(), identity.as_ref(), task);
        if let Some(peer) = &self.peer {
            peer.describe(&mut caller)?;
        }
        Ok(caller)
    }

    /// "`ds_churn/load`, team `sales`", for people.
    pub fn describe(&self) -> String {
        let Some(identity) = &self.identity else {
            return match &self.token {
                Some(_) => "a caller without an Airflow identity".to_owned(),
                None => "a caller without credentials".to_owned(),
            };
        };
        let text = |name: &str| identity.get(name).and_then(Value::as_str);
        let dag = text("dag_id").unwrap_or("?");
        let mut told = match text("task_id") {
            Some(task) => quote(&format!("{dag}/{task}")),
            None => quote(dag),
        };
        for name in ["team", "owners", "tags", "roles", "run_type", "queue"] {
            let shown = match identity.get(name) {
                Some(Value::String(text)) => quote(text),
                Some(Value::Array(texts)) if !texts.is_empty() => {
                    let texts = texts.iter().filter_map(Value::as_str).map(quote);
                    texts.collect::<Vec<_>>().join(" ")
                }
                _ => continue,
            };
            told.push_str(&format!(", {name} {shown}"));
        }
        if let Some(peer) = &self.peer {
            told.push_str(&format!(", from {}", quote(peer.name())));
        }
        told
    }
}

/// The claims of the whole identity, with what every identity has filled in.
fn claims(said: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    if let Some(unknown) = said.keys().find(|name| !IDENTITY.contains(&name.as_str())) {
        let close = suggestion(unknown, &IDENTITY);
        let close = close.map(|close| format!(", did you mean `{close}`?"));
        let shown = quote(unknown);
        return Err(format!("unknown claim {shown}{}", close.unwrap_or_default()));
    }
    let mut airflow = said.clone();
    for name in ["issuer", "key_id"] {
        airflow.remove(name);
    }
    if !airflow.contains_key("dag_id") {
        return Err("`dag_id` is missing".to_owned());
    }
    for (name, default) in
        [("task_id", Value::from("task")), ("run_id", "run".into()), ("try_number", 1.into())]
    {
        airflow.entry(name).or_insert(default);
    }
    let text = |name: &str| airflow.get(name).and_then(Value::as_str).unwrap_or_default();
    let subject = format!("airflow:{}/{}", text("dag_id"), text("task_id"));
    let mut claims = Map::new();
    claims.insert("sub".to_owned(), subject.into());
    claims.insert("airflow".to_owned(), Value::Object(airflow));
    Ok(claims)
}

fn issuer_and_key(
    said: &Map<String, Value>,
    default: &str,
) -> Result<(String, Option<String>), String> {
    let text = |name: &str| match said.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("`{name}` is not a text")),
    };
    Ok((text("issuer")?.unwrap_or_else(|| default.to_owned()), text("key_id")?))
}

fn verified(
    credential: Credential,
    issuer_name: String,
    key_id: Option<String>,
    claims: Map<String, Value>,
) -> Verified {
    Verified {
        credential,
        issuer_name,
        key_id,
        algorithm: Algorithm::Es256,
        claims,
        expires_at: UnixTime::from_millis(i64::MAX),
        not_before: None,
        issued_at: None,
    }
}

/// What is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The rule that permits, or the refusal.
    pub outcome: Result<String, Reject>,
    /// The temporary grant without which no rule would have permitted it.
    pub grant: Option<String>,
    /// The destination, if there is one.
    pub destination: Option<String>,
    /// Shadow rules that would have changed it.
    pub shadow: Vec<ShadowVerdict>,
}

impl Answer {
    /// The rule that decided.
    pub fn decider(&self) -> Option<&str> {
        match &self.outcome {
            Ok(rule) => Some(rule),
            Err(reject) => reject.rule.as_deref(),
        }
    }
}

/// "permit by rule `x`" or "reject policy_denied, rule `y`".
impl std::fmt::Display for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.outcome {
            Ok(rule) => {
                write!(formatter, "permit by rule {}", quote(rule))?;
                match &self.grant {
                    Some(grant) => write!(formatter, ", granted by {}", quote(grant)),
                    None => Ok(()),
                }
            }
            Err(reject) => {
                write!(formatter, "reject {}", reject.code)?;
                if let Some(rule) = &reject.rule {
                    write!(formatter, " by rule {}", quote(rule))?;
                }
                if let Some(nearest) = &reject.nearest {
                    write!(formatter, ", nearest rule {}", quote(nearest))?;
                }
                Ok(())
            }
        }
    }
}

/// A policy to decide by.
#[derive(Debug, Clone)]
pub struct Evaluator {
    policy: Rc<Policy>,
    set: PolicySet,
    mesh: Option<Mesh>,
}

impl Evaluator {
    /// Decides by this policy alone.
    pub fn new(policy: Policy) -> Self {
        let policy = Rc::new(policy);
        // Without a name: of a grant that is for the policy of some source, this is the one.
        let set = PolicySet::new(vec![("".into(), Rc::clone(&policy))]);
        Self { policy, set, mesh: None }
    }

    /// The same behind these intentions.
    pub fn behind(self, mesh: Option<Mesh>) -> Self {
        Self { mesh, ..self }
    }

    /// The same with those of these grants that an approver of the policy signed, as they are at `now`, and
    /// why others are left out.
    pub fn with_grants(&self, grants: &GrantDocument, now: UnixTime) -> (Self, Vec<Unfit>) {
        let (set, unfit) = self.set.with_grants(grants, now, &Limits::DEFAULT, &RustCrypto);
        (Self { policy: Rc::clone(&self.policy), set, mesh: self.mesh.clone() }, unfit)
    }

    /// Whether intentions are asked, too.
    pub fn has_intentions(&self) -> bool {
        self.mesh.is_some()
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Decides a request of `caller` at `now`.
    pub fn decide(&self, caller: &Caller, request: &Request, now: UnixTime) -> Answer {
        // The mesh would refuse first.
        let judged = request.call().and_then(|call| match &self.mesh {
            Some(mesh) => mesh.judge(caller, request).map(|()| call),
            None => Ok(call),
        });
        let call = match judged {
            Ok(call) => call,
            Err(reject) => {
                return Answer {
                    outcome: Err(reject),
                    grant: None,
                    destination: None,
                    shadow: Vec::new(),
                };
            }
        };
        let standing = self.set.standing(caller, None);
        let decision = self.set.decide(caller, &standing, &call, now, &Limits::DEFAULT);
        let (outcome, grant) = match decision.outcome {
            Outcome::Permit { rule, grant } => {
                (Ok(rule.to_string()), grant.map(|grant| grant.to_string()))
            }
            Outcome::Refuse(reject) => (Err(reject), None),
        };
        let destination = decision.destination.map(|name| name.to_string());
        Answer { outcome, grant, destination, shadow: decision.shadow }
    }

    /// Puts the request to every rule; `None` if it cannot be read.
    pub fn inquire<'a>(
        &'a self,
        caller: &'a Caller,
        request: &'a Request,
        now: UnixTime,
    ) -> Option<Inquiry<'a>> {
        self.policy.inquire(caller, &request.call().ok()?, now, &Limits::DEFAULT)
    }
}
