//! One public key of a key set, parsed once and ready to verify.

use std::fmt;

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::algorithm::Algorithm;
use super::base64url;
use crate::limits::Limits;
use crate::quote::{quote, quote_list};

/// A public signature key (RFC 7517 §4), parsed and checked once, at load.
///
/// A certificate in the JWK (`x5c`, `x5t`, `x5u`) is not looked at: the operator trusts the key
/// set, not a certification authority.
#[derive(Clone)]
pub struct PublicKey {
    id: Option<String>,
    algorithm: Option<String>,
    purpose: Purpose,
    material: Material,
    verifying_key: VerifyingKey,
    thumbprint: String,
    /// The material in DER, made once: to verify natively it is needed each time.
    public_key_info: Box<[u8]>,
}

/// The public numbers of a key, for a host that verifies natively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    /// RSA (RFC 7518 §6.3.1): modulus and exponent, unsigned, big-endian, without leading zeros.
    Rsa {
        /// The modulus `n`.
        modulus: Vec<u8>,
        /// The exponent `e`.
        exponent: Vec<u8>,
    },
    /// A point on an elliptic curve (RFC 7518 §6.2.1), each coordinate as long as the curve's field.
    Ec {
        /// The curve.
        curve: Curve,
        /// The coordinate `x`.
        x: Vec<u8>,
        /// The coordinate `y`.
        y: Vec<u8>,
    },
    /// An Ed25519 key (RFC 8037 §2).
    Ed25519 {
        /// The encoded point `x`.
        x: [u8; 32],
    },
}

/// An elliptic curve for ECDSA (RFC 7518 §6.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

/// Why an entry of a key set was skipped. Never quotes key material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyFault {
    /// Not an object.
    NotAnObject,
    /// A member is missing or not what RFC 7517 and RFC 7518 say.
    Member {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A key type or curve that cannot verify any supported algorithm.
    Unsupported {
        /// `kty` or `crv`.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A symmetric key: whoever can verify with it can sign with it.
    Symmetric,
    /// A private key in a published key set: it has leaked, so it proves nothing any more.
    PrivateKey {
        /// The member that must stay secret.
        name: &'static str,
    },
    /// More keys than the set may have.
    TooMany {
        /// How many it may have.
        limit: usize,
    },
}

/// Why a key must not verify an algorithm (RFC 8725 §3.1: one key, one algorithm).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// Another key type or curve.
    Kind {
        /// What the key is.
        key: &'static str,
        /// What is asked for.
        algorithm: Algorithm,
    },
    /// The JWK's `alg` (RFC 7517 §4.4) names another algorithm.
    Algorithm {
        /// The JWK's `alg`.
        declared: String,
        /// What is asked for.
        algorithm: Algorithm,
    },
    /// The JWK's `use` (RFC 7517 §4.2) is not `sig`.
    Use {
        /// The JWK's `use`.
        declared: String,
    },
    /// The JWK's `key_ops` (RFC 7517 §4.3) have no `verify`.
    Operations {
        /// The JWK's `key_ops`.
        declared: Vec<String>,
    },
}

/// A key ready to verify.
#[derive(Clone)]
pub(super) enum VerifyingKey {
    Rsa(rsa::RsaPublicKey),
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::ecdsa::VerifyingKey),
    Ed25519(ed25519_dalek::VerifyingKey),
}

/// What the JWK says that the key is for.
#[derive(Clone, Default)]
struct Purpose {
    declared_use: Option<String>,
    operations: Option<Vec<String>>,
}

/// Members that make a JWK a private key (RFC 7518 §6.2.2, §6.3.2; RFC 8037 §2).
const PRIVATE_MEMBERS: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "oth"];

impl PublicKey {
    /// Reads one JWK.
    ///
    /// # Errors
    /// Why it cannot be used at all. A usable key that is not meant for signatures is no fault
    /// here: it [fits](Self::fits) nothing.
    pub fn from_jwk(jwk: &Value, limits: &Limits) -> Result<Self, KeyFault> {
        let jwk = jwk.as_object().ok_or(KeyFault::NotAnObject)?;
        let kind = text(jwk, "kty")?.ok_or_else(|| missing("kty"))?;
        if kind == "oct" || jwk.contains_key("k") {
            return Err(KeyFault::Symmetric);
        }
        if let Some(name) = PRIVATE_MEMBERS.into_iter().find(|name| jwk.contains_key(*name)) {
            return Err(KeyFault::PrivateKey { name });
        }
        let (material, verifying_key) = match kind {
            "RSA" => rsa_key(jwk, limits)?,
            "EC" => ec_key(jwk)?,
            "OKP" => okp_key(jwk)?,
            _ => return Err(KeyFault::Unsupported { name: "kty", value: kind.to_owned() }),
        };
        Ok(Self {
            id: key_id(jwk, limits)?,
            algorithm: text(jwk, "alg")?.map(str::to_owned),
            purpose: Purpose {
                declared_use: text(jwk, "use")?.map(str::to_owned),
                operations: operations(jwk)?,
            },
            thumbprint: thumbprint(&material),
            public_key_info: material.subject_public_key_info().into(),
            material,
            verifying_key,
        })
    }

    /// `kid` (RFC 7517 §4.5).
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The same key; without a `kid` its thumbprint is that, as RFC 7638 §4 has in mind.
    pub(super) fn named(mut self) -> Self {
        self.id.get_or_insert_with(|| self.thumbprint.clone());
        self
    }

    /// The SHA-256 thumbprint (RFC 7638), base64url: names the key whatever its `kid`.
    pub fn thumbprint(&self) -> &str {
        &self.thumbprint
    }

    /// The public numbers.
    pub fn material(&self) -> &Material {
        &self.material
    }

    /// The key as `SubjectPublicKeyInfo` (RFC 5280 §4.1.2.7): RSA by RFC 3279 §2.3.1, elliptic
    /// curves by RFC 5480 §2, Ed25519 by RFC 8410 §4.
    pub fn subject_public_key_info(&self) -> &[u8] {
        &self.public_key_info
    }

    /// Whether this key may verify `algorithm`: its kind, its curve, and what its JWK declares.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn fits(&self, algorithm: Algorithm) -> Result<(), Misfit> {
        if !self.material.suits(algorithm) {
            return Err(Misfit::Kind { key: self.material.kind(), algorithm });
        }
        if let Some(declared) = &self.algorithm
            && Algorithm::from_name(declared) != Some(algorithm)
        {
            return Err(Misfit::Algorithm { declared: declared.clone(), algorithm });
        }
        if let Some(declared) = &self.purpose.declared_use
            && declared != "sig"
        {
            return Err(Misfit::Use { declared: declared.clone() });
        }
        if let Some(declared) = &self.purpose.operations
            && !declared.iter().any(|operation| operation == "verify")
        {
            return Err(Misfit::Operations { declared: declared.clone() });
        }
        Ok(())
    }

    /// Octets of every signature by this key: as many as the modulus has (RFC 8017 §8.2.2),
    /// `r` and `s` at full length (RFC 7518 §3.4), or 64 (RFC 8032 §5.1.6).
    pub fn signature_length(&self) -> usize {
        match &self.material {
            Material::Rsa { modulus, .. } => modulus.len(),
            Material::Ec { curve, .. } => curve.field_length().saturating_mul(2),
            Material::Ed25519 { .. } => 64,
        }
    }

    /// Whether a signature can be one by this key: of [the one length](Self::signature_length), and with RSA
    /// below the modulus (RFC 8017 §5.2.2), or each would have a second spelling.
    pub(super) fn is_in_range(&self, signature: &[u8]) -> bool {
        signature.len() == self.signature_length()
            && match &self.material {
                // INVARIANT: of one length and big-endian, octets compare as numbers do.
                Material::Rsa { modulus, .. } => signature < modulus.as_slice(),
                Material::Ec { .. } | Material::Ed25519 { .. } => true,
            }
    }

    pub(super) fn verifying_key(&self) -> &VerifyingKey {
        &self.verifying_key
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PublicKey")
            .field("id", &self.id)
            .field("kind", &self.material.kind())
            .field("algorithm", &self.algorithm)
            .field("thumbprint", &self.thumbprint)
            .finish_non_exhaustive()
    }
}

impl Material {
    /// `RSA`, or the name of the curve.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => "RSA",
            Self::Ec { curve, .. } => curve.name(),
            Self::Ed25519 { .. } => "Ed25519",
        }
    }

    fn suits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::*;
        match self {
            Self::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Self::Ec { curve: Curve::P256, .. } => algorithm == Es256,
            Self::Ec { curve: Curve::P384, .. } => algorithm == Es384,
            Self::Ec { curve: Curve::P521, .. } => algorithm == Es512,
            Self::Ed25519 { .. } => algorithm == EdDsa,
        }
    }
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    /// The registered name (`crv`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Octets of a coordinate.
    pub const fn field_length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

impl KeyFault {
    /// Whether somebody should be woken: the set publishes what must be secret.
    pub const fn is_leak(&self) -> bool {
        matches!(self, Self::PrivateKey { .. } | Self::Symmetric)
    }
}

impl fmt::Display for KeyFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnObject => formatter.write_str("not an object"),
            Self::Member { name, problem } => write!(formatter, "`{name}` {problem}"),
            Self::Unsupported { name, value } => {
                write!(formatter, "`{name}` {} is not supported", quote(value))
            }
            Self::Symmetric => formatter.write_str(
                "a symmetric key: whoever verifies with it can sign with it, so it is never used",
            ),
            Self::PrivateKey { name } => write!(
                formatter,
                "a private key has been published (`{name}` is present), so it is not trusted"
            ),
            Self::TooMany { limit } => write!(formatter, "beyond the limit of {limit} keys"),
        }
    }
}

impl std::error::Error for KeyFault {}

impl fmt::Display for Misfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind { key, algorithm } => {
                write!(formatter, "the key is for {key}, the algorithm is `{algorithm}`")
            }
            Self::Algorithm { declared, algorithm } => {
                let declared = quote(declared);
                write!(formatter, "the key is bound to {declared}, the algorithm is `{algorithm}`")
            }
            Self::Use { declared } => {
                write!(formatter, "the key's `use` is {}, not `sig`", quote(declared))
            }
            Self::Operations { declared } => {
                let declared = quote_list(declared.iter().map(String::as_str));
                write!(formatter, "the key's `key_ops` are {declared}, without `verify`")
            }
        }
    }
}

impl std::error::Error for Misfit {}

/// Whether `text` may be a `kid`: not longer than the limit, and nothing in it that could forge
/// a log line. Otherwise data like any other (RFC 8725 §3.10).
pub(super) fn is_key_id(text: &str, limits: &Limits) -> bool {
    text.len() <= limits.key_id_bytes && !text.chars().any(char::is_control)
}

fn key_id(jwk: &Map<String, Value>, limits: &Limits) -> Result<Option<String>, KeyFault> {
    match text(jwk, "kid")? {
        Some(id) if !is_key_id(id, limits) => {
            let limit = limits.key_id_bytes;
            let problem = format!("is longer than {limit} bytes or contains control characters");
            Err(KeyFault::Member { name: "kid", problem })
        }
        id => Ok(id.map(str::to_owned)),
    }
}

fn operations(jwk: &Map<String, Value>) -> Result<Option<Vec<String>>, KeyFault> {
    let Some(value) = jwk.get("key_ops") else {
        return Ok(None);
    };
    let operations: Option<Vec<_>> = value.as_array().and_then(|operations| {
        operations.iter().map(|operation| operation.as_str().map(str::to_owned)).collect()
    });
    match operations {
        Some(operations) => Ok(Some(operations)),
        None => Err(member("key_ops", "is not an array of strings")),
    }
}

fn rsa_key(
    jwk: &Map<String, Value>,
    limits: &Limits,
) -> Result<(Material, VerifyingKey), KeyFault> {
    // RFC 7518 §6.3.1.1 forbids leading zero octets and warns that libraries write them; they
    // change nothing about the key.
    let modulus = without_leading_zeros(octets(jwk, "n")?);
    let exponent = without_leading_zeros(octets(jwk, "e")?);
    let (Some(first), Some(last)) = (modulus.first(), modulus.last()) else {
        return Err(member("n", "is zero"));
    };
    let leading = first.leading_zeros().try_into().unwrap_or(usize::MAX);
    let bits = modulus.len().saturating_mul(8).saturating_sub(leading);
    // At least 2048 bits: RFC 7518 §3.3 and §3.5.
    let (least, most) = (2048, limits.rsa_modulus_bits);
    if bits < least || bits > most {
        return Err(member("n", &format!("has {bits} bits, not {least} to {most}")));
    }
    if last % 2 == 0 {
        return Err(member("n", "is even, so it is no RSA modulus"));
    }
    // Every exponent in use is 3, 17 or 65537. Below 3 there is no signature at all, an even one
    // has no inverse, and verification costs as much as the exponent is long: a huge one is
    // either a mistake or an attack (NIST SP 800-56B allows up to 2^256).
    let value = exponent.iter().try_fold(0_u64, |value, octet| {
        value.checked_mul(256).and_then(|value| value.checked_add(u64::from(*octet)))
    });
    match value {
        Some(value) if value % 2 == 1 && (3..1 << 33).contains(&value) => {}
        _ => return Err(member("e", "is not an odd number from 3 to 2^33")),
    }
    let key = rsa::RsaPublicKey::new_with_max_size(
        rsa::BigUint::from_bytes_be(&modulus),
        rsa::BigUint::from_bytes_be(&exponent),
        most,
    )
    .map_err(|_| member("n", "and `e` are not an RSA key"))?;
    Ok((Material::Rsa { modulus, exponent }, VerifyingKey::Rsa(key)))
}

fn ec_key(jwk: &Map<String, Value>) -> Result<(Material, VerifyingKey), KeyFault> {
    let name = text(jwk, "crv")?.ok_or_else(|| missing("crv"))?;
    let Some(curve) = Curve::ALL.into_iter().find(|curve| curve.name() == name) else {
        return Err(KeyFault::Unsupported { name: "crv", value: name.to_owned() });
    };
    let x = coordinate(jwk, "x", curve.field_length())?;
    let y = coordinate(jwk, "y", curve.field_length())?;
    let point = [&[0x04], x.as_slice(), y.as_slice()].concat();
    // INVARIANT: reading an uncompressed point checks that it is on the curve.
    let verifying_key = match curve {
        Curve::P256 => {
            p256::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok().map(VerifyingKey::P256)
        }
        Curve::P384 => {
            p384::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok().map(VerifyingKey::P384)
        }
        Curve::P521 => {
            p521::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok().map(VerifyingKey::P521)
        }
    };
    match verifying_key {
        Some(verifying_key) => Ok((Material::Ec { curve, x, y }, verifying_key)),
        None => Err(member("x", &format!("and `y` are not a point on {}", curve.name()))),
    }
}

fn okp_key(jwk: &Map<String, Value>) -> Result<(Material, VerifyingKey), KeyFault> {
    let name = text(jwk, "crv")?.ok_or_else(|| missing("crv"))?;
    if name != "Ed25519" {
        return Err(KeyFault::Unsupported { name: "crv", value: name.to_owned() });
    }
    let x: [u8; 32] =
        octets(jwk, "x")?.try_into().map_err(|_| member("x", "has not exactly 32 octets"))?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&x)
        .ok()
        .filter(|_| is_canonical_ed25519(&x))
        .ok_or_else(|| member("x", "is not a point on Ed25519"))?;
    // With a small-order key a signature can be made that fits almost any message.
    if key.is_weak() {
        return Err(member("x", "is a point of small order"));
    }
    Ok((Material::Ed25519 { x }, VerifyingKey::Ed25519(key)))
}

/// Whether the encoded `y` is below the field's prime 2^255 - 19 (RFC 8032 §5.1.3): every point
/// has one encoding, and so one thumbprint.
fn is_canonical_ed25519(encoded: &[u8; 32]) -> bool {
    let [first, middle @ .., last] = encoded;
    *first < 0xed || last & 0x7f != 0x7f || middle.iter().any(|octet| *octet != 0xff)
}

/// RFC 7638 §3: the required members in lexicographic order, no white space, hashed. They need no
/// escaping: base64url and registered names.
fn thumbprint(material: &Material) -> String {
    let encode = base64url::encode;
    let members = match material {
        Material::Rsa { modulus, exponent } => {
            format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, encode(exponent), encode(modulus))
        }
        Material::Ec { curve, x, y } => format!(
            r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#,
            curve.name(),
            encode(x),
            encode(y)
        ),
        Material::Ed25519 { x } => {
            format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, encode(x))
        }
    };
    encode(&Sha256::digest(members))
}

fn coordinate(
    jwk: &Map<String, Value>,
    name: &'static str,
    length: usize,
) -> Result<Vec<u8>, KeyFault> {
    let coordinate = octets(jwk, name)?;
    if coordinate.len() != length {
        let found = coordinate.len();
        return Err(member(name, &format!("has {found} octets, not {length}")));
    }
    Ok(coordinate)
}

fn octets(jwk: &Map<String, Value>, name: &'static str) -> Result<Vec<u8>, KeyFault> {
    let encoded = text(jwk, name)?.ok_or_else(|| missing(name))?;
    base64url::decode(encoded.as_bytes()).ok_or_else(|| member(name, "is not unpadded base64url"))
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, KeyFault> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(member(name, "is not a string")),
    }
}

fn without_leading_zeros(mut octets: Vec<u8>) -> Vec<u8> {
    let zeros = octets.iter().take_while(|octet| **octet == 0).count();
    octets.drain(..zeros);
    octets
}

fn missing(name: &'static str) -> KeyFault {
    member(name, "is missing")
}

fn member(name: &'static str, problem: &str) -> KeyFault {
    KeyFault::Member { name, problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An RSA JWK with a modulus of `octets` and the exponent `e`.
    fn rsa(octets: &[u8], e: &[u8]) -> Value {
        json!({"kty": "RSA", "n": base64url::encode(octets), "e": base64url::encode(e)})
    }

    fn read(jwk: &Value) -> Result<PublicKey, String> {
        PublicKey::from_jwk(jwk, &Limits::DEFAULT).map_err(|fault| fault.to_string())
    }

    #[test]
    fn an_rsa_modulus_is_odd_and_of_a_bearable_length() {
        let modulus = |first: u8, length: usize, last: u8| {
            let mut octets = vec![0xa5; length];
            octets[0] = first;
            octets[length - 1] = last;
            octets
        };
        for (octets, expected) in [
            (modulus(0x80, 256, 1), Ok(())),
            (modulus(0x01, 257, 1), Ok(())),
            (modulus(0xff, 512, 1), Ok(())),
            (modulus(0x7f, 256, 1), Err("`n` has 2047 bits, not 2048 to 4096")),
            (modulus(0x80, 128, 1), Err("`n` has 1024 bits, not 2048 to 4096")),
            (modulus(0x01, 513, 1), Err("`n` has 4097 bits, not 2048 to 4096")),
            (modulus(0x80, 100_000, 1), Err("`n` has 800000 bits, not 2048 to 4096")),
            (modulus(0x80, 256, 2), Err("`n` is even, so it is no RSA modulus")),
            (vec![0; 300], Err("`n` is zero")),
            (vec![], Err("`n` is zero")),
        ] {
            let found = read(&rsa(&octets, &[1, 0, 1])).map(|_| ());
            assert_eq!(found, expected.map_err(str::to_owned));
        }
    }

    #[test]
    fn an_rsa_exponent_is_odd_and_small() {
        let modulus = [0xa5; 256];
        for (exponent, accepted) in [
            (&[3][..], true),
            (&[17], true),
            (&[1, 0, 1], true),
            (&[0, 0, 1, 0, 1], true),
            (&[1, 0xff, 0xff, 0xff, 0xff], true),
            (&[], false),
            (&[0], false),
            (&[1], false),
            (&[2], false),
            (&[1, 0, 0], false),
            (&[2, 0, 0, 0, 1], false),
            (&[0xff; 256], false),
        ] {
            assert_eq!(read(&rsa(&modulus, exponent)).is_ok(), accepted, "{exponent:?}");
        }
    }

    #[test]
    fn a_larger_limit_lets_a_larger_modulus_in() {
        let limits = Limits { rsa_modulus_bits: 8192, ..Limits::DEFAULT };
        assert!(PublicKey::from_jwk(&rsa(&[0xa5; 1024], &[1, 0, 1]), &limits).is_ok());
    }

    #[test]
    fn a_point_is_on_its_curve_at_full_length() {
        let point = p256::ecdsa::SigningKey::from_slice(&[1; 32]).unwrap();
        let point = point.verifying_key().to_encoded_point(false);
        let (x, y) = (&point.x().unwrap()[..], &point.y().unwrap()[..]);
        let off: Vec<u8> = y.iter().map(|octet| octet ^ 1).collect();
        let long = [&[0], x].concat();
        for (curve, x, y, expected) in [
            ("P-256", x, y, Ok(())),
            ("P-256", x, &off[..], Err("`x` and `y` are not a point on P-256")),
            ("P-256", y, x, Err("`x` and `y` are not a point on P-256")),
            ("P-256", &[0; 32], &[0; 32], Err("`x` and `y` are not a point on P-256")),
            ("P-256", &[0xff; 32], y, Err("`x` and `y` are not a point on P-256")),
            ("P-256", &x[1..], y, Err("`x` has 31 octets, not 32")),
            ("P-256", &long, y, Err("`x` has 33 octets, not 32")),
            ("P-256", x, &[], Err("`y` has 0 octets, not 32")),
            ("P-384", x, y, Err("`x` has 32 octets, not 48")),
            ("secp256k1", x, y, Err("`crv` `secp256k1` is not supported")),
            ("p-256", x, y, Err("`crv` `p-256` is not supported")),
        ] {
            let (x, y) = (base64url::encode(x), base64url::encode(y));
            let found = read(&json!({"kty": "EC", "crv": curve, "x": x, "y": y})).map(|_| ());
            assert_eq!(found, expected.map_err(str::to_owned), "{curve} {x} {y}");
        }
    }

    #[test]
    fn an_unusable_entry_says_why() {
        let ed25519 = |members: Value| {
            let mut jwk = json!({
                "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            });
            jwk.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
            jwk
        };
        assert!(read(&ed25519(json!({"kid": "grün", "unknown": [1]}))).is_ok());
        for (jwk, expected) in [
            (json!([]), "not an object"),
            (json!({}), "`kty` is missing"),
            (json!({"kty": 1}), "`kty` is not a string"),
            (json!({"kty": "rsa"}), "`kty` `rsa` is not supported"),
            (json!({"kty": "AKP", "alg": "ML-DSA-44"}), "`kty` `AKP` is not supported"),
            (json!({"kty": "RSA", "e": "AQAB"}), "`n` is missing"),
            (json!({"kty": "RSA", "n": "AQAB="}), "`n` is not unpadded base64url"),
            (json!({"kty": "RSA", "n": 65537}), "`n` is not a string"),
            (json!({"kty": "EC"}), "`crv` is missing"),
            (json!({"kty": "OKP"}), "`crv` is missing"),
            (json!({"kty": "OKP", "crv": "Ed448"}), "`crv` `Ed448` is not supported"),
            (ed25519(json!({"x": "AAAA"})), "`x` has not exactly 32 octets"),
            (ed25519(json!({"kid": "x".repeat(257)})), "`kid` is longer than 256 bytes or"),
            (ed25519(json!({"kid": "a\u{7}"})), "contains control characters"),
            (ed25519(json!({"kid": null})), "`kid` is not a string"),
            (ed25519(json!({"alg": 1})), "`alg` is not a string"),
            (ed25519(json!({"use": ["sig"]})), "`use` is not a string"),
            (ed25519(json!({"key_ops": "verify"})), "`key_ops` is not an array of strings"),
            (ed25519(json!({"key_ops": [1]})), "`key_ops` is not an array of strings"),
            (ed25519(json!({"k": "AAAA"})), "a symmetric key"),
        ] {
            let fault = read(&jwk).unwrap_err();
            assert!(fault.contains(expected), "{jwk}: {fault}");
        }
        for name in PRIVATE_MEMBERS {
            let fault = PublicKey::from_jwk(&ed25519(json!({name: "secret"})), &Limits::DEFAULT)
                .unwrap_err();
            assert_eq!(fault, KeyFault::PrivateKey { name });
            assert!(fault.is_leak());
        }
    }

    #[test]
    fn only_reduced_encodings_are_canonical() {
        let mut encoded = [0xff; 32];
        for (first, last, canonical) in
            [(0xec, 0x7f, true), (0xec, 0xff, true), (0xed, 0x7f, false), (0xff, 0xff, false)]
        {
            encoded[0] = first;
            encoded[31] = last;
            assert_eq!(is_canonical_ed25519(&encoded), canonical, "{first:x} {last:x}");
        }
        encoded[17] = 0xfe;
        assert!(is_canonical_ed25519(&encoded));
    }
}
