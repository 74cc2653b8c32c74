//! Consul intentions out of a file, as the layer before the policy that they are in the filter.
//!
//! A mesh has one trust domain; here it is that of whoever calls, because a peer of another one is refused
//! before intentions are asked. They count for every call, and a described request has no headers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use airflow_envoy_core::facts::{Caller, Fact};
use airflow_envoy_core::intentions::{DefaultAction, Intentions, Question, Settings, Token};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::peer::SpiffeId;
use airflow_envoy_core::policy::path;
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::reject::{Code, Reject};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::evaluate::Request;

/// The name that intentions have in answers unless they are given one.
const NAME: &str = "mesh";

/// Where intentions are, and what decides beside them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Consul intentions")]
pub struct IntentionOptions {
    /// Consul's answer to /v1/connect/intentions/match?by=destination, or a service-intentions entry or a list of
    /// them: calls must be allowed by these intentions, too
    #[arg(long, value_name = "FILE")]
    pub intentions: Option<PathBuf>,
    /// What decides where no intention does
    #[arg(long, value_enum, default_value = "deny", requires = "intentions")]
    pub intentions_default: Default,
    /// The issuer of access tokens that stands for a jwt-provider of Consul; repeatable
    #[arg(long, value_name = "PROVIDER=ISSUER", requires = "intentions", value_parser = provider)]
    pub jwt_provider: Vec<(String, String)>,
}

/// What decides where no intention does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Default {
    /// Nothing is allowed.
    Deny,
    /// Everything is allowed.
    Allow,
}

fn provider(text: &str) -> Result<(String, String), String> {
    let (provider, issuer) = text.split_once('=').ok_or("expected PROVIDER=ISSUER")?;
    Ok((provider.to_owned(), issuer.to_owned()))
}

/// Intentions to decide by.
#[derive(Debug, Clone)]
pub struct Mesh {
    document: Rc<[u8]>,
    settings: Settings,
    /// By trust domain.
    read: Rc<RefCell<BTreeMap<String, Rc<Intentions>>>>,
}

impl Mesh {
    /// Those that the options name, if they name some.
    ///
    /// # Errors
    /// A file that cannot be read, and what is wrong in it.
    pub fn read(options: &IntentionOptions) -> Result<Option<Self>, String> {
        let Some(file) = &options.intentions else { return Ok(None) };
        let default = match options.intentions_default {
            Default::Deny => DefaultAction::Deny,
            Default::Allow => DefaultAction::Allow,
        };
        let told = |problem: String| format!("{}: {problem}", file.display());
        let document = std::fs::read(file).map_err(|error| told(error.to_string()))?;
        Self::new(&document, default, options.jwt_provider.clone()).map(Some).map_err(told)
    }

    /// Those of this document.
    ///
    /// # Errors
    /// Why there are none in it.
    pub fn new(
        document: &[u8],
        default: DefaultAction,
        jwt_providers: Vec<(String, String)>,
    ) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(document).map_err(|error| error.to_string())?;
        let (destination, entries, document) = shape(value)?;
        let settings = Settings {
            name: NAME.to_owned(),
            destination,
            hosts: Vec::new(),
            default,
            namespace: "default".to_owned(),
            partition: "default".to_owned(),
            trust_domain: String::new(),
            jwt_providers,
            entries,
        };
        let document = document.to_string().into_bytes().into();
        let mesh = Self { document, settings, read: Rc::default() };
        mesh.of("mesh")?;
        Ok(mesh)
    }

    fn of(&self, trust_domain: &str) -> Result<Rc<Intentions>, String> {
        if let Some(known) = self.read.borrow().get(trust_domain) {
            return Ok(Rc::clone(known));
        }
        let settings = Settings { trust_domain: trust_domain.to_owned(), ..self.settings.clone() };
        let read = Rc::new(Intentions::parse(&self.document, &settings, &Limits::DEFAULT)?);
        self.read.borrow_mut().insert(trust_domain.to_owned(), Rc::clone(&read));
        Ok(read)
    }

    /// Whether the mesh lets the call through.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, caller: &Caller, request: &Request) -> Result<(), Reject> {
        let first = |fact: &Fact| fact.values().and_then(|values| values.first()).cloned();
        // Of a service alone intentions need no more than its name.
        let id = first(&caller.spiffe_ids).or_else(|| {
            let service = first(&caller.services)?;
            Some(format!("spiffe://mesh/ns/default/dc/dc1/svc/{service}"))
        });
        let peer = id.and_then(|id| SpiffeId::parse(id.as_bytes()).ok());
        // Without a token there are no claims; with one its issuer is the first.
        let token = caller.claims.are_known().then(|| first(&caller.issuers)).flatten();
        let intentions = self
            .of(peer.as_ref().map_or("mesh", SpiffeId::trust_domain))
            .map_err(|problem| Reject::new(Code::IntentionDenied, problem))?;
        let path = if intentions.ask_for_paths() && !request.is_tunnel() {
            let path = path::normalise(&request.path, &Limits::DEFAULT)
                .map_err(|problem| Reject::new(Code::PathInvalid, format!("the path {problem}")))?;
            Some(path)
        } else {
            None
        };
        let question = Question {
            peer: peer.as_ref(),
            method: &request.method,
            path: path.as_deref(),
            headers: &[],
            token: token.as_deref().map(|issuer| Token { issuer, claims: &caller.claims }),
        };
        intentions.judge_call(&question).map(|_| ())
    }
}

/// The destination, whether these are configuration entries, and the document as the filter would get it.
fn shape(value: Value) -> Result<(String, bool, Value), String> {
    let is_entry = |value: &Value| value.get("Kind").is_some() || value.get("Sources").is_some();
    let name = |value: &Value| value.get("Name").and_then(Value::as_str).map(str::to_owned);
    match value {
        entry @ Value::Object(_) if is_entry(&entry) => shape(Value::Array(vec![entry])),
        Value::Array(entries) if entries.iter().all(is_entry) && !entries.is_empty() => {
            let (every, mut own): (Vec<Value>, Vec<Value>) =
                entries.into_iter().partition(|entry| name(entry).as_deref() == Some("*"));
            if own.len() > 1 || every.len() > 1 {
                return Err(
                    "has entries of several destinations: it may have one of one, and one of `*`"
                        .to_owned(),
                );
            }
            let own = own.pop();
            let destination =
                own.as_ref().and_then(name).unwrap_or_else(|| "destination".to_owned());
            let every = every.into_iter().next().unwrap_or(Value::Null);
            let parts = Value::Array(vec![own.unwrap_or(Value::Null), every]);
            Ok((destination, true, parts))
        }
        Value::Object(answer) => {
            let mut names = answer.keys();
            match (names.next().cloned(), names.next()) {
                (Some(destination), None) => Ok((destination, false, Value::Object(answer))),
                (None, _) => Err("has no destination".to_owned()),
                (Some(one), Some(other)) => {
                    let (one, other) = (quote(&one), quote(other));
                    Err(format!("has the intentions of several destinations, {one} and {other}"))
                }
            }
        }
        _ => Err("is neither an answer to `match` nor `service-intentions` entries".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{Peer, Said};

    fn judged(document: &str, default: DefaultAction, peer: Peer, request: &str) -> Option<String> {
        let mesh = Mesh::new(document.as_bytes(), default, Vec::new()).unwrap();
        let said = Said { peer: Some(peer), ..Said::default() };
        let request = Request::parse(request).unwrap();
        mesh.judge(&said.caller().unwrap(), &request).err().map(|reject| reject.detail)
    }

    fn service(name: &str) -> Peer {
        Peer { service: Some(name.to_owned()), spiffe_id: None }
    }

    const MATCH: &str = r#"{"orders": [
        {"SourceName": "worker", "SourceNS": "default", "DestinationName": "orders", "DestinationNS": "default",
         "SourceType": "consul", "Action": "allow", "Precedence": 9},
        {"SourceName": "*", "SourceNS": "default", "DestinationName": "orders", "DestinationNS": "default",
         "SourceType": "consul", "Action": "deny", "Precedence": 8}]}"#;

    const ENTRY: &str = r#"{"Kind": "service-intentions", "Name": "orders", "Sources": [
        {"Name": "worker", "Permissions": [
            {"Action": "allow", "HTTP": {"PathPrefix": "/v1/", "Methods": ["GET"]}}]}]}"#;

    #[test]
    fn both_forms_of_intentions_are_read_and_decide() {
        let get = "GET http://orders.internal/v1/orders/7";
        let deny = DefaultAction::Deny;
        for (document, who, request, denied) in [
            (MATCH, "worker", get, None),
            (MATCH, "batch", get, Some("`* => orders`")),
            (ENTRY, "worker", get, None),
            (ENTRY, "worker", "POST http://orders.internal/v1/orders/7", Some("no permission")),
            (ENTRY, "worker", "GET http://orders.internal/v2", Some("no permission")),
            (ENTRY, "batch", get, Some("the default denies")),
        ] {
            let told = judged(document, deny, service(who), request);
            match denied {
                None => assert_eq!(told, None, "{who} {request}"),
                Some(words) => assert!(told.as_ref().unwrap().contains(words), "{told:?}"),
            }
        }
        assert_eq!(judged(ENTRY, DefaultAction::Allow, service("batch"), get), None);
        // As in the filter: what a server reads that cuts parameters off must be allowed as well.
        let admin = r#"{"Kind": "service-intentions", "Name": "orders", "Sources": [
            {"Name": "worker", "Permissions": [
                {"Action": "deny", "HTTP": {"PathExact": "/v1/admin"}},
                {"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}]}"#;
        let told = judged(admin, deny, service("worker"), "GET http://orders.internal/v1/admin;x");
        assert!(told.unwrap().contains("denies by its permission 1"));
        // The whole list of entries, and a peer by its SPIFFE ID.
        let list = format!("[{ENTRY}]");
        let id = "spiffe://td.consul/ns/default/dc/dc1/svc/worker".to_owned();
        let peer = Peer { service: None, spiffe_id: Some(id) };
        assert_eq!(judged(&list, deny, peer, get), None);
    }

    #[test]
    fn what_is_no_file_of_intentions_is_told() {
        for (document, words) in [
            ("[", "EOF"),
            ("7", "neither an answer"),
            ("[]", "neither an answer"),
            ("{}", "has no destination"),
            (r#"{"a": [], "b": []}"#, "several destinations"),
            (&format!("[{ENTRY}, {ENTRY}]"), "several destinations"),
            (r#"{"a": 7}"#, ""),
        ] {
            let error =
                Mesh::new(document.as_bytes(), DefaultAction::Deny, Vec::new()).unwrap_err();
            assert!(error.contains(words), "{document}: {error}");
        }
    }
}
