//! What a gate has in hand while it loads.

use serde_json::json;

use super::*;
use crate::feed::Response;
use crate::jose::RustCrypto;

fn gate() -> Gate {
    let configuration = json!({
        "issuers": [{
            "name": "idp", "issuer": "https://idp.example", "audiences": ["orders"],
            "jwks": { "cluster": "idp", "uri": "https://idp.example/jwks" }
        }],
        "airflow": { "identity": "off" },
        "policy": { "sources": [
            { "name": "main", "http": { "cluster": "policy", "uri": "http://p/p.json" } }
        ] }
    });
    Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(RustCrypto))).unwrap()
}

fn large_policy(revision: usize) -> Vec<u8> {
    let rules: Vec<_> = (0..1500)
        .map(|number| {
            let from = json!({ "subjects": [format!("{revision}-{number}")] });
            json!({ "id": format!("r{number}"), "effect": "allow", "from": from, "to": ["orders"] })
        })
        .collect();
    let destinations = json!({ "orders": { "hosts": ["orders.internal"] } });
    let policy = json!({ "version": 1, "destinations": destinations, "rules": rules });
    policy.to_string().into_bytes()
}

#[test]
fn policies_that_change_as_fast_as_they_are_loaded_do_not_pile_up() {
    let (mut gate, mut now) = (gate(), UnixTime::from_secs(1_000_000));
    let mut most = 0;
    for revision in 0..8 {
        now = now.plus(Span::from_secs(60));
        let due = gate.tick(now).into_iter().find_map(|effect| match effect {
            Effect::Fetch(fetch) if fetch.cluster == "policy" => Some(fetch.feed),
            _ => None,
        });
        let body = large_policy(revision);
        let answer = Answer::Http(Response { status: 200, body, ..Response::default() });
        let mut effects = gate.answered(due.unwrap(), answer, now);
        let mut slices = 0;
        while !effects.iter().any(|effect| matches!(effect, Effect::Count(_))) {
            slices += 1;
            assert!(slices < 10_000, "{revision} is never loaded");
            effects = gate.work(now);
            most = most.max(gate.retired.len());
        }
        assert!(slices > 10, "{slices}");
    }
    assert!(most <= 2, "{most} wait to be freed");
    while gate.is_at_work() {
        gate.work(now);
    }
    assert!(gate.retired.is_empty() && gate.releasing.is_none());
}
