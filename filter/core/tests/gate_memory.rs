//! What anybody can send costs a bounded amount of memory and of fetches, however much of it comes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use airflow_envoy_core::arrival::{Arrival, DecisionId, StreamId};
use airflow_envoy_core::feed::{Answer, Response};
use airflow_envoy_core::gate::{Effect, Gate, Host, Verdict};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::time::{Span, UnixTime};
use airflow_envoy_corpus::public_key;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: it only counts and leaves the work to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const NOW: i64 = 1_795_262_400;

/// A gate whose keys are fetched, and fetched again whenever it asks.
struct Served {
    gate: Gate,
    now: UnixTime,
    asked: u32,
    fetches: usize,
    codes: BTreeMap<&'static str, usize>,
}

impl Served {
    fn new() -> Self {
        let configuration = json!({
            "issuers": [{
                "name": "idp", "issuer": "https://idp.example", "audiences": ["orders"],
                "jwks": { "cluster": "idp", "uri": "https://idp.example/jwks" }
            }],
            "airflow": { "identity": "off" },
            "policy": { "sources": [{ "name": "main", "inline": {
                "version": 1, "destinations": {}, "rules": []
            } }] },
            "waiting": { "requests": 200, "time": "3s" }
        });
        let gate =
            Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(RustCrypto)))
                .unwrap();
        let (now, codes) = (UnixTime::from_secs(NOW), BTreeMap::new());
        let mut served = Self { gate, now, asked: 0, fetches: 0, codes };
        served.pass(Span::ZERO);
        served
    }

    fn pass(&mut self, time: Span) {
        self.now = self.now.plus(time);
        let keys = json!({ "keys": [public_key("t1-p256").unwrap()] }).to_string().into_bytes();
        for effect in self.gate.tick(self.now) {
            match effect {
                Effect::Fetch(fetch) => {
                    self.fetches += 1;
                    let answer = Answer::Http(Response {
                        status: 200,
                        body: keys.clone(),
                        ..Response::default()
                    });
                    for effect in self.gate.answered(fetch.feed, answer, self.now) {
                        self.count(effect);
                    }
                }
                effect => self.count(effect),
            }
        }
    }

    fn count(&mut self, effect: Effect) {
        if let Effect::Decide(_, Verdict::Reject(rejection)) = effect {
            *self.codes.entry(rejection.reject.code.name()).or_default() += 1;
        }
    }

    /// A request with a token that nobody signed, with a claim of that many bytes.
    fn ask(&mut self, key_id: &str, padding: usize) {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "alg": "ES256", "typ": "at+jwt", "kid": key_id }));
        let exp = NOW + 9_000;
        let claims = part(json!({
            "iss": "https://idp.example", "aud": "orders", "exp": exp, "padding": "x".repeat(padding)
        }));
        self.asked += 1;
        // A signature of its own, so that no two tokens are alike.
        let mut signature = [7; 64];
        signature[..4].copy_from_slice(&self.asked.to_be_bytes());
        let bearer = format!("Bearer {header}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature));
        let verdict = self.gate.request(&Arrival {
            stream: StreamId(self.asked),
            headers: &[
                (b":method", b"GET"),
                (b":authority", b"orders.internal"),
                (b":path", b"/v1"),
                (b"authorization", bearer.as_bytes()),
            ],
            peer: None,
            now: self.now,
            decision_id: DecisionId::new(1, self.asked.into()),
        });
        if let Verdict::Reject(rejection) = &verdict {
            *self.codes.entry(rejection.reject.code.name()).or_default() += 1;
        }
    }
}

/// The cache, and what is about it: the waiting room, the maps.
const MOST_FOR_KEYS: usize = 2 * 1024 * 1024;
const MOST_FOR_TOKENS: usize = 5 * 1024 * 1024;

// One test, because the allocator counts for all that run.
#[test]
fn invented_keys_and_forged_signatures_leave_memory_and_fetches_flat() {
    let mut served = Served::new();
    let before = LIVE.load(Ordering::Relaxed);
    for number in 0..50_000 {
        served.ask(&format!("invented-{number:032}"), 0);
        assert!(served.gate.waiting() <= 100, "half of the waiting room");
        if number % 500 == 0 {
            served.pass(Span::from_millis(100));
            let grown = LIVE.load(Ordering::Relaxed).saturating_sub(before);
            assert!(grown < MOST_FOR_KEYS, "{grown} bytes more after {number} keys");
        }
    }
    // In 10 s with 2 s between fetches.
    assert!((4..=7).contains(&served.fetches), "{} fetches", served.fetches);
    assert_eq!(
        served.codes.keys().copied().collect::<Vec<_>>(),
        ["token_key_unknown", "waiting_room_full"]
    );

    for _ in 0..50 {
        served.pass(Span::from_millis(100));
    }
    assert_eq!(served.gate.waiting(), 0);
    let before = LIVE.load(Ordering::Relaxed);
    served.codes.clear();
    // Verification is what takes the time here.
    for number in 0..3_000 {
        served.ask("t1-p256", 4_000);
        let grown = LIVE.load(Ordering::Relaxed).saturating_sub(before);
        assert!(grown < MOST_FOR_TOKENS, "{grown} bytes more after {number} forgeries");
    }
    assert_eq!(served.codes, BTreeMap::from([("token_signature_invalid", 3_000)]));
}
