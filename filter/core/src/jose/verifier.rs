//! Signature verification as an argument, and the default one in pure Rust.

use jwt_compact::alg::{Es256, Rsa};
use jwt_compact::{Algorithm as Scheme, AlgorithmSignature as _};
use p521::ecdsa::signature::Verifier as _;
use p521::ecdsa::signature::hazmat::PrehashVerifier as _;

use super::algorithm::Algorithm;
use super::key::{PublicKey, VerifyingKey};
use crate::pace::{HASHED_AT_ONCE, Pace, sha256};

/// Bytes that SHA-512 takes in about one unit.
const HASHED_PER_UNIT: usize = 250;

/// Verifies signatures. An argument of the core, so that a host may do it natively.
pub trait SignatureVerifier {
    /// Whether `signature` over `message` was made with the private half of `key` by `algorithm`.
    ///
    /// The core asks only when `key` [fits](PublicKey::fits) `algorithm` and the signature has
    /// [the one length](PublicKey::signature_length) that it can have; one of RSA is below the modulus.
    fn verify(
        &self,
        key: &PublicKey,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool;

    /// The algorithms that a host verifies natively; the others are verified in the filter itself.
    fn by_host(&self) -> &[Algorithm] {
        &[]
    }
}

/// Verification in pure Rust: RSA and P-256 by the schemes of `jwt-compact`, the others by the
/// crates beneath it, because a scheme of `jwt-compact` must also be able to sign (P-521 would need
/// randomness) and its Ed25519 is the lax one.
#[derive(Debug, Clone, Copy, Default)]
pub struct RustCrypto;

impl SignatureVerifier for RustCrypto {
    fn verify(
        &self,
        key: &PublicKey,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        match (key.verifying_key(), algorithm) {
            (VerifyingKey::Rsa(key), Algorithm::Rs256) => {
                by_scheme(&Rsa::rs256(), key, message, signature)
            }
            (VerifyingKey::Rsa(key), Algorithm::Rs384) => {
                by_scheme(&Rsa::rs384(), key, message, signature)
            }
            (VerifyingKey::Rsa(key), Algorithm::Rs512) => {
                by_scheme(&Rsa::rs512(), key, message, signature)
            }
            (VerifyingKey::Rsa(key), Algorithm::Ps256) => {
                by_scheme(&Rsa::ps256(), key, message, signature)
            }
            (VerifyingKey::Rsa(key), Algorithm::Ps384) => {
                by_scheme(&Rsa::ps384(), key, message, signature)
            }
            (VerifyingKey::Rsa(key), Algorithm::Ps512) => {
                by_scheme(&Rsa::ps512(), key, message, signature)
            }
            (VerifyingKey::P256(key), Algorithm::Es256) => {
                by_scheme(&Es256, key, message, signature)
            }
            (VerifyingKey::P384(key), Algorithm::Es384) => {
                p384::ecdsa::Signature::from_slice(signature)
                    .is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
            (VerifyingKey::P521(key), Algorithm::Es512) => {
                p521::ecdsa::Signature::from_slice(signature)
                    .is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
            // Strict: small-order `R` and keys are refused, so that no signature fits several
            // messages (RFC 8032 §5.1.7 would let them pass).
            (VerifyingKey::Ed25519(key), Algorithm::EdDsa) => {
                ed25519_dalek::Signature::from_slice(signature)
                    .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok())
            }
            _ => false,
        }
    }
}

impl RustCrypto {
    /// As [`SignatureVerifier::verify`], at a pace: for what may be large.
    pub async fn verify_at(
        self,
        key: &PublicKey,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
        pace: &Pace,
    ) -> bool {
        match (key.verifying_key(), algorithm) {
            (VerifyingKey::P256(key), Algorithm::Es256) => {
                let Ok(signature) = p256::ecdsa::Signature::from_slice(signature) else {
                    return false;
                };
                key.verify_prehash(&sha256(message, pace).await, &signature).is_ok()
            }
            (VerifyingKey::Ed25519(key), Algorithm::EdDsa) => {
                let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else {
                    return false;
                };
                // What makes `verify_strict` strict: neither point is of a small order.
                let is_strong = |point: &ed25519_dalek::VerifyingKey| !point.is_weak();
                let r = ed25519_dalek::VerifyingKey::from_bytes(signature.r_bytes());
                let Ok(mut verifier) = key.verify_stream(&signature) else { return false };
                if !is_strong(key) || !r.as_ref().is_ok_and(is_strong) {
                    return false;
                }
                for part in message.chunks(HASHED_AT_ONCE) {
                    verifier.update(part);
                    pace.spend(1 + part.len() / HASHED_PER_UNIT).await;
                }
                verifier.finalize_and_verify().is_ok()
            }
            // By the others nothing large is signed.
            _ => self.verify(key, algorithm, message, signature),
        }
    }
}

fn by_scheme<S: Scheme>(
    scheme: &S,
    key: &S::VerifyingKey,
    message: &[u8],
    signature: &[u8],
) -> bool {
    S::Signature::try_from_slice(signature)
        .is_ok_and(|signature| scheme.verify_signature(&signature, key, message))
}
