//! Envoy as the proxy of raw HTTP clients: what the README says to add to `envoy.yaml` is added, and real clients
//! go through it. The first listener stays as it is, but reads the access token from a cookie, too.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::path::PathBuf;
use std::process::{Command, Stdio};

use airflow_envoy_testbed::bootstrap::Bootstrap;
use airflow_envoy_testbed::certificates::server_name;
use airflow_envoy_testbed::document::Source;
use airflow_envoy_testbed::{Call, ORDERS, Options, PARTNER, Received, Task, Testbed, repository};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// The testbed of all tests. It is never dropped; the kernel ends its processes with this one.
async fn shared() -> &'static Testbed {
    static SHARED: OnceCell<Testbed> = OnceCell::const_new();
    SHARED
        .get_or_init(async || {
            let options = Options {
                policy: Source::Text(policy().to_string()),
                configure: Box::new(|configuration| {
                    configuration["token_cookie"] = json!("_token")
                }),
                second: Some(Box::new(|configuration| {
                    configuration.as_object_mut().unwrap().remove("token_cookie");
                    configuration["proxy_authorization"] = json!(true);
                })),
                bootstrap: Box::new(be_a_proxy),
                ..Options::default()
            };
            Testbed::start(options).await.unwrap()
        })
        .await
}

/// The testbed's policy, and tunnels to the partner.
fn policy() -> Value {
    let mut policy = airflow_envoy_testbed::policy().unwrap();
    let tunnels = json!({
        "id": "reporting-tunnels-to-the-partner",
        "effect": "allow",
        "from": { "roles": ["reporting"] },
        "to": ["partner"],
        "methods": ["CONNECT"],
    });
    let everything = json!({ "id": "churn-tunnels-anywhere", "effect": "allow", "from": { "dags": ["ds_churn"] }, "to": ["*"], "methods": ["CONNECT"] });
    policy["rules"].as_array_mut().unwrap().extend([tunnels, everything]);
    policy
}

/// The block of the README after a marker.
fn told(name: &str) -> Value {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, rest) = readme.split_once(&format!("<!-- tested: {name} -->\n```yaml\n")).unwrap();
    let (block, _) = rest.split_once("\n```").unwrap();
    serde_saphyr::from_str(block).unwrap()
}

/// What the README says to add to the second listener.
fn be_a_proxy(bootstrap: &mut Bootstrap) {
    let partner = bootstrap.cluster("partner").unwrap()["load_assignment"]["endpoints"].clone();
    let resources = &mut bootstrap.0["static_resources"];
    let manager = &mut resources["listeners"][1]["filter_chains"][0]["filters"][0]["typed_config"];
    for (name, value) in told("proxy").as_object().unwrap() {
        assert!(manager.get(name).is_none(), "`{name}` is in envoy.yaml already");
        manager[name] = value.clone();
    }
    let hosts = manager["route_config"]["virtual_hosts"].as_array_mut().unwrap();
    let host = hosts.iter_mut().find(|host| host["name"] == "partner").unwrap();
    host["routes"].as_array_mut().unwrap().insert(0, told("proxy route"));
    let mut cluster = told("proxy cluster");
    cluster["load_assignment"]["endpoints"] = partner;
    resources["clusters"].as_array_mut().unwrap().push(cluster);
}

/// A task that may read orders.
fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

/// A task that may reach the partner.
fn report() -> Task {
    Task::new("report_daily", "deliver").team("finance")
}

/// The user and the password of a task at the proxy.
async fn user(testbed: &Testbed, task: &Task) -> (String, String) {
    testbed.credentials(task).await.unwrap()
}

/// The header with a task's credentials.
async fn authorization(testbed: &Testbed, task: &Task) -> String {
    let (token, identity) = user(testbed, task).await;
    format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{token}:{identity}")))
}

/// The head of an answer and what came behind it.
struct Raw {
    head: String,
    body: Vec<u8>,
}

impl Raw {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    #[track_caller]
    fn rejected(&self, status: u16, code: &str) -> Value {
        let problem = self.json();
        let seen = (self.status(), problem["code"].as_str());
        assert_eq!(seen, (status, Some(code)), "{}", self.head);
        assert_eq!(self.header("x-airflow-envoy-code"), Some(code));
        assert_eq!(problem["status"], status);
        assert!(!problem["action"].as_str().unwrap().is_empty());
        problem
    }
}

/// Sends `request` and reads the head of the answer, and a body if its length is told.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &str) -> Raw {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            let raw = Raw { head, body: received[end + 4..].to_vec() };
            let length = raw.header("content-length").map_or(0, |length| length.parse().unwrap());
            if raw.body.len() >= length {
                return raw;
            }
        }
        let read =
            tokio::time::timeout(std::time::Duration::from_secs(10), stream.read(&mut chunk));
        let length = read.await.unwrap().unwrap();
        assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&received));
        received.extend(&chunk[..length]);
    }
}

async fn open(testbed: &Testbed) -> TcpStream {
    TcpStream::connect(testbed.second.unwrap()).await.unwrap()
}

/// What the upstream says that it received.
fn received(body: &Value) -> (Vec<String>, String) {
    let headers = body["headers"].as_array().unwrap();
    let headers = headers.iter().map(|header| header.as_str().unwrap().to_owned()).collect();
    (headers, body["upstream"].as_str().unwrap().to_owned())
}

#[track_caller]
fn no_credentials(headers: &[String]) {
    for header in headers {
        let name = header.split(':').next().unwrap();
        assert!(
            !["proxy-authorization", "authorization", "x-airflow-identity"].contains(&name),
            "{header}"
        );
    }
}

#[tokio::test]
async fn a_client_of_the_proxy_is_known_by_its_user_and_password() {
    let testbed = shared().await;
    for version in ["1.0", "1.1"] {
        let credentials = authorization(testbed, &churn()).await;
        let request = format!(
            "GET http://{ORDERS}/v1/orders/7 HTTP/{version}\r\nHost: {ORDERS}\r\n{credentials}Proxy-Connection: x\r\n\r\n"
        );
        let raw = ask(&mut open(testbed).await, &request).await;
        assert_eq!(raw.status(), 200, "{version}: {}", raw.head);
        let (headers, upstream) = received(&raw.json());
        assert_eq!(upstream, "orders");
        no_credentials(&headers);
        assert!(headers.contains(&"x-airflow-dag-id: ds_churn".to_owned()), "{headers:?}");
    }
}

#[tokio::test]
async fn without_a_tunnel_envoy_speaks_tls_to_the_partner_and_shows_its_own_credential() {
    let testbed = shared().await;
    let credentials = authorization(testbed, &report()).await;
    let request = format!(
        "POST http://{PARTNER}/v2/reports/1 HTTP/1.1\r\nHost: {PARTNER}\r\n{credentials}Content-Length: 0\r\n\r\n"
    );
    let raw = ask(&mut open(testbed).await, &request).await;
    assert_eq!(raw.status(), 200, "{}", raw.head);
    let (headers, upstream) = received(&raw.json());
    assert_eq!(upstream, "partner");
    assert!(
        headers.contains(&format!("authorization: {}", testbed.partner_credential)),
        "{headers:?}"
    );
    assert!(!headers.iter().any(|header| header.starts_with("proxy-authorization")), "{headers:?}");
}

#[tokio::test]
async fn a_tunnel_leads_to_the_partner_and_nothing_in_it_is_changed() {
    let testbed = shared().await;
    for version in ["1.0", "1.1"] {
        let credentials = authorization(testbed, &report()).await;
        let request = format!(
            "CONNECT {PARTNER}:443 HTTP/{version}\r\nHost: {PARTNER}:443\r\n{credentials}\r\n"
        );
        let mut stream = open(testbed).await;
        let raw = ask(&mut stream, &request).await;
        assert_eq!(raw.status(), 200, "{version}: {}", raw.head);
        // The certificate is the partner's own: Envoy sees nothing of this.
        let connector = &testbed.oidc.connector;
        let mut tls = connector.connect(server_name(PARTNER).unwrap(), stream).await.unwrap();
        let inside = format!("DELETE /anything HTTP/1.1\r\nHost: {PARTNER}\r\nX-Mine: 1\r\n\r\n");
        let raw = ask(&mut tls, &inside).await;
        assert_eq!(raw.status(), 200, "{}", raw.head);
        let (headers, upstream) = received(&raw.json());
        assert_eq!(upstream, "partner");
        assert_eq!(headers.len(), 2, "{headers:?}");
        no_credentials(&headers);
    }
    let log = testbed.access_log();
    let tunnels = log.iter().filter(|entry| entry["method"] == "CONNECT");
    for entry in tunnels.filter(|entry| entry["decision"] == "permit") {
        assert_eq!(entry["destination"], "partner", "{entry:#}");
    }
}

#[tokio::test]
async fn a_tunnel_that_is_not_allowed_is_explained() {
    let testbed = shared().await;
    for (task, authority, status, code, said) in [
        (report(), format!("{ORDERS}:443"), 403, "policy_denied", "no-admin-paths"),
        (
            churn(),
            format!("{ORDERS}:443"),
            403,
            "policy_denied",
            "a tunnel hides methods and paths",
        ),
        (report(), "evil.example:443".to_owned(), 403, "destination_unknown", "evil.example:443"),
        (report(), format!("{PARTNER}:25"), 403, "destination_unknown", ":25"),
        (Task::new("other", "t"), format!("{PARTNER}:443"), 403, "policy_no_match", "other"),
    ] {
        for version in ["1.0", "1.1"] {
            let credentials = authorization(testbed, &task).await;
            let request = format!(
                "CONNECT {authority} HTTP/{version}\r\nHost: {authority}\r\n{credentials}\r\n"
            );
            let raw = ask(&mut open(testbed).await, &request).await;
            let problem = raw.rejected(status, code);
            assert!(problem["detail"].as_str().unwrap().contains(said), "{problem:#}");
        }
    }
}

#[tokio::test]
async fn who_comes_without_credentials_is_asked_for_them_by_the_proxy() {
    let testbed = shared().await;
    for request in [
        format!("GET http://{ORDERS}/v1/orders/7 HTTP/1.1\r\nHost: {ORDERS}\r\n\r\n"),
        format!("CONNECT {PARTNER}:443 HTTP/1.1\r\nHost: {PARTNER}:443\r\n\r\n"),
        format!("CONNECT {PARTNER}:443 HTTP/1.0\r\n\r\n"),
    ] {
        let raw = ask(&mut open(testbed).await, &request).await;
        raw.rejected(407, "token_missing");
        assert_eq!(raw.header("proxy-authenticate"), Some("Basic realm=\"airflow-envoy\""));
        assert_eq!(raw.header("www-authenticate"), None);
    }
}

#[tokio::test]
async fn a_connection_is_called_through_the_proxy_with_both_kinds_of_credentials() {
    let testbed = shared().await;
    let (token, identity) = user(testbed, &churn()).await;
    let own = format!("Authorization: Bearer {token}\r\nX-Airflow-Identity: {identity}\r\n");
    for (by_proxy, status, code) in [
        // Of another read of the connection.
        (authorization(testbed, &churn()).await, 200, None),
        (authorization(testbed, &report()).await, 401, Some("identity_ambiguous")),
    ] {
        let request = format!(
            "GET http://{ORDERS}/v1/orders/7 HTTP/1.1\r\nHost: {ORDERS}\r\n{own}{by_proxy}\r\n"
        );
        let raw = ask(&mut open(testbed).await, &request).await;
        match code {
            Some(code) => drop(raw.rejected(status, code)),
            None => no_credentials(&received(&raw.json()).0),
        }
    }
}

#[tokio::test]
async fn credentials_for_a_proxy_that_is_none_do_not_reach_the_upstream() {
    let testbed = shared().await;
    let call = Call::get(ORDERS, "/v1/orders/7").header("proxy-authorization", "Basic eDp5");
    let answer = testbed.call_as(&churn(), call).await.unwrap();
    let received = Received::from_answer(&answer).unwrap();
    assert_eq!(received.header("proxy-authorization"), [""; 0]);
    assert_eq!(received.header("x-airflow-dag-id"), ["ds_churn"]);
}

#[tokio::test]
async fn a_token_in_a_cookie_is_verified_and_goes_no_further() {
    let testbed = shared().await;
    for http2 in [false, true] {
        let (token, identity) = testbed.credentials(&churn()).await.unwrap();
        let call = Call::get(ORDERS, "/v1/orders/7")
            .identity(&identity)
            .header("cookie", "a=b")
            .header("cookie", format!("_token={token}; c=d"));
        let call = if http2 { call.http2() } else { call };
        let answer = testbed.call(call).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let received = Received::from_answer(&answer).unwrap();
        assert_eq!(received.header("cookie"), ["a=b; c=d"]);
    }
}

/// The certificate of the authority that this testbed made.
fn authority_file(testbed: &Testbed) -> PathBuf {
    testbed.log("envoy").with_file_name("authority.crt")
}

/// Runs a client: whether it ended well, and what it printed. It may hold this thread up: what it needs runs on others.
fn run(program: &str, arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(program);
    for variable in [
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "no_proxy",
    ] {
        command.env_remove(variable);
    }
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn curl_goes_through_the_proxy() {
    let testbed = shared().await;
    let proxy = format!("http://{}", testbed.second.unwrap());
    let authority = authority_file(testbed).display().to_string();
    let plain = format!("http://{ORDERS}/v1/orders/7");
    let secure = format!("https://{PARTNER}/v2/reports/1");
    let usual =
        ["--silent", "--show-error", "--max-time", "20", "--proxy", &proxy, "--cacert", &authority];
    for (task, url, upstream) in [(churn(), &plain, "orders"), (report(), &secure, "partner")] {
        // `--proxy-anyauth` sends its credentials only when the proxy asks for them: 407, not 401.
        for kind in ["--proxy-basic", "--proxy-anyauth"] {
            let (token, identity) = user(testbed, &task).await;
            let credentials = format!("{token}:{identity}");
            let arguments = [&usual[..], &[kind, "--proxy-user", &credentials, url]].concat();
            let (well, out, err) = run("curl", &arguments);
            assert!(well, "{kind} {url}: {out}{err}");
            let (headers, by) = received(&serde_json::from_str(&out).unwrap());
            assert_eq!(by, upstream, "{kind}");
            no_credentials(&headers);
        }
    }
    let (well, _, err) = run("curl", &[&usual[..], &[&secure]].concat());
    assert!(!well && err.contains("407"), "{err}");
}

/// As requests, urllib and most others in Python do: http.client asks for the tunnel.
const PYTHON: &str = r#"
import json, ssl, sys, urllib.error, urllib.request
proxy, authority, url = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({"http": proxy, "https": proxy}), urllib.request.HTTPSHandler(context=context))
try:
    print(opener.open(url, timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print(json.dumps({"status": error.code, "body": json.load(error)}))
except OSError as error:
    print(json.dumps({"error": str(error)}))
"#;

#[tokio::test]
async fn python_goes_through_the_proxy() {
    let testbed = shared().await;
    let authority = authority_file(testbed).display().to_string();
    let address = testbed.second.unwrap();
    let ask = async |credentials: &str, url: &str| -> Value {
        let proxy = format!("http://{credentials}{address}");
        let (well, out, err) = run("python3", &["-c", PYTHON, &proxy, &authority, url]);
        assert!(well, "{out}{err}");
        serde_json::from_str(&out).unwrap()
    };
    let plain = format!("http://{ORDERS}/v1/orders/7");
    let secure = format!("https://{PARTNER}/v2/reports/1");
    for (task, url, upstream) in [(churn(), &plain, "orders"), (report(), &secure, "partner")] {
        let (token, identity) = user(testbed, &task).await;
        let (headers, by) = received(&ask(&format!("{token}:{identity}@"), url).await);
        assert_eq!(by, upstream);
        no_credentials(&headers);
    }
    let refused = ask("", &plain).await;
    assert_eq!(
        (&refused["status"], &refused["body"]["code"]),
        (&json!(407), &json!("token_missing"))
    );
    let refused = ask("", &secure).await;
    assert!(refused["error"].as_str().unwrap().contains("407"), "{refused}");
    let (token, identity) = user(testbed, &churn()).await;
    let refused = ask(&format!("{token}:{identity}@"), "https://evil.example/").await;
    assert!(refused["error"].as_str().unwrap().contains("403"), "{refused}");
}
