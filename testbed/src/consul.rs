//! Consul: a real one, as a child process, for policies in its key-value store and as the authority of a mesh.
//!
//! Its agent keeps everything in memory: stopped and started again it is empty, and its indexes start low.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::elliptic_curve::rand_core::{OsRng, RngCore as _};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::client::{Answer, Call};
use crate::error::{Context as _, Error, Result};
use crate::identity;
use crate::mesh::authority::Authority;
use crate::process::{Process, Restartable, find, free_port};

/// What a reader of policies and of the intentions about `orders` may do.
const READER: &str = r#"
    key_prefix "airflow-envoy/policy/" { policy = "read" }
    service "orders" { policy = "read" intentions = "read" }
"#;
/// The value of the host header.
const HOST: &str = "consul.internal";
/// The header that carries a token.
const TOKEN: &str = "x-consul-token";
/// The issuer of workloads' JWTs, and how the names of the methods by which they log in begin.
const WORKLOADS: &str = "workloads";
/// The name of the cluster: what comes before `.consul` in its trust domain.
pub const CLUSTER_ID: &str = "a1f10e00-0000-4000-8000-00000000c0de";

/// Who may read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Whoever has a token that says so; nobody else.
    ByToken,
}

/// A running Consul.
pub struct Consul {
    /// Where its HTTP interface listens, also after a restart.
    pub address: SocketAddr,
    /// Its process.
    pub process: Restartable,
    master: Option<String>,
}

/// Asks a Consul that runs somewhere.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    token: Option<String>,
}

impl Client {
    /// One of the Consul at `address`, with a token where there is access control.
    pub fn new(address: SocketAddr, token: Option<String>) -> Self {
        Self { address, token }
    }

    /// The same, but with a token that nobody had before if it has none: for what Consul keeps for each token.
    #[must_use]
    pub fn fresh(&self) -> Self {
        let token = self.token.clone().unwrap_or_else(uuid);
        Self { address: self.address, token: Some(token) }
    }

    /// What Consul answers, if that is 200; null if it is not JSON.
    ///
    /// # Errors
    /// If Consul refuses.
    pub async fn ask(&self, method: &str, path: &str, body: String) -> Result<Value> {
        let answer = self.send(method, path, body).await?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(refusal(&answer)) }
    }

    /// What Consul answers.
    ///
    /// # Errors
    /// If there is no whole answer.
    pub async fn send(&self, method: &str, path: &str, body: String) -> Result<Answer> {
        let mut call = Call::new(method, HOST, path).body(body);
        if let Some(token) = &self.token {
            call = call.header(TOKEN, token);
        }
        call.send(self.address, None).await
    }
}

/// The Consul to run; an error says why there is none.
///
/// # Errors
/// If it was not installed.
pub fn program() -> Result<PathBuf> {
    let folder = crate::repository().join(".testbed/bin");
    find("consul", "CONSUL", &[folder.join("consul")], "run `scripts/testbed install`")
}

/// Why Consul cannot be had on this machine, as `scripts/testbed install` found; `None` if it can be.
pub fn absence() -> Option<String> {
    let noted = fs::read_to_string(crate::repository().join(".testbed/bin/no-consul")).ok()?;
    program().is_err().then(|| noted.trim().to_owned())
}

impl Consul {
    /// Starts an agent with its files in `directory` and waits until it serves.
    ///
    /// # Errors
    /// If there is no Consul or it does not come up.
    pub async fn start(
        directory: &Path,
        log: PathBuf,
        access: Access,
        threads: Handle,
    ) -> Result<Self> {
        let program = program()?;
        let port = free_port()?;
        let mut agent = json!({
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "datacenter": "dc1",
            "node_name": "testbed",
            // The name of the mesh's trust domain, which stands in configurations.
            "connect": {
                "enabled": true,
                "ca_provider": "consul",
                "ca_config": { "cluster_id": CLUSTER_ID, "leaf_cert_ttl": "1h" },
            },
            "disable_update_check": true,
            "disable_anonymous_signature": true,
            "ports": {
                "http": port, "server": free_port()?, "serf_lan": free_port()?,
                "serf_wan": -1, "dns": -1, "grpc": -1,
            },
        });
        let master = (access == Access::ByToken).then(uuid);
        if let (Some(master), Some(agent)) = (&master, agent.as_object_mut()) {
            let tokens = json!({ "master": master, "agent": master });
            agent.insert(
                "acl".to_owned(),
                json!({ "enabled": true, "default_policy": "deny", "tokens": tokens }),
            );
        }
        let configuration = directory.join("consul.json");
        crate::write_private(&configuration, &agent.to_string())?;
        let recipe = move || {
            let output = File::create(&log).context(log.display())?;
            Process::start("Consul", &program, &log.with_extension("err"), |command| {
                command
                    .args(["agent", "-dev", "-config-file"])
                    .arg(&configuration)
                    .env("GOMAXPROCS", "2")
                    // The testbed's own token is for Envoy.
                    .env_remove("CONSUL_HTTP_TOKEN")
                    .stdout(Stdio::from(output));
            })
        };
        let consul = Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            process: Restartable::start(recipe, threads).await?,
            master,
        };
        consul.ready().await?;
        Ok(consul)
    }

    /// Starts it again, empty, where it was.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start_again(&self) -> Result<()> {
        self.process.start_again().await?;
        self.ready().await
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// If Consul refuses.
    pub async fn put(&self, key: &str, value: impl Into<String>) -> Result<()> {
        self.ask("PUT", &format!("/v1/kv/{key}"), value.into()).await.map(|_| ())
    }

    /// Deletes `key`.
    ///
    /// # Errors
    /// If Consul refuses.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.ask("DELETE", &format!("/v1/kv/{key}"), String::new()).await.map(|_| ())
    }

    /// The value of `key`; `None` if there is none.
    ///
    /// # Errors
    /// If Consul refuses.
    pub async fn value(&self, key: &str) -> Result<Option<String>> {
        let answer = self.send("GET", &format!("/v1/kv/{key}?raw"), String::new()).await?;
        match answer.status {
            200 => Ok(Some(answer.text())),
            404 => Ok(None),
            _ => Err(refusal(&answer)),
        }
    }

    /// A new token that may read policies and intentions, and nothing else.
    ///
    /// # Errors
    /// If Consul has no access control, or refuses.
    pub async fn reader(&self) -> Result<String> {
        // A policy of the same name is one more reason to refuse.
        let name = format!("reader-{}", uuid());
        let policy = json!({ "Name": name, "Rules": READER }).to_string();
        self.ask("PUT", "/v1/acl/policy", policy).await?;
        let token = json!({ "Policies": [{ "Name": name }] }).to_string();
        let made = self.ask("PUT", "/v1/acl/token", token).await?;
        made.get("SecretID").and_then(Value::as_str).map(str::to_owned).context("a new token")
    }

    /// The name of an auth method, and the JWT by which `service` logs in there, as a workload does: what comes of it may
    /// register the service and have its certificates.
    ///
    /// # Errors
    /// If Consul has no access control, or refuses.
    pub async fn workload(&self, service: &str) -> Result<(String, String)> {
        let key = KeyPair::generate().context("making a workload's key")?;
        // A method for each service: whose key this is may not log in as another.
        let method = format!("{WORKLOADS}-{service}");
        let definition = json!({
            "Name": method, "Type": "jwt", "MaxTokenTTL": "5m",
            "Config": {
                "JWTValidationPubKeys": [key.public_key_pem()],
                "BoundIssuer": WORKLOADS, "BoundAudiences": ["consul"],
            },
        });
        self.ask("PUT", "/v1/acl/auth-method", definition.to_string()).await?;
        let rule = json!({ "AuthMethod": method, "BindType": "service", "BindName": service });
        self.ask("PUT", "/v1/acl/binding-rule", rule.to_string()).await?;
        let claims = json!({
            "iss": WORKLOADS, "aud": ["consul"], "sub": service,
            "iat": identity::now(), "exp": identity::now() + 86_400,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", encode(&json!({ "alg": "ES256" })), encode(&claims));
        let signature = key.sign(input.as_bytes()).context("signing")?;
        let signature = p256::ecdsa::Signature::from_der(&signature).context("a signature")?;
        Ok((method, format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))))
    }

    /// Changes the mesh's certificate authority: how long its certificates live from now on (at least an hour, unless
    /// Consul is told to accept anything, which this does; it dates them back by a minute), and who signs them.
    ///
    /// # Errors
    /// If Consul refuses.
    pub async fn set_authority(
        &self,
        lifetime: Duration,
        authority: Option<&Authority>,
    ) -> Result<()> {
        let mut wanted = json!({
            "LeafCertTTL": format!("{}s", lifetime.as_secs().saturating_add(60)),
            "SkipValidate": true,
            "cluster_id": CLUSTER_ID,
        });
        if let (Some(authority), Some(members)) = (authority, wanted.as_object_mut()) {
            members.insert("PrivateKey".to_owned(), authority.key.clone().into());
            members.insert("RootCert".to_owned(), authority.certificate.clone().into());
        }
        let wanted = json!({ "Provider": "consul", "Config": wanted }).to_string();
        self.ask("PUT", "/v1/connect/ca/configuration", wanted).await.map(|_| ())
    }

    /// Waits until it has elected itself, and reads and has an authority for the mesh and, with access control, knows its master token.
    async fn ready(&self) -> Result<()> {
        let path = if self.master.is_some() { "/v1/acl/token/self" } else { "/v1/kv/?keys" };
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline && self.process.is_running() {
            let leader = self.send("GET", "/v1/status/leader", String::new()).await;
            let answer = self.send("GET", path, String::new()).await;
            let roots = self.send("GET", "/v1/connect/ca/roots", String::new()).await;
            if leader.is_ok_and(|leader| leader.text().len() > 2)
                && answer.is_ok_and(|answer| matches!(answer.status, 200 | 404))
                && roots.is_ok_and(|roots| has_root(&roots.json()))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(self.process.failed("does not get ready"))
    }

    /// One that may do everything.
    pub fn client(&self) -> Client {
        Client::new(self.address, self.master.clone())
    }

    async fn ask(&self, method: &str, path: &str, body: String) -> Result<Value> {
        self.client().ask(method, path, body).await
    }

    async fn send(&self, method: &str, path: &str, body: String) -> Result<Answer> {
        self.client().send(method, path, body).await
    }
}

/// Whether a list of roots has an active one.
fn has_root(roots: &Value) -> bool {
    roots.get("ActiveRootID").and_then(Value::as_str).is_some_and(|id| !id.is_empty())
}

fn refusal(answer: &Answer) -> Error {
    Error::new(format!("Consul answers {}: {}", answer.status, answer.text().trim()))
}

/// A random UUID (RFC 9562 §5.4), as Consul wants its tokens to look.
fn uuid() -> String {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    let number = u128::from_be_bytes(bytes);
    let part = |shift: u32, digits: usize| {
        let bits = u32::try_from(digits * 4).unwrap_or_default();
        format!("{:0digits$x}", (number >> shift) & ((1 << bits) - 1))
    };
    format!("{}-{}-4{}-8{}-{}", part(96, 8), part(80, 4), part(64, 3), part(48, 3), part(0, 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_the_form_of_one() {
        let uuid = uuid();
        let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
    }
}
