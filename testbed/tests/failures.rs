//! Callouts that fail in every way that they can, on a real Envoy: no VM ends, and what is here stays in use.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airflow_envoy_testbed::bootstrap::Bootstrap;
use airflow_envoy_testbed::{
    Answer, Call, Fault, ORDERS, Options, Received, Task, Testbed, eventually,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// The names by which metrics know the policy and Airflow's keys, and the clusters that they come from.
const POLICY: &str = "main";
const KEYS: &str = "airflow";
const CLUSTERS: [(&str, &str); 2] = [(POLICY, "policy"), (KEYS, "airflow-jwks")];

fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

fn read_order() -> Call {
    Call::get(ORDERS, "/v1/orders/7")
}

/// Everything is fetched again every second, and nobody is waited for.
fn impatient(configuration: &mut Value) {
    let source = &mut configuration["policy"]["sources"][0]["http"];
    source["poll"] = json!("1s");
    source["timeout"] = json!("500ms");
    for issuers in ["/issuers/0/jwks", "/airflow/issuers/0/jwks"] {
        let keys = configuration.pointer_mut(issuers).unwrap();
        keys["refresh"] = json!("1s");
        keys["timeout"] = json!("500ms");
    }
}

#[track_caller]
fn permitted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(Received::from_answer(answer).is_some());
}

/// What Envoy says of the filter's VMs; each name must be there.
async fn vms(testbed: &Testbed) -> BTreeMap<&'static str, u64> {
    let stats = testbed.admin("/stats?filter=^wasm").await.unwrap();
    let value = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no `{name}` in {stats}")).parse().unwrap()
    };
    [
        "wasm.envoy.wasm.runtime.v8.active",
        "wasm.envoy.wasm.runtime.v8.created",
        "wasm.wasm_vm_count",
        "wasm.airflow-envoy.vm_reload",
        "wasm.airflow-envoy.vm_reload_backoff",
        "wasm.airflow-envoy.vm_reload_failure",
        "wasm.airflow-envoy.vm_reload_success",
        "wasm.remote_load_fetch_failures",
    ]
    .into_iter()
    .map(|name| (name, value(name)))
    .collect()
}

/// Proves that no VM died since `before`.
async fn no_vm_died(testbed: &Testbed, before: &BTreeMap<&'static str, u64>) {
    let after = vms(testbed).await;
    assert_eq!(&after, before);
    assert!(after["wasm.envoy.wasm.runtime.v8.active"] > 0);
    for (name, value) in after {
        assert!(!name.contains("reload") || value == 0, "{name}: {value}");
    }
    let log = testbed.envoy_log();
    for word in ["[critical]", "panicked", "Proxy-Wasm plugin in-VM", "segfault"] {
        assert!(!log.contains(word), "{log}");
    }
}

/// How often a callout had this outcome.
async fn callouts(testbed: &Testbed, endpoint: &str, outcome: &str) -> u64 {
    let name = format!("wasmcustom.airflow_envoy.callouts.{endpoint}.{outcome}");
    let stats = testbed.admin(&format!("/stats?filter=^{name}$")).await.unwrap();
    stats.trim().rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Waits until this outcome was counted twice more: the second one was asked for after the first was counted.
async fn until_again(testbed: &Testbed, outcome: &str) {
    let counted = async || {
        let [policy, keys] = [POLICY, KEYS].map(|endpoint| callouts(testbed, endpoint, outcome));
        (policy.await, keys.await)
    };
    let before = counted().await;
    eventually(&format!("policy and keys are `{outcome}` again"), async || {
        let now = counted().await;
        now.0 >= before.0 + 2 && now.1 >= before.1 + 2
    })
    .await
    .unwrap();
}

/// Calls that need what was fetched before: connections are spread over the workers.
async fn everything_still_serves(testbed: &Testbed) {
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    for _ in 0..6 {
        let call = read_order().token(&token).identity(&identity);
        permitted(&testbed.call(call).await.unwrap());
    }
    let stranger = Task::new("ds_churn", "load").team("sales");
    let answer = testbed.call_as(&stranger, read_order()).await.unwrap();
    assert_eq!(answer.header("x-airflow-envoy-code"), Some("policy_no_match"));
}

#[tokio::test]
async fn whatever_a_server_answers_no_vm_dies_and_the_last_good_documents_stay() {
    let options = Options { configure: Box::new(impatient), ..Options::default() };
    let testbed = Testbed::start(options).await.unwrap();
    everything_still_serves(&testbed).await;
    let before = vms(&testbed).await;
    for (fault, outcome) in [
        (Fault::Status(500), "failed"),
        (Fault::Status(204), "failed"),
        (Fault::Body("\u{0}\u{1}garbage".to_owned()), "unfit"),
        (Fault::Body(String::new()), "unfit"),
        (Fault::Body("{}".to_owned()), "unfit"),
        (Fault::Body("[".repeat(100_000)), "unfit"),
        (Fault::Html, "unfit"),
        (Fault::Close, "failed"),
        (Fault::Hang, "failed"),
    ] {
        testbed.policy.fault(fault.clone());
        testbed.airflow.keys.fault(fault);
        until_again(&testbed, outcome).await;
        everything_still_serves(&testbed).await;
        no_vm_died(&testbed, &before).await;
    }
    testbed.policy.heal();
    testbed.airflow.keys.heal();
    until_again(&testbed, "unchanged").await;
    everything_still_serves(&testbed).await;
    no_vm_died(&testbed, &before).await;
}

#[tokio::test]
async fn a_body_beyond_all_bounds_is_not_read() {
    let configure = |configuration: &mut Value| {
        impatient(configuration);
        // Such a body takes a while.
        configuration["policy"]["sources"][0]["http"]["timeout"] = json!("4s");
        configuration["airflow"]["issuers"][0]["jwks"]["timeout"] = json!("4s");
    };
    let options = Options { configure: Box::new(configure), ..Options::default() };
    let testbed = Testbed::start(options).await.unwrap();
    everything_still_serves(&testbed).await;
    let before = vms(&testbed).await;
    // Envoy itself gives up a body of more than 32 MiB; the filter refuses a large key set sooner.
    for (endpoint, fault, outcome) in [
        (POLICY, Fault::Huge(32 << 20), "unfit"),
        (KEYS, Fault::Huge(1 << 20), "unfit"),
        (POLICY, Fault::Huge((32 << 20) + 1), "failed"),
        (KEYS, Fault::Huge(66 << 20), "failed"),
    ] {
        let document = if endpoint == POLICY { &*testbed.policy } else { &testbed.airflow.keys };
        let had = callouts(&testbed, endpoint, outcome).await;
        document.fault(fault.clone());
        eventually(&format!("`{endpoint}` is `{outcome}` for {fault:?}"), async || {
            callouts(&testbed, endpoint, outcome).await >= had + 2
        })
        .await
        .unwrap();
        document.heal();
        everything_still_serves(&testbed).await;
    }
    until_again(&testbed, "unchanged").await;
    everything_still_serves(&testbed).await;
    no_vm_died(&testbed, &before).await;
}

#[tokio::test]
async fn a_server_that_is_gone_takes_nothing_with_it() {
    let relays = [Relay::start().await, Relay::start().await];
    let places = relays.each_ref().map(|relay| (relay.address, Arc::clone(&relay.target)));
    let bootstrap = move |bootstrap: &mut Bootstrap| {
        for ((_, cluster), (address, target)) in CLUSTERS.into_iter().zip(places) {
            *target.lock().unwrap() = Some(endpoint(bootstrap.cluster(cluster).unwrap()));
            bootstrap.set_endpoint(cluster, address).unwrap();
        }
    };
    let options = Options {
        configure: Box::new(impatient),
        bootstrap: Box::new(bootstrap),
        ..Options::default()
    };
    let testbed = Testbed::start(options).await.unwrap();
    everything_still_serves(&testbed).await;
    let before = vms(&testbed).await;
    for relay in relays {
        relay.stop();
    }
    until_again(&testbed, "failed").await;
    for (_, cluster) in CLUSTERS {
        let name = format!("cluster.{cluster}.upstream_cx_connect_fail");
        assert!(testbed.stat(&name).await.unwrap() > 0, "{name}");
    }
    everything_still_serves(&testbed).await;
    no_vm_died(&testbed, &before).await;
}

#[tokio::test]
async fn a_circuit_breaker_at_its_limit_is_one_more_failure() {
    let options = Options {
        configure: Box::new(impatient),
        bootstrap: Box::new(|bootstrap| {
            bootstrap.0["layered_runtime"] =
                json!({ "layers": [{ "name": "admin", "admin_layer": {} }] });
            if let Some(allowed) = bootstrap.0["admin"]["allow_paths"].as_array_mut() {
                allowed.push(json!({ "prefix": "/runtime_modify" }));
            }
        }),
        ..Options::default()
    };
    let testbed = Testbed::start(options).await.unwrap();
    everything_still_serves(&testbed).await;
    let before = vms(&testbed).await;
    for (limit, outcome) in [("0", "failed"), ("16", "unchanged")] {
        for (_, cluster) in CLUSTERS {
            let change =
                format!("/runtime_modify?circuit_breakers.{cluster}.default.max_requests={limit}");
            let answer = Call::post("admin", &change, "").send(testbed.admin, None).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        until_again(&testbed, outcome).await;
        everything_still_serves(&testbed).await;
    }
    for (_, cluster) in CLUSTERS {
        let name = format!("cluster.{cluster}.upstream_rq_active_overflow");
        assert!(testbed.stat(&name).await.unwrap() > 0, "{name}");
    }
    no_vm_died(&testbed, &before).await;
}

#[tokio::test]
async fn a_cluster_that_envoy_does_not_know_is_an_endpoint_that_never_answers() {
    for (place, code) in [
        ("/policy/sources/0/http/cluster", "policy_unavailable"),
        ("/airflow/issuers/0/jwks/cluster", "keys_unavailable"),
        ("/issuers/0/jwks/cluster", "keys_unavailable"),
    ] {
        let configure = move |configuration: &mut Value| {
            *configuration.pointer_mut(place).unwrap() = json!("nowhere");
            configuration["waiting"]["time"] = json!("700ms");
        };
        let options = Options { configure: Box::new(configure), ..Options::default() };
        let testbed = Testbed::start(options).await.unwrap();
        let before = vms(&testbed).await;
        for _ in 0..3 {
            let answer = testbed.call_as(&churn(), read_order()).await.unwrap();
            assert_eq!((answer.status, answer.header("x-airflow-envoy-code")), (503, Some(code)));
            assert!(answer.header("retry-after").is_some());
        }
        no_vm_died(&testbed, &before).await;
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_while_it_waits_leaves_its_place() {
    let options = Options {
        concurrency: 1,
        airflow_keys_fault: Some(Fault::Hang),
        configure: Box::new(|configuration| {
            configuration["airflow"]["issuers"][0]["jwks"]["timeout"] = json!("500ms");
            configuration["waiting"] = json!({ "requests": 3, "time": "15s" });
        }),
        ..Options::default()
    };
    let testbed = Testbed::start(options).await.unwrap();
    let before = vms(&testbed).await;
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    for _ in 0..20 {
        let mut caller = TcpStream::connect(testbed.listener).await.unwrap();
        let request = format!(
            "GET /v1/orders/7 HTTP/1.1\r\nhost: {ORDERS}\r\nauthorization: Bearer {token}\r\nx-airflow-identity: {identity}\r\n\r\n"
        );
        caller.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    eventually("all have waited", async || {
        testbed.stat("wasmcustom.airflow_envoy.requests.parked").await.unwrap() == 20
    })
    .await
    .unwrap();
    // Had one of them kept its place, this one would find none.
    let task = churn();
    let (answer, ()) = tokio::join!(testbed.call_as(&task, read_order()), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        testbed.airflow.keys.heal();
    });
    permitted(&answer.unwrap());
    assert_eq!(testbed.orders.calls(), 1);
    no_vm_died(&testbed, &before).await;
}

/// The address of a cluster's only endpoint.
fn endpoint(cluster: &Value) -> SocketAddr {
    let socket = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
    let socket = cluster.pointer(socket).unwrap();
    format!("{}:{}", socket["address"].as_str().unwrap(), socket["port_value"]).parse().unwrap()
}

/// A server that can be stopped: it passes on bytes to one that cannot.
struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    runtime: Runtime,
}

impl Relay {
    async fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let target = Arc::new(Mutex::new(None));
        let known = Arc::clone(&target);
        let listener = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let target: Option<SocketAddr> = *known.lock().unwrap();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(target.unwrap()).await.unwrap();
                    // Whoever closes first ends it.
                    let _: Result<_, _> = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { address, target, runtime }
    }

    /// From now on connections are refused, and those that there are end.
    fn stop(self) {
        self.runtime.shutdown_background();
    }
}
