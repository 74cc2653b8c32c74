//! A burst of calls while the policy and the keys change under them, on a real Envoy with two workers.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use airflow_envoy_testbed::{ORDERS, Options, Task, Testbed, rule};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 8;
const CALLS: usize = 2_500;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Both policies allow it.
    Always,
    /// One policy allows it, the other does not.
    Sometimes,
    /// Neither allows it.
    Never,
    /// With no token.
    Bare,
    /// With a token whose signature is wrong.
    Forged,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Always, Self::Sometimes, Self::Never, Self::Bare, Self::Forged];

    fn path(self) -> &'static str {
        match self {
            Self::Sometimes => "/v1/orders/sometimes",
            Self::Never => "/v1/customers",
            Self::Always | Self::Bare | Self::Forged => "/v1/orders/always",
        }
    }

    /// The status and the code that it may get.
    fn answers(self) -> &'static [(u16, &'static str)] {
        match self {
            Self::Always => &[(200, "")],
            Self::Sometimes => &[(200, ""), (403, "policy_no_match")],
            Self::Never => &[(403, "policy_no_match")],
            Self::Bare => &[(401, "token_missing")],
            Self::Forged => &[(401, "token_signature_invalid")],
        }
    }
}

type Tally = BTreeMap<(Kind, u16, String), usize>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_while_policy_and_keys_change_is_decided_by_one_policy_or_the_other() {
    let policies = [policy(&["/v1/orders/*"]), policy(&["/v1/orders/always"])];
    let options = Options {
        configure: Box::new(|configuration| {
            configuration["policy"]["sources"][0]["http"]["poll"] = json!("100ms");
            configuration["issuers"][0]["jwks"]["refresh"] = json!("1s");
            configuration["airflow"]["issuers"][0]["jwks"]["refresh"] = json!("1s");
        }),
        ..Options::default()
    };
    let testbed = Arc::new(Testbed::start(options).await.unwrap());
    testbed.policy.set(&policies[1]);
    // The credentials are older than every rotation.
    let task = Task::new("ds_churn", "load").team("data-science");
    let credentials = testbed.credentials(&task).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;

    let over = Arc::new(AtomicBool::new(false));
    let rotations = tokio::spawn({
        let (testbed, over) = (Arc::clone(&testbed), Arc::clone(&over));
        async move {
            while !over.load(Ordering::Relaxed) {
                testbed.airflow.rotate(false);
                testbed.oidc.rotate(false).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
    let changes = tokio::spawn({
        let (testbed, over) = (Arc::clone(&testbed), Arc::clone(&over));
        async move {
            let mut changes = 0;
            while !over.load(Ordering::Relaxed) {
                testbed.policy.set(&policies[changes % 2]);
                changes += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            changes
        }
    });
    let warm = burst(&testbed, &credentials, CALLS / 5).await;
    let (memory, begun) = (testbed.memory_kib().unwrap(), Instant::now());
    let tally = burst(&testbed, &credentials, CALLS).await;
    let (seconds, after) = (begun.elapsed().as_secs_f32(), testbed.memory_kib().unwrap());
    over.store(true, Ordering::Relaxed);
    let changes = changes.await.unwrap();
    rotations.await.unwrap();

    let calls = tally.values().sum::<usize>();
    println!(
        "{calls} calls in {seconds:.1} s, {changes} policies, {memory} → {after} KiB: {tally:#?}"
    );
    assert_eq!(
        (calls, warm.values().sum::<usize>()),
        (CONNECTIONS * CALLS, CONNECTIONS * CALLS / 5)
    );
    for ((kind, status, code), count) in tally.iter().chain(&warm) {
        let known = kind.answers().contains(&(*status, code));
        assert!(known, "{kind:?} was answered with {status} {code:?} {count} times");
    }
    for kind in Kind::ALL {
        for (status, code) in kind.answers() {
            let count =
                tally.get(&(kind, *status, (*code).to_owned())).copied().unwrap_or_default();
            assert!(count > CONNECTIONS * CALLS / 200, "{kind:?}: {status} {code:?} {count} times");
        }
    }
    assert!(after < memory + 48 * 1024, "from {memory} to {after} KiB");
    for (endpoint, least) in [("main", 10), ("airflow", 4), ("idp", 4)] {
        let name = format!("wasmcustom.airflow_envoy.callouts.{endpoint}.updated");
        let updated = testbed.stat(&name).await.unwrap();
        assert!(updated >= least, "{name}: {updated}");
    }
    for name in ["vm_reload", "vm_reload_failure", "vm_reload_backoff"] {
        assert_eq!(testbed.stat(&format!("wasm.airflow-envoy.{name}")).await.unwrap(), 0, "{name}");
    }
    let log = testbed.envoy_log();
    assert!(!log.contains("[critical]") && !log.contains("panicked"), "{log}");
}

/// The testbed's policy, with other paths for the rule by which data science reads orders.
fn policy(paths: &[&str]) -> Value {
    let mut policy = airflow_envoy_testbed::policy().unwrap();
    rule(&mut policy, "data-science-reads-orders").unwrap()["paths"] = json!(paths);
    policy
}

/// So many calls on each of the connections, of every kind in turn.
async fn burst(testbed: &Arc<Testbed>, credentials: &(String, String), calls: usize) -> Tally {
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let (address, credentials) = (testbed.listener, credentials.clone());
            tokio::spawn(async move {
                let stream = TcpStream::connect(address).await.unwrap();
                let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
                let driver = tokio::spawn(connection);
                let mut tally = Tally::new();
                for call in 0..calls {
                    let kind = Kind::ALL[(number + call) % Kind::ALL.len()];
                    let response = call_as(&mut sender, kind, &credentials).await;
                    let code = response.headers().get("x-airflow-envoy-code");
                    let code = code.map_or("", |code| code.to_str().unwrap()).to_owned();
                    let status = response.status().as_u16();
                    // A connection is used again only when its answer was read.
                    response.into_body().collect().await.unwrap();
                    *tally.entry((kind, status, code)).or_default() += 1;
                }
                driver.abort();
                tally
            })
        })
        .collect();
    let mut whole = Tally::new();
    for connection in connections {
        for (answer, count) in connection.await.unwrap() {
            *whole.entry(answer).or_default() += count;
        }
    }
    whole
}

async fn call_as(
    sender: &mut SendRequest<Empty<Bytes>>,
    kind: Kind,
    (token, identity): &(String, String),
) -> Response<hyper::body::Incoming> {
    let mut request = Request::get(kind.path()).header("host", ORDERS);
    if kind != Kind::Bare {
        // Another letter within the signature.
        let (head, tail) = token.split_at(token.len() - 20);
        let letter = if tail.starts_with('A') { 'B' } else { 'A' };
        let sent = match kind {
            Kind::Forged => format!("{head}{letter}{}", tail.get(1..).unwrap()),
            _ => token.clone(),
        };
        request = request
            .header("authorization", format!("Bearer {sent}"))
            .header("x-airflow-identity", identity);
    }
    sender.ready().await.unwrap();
    sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap()
}
