//! `scripts/bench rotation`, shortened: under load, while everything changes, no answer is wrong.

use airflow_envoy_testbed::rotation::{Plan, Row, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_answered_wrongly_whatever_changes_under_load() {
    println!("{}", Row::HEAD);
    let rows = run(Plan::QUICK, "", |row| println!("{row}")).await.unwrap();
    // Without calls nothing would be wrong either. Seven phases call, and an eighth where there is a Consul.
    let busy = rows.iter().filter(|row| row.tally.calls() > 100).count();
    assert!(busy >= 7, "only {busy} phases had calls");
    for row in rows {
        assert_eq!(row.tally.wrong(), 0, "{}: {:#?}", row.phase, row.tally.examples);
    }
}
