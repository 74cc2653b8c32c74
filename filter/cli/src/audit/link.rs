//! From lines to links: what of a record its chain is made of. This is the costly part of verifying,
//! and one that needs no other record.

use std::collections::HashMap;

use airflow_envoy_core::jose::{Algorithm, KeySet, PublicKey, RustCrypto, SignatureVerifier as _};
use airflow_envoy_core::limits::Limits;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::reader::{Chunk, Damaged, Found, Head, Place, Seen};
use super::record::{Counts, Kind, Record};

/// SHA-256 of a line.
pub type Hash = [u8; 32];

/// A hash as records and witnesses have it.
pub fn hash_text(hash: &Hash) -> String {
    URL_SAFE_NO_PAD.encode(hash)
}

/// Reads a hash.
pub fn read_hash(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut hash).ok()?;
    (length == hash.len()).then_some(hash)
}

/// What can be said about a record's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// It has none.
    Absent,
    /// It has one, and there are no keys to check it with.
    Unchecked,
    /// It was made with the key that it names.
    Good,
    /// It was not made with the key that it names, or over another text.
    Bad,
    /// It names a key that is not among those given.
    KeyUnknown,
}

/// What of a record its chain is made of.
#[derive(Debug, Clone)]
pub struct Link {
    /// Where it stands.
    pub place: Place,
    /// Its place among all that was read.
    pub order: u64,
    /// Its place in the stream.
    pub seq: u64,
    /// The hash of its line.
    pub hash: Hash,
    /// The hash that it names of the line before.
    pub prev: Option<Hash>,
    /// Its time as a number that grows with it; 0 if it is not in the one form.
    pub time: u64,
    /// What it is about.
    pub kind: Kind,
    /// Its signature.
    pub signature: Signature,
    /// What else matters of a record that is no decision.
    pub rest: Option<Box<Rest>>,
}

/// What matters of a record that is no decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rest {
    /// The time as it is written.
    pub time: String,
    /// The key of the signature.
    pub key_id: Option<String>,
    /// The process of the stream.
    pub process: Option<String>,
    /// The stream, record and hash that a stream takes over from.
    pub predecessor: Option<(u64, u64, Option<Hash>)>,
    /// Between which records, these included, some were lost.
    pub lost: Option<(u64, u64)>,
    /// How many.
    pub lost_records: u64,
    /// Why.
    pub reason: Option<String>,
    /// Decisions so far.
    pub counts: Option<Counts>,
}

/// The public keys that signatures are checked with, by what records call them.
#[derive(Debug, Default)]
pub struct Keys(HashMap<String, Vec<PublicKey>>);

impl Keys {
    /// Adds the keys of a JWK Set (RFC 7517 §5) or a single JWK.
    ///
    /// # Errors
    /// Why it is none, or a key in it that can check nothing here.
    pub fn add(&mut self, document: &[u8]) -> Result<(), String> {
        let limits = &Limits::DEFAULT;
        if document.len() > limits.key_set_bytes {
            return Err(format!("is larger than {} bytes", limits.key_set_bytes));
        }
        let value = airflow_envoy_core::json::parse(document, limits.json_depth)
            .map_err(|error| error.to_string())?;
        let single = value.get("kty").is_some();
        let value = if single { json!({"keys": [value]}) } else { value };
        let (set, skipped) =
            KeySet::from_value(&value, limits).map_err(|error| error.to_string())?;
        // A key that is left out would look like a forger's.
        if let Some(skipped) = skipped.first() {
            return Err(skipped.to_string());
        }
        for key in set.keys() {
            if key.fits(Algorithm::EdDsa).is_err() {
                let name = key.id().unwrap_or(key.thumbprint());
                return Err(format!("key `{name}` is not one for Ed25519 signatures"));
            }
            let names = [key.id(), Some(key.thumbprint())];
            let mut names: Vec<&str> = names.into_iter().flatten().collect();
            names.dedup();
            for name in names {
                self.0.entry(name.to_owned()).or_default().push(key.clone());
            }
        }
        Ok(())
    }

    fn check(&self, head: &Head<'_>) -> Signature {
        let Some(signature) = head.signature else { return Signature::Absent };
        if self.0.is_empty() {
            return Signature::Unchecked;
        }
        let key_id: Option<String> =
            head.key_id.and_then(|id| serde_json::from_str(&format!("\"{id}\"")).ok());
        let Some(keys) = key_id.and_then(|id| self.0.get(&id)) else {
            return Signature::KeyUnknown;
        };
        let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return Signature::Bad };
        let signed = head.signed().concat();
        let good = |key: &PublicKey| {
            RustCrypto.verify(key, Algorithm::EdDsa, signed.as_bytes(), &signature)
        };
        if keys.iter().any(good) { Signature::Good } else { Signature::Bad }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is found in a chunk.
#[derive(Debug, Default)]
pub struct Links {
    /// Records with their streams, in their order.
    pub links: Vec<(u64, Link)>,
    /// What was a record.
    pub damaged: Vec<(Place, Damaged)>,
    /// Records of other versions.
    pub foreign_versions: Vec<(Place, String)>,
    /// What was seen.
    pub seen: Seen,
}

impl Links {
    /// Of one chunk.
    pub fn of(chunk: &Chunk, keys: &Keys) -> Self {
        let mut all = Self::default();
        let seen = chunk.each(|place, found| match found {
            Found::Damaged(damaged) => all.damaged.push((place, damaged)),
            Found::Record(head) if head.v != "1" => {
                all.foreign_versions.push((place, head.v.chars().take(32).collect()));
            }
            Found::Record(head) => match link(place, &head, keys) {
                Ok(link) => all.links.push(link),
                Err(problem) => {
                    let problem = format!("is not a record any more: {problem}");
                    let stream = Some(head.stream.chars().take(64).collect());
                    all.damaged.push((place, Damaged { problem, stream, seq: head.seq }));
                }
            },
        });
        all.seen = seen;
        all
    }
}

fn link(place: Place, head: &Head<'_>, keys: &Keys) -> Result<(u64, Link), String> {
    let stream = stream_number(head.stream).ok_or("`stream` is not 16 hexadecimal digits")?;
    let seq = head.seq.ok_or("`seq` is not a number")?;
    let prev = match head.prev {
        Some(text) => Some(read_hash(text).ok_or("`prev` is not a hash")?),
        None => None,
    };
    let rest = if head.kind == Kind::Decision { None } else { Some(Box::new(rest(head)?)) };
    let link = Link {
        place,
        order: 0,
        seq,
        hash: Sha256::digest(head.text.as_bytes()).into(),
        prev,
        time: time_number(head.time).ok_or("`time` is not a time in UTC with milliseconds")?,
        kind: head.kind,
        signature: keys.check(head),
        rest,
    };
    Ok((stream, link))
}

fn rest(head: &Head<'_>) -> Result<Rest, String> {
    let record = Record::parse(head.text)?;
    let predecessor = match &record.predecessor {
        Some(before) => {
            let stream =
                stream_number(&before.stream).ok_or("`predecessor.stream` is not a stream")?;
            Some((stream, before.seq, read_hash(&before.hash)))
        }
        None => None,
    };
    Ok(Rest {
        time: record.time.to_string(),
        key_id: record.key_id.as_deref().map(str::to_owned),
        process: record.process.as_deref().map(str::to_owned),
        predecessor,
        lost: record.from_seq.zip(record.to_seq),
        lost_records: record.records.unwrap_or_default(),
        reason: record.reason.as_deref().map(str::to_owned),
        counts: record.counts,
    })
}

/// 16 lower-case hexadecimal digits.
pub fn stream_number(text: &str) -> Option<u64> {
    let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let fits = text.len() == 16 && text.bytes().all(digits);
    fits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// `2026-11-22T08:00:00.123Z` as 20261122080000123.
fn time_number(text: &str) -> Option<u64> {
    let pattern = b"0000-00-00T00:00:00.000Z";
    if text.len() != pattern.len() {
        return None;
    }
    let mut number = 0_u64;
    for (byte, wanted) in text.bytes().zip(pattern) {
        match (byte, wanted) {
            (b'0'..=b'9', b'0') => number = number * 10 + u64::from(byte - b'0'),
            (byte, wanted) if byte == *wanted => {}
            _ => return None,
        }
    }
    Some(number)
}

/// Reads a document of heads that were seen before, see [`super::verify`].
pub(super) fn text_of<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    value.get(name).and_then(Value::as_str)
}
