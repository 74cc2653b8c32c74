//! What is remembered of callers takes the memory that it is said to take: the bound on the bytes of a cache is one.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use airflow_envoy_core::arrival::{Arrival, DecisionId, StreamId};
use airflow_envoy_core::gate::{Gate, Host, Verdict};
use airflow_envoy_core::identity::access_token_hash;
use airflow_envoy_core::jose::{Algorithm, PublicKey, SignatureVerifier};
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::public_key;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: it only counts and leaves the work to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() + OVERHEAD, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() + OVERHEAD, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What an allocator adds to each allocation.
const OVERHEAD: usize = 8;

const NOW: i64 = 1_795_262_400;

/// Of sessions, of access tokens, of identities: each.
const MOST: usize = 24 * 1024 * 1024;

/// Signatures cost too much here, and are of no interest.
struct Believing;

impl SignatureVerifier for Believing {
    fn verify(&self, _: &PublicKey, _: Algorithm, _: &[u8], _: &[u8]) -> bool {
        true
    }
}

fn gate(airflow: &Value) -> Gate {
    let configuration = json!({
        "issuers": [{
            "name": "idp", "issuer": "https://idp.example", "audiences": ["orders"],
            "jwks": { "inline": { "keys": [public_key("t1-p256").unwrap()] } }
        }],
        "airflow": airflow,
        "policy": { "sources": [{ "name": "main", "inline": {
            "version": 1, "destinations": { "orders": { "hosts": ["orders.internal"] } },
            "rules": [{ "id": "all", "effect": "allow", "to": ["orders"] }]
        } }] },
    });
    Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(Believing))).unwrap()
}

/// What nobody signed.
fn jws(number: u32, token_type: &str, key: &str, payload: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(&json!({ "alg": "ES256", "typ": token_type, "kid": key }));
    let mut signature = [7; 64];
    signature[60..].copy_from_slice(&number.to_be_bytes());
    format!("{header}.{}.{}", part(payload), URL_SAFE_NO_PAD.encode(signature))
}

/// An access token with `groups` groups and `claims` claims besides.
fn token(number: u32, groups: usize, claims: usize) -> String {
    let groups: Vec<String> = (0..groups).map(|group| format!("group-{group}")).collect();
    let mut payload = json!({
        "iss": "https://idp.example", "aud": "orders", "exp": NOW + 300, "iat": NOW, "sub": format!("s-{number}"),
        "client_id": "airflow", "groups": groups,
    });
    for claim in 0..claims {
        payload[format!("claim_{claim}")] = json!({ "value": claim, "text": "of some length" });
    }
    jws(number, "at+jwt", "t1-p256", &payload)
}

/// The two credentials of a task of Airflow, as they usually are.
fn usual(number: u32) -> (String, String) {
    let token = token(number, 4, 5);
    let id = format!("01939d5c-0000-7000-8000-{number:012}");
    let payload = json!({
        "iss": "https://airflow.example", "aud": "orders", "iat": NOW, "nbf": NOW, "exp": NOW + 60, "jti": id,
        "sub": "airflow:ds_churn/load", "ath": access_token_hash(token.as_bytes()),
        "airflow": {
            "dag_id": "ds_churn", "task_id": "load", "run_id": "scheduled__2026-11-21T00:00:00+00:00", "map_index": -1,
            "try_number": 1, "ti_id": id, "state": "running", "queue": "default", "owners": ["data-science"],
            "tags": ["churn", "daily"], "roles": ["DataScience"], "team": "data-science", "run_type": "scheduled",
        },
    });
    let identity = jws(number, "airflow-task+jwt", "a1-p256", &payload);
    (token, identity)
}

fn ask(gate: &mut Gate, number: u32, token: &str, identity: Option<&str>) {
    let bearer = format!("Bearer {token}");
    let mut headers: Vec<(&[u8], &[u8])> = vec![
        (b":method", b"GET"),
        (b":authority", b"orders.internal"),
        (b":scheme", b"https"),
        (b":path", b"/v1"),
        (b"authorization", bearer.as_bytes()),
    ];
    headers.extend(identity.map(|identity| (&b"x-airflow-identity"[..], identity.as_bytes())));
    let verdict = gate.request(&Arrival {
        stream: StreamId(number),
        peer: None,
        headers: &headers,
        now: UnixTime::from_secs(NOW),
        decision_id: DecisionId::new(1, number.into()),
    });
    assert!(matches!(verdict, Verdict::Permit(_)), "{verdict:?}");
}

fn remembered(gate: &Gate, of: &str) -> usize {
    let levels = gate.levels(UnixTime::from_secs(NOW));
    levels.iter().find(|(name, _)| *name == format!("remembered.{of}")).unwrap().1
}

// One test, because the allocator counts for all that run.
#[test]
fn what_is_remembered_of_callers_weighs_what_it_takes() {
    only_tokens();
    both_credentials();
}

fn only_tokens() {
    for (groups, claims) in [(3, 4), (150, 0), (0, 40)] {
        let mut gate = gate(&json!({ "identity": "off" }));
        let before = LIVE.load(Ordering::Relaxed);
        let mut most = 0;
        for number in 0..14_000 {
            ask(&mut gate, number, &token(number, groups, claims), None);
            if number % 50 == 0 {
                let grown = LIVE.load(Ordering::Relaxed).saturating_sub(before);
                most = most.max(grown);
            }
        }
        let (sessions, tokens) = (remembered(&gate, "sessions"), remembered(&gate, "tokens"));
        println!(
            "{groups} groups, {claims} claims: {most} bytes at most, {sessions} sessions, {tokens} tokens"
        );
        // A session shares the claims of its token and the token itself: the two caches together take less than twice
        // the bound of one.
        let bound = MOST * 2;
        assert!(most <= bound, "{most} bytes, where {bound} are the bound");
        // Where the bytes are the bound and not the number, they are used.
        if sessions < 4_096 && tokens < 4_096 {
            assert!(most > MOST * 6 / 10, "{most} bytes, where {MOST} may be used");
        }
        assert!(sessions > 300 && tokens > 300, "{sessions} {tokens}");
    }
}

fn both_credentials() {
    const CALLERS: u32 = 1_000;
    let mut gate = gate(&json!({ "issuers": [{
        "name": "airflow", "issuer": "https://airflow.example", "audiences": ["orders"],
        "jwks": { "inline": { "keys": [public_key("a1-p256").unwrap()] } }
    }] }));
    let callers: Vec<_> = (0..CALLERS).map(usual).collect();
    let before = LIVE.load(Ordering::Relaxed);
    for round in 0..4 {
        for (number, (token, identity)) in (0..).zip(&callers) {
            ask(&mut gate, number, token, Some(identity));
        }
        let tally = gate.take_tally();
        let (hits, verified) = if round == 0 { (0, 2 * CALLERS) } else { (CALLERS, 0) };
        assert_eq!((tally.session_hits, tally.verifications()), (hits.into(), verified.into()));
    }
    let each = (LIVE.load(Ordering::Relaxed) - before) / CALLERS as usize;
    println!("{CALLERS} callers with both credentials: {each} bytes for each");
    // Both credentials are there once, and so are the token's claims: another copy of any is more than this allows.
    // In WebAssembly it is less, because pointers are smaller.
    let credentials = callers[0].0.len() + callers[0].1.len();
    assert!(each < credentials + EACH, "{each} bytes, of which {credentials} are the credentials");
    drop(callers);

    let mut most = 0;
    for number in CALLERS..10 * CALLERS {
        let (token, identity) = usual(number);
        ask(&mut gate, number, &token, Some(&identity));
        most = most.max(LIVE.load(Ordering::Relaxed).saturating_sub(before));
    }
    let [sessions, tokens, identities] =
        ["sessions", "tokens", "identities"].map(|of| remembered(&gate, of));
    println!("{most} bytes at most, {sessions} sessions, {tokens} tokens, {identities} identities");
    assert!(most <= 3 * MOST, "{most} bytes, where {} are the bound", 3 * MOST);
    assert!(sessions > 1_000, "{sessions} sessions");
}

/// What a caller takes besides its credentials, on a machine of 64 bits.
const EACH: usize = 7_600;
