//! The certificates of a mesh on a real Consul and a real Envoy: who gets a connection, for how long, and what it takes
//! to end one.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use airflow_envoy_testbed::bootstrap::Bootstrap;
use airflow_envoy_testbed::consul::CLUSTER_ID;
use airflow_envoy_testbed::error::{Context as _, Result};
use airflow_envoy_testbed::load::{Connection, Credentials, get};
use airflow_envoy_testbed::mesh::agent::Trust;
use airflow_envoy_testbed::mesh::authority::{Authority, Wanted};
use airflow_envoy_testbed::mesh::client::{Leaf, configuration, connector, roots};
use airflow_envoy_testbed::mesh::intentions::{self, Action};
use airflow_envoy_testbed::mesh::services::{DESTINATION, WORKER};
use airflow_envoy_testbed::mesh::{self, Mesh, spiffe_id};
use airflow_envoy_testbed::process::Process;
use airflow_envoy_testbed::{
    Access, Answer, Call, Consul, ORDERS, Options, Task, Testbed, consul, eventually, within,
};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;

const HOUR: Duration = Duration::from_secs(3600);

/// Whether Consul cannot be had, said loudly.
fn skipped() -> bool {
    let absence = consul::absence();
    if let Some(why) = &absence {
        println!("SKIPPED: {why}");
    }
    absence.is_some()
}

fn options(mesh: mesh::Options) -> Options {
    Options { mesh: Some(mesh), ..Options::default() }
}

fn mesh(testbed: &Testbed) -> &Mesh {
    testbed.mesh.as_ref().unwrap()
}

fn consul(testbed: &Testbed) -> &Consul {
    testbed.consul.as_ref().unwrap()
}

async fn credentials(testbed: &Testbed) -> Credentials {
    let task = Task::new("ds_churn", "load").team("data-science");
    let (token, identity) = testbed.credentials(&task).await.unwrap();
    Credentials::new(&token, &identity).unwrap()
}

/// A call that the policy allows, on a new connection.
async fn call(
    address: SocketAddr,
    connector: &TlsConnector,
    credentials: &Credentials,
) -> Result<Answer> {
    let mut call = Call::get(ORDERS, "/v1/orders/7");
    for (name, value) in get("/v1/orders/7", Some(credentials)).headers() {
        if name != "host" {
            call = call.header(name.as_str(), value.as_bytes());
        }
    }
    call.send(address, Some((connector, ORDERS))).await
}

/// What a caller needs that shows `leaf` and trusts what Consul lists now.
async fn showing(testbed: &Testbed, leaf: Option<&Leaf>) -> TlsConnector {
    let roots = roots(&consul(testbed).client()).await.unwrap();
    connector(leaf, &roots, &spiffe_id(DESTINATION)).unwrap()
}

/// The sum of a counter of TLS over the listeners.
async fn ssl(testbed: &Testbed, name: &str) -> u64 {
    let stats = testbed.admin("/stats?filter=ssl").await.unwrap();
    let end = format!(".ssl.{name}");
    let values = stats.lines().filter_map(|line| {
        let (counter, value) = line.split_once(": ")?;
        (counter.starts_with("listener.") && counter.ends_with(&end))
            .then(|| value.parse::<u64>().ok())?
    });
    values.sum::<u64>()
}

/// A connection that is kept, by HTTP/1.1.
struct Open {
    sender: SendRequest<Empty<Bytes>>,
    handshake: HandshakeKind,
}

impl Open {
    async fn new(address: SocketAddr, connector: &TlsConnector) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connecting")?;
        let name = ServerName::try_from(ORDERS).unwrap();
        let stream = connector.connect(name, stream).await.context("TLS")?;
        let kind = stream.get_ref().1.handshake_kind().unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("HTTP")?;
        tokio::spawn(connection);
        Ok(Self { sender, handshake: kind })
    }

    /// The status of an answer, and whether it is the last one on this connection.
    async fn call(&mut self, request: Request<Empty<Bytes>>) -> Result<(u16, bool)> {
        let answered = async {
            self.sender.ready().await.context("a connection")?;
            let answer = self.sender.send_request(request).await.context("an answer")?;
            let status = answer.status().as_u16();
            let last = answer.headers().get("connection").is_some_and(|value| value == "close");
            answer.into_body().collect().await.context("a body")?;
            Ok((status, last))
        };
        tokio::time::timeout(Duration::from_secs(10), answered).await.context("in time")?
    }
}

/// The typed configuration of a listener's TLS.
fn tls_of(listener: &mut Value) -> &mut Value {
    listener.pointer_mut("/filter_chains/0/transport_socket/typed_config").unwrap()
}

/// How long connections live.
fn short_lived(bootstrap: &mut Bootstrap) {
    let manager = bootstrap.manager().unwrap();
    manager["common_http_protocol_options"]["max_connection_duration"] = json!("2s");
    manager["common_http_protocol_options"]["idle_timeout"] = json!("1s");
    manager["drain_timeout"] = json!("1s");
}

#[tokio::test]
async fn a_certificate_of_the_mesh_opens_a_connection_and_a_faulty_one_none() {
    if skipped() {
        return;
    }
    let testbed = Testbed::start(options(mesh::Options::default())).await.unwrap();
    let credentials = credentials(&testbed).await;
    let former = mesh(&testbed).connector(WORKER).unwrap();
    assert_eq!(call(testbed.listener, &former, &credentials).await.unwrap().status, 200);
    let plain = Call::get(ORDERS, "/v1/orders/7").send(testbed.listener, None).await;
    assert!(plain.is_err(), "in the clear: {plain:?}");
    eventually("Consul's check of the sidecar passes", async || {
        let check = Call::get("health", "/ready").send(testbed.second.unwrap(), None).await;
        check.is_ok_and(|answer| answer.status == 200)
    })
    .await
    .unwrap();

    // From now on what signs for the mesh is ours.
    let authority = Authority::new("of the mesh").unwrap();
    consul(&testbed).set_authority(HOUR, Some(&authority)).await.unwrap();
    let now = SystemTime::now();
    let worker = spiffe_id(WORKER);
    let good = Wanted {
        uris: &[&worker],
        since: now - Duration::from_secs(60),
        until: now + HOUR,
        usage: ClientAuth,
    };
    let leaf = authority.sign(&good).unwrap();
    let trusted = showing(&testbed, Some(&leaf)).await;
    let took = within(Duration::from_secs(10), "Envoy trusts the new root", async || {
        call(testbed.listener, &trusted, &credentials).await.is_ok_and(|it| it.status == 200)
    });
    println!("a leaf of a new root was accepted {:?} after the change", took.await.unwrap());
    // A change of the root alone refuses nobody.
    assert_eq!(call(testbed.listener, &former, &credentials).await.unwrap().status, 200);

    let foreign = Authority::new("of another mesh").unwrap();
    let elsewhere = worker.replace(CLUSTER_ID, "a1f10e00-0000-4000-8000-00000000beef");
    let extended = worker.replace(".consul/", ".consul.example/");
    let (before, after) = (now - 2 * HOUR, now - Duration::from_secs(1));
    let cases = [
        ("no certificate", None, "fail_verify_no_cert"),
        ("another authority's", Some(foreign.sign(&good)), "fail_verify_error"),
        (
            "expired",
            Some(authority.sign(&Wanted { since: before, until: after, ..good.clone() })),
            "fail_verify_error",
        ),
        (
            "not good yet",
            Some(authority.sign(&Wanted {
                since: now + HOUR,
                until: now + 2 * HOUR,
                ..good.clone()
            })),
            "fail_verify_error",
        ),
        (
            "another trust domain's",
            Some(authority.sign(&Wanted { uris: &[&elsewhere], ..good.clone() })),
            "fail_verify_san",
        ),
        (
            "of a trust domain that begins as ours",
            Some(authority.sign(&Wanted { uris: &[&extended], ..good.clone() })),
            "fail_verify_san",
        ),
        (
            "nobody's",
            Some(authority.sign(&Wanted { uris: &[], ..good.clone() })),
            "fail_verify_san",
        ),
        (
            "for servers",
            Some(authority.sign(&Wanted { usage: ServerAuth, ..good.clone() })),
            "fail_verify_error",
        ),
    ];
    for (name, leaf, counter) in cases {
        let leaf = leaf.map(|leaf| leaf.unwrap());
        let connector = showing(&testbed, leaf.as_ref()).await;
        let (calls, refused) = (testbed.orders.calls(), ssl(&testbed, counter).await);
        let answer = call(testbed.listener, &connector, &credentials).await;
        assert!(answer.is_err(), "{name}: {answer:?}");
        assert_eq!(testbed.orders.calls(), calls, "{name}");
        eventually("the refusal is counted", async || ssl(&testbed, counter).await > refused)
            .await
            .context(name)
            .unwrap();
    }

    // Envoy takes a certificate of which one name is good. The filter wants it to be the only one.
    let nameless = spiffe_id("");
    for uris in [
        vec![worker.as_str(), &spiffe_id(DESTINATION)],
        vec![&worker, &elsewhere],
        vec![&elsewhere, &worker],
        vec![&worker, &worker],
        vec![&nameless],
    ] {
        let leaf = authority.sign(&Wanted { uris: &uris, ..good.clone() }).unwrap();
        let connector = showing(&testbed, Some(&leaf)).await;
        let calls = testbed.orders.calls();
        let answer = call(testbed.listener, &connector, &credentials).await.unwrap();
        let code = answer.header("x-airflow-envoy-code");
        assert_eq!((answer.status, code), (401, Some("peer_invalid")), "{uris:?}");
        assert_eq!(testbed.orders.calls(), calls, "{uris:?}");
    }
}

#[tokio::test]
async fn an_agent_of_its_own_keeps_a_certificate_and_its_log_has_no_key() {
    if skipped() {
        return;
    }
    let testbed = Testbed::start(options(mesh::Options::default())).await.unwrap();
    let credentials = credentials(&testbed).await;
    let folder = std::env::temp_dir().join(format!("own-agent-{}", std::process::id()));
    let log = folder.with_extension("log");
    let program = Path::new(env!("CARGO_BIN_EXE_airflow-envoy-testbed"));
    let agent = Process::start("agent", program, &log, |command| {
        command.args(["certificates", "--service", WORKER, "--trust", "active", "--directory"]);
        command.arg(&folder).env("CONSUL_HTTP_ADDR", consul(&testbed).address.to_string());
    })
    .unwrap();
    let live = folder.join("live");
    let files = || {
        let read = |name: &str| fs::read_to_string(live.join(name));
        let (certificate, key) = (read("cert.pem").ok()?, read("key.pem").ok()?);
        let leaf = Leaf { certificate, key, uri: String::new(), valid_before: String::new() };
        connector(Some(&leaf), &read("ca.pem").ok()?, &spiffe_id(DESTINATION)).ok()
    };
    eventually("the agent has a certificate", async || files().is_some()).await.unwrap();
    let own = files().unwrap();
    assert_eq!(call(testbed.listener, &own, &credentials).await.unwrap().status, 200);
    let authority = Authority::new("next").unwrap();
    consul(&testbed).set_authority(HOUR, Some(&authority)).await.unwrap();
    eventually("it trusts the active root only", async || {
        fs::read_to_string(live.join("ca.pem"))
            .is_ok_and(|roots| roots.trim() == authority.certificate.trim())
    })
    .await
    .unwrap();
    drop(agent);
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.starts_with(&format!("generation 1: {}", spiffe_id(WORKER))), "{said}");
    assert!(said.contains("1 root is trusted") && !said.contains("PRIVATE"), "{said}");
    fs::remove_dir_all(folder).unwrap();
    fs::remove_file(log).unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_a_new_handshake_and_by_a_resumed_session() {
    if skipped() {
        return;
    }
    // Four listeners: as shipped, and such as resume, each with TLS 1.3 and with 1.2.
    let names = ["mesh", "shipped-1.2", "resuming-1.3", "resuming-1.2"];
    let mut options = options(mesh::Options::default());
    options.bootstrap = Box::new(move |bootstrap| {
        let listeners = bootstrap.0.pointer_mut("/static_resources/listeners").unwrap();
        let listeners = listeners.as_array_mut().unwrap();
        for name in &names[1..] {
            let mut listener = listeners[0].clone();
            listener["name"] = json!(name);
            let tls = tls_of(&mut listener);
            if name.starts_with("resuming") {
                let members = tls.as_object_mut().unwrap();
                members.remove("disable_stateless_session_resumption").unwrap();
                members.remove("disable_stateful_session_resumption").unwrap();
            }
            if name.ends_with("1.2") {
                tls["common_tls_context"]["tls_params"]["tls_maximum_protocol_version"] =
                    json!("TLSv1_2");
            }
            listeners.push(listener);
        }
    });
    let testbed = Testbed::start(options).await.unwrap();
    let listeners = testbed.admin("/listeners?format=json").await.unwrap();
    let listeners: Value = serde_json::from_str(&listeners).unwrap();
    let address = |name: &str| {
        let all = listeners["listener_statuses"].as_array().unwrap();
        let listener = all.iter().find(|listener| listener["name"] == name).unwrap();
        let port = listener.pointer("/local_address/socket_address/port_value").unwrap();
        SocketAddr::from(([127, 0, 0, 1], u16::try_from(port.as_u64().unwrap()).unwrap()))
    };
    let credentials = credentials(&testbed).await;
    let request = || get("/v1/orders/7", Some(&credentials));
    // So that no time is lost on the first request of each.
    let warm = mesh(&testbed).connector(WORKER).unwrap();
    for name in names {
        assert_eq!(call(address(name), &warm, &credentials).await.unwrap().status, 200, "{name}");
    }

    consul(&testbed).set_authority(Duration::from_secs(6), None).await.unwrap();
    let leaf = Leaf::issue(&consul(&testbed).client(), WORKER).await.unwrap();
    let issued = Instant::now();
    let roots = roots(&consul(&testbed).client()).await.unwrap();
    let mut clients = Vec::new();
    for name in names {
        let mut client = configuration(Some(&leaf), &roots, &spiffe_id(DESTINATION)).unwrap();
        client.resumption = Resumption::in_memory_sessions(8);
        let client = TlsConnector::from(Arc::new(client));
        let mut seen = Vec::new();
        for _ in 0..2 {
            let mut open = Open::new(address(name), &client).await.unwrap();
            seen.push((open.handshake, open.call(request()).await.unwrap().0));
        }
        // The filter refuses what Envoy has not verified on this connection: a second lock, should the flags be missing.
        let resumes = name.starts_with("resuming");
        let second =
            if resumes { (HandshakeKind::Resumed, 401) } else { (HandshakeKind::Full, 200) };
        assert_eq!(seen, [(HandshakeKind::Full, 200), second], "{name}");
        clients.push((name, client));
    }
    let mut kept = Open::new(address("mesh"), &clients[0].1).await.unwrap();
    assert_eq!(kept.call(request()).await.unwrap().0, 200);
    assert!(issued.elapsed() < Duration::from_secs(5), "too slow to tell: {:?}", issued.elapsed());

    tokio::time::sleep(Duration::from_secs(8).saturating_sub(issued.elapsed())).await;
    // On a connection from before it expired the filter refuses it.
    assert_eq!(kept.call(request()).await.unwrap().0, 401);
    for (name, client) in &clients {
        let again = async {
            let mut open = Open::new(address(name), client).await?;
            Ok::<_, airflow_envoy_testbed::error::Error>((
                open.call(request()).await?,
                open.handshake,
            ))
        };
        let again = again.await;
        if name.starts_with("resuming") {
            // What the two flags are for: without them Envoy lets an expired certificate in.
            let ((status, _), kind) = again.unwrap();
            assert_eq!((kind, status), (HandshakeKind::Resumed, 401), "{name}");
        } else {
            assert!(again.is_err(), "{name}: {again:?}");
        }
        // By a new handshake it is refused everywhere.
        let fresh = showing(&testbed, Some(&leaf)).await;
        let answer = call(address(name), &fresh, &credentials).await;
        assert!(answer.is_err(), "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_once_and_its_open_connection_ends_within_the_bound() {
    if skipped() {
        return;
    }
    let only_active = mesh::Options { trust: Trust::Active, ..mesh::Options::default() };
    let mut options = options(only_active);
    options.bootstrap = Box::new(short_lived);
    let testbed = Testbed::start(options).await.unwrap();
    let credentials = credentials(&testbed).await;
    let request = || get("/v1/orders/7", Some(&credentials));
    let stolen = mesh(&testbed).agent(WORKER).unwrap().files().unwrap().0;
    let thief = showing(&testbed, Some(&stolen)).await;
    assert_eq!(call(testbed.listener, &thief, &credentials).await.unwrap().status, 200);

    let mut open = Open::new(testbed.listener, &thief).await.unwrap();
    let opened = Instant::now();
    assert_eq!(open.call(request()).await.unwrap().0, 200);
    let authority = Authority::new("after the theft").unwrap();
    consul(&testbed).set_authority(HOUR, Some(&authority)).await.unwrap();
    let changed = Instant::now();
    // It would also take the gate's new certificate for good.
    let thief = showing(&testbed, Some(&stolen)).await;
    let mut last = Duration::ZERO;
    let refused = within(Duration::from_secs(10), "the stolen one is refused", async || {
        let answer = call(testbed.listener, &thief, &credentials).await;
        let refused = answer.is_err();
        if !refused {
            last = changed.elapsed();
        }
        refused
    });
    refused.await.unwrap();
    println!("revoked: last accepted {last:?} after the root was replaced");
    assert!(last < Duration::from_secs(3), "{last:?}");
    // Whose certificate it was has a new one.
    within(Duration::from_secs(5), "the worker's new certificate is accepted", async || {
        let worker = mesh(&testbed).connector(WORKER).unwrap();
        call(testbed.listener, &worker, &credentials).await.is_ok_and(|it| it.status == 200)
    })
    .await
    .unwrap();

    // Whoever asks as rarely as possible is heard the longest: two seconds of life, one of idling, one of draining.
    let mut answered = opened.elapsed();
    while opened.elapsed() < Duration::from_secs(7) {
        match open.call(request()).await {
            Ok((status, closing)) => {
                answered = opened.elapsed();
                assert_eq!(status, 200, "after {answered:?}");
                if closing {
                    break;
                }
            }
            Err(_) => break,
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    println!("its open connection: last answer after {answered:?}");
    assert!(answered > Duration::from_millis(500), "{answered:?}");
    assert!(answered < Duration::from_millis(4500), "{answered:?}");
    assert!(open.call(request()).await.is_err());
}

#[tokio::test]
async fn certificates_and_roots_change_under_load_without_a_failed_call() {
    if skipped() {
        return;
    }
    let mut options = options(mesh::Options::default());
    options.bootstrap = Box::new(|bootstrap| {
        let manager = bootstrap.manager().unwrap();
        manager["common_http_protocol_options"]["max_connection_duration"] = json!("3s");
    });
    let testbed = Arc::new(Testbed::start(options).await.unwrap());
    let credentials = credentials(&testbed).await;
    let (kept, fresh, handshakes) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    // Connections that are kept for a while, and such as make one call.
    let lanes = [(true, 15), (true, 15), (false, 60), (false, 60)].map(|(keeps, pause)| {
        let (testbed, credentials, over) =
            (Arc::clone(&testbed), credentials.clone(), Arc::clone(&over));
        let calls = Arc::clone(if keeps { &kept } else { &fresh });
        let handshakes = Arc::clone(&handshakes);
        tokio::spawn(async move {
            let mut wrong = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let tls = mesh(&testbed).connector(WORKER).unwrap();
                let mut connection = Connection::of_mesh(testbed.listener, tls);
                handshakes.fetch_add(1, Ordering::Relaxed);
                let begun = Instant::now();
                loop {
                    let answer = connection.call(|| get("/v1/orders/7", Some(&credentials))).await;
                    calls.fetch_add(1, Ordering::Relaxed);
                    match answer {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => wrong.push(answer.status.to_string()),
                        Err(error) => wrong.push(error.to_string()),
                    }
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    if !keeps || begun.elapsed() > Duration::from_secs(2) {
                        break;
                    }
                }
            }
            wrong
        })
    });
    // Certificates of ten seconds: renewed after six.
    let lifetime = Duration::from_secs(10);
    let mut roots = vec![mesh(&testbed).agent(DESTINATION).unwrap().published().root];
    for name in ["first", "second"] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let authority = Authority::new(name).unwrap();
        consul(&testbed).set_authority(lifetime, Some(&authority)).await.unwrap();
        for service in [DESTINATION, WORKER] {
            let agent = mesh(&testbed).agent(service).unwrap();
            let took = within(Duration::from_secs(5), "the agent has the new root", async || {
                !roots.contains(&agent.published().root)
            });
            println!(
                "{name} change of the root: {service} has its new certificate after {:?}",
                took.await.unwrap()
            );
        }
        roots.push(mesh(&testbed).agent(DESTINATION).unwrap().published().root);
    }
    tokio::time::sleep(Duration::from_secs(14)).await;
    over.store(true, Ordering::Relaxed);
    let mut wrong = Vec::new();
    for lane in lanes {
        wrong.extend(lane.await.unwrap());
    }
    let generations = [DESTINATION, WORKER]
        .map(|service| mesh(&testbed).agent(service).unwrap().published().generation);
    println!(
        "{} calls on kept connections, {} on fresh ones, {} handshakes; generations {generations:?}; {} failed",
        kept.load(Ordering::Relaxed),
        fresh.load(Ordering::Relaxed),
        handshakes.load(Ordering::Relaxed),
        wrong.len(),
    );
    assert_eq!(wrong, Vec::<String>::new());
    // One at the start, one for each root, and at least two renewals.
    assert!(generations.iter().all(|number| *number >= 5), "{generations:?}");
    assert!(kept.load(Ordering::Relaxed) > 200 && fresh.load(Ordering::Relaxed) > 50);
    assert_eq!(testbed.stat("listener_manager.listener_modified").await.unwrap(), 0);
}

#[tokio::test]
async fn calls_go_on_without_consul_and_after_it_was_born_again_with_another_authority() {
    if skipped() {
        return;
    }
    let testbed = Testbed::start(options(mesh::Options::default())).await.unwrap();
    let credentials = credentials(&testbed).await;
    let former = mesh(&testbed).connector(WORKER).unwrap();
    let before = mesh(&testbed).agent(DESTINATION).unwrap().published();
    // What was never fetched is not there without Consul either.
    within(Duration::from_secs(10), "the gate has the intentions", async || {
        call(testbed.listener, &former, &credentials).await.is_ok_and(|it| it.status == 200)
    })
    .await
    .unwrap();
    consul(&testbed).process.stop();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(call(testbed.listener, &former, &credentials).await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let begun = Instant::now();
    consul(&testbed).start_again().await.unwrap();
    // It has forgotten who may call, too.
    intentions::put(&consul(&testbed).client(), Action::Allow, WORKER, DESTINATION).await.unwrap();
    within(Duration::from_secs(20), "both have certificates of the new root", async || {
        let published =
            [DESTINATION, WORKER].map(|service| mesh(&testbed).agent(service).unwrap().published());
        published.iter().all(|published| published.root != before.root)
    })
    .await
    .unwrap();
    println!(
        "both agents had certificates of the new Consul {:?} after its start",
        begun.elapsed()
    );
    within(Duration::from_secs(20), "calls are answered again", async || {
        let worker = mesh(&testbed).connector(WORKER).unwrap();
        call(testbed.listener, &worker, &credentials).await.is_ok_and(|it| it.status == 200)
    })
    .await
    .unwrap();
    println!("and a call was answered after {:?}", begun.elapsed());
    // The new Consul knows nothing of the former root.
    assert!(call(testbed.listener, &former, &credentials).await.is_err());
}

#[tokio::test]
async fn with_access_control_an_agent_logs_in_and_has_a_fresh_certificate_after_each_change() {
    if skipped() {
        return;
    }
    let mut options = options(mesh::Options::default());
    options.consul = Some(Access::ByToken);
    options.configure = Box::new(|configuration| {
        let source = configuration.pointer_mut("/policy/sources/1/consul_intentions").unwrap();
        source["token_env"] = json!("CONSUL_HTTP_TOKEN");
    });
    let testbed = Testbed::start(options).await.unwrap();
    let credentials = credentials(&testbed).await;
    for name in ["first", "second", "third"] {
        let agents = [DESTINATION, WORKER].map(|service| mesh(&testbed).agent(service).unwrap());
        let before = agents[0].published().root;
        let authority = Authority::new(name).unwrap();
        consul(&testbed).set_authority(HOUR, Some(&authority)).await.unwrap();
        let took = within(Duration::from_secs(5), "both have new certificates", async || {
            agents.iter().all(|agent| agent.published().root != before)
        });
        println!("{name}: {:?}", took.await.unwrap());
        let worker = mesh(&testbed).connector(WORKER).unwrap();
        eventually("a call is answered", async || {
            call(testbed.listener, &worker, &credentials).await.is_ok_and(|it| it.status == 200)
        })
        .await
        .unwrap();
    }
}
