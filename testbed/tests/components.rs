//! What the testbed itself does, with real processes: that its tests of Envoy mean what they say.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic, too")]

use airflow_envoy_testbed::oidc::{DISCOVERY_PATH, KEYS_PATH};
use airflow_envoy_testbed::{
    Access, Call, Configure, ORDERS, Options, Serving, Task, Testbed, consul,
};
use serde_json::{Value, json};

const KEY: &str = "airflow-envoy/policy/main";

fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

/// The status of a call that is allowed.
async fn status(testbed: &Testbed) -> u16 {
    testbed.call_as(&churn(), Call::get(ORDERS, "/v1/orders/7")).await.unwrap().status
}

#[tokio::test]
async fn consul_keeps_a_value_until_it_is_started_again_and_asks_for_tokens_if_it_is_to() {
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
        return;
    }
    let options = Options { consul: Some(Access::Open), ..Options::default() };
    let testbed = Testbed::start(options).await.unwrap();
    let consul = testbed.consul.as_ref().unwrap();
    assert_eq!(consul.value(KEY).await.unwrap(), None);
    consul.put(KEY, "{}").await.unwrap();
    assert_eq!(consul.value(KEY).await.unwrap().as_deref(), Some("{}"));
    consul.delete(KEY).await.unwrap();
    assert_eq!(consul.value(KEY).await.unwrap(), None);
    consul.put(KEY, "{}").await.unwrap();
    consul.process.stop();
    assert!(consul.value(KEY).await.is_err());
    consul.start_again().await.unwrap();
    assert_eq!(consul.value(KEY).await.unwrap(), None);

    let options = Options { consul: Some(Access::ByToken), ..Options::default() };
    let testbed = Testbed::start(options).await.unwrap();
    let consul = testbed.consul.as_ref().unwrap();
    consul.put(KEY, "{}").await.unwrap();
    let path = format!("/v1/kv/{KEY}?raw");
    let read = |token: Option<String>| {
        let call = Call::get("consul", &path);
        let call = match token {
            Some(token) => call.header("x-consul-token", token),
            None => call,
        };
        call.send(consul.address, None)
    };
    assert_eq!(read(None).await.unwrap().status, 403);
    let reader = consul.reader().await.unwrap();
    assert_eq!(read(Some(reader)).await.unwrap().status, 200);
}

#[tokio::test]
async fn the_oidc_provider_serves_as_it_is_told_counts_and_keeps_its_keys_over_a_restart() {
    let testbed = Testbed::start(Options::default()).await.unwrap();
    let oidc = &testbed.oidc;
    let discovered = oidc.document(DISCOVERY_PATH).await.unwrap();
    let named = discovered.get("issuer").and_then(Value::as_str);
    assert_eq!(named, Some("https://idp.internal"));
    let keys = discovered.get("jwks_uri").and_then(Value::as_str);
    assert_eq!(keys, Some("https://idp.internal/jwks"));
    assert_eq!(oidc.requests(DISCOVERY_PATH).await.unwrap(), 1);

    let ask = || {
        Call::get("idp.internal", KEYS_PATH)
            .send(oidc.address, Some((&oidc.connector, "idp.internal")))
    };
    oidc.serve(KEYS_PATH, Serving::CacheControl("max-age=7")).await.unwrap();
    assert_eq!(ask().await.unwrap().header("cache-control"), Some("max-age=7"));
    oidc.serve(KEYS_PATH, Serving::Instead(418, "{}".to_owned())).await.unwrap();
    assert_eq!(ask().await.unwrap().status, 418);
    oidc.serve(KEYS_PATH, Serving::Close).await.unwrap();
    assert!(ask().await.is_err());
    oidc.serve(KEYS_PATH, Serving::Well).await.unwrap();

    oidc.rotate(false).await.unwrap();
    let before = oidc.document(KEYS_PATH).await.unwrap();
    assert_eq!(before.pointer("/keys").and_then(Value::as_array).map(Vec::len), Some(8));
    testbed.provider.stop();
    assert!(ask().await.is_err());
    testbed.provider.start_again().await.unwrap();
    assert_eq!(oidc.document(KEYS_PATH).await.unwrap(), before);
}

/// Expects tokens for somebody else.
fn another_audience(configuration: &mut Value) {
    *configuration.pointer_mut("/issuers/0/audiences").unwrap() = json!(["another"]);
}

#[tokio::test]
async fn listeners_can_be_two_and_be_changed_and_every_vm_can_be_replaced() {
    let second: Configure = Box::new(another_audience);
    let options = Options { reloadable: true, second: Some(second), ..Options::default() };
    let testbed = Testbed::start(options).await.unwrap();
    assert_eq!(status(&testbed).await, 200);
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let call = || Call::get(ORDERS, "/v1/orders/7").token(&token).identity(&identity);
    let answer = call().send(testbed.second.unwrap(), None).await.unwrap();
    assert_eq!(answer.header("x-airflow-envoy-code"), Some("token_audience_mismatch"));

    let created = "wasm.envoy.wasm.runtime.v8.created";
    let before = testbed.stat(created).await.unwrap();
    testbed.replace_vms().await.unwrap();
    let after = testbed.stat(created).await.unwrap();
    assert!(after > before, "{before} and then {after} VMs were made");
    assert_eq!(status(&testbed).await, 200);

    testbed.reload(|bootstrap| bootstrap.configure_filter(another_audience)).await.unwrap();
    let answer = testbed.call(call()).await.unwrap();
    assert_eq!(answer.header("x-airflow-envoy-code"), Some("token_audience_mismatch"));
    let nonsense =
        |configuration: &mut Value| *configuration.pointer_mut("/issuers").unwrap() = json!(3);
    let refused = testbed.reload(|bootstrap| bootstrap.configure_filter(nonsense)).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("refuses its listeners"), "{said}");
}
