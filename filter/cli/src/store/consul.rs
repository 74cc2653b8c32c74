//! A key of Consul's key-value store, changed by check-and-set.

use airflow_envoy_core::json;
use airflow_envoy_core::limits::Limits;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use ureq::http::Method;

use super::client::Client;
use super::{Backend, Fault, Held, MOST_BYTES, Version};

/// Its name, its value in base64 and what surrounds them.
const MOST_ANSWER: usize = MOST_BYTES * 2;

#[derive(Debug)]
pub(super) struct ConsulStore {
    url: String,
    /// `dc=…` and the like, with an `&` before it.
    query: String,
    client: Client,
}

impl ConsulStore {
    /// `rest` is `host:port/key`, or `/key` on the agent of the environment, by the variables that Consul's
    /// own tool reads.
    pub(super) fn new(rest: &str, tls: bool) -> Result<Self, String> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
        if key.is_empty() || key.ends_with('/') {
            return Err("names no key: consul://host:port/key".to_owned());
        }
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let name = part.split('=').next().unwrap_or_default();
            if !matches!(name, "dc" | "ns" | "partition") {
                return Err("only `dc`, `ns` and `partition` may follow the key".to_owned());
            }
        }
        let mut tls = tls
            || variable("CONSUL_HTTP_SSL").is_some_and(|on| matches!(on.as_str(), "1" | "true"));
        let mut address = authority.to_owned();
        if address.is_empty() {
            address = variable("CONSUL_HTTP_ADDR").unwrap_or_else(|| "127.0.0.1:8500".to_owned());
            if let Some((scheme, rest)) = address.clone().split_once("://") {
                tls |= scheme == "https";
                address = rest.to_owned();
            }
        }
        let scheme = if tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}/v1/kv/{key}");
        let credential = variable("CONSUL_HTTP_TOKEN").map(|token| ("x-consul-token", token));
        let client = Client::new(&url, &["CONSUL_CACERT"], credential, MOST_ANSWER)?;
        let query = if query.is_empty() { String::new() } else { format!("&{query}") };
        Ok(Self { url, query, client })
    }
}

impl Backend for ConsulStore {
    fn read(&self) -> Result<Held, Fault> {
        let url = format!("{}?consistent{}", self.url, self.query);
        let answer = self.client.send(Method::GET, &url, &[], &[])?;
        match answer.status {
            200 => {}
            404 => return Ok(Held { document: None, version: Version::Absent }),
            _ => return Err(answer.unexpected()),
        }
        let strange = || Fault::lasting("answers what Consul does not: is it one?");
        let entries =
            json::parse(&answer.body, Limits::DEFAULT.json_depth).map_err(|_| strange())?;
        let entry = entries.get(0).ok_or_else(strange)?;
        let index = entry.get("ModifyIndex").and_then(Value::as_u64).ok_or_else(strange)?;
        let document = match entry.get("Value") {
            // A key without a value.
            Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) => STANDARD.decode(text).map_err(|_| strange())?,
            _ => return Err(strange()),
        };
        Ok(Held { document: Some(document), version: Version::Index(index) })
    }

    fn replace(&self, version: &Version, document: &[u8]) -> Result<bool, Fault> {
        let index = match version {
            Version::Index(index) => *index,
            // Only if there is none.
            _ => 0,
        };
        let url = format!("{}?cas={index}{}", self.url, self.query);
        let answer = self.client.send(Method::PUT, &url, &[], document)?;
        match (answer.status, answer.body.trim_ascii()) {
            (200, b"true") => Ok(true),
            (200, b"false") => Ok(false),
            _ => Err(answer.unexpected()),
        }
    }
}
