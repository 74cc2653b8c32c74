//! The OIDC provider: a real one (`oidc-provider`, on Node), as a child process.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use crate::certificates::Certificate;
use crate::client::Call;
use crate::error::{Context as _, Error, Result};
use crate::identity::AUDIENCE;
use crate::process::{Process, find};

/// Its host, as `envoy.yaml` and its certificate know it.
pub const HOST: &str = "idp.internal";
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

/// Starts the provider, with its files in `directory`.
///
/// # Errors
/// If Node or the provider's packages are missing, or it does not come up.
pub fn start(
    directory: &Path,
    log: &Path,
    certificate: &Certificate,
    secret: &str,
) -> Result<(Process, SocketAddr)> {
    let node = find("node", "NODE", &[], "install Node.js 20 or newer")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc");
    if !folder.join("node_modules").is_dir() {
        return Err(Error::new(
            "the OIDC provider's packages are missing: run `scripts/testbed install`",
        ));
    }
    let (certificate_file, key_file) = (directory.join("idp.crt"), directory.join("idp.key"));
    fs::write(&certificate_file, &certificate.certificate).context(certificate_file.display())?;
    crate::write_private(&key_file, &certificate.key)?;
    let mut process = Process::start("the OIDC provider", &node, log, |command| {
        command
            .arg("provider.mjs")
            .current_dir(&folder)
            .env("NODE_ENV", "production")
            .env("OIDC_ISSUER", format!("https://{HOST}"))
            .env("OIDC_CLIENT_ID", CLIENT)
            .env("OIDC_CLIENT_SECRET", secret)
            .env("OIDC_CERTIFICATE", &certificate_file)
            .env("OIDC_KEY", &key_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
    })?;
    let line = process.first_line(Duration::from_secs(30))?;
    let said: Value = serde_json::from_str(&line).unwrap_or_default();
    let port = said.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let port = port.ok_or_else(|| process.failed("did not tell its port"))?;
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
        let answer = Call::post(HOST, "/token", form)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", format!("Basic {credentials}"))
            .send(self.address, Some((&self.connector, HOST)))
            .await?;
        let token = answer.json().get("access_token").and_then(Value::as_str).map(str::to_owned);
        token.ok_or_else(|| {
            Error::new(format!("no token, but {}: {}", answer.status, answer.text()))
        })
    }

    /// Makes new keys, which sign from now on; keeps the old ones in the key set, or drops them.
    ///
    /// # Errors
    /// If the provider does not answer.
    pub async fn rotate(&self, drop: bool) -> Result<()> {
        let answer = Call::post(HOST, "/_test/rotate", json!({ "drop": drop }).to_string())
            .send(self.address, Some((&self.connector, HOST)))
            .await?;
        match answer.status {
            200 => Ok(()),
            status => Err(Error::new(format!("rotating: {status} {}", answer.text()))),
        }
    }
}
