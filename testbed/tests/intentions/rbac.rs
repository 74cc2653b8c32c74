//! What permissions match, by Envoy's own RBAC filter: Consul makes its configuration of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use airflow_envoy_core::intentions::{DefaultAction, Question};
use airflow_envoy_core::peer::SpiffeId;
use airflow_envoy_testbed::envoy_program;
use airflow_envoy_testbed::process::{Process, free_port};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::random::Random;
use crate::{folder, parse, settings, spiffe_id};

const SETS: usize = 250;
const REQUESTS: usize = 16;

const PATTERNS: [&str; 22] = [
    "v",
    "v[0-9]",
    ".*",
    "v|w",
    "[^v]+",
    r"\w+",
    r"v\s?w?",
    "v.?",
    "(v|w)+",
    "v{1,2}",
    "(?i)V.*",
    r"[[:alpha:]]*[0-9]?",
    r"\S*",
    "",
    r"a\.b",
    "a.b",
    "[a&&b]+",
    r"[\w.-]+",
    "^v$",
    r"\x76\d*",
    "(?s).*é",
    "[[a]v?",
];
const VALUES: [&[u8]; 20] = [
    b"",
    b"v",
    b"V",
    b"w",
    b"v1",
    b"v,w",
    b"w, v",
    b"vv",
    b"a.b",
    b"axb",
    b"v w",
    b"1",
    b"&",
    b"[v",
    "é".as_bytes(),
    "vé".as_bytes(),
    b"\xff",
    b"v\xff",
    b"v\tw",
    b"-",
];
const PATHS: [&str; 16] = [
    "/v1/a",
    "/v1/a?x=1",
    "/v1/a/",
    "//v1/a",
    "/v1/%61",
    "/v1/b/../a",
    "/V1/a",
    "/v1/abc",
    "/v1",
    "/",
    "/v2",
    "/v1/a;p=1",
    "/v1/a?/v1/b",
    "/?",
    "/v1/b",
    "/v1/a%2Fb",
];

/// A pattern by chance, of what both engines surely know.
fn pattern(random: &mut Random) -> String {
    if random.one_in(2) {
        return random.pick(&PATTERNS).to_owned();
    }
    let mut text = String::new();
    for _ in 0..=random.below(3) {
        text.push_str(random.pick(&[
            "v", "w", ".", "[vw]", "[^v]", r"\d", r"\w", r"\W", "(v|w|1)", "(?:a.)", r"\.", "1",
            "[0-9a-f]", r"\D",
        ]));
        text.push_str(random.pick(&["", "", "*", "+", "?", "{0,2}", "{2}", "*?"]));
    }
    text
}

fn header(random: &mut Random) -> Value {
    let text =
        |random: &mut Random| random.pick(&["v", "V", "w", "v1", "v,w", "a", "é", " "]).to_owned();
    let mut header = Map::new();
    header.insert("Name".into(), json!(random.pick(&["x-a", "X-B", "x-absent"])));
    match random.below(6) {
        0 => header.insert("Present".into(), json!(true)),
        1 => {
            let pattern = pattern(random);
            // Without a pattern there is no test: Go leaves such a member out.
            header.insert("Regex".into(), json!(if pattern.is_empty() { "x" } else { &pattern }))
        }
        2 => header.insert("Exact".into(), json!(text(random))),
        3 => header.insert("Prefix".into(), json!(text(random))),
        4 => header.insert("Suffix".into(), json!(text(random))),
        _ => header.insert("Contains".into(), json!(text(random))),
    };
    let folds = !header.contains_key("Present") && !header.contains_key("Regex");
    if folds && random.one_in(3) {
        header.insert("IgnoreCase".into(), json!(true));
    }
    if random.one_in(4) {
        header.insert("Invert".into(), json!(true));
    }
    header.into()
}

fn permission(random: &mut Random) -> Value {
    let mut http = Map::new();
    match random.below(5) {
        0 => {
            _ = http
                .insert("PathExact".into(), json!(random.pick(&["/v1/a", "/", "/v1/a/", "/V1/a"])))
        }
        1 => {
            _ = http.insert("PathPrefix".into(), json!(random.pick(&["/v1/a", "/", "/v1/", "/v2"])))
        }
        2 => {
            let regex = random.pick(&[
                "/v1/.*",
                "/v1/[ab]",
                "/.*a",
                "(?i)/v1/a",
                "/v[12](/.*)?",
                r"/v1/a\?x=1",
                "/*v1/a",
            ]);
            http.insert("PathRegex".into(), json!(regex));
        }
        _ => {}
    }
    if random.one_in(3) {
        http.insert(
            "Methods".into(),
            json!(if random.one_in(2) { vec!["GET"] } else { vec!["POST", "PUT"] }),
        );
    }
    let headers: Vec<_> = (0..random.below(3)).map(|_| header(random)).collect();
    if http.is_empty() || !headers.is_empty() {
        let headers = if headers.is_empty() { vec![header(random)] } else { headers };
        http.insert("Header".into(), json!(headers));
    }
    json!({ "Action": random.pick(&["allow", "allow", "deny"]), "HTTP": http })
}

/// What Consul makes of the HTTP part of a permission.
fn rule(permission: &Value) -> Value {
    let http = &permission["HTTP"];
    let mut all = Vec::new();
    let path = |kind: &str, value: &Value| json!({ "url_path": { "path": { kind: value } } });
    all.extend(http.get("PathExact").map(|value| path("exact", value)));
    all.extend(http.get("PathPrefix").map(|value| path("prefix", value)));
    all.extend(http.get("PathRegex").map(|value| path("safe_regex", &json!({ "regex": value }))));
    for test in http["Header"].as_array().into_iter().flatten() {
        let mut matcher = json!({ "name": test["Name"] });
        if test["Present"] == true {
            matcher["present_match"] = json!(true);
        }
        for kind in ["Exact", "Prefix", "Suffix", "Contains"] {
            if let Some(value) = test.get(kind) {
                let folds = test["IgnoreCase"] == true;
                matcher["string_match"] =
                    json!({ kind.to_lowercase(): value, "ignore_case": folds });
            }
        }
        if let Some(value) = test.get("Regex") {
            matcher["string_match"] = json!({ "safe_regex": { "regex": value } });
        }
        matcher["invert_match"] = json!(test["Invert"] == true);
        all.push(json!({ "header": matcher }));
    }
    if let Some(methods) = http["Methods"].as_array() {
        let methods: Vec<_> = methods.iter().map(|method| method.as_str().unwrap()).collect();
        let regex = json!({ "regex": methods.join("|") });
        all.push(
            json!({ "header": { "name": ":method", "string_match": { "safe_regex": regex } } }),
        );
    }
    json!({ "and_rules": { "rules": all } })
}

/// What Consul makes of an intention: each permission that is not what the default does, without those before it.
fn rules(permissions: &[Value], default: DefaultAction) -> Value {
    let allows_by_default = default == DefaultAction::Allow;
    let mut kept = Vec::new();
    for (place, permission) in permissions.iter().enumerate() {
        if (permission["Action"] == "allow") == allows_by_default {
            continue;
        }
        let before = permissions[..place].iter().map(|it| json!({ "not_rule": rule(it) }));
        let all: Vec<_> = std::iter::once(rule(permission)).chain(before).collect();
        kept.push(json!({ "and_rules": { "rules": all } }));
    }
    let action = if allows_by_default { "DENY" } else { "ALLOW" };
    let mut policies = Map::new();
    if !kept.is_empty() {
        let policy = json!({ "permissions": kept, "principals": [{ "any": true }] });
        policies.insert("intention".to_owned(), policy);
    }
    json!({ "action": action, "policies": policies })
}

fn bootstrap(port: u16, sets: &[(Vec<Value>, DefaultAction)]) -> Value {
    const RBAC: &str = "envoy.filters.http.rbac";
    let kind = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let routes = sets.iter().enumerate().map(|(number, (permissions, default))| {
        json!({
            "match": {
                "prefix": "/",
                "headers": [{ "name": "x-set", "string_match": { "exact": number.to_string() } }],
            },
            "direct_response": { "status": 200 },
            "typed_per_filter_config": { RBAC: {
                "@type": kind("http.rbac.v3.RBACPerRoute"),
                "rbac": { "rules": rules(permissions, *default) },
            } },
        })
    });
    let manager = json!({
        "@type": kind("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "rbac",
        "route_config": {
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes.collect::<Vec<_>>() }],
        },
        "http_filters": [
            { "name": RBAC, "typed_config": { "@type": kind("http.rbac.v3.RBAC") } },
            { "name": "router", "typed_config": { "@type": kind("http.router.v3.Router") } },
        ],
    });
    json!({ "static_resources": { "listeners": [{
        "name": "rbac",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
    }] } })
}

/// Sends a request as it is, and reads the status of the answer.
async fn status(stream: &mut TcpStream, request: &[u8]) -> u16 {
    stream.write_all(request).await.unwrap();
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if received.len() >= end + 4 + length {
                return head.split(' ').nth(1).unwrap().parse().unwrap();
            }
        }
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut chunk)).await;
        let length = read.unwrap().unwrap();
        assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&received));
        received.extend(&chunk[..length]);
    }
}

async fn connect(address: SocketAddr, envoy: &mut Process) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Ok(stream) = TcpStream::connect(address).await {
            return stream;
        }
        assert!(
            envoy.is_running() && Instant::now() < deadline,
            "{}",
            envoy.failed("does not serve")
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn permissions_match_what_envoys_rbac_filter_matches() {
    let mut random = Random::seeded("Envoy's RBAC");
    let start = Instant::now();
    let sets: Vec<_> = (0..SETS)
        .map(|_| {
            let permissions: Vec<_> =
                (0..=random.below(3)).map(|_| permission(&mut random)).collect();
            let default = if random.one_in(4) { DefaultAction::Allow } else { DefaultAction::Deny };
            (permissions, default)
        })
        .collect();
    let folder = folder("rbac");
    let configuration = folder.join("envoy.json");
    let port = free_port().unwrap();
    std::fs::write(&configuration, bootstrap(port, &sets).to_string()).unwrap();
    let log = folder.join("envoy.log");
    let mut envoy = Process::start("Envoy", &envoy_program().unwrap(), &log, |command| {
        command.arg("--config-path").arg(&configuration);
        command.args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]);
    })
    .unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = connect(address, &mut envoy).await;

    let peer = SpiffeId::parse(spiffe_id("web").as_bytes()).unwrap();
    let (mut cases, mut allowed, mut uncertain) = (0, 0, 0);
    for (number, (permissions, default)) in sets.iter().enumerate() {
        let intention =
            json!({ "SourceName": "web", "DestinationName": "orders", "Permissions": permissions });
        let read = parse(&json!({ "orders": [intention] }), &settings("orders", *default));
        let unfit: Vec<_> = read.unfit().collect();
        assert!(unfit.is_empty(), "{unfit:?}");
        for _ in 0..REQUESTS {
            let method = random.pick(&["GET", "POST", "DELETE"]);
            let target = random.pick(&PATHS);
            let mut lines: Vec<(&[u8], &[u8])> = Vec::new();
            for _ in 0..random.below(4) {
                let name = random.pick(&["x-a", "X-A", "x-b", "x-c"]);
                lines.push((name.as_bytes(), random.pick(&VALUES)));
            }
            let mut request =
                format!("{method} {target} HTTP/1.1\r\nHost: a\r\nx-set: {number}\r\n")
                    .into_bytes();
            for (name, value) in &lines {
                request.extend([name, &b": "[..], value, b" \r\n"].concat());
            }
            request.extend(b"content-length: 0\r\n\r\n");
            let theirs = match status(&mut stream, &request).await {
                200 => true,
                403 => false,
                other => panic!("{other} to {:?}", String::from_utf8_lossy(&request)),
            };
            let path = target.split('?').next();
            let question =
                Question { peer: Some(&peer), method, path, headers: &lines, token: None };
            match read.judge(&question) {
                // What cannot be said for certain is denied, whatever Envoy says.
                Err(reject) if reject.detail.contains("no certain answer") => uncertain += 1,
                ours => {
                    let shown = String::from_utf8_lossy(&request);
                    assert_eq!(
                        ours.is_ok(),
                        theirs,
                        "{shown}{permissions:#?} {default:?} {ours:?}"
                    );
                    allowed += usize::from(theirs);
                    cases += 1;
                }
            }
        }
    }
    envoy.end(Duration::from_secs(2));
    let _: Result<(), _> = std::fs::remove_dir_all(&folder);
    println!(
        "{cases} cases without a difference, {allowed} of them allowed, {uncertain} uncertain, in {:?}",
        start.elapsed()
    );
    assert!(cases >= 1000 && (cases / 10..cases - cases / 10).contains(&allowed));
}
