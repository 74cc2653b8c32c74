//! Signers for every algorithm. Keys are made at run time from fixed seeds; the RSA key is the one
//! that RFC 7520 §3.4 publishes.

use std::sync::OnceLock;

use airflow_envoy_core::jose::{Algorithm, KeySet};
use airflow_envoy_core::limits::Limits;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jwt_compact::alg::{Ed25519, Es256 as EcdsaP256, Hs256, Hs256Key, Rsa};
use jwt_compact::{Algorithm as _, AlgorithmSignature as _};
use rsa::{BigUint, RsaPrivateKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub fn encode(octets: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

pub fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

/// The public JWK, with the `kid` `key`, for `algorithm`.
pub fn jwk(algorithm: Algorithm) -> Value {
    use Algorithm::*;
    let mut jwk = match algorithm {
        Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512 => {
            json!({"kty": "RSA", "n": rfc_7520()["n"], "e": rfc_7520()["e"]})
        }
        Es256 => ec("P-256", p256_key().verifying_key().to_encoded_point(false).as_bytes()),
        Es384 => ec("P-384", p384_key().verifying_key().to_encoded_point(false).as_bytes()),
        Es512 => ec(
            "P-521",
            p521::ecdsa::VerifyingKey::from(&p521_key()).to_encoded_point(false).as_bytes(),
        ),
        EdDsa => {
            let x = encode(ed25519_key().verifying_key().as_bytes());
            json!({"kty": "OKP", "crv": "Ed25519", "x": x})
        }
    };
    jwk["kid"] = json!("key");
    jwk
}

/// `jwk` with `members` put in or, if null, taken out.
pub fn with(mut jwk: Value, members: Value) -> Value {
    for (name, value) in members.as_object().unwrap() {
        if value.is_null() {
            jwk.as_object_mut().unwrap().remove(name);
        } else {
            jwk[name] = value.clone();
        }
    }
    jwk
}

/// The set of `keys`, all of them usable.
pub fn key_set(keys: &[Value]) -> KeySet {
    let (set, skipped) = KeySet::from_value(&json!({"keys": keys}), &Limits::DEFAULT).unwrap();
    assert_eq!(skipped, []);
    set
}

/// The signature over `message` by the key of [`jwk`].
pub fn sign(algorithm: Algorithm, message: &[u8]) -> Vec<u8> {
    use Algorithm::*;
    use rsa::signature::{RandomizedSigner as _, Signer as _};
    match algorithm {
        Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512 => {
            Rsa::with_name(algorithm.name()).sign(rsa_key(), message).as_bytes().into_owned()
        }
        Es256 => EcdsaP256.sign(&p256_key(), message).as_bytes().into_owned(),
        Es384 => {
            let signature: p384::ecdsa::Signature = p384_key().sign(message);
            signature.to_bytes().to_vec()
        }
        Es512 => p521_key().sign_with_rng(&mut Seeded::new(message), message).to_bytes().to_vec(),
        EdDsa => Ed25519.sign(&ed25519_key(), message).as_bytes().into_owned(),
    }
}

/// The compact serialization of `header` and `payload`, signed by `algorithm`, whatever the header
/// says.
pub fn signed(algorithm: Algorithm, header: &Value, payload: impl AsRef<[u8]>) -> String {
    let input = format!("{}.{}", encode(header.to_string()), encode(payload));
    let signature = sign(algorithm, input.as_bytes());
    format!("{input}.{}", encode(signature))
}

/// The compact serialization with an HMAC by `secret`.
pub fn hmac_signed(header: &Value, payload: impl AsRef<[u8]>, secret: &[u8]) -> String {
    let input = format!("{}.{}", encode(header.to_string()), encode(payload));
    let signature = Hs256.sign(&Hs256Key::new(secret), input.as_bytes());
    format!("{input}.{}", encode(signature.as_bytes()))
}

pub fn rsa_key() -> &'static RsaPrivateKey {
    static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
    KEY.get_or_init(|| {
        let number =
            |name: &str| BigUint::from_bytes_be(&decode(rfc_7520()[name].as_str().unwrap()));
        let primes = vec![number("p"), number("q")];
        RsaPrivateKey::from_components(number("n"), number("e"), number("d"), primes).unwrap()
    })
}

fn rfc_7520() -> &'static Value {
    static KEY: OnceLock<Value> = OnceLock::new();
    KEY.get_or_init(|| {
        serde_json::from_str(include_str!("../vectors/rfc7520-section-3.4.json")).unwrap()
    })
}

pub fn p256_key() -> p256::ecdsa::SigningKey {
    p256::ecdsa::SigningKey::from_slice(&[0x25; 32]).unwrap()
}

fn p384_key() -> p384::ecdsa::SigningKey {
    p384::ecdsa::SigningKey::from_slice(&[0x38; 48]).unwrap()
}

fn p521_key() -> p521::ecdsa::SigningKey {
    let mut scalar = [0x52; 66];
    scalar[0] = 0;
    p521::ecdsa::SigningKey::from_slice(&scalar).unwrap()
}

fn ed25519_key() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[0xed; 32])
}

fn ec(curve: &str, point: &[u8]) -> Value {
    let (x, y) = point[1..].split_at(point.len() / 2);
    json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
}

/// Numbers that are random enough for a test and the same in every run.
pub struct Seeded {
    seed: [u8; 32],
    drawn: u64,
}

impl Seeded {
    pub fn new(seed: impl AsRef<[u8]>) -> Self {
        Self { seed: Sha256::digest(seed).into(), drawn: 0 }
    }
}

impl rsa::rand_core::RngCore for Seeded {
    fn next_u32(&mut self) -> u32 {
        rsa::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rsa::rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            self.drawn += 1;
            let block =
                Sha256::new().chain_update(self.seed).chain_update(self.drawn.to_be_bytes());
            chunk.copy_from_slice(&block.finalize()[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rsa::rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl rsa::rand_core::CryptoRng for Seeded {}
