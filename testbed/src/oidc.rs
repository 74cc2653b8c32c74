//! The OIDC provider: a real one (`oidc-provider`, on Node), as a child process.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;

use crate::certificates::Certificate;
use crate::client::Call;
use crate::error::{Context as _, Error, Result};
use crate::identity::AUDIENCE;
use crate::process::{Process, Restartable, find, free_port};

/// Its host, as `envoy.yaml` and its certificate know it.
pub const HOST: &str = "idp.internal";
/// Where it describes itself (OpenID Connect Discovery 1.0 §4).
pub const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";
/// Where it serves its keys.
pub const KEYS_PATH: &str = "/jwks";
/// The client that asks for tokens.
pub const CLIENT: &str = "airflow";

/// How to reach it.
#[derive(Clone)]
pub struct Oidc {
    /// Where it listens.
    pub address: SocketAddr,
    /// The secret of [`CLIENT`].
    pub secret: String,
    /// What trusts its certificate.
    pub connector: TlsConnector,
}

/// The token to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// `RS256`, `PS256`, `ES256` or `EdDSA`.
    pub algorithm: String,
    /// The audience.
    pub audience: String,
    /// The lifetime in seconds.
    pub seconds: u32,
    /// Scopes, space-delimited: of `orders:read`, `orders:write`, `reports:write`.
    pub scope: String,
}

impl Default for TokenRequest {
    fn default() -> Self {
        Self {
            algorithm: "RS256".to_owned(),
            audience: AUDIENCE.to_owned(),
            seconds: 300,
            scope: "orders:read".to_owned(),
        }
    }
}

/// How the provider serves one of its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// As it should, with no `cache-control`.
    Well,
    /// With this `cache-control`.
    CacheControl(&'static str),
    /// With this status and body instead.
    Instead(u16, String),
    /// Not at all: the caller waits.
    Hang,
    /// Not at all: the connection is closed.
    Close,
}

/// Starts the provider, with its files in `directory`, on `threads`; where it listens, also when started again.
///
/// # Errors
/// If Node or the provider's packages are missing, or it does not come up.
pub(crate) async fn start(
    directory: &Path,
    log: PathBuf,
    certificate: &Certificate,
    secret: String,
    threads: Handle,
) -> Result<(Restartable, SocketAddr)> {
    let node = find("node", "NODE", &[], "install Node.js 20 or newer")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc");
    if !folder.join("node_modules").is_dir() {
        return Err(Error::new(
            "the OIDC provider's packages are missing: run `scripts/testbed install`",
        ));
    }
    let (certificate_file, key_file) = (directory.join("idp.crt"), directory.join("idp.key"));
    let signing_keys = directory.join("idp-signing-keys.json");
    fs::write(&certificate_file, &certificate.certificate).context(certificate_file.display())?;
    crate::write_private(&key_file, &certificate.key)?;
    // Those of an earlier run in the same folder.
    let _: Result<(), _> = fs::remove_file(&signing_keys);
    let port = free_port()?;
    let recipe = move || {
        let mut process = Process::start("the OIDC provider", &node, &log, |command| {
            command
                .arg("provider.mjs")
                .current_dir(&folder)
                .env("NODE_ENV", "production")
                .env("OIDC_PORT", port.to_string())
                .env("OIDC_ISSUER", format!("https://{HOST}"))
                .env("OIDC_CLIENT_ID", CLIENT)
                .env("OIDC_CLIENT_SECRET", &secret)
                .env("OIDC_CERTIFICATE", &certificate_file)
                .env("OIDC_KEY", &key_file)
                .env("OIDC_SIGNING_KEYS", &signing_keys)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
        })?;
        process.first_line(Duration::from_secs(30)).map(|_| process)
    };
    let process = Restartable::start(recipe, threads).await?;
    Ok((process, SocketAddr::from(([127, 0, 0, 1], port))))
}

impl Oidc {
    /// A new access token (RFC 6749 §4.4, RFC 8707, RFC 9068).
    ///
    /// # Errors
    /// If the provider refuses.
    pub async fn token(&self, asked: &TokenRequest) -> Result<String> {
        let TokenRequest { algorithm, audience, seconds, scope } = asked;
        let scope = scope.replace(' ', "+");
        let form = format!(
            "grant_type=client_credentials&resource=urn:{algorithm}:{audience}:{seconds}&scope={scope}"
        );
        let credentials = STANDARD.encode(format!("{CLIENT}:{}", self.secret));
        let call = Call::post(HOST, "/token", form)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", format!("Basic {credentials}"));
        let granted = self.ask(call).await?;
        granted.get("access_token").and_then(Value::as_str).map(str::to_owned).context("a token")
    }

    /// Makes new keys, which sign from now on; keeps the old ones in the key set, or drops them.
    ///
    /// # Errors
    /// If the provider does not answer.
    pub async fn rotate(&self, drop: bool) -> Result<()> {
        let body = json!({ "drop": drop }).to_string();
        self.ask(Call::post(HOST, "/_test/rotate", body)).await.map(|_| ())
    }

    /// Serves the document at `path` in this way from now on, until it is started again.
    ///
    /// # Errors
    /// If the provider does not answer.
    pub async fn serve(&self, path: &str, serving: Serving) -> Result<()> {
        let (cache_control, fault) = match serving {
            Serving::Well => (None, Value::Null),
            Serving::CacheControl(value) => (Some(value), Value::Null),
            Serving::Instead(status, body) => (None, json!({ "status": status, "body": body })),
            Serving::Hang => (None, json!("hang")),
            Serving::Close => (None, json!("close")),
        };
        let asked = json!({ "path": path, "cacheControl": cache_control, "fault": fault });
        self.ask(Call::post(HOST, "/_test/serve", asked.to_string())).await.map(|_| ())
    }

    /// The requests for `path` that reached it since it was started.
    ///
    /// # Errors
    /// If the provider does not answer.
    pub async fn requests(&self, path: &str) -> Result<u64> {
        let requests = self.ask(Call::get(HOST, "/_test/requests")).await?;
        Ok(requests.get(path).and_then(Value::as_u64).unwrap_or(0))
    }

    /// The document at `path`.
    ///
    /// # Errors
    /// If the provider does not answer with one.
    pub async fn document(&self, path: &str) -> Result<Value> {
        self.ask(Call::get(HOST, path)).await
    }

    async fn ask(&self, call: Call) -> Result<Value> {
        let answer = call.send(self.address, Some((&self.connector, HOST))).await?;
        match answer.status {
            200 => Ok(answer.json()),
            status => {
                Err(Error::new(format!("the OIDC provider answers {status}: {}", answer.text())))
            }
        }
    }
}
