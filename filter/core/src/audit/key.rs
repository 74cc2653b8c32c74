//! The key that signs the trail: a private JWK of Ed25519 (RFC 8037).

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

use crate::jose::{PublicKey, base64url};
use crate::json;
use crate::limits::Limits;
use crate::quote::quote;

/// A private key and the name of its public half.
#[derive(Clone)]
pub struct Signer {
    key: SigningKey,
    id: String,
}

/// Why a text is no key to sign with. It never quotes the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyProblem(String);

impl Signer {
    /// Reads a private JWK: `{"kty": "OKP", "crv": "Ed25519", "d": …, "x": …}` (RFC 8037 §2). Without
    /// a `kid` the key is called by its thumbprint (RFC 7638).
    ///
    /// # Errors
    /// What is wrong with it, without quoting it.
    pub fn from_jwk(text: &[u8]) -> Result<Self, KeyProblem> {
        let limits = &Limits::DEFAULT;
        let problem = |problem: &str| KeyProblem(problem.to_owned());
        let jwk = json::parse(text, limits.json_depth)
            .map_err(|error| KeyProblem(format!("is {error}")))?;
        let member = |name: &str| jwk.get(name).and_then(Value::as_str);
        if member("kty") != Some("OKP") || member("crv") != Some("Ed25519") {
            return Err(problem("is not a key of `kty` `OKP` and `crv` `Ed25519`"));
        }
        let seed = member("d").and_then(|d| base64url::decode(d.as_bytes()));
        let seed: [u8; 32] = seed
            .and_then(|seed| seed.try_into().ok())
            .ok_or_else(|| problem("has no private part `d` of 32 octets in base64url"))?;
        let key = SigningKey::from_bytes(&seed);
        let x = base64url::encode(key.verifying_key().as_bytes());
        if member("x") != Some(x.as_str()) {
            return Err(problem("has a public part `x` that does not belong to its `d`"));
        }
        let mut public = json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
        for name in ["kid", "alg", "use"] {
            if let (Some(value), Some(public)) = (jwk.get(name), public.as_object_mut()) {
                public.insert(name.to_owned(), value.clone());
            }
        }
        let public = PublicKey::from_jwk(&public, limits)
            .map_err(|fault| KeyProblem(format!("cannot be used: {fault}")))?;
        public
            .fits(crate::jose::Algorithm::EdDsa)
            .map_err(|misfit| KeyProblem(format!("cannot be used: {misfit}")))?;
        let id = public.id().unwrap_or(public.thumbprint()).to_owned();
        if id.chars().any(char::is_control) {
            let shown = quote(&id);
            return Err(KeyProblem(format!("has a `kid` {shown} with a control character")));
        }
        Ok(Self { key, id })
    }

    /// `kid`, or the thumbprint (RFC 7638).
    pub fn key_id(&self) -> &str {
        &self.id
    }

    /// The signature (RFC 8032 §5.1.6), base64url.
    pub(super) fn sign(&self, message: &[u8]) -> String {
        base64url::encode(&self.key.sign(message).to_bytes())
    }
}

/// Without the key.
impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Signer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for KeyProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for KeyProblem {}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A private JWK, made from a seed when the test runs.
    pub fn jwk(seed: u8) -> Value {
        let key = SigningKey::from_bytes(&[seed; 32]);
        json!({
            "kty": "OKP",
            "crv": "Ed25519",
            "d": base64url::encode(&key.to_bytes()),
            "x": base64url::encode(key.verifying_key().as_bytes()),
        })
    }

    pub fn public(seed: u8) -> ed25519_dalek::VerifyingKey {
        SigningKey::from_bytes(&[seed; 32]).verifying_key()
    }

    #[test]
    fn a_key_is_called_by_its_kid_or_by_its_thumbprint() {
        let mut jwk = jwk(7);
        let public = json!({ "kty": "OKP", "crv": "Ed25519", "x": jwk["x"] });
        let thumbprint =
            PublicKey::from_jwk(&public, &Limits::DEFAULT).unwrap().thumbprint().to_owned();
        assert_eq!(Signer::from_jwk(jwk.to_string().as_bytes()).unwrap().key_id(), thumbprint);
        jwk["kid"] = "audit-1".into();
        let signer = Signer::from_jwk(jwk.to_string().as_bytes()).unwrap();
        assert_eq!(signer.key_id(), "audit-1");
        assert_eq!(format!("{signer:?}"), "Signer { id: \"audit-1\", .. }");
    }

    #[test]
    fn what_is_no_key_to_sign_with_is_said_without_the_key() {
        let other = jwk(8)["x"].clone();
        for (name, value, said) in [
            ("kty", json!("EC"), "`kty`"),
            ("crv", json!("X25519"), "`crv`"),
            ("d", Value::Null, "private part `d`"),
            ("d", json!("AAAA"), "private part `d`"),
            ("x", Value::Null, "`x`"),
            ("x", other, "does not belong"),
            ("kid", json!(7), "`kid`"),
            ("use", json!("enc"), "`use`"),
            ("alg", json!("ES256"), "the key is bound to"),
            ("kid", json!("a\nb"), "control character"),
        ] {
            let mut jwk = jwk(7);
            let secret = jwk["d"].as_str().unwrap().to_owned();
            jwk[name] = value;
            let problem = Signer::from_jwk(jwk.to_string().as_bytes()).unwrap_err().to_string();
            assert!(problem.contains(said), "{name}: {problem}");
            assert!(!problem.contains(&secret));
        }
        assert!(Signer::from_jwk(b"{").is_err());
    }
}
