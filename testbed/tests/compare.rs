//! `scripts/bench compare`, shortened: every variant starts, answers truly and is measured, and one that does not
//! answer truly is not.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::PathBuf;

use airflow_envoy_testbed::compare::{Module, Plan, chart, run};
use airflow_envoy_testbed::filter_file;
use serde_json::Value;

/// A folder of this test run, which is removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("compare-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _: Result<(), _> = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_variant_answers_what_it_must_and_is_measured() {
    let folder = Folder::new("all");
    let module = Module { label: "ours".to_owned(), path: filter_file().unwrap() };
    let plan = Plan::quick(vec![module]);
    let rounds = plan.rounds;
    let report = run(plan, &folder.0, |line| println!("{line}")).await.unwrap();

    let found = report.json();
    let list = |member: &str| found[member].as_array().unwrap().clone();
    let ids: Vec<String> =
        list("variants").iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    let expected = [
        "none/again",
        "jwt",
        "jwt/es256",
        "jwt/cache",
        "jwt/both",
        "jwt+rbac/no-cache",
        "jwt+rbac",
        "jwt+rbac/routes",
        "jwt+rbac/many-rules",
        "jwt+rbac/tokens",
        "jwt+rbac/tokens-large-cache",
        "ext_authz/http",
        "ext_authz/grpc",
        "wasm/reads",
        "ours",
        "ours/bare",
        "ours/filter-state",
        "ours/tokens",
        "ours/cold-rs256",
        "ours/cold-es256",
        "ours/cold",
        "ours/denied",
        "ours/many-rules",
        "ours/most-rules",
        "ours/routes",
        "ours/routes-filter-state",
        "ours/audit-log",
        "ours/audit-collector",
        "ours/shadow",
    ];
    assert_eq!(ids, expected);
    // Each answers its own request; the native and our variants refuse forged tokens, and so on.
    assert!(report.probes > 2 * expected.len(), "{} probes", report.probes);

    let number = |value: &Value| value.as_f64().unwrap();
    for one in list("variants") {
        let samples = one["samples"].as_array().unwrap().clone();
        assert_eq!(samples.len(), rounds, "{one}");
        for sample in samples {
            assert!(number(&sample["envoy_us"]) > 0.0 && number(&sample["floor_us"]) > 0.0);
            assert!(number(&sample["requests_per_second"]) > 0.0);
        }
        for end in ["median", "low", "high"] {
            number(&one["added_us"][end]);
        }
        let id = one["id"].as_str().unwrap();
        // Of so few requests the records may come to the collector after the sample.
        if id != "ours/audit-collector" {
            let is_helped = ["ext_authz/http", "ext_authz/grpc"].contains(&id);
            assert_eq!(number(&one["helper_us"]) > 0.0, is_helped, "{one}");
        }
    }
    // Verifying both signatures costs more than remembering them, however loud the machine is.
    let added = |id: &str| {
        let all = list("variants");
        number(&all.iter().find(|one| one["id"] == id).unwrap()["added_us"]["median"])
    };
    assert!(added("ours/cold") > added("ours"), "{} {}", added("ours/cold"), added("ours"));

    let ratios = list("ratios");
    assert_eq!(ratios.len(), 16);
    assert_eq!(ratios.iter().filter(|ratio| ratio["bar"].is_null()).count(), 2);
    let paced = list("latencies");
    assert_eq!(paced.len(), 5, "{paced:?}");
    assert!(
        paced.iter().all(|one| number(&one["p99_us"]["median"]) >= number(&one["p50_us"]["low"]))
    );
    // One round is no measurement, and the report says so.
    assert!(list("doubts").iter().any(|doubt| doubt.as_str().unwrap().contains("too few")));

    let text = report.text();
    assert!(expected.iter().all(|id| text.contains(&format!("| `{id}` |"))), "{text}");
    assert!(chart::svg(&report).ends_with("</svg>\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_lets_too_much_through_is_not_measured() {
    let folder = Folder::new("open");
    let path = folder.0.join("open.wasm");
    // It lets everything pass.
    let code = wat::parse_str(include_str!("../src/compare/reads.wat")).unwrap();
    fs::write(&path, code).unwrap();
    let module = Module { label: "open".to_owned(), path };
    let plan = Plan { only: vec!["open".to_owned()], ..Plan::quick(vec![module]) };
    let error = run(plan, &folder.0, |_| {}).await.unwrap_err().to_string();
    assert_eq!(error, "open: a request without credentials: answered with 200 instead of 401");
}
