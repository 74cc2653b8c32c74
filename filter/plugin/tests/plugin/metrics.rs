//! What is measured, and what measuring costs.

use serde_json::{Value, json};

use crate::host::{self, Cryptography};
use crate::requests::{GET, fetching, inline, policy, start};

const NONE_VERIFIED: &str = "airflow_envoy.deciding_nanoseconds.0";

fn is_there(name: &str) -> bool {
    host::metrics().iter().any(|(known, _)| known == name)
}

#[test]
fn of_decisions_without_a_signature_one_in_64_is_measured() {
    let mut filter = start(&inline("/v1/**"));
    filter.tick(100);
    assert!(!is_there(NONE_VERIFIED));
    let mut readings = |requests| {
        let before = host::calls("get_current_time_nanoseconds");
        for _ in 0..requests {
            let (stream, goes_on) = filter.request(&GET);
            assert!(goes_on);
            filter.end(stream);
        }
        host::calls("get_current_time_nanoseconds") - before
    };
    assert_eq!(readings(1), 2, "the first one is measured");
    assert_eq!(readings(63), 63, "one look at the clock for each of the others");
    assert_eq!(readings(128), 130);
    filter.tick(100);
    assert!(is_there(NONE_VERIFIED));
}

#[test]
fn a_request_that_waited_is_measured_by_how_long_and_not_by_what_it_cost() {
    let mut filter = start(&fetching());
    filter.tick(100);
    let (waits, _) = filter.request(&GET);
    let (leaves, _) = filter.request(&GET);
    filter.tick(100);
    filter.end(leaves);
    filter.tick(400);
    let callouts = host::callouts().len();
    for _ in 0..callouts {
        filter.answer(&[(":status", b"200")], policy("/v1/**").to_string().as_bytes());
    }
    assert_eq!(host::seen(waits).resumed, 1);
    filter.tick(100);
    assert_eq!(host::metric("airflow_envoy.waiting_milliseconds"), 500);
    assert_eq!(host::metric("airflow_envoy.requests.parked"), 2);
    assert_eq!(host::metric("airflow_envoy.requests.abandoned"), 1);
    assert!(!is_there(NONE_VERIFIED));
}

#[test]
fn what_a_worker_adds_to_a_sum_it_takes_back_when_it_ends() {
    let mut filter = start(&fetching());
    for _ in 0..3 {
        filter.request(&GET);
    }
    filter.tick(100);
    let sums = ["requests.waiting", "workers.unready"].map(|name| format!("airflow_envoy.{name}"));
    assert_eq!(sums.each_ref().map(|name| host::metric(name)), [3, 1]);
    // Another configuration: the former requests are none of its own.
    filter.configure(fetching().to_string().as_bytes()).unwrap();
    assert_eq!(sums.each_ref().map(|name| host::metric(name)), [0, 0]);
    filter.tick(100);
    assert_eq!(sums.each_ref().map(|name| host::metric(name)), [0, 1]);
    filter.shut_down();
    assert_eq!(sums.each_ref().map(|name| host::metric(name)), [0, 0]);
}

#[test]
fn the_filter_says_which_one_it_is_and_has_the_counters_of_alerts_from_the_start() {
    let mut configuration = inline("/v1/**");
    configuration["mode"] = json!("shadow");
    start(&configuration);
    let info = host::metrics().into_iter().find(|(name, _)| name.ends_with(".info"));
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("AIRFLOW_ENVOY_COMMIT").unwrap_or("unknown");
    let expected =
        format!("airflow_envoy.filter;version={version};commit={commit};mode=shadow.info");
    assert_eq!(info, Some((expected, 1)));
    for name in ["audit.lost", "grants.refused"] {
        assert!(is_there(&format!("airflow_envoy.{name}")), "{name}");
    }
}

#[test]
fn which_signatures_the_host_verifies_is_in_the_metrics_and_the_status() {
    const RIGHT: &[&str] = &["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"];
    for (cryptography, by_host) in
        [(Cryptography::Right, RIGHT), (Cryptography::Missing, &[]), (Cryptography::Gullible, &[])]
    {
        // A thread of its own is a host and a plugin of its own.
        let told = std::thread::spawn(move || {
            host::set_cryptography(cryptography);
            let mut configuration = inline("/v1/**");
            configuration["status"] = json!({ "path": "/-/status" });
            let mut filter = start(&configuration);
            for algorithm in RIGHT.iter().chain(&["PS256", "PS384", "PS512", "EdDSA"]) {
                let name = format!("airflow_envoy.signatures_by_host.{algorithm}");
                assert!(is_there(&name), "{name}");
                let expected = u64::from(by_host.contains(algorithm));
                assert_eq!(host::metric(&name), expected, "{name}");
            }
            let asked =
                [(":method", "GET"), (":authority", "orders.internal"), (":path", "/-/status")];
            let (stream, _) = filter.request(&asked);
            let body = host::seen(stream).reply.unwrap().body;
            serde_json::from_str::<Value>(&body).unwrap()["signatures_by_host"].clone()
        });
        assert_eq!(told.join().unwrap(), json!(by_host));
    }
}

#[test]
fn nothing_that_a_caller_writes_becomes_a_name() {
    let mut filter = start(&inline("/v1/**"));
    let mark = "sent-by-nobody";
    let value = |text: &'static str| text;
    for headers in [
        vec![(":method", mark), (":authority", "orders.internal"), (":path", "/v1/x")],
        vec![(":method", "GET"), (":authority", mark), (":path", "/v1/x")],
        vec![(":method", "GET"), (":authority", "orders.internal"), (":path", "/sent-by-nobody")],
        [&GET[..], &[("x-airflow-dag-id", mark), (mark, mark)]].concat(),
        [&GET[..], &[("authorization", value("Bearer sent-by-nobody"))]].concat(),
        [&GET[..], &[("x-airflow-identity", mark)]].concat(),
    ] {
        let (stream, _) = filter.request(&headers);
        filter.end(stream);
    }
    filter.tick(100);
    let decisions = host::metrics().into_iter().filter(|(name, _)| name.contains("decisions"));
    assert!(decisions.map(|(_, count)| count).sum::<u64>() == 6);
    for (name, _) in host::metrics() {
        assert!(!name.contains("nobody"), "{name}");
    }
}
