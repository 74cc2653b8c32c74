//! The README is part of the product: its tables and examples are checked against the code.
#![expect(clippy::expect_used, clippy::panic, reason = "a test may panic")]

use airflow_envoy_core::answer::{Known, Rejection};
use airflow_envoy_core::arrival::DecisionId;
use airflow_envoy_core::configuration::Configuration;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::Policy;
use airflow_envoy_core::reject::{Code, Reject};

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
fn the_example_configuration_is_accepted() {
    Configuration::parse(fenced("configuration").as_bytes(), &Limits::DEFAULT, &|_| None).unwrap();
}

#[test]
fn the_example_policy_is_accepted() {
    let policy = Policy::parse(fenced("policy").as_bytes(), &Limits::DEFAULT).unwrap();
    assert_eq!((policy.revision(), policy.rule_count()), (Some(42), 2));
}
