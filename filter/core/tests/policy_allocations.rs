//! A permit costs no allocation: it is the hot path of every request.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::intentions::{DefaultAction, Intentions, Question, Settings};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::peer::SpiffeId;
use airflow_envoy_core::policy::{Outcome, Policy, PolicySet};
use airflow_envoy_core::time::UnixTime;
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

/// What counts at one time is one test.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn only_a_path_that_had_to_be_changed_is_allocated() {
    let _one = ONE_AT_A_TIME.lock();
    let rules: Vec<Value> = (0..100)
        .map(|number| {
            let effect = if number % 2 == 0 { "allow" } else { "deny" };
            json!({
                "id": format!("rule-{number}"), "effect": effect, "to": ["orders"], "paths": ["/v1/orders/*"],
                "from": {"roles": ["ds"], "dags": [format!("ds_{number}"), format!("team{number}_*")]},
            })
        })
        .collect();
    let document = json!({
        "version": 1, "roles": {"ds": {"any": [{"teams": ["data-science"]}]}},
        "destinations": {"orders": {"hosts": ["orders.internal", "*.orders.internal:8443"]}}, "rules": rules,
    });
    let policy = PolicySet::from(Policy::from_value(&document, &Limits::DEFAULT).unwrap());
    let caller = Caller {
        dags: Fact::one("team42_daily"),
        teams: Fact::one("data-science"),
        ..Caller::default()
    };
    let standing = policy.standing(&caller, None);
    for (authority, target, expected) in [
        ("orders.internal", "/v1/orders/7?page=1", false),
        ("a.orders.internal:8443", "/v1/orders/a:b", false),
        ("orders.internal", "/v1/orders/%37", true),
    ] {
        let call = Call { authority, scheme: "https", method: "GET", target };
        // The fewest of several: the test harness has a thread of its own.
        let fewest = (0..20).map(|_| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let decision =
                policy.decide(&caller, &standing, &call, UnixTime::from_secs(1), &Limits::DEFAULT);
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert!(matches!(decision.outcome, Outcome::Permit { .. }), "{decision:?}");
            allocations
        });
        assert_eq!(fewest.min() != Some(0), expected, "{authority}{target}");
    }
}

#[test]
fn intentions_that_allow_allocate_nothing() {
    let _one = ONE_AT_A_TIME.lock();
    let intention = |source: &str, more: Value| {
        let mut intention = json!({"SourceName": source, "DestinationName": "orders"});
        intention.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        intention
    };
    let permissions = json!({"Permissions": [
        {"Action": "deny", "HTTP": {"PathPrefix": "/v1/admin"}},
        {"Action": "allow", "HTTP": {"PathPrefix": "/v1/", "Methods": ["GET"], "Header": [{"Name": "X-A", "Contains": "b"}]}},
    ]});
    let listed =
        (0..100).map(|number| intention(&format!("s{number}"), json!({"Action": "allow"})));
    let listed: Vec<_> = listed.chain([intention("web", permissions)]).collect();
    let settings = Settings {
        name: "mesh".to_owned(),
        destination: "orders".to_owned(),
        hosts: Vec::new(),
        default: DefaultAction::Deny,
        namespace: "default".to_owned(),
        partition: "default".to_owned(),
        trust_domain: "td.consul".to_owned(),
        jwt_providers: Vec::new(),
        entries: false,
    };
    let document = json!({"orders": listed}).to_string();
    let intentions = Intentions::parse(document.as_bytes(), &settings, &Limits::DEFAULT).unwrap();
    for service in ["s42", "web"] {
        let peer = format!("spiffe://td.consul/ns/default/dc/dc1/svc/{service}");
        let peer = SpiffeId::parse(peer.as_bytes()).unwrap();
        let question = Question {
            peer: Some(&peer),
            method: "GET",
            path: Some("/v1/orders"),
            headers: &[(b"x-a", b"a"), (b"x-a", b"abc")],
            token: None,
        };
        let fewest = (0..20).map(|_| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            assert!(intentions.judge(&question).is_ok());
            ALLOCATIONS.load(Ordering::Relaxed) - before
        });
        assert_eq!(fewest.min(), Some(0), "{service}");
    }
}
