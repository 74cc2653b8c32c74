//! Temporary grants through the plugin: fetched by callout, told in filter state and metrics, over by themselves.

use airflow_envoy_corpus::{mint, public_key};
use serde_json::{Value, json};

use crate::host::{self, Filter, Seen};

const NOW: i64 = 1_795_262_400;
const ON_CALL: &str = "oncall-ed25519";

fn configuration() -> Value {
    json!({
        "issuers": [{
            "name": "idp", "issuer": "https://idp.example", "audiences": ["orders"],
            "algorithms": ["EdDSA"],
            "jwks": {"inline": {"keys": [public_key("idp-ed25519").unwrap()]}}
        }],
        "airflow": {"identity": "off"},
        "policy": {
            "sources": [{"name": "main", "inline": {
                "version": 1,
                "destinations": {"orders": {"hosts": ["orders.internal"]}},
                "approvers": {"on-call": {"keys": [public_key(ON_CALL).unwrap()]}},
                "grantable": [{
                    "id": "orders-read", "from": {"subjects": ["*"]}, "to": ["orders"],
                    "max_duration": "1h", "approvers": ["on-call"],
                }],
                "rules": [],
            }}],
            "grants": {"http": {"cluster": "grants", "uri": "http://grants/g.json", "poll": "1s"}},
        },
        "filter_state": ["code", "rule", "grant"],
    })
}

fn signed(key: &str, token_type: &str, claims: &Value) -> String {
    let credential = json!({
        "algorithm": "EdDSA", "key": key, "header": {"typ": token_type}, "claims_text": claims.to_string(),
    });
    mint(&serde_json::from_value(credential).unwrap(), NOW, None).unwrap()
}

fn grants(key: &str) -> String {
    let claims = json!({
        "version": 1, "id": "inc-17", "grantable": "orders-read", "from": {"subjects": ["airflow"]},
        "reason": "INC-17", "granted_by": "ada", "iat": NOW, "nbf": NOW, "exp": NOW + 60,
    });
    json!({"version": 1, "grants": [signed(key, "airflow-grant+jws", &claims)]}).to_string()
}

fn ask(filter: &mut Filter) -> (Seen, bool) {
    let claims = json!({
        "iss": "https://idp.example", "aud": "orders", "sub": "airflow", "exp": NOW + 300,
    });
    let token = format!("Bearer {}", signed("idp-ed25519", "at+jwt", &claims));
    let (stream, goes_on) = filter.request(&[
        (":method", "GET"),
        (":authority", "orders.internal"),
        (":path", "/v1/x"),
        (":scheme", "http"),
        ("authorization", &token),
    ]);
    let seen = host::seen(stream);
    filter.end(stream);
    (seen, goes_on)
}

#[test]
fn a_grant_is_told_in_filter_state_and_metrics_and_is_over_by_itself() {
    let mut filter = Filter::start(configuration().to_string()).unwrap();
    host::set_now(NOW);
    filter.tick(100);
    // Nobody waits for what is under way.
    let (seen, goes_on) = ask(&mut filter);
    assert!(!goes_on);
    assert_eq!(seen.state["airflow_envoy.code"], "policy_no_match");
    filter.answer(&[(":status", b"200")], grants("mallory-ed25519").as_bytes());
    assert!(!ask(&mut filter).1);
    let metric = |name: &str| host::metric(&format!("airflow_envoy.grants.{name}"));
    assert_eq!((metric("active"), metric("refused")), (0, 1));
    assert!(host::log().iter().any(|line| line.contains("grants[0] `inc-17`: the key")));

    filter.tick(1000);
    filter.answer(&[(":status", b"200")], grants(ON_CALL).as_bytes());
    let (seen, goes_on) = ask(&mut filter);
    assert!(goes_on);
    assert_eq!(seen.state["airflow_envoy.rule"], "orders-read");
    assert_eq!(seen.state["airflow_envoy.grant"], "inc-17");
    assert_eq!((metric("active"), metric("refused")), (1, 1));

    host::set_now(NOW + 60);
    let (seen, goes_on) = ask(&mut filter);
    assert!(!goes_on && !seen.state.contains_key("airflow_envoy.grant"));
    filter.tick(1000);
    assert_eq!(metric("active"), 0);
}
