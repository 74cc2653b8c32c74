//! Policies of several sources that decide together.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

use std::rc::Rc;

use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Decision, Outcome, Policy, PolicySet};
use airflow_envoy_core::reject::{Code, Reject};
use airflow_envoy_core::time::UnixTime;
use serde_json::{Value, json};

const CALL: Call<'static> =
    Call { authority: "orders.internal", scheme: "https", method: "GET", target: "/v1/orders" };

/// A document with these rules, and destinations of these names at `<name>.internal`.
fn document(destinations: &[&str], rules: Value) -> Value {
    let hosts = |name: &&str| ((*name).to_owned(), json!({"hosts": [format!("{name}.internal")]}));
    json!({
        "version": 1,
        "roles": {"ops": {"any": [{"teams": ["ops"]}]}},
        "destinations": destinations.iter().map(hosts).collect::<serde_json::Map<_, _>>(),
        "rules": rules,
    })
}

fn read(document: &Value) -> Rc<Policy> {
    Rc::new(Policy::from_value(document, &Limits::DEFAULT).unwrap())
}

fn set(sources: &[(&str, Value)]) -> PolicySet {
    let named = |(name, document): &(&str, Value)| ((*name).into(), read(document));
    PolicySet::new(sources.iter().map(named).collect())
}

fn decide<'c>(set: &PolicySet, caller: &Caller, call: Call<'c>) -> Decision<'c> {
    let standing = set.standing(caller, None);
    set.decide(caller, &standing, &call, UnixTime::default(), &Limits::DEFAULT)
}

fn refusal(decision: &Decision<'_>) -> Reject {
    match &decision.outcome {
        Outcome::Refuse(reject) => reject.clone(),
        Outcome::Permit { rule, .. } => panic!("permitted by {rule}"),
    }
}

fn shadow(decision: &Decision<'_>) -> Vec<(String, bool)> {
    decision.shadow.iter().map(|verdict| (verdict.rule.to_string(), verdict.permits)).collect()
}

fn ops() -> Caller {
    Caller { teams: Fact::one("ops"), tags: Fact::one("daily"), ..Caller::default() }
}

#[test]
fn a_deny_rule_of_any_source_wins_and_reaches_every_destination_by_a_star() {
    let team = document(&["orders"], json!([{"id": "all", "effect": "allow", "to": ["orders"]}]));
    let base = document(
        &[],
        json!([{
            "id": "no-pii", "intent": "No PII.", "effect": "deny",
            "from": {"tags": ["pii"]}, "to": ["*"],
        }]),
    );
    let set = set(&[("team", team), ("base", base)]);
    let decision = decide(&set, &ops(), CALL);
    assert_eq!(decision.outcome, Outcome::Permit { rule: "team/all".into(), grant: None });
    assert_eq!(decision.destination.as_deref(), Some("orders"));
    for tags in [Fact::one("pii"), Fact::Unknown] {
        let decision = decide(&set, &Caller { tags, ..ops() }, CALL);
        let reject = refusal(&decision);
        assert_eq!(reject.code, Code::PolicyDenied);
        assert_eq!(reject.rule.as_deref(), Some("base/no-pii"));
        assert!(reject.detail.starts_with("rule `base/no-pii` denies this call"), "{reject:?}");
        assert_eq!(decision.destination.as_deref(), Some("orders"), "base does not name it");
    }
    let reject = refusal(&decide(&set, &ops(), Call { authority: "other.internal", ..CALL }));
    assert_eq!(reject.code, Code::DestinationUnknown);
}

#[test]
fn no_source_takes_a_host_out_of_the_deny_rule_of_another_one() {
    let mut base = document(&[], json!([{"id": "no", "effect": "deny", "to": ["inside"]}]));
    base["destinations"] = json!({"inside": {"hosts": ["*.internal"]}});
    let team = document(&["orders"], json!([{"id": "all", "effect": "allow", "to": ["orders"]}]));
    let decision = decide(&set(&[("base", base), ("team", team)]), &ops(), CALL);
    assert_eq!(refusal(&decision).rule.as_deref(), Some("base/no"));
    assert_eq!(decision.destination.as_deref(), Some("inside"), "as the deciding source calls it");
}

#[test]
fn rules_of_the_same_id_are_told_apart_and_the_first_source_by_name_is_named() {
    let rules = json!([{"id": "same", "effect": "allow", "to": ["orders"]}]);
    let one = document(&["orders"], rules);
    for sources in [["b", "a"], ["a", "b"]] {
        let set = set(&sources.map(|name| (name, one.clone())));
        let decision = decide(&set, &ops(), CALL);
        assert_eq!(decision.outcome, Outcome::Permit { rule: "a/same".into(), grant: None });
    }
    let alone = decide(&set(&[("a", one)]), &ops(), CALL);
    assert_eq!(
        alone.outcome,
        Outcome::Permit { rule: "same".into(), grant: None },
        "one source needs no name"
    );
}

#[test]
fn a_role_is_that_of_its_own_source() {
    let rules =
        json!([{"id": "r", "effect": "allow", "from": {"roles": ["ops"]}, "to": ["orders"]}]);
    let mut one = document(&["orders"], rules);
    let other = one.clone();
    one["roles"]["ops"]["any"][0]["teams"] = json!(["sales"]);
    let decision = decide(&set(&[("one", one), ("other", other)]), &ops(), CALL);
    assert_eq!(decision.outcome, Outcome::Permit { rule: "other/r".into(), grant: None });
}

#[test]
fn the_nearest_rule_of_any_source_explains_a_refusal() {
    let far = json!([{"id": "a", "effect": "allow", "from": {"dags": ["x"]}, "to": ["*"], "methods": ["PUT"]}]);
    let near = json!([{"id": "b", "effect": "allow", "to": ["orders"], "methods": ["PUT"]}]);
    let sources = [("far", document(&[], far)), ("near", document(&["orders"], near))];
    let reject = refusal(&decide(&set(&sources), &ops(), CALL));
    assert_eq!(reject.code, Code::PolicyNoMatch);
    assert_eq!(reject.nearest.as_deref(), Some("near/b"));
    assert_eq!(
        reject.detail,
        "rule `near/b` allows this path, but only for methods PUT; this is `GET`"
    );
    // A source that knows the destination tells more than one that does not.
    let sources = [("a", document(&[], json!([]))), ("b", document(&["orders"], json!([])))];
    assert_eq!(refusal(&decide(&set(&sources), &ops(), CALL)).code, Code::PolicyNoMatch);
}

#[test]
fn a_shadow_rule_is_reported_if_it_would_change_what_all_sources_say_together() {
    let rule = |id: &str, effect: &str, mode: &str| json!({"id": id, "effect": effect, "mode": mode, "to": ["*"]});
    let a = json!([rule("may", "allow", "shadow"), rule("must-not", "deny", "shadow")]);
    for (b, expected) in [
        // Refused because nothing allows it: the other source's shadow rule would.
        (json!([]), vec![("a/may".to_owned(), true)]),
        // Permitted: the other source's shadow rule would refuse it.
        (json!([rule("yes", "allow", "enforce")]), vec![("a/must-not".to_owned(), false)]),
        // Denied: that stands whatever is allowed elsewhere.
        (json!([rule("no", "deny", "enforce")]), vec![]),
    ] {
        let set = set(&[("a", document(&[], a.clone())), ("b", document(&["orders"], b))]);
        assert_eq!(shadow(&decide(&set, &ops(), CALL)), expected);
    }
    let many = |source: &str| {
        let rules = (0..12).map(|number| rule(&format!("{number:02}{source}"), "allow", "shadow"));
        document(&["orders"], rules.collect())
    };
    let set = set(&[("a", many("a")), ("b", many("b"))]);
    let found = shadow(&decide(&set, &ops(), CALL));
    assert_eq!(found.len(), 16, "their number is bounded");
    assert_eq!(found.first().unwrap().0, "a/00a");
    assert_eq!(found.last().unwrap().0, "b/07b", "in the order of their ids");
}

#[test]
fn an_authority_or_a_path_that_cannot_be_judged_is_refused_once_for_all() {
    let one = document(&["orders"], json!([{"id": "all", "effect": "allow", "to": ["*"]}]));
    let set = set(&[("a", one.clone()), ("b", one)]);
    for (call, code) in [
        (Call { authority: "user@orders.internal", ..CALL }, Code::AuthorityInvalid),
        (Call { target: "/a%2fb", ..CALL }, Code::PathInvalid),
    ] {
        assert_eq!(refusal(&decide(&set, &ops(), call)).code, code);
    }
}

#[test]
fn a_standing_is_computed_anew_only_for_the_policy_that_changed() {
    let rules =
        json!([{"id": "r", "effect": "allow", "from": {"roles": ["ops"]}, "to": ["orders"]}]);
    let one = document(&["orders"], rules);
    let (a, b) = (read(&one), read(&one));
    let set = |a: &Rc<Policy>, b: &Rc<Policy>| {
        PolicySet::new(vec![("a".into(), Rc::clone(a)), ("b".into(), Rc::clone(b))])
    };
    let before = set(&a, &b);
    let standing = before.standing(&ops(), None);
    assert_eq!(standing.roles().collect::<Vec<_>>(), ["ops", "ops"]);
    // Whoever is asked about shows what was taken over: this caller holds no role.
    let nobody = Caller { teams: Fact::one("sales"), ..ops() };
    for (set, held) in [(set(&a, &b), 2), (set(&a, &read(&one)), 1), (set(&read(&one), &b), 1)] {
        assert_eq!(set.standing(&nobody, Some(&standing)).roles().count(), held);
    }
    let after = set(&a, &read(&one));
    let stale = before.standing(&nobody, None);
    let decision = after.decide(&ops(), &stale, &CALL, UnixTime::default(), &Limits::DEFAULT);
    assert_eq!(decision.outcome, Outcome::Permit { rule: "a/r".into(), grant: None });
}

#[test]
fn a_set_without_a_source_refuses_everything() {
    let set = PolicySet::new(Vec::new());
    assert_eq!(set.sources().len(), 0);
    assert_eq!(refusal(&decide(&set, &ops(), CALL)).code, Code::DestinationUnknown);
}
