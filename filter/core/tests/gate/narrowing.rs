//! Roles that Consul's catalog takes from callers of a service.

use airflow_envoy_core::feed::{Answer, Response};
use serde_json::{Value, json};

use crate::process::Process;
use crate::worker::*;

fn narrowing() -> Value {
    let mut configuration = configuration();
    configuration["peer"] = json!({
        "trust_domains": ["td"],
        "narrow": {
            "cluster": "consul", "meta": "airflow_role", "services": ["airflow-worker"],
            "wait": "1s", "timeout": "1s", "poll": "1s", "max_age": "5s",
        },
    });
    configuration["status"] = json!({ "path": "/status" });
    configuration
}

/// Who has the role `Op` may call, and whoever has `Auditor` may not.
fn by_roles() -> Vec<u8> {
    json!({
        "version": 1,
        "destinations": { "orders": { "hosts": ["orders.internal"] } },
        "rules": [
            { "id": "operators", "effect": "allow", "from": { "airflow_roles": ["Op"] }, "to": ["orders"] },
            { "id": "no-auditors", "effect": "deny", "from": { "airflow_roles": ["Audit*"] }, "to": ["orders"] },
        ],
    })
    .to_string()
    .into_bytes()
}

fn catalog(roles: &str) -> Vec<u8> {
    json!([{ "ServiceName": "airflow-worker", "ServiceMeta": { "airflow_role": roles } }])
        .to_string()
        .into_bytes()
}

fn peer(service: &str) -> String {
    let digest = "11".repeat(32);
    format!("true {digest} {} spiffe://td/ns/default/dc/dc1/svc/{service}", NOW + 3600)
}

fn task(roles: &[&str]) -> (String, String) {
    credentials_with("t1-p256", "a1-p256", "etl", &json!({ "roles": roles }))
}

/// With everything but the catalog.
fn worker() -> Worker {
    worker_by(&narrowing())
}

fn worker_by(configuration: &Value) -> Worker {
    let mut worker = Worker::new(configuration);
    worker.peer = Some(peer("airflow-worker"));
    worker.tick(0);
    worker.bring("idp", &keys(&["t1-p256"]), 0);
    worker.bring("airflow", &keys(&["a1-p256"]), 0);
    worker.bring("policy", &by_roles(), 0);
    worker
}

fn detail(worker: &mut Worker, task: &(String, String), seconds: i64) -> String {
    match worker.verdict(task, &[], seconds) {
        airflow_envoy_core::gate::Verdict::Reject(rejection) => rejection.reject.detail.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_role_that_the_service_has_not_opens_nothing_and_may_close() {
    let mut worker = worker();
    let (operator, auditor) = (task(&["Op"]), task(&["Op", "Auditor"]));
    worker.bring("consul", &catalog("Op, Viewer"), 0);
    assert_eq!(worker.ask(&operator, 0), "permit");
    // It was taken away, and nobody knows that it is absent.
    assert_eq!(worker.ask(&auditor, 0), "policy_denied");
    assert!(detail(&mut worker, &auditor, 0).contains("the catalog took `Auditor`"));
    // What the catalog has and the identity has not is not given.
    assert_eq!(worker.ask(&task(&["Viewer"]), 0), "policy_no_match");
    // An identity that says nothing of roles has nothing to lose.
    let silent = credentials("t1-p256", "a1-p256", "etl");
    assert!(detail(&mut worker, &silent, 0).contains("nothing is known"));
    // Nobody else loses anything.
    worker.peer = Some(peer("airflow-triggerer"));
    assert_eq!(worker.ask(&operator, 0), "permit");
}

#[test]
fn no_service_keeps_its_roles_by_leaving_its_certificate_at_home() {
    let mut configuration = narrowing();
    configuration["peer"]["identity"] = json!("optional");
    let mut worker = worker_by(&configuration);
    worker.bring("consul", &catalog("User"), 0);
    let operator = task(&["Op"]);
    assert_eq!(worker.ask(&operator, 0), "policy_no_match");
    for evidence in [None, Some("- - - -".to_owned()), Some("false - - -".to_owned())] {
        worker.peer = evidence;
        assert_eq!(worker.ask(&operator, 0), "policy_no_match", "{:?}", worker.peer);
        // A deny rule cannot know that the role is absent.
        assert_eq!(worker.ask(&task(&["Auditor"]), 0), "policy_denied");
    }
}

#[test]
fn what_the_catalog_says_now_counts_for_remembered_callers_too() {
    let mut worker = worker();
    let operator = task(&["Op"]);
    assert_eq!(worker.ask(&operator, 0), "policy_no_match", "nothing is known of the service");
    assert!(detail(&mut worker, &operator, 0).contains("the catalog took `Op` from its service"));
    for (second, roles, expected) in
        [(0, "Op", "permit"), (1, "User", "policy_no_match"), (2, "User,Op", "permit")]
    {
        worker.tick(second);
        worker.bring("consul", &catalog(roles), second);
        assert_eq!(worker.ask(&operator, second), expected, "{roles}");
        worker.tick(second);
    }
    // An instance without the role takes it from all.
    worker.tick(3);
    let two = json!([
        { "ServiceMeta": { "airflow_role": "Op" } }, { "ServiceMeta": { "airflow_role": "User" } },
    ]);
    worker.bring("consul", two.to_string().as_bytes(), 3);
    assert_eq!(worker.ask(&operator, 3), "policy_no_match");
}

#[test]
fn what_could_not_be_confirmed_for_too_long_takes_every_role() {
    let mut worker = worker();
    let operator = task(&["Op"]);
    worker.bring("consul", &catalog("Op"), 0);
    for (second, expected) in [(1, "permit"), (5, "permit"), (6, "policy_no_match")] {
        worker.tick(second);
        if worker.fetching("consul") > 0 {
            worker.fail("consul", second);
        }
        assert_eq!(worker.ask(&operator, second), expected, "{second}");
    }
    // Rules that ask for no role go on, and so does readiness.
    let reply = worker.gate.status(at(6)).reply("GET");
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    let source = body["sources"].as_array().unwrap().last().unwrap();
    assert_eq!(reply.status, 200, "{body}");
    assert_eq!(
        (&source["name"], &source["kind"], &source["from"], &source["ready"], &source["count"]),
        (
            &json!("catalog-airflow-worker"),
            &json!("catalog"),
            &json!("consul_catalog"),
            &json!(false),
            &json!(0)
        )
    );
    let back = (7..40).find(|second| {
        worker.tick(*second);
        let asks = worker.fetching("consul") > 0;
        if asks {
            worker.bring("consul", &catalog("Op"), *second);
        }
        asks
    });
    assert_eq!(worker.ask(&operator, back.unwrap()), "permit");
}

#[test]
fn unfit_answers_leave_the_last_good_one_and_an_empty_one_is_good() {
    let mut worker = worker();
    let operator = task(&["Op"]);
    worker.bring("consul", &catalog("Op"), 0);
    worker.tick(1);
    worker.bring("consul", b"<html>", 1);
    assert_eq!(worker.ask(&operator, 1), "permit");
    for second in 2..5 {
        worker.tick(second);
        if worker.fetching("consul") > 0 {
            // As a token that may not read the service gets it.
            worker.bring("consul", b"[]", second);
            break;
        }
    }
    assert_eq!(worker.ask(&operator, 4), "policy_no_match");
}

#[test]
fn the_catalog_is_watched_by_blocking_queries() {
    let mut worker = worker();
    let path = |worker: &Worker| {
        let fetch = worker.fetches.iter().find(|fetch| fetch.cluster == "consul").unwrap();
        fetch.headers.iter().find(|(name, _)| *name == ":path").unwrap().1.clone()
    };
    assert_eq!(path(&worker), "/v1/catalog/service/airflow-worker");
    let response = Response {
        status: 200,
        index: Some("7".to_owned()),
        body: catalog("Op"),
        ..Response::default()
    };
    let feed = worker.under_way("consul");
    let effects = worker.gate.answered(feed, Answer::Http(response), at(0));
    worker.take(effects);
    worker.tick(1);
    assert_eq!(path(&worker), "/v1/catalog/service/airflow-worker?index=7&wait=1000ms");
}

#[test]
fn one_worker_asks_the_catalog_for_all() {
    let mut process = Process::start(3, narrowing());
    process.serve("policy", 200, by_roles());
    process.served.push(("consul", 200, catalog("Op")));
    for worker in &mut process.workers {
        worker.peer = Some(peer("airflow-worker"));
    }
    process.tick(0);
    process.callouts.sort();
    assert_eq!(process.callouts, ["airflow", "consul", "idp", "policy"]);
    let operator = task(&["Op"]);
    assert_eq!(process.ask_all(&operator, 0), process.all("permit"));
    process.serve("consul", 200, catalog("User"));
    process.tick(2);
    assert_eq!(process.ask_all(&operator, 2), process.all("policy_no_match"));
}
