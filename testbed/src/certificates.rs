//! A certificate authority that lives as long as one run: nothing to install, nothing to expire, nothing to leak.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName,
};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::{Context as _, Result};

/// The authority of one run.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A server's certificate and key.
pub struct Certificate {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    chain: Vec<CertificateDer<'static>>,
    key_der: PrivatePkcs8KeyDer<'static>,
}

impl Authority {
    /// A new authority with a new key.
    ///
    /// # Errors
    /// If the key cannot be made.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate().context("making the authority's key")?;
        let mut parameters = CertificateParams::default();
        parameters
            .distinguished_name
            .push(DnType::CommonName, "Airflow Envoy testbed, this run only");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key).context("signing the authority")?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(parameters, key),
        })
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for the server `name`, which may also be called by the address where everything here listens.
    ///
    /// # Errors
    /// If `name` is not a DNS name.
    pub fn issue(&self, name: &str) -> Result<Certificate> {
        let key = KeyPair::generate().context("making a server's key")?;
        let mut parameters =
            CertificateParams::new([name, "127.0.0.1"].map(str::to_owned)).context(name)?;
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &self.issuer).context(name)?;
        Ok(Certificate {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            chain: vec![certificate.der().clone()],
            key_der: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// What a client needs that trusts this authority and nobody else.
    ///
    /// # Errors
    /// If the authority's own certificate is unusable.
    pub fn connector(&self) -> Result<TlsConnector> {
        connector(self.certificate.clone())
    }
}

impl Certificate {
    /// What a server needs that shows this certificate.
    ///
    /// # Errors
    /// If certificate and key do not fit.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let key = PrivateKeyDer::Pkcs8(self.key_der.clone_key());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .context("using a certificate")?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// What a client needs that trusts `authority` and nobody else.
///
/// # Errors
/// If the certificate is unusable.
pub fn connector(authority: CertificateDer<'static>) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(authority).context("trusting the authority")?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// `name` as TLS wants it.
///
/// # Errors
/// If it is not a DNS name.
pub fn server_name(name: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).context(name)
}
