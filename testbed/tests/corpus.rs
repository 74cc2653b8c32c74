//! The case corpus through a real Envoy with the shipped filter: every case over the wire, byte for byte.
//!
//! One Envoy, one listener per configuration of the corpus. The listeners let everything through that Envoy's codec
//! admits, so that the filter's own answer is seen: what `envoy.yaml` refuses before it is `e2e.rs`'s to test.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use airflow_envoy_core::reject::Code;
use airflow_envoy_corpus::{
    Answer, Case, Exchange, Expectation, Report, Subject, cases, run, telling,
};
use airflow_envoy_testbed::bootstrap::Bootstrap;
use airflow_envoy_testbed::envoy::{Addresses, Launch};
use airflow_envoy_testbed::identity::now;
use airflow_envoy_testbed::process::Process;
use airflow_envoy_testbed::upstream::Upstream;
use airflow_envoy_testbed::{Call, Options, Testbed, filter_file, repository, server};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

/// Seconds that Envoy gets to start with all listeners. The cases are minted for the time after it.
const START: u64 = 10;

/// Some cases are about a quarter of a minute: after these seconds from the time for which it was minted, an answer
/// proves nothing.
const FRESH: u64 = 14;

/// What came of asking everything once.
struct Outcome {
    report: Report,
    /// The reject codes that came over the wire.
    codes: BTreeSet<String>,
    seconds: f32,
}

/// Asks once for all tests of this file.
fn outcome() -> &'static Outcome {
    static OUTCOME: OnceLock<Outcome> = OnceLock::new();
    OUTCOME.get_or_init(|| {
        let mut start = START;
        for _ in 0..3 {
            let begun = now();
            let minted_for = begun + start;
            let minted = i64::try_from(minted_for).unwrap();
            let mut envoy = Envoy::start(minted);
            let ready = now();
            if ready <= minted_for + 2 {
                let asked = Instant::now();
                let report = run(&mut envoy, minted);
                let seconds = asked.elapsed().as_secs_f32();
                if now() <= minted_for + FRESH {
                    envoy.provoke_what_needs_a_callout();
                    return Outcome { report, codes: std::mem::take(&mut envoy.codes), seconds };
                }
            }
            println!(
                "ready {} s after the start, done by {} s: too slow, once more",
                ready - begun,
                now() - begun
            );
            start = ready - begun + 4;
        }
        panic!("this machine is too slow for cases that are about seconds");
    })
}

#[test]
fn every_case_is_answered_as_it_must_be() {
    let Outcome { report, seconds, .. } = outcome();
    let mut excuses: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (case, reason) in &report.excused {
        excuses.entry(reason).or_default().push(case);
    }
    for (reason, cases) in &excuses {
        println!("excused, {reason}:\n  {}", cases.join("\n  "));
    }
    match report.verdict() {
        Ok(summary) => println!("{summary}, in {seconds:.1} s"),
        Err(failures) => panic!("{failures}"),
    }
    let all = report.ran + report.excused.len();
    assert!(report.ran * 20 >= all * 19, "only {} of {all} cases ran", report.ran);
}

#[test]
fn every_reject_code_comes_over_the_wire() {
    let missing: Vec<_> = Code::ALL
        .iter()
        .map(|code| code.name())
        .filter(|code| !outcome().codes.contains(*code))
        .collect();
    // That one needs a Consul, and comes over the wire in the tests of intentions.
    assert_eq!(missing, ["intention_denied"]);
}

#[tokio::test]
async fn envoy_does_not_start_with_a_configuration_that_the_filter_refuses() {
    let configure = |configuration: &mut Value| configuration["token"] = json!("sometimes");
    let options = Options { configure: Box::new(configure), ..Options::default() };
    let fault = Testbed::start(options).await.err().map(|fault| fault.to_string());
    let fault = fault.unwrap_or_default();
    for said in ["ended while starting", "configuration: token: `sometimes` is none of"] {
        assert!(fault.contains(said), "{fault}");
    }
}

/// Envoy with a listener per configuration.
struct Envoy {
    /// The time for which the cases are minted.
    now: i64,
    /// What each case that was not asked yet sends. It is minted beforehand: that takes seconds, and time passes.
    exchanges: BTreeMap<String, Exchange>,
    /// Where each configuration is served, or why it is not.
    listeners: BTreeMap<Listener, Result<SocketAddr, String>>,
    current: Option<Vec<u8>>,
    codes: BTreeSet<String>,
    directory: PathBuf,
    _upstream: Runtime,
    _silent: TcpListener,
    _process: Process,
}

/// What distinguishes listeners: the filter's configuration, and what the listener says of the scheme.
type Listener = (Vec<u8>, String);

/// The header by which a case says what Envoy knows of the client's certificate.
const PEER: &str = "x-corpus-peer";

impl Envoy {
    fn start(now: i64) -> Self {
        let directory = repository().join(format!("target/testbed/{}-corpus", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let upstream = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let echo = server::serve(Arc::new(Upstream::new("upstream")), None);
        let echo = upstream.block_on(echo).unwrap();
        // It is connected to and never answers: nobody accepts.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();

        let exchanges: BTreeMap<_, _> = cases()
            .unwrap()
            .into_iter()
            .map(|case| {
                let exchange = case.exchange(now).unwrap();
                (case.name, exchange)
            })
            .collect();
        let mut wanted: BTreeSet<_> = exchanges.values().map(listener_for).collect();
        wanted.extend(
            waiting_configurations(now).map(|configuration| (configuration, "http".to_owned())),
        );
        let wanted: Vec<_> = wanted.into_iter().collect();
        let filter = filter_file().unwrap().display().to_string();
        let resources: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(index, wanted)| listener(&name(index), wanted, &filter))
            .collect();
        fs::write(directory.join("listeners.json"), json!({ "resources": resources }).to_string())
            .unwrap();
        let bootstrap = Bootstrap(json!({
            "node": { "id": "corpus", "cluster": "corpus" },
            "admin": { "address": address("127.0.0.1:0".parse().unwrap()) },
            "dynamic_resources": { "lds_config": {
                "path_config_source": { "path": directory.join("listeners.json") }, "resource_api_version": "V3",
            }},
            "static_resources": { "clusters": [
                cluster("upstream", echo), cluster("silent", silent.local_addr().unwrap()),
            ]},
        }));
        let launch = Launch {
            name: "envoy",
            access: "access",
            directory: &directory,
            concurrency: 1,
            log_level: "warning",
            wasm_log_level: None,
            // Some are refused, as they must be.
            listeners: &[],
            environment: &[],
        };
        let started = launch.run_within(Duration::from_secs(60), &bootstrap);
        let (process, Addresses { admin, .. }) = upstream.block_on(started).unwrap();
        let ask =
            |path| upstream.block_on(Call::get("admin", path).send(admin, None)).unwrap().json();
        let served = served(&ask("/listeners?format=json"));
        let log = fs::read_to_string(process.log()).unwrap();
        let refused = refused(&ask("/config_dump?resource=dynamic_listeners"), &log);
        let listeners = wanted.into_iter().enumerate().map(|(index, listener)| {
            let name = name(index);
            let state = match (served.get(&name), refused.get(&name)) {
                (Some(address), None) => Ok(*address),
                (None, Some(reason)) => Err(reason.clone()),
                state => panic!("listener `{name}` is {state:?}"),
            };
            (listener, state)
        });
        Self {
            now,
            exchanges,
            listeners: listeners.collect(),
            current: None,
            codes: BTreeSet::new(),
            directory,
            _upstream: upstream,
            _silent: silent,
            _process: process,
        }
    }

    /// Sends a request to its listener.
    fn send(&self, exchange: &Exchange) -> Result<Reply, String> {
        let listener = self.listeners.get(&listener_for(exchange));
        let address = listener.ok_or("no such listener")?.clone()?;
        let peer = exchange.peer.iter().map(|peer| (PEER.as_bytes().to_vec(), peer.clone()));
        let headers: Vec<_> = exchange.headers.iter().cloned().chain(peer).collect();
        Reply::to(address, &headers).map_err(|error| error.to_string())
    }

    /// The codes of requests that wait in vain, which no case can ask for: its keys and its policy are here at once.
    fn provoke_what_needs_a_callout(&mut self) {
        let (headers, now) = (permitted(self.now).headers, self.now);
        for configuration in waiting_configurations(now) {
            self.configure(&configuration).unwrap();
            let listener = (configuration, "http".to_owned());
            let address = *self.listeners[&listener].as_ref().unwrap();
            // The first one waits; the second one finds no room, if there is only one.
            let first = {
                let headers = headers.clone();
                std::thread::spawn(move || Reply::to(address, &headers))
            };
            std::thread::sleep(Duration::from_millis(100));
            for reply in [Reply::to(address, &headers).unwrap(), first.join().unwrap().unwrap()] {
                assert_eq!(reply.status, 503, "{reply:?}");
                assert!(reply.header("retry-after").is_some());
                self.codes.extend(reply.header("x-airflow-envoy-code"));
            }
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _: Result<(), _> = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Subject for Envoy {
    fn name(&self) -> &'static str {
        "filter, Envoy"
    }

    fn excuse(&self, case: &Case) -> Option<String> {
        let exchange = self.exchanges.get(&case.name)?;
        let odd = |octet: &u8| octet.is_ascii_control();
        if exchange.peer.as_ref().is_some_and(|peer| peer.iter().any(odd)) {
            return Some("no header carries what the certificate has".to_owned());
        }
        let marked = case.not_through_envoy.as_ref()?;
        if marked.contains("exact to the second") {
            return Some("the real time does not stand still for it".to_owned());
        }
        if exchange.headers.iter().any(|(_, value)| value.trim_ascii() != value) {
            return Some("HTTP/1.1 does not carry white space around a value".to_owned());
        }
        // What is left is asked all the same: what reaches the filter as it is must be answered as it must be,
        // and what does not must at least be refused.
        let reply = self.send(exchange).ok()?;
        let refused = (400..500).contains(&reply.status);
        let names = exchange.headers.iter().map(|(name, _)| name);
        if names.filter(|name| name.eq_ignore_ascii_case(b"authorization")).count() > 1 && refused {
            return Some("Envoy joins repeated authorization headers with a comma".to_owned());
        }
        let by_envoy = reply.header("x-corpus-decision").is_none() && refused;
        by_envoy.then(|| format!("Envoy itself answers {}", reply.status))
    }

    fn chooses_time(&self) -> bool {
        false
    }

    fn exchange(&mut self, case: &Case, _: i64) -> Result<Exchange, String> {
        self.exchanges.remove(&case.name).ok_or_else(|| "asked twice".to_owned())
    }

    fn configure(&mut self, configuration: &[u8]) -> Result<(), String> {
        self.current = Some(configuration.to_vec());
        let any = self.listeners.iter().find(|((known, _), _)| known == configuration);
        any.ok_or("no such listener")?.1.clone().map(|_| ())
    }

    fn answer(&mut self, exchange: &Exchange, now: i64) -> Result<Answer, String> {
        // The cases are minted for the time after the start.
        while i64::try_from(airflow_envoy_testbed::identity::now()).unwrap() < now {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.current.as_ref(), Some(&exchange.configuration));
        let (reply, headers) = (self.send(exchange)?, &exchange.headers);
        let Some(code) = reply.header("x-airflow-envoy-code") else {
            return if is_connect(headers) { reply.tunnel() } else { reply.permit() };
        };
        self.codes.insert(code.clone());
        reply.reject(code)
    }
}

/// What came back.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    /// The reply to exactly these headers, with one connection for them.
    fn to(address: SocketAddr, headers: &[(Vec<u8>, Vec<u8>)]) -> std::io::Result<Self> {
        let mut request = Vec::new();
        let part = |name: &str| {
            headers.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| value)
        };
        // A CONNECT names its authority instead of a path (RFC 9112 §3.2.3).
        let target = part(":path").or_else(|| part(":authority").filter(|_| is_connect(headers)));
        request.extend(part(":method").into_iter().flatten());
        request.extend(b" ");
        request.extend(target.into_iter().flatten());
        request.extend(b" HTTP/1.1\r\n");
        if let Some(authority) = part(":authority") {
            request.extend([b"host: ", authority.as_slice(), b"\r\n"].concat());
        }
        for (name, value) in headers.iter().filter(|(name, _)| !name.starts_with(b":")) {
            request.extend([name.as_slice(), b": ", value, b"\r\n"].concat());
        }
        request.extend(b"\r\n");

        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&request)?;
        // Envoy keeps a connection open for a while even when it has told that it closes it.
        let (mut received, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        loop {
            if let Some(reply) = Self::read(&received) {
                return Ok(reply);
            }
            match stream.read(&mut chunk)? {
                0 => {
                    return Err(std::io::Error::other("the connection was closed without a reply"));
                }
                length => received.extend(&chunk[..length]),
            }
        }
    }

    /// The reply, if it is whole.
    fn read(received: &[u8]) -> Option<Self> {
        let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&received[..end]);
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers =
            headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        let reply = Self { status, headers, body: received[end + 4..].to_vec() };
        let length =
            reply.header("content-length").map_or(Some(0), |length| length.parse().ok())?;
        (reply.body.len() >= length).then_some(reply)
    }

    fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    /// What the upstream received, which is all that counts.
    fn permit(&self) -> Result<Answer, String> {
        let echo: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        if self.header("x-corpus-decision").as_deref() != Some("permit")
            || echo["upstream"] != "upstream"
        {
            return Err(format!("neither the filter nor the upstream answered: {self:?}"));
        }
        let headers = echo["headers"].as_array().into_iter().flatten().filter_map(|header| {
            let (name, value) = header.as_str()?.split_once(": ")?;
            // HTTP/1.1 writes the authority so (RFC 9113 §8.3.1).
            let name = if name == "host" { ":authority" } else { name };
            Some((name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        });
        let path =
            (b":path".to_vec(), echo["path"].as_str().unwrap_or_default().as_bytes().to_vec());
        Ok(Answer::Permit {
            rule: self.header("x-corpus-rule"),
            headers: headers.chain([path]).collect(),
        })
    }

    /// What Envoy says that it sent on, because the end of a tunnel echoes nothing.
    fn tunnel(&self) -> Result<Answer, String> {
        if self.header("x-corpus-decision").as_deref() != Some("permit") || self.status != 200 {
            return Err(format!("there is no tunnel: {self:?}"));
        }
        let seen = SEEN_OF_TUNNELS.iter().filter_map(|name| {
            let value = self.header(&seen_header(name))?;
            Some((name.as_bytes().to_vec(), value.into_bytes()))
        });
        Ok(Answer::Permit { rule: self.header("x-corpus-rule"), headers: seen.collect() })
    }

    fn reject(&self, code: String) -> Result<Answer, String> {
        if self.header("x-corpus-decision").as_deref() != Some("reject") {
            return Err(format!("the code and the filter state disagree: {self:?}"));
        }
        if self.header("grpc-status").is_some() {
            let message = self.header("grpc-message").unwrap_or_default();
            let detail =
                message.strip_prefix(&format!("{code}: ")).ok_or("no code in the message")?;
            let status = airflow_envoy_corpus::expected_status(&code);
            return Ok(Answer::Reject {
                status,
                rule: self.header("x-corpus-rule"),
                nearest: None,
                detail: detail.to_owned(),
                action: None,
                code,
            });
        }
        let problem: Value =
            serde_json::from_slice(&self.body).map_err(|error| error.to_string())?;
        if problem["code"] != code || problem["status"] != self.status {
            return Err(format!("the body contradicts the header: {self:?}"));
        }
        let member = |name: &str| problem[name].as_str().map(str::to_owned);
        Ok(Answer::Reject {
            status: self.status,
            rule: member("rule"),
            nearest: member("nearest"),
            detail: member("detail").unwrap_or_default(),
            action: Some(member("action").unwrap_or_default()),
            code,
        })
    }
}

fn name(index: usize) -> String {
    format!("listener-{index}")
}

/// What is looked at of the requests that open tunnels.
const SEEN_OF_TUNNELS: [&str; 11] = [
    ":authority",
    ":path",
    "authorization",
    "proxy-authorization",
    "x-airflow-identity",
    "x-airflow-shadow",
    "x-airflow-dag-id",
    "x-airflow-task-id",
    "x-airflow-run-id",
    "x-airflow-try-number",
    "x-airflow-map-index",
];

/// The header by which Envoy says what it sent on as `name`.
fn seen_header(name: &str) -> String {
    format!("x-corpus-seen-{}", name.trim_start_matches(':'))
}

fn is_connect(headers: &[(Vec<u8>, Vec<u8>)]) -> bool {
    headers.iter().any(|(name, value)| name == b":method" && value == b"CONNECT")
}

fn scheme(headers: &[(Vec<u8>, Vec<u8>)]) -> String {
    let scheme = headers.iter().find(|(name, _)| name == b":scheme");
    scheme.map_or("http".into(), |(_, value)| String::from_utf8_lossy(value)).into_owned()
}

/// A request that every policy of the bases permits.
fn permitted(now: i64) -> Exchange {
    let cases = cases().unwrap();
    let case =
        cases.iter().find(|case| matches!(case.expected, Expectation::Permit { .. })).unwrap();
    case.exchange(now).unwrap()
}

/// Configurations under which a request waits, and is refused in the end.
fn waiting_configurations(now: i64) -> impl Iterator<Item = Vec<u8>> {
    let usual: Value = serde_json::from_slice(&permitted(now).configuration).unwrap();
    let (mut keys, mut policy, mut room) = (usual.clone(), usual.clone(), usual);
    keys["issuers"][0]["jwks"] = json!({ "cluster": "silent", "uri": "http://silent/jwks" });
    keys["waiting"] = json!({ "time": "300ms" });
    let source =
        json!({ "name": "main", "http": { "cluster": "nowhere", "uri": "http://nowhere/policy" } });
    policy["policy"]["sources"] = json!([source]);
    policy["waiting"] = json!({ "time": "300ms" });
    room["issuers"][0]["jwks"] = keys["issuers"][0]["jwks"].clone();
    room["waiting"] = json!({ "time": "2s", "requests": 1 });
    [keys, policy, room].into_iter().map(|configuration| configuration.to_string().into_bytes())
}

/// The listeners that Envoy serves, by name.
fn served(listeners: &Value) -> BTreeMap<String, SocketAddr> {
    let statuses = listeners["listener_statuses"].as_array().unwrap();
    let address = |status: &Value| {
        let socket = &status["local_address"]["socket_address"];
        let port = socket["port_value"].as_u64().unwrap();
        format!("{}:{port}", socket["address"].as_str().unwrap()).parse().unwrap()
    };
    statuses
        .iter()
        .map(|status| (status["name"].as_str().unwrap().to_owned(), address(status)))
        .collect()
}

/// The listeners that Envoy refuses, by name, with what it and the filter say about it.
fn refused(dump: &Value, log: &str) -> BTreeMap<String, String> {
    let states = dump["configs"].as_array().into_iter().flatten();
    states
        .filter_map(|state| {
            let name = state.get("name")?.as_str()?;
            let mut reason = state.get("error_state")?["details"].as_str()?.to_owned();
            for line in log.lines().filter(|line| line.contains(&format!("wasm log {name} "))) {
                reason.push('\n');
                reason.push_str(line);
            }
            Some((name.to_owned(), reason))
        })
        .collect()
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn cluster(name: &str, endpoint: SocketAddr) -> Value {
    let endpoints = json!([{ "lb_endpoints": [{ "endpoint": { "address": address(endpoint) } }] }]);
    json!({ "name": name, "type": "STATIC", "load_assignment": { "cluster_name": name, "endpoints": endpoints } })
}

fn listener_for(exchange: &Exchange) -> Listener {
    (exchange.configuration.clone(), scheme(&exchange.headers))
}

/// A listener that lets everything reach the filter that Envoy lets reach any filter, and says of the client's
/// certificate what a case wants.
fn listener(name: &str, (configuration, scheme): &Listener, filter: &str) -> Value {
    let configuration = telling(configuration, &["decision", "rule"]);
    let configuration = std::str::from_utf8(&configuration).unwrap();
    let filter_state = |of: &str| format!("%FILTER_STATE(wasm.airflow_envoy.{of}:PLAIN)%");
    let tell =
        |header: &str, of: &str| json!({ "header": { "key": header, "value": filter_state(of) } });
    let wasm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {
            "name": name,
            // The filter takes any; Envoy names it in the filter's log lines.
            "root_id": name,
            "failure_policy": "FAIL_RELOAD",
            "vm_config": {
                "vm_id": "corpus",
                "runtime": "envoy.wasm.runtime.v8",
                "code": { "local": { "filename": filter } },
            },
            "configuration": { "@type": "type.googleapis.com/google.protobuf.StringValue", "value": configuration },
        },
    });
    let router =
        json!({ "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "corpus",
        "codec_type": "HTTP1",
        "normalize_path": false,
        "merge_slashes": false,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "common_http_protocol_options": { "headers_with_underscores_action": "ALLOW" },
        "http_protocol_options": { "allow_absolute_url": false, "allow_custom_methods": true },
        "scheme_header_transformation": { "scheme_to_overwrite": scheme },
        "max_request_headers_kb": 96,
        // What proxies before it say of their callers reaches the filter as it came.
        "forward_client_cert_details": "ALWAYS_FORWARD_ONLY",
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
        "http_filters": [
            told(),
            { "name": "airflow-envoy", "typed_config": wasm },
            { "name": "envoy.filters.http.router", "typed_config": router },
        ],
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [
                { "match": { "prefix": "/" }, "route": { "cluster": "upstream" } },
                {
                    "match": { "connect_matcher": {} },
                    "route": { "cluster": "upstream" },
                    "response_headers_to_add": SEEN_OF_TUNNELS.map(|name| json!({
                        "header": { "key": seen_header(name), "value": format!("%REQ({name})%") },
                    })),
                },
            ],
            "response_headers_to_add": [tell("x-corpus-decision", "decision"), tell("x-corpus-rule", "rule")],
        }]},
    });
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": name,
        "address": address("127.0.0.1:0".parse().unwrap()),
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }] }],
    })
}

/// The filter state in which a listener with TLS keeps what it knows about the client's certificate: here, of no
/// connection but of each request what it says itself.
fn told() -> Value {
    json!({ "name": "envoy.filters.http.set_filter_state", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
        "on_request_headers": [{
            "object_key": "airflow_envoy.peer",
            "factory_key": "envoy.string",
            "format_string": {
                "text_format_source": { "inline_string": format!("%REQ({PEER})%") },
                "omit_empty_values": true,
            },
            "skip_if_empty": true,
        }],
    }})
}
