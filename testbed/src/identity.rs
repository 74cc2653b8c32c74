//! The testbed identity issuer: stands in for Airflow's API server and vouches for tasks.
//!
//! It signs what a real one would sign and serves its keys as a real one would; but it believes whoever
//! asks. It is NOT a way to run Airflow Envoy anywhere else.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Bytes;
use hyper::{Method, Request, Response};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::rand_core::{OsRng, RngCore as _};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::document::{Document, Source};
use crate::server::{Service, reply};

/// The issuer's name, as `envoy.yaml` knows it.
pub const ISSUER: &str = "https://airflow.internal";
/// Its name where a real Airflow has that one.
pub const TESTBED_ISSUER: &str = "https://testbed.internal";
/// Where it serves its keys.
pub const KEYS_PATH: &str = "/airflow-envoy/jwks.json";
/// Where it mints: POST a JSON object with `task` (as [`Task::to_json`] writes it) and, if the identity is
/// to be bound to one, `token`.
pub const MINT_PATH: &str = "/mint";
/// The audience of everything that the testbed mints, as `envoy.yaml` knows it.
pub const AUDIENCE: &str = "airflow-egress";

/// An ES256 key (RFC 7518 §3.4) that signs whatever it is given: also what no honest issuer would sign.
#[derive(Clone)]
pub struct Signer {
    key: SigningKey,
    key_id: String,
}

impl Signer {
    /// A new key, known as `key_id`.
    pub fn new(key_id: &str) -> Self {
        Self { key: SigningKey::random(&mut OsRng), key_id: key_id.to_owned() }
    }

    /// The `kid`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The public key as a JWK (RFC 7517 §4, RFC 7518 §6.2.1).
    pub fn public_key(&self) -> Value {
        let point = self.key.verifying_key().to_encoded_point(false);
        let coordinate = |bytes: Option<&_>| bytes.map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_id,
            "x": coordinate(point.x()), "y": coordinate(point.y()),
        })
    }

    /// A compact JWS (RFC 7515 §7.1) of exactly this header and these claims.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", encode(header), encode(claims));
        let signature: Signature = self.key.sign(input.as_bytes());
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }
}

/// A running Airflow task, as its API server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// `dag_id`.
    pub dag: String,
    /// `task_id`.
    pub task: String,
    /// `run_id`.
    pub run: String,
    /// `try_number`, from 1.
    pub try_number: u32,
    /// `map_index`; -1 for a task that is not mapped.
    pub map_index: i32,
    /// `run_type`.
    pub run_type: String,
    /// `team`, if Airflow is set up for teams.
    pub team: Option<String>,
    /// Airflow RBAC roles that may act on the DAG.
    pub roles: Vec<String>,
    /// Owners of the DAG.
    pub owners: Vec<String>,
    /// Tags of the DAG.
    pub tags: Vec<String>,
    /// The queue.
    pub queue: String,
}

impl Task {
    /// An unmapped first try of a scheduled run, with no team and no roles.
    pub fn new(dag: &str, task: &str) -> Self {
        Self {
            dag: dag.to_owned(),
            task: task.to_owned(),
            run: "scheduled__2026-11-21T00:00:00+00:00".to_owned(),
            try_number: 1,
            map_index: -1,
            run_type: "scheduled".to_owned(),
            team: None,
            roles: Vec::new(),
            owners: vec!["airflow".to_owned()],
            tags: Vec::new(),
            queue: "default".to_owned(),
        }
    }

    /// The same task of another team.
    #[must_use]
    pub fn team(self, team: &str) -> Self {
        Self { team: Some(team.to_owned()), ..self }
    }

    /// The `airflow` claim.
    pub fn to_json(&self) -> Value {
        json!({
            "dag_id": self.dag, "task_id": self.task, "run_id": self.run,
            "try_number": self.try_number, "map_index": self.map_index,
            "run_type": self.run_type, "team": self.team, "roles": self.roles,
            "owners": self.owners, "tags": self.tags, "queue": self.queue,
            "state": "running", "pool": "default_pool", "hostname": "testbed",
        })
    }
}

/// The issuer: current and former keys, the newest first.
pub struct IdentityIssuer {
    name: &'static str,
    signers: Mutex<Vec<Signer>>,
    /// The key set that it serves, with its faults.
    pub keys: Document,
}

impl IdentityIssuer {
    /// An issuer with one new key.
    #[expect(clippy::new_without_default, reason = "a new key is no default")]
    pub fn new() -> Self {
        Self::named(ISSUER)
    }

    /// An issuer that calls itself `name`, with one new key.
    pub fn named(name: &'static str) -> Self {
        let signers = vec![Signer::new("testbed-1")];
        let keys = Document::new(Source::Text(key_set(&signers).to_string()));
        Self { name, signers: Mutex::new(signers), keys }
    }

    /// The key that signs now.
    pub fn signer(&self) -> Signer {
        // INVARIANT: there is always a key; a new one costs nothing should that ever change.
        self.signers().first().cloned().unwrap_or_else(|| Signer::new("testbed-0"))
    }

    /// An identity of `task`, valid for a minute and bound to `token` (`ath`, as RFC 9449 §4.2 has it).
    pub fn mint(&self, task: &Task, token: Option<&str>) -> String {
        self.sign(&task.to_json(), token)
    }

    fn sign(&self, task: &Value, token: Option<&str>) -> String {
        let signer = self.signer();
        let mut claims = claims(task, token);
        if let Some(claims) = claims.as_object_mut() {
            claims.insert("iss".to_owned(), self.name.into());
        }
        signer.sign(&header(signer.key_id()), &claims)
    }

    /// Signs with a new key from now on and keeps the former ones in the set, or drops them.
    pub fn rotate(&self, drop: bool) {
        let mut signers = self.signers();
        let mut id = [0; 4];
        OsRng.fill_bytes(&mut id);
        if drop {
            signers.clear();
        }
        signers.insert(0, Signer::new(&format!("testbed-{}", URL_SAFE_NO_PAD.encode(id))));
        self.keys.set(&key_set(&signers));
    }

    fn signers(&self) -> MutexGuard<'_, Vec<Signer>> {
        self.signers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service for IdentityIssuer {
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, KEYS_PATH) => self.keys.answer(&request).await,
            (&Method::POST, MINT_PATH) => {
                let asked: Value = serde_json::from_slice(request.body()).unwrap_or_default();
                let Some(task) = asked.get("task").filter(|task| task.is_object()) else {
                    return Some(reply(400, "text/plain", "`task` is missing\n"));
                };
                let identity = self.sign(task, asked.get("token").and_then(Value::as_str));
                Some(reply(200, "application/json", json!({ "identity": identity }).to_string()))
            }
            _ => Some(reply(404, "text/plain", "not here\n")),
        }
    }
}

/// The header of an Airflow identity.
pub fn header(key_id: &str) -> Value {
    json!({ "typ": "airflow-task+jwt", "alg": "ES256", "kid": key_id })
}

/// The claims of an Airflow identity of `task` (its `airflow` claim), valid for a minute from now.
pub fn claims(task: &Value, token: Option<&str>) -> Value {
    let text = |member| task.get(member).and_then(Value::as_str).unwrap_or_default();
    let now = now();
    let mut id = [0; 16];
    OsRng.fill_bytes(&mut id);
    let mut claims = Map::new();
    claims.insert("iss".to_owned(), ISSUER.into());
    claims.insert("aud".to_owned(), AUDIENCE.into());
    claims
        .insert("sub".to_owned(), format!("airflow:{}/{}", text("dag_id"), text("task_id")).into());
    claims.insert("iat".to_owned(), now.into());
    claims.insert("nbf".to_owned(), now.into());
    claims.insert("exp".to_owned(), now.saturating_add(60).into());
    claims.insert("jti".to_owned(), URL_SAFE_NO_PAD.encode(id).into());
    claims.insert("airflow".to_owned(), task.clone());
    if let Some(token) = token {
        claims.insert("ath".to_owned(), URL_SAFE_NO_PAD.encode(Sha256::digest(token)).into());
    }
    Value::Object(claims)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A secret of 256 random bits, as text.
pub fn secret() -> String {
    let mut bytes = [0; 32];
    OsRng.fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn key_set(signers: &[Signer]) -> Value {
    json!({ "keys": signers.iter().map(Signer::public_key).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::Verifier as _;

    use super::*;

    fn part(jws: &str, index: usize) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(jws.split('.').nth(index).unwrap()).unwrap()
    }

    #[test]
    fn an_identity_verifies_with_the_published_key_and_is_bound_to_the_token() {
        let issuer = IdentityIssuer::new();
        let identity =
            issuer.mint(&Task::new("ds_churn", "load").team("data-science"), Some("the token"));
        let signer = issuer.signer();
        let (input, _) = identity.rsplit_once('.').unwrap();
        let signature = Signature::from_slice(&part(&identity, 2)).unwrap();
        signer.key.verifying_key().verify(input.as_bytes(), &signature).unwrap();

        let header: Value = serde_json::from_slice(&part(&identity, 0)).unwrap();
        assert_eq!(header, json!({"typ": "airflow-task+jwt", "alg": "ES256", "kid": "testbed-1"}));
        let claims: Value = serde_json::from_slice(&part(&identity, 1)).unwrap();
        assert_eq!(claims["sub"], "airflow:ds_churn/load");
        assert_eq!(claims["airflow"]["team"], "data-science");
        assert_eq!(claims["ath"], URL_SAFE_NO_PAD.encode(Sha256::digest("the token")));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
    }

    #[tokio::test]
    async fn a_rotation_publishes_the_new_key_first_and_keeps_or_drops_the_old() {
        let issuer = IdentityIssuer::new();
        let published = async || {
            let request = Request::get(KEYS_PATH).body(Bytes::new()).unwrap();
            let set: Value =
                serde_json::from_slice(issuer.answer(request).await.unwrap().body()).unwrap();
            let ids = set["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone());
            ids.collect::<Vec<_>>()
        };
        issuer.rotate(false);
        assert_eq!(published().await, [json!(issuer.signer().key_id()), json!("testbed-1")]);
        issuer.rotate(true);
        assert_eq!(published().await, [json!(issuer.signer().key_id())]);
    }
}
