//! Signature verification by Envoy's own cryptographic library, many times faster than in wasm.
//!
//! Envoy offers it as the foreign function `verify_signature`. A host need not have it, and need not
//! have it right: each algorithm is used only after it accepted a known signature and refused a
//! changed one; every other algorithm is verified here.

use std::borrow::Cow;

use airflow_envoy_core::jose::{
    Algorithm, Jws, KeySet, PublicKey, RustCrypto, SignatureVerifier, ecdsa_signature_der,
};
use airflow_envoy_core::limits::Limits;
use proxy_wasm::hostcalls;

/// Verifies by the host what the host was found to verify correctly.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostCrypto {
    trusted: Vec<Algorithm>,
}

impl HostCrypto {
    /// Asks the host the known answers.
    pub(crate) fn probe() -> Self {
        Self { trusted: known_answers(&HostOnly) }
    }

    /// The algorithms that the host verifies.
    pub(crate) fn trusted(&self) -> &[Algorithm] {
        &self.trusted
    }
}

impl SignatureVerifier for HostCrypto {
    fn verify(
        &self,
        key: &PublicKey,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let by_host = self.trusted.contains(&algorithm);
        // A host that could not answer is no verdict.
        by_host
            .then(|| ask(key, algorithm, message, signature))
            .flatten()
            .unwrap_or_else(|| RustCrypto.verify(key, algorithm, message, signature))
    }
}

/// The host without a substitute: what it cannot answer is refused.
struct HostOnly;

impl SignatureVerifier for HostOnly {
    fn verify(
        &self,
        key: &PublicKey,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        ask(key, algorithm, message, signature) == Some(true)
    }
}

/// Asks the host; `None` if it cannot answer.
fn ask(key: &PublicKey, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Option<bool> {
    let (hash, signature) = match algorithm {
        Algorithm::Rs256 => ("sha256", Cow::Borrowed(signature)),
        Algorithm::Rs384 => ("sha384", Cow::Borrowed(signature)),
        Algorithm::Rs512 => ("sha512", Cow::Borrowed(signature)),
        Algorithm::Es256 => ("sha256", Cow::Owned(ecdsa_signature_der(signature))),
        Algorithm::Es384 => ("sha384", Cow::Owned(ecdsa_signature_der(signature))),
        Algorithm::Es512 => ("sha512", Cow::Owned(ecdsa_signature_der(signature))),
        // Envoy has no padding parameter and no digest-free signature.
        Algorithm::Ps256 | Algorithm::Ps384 | Algorithm::Ps512 | Algorithm::EdDsa => return None,
    };
    // VerifySignatureArguments: hash_function = 1, public_key = 2 (SubjectPublicKeyInfo), signature = 3, text = 4
    let mut arguments = Vec::with_capacity(message.len().saturating_add(1024));
    let key = key.subject_public_key_info();
    for (field, bytes) in [(1, hash.as_bytes()), (2, &key), (3, &signature), (4, message)] {
        length_delimited(&mut arguments, field, bytes);
    }
    let result = hostcalls::call_foreign_function("verify_signature", Some(&arguments)).ok()?;
    // VerifySignatureResult: result = 1 (bool; false is not encoded), error = 2
    Some(result?.starts_with(&[0x08, 0x01]))
}

/// A field of a protobuf message whose value is bytes.
fn length_delimited(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push((field << 3) | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(bytes);
}

/// The keys of the known answers: those of the published examples and of the test corpus.
const KNOWN_KEYS: &str = include_str!("known_answers/keys.json");

/// A line for each algorithm: its name and a token that must verify.
const KNOWN_TOKENS: &str = include_str!("known_answers/tokens.txt");

/// The algorithms for which `verifier` accepts the known signature and refuses a changed one.
fn known_answers(verifier: &dyn SignatureVerifier) -> Vec<Algorithm> {
    let limits = &Limits::DEFAULT;
    let Ok((keys, _)) = KeySet::parse(KNOWN_KEYS.as_bytes(), limits) else { return Vec::new() };
    let is_given = |algorithm: Algorithm, token: &str| {
        let verifies = |token: &str| {
            Jws::parse(token.as_bytes(), limits.token_bytes, limits)
                .is_ok_and(|jws| jws.verify(&[algorithm], &keys, verifier).is_ok())
        };
        // The last character but one: the last may have unused bits.
        let mut changed = token.to_owned();
        let (last, before) = (changed.pop(), changed.pop());
        changed.push(if before == Some('A') { 'B' } else { 'A' });
        changed.extend(last);
        verifies(token) && !verifies(&changed)
    };
    let known = KNOWN_TOKENS.lines().filter_map(|line| line.split_once(' '));
    known
        .filter_map(|(name, token)| Some((Algorithm::from_name(name)?, token)))
        .filter(|(algorithm, token)| is_given(*algorithm, token))
        .map(|(algorithm, _)| algorithm)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_answers_are_right() {
        let known: Vec<_> = known_answers(&RustCrypto).into_iter().map(Algorithm::name).collect();
        assert_eq!(known, ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]);
    }

    #[test]
    fn lengths_are_written_as_protobuf_varints() {
        let mut message = Vec::new();
        length_delimited(&mut message, 4, &[7; 300]);
        assert_eq!(message[..4], [0x22, 0xac, 0x02, 7]);
        assert_eq!(message.len(), 303);
    }
}
