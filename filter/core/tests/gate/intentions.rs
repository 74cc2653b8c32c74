//! Consul intentions in the gate: a layer beside the policy that only takes away.

use airflow_envoy_core::feed::{Answer, Response};
use airflow_envoy_core::gate::{Gate, Host, Verdict};
use airflow_envoy_core::jose::RustCrypto;
use serde_json::{Value, json};

use crate::worker::*;

const DOMAIN: &str = "td.consul";
const MATCH: &str = "/v1/connect/intentions/match?by=destination&name=orders";

fn meshed(change: impl FnOnce(&mut Value)) -> Value {
    let mut configuration = configuration();
    configuration["peer"] = json!({ "trust_domains": [DOMAIN] });
    configuration["status"] = json!({ "path": "/status" });
    let mesh = json!({
        "name": "mesh",
        "consul_intentions": { "cluster": "consul", "destination": "orders", "jwt_providers": { "okta": "idp" } },
    });
    configuration["policy"]["sources"].as_array_mut().unwrap().push(mesh);
    change(&mut configuration);
    configuration
}

fn evidence(service: &str) -> Option<String> {
    let (digest, end) = ("ab".repeat(32), NOW + 3600);
    Some(format!("true {digest} {end} spiffe://{DOMAIN}/ns/default/dc/dc1/svc/{service}"))
}

fn pair() -> (String, String) {
    credentials("t1-p256", "a1-p256", "etl")
}

fn answer(status: u16, index: Option<&str>, body: &Value) -> Answer {
    let (index, body) = (index.map(str::to_owned), body.to_string().into_bytes());
    Answer::Http(Response { status, index, body, ..Response::default() })
}

fn intention(source: &str, more: &Value) -> Value {
    let mut intention = json!({ "SourceName": source, "DestinationName": "orders" });
    intention.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    intention
}

impl Worker {
    /// Consul answers the question under way; returns its path.
    fn consul(&mut self, answer: Answer, seconds: i64) -> String {
        let place = self.fetches.iter().position(|fetch| fetch.cluster == "consul").unwrap();
        let fetch = self.fetches.remove(place);
        let effects = self.gate.answered(fetch.feed, answer, at(seconds));
        self.take(effects);
        let path = fetch.headers.into_iter().find(|(name, _)| *name == ":path");
        path.unwrap().1
    }

    fn source(&self, seconds: i64) -> (bool, Value) {
        let status = self.gate.status(at(seconds));
        let body: Value = serde_json::from_str(&status.reply("GET").body).unwrap();
        let sources = body["sources"].as_array().unwrap();
        (status.ready(), sources.iter().find(|source| source["name"] == "mesh").unwrap().clone())
    }
}

/// With keys, a policy for the DAG `etl`, and these intentions at index 7.
fn ready(configuration: &Value, intentions: &[Value]) -> Worker {
    let mut worker = Worker::ready_with(configuration);
    let body = json!({ "orders": intentions });
    assert_eq!(worker.consul(answer(200, Some("7"), &body), 0), MATCH);
    worker.peer = evidence("airflow-worker");
    worker
}

fn refused(verdict: &Verdict) -> (String, Option<String>, String) {
    let Verdict::Reject(rejection) = verdict else { panic!("{verdict:?}") };
    let reject = &rejection.reject;
    (reject.code.name().to_owned(), reject.rule.clone(), reject.detail.clone())
}

#[test]
fn both_layers_must_allow_and_the_mesh_speaks_first() {
    let allow = json!({ "Action": "allow" });
    let mut worker = ready(&meshed(|_| {}), &[intention("airflow-worker", &allow)]);
    assert_eq!(worker.ask(&pair(), 0), "permit");
    let other = credentials("t1-p256", "a1-p256", "other");
    assert_eq!(worker.ask(&other, 0), "policy_no_match");
    worker.peer = evidence("billing");
    for pair in [pair(), other] {
        let (code, rule, detail) = refused(&worker.verdict(&pair, &[], 0));
        assert_eq!((code.as_str(), rule), ("intention_denied", None));
        let said = "Consul intentions `mesh`: none is about `billing`, and the default denies";
        assert_eq!(detail, said);
    }
    // A change acts on a session that is remembered.
    worker.peer = evidence("airflow-worker");
    let deny = json!({ "orders": [intention("*", &json!({ "Action": "deny" }))] });
    worker.tick(1);
    assert_eq!(
        worker.consul(answer(200, Some("8"), &deny), 1),
        format!("{MATCH}&index=7&wait=55000ms")
    );
    let (code, rule, detail) = refused(&worker.verdict(&pair(), &[], 1));
    assert_eq!((code.as_str(), rule.as_deref()), ("intention_denied", Some("mesh/* => orders")));
    assert_eq!(detail, "Consul intentions `mesh`: `* => orders` (precedence 8) denies");
}

#[test]
fn permissions_see_the_path_that_the_upstream_sees_all_headers_and_the_token() {
    let permissions = json!({ "Permissions": [
        { "Action": "deny", "HTTP": { "Header": [{ "Name": "x-a", "Exact": "b" }] } },
        { "Action": "allow", "HTTP": { "PathExact": "/v1/a" } },
        { "Action": "deny", "HTTP": { "PathExact": "/v1/b/admin" } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/v1/b/" } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/v2/" }, "JWT": { "Providers": [
            { "Name": "okta", "VerifyClaims": [{ "Path": ["sub"], "Value": "airflow" }] }] } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/v3/" }, "JWT": { "Providers": [
            { "Name": "okta", "VerifyClaims": [{ "Path": ["sub"], "Value": "root" }] }] } },
    ] });
    let mut worker = ready(&meshed(|_| {}), &[intention("airflow-worker", &permissions)]);
    let (token, identity) = pair();
    let bearer = format!("Bearer {token}");
    let mut ask = |path: &str, more: &[(&str, &str)]| {
        let mut headers = vec![
            (":method", "GET"),
            (":authority", "orders.internal"),
            (":path", path),
            ("authorization", &bearer),
            ("x-airflow-identity", &identity),
        ];
        headers.extend(more);
        code(&worker.send(&headers, 0))
    };
    for (path, expected) in [
        ("/v1/a?x=1", "permit"),
        ("/v1/%61", "permit"),
        ("//v1/./a", "permit"),
        ("/v1/ab", "intention_denied"),
        ("/v1/b/admin", "intention_denied"),
        ("/v1/b/admin;x", "intention_denied"),
        ("/v1/b/user;x", "permit"),
        ("/v2/x", "permit"),
        ("/v3/x", "intention_denied"),
        ("/v1/%2f", "path_invalid"),
    ] {
        assert_eq!(ask(path, &[]), expected, "{path}");
    }
    assert_eq!(ask("/v1/a", &[("x-a", "a"), ("X-A", "b")]), "intention_denied");
    assert_eq!(ask("/v1/a", &[("x-a", "a"), ("x-a", "c")]), "permit");
}

#[test]
fn nothing_is_decided_before_the_intentions_are_here_or_when_they_are_too_old() {
    let configuration = meshed(|configuration| {
        configuration["waiting"] = json!({ "requests": 0 });
        configuration["policy"]["max_age"] = json!("20s");
        configuration["policy"]["sources"][1]["consul_intentions"]["wait"] = json!("10s");
    });
    let mut worker = Worker::ready_with(&configuration);
    worker.peer = evidence("airflow-worker");
    assert_eq!(worker.ask(&pair(), 0), "policy_unavailable");
    assert!(!worker.source(0).0);
    let allow = json!({ "orders": [intention("*", &json!({ "Action": "allow" }))] });
    let mut now = 0;
    // Neither an empty answer nor one of somebody else is one.
    for (status, body) in [(200, json!([])), (200, json!({})), (403, json!("Permission denied"))] {
        worker.consul(answer(status, Some("7"), &body), now);
        assert_eq!(worker.ask(&pair(), now), "policy_unavailable", "{body}");
        while worker.fetching("consul") == 0 {
            now += 1;
            worker.tick(now);
        }
    }
    worker.consul(answer(200, Some("7"), &allow), now);
    assert_eq!(worker.ask(&pair(), now), "permit");
    let (_, source) = worker.source(now);
    assert_eq!(
        json!([
            source["kind"],
            source["from"],
            source["ready"],
            source["revision"],
            source["count"]
        ]),
        json!(["intentions", "consul_intentions", true, 7, 1])
    );
    // Consul is gone: the last good ones stay until they are too old.
    worker.tick(now + 1);
    worker.fail("consul", now + 1);
    assert_eq!(worker.ask(&pair(), now + 10), "permit");
    assert_eq!(worker.source(now + 10).1["error"]["reason"], "no answer");
    worker.tick(now + 15);
    while worker.fetching("policy") > 0 {
        worker.bring("policy", &policy("etl"), now + 15);
    }
    assert_eq!(worker.ask(&pair(), now + 20), "permit");
    let (code, _, detail) = refused(&worker.verdict(&pair(), &[], now + 21));
    assert_eq!(code, "policy_unavailable");
    assert!(detail.starts_with("policy `mesh` is too old"), "{detail}");
}

#[test]
fn they_are_about_their_hosts_only() {
    let configuration = meshed(|configuration| {
        configuration["policy"]["sources"][1]["consul_intentions"]["hosts"] =
            json!(["billing.internal"]);
    });
    let mut worker = ready(&configuration, &[]);
    // The policy knows one destination, and it is none of theirs.
    assert_eq!(worker.ask(&pair(), 0), "permit");
    let (token, identity) = pair();
    let bearer = format!("Bearer {token}");
    let headers = [
        (":method", "GET"),
        (":authority", "BILLING.internal:80"),
        (":path", "/v1"),
        ("authorization", bearer.as_str()),
        ("x-airflow-identity", &identity),
    ];
    assert_eq!(code(&worker.send(&headers, 0)), "intention_denied");
}

#[test]
fn what_only_watches_lets_it_pass() {
    let configuration = meshed(|configuration| configuration["mode"] = json!("shadow"));
    let mut worker = ready(&configuration, &[]);
    assert_eq!(worker.ask(&pair(), 0), "pass:intention_denied");
}

#[test]
fn without_a_certificate_there_is_no_service_that_an_intention_could_be_about() {
    let configuration = meshed(|configuration| {
        configuration["peer"]["identity"] = json!("optional");
        configuration["policy"]["sources"][1]["consul_intentions"]["default"] = json!("allow");
    });
    let allow = json!({ "Action": "allow" });
    let mut worker = ready(&configuration, &[intention("*", &allow)]);
    assert_eq!(worker.ask(&pair(), 0), "permit");
    worker.peer = None;
    let (code, rule, detail) = refused(&worker.verdict(&pair(), &[], 0));
    assert_eq!((code.as_str(), rule), ("intention_denied", None));
    assert!(detail.contains("no certificate of this mesh"), "{detail}");
}

#[test]
fn a_configuration_that_cannot_restrict_rightly_is_refused() {
    let faults = |configuration: &Value| {
        let host = Host::alone(Box::new(RustCrypto));
        let gate = Gate::new(configuration.to_string().as_bytes(), host);
        gate.map(|_| String::new()).unwrap_or_else(|faults| faults.to_string())
    };
    let mesh = |change: fn(&mut Value)| {
        meshed(|configuration| {
            change(&mut configuration["policy"]["sources"][1]["consul_intentions"]);
        })
    };
    assert_eq!(faults(&meshed(|_| {})), "");
    let two = |more: Value| {
        meshed(|configuration| {
            configuration["peer"]["trust_domains"] = json!([DOMAIN, "other.consul"]);
            let consul = &mut configuration["policy"]["sources"][1]["consul_intentions"];
            consul.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        })
    };
    assert_eq!(faults(&two(json!({ "trust_domain": DOMAIN }))), "");
    for (configuration, words) in [
        (meshed(|it| _ = it.as_object_mut().unwrap().remove("peer")), "needs `peer`"),
        (
            meshed(|it| _ = it["policy"]["sources"].as_array_mut().unwrap().remove(0)),
            "only restricts",
        ),
        (two(json!({})), "needs `trust_domain`"),
        (two(json!({ "trust_domain": "third.consul" })), "none of `peer.trust_domains`"),
        (mesh(|it| it["destination"] = json!("a/b")), "destination: `a/b` is not a service's name"),
        (
            mesh(|it| it["jwt_providers"] = json!({ "okta": "airflow" })),
            "none of the issuers of access tokens",
        ),
        (mesh(|it| it["hosts"] = json!(["a b"])), "the host `a b`"),
        (mesh(|it| it["hosts"] = json!([])), "must not be empty"),
        (mesh(|it| it["default"] = json!("maybe")), "is none of `deny`, `allow`"),
        (mesh(|it| it["wait"] = json!("20m")), "is not between"),
        (mesh(|it| it["datacentre"] = json!("dc1")), "did you mean `datacenter`"),
        (mesh(|it| it["token_env"] = json!("NONE")), "the variable `NONE`"),
    ] {
        let told = faults(&configuration);
        assert!(told.contains(words), "{words}: {told}");
    }
}
