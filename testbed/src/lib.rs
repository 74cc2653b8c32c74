//! The testbed: a real Envoy with the filter, and everything that it needs, on this machine.
//!
//! [`Testbed::start`] brings up Envoy with the repository's `envoy.yaml`, a real OIDC provider, a policy
//! server, two destinations and the testbed identity issuer, which stands in for Airflow's API server.
//! Everything listens on free loopback ports, every key and secret is made for the run, and nothing
//! outlives the [`Testbed`], not even when its process is killed.
//!
//! What it is not: a deployment. Its identity issuer believes whoever asks.

pub mod bootstrap;
pub mod certificates;
pub mod client;
pub mod document;
pub mod error;
pub mod identity;
pub mod oidc;
pub mod process;
pub mod server;
pub mod upstream;

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::bootstrap::Bootstrap;
use crate::certificates::Authority;
use crate::document::{Document, Source};
use crate::error::{Context as _, Error, Result};
use crate::identity::{IdentityIssuer, secret};
use crate::process::{Process, find};
use crate::upstream::Upstream;

pub use crate::client::{Answer, Call, send_raw};
pub use crate::document::Fault;
pub use crate::identity::{AUDIENCE, Signer, Task};
pub use crate::oidc::{Oidc, TokenRequest};
pub use crate::upstream::Received;

/// The host of the destination inside.
pub const ORDERS: &str = "orders.internal";
/// The host of the destination outside.
pub const PARTNER: &str = "api.partner.example";

/// The file from which Envoy reads the partner's credential.
const CREDENTIAL_FILE: &str = "partner-credential.yaml";

/// What a testbed is started with.
pub struct Options {
    /// Envoy's worker threads.
    pub concurrency: u32,
    /// The listener's port; 0 for any.
    pub listener_port: u16,
    /// The admin interface's port; 0 for any.
    pub admin_port: u16,
    /// Where logs and generated files go; `None` for a folder that is removed at the end.
    pub directory: Option<PathBuf>,
    /// The policy to serve.
    pub policy: Source,
    /// How fetching the policy fails from the start; [`Document::heal`] ends it.
    pub policy_fault: Option<Fault>,
    /// How fetching Airflow's keys fails from the start.
    pub airflow_keys_fault: Option<Fault>,
    /// Envoy's log level.
    pub log_level: &'static str,
    /// Changes the filter's configuration.
    pub configure: Box<dyn FnOnce(&mut Value) + Send>,
    /// Changes Envoy's configuration, after everything else.
    pub bootstrap: Box<dyn FnOnce(&mut Bootstrap) + Send>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            concurrency: 2,
            listener_port: 0,
            admin_port: 0,
            directory: None,
            policy: Source::File(repository().join("testbed/policy.json")),
            policy_fault: None,
            airflow_keys_fault: None,
            log_level: "warning",
            configure: Box::new(|_| {}),
            bootstrap: Box::new(|_| {}),
        }
    }
}

/// A running testbed.
pub struct Testbed {
    /// The policy that Envoy fetches.
    pub policy: Arc<Document>,
    /// The stand-in for Airflow's API server.
    pub airflow: Arc<IdentityIssuer>,
    /// The OIDC provider.
    pub oidc: Oidc,
    /// The destination inside.
    pub orders: Arc<Upstream>,
    /// The destination outside.
    pub partner: Arc<Upstream>,
    /// The credential that Envoy, and nobody else, shows to the partner.
    pub partner_credential: String,
    /// Where Envoy listens.
    pub listener: SocketAddr,
    /// Envoy's admin interface.
    pub admin: SocketAddr,
    addresses: Vec<(&'static str, SocketAddr)>,
    directory: PathBuf,
    temporary: bool,
    envoy: Process,
    provider: Process,
    runtime: Option<Runtime>,
}

impl Testbed {
    /// Starts everything and returns when Envoy serves.
    ///
    /// # Errors
    /// If something is missing or does not come up; the fault says what, and the end of its log.
    pub async fn start(options: Options) -> Result<Self> {
        // Servers and children live on threads of their own: they neither stall nor end with the caller's.
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.context("starting a runtime")?;
        match runtime.spawn(start(options)).await.context("starting the testbed") {
            Ok(Ok(mut testbed)) => {
                testbed.runtime = Some(runtime);
                Ok(testbed)
            }
            Ok(Err(error)) | Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Calls through Envoy.
    ///
    /// # Errors
    /// If there is no whole answer.
    pub async fn call(&self, call: Call) -> Result<Answer> {
        call.send(self.listener, None).await
    }

    /// Calls through Envoy with a fresh token and a fresh identity of `task`.
    ///
    /// # Errors
    /// If the provider gives no token, or there is no whole answer.
    pub async fn call_as(&self, task: &Task, call: Call) -> Result<Answer> {
        let (token, identity) = self.credentials(task).await?;
        self.call(call.token(&token).identity(&identity)).await
    }

    /// A fresh token, and a fresh identity of `task` that is bound to it.
    ///
    /// # Errors
    /// If the provider gives no token.
    pub async fn credentials(&self, task: &Task) -> Result<(String, String)> {
        let token = self.oidc.token(&TokenRequest::default()).await?;
        let identity = self.airflow.mint(task, Some(&token));
        Ok((token, identity))
    }

    /// The text at `path` of Envoy's admin interface.
    ///
    /// # Errors
    /// If Envoy does not answer.
    pub async fn admin(&self, path: &str) -> Result<String> {
        Ok(Call::get("admin", path).send(self.admin, None).await?.text())
    }

    /// The value of the counter or gauge `name` (a whole name, as `/stats` prints it); 0 if it does not exist yet.
    ///
    /// # Errors
    /// If Envoy does not answer.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let stats = self.admin("/stats").await?;
        let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
    }

    /// What Envoy wrote to its log so far.
    pub fn envoy_log(&self) -> String {
        read(&self.log("envoy"))
    }

    /// The access log so far. Envoy writes it within a tenth of a second.
    pub fn access_log(&self) -> Vec<Value> {
        read(&self.log("access"))
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The access log entry of the call with the decision id `id`, for which it waits.
    ///
    /// # Errors
    /// If there is none within five seconds.
    pub async fn access_log_of(&self, id: &str) -> Result<Value> {
        let mut entry = None;
        eventually("the access log has the call", async || {
            entry = self
                .access_log()
                .into_iter()
                .find(|entry| entry.get("decision_id").is_some_and(|known| known == id));
            entry.is_some()
        })
        .await?;
        entry.context("the access log's entry")
    }

    /// Gives Envoy another credential for the partner, as a secret store does: by a rename.
    ///
    /// # Errors
    /// If the file cannot be replaced.
    pub fn set_partner_credential(&mut self, value: &str) -> Result<()> {
        let draft = self.directory.join("partner-credential.draft");
        write_private(&draft, &credential(value))?;
        fs::rename(&draft, self.directory.join(CREDENTIAL_FILE))
            .context("replacing the credential")?;
        value.clone_into(&mut self.partner_credential);
        Ok(())
    }

    /// The path of the log `name`: `envoy`, `access`, `oidc` or `policy`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// What everything is called, where it listens and as which process: for people and for other processes.
    pub fn summary(&self) -> Value {
        let addresses: serde_json::Map<_, _> = self
            .addresses
            .iter()
            .map(|(name, address)| ((*name).to_owned(), address.to_string().into()))
            .collect();
        json!({
            "supervisor": std::process::id(),
            "processes": { "envoy": self.envoy.id(), "oidc": self.provider.id() },
            "addresses": addresses,
        })
    }

    /// Whether Envoy and the OIDC provider still run.
    ///
    /// # Errors
    /// If one does not; the fault has the end of its log.
    pub fn check(&mut self) -> Result<()> {
        for process in [&mut self.envoy, &mut self.provider] {
            if !process.is_running() {
                return Err(process.failed("ended"));
            }
        }
        Ok(())
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.envoy.end(Duration::ZERO);
        self.provider.end(Duration::from_millis(200));
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if self.temporary && std::thread::panicking() {
            let kept = fs::canonicalize(&self.directory).unwrap_or_else(|_| self.directory.clone());
            eprintln!("the testbed's logs are in {}", kept.display());
        } else if self.temporary {
            let _: Result<(), _> = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// If it does not within five seconds; the fault says that it is `expected`.
pub async fn eventually(expected: &str, mut condition: impl AsyncFnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition().await {
        if Instant::now() > deadline {
            return Err(Error::new(format!("not within five seconds: {expected}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The repository's folder.
pub fn repository() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder.parent().unwrap_or(folder).to_owned()
}

/// The Envoy to run.
///
/// # Errors
/// If there is none.
pub fn envoy_program() -> Result<PathBuf> {
    let places = [repository().join(".testbed/venv/bin/envoy")];
    find("envoy", "ENVOY", &places, "run `scripts/testbed install`")
}

/// The filter, as `scripts/build` leaves it.
///
/// # Errors
/// If it has not been built.
pub fn filter_file() -> Result<PathBuf> {
    let places = [repository().join("target/wasm32-wasip1/release/airflow_envoy.wasm")];
    find("airflow_envoy.wasm", "AIRFLOW_ENVOY_WASM", &places, "run `scripts/build`")
}

/// Writes `text` to a file that only its owner may read.
///
/// # Errors
/// If it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.context(path.display())?.write_all(text.as_bytes()).context(path.display())
}

async fn start(options: Options) -> Result<Testbed> {
    let (envoy, filter) = (envoy_program()?, filter_file()?);
    let temporary = options.directory.is_none();
    let directory = options.directory.unwrap_or_else(fresh_directory);
    fs::create_dir_all(&directory).context(directory.display())?;
    let log = |name| directory.join(format!("{name}.log"));

    let authority = Authority::new()?;
    let authority_file = directory.join("authority.crt");
    fs::write(&authority_file, authority.pem()).context(authority_file.display())?;
    let partner_credential = format!("Bearer {}", secret());
    let credential_file = directory.join(CREDENTIAL_FILE);
    write_private(&credential_file, &credential(&partner_credential))?;

    let client_secret = secret();
    let idp = authority.issue(oidc::HOST)?;
    let (provider, idp) = oidc::start(&directory, &log("oidc"), &idp, &client_secret)?;
    let oidc = Oidc { address: idp, secret: client_secret, connector: authority.connector()? };

    let policy = Arc::new(Document::new(options.policy));
    policy.log_to(&log("policy"))?;
    let airflow = Arc::new(IdentityIssuer::new());
    if let Some(fault) = options.policy_fault {
        policy.fault(fault);
    }
    if let Some(fault) = options.airflow_keys_fault {
        airflow.keys.fault(fault);
    }
    let orders = Arc::new(Upstream::new("orders"));
    let partner = Arc::new(Upstream::new("partner"));
    let tls = |host| authority.issue(host)?.acceptor().map(Some);
    let addresses = vec![
        ("orders", server::serve(Arc::clone(&orders), None).await?),
        ("partner", server::serve(Arc::clone(&partner), tls(PARTNER)?).await?),
        ("idp", idp),
        ("airflow-jwks", server::serve(Arc::clone(&airflow), tls("airflow.internal")?).await?),
        ("policy", server::serve(Arc::clone(&policy), tls("policy.internal")?).await?),
    ];

    let mut bootstrap = Bootstrap::read(&repository().join("envoy.yaml"))?;
    bootstrap.set_admin_port(options.admin_port)?;
    bootstrap.set_listener_port(options.listener_port)?;
    for (cluster, address) in &addresses {
        bootstrap.set_endpoint(cluster, *address)?;
    }
    bootstrap.set_trusted_authority(&authority_file)?;
    bootstrap.set_partner_credential(&credential_file)?;
    bootstrap.set_filter(&filter)?;
    bootstrap.configure_filter(options.configure)?;
    (options.bootstrap)(&mut bootstrap);
    let configuration = directory.join("envoy.json");
    fs::write(&configuration, bootstrap.text()).context(configuration.display())?;

    let admin_file = directory.join("admin-address");
    let _: Result<(), _> = fs::remove_file(&admin_file);
    let access = fs::File::create(log("access")).context("access.log")?;
    let mut envoy = Process::start("Envoy", &envoy, &log("envoy"), |command| {
        command
            .arg("--config-path")
            .arg(&configuration)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--concurrency", &options.concurrency.to_string()])
            .args(["--log-level", options.log_level])
            // Several Envoys on one host, and no shared memory left behind.
            .arg("--disable-hot-restart")
            .args(["--file-flush-interval-msec", "100"])
            .stdout(Stdio::from(access));
    })?;
    let (admin, listener) = ready(&mut envoy, &admin_file).await?;

    let addresses =
        [("listener", listener), ("admin", admin)].into_iter().chain(addresses).collect();
    Ok(Testbed {
        policy,
        airflow,
        oidc,
        orders,
        partner,
        partner_credential,
        listener,
        admin,
        addresses,
        directory,
        temporary,
        envoy,
        provider,
        runtime: None,
    })
}

/// Waits until Envoy serves; its admin interface's and its listener's address.
async fn ready(envoy: &mut Process, admin_file: &Path) -> Result<(SocketAddr, SocketAddr)> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if !envoy.is_running() {
            return Err(envoy.failed("ended while starting"));
        }
        if let Some(addresses) = addresses(admin_file).await {
            return Ok(addresses);
        }
        if Instant::now() > deadline {
            return Err(envoy.failed("is not ready after half a minute"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn addresses(admin_file: &Path) -> Option<(SocketAddr, SocketAddr)> {
    let admin = fs::read_to_string(admin_file).ok()?.trim().parse().ok()?;
    let ready = Call::get("admin", "/ready").send(admin, None).await.ok()?;
    let listeners =
        Call::get("admin", "/listeners?format=json").send(admin, None).await.ok()?.json();
    let socket = listeners.pointer("/listener_statuses/0/local_address/socket_address")?;
    let address = socket.get("address")?.as_str()?.parse().ok()?;
    let port = u16::try_from(socket.get("port_value")?.as_u64()?).ok()?;
    (ready.status == 200).then_some((admin, SocketAddr::new(address, port)))
}

/// The content of [`CREDENTIAL_FILE`].
fn credential(value: &str) -> String {
    let secret = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "partner-credential",
        "generic_secret": { "secret": { "inline_string": value } },
    });
    json!({ "resources": [secret] }).to_string()
}

/// A new folder of this process; those of processes that are gone are removed on the way.
fn fresh_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = repository().join("target/testbed");
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.split('-').next()).unwrap_or_default();
        if !Path::new("/proc").join(process).exists() {
            let _: Result<(), _> = fs::remove_dir_all(entry.path());
        }
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("{}-{number}", std::process::id()))
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
