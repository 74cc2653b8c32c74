//! What the tools cost for a large policy: 10 000 rules and as many cases, each part by itself.
#![expect(clippy::unwrap_used, reason = "a bench may fail by panicking")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use airflow_envoy_cli::coverage::Coverage;
use airflow_envoy_cli::evaluate::Evaluator;
use airflow_envoy_cli::lint::{Given, lint};
use airflow_envoy_cli::model::Model;
use airflow_envoy_cli::run::{UnderTest, run};
use airflow_envoy_cli::source::load::read_bytes;
use airflow_envoy_cli::source::merge::{Source, merge};
use airflow_envoy_cli::suite;
use airflow_envoy_core::time::{Span, UnixTime};
use criterion::{Criterion, criterion_group, criterion_main};

const SIZE: usize = 10_000;

/// A policy of a hundred destinations and teams; every tenth rule denies.
fn policy() -> String {
    let mut text = "version: 1\nroles:\n".to_owned();
    for number in 0..100 {
        let _ = writeln!(text, "  team-{number}: {{ any: [{{ teams: [team-{number}] }}] }}");
    }
    text.push_str("destinations:\n");
    for number in 0..100 {
        let _ = writeln!(text, "  service-{number}: {{ hosts: [service-{number}.internal] }}");
    }
    text.push_str("rules:\n");
    for number in 0..SIZE {
        let (effect, team) = (if number % 10 == 9 { "deny" } else { "allow" }, number % 100);
        let service = number / 100;
        let _ = writeln!(
            text,
            "  - id: rule-{number}\n    intent: Rule {number} of the bench.\n    effect: {effect}\n    \
             from: {{ roles: [team-{team}], dags: [dag_{number}, \"etl_{number}_*\"] }}\n    \
             to: [service-{service}]\n    methods: [GET, HEAD]\n    paths: [\"/v1/things/{team}/**\"]"
        );
    }
    text
}

/// One case for each rule.
fn tests() -> String {
    let mut text = "defaults: { at: 2026-11-21T12:00:00Z }\ncases:\n".to_owned();
    for number in 0..SIZE {
        let (team, service) = (number % 100, number / 100);
        let verdict = match number % 10 {
            9 => format!("reject: policy_denied\n    rule: rule-{number}"),
            _ => format!("permit: rule-{number}"),
        };
        let _ = writeln!(
            text,
            "  - name: case {number}\n    identity: {{ dag_id: etl_{number}_x, team: team-{team}, tags: [] }}\n    \
             request: GET https://service-{service}.internal/v1/things/{team}/7\n    {verdict}"
        );
    }
    text
}

fn read(text: &str) -> Source {
    merge(vec![read_bytes("policy.yaml", text.as_bytes()).unwrap()])
}

fn tools(criterion: &mut Criterion) {
    let (policy_text, tests_text) = (policy(), tests());
    let source = read(&policy_text);
    let model = Model::new(&source.node);
    let given =
        Given { now: UnixTime::from_secs(1_795_262_400), expiring: Span::from_secs(86_400) };
    let suite = suite::read(&read_bytes("a_test.yaml", tests_text.as_bytes()).unwrap()).unwrap();
    let evaluator = Evaluator::new(source.policy().unwrap());
    let under_test = UnderTest { evaluator, model: model.clone(), document: source.node.value() };
    let tested = run(&suite, &under_test, given.now, &|_| true, None);
    assert!(tested.len() == SIZE && tested.iter().all(|test| test.failure.is_empty()));

    let mut group = criterion.benchmark_group("10000 rules");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    group.bench_function("read yaml", |bencher| bencher.iter(|| black_box(read(&policy_text))));
    group.bench_function("compile", |bencher| bencher.iter(|| black_box(source.policy().unwrap())));
    group.bench_function("lint", |bencher| {
        bencher.iter(|| black_box(lint(&model, given, &|_| String::new())));
    });
    group.bench_function("read 10000 cases", |bencher| {
        bencher.iter(|| {
            let document = read_bytes("a_test.yaml", tests_text.as_bytes()).unwrap();
            black_box(suite::read(&document).unwrap())
        });
    });
    group.bench_function("run 10000 cases", |bencher| {
        bencher.iter(|| black_box(run(&suite, &under_test, given.now, &|_| true, None)));
    });
    group.bench_function("run 10000 cases with coverage", |bencher| {
        bencher.iter(|| {
            let mut coverage = Coverage::default();
            let tested = run(&suite, &under_test, given.now, &|_| true, Some(&mut coverage));
            black_box((tested, coverage.report(&model)))
        });
    });
    group.finish();
}

criterion_group!(benches, tools);
criterion_main!(benches);
