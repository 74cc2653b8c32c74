//! What is remembered of callers takes the memory that it is said to take: the bound on the bytes of a cache is one.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use airflow_envoy_core::arrival::{Arrival, DecisionId, StreamId};
use airflow_envoy_core::gate::{Gate, Host, Verdict};
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

/// Of sessions, and of access tokens.
const MOST: usize = 2 * 24 * 1024 * 1024;

/// Signatures cost too much here, and are of no interest.
struct Believing;

impl SignatureVerifier for Believing {
    fn verify(&self, _: &PublicKey, _: Algorithm, _: &[u8], _: &[u8]) -> bool {
        true
    }
}

fn gate() -> Gate {
    let configuration = json!({
        "issuers": [{
            "name": "idp", "issuer": "https://idp.example", "audiences": ["orders"],
            "jwks": { "inline": { "keys": [public_key("t1-p256").unwrap()] } }
        }],
        "airflow": { "identity": "off" },
        "policy": { "sources": [{ "name": "main", "inline": {
            "version": 1, "destinations": { "orders": { "hosts": ["orders.internal"] } },
            "rules": [{ "id": "all", "effect": "allow", "to": ["orders"] }]
        } }] },
    });
    Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(Believing))).unwrap()
}

/// A caller whose token has `groups` groups and `claims` claims besides.
fn ask(gate: &mut Gate, number: u32, groups: usize, claims: usize) {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({ "alg": "ES256", "typ": "at+jwt", "kid": "t1-p256" }));
    let groups: Vec<String> = (0..groups).map(|group| format!("group-{group}")).collect();
    let mut payload = json!({
        "iss": "https://idp.example", "aud": "orders", "exp": NOW + 300, "iat": NOW, "sub": format!("s-{number}"),
        "client_id": "airflow", "groups": groups,
    });
    for claim in 0..claims {
        payload[format!("claim_{claim}")] = json!({ "value": claim, "text": "of some length" });
    }
    let mut signature = [7; 64];
    signature[60..].copy_from_slice(&number.to_be_bytes());
    let bearer = format!("Bearer {header}.{}.{}", part(payload), URL_SAFE_NO_PAD.encode(signature));
    let verdict = gate.request(&Arrival {
        stream: StreamId(number),
        peer: None,
        headers: &[
            (b":method", b"GET"),
            (b":authority", b"orders.internal"),
            (b":scheme", b"https"),
            (b":path", b"/v1"),
            (b"authorization", bearer.as_bytes()),
        ],
        now: UnixTime::from_secs(NOW),
        decision_id: DecisionId::new(1, number.into()),
    });
    assert!(matches!(verdict, Verdict::Permit(_)), "{verdict:?}");
}

// One test, because the allocator counts for all that run.
#[test]
fn what_is_remembered_of_callers_weighs_what_it_takes() {
    for (groups, claims) in [(3, 4), (150, 0), (0, 40)] {
        let mut gate = gate();
        let before = LIVE.load(Ordering::Relaxed);
        let mut most = 0;
        for number in 0..14_000 {
            ask(&mut gate, number, groups, claims);
            if number % 50 == 0 {
                let grown = LIVE.load(Ordering::Relaxed).saturating_sub(before);
                most = most.max(grown);
            }
        }
        let remembered = gate.levels(UnixTime::from_secs(NOW));
        let count = |name| remembered.iter().find(|(known, _)| *known == name).unwrap().1;
        let (sessions, tokens) = (count("remembered.sessions"), count("remembered.tokens"));
        println!(
            "{groups} groups, {claims} claims: {most} bytes at most, {sessions} sessions, {tokens} tokens"
        );
        assert!(most <= MOST + MOST / 20, "{most} bytes, where {MOST} are the bound");
        // Where the bytes are the bound and not the number, they are used.
        if sessions < 4_096 && tokens < 4_096 {
            assert!(most > MOST * 6 / 10, "{most} bytes, where {MOST} may be used");
        }
        assert!(sessions > 300 && tokens > 300, "{sessions} {tokens}");
    }
}
