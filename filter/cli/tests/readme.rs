//! What the README says of the tools is so.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use airflow_envoy_cli::audit::verify::Code;
use airflow_envoy_cli::command::Cli;
use airflow_envoy_cli::coverage::Coverage;
use airflow_envoy_cli::envoy::Setting;
use airflow_envoy_cli::evaluate::Evaluator;
use airflow_envoy_cli::lint::{Kind, Lint};
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
fn the_tables_of_findings_are_the_lists_of_findings() {
    assert_eq!(table("| finding | | meaning |"), expected::<Lint>());
    assert_eq!(table("| finding of `config check` | | meaning |"), expected::<Setting>());
}

fn table(head: &str) -> Vec<&'static str> {
    let lines = README.lines().skip_while(|line| *line != head).skip(2);
    lines.take_while(|line| line.starts_with('|')).collect()
}

fn expected<K: Kind>() -> Vec<String> {
    let row = |kind: &K| {
        format!("| `{}` | {} | {} |", kind.name(), kind.severity().name(), kind.meaning())
    };
    K::KINDS.iter().map(row).collect()
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
    for command in [
        "approve", "audit", "explain", "grant", "grants", "graph", "keys", "replay", "report",
        "request", "revoke", "sign", "verify",
    ] {
        assert!(commands.contains(command), "{command} is not shown");
    }
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
