//! What the gate remembers and for how long: sessions, key sets, the policy, waiting requests.
#![expect(
    clippy::expect_used,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test may panic"
)]

use airflow_envoy_core::arrival::{Arrival, DecisionId, StreamId};
use airflow_envoy_core::feed::{Answer, FeedId, Fetch, Response};
use airflow_envoy_core::gate::{Effect, Gate, Host, Verdict};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::{Credential, mint, public_key};
use serde_json::{Value, json};

const NOW: i64 = 1_795_262_400;

fn at(seconds: i64) -> UnixTime {
    UnixTime::from_secs(NOW + seconds)
}

fn configuration() -> Value {
    let issuer = |name: &str| {
        json!({
            "name": name,
            "issuer": format!("https://{name}.example"),
            "audiences": ["orders"],
            "algorithms": ["ES256"],
            "clock_skew": "0",
            "jwks": { "cluster": name, "uri": format!("https://{name}.example/jwks"), "max_age": "1h" }
        })
    };
    json!({
        "issuers": [issuer("idp")],
        "airflow": { "issuers": [issuer("airflow")] },
        "policy": {
            "sources": [{ "name": "main", "http": { "cluster": "policy", "uri": "http://p/p.json" } }],
            "max_age": "10m"
        },
        "waiting": { "requests": 2, "time": "2s" }
    })
}

fn policy(dag: &str) -> Vec<u8> {
    json!({
        "version": 1,
        "destinations": { "orders": { "hosts": ["orders.internal"] } },
        "rules": [{ "id": "one-dag", "effect": "allow", "from": { "dags": [dag] }, "to": ["orders"] }]
    })
    .to_string()
    .into_bytes()
}

fn keys(names: &[&str]) -> Vec<u8> {
    let keys: Vec<_> = names.iter().map(|name| public_key(name).unwrap()).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

fn credential(value: Value) -> Credential {
    serde_json::from_value(value).unwrap()
}

/// An access token and an identity bound to it, both signed by keys of these names.
fn credentials(token_key: &str, identity_key: &str, dag: &str) -> (String, String) {
    let token = credential(json!({
        "algorithm": "ES256", "key": token_key, "header": { "typ": "at+jwt" },
        "claims": { "iss": "https://idp.example", "aud": "orders", "sub": "airflow", "exp": "+300" }
    }));
    let token = mint(&token, NOW, None).unwrap();
    let identity = credential(json!({
        "algorithm": "ES256", "key": identity_key, "header": { "typ": "airflow-task+jwt" },
        "claims": {
            "iss": "https://airflow.example", "aud": "orders", "sub": format!("airflow:{dag}/load"),
            "iat": "+0", "exp": "+60", "ath": "$ath",
            "airflow": { "dag_id": dag, "task_id": "load", "run_id": "r", "try_number": 1 }
        }
    }));
    let identity = mint(&identity, NOW, Some(&token)).unwrap();
    (token, identity)
}

struct Worker {
    gate: Gate,
    asked: u32,
    fetches: Vec<Fetch>,
    /// Verdicts on requests that waited: stream and code, or `permit`.
    decided: Vec<(u32, String)>,
}

impl Worker {
    fn new(configuration: &Value) -> Self {
        let gate =
            Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(RustCrypto)))
                .unwrap();
        Self { gate, asked: 0, fetches: Vec::new(), decided: Vec::new() }
    }

    /// With keys `t1`, `a1` and a policy for the DAG `etl`.
    fn ready() -> Self {
        let mut worker = Self::new(&configuration());
        worker.tick(0);
        worker.bring("idp", &keys(&["t1-p256"]), 0);
        worker.bring("airflow", &keys(&["a1-p256"]), 0);
        worker.bring("policy", &policy("etl"), 0);
        worker
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Fetch(fetch) => self.fetches.push(fetch),
                Effect::Decide(StreamId(stream), verdict) => {
                    self.decided.push((stream, code(&verdict)));
                }
                Effect::Log(..) | Effect::Count(_) | Effect::Gauge(..) => {}
            }
        }
    }

    fn tick(&mut self, seconds: i64) {
        let effects = self.gate.tick(at(seconds));
        self.take(effects);
    }

    fn under_way(&mut self, cluster: &str) -> FeedId {
        let index = self.fetches.iter().position(|fetch| fetch.cluster == cluster);
        self.fetches.remove(index.expect(cluster)).feed
    }

    fn bring(&mut self, cluster: &str, body: &[u8], seconds: i64) {
        let answer =
            Answer::Http(Response { status: 200, body: body.to_vec(), ..Response::default() });
        let feed = self.under_way(cluster);
        let effects = self.gate.answered(feed, answer, at(seconds));
        self.take(effects);
    }

    fn ask(&mut self, credentials: &(String, String), seconds: i64) -> String {
        let (token, identity) = credentials;
        let bearer = format!("Bearer {token}");
        self.asked += 1;
        code(&self.gate.request(&Arrival {
            stream: StreamId(self.asked),
            headers: &[
                (b":method", b"GET"),
                (b":authority", b"orders.internal"),
                (b":path", b"/v1"),
                (b"authorization", bearer.as_bytes()),
                (b"x-airflow-identity", identity.as_bytes()),
            ],
            now: at(seconds),
            decision_id: DecisionId::new(1, self.asked.into()),
        }))
    }
}

fn code(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Permit(_) => "permit".to_owned(),
        Verdict::Reject(rejection) => rejection.reject.code.name().to_owned(),
        Verdict::Wait => "wait".to_owned(),
    }
}

#[test]
fn a_pair_of_credentials_is_verified_once() {
    let mut worker = Worker::ready();
    let pair = credentials("t1-p256", "a1-p256", "etl");
    for _ in 0..5 {
        assert_eq!(worker.ask(&pair, 1), "permit");
    }
    let tally = worker.gate.take_tally();
    assert_eq!((tally.verifications, tally.session_hits, tally.permits), (2, 4, 5));
}

#[test]
fn a_token_that_many_tasks_share_is_verified_once() {
    let mut worker = Worker::ready();
    let first = credentials("t1-p256", "a1-p256", "etl");
    assert_eq!(worker.ask(&first, 1), "permit");
    let other = credentials("t1-p256", "a1-p256", "other");
    assert_eq!(first.0, other.0, "minting is deterministic, so it is the same token");
    assert_eq!(worker.ask(&other, 1), "policy_no_match");
    let tally = worker.gate.take_tally();
    assert_eq!((tally.verifications, tally.credential_hits), (3, 1));
}

#[test]
fn what_is_remembered_expires_to_the_second() {
    let mut worker = Worker::ready();
    let pair = credentials("t1-p256", "a1-p256", "etl");
    assert_eq!(worker.ask(&pair, 59), "permit");
    assert_eq!(worker.ask(&pair, 60), "identity_expired");
    assert_eq!(worker.ask(&pair, 59), "permit");
    assert_eq!(worker.ask(&pair, 300), "token_expired");
}

#[test]
fn a_remembered_token_is_no_use_with_another_identity_or_without() {
    let mut worker = Worker::ready();
    let (token, identity) = credentials("t1-p256", "a1-p256", "etl");
    assert_eq!(worker.ask(&(token.clone(), identity.clone()), 1), "permit");
    let other_token = mint(
        &credential(json!({
            "algorithm": "ES256", "key": "t1-p256", "header": { "typ": "at+jwt" },
            "claims": { "iss": "https://idp.example", "aud": "orders", "sub": "x", "exp": "+300" }
        })),
        NOW,
        None,
    )
    .unwrap();
    assert_eq!(worker.ask(&(other_token, identity.clone()), 1), "identity_binding_unmet");
    let tampered = format!("{}A", &token[..token.len() - 1]);
    assert_ne!(worker.ask(&(tampered, identity), 1), "permit");
}

#[test]
fn a_withdrawn_key_stops_its_tokens_and_its_identities_at_once() {
    for (cluster, old, new, refused) in [
        ("idp", "t1-p256", "t2-p256", "token_key_unknown"),
        ("airflow", "a1-p256", "a2-p256", "identity_key_unknown"),
    ] {
        let mut worker = Worker::ready();
        let pair = credentials("t1-p256", "a1-p256", "etl");
        assert_eq!(worker.ask(&pair, 1), "permit");
        worker.tick(301);
        worker.bring(cluster, &keys(&[old, new]), 2);
        assert_eq!(worker.ask(&pair, 2), "permit", "both keys are good while they rotate");
        worker.tick(700);
        worker.bring(cluster, &keys(&[new]), 3);
        assert_eq!(worker.ask(&pair, 3), refused);
    }
}

#[test]
fn a_new_policy_acts_on_the_next_request_of_a_remembered_caller() {
    let mut worker = Worker::ready();
    let pair = credentials("t1-p256", "a1-p256", "etl");
    assert_eq!(worker.ask(&pair, 1), "permit");
    worker.tick(5);
    worker.bring("policy", &policy("other"), 5);
    assert_eq!(worker.ask(&pair, 5), "policy_no_match");
    worker.tick(10);
    worker.bring("policy", b"{}", 10);
    assert_eq!(worker.ask(&pair, 10), "policy_no_match", "an unfit policy changes nothing");
}

#[test]
fn keys_and_policy_that_cannot_be_confirmed_grow_too_old() {
    let mut worker = Worker::ready();
    let token = credential(json!({
        "algorithm": "ES256", "key": "t1-p256", "header": { "typ": "at+jwt" },
        "claims": { "iss": "https://idp.example", "aud": "orders", "exp": "+99999" }
    }));
    let token = mint(&token, NOW, None).unwrap();
    let identity = |exp: &str, iat: &str| {
        let identity = credential(json!({
            "algorithm": "ES256", "key": "a1-p256", "header": { "typ": "airflow-task+jwt" },
            "claims": {
                "iss": "https://airflow.example", "aud": "orders", "sub": "airflow:etl/load",
                "iat": iat, "exp": exp, "ath": "$ath",
                "airflow": { "dag_id": "etl", "task_id": "load", "run_id": "r", "try_number": 1 }
            }
        }));
        mint(&identity, NOW, Some(&token)).unwrap()
    };
    let pair = (token.clone(), identity("+620", "+500"));
    assert_eq!(worker.ask(&pair, 600), "permit");
    assert_eq!(worker.ask(&pair, 601), "wait", "the policy is older than `max_age`");
    worker.tick(604);
    assert_eq!(worker.decided, [(2, "policy_unavailable".to_owned())]);
    worker.bring("policy", &policy("etl"), 604);
    assert_eq!(worker.ask(&pair, 605), "permit");

    let later = (token.clone(), identity("+3700", "+3550"));
    worker.tick(3590);
    worker.bring("policy", &policy("etl"), 3590);
    assert_eq!(worker.ask(&later, 3600), "permit");
    assert_eq!(worker.ask(&later, 3601), "wait", "the keys are older than `max_age`");
    worker.tick(3604);
    assert_eq!(worker.decided.last().unwrap().1, "keys_unavailable");
}

#[test]
fn a_request_waits_for_everything_that_is_missing_and_is_then_decided() {
    let mut worker = Worker::new(&configuration());
    let pair = credentials("t1-p256", "a1-p256", "etl");
    let stranger = credentials("t9-p256", "a1-p256", "etl");
    assert_eq!(worker.ask(&pair, 0), "wait");
    assert_eq!(worker.ask(&stranger, 0), "wait");
    assert_eq!(worker.ask(&pair, 0), "waiting_room_full");
    worker.tick(0);
    worker.bring("idp", &keys(&["t1-p256"]), 0);
    assert_eq!(worker.decided, [(2, "token_key_unknown".to_owned())], "no need to wait any longer");
    worker.bring("policy", &policy("etl"), 1);
    assert_eq!(worker.decided.len(), 1);
    worker.bring("airflow", &keys(&["a1-p256"]), 1);
    assert_eq!(worker.decided[1], (1, "permit".to_owned()));
    assert_eq!(worker.gate.waiting(), 0);
}

#[test]
fn what_no_key_could_help_does_not_wait() {
    let mut worker = Worker::new(&configuration());
    let (token, identity) = credentials("t1-p256", "a1-p256", "etl");
    let garbage = ("not.a.token".to_owned(), identity.clone());
    assert_eq!(worker.ask(&garbage, 0), "token_malformed");
    let (_, payload) = token.split_once('.').unwrap();
    let none = format!("eyJhbGciOiJub25lIn0.{payload}");
    assert_eq!(worker.ask(&(none, identity), 0), "token_algorithm_not_allowed");
}

#[test]
fn without_a_waiting_room_the_answer_is_immediate() {
    for (member, none) in [("time", json!("0")), ("requests", json!(0))] {
        let mut configuration = configuration();
        configuration["waiting"][member] = none;
        let mut worker = Worker::new(&configuration);
        let pair = credentials("t1-p256", "a1-p256", "etl");
        assert_eq!(worker.ask(&pair, 0), "keys_unavailable", "{member}");
    }
}

#[test]
fn a_clock_that_is_set_back_keeps_nobody_waiting() {
    let mut worker = Worker::new(&configuration());
    let pair = credentials("t1-p256", "a1-p256", "etl");
    worker.tick(0);
    assert_eq!(worker.ask(&pair, 0), "wait");
    worker.tick(-3600);
    assert_eq!(worker.decided, [(1, "keys_unavailable".to_owned())]);
}

#[test]
fn a_fat_token_does_not_multiply_by_the_identities_that_share_it() {
    let mut worker = Worker::ready();
    let token = mint(
        &credential(json!({
            "algorithm": "ES256", "key": "t1-p256", "header": { "typ": "at+jwt" },
            "claims": {
                "iss": "https://idp.example", "aud": "orders", "exp": "+300",
                "groups": vec!["g"; 2900]
            }
        })),
        NOW,
        None,
    )
    .unwrap();
    let identity = |number: usize| {
        let identity = credential(json!({
            "algorithm": "ES256", "key": "a1-p256", "header": { "typ": "airflow-task+jwt" },
            "claims": {
                "iss": "https://airflow.example", "aud": "orders", "sub": "airflow:etl/load",
                "iat": "+0", "exp": "+60", "ath": "$ath",
                "airflow": { "dag_id": "etl", "task_id": "load", "run_id": number.to_string(), "try_number": 1 }
            }
        }));
        mint(&identity, NOW, Some(&token)).unwrap()
    };
    // Half of the cache's 16 MiB, for the young generation, holds some 500 of such tokens.
    let first = (token.clone(), identity(0));
    assert_eq!(worker.ask(&first, 1), "permit");
    for number in 1..1200 {
        assert_eq!(worker.ask(&(token.clone(), identity(number)), 1), "permit");
    }
    worker.gate.take_tally();
    assert_eq!(worker.ask(&first, 1), "permit");
    assert_eq!(worker.gate.take_tally().session_hits, 0, "the session was dropped, not kept");
}

#[test]
fn an_answer_that_nobody_asked_for_changes_nothing() {
    let mut worker = Worker::ready();
    let pair = credentials("t1-p256", "a1-p256", "etl");
    worker.tick(5);
    let feed = worker.under_way("policy");
    for answer in [Answer::None, Answer::TooLarge { bytes: 1 << 30 }] {
        worker.gate.answered(feed, answer, at(5));
        assert_eq!(worker.ask(&pair, 5), "permit");
    }
}
