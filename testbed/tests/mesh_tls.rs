//! The certificates of a mesh on a real Consul and a real Envoy: who gets a connection, for how long, and what it takes
//! to end one.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use airflow_envoy_testbed::mesh::services::WORKER;
use airflow_envoy_testbed::mesh::{self, Mesh};
use airflow_envoy_testbed::{Answer, Call, ORDERS, Options, Task, Testbed, consul};

fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

/// Whether Consul cannot be had, said loudly.
fn skipped() -> bool {
    let absence = consul::absence();
    if let Some(why) = &absence {
        println!("SKIPPED: {why}");
    }
    absence.is_some()
}

fn options() -> Options {
    Options { mesh: Some(mesh::Options::default()), ..Options::default() }
}

fn mesh(testbed: &Testbed) -> &Mesh {
    testbed.mesh.as_ref().unwrap()
}

/// A call that the policy allows.
async fn allowed_call(testbed: &Testbed) -> Call {
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    Call::get(ORDERS, "/v1/orders/7").token(&token).identity(&identity)
}

#[track_caller]
fn permitted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_task_s_call_comes_through_with_its_service_s_certificate() {
    if skipped() {
        return;
    }
    let testbed = Testbed::start(options()).await.unwrap();
    let connector = mesh(&testbed).connector(WORKER).unwrap();
    let call = allowed_call(&testbed).await;
    let answer = call.send(testbed.listener, Some((&connector, ORDERS))).await.unwrap();
    permitted(&answer);
    println!("{}", answer.text());
    let health = Call::get("health", "/ready");
    let ready = health.send(testbed.second.unwrap(), None).await.unwrap();
    assert_eq!(ready.status, 200);
    println!("{:#?}", testbed.access_log());
}
