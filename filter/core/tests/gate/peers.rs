//! What a gate remembers of mesh peers: a session is of the one peer that it was opened with.

use serde_json::{Value, json};

use crate::worker::*;

fn peer(service: &str, digit: &str, expires_in: i64) -> String {
    let (digest, end) = (digit.repeat(64), NOW + expires_in);
    format!("true {digest} {end} spiffe://td.consul/ns/default/dc/dc1/svc/{service}")
}

fn meshed() -> Value {
    let mut configuration = patient(2);
    configuration["peer"] = json!({ "trust_domains": ["td.consul"] });
    configuration
}

fn policy_of_workers() -> Vec<u8> {
    let mut policy: Value = serde_json::from_slice(&policy("etl")).unwrap();
    policy["agreement"] =
        json!([{ "id": "workers", "from": { "services": ["worker"], "issuers": ["airflow"] } }]);
    policy.to_string().into_bytes()
}

fn ready() -> Worker {
    let mut worker = Worker::new(&meshed());
    worker.tick(0);
    worker.bring("idp", &keys(&["t1-p256"]), 0);
    worker.bring("airflow", &keys(&["a1-p256"]), 0);
    worker.bring("policy", &policy_of_workers(), 0);
    worker.peer = Some(peer("worker", "1", 3600));
    worker
}

#[test]
fn only_a_gate_that_looks_at_peers_wants_them() {
    assert!(ready().gate.wants_peer());
    assert!(!Worker::ready().gate.wants_peer());
    let mut off = configuration();
    off["peer"] = json!({ "identity": "off" });
    assert!(!Worker::new(&off).gate.wants_peer());
}

#[test]
fn a_remembered_pair_is_no_good_in_the_hands_of_another_peer() {
    let mut worker = ready();
    let pair = credentials("t1-p256", "a1-p256", "etl");
    for (evidence, expected) in [
        (Some(peer("worker", "1", 3600)), "permit"),
        (Some(peer("worker", "1", 3600)), "permit"),
        (Some(peer("thief", "2", 3600)), "peer_not_allowed"),
        (None, "peer_missing"),
        (Some(peer("worker", "1", 3600).replace("true", "false")), "peer_missing"),
        (Some(peer("worker", "1", 3600).replace("td.consul", "td.other")), "peer_untrusted"),
        (Some(peer("worker", "1", 3600)), "permit"),
        // The next leaf of the same service.
        (Some(peer("worker", "3", 7200)), "permit"),
    ] {
        worker.peer = evidence;
        assert_eq!(worker.ask(&pair, 1), expected, "{:?}", worker.peer);
    }
    // Who is refused costs no signature, and neither does another certificate.
    let tally = worker.gate.take_tally();
    assert_eq!((tally.verifications(), tally.session_hits), (2, 1));
}

#[test]
fn a_session_ends_with_the_certificate() {
    let mut worker = ready();
    let pair = credentials("t1-p256", "a1-p256", "etl");
    worker.peer = Some(peer("worker", "1", 9));
    assert_eq!(worker.ask(&pair, 1), "permit");
    assert_eq!(worker.ask(&pair, 9), "permit");
    assert_eq!(worker.ask(&pair, 10), "peer_invalid");
}

#[test]
fn a_request_that_waits_keeps_its_peer() {
    let mut worker = Worker::new(&meshed());
    worker.tick(0);
    worker.bring("idp", &keys(&["t1-p256"]), 0);
    worker.bring("airflow", &keys(&["a1-p256"]), 0);
    let pair = credentials("t1-p256", "a1-p256", "etl");
    for service in ["worker", "thief"] {
        worker.peer = Some(peer(service, "1", 3600));
        assert_eq!(worker.ask(&pair, 1), "wait");
    }
    worker.peer = None;
    assert_eq!(worker.ask(&pair, 1), "peer_missing", "who has no peer waits for nothing");
    worker.bring("policy", &policy_of_workers(), 1);
    worker.tick(1);
    let decided: Vec<_> = worker.decided.iter().map(|(_, code)| code.as_str()).collect();
    assert_eq!(decided, ["permit", "peer_not_allowed"]);
}

#[test]
fn a_new_agreement_is_put_to_known_callers() {
    let mut worker = ready();
    let pair = credentials("t1-p256", "a1-p256", "etl");
    assert_eq!(worker.ask(&pair, 1), "permit");
    worker.tick(6);
    let mut policy: Value = serde_json::from_slice(&policy_of_workers()).unwrap();
    policy["agreement"][0]["may_assert"] = json!({ "dags": ["other"] });
    worker.bring("policy", policy.to_string().as_bytes(), 6);
    assert_eq!(worker.ask(&pair, 7), "assertion_not_allowed");
}
