//! How the filter is, for operators and readiness checks: one answer with every source of keys and policy.
//!
//! What it is not: a decision. It is given before any credential is looked at, and says nothing that
//! one could be made from: no key, no rule, no configuration.

use serde_json::{Map, Value};

use crate::configuration::Mode;
use crate::feed::Breaker;
use crate::hexadecimal;
use crate::jose::Algorithm;
use crate::time::Span;

/// How one worker's filter instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The worker's random number, as in the first half of its decision ids.
    pub worker: u64,
    /// Whether decisions are carried out.
    pub mode: Mode,
    /// The algorithms whose signatures Envoy's own library verifies; the others are verified in the filter.
    pub signatures_by_host: Vec<Algorithm>,
    /// Every source of keys, policy, intentions and grants.
    pub sources: Vec<Source>,
    /// The audit trail, if there is one.
    pub audit: Option<Audit>,
}

/// How one worker's part of the audit trail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// The stream's number.
    pub stream: u64,
    /// The number of its last record; `None` before the first.
    pub seq: Option<u64>,
    /// Records of the stream that reached nobody.
    pub lost: u64,
    /// Time since a record was last signed; `None` before the first.
    pub checkpoint_age: Option<Span>,
    /// Whether the HTTP collector is asked, if there is one.
    pub collector: Option<Breaker>,
}

/// How one source of keys or policy is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Its name in the configuration.
    pub name: String,
    /// What it is a source of.
    pub kind: Kind,
    /// How it is fetched.
    pub from: Origin,
    /// Whether its document may be used now.
    pub ready: bool,
    /// Counts the documents that were taken into use; 0 before the first.
    pub version: u64,
    /// The `revision` of a policy that has one; Consul's index of intentions.
    pub revision: Option<u64>,
    /// Names the document's bytes, in hexadecimal digits.
    pub digest: Option<String>,
    /// Usable keys, rules, intentions, grants that are in effect, or roles.
    pub count: usize,
    /// Time since the document was last confirmed; `None` for one that has no age.
    pub age: Option<Span>,
    /// The age at which it is no longer used.
    pub max_age: Option<Span>,
    /// Time until the next fetch, negative if it is overdue; `None` if there will be none.
    pub next_fetch: Option<Span>,
    /// Whether its endpoint is asked at all.
    pub breaker: Breaker,
    /// The number of the worker that fetches for all, if there is one.
    pub leader: Option<u64>,
    /// Whether that is this one.
    pub leads: bool,
    /// The last fetch, if it failed.
    pub error: Option<Failure>,
}

/// What a source is a source of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Keys of an issuer.
    #[default]
    Keys,
    /// Policy.
    Policy,
    /// Temporary grants.
    Grants,
    /// Consul intentions.
    Intentions,
    /// The roles that a service may use.
    Catalog,
}

/// How a document is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// Not at all: it is in the configuration.
    #[default]
    Inline,
    /// By HTTP, now and then.
    Http,
    /// By HTTP, with an answer that comes when the document changes.
    LongPoll,
    /// By a blocking query from Consul's key-value store.
    ConsulKv,
    /// By blocking queries for Consul's intentions.
    ConsulIntentions,
    /// By a blocking query from Consul's catalog.
    ConsulCatalog,
    /// From where the issuer's discovery document says.
    Discovery,
}

/// Why the last fetch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Time since then.
    pub age: Span,
    /// In words, without a secret.
    pub reason: String,
}

/// An HTTP answer that the filter gives by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body, also for `HEAD`: the host sends its length only (RFC 9110 §9.3.2).
    pub body: String,
}

impl Status {
    /// Whether every source can be decided by. Without grants the policies decide alone, and without the
    /// catalog of those who have no role.
    pub fn ready(&self) -> bool {
        let is_needed = |source: &Source| !matches!(source.kind, Kind::Grants | Kind::Catalog);
        self.sources.iter().all(|source| source.ready || !is_needed(source))
    }

    /// The answer to a request of this method: 200 if ready, else 503; 405 to any method but `GET` and
    /// `HEAD`.
    pub fn reply(&self, method: &str) -> Reply {
        let mut headers = vec![("cache-control", "no-store".to_owned())];
        if !["GET", "HEAD"].contains(&method) {
            headers.push(("allow", "GET, HEAD".to_owned()));
            return Reply { status: 405, headers, body: String::new() };
        }
        headers.push(("content-type", "application/json".to_owned()));
        let status = if self.ready() { 200 } else { 503 };
        Reply { status, headers, body: self.body() }
    }

    fn body(&self) -> String {
        let sources: Vec<_> = self.sources.iter().map(Source::value).collect();
        let mut body = Map::new();
        put(&mut body, "ready", self.ready().into());
        put(&mut body, "worker", hexadecimal::of_number(self.worker).into());
        put(&mut body, "mode", self.mode.name().into());
        let by_host = self.signatures_by_host.iter().map(|algorithm| Value::from(algorithm.name()));
        put(&mut body, "signatures_by_host", Value::Array(by_host.collect()));
        put(&mut body, "sources", Value::Array(sources));
        if let Some(audit) = &self.audit {
            put(&mut body, "audit", audit.value());
        }
        Value::Object(body).to_string()
    }
}

impl Audit {
    fn value(&self) -> Value {
        let mut audit = Map::new();
        let to = &mut audit;
        put(to, "stream", hexadecimal::of_number(self.stream).into());
        put(to, "seq", self.seq.map_or(Value::Null, Value::from));
        put(to, "lost", self.lost.into());
        put(to, "checkpoint_age_seconds", seconds(self.checkpoint_age));
        let breaker = self.collector.map_or(Value::Null, |breaker| breaker.name().into());
        put(to, "collector", breaker);
        Value::Object(audit)
    }
}

impl Source {
    fn value(&self) -> Value {
        let mut source = Map::new();
        let to = &mut source;
        put(to, "name", self.name.as_str().into());
        put(to, "kind", self.kind.name().into());
        put(to, "from", self.from.name().into());
        put(to, "ready", self.ready.into());
        put(to, "version", self.version.into());
        put(to, "revision", self.revision.map_or(Value::Null, Value::from));
        put(to, "digest", self.digest.as_deref().map_or(Value::Null, Value::from));
        put(to, "count", self.count.into());
        put(to, "age_seconds", seconds(self.age));
        put(to, "max_age_seconds", seconds(self.max_age));
        put(to, "next_fetch_seconds", seconds(self.next_fetch));
        put(to, "breaker", self.breaker.name().into());
        put(to, "leader", self.leader.map(hexadecimal::of_number).into());
        put(to, "leads", self.leads.into());
        let error = self.error.as_ref().map_or(Value::Null, |error| {
            let mut members = Map::new();
            put(&mut members, "age_seconds", seconds(Some(error.age)));
            put(&mut members, "reason", error.reason.as_str().into());
            Value::Object(members)
        });
        put(to, "error", error);
        Value::Object(source)
    }
}

impl Kind {
    /// Its name in the answer.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Policy => "policy",
            Self::Grants => "grants",
            Self::Intentions => "intentions",
            Self::Catalog => "catalog",
        }
    }
}

impl Origin {
    /// Its name in the answer.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Http => "http",
            Self::LongPoll => "long_poll",
            Self::ConsulKv => "consul_kv",
            Self::ConsulIntentions => "consul_intentions",
            Self::ConsulCatalog => "consul_catalog",
            Self::Discovery => "discovery",
        }
    }
}

#[inline(never)] // It is called from many places, and seldom.
fn put(object: &mut Map<String, Value>, name: &str, value: Value) {
    object.insert(name.to_owned(), value);
}

/// Whole seconds, of a time ahead or ago, rounded up; what is overdue is due now.
#[inline(never)]
fn seconds(span: Option<Span>) -> Value {
    span.map_or(Value::Null, |span| span.as_secs_ceil().max(0).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(ready: bool) -> Status {
        let source = Source {
            name: "main".to_owned(),
            kind: Kind::Policy,
            from: Origin::LongPoll,
            ready,
            version: 3,
            revision: Some(42),
            digest: Some("ab12".to_owned()),
            count: 7,
            age: Some(Span::from_millis(1_200)),
            max_age: Some(Span::from_secs(900)),
            next_fetch: Some(Span::from_millis(-5_000)),
            breaker: Breaker::HalfOpen,
            leader: Some(255),
            leads: true,
            error: Some(Failure { age: Span::from_secs(4), reason: "no answer".to_owned() }),
        };
        let fixed = Source { name: "idp".to_owned(), ready: true, ..Source::default() };
        let audit = Audit {
            stream: 255,
            seq: Some(7),
            lost: 1,
            checkpoint_age: Some(Span::from_millis(2_500)),
            collector: Some(Breaker::Open),
        };
        Status {
            worker: 255,
            mode: Mode::Shadow,
            signatures_by_host: vec![Algorithm::Rs256, Algorithm::Es256],
            sources: vec![source, fixed],
            audit: Some(audit),
        }
    }

    fn header(reply: &Reply, name: &str) -> Option<String> {
        reply.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_answer_has_every_source_with_every_member() {
        let reply = status(true).reply("GET");
        assert_eq!(reply.status, 200);
        assert_eq!(header(&reply, "content-type").as_deref(), Some("application/json"));
        assert_eq!(header(&reply, "cache-control").as_deref(), Some("no-store"));
        assert_eq!(
            serde_json::from_str::<Value>(&reply.body).unwrap(),
            json!({
                "ready": true, "worker": "00000000000000ff", "mode": "shadow",
                "signatures_by_host": ["RS256", "ES256"],
                "sources": [
                    {
                        "name": "main", "kind": "policy", "from": "long_poll", "ready": true,
                        "version": 3, "revision": 42, "digest": "ab12", "count": 7,
                        "age_seconds": 2, "max_age_seconds": 900, "next_fetch_seconds": 0,
                        "breaker": "half_open", "leader": "00000000000000ff", "leads": true,
                        "error": { "age_seconds": 4, "reason": "no answer" }
                    },
                    {
                        "name": "idp", "kind": "keys", "from": "inline", "ready": true,
                        "version": 0, "revision": null, "digest": null, "count": 0,
                        "age_seconds": null, "max_age_seconds": null, "next_fetch_seconds": null,
                        "breaker": "closed", "leader": null, "leads": false, "error": null
                    }
                ],
                "audit": {
                    "stream": "00000000000000ff", "seq": 7, "lost": 1,
                    "checkpoint_age_seconds": 3, "collector": "open"
                }
            })
        );
    }

    #[test]
    fn it_is_ready_when_every_source_is() {
        assert_eq!(status(false).reply("GET").status, 503);
        assert_eq!(status(false).reply("HEAD").status, 503);
        assert_eq!(status(true).reply("HEAD").status, 200);
    }

    #[test]
    fn other_methods_are_told_which_there_are() {
        let reply = status(true).reply("POST");
        assert_eq!((reply.status, reply.body.as_str()), (405, ""));
        assert_eq!(header(&reply, "allow").as_deref(), Some("GET, HEAD"));
        assert_eq!(header(&reply, "content-type"), None);
    }
}
