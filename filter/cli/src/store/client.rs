//! One HTTP exchange: bounded in time and size, never redirected.

use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderMap, Method, Request, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::Fault;

/// How long an exchange may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where systems keep the certificates that they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    /// A header that proves who asks: its name and its value.
    credential: Option<(&'static str, String)>,
    most_bytes: u64,
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Client {
    /// A client for `url`. `bundles` are variables of the environment that name a file of trusted
    /// certificates.
    pub(super) fn new(
        url: &str,
        bundles: &[&str],
        credential: Option<(&'static str, String)>,
        most_bytes: usize,
    ) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| "is not a URL".to_owned())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("names no host")?;
        let is_local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("airflow-envoy/", env!("CARGO_PKG_VERSION")));
        if is_local {
            config = config.proxy(None);
        }
        if uri.scheme_str() == Some("https") {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let tls = TlsConfig::builder()
                .root_certs(trusted(bundles)?)
                .unversioned_rustls_crypto_provider(provider);
            config = config.tls_config(tls.build());
        } else if credential.is_some() && !is_local && bundles.is_empty() {
            return Err("a token is not sent without TLS: use https".to_owned());
        }
        Ok(Self { agent: config.build().into(), credential, most_bytes: most_bytes as u64 })
    }

    /// Sends a request. A server that has trouble, or too much to do, is a fault that passes.
    pub(super) fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Fault> {
        let mut request = Request::builder().method(&method).uri(url);
        let credential = self.credential.iter().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in headers.iter().copied().chain(credential) {
            request = request.header(name, value);
        }
        let broken = |_| Fault::lasting("cannot be put into an HTTP request");
        let answer = if method == Method::PUT {
            self.agent.run(request.body(body).map_err(broken)?)
        } else {
            self.agent.run(request.body(()).map_err(broken)?)
        };
        let mut answer = answer.map_err(|error| told(&error))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(self.most_bytes).read_to_vec();
        let body = body.map_err(|error| told(&error))?;
        match status {
            300..=399 => {
                Err(Fault::lasting(format!("redirects ({status}), which is not followed")))
            }
            401 | 403 => Err(Fault::lasting(format!("{status}: access is denied{}", said(&body)))),
            413 => Err(Fault::lasting("413: the document is too large for this store")),
            429 | 500..=599 => Err(Fault::passing(format!("{status}{}", said(&body)))),
            _ => Ok(Answer { status, headers: answer.headers().clone(), body }),
        }
    }
}

impl Answer {
    /// What it is if it is nothing that was expected.
    pub(super) fn unexpected(&self) -> Fault {
        Fault::lasting(format!("answers {}{}", self.status, said(&self.body)))
    }
}

fn told(error: &ureq::Error) -> Fault {
    let problem = error.to_string();
    match error {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => Fault::passing(problem),
        _ => Fault::lasting(problem),
    }
}

/// The beginning of a body, to be shown.
fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match text.trim() {
        "" => String::new(),
        text => format!(": {}", airflow_envoy_core::quote::quote(text)),
    }
}

/// The certificates of the first file that is named, or else of the system.
fn trusted(variables: &[&str]) -> Result<RootCerts, String> {
    let named = variables.iter().chain(&["SSL_CERT_FILE"]).find_map(std::env::var_os);
    let read = |path: &std::path::Path| std::fs::read(path);
    let (path, pem) = match named {
        Some(path) => {
            let pem = read(path.as_ref());
            let path = path.to_string_lossy().into_owned();
            let pem = pem.map_err(|error| format!("the certificates in {path}: {error}"))?;
            (path, pem)
        }
        None => BUNDLES
            .into_iter()
            .find_map(|path| Some((path.to_owned(), read(path.as_ref()).ok()?)))
            .ok_or("no trusted certificates found: name a file of them in SSL_CERT_FILE")?,
    };
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(format!("the certificates in {path}: {error}")),
        }
    }
    if certificates.is_empty() {
        return Err(format!("there are no certificates in {path}"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}
