//! The audit trail of a real Envoy: in its log and at a collector, whole whatever happens.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use airflow_envoy_cli::audit::{Found, Kind, Reader, Record};
use airflow_envoy_cli::command::{Cli, Exit, run};
use airflow_envoy_cli::replay::{Judge, decided_at, is_of_policy};
use airflow_envoy_testbed::{
    Answer, Call, Collector, Fault, ORDERS, Options, PARTNER, Received, Task, Testbed, Trouble,
    eventually, within,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Parser as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// A task whom the policy lets read orders.
fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

fn read_order() -> Call {
    Call::get(ORDERS, "/v1/orders/7")
}

/// The sinks, and checkpoints so often that a short test sees some.
fn audit(configuration: &mut Value, sinks: &Value) {
    configuration["audit"]["sinks"] = sinks.clone();
    configuration["audit"]["checkpoint"] = json!({ "records": 50, "every": "1s" });
}

fn to_log() -> Options {
    Options {
        configure: Box::new(|configuration| audit(configuration, &json!([{ "log": {} }]))),
        ..Options::default()
    }
}

/// Small batches to a collector that is given up soon.
fn to(collector: &Collector) -> Options {
    let address = collector.address;
    Options {
        configure: Box::new(|configuration| {
            let sink = json!({
                "cluster": "audit",
                "uri": "http://audit.internal/v1/records",
                "batch_bytes": 16384,
                "batch_time": "200ms",
                "queue_bytes": 65536,
                "timeout": "500ms",
            });
            audit(configuration, &json!([{ "http": sink }]));
        }),
        bootstrap: Box::new(move |bootstrap| bootstrap.set_endpoint("audit", address).unwrap()),
        ..Options::default()
    }
}

/// Records by stream and number. The same line twice is one record; two lines of one place are a fault.
#[derive(Default)]
struct Trail(BTreeMap<(String, u64), String>);

impl Trail {
    /// The records in Envoy's log: what begins a record in a line and is one to the line's end.
    fn of_log(testbed: &Testbed) -> Self {
        let mut trail = Self::default();
        for line in testbed.envoy_log().lines() {
            let Some(at) = line.find("{\"") else { continue };
            let record = line.get(at..).unwrap();
            if serde_json::from_str::<Value>(record)
                .is_ok_and(|record| record["v"] == 1 && record["kind"].is_string())
            {
                trail.add(record);
            }
        }
        trail
    }

    /// The records that a collector has. Each batch is of one stream, begins with the record that it is called after,
    /// and is the same when it comes again.
    fn of_collector(collector: &Collector) -> Self {
        let (mut trail, mut bodies) = (Self::default(), BTreeMap::new());
        for batch in collector.batches() {
            assert!(batch.body.ends_with('\n'), "{batch:?}");
            for (number, line) in batch.body.lines().enumerate() {
                let (stream, seq) = trail.add(line);
                assert_eq!(stream, batch.stream);
                if number == 0 {
                    assert_eq!(batch.name, format!("{stream}-{seq}"));
                }
            }
            let before = bodies.insert(batch.name, batch.body.clone());
            assert!(before.is_none_or(|before| before == batch.body), "a batch changed");
        }
        trail
    }

    fn add(&mut self, line: &str) -> (String, u64) {
        let record: Value = serde_json::from_str(line).unwrap();
        let place = (text(&record, "/stream").to_owned(), record["seq"].as_u64().unwrap());
        let before = self.0.insert(place.clone(), line.to_owned());
        assert!(before.as_deref().is_none_or(|before| before == line), "two records at {place:?}");
        place
    }

    fn and(mut self, other: Self) -> Self {
        for line in other.0.values() {
            self.add(line);
        }
        self
    }

    fn records(&self) -> Vec<Value> {
        self.0.values().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn kind(&self, kind: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["kind"] == kind).collect()
    }

    /// The decisions by their ids, each of which is there once.
    fn decisions(&self) -> BTreeMap<String, Value> {
        let mut decisions = BTreeMap::new();
        for record in self.kind("decision") {
            let id = text(&record, "/decision_id").to_owned();
            assert_eq!(decisions.insert(id, record.clone()), None, "twice: {record}");
        }
        decisions
    }

    /// The only record of a call to this path.
    #[track_caller]
    fn at(&self, path: &str) -> Value {
        let decisions = self.decisions().into_values();
        let mut found: Vec<_> =
            decisions.filter(|record| text(record, "/request/path") == path).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    /// The record of the decision that an answer names.
    #[track_caller]
    fn of(&self, answer: &Answer) -> Value {
        let id = decision_id(answer);
        let record = self.decisions().remove(&id);
        record.unwrap_or_else(|| panic!("no record of {id} among {:?}", self.0.values()))
    }
}

/// A file with what the collector kept, in the order in which it came, beside Envoy's log.
fn collected(testbed: &Testbed, collector: &Collector) -> PathBuf {
    let file = testbed.log("envoy").with_file_name("collected.ndjson");
    let bodies: String = collector.batches().into_iter().map(|batch| batch.body).collect();
    fs::write(&file, bodies).unwrap();
    file
}

/// `airflow-envoy audit verify` finds nothing wrong with the files, in which every stream has ended.
#[track_caller]
fn verify(testbed: &Testbed, files: &[PathBuf]) {
    let keys = testbed.log("envoy").with_file_name("audit-key.json");
    let mut line: Vec<OsString> =
        ["airflow-envoy", "audit", "verify", "--keys"].map(Into::into).into();
    line.push(keys.into());
    line.extend(files.iter().map(Into::into));
    assert_eq!(run(Cli::try_parse_from(line).unwrap()), Exit::Good);
}

/// The text at a place of a record; empty if there is none.
fn text<'v>(record: &'v Value, pointer: &str) -> &'v str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The decision that an answer is of: a refusal says it, an upstream was told it.
#[track_caller]
fn decision_id(answer: &Answer) -> String {
    let id = match Received::from_answer(answer) {
        Some(received) => {
            received.header("x-airflow-decision-id").first().map(|id| (*id).to_owned())
        }
        None => answer.json()["decision_id"].as_str().map(str::to_owned),
    };
    id.unwrap_or_else(|| panic!("no decision: {} {}", answer.status, answer.text()))
}

/// Waits until the records of these answers are in Envoy's log, and gives what is there.
async fn logged(testbed: &Testbed, answers: &[&Answer]) -> Trail {
    let ids: BTreeSet<_> = answers.iter().map(|answer| decision_id(answer)).collect();
    eventually("the log has the records", async || {
        let decisions = Trail::of_log(testbed).decisions();
        ids.iter().all(|id| decisions.contains_key(id))
    })
    .await
    .unwrap();
    Trail::of_log(testbed)
}

/// What clients saw of their calls, and the credentials that they sent.
#[derive(Default)]
struct Seen {
    ids: BTreeSet<String>,
    statuses: BTreeMap<u16, usize>,
}

/// Calls without a pause until it is over: permitted ones, ones that the policy denies, ones without credentials.
async fn callers(testbed: &Testbed, over: &AtomicBool) -> Seen {
    let credentials = testbed.credentials(&churn()).await.unwrap();
    let one = async |number: usize| {
        let mut seen = Seen::default();
        for turn in number.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let (token, identity) = &credentials;
            let call = match turn % 4 {
                0 => Call::get(ORDERS, "/v1/orders/7/card").token(token).identity(identity),
                1 => read_order(),
                _ => read_order().token(token).identity(identity),
            };
            let answer = testbed.call(call).await.unwrap();
            assert!(seen.ids.insert(decision_id(&answer)), "an id for two decisions");
            *seen.statuses.entry(answer.status).or_default() += 1;
        }
        seen
    };
    let (mut first, second, third, fourth) = tokio::join!(one(0), one(1), one(2), one(3));
    for other in [second, third, fourth] {
        first.ids.extend(other.ids);
        for (status, count) in other.statuses {
            *first.statuses.entry(status).or_default() += count;
        }
    }
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_becomes_of_the_collector_every_decision_is_there_or_in_the_log() {
    let mut collector = Collector::start().await.unwrap();
    let mut testbed = Testbed::start(to(&collector)).await.unwrap();
    let over = AtomicBool::new(false);
    let trouble = async {
        let mut story = Vec::new();
        let mut note = |what: &'static str, collector: &Collector, testbed: &Testbed| {
            let taken = Trail::of_collector(collector).0.len();
            story.push((what, taken, Trail::of_log(testbed).0.len()));
        };
        let second = Duration::from_secs(1);
        let more = async |collector: &Collector| {
            let before = collector.batches().len();
            within(Duration::from_secs(40), "the collector takes records", async || {
                collector.batches().len() > before + 2
            })
            .await
            .unwrap();
        };
        more(&collector).await;
        note("works", &collector, &testbed);
        for (what, trouble) in [
            ("refuses", Trouble::Refuses(500)),
            ("is late", Trouble::Late(second * 2)),
            ("hangs", Trouble::Hangs),
        ] {
            collector.trouble(Some(trouble));
            tokio::time::sleep(second * 2).await;
            note(what, &collector, &testbed);
            collector.trouble(None);
            more(&collector).await;
            note("works again", &collector, &testbed);
        }
        collector.stop();
        tokio::time::sleep(second * 3).await;
        note("is gone", &collector, &testbed);
        collector.start_again().await.unwrap();
        more(&collector).await;
        note("is back", &collector, &testbed);
        over.store(true, Ordering::Relaxed);
        story
    };
    let (seen, story) = tokio::join!(callers(&testbed, &over), trouble);
    let calls = seen.ids.len();
    println!("{calls} calls, {:?}; collected and logged: {story:?}", seen.statuses);
    assert_eq!(seen.statuses.keys().copied().collect::<Vec<_>>(), [200, 401, 403]);
    assert!(calls > 1000, "{calls} calls");

    let trail = || Trail::of_collector(&collector).and(Trail::of_log(&testbed));
    within(Duration::from_secs(10), "every decision has its record", async || {
        let decisions = trail().decisions();
        seen.ids.iter().all(|id| decisions.contains_key(id))
    })
    .await
    .unwrap();
    let (here, there) = (Trail::of_collector(&collector).0.len(), Trail::of_log(&testbed).0.len());
    assert!(here > 100 && there > 100, "{here} collected, {there} logged");

    testbed.quit_envoy().await.unwrap();
    let trail = Trail::of_collector(&collector).and(Trail::of_log(&testbed));
    verify(&testbed, &[testbed.log("envoy"), collected(&testbed, &collector)]);
    let decided: BTreeSet<_> = trail.decisions().into_keys().collect();
    assert_eq!(decided, seen.ids, "what is recorded is what clients saw");
    assert_eq!(trail.kind("loss"), [""; 0]);
    // Each worker's stream, and that of the main thread, has its end, which counts what there was.
    let ends = trail.kind("end");
    assert_eq!(ends.len(), trail.kind("begin").len());
    let count = |name| ends.iter().map(|end| end["counts"][name].as_u64().unwrap()).sum::<u64>();
    let of = |status| seen.statuses[&status] as u64;
    assert_eq!((count("permits"), count("rejects")), (of(200), of(401) + of(403)));
    assert_eq!((count("lost"), count("abandoned")), (0, 0));
    assert!(!testbed.envoy_log().contains("[critical]"), "{}", testbed.envoy_log());
}

#[tokio::test]
async fn every_request_is_one_line_in_the_log_whatever_it_is_and_whatever_becomes_of_it() {
    let mut testbed = Testbed::start(to_log()).await.unwrap();
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let known = |call: Call| call.token(&token).identity(&identity);
    let permit = testbed.call(known(read_order())).await.unwrap();
    let failed = testbed.call(known(Call::post(ORDERS, "/v1/orders/8", "x"))).await.unwrap();
    let nobody = testbed.call(read_order()).await.unwrap();
    let denied = testbed.call(known(Call::get(ORDERS, "/v1/orders/7/card"))).await.unwrap();
    let broken = Call::get(ORDERS, "/v1/orders/7?fail=503&name=Ann");
    let broken = testbed.call(known(broken)).await.unwrap();
    let long = format!("/v1/orders/{}", "7".repeat(65_000));
    let long = testbed.call(known(Call::get(ORDERS, &long))).await.unwrap();
    let odd =
        testbed.call(known(Call::get(ORDERS, "/v1/orders/%FF%22%0A%7B%22v%22"))).await.unwrap();
    let bytes = read_order().header("x-request-id", b"\xff\xfe\"\\").header("referer", b"\xc3\x28");
    let bytes = testbed.call(known(bytes)).await.unwrap();
    let answers = [&permit, &failed, &nobody, &denied, &broken, &long, &odd, &bytes];
    let trail = logged(&testbed, &answers).await;

    let record = trail.of(&permit);
    assert_eq!(text(&record, "/decision"), "permit");
    assert_eq!(text(&record, "/rule"), "data-science-reads-orders");
    assert_eq!(text(&record, "/destination"), "orders");
    assert_eq!(text(&record, "/caller/identity/dag_id"), "ds_churn");
    assert_eq!(text(&record, "/caller/identity/team"), "data-science");
    assert_eq!(text(&record, "/caller/token/issuer"), "idp");
    assert_eq!(text(&record, "/request/method"), "GET");
    assert_eq!(text(&record, "/request/path"), "/v1/orders/7");
    assert_eq!(
        (&record["response"]["status"], &record["policies"]["main"]),
        (&json!(200), &json!(1))
    );
    assert!(record["duration_us"]["total"].as_u64() >= record["duration_us"]["decided"].as_u64());

    for (answer, status, code) in [
        (&failed, 403, "policy_no_match"),
        (&nobody, 401, "token_missing"),
        (&denied, 403, "policy_denied"),
    ] {
        let record = trail.of(answer);
        let seen =
            (text(&record, "/decision"), &record["response"]["status"], text(&record, "/code"));
        assert_eq!(seen, ("reject", &json!(status), code));
        assert_eq!(record["detail"], answer.json()["detail"]);
    }
    assert_eq!(trail.of(&nobody).get("caller"), None);
    assert_eq!(text(&trail.of(&denied), "/rule"), "nobody-reads-card-data");

    let record = trail.of(&broken);
    assert_eq!((broken.status, &record["response"]["status"]), (503, &json!(503)));
    assert_eq!(text(&record, "/request/path"), "/v1/orders/7");
    let query = URL_SAFE_NO_PAD.encode(Sha256::digest("fail=503&name=Ann"));
    assert_eq!(text(&record, "/request/query_sha256"), query);
    assert!(!testbed.envoy_log().contains("name=Ann"));

    let record = trail.of(&long);
    assert_eq!(record["truncated"], json!(["/request/path"]));
    assert!((1000..=1024).contains(&text(&record, "/request/path").len()));
    trail.of(&odd);
    trail.of(&bytes);

    // Nobody is told a decision's id here: one who leaves while the upstream takes its time.
    let request = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: {ORDERS}\r\nauthorization: Bearer {token}\r\nx-airflow-identity: {identity}\r\n\r\n"
        )
    };
    let mut caller = TcpStream::connect(testbed.listener).await.unwrap();
    caller.write_all(request("/v1/orders/left?delay=3000").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(caller);
    eventually("who left is recorded", async || {
        let trail = Trail::of_log(&testbed);
        trail.decisions().values().any(|record| text(record, "/request/path") == "/v1/orders/left")
    })
    .await
    .unwrap();
    let trail = Trail::of_log(&testbed);
    let left = trail.at("/v1/orders/left");
    assert_eq!((text(&left, "/decision"), left.pointer("/response/status")), ("permit", None));
    assert!(left["response"]["flags"].as_u64().unwrap() > 0, "{left}");

    testbed.quit_envoy().await.unwrap();
    let trail = Trail::of_log(&testbed);
    verify(&testbed, &[testbed.log("envoy")]);
    assert_eq!(trail.decisions().len(), answers.len() + 1);
}

#[tokio::test]
async fn who_waits_is_recorded_when_decided_and_who_leaves_before_as_abandoned() {
    let options = Options {
        airflow_keys_fault: Some(Fault::Hang),
        configure: Box::new(|configuration| {
            audit(configuration, &json!([{ "log": {} }]));
            configuration["airflow"]["issuers"][0]["jwks"]["timeout"] = json!("500ms");
            configuration["waiting"] = json!({ "requests": 10, "time": "15s" });
        }),
        ..Options::default()
    };
    let testbed = Testbed::start(options).await.unwrap();
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let mut caller = TcpStream::connect(testbed.listener).await.unwrap();
    let request = format!(
        "GET /v1/orders/left HTTP/1.1\r\nhost: {ORDERS}\r\nauthorization: Bearer {token}\r\nx-airflow-identity: {identity}\r\n\r\n"
    );
    caller.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(caller);
    let task = churn();
    let (answer, ()) = tokio::join!(testbed.call_as(&task, read_order()), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        testbed.airflow.keys.heal();
    });
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let trail = logged(&testbed, &[&answer]).await;
    let record = trail.of(&answer);
    assert_eq!(text(&record, "/decision"), "permit");
    let waited = record["duration_us"]["decided"].as_u64().unwrap();
    assert!(waited > 200_000, "it waited: {record}");
    let left = trail.at("/v1/orders/left");
    assert_eq!((text(&left, "/decision"), left.get("caller")), ("abandoned", None));
}

#[tokio::test]
async fn a_new_vm_names_the_stream_that_it_takes_over_from() {
    let options = Options { reloadable: true, ..to_log() };
    let mut testbed = Testbed::start(options).await.unwrap();
    let first = testbed.call_as(&churn(), read_order()).await.unwrap();
    logged(&testbed, &[&first]).await;
    let ended = async |count| {
        eventually("the former stream has its end", async || {
            Trail::of_log(&testbed).kind("end").len() == count
        })
        .await
        .unwrap();
    };
    testbed.replace_vms().await.unwrap();
    ended(1).await;
    let second = testbed.call_as(&churn(), read_order()).await.unwrap();
    logged(&testbed, &[&second]).await;
    // The same VMs, and another configuration of the filter.
    testbed
        .reload(|bootstrap| {
            bootstrap.configure_filter(|configuration| configuration["forward_token"] = json!(true))
        })
        .await
        .unwrap();
    ended(2).await;
    let third = testbed.call_as(&churn(), read_order()).await.unwrap();
    logged(&testbed, &[&third]).await;
    testbed.quit_envoy().await.unwrap();

    let trail = Trail::of_log(&testbed);
    verify(&testbed, &[testbed.log("envoy")]);
    let stream_of = |answer| text(&trail.of(answer), "/stream").to_owned();
    let streams = [stream_of(&first), stream_of(&second), stream_of(&third)];
    assert_eq!(streams.iter().collect::<BTreeSet<_>>().len(), 3, "{streams:?}");
    let (begins, ends) = (trail.kind("begin"), trail.kind("end"));
    println!("{} streams begun, {} ended", begins.len(), ends.len());
    let processes: BTreeSet<_> = begins.iter().map(|begin| text(begin, "/process")).collect();
    assert_eq!(processes.len(), 1, "one Envoy is one process: {processes:?}");
    let ended: BTreeSet<_> = ends.iter().map(|end| text(end, "/stream")).collect();
    assert_eq!(ended.len(), begins.len(), "every stream has its end");
    // Every predecessor is a record of the trail, and of one successor only.
    let mut named = BTreeSet::new();
    for begin in &begins {
        let Some(predecessor) = begin.get("predecessor") else { continue };
        let stream = text(predecessor, "/stream").to_owned();
        let line = &trail.0[&(stream.clone(), predecessor["seq"].as_u64().unwrap())];
        assert_eq!(text(predecessor, "/hash"), URL_SAFE_NO_PAD.encode(Sha256::digest(line)));
        assert!(named.insert(stream), "named twice: {begin}");
    }
    assert_eq!(named, BTreeSet::from([streams[0].clone(), streams[1].clone()]));
}

#[tokio::test]
async fn one_trace_leads_from_the_caller_by_the_record_to_the_upstream() {
    let testbed = Testbed::start(to_log()).await.unwrap();
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let parent = format!("00-{trace}-{span}-01");
    let call = read_order().header("traceparent", &parent);
    let answer = testbed.call_as(&churn(), call).await.unwrap();
    let upstream = Received::from_answer(&answer).unwrap();
    assert_eq!(upstream.header("traceparent"), [parent.as_str()]);
    let forged = read_order().header("traceparent", "00-4BF92F3577B34DA6A3CE929D0E0E4736-0-01");
    let forged = testbed.call_as(&churn(), forged).await.unwrap();
    let trail = logged(&testbed, &[&answer, &forged]).await;

    let record = trail.of(&answer);
    assert_eq!(
        (text(&record, "/request/trace_id"), text(&record, "/request/span_id")),
        (trace, span)
    );
    assert_eq!(upstream.header("x-request-id"), [text(&record, "/request/request_id")]);
    let entry = testbed.access_log_of(&decision_id(&answer)).await.unwrap();
    assert_eq!(entry["request_id"], record["request"]["request_id"]);
    assert_eq!(entry["traceparent"], json!(parent));
    assert_eq!(trail.of(&forged).pointer("/request/trace_id"), None);
}

#[tokio::test]
async fn no_credential_is_in_any_log_or_record() {
    let collector = Collector::start().await.unwrap();
    let mut options = to(&collector);
    options.wasm_log_level = Some("trace");
    let configure = options.configure;
    options.configure = Box::new(move |configuration| {
        configure(configuration);
        // To both, and with what a token says of itself.
        configuration["audit"]["sinks"].as_array_mut().unwrap().push(json!({ "log": {} }));
        configuration["audit"]["claims"] = json!(["scope", "jti"]);
        configuration["proxy_authorization"] = json!(true);
    });
    let mut testbed = Testbed::start(options).await.unwrap();
    let mut secrets =
        BTreeSet::from([testbed.oidc.secret.clone(), testbed.partner_credential.clone()]);
    let mut answers = Vec::new();
    for (number, target) in
        ["/v1/orders/7", "/v1/orders/7/card", "/elsewhere", "/v1/orders/7?fail=500"]
            .iter()
            .enumerate()
    {
        let (token, identity) = testbed.credentials(&churn()).await.unwrap();
        for jws in [&token, &identity] {
            secrets.insert(jws.split('.').next().unwrap().to_owned());
            secrets.insert(jws.get(jws.len() - 24..).unwrap().to_owned());
        }
        let (query, cookie) = (format!("q1u2e3r4y{number}"), format!("c1o2o3k4i5e{number}"));
        let separator = if target.contains('?') { '&' } else { '?' };
        let call = |target: &str| {
            let target = format!("{target}{separator}password={query}");
            Call::get(ORDERS, &target).header("cookie", format!("session={cookie}"))
        };
        // As it should be, with parts exchanged, cut, and in places where they do not belong.
        let calls = [
            call(target).token(&token).identity(&identity),
            call(target).token(&identity).identity(&token),
            call(target).token(token.get(..token.len() - 1).unwrap()).identity(&identity),
            call(target).token(&token),
            call(target).header("authorization", format!("Basic {token}")).identity(&identity),
            call(target).header("x-airflow-dag-id", &token).token(&token).identity(&identity),
            call(target).header("traceparent", &token).token(&token).identity(&identity),
            call(target).header("proxy-authorization", format!("Bearer {token}")),
            call(target)
                .header("x-request-id", "r1")
                .token(&token)
                .identity(&identity)
                .identity(&identity),
        ];
        for call in calls {
            answers.push(testbed.call(call).await.unwrap());
        }
        secrets.extend([query, cookie]);
    }
    assert!(answers.iter().any(|answer| answer.status == 200));
    // What no post took before the end is in the log only.
    within(Duration::from_secs(10), "the collector has records", async || {
        !collector.batches().is_empty()
    })
    .await
    .unwrap();
    testbed.quit_envoy().await.unwrap();

    let records = Trail::of_collector(&collector).and(Trail::of_log(&testbed));
    assert_eq!(records.decisions().len(), answers.len());
    secrets.insert(text(&testbed.audit_key.private(), "/d").to_owned());
    let mut places = vec![
        ("Envoy's log".to_owned(), testbed.envoy_log()),
        ("the access log".to_owned(), fs::read_to_string(testbed.log("access")).unwrap()),
    ];
    for batch in collector.batches() {
        places.push((format!("batch {}", batch.name), format!("{batch:?}")));
    }
    // Those that the filter wrote to its callers.
    for answer in &answers {
        if Received::from_answer(answer).is_none() {
            places
                .push(("an answer".to_owned(), format!("{:?} {}", answer.headers, answer.text())));
        }
    }
    for (place, text) in &places {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{place} has {secret}");
        }
    }
    // That it could have been found: what is no secret is there.
    assert!(
        places.iter().any(|(place, text)| place.starts_with("batch") && text.contains("ds_churn"))
    );
    assert!(places[0].1.contains("[trace][wasm]"), "the log has the Wasm runtime's trace");
}

#[tokio::test]
async fn what_the_policy_decided_it_decides_again_from_the_records() {
    let mut testbed = Testbed::start(to_log()).await.unwrap();
    let tasks = [
        churn(),
        Task { run_type: "manual".to_owned(), ..churn() },
        Task::new("ds_churn", "load"),
        Task { roles: vec!["DataScience".to_owned()], ..Task::new("ds_other", "load") },
        Task::new("report_daily", "deliver_pdf").team("finance"),
        Task { map_index: 3, ..Task::new("report_daily", "render").team("finance") },
    ];
    let targets = [
        (ORDERS, "/v1/orders/7"),
        (ORDERS, "/v1/orders/7/card"),
        (ORDERS, "/v1/orders/7/../8/c%61rd?x=1"),
        (ORDERS, "/v1/customers"),
        (PARTNER, "/v2/reports/2026"),
        ("nowhere.internal", "/"),
    ];
    let mut calls = 0;
    for task in &tasks {
        let (token, identity) = testbed.credentials(task).await.unwrap();
        for (host, target) in targets {
            for method in ["GET", "POST"] {
                let call = Call::new(method, host, target).token(&token).identity(&identity);
                testbed.call(call).await.unwrap();
                calls += 1;
            }
        }
    }
    testbed.quit_envoy().await.unwrap();
    verify(&testbed, &[testbed.log("envoy")]);

    let policy = airflow_envoy_testbed::policy().unwrap();
    let mut judge = Judge::new(&policy, &[]).unwrap();
    let (mut records, mut outcomes) = (0, BTreeMap::<_, usize>::new());
    let mut reader = Reader::new(&[testbed.log("envoy")]).unwrap();
    let seen = reader.each(|_, found| {
        let Found::Record(head) = found else { return };
        if head.kind != Kind::Decision {
            return;
        }
        let record = Record::parse(head.text).unwrap();
        assert!(is_of_policy(&record), "{}", head.text);
        let again = judge.decide(&record, head.caller, decided_at(&record).unwrap()).unwrap();
        let recorded: Value = serde_json::from_str(head.text).unwrap();
        let member = |name: &str| recorded.get(name).and_then(Value::as_str).map(str::to_owned);
        let code = again.code.map(|code| code.name().to_owned());
        assert_eq!(
            (&code, &again.rule, &again.nearest, &again.destination),
            (&member("code"), &member("rule"), &member("nearest"), &member("destination")),
            "{}",
            head.text
        );
        *outcomes.entry(code.or(again.rule)).or_default() += 1;
        records += 1;
    });
    println!("{records} decisions again: {outcomes:?}; {:?}", seen.unwrap());
    assert_eq!(records, calls);
    assert!(outcomes.len() >= 4, "{outcomes:?}");
}
