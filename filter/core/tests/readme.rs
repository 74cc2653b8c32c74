//! The README is part of the product: its tables and examples are checked against the code.
#![expect(clippy::expect_used, clippy::panic, reason = "a test may panic")]

use airflow_envoy_core::answer::{Known, Rejection};
use airflow_envoy_core::arrival::DecisionId;
use airflow_envoy_core::configuration::{Configuration, Ways};
use airflow_envoy_core::facts::{Assertion, Call, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Outcome, Policy, PolicySet};
use airflow_envoy_core::reject::{Code, Reject};
use airflow_envoy_core::time::UnixTime;
use serde_json::json;

const README: &str = include_str!("../../../README.md");

/// What follows the marker `tested: <name>`, up to the next empty line.
fn tested(name: &str) -> &'static str {
    let (_, rest) = README.split_once(&format!("<!-- tested: {name} -->\n")).expect(name);
    rest
}

/// The fenced block after a marker.
fn fenced(name: &str) -> &'static str {
    let block = tested(name).strip_prefix("```json\n").expect("a block of JSON follows");
    block.split_once("\n```").expect("the block ends").0
}

fn row(code: Code) -> String {
    let rejection = Rejection {
        reject: Reject::new(code, ""),
        decision_id: DecisionId::new(0, 0),
        retry_after: None,
        grpc: true,
        by_proxy: false,
        known: Known::default(),
    };
    let grpc = match rejection.grpc_status() {
        3 => "INVALID_ARGUMENT",
        7 => "PERMISSION_DENIED",
        8 => "RESOURCE_EXHAUSTED",
        14 => "UNAVAILABLE",
        16 => "UNAUTHENTICATED",
        other => panic!("{code} has gRPC status {other}"),
    };
    format!("| `{code}` | {} | {grpc} | {} | {} |", code.status(), code.title(), code.action())
}

#[test]
fn the_table_of_codes_is_the_list_of_codes() {
    let table: Vec<&str> =
        tested("codes").lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    let codes: Vec<String> = Code::ALL.iter().map(|code| row(*code)).collect();
    assert_eq!(table, codes, "the table should be:\n{}", codes.join("\n"));
}

#[test]
fn the_bound_on_what_a_denial_looks_at_is_that_of_the_code() {
    let bound =
        format!("among at most {} rules for\nthe destination", Limits::DEFAULT.nearest_rules);
    assert!(README.contains(&bound), "{bound}");
}

#[test]
fn the_example_configuration_is_accepted() {
    Configuration::parse(fenced("configuration").as_bytes(), &Limits::DEFAULT, &|_| None).unwrap();
}

#[test]
fn the_example_of_a_cookie_is_accepted() {
    let text = fenced("configuration of a cookie");
    let configuration = Configuration::parse(text.as_bytes(), &Limits::DEFAULT, &|_| None).unwrap();
    assert_eq!(configuration.ways, Ways::Cookie("_token".into()));
}

#[test]
fn the_example_of_peers_is_accepted() {
    let usual = fenced("configuration").strip_suffix("}").expect("an object");
    let text = format!("{usual}, {}}}", fenced("configuration of peers"));
    let configuration = Configuration::parse(text.as_bytes(), &Limits::DEFAULT, &|_| None).unwrap();
    assert_eq!(configuration.peer.unwrap().trust_domains.len(), 1);
}

#[test]
fn the_example_of_an_agreement_refuses_what_it_says() {
    let text = fenced("policy of agreement");
    let policy = PolicySet::from(Policy::parse(text.as_bytes(), &Limits::DEFAULT).unwrap());
    let assertion = |issuer: &str| {
        Some(Assertion { issuer: issuer.to_owned(), key_id: Some(format!("{issuer}/k1")) })
    };
    for (service, issuer, dag, refused) in [
        ("airflow-worker", "airflow", "etl", None),
        ("batch", "airflow", "etl", Some(Code::PeerNotAllowed)),
        ("airflow-worker", "elsewhere", "ml_x", Some(Code::AssertionNotAllowed)),
        ("ml-worker", "airflow-ml", "ml_x", None),
        ("ml-worker", "airflow-ml", "etl", Some(Code::AssertionNotAllowed)),
    ] {
        let caller = Caller {
            services: Fact::one(service),
            assertion: assertion(issuer),
            dags: Fact::one(dag),
            teams: Fact::one("ml"),
            ..Caller::default()
        };
        let call =
            Call { authority: "orders.internal", scheme: "http", method: "GET", target: "/" };
        let standing = policy.standing(&caller, None);
        let now = UnixTime::from_secs(0);
        let decision = policy.decide(&caller, &standing, &call, now, &Limits::DEFAULT);
        let code = match decision.outcome {
            Outcome::Refuse(reject) => Some(reject.code),
            Outcome::Permit { .. } => None,
        };
        assert_eq!(code, refused, "{service} {issuer} {dag}");
    }
}

#[test]
fn the_example_of_paths_and_tunnels_allows_what_it_says() {
    let text = fenced("policy of paths and tunnels");
    let policy = PolicySet::from(Policy::parse(text.as_bytes(), &Limits::DEFAULT).unwrap());
    let task = Caller {
        issuers: Fact::one("airflow-execution"),
        subjects: Fact::one("0199f5e2"),
        claims: json!({"scope": "workload"}).as_object().cloned().unwrap().into(),
        ..Caller::default()
    };
    let report = Caller {
        issuers: Fact::one("airflow"),
        dags: Fact::one("report_daily"),
        ..Caller::default()
    };
    let run = |whose: &str| format!("/execution/task-instances/{whose}/run");
    for (caller, method, authority, target, permitted) in [
        (&task, "PATCH", "airflow.internal", run("0199f5e2"), true),
        (&task, "PATCH", "airflow.internal", run("0199f5e3"), false),
        (&report, "PATCH", "airflow.internal", run("0199f5e2"), false),
        (&report, "CONNECT", "api.partner.example:443", String::new(), true),
        (&report, "CONNECT", "api.partner.example:22", String::new(), false),
        (&report, "CONNECT", "airflow.internal:443", String::new(), false),
        (&task, "CONNECT", "api.partner.example:443", String::new(), false),
    ] {
        let call = Call { authority, scheme: "http", method, target: &target };
        let standing = policy.standing(caller, None);
        let now = UnixTime::from_secs(0);
        let decision = policy.decide(caller, &standing, &call, now, &Limits::DEFAULT);
        let found = matches!(decision.outcome, Outcome::Permit { .. });
        assert_eq!(found, permitted, "{method} {authority}{target}: {decision:?}");
    }
}

#[test]
fn the_example_of_a_grant_is_one_of_the_example_policy() {
    let policy = Policy::parse(fenced("policy of grants").as_bytes(), &Limits::DEFAULT).unwrap();
    let claims = serde_json::from_str(fenced("grant")).unwrap();
    let grant = policy.read_grant(&claims, &Limits::DEFAULT).unwrap();
    assert_eq!((&*grant.id, &*grant.grantable), ("inc-17", "orders-write"));
    assert!(grant.is_in_effect(UnixTime::from_secs(1_795_262_400)));
}

#[test]
fn the_example_policy_is_accepted() {
    let policy = Policy::parse(fenced("policy").as_bytes(), &Limits::DEFAULT).unwrap();
    assert_eq!((policy.revision(), policy.rule_count()), (Some(42), 2));
}
