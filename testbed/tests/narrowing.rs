//! Roles that a real Consul's catalog takes from a service's callers, on a real Envoy.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic, too")]

use std::time::Duration;

use airflow_envoy_testbed::consul::Client;
use airflow_envoy_testbed::document::Source;
use airflow_envoy_testbed::mesh::services::WORKER;
use airflow_envoy_testbed::{Access, Call, ORDERS, Options, Task, Testbed, consul, mesh, within};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

/// Who has the role `Op` may read orders.
fn policy() -> Source {
    let policy = json!({
        "version": 1,
        "destinations": { "orders": { "hosts": [ORDERS] } },
        "rules": [{
            "id": "operators", "effect": "allow", "from": { "airflow_roles": ["Op"] }, "to": ["orders"],
        }],
    });
    Source::Text(policy.to_string())
}

fn narrowed(configuration: &mut Value) {
    if let Some(peer) = configuration.get_mut("peer").and_then(Value::as_object_mut) {
        let narrow = json!({
            "cluster": "consul", "meta": "airflow_role", "services": [WORKER], "wait": "5s",
            "timeout": "2s", "poll": "500ms", "max_age": "10s",
        });
        peer.insert("narrow".to_owned(), narrow);
    }
}

/// Registers an instance of the worker for these roles.
async fn register(consul: &Client, instance: &str, roles: &str) {
    let service = json!({ "ID": instance, "Name": WORKER, "Meta": { "airflow_role": roles } });
    consul.ask("PUT", "/v1/agent/service/register", service.to_string()).await.unwrap();
}

/// The code of the answer, or `permit`.
async fn call(testbed: &Testbed, connector: &TlsConnector) -> String {
    let task = Task { roles: vec!["Op".to_owned()], ..Task::new("etl", "load") };
    let (token, identity) = testbed.credentials(&task).await.unwrap();
    let call = Call::get(ORDERS, "/v1/orders/7").token(&token).identity(&identity);
    let answer = call.send(testbed.listener, Some((connector, ORDERS))).await.unwrap();
    let code = answer.header("x-airflow-envoy-code").map(str::to_owned);
    code.unwrap_or_else(|| if answer.status == 200 { "permit".to_owned() } else { answer.text() })
}

#[tokio::test]
async fn a_service_s_metadata_takes_roles_away_and_gives_them_back_at_once() {
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
        return;
    }
    let options = Options {
        consul: Some(Access::Open),
        mesh: Some(mesh::Options::default()),
        policy: policy(),
        configure: Box::new(narrowed),
        ..Options::default()
    };
    let testbed = Testbed::start(options).await.unwrap();
    let consul = testbed.consul.as_ref().unwrap().client();
    let connector = testbed.mesh.as_ref().unwrap().connector(WORKER).unwrap();

    // The catalog knows no instance, so that no role is the service's.
    assert_eq!(call(&testbed, &connector).await, "policy_no_match");
    for (instance, roles, expected) in [
        ("worker-1", "User,Op", "permit"),
        ("worker-2", "User", "policy_no_match"),
        ("worker-2", "Op", "permit"),
        ("worker-1", "", "policy_no_match"),
    ] {
        register(&consul, instance, roles).await;
        let told = format!("{instance} for `{roles}`: {expected}");
        let acts = async || call(&testbed, &connector).await == expected;
        let spent = within(Duration::from_secs(10), &told, acts).await.unwrap();
        println!("{told} after {spent:?}");
    }
}
