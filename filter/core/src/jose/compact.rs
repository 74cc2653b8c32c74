//! The compact serialization of a signed message (RFC 7515 §7.1), read strictly.
//!
//! What it is not: it does not care what the payload is. The JSON serializations are not read:
//! they are not JWTs (RFC 7519 §3).

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::base64url;
use super::key::{Misfit, PublicKey, is_key_id};
use super::key_set::KeySet;
use super::verifier::{RustCrypto, SignatureVerifier};
use crate::cache::same;
use crate::json::{self, JsonError};
use crate::limits::Limits;
use crate::pace::Pace;
use crate::quote::{quote, quote_list};

/// A well-formed signed message. Nobody has verified it yet.
#[derive(Clone)]
pub struct Jws<'t> {
    header: Rc<Header>,
    payload: Vec<u8>,
    signature: Vec<u8>,
    /// `BASE64URL(header) || '.' || BASE64URL(payload)` (RFC 7515 §5.1): of the text, unless its payload was
    /// carried beside it.
    signing_input: Cow<'t, [u8]>,
}

/// The header that was read last, by its text. An issuer writes the same one into each message that it signs with one
/// key, and to read it costs as much as a third of the claims.
#[derive(Debug, Default)]
pub struct LastHeader(Option<(Box<[u8]>, Rc<Header>)>);

/// The header parameters that matter (RFC 7515 §4.1); the others are ignored, as §4 says. Above
/// all `jku`, `jwk`, `x5u` and `x5c`: a message does not choose the key that verifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `alg`, whatever it is: compared with an allow-list, never obeyed.
    pub algorithm: String,
    /// `kid`.
    pub key_id: Option<String>,
    /// `typ`.
    pub token_type: Option<String>,
}

/// Why a text is not a signed message that can be looked at. Never quotes the payload or signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseError {
    /// Longer than allowed.
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The bytes allowed.
        limit: usize,
    },
    /// Not three parts.
    Parts {
        /// How many there are.
        found: usize,
    },
    /// A character outside the alphabet, padding, or trailing bits that are not zero; or empty.
    Part {
        /// `header`, `payload` or `signature`.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The header is not acceptable JSON.
    HeaderJson(JsonError),
    /// A header parameter is missing or of the wrong kind.
    Parameter {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A header parameter that changes what the message means and is not supported.
    Unsupported {
        /// Its name.
        name: &'static str,
    },
}

/// Why a signed message is not trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyError {
    /// The algorithm is not on the allow-list.
    AlgorithmNotAllowed {
        /// The header's `alg`.
        algorithm: String,
        /// The allow-list.
        allowed: Vec<Algorithm>,
    },
    /// No key has the header's `kid`.
    KeyUnknown {
        /// The header's `kid`.
        key_id: String,
        /// How many keys there are.
        known: usize,
    },
    /// The header has no `kid`, and not exactly one key can be meant.
    KeyIdNeeded {
        /// The algorithm.
        algorithm: Algorithm,
        /// How many keys fit it.
        fitting: usize,
    },
    /// The named key must not verify the algorithm.
    KeyUnsuitable {
        /// The header's `kid`.
        key_id: String,
        /// Why not.
        misfit: Misfit,
    },
    /// The signature is not by the key.
    SignatureInvalid {
        /// How many keys were tried.
        tried: usize,
        /// The algorithm.
        algorithm: Algorithm,
    },
}

impl<'t> Jws<'t> {
    /// Reads a compact serialization of at most `most` bytes.
    ///
    /// # Errors
    /// [`ParseError`].
    pub fn parse(text: &'t [u8], most: usize, limits: &Limits) -> Result<Self, ParseError> {
        Self::parse_like(&mut LastHeader::default(), text, most, limits)
    }

    /// As [`Self::parse`], after others like it.
    ///
    /// # Errors
    /// [`ParseError`].
    pub fn parse_like(
        last: &mut LastHeader,
        text: &'t [u8],
        most: usize,
        limits: &Limits,
    ) -> Result<Self, ParseError> {
        if text.len() > most {
            return Err(ParseError::TooLarge { bytes: text.len(), limit: most });
        }
        let Parts { header, payload, signature, signing_input } = Parts::of(text)?;
        let mut read = || {
            Ok(Self {
                header: last.read(header, limits)?,
                payload: decode("payload", payload)?,
                signature: decode("signature", signature)?,
                signing_input: Cow::Borrowed(signing_input),
            })
        };
        // A dot in the payload makes more parts of it, and is no base64url either: to count them is left to who finds a
        // fault.
        read().map_err(|error| too_many_parts(text).unwrap_or(error))
    }

    /// As [`Self::parse`], at a pace, all but the header: for what may be large.
    ///
    /// # Errors
    /// [`ParseError`].
    pub async fn parse_at(
        text: &'t [u8],
        most: usize,
        limits: &Limits,
        pace: &Pace,
    ) -> Result<Self, ParseError> {
        if text.len() > most {
            return Err(ParseError::TooLarge { bytes: text.len(), limit: most });
        }
        let Parts { header, payload, signature, signing_input } = Parts::of_at(text, pace).await?;
        Ok(Self {
            header: LastHeader::default().read(header, limits)?,
            payload: decode_at("payload", payload, pace).await?,
            signature: decode_at("signature", signature, pace).await?,
            signing_input: Cow::Borrowed(signing_input),
        })
    }

    /// Reads a compact serialization whose payload is carried beside it (RFC 7515 appendix F).
    ///
    /// # Errors
    /// [`ParseError`]; also if the text does have a payload.
    pub fn parse_detached(
        text: &'t [u8],
        payload: Vec<u8>,
        most: usize,
        limits: &Limits,
    ) -> Result<Self, ParseError> {
        if text.len() > most {
            return Err(ParseError::TooLarge { bytes: text.len(), limit: most });
        }
        let Parts { header, payload: attached, signature, .. } = Parts::of(text)?;
        if !attached.is_empty() {
            let attached = ParseError::Part { name: "payload", problem: "is not detached" };
            return Err(too_many_parts(text).unwrap_or(attached));
        }
        let encoded = base64url::encode(&payload);
        Ok(Self {
            header: LastHeader::default().read(header, limits)?,
            payload,
            signature: decode("signature", signature)?,
            signing_input: Cow::Owned([header, b".", encoded.as_bytes()].concat()),
        })
    }

    /// The same by itself, without the text that it was read from.
    pub fn into_owned(self) -> Jws<'static> {
        let Self { header, payload, signature, signing_input } = self;
        Jws { header, payload, signature, signing_input: Cow::Owned(signing_input.into_owned()) }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The payload, not verified.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, not verified, by itself.
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }

    /// Verifies the signature with a key of `keys` by an algorithm of `allowed`, and says by which.
    ///
    /// The algorithm is checked before a key is looked for, the key before the signature: what
    /// costs most comes last, and a message cannot choose how it is verified.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify<'k>(
        &self,
        allowed: &[Algorithm],
        keys: &'k KeySet,
        verifier: &dyn SignatureVerifier,
    ) -> Result<(Algorithm, &'k PublicKey), VerifyError> {
        let algorithm = self.header.allowed_algorithm(allowed)?;
        let mut candidates = keys.select(self.header.key_id.as_deref(), algorithm)?;
        let all = candidates.clone();
        candidates
            .find(|key| {
                key.is_in_range(&self.signature)
                    && verifier.verify(key, algorithm, &self.signing_input, &self.signature)
            })
            .map(|key| (algorithm, key))
            .ok_or_else(|| VerifyError::SignatureInvalid { tried: all.count(), algorithm })
    }

    /// As [`Self::verify`] with [`RustCrypto`], at a pace: a host would verify it all at once.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn verify_at<'k>(
        &self,
        allowed: &[Algorithm],
        keys: &'k KeySet,
        pace: &Pace,
    ) -> Result<(Algorithm, &'k PublicKey), VerifyError> {
        let algorithm = self.header.allowed_algorithm(allowed)?;
        let mut tried = 0_usize;
        for key in keys.select(self.header.key_id.as_deref(), algorithm)? {
            tried = tried.saturating_add(1);
            if key.is_in_range(&self.signature)
                && RustCrypto
                    .verify_at(key, algorithm, &self.signing_input, &self.signature, pace)
                    .await
            {
                return Ok((algorithm, key));
            }
        }
        Err(VerifyError::SignatureInvalid { tried, algorithm })
    }
}

impl fmt::Debug for Jws<'_> {
    /// Without the payload and the signature: a credential does not belong into a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Jws").field("header", &self.header).finish_non_exhaustive()
    }
}

impl LastHeader {
    /// The header of this text.
    fn read(&mut self, text: &[u8], limits: &Limits) -> Result<Rc<Header>, ParseError> {
        if let Some((known, header)) = &self.0
            && same(known, text)
        {
            return Ok(Rc::clone(header));
        }
        let header = Rc::new(Header::parse(&decode("header", text)?, limits)?);
        self.0 = Some((text.into(), Rc::clone(&header)));
        Ok(header)
    }
}

impl Header {
    fn parse(text: &[u8], limits: &Limits) -> Result<Self, ParseError> {
        let header = json::parse(text, limits.json_depth).map_err(ParseError::HeaderJson)?;
        let Value::Object(header) = header else {
            return Err(ParseError::Part { name: "header", problem: "is not a JSON object" });
        };
        // `crit` (RFC 7515 §4.1.11): no extension is understood, and an empty list is forbidden.
        // `b64` (RFC 7797) changes what is signed; `enc` and `zip` (RFC 7516) are of encryption.
        for name in ["crit", "b64", "enc", "zip"] {
            if header.contains_key(name) {
                return Err(ParseError::Unsupported { name });
            }
        }
        let algorithm = parameter(&header, "alg")?
            .ok_or(ParseError::Parameter { name: "alg", problem: "is missing" })?;
        let key_id = parameter(&header, "kid")?;
        if key_id.as_deref().is_some_and(|id| !is_key_id(id, limits)) {
            let problem = "is too long or contains control characters";
            return Err(ParseError::Parameter { name: "kid", problem });
        }
        Ok(Self { algorithm, key_id, token_type: parameter(&header, "typ")? })
    }

    /// Whether `typ` is `accepted` (RFC 8725 §3.11), compared without case and with or without
    /// `application/` (RFC 7515 §4.1.9). A missing one is none.
    pub fn is_of_type(&self, accepted: &str) -> bool {
        let found = self.token_type.as_deref();
        found.is_some_and(|found| bare_type(found).eq_ignore_ascii_case(bare_type(accepted)))
    }

    /// The algorithm, if `allowed` has it (RFC 8725 §3.1).
    ///
    /// # Errors
    /// [`VerifyError::AlgorithmNotAllowed`].
    pub fn allowed_algorithm(&self, allowed: &[Algorithm]) -> Result<Algorithm, VerifyError> {
        Algorithm::from_name(&self.algorithm)
            .filter(|algorithm| allowed.contains(algorithm))
            .ok_or_else(|| VerifyError::AlgorithmNotAllowed {
                algorithm: self.algorithm.clone(),
                allowed: allowed.to_vec(),
            })
    }
}

/// A `typ` (RFC 7515 §4.1.9) to compare without case: `application/` may be left out of a media type
/// without another slash.
pub(crate) fn bare_type(token_type: &str) -> &str {
    const PREFIX: &str = "application/";
    match token_type.split_at_checked(PREFIX.len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case(PREFIX) && !rest.contains('/') => rest,
        _ => token_type,
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes, limit } => {
                write!(formatter, "{bytes} bytes, more than {limit}")
            }
            Self::Parts { found: 5 } => {
                formatter.write_str("five parts: encrypted (JWE), only signed (JWS) is accepted")
            }
            Self::Parts { found } => {
                write!(formatter, "not the compact form of three parts, but {found}")
            }
            Self::Part { name, problem } => write!(formatter, "the {name} {problem}"),
            Self::HeaderJson(error) => write!(formatter, "the header: {error}"),
            Self::Parameter { name, problem } => {
                write!(formatter, "the header parameter `{name}` {problem}")
            }
            Self::Unsupported { name } => {
                write!(formatter, "the header parameter `{name}` is not supported")
            }
        }
    }
}

impl std::error::Error for ParseError {}

impl fmt::Display for VerifyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlgorithmNotAllowed { algorithm, allowed } => {
                let allowed = quote_list(allowed.iter().map(|algorithm| algorithm.name()));
                write!(formatter, "the algorithm is {}, allowed: {allowed}", quote(algorithm))
            }
            Self::KeyUnknown { key_id, known } => {
                write!(formatter, "none of the {known} keys has the `kid` {}", quote(key_id))
            }
            Self::KeyIdNeeded { algorithm, fitting } => write!(
                formatter,
                "without a `kid` exactly one key must fit `{algorithm}`, but {fitting} do: \
                 a `kid` is needed"
            ),
            Self::KeyUnsuitable { key_id, misfit } => {
                write!(formatter, "the key {}: {misfit}", quote(key_id))
            }
            Self::SignatureInvalid { tried: 1, algorithm } => {
                write!(formatter, "the `{algorithm}` signature is not by the key")
            }
            Self::SignatureInvalid { tried, algorithm } => {
                write!(formatter, "the `{algorithm}` signature is by none of {tried} keys")
            }
        }
    }
}

impl std::error::Error for VerifyError {}

/// A text by its first and its last dot.
struct Parts<'t> {
    header: &'t [u8],
    /// What is between them; it may have dots of its own.
    payload: &'t [u8],
    signature: &'t [u8],
    /// All before the last dot.
    signing_input: &'t [u8],
}

impl<'t> Parts<'t> {
    fn of(text: &'t [u8]) -> Result<Self, ParseError> {
        let is_dot = |byte: &u8| *byte == b'.';
        let parts = || {
            let (signing_input, signature) =
                text.split_at_checked(text.iter().rposition(is_dot)?)?;
            let (header, payload) =
                signing_input.split_at_checked(signing_input.iter().position(is_dot)?)?;
            let ([_, signature @ ..], [_, payload @ ..]) = (signature, payload) else {
                return None;
            };
            Some(Self { header, payload, signature, signing_input })
        };
        parts().ok_or_else(|| ParseError::Parts { found: count_parts(text) })
    }

    async fn of_at(text: &'t [u8], pace: &Pace) -> Result<Self, ParseError> {
        let (mut dots, mut places) = (0_usize, [0; 2]);
        for (number, part) in text.chunks(SEARCHED_AT_ONCE).enumerate() {
            let begin = number.saturating_mul(SEARCHED_AT_ONCE);
            for (at, _) in part.iter().enumerate().filter(|(_, byte)| **byte == b'.') {
                if let Some(place) = places.get_mut(dots) {
                    *place = begin.saturating_add(at);
                }
                dots = dots.saturating_add(1);
            }
            pace.spend(1 + part.len() / SEARCHED_PER_UNIT).await;
        }
        let [first, second] = places;
        let between = |begin: usize, end| text.get(begin.saturating_add(1)..end);
        let parts = || {
            Some(Self {
                header: text.get(..first)?,
                payload: between(first, second)?,
                signature: between(second, text.len())?,
                signing_input: text.get(..second)?,
            })
        };
        let parts = if dots == places.len() { parts() } else { None };
        parts.ok_or(ParseError::Parts { found: dots.saturating_add(1) })
    }
}

/// Bytes that are searched at once.
const SEARCHED_AT_ONCE: usize = 16 * 1024;

/// Bytes that are searched in about one unit.
const SEARCHED_PER_UNIT: usize = 1000;

fn count_parts(text: &[u8]) -> usize {
    text.split(|byte| *byte == b'.').count()
}

fn too_many_parts(text: &[u8]) -> Option<ParseError> {
    let found = count_parts(text);
    (found > 3).then_some(ParseError::Parts { found })
}

fn decode(name: &'static str, part: &[u8]) -> Result<Vec<u8>, ParseError> {
    decoded(name, part, base64url::decode(part))
}

async fn decode_at(name: &'static str, part: &[u8], pace: &Pace) -> Result<Vec<u8>, ParseError> {
    decoded(name, part, base64url::decode_at(part, pace).await)
}

/// What was made of a part.
fn decoded(
    name: &'static str,
    part: &[u8],
    octets: Option<Vec<u8>>,
) -> Result<Vec<u8>, ParseError> {
    if part.is_empty() {
        return Err(ParseError::Part { name, problem: "is empty" });
    }
    octets.ok_or(ParseError::Part { name, problem: "is not canonical unpadded base64url" })
}

fn parameter(
    header: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<String>, ParseError> {
    match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ParseError::Parameter { name, problem: "is not a string" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::at_once;

    /// RFC 8037 appendix A.4 and its key.
    const SIGNED: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0J\
                          zlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    const KEYS: &[u8] = br#"{"keys":[{"kty":"OKP","crv":"Ed25519",
                             "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    /// RFC 7515 appendix F: the same message without its payload.
    #[test]
    fn a_detached_payload_is_verified_like_an_attached_one() {
        let limits = Limits::DEFAULT;
        let (keys, _) = KeySet::parse(KEYS, &limits).unwrap();
        let (header, rest) = SIGNED.split_once('.').unwrap();
        let detached = format!("{header}..{}", rest.split_once('.').unwrap().1);
        for (payload, verified) in [
            ("Example of Ed25519 signing", true),
            ("example of Ed25519 signing", false),
            ("", false),
        ] {
            let jws =
                Jws::parse_detached(detached.as_bytes(), payload.into(), 1000, &limits).unwrap();
            assert_eq!(jws.payload(), payload.as_bytes());
            assert_eq!(jws.verify(&[Algorithm::EdDsa], &keys, &RustCrypto).is_ok(), verified);
        }
        let attached = Jws::parse_detached(SIGNED.as_bytes(), Vec::new(), 1000, &limits);
        assert_eq!(attached.unwrap_err().to_string(), "the payload is not detached");
        let whole = Jws::parse(detached.as_bytes(), 1000, &limits);
        assert_eq!(whole.unwrap_err().to_string(), "the payload is empty");
    }

    #[test]
    fn what_has_not_three_parts_is_refused_for_that_whatever_else_is_wrong() {
        let limits = Limits::DEFAULT;
        let parts = ["eyJhbGciOiJFZERTQSJ9", "e30", "AAAA", "", "!", "AB"];
        for count in 0..6 {
            // Each text of so many parts.
            for number in 0..parts.len().pow(count) {
                let nth = |place| parts[number / parts.len().pow(place) % parts.len()];
                let text: Vec<_> = (0..count).map(nth).collect();
                let text = text.join(".");
                let found = Jws::parse(text.as_bytes(), 1000, &limits).map(|_| ());
                let pace = Pace::unhurried();
                let slowly = Jws::parse_at(text.as_bytes(), 1000, &limits, &pace);
                assert_eq!(at_once(slowly).map(|_| ()), found, "{text}");
                let detached =
                    Jws::parse_detached(text.as_bytes(), b"x".to_vec(), 1000, &limits).map(|_| ());
                let expected = text.split('.').count();
                for found in [found, detached] {
                    let refused = matches!(found, Err(ParseError::Parts { .. }));
                    assert_eq!(refused, expected != 3, "{text}: {found:?}");
                    if refused {
                        assert_eq!(found, Err(ParseError::Parts { found: expected }), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_message_is_read_after_others_as_it_is_alone() {
        let limits = Limits::DEFAULT;
        let headers = [
            r#"{"alg":"ES256","kid":"a"}"#,
            r#"{"alg":"ES256","kid":"b"}"#,
            r#"{"alg":"ES256","kid":"a","crit":[]}"#,
            r#"{"alg":"ES256","kid":"a","kid":"a"}"#,
            r#"{"alg":1}"#,
        ];
        let texts: Vec<_> = headers
            .iter()
            .map(|header| format!("{}.e30.AAAA", base64url::encode(header.as_bytes())))
            .collect();
        let seen = |jws: Result<Jws<'_>, ParseError>| {
            jws.map(|jws| (jws.header().clone(), jws.signing_input.into_owned()))
        };
        for first in &texts {
            for second in &texts {
                let mut last = LastHeader::default();
                for text in [first, second, first, first] {
                    let after = Jws::parse_like(&mut last, text.as_bytes(), 1000, &limits);
                    let alone = Jws::parse(text.as_bytes(), 1000, &limits);
                    assert_eq!(seen(after), seen(alone), "{text} after {first} or {second}");
                }
            }
        }
    }

    #[test]
    fn a_text_is_not_even_looked_at_beyond_its_limit() {
        let limits = Limits::DEFAULT;
        assert!(Jws::parse(SIGNED.as_bytes(), SIGNED.len(), &limits).is_ok());
        let limit = SIGNED.len() - 1;
        let error = Jws::parse(SIGNED.as_bytes(), limit, &limits).unwrap_err();
        assert_eq!(error, ParseError::TooLarge { bytes: SIGNED.len(), limit });
        let error = Jws::parse_detached(&[b'.'; 9], Vec::new(), 8, &limits).unwrap_err();
        assert_eq!(error, ParseError::TooLarge { bytes: 9, limit: 8 });
    }

    #[test]
    fn a_verifier_is_never_asked_about_a_signature_of_another_length() {
        struct Gullible;
        impl SignatureVerifier for Gullible {
            fn verify(&self, key: &PublicKey, _: Algorithm, _: &[u8], signature: &[u8]) -> bool {
                assert_eq!(signature.len(), key.signature_length());
                true
            }
        }
        let (keys, _) = KeySet::parse(KEYS, &Limits::DEFAULT).unwrap();
        for (text, verified) in [
            (SIGNED.to_owned(), true),
            (format!("{SIGNED}AA"), false),
            (format!("{SIGNED}AAAA"), false),
        ] {
            let jws = Jws::parse(text.as_bytes(), 1000, &Limits::DEFAULT).unwrap();
            assert_eq!(jws.verify(Algorithm::ALL, &keys, &Gullible).is_ok(), verified, "{text}");
        }
    }
}
