//! A caller inside the mesh: it shows a service's leaf certificate and knows the server by its SPIFFE ID.
//!
//! Names of hosts mean nothing here: a leaf of Consul's has one name, a URI.

use std::sync::Arc;

use serde_json::Value;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{
    Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use webpki::EndEntityCert;

use crate::consul::Client;
use crate::error::{Context as _, Error, Result};

/// A leaf certificate and its key.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate and what leads to the root, PEM.
    pub certificate: String,
    /// The private key, PEM.
    pub key: String,
    /// The SPIFFE ID that it is for.
    pub uri: String,
    /// When it ends, as Consul writes it (RFC 3339).
    pub valid_before: String,
}

impl Leaf {
    /// A new leaf of `service`, signed by the present root.
    ///
    /// Consul keeps a leaf for each token that asks for one, and may show it when its root is gone. Where no access control
    /// cares for tokens, each question has one of its own.
    ///
    /// # Errors
    /// If Consul gives none.
    pub async fn issue(consul: &Client, service: &str) -> Result<Self> {
        let path = format!("/v1/agent/connect/ca/leaf/{service}");
        let leaf = consul.fresh().ask("GET", &path, String::new()).await?;
        let text = |member: &str| {
            leaf.get(member).and_then(Value::as_str).map(str::to_owned).context(member)
        };
        Ok(Self {
            certificate: text("CertPEM")?,
            key: text("PrivateKeyPEM")?,
            uri: text("ServiceURI")?,
            valid_before: text("ValidBefore")?,
        })
    }
}

/// The certificates that sign leafs, as far as Consul still lists them; PEM.
///
/// # Errors
/// If Consul does not say.
pub async fn roots(consul: &Client) -> Result<String> {
    let said = consul.ask("GET", "/v1/connect/ca/roots", String::new()).await?;
    let roots = said.get("Roots").and_then(Value::as_array).context("the roots")?;
    Ok(roots.iter().filter_map(|root| root.get("RootCert")?.as_str()).collect())
}

/// The SPIFFE ID of `service`, in the form of Consul's.
///
/// # Errors
/// If Consul does not say what its trust domain is.
pub async fn spiffe_id(consul: &Client, service: &str) -> Result<String> {
    let said = consul.ask("GET", "/v1/connect/ca/roots", String::new()).await?;
    let domain = said.get("TrustDomain").and_then(Value::as_str).context("a trust domain")?;
    Ok(format!("spiffe://{domain}/ns/default/dc/dc1/svc/{service}"))
}

/// What a caller needs that shows `leaf`, if any, and takes only `server`, a SPIFFE ID, for the server.
///
/// # Errors
/// If a certificate or the key is unusable.
pub fn connector(leaf: Option<&Leaf>, roots: &str, server: &str) -> Result<TlsConnector> {
    configuration(leaf, roots, server)
        .map(|configuration| TlsConnector::from(Arc::new(configuration)))
}

/// The same, to be changed. It resumes no session.
///
/// # Errors
/// If a certificate or the key is unusable.
pub fn configuration(leaf: Option<&Leaf>, roots: &str, server: &str) -> Result<ClientConfig> {
    let mut trusted = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        trusted.add(root.context("reading a root")?).context("trusting a root")?;
    }
    let provider = Arc::new(ring::default_provider());
    let trusted = Arc::new(trusted);
    let signatures =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&trusted), Arc::clone(&provider));
    let verifier = Verifier {
        roots: trusted,
        server: server.to_owned(),
        signatures: signatures.build().context("the verifier of signatures")?,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut configuration = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let chain = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes());
            let chain = chain.collect::<Result<Vec<_>, _>>().context("reading a leaf")?;
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes());
            let key = key.map_err(|_| Error::new("the leaf's key is unusable"))?;
            builder.with_client_auth_cert(chain, key).context("using a leaf")?
        }
    };
    configuration.resumption = Resumption::disabled();
    Ok(configuration)
}

/// Knows a server by its SPIFFE ID: the only URI among its names (X.509-SVID §2).
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    server: String,
    signatures: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let certificate = EndEntityCert::try_from(end_entity)
            .map_err(|_| TlsError::from(CertificateError::BadEncoding))?;
        let mut names = certificate.valid_uri_names();
        match (names.next(), names.next()) {
            (Some(name), None) if name == self.server => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signatures.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signatures.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}
