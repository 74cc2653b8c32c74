//! What it costs to verify a trail and to decide it again: a million records, as files are read.
#![expect(clippy::unwrap_used, reason = "a bench may fail by panicking")]

#[path = "../tests/audit/trail.rs"]
mod trail;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use airflow_envoy_cli::audit::link::Keys;
use airflow_envoy_cli::audit::parallel::each_chunk;
use airflow_envoy_cli::audit::verify::{Options, verify};
use airflow_envoy_cli::audit::{Chunk, Found, Kind, Reader, Record};
use airflow_envoy_cli::replay::{Judge, decided_at};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};

use self::trail::{Called, Stream, key, signer};

const RECORDS: u64 = 1_000_000;

/// A policy of a thousand rules; one of them permits the calls.
fn policy() -> Value {
    let rules: Vec<Value> = (0..1_000)
        .map(|number| {
            json!({
                "id": if number == 500 { "ds-reads-orders".to_owned() } else { format!("rule-{number}") },
                "effect": if number % 10 == 9 { "deny" } else { "allow" },
                "from": {"teams": [if number == 500 { "data-science".to_owned() } else { format!("team-{number}") }]},
                "to": ["orders"], "methods": ["GET"], "paths": ["/v1/orders/**"],
            })
        })
        .collect();
    json!({"version": 1, "destinations": {"orders": {"hosts": ["orders.internal"]}}, "rules": rules})
}

fn audit(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("bench-{}.ndjson", std::process::id()));
    let (private, public) = key([7; 32], "k1");
    let (mut stream, begin) = Stream::begin(1, Some(signer(&private)), None);
    let mut text = format!("{begin}\n");
    for number in 1..RECORDS - 1 {
        let line = match number % 1_000 {
            0 => stream.checkpoint(),
            _ => {
                let dag = format!("ds_{}", number % 500);
                stream.call(&Called {
                    dag: &dag,
                    path: &format!("/v1/orders/{number}"),
                    ..Called::READ
                })
            }
        };
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "{}", stream.end());
    std::fs::write(&path, &text).unwrap();
    drop(text);
    let mut keys = Keys::default();
    keys.add(public.to_string().as_bytes()).unwrap();
    let options = Options { keys, ..Options::default() };
    let policy = policy();

    let mut group = criterion.benchmark_group("1000000 records");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .throughput(Throughput::Elements(RECORDS));
    group.bench_function("verify", |bencher| {
        bencher.iter(|| {
            let mut reader = Reader::new(std::slice::from_ref(&path)).unwrap();
            let verified = verify(&mut reader, &options, |_| {}).unwrap();
            assert!(verified.faults.is_empty() && verified.seen.records == RECORDS);
        });
    });
    group.bench_function("replay", |bencher| {
        bencher.iter(|| {
            let mut reader = Reader::new(std::slice::from_ref(&path)).unwrap();
            let worker = || {
                let mut judge = Judge::new(&policy, &[]).unwrap();
                move |chunk: &Chunk| {
                    let mut permitted = 0_u64;
                    chunk.each(|_, found| {
                        let Found::Record(head) = found else { return };
                        if head.kind != Kind::Decision {
                            return;
                        }
                        let record = Record::parse(head.text).unwrap();
                        let at = decided_at(&record).unwrap();
                        let verdict = judge.decide(&record, head.caller, at).unwrap();
                        permitted += u64::from(verdict.permits());
                    });
                    permitted
                }
            };
            let mut permitted = 0;
            each_chunk(&mut reader, worker, |more| permitted += more).unwrap();
            assert!(black_box(permitted) > RECORDS * 99 / 100);
        });
    });
    group.finish();
    std::fs::remove_file(&path).unwrap();
}

criterion_group!(benches, audit);
criterion_main!(benches);
