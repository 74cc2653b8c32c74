//! Airflow in a mesh: its tasks call the Envoy beside their worker, which calls the gate with the worker's certificate, and
//! no DAG knows.

use airflow_envoy_testbed::mesh::intentions::{Action, put};
use airflow_envoy_testbed::mesh::services::{DESTINATION, WORKER};
use airflow_envoy_testbed::mesh::{self, spiffe_id};
use airflow_envoy_testbed::{Options, Testbed, airflow, consul, within};
use serde_json::{Value, json};
use std::time::Duration;

use super::{logs, real, run_to};

#[tokio::test]
async fn tasks_call_through_the_mesh_without_knowing_until_an_intention_says_no() {
    if airflow::absence().is_some() {
        return; // said by the others
    }
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
        return;
    }
    let options = airflow::Options { proxy: true, ..airflow::Options::default() };
    let options = Options { airflow: Some(options), ..mesh::whole(0).unwrap() };
    let testbed = Testbed::start(options).await.unwrap();
    let airflow = real(&testbed);
    // By an operator, a sensor and hooks; by requests, httpx, urllib, aiohttp and curl.
    let runs = [airflow.trigger("ds_orders", json!({})), airflow.trigger("raw_clients", json!({}))];
    for run in runs {
        let run = run.await.unwrap();
        let ended = airflow.wait(&run).await.unwrap();
        assert_eq!(ended, "success", "{run:?}\n{}", logs(airflow, &run).await);
    }
    let permits = || {
        let log = testbed.access_log().into_iter();
        log.filter(|entry| entry["decision"] == "permit").collect::<Vec<Value>>()
    };
    within(Duration::from_secs(5), "the gate has logged every call", async || {
        permits().len() >= 10
    })
    .await
    .unwrap();
    for dag in ["ds_orders", "raw_clients"] {
        assert!(permits().iter().any(|entry| entry["dag"] == dag), "{dag}: {:#?}", permits());
    }
    for entry in permits() {
        assert_eq!(entry["peer"], spiffe_id(WORKER), "{entry}");
    }

    let client = testbed.operator().unwrap().consul;
    put(&client, Action::Deny, WORKER, DESTINATION).await.unwrap();
    let run = run_to(airflow, "etl_orders", json!({}), "failed").await;
    let log = logs(airflow, &run).await;
    assert!(log.contains("intention_denied"), "{log}");
    assert!(log.contains("airflow-worker => orders"), "{log}");
}
