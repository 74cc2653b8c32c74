//! `scripts/bench soak`, shortened: it runs, everything that it is about happens, and memory stays at its plateau.

use airflow_envoy_testbed::soak::{Plan, Sample, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_where_it_is_while_everything_changes() {
    println!("{}", Sample::HEAD);
    let found = run(Plan::QUICK, |sample| println!("{sample}")).await.unwrap();
    let (first, last) = (found.samples.first().unwrap(), found.samples.last().unwrap());
    assert!(last.calls > first.calls + 1_000, "{last:?}");
    assert!(last.policies >= first.policies + 5, "{last:?}");
    assert!(last.remembered > first.remembered, "{last:?}");
    assert!(last.wasm_kib > 1024 && last.wasm_kib < last.resident_kib, "{last:?}");
    assert_eq!(found.tally.wrong(), 0, "{:?}", found.tally.examples);
    // In so short a time there is no plateau to speak of, only a bound: what a leak of each policy or session exceeds.
    assert!(last.resident_kib < first.resident_kib + 150 * 1024, "{first:?} {last:?}");
}
