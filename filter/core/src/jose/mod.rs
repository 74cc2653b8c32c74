//! JOSE: compact signed messages (JWS, RFC 7515), algorithms (RFC 7518, RFC 8037) and key sets
//! (JWK, RFC 7517), as strict as RFC 8725 asks.
//!
//! What it is not: it knows nothing of claims, issuers or time ([`crate::credential`]), signs
//! nothing, decrypts nothing, and follows no `jku`, `jwk`, `x5u` or `x5c`: keys come from the
//! operator's key sets only. Symmetric algorithms and `none` do not exist here.

mod algorithm;
pub(crate) mod base64url;
mod compact;
mod der;
mod key;
mod key_set;
mod verifier;

pub use algorithm::Algorithm;
pub(crate) use compact::bare_type;
pub use compact::{Header, Jws, LastHeader, ParseError, VerifyError};
pub use der::ecdsa_signature_der;
pub use key::{Curve, KeyFault, Material, Misfit, PublicKey};
pub use key_set::{KeySet, KeySetError, SkippedKey};
pub use verifier::{RustCrypto, SignatureVerifier};
