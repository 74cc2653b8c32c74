//! A whole mesh: real Consul, services, intentions and certificates, a real Envoy beside the worker and a real Envoy, with
//! the shipped filter, as the gate of the destination.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::time::{Duration, Instant};

use airflow_envoy_testbed::consul::Client;
use airflow_envoy_testbed::load::Credentials;
use airflow_envoy_testbed::mesh::client::connector;
use airflow_envoy_testbed::mesh::intentions::{Action, delete, put};
use airflow_envoy_testbed::mesh::operate::{Change, Operator};
use airflow_envoy_testbed::mesh::probe::STATUS;
use airflow_envoy_testbed::mesh::services::{DESTINATION, TRIGGERER, WORKER, callable, health};
use airflow_envoy_testbed::mesh::{self, Mesh, spiffe_id};
use airflow_envoy_testbed::{
    Access, Answer, Call, ORDERS, Options, Received, Task, Testbed, consul, within,
};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

const SCHEDULER: &str = "airflow-scheduler";
const ORDER: &str = "/v1/orders/7";

/// The mesh that most tests share, one after another. It is never dropped; its processes end with this one.
static SHARED: OnceCell<Option<Mutex<Testbed>>> = OnceCell::const_new();

async fn shared() -> Option<MutexGuard<'static, Testbed>> {
    let started = SHARED.get_or_init(async || Some(Mutex::new(start().await?)));
    Some(started.await.as_ref()?.lock().await)
}

/// A whole mesh, if there is a Consul.
async fn start() -> Option<Testbed> {
    start_with(Access::Open).await
}

async fn start_with(access: Access) -> Option<Testbed> {
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
        return None;
    }
    let options = Options { consul: Some(access), ..mesh_options() };
    Some(Testbed::start(options).await.unwrap())
}

fn mesh_options() -> Options {
    mesh::whole(0).unwrap()
}

fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

fn mesh_of(testbed: &Testbed) -> &Mesh {
    testbed.mesh.as_ref().unwrap()
}

fn operator(testbed: &Testbed) -> Operator {
    testbed.operator().unwrap()
}

fn consul_of(testbed: &Testbed) -> Client {
    operator(testbed).consul
}

/// A call that policy and agreement allow, if it comes from a worker.
async fn read_order(testbed: &Testbed) -> Call {
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    Call::get(ORDERS, ORDER).token(&token).identity(&identity)
}

/// The call by a task: through the Envoy beside the worker.
async fn by_worker(testbed: &Testbed, call: Call) -> Answer {
    call.send(testbed.worker().unwrap().address, None).await.unwrap()
}

#[track_caller]
fn permitted(answer: &Answer) -> Received {
    assert_eq!(answer.status, 200, "{}", answer.text());
    Received::from_answer(answer).unwrap()
}

#[track_caller]
fn rejected(answer: &Answer, status: u16, code: &str) -> Value {
    let seen = (answer.status, answer.header("x-airflow-envoy-code"));
    assert_eq!(seen, (status, Some(code)), "{}", answer.text());
    answer.json()
}

/// Carries out a change and waits until the gate acts by it.
async fn change(testbed: &Testbed, change: Change, source: &str) -> String {
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let credentials = Credentials::new(&token, &identity).unwrap();
    let operator = operator(testbed);
    let (text, _) = operator.change(change, source, DESTINATION, ORDER, credentials).await.unwrap();
    println!("{}", text.trim());
    text
}

/// What the gate says of one source.
async fn source(testbed: &Testbed, name: &str) -> Value {
    let connector = mesh_of(testbed).connector(WORKER).unwrap();
    let call = Call::get(ORDERS, STATUS);
    let status = call.send(testbed.listener, Some((&connector, ORDERS))).await.unwrap().json();
    let sources = status["sources"].as_array().cloned().unwrap_or_default();
    sources.into_iter().find(|source| source["name"] == name).unwrap_or(status)
}

#[tokio::test]
async fn a_task_calls_through_the_worker_s_envoy_and_the_gate_knows_both() {
    let Some(testbed) = shared().await else { return };
    let answer = by_worker(&testbed, read_order(&testbed).await).await;
    let received = permitted(&answer);
    assert_eq!(received.header("x-airflow-dag-id"), ["ds_churn"]);
    // The upstream sees the peer as the gate verified it, and no credential.
    let [peer] = received.header("x-forwarded-client-cert")[..] else { panic!("{answer:?}") };
    assert!(peer.ends_with(&format!(";URI={}", spiffe_id(WORKER))), "{peer}");
    assert!(received.header("authorization").is_empty());
    assert!(received.header("x-airflow-identity").is_empty());

    let id = received.header("x-airflow-decision-id")[0].to_owned();
    let logged = testbed.access_log_of(&id).await.unwrap();
    assert_eq!(logged["peer"], spiffe_id(WORKER), "{logged}");
    assert_eq!(logged["dag"], "ds_churn", "{logged}");
    let worker = testbed.worker().unwrap();
    let mut last = Value::Null;
    within(Duration::from_secs(5), "the worker's access log has the call", async || {
        last = worker.calls().unwrap_or_default().pop().unwrap_or_default();
        !last.is_null()
    })
    .await
    .unwrap();
    assert_eq!(last["as"], spiffe_id(WORKER), "{last}");
    assert_eq!(last["gate"], spiffe_id(DESTINATION), "{last}");
    assert_eq!(last["gate_tls"], "TLSv1.3", "{last}");
}

#[tokio::test]
async fn what_a_caller_writes_of_its_certificate_is_not_believed() {
    let Some(testbed) = shared().await else { return };
    let forged = format!("By={};URI={}", spiffe_id(DESTINATION), spiffe_id(WORKER));
    let call = read_order(&testbed).await.header("x-forwarded-client-cert", &forged);
    let answer = operator(&testbed).call_as(SCHEDULER, call).await.unwrap();
    rejected(&answer, 403, "intention_denied");
    let call = read_order(&testbed).await.header("x-forwarded-client-cert", &forged);
    let received = permitted(&by_worker(&testbed, call).await);
    let [peer] = received.header("x-forwarded-client-cert")[..] else { panic!("{received:?}") };
    assert!(peer.contains(";Hash="), "{peer}");
}

#[tokio::test]
async fn a_caller_takes_no_other_service_of_the_mesh_for_the_gate() {
    let Some(testbed) = shared().await else { return };
    let (leaf, roots) = mesh_of(&testbed).agent(WORKER).unwrap().files().unwrap();
    for (server, accepted) in [(DESTINATION, true), (SCHEDULER, false)] {
        let connector = connector(Some(&leaf), &roots, &spiffe_id(server)).unwrap();
        let answer = Call::get(ORDERS, STATUS).send(testbed.listener, Some((&connector, ORDERS)));
        assert_eq!(answer.await.is_ok(), accepted, "{server}");
    }
}

#[tokio::test]
async fn an_intention_refuses_and_lets_through_again() {
    let Some(testbed) = shared().await else { return };
    permitted(&by_worker(&testbed, read_order(&testbed).await).await);

    let said = change(&testbed, Change::Put(Action::Deny), WORKER).await;
    assert!(said.contains("is refused by all 2 workers"), "{said}");
    let problem =
        rejected(&by_worker(&testbed, read_order(&testbed).await).await, 403, "intention_denied");
    assert_eq!(problem["rule"], "mesh/airflow-worker => orders", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("Consul intentions `mesh`: `airflow-worker => orders` (precedence 9)"),
        "{detail}"
    );
    // Another one is not touched.
    let call = read_order(&testbed).await;
    permitted(&operator(&testbed).call_as(TRIGGERER, call).await.unwrap());

    let said = change(&testbed, Change::Put(Action::Allow), WORKER).await;
    assert!(said.contains("is let through by all 2 workers"), "{said}");
    permitted(&by_worker(&testbed, read_order(&testbed).await).await);
}

#[tokio::test]
async fn without_an_intention_of_its_own_a_service_falls_under_the_one_for_all() {
    let Some(testbed) = shared().await else { return };
    let call = read_order(&testbed).await;
    let answer = operator(&testbed).call_as(SCHEDULER, call).await.unwrap();
    let problem = rejected(&answer, 403, "intention_denied");
    assert_eq!(problem["rule"], "mesh/* => orders", "{problem}");

    change(&testbed, Change::Delete, WORKER).await;
    let answer = by_worker(&testbed, read_order(&testbed).await).await;
    let problem = rejected(&answer, 403, "intention_denied");
    assert_eq!(problem["rule"], "mesh/* => orders", "{problem}");
    change(&testbed, Change::Put(Action::Allow), WORKER).await;
}

#[tokio::test]
async fn a_token_that_was_stolen_from_a_worker_is_of_no_use_to_another_service() {
    let Some(testbed) = shared().await else { return };
    change(&testbed, Change::Put(Action::Allow), SCHEDULER).await;
    let call = read_order(&testbed).await;
    permitted(&by_worker(&testbed, call.clone()).await);
    // The mesh lets it through; the agreement knows who may speak for tasks.
    let answer = operator(&testbed).call_as(SCHEDULER, call).await.unwrap();
    let problem = rejected(&answer, 403, "peer_not_allowed");
    assert!(problem["detail"].as_str().unwrap().contains(SCHEDULER), "{problem}");
    change(&testbed, Change::Delete, SCHEDULER).await;
}

#[tokio::test]
async fn consul_knows_every_service_and_notices_a_gate_that_died() {
    let Some(mut testbed) = start().await else { return };
    let consul = consul_of(&testbed);
    let gate = vec![testbed.listener.to_string()];
    within(Duration::from_secs(10), "the gate's checks pass", async || {
        callable(&consul, DESTINATION).await.is_ok_and(|found| found == gate)
    })
    .await
    .unwrap();
    let all = health(&consul).await.unwrap();
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    let expected =
        ["airflow-api-server", SCHEDULER, TRIGGERER, WORKER, DESTINATION, "orders-sidecar-proxy"];
    assert_eq!(names, expected);
    assert!(all.iter().all(|(_, health)| health == "passing"), "{all:?}");
    // What is said of an instance is there for whoever asks for the role.
    let path = format!("/v1/catalog/service/{WORKER}");
    let said = consul.ask("GET", &path, String::new()).await.unwrap();
    assert_eq!(said[0]["ServiceMeta"]["airflow_role"], "User,DataScience", "{said}");

    let begun = Instant::now();
    testbed.quit_envoy().await.unwrap();
    within(Duration::from_secs(3), "nobody is sent to the gate any more", async || {
        callable(&consul, DESTINATION).await.is_ok_and(|found| found.is_empty())
    })
    .await
    .unwrap();
    let took = begun.elapsed();
    println!("gone from the catalog {took:?} after the signal to end");
    assert!(took < Duration::from_secs(4), "{took:?}");

    mesh_of(&testbed).services.as_ref().unwrap().deregister().await.unwrap();
    assert_eq!(health(&consul).await.unwrap(), []);
}

#[tokio::test]
async fn without_consul_calls_go_on_by_the_last_intentions_and_an_empty_one_refuses() {
    let Some(testbed) = start().await else { return };
    let known = source(&testbed, "mesh").await;
    assert_eq!((&known["kind"], &known["count"]), (&"intentions".into(), &3.into()), "{known}");
    let consul = testbed.consul.as_ref().unwrap();
    consul.process.stop();
    within(Duration::from_secs(10), "the gate says that Consul is away", async || {
        !source(&testbed, "mesh").await["error"].is_null()
    })
    .await
    .unwrap();
    println!("{}", source(&testbed, "mesh").await);
    let call = read_order(&testbed).await;
    permitted(&by_worker(&testbed, call.clone()).await);
    let (leaf, roots) = mesh_of(&testbed).agent(WORKER).unwrap().files().unwrap();
    assert!(!leaf.certificate.is_empty() && !roots.is_empty());

    // It has forgotten everything: who may call, who there is, and its own authority.
    consul.start_again().await.unwrap();
    within(Duration::from_secs(20), "nobody may call", async || {
        let answer = by_worker(&testbed, call.clone()).await;
        answer.header("x-airflow-envoy-code") == Some("intention_denied")
    })
    .await
    .unwrap();
    let problem = by_worker(&testbed, call).await.json();
    assert!(problem["rule"].is_null(), "{problem}");
    let client = consul_of(&testbed);
    within(Duration::from_secs(10), "every service is there again", async || {
        health(&client).await.is_ok_and(|all| all.len() == 6)
    })
    .await
    .unwrap();
    put(&client, Action::Allow, WORKER, DESTINATION).await.unwrap();
    within(Duration::from_secs(20), "tasks may call again", async || {
        by_worker(&testbed, read_order(&testbed).await).await.status == 200
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn when_the_gate_s_token_is_revoked_the_last_intentions_stay_and_the_gate_says_so() {
    let Some(testbed) = start_with(Access::ByToken).await else { return };
    permitted(&by_worker(&testbed, read_order(&testbed).await).await);
    let client = consul_of(&testbed);
    let tokens = client.ask("GET", "/v1/acl/tokens", String::new()).await.unwrap();
    let readers = tokens.as_array().unwrap().iter().filter(|token| {
        let name = token["Policies"][0]["Name"].as_str().unwrap_or_default();
        name.starts_with("reader-")
    });
    let ids: Vec<_> = readers.map(|token| token["AccessorID"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1, "{tokens}");
    let path = format!("/v1/acl/token/{}", ids[0]);
    client.ask("DELETE", &path, String::new()).await.unwrap();
    // A question that was open when the token went is still answered; the next one is not.
    put(&client, Action::Deny, TRIGGERER, DESTINATION).await.unwrap();
    within(Duration::from_secs(10), "the gate says that it is refused", async || {
        source(&testbed, "mesh").await["error"]["reason"]
            .as_str()
            .unwrap_or_default()
            .contains("403")
    })
    .await
    .unwrap();
    println!("{}", source(&testbed, "mesh").await);
    delete(&client, WORKER, DESTINATION).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    permitted(&by_worker(&testbed, read_order(&testbed).await).await);
}
