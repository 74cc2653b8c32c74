//! What the policy says about single calls, and how it explains itself.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

use std::borrow::Cow;

use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Decision, Outcome, Policy, PolicySet};
use airflow_envoy_core::reject::{Code, Reject};
use airflow_envoy_core::time::UnixTime;
use serde_json::{Value, json};

/// Between the two times of the rule `ds-reads-orders`.
const NOW: &str = "2026-11-10T12:00:00Z";

fn document() -> Value {
    json!({
        "version": 1,
        "revision": 42,
        "roles": {
            "data-science": {"any": [
                {"teams": ["data-science"]},
                {"airflow_roles": ["DataScience"], "services": ["airflow-worker"]},
            ]},
            "contractor": {"any": [{"owners": ["ext-*"]}]},
        },
        "destinations": {
            "orders": {"hosts": ["orders.internal", "orders.internal:8443"]},
            "billing": {"hosts": ["billing.internal"]},
            "empty": {"hosts": ["empty.internal"]},
        },
        "rules": [
            {
                "id": "ds-reads-orders", "intent": "Data science DAGs may read orders.", "effect": "allow",
                "from": {"roles": ["data-science"], "dags": ["ds_*"]}, "to": ["orders"],
                "methods": ["GET", "HEAD"], "paths": ["/v1/orders/**"],
                "valid": {"not_before": "2026-11-01T00:00:00Z", "expires_at": "2026-11-22T00:00:00Z"},
            },
            {
                "id": "no-contractors", "intent": "Nobody from outside reads customers.", "effect": "deny",
                "from": {"roles": ["contractor"]}, "to": ["*"], "paths": ["/v1/orders/customers/**"],
            },
            {"id": "billing-open", "effect": "allow", "to": ["billing"], "paths": ["/ping"]},
            {
                "id": "billing-untagged", "effect": "deny", "from": {"tags": ["pii"]}, "to": ["billing"],
                "mode": "shadow",
            },
            {"id": "orders-soon", "effect": "allow", "to": ["orders"], "methods": ["POST"], "mode": "shadow"},
        ],
    })
}

fn policy(document: &Value) -> PolicySet {
    Policy::from_value(document, &Limits::DEFAULT).unwrap().into()
}

fn caller() -> Caller {
    Caller {
        dags: Fact::one("ds_daily"),
        teams: Fact::one("data-science"),
        owners: Fact::one("ana"),
        tags: Fact::Known(vec![]),
        ..Caller::default()
    }
}

const CALL: Call<'static> = Call {
    authority: "orders.internal",
    scheme: "https",
    method: "GET",
    target: "/v1/orders/7?full=1",
};

fn decide_at<'c>(caller: &Caller, call: Call<'c>, now: &str) -> Decision<'c> {
    let policy = policy(&document());
    let now = UnixTime::from_rfc3339(now).unwrap();
    policy.decide(caller, &policy.standing(caller, None), &call, now, &Limits::DEFAULT)
}

fn decide<'c>(caller: &Caller, call: Call<'c>) -> Decision<'c> {
    decide_at(caller, call, NOW)
}

fn refusal(decision: Decision<'_>) -> Reject {
    match decision.outcome {
        Outcome::Refuse(reject) => reject,
        Outcome::Permit { rule, .. } => panic!("permitted by {rule}"),
    }
}

#[test]
fn a_permit_names_its_rule_its_destination_and_the_path_as_it_was_sent() {
    let decision = decide(&caller(), CALL);
    assert_eq!(decision.outcome, Outcome::Permit { rule: "ds-reads-orders".into(), grant: None });
    assert_eq!(decision.destination.as_deref(), Some("orders"));
    assert!(matches!(decision.path, Some(Cow::Borrowed("/v1/orders/7"))));
    assert_eq!(decision.shadow, []);
}

#[test]
fn what_was_not_in_normal_form_is_decided_in_it() {
    let call = Call { authority: "ORDERS.internal.:443", target: "//v1/./orders/%37", ..CALL };
    let decision = decide(&caller(), call);
    assert_eq!(decision.outcome, Outcome::Permit { rule: "ds-reads-orders".into(), grant: None });
    assert!(matches!(&decision.path, Some(Cow::Owned(path)) if path == "/v1/orders/7"));
}

#[test]
fn a_refusal_names_the_nearest_rule_and_the_first_condition_that_failed() {
    let other_dag = Caller { dags: Fact::one("etl`\n"), ..caller() };
    let other_team = Caller { teams: Fact::one("finance"), ..caller() };
    let no_dag = Caller { dags: Fact::Unknown, ..caller() };
    for (who, call, now, code, nearest, detail) in [
        (
            &caller(),
            Call { target: "/v2/orders", ..CALL },
            NOW,
            Code::PolicyNoMatch,
            Some("ds-reads-orders"),
            "rule `ds-reads-orders` allows this destination, but only for paths `/v1/orders/**`; this is `/v2/orders`",
        ),
        (
            &caller(),
            Call { method: "POST", ..CALL },
            NOW,
            Code::PolicyNoMatch,
            Some("ds-reads-orders"),
            "rule `ds-reads-orders` allows this path, but only for methods GET, HEAD; this is `POST`",
        ),
        (
            &other_dag,
            CALL,
            NOW,
            Code::PolicyNoMatch,
            Some("ds-reads-orders"),
            "rule `ds-reads-orders` allows this request, but only for dags `ds_*`; the caller's is `etl'\\n`",
        ),
        (
            &no_dag,
            CALL,
            NOW,
            Code::PolicyNoMatch,
            Some("ds-reads-orders"),
            "rule `ds-reads-orders` allows this request, but only for dags `ds_*`; nothing is known about the caller's",
        ),
        (
            &other_team,
            CALL,
            NOW,
            Code::PolicyNoMatch,
            Some("ds-reads-orders"),
            "rule `ds-reads-orders` allows this request, but only for roles `data-science`; \
             the caller holds none of the policy's roles",
        ),
        (
            &caller(),
            CALL,
            "2026-11-22T00:00:00Z",
            Code::PolicyNoMatch,
            Some("ds-reads-orders"),
            "rule `ds-reads-orders` allowed this call, but only until 2026-11-22T00:00:00Z; it is 2026-11-22T00:00:00Z",
        ),
        (
            &caller(),
            CALL,
            "2026-10-31T23:59:59Z",
            Code::PolicyNoMatch,
            Some("ds-reads-orders"),
            "rule `ds-reads-orders` allows this call, but only from 2026-11-01T00:00:00Z; it is 2026-10-31T23:59:59Z",
        ),
        (
            &caller(),
            Call { authority: "empty.internal", ..CALL },
            NOW,
            Code::PolicyNoMatch,
            None,
            "no rule allows anything at this destination",
        ),
        (
            &caller(),
            Call { authority: "orders.internal:99", ..CALL },
            NOW,
            Code::DestinationUnknown,
            None,
            "no destination of the policy has the authority `orders.internal:99`",
        ),
        (
            &caller(),
            Call { authority: "user:secret@orders.internal", ..CALL },
            NOW,
            Code::AuthorityInvalid,
            None,
            "the authority `orders.internal` has user information",
        ),
        (
            &caller(),
            Call { target: "/v1/orders/..%2fadmin?key=secret", ..CALL },
            NOW,
            Code::PathInvalid,
            None,
            "the path `/v1/orders/..%2fadmin` has an encoded `/`",
        ),
    ] {
        let reject = refusal(decide_at(who, call, now));
        assert_eq!(reject.detail, detail);
        assert_eq!((reject.code, reject.nearest.as_deref()), (code, nearest), "{detail}");
        assert_eq!(reject.rule, None, "{detail}");
    }
}

#[test]
fn a_matching_deny_rule_wins_and_says_what_it_is_for() {
    let contractor = Caller { owners: Fact::one("ext-bob"), ..caller() };
    let reject = refusal(decide(&contractor, Call { target: "/v1/orders/customers/1", ..CALL }));
    assert_eq!(reject.code, Code::PolicyDenied);
    assert_eq!(reject.rule.as_deref(), Some("no-contractors"));
    assert_eq!(
        reject.detail,
        "rule `no-contractors` denies this call: `Nobody from outside reads customers.`"
    );
    assert!(
        matches!(decide(&contractor, CALL).outcome, Outcome::Permit { .. }),
        "other paths stay open"
    );
}

#[test]
fn a_deny_rule_that_cannot_be_evaluated_denies() {
    let nobody_knows = Caller { owners: Fact::Unknown, ..caller() };
    let reject = refusal(decide(&nobody_knows, Call { target: "/v1/orders/customers", ..CALL }));
    assert_eq!(reject.code, Code::PolicyDenied);
    assert_eq!(
        reject.detail,
        "rule `no-contractors` denies this call because it cannot be evaluated: it asks for roles `contractor`; \
         whether the caller holds `contractor` is unknown"
    );
}

#[test]
fn shadow_rules_are_reported_and_not_enforced() {
    let ping = Call { authority: "billing.internal", target: "/ping", ..CALL };
    for (tags, expected) in [
        (Fact::one("pii"), &[("billing-untagged", false)][..]),
        (Fact::Unknown, &[("billing-untagged", false)]),
        (Fact::one("public"), &[]),
    ] {
        let decision = decide(&Caller { tags, ..caller() }, ping);
        assert_eq!(decision.outcome, Outcome::Permit { rule: "billing-open".into(), grant: None });
        let verdicts: Vec<_> = decision
            .shadow
            .iter()
            .map(|verdict| (verdict.rule.as_ref(), verdict.permits))
            .collect();
        assert_eq!(verdicts, expected);
    }
    let decision = decide(&caller(), Call { method: "POST", ..CALL });
    assert_eq!(decision.shadow.first().map(|verdict| verdict.permits), Some(true));
    assert_eq!(refusal(decision).code, Code::PolicyNoMatch);
}

#[test]
fn a_standing_under_another_policy_is_not_used() {
    let (one, other) = (policy(&document()), policy(&document()));
    let standing = one.standing(&caller(), None);
    assert_eq!(standing.roles().collect::<Vec<_>>(), ["data-science"]);
    let stale = one.standing(&Caller::default(), None);
    let now = UnixTime::from_rfc3339(NOW).unwrap();
    let decision = other.decide(&caller(), &stale, &CALL, now, &Limits::DEFAULT);
    assert!(matches!(decision.outcome, Outcome::Permit { .. }));
}

#[test]
fn a_policy_without_rules_refuses_everything() {
    let document = json!({"version": 1, "destinations": {"orders": {"hosts": ["orders.internal"]}}, "rules": []});
    let policy = Policy::from_value(&document, &Limits::DEFAULT).unwrap();
    assert_eq!((policy.revision(), policy.rule_count()), (None, 0));
    let policy = PolicySet::from(policy);
    let standing = policy.standing(&caller(), None);
    let decision =
        policy.decide(&caller(), &standing, &CALL, UnixTime::default(), &Limits::DEFAULT);
    assert_eq!(refusal(decision).code, Code::PolicyNoMatch);
}

#[test]
fn the_search_for_the_nearest_rule_is_bounded_and_prefers_the_path_and_the_caller() {
    let rules: Vec<_> = (0..5_000)
        .map(|number| {
            json!({
                "id": format!("r{number}"), "effect": "allow", "to": ["orders"], "methods": ["POST"],
                "from": {"dags": [format!("ds_{number}")]}, "paths": ["/v1/orders"],
            })
        })
        .collect();
    let document = json!({
        "version": 1, "destinations": {"orders": {"hosts": ["orders.internal"]}}, "rules": rules,
    });
    let policy = policy(&document);
    let caller = Caller { dags: Fact::one("ds_4321"), ..Caller::default() };
    let standing = policy.standing(&caller, None);
    let limits = Limits { nearest_rules: 3, ..Limits::DEFAULT };
    let call = Call { target: "/v1/orders", ..CALL };
    let reject = refusal(policy.decide(&caller, &standing, &call, UnixTime::default(), &limits));
    assert_eq!(reject.nearest.as_deref(), Some("r4321"));
    assert_eq!(
        reject.detail,
        "rule `r4321` allows this path, but only for methods POST; this is `GET`"
    );
}

#[test]
fn parameters_help_past_no_deny_rule_enforced_or_not() {
    for (mode, permitted) in [("enforce", false), ("shadow", true)] {
        let document = json!({
            "version": 1,
            "destinations": {"orders": {"hosts": ["orders.internal"]}},
            "rules": [
                {"id": "all", "effect": "allow", "to": ["orders"]},
                {"id": "no-admin", "effect": "deny", "mode": mode, "to": ["orders"], "paths": ["/admin/**"]},
            ],
        });
        let policy = policy(&document);
        let caller = caller();
        let standing = policy.standing(&caller, None);
        for target in ["/admin/users", "/admin;x/users", "/admin;/users", "/;x/admin", "/admin;"] {
            let call = Call { target, ..CALL };
            let now = UnixTime::default();
            let decision = policy.decide(&caller, &standing, &call, now, &Limits::DEFAULT);
            assert_eq!(matches!(decision.outcome, Outcome::Permit { .. }), permitted, "{target}");
            assert_eq!(decision.shadow.len(), usize::from(permitted), "{target}");
        }
    }
}

#[test]
fn a_tunnel_is_explained_whether_no_rule_allows_it_or_one_denies_it() {
    let rules = |more: Value| {
        let mut rules = vec![
            json!({"id": "reads", "effect": "allow", "to": ["orders"], "methods": ["GET"], "paths": ["/v1/**"]}),
            json!({"id": "tunnels", "effect": "allow", "to": ["partner"], "methods": ["CONNECT"]}),
        ];
        rules.extend(more.as_array().unwrap().clone());
        policy(&json!({
            "version": 1,
            "destinations": {"orders": {"hosts": ["orders.internal"]}, "partner": {"hosts": ["api.example"]}},
            "rules": rules,
        }))
    };
    let decide = |policy: &PolicySet, authority| {
        let standing = policy.standing(&caller(), None);
        let call = Call { authority, scheme: "http", method: "CONNECT", target: "" };
        policy.decide(&caller(), &standing, &call, UnixTime::default(), &Limits::DEFAULT)
    };
    let usual = rules(json!([]));
    let decision = decide(&usual, "API.example:443");
    assert_eq!(decision.outcome, Outcome::Permit { rule: "tunnels".into(), grant: None });
    assert_eq!(decision.authority.as_deref(), Some("api.example:443"));
    assert_eq!(decision.path, None);
    let reject = refusal(decide(&usual, "orders.internal:443"));
    assert_eq!((reject.code, reject.nearest.as_deref()), (Code::PolicyNoMatch, Some("reads")));
    assert_eq!(
        reject.detail,
        "rule `reads` allows this destination, but no tunnel, which hides methods and paths: a rule that \
         allows one names `CONNECT` in `methods` and has no `paths`"
    );
    for (more, detail) in [
        (
            json!({"id": "no", "intent": "No deletes.", "effect": "deny", "to": ["*"], "methods": ["DELETE"]}),
            "rule `no` denies this tunnel because it cannot be evaluated: a tunnel hides methods and paths, \
             and the rule is about some: `No deletes.`",
        ),
        (
            json!({"id": "no", "intent": "No tunnels.", "effect": "deny", "to": ["partner"], "methods": ["CONNECT"]}),
            "rule `no` denies this call: `No tunnels.`",
        ),
    ] {
        let reject = refusal(decide(&rules(json!([more])), "api.example:443"));
        assert_eq!((reject.code, reject.rule.as_deref()), (Code::PolicyDenied, Some("no")));
        assert_eq!(reject.detail, detail);
    }
}

#[test]
fn a_path_of_somebody_else_is_explained_with_both_names() {
    let document = json!({
        "version": 1,
        "destinations": {"orders": {"hosts": ["orders.internal"]}},
        "rules": [{"id": "own", "effect": "allow", "to": ["orders"], "paths": ["/t/{sub}/run"]}],
    });
    let policy = policy(&document);
    for (subjects, detail) in [
        (
            Fact::one("me"),
            "rule `own` allows this destination, but only for paths `/t/{sub}/run`; this is `/t/you/run`; \
             `{sub}` is the access token's `sub`, here `me`",
        ),
        (
            Fact::Unknown,
            "rule `own` allows this destination, but only for paths `/t/{sub}/run`; this is `/t/you/run`; \
             `{sub}` is the access token's `sub`, which is unknown here",
        ),
    ] {
        let caller = Caller { subjects, ..caller() };
        let standing = policy.standing(&caller, None);
        let call = Call { target: "/t/you/run", ..CALL };
        let decision =
            policy.decide(&caller, &standing, &call, UnixTime::default(), &Limits::DEFAULT);
        assert_eq!(refusal(decision).detail, detail);
    }
}
