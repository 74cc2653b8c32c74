//! One worker's gate, and what to ask it.

use airflow_envoy_core::arrival::{Arrival, DecisionId, StreamId};
use airflow_envoy_core::feed::{Answer, FeedId, Fetch, Response};
use airflow_envoy_core::gate::{Effect, Gate, Host, Verdict};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::{Credential, mint, public_key};
use serde_json::{Value, json};

pub const NOW: i64 = 1_795_262_400;

pub fn at(seconds: i64) -> UnixTime {
    UnixTime::from_secs(NOW + seconds)
}

/// With five seconds to wait, in a room for `requests`.
pub fn patient(requests: usize) -> Value {
    let mut configuration = configuration();
    configuration["waiting"] = json!({ "requests": requests, "time": "5s" });
    configuration
}

pub fn configuration() -> Value {
    let issuer = |name: &str| {
        json!({
            "name": name,
            "issuer": format!("https://{name}.example"),
            "audiences": ["orders"],
            "algorithms": ["ES256"],
            "clock_skew": "0",
            "jwks": { "cluster": name, "uri": format!("https://{name}.example/jwks"), "max_age": "1h" }
        })
    };
    json!({
        "issuers": [issuer("idp")],
        "airflow": { "issuers": [issuer("airflow")] },
        "policy": {
            "sources": [{ "name": "main", "http": { "cluster": "policy", "uri": "http://p/p.json" } }],
            "max_age": "10m"
        },
        "waiting": { "requests": 2, "time": "2s" }
    })
}

pub fn policy(dag: &str) -> Vec<u8> {
    json!({
        "version": 1,
        "destinations": { "orders": { "hosts": ["orders.internal"] } },
        "rules": [{ "id": "one-dag", "effect": "allow", "from": { "dags": [dag] }, "to": ["orders"] }]
    })
    .to_string()
    .into_bytes()
}

pub fn keys(names: &[&str]) -> Vec<u8> {
    let keys: Vec<_> = names.iter().map(|name| public_key(name).unwrap()).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

pub fn credential(value: Value) -> Credential {
    serde_json::from_value(value).unwrap()
}

/// An access token and an identity bound to it, both signed by keys of these names.
pub fn credentials(token_key: &str, identity_key: &str, dag: &str) -> (String, String) {
    credentials_with(token_key, identity_key, dag, &json!({}))
}

/// The same with further claims of the task.
pub fn credentials_with(
    token_key: &str,
    identity_key: &str,
    dag: &str,
    more: &Value,
) -> (String, String) {
    let mut airflow = json!({ "dag_id": dag, "task_id": "load", "run_id": "r", "try_number": 1 });
    airflow.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let token = credential(json!({
        "algorithm": "ES256", "key": token_key, "header": { "typ": "at+jwt" },
        "claims": { "iss": "https://idp.example", "aud": "orders", "sub": "airflow", "exp": "+300" }
    }));
    let token = mint(&token, NOW, None).unwrap();
    let identity = credential(json!({
        "algorithm": "ES256", "key": identity_key, "header": { "typ": "airflow-task+jwt" },
        "claims": {
            "iss": "https://airflow.example", "aud": "orders", "sub": format!("airflow:{dag}/load"),
            "iat": "+0", "exp": "+60", "ath": "$ath",
            "airflow": airflow
        }
    }));
    let identity = mint(&identity, NOW, Some(&token)).unwrap();
    (token, identity)
}

pub struct Worker {
    pub gate: Gate,
    /// What the host knows about the client's certificate.
    pub peer: Option<String>,
    pub asked: u32,
    pub fetches: Vec<Fetch>,
    /// Verdicts on requests that waited: stream and code, or `permit`.
    pub decided: Vec<(u32, String)>,
}

impl Worker {
    pub fn new(configuration: &Value) -> Self {
        let gate =
            Gate::new(configuration.to_string().as_bytes(), Host::alone(Box::new(RustCrypto)))
                .unwrap();
        Self { gate, peer: None, asked: 0, fetches: Vec::new(), decided: Vec::new() }
    }

    /// With keys `t1`, `a1` and a policy for the DAG `etl`.
    pub fn ready() -> Self {
        Self::ready_with(&configuration())
    }

    pub fn ready_with(configuration: &Value) -> Self {
        let mut worker = Self::new(configuration);
        worker.tick(0);
        worker.bring("idp", &keys(&["t1-p256"]), 0);
        worker.bring("airflow", &keys(&["a1-p256"]), 0);
        worker.bring("policy", &policy("etl"), 0);
        worker
    }

    pub fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Fetch(fetch) => self.fetches.push(fetch),
                Effect::Decide(StreamId(stream), verdict) => {
                    self.decided.push((stream, code(&verdict)));
                }
                Effect::Log(..) | Effect::Count(_) | Effect::Gauge(..) | Effect::Post(_) => {}
            }
        }
    }

    pub fn tick(&mut self, seconds: i64) {
        let effects = self.gate.tick(at(seconds));
        self.take(effects);
    }

    pub fn under_way(&mut self, cluster: &str) -> FeedId {
        let index = self.fetches.iter().position(|fetch| fetch.cluster == cluster);
        self.fetches.remove(index.expect(cluster)).feed
    }

    pub fn bring(&mut self, cluster: &str, body: &[u8], seconds: i64) {
        let answer =
            Answer::Http(Response { status: 200, body: body.to_vec(), ..Response::default() });
        let feed = self.under_way(cluster);
        let effects = self.gate.answered(feed, answer, at(seconds));
        self.take(effects);
    }

    pub fn fail(&mut self, cluster: &str, seconds: i64) {
        let feed = self.under_way(cluster);
        let effects = self.gate.answered(feed, Answer::None, at(seconds));
        self.take(effects);
    }

    pub fn ask(&mut self, credentials: &(String, String), seconds: i64) -> String {
        code(&self.verdict(credentials, &[], seconds))
    }

    pub fn verdict(
        &mut self,
        (token, identity): &(String, String),
        more: &[(&str, &str)],
        seconds: i64,
    ) -> Verdict {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![
            (":method", "GET"),
            (":authority", "orders.internal"),
            (":path", "/v1"),
            ("authorization", bearer.as_str()),
            ("x-airflow-identity", identity),
        ];
        headers.extend(more);
        self.send(&headers, seconds)
    }

    pub fn send(&mut self, headers: &[(&str, &str)], seconds: i64) -> Verdict {
        self.asked += 1;
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        self.gate.request(&Arrival {
            stream: StreamId(self.asked),
            headers: &headers,
            peer: self.peer.as_deref().map(str::as_bytes),
            now: at(seconds),
            decision_id: DecisionId::new(1, self.asked.into()),
        })
    }

    /// Fetches under way to a cluster.
    pub fn fetching(&self, cluster: &str) -> usize {
        self.fetches.iter().filter(|fetch| fetch.cluster == cluster).count()
    }
}

pub fn code(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Permit(_) => "permit".to_owned(),
        Verdict::Reject(rejection) => rejection.reject.code.name().to_owned(),
        Verdict::Pass(pass) => format!("pass:{}", pass.rejection().reject.code),
        Verdict::Status(reply) => format!("status:{}", reply.status),
        Verdict::Wait => "wait".to_owned(),
    }
}
