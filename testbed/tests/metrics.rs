//! Metrics as Prometheus sees them on a real Envoy: names, labels and values; and what is made of them, the
//! dashboard and the alerts, in the eyes of Prometheus' own tools.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers may panic, too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use airflow_envoy_testbed::document::Source;
use airflow_envoy_testbed::process::{Process, find, free_port};
use airflow_envoy_testbed::{
    Call, Fault, ORDERS, Options, Task, Testbed, TokenRequest, repository, within,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// Stands in what callers write, and must not stand in any metric.
const MARK: &str = "written-by-a-caller";

/// A testbed and what its Envoy exports after the calls of [`calls`].
struct Scraped {
    testbed: Testbed,
    series: Vec<Series>,
}

/// One line of the exposition format.
#[derive(Debug, Clone, PartialEq)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Series {
    /// Reads `name{label="value",…} number`. Values have no quotes here: names of a policy have none.
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
        let labels = labels.split_terminator("\",").map(|label| {
            let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        });
        Self { name: name.to_owned(), labels: labels.collect(), value: value.parse().unwrap() }
    }

    /// As the README writes it: the name and the names of the labels. A histogram is one metric.
    fn shape(&self) -> String {
        let histogram = ["_bucket", "_sum", "_count"];
        let name = histogram.iter().find_map(|suffix| self.name.strip_suffix(suffix));
        let labels: Vec<_> =
            self.labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
        let name = name.unwrap_or(&self.name);
        if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
    }
}

/// The testbed of all tests. It is never dropped; the kernel ends its processes with this one.
async fn scraped() -> &'static Scraped {
    static SHARED: OnceCell<Scraped> = OnceCell::const_new();
    SHARED
        .get_or_init(async || {
            let options = Options {
                policy: Source::Text(policy().to_string()),
                // Until its keys are here, a caller waits.
                airflow_keys_fault: Some(Fault::Status(500)),
                configure: Box::new(|configuration| {
                    configuration["waiting"]["time"] = json!("10s");
                }),
                ..Options::default()
            };
            let testbed = Testbed::start(options).await.unwrap();
            calls(&testbed).await;
            let mut series = Vec::new();
            // Envoy puts histograms together every five seconds, and a checkpoint is due after ten.
            let all = within(Duration::from_secs(30), "everything is exported", async || {
                series = scrape(&testbed).await;
                let count = |name: &str| {
                    let known = series.iter().filter(|series| series.name == name);
                    known.map(|series| series.value).sum::<f64>()
                };
                count("airflow_envoy_decisions") >= 19.0
                    && count("airflow_envoy_audit_checkpoints") >= 1.0
                    && count("airflow_envoy_waiting_milliseconds_count") >= 1.0
                    && count("airflow_envoy_deciding_nanoseconds_count") >= 3.0
            })
            .await;
            all.unwrap_or_else(|missing| panic!("{missing}: {series:#?}"));
            Scraped { testbed, series }
        })
        .await
}

/// The testbed's policy, with dots in the names.
fn policy() -> Value {
    let text = airflow_envoy_testbed::policy().unwrap().to_string();
    let text = text.replace("data-science-reads-orders", "data-science.reads.orders");
    serde_json::from_str(&text.replace("\"orders\"", "\"orders.v1\"")).unwrap()
}

fn churn() -> Task {
    Task::new("ds_churn", "load").team("data-science")
}

/// Calls of every kind; the number of each is what [`values`] says.
async fn calls(testbed: &Testbed) {
    let read = || Call::get(ORDERS, "/v1/orders/7");
    let (token, identity) = testbed.credentials(&churn()).await.unwrap();
    let as_churn = |call: Call| testbed.call(call.token(&token).identity(&identity));
    let (first, ()) = tokio::join!(as_churn(read()), async {
        let mut leaves = TcpStream::connect(testbed.listener).await.unwrap();
        let request = format!(
            "GET /v1/orders/7 HTTP/1.1\r\nhost: {ORDERS}\r\nauthorization: Bearer {token}\r\nx-airflow-identity: {identity}\r\n\r\n"
        );
        leaves.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(leaves);
        tokio::time::sleep(Duration::from_millis(100)).await;
        testbed.airflow.keys.heal();
    });
    assert_eq!(first.unwrap().status, 200);
    for _ in 0..4 {
        assert_eq!(as_churn(read()).await.unwrap().status, 200);
    }
    let card = Call::get(ORDERS, "/v1/orders/7/card");
    assert_eq!(as_churn(card).await.unwrap().status, 403);
    let mut manual = churn();
    manual.run_type = "manual".to_owned();
    assert_eq!(testbed.call_as(&manual, read()).await.unwrap().status, 200);
    let stranger = Task::new(MARK, MARK).team(MARK);
    for _ in 0..2 {
        assert_eq!(testbed.call_as(&stranger, read()).await.unwrap().status, 403);
    }
    assert_eq!(testbed.call(read()).await.unwrap().status, 401);

    // What a caller can write where: host, path, headers, the parts of a credential, and the method, of which Envoy
    // knows all that there are.
    assert_eq!(as_churn(Call::get(&format!("{MARK}.internal"), "/")).await.unwrap().status, 403);
    let elsewhere = as_churn(Call::get(ORDERS, &format!("/{MARK};rule={MARK}.permit"))).await;
    assert_eq!(elsewhere.unwrap().status, 403);
    let method = as_churn(Call::new("REPORT", ORDERS, "/v1/orders/7")).await;
    assert_eq!(method.unwrap().status, 403);
    let lie = read().header("x-airflow-dag-id", MARK).header(MARK, MARK);
    assert_eq!(as_churn(lie).await.unwrap().status, 401);
    let asked = TokenRequest { algorithm: "ES256".to_owned(), ..TokenRequest::default() };
    let other = testbed.oidc.token(&asked).await.unwrap();
    let signed = other.rsplit_once('.').unwrap().0;
    let forged = format!("{signed}.{}", "A".repeat(86));
    let identity_of_forged = testbed.airflow.mint(&churn(), Some(&forged));
    // Three for two workers: one of them gets it again, and knows it.
    for _ in 0..3 {
        let forgery = read().token(&forged).identity(&identity_of_forged);
        assert_eq!(testbed.call(forgery).await.unwrap().status, 401);
    }
    for header in [
        json!({ "alg": MARK, "typ": "at+jwt" }),
        json!({ "alg": "ES256", "typ": MARK, "kid": MARK }),
    ] {
        let claims = json!({ "iss": MARK, "aud": MARK, "sub": MARK, "exp": 9_999_999_999_u64 });
        let token = testbed.airflow.signer().sign(&header, &claims);
        assert_eq!(testbed.call(read().token(&token)).await.unwrap().status, 401);
    }
}

type Labels = &'static [(&'static str, &'static str)];

/// The series of the filter after [`calls`] whose values are certain.
fn values() -> Vec<(&'static str, Labels, f64)> {
    const PERMIT: &[(&str, &str)] =
        &[("code", "permit"), ("destination", "orders.v1"), ("rule", "data-science.reads.orders")];
    const DENIED: &[(&str, &str)] = &[
        ("code", "policy_denied"),
        ("destination", "orders.v1"),
        ("rule", "nobody-reads-card-data"),
    ];
    const NO_MATCH: &[(&str, &str)] = &[("code", "policy_no_match"), ("destination", "orders.v1")];
    const SOON: &[(&str, &str)] = &[
        ("destination", "orders.v1"),
        ("outcome", "reject"),
        ("rule", "manual-runs-off-production-data"),
    ];
    vec![
        ("airflow_envoy_decisions", PERMIT, 6.0),
        ("airflow_envoy_decisions", DENIED, 1.0),
        // A stranger twice, another path, another method.
        ("airflow_envoy_decisions", NO_MATCH, 4.0),
        ("airflow_envoy_decisions", &[("code", "token_missing")], 1.0),
        ("airflow_envoy_decisions", &[("code", "destination_unknown")], 1.0),
        ("airflow_envoy_decisions", &[("code", "identity_header_mismatch")], 1.0),
        ("airflow_envoy_decisions", &[("code", "token_signature_invalid")], 3.0),
        ("airflow_envoy_shadow_rules", SOON, 1.0),
        ("airflow_envoy_requests_parked", &[], 2.0),
        ("airflow_envoy_requests_abandoned", &[], 1.0),
        ("airflow_envoy_requests_waiting", &[], 0.0),
        ("airflow_envoy_workers_unready", &[], 0.0),
        ("airflow_envoy_policy_revision", &[("endpoint", "main")], 1.0),
        ("airflow_envoy_policy_rules", &[("endpoint", "main")], 20.0),
        ("airflow_envoy_policy_max_age", &[("endpoint", "main")], 900.0),
        ("airflow_envoy_breaker", &[("endpoint", "main")], 0.0),
        ("airflow_envoy_audit_lost", &[], 0.0),
        ("airflow_envoy_grants_refused", &[], 0.0),
    ]
}

async fn scrape(testbed: &Testbed) -> Vec<Series> {
    let text = testbed.admin("/stats/prometheus").await.unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .filter(|line| line.starts_with("airflow_envoy_") || line.starts_with("envoy_wasm_"))
        .map(Series::parse)
        .collect()
}

#[tokio::test]
async fn series_have_the_labels_and_values_of_the_calls() {
    let Scraped { series, .. } = scraped().await;
    let show = || -> String {
        let ours = series.iter().filter(|series| !series.name.ends_with("_bucket"));
        ours.map(|series| format!("{series:?}\n")).collect()
    };
    for (name, labels, value) in values() {
        let labels: BTreeMap<_, _> =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let found: Vec<_> = series
            .iter()
            .filter(|series| series.name == name && series.labels == labels)
            .map(|series| series.value)
            .collect();
        assert_eq!(found, [value], "{name} {labels:?}\n{}", show());
    }
    let of = |name: &str| series.iter().filter(|series| series.name == name).collect::<Vec<_>>();
    let info = of("airflow_envoy_filter_info");
    assert_eq!(info.len(), 1);
    assert_eq!((info[0].labels["mode"].as_str(), info[0].value), ("enforce", 1.0));
    assert_eq!(info[0].labels["version"], env!("CARGO_PKG_VERSION"));
    let forged = of("airflow_envoy_verifications").into_iter().find(|series| {
        ["algorithm", "credential", "outcome"].map(|label| series.labels[label].as_str())
            == ["ES256", "token", "invalid"]
    });
    let known = of("airflow_envoy_credentials_refused_hit")[0].value;
    assert_eq!(forged.unwrap().value + known, 3.0, "{}", show());
    assert!(known >= 1.0);
    // The first call waited, at least until the keys were there; what verified signatures took some time.
    let waited = of("airflow_envoy_waiting_milliseconds_sum")[0].value;
    assert!((100.0..10_000.0).contains(&waited), "{waited} ms");
    let deciding = of("airflow_envoy_deciding_nanoseconds_sum");
    for signatures in ["1", "2"] {
        let sum = deciding.iter().find(|series| series.labels["signatures"] == signatures);
        let sum = sum.unwrap_or_else(|| panic!("no decision with {signatures}:\n{}", show())).value;
        assert!((10_000.0..1e9).contains(&sum), "{signatures} signatures: {sum} ns");
    }
    for series in of("airflow_envoy_policy_age") {
        assert!(series.value < 15.0, "{series:?}");
    }
}

#[tokio::test]
async fn nothing_that_a_caller_writes_is_a_label() {
    let Scraped { testbed, .. } = scraped().await;
    let before: BTreeSet<_> =
        scrape(testbed).await.into_iter().map(|series| (series.name, series.labels)).collect();
    for number in 0..30 {
        let stranger = Task::new(&format!("dag_{number}"), &format!("task_{number}"));
        let call = Call::get(ORDERS, &format!("/v1/orders/{number}"));
        assert_eq!(testbed.call_as(&stranger, call).await.unwrap().status, 403);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = testbed.admin("/stats/prometheus").await.unwrap();
    assert!(text.contains("airflow_envoy_decisions"));
    let ours = text.lines().filter(|line| line.contains("airflow_envoy_"));
    for line in ours {
        assert!(!line.to_lowercase().contains(MARK), "{line}");
    }
    let after: BTreeSet<_> =
        scrape(testbed).await.into_iter().map(|series| (series.name, series.labels)).collect();
    let new: Vec<_> =
        after.difference(&before).filter(|(name, _)| !name.ends_with("_bucket")).collect();
    assert!(new.is_empty(), "thirty more callers brought new series: {new:#?}");
}

#[tokio::test]
async fn the_table_of_metrics_is_what_envoy_exports() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, table) = readme.split_once("<!-- tested: metrics -->\n").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    // The first cell has one or several metrics in backticks; a label in brackets is not always there.
    let mut documented = BTreeSet::new();
    for row in rows {
        let cell = row.split('|').nth(1).unwrap();
        documented.extend(cell.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    let exported: BTreeSet<_> = scraped()
        .await
        .series
        .iter()
        .filter(|series| series.name.starts_with("airflow_envoy_"))
        .map(Series::shape)
        .collect();
    let elsewhere: BTreeSet<_> = ELSEWHERE.iter().map(|name| (*name).to_owned()).collect();
    let name = |shape: &str| shape.split('{').next().unwrap().to_owned();
    let labels = |shape: &str| -> BTreeSet<String> {
        let list = shape.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
        list.split_terminator(',').map(str::to_owned).collect()
    };
    for shape in &exported {
        let row = documented.iter().find(|known| name(known) == name(shape));
        let row = row.unwrap_or_else(|| panic!("`{shape}` is not in the README"));
        // A decision without a rule has no such label.
        assert!(labels(shape).is_subset(&labels(row)), "`{shape}` is `{row}` in the README");
    }
    for row in &documented {
        let shapes = exported.iter().filter(|shape| name(shape) == name(row));
        let seen: BTreeSet<_> = shapes.flat_map(|shape| labels(shape)).collect();
        let is_there = exported.iter().any(|shape| name(shape) == name(row));
        if elsewhere.contains(&name(row)) {
            assert!(!is_there, "`{row}` is exported after all: it is to be tested here");
            continue;
        }
        assert!(is_there, "Envoy does not export `{row}`: {exported:#?}");
        assert_eq!(seen, labels(row), "{row}");
    }
}

/// What these calls do not bring about: that takes mode `shadow`, a collector of audit records, a source of grants.
const ELSEWHERE: &[&str] = &[
    "airflow_envoy_shadow_decisions",
    "airflow_envoy_audit_collector_taken",
    "airflow_envoy_audit_collector_failed",
    "airflow_envoy_grants_active",
];

fn monitoring() -> PathBuf {
    repository().join("examples/monitoring")
}

/// Every expression of the dashboard with the title of its panel, as Grafana would send it.
fn expressions() -> Vec<(String, String)> {
    let text = fs::read_to_string(monitoring().join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression
                .replace("$__rate_interval", "1m")
                .replace("$__range", "10m")
                .replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            found.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    assert!(found.len() > 30, "{}", found.len());
    found
}

/// The expressions of the alerts, by name.
fn alerts() -> Vec<(String, String)> {
    let text = fs::read_to_string(monitoring().join("alerts.yaml")).unwrap();
    let rules: Value = serde_saphyr::from_str(&text).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    let text = |rule: &Value, member: &str| rule[member].as_str().unwrap().to_owned();
    rules.iter().map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

/// The metrics that an expression names.
fn metrics_of(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let is_metric = |word: &&str| {
        (word.starts_with("airflow_envoy_") || word.starts_with("envoy_"))
            && !word.starts_with("envoy_response_code")
            && !word.starts_with("envoy_http_conn_manager")
    };
    words.filter(is_metric).collect()
}

#[tokio::test]
async fn every_metric_of_the_dashboard_and_of_the_alerts_is_exported() {
    let text = scraped().await.testbed.admin("/stats/prometheus").await.unwrap();
    let exported: BTreeSet<&str> =
        text.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let mut used = BTreeSet::new();
    for (place, expression) in expressions().iter().chain(&alerts()) {
        for metric in metrics_of(expression) {
            let known = exported.contains(metric) || ELSEWHERE.contains(&metric);
            assert!(known, "{place}: Envoy exports no `{metric}`");
            used.insert(metric.to_owned());
        }
    }
    assert!(used.len() > 30, "{used:?}");
}

/// A program of Prometheus, or why there is none.
fn prometheus_program(name: &str) -> Option<PathBuf> {
    let place = repository().join(".tools/prometheus/usr/bin").join(name);
    match find(name, &name.to_uppercase(), &[place], "scripts/test installs it from Debian") {
        Ok(program) => Some(program),
        Err(why) => {
            println!("SKIPPED: {why}");
            None
        }
    }
}

fn promtool(program: &Path, arguments: &[&str], place: &Path) {
    let output = Command::new(program).args(arguments).current_dir(place).output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "promtool {arguments:?}: {}{}", said[0], said[1]);
}

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = repository().join(format!("target/metrics-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _: Result<(), _> = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn prometheus_accepts_the_alerts_and_they_fire_when_they_should() {
    let Some(program) = prometheus_program("promtool") else { return };
    promtool(&program, &["check", "rules", "alerts.yaml"], &monitoring());
    promtool(&program, &["test", "rules", "alerts_test.yaml"], &monitoring());
    // Each alert is in the tests of alerts.
    let tests = fs::read_to_string(monitoring().join("alerts_test.yaml")).unwrap();
    for (name, _) in alerts() {
        assert!(tests.contains(&name), "no test of alert `{name}`");
    }
}

#[test]
fn prometheus_accepts_every_expression_of_the_dashboard() {
    let Some(program) = prometheus_program("promtool") else { return };
    let rules: Vec<_> = expressions()
        .into_iter()
        .enumerate()
        .map(|(number, (_, expr))| json!({ "record": format!("panel:{number}"), "expr": expr }))
        .collect();
    let folder = Folder::new("dashboard");
    let document = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(folder.0.join("dashboard.rules"), document.to_string()).unwrap();
    promtool(&program, &["check", "rules", "dashboard.rules"], &folder.0);
}

/// What Prometheus itself makes of this Envoy: a few scrapes, and every expression evaluated on them.
#[tokio::test]
async fn a_real_prometheus_evaluates_alerts_and_dashboard() {
    let Some(program) = prometheus_program("prometheus") else { return };
    let testbed = &scraped().await.testbed;
    let folder = Folder::new("prometheus");
    let configuration = json!({
        "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
        "rule_files": [monitoring().join("alerts.yaml")],
        "scrape_configs": [{
            "job_name": "airflow-envoy",
            "metrics_path": "/stats/prometheus",
            "static_configs": [{ "targets": [testbed.admin.to_string()] }],
        }],
    });
    let file = folder.0.join("prometheus.yaml");
    fs::write(&file, configuration.to_string()).unwrap();
    let port = free_port().unwrap();
    let log = folder.0.join("prometheus.log");
    let mut server = Process::start("Prometheus", &program, &log, |command| {
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.0.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    })
    .unwrap();
    let address = ([127, 0, 0, 1], port).into();
    let ask = async |path: String| match Call::get("prometheus", &path).send(address, None).await {
        Ok(answer) if answer.status == 200 => answer.json(),
        _ => Value::Null,
    };
    let query = async |expression: &str| {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        ask(format!("/api/v1/query?query={encoded}")).await
    };
    let scrapes = "count_over_time(airflow_envoy_filter_info[1m])";
    within(Duration::from_secs(60), "it has scraped Envoy some times", async || {
        let samples = query(scrapes).await["data"]["result"][0]["value"][1].clone();
        samples.as_str().and_then(|count| count.parse::<u32>().ok()) >= Some(4)
    })
    .await
    .unwrap_or_else(|_| panic!("{}", server.failed("does not scrape")));

    // Alerts: all are evaluated, and this Envoy is well but for the callers that were refused.
    let mut rules = Value::Null;
    within(Duration::from_secs(20), "every rule was evaluated", async || {
        rules = ask("/api/v1/rules".to_owned()).await["data"]["groups"][0]["rules"].clone();
        let all = rules.as_array().is_some_and(|rules| rules.len() == alerts().len());
        all && rules.as_array().unwrap().iter().all(|rule| rule["health"] == "ok")
    })
    .await
    .unwrap_or_else(|_| panic!("{rules:#}"));
    let firing = query("ALERTS{alertstate=\"firing\",severity=\"critical\"}").await;
    assert_eq!(firing["data"]["result"], json!([]));

    // Panels: each has something to show on a system that was called, but for those named.
    let mut empty = Vec::new();
    for (title, expression) in expressions() {
        let answer = query(&expression).await;
        assert_eq!(answer["status"], "success", "{title}: {expression}");
        let has_data = answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty());
        // `> 0` hides what did not move in the last minute.
        if !has_data && !expression.contains("> 0") {
            empty.push(format!("{title}: {expression}"));
        }
    }
    let unexpected: Vec<_> = empty
        .iter()
        .filter(|panel| !ELSEWHERE.iter().any(|metric| panel.contains(metric)))
        .collect();
    assert!(unexpected.is_empty(), "panels without data: {unexpected:#?}");
    server.end(Duration::from_secs(5));
}
