//! The filter in Envoy, in a mesh: it follows the intentions, whatever becomes of Consul.

use std::time::{Duration, Instant};

use airflow_envoy_testbed::error::Result;
use airflow_envoy_testbed::mesh::intentions::{self, Action};
use airflow_envoy_testbed::mesh::services::{DESTINATION, WORKER};
use airflow_envoy_testbed::mesh::{self};
use airflow_envoy_testbed::{Access, Answer, Call, ORDERS, Options, Task, Testbed, consul, within};
use serde_json::{Value, json};

use crate::modern::Modern;

const PATIENCE: Duration = Duration::from_secs(20);

fn options(change: impl FnOnce(&mut Value) + Send + 'static) -> Options {
    let configure = |configuration: &mut Value| {
        configuration["status"] = json!({ "path": "/status" });
        change(configuration);
    };
    Options {
        mesh: Some(mesh::Options::default()),
        configure: Box::new(configure),
        ..Options::default()
    }
}

/// The configuration of the source `mesh`.
fn source(configuration: &mut Value) -> &mut Value {
    let sources = configuration["policy"]["sources"].as_array_mut().unwrap();
    let source = sources.iter_mut().find(|source| source["name"] == "mesh");
    &mut source.unwrap()["consul_intentions"]
}

fn skipped() -> bool {
    let absence = consul::absence();
    if let Some(why) = &absence {
        println!("SKIPPED: {why}");
    }
    absence.is_some()
}

/// A call of the worker that the policy allows.
async fn call(testbed: &Testbed, path: &str, headers: &[(&str, &str)]) -> Answer {
    try_call(testbed, path, headers).await.unwrap()
}

/// The same while certificates may be on their way.
async fn try_call(testbed: &Testbed, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let task = Task::new("ds_churn", "load").team("data-science");
    let (token, identity) = testbed.credentials(&task).await.unwrap();
    let mut call = Call::get(ORDERS, path).token(&token).identity(&identity);
    for (name, value) in headers {
        call = call.header(name, value);
    }
    let connector = testbed.mesh.as_ref().unwrap().connector(WORKER)?;
    call.send(testbed.listener, Some((&connector, ORDERS))).await
}

fn told(answer: &Answer) -> (u16, String) {
    (answer.status, answer.header("x-airflow-envoy-code").unwrap_or_default().to_owned())
}

/// Waits until eight calls in a row, each on a connection of its own and so spread over the workers, are answered so.
async fn until(testbed: &Testbed, status: u16, code: &str) -> Duration {
    let mut last = (0, String::new());
    let expected = format!("{status} {code}");
    let waited = within(PATIENCE, &expected, async || {
        for _ in 0..8 {
            last = match try_call(testbed, "/v1/orders/7", &[]).await {
                Ok(answer) => told(&answer),
                Err(error) => (0, error.to_string()),
            };
            if last != (status, code.to_owned()) {
                return false;
            }
        }
        true
    });
    waited.await.unwrap_or_else(|error| panic!("{error}, but {last:?}"))
}

async fn status(testbed: &Testbed) -> Value {
    let answer = call(testbed, "/status", &[]).await.json();
    let sources = answer["sources"].as_array().cloned().unwrap_or_default();
    sources.into_iter().find(|source| source["name"] == "mesh").unwrap_or(answer)
}

#[tokio::test]
async fn an_intention_of_a_real_consul_acts_on_all_workers_and_outlives_consul() {
    if skipped() {
        return;
    }
    let testbed = Testbed::start(options(|_| {})).await.unwrap();
    let consul = testbed.consul.as_ref().unwrap();
    until(&testbed, 200, "").await;
    let known = status(&testbed).await;
    assert_eq!(
        json!([known["kind"], known["from"], known["count"]]),
        json!(["intentions", "consul_intentions", 1])
    );
    let mut times = Vec::new();
    for round in 0..10 {
        let (action, status, code) = match round % 2 {
            0 => (Action::Deny, 403, "intention_denied"),
            _ => (Action::Allow, 200, ""),
        };
        let begun = Instant::now();
        intentions::put(&consul.client(), action, WORKER, DESTINATION).await.unwrap();
        until(&testbed, status, code).await;
        times.push(begun.elapsed());
    }
    println!("from a change to eight calls that are answered by it: {times:?}");
    // A more exact source does not help against a more exact destination.
    intentions::delete(&consul.client(), WORKER, DESTINATION).await.unwrap();
    until(&testbed, 403, "intention_denied").await;
    let client = consul.client();
    intentions::put(&client, Action::Allow, WORKER, "*").await.unwrap();
    until(&testbed, 200, "").await;
    intentions::put(&client, Action::Deny, "*", DESTINATION).await.unwrap();
    until(&testbed, 403, "intention_denied").await;
    let problem = call(&testbed, "/v1/orders/7", &[]).await.json();
    assert_eq!(problem["rule"], "mesh/* => orders");
    assert_eq!(problem["detail"], "Consul intentions `mesh`: `* => orders` (precedence 8) denies");
    intentions::delete(&client, "*", DESTINATION).await.unwrap();
    until(&testbed, 200, "").await;

    // Without Consul what was known last holds; a new one that knows nothing yet allows nothing.
    consul.process.stop();
    for _ in 0..20 {
        assert_eq!(told(&call(&testbed, "/v1/orders/7", &[]).await).0, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(status(&testbed).await["error"], Value::Null);
    consul.start_again().await.unwrap();
    until(&testbed, 403, "intention_denied").await;
    assert_eq!(status(&testbed).await["count"], 0);
    intentions::put(&consul.client(), Action::Allow, WORKER, DESTINATION).await.unwrap();
    until(&testbed, 200, "").await;
}

#[tokio::test]
async fn a_token_that_is_revoked_takes_no_intention_away_and_ends_in_unavailable() {
    if skipped() {
        return;
    }
    let options = Options {
        consul: Some(Access::ByToken),
        ..options(|configuration| {
            configuration["policy"]["max_age"] = json!("6s");
            let source = source(configuration);
            source["wait"] = json!("2s");
            source["timeout"] = json!("1s");
            source["poll"] = json!("200ms");
            source["token_env"] = json!("CONSUL_HTTP_TOKEN");
            // If the list were believed, or an error taken for an answer, this would open the door.
            source["default"] = json!("allow");
        })
    };
    let testbed = Testbed::start(options).await.unwrap();
    let consul = testbed.consul.as_ref().unwrap().client();
    intentions::put(&consul, Action::Deny, WORKER, DESTINATION).await.unwrap();
    until(&testbed, 403, "intention_denied").await;
    let tokens = consul.ask("GET", "/v1/acl/tokens", String::new()).await.unwrap();
    let readers = tokens
        .as_array()
        .unwrap()
        .iter()
        .filter(|token| token["Policies"].to_string().contains("reader-"));
    let readers: Vec<_> = readers.map(|token| token["AccessorID"].as_str().unwrap()).collect();
    assert_eq!(readers.len(), 1, "{tokens:#}");
    let path = format!("/v1/acl/token/{}", readers[0]);
    consul.ask("DELETE", &path, String::new()).await.unwrap();
    // Nobody is let in meanwhile, and nothing is made of the list that is empty now.
    let deadline = Instant::now() + PATIENCE;
    let unavailable = loop {
        let answer = call(&testbed, "/v1/orders/7", &[]).await;
        match told(&answer) {
            (403, code) if code == "intention_denied" => {}
            (503, code) if code == "policy_unavailable" => break answer,
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "{:#}", status(&testbed).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(unavailable.header("retry-after").is_some());
    let error = status(&testbed).await["error"]["reason"].clone();
    assert_eq!(error, "answered with status 403");
}

/// With permissions and a token.
fn matched() -> Value {
    json!({ "orders": [{
        "ID": "", "SourceName": WORKER, "SourceNS": "default", "DestinationName": "orders", "DestinationNS": "default",
        "SourceType": "consul", "SourcePartition": "default", "DestinationPartition": "default", "Precedence": 9,
        "Permissions": [
            { "Action": "deny", "HTTP": { "Header": [{ "Name": "x-tenant", "Exact": "b" }] } },
            { "Action": "allow", "HTTP": { "PathPrefix": "/v1/orders/", "Methods": ["GET"] } },
            { "Action": "allow", "HTTP": { "PathRegex": "/v1/(reports|lists)/[0-9]+" },
              "JWT": { "Providers": [{ "Name": "okta", "VerifyClaims": [{ "Path": ["sub"], "Value": "nobody" }] }] } },
        ],
        "CreateIndex": 9, "ModifyIndex": 10,
    }] })
}

#[tokio::test]
async fn what_only_newer_consuls_know_is_followed_too() {
    if skipped() {
        return;
    }
    let (modern, address) = Modern::start(matched(), [Value::Null, Value::Null]).await;
    let options = Options {
        bootstrap: Box::new(move |bootstrap| {
            bootstrap.copy_cluster("consul", "intentions").unwrap();
            bootstrap.set_endpoint("intentions", address).unwrap();
        }),
        ..options(|configuration| {
            let source = source(configuration);
            source["cluster"] = json!("intentions");
            source["jwt_providers"] = json!({ "okta": "idp" });
        })
    };
    let testbed = Testbed::start(options).await.unwrap();
    until(&testbed, 200, "").await;
    for (path, headers, expected) in [
        ("/v1/orders/7?x=1", &[][..], 200),
        ("/v1/./orders//7", &[], 200),
        ("/v1/orders/7", &[("x-tenant", "a"), ("X-Tenant", "b")], 403),
        ("/v1/orders/7", &[("x-tenant", "a,b")], 200),
        ("/v1/lists/7", &[], 403),
        ("/v1/orders", &[], 403),
    ] {
        let answer = call(&testbed, path, headers).await;
        assert_eq!(answer.status, expected, "{path} {headers:?}: {}", answer.text());
        if expected == 403 {
            assert_eq!(answer.json()["code"], "intention_denied", "{path}");
            assert_eq!(answer.json()["rule"], format!("mesh/{WORKER} => orders"));
        }
    }
    // Only `match` is asked, each time by the last index.
    modern.change(|state| {
        state.matched["orders"][0]["Permissions"] = json!([
        { "Action": "allow", "HTTP": { "PathExact": "/nowhere" } }])
    });
    let waited = until(&testbed, 403, "intention_denied").await;
    println!("a change took {waited:?}");
    let asked = modern.asked();
    assert!(asked.iter().all(|path| path.starts_with("/v1/connect/intentions/match?by=destination&name=orders")));
    assert!(asked.iter().any(|path| path.ends_with("&index=11&wait=55000ms")), "{asked:?}");
    // What it does not understand denies, and what is no answer changes nothing.
    modern.change(|state| {
        state.matched["orders"][0]["Permissions"] =
            json!([{ "Action": "allow", "HTTP": { "PathPrefix": "/", "Body": "x" } }]);
    });
    within(PATIENCE, "the field is told", async || {
        let answer = call(&testbed, "/v1/orders/7", &[]).await;
        answer.json()["detail"]
            .as_str()
            .unwrap_or_default()
            .contains("has `Body`, which is not understood")
    })
    .await
    .unwrap();
    modern.change(|state| state.matched = matched());
    until(&testbed, 200, "").await;
    for (status, body) in
        [(200, "[]"), (200, "null"), (200, "<html>"), (200, "{}"), (500, ""), (403, "")]
    {
        modern.change(|state| state.instead = Some((status, body.to_owned())));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(told(&call(&testbed, "/v1/orders/7", &[]).await).0, 200, "{status} {body}");
    }
    modern.change(|state| {
        state.instead = None;
        // As after a restart.
        state.index = 2;
        state.matched = json!({ "orders": [] });
    });
    until(&testbed, 403, "intention_denied").await;
}

#[tokio::test]
async fn both_configuration_entries_are_followed() {
    if skipped() {
        return;
    }
    let entry = |name: &str, sources: Value| json!({ "Kind": "service-intentions", "Name": name, "Sources": sources });
    let (modern, address) = Modern::start(json!(null), [Value::Null, Value::Null]).await;
    let options = Options {
        bootstrap: Box::new(move |bootstrap| {
            bootstrap.copy_cluster("consul", "intentions").unwrap();
            bootstrap.set_endpoint("intentions", address).unwrap();
        }),
        ..options(|configuration| {
            let source = source(configuration);
            source["cluster"] = json!("intentions");
            source["entries"] = json!(true);
        })
    };
    let testbed = Testbed::start(options).await.unwrap();
    until(&testbed, 403, "intention_denied").await;
    modern.change(|state| {
        state.entries[1] =
            entry("*", json!([{ "Name": WORKER, "Action": "allow", "Type": "consul" }]));
    });
    let waited = until(&testbed, 200, "").await;
    println!("a change of the entry of `*` took {waited:?}");
    modern.change(|state| {
        state.entries[0] =
            entry("orders", json!([{ "Name": "*", "Action": "deny", "Type": "consul" }]));
    });
    let waited = until(&testbed, 403, "intention_denied").await;
    println!("a change of the entry of the destination took {waited:?}");
    modern.change(|state| state.entries[0] = Value::Null);
    until(&testbed, 200, "").await;
}
