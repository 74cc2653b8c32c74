//! What is told of two policies: nothing of two that mean the same, nothing that is not so, and nearly
//! everything that is.

use airflow_envoy_cli::diff::{Comparison, compare};
use airflow_envoy_cli::evaluate::{Evaluator, Request};
use airflow_envoy_cli::model::Model;
use airflow_envoy_cli::run::UnderTest;
use airflow_envoy_cli::source::load::read_bytes;
use airflow_envoy_cli::source::merge::merge;
use airflow_envoy_core::time::UnixTime;
use serde_json::{Value, json};

use super::random::Random;
use super::{decide, evaluator, rules};

const CALLS: usize = 10_000;

pub fn side(document: &Value) -> UnderTest {
    let source = merge(vec![read_bytes("p.json", document.to_string().as_bytes()).unwrap()]);
    let evaluator = Evaluator::new(source.policy().unwrap());
    UnderTest { evaluator, model: Model::new(&source.node), document: source.node.value() }
}

fn compared(old: &Value, new: &Value) -> Comparison {
    compare(&side(old), &side(new), UnixTime::default(), CALLS)
}

/// The same policy in other words: other names, another order, roles and hosts written otherwise.
fn reworded(random: &mut Random, document: &Value) -> Value {
    let mut other = document.clone();
    for rule in rules(&mut other) {
        rule["id"] = format!("other-{}", rule["id"].as_str().unwrap()).into();
        rule["intent"] = "Something else.".into();
        if let Some(Value::Array(roles)) = rule.pointer_mut("/from/roles") {
            for role in roles {
                *role = format!("the-{}", role.as_str().unwrap()).into();
            }
        }
        if let Some(Value::Array(to)) = rule.get_mut("to").filter(|to| **to != json!(["*"])) {
            for name in to.iter_mut() {
                *name = format!("the-{}", name.as_str().unwrap()).into();
            }
            to.reverse();
        }
        if let Some(Value::Array(methods)) = rule.get_mut("methods") {
            methods.reverse();
        }
    }
    for member in ["roles", "destinations"] {
        let named = other[member].as_object().unwrap().clone();
        let renamed = named.into_iter().map(|(name, value)| (format!("the-{name}"), value));
        other[member] = Value::Object(renamed.collect());
    }
    other["destinations"]["the-one"]["hosts"][0] = "ONE".into();
    for index in (1..rules(&mut other).len()).rev() {
        let place = random.below(index + 1);
        rules(&mut other).swap(index, place);
    }
    other
}

/// A policy with one change, of which some change nothing.
fn edited(random: &mut Random, document: &Value) -> Value {
    let mut other = document.clone();
    let count = rules(&mut other).len();
    let which = random.below(count);
    match random.below(12) {
        0 if count > 1 => _ = rules(&mut other).remove(which),
        1 => {
            let rule = random.rule("zz-new".to_owned());
            rules(&mut other).push(rule);
        }
        2 => {
            let rule = &mut rules(&mut other)[which];
            let is_tunnel =
                rule["methods"].as_array().is_some_and(|all| all.contains(&json!("CONNECT")));
            if !is_tunnel {
                let effect = if rule["effect"] == "allow" { "deny" } else { "allow" };
                rule["effect"] = effect.into();
            }
        }
        3 => _ = rules(&mut other)[which].as_object_mut().unwrap().remove("methods"),
        4 => _ = rules(&mut other)[which].as_object_mut().unwrap().remove("paths"),
        5 => {
            let from = random.selector();
            rules(&mut other)[which]["from"] = from.into();
        }
        6 => {
            let selector = random.selector();
            other["roles"]["r0"]["any"][1] = selector.into();
        }
        7 => {
            let methods = random.picks(&["GET", "POST"]);
            rules(&mut other)[which]["methods"] = methods;
        }
        8 => {
            let rule = &mut rules(&mut other)[which];
            let is_tunnel =
                rule["methods"].as_array().is_some_and(|all| all.contains(&json!("CONNECT")));
            if !is_tunnel {
                rule["paths"] = random.picks(&["/a/**", "/a/b", "/*/b", "/a", "/{sub}/**"]);
            }
        }
        9 => {
            let end = random.pick(&["1970-01-01T00:02:00Z", "1970-01-01T00:05:00Z"]);
            rules(&mut other)[which]["valid"] = json!({"expires_at": end});
        }
        10 => other["destinations"]["two"]["hosts"] = json!(["*.two"]),
        _ => {
            let mode =
                if rules(&mut other)[which]["mode"] == "shadow" { "enforce" } else { "shadow" };
            rules(&mut other)[which]["mode"] = mode.into();
        }
    }
    other
}

#[test]
fn other_words_are_no_difference() {
    let mut random = Random(11);
    for _ in 0..200 {
        let document = random.document();
        let other = reworded(&mut random, &document);
        for (old, new) in [(&document, &document), (&document, &other), (&other, &document)] {
            let comparison = compared(old, new);
            assert!(comparison.is_empty(), "{old} {new} {comparison:?}");
            assert!(comparison.no_gain && comparison.no_loss, "{old} {new}");
            assert_eq!(comparison.calls, 0);
        }
        assert!(!compared(&document, &other).textual.is_empty());
    }
}

#[test]
fn what_is_told_is_so_and_hardly_anything_is_missed() {
    let mut random = Random(12);
    let (mut told, mut certain, mut seen, mut missed) = (0, 0, 0, 0);
    let mut cut = 0;
    for _ in 0..250 {
        let old = random.document();
        let new = edited(&mut random, &old);
        let comparison = compared(&old, &new);
        cut += usize::from(comparison.cut);
        for difference in &comparison.differences {
            let witness = &difference.witness;
            let call = (witness.said.clone(), witness.request.clone(), witness.at);
            let (before, after) = (decide(&old, &call), decide(&new, &call));
            assert_eq!((&before, &after), (&witness.before, &witness.after), "{old} {new}");
            assert_ne!(before.outcome.is_ok(), after.outcome.is_ok());
            assert_eq!(after.outcome.is_ok(), difference.is_gain);
            assert_eq!(Request::parse(&witness.request.to_string()), Ok(witness.request.clone()));
            let is_certain =
                if difference.is_gain { comparison.no_gain } else { comparison.no_loss };
            assert!(!is_certain, "{old} {new} {difference:?}");
            told += 1;
        }
        // Calls that the search knows nothing of.
        let (mut gains, mut losses) = (false, false);
        let evaluators = (evaluator(&old), evaluator(&new));
        for _ in 0..150 {
            let (said, request, at) = random.call();
            let caller = said.caller().unwrap();
            let before = evaluators.0.decide(&caller, &request, at).outcome.is_ok();
            let after = evaluators.1.decide(&caller, &request, at).outcome.is_ok();
            gains |= !before && after;
            losses |= before && !after;
        }
        assert!(!(gains && comparison.no_gain), "a gain: {old} {new}");
        assert!(!(losses && comparison.no_loss), "a loss: {old} {new}");
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
    println!(
        "{told} differences, {certain} certainties; of {seen} seen by chance {missed} missed; {cut} cut"
    );
    assert!(told > 150 && certain > 150 && seen > 70, "{told} {certain} {seen}");
    assert!(missed * 50 <= seen, "{missed} of {seen} missed");
}
