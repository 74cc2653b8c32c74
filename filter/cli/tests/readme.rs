//! What the README says of the tools is so.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use airflow_envoy_cli::audit::verify::Code;
use airflow_envoy_cli::coverage::Coverage;
use airflow_envoy_cli::evaluate::Evaluator;
use airflow_envoy_cli::lint::Lint;
use airflow_envoy_cli::model::Model;
use airflow_envoy_cli::run::{UnderTest, run};
use airflow_envoy_cli::source::load::read_bytes;
use airflow_envoy_cli::source::merge::merge;
use airflow_envoy_cli::suite;
use airflow_envoy_core::time::UnixTime;

const README: &str = include_str!("../../../README.md");

fn fenced(name: &str, language: &str) -> &'static str {
    let marker = format!("<!-- tested: {name} -->\n```{language}\n");
    let (_, rest) = README.split_once(&marker).unwrap();
    rest.split_once("\n```").unwrap().0
}

#[test]
fn the_example_tests_pass_on_the_example_policies_and_cover_their_rules() {
    for (policy, tests, count) in [
        ("policy", "policy test", 9),
        ("policy of paths and tunnels", "policy test of paths and tunnels", 3),
    ] {
        let source =
            merge(vec![read_bytes("policy.json", fenced(policy, "json").as_bytes()).unwrap()]);
        let model = Model::new(&source.node);
        let evaluator = Evaluator::new(source.policy().unwrap());
        let policy = UnderTest { evaluator, model, document: source.node.value() };
        let document = read_bytes("a_test.yaml", fenced(tests, "yaml").as_bytes()).unwrap();
        let suite = suite::read(&document).unwrap();
        let mut coverage = Coverage::default();
        // Without a time of its own an assertion is tried at the time of the run, when the rule must be one.
        let now = UnixTime::from_rfc3339("2026-11-21T12:00:00Z").unwrap();
        let tested = run(&suite, &policy, now, &|_| true, Some(&mut coverage));
        assert_eq!(tested.len(), count);
        for test in tested {
            assert_eq!(test.failure, [], "{}", test.name);
        }
        assert_eq!(coverage.report(&policy.model).missing, []);
    }
}

#[test]
fn the_table_of_findings_is_the_list_of_findings() {
    let rows: Vec<&str> = README
        .lines()
        .skip_while(|line| *line != "| finding | | meaning |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let severity = |lint: &Lint| if lint.is_error() { "error" } else { "warning" };
    let expected: Vec<String> = Lint::ALL
        .iter()
        .map(|lint| format!("| `{}` | {} | {} |", lint.name(), severity(lint), lint.meaning()))
        .collect();
    assert_eq!(rows, expected);
}

#[test]
fn the_table_of_faults_is_the_list_of_faults() {
    let rows: Vec<&str> = README
        .lines()
        .skip_while(|line| *line != "| fault | meaning |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let row = |code: Code| format!("| `{}` | {} |", code.name(), code.meaning());
    assert_eq!(rows, Code::ALL.map(row));
}
