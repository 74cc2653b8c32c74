//! The configuration of the audit trail: the member `audit`.

use super::collector;
use super::key::Signer;
use crate::configuration::{Environment, bounded_span};
use crate::document::{Node, Object, Report};
use crate::quote::quote;
use crate::time::Span;

/// How decisions are recorded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Signs; without one the records are only chained.
    pub signer: Option<Signer>,
    /// Records after which there is a checkpoint.
    pub checkpoint_records: u64,
    /// Time after which there is one, if anything was written.
    pub checkpoint_time: Span,
    /// Of so many permits one is recorded; `None`: each.
    pub sample: Option<u64>,
    /// Names of the access token's claims that are recorded.
    pub claims: Vec<String>,
    /// Whether every record goes to Envoy's log. Without a collector it always does.
    pub log: bool,
    /// The HTTP collector.
    pub collector: Option<collector::Settings>,
}

/// Claims that can be recorded.
const MOST_CLAIMS: usize = 32;

impl Settings {
    /// Reads the member `audit`.
    pub fn read(
        node: &Node<'_>,
        report: &mut Report,
        environment: Environment<'_>,
    ) -> Option<Self> {
        let mut object = node.object(report)?;
        let signer = match object.optional("key") {
            Some(node) => read_key(&node, report, environment).map(Some),
            None => Some(None),
        };
        let checkpoint = read_checkpoint(&mut object, report);
        let sample = match object.optional("sample_permits") {
            Some(node) => {
                node.integer(report, 1, 1_000_000).map(|one_of| (one_of > 1).then_some(one_of))
            }
            None => Some(None),
        };
        let claims = match object.optional("claims") {
            Some(node) => read_claims(&node, report),
            None => Some(Vec::new()),
        };
        let sinks = match object.optional("sinks") {
            Some(node) => read_sinks(&node, report, environment),
            None => Some((true, None)),
        };
        object.finish(report);
        let (checkpoint_records, checkpoint_time) = checkpoint?;
        let (log, collector) = sinks?;
        Some(Self {
            signer: signer?,
            checkpoint_records,
            checkpoint_time,
            sample: sample?,
            claims: claims?,
            log,
            collector,
        })
    }
}

fn read_key(node: &Node<'_>, report: &mut Report, environment: Environment<'_>) -> Option<Signer> {
    let mut object = node.object(report)?;
    let node = object.required(report, "jwk_env");
    object.finish(report);
    let node = node?;
    let variable = node.string(report)?;
    let Some(jwk) = environment(variable).filter(|jwk| !jwk.is_empty()) else {
        let problem = "is not set to a key; see `vm_config.environment_variables`";
        node.fault(report, format!("the variable {} {problem}", quote(variable)));
        return None;
    };
    match Signer::from_jwk(jwk.as_bytes()) {
        Ok(signer) => Some(signer),
        Err(problem) => {
            node.fault(report, format!("the variable {} {problem}", quote(variable)));
            None
        }
    }
}

fn read_checkpoint(object: &mut Object<'_>, report: &mut Report) -> Option<(u64, Span)> {
    let (records, time) = (1000, Span::from_secs(10));
    let Some(node) = object.optional("checkpoint") else { return Some((records, time)) };
    let mut object = node.object(report)?;
    let records = match object.optional("records") {
        Some(node) => node.integer(report, 1, 1_000_000),
        None => Some(records),
    };
    let time = match object.optional("every") {
        Some(node) => bounded_span(&node, report, Span::from_millis(100), Span::from_secs(3600)),
        None => Some(time),
    };
    object.finish(report);
    records.zip(time)
}

fn read_claims(node: &Node<'_>, report: &mut Report) -> Option<Vec<String>> {
    let names = node.strings(report)?;
    if names.len() > MOST_CLAIMS {
        node.fault(report, format!("are more than {MOST_CLAIMS}"));
        return None;
    }
    Some(names.into_iter().map(str::to_owned).collect())
}

/// Whether there is a log, and the collector.
fn read_sinks(
    node: &Node<'_>,
    report: &mut Report,
    environment: Environment<'_>,
) -> Option<(bool, Option<collector::Settings>)> {
    let (mut log, mut collector) = (false, None);
    for node in node.nonempty_array(report)? {
        let mut object = node.object(report)?;
        let (to_log, http) = (object.optional("log"), object.optional("http"));
        object.finish(report);
        match (to_log, http) {
            (Some(node), None) if !log => {
                node.object(report)?.finish(report);
                log = true;
            }
            (None, Some(node)) if collector.is_none() => {
                collector = Some(collector::Settings::read(&node, report, environment)?);
            }
            (Some(_), None) | (None, Some(_)) => {
                node.fault(report, "is a second one of its kind");
                return None;
            }
            _ => {
                node.fault(report, "needs exactly one of `log` and `http`");
                return None;
            }
        }
    }
    Some((log, collector))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::audit::key::tests::jwk;
    use crate::document::Faults;

    fn read(value: &Value) -> Result<Settings, Faults> {
        let mut report = Report::new();
        let environment = |name: &str| match name {
            "KEY" => Some(jwk(1).to_string()),
            "BAD" => Some("{\"kty\": \"oct\", \"k\": \"hush\"}".to_owned()),
            _ => None,
        };
        let settings = Settings::read(&Node::root(value), &mut report, &environment);
        report.finish(settings)
    }

    #[test]
    fn the_smallest_trail_is_unsigned_and_goes_to_the_log() {
        let settings = read(&json!({})).unwrap();
        assert!(settings.signer.is_none() && settings.log && settings.collector.is_none());
        assert_eq!((settings.checkpoint_records, settings.sample), (1000, None));
        assert_eq!(settings.checkpoint_time, Span::from_secs(10));
    }

    #[test]
    fn every_member_is_read() {
        let settings = read(&json!({
            "key": { "jwk_env": "KEY" }, "checkpoint": { "records": 5, "every": "1m" },
            "sample_permits": 10, "claims": ["department"],
            "sinks": [{ "http": { "cluster": "audit", "uri": "http://audit/v1" } }],
        }))
        .unwrap();
        assert!(settings.signer.is_some() && !settings.log && settings.collector.is_some());
        assert_eq!((settings.checkpoint_records, settings.sample), (5, Some(10)));
        assert_eq!(settings.claims, ["department"]);
        assert_eq!(read(&json!({ "sample_permits": 1 })).unwrap().sample, None);
    }

    #[test]
    fn a_fault_names_its_field_and_shows_no_key() {
        let http = json!({ "http": { "cluster": "audit", "uri": "http://audit/v1" } });
        for (value, said) in [
            (
                json!({ "key": { "jwk_env": "NONE" } }),
                "key.jwk_env: the variable `NONE` is not set",
            ),
            (
                json!({ "key": { "jwk_env": "BAD" } }),
                "key.jwk_env: the variable `BAD` is not a key of",
            ),
            (json!({ "key": {} }), "key: `jwk_env` is missing"),
            (json!({ "checkpoint": { "every": "1ms" } }), "checkpoint.every: "),
            (json!({ "checkpoint": { "records": 0 } }), "checkpoint.records: "),
            (json!({ "sample_permits": 0 }), "sample_permits: "),
            (json!({ "claims": [] }), "claims: must not be empty"),
            (json!({ "sinks": [] }), "sinks: must not be empty"),
            (json!({ "sinks": [{}] }), "sinks[0]: needs exactly one of `log` and `http`"),
            (json!({ "sinks": [{ "log": {} }, { "log": {} }] }), "sinks[1]: is a second one"),
            (json!({ "sinks": [http, http] }), "sinks[1]: is a second one"),
            (json!({ "sinks": [{ "log": { "a": 1 } }] }), "sinks[0].log: unknown field `a`"),
            (json!({ "sink": [] }), "unknown field `sink`, did you mean `sinks`?"),
        ] {
            let faults = read(&value).unwrap_err();
            let told: Vec<_> = faults.0.iter().map(ToString::to_string).collect();
            assert!(told.iter().any(|fault| fault.contains(said)), "{said}: {told:?}");
            assert!(!told.concat().contains("hush"));
        }
    }
}
