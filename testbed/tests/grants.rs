//! Temporary grants on a real Envoy: they act at once, they are revoked, and they end by themselves.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use airflow_envoy_testbed::document::{Document, Source};
use airflow_envoy_testbed::identity::now;
use airflow_envoy_testbed::server::serve;
use airflow_envoy_testbed::{
    Access, Call, Configure, ORDERS, Options, Received, Signer, Task, Testbed, consul, eventually,
    within,
};
use serde_json::{Value, json};

/// The key in Consul with the grants.
const KEY: &str = "airflow-envoy/grants";
/// Where the filter tells its state.
const STATUS: &str = "/airflow-envoy/status";

fn repair() -> Task {
    Task::new("ds_repair", "fix").team("data-science")
}

fn write_order() -> Call {
    Call::new("POST", ORDERS, "/v1/orders/7")
}

/// The testbed's policy, by which the key of `signer` may let data science write orders for up to an hour.
fn grantable(signer: &Signer) -> Value {
    let mut policy = airflow_envoy_testbed::policy().unwrap();
    policy["approvers"] = json!({ "on-call": { "keys": [signer.public_key()] } });
    policy["grantable"] = json!([{
        "id": "orders-write", "from": { "roles": ["data-science"] }, "to": ["orders"],
        "methods": ["POST"], "paths": ["/v1/orders/**"], "max_duration": "1h", "approvers": ["on-call"],
    }]);
    policy
}

/// A grant to [`repair`] for so many seconds.
fn grant(signer: &Signer, id: &str, seconds: u64) -> String {
    let header = json!({ "typ": "airflow-grant+jws", "alg": "ES256", "kid": signer.key_id() });
    let claims = json!({
        "version": 1, "id": id, "grantable": "orders-write", "from": { "dags": ["ds_repair"] },
        "reason": "a test", "granted_by": "the test", "iat": now(), "nbf": now(), "exp": now() + seconds,
    });
    signer.sign(&header, &claims)
}

fn document(grants: &[String]) -> Value {
    json!({ "version": 1, "grants": grants })
}

/// With the policy of [`grantable`] and grants from `source`.
fn options(signer: &Signer, source: Value) -> Options {
    let configure: Configure = Box::new(move |configuration| {
        configuration["status"] = json!({ "path": STATUS });
        configuration["policy"]["grants"] = source;
    });
    Options {
        concurrency: 4,
        configure,
        policy: Source::Text(grantable(signer).to_string()),
        ..Options::default()
    }
}

/// Waits until twelve calls in a row, each on a connection of its own and so spread over the workers, are
/// answered with this status. Says how long that took.
async fn until(testbed: &Testbed, status: u16) -> Duration {
    let (token, identity) = testbed.credentials(&repair()).await.unwrap();
    let what = format!("calls are answered with {status}");
    within(Duration::from_secs(8), &what, async || {
        for _ in 0..12 {
            let call = testbed.call(write_order().token(&token).identity(&identity));
            if call.await.unwrap().status != status {
                return false;
            }
        }
        true
    })
    .await
    .unwrap()
}

/// What the filter says of its grants.
async fn source(testbed: &Testbed) -> Value {
    let status = testbed.call(Call::get(ORDERS, STATUS)).await.unwrap().json();
    let sources = status["sources"].as_array().cloned().unwrap_or_default();
    let found = sources.into_iter().find(|source| source["kind"] == "grants");
    found.unwrap_or_else(|| json!({ "missing": status }))
}

/// Puts grants and takes them away again and again, then one that ends, and one that nobody may sign.
async fn come_and_go(testbed: &Testbed, signer: &Signer, put: impl AsyncFn(Value)) {
    until(testbed, 403).await;
    let mut times = Vec::new();
    for round in 0..3 {
        put(document(&[grant(signer, &format!("g-{round}"), 600)])).await;
        let acts = until(testbed, 200).await;
        put(document(&[])).await;
        times.push((acts, until(testbed, 403).await));
    }
    println!("from a grant to its use by every worker, and from its revocation: {times:?}");
    let late = |time: &Duration| *time >= Duration::from_secs(1);
    assert!(!times.iter().any(|(acts, ends)| late(acts) || late(ends)), "{times:?}");

    let forger = Signer::new(signer.key_id());
    let begun = Instant::now();
    put(document(&[grant(&forger, "forged", 600), grant(signer, "brief", 3)])).await;
    until(testbed, 200).await;
    let answer = testbed.call_as(&repair(), write_order()).await.unwrap();
    let received = Received::from_answer(&answer).unwrap();
    let id = received.header("x-airflow-decision-id")[0].to_owned();
    let entry = testbed.access_log_of(&id).await.unwrap();
    assert_eq!((&entry["rule"], &entry["grant"]), (&json!("orders-write"), &json!("brief")));
    assert_eq!(source(testbed).await["count"], 1);
    // Nobody does anything, and it is over.
    until(testbed, 403).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let refused = testbed.stat("wasmcustom.airflow_envoy.grants.refused").await.unwrap();
    assert_eq!(refused, 1, "told by one worker");
    let log = testbed.envoy_log();
    assert_eq!(
        log.matches("grants[0] `forged`: the `ES256` signature is not by the key").count(),
        1
    );
    eventually("none is active", async || {
        testbed.stat("wasmcustom.airflow_envoy.grants.active").await.unwrap() == 0
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn grants_by_long_poll_act_at_once_are_revoked_and_end() {
    let signer = Signer::new("on-call-1");
    let grants = Arc::new(Document::new(Source::Text(document(&[]).to_string())));
    let address = serve(Arc::clone(&grants), None).await.unwrap();
    let source = json!({"http": {
        "cluster": "consul", "uri": "http://grants/grants.json", "poll": "1s", "long_poll": "20s",
    }});
    let options = Options {
        bootstrap: Box::new(move |bootstrap| bootstrap.set_endpoint("consul", address).unwrap()),
        ..options(&signer, source)
    };
    let testbed = Testbed::start(options).await.unwrap();
    let put = async |content: Value| {
        eventually("one fetch is held", async || grants.held() == 1).await.unwrap();
        grants.set(&content);
    };
    come_and_go(&testbed, &signer, &put).await;
    // Another policy without the approver ends what it granted.
    grants.set(&document(&[grant(&signer, "last", 600)]));
    until(&testbed, 200).await;
    let mut policy = grantable(&Signer::new("on-call-1"));
    policy["revision"] = json!(2);
    testbed.policy.set(&policy);
    until(&testbed, 403).await;
}

#[tokio::test]
async fn grants_in_consul_act_at_once_are_revoked_and_end_and_outlive_consul_until_then() {
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
        return;
    }
    let signer = Signer::new("on-call-1");
    let source = json!({"consul_kv": {
        "cluster": "consul", "key": KEY, "wait": "10s", "timeout": "2s", "poll": "200ms",
    }});
    let options = Options { consul: Some(Access::Open), ..options(&signer, source) };
    let testbed = Testbed::start(options).await.unwrap();
    let consul = testbed.consul.as_ref().unwrap();
    // Without any document nobody waits and nobody is refused for want of it.
    let answer = testbed.call_as(&repair(), write_order()).await.unwrap();
    assert_eq!(answer.header("x-airflow-envoy-code"), Some("policy_no_match"), "{}", answer.text());
    let said = answer.json()["action"].as_str().unwrap_or_default().to_owned();
    assert!(said.starts_with("ask `on-call` to grant `orders-write`"), "{said}");
    let put = async |content: Value| consul.put(KEY, content.to_string()).await.unwrap();
    come_and_go(&testbed, &signer, &put).await;
    put(document(&[grant(&signer, "last", 600)])).await;
    until(&testbed, 200).await;
    consul.process.stop();
    until(&testbed, 200).await;
}
