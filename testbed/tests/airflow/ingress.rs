//! Envoy in front of Airflow's API server, by `envoy-airflow-api.yaml`. All runs of the other tests pass through it, too.

use airflow_envoy_testbed::airflow::{Airflow, USER};
use airflow_envoy_testbed::{Answer, Call, send_raw, within};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::time::Duration;

use super::{orders, part, real, together};

/// A call to the gate in front of Airflow, as a worker makes it.
async fn call(airflow: &Airflow, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let (tap, ingress) = airflow.ingress.as_ref().unwrap();
    let call = headers
        .iter()
        .fold(Call::new(method, &tap.address.to_string(), path), |call, (name, value)| {
            call.header(name, value)
        });
    call.send(ingress.address, None).await.unwrap()
}

/// Method, path, headers, and the code of the answer.
type Case = (&'static str, &'static str, Vec<(&'static str, String)>, &'static str);

/// The code of a refusal by the filter; what Airflow answers has none.
fn code(answer: &Answer) -> String {
    answer.header("x-airflow-envoy-code").unwrap_or("airflow's own").to_owned()
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The token of [`USER`], as a script gets it: by logging in through the gate.
async fn log_in(airflow: &Airflow) -> String {
    let (tap, ingress) = airflow.ingress.as_ref().unwrap();
    let body = json!({ "username": USER, "password": airflow.password }).to_string();
    let call = Call::post(&tap.address.to_string(), "/auth/token", body);
    let call = call.header("content-type", "application/json");
    let answer = call.send(ingress.address, None).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_run_passes_the_gate_in_front_of_airflow() {
    let Some(testbed) = together().await else { return };
    let airflow = real(&testbed);
    let run = orders(airflow).await;
    let (_, ingress) = airflow.ingress.as_ref().unwrap();
    // Envoy writes its log a little later.
    let own = |rule: &str, path: &str| {
        ingress.calls().unwrap().iter().any(|call| call["rule"] == rule && call["path"] == path)
    };
    for task in airflow.tasks(run).await.unwrap() {
        let instance = format!("/execution/task-instances/{}", task.id());
        let patience = Duration::from_secs(5);
        let done = async || {
            own("a-queued-task-starts-itself", &format!("{instance}/run"))
                && own("a-task-tells-of-itself", &format!("{instance}/state"))
        };
        within(patience, &format!("calls of {instance} in the access log"), done).await.unwrap();
    }
    let calls = ingress.calls().unwrap();
    let works = |path: &Value| {
        path.as_str().is_some_and(|path| path.starts_with("/execution/connections/"))
    };
    assert!(calls.iter().any(|call| call["rule"] == "a-task-works" && works(&call["path"])));
}

#[tokio::test]
async fn a_task_s_token_opens_what_is_its_own_and_no_more() {
    let Some(testbed) = together().await else { return };
    let airflow = real(&testbed);
    let run = orders(airflow).await;
    let tasks = airflow.tasks(run).await.unwrap();
    let (own, other) = (tasks[0].id(), tasks[1].id());
    let queued = bearer(&airflow.task_token_for(own, "workload").await.unwrap());
    let running = bearer(&airflow.task_token(own).await.unwrap());
    let user = bearer(&log_in(airflow).await);
    let instance = |id: &str, rest: &str| format!("/execution/task-instances/{id}{rest}");

    let cases: &[(&str, &str, String, &str)] = &[
        // What is let through is answered by Airflow, which may well refuse it: the task instance is over.
        (&queued, "PATCH", instance(own, "/run"), "airflow's own"),
        (&running, "PUT", instance(own, "/heartbeat"), "airflow's own"),
        (&running, "GET", "/execution/connections/orders_plain".to_owned(), "airflow's own"),
        (&running, "GET", instance("count", "?dag_id=ds_orders"), "airflow's own"),
        (&user, "GET", "/api/v2/dags".to_owned(), "airflow's own"),
        // A token from the queue starts its own task instance, and that is all.
        (&queued, "PATCH", instance(other, "/run"), "policy_no_match"),
        (&queued, "GET", instance(own, "/run"), "policy_no_match"),
        (&queued, "PUT", instance(own, "/heartbeat"), "policy_no_match"),
        (&queued, "GET", "/execution/connections/orders_plain".to_owned(), "policy_no_match"),
        // A running one tells of itself only, and does not administer.
        (&running, "PATCH", instance(other, "/state"), "policy_no_match"),
        (&running, "PUT", instance(other, "/heartbeat"), "policy_no_match"),
        (&running, "DELETE", "/api/v2/dags/ds_orders".to_owned(), "policy_no_match"),
        (&running, "GET", "/ui/config".to_owned(), "policy_no_match"),
        (&running, "GET", "/execution/unheard-of".to_owned(), "policy_no_match"),
        // A user is no task.
        (&user, "GET", "/execution/connections/orders_plain".to_owned(), "policy_no_match"),
        (&user, "PATCH", instance(own, "/run"), "policy_no_match"),
    ];
    for (token, method, path, expected) in cases {
        let answer = call(airflow, method, path, &[("authorization", token)]).await;
        assert_eq!(
            code(&answer),
            *expected,
            "{method} {path}: {} {}",
            answer.status,
            answer.text()
        );
    }
    // Airflow itself took the user's token, which went on, and refuses to start what is over.
    let dags = call(airflow, "GET", "/api/v2/dags", &[("authorization", &user)]).await;
    assert_eq!(dags.status, 200, "{}", dags.text());
    let plain =
        call(airflow, "GET", "/execution/connections/orders_plain", &[("authorization", &running)])
            .await;
    assert_eq!(plain.status, 200, "{}", plain.text());
}

#[tokio::test]
async fn nothing_reaches_airflow_s_data_without_a_token_that_airflow_signed() {
    let Some(testbed) = together().await else { return };
    let airflow = real(&testbed);
    let user = log_in(airflow).await;
    let mut claims = part(&user, 1);
    let unsigned = {
        let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let header = json!({ "alg": "none", "typ": "JWT", "kid": "airflow-api" });
        format!("{}.{}.", encode(header), encode(claims.clone()))
    };
    let altered = {
        let parts: Vec<_> = user.split('.').collect();
        claims["sub"] = "somebody-else".into();
        format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()), parts[2])
    };
    let identity = {
        let run = orders(airflow).await;
        let sent = airflow.egress.requests().into_iter().rev();
        let mut identities =
            sent.filter_map(|passed| passed.header("x-airflow-identity").map(str::to_owned));
        let own = |identity: &String| part(identity, 1)["airflow"]["run_id"] == run.id.as_str();
        identities.find(own).unwrap()
    };
    let cookie = |token: &str| format!("theme=dark; _token={token}");
    let (good, bad) = (cookie(&user), cookie(&altered));
    let data = "/api/v2/dags";
    let cases: &[Case] = &[
        ("GET", data, vec![], "token_missing"),
        ("GET", "/execution/connections/orders_api", vec![], "token_missing"),
        ("GET", "/ui/config", vec![], "token_missing"),
        ("GET", data, vec![("authorization", bearer(&unsigned))], "token_malformed"),
        (
            "GET",
            data,
            vec![("authorization", bearer(&format!("{unsigned}eA")))],
            "token_algorithm_not_allowed",
        ),
        ("GET", data, vec![("authorization", bearer(&altered))], "token_signature_invalid"),
        // A task's identity is no token for Airflow: it is of another issuer, with other keys.
        ("GET", data, vec![("authorization", bearer(&identity))], "token_issuer_unknown"),
        ("GET", data, vec![("cookie", good.clone())], "airflow's own"),
        ("GET", data, vec![("cookie", bad)], "token_signature_invalid"),
        ("GET", data, vec![("cookie", format!("session={user}"))], "token_missing"),
        ("GET", data, vec![("cookie", format!("{good}; _token=other"))], "header_repeated"),
        // However the path is written.
        ("GET", "/%65xecution/connections/orders_api", vec![], "token_missing"),
        ("GET", "//execution/connections/orders_api", vec![], "token_missing"),
        ("GET", "/static/../api/v2/dags", vec![], "token_missing"),
        ("GET", "/auth/%2e%2e/api/v2/dags", vec![], "token_missing"),
        ("GET", "/api;x/v2/dags", vec![], "token_missing"),
        // What is not read is not open.
        ("POST", "/", vec![], "token_missing"),
        ("DELETE", "/pluginsv2/x", vec![], "token_missing"),
        // What is open.
        ("GET", "/execution/health", vec![], "airflow's own"),
        ("GET", "/api/v2/monitor/health", vec![], "airflow's own"),
        ("GET", "/api/v2/version", vec![], "airflow's own"),
        ("GET", "/auth/login/", vec![], "airflow's own"),
        ("GET", "/", vec![], "airflow's own"),
        ("GET", "/airflow-envoy/jwks.json", vec![], "airflow's own"),
    ];
    for (method, path, headers, expected) in cases {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let answer = call(airflow, method, path, &headers).await;
        assert_eq!(
            code(&answer),
            *expected,
            "{method} {path}: {} {}",
            answer.status,
            answer.text()
        );
        if *expected == "airflow's own" {
            assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        }
    }
    // Envoy itself refuses what it cannot read in one way.
    let (tap, ingress) = airflow.ingress.as_ref().unwrap();
    let request = format!(
        "GET /static/..%2fapi/v2/dags HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        tap.address
    );
    let answer = send_raw(ingress.address, request.as_bytes()).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
}

/// A key that signs Airflow's API tokens must not be able to sign an identity, and the other way round.
#[tokio::test]
async fn the_two_key_sets_of_the_api_server_have_no_key_in_common() {
    let Some(testbed) = together().await else { return };
    let airflow = real(&testbed);
    let keys = async |path: &str| {
        let answer = call(airflow, "GET", path, &[]).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()["keys"].as_array().unwrap().clone()
    };
    let identities = keys("/airflow-envoy/jwks.json").await;
    let tokens = keys("/airflow-envoy/airflow-jwks.json").await;
    assert!(!identities.is_empty() && !tokens.is_empty());
    for key in identities.iter().chain(&tokens) {
        assert!(key.get("d").is_none(), "a private key is public");
    }
    assert!(tokens.iter().all(|token| {
        identities.iter().all(|key| key["x"] != token["x"] && key["kid"] != token["kid"])
    }));
}
