//! Signed policies: whose signature a document needs, and that no older one comes back.
//!
//! A signed policy is a compact JWS (RFC 7515 §7.1) of the type `airflow-policy+jws` (RFC 8725 §3.11: a
//! key that also signs other things cannot be made to sign a policy by accident), by EdDSA (Ed25519,
//! RFC 8037) or ES256. Its payload is the document, which must have a `revision`: a signature says who
//! wrote a policy, not that it is the last one that was written, so an older one is refused
//! ([`Accepted::follows`]).
//!
//! What it is not: it remembers nothing. Whoever uses it keeps the [`Accepted`] of the last good
//! document of each source, also while that document is not in use.

use std::borrow::Cow;
use std::fmt;

use super::Policy;
use crate::document::{Node, Report};
use crate::jose::{Algorithm, Jws, KeySet, PublicKey, base64url};
use crate::limits::Limits;
use crate::pace::{Pace, at_once, sha256};
use crate::quote::quote;

/// The `typ` of a signed policy.
const TYPE: &str = "airflow-policy+jws";

/// The algorithms that may sign one, or a grant.
pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::EdDsa, Algorithm::Es256];

/// Who may sign policies, and whether somebody must. The default trusts nobody and asks for no
/// signature; it refuses a signed document all the same, because nobody can verify it.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    keys: KeySet,
    required: bool,
}

/// A document that may be read as a policy.
#[derive(Debug)]
pub struct Opened<'d> {
    /// The policy document: the payload, or the document as it was if it was not signed.
    pub document: Cow<'d, [u8]>,
    /// Who signed it; `None` if nobody did and nobody had to.
    pub signer: Option<Signer>,
}

/// The key by which a policy was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Its `kid` (RFC 7517 §4.5).
    pub key_id: Option<String>,
    /// Its SHA-256 thumbprint (RFC 7638), base64url.
    pub thumbprint: String,
}

/// A policy that may come into use, and what is to be remembered of it.
#[derive(Debug)]
pub struct Admitted {
    /// The policy.
    pub policy: Policy,
    /// Who signed it; `None` if nobody did and nobody had to.
    pub signer: Option<Signer>,
    /// What the next signed document has to follow: this one or, if it is not signed, what was accepted
    /// before it.
    pub accepted: Option<Accepted>,
}

/// What is remembered of a signed policy that was accepted, so that no older one replaces it.
///
/// As text, for a record that outlives a worker, it is the revision, a space and the digest in
/// base64url; [`Accepted::from_text`] reads that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The document's `revision`.
    pub revision: u64,
    /// The SHA-256 of the opened document.
    pub digest: [u8; 32],
}

impl Trust {
    /// Reads `policy.trust` of the configuration: `keys`, a list of public JWKs (RFC 7517) for EdDSA
    /// or ES256, and `required`, true unless said otherwise. One unusable key is a fault, because
    /// these are the operator's own.
    pub fn read(node: &Node<'_>, report: &mut Report, limits: &Limits) -> Option<Self> {
        let mut object = node.object(report)?;
        let list = object.required(report, "keys").and_then(|list| list.nonempty_array(report));
        let required = match object.optional("required") {
            Some(node) => node.boolean(report),
            None => Some(true),
        };
        object.finish(report);
        let keys = read_signers(node, &list?, limits, report)?;
        Some(Self { keys, required: required? })
    }

    /// Differs from that of another trust that would not accept the same documents.
    pub fn id(&self) -> String {
        // A thumbprint leaves the `kid` out, by which a signature finds its key.
        let names = |key: &'_ PublicKey| format!(" {} {:?}", key.thumbprint(), key.id());
        let required = if self.required { "required" } else { "" }.to_owned();
        std::iter::once(required).chain(self.keys.keys().iter().map(names)).collect()
    }

    /// Bytes that a document may have so that its policy has [`Limits::policy_bytes`]: base64url makes
    /// four of three, and there are a header and a signature.
    pub fn document_bytes(&self, limits: &Limits) -> usize {
        if self.keys.is_empty() {
            return limits.policy_bytes;
        }
        let encoded = limits.policy_bytes.div_ceil(3).saturating_mul(4);
        encoded.saturating_add(limits.token_bytes)
    }

    /// The policy document that `document` is or carries, if it may be used.
    ///
    /// What begins with `{` is not signed. Everything else must be signed, and well, also if no
    /// signature is required; whitespace around it is ignored.
    ///
    /// # Errors
    /// Why it may not be used.
    pub fn open<'d>(&self, document: &'d [u8], limits: &Limits) -> Result<Opened<'d>, String> {
        at_once(self.open_at(document, limits, &Pace::unhurried()))
    }

    async fn open_at<'d>(
        &self,
        document: &'d [u8],
        limits: &Limits,
        pace: &Pace,
    ) -> Result<Opened<'d>, String> {
        let text = document.trim_ascii();
        if text.first() == Some(&b'{') {
            if self.required {
                return Err("the policy is not signed, and must be".to_owned());
            }
            return Ok(Opened { document: Cow::Borrowed(document), signer: None });
        }
        // What costs the most to look at is bounded before anybody vouches for it.
        let most = limits.token_bytes;
        let beginning = text.get(..=most).unwrap_or_default();
        if text.len() > most && !beginning.contains(&b'.') {
            return Err(format!("neither a JSON object nor a header of at most {most} bytes"));
        }
        let jws = Jws::parse_at(text, self.document_bytes(limits), limits, pace)
            .await
            .map_err(|error| format!("neither a JSON object nor a signed policy: {error}"))?;
        if self.keys.is_empty() {
            let problem = "the policy is signed, but without `policy.trust` nobody can verify it";
            return Err(problem.to_owned());
        }
        if !jws.header().is_of_type(TYPE) {
            let found = jws.header().token_type.as_deref();
            let found = found.map_or_else(|| "missing".to_owned(), quote);
            return Err(format!("signed policy: `typ` is {found}, accepted: `{TYPE}`"));
        }
        let (_, key) = jws
            .verify_at(&ALGORITHMS, &self.keys, pace)
            .await
            .map_err(|error| format!("signed policy: {error}"))?;
        let payload = jws.into_payload();
        let (bytes, most) = (payload.len(), limits.policy_bytes);
        if bytes > most {
            return Err(format!("signed policy: {bytes} bytes are more than {most}"));
        }
        Ok(Opened { document: Cow::Owned(payload), signer: Some(Signer::from(key)) })
    }

    /// The policy that `document` is or carries, if it may come into use after what was accepted
    /// `last` from the same source: [opened](Self::open), read, and [in order](Accepted::follows).
    ///
    /// # Errors
    /// Why not. What is in use stays in use.
    pub fn admit(
        &self,
        document: &[u8],
        last: Option<&Accepted>,
        limits: &Limits,
    ) -> Result<Admitted, String> {
        at_once(self.load(document, last, limits, &Pace::unhurried()))
    }

    /// The same at a pace.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub async fn load(
        &self,
        document: &[u8],
        last: Option<&Accepted>,
        limits: &Limits,
        pace: &Pace,
    ) -> Result<Admitted, String> {
        let Opened { document, signer } = self.open_at(document, limits, pace).await?;
        let policy = Policy::load(&document, limits, pace).await;
        let policy = policy.map_err(|faults| faults.to_string())?;
        let accepted = match signer {
            None => last.copied(),
            Some(_) => {
                let revision = policy.revision();
                let revision = revision.ok_or("a signed policy needs a `revision`")?;
                let accepted = Accepted { revision, digest: sha256(&document, pace).await };
                accepted.follows(last)?;
                Some(accepted)
            }
        };
        Ok(Admitted { policy, signer, accepted })
    }
}

impl From<&PublicKey> for Signer {
    fn from(key: &PublicKey) -> Self {
        Self { key_id: key.id().map(str::to_owned), thumbprint: key.thumbprint().to_owned() }
    }
}

/// The `kid`, or else the thumbprint.
impl fmt::Display for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&quote(self.key_id.as_ref().unwrap_or(&self.thumbprint)))
    }
}

impl Accepted {
    /// Whether it may come into use after `last`: its revision is greater, or it is the very same
    /// document.
    ///
    /// # Errors
    /// Both revisions.
    pub fn follows(&self, last: Option<&Self>) -> Result<(), String> {
        let Some(last) = last.filter(|last| *last != self) else { return Ok(()) };
        let (new, old) = (self.revision, last.revision);
        match new.cmp(&old) {
            std::cmp::Ordering::Greater => Ok(()),
            std::cmp::Ordering::Equal => Err(format!(
                "revision {new} is another document than the accepted revision {old}: a change \
                 needs a greater one"
            )),
            std::cmp::Ordering::Less => {
                Err(format!("revision {new} is older than revision {old}, which was accepted"))
            }
        }
    }

    /// Reads what [`fmt::Display`] writes; `None` if it is anything else.
    pub fn from_text(text: &str) -> Option<Self> {
        let (revision, digest) = text.split_once(' ')?;
        let digest = base64url::decode(digest.as_bytes())?;
        let accepted = Self { revision: revision.parse().ok()?, digest: digest.try_into().ok()? };
        (accepted.to_string() == text).then_some(accepted)
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.revision, base64url::encode(&self.digest))
    }
}

/// Reads `list`, the `keys` of the object at `node`: public JWKs (RFC 7517) for EdDSA or ES256. One unusable
/// key is a fault.
pub(super) fn read_signers(
    node: &Node<'_>,
    list: &[Node<'_>],
    limits: &Limits,
    report: &mut Report,
) -> Option<KeySet> {
    let (keys, skipped) = KeySet::from_value(node.value, limits).ok()?;
    for key in &skipped {
        if let Some(node) = list.get(key.index) {
            node.fault(report, key.fault.to_string());
        }
    }
    // With none skipped the keys are those of the list, one by one.
    for (node, key) in list.iter().zip(keys.keys()).filter(|_| skipped.is_empty()) {
        if !may_sign(key) {
            node.fault(report, "fits neither `EdDSA` nor `ES256`");
        }
    }
    Some(keys)
}

fn may_sign(key: &PublicKey) -> bool {
    ALGORITHMS.into_iter().any(|algorithm| key.fits(algorithm).is_ok())
}
