//! What a decision costs as the policy grows: it must not grow with rules that cannot match.
//!
//! Each shape is a policy whose rules differ in one respect only. Every decision but those of `no_match` is a permit, asked
//! in turn by 16 callers that are spread over the whole policy (`spread`), or by 4096 of them, as many
//! and as different ones whatever the size, so that neither they nor their rules are in the
//! processor's nearest cache (`scattered`).
//!
//! What `scattered` costs more with many rules is no work, only the first touch of memory: 4096
//! callers of 10 rules find those in the cache, 4096 callers of 100 000 rules each find their own
//! outside. Simulated with 48 KiB of first-level data cache (cachegrind, `dags`), a decision executes as many
//! instructions with 20 000 rules as with 10 (4.7 thousand), and misses 17 times instead of 7: the
//! table's bucket and entry, the rule, its list of conditions, the condition, its text and the rule's id
//! are its own. By the clock, 100 000 rules against 10: `spread` 0.8 to 1.4 times, `scattered` 1.6 to 2.0
//! times, and 3.1 times where each rule has its own destination, whose hosts are touched besides.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench may fail by panicking")]

use std::hint::black_box;
use std::time::Duration;

use airflow_envoy_core::answer::{Known, Rejection};
use airflow_envoy_core::arrival::DecisionId;
use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Outcome, Policy, PolicySet, Standing};
use airflow_envoy_core::time::UnixTime;
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Map, Value, json};

const SIZES: [usize; 4] = [10, 50, 1_000, 100_000];

/// One respect in which the rules of a policy differ.
#[derive(Clone, Copy)]
enum Shape {
    /// Each rule has its own path without a wildcard.
    Paths,
    /// Each rule has its own path with a wildcard before the segment that differs.
    Patterns,
    /// All rules have the same path, each its own DAG.
    Dags,
    /// All rules have the same path, each its own prefix of DAG names.
    DagPrefixes,
    /// Each rule has its own destination.
    Destinations,
    /// Each rule has its own role, each role its own DAG.
    Roles,
    /// As `Dags`, besides as many rules that deny other DAGs.
    Denied,
    /// All rules have the same path, each its own suffix of DAG names.
    DagSuffixes,
    /// Each rule is about one of 10 000 DAGs and one of 1 000 destinations.
    Grid,
    /// As `Paths`, besides as many rules that deny other paths.
    DeniedPaths,
}

const SHAPES: [(&str, Shape); 10] = [
    ("paths", Shape::Paths),
    ("patterns", Shape::Patterns),
    ("dags", Shape::Dags),
    ("dag_prefixes", Shape::DagPrefixes),
    ("destinations", Shape::Destinations),
    ("roles", Shape::Roles),
    ("denied", Shape::Denied),
    ("dag_suffixes", Shape::DagSuffixes),
    ("grid", Shape::Grid),
    ("denied_paths", Shape::DeniedPaths),
];

const GRID_DAGS: usize = 10_000;
const GRID_DESTINATIONS: usize = 1_000;

/// Which destination a rule of the grid is about: with its DAG, each pair once.
const fn of_grid(number: usize) -> usize {
    (number + number / GRID_DAGS * 7) % GRID_DESTINATIONS
}

struct Asked {
    caller: Caller,
    standing: Standing,
    authority: String,
    target: String,
}

impl Shape {
    fn document(self, size: usize) -> Value {
        let mut destinations = Map::new();
        let mut roles = Map::new();
        let mut rules = Vec::with_capacity(size);
        destinations.insert("orders".to_owned(), json!({"hosts": ["orders.internal"]}));
        for number in 0..size {
            let mut rule = json!({
                "id": format!("rule-{number}"), "effect": "allow", "to": ["orders"],
                "from": {"teams": ["data-science"]}, "methods": ["GET", "HEAD"], "paths": ["/v1/orders/*"],
            });
            match self {
                Self::Paths => rule["paths"] = json!([format!("/v1/orders{number}/items")]),
                Self::Patterns => rule["paths"] = json!([format!("/v1/*/items{number}")]),
                Self::Dags => rule["from"]["dags"] = json!([format!("ds_{number}")]),
                Self::DagPrefixes => rule["from"]["dags"] = json!([format!("team{number}_*")]),
                Self::Destinations => {
                    let name = format!("orders-{number}");
                    destinations
                        .insert(name.clone(), json!({"hosts": [format!("{name}.internal")]}));
                    rule["to"] = json!([name]);
                }
                Self::Roles => {
                    let name = format!("role-{number}");
                    roles
                        .insert(name.clone(), json!({"any": [{"dags": [format!("ds_{number}")]}]}));
                    rule["from"]["roles"] = json!([name]);
                }
                Self::Denied if number % 2 == 0 => {
                    rule["from"]["dags"] = json!([format!("ds_{number}")])
                }
                Self::DagSuffixes => rule["from"]["dags"] = json!([format!("*_team{number}")]),
                Self::Grid => {
                    let name = format!("orders-{}", of_grid(number));
                    destinations
                        .insert(name.clone(), json!({"hosts": [format!("{name}.internal")]}));
                    rule["to"] = json!([name]);
                    rule["from"]["dags"] = json!([format!("ds_{}", number % GRID_DAGS)]);
                }
                Self::DeniedPaths => {
                    rule["paths"] = json!([format!("/v1/orders{number}/items")]);
                    if number % 2 == 1 {
                        rule["effect"] = "deny".into();
                    }
                }
                Self::Denied => {
                    rule["effect"] = "deny".into();
                    rule["from"]["dags"] = json!([format!("ds_{number}")]);
                }
            }
            rules.push(rule);
        }
        json!({"version": 1, "roles": roles, "destinations": destinations, "rules": rules})
    }

    /// A request of the caller `caller`, to be permitted by the rule `number`.
    fn asked(self, number: usize, caller: usize, policy: &PolicySet) -> Asked {
        let caller = Caller {
            dags: Fact::one(match self {
                Self::DagPrefixes => format!("team{number}_daily"),
                Self::DagSuffixes => format!("daily_team{number}"),
                Self::Grid => format!("ds_{}", number % GRID_DAGS),
                _ => format!("ds_{number}"),
            }),
            tasks: Fact::one(format!("load_{caller}")),
            teams: Fact::one("data-science"),
            ..Caller::default()
        };
        Asked {
            standing: policy.standing(&caller, None),
            caller,
            authority: match self {
                Self::Destinations => format!("orders-{number}.internal"),
                Self::Grid => format!("orders-{}.internal", of_grid(number)),
                _ => "orders.internal".to_owned(),
            },
            target: match self {
                Self::Paths | Self::DeniedPaths => format!("/v1/orders{number}/items?page=1"),
                Self::Patterns => format!("/v1/orders/items{number}?page=1"),
                _ => "/v1/orders/17?page=1".to_owned(),
            },
        }
    }
}

fn read(document: &Value) -> PolicySet {
    Policy::from_value(document, &Limits::DEFAULT).unwrap().into()
}

fn decide(policy: &PolicySet, asked: &Asked) -> bool {
    matches!(outcome(policy, asked), Outcome::Permit { .. })
}

fn outcome(policy: &PolicySet, asked: &Asked) -> Outcome {
    let call =
        Call { authority: &asked.authority, scheme: "https", method: "GET", target: &asked.target };
    let now = UnixTime::from_secs(1_000_000_000);
    let decision = policy.decide(&asked.caller, &asked.standing, &call, now, &Limits::DEFAULT);
    black_box(decision).outcome
}

fn decisions(criterion: &mut Criterion) {
    for (name, shape) in SHAPES {
        for size in SIZES {
            let policy = read(&shape.document(size));
            for (spread, callers) in [("spread", 16), ("scattered", 4096)] {
                let all: Vec<Asked> = (0..callers)
                    // A prime step: neighbours in the list are none in the policy. Even, because half
                    // of the rules of one shape deny.
                    .map(|index| shape.asked(index * 7919 % size / 2 * 2, index, &policy))
                    .collect();
                assert!(all.iter().all(|asked| decide(&policy, asked)), "{name} is not a permit");
                let mut turn = all.iter().cycle();
                criterion.bench_function(&format!("{name}/{spread}/{size}"), |bencher| {
                    bencher.iter(|| turn.next().is_some_and(|asked| decide(&policy, asked)));
                });
            }
        }
    }
}

/// A refusal because no rule allows the call, from the question to the body of the answer. It names the nearest rule,
/// and looks at a bounded number of rules for it.
fn denials(criterion: &mut Criterion) {
    for (name, shape) in SHAPES {
        // There each rule has a host of its own, and no policy knows another one; or half of the rules deny.
        if matches!(shape, Shape::Destinations | Shape::Grid | Shape::Denied | Shape::DeniedPaths) {
            continue;
        }
        for size in SIZES {
            let policy = read(&shape.document(size));
            let asked = shape.asked(size, 0, &policy);
            let deny = || {
                let Outcome::Refuse(reject) = outcome(&policy, &asked) else {
                    return String::new();
                };
                let decision_id = DecisionId::new(1, 2);
                let known = Known::default();
                let rejection = Rejection {
                    reject,
                    decision_id,
                    retry_after: None,
                    grpc: false,
                    by_proxy: false,
                    known,
                };
                rejection.body()
            };
            assert!(deny().contains("\"nearest\":\"rule-"), "{name}: {}", deny());
            criterion.bench_function(&format!("no_match/{name}/{size}"), |bencher| {
                bencher.iter(|| black_box(deny()).len());
            });
        }
    }
}

fn standings(criterion: &mut Criterion) {
    for size in SIZES {
        let policy = read(&Shape::Roles.document(size));
        let asked = Shape::Roles.asked(size / 2, 0, &policy);
        criterion.bench_function(&format!("standing/{size}"), |bencher| {
            bencher.iter(|| policy.standing(black_box(&asked.caller), None));
        });
    }
}

fn reading(criterion: &mut Criterion) {
    for (name, shape) in [("dags", Shape::Dags), ("destinations", Shape::Destinations)] {
        for size in [1_000, 100_000] {
            let text = shape.document(size).to_string();
            criterion.bench_function(&format!("parse/{name}/{size}"), |bencher| {
                bencher
                    .iter(|| Policy::parse(black_box(text.as_bytes()), &Limits::DEFAULT).is_ok());
            });
        }
    }
}

criterion_group! {
    name = policy;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = decisions, denials, standings, reading
}
criterion_main!(policy);
