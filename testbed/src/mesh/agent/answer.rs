//! What Consul says of roots and certificates, and whether it will do.

use std::sync::Arc;
use std::time::SystemTime;

use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::Value;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime as Now};
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use super::Trust;
use crate::client::Answer;
use crate::error::{Context as _, Error, Result};

/// A certificate with its key, as Consul issued it.
pub(super) struct Issued {
    /// The certificate and what leads to the root, PEM.
    pub chain: String,
    /// Its private key, PEM.
    pub key: String,
    /// The service's SPIFFE ID.
    pub spiffe_id: String,
    /// Its serial number, as Consul writes it.
    pub serial: String,
    /// When it expires.
    pub expires: UnixTime,
    /// When another one is to be had.
    pub renew_at: UnixTime,
    /// The root that was the active one then.
    pub root: String,
}

/// What Consul says of its roots.
pub(super) struct Listed {
    /// The index of the answer, 0 if it has none.
    pub index: u64,
    /// The id of the active one.
    pub active: String,
    active_pem: String,
    /// What peers are checked against, PEM.
    pub trusted: Vec<String>,
}

/// The index of an answer (`X-Consul-Index`); 0 if it has none.
pub(super) fn index(answer: &Answer) -> u64 {
    answer.header("x-consul-index").and_then(|index| index.parse().ok()).unwrap_or(0)
}

pub(super) fn text(value: &Value, name: &str) -> Result<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned).context(name)
}

fn time(value: &Value, name: &str) -> Result<UnixTime> {
    UnixTime::from_rfc3339(&text(value, name)?).context(name)
}

pub(super) fn listed(answer: &Answer, trust: Trust) -> Result<Listed> {
    let body = answer.json();
    let active = text(&body, "ActiveRootID")?;
    let (mut active_pem, mut trusted) = (None, Vec::new());
    for root in body.get("Roots").and_then(Value::as_array).into_iter().flatten() {
        let pem = text(root, "RootCert")?.trim().to_owned() + "\n";
        certificates(&pem).context("RootCert")?;
        let is_active = text(root, "ID")? == active;
        if is_active || trust == Trust::Listed {
            trusted.push(pem.clone());
        }
        if is_active {
            active_pem = Some(pem);
        }
    }
    let active_pem = active_pem.context("the active one")?;
    Ok(Listed { index: index(answer), active, active_pem, trusted })
}

/// The certificate in Consul's answer, if it is one of `service` that the active root signed and that is good now.
pub(super) fn read_leaf(answer: &Answer, service: &str, listed: &Listed) -> Result<Issued> {
    let body = answer.json();
    let leaf = Issued {
        chain: text(&body, "CertPEM")?.trim().to_owned() + "\n",
        key: text(&body, "PrivateKeyPEM")?.trim().to_owned() + "\n",
        spiffe_id: text(&body, "ServiceURI")?,
        serial: text(&body, "SerialNumber")?,
        expires: time(&body, "ValidBefore")?,
        renew_at: renewal(time(&body, "ValidAfter")?, time(&body, "ValidBefore")?, now()),
        root: listed.active.clone(),
    };
    if text(&body, "Service")? != service {
        return Err(Error::new("it is another service's"));
    }
    PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())
        .map_err(|_| Error::new("PrivateKeyPEM: no key"))?;
    let chain = certificates(&leaf.chain).context("CertPEM")?;
    let own = chain.first().context("CertPEM")?;
    let mut roots = RootCertStore::empty();
    for root in certificates(&listed.active_pem)? {
        roots.add(root).context("the active root")?;
    }
    // Without the intermediates: what they lead to may be a former root.
    WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::new(ring::default_provider()))
        .build()
        .context("the active root")?
        .verify_client_cert(own, &[], Now::now())
        .context("not one that the active root signed and that is good now")?;
    Ok(leaf)
}

/// When a certificate that is good from `since` until `until` is to be renewed. Consul dates it back by a minute.
pub(super) fn renewal(since: UnixTime, until: UnixTime, now: UnixTime) -> UnixTime {
    let issued = since.plus(Span::from_secs(60)).min(now);
    let lifetime = until.since(issued).as_millis();
    issued.plus(Span::from_millis(lifetime / 10 * 6))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.context("reading PEM")?;
    if all.is_empty() { Err(Error::new("no certificate")) } else { Ok(all) }
}

pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
