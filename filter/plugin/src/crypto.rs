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

use crate::abi;

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

    fn by_host(&self) -> &[Algorithm] {
        &self.trusted
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
    let is_ecdsa = matches!(algorithm, Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512);
    let hash: &[u8] = match algorithm {
        Algorithm::Rs256 | Algorithm::Es256 => b"sha256",
        Algorithm::Rs384 | Algorithm::Es384 => b"sha384",
        Algorithm::Rs512 | Algorithm::Es512 => b"sha512",
        // Envoy has no padding parameter and no digest-free signature.
        Algorithm::Ps256 | Algorithm::Ps384 | Algorithm::Ps512 | Algorithm::EdDsa => return None,
    };
    let signature = match is_ecdsa {
        true => Cow::Owned(ecdsa_signature_der(signature)),
        false => Cow::Borrowed(signature),
    };
    let arguments = message_of([hash, key.subject_public_key_info(), &signature, message]);
    let result = abi::call_foreign_function("verify_signature", &arguments)?;
    // VerifySignatureResult: result = 1 (bool; false is not encoded), error = 2
    Some(result.starts_with(&[0x08, 0x01]))
}

/// `VerifySignatureArguments`, in one allocation: hash_function = 1, public_key = 2 (SubjectPublicKeyInfo),
/// signature = 3, text = 4.
fn message_of(fields: [&[u8]; 4]) -> Vec<u8> {
    /// A tag and a length: one byte, and at most as many as 32 bits make by seven.
    const HEAD: usize = 6;
    let bytes = fields.iter().fold(0_usize, |bytes, field| bytes.saturating_add(field.len()));
    let mut message = Vec::with_capacity(bytes.saturating_add(fields.len() * HEAD));
    for (number, field) in (1..).zip(fields) {
        length_delimited(&mut message, number, field);
    }
    message
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

    #[test]
    fn the_arguments_are_allocated_once() {
        let (key, signature, text) = ([1; 294], [2; 256], [3; 70_000]);
        let message = message_of([b"sha256", &key, &signature, &text]);
        assert_eq!(message[..10], [0x0a, 6, b's', b'h', b'a', b'2', b'5', b'6', 0x12, 0xa6]);
        assert_eq!(message.len(), 8 + (3 + 294) + (3 + 256) + (4 + 70_000));
        // A vector that had to grow would have grown to twice its size.
        assert!(message.capacity() < message.len() + 24, "{}", message.capacity());
    }
}
