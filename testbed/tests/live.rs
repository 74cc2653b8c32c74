//! Keys and policy while they change, on a real Envoy: one fetcher, no restart, no refusal that should not be, and the
//! last good document whatever happens.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use airflow_envoy_testbed::document::{Document, Source};
use airflow_envoy_testbed::oidc::{DISCOVERY_PATH, KEYS_PATH};
use airflow_envoy_testbed::server::serve;
use airflow_envoy_testbed::{
    Access, Answer, Call, Configure, Fault, ORDERS, Options, Received, Serving, Signer, Task,
    Testbed, consul, eventually, within,
};
use serde_json::{Value, json};

/// The key in Consul with the policy.
const KEY: &str = "airflow-envoy/policy/main";
/// Where the filter tells its state.
const STATUS: &str = "/airflow-envoy/status";

fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

fn read_order() -> Call {
    Call::get(ORDERS, "/v1/orders/7")
}

/// The testbed's policy, as this revision of it.
fn allowing(revision: u64) -> Value {
    let mut policy = airflow_envoy_testbed::policy().unwrap();
    policy["revision"] = json!(revision);
    policy
}

/// The same without the rule by which data science reads orders.
fn denying(revision: u64) -> Value {
    let mut policy = allowing(revision);
    let rules = policy["rules"].as_array_mut().unwrap();
    rules.retain(|rule| rule["id"] != "data-science-reads-orders");
    policy
}

/// Both key sets are fetched this often, and not more often than the least time says.
fn refresh(configuration: &mut Value, refresh: &str, least: &str) {
    for place in ["/issuers/0/jwks", "/airflow/issuers/0/jwks"] {
        let keys = configuration.pointer_mut(place).unwrap();
        keys["refresh"] = json!(refresh);
        keys["min_refresh"] = json!(least);
        keys["timeout"] = json!("1s");
    }
}

/// Takes the policy from Consul.
fn from_consul(configuration: &mut Value) {
    configuration["policy"]["sources"] = json!([{
        "name": "kv",
        "consul_kv": { "cluster": "consul", "key": KEY, "wait": "10s", "timeout": "2s", "poll": "200ms" },
    }]);
}

#[track_caller]
fn permitted(answer: &Answer) -> Received {
    assert_eq!(answer.status, 200, "{}", answer.text());
    Received::from_answer(answer).unwrap()
}

#[track_caller]
fn rejected(answer: &Answer, status: u16, code: &str) {
    let seen = (answer.status, answer.header("x-airflow-envoy-code"));
    assert_eq!(seen, (status, Some(code)), "{}", answer.text());
}

/// Waits until twelve calls in a row, each on a connection of its own and so spread over the workers, are answered so.
async fn until_all(testbed: &Testbed, what: &str, is_so: impl Fn(&Answer) -> bool) -> Duration {
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    within(Duration::from_secs(8), what, async || {
        for _ in 0..12 {
            let call = testbed.call(read_order().token(&token).identity(&identity));
            if !is_so(&call.await.unwrap()) {
                return false;
            }
        }
        true
    })
    .await
    .unwrap()
}

/// Waits until calls have this status.
async fn until(testbed: &Testbed, status: u16) -> Duration {
    let what = format!("calls are answered with {status}");
    until_all(testbed, &what, |answer| answer.status == status).await
}

/// Calls for `time`, each of which has this status.
async fn always(testbed: &Testbed, status: u16, time: Duration) {
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let call = testbed.call(read_order().token(&token).identity(&identity));
        let answer = call.await.unwrap();
        let after = begun.elapsed();
        assert_eq!(answer.status, status, "after {after:?}: {}", answer.text());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the filter says of itself, and whether it is ready.
async fn status(testbed: &Testbed) -> (u16, Value) {
    let answer = testbed.call(Call::get(ORDERS, STATUS)).await.unwrap();
    (answer.status, answer.json())
}

/// What the filter says of one source.
async fn source(testbed: &Testbed, name: &str) -> Value {
    let (_, status) = status(testbed).await;
    let sources = status["sources"].as_array().cloned().unwrap_or_default();
    let found = sources.into_iter().find(|source| source["name"] == name);
    found.unwrap_or_else(|| json!({ "missing": status }))
}

/// How often a callout had this outcome.
async fn callouts(testbed: &Testbed, source: &str, outcome: &str) -> u64 {
    let name = format!("wasmcustom.airflow_envoy.callouts.{source}.{outcome}");
    testbed.stat(&name).await.unwrap()
}

/// Waits until a callout has this outcome once more.
async fn again(testbed: &Testbed, source: &str, outcome: &str) {
    let before = callouts(testbed, source, outcome).await;
    within(Duration::from_secs(8), &format!("`{source}` is `{outcome}`"), async || {
        callouts(testbed, source, outcome).await > before
    })
    .await
    .unwrap();
}

fn options(change: impl FnOnce(&mut Value) + Send + 'static) -> Options {
    let configure: Configure = Box::new(move |configuration| {
        configuration["status"] = json!({ "path": STATUS });
        configuration["policy"]["sources"][0]["http"]["poll"] = json!("200ms");
        change(configuration);
    });
    Options { configure, ..Options::default() }
}

#[tokio::test]
async fn keys_are_found_by_discovery_unless_the_document_is_another_issuer_s() {
    let options = options(|configuration| {
        configuration["issuers"][0]["jwks"] = json!({
            "cluster": "idp", "discovery": format!("https://idp.internal{DISCOVERY_PATH}"),
            "refresh": "500ms", "min_refresh": "200ms", "timeout": "1s",
        });
    });
    let testbed = Testbed::start(options).await.unwrap();
    let old = testbed.credentials(&churn()).await.unwrap();
    let call = |(token, identity): &(String, String)| {
        testbed.call(read_order().token(token).identity(identity))
    };
    permitted(&call(&old).await.unwrap());
    assert!(testbed.oidc.requests(DISCOVERY_PATH).await.unwrap() >= 1);
    assert!(testbed.oidc.requests(KEYS_PATH).await.unwrap() >= 1);
    assert_eq!(source(&testbed, "idp").await["from"], "discovery");

    // One letter more is another issuer; what it says about keys is not followed.
    let mut document = testbed.oidc.document(DISCOVERY_PATH).await.unwrap();
    document["issuer"] = json!("https://idp.internal/");
    let instead = Serving::Instead(200, document.to_string());
    testbed.oidc.serve(DISCOVERY_PATH, instead).await.unwrap();
    // When keys cannot be fetched, they may have moved, and the document is read anew.
    testbed.oidc.serve(KEYS_PATH, Serving::Close).await.unwrap();
    again(&testbed, "idp", "unfit").await;
    testbed.oidc.serve(KEYS_PATH, Serving::Well).await.unwrap();
    testbed.oidc.rotate(true).await.unwrap();
    permitted(&call(&old).await.unwrap());
    // Whether there is such a key is not known as long as the keys cannot be fetched.
    let new = testbed.credentials(&churn()).await.unwrap();
    rejected(&call(&new).await.unwrap(), 503, "keys_unavailable");
    let said = source(&testbed, "idp").await["error"]["reason"].to_string();
    assert!(said.contains("issuer"), "{said}");

    testbed.oidc.serve(DISCOVERY_PATH, Serving::Well).await.unwrap();
    until(&testbed, 200).await;
    rejected(&call(&old).await.unwrap(), 401, "token_key_unknown");
}

#[tokio::test]
async fn a_call_with_a_new_key_waits_for_it_and_is_never_refused() {
    const ROTATIONS: u64 = 4;
    for concurrency in [2, 4] {
        let options = Options {
            concurrency,
            ..options(|configuration| refresh(configuration, "5m", "300ms"))
        };
        let testbed = Testbed::start(options).await.unwrap();
        until(&testbed, 200).await;
        let before = testbed.oidc.requests(KEYS_PATH).await.unwrap();
        for rotation in 0..ROTATIONS {
            testbed.oidc.rotate(false).await.unwrap();
            testbed.airflow.rotate(false);
            let (token, identity) = testbed.credentials(&churn()).await.unwrap();
            let calls: Vec<_> = (0..16)
                .map(|_| {
                    let call = read_order().token(&token).identity(&identity);
                    tokio::spawn(call.send(testbed.listener, None))
                })
                .collect();
            for call in calls {
                let answer = call.await.unwrap().unwrap();
                assert_eq!(answer.status, 200, "rotation {rotation}: {}", answer.text());
            }
        }
        let fetches = testbed.oidc.requests(KEYS_PATH).await.unwrap() - before;
        // One a rotation, and one more if a call came after the first was sent.
        let most = 2 * ROTATIONS;
        assert!((ROTATIONS..=most).contains(&fetches), "{fetches} at concurrency {concurrency}");
    }
}

#[tokio::test]
async fn a_process_fetches_each_document_once_an_interval_however_many_workers_and_filters() {
    let change = |configuration: &mut Value| {
        refresh(configuration, "1s", "1s");
        configuration["policy"]["sources"][0]["http"]["poll"] = json!("1s");
    };
    let second: Configure = Box::new(|configuration| configuration["forward_token"] = json!(true));
    let options = Options { concurrency: 4, second: Some(second), ..options(change) };
    let testbed = Testbed::start(options).await.unwrap();
    until(&testbed, 200).await;
    let counted = async || {
        let keys = testbed.oidc.requests(KEYS_PATH).await.unwrap();
        [keys, testbed.airflow.keys.fetches(), testbed.policy.fetches()]
    };
    let before = counted().await;
    always(&testbed, 200, Duration::from_secs(5)).await;
    let after = counted().await;
    for (what, (before, after)) in
        ["keys", "keys of Airflow", "policy"].into_iter().zip(before.into_iter().zip(after))
    {
        let fetches = after - before;
        assert!((3..=6).contains(&fetches), "{what}: {fetches} fetches in 5 s");
    }
}

#[tokio::test]
async fn a_key_that_is_withdrawn_opens_nothing_after_the_next_fetch() {
    let change = |configuration: &mut Value| refresh(configuration, "500ms", "200ms");
    let testbed = Testbed::start(Options { concurrency: 4, ..options(change) }).await.unwrap();
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let call = || testbed.call(read_order().token(&token).identity(&identity));
    for _ in 0..12 {
        permitted(&call().await.unwrap());
    }
    testbed.oidc.rotate(true).await.unwrap();
    within(Duration::from_secs(2), "the old key is known to no worker", async || {
        for _ in 0..12 {
            if call().await.unwrap().status == 200 {
                return false;
            }
        }
        true
    })
    .await
    .unwrap();
    for _ in 0..12 {
        rejected(&call().await.unwrap(), 401, "token_key_unknown");
    }
    until(&testbed, 200).await;
}

#[tokio::test]
async fn what_cannot_be_fetched_serves_until_it_is_too_old_and_comes_back() {
    let testbed = Testbed::start(options(|configuration| {
        refresh(configuration, "500ms", "200ms");
        configuration["policy"]["max_age"] = json!("3s");
        configuration["issuers"][0]["jwks"]["max_age"] = json!("3s");
    }))
    .await
    .unwrap();
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let call = || testbed.call(read_order().token(&token).identity(&identity));
    for code in ["policy_unavailable", "keys_unavailable"] {
        eventually("it serves", async || call().await.unwrap().status == 200).await.unwrap();
        if code == "policy_unavailable" {
            testbed.policy.fault(Fault::Close);
        } else {
            testbed.provider.stop();
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            permitted(&call().await.unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut last = None;
        within(Duration::from_secs(6), "it is too old", async || {
            let answer = call().await.unwrap();
            let refused = answer.status == 503;
            last = Some(answer);
            refused
        })
        .await
        .unwrap();
        let answer = last.unwrap();
        rejected(&answer, 503, code);
        let after = answer.header("retry-after").and_then(|after| after.parse::<u64>().ok());
        assert!(after.is_some_and(|after| after > 0), "{:?}", answer.headers);
        if code == "policy_unavailable" {
            testbed.policy.heal();
        } else {
            testbed.provider.start_again().await.unwrap();
        }
        within(Duration::from_secs(10), "it is back", async || call().await.unwrap().status == 200)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_long_poll_brings_a_policy_at_once_and_is_held_once() {
    let testbed = Testbed::start(Options {
        concurrency: 4,
        ..options(|configuration| {
            configuration["policy"]["sources"][0]["http"]["poll"] = json!("1s");
            configuration["policy"]["sources"][0]["http"]["long_poll"] = json!("20s");
        })
    })
    .await
    .unwrap();
    let held = async || {
        eventually("one fetch is held", async || testbed.policy.held() == 1).await.unwrap();
    };
    until(&testbed, 200).await;
    held().await;
    assert_eq!(source(&testbed, "main").await["from"], "long_poll");
    let mut times = Vec::new();
    for revision in 2..8 {
        let (policy, status) =
            if revision % 2 == 0 { (denying(revision), 403) } else { (allowing(revision), 200) };
        held().await;
        testbed.policy.set(&policy);
        times.push(until(&testbed, status).await);
    }
    println!("from a new policy to its use by every worker: {times:?}");
    assert!(times.iter().all(|time| *time < Duration::from_secs(1)), "{times:?}");
    held().await;
    let before = testbed.policy.fetches();
    always(&testbed, 200, Duration::from_secs(2)).await;
    assert_eq!(testbed.policy.fetches() - before, 0, "nothing changed");
}

#[tokio::test]
async fn a_policy_in_consul_acts_at_once_and_outlives_its_key_and_consul_itself() {
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
        return;
    }
    let options = Options { consul: Some(Access::Open), ..options(from_consul) };
    let testbed = Testbed::start(options).await.unwrap();
    let consul = testbed.consul.as_ref().unwrap();
    let put = async |policy: Value| consul.put(KEY, policy.to_string()).await.unwrap();
    let answer = testbed.call_as(&churn(), read_order()).await.unwrap();
    rejected(&answer, 503, "policy_unavailable");

    put(allowing(1)).await;
    until(&testbed, 200).await;
    assert_eq!(source(&testbed, "kv").await["from"], "consul_kv");
    let mut times = Vec::new();
    for revision in 2..6 {
        let (policy, status) =
            if revision % 2 == 0 { (denying(revision), 403) } else { (allowing(revision), 200) };
        put(policy).await;
        times.push(until(&testbed, status).await);
    }
    println!("from a new value to its use by every worker: {times:?}");
    assert!(times.iter().all(|time| *time < Duration::from_secs(1)), "{times:?}");

    // It is unfit once: Consul tells changes, not states.
    put(json!({})).await;
    eventually("it is unfit", async || callouts(&testbed, "kv", "unfit").await == 1).await.unwrap();
    always(&testbed, 200, Duration::from_millis(300)).await;
    consul.delete(KEY).await.unwrap();
    always(&testbed, 200, Duration::from_secs(1)).await;
    put(denying(6)).await;
    until(&testbed, 403).await;

    // A restart loses everything, the indexes too; a poll with an old one would be blind.
    consul.process.stop();
    always(&testbed, 403, Duration::from_secs(1)).await;
    consul.start_again().await.unwrap();
    always(&testbed, 403, Duration::from_secs(1)).await;
    put(allowing(7)).await;
    until(&testbed, 200).await;
}

#[tokio::test]
async fn the_token_for_consul_comes_from_the_environment_and_a_wrong_one_opens_nothing() {
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
        return;
    }
    let change = |configuration: &mut Value| {
        from_consul(configuration);
        let source = &mut configuration["policy"]["sources"][0]["consul_kv"];
        source["token_env"] = json!("CONSUL_HTTP_TOKEN");
        source["datacenter"] = json!("dc1");
    };
    let by_token = || Options { consul: Some(Access::ByToken), ..options(change) };
    let testbed = Testbed::start(by_token()).await.unwrap();
    let put = async |testbed: &Testbed| {
        let consul = testbed.consul.as_ref().unwrap();
        consul.put(KEY, allowing(1).to_string()).await.unwrap();
    };
    put(&testbed).await;
    until(&testbed, 200).await;

    let wrong = "00000000-1111-4222-8333-444444444444";
    let options = Options { consul_token: Some(wrong.to_owned()), ..by_token() };
    let testbed = Testbed::start(options).await.unwrap();
    put(&testbed).await;
    again(&testbed, "kv", "failed").await;
    let answer = testbed.call_as(&churn(), read_order()).await.unwrap();
    rejected(&answer, 503, "policy_unavailable");
    let (ready, said) = status(&testbed).await;
    assert_eq!(ready, 503, "{said}");
    let error = &source(&testbed, "kv").await["error"];
    assert!(error["reason"].to_string().contains("403"), "{said}");
    for text in [testbed.envoy_log(), said.to_string()] {
        assert!(!text.contains(wrong), "{text}");
    }
}

/// A policy, signed.
fn signed(signer: &Signer, policy: &Value) -> String {
    let header = json!({ "typ": "airflow-policy+jws", "alg": "ES256", "kid": signer.key_id() });
    signer.sign(&header, policy)
}

#[tokio::test]
async fn a_signed_policy_is_replaced_only_by_a_newer_one_of_a_trusted_signer() {
    let signer = Signer::new("policy-1");
    let trusted = signer.public_key();
    let testbed = Testbed::start(Options {
        policy: Source::Text(signed(&signer, &allowing(5))),
        reloadable: true,
        ..options(move |configuration| {
            configuration["policy"]["trust"] = json!({ "keys": [trusted], "required": true });
        })
    })
    .await
    .unwrap();
    until(&testbed, 200).await;
    assert_eq!(source(&testbed, "main").await["revision"], 5);

    let forger = Signer::new("policy-1");
    let tampered = signed(&signer, &denying(7)).replace('.', ".e30");
    for (what, text) in [
        ("unsigned", denying(6).to_string()),
        ("by a key of the same name", signed(&forger, &denying(6))),
        ("tampered", tampered),
        ("older", signed(&signer, &denying(4))),
        (
            "of another type",
            signer.sign(&json!({ "typ": "JWT", "alg": "ES256", "kid": "policy-1" }), &denying(6)),
        ),
    ] {
        testbed.policy.set_text(text);
        again(&testbed, "main", "unfit").await;
        let answer = testbed.call_as(&churn(), read_order()).await.unwrap();
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        // Whoever answers, its leader has told it why.
        eventually(what, async || {
            let said = source(&testbed, "main").await;
            said["error"]["reason"].is_string() && said["ready"] == true
        })
        .await
        .unwrap();
    }

    testbed.policy.set_text(signed(&signer, &denying(8)));
    until(&testbed, 403).await;
    // New VMs know no less than the old ones did.
    testbed.policy.set_text(signed(&signer, &allowing(7)));
    again(&testbed, "main", "unfit").await;
    testbed.replace_vms().await.unwrap();
    always(&testbed, 403, Duration::from_secs(1)).await;
    again(&testbed, "main", "unfit").await;
    always(&testbed, 403, Duration::from_secs(1)).await;
    testbed.policy.set_text(signed(&signer, &allowing(9)));
    until(&testbed, 200).await;
}

#[tokio::test]
async fn sources_add_up_and_a_deny_of_any_of_them_wins() {
    let base = json!({
        "version": 1, "revision": 1,
        "destinations": { "orders": { "hosts": [ORDERS] } },
        "rules": [
            { "id": "base-denies", "effect": "deny", "to": ["orders"], "paths": ["/v1/orders/9"] },
            { "id": "base-allows", "effect": "allow", "to": ["orders"], "paths": ["/v1/customers"] },
        ],
    });
    let testbed = Testbed::start(options(move |configuration| {
        let sources = configuration["policy"]["sources"].as_array_mut().unwrap();
        sources.push(json!({ "name": "base", "inline": base }));
    }))
    .await
    .unwrap();
    let call = |path: &str| {
        let call = Call::get(ORDERS, path);
        async { testbed.call_as(&churn(), call).await.unwrap() }
    };
    permitted(&call("/v1/orders/7").await);
    permitted(&call("/v1/customers").await);
    rejected(&call("/v1/orders/9").await, 403, "policy_denied");
    rejected(&call("/v1/orders/7/card").await, 403, "policy_denied");
    rejected(&call("/v1/elsewhere").await, 403, "policy_no_match");
    assert_eq!(source(&testbed, "base").await["from"], "inline");
    assert_eq!(source(&testbed, "main").await["from"], "http");

    testbed.policy.set(&denying(2));
    until(&testbed, 403).await;
    permitted(&call("/v1/customers").await);
}

#[tokio::test]
async fn a_source_that_never_came_leaves_nothing_allowed() {
    let base = allowing(1);
    let testbed = Testbed::start(Options {
        policy_fault: Some(Fault::Status(500)),
        ..options(move |configuration| {
            let sources = configuration["policy"]["sources"].as_array_mut().unwrap();
            sources.push(json!({ "name": "base", "inline": base }));
            configuration["waiting"]["time"] = json!("500ms");
        })
    })
    .await
    .unwrap();
    let answer = testbed.call_as(&churn(), read_order()).await.unwrap();
    rejected(&answer, 503, "policy_unavailable");
    testbed.policy.heal();
    within(Duration::from_secs(10), "both are here", async || {
        testbed.call_as(&churn(), read_order()).await.unwrap().status == 200
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn in_shadow_mode_every_call_passes_and_what_would_have_been_is_counted() {
    let testbed = Testbed::start(options(|configuration| configuration["mode"] = json!("shadow")))
        .await
        .unwrap();
    // In this mode no worker lets a call wait for its policy.
    let is_decided = |answer: &Answer| permitted(answer).header("x-airflow-shadow").is_empty();
    until_all(&testbed, "each worker has its policy", is_decided).await;
    let allowed = permitted(&testbed.call_as(&churn(), read_order()).await.unwrap());
    assert_eq!(allowed.header("x-airflow-dag-id"), ["ds_churn"]);
    // Nobody vouches for this caller, so nothing of what it says about itself goes on.
    let lie = read_order().header("x-airflow-dag-id", "ds_payroll");
    let refused = permitted(&testbed.call(lie).await.unwrap());
    assert_eq!(refused.header("x-airflow-dag-id"), [""; 0]);
    assert_eq!(refused.header("x-airflow-shadow"), ["reject"]);
    let stranger = Task::new("ds_churn", "load").team("sales");
    let refused = permitted(&testbed.call_as(&stranger, read_order()).await.unwrap());
    let entry = testbed.access_log_of(refused.header("x-airflow-decision-id")[0]).await.unwrap();
    let seen = [&entry["decision"], &entry["shadow_decision"], &entry["shadow_code"]];
    assert_eq!(seen, ["permit", "reject", "policy_no_match"], "{entry:#}");
    assert_eq!(status(&testbed).await.1["mode"], "shadow");
    for which in [".token_missing", ";destination=orders.policy_no_match"] {
        let name = format!("wasmcustom.airflow_envoy.shadow_decisions{which}");
        eventually(which, async || testbed.stat(&name).await.unwrap() > 0).await.unwrap();
    }
}

#[tokio::test]
async fn the_filter_says_what_it_has_from_where_and_how_old_and_whether_it_is_ready() {
    let testbed = Testbed::start(Options {
        airflow_keys_fault: Some(Fault::Status(500)),
        ..options(|configuration| refresh(configuration, "500ms", "200ms"))
    })
    .await
    .unwrap();
    eventually("all but one source are ready", async || {
        let (code, said) = status(&testbed).await;
        let ready = said["sources"]
            .as_array()
            .map_or(0, |sources| sources.iter().filter(|source| source["ready"] == true).count());
        code == 503 && said["ready"] == false && ready == 2
    })
    .await
    .unwrap();
    let keys = source(&testbed, "airflow").await;
    assert_eq!(
        (&keys["kind"], &keys["ready"], &keys["digest"]),
        (&json!("keys"), &json!(false), &Value::Null)
    );
    assert!(keys["error"]["reason"].to_string().contains("500"), "{keys}");

    testbed.airflow.keys.heal();
    within(Duration::from_secs(10), "it is ready", async || status(&testbed).await.0 == 200)
        .await
        .unwrap();
    let (_, said) = status(&testbed).await;
    assert_eq!((&said["ready"], &said["mode"]), (&json!(true), &json!("enforce")), "{said}");
    let names: Vec<_> =
        said["sources"].as_array().unwrap().iter().map(|source| &source["name"]).collect();
    for name in ["idp", "airflow", "main"] {
        assert!(names.contains(&&json!(name)), "{said}");
    }
    let policy = source(&testbed, "main").await;
    for (member, value) in [
        ("kind", json!("policy")),
        ("from", json!("http")),
        ("ready", json!(true)),
        ("revision", json!(1)),
        ("count", json!(20)),
        ("max_age_seconds", json!(900)),
        ("breaker", json!("closed")),
        ("error", Value::Null),
    ] {
        assert_eq!(policy[member], value, "{member} of {policy}");
    }
    assert!(policy["age_seconds"].as_u64().unwrap() <= 2, "{policy}");
    for member in ["digest", "leader"] {
        let text = policy[member].as_str().unwrap();
        assert!(
            !text.is_empty() && text.chars().all(|digit| digit.is_ascii_hexdigit()),
            "{policy}"
        );
    }
    assert_eq!(testbed.call(Call::post(ORDERS, STATUS, "{}")).await.unwrap().status, 405);
    // A longer path is a call like any other.
    let call = Call::get(ORDERS, "/airflow-envoy/status/more");
    rejected(&testbed.call(call).await.unwrap(), 401, "token_missing");
}

#[tokio::test]
async fn an_endpoint_that_fails_is_asked_less_and_closes_its_breaker_when_it_is_back() {
    let testbed = Testbed::start(options(|configuration| {
        configuration["policy"]["sources"][0]["http"]["poll"] = json!("4s");
    }))
    .await
    .unwrap();
    until(&testbed, 200).await;
    let breaker = async || testbed.stat("wasmcustom.airflow_envoy.breaker.main").await.unwrap();
    assert_eq!(breaker().await, 0);
    testbed.policy.fault(Fault::Status(500));
    let open = async || breaker().await == 2;
    within(Duration::from_secs(20), "the breaker is open", open).await.unwrap();
    let said = source(&testbed, "main").await;
    assert_eq!((&said["breaker"], &said["ready"]), (&json!("open"), &json!(true)), "{said}");
    assert!(said["error"]["reason"].to_string().contains("500"), "{said}");
    let before = testbed.policy.fetches();
    always(&testbed, 200, Duration::from_secs(2)).await;
    let fetches = testbed.policy.fetches() - before;
    assert!(fetches <= 2, "{fetches} fetches in 2 s");
    testbed.policy.heal();
    let closed = async || breaker().await == 0;
    within(Duration::from_secs(10), "the breaker is closed", closed).await.unwrap();
    assert_eq!(source(&testbed, "main").await["breaker"], "closed");
}

#[tokio::test]
async fn when_the_vm_that_fetches_ends_another_one_takes_over() {
    let testbed = Testbed::start(Options { reloadable: true, ..options(|_| {}) }).await.unwrap();
    until(&testbed, 200).await;
    let leader = async || source(&testbed, "main").await["leader"].clone();
    let former = leader().await;
    assert!(former.is_string(), "{former}");
    testbed.replace_vms().await.unwrap();
    // The lease of who is gone runs out.
    within(Duration::from_secs(8), "another leads", async || {
        let leader = leader().await;
        leader.is_string() && leader != former
    })
    .await
    .unwrap();
    testbed.policy.set(&denying(2));
    until(&testbed, 403).await;
    let before = testbed.policy.fetches();
    always(&testbed, 403, Duration::from_secs(2)).await;
    let fetches = testbed.policy.fetches() - before;
    assert!((4..=12).contains(&fetches), "{fetches} fetches in 2 s, every 200 ms");
}

#[tokio::test]
async fn two_filters_of_one_envoy_each_decide_by_their_own_policy() {
    // Of the same name, but not the same document.
    let other = Arc::new(Document::new(Source::Text(denying(1).to_string())));
    let address = serve(Arc::clone(&other), None).await.unwrap();
    let second: Configure = Box::new(|configuration| {
        configuration["policy"]["sources"] = json!([{
            "name": "main",
            "http": { "cluster": "consul", "uri": "http://other/policy.json", "poll": "200ms" },
        }]);
    });
    let testbed = Testbed::start(Options {
        second: Some(second),
        bootstrap: Box::new(move |bootstrap| bootstrap.set_endpoint("consul", address).unwrap()),
        ..options(|_| {})
    })
    .await
    .unwrap();
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let call = |address| read_order().token(&token).identity(&identity).send(address, None);
    let second = testbed.second.unwrap();
    for _ in 0..12 {
        permitted(&call(testbed.listener).await.unwrap());
        rejected(&call(second).await.unwrap(), 403, "policy_no_match");
    }
    other.set(&allowing(2));
    testbed.policy.set(&denying(2));
    until(&testbed, 403).await;
    eventually("the second one allows", async || call(second).await.unwrap().status == 200)
        .await
        .unwrap();
}
