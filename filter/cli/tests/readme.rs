//! What the README says of the tools is so.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use airflow_envoy_cli::command::Cli;
use airflow_envoy_cli::coverage::Coverage;
use airflow_envoy_cli::evaluate::Evaluator;
use airflow_envoy_cli::lint::Lint;
use airflow_envoy_cli::model::Model;
use airflow_envoy_cli::run::{UnderTest, run};
use airflow_envoy_cli::source::load::read_bytes;
use airflow_envoy_cli::source::merge::merge;
use airflow_envoy_cli::suite;
use airflow_envoy_core::time::UnixTime;
use clap::Parser as _;

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
fn the_command_lines_of_graph_and_report_are_understood() {
    let lines: Vec<&str> = README
        .lines()
        .filter(|line| {
            ["graph", "report"]
                .iter()
                .any(|name| line.starts_with(&format!("airflow-envoy {name} ")))
        })
        .collect();
    assert_eq!(lines.len(), 5);
    for line in lines {
        let own = line.split(['|', '>']).next().unwrap();
        let words = own.split_whitespace().map(|word| word.trim_matches('\''));
        let understood = airflow_envoy_cli::command::command().try_get_matches_from(words);
        assert!(understood.is_ok(), "{line}: {}", understood.unwrap_err());
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

/// The words of a command line, as far as a shell's quotes and comments go here.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        let word = words.last_mut().unwrap();
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted && word.is_empty() => {}
            ' ' if !quoted => words.push(String::new()),
            // A comment, or what another program does with the output.
            '#' | '|' | '>' if !quoted && word.is_empty() => break,
            _ => word.push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn the_command_lines_are_command_lines_of_the_tool() {
    let blocks = README.split("```sh\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let text = blocks.collect::<String>().replace("\\\n", " ");
    let lines = text.lines().filter(|line| line.starts_with("airflow-envoy "));
    let mut commands = std::collections::BTreeSet::new();
    for line in lines {
        let words = words(line);
        let parsed = Cli::try_parse_from(&words);
        assert!(parsed.is_ok(), "{line}\n{}", parsed.unwrap_err());
        commands.insert(words[1].clone());
    }
    for command in
        ["explain", "grant", "grants", "keys", "request", "approve", "revoke", "sign", "verify"]
    {
        assert!(commands.contains(command), "{command} is not shown");
    }
}
