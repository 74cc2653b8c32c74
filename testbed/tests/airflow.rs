//! End to end with a real Airflow: its tasks call through a real Envoy with the shipped filter, and no DAG says a word about
//! identity.
//!
//! Most tests share one Airflow and read only what belongs to their own runs. Those that turn a server, a key ring or look at
//! everything have it for themselves meanwhile.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use airflow_envoy_testbed::airflow::{self, Airflow, Run, TaskInstance};
use airflow_envoy_testbed::tap::Passed;
use airflow_envoy_testbed::{Options, Testbed, within};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The testbed with Airflow. It is never dropped; its processes end with this one.
static SHARED: OnceCell<Option<RwLock<Testbed>>> = OnceCell::const_new();

async fn shared() -> Option<&'static RwLock<Testbed>> {
    let started = SHARED.get_or_init(async || {
        if let Some(why) = airflow::absence() {
            println!("SKIPPED: no Airflow here: {why}");
            return None;
        }
        let options = airflow::Options { workers: 2, triggerer: true, ..Default::default() };
        let options = Options { airflow: Some(options), ..Options::default() };
        Some(RwLock::new(Testbed::start(options).await.unwrap()))
    });
    started.await.as_ref()
}

/// The testbed, together with others.
async fn together() -> Option<RwLockReadGuard<'static, Testbed>> {
    Some(shared().await?.read().await)
}

/// The testbed, alone.
async fn alone() -> Option<RwLockWriteGuard<'static, Testbed>> {
    Some(shared().await?.write().await)
}

/// What Airflow sent: one request with its two credentials.
#[derive(Debug, Clone)]
struct Sent {
    path: String,
    claims: Value,
    token: Value,
}

/// The JSON in the part `index` of a JWS (RFC 7515 §7.1).
fn part(jws: &str, index: usize) -> Value {
    let encoded = jws.split('.').nth(index).unwrap_or_default();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(encoded).unwrap_or_default()).unwrap_or_default()
}

fn bearer(passed: &Passed) -> Option<&str> {
    passed.header("authorization")?.strip_prefix("Bearer ")
}

/// What the tasks of `run` sent, as its identities say.
fn sent(airflow: &Airflow, run: &Run) -> Vec<Sent> {
    let all = airflow.egress.requests().into_iter().filter_map(|passed| {
        let claims = part(passed.header("x-airflow-identity")?, 1);
        let token = part(bearer(&passed)?, 1);
        Some(Sent { path: passed.target, claims, token })
    });
    all.filter(|sent| sent.claims["airflow"]["run_id"] == run.id.as_str()).collect()
}

fn real(testbed: &Testbed) -> &Airflow {
    testbed.real_airflow.as_ref().unwrap()
}

/// The run ended in `state`; if not, its tasks and their logs say why.
#[track_caller]
fn ended(run: &Run, state: &str, expected: &str, log: &str) {
    assert_eq!(state, expected, "{run:?}\n{log}");
}

/// The logs of every task of `run`.
async fn logs(airflow: &Airflow, run: &Run) -> String {
    let mut text = String::new();
    for task in airflow.tasks(run).await.unwrap() {
        text += &format!("── {task}\n");
        text += &airflow.log(run, &task, task.try_number()).await.unwrap_or_default();
    }
    text
}

/// Runs `dag` to the end in state `expected`.
async fn run_to(airflow: &Airflow, dag: &str, configuration: Value, expected: &str) -> Run {
    let (run, state) = airflow.run(dag, configuration).await.unwrap();
    let log = if state == expected { String::new() } else { logs(airflow, &run).await };
    ended(&run, &state, expected, &log);
    run
}

#[tokio::test]
async fn operators_sensors_hooks_and_mapped_tasks_carry_the_identity_of_their_task_instance() {
    let Some(testbed) = together().await else { return };
    let airflow = real(&testbed);
    let run = run_to(airflow, "ds_orders", json!({}), "success").await;
    let sent = sent(airflow, &run);
    for task in airflow.tasks(&run).await.unwrap() {
        let path = match task.task() {
            "fetch" => format!("/v1/orders/ds_orders/{}", task.map_index() + 1),
            other => format!("/v1/orders/ds_orders/{other}"),
        };
        let sent: Vec<_> = sent.iter().filter(|sent| sent.path == path).collect();
        let [sent] = sent[..] else { panic!("{path}: {sent:?}") };
        let claims = &sent.claims;
        assert_eq!(claims["iss"], "https://airflow.internal");
        assert_eq!(claims["aud"], "airflow-egress");
        assert_eq!(claims["sub"], format!("airflow:ds_orders/{}", task.task()));
        let facts = &claims["airflow"];
        assert_eq!(facts["tier"], "server");
        assert_eq!(facts["ti_id"], task.id());
        assert_eq!(facts["task_id"], task.task());
        assert_eq!(facts["map_index"], task.map_index());
        assert_eq!(facts["try_number"], 1);
        assert_eq!(facts["state"], "running");
        assert_eq!(facts["run_type"], "manual");
        assert_eq!(facts["owners"], json!(["ada"]));
        assert_eq!(facts["tags"], json!(["churn", "orders"]));
        assert_eq!(facts["roles"], json!(["DataScience"]));
        assert_eq!(facts["triggering_user_name"], airflow::USER);
        assert_eq!(sent.token["sub"], "airflow");
        assert_eq!(sent.token["aud"], "airflow-egress");
    }
}
