//! An authority of the mesh whose key is ours: what Consul is told to sign with, and what signs what Consul never would.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::error::{Context as _, Result};
use crate::mesh::client::Leaf;

/// A root of the mesh, with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The root's certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
}

/// What is said in a certificate.
#[derive(Debug, Clone)]
pub struct Wanted<'w> {
    /// The URIs that are the subject's names.
    pub uris: &'w [&'w str],
    /// From when it is good.
    pub since: SystemTime,
    /// Until when.
    pub until: SystemTime,
    /// What it may be used for.
    pub usage: ExtendedKeyUsagePurpose,
}

impl Authority {
    /// A new one called `name`. Two of one name would be taken for each other.
    ///
    /// # Errors
    /// If its key cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("making the authority's key")?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        // Unconstrained: Consul lets a root sign the next one, too.
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = parameters.self_signed(&key).context("signing the authority")?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            issuer: Issuer::new(parameters, key),
        })
    }

    /// A certificate that says what is wanted, good or not.
    ///
    /// # Errors
    /// If a URI cannot stand in a certificate.
    pub fn sign(&self, wanted: &Wanted<'_>) -> Result<Leaf> {
        let key = KeyPair::generate().context("making a key")?;
        let mut parameters = CertificateParams::default();
        for uri in wanted.uris {
            parameters.subject_alt_names.push(SanType::URI((*uri).try_into().context(uri)?));
        }
        parameters.not_before = wanted.since.into();
        parameters.not_after = wanted.until.into();
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![wanted.usage.clone()];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&key, &self.issuer).context("signing")?;
        Ok(Leaf {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            uri: wanted.uris.first().copied().unwrap_or_default().to_owned(),
            valid_before: String::new(),
        })
    }
}
