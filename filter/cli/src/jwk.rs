//! Private keys in files, as JWKs (RFC 7517), and what they sign: compact JWS (RFC 7515 §7.1).
//!
//! One form for all that is signed beside a request: policies, grants, the audit trail. EdDSA (Ed25519,
//! RFC 8037) and ES256 (RFC 7518 §3.4), the algorithms that the core accepts for these.
//!
//! What it is not: it verifies nothing. That the core does, with the public half.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use airflow_envoy_core::jose::{Algorithm, PublicKey};
use airflow_envoy_core::json;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::quote::quote;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::Signer as _;
use serde_json::{Map, Value, json};

/// Bytes of a file with keys.
const MOST_BYTES: u64 = 256 * 1024;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ed25519.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
}

/// A private key.
#[derive(Clone)]
pub struct PrivateKey {
    id: String,
    secret: Secret,
    public: PublicKey,
}

#[derive(Clone)]
enum Secret {
    EdDsa(Box<ed25519_dalek::SigningKey>),
    Es256(p256::ecdsa::SigningKey),
}

impl Kind {
    /// The algorithm's registered name.
    pub const fn algorithm(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDsa,
            Self::Es256 => Algorithm::Es256,
        }
    }
}

impl PrivateKey {
    /// A new key. Its `kid` is its thumbprint (RFC 7638).
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn generate(kind: Kind) -> Result<Self, String> {
        let secret = loop {
            let mut seed = [0_u8; 32];
            getrandom::fill(&mut seed).map_err(|error| format!("no random numbers: {error}"))?;
            match Secret::from_octets(kind, &seed) {
                Some(secret) => break secret,
                // Zero or not below the order of P-256: less likely than any other fault.
                None => continue,
            }
        };
        Self::new(secret, None)
    }

    /// Reads a private JWK. Its public members must be those of its private one.
    ///
    /// # Errors
    /// What is wrong with it; never quotes its contents.
    pub fn from_jwk(jwk: &Value) -> Result<Self, String> {
        let members = jwk.as_object().ok_or("is not a JWK: not an object")?;
        if members.contains_key("keys") {
            return Err("is a set of keys, not one private key".to_owned());
        }
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let kind = match (text("kty"), text("crv")) {
            (Some("OKP"), Some("Ed25519")) => Kind::EdDsa,
            (Some("EC"), Some("P-256")) => Kind::Es256,
            (Some(kty), crv) => {
                let crv = crv.map_or_else(String::new, |crv| format!(" on {}", quote(crv)));
                let kty = quote(kty);
                return Err(format!("is {kty}{crv}: only Ed25519 and P-256 keys sign here"));
            }
            (None, _) => return Err("is not a JWK: `kty` is missing".to_owned()),
        };
        let secret = text("d").ok_or("is not a private key: `d` is missing")?;
        let secret = URL_SAFE_NO_PAD.decode(secret).ok();
        let secret =
            secret.and_then(|octets| Secret::from_octets(kind, octets.as_slice().try_into().ok()?));
        let secret = secret.ok_or("`d` is not 32 octets of a private key in base64url")?;

        let mut public = members.clone();
        public.remove("d");
        // What a private key may do is said of it, not of its public half.
        public.remove("key_ops");
        let declared = PublicKey::from_jwk(&Value::Object(public), &Limits::DEFAULT)
            .map_err(|fault| fault.to_string())?;
        declared.fits(kind.algorithm()).map_err(|misfit| misfit.to_string())?;
        if members
            .get("key_ops")
            .and_then(Value::as_array)
            .is_some_and(|operations| !operations.iter().any(|operation| operation == "sign"))
        {
            return Err("`key_ops` is without `sign`".to_owned());
        }
        let key = Self::new(secret, declared.id().map(str::to_owned))?;
        if key.public.material() != declared.material() {
            return Err("`d` is not the private half of its public members".to_owned());
        }
        Ok(key)
    }

    /// Reads a file with one private JWK; `-` is standard input.
    ///
    /// # Errors
    /// What is wrong, with the file's name.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        Self::from_jwk(&read_json(path)?).map_err(|problem| format!("{name}: {problem}"))
    }

    fn new(secret: Secret, id: Option<String>) -> Result<Self, String> {
        let jwk = Value::Object(secret.public());
        let public =
            PublicKey::from_jwk(&jwk, &Limits::DEFAULT).map_err(|fault| fault.to_string())?;
        let id = id.unwrap_or_else(|| public.thumbprint().to_owned());
        Ok(Self { id, secret, public })
    }

    /// The same key by another name.
    ///
    /// # Errors
    /// If that cannot be a `kid`.
    pub fn named(self, id: &str) -> Result<Self, String> {
        let mut jwk = self.private_jwk();
        if let Some(members) = jwk.as_object_mut() {
            members.insert("kid".to_owned(), id.into());
        }
        if id.is_empty() {
            return Err("must not be empty".to_owned());
        }
        Self::from_jwk(&jwk)
    }

    /// Its `kid`; its thumbprint if the JWK had none.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its SHA-256 thumbprint (RFC 7638), base64url.
    pub fn thumbprint(&self) -> &str {
        self.public.thumbprint()
    }

    /// What it signs by.
    pub const fn algorithm(&self) -> Algorithm {
        match self.secret {
            Secret::EdDsa(_) => Algorithm::EdDsa,
            Secret::Es256(_) => Algorithm::Es256,
        }
    }

    /// The public JWK.
    pub fn public_jwk(&self) -> Value {
        let mut jwk = self.secret.public();
        jwk.insert("kid".to_owned(), self.id.as_str().into());
        jwk.insert("alg".to_owned(), self.algorithm().name().into());
        jwk.insert("use".to_owned(), "sig".into());
        Value::Object(jwk)
    }

    /// The private JWK: a secret.
    pub fn private_jwk(&self) -> Value {
        let mut jwk = self.public_jwk();
        let octets = match &self.secret {
            Secret::EdDsa(key) => key.to_bytes().to_vec(),
            Secret::Es256(key) => key.to_bytes().to_vec(),
        };
        if let Some(members) = jwk.as_object_mut() {
            members.insert("d".to_owned(), URL_SAFE_NO_PAD.encode(octets).into());
        }
        jwk
    }

    /// Writes the private JWK to a new file that only its owner may read.
    ///
    /// # Errors
    /// If there is something of that name, or it cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<(), String> {
        let name = path.display();
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("{name} is there already: a key is never overwritten")
            }
            _ => format!("{name}: {error}"),
        })?;
        let written = writeln!(file, "{:#}", self.private_jwk()).and_then(|()| file.sync_all());
        written.map_err(|error| {
            // A part of a key is of no use, and would be in the way of the next try.
            let _ = fs::remove_file(path);
            format!("{name}: {error}")
        })
    }

    /// The signature over `message` (RFC 7515 §5.1): 64 octets.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        match &self.secret {
            Secret::EdDsa(key) => key.sign(message).to_bytes(),
            Secret::Es256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().into()
            }
        }
    }

    /// `payload` as a compact JWS of the type `typ` by this key.
    pub fn sign_compact(&self, typ: &str, payload: &[u8]) -> String {
        let header = json!({ "alg": self.algorithm().name(), "kid": self.id, "typ": typ });
        let mut message = URL_SAFE_NO_PAD.encode(header.to_string());
        message.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut message);
        let signature = self.sign(message.as_bytes());
        message.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut message);
        message
    }
}

/// Without the secret.
impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PrivateKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Secret {
    fn from_octets(kind: Kind, octets: &[u8; 32]) -> Option<Self> {
        Some(match kind {
            Kind::EdDsa => Self::EdDsa(Box::new(ed25519_dalek::SigningKey::from_bytes(octets))),
            Kind::Es256 => Self::Es256(p256::ecdsa::SigningKey::from_slice(octets).ok()?),
        })
    }

    /// The members of a public JWK that its thumbprint is of.
    fn public(&self) -> Map<String, Value> {
        let jwk = match self {
            Self::EdDsa(key) => {
                let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
                json!({ "kty": "OKP", "crv": "Ed25519", "x": x })
            }
            Self::Es256(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                let coordinate = |octets: Option<&_>| {
                    octets.map(|octets: &p256::FieldBytes| URL_SAFE_NO_PAD.encode(octets))
                };
                json!({
                    "kty": "EC", "crv": "P-256",
                    "x": coordinate(point.x()), "y": coordinate(point.y()),
                })
            }
        };
        match jwk {
            Value::Object(members) => members,
            _ => Map::new(),
        }
    }
}

/// Reads a file of JSON with keys in it, as strictly as the core; `-` is standard input.
///
/// # Errors
/// With the file's name.
pub fn read_json(path: &Path) -> Result<Value, String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(MOST_BYTES + 1).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("{name}: is larger than {MOST_BYTES} bytes"));
    }
    if bytes.starts_with(b"-----BEGIN") {
        return Err(format!("{name}: is PEM; a JWK (JSON) is needed, such as `keys new` makes"));
    }
    json::parse(&bytes, Limits::DEFAULT.json_depth).map_err(|error| format!("{name}: {error}"))
}

/// What is to be told about a private key's file that others than its owner may read or replace.
pub fn exposure(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let name = path.display();
        (found.permissions().mode() & 0o077 != 0).then(|| {
            format!("{name} can be read or written by others than its owner: chmod 600 {name}")
        })
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// What is told of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its `kid`; its thumbprint if it has none.
    pub id: String,
    /// Its SHA-256 thumbprint (RFC 7638), base64url.
    pub thumbprint: String,
    /// What it signs or verifies.
    pub algorithm: Algorithm,
    /// Whether its private half is there.
    pub private: bool,
}

/// What is to be told of the keys in a file, which has what [`public_keys`] reads.
///
/// # Errors
/// What cannot be used, with the file's name.
pub fn described(path: &Path) -> Result<Vec<Described>, String> {
    let describe = |jwk: Value| {
        let private = jwk.get("d").is_some();
        let key = PublicKey::from_jwk(&public_jwk(jwk)?, &Limits::DEFAULT)
            .map_err(|fault| fault.to_string())?;
        let algorithm = match key.fits(Algorithm::EdDsa) {
            Ok(()) => Algorithm::EdDsa,
            Err(_) => Algorithm::Es256,
        };
        let thumbprint = key.thumbprint().to_owned();
        let id = key.id().map_or_else(|| thumbprint.clone(), str::to_owned);
        Ok(Described { id, thumbprint, algorithm, private })
    };
    each_key(path, describe)
}

/// The public JWKs in files that have a private JWK, a public one, a list or a set of them.
///
/// # Errors
/// What cannot be used, with the file's name.
pub fn public_keys(paths: &[PathBuf]) -> Result<Vec<Value>, String> {
    let mut keys: Vec<Value> = Vec::new();
    for path in paths {
        for public in each_key(path, public_jwk)? {
            if !keys.contains(&public) {
                keys.push(public);
            }
        }
    }
    Ok(keys)
}

/// What `read` makes of each key in a file.
fn each_key<T>(path: &Path, read: impl Fn(Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    let name = path.display();
    let (found, is_list) = match read_json(path)? {
        Value::Array(keys) => (keys, true),
        Value::Object(mut set) if set.contains_key("keys") => match set.remove("keys") {
            Some(Value::Array(keys)) => (keys, true),
            _ => return Err(format!("{name}: `keys` is not a list")),
        },
        key => (vec![key], false),
    };
    if found.is_empty() {
        return Err(format!("{name}: has no keys"));
    }
    let read = |(index, jwk)| {
        read(jwk).map_err(|problem| match is_list {
            true => format!("{name}: keys[{index}]: {problem}"),
            false => format!("{name}: {problem}"),
        })
    };
    found.into_iter().enumerate().map(read).collect()
}

fn public_jwk(jwk: Value) -> Result<Value, String> {
    if jwk.get("d").is_some() {
        return PrivateKey::from_jwk(&jwk).map(|key| key.public_jwk());
    }
    let key = PublicKey::from_jwk(&jwk, &Limits::DEFAULT).map_err(|fault| fault.to_string())?;
    let fits = |kind: Kind| key.fits(kind.algorithm()).is_ok();
    if !fits(Kind::EdDsa) && !fits(Kind::Es256) {
        return Err("fits neither `EdDSA` nor `ES256`".to_owned());
    }
    Ok(jwk)
}

#[cfg(test)]
mod tests {
    use airflow_envoy_core::jose::{Jws, KeySet, RustCrypto};

    use super::*;

    #[test]
    fn what_a_key_signs_the_core_verifies_and_nothing_else() {
        let limits = Limits::DEFAULT;
        for kind in [Kind::EdDsa, Kind::Es256] {
            let key = PrivateKey::generate(kind).unwrap();
            let other = PrivateKey::generate(kind).unwrap();
            let signed = key.sign_compact("airflow-policy+jws", b"{}");
            let jws = Jws::parse(signed.as_bytes(), 1000, &limits).unwrap();
            assert!(jws.header().is_of_type("airflow-policy+jws"));
            for (by, good) in [(&key, true), (&other, false)] {
                // The other key under this one's name.
                let mut jwk = by.public_jwk();
                jwk["kid"] = key.id().into();
                let (keys, skipped) =
                    KeySet::from_value(&json!({ "keys": [jwk] }), &limits).unwrap();
                assert!(skipped.is_empty());
                let verified = jws.verify(&[kind.algorithm()], &keys, &RustCrypto);
                assert_eq!(verified.is_ok(), good, "{verified:?}");
            }
        }
    }

    #[test]
    fn a_private_jwk_reads_as_the_same_key() {
        for kind in [Kind::EdDsa, Kind::Es256] {
            let key = PrivateKey::generate(kind).unwrap();
            assert_eq!(key.id(), key.thumbprint());
            let again = PrivateKey::from_jwk(&key.private_jwk()).unwrap();
            assert_eq!(again.sign(b"x"), key.sign(b"x"));
            assert_eq!(again.public_jwk(), key.public_jwk());
            let mut named = key.private_jwk();
            named["kid"] = "policy-2026".into();
            assert_eq!(PrivateKey::from_jwk(&named).unwrap().id(), "policy-2026");
        }
    }

    /// RFC 8037 appendix A.1 and A.3: the private half and the thumbprint.
    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        let point = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": point });
        let key = PublicKey::from_jwk(&jwk, &Limits::DEFAULT).unwrap();
        assert_eq!(key.thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn what_is_no_private_key_is_refused_without_quoting_it() {
        let key = PrivateKey::generate(Kind::EdDsa).unwrap();
        let other = PrivateKey::generate(Kind::EdDsa).unwrap();
        let with = |name: &str, value: Value| {
            let mut jwk = key.private_jwk();
            jwk[name] = value;
            jwk
        };
        let secret = key.private_jwk()["d"].as_str().unwrap().to_owned();
        for (jwk, problem) in [
            (json!([]), "is not a JWK: not an object"),
            (json!({ "keys": [] }), "is a set of keys, not one private key"),
            (json!({ "kty": "RSA" }), "is `RSA`: only Ed25519 and P-256 keys sign here"),
            (
                with("crv", "X25519".into()),
                "is `OKP` on `X25519`: only Ed25519 and P-256 keys sign here",
            ),
            (key.public_jwk(), "is not a private key: `d` is missing"),
            (
                with("d", secret.get(1..).unwrap().into()),
                "`d` is not 32 octets of a private key in base64url",
            ),
            (
                with("x", other.public_jwk()["x"].clone()),
                "`d` is not the private half of its public members",
            ),
            (with("use", "enc".into()), "the key's `use` is `enc`, not `sig`"),
            (with("alg", "ES256".into()), "the key is bound to `ES256`, the algorithm is `EdDSA`"),
            (with("key_ops", json!(["verify"])), "`key_ops` is without `sign`"),
        ] {
            let told = PrivateKey::from_jwk(&jwk).unwrap_err();
            assert_eq!(told, problem);
            assert!(!told.contains(&secret));
        }
        assert!(!format!("{key:?}").contains(&secret));
    }
}
