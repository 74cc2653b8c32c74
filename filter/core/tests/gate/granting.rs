//! Temporary grants in the gate: how they come, how they go, and that nobody ever waits for them.

use std::cell::Cell;
use std::rc::Rc;

use airflow_envoy_core::feed::{Answer, Response};
use airflow_envoy_core::gate::{Effect, Gate, Host, Verdict};
use airflow_envoy_core::jose::{Algorithm, PublicKey, RustCrypto, SignatureVerifier};
use airflow_envoy_corpus::{mint, public_key};
use serde_json::{Value, json};

use crate::process::Process;
use crate::worker::*;

const ON_CALL: &str = "oncall-ed25519";

/// A configuration with a source of grants.
fn granting() -> Value {
    let mut configuration = configuration();
    configuration["policy"]["grants"] =
        json!({"http": {"cluster": "grants", "uri": "http://g/g.json"}, "max_age": "30s"});
    configuration["status"] = json!({"path": "/status"});
    configuration
}

/// A policy by which nobody is allowed anything until somebody with the key `approver` grants it.
fn grantable(approver: &str) -> Vec<u8> {
    json!({
        "version": 1,
        "destinations": {"orders": {"hosts": ["orders.internal"]}},
        "approvers": {"on-call": {"keys": [public_key(approver).unwrap()]}},
        "grantable": [{
            "id": "orders-read", "from": {"dags": ["et*"]}, "to": ["orders"],
            "max_duration": "1d", "approvers": ["on-call"],
        }],
        "rules": [],
    })
    .to_string()
    .into_bytes()
}

/// A grant to the DAG `etl` from now on.
fn grant(id: &str, seconds: i64) -> String {
    let claims = json!({
        "version": 1, "id": id, "grantable": "orders-read", "from": {"dags": ["etl"]},
        "reason": "r", "granted_by": "ada", "iat": NOW, "nbf": NOW, "exp": NOW + seconds,
    });
    signed_by(ON_CALL, &claims)
}

fn signed_by(key: &str, claims: &Value) -> String {
    let credential = credential(json!({
        "algorithm": "EdDSA", "key": key, "header": {"typ": "airflow-grant+jws"},
        "claims_text": claims.to_string(),
    }));
    mint(&credential, NOW, None).unwrap()
}

fn document(grants: &[String]) -> Vec<u8> {
    json!({"version": 1, "grants": grants}).to_string().into_bytes()
}

fn process(workers: usize, grants: &[String]) -> Process {
    let mut process = Process::start(workers, granting());
    process.serve("policy", 200, grantable(ON_CALL));
    process.served.push(("grants", 200, document(grants)));
    process
}

fn pair() -> (String, String) {
    credentials("t1-p256", "a1-p256", "etl")
}

fn status(gate: &mut Gate, seconds: i64) -> (u16, Value) {
    let reply = gate.status(at(seconds)).reply("GET");
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    let sources = body["sources"].as_array().unwrap();
    (reply.status, sources.iter().find(|source| source["kind"] == "grants").unwrap().clone())
}

#[test]
fn a_grant_acts_on_all_workers_is_told_by_the_permit_and_ends_by_itself() {
    let mut process = process(3, &[]);
    process.tick(0);
    process.callouts.sort();
    assert_eq!(process.callouts, ["airflow", "grants", "idp", "policy"], "one fetches for all");
    assert_eq!(process.ask_all(&pair(), 0), process.all("policy_no_match"));
    process.serve("grants", 200, document(&[grant("g-1", 30)]));
    process.tick(6);
    // Whoever does not fetch loads at its next request.
    assert_eq!(process.ask_all(&pair(), 6), process.all("permit"));
    assert_eq!(process.gauges["grants.active"], 1);
    let Verdict::Permit(permit) = process.workers[1].verdict(&pair(), &[], 6) else {
        panic!("refused")
    };
    assert_eq!((permit.rule(), permit.grant()), ("orders-read", Some("g-1")));
    assert_eq!(status(&mut process.workers[2].gate, 6).1["count"], 1);
    assert_eq!(process.ask_all(&pair(), 29), process.all("permit"));
    // Nothing happens at its end, and nothing needs to.
    assert_eq!(process.ask_all(&pair(), 30), process.all("policy_no_match"));
    process.tick(31);
    assert_eq!(process.gauges["grants.active"], 0);
    assert_eq!(status(&mut process.workers[2].gate, 31).1["count"], 0);
}

#[test]
fn a_grant_that_is_taken_out_is_revoked_on_all_workers() {
    let mut process = process(3, &[grant("g-1", 300)]);
    process.tick(0);
    assert_eq!(process.ask_all(&pair(), 0), process.all("permit"));
    process.serve("grants", 200, document(&[]));
    process.tick(6);
    assert_eq!(process.ask_all(&pair(), 6), process.all("policy_no_match"));
    assert!(process.log.iter().any(|line| line == "policy `grants` loaded: 0 grants"));
}

#[test]
fn no_request_waits_for_grants_and_none_is_refused_for_want_of_them() {
    let mut worker = Worker::new(&granting());
    worker.tick(0);
    worker.bring("idp", &keys(&["t1-p256"]), 0);
    worker.bring("airflow", &keys(&["a1-p256"]), 0);
    worker.bring("policy", &policy("etl"), 0);
    assert_eq!(worker.ask(&pair(), 0), "permit");
    let (code, source) = status(&mut worker.gate, 0);
    assert_eq!((code, &source["ready"]), (200, &json!(false)));
    worker.fail("grants", 1);
    assert_eq!(worker.ask(&pair(), 1), "permit");
    let other = credentials("t1-p256", "a1-p256", "other");
    assert_eq!(worker.ask(&other, 1), "policy_no_match");
}

/// A store that is down can only withhold.
#[test]
fn grants_that_could_not_be_confirmed_for_too_long_permit_nothing() {
    let mut process = process(2, &[grant("g-1", 3600)]);
    process.tick(0);
    for (status, body) in [(500, Vec::new()), (200, b"<html>".to_vec())] {
        process.serve("grants", status, body);
        process.tick(15);
    }
    assert_eq!(process.ask_all(&pair(), 30), process.all("permit"), "the last good one stays");
    assert_eq!(process.ask_all(&pair(), 31), process.all("policy_no_match"));
    process.serve("grants", 200, document(&[grant("g-1", 3600)]));
    process.tick(50);
    assert_eq!(process.ask_all(&pair(), 50), process.all("permit"));
}

#[test]
fn a_bad_grant_is_told_once_and_counted_once_and_spoils_nothing() {
    let mallory = json!({
        "version": 1, "id": "g-bad", "grantable": "orders-read", "from": {"dags": ["*"]},
        "reason": "r", "granted_by": "m", "iat": NOW, "nbf": NOW, "exp": NOW + 60,
    });
    let bad = signed_by("mallory-ed25519", &mallory);
    let mut process = process(3, &[bad.clone(), grant("g-1", 600)]);
    process.tick(0);
    // Another document with the same bad one in it, and another policy, tell nothing new.
    process.serve("grants", 200, document(&[grant("g-1", 600), grant("g-2", 600), bad]));
    process.tick(6);
    process.tick(7);
    assert_eq!(process.ask_all(&pair(), 7), process.all("permit"));
    let refused = process.counts.iter().filter(|name| *name == "grants.refused").count();
    let told: Vec<_> = process.log.iter().filter(|line| line.contains("g-bad")).collect();
    assert_eq!(
        told,
        [
            "policy `grants`: grants[0] `g-bad`: the key `mallory-ed25519` is of none of the approvers of \
             `orders-read`: `on-call`",
        ]
    );
    assert_eq!(refused, 1);
}

#[test]
fn a_policy_without_the_approver_ends_the_grants_at_once() {
    let mut process = process(3, &[grant("g-1", 600)]);
    process.tick(0);
    assert_eq!(process.ask_all(&pair(), 0), process.all("permit"));
    process.serve("policy", 200, grantable("next-ed25519"));
    process.tick(6);
    assert_eq!(process.ask_all(&pair(), 6), process.all("policy_no_match"));
    process.serve("policy", 200, grantable(ON_CALL));
    process.tick(12);
    assert_eq!(process.ask_all(&pair(), 12), process.all("permit"), "and begins them again");
}

/// Counts what it is asked.
struct Counting(Rc<Cell<usize>>);

impl SignatureVerifier for Counting {
    fn verify(&self, key: &PublicKey, by: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.0.set(self.0.get() + 1);
        RustCrypto.verify(key, by, message, signature)
    }
}

#[test]
fn of_many_grants_few_are_verified_at_once_and_each_only_once() {
    let asked = Rc::new(Cell::new(0));
    let mut host = Host::alone(Box::new(RustCrypto));
    host.verifier = Box::new(Counting(Rc::clone(&asked)));
    let gate = Gate::new(granting().to_string().as_bytes(), host).unwrap();
    let mut worker = Worker { gate, peer: None, asked: 0, fetches: vec![], decided: vec![] };
    worker.tick(0);
    worker.bring("policy", &grantable(ON_CALL), 0);
    let mut grants: Vec<_> = (0..99).map(|number| grant(&format!("g-{number}"), 600)).collect();
    worker.bring("grants", &document(&grants), 0);
    assert_eq!((asked.get(), status(&mut worker.gate, 0).1["count"].as_u64()), (32, Some(32)));
    let mut seen = Vec::new();
    for _ in 0..5 {
        worker.tick(0);
        seen.push((asked.get(), status(&mut worker.gate, 0).1["count"].as_u64().unwrap()));
    }
    assert_eq!(seen, [(64, 64), (96, 96), (99, 99), (99, 99), (99, 99)]);
    // One more costs one more, whatever else changes.
    grants.insert(7, grant("one-more", 600));
    worker.tick(6);
    worker.bring("grants", &document(&grants), 6);
    worker.bring("policy", &grantable(ON_CALL), 6);
    assert_eq!((asked.get(), status(&mut worker.gate, 6).1["count"].as_u64()), (100, Some(100)));
}

#[test]
fn grants_may_stand_in_the_configuration() {
    let mut configuration = granting();
    configuration["policy"]["grants"] =
        json!({"inline": {"version": 1, "grants": [grant("g-1", 50), "a.b.c"]}});
    let gate = |configuration: &Value| {
        Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(RustCrypto)))
    };
    let mut worker = Worker::new(&configuration);
    let effects = worker.gate.tick(at(0));
    worker.take(effects);
    worker.bring("idp", &keys(&["t1-p256"]), 0);
    worker.bring("airflow", &keys(&["a1-p256"]), 0);
    let feed = worker.under_way("policy");
    let answer =
        Answer::Http(Response { status: 200, body: grantable(ON_CALL), ..Response::default() });
    let effects = worker.gate.answered(feed, answer, at(0));
    let told = effects.iter().filter(
        |effect| matches!(effect, Effect::Log(_, line) if line.starts_with("policy `grants`: grants[1]: the header")),
    );
    assert_eq!(told.count(), 1, "when there is a policy to judge it by");
    assert_eq!(worker.ask(&pair(), 49), "permit");
    assert_eq!(worker.ask(&pair(), 50), "policy_no_match");
    for (grants, problem) in [
        (json!({"inline": {"version": 1}}), "policy.grants.inline: `grants` is missing"),
        (json!({}), "policy.grants: needs exactly one of `inline`, `http` and `consul_kv`"),
        (
            json!({"inline": {"version": 1, "grants": []}, "name": "x"}),
            "policy.grants: unknown field `name`",
        ),
        (
            json!({"http": {"cluster": "g", "uri": "g"}}),
            "policy.grants.http.uri: `g` is not an absolute http or https URI",
        ),
    ] {
        configuration["policy"]["grants"] = grants;
        let faults = gate(&configuration).unwrap_err().to_string();
        assert!(faults.starts_with(problem), "{faults}");
    }
    let mut configuration = granting();
    configuration["policy"]["sources"][0]["name"] = json!("grants");
    assert_eq!(
        gate(&configuration).unwrap_err().to_string(),
        "policy.grants: is called `grants` in logs and metrics, and that name is taken"
    );
}

/// What only watches passes what a grant permits without a word, and the rest as before.
#[test]
fn in_shadow_mode_a_grant_is_a_permit_too() {
    let mut configuration = granting();
    configuration["mode"] = json!("shadow");
    let mut worker = Worker::new(&configuration);
    worker.tick(0);
    worker.bring("idp", &keys(&["t1-p256"]), 0);
    worker.bring("airflow", &keys(&["a1-p256"]), 0);
    worker.bring("policy", &grantable(ON_CALL), 0);
    assert_eq!(worker.ask(&pair(), 0), "pass:policy_no_match");
    worker.bring("grants", &document(&[grant("g-1", 50)]), 0);
    assert_eq!(worker.ask(&pair(), 1), "permit");
    assert_eq!(worker.ask(&pair(), 50), "pass:policy_no_match");
}
