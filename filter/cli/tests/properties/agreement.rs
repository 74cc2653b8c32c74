//! Agreements, tried on many: who they let in is what an evaluator without an index, a policy or a peer's
//! certificate says, and what the tools tell of them is so.

use airflow_envoy_cli::diff::compare;
use airflow_envoy_cli::evaluate::{Answer, Peer, Request, Said};
use airflow_envoy_cli::lint::{Given, Lint, lint};
use airflow_envoy_cli::model::Model;
use airflow_envoy_cli::source::load::read_bytes;
use airflow_envoy_cli::source::merge::merge;
use airflow_envoy_core::policy::explain::glob;
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Map, Value, json};

use super::diff::side;
use super::random::Random;
use super::{decide, evaluator};

const PEER: &str = "spiffe://td.consul/ns/default/dc/dc1/svc/";

fn entry(random: &mut Random, id: String) -> Value {
    let mut from = Map::new();
    for _ in 0..=random.below(2) {
        match random.below(4) {
            0 => from.insert("issuers".into(), random.picks(&["airflow", "workers", "*"])),
            1 => from.insert("key_ids".into(), random.picks(&["airflow/1", "*/1", "workers/*"])),
            2 => {
                from.insert("spiffe_ids".into(), random.picks(&["spiffe://td.consul/*", "*/svc/b"]))
            }
            _ => from.insert("services".into(), random.picks(&["w", "w*", "b"])),
        };
    }
    let mut entry = json!({"id": id, "from": from});
    if random.one_in(2) {
        let mut said = Map::new();
        for _ in 0..=random.below(2) {
            match random.below(4) {
                0 => said.insert("dags".into(), random.picks(&["a", "a*", "*b", "*"])),
                1 => said.insert("teams".into(), random.picks(&["t1", "t2", "t*"])),
                2 => said.insert("tags".into(), random.picks(&["x", "y", "*"])),
                _ => said.insert("run_types".into(), random.picks(&["manual", "scheduled"])),
            };
        }
        entry["may_assert"] = said.into();
    }
    entry
}

pub fn agreement(random: &mut Random) -> Value {
    let entries = 0..=random.below(3);
    json!(entries.map(|number| entry(random, format!("entry-{number}"))).collect::<Vec<_>>())
}

fn document(random: &mut Random) -> Value {
    let mut document = random.document();
    document["agreement"] = agreement(random);
    document
}

/// A call of somebody with an identity, a key and mostly a peer.
pub fn call(random: &mut Random) -> (Said, Request, UnixTime) {
    let (mut said, request, at) = random.call();
    if let Some(identity) = &mut said.identity {
        identity.insert("issuer".into(), random.pick(&["airflow", "workers"]).into());
        if !random.one_in(4) {
            identity.insert("key_id".into(), random.pick(&["1", "2"]).into());
        }
    }
    let service = random.pick(&["w", "w2", "b", "c"]).to_owned();
    said.peer = match random.below(5) {
        0 => None,
        1 => Some(Peer { service: Some(service), spiffe_id: None }),
        _ => Some(Peer { service: None, spiffe_id: Some(format!("{PEER}{service}")) }),
    };
    (said, request, at)
}

/// What the agreement says, by the words of the README.
fn agrees(agreement: &Value, said: &Said) -> bool {
    let identity = said.identity.as_ref().unwrap();
    let text = |name: &str| identity.get(name).and_then(Value::as_str).map(str::to_owned);
    let peer = said.peer.clone().unwrap_or_default();
    let service = peer.service.clone();
    let service = service.or_else(|| Some(peer.spiffe_id.as_ref()?.rsplit_once('/')?.1.to_owned()));
    let issuer = text("issuer").unwrap();
    let key = text("key_id").map(|key| format!("{issuer}/{key}"));
    let tags = match &identity.get("tags") {
        Some(Value::Array(tags)) => tags.iter().map(|tag| tag.as_str().unwrap().into()).collect(),
        _ => Vec::new(),
    };
    let values = |field: &str| -> Vec<String> {
        let one = match field {
            "services" => service.clone(),
            "spiffe_ids" => peer.spiffe_id.clone(),
            "issuers" => Some(issuer.clone()),
            "key_ids" => key.clone(),
            "dags" => text("dag_id"),
            "teams" => text("team"),
            "run_types" => text("run_type"),
            "tags" => return tags.clone(),
            _ => None,
        };
        one.into_iter().collect()
    };
    let holds = |part: Option<&Value>| {
        part.and_then(Value::as_object).into_iter().flatten().all(|(field, globs)| {
            let globs: Vec<&str> =
                globs.as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let values = values(field);
            let covered = |value: &String| globs.iter().any(|pattern| glob(pattern, value));
            !values.is_empty() && values.iter().all(covered)
        })
    };
    let mut entries = agreement.as_array().unwrap().iter();
    entries.any(|entry| holds(entry.get("from")) && holds(entry.get("may_assert")))
}

fn is_disagreement(answer: &Answer) -> bool {
    answer.outcome.as_ref().is_err_and(|reject| {
        matches!(reject.code, Code::PeerNotAllowed | Code::AssertionNotAllowed)
    })
}

#[test]
fn an_agreement_lets_in_whom_it_says_and_changes_nothing_else() {
    let mut random = Random(21);
    let (mut refused, mut agreed, mut named) = (0, 0, 0);
    for _ in 0..600 {
        let document = document(&mut random);
        let mut without = document.clone();
        without.as_object_mut().unwrap().remove("agreement");
        let mut turned = document.clone();
        turned["agreement"].as_array_mut().unwrap().reverse();
        for _ in 0..10 {
            let call = call(&mut random);
            let answer = decide(&document, &call);
            assert_eq!(answer, decide(&turned, &call), "{document} {call:?}");
            let plain = decide(&without, &call);
            // What cannot be read is refused before.
            let unread = plain.outcome.as_ref().is_err_and(|reject| {
                matches!(reject.code, Code::PathInvalid | Code::AuthorityInvalid)
            });
            if agrees(&document["agreement"], &call.0) || unread {
                assert_eq!(answer, plain, "{document} {call:?}");
                agreed += 1;
            } else {
                assert!(is_disagreement(&answer), "{document} {call:?} {answer:?}");
                let id = answer.decider().unwrap();
                let mut entries = document["agreement"].as_array().unwrap().iter();
                named += usize::from(entries.any(|entry| entry["id"] == id));
                refused += 1;
            }
        }
    }
    assert!(refused > 1000 && agreed > 1000 && named == refused, "{refused} {agreed} {named}");
}

#[test]
fn what_is_said_of_an_entry_that_has_no_effect_is_so() {
    let mut random = Random(22);
    let (mut told, mut broad) = (0, 0);
    for _ in 0..1_500 {
        let document = document(&mut random);
        let source = merge(vec![read_bytes("p.json", document.to_string().as_bytes()).unwrap()]);
        let given = Given { now: UnixTime::default(), expiring: Span::ZERO };
        for finding in lint(&Model::new(&source.node), given, &|_| String::new()) {
            let Some(index) = finding.path.strip_prefix("agreement[") else { continue };
            let index: usize = index.trim_end_matches(']').parse().unwrap();
            if finding.lint == Lint::OverBroad {
                broad += 1;
                for _ in 0..20 {
                    assert!(agrees(&document["agreement"], &call(&mut random).0), "{document}");
                }
                continue;
            }
            let mut without = document.clone();
            let entries = without["agreement"].as_array_mut().unwrap();
            entries.remove(index);
            if entries.is_empty() {
                continue;
            }
            told += 1;
            for _ in 0..40 {
                let call = call(&mut random);
                let (one, other) = (
                    agrees(&document["agreement"], &call.0),
                    agrees(&without["agreement"], &call.0),
                );
                assert_eq!(one, other, "{finding:?} {document} {call:?}");
            }
        }
    }
    assert!(told > 100 && broad > 5, "{told} {broad}");
}

#[test]
fn a_change_of_the_agreement_is_told_as_who_gains_and_who_loses() {
    let mut random = Random(23);
    let (mut told, mut certain, mut seen, mut missed) = (0, 0, 0, 0);
    for _ in 0..150 {
        let old = document(&mut random);
        let mut new = old.clone();
        match random.below(5) {
            0 => _ = new.as_object_mut().unwrap().remove("agreement"),
            1 => new["agreement"] = agreement(&mut random),
            2 => {
                let more = entry(&mut random, "zz".to_owned());
                new["agreement"].as_array_mut().unwrap().push(more);
            }
            3 => {
                let first = &mut new["agreement"].as_array_mut().unwrap()[0];
                let id = first["id"].as_str().unwrap().to_owned();
                *first = entry(&mut random, id);
            }
            _ => new["agreement"].as_array_mut().unwrap()[0]
                .as_object_mut()
                .unwrap()
                .retain(|name, _| name != "may_assert"),
        }
        let (old, new) = if random.one_in(2) { (old, new) } else { (new, old) };
        let comparison = compare(&side(&old), &side(&new), UnixTime::default(), 4_000);
        for difference in &comparison.differences {
            told += 1;
            let witness = &difference.witness;
            let call = (witness.said.clone(), witness.request.clone(), witness.at);
            let (before, after) = (decide(&old, &call), decide(&new, &call));
            assert_eq!(before.outcome.is_err(), difference.is_gain, "{old} {new} {call:?}");
            assert_eq!(after.outcome.is_ok(), difference.is_gain, "{old} {new} {call:?}");
        }
        let (mut gains, mut losses) = (false, false);
        let (was, is) = (evaluator(&old), evaluator(&new));
        for _ in 0..300 {
            let (said, request, at) = call(&mut random);
            let caller = said.caller().unwrap();
            let before = was.decide(&caller, &request, at);
            let after = is.decide(&caller, &request, at);
            gains |= before.outcome.is_err() && after.outcome.is_ok();
            losses |= before.outcome.is_ok() && after.outcome.is_err();
        }
        assert!(!(gains && comparison.no_gain), "{old} {new}");
        assert!(!(losses && comparison.no_loss), "{old} {new}");
        certain += usize::from(comparison.no_gain) + usize::from(comparison.no_loss);
        let found = comparison.gains();
        for (is_there, is_told) in
            [(gains, found > 0), (losses, comparison.differences.len() > found)]
        {
            seen += usize::from(is_there);
            if is_there && !is_told {
                missed += 1;
                println!("missed: {old}\n        {new}");
            }
        }
    }
    println!("{told} differences, {certain} certainties; of {seen} seen by chance {missed} missed");
    assert!(told > 60 && certain > 60 && seen > 40, "{told} {certain} {seen}");
    assert!(missed * 8 <= seen, "{missed} of {seen} missed");
}
