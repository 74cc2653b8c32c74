//! What makes a document no policy, and how the author learns it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::Policy;
use serde_json::{Value, json};

/// The smallest document with one of everything.
fn document() -> Value {
    json!({
        "version": 1,
        "roles": {"ops": {"any": [{"teams": ["ops"]}]}},
        "destinations": {"orders": {"hosts": ["orders.internal"]}, "billing": {"hosts": ["billing.internal"]}},
        "rules": [{"id": "one", "effect": "allow", "from": {"roles": ["ops"]}, "to": ["orders"]}],
    })
}

fn faults(document: &Value) -> String {
    match Policy::from_value(document, &Limits::DEFAULT) {
        Ok(_) => String::new(),
        Err(faults) => faults.to_string(),
    }
}

#[test]
fn a_document_without_faults_is_a_policy() {
    let mut document = document();
    document["revision"] = 42.into();
    let policy = Policy::parse(document.to_string().as_bytes(), &Limits::DEFAULT).unwrap();
    assert_eq!((policy.revision(), policy.rule_count()), (Some(42), 1));
}

#[test]
fn every_fault_is_found_and_told_with_its_place() {
    // A JSON Pointer, what is put there (null: it is taken away), and the fault.
    for (pointer, value, expected) in [
        ("/version", json!(null), "`version` is missing"),
        ("/version", json!(2), "version: the only version is 1"),
        ("/version", json!("1"), "version: the only version is 1"),
        ("/rules", json!(null), "`rules` is missing"),
        ("/rule", json!([]), "unknown field `rule`, did you mean `rules`?"),
        ("/revision", json!(-1), "revision: expected a whole number, found a number"),
        ("/roles/ops/any", json!([]), "roles.ops.any: must not be empty"),
        ("/roles/ops/any/0", json!({}), "roles.ops.any[0]: must not be empty"),
        (
            "/roles/ops/any/0/roles",
            json!(["ops"]),
            "roles.ops.any[0].roles: a role cannot ask for roles",
        ),
        (
            "/roles/a b",
            json!({"any": [{"teams": ["x"]}]}),
            "roles[\"a b\"]: `a b` is not a name of 1 to 128 letters, digits, `.`, `_` and `-`",
        ),
        ("/destinations/orders/hosts", json!([]), "destinations.orders.hosts: must not be empty"),
        (
            "/destinations/orders/hosts/0",
            json!("billing.internal:443"),
            "destinations.orders.hosts[0]: `billing.internal:443` belongs to destination `billing` already",
        ),
        (
            "/destinations/orders/hosts/0",
            json!("https://orders"),
            "destinations.orders.hosts[0]: `https://orders` has a port that is not a number from 1 to 65535",
        ),
        (
            "/destinations/orders/hosts/0",
            json!("*"),
            "destinations.orders.hosts[0]: `*` has a character that no host name has",
        ),
        ("/rules/0/id", json!(null), "rules[0]: `id` is missing"),
        (
            "/rules/0/id",
            json!("a/b"),
            "rules[0].id: `a/b` is not a name of 1 to 128 letters, digits, `.`, `_` and `-`",
        ),
        (
            "/rules/0/effect",
            json!("permit"),
            "rules[0].effect: `permit` is none of `allow`, `deny`",
        ),
        ("/rules/0/mode", json!("off"), "rules[0].mode: `off` is none of `enforce`, `shadow`"),
        (
            "/rules/0/method",
            json!(["GET"]),
            "rules[0]: unknown field `method`, did you mean `methods`?",
        ),
        ("/rules/0/from", json!({}), "rules[0].from: must not be empty"),
        (
            "/rules/0/from/roles/0",
            json!("op"),
            "rules[0].from.roles: there is no role `op`, did you mean `ops`?",
        ),
        ("/rules/0/from/dags", json!([]), "rules[0].from.dags: must not be empty"),
        ("/rules/0/from/dags", json!([""]), "rules[0].from.dags[0]: must not be empty"),
        ("/rules/0/from/dags", json!("x"), "rules[0].from.dags: expected an array, found a string"),
        (
            "/rules/0/from/dag",
            json!(["x"]),
            "rules[0].from: unknown field `dag`, did you mean `dags`?",
        ),
        ("/rules/0/from/claims", json!({}), "rules[0].from.claims: must not be empty"),
        ("/rules/0/from/claims", json!({"a": []}), "rules[0].from.claims.a: must not be empty"),
        (
            "/rules/0/from/claims",
            json!({"a": [1]}),
            "rules[0].from.claims.a[0]: expected a string, found a number",
        ),
        ("/rules/0/to", json!(null), "rules[0]: `to` is missing"),
        ("/rules/0/to", json!([]), "rules[0].to: must not be empty"),
        (
            "/rules/0/to/0",
            json!("order"),
            "rules[0].to: there is no destination `order`, did you mean `orders`?",
        ),
        (
            "/rules/0/to",
            json!(["*", "orders"]),
            "rules[0].to: `*` is every destination and stands alone",
        ),
        ("/rules/0/methods", json!([]), "rules[0].methods: must not be empty"),
        (
            "/rules/0/methods",
            json!(["G T"]),
            "rules[0].methods: `G T` is not a method; leave `methods` out to mean every one",
        ),
        (
            "/rules/0/methods",
            json!(["*"]),
            "rules[0].methods: `*` is not a method; leave `methods` out to mean every one",
        ),
        (
            "/rules/0/methods",
            json!(["get"]),
            "rules[0].methods: `get`: methods are case-sensitive, did you mean `GET`?",
        ),
        ("/rules/0/paths", json!([]), "rules[0].paths: must not be empty"),
        ("/rules/0/paths", json!(["v1"]), "rules[0].paths[0]: `v1` does not begin with `/`"),
        (
            "/rules/0/paths",
            json!(["/a/**/b"]),
            "rules[0].paths[0]: `/a/**/b` has `**` elsewhere than as its last segment",
        ),
        (
            "/rules/0/paths",
            json!(["/a/../b"]),
            "rules[0].paths[0]: `/a/../b` has empty or dot segments",
        ),
        ("/rules/0/valid", json!({}), "rules[0].valid: must not be empty"),
        ("/rules/0/valid", json!({"until": "x"}), "rules[0].valid: unknown field `until`"),
        (
            "/rules/0/valid",
            json!({"expires_at": "tomorrow"}),
            "rules[0].valid.expires_at: `tomorrow` is not a date and time such as `2026-11-22T00:00:00Z`",
        ),
        (
            "/rules/0/valid",
            json!({"not_before": "2026-01-01T00:00:00Z", "expires_at": "2026-01-01T00:00:00Z"}),
            "rules[0].valid: `not_before` 2026-01-01T00:00:00Z is not earlier than `expires_at` 2026-01-01T00:00:00Z",
        ),
        (
            "/rules/1",
            json!({"id": "one", "effect": "deny", "to": ["*"]}),
            "rules[1]: the id `one` is that of rules[0] already",
        ),
    ] {
        let mut document = document();
        put(&mut document, pointer, value);
        assert_eq!(faults(&document), expected, "{pointer}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let mut document = document();
    document["rules"][0]["methods"] = json!(["get"]);
    document["rules"][0]["paths"] = json!(["x"]);
    document["version"] = json!(3);
    assert_eq!(faults(&document).split("; ").count(), 3);
}

#[test]
fn what_is_not_strict_json_is_no_policy() {
    for (text, expected) in [
        (
            "{\"version\":1,\"version\":1,\"rules\":[]}",
            "member `version` occurs more than once in one object",
        ),
        ("{", "not valid JSON at line 1 column 1"),
        ("[]", "expected an object, found an array"),
    ] {
        assert_eq!(
            Policy::parse(text.as_bytes(), &Limits::DEFAULT).unwrap_err().to_string(),
            expected
        );
    }
}

#[test]
fn size_is_bounded() {
    let mut document = document();
    let text = document.to_string();
    let limits = Limits { policy_bytes: text.len() - 1, ..Limits::DEFAULT };
    assert!(Policy::parse(text.as_bytes(), &limits).is_err());
    let limits = Limits { policy_rules: 0, ..Limits::DEFAULT };
    let faults = Policy::from_value(&document, &limits).unwrap_err().to_string();
    assert_eq!(faults, "rules: 1 rules are more than the 0 that are allowed");
    document["rules"][0]["to"] = json!(["orders", "billing"]);
    document["rules"][0]["paths"] = json!(["/a", "/b/*"]);
    let limits = Limits { policy_places: 3, ..Limits::DEFAULT };
    let faults = Policy::from_value(&document, &limits).unwrap_err().to_string();
    assert_eq!(
        faults,
        "rules: the rules name 4 pairs of destination and path, more than the 3 that are allowed"
    );
}

/// Puts `value` at the JSON Pointer, adding a member or an element if there is none.
fn put(document: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Object(members) if value.is_null() => {
            members.remove(name).unwrap();
        }
        Value::Object(members) => {
            members.insert(name.to_owned(), value);
        }
        Value::Array(elements) => {
            let index: usize = name.parse().unwrap();
            elements.truncate(index);
            elements.push(value);
        }
        other => panic!("{other} has no members"),
    }
}
