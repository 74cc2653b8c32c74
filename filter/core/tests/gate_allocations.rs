//! What a request that is known already takes from the allocator, end to end through the gate.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use airflow_envoy_core::arrival::{Arrival, DecisionId, StreamId};
use airflow_envoy_core::gate::{Gate, Host, Verdict};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::{Credential, mint, public_key};
use serde_json::{Value, json};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: it only counts and leaves the work to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const NOW: i64 = 1_795_262_400;

fn gate() -> Gate {
    let issuer = |name: &str, key: &str| {
        json!({
            "name": name, "issuer": format!("https://{name}.example"), "audiences": ["orders"],
            "algorithms": ["ES256"], "jwks": { "inline": { "keys": [public_key(key).unwrap()] } }
        })
    };
    let configuration = json!({
        "issuers": [issuer("idp", "t1-p256")],
        "airflow": { "issuers": [issuer("airflow", "a1-p256")] },
        "policy": { "sources": [{ "name": "main", "inline": {
            "version": 1, "destinations": { "orders": { "hosts": ["orders.internal"] } },
            "rules": [{ "id": "etl-reads", "effect": "allow", "from": { "dags": ["etl"] }, "to": ["orders"] }]
        } }] }
    });
    Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(RustCrypto))).unwrap()
}

fn credentials() -> (String, String) {
    let signed = |key: &str, header: &str, claims: Value, token: Option<&str>| {
        let credential: Credential = serde_json::from_value(json!({
            "algorithm": "ES256", "key": key, "header": { "typ": header }, "claims": claims
        }))
        .unwrap();
        mint(&credential, NOW, token).unwrap()
    };
    let claims =
        json!({ "iss": "https://idp.example", "aud": "orders", "sub": "airflow", "exp": "+300" });
    let token = signed("t1-p256", "at+jwt", claims, None);
    let claims = json!({
        "iss": "https://airflow.example", "aud": "orders", "sub": "airflow:etl/load", "iat": "+0", "exp": "+60",
        "ath": "$ath", "airflow": { "dag_id": "etl", "task_id": "load", "run_id": "r", "try_number": 1 }
    });
    let identity = signed("a1-p256", "airflow-task+jwt", claims, Some(&token));
    (token, identity)
}

// One test, because the allocator counts for all that run.
#[test]
fn a_known_caller_costs_no_allocation() {
    let mut gate = gate();
    let (token, identity) = credentials();
    let bearer = format!("Bearer {token}");
    let usual: [(&[u8], &[u8]); 7] = [
        (b":method", b"GET"),
        (b":authority", b"orders.internal"),
        (b":path", b"/v1/orders/7?page=2"),
        (b":scheme", b"http"),
        (b"x-request-id", b"7c2f0a9e"),
        (b"authorization", bearer.as_bytes()),
        (b"x-airflow-identity", identity.as_bytes()),
    ];
    let named: [(&[u8], &[u8]); 1] = [(b"x-airflow-dag-id", b"etl")];
    let unusual: [(&[u8], &[u8]); 1] = [(b"x-airflow-anything", b"1")];
    for (more, expected, edited) in [
        (&[][..], 0, 8),
        // It says what was verified, so it stays.
        (&named, 0, 7),
        // Its name, and the list of such names, while it is read and while it is taken away.
        (&unusual, 3, 9),
    ] {
        let headers = [&usual, more].concat();
        // The fewest of several: the test harness has a thread of its own.
        let fewest = (1..20).map(|number| {
            let arrival = Arrival {
                stream: StreamId(number),
                headers: &headers,
                peer: None,
                now: UnixTime::from_secs(NOW + 1),
                decision_id: DecisionId::new(1, number.into()),
            };
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let verdict = gate.request(&arrival);
            let Verdict::Permit(permit) = verdict else { panic!("{verdict:?}") };
            let edits = permit.remove().count() + permit.set().count();
            drop(permit);
            gate.gone(StreamId(number));
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(edits, edited);
            allocations
        });
        assert_eq!(fewest.min(), Some(expected));
    }
}
