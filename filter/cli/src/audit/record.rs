//! A record as it was written, by name. Absent means unknown or not applicable.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

pub use airflow_envoy_core::audit::Decision;
use airflow_envoy_core::time::UnixTime;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// The version of the records that this tool reads.
pub const VERSION: u64 = 1;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A stream begins.
    Begin,
    /// A call was decided.
    Decision,
    /// What was written so far, signed.
    Checkpoint,
    /// Records that could not be delivered.
    Loss,
    /// A stream ends.
    End,
}

impl Kind {
    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "begin" => Self::Begin,
            "decision" => Self::Decision,
            "checkpoint" => Self::Checkpoint,
            "loss" => Self::Loss,
            "end" => Self::End,
            _ => return None,
        })
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Decision => "decision",
            Self::Checkpoint => "checkpoint",
            Self::Loss => "loss",
            Self::End => "end",
        }
    }
}

/// The decision of this name; the core's own list of them.
fn decision<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Decision>, D::Error> {
    let name = Text::deserialize(from)?;
    let known = Decision::ALL.into_iter().find(|known| known.name() == &*name);
    known.map(Some).ok_or_else(|| D::Error::custom("is no decision"))
}

/// A text of a record: a part of its line, unless that has escapes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text<'t>(pub Cow<'t, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de: 't, 't> Deserialize<'de> for Text<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyText;
        impl<'de> Visitor<'de> for AnyText {
            type Value = Text<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(AnyText)
    }
}

/// One record of any kind. Members of the other kinds are absent or empty. Members that this version
/// does not know are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record<'t> {
    /// The version of the format.
    pub v: u64,
    /// What it is about.
    pub kind: Kind,
    /// One worker since it was configured: 16 hexadecimal digits.
    #[serde(borrow)]
    pub stream: Text<'t>,
    /// Its place in the stream, from 0.
    pub seq: u64,
    /// When it was written: RFC 3339, UTC, milliseconds.
    pub time: Text<'t>,
    /// base64url of the SHA-256 of the stream's previous line.
    pub prev: Option<Text<'t>>,
    /// `enforce` or `shadow` in a begin; `shadow` in a decision that was not carried out.
    pub mode: Option<Text<'t>>,
    /// The key of `signature`.
    pub key_id: Option<Text<'t>>,
    /// Ed25519 over the line without this member, base64url.
    pub signature: Option<Text<'t>>,

    /// The Envoy process.
    pub process: Option<Text<'t>>,
    /// The version of the filter.
    pub version: Option<Text<'t>>,
    /// The commit that it was built from.
    pub commit: Option<Text<'t>>,
    /// One permit of so many is recorded.
    pub sample: Option<u64>,
    /// The stream that this one takes over from.
    pub predecessor: Option<Predecessor<'t>>,

    /// What was decided.
    #[serde(default, deserialize_with = "decision")]
    pub decision: Option<Decision>,
    /// 32 hexadecimal digits, as in the answer.
    pub decision_id: Option<Text<'t>>,
    /// Why it was refused.
    pub code: Option<Text<'t>>,
    /// Why it was refused, as a sentence.
    pub detail: Option<Text<'t>>,
    /// The rule that came nearest to allowing it.
    pub nearest: Option<Text<'t>>,
    /// The rule that decided.
    pub rule: Option<Text<'t>>,
    /// The temporary grant that permitted it.
    pub grant: Option<Text<'t>>,
    /// The destination.
    pub destination: Option<Text<'t>>,
    /// `rule:permit` or `rule:reject`: shadow rules that would have changed it.
    #[serde(default)]
    pub shadow: Vec<Text<'t>>,
    /// Revisions of the policies that decided, by the names of their sources; 0 without one.
    #[serde(default)]
    pub policies: BTreeMap<Text<'t>, u64>,
    /// Who called, as far as it was verified.
    #[serde(default)]
    pub caller: Caller<'t>,
    /// What was asked for.
    #[serde(default)]
    pub request: Request<'t>,
    /// What the caller got.
    #[serde(default)]
    pub response: Response,
    /// How long it took, in microseconds.
    #[serde(default)]
    pub duration_us: Durations,
    /// This permit stands for so many.
    pub sampled: Option<u64>,
    /// JSON pointers (RFC 6901) of texts that were cut.
    #[serde(default)]
    pub truncated: Vec<Text<'t>>,

    /// Decisions since the stream began.
    pub counts: Option<Counts>,
    /// Why a stream ended, or why records were lost.
    pub reason: Option<Text<'t>>,
    /// How many records were lost.
    pub records: Option<u64>,
    /// The first one lost.
    pub from_seq: Option<u64>,
    /// The last one lost.
    pub to_seq: Option<u64>,
}

/// The last known record of a stream that another one takes over from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Predecessor<'t> {
    /// The stream.
    #[serde(borrow)]
    pub stream: Text<'t>,
    /// The record.
    pub seq: u64,
    /// base64url of the SHA-256 of its line.
    pub hash: Text<'t>,
}

/// Who called: only what was verified.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Caller<'t> {
    /// The Airflow identity.
    #[serde(borrow)]
    pub identity: Option<Identity<'t>>,
    /// The access token.
    pub token: Option<Token<'t>>,
    /// The mesh peer.
    pub peer: Option<Peer<'t>>,
}

/// The Airflow identity; names as in `airflow-envoy test`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[expect(missing_docs, reason = "the names of the identity's own claims")]
pub struct Identity<'t> {
    #[serde(borrow)]
    pub dag_id: Text<'t>,
    pub task_id: Text<'t>,
    pub run_id: Text<'t>,
    pub map_index: Option<i64>,
    pub try_number: Option<u64>,
    pub run_type: Option<Values<'t>>,
    pub queue: Option<Values<'t>>,
    pub team: Option<Values<'t>>,
    pub owners: Option<Values<'t>>,
    pub tags: Option<Values<'t>>,
    pub roles: Option<Values<'t>>,
    pub taken_roles: Option<Values<'t>>,
    pub ti_id: Option<Text<'t>>,
    pub triggering_user_name: Option<Text<'t>>,
    pub issuer: Option<Text<'t>>,
    pub key_id: Option<Text<'t>>,
}

/// The values of a fact, perhaps none; one is written as a text or as a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values<'t>(pub Vec<Text<'t>>);

impl<'t> Deref for Values<'t> {
    type Target = [Text<'t>];

    fn deref(&self) -> &[Text<'t>] {
        &self.0
    }
}

impl<'de: 't, 't> Deserialize<'de> for Values<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValues;
        impl<'de> Visitor<'de> for AnyValues {
            type Value = Values<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text or a list of texts")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Values<'de>, E> {
                Ok(Values(vec![Text(Cow::Borrowed(text))]))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Values<'de>, E> {
                Ok(Values(vec![Text(Cow::Owned(text.to_owned()))]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Values<'de>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Values(values))
            }
        }
        deserializer.deserialize_any(AnyValues)
    }
}

/// The access token.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Token<'t> {
    /// The configured name of its issuer.
    #[serde(borrow)]
    pub issuer: Option<Text<'t>>,
    /// The key that signed it.
    pub key_id: Option<Text<'t>>,
    /// `sub`.
    pub subject: Option<Text<'t>>,
    /// `client_id`.
    pub client_id: Option<Text<'t>>,
    /// Its scopes.
    pub scopes: Option<Values<'t>>,
    /// Those of its claims that are configured to be recorded.
    #[serde(default)]
    pub claims: Map<String, Value>,
}

/// The mesh peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Peer<'t> {
    /// Its SPIFFE ID.
    #[serde(borrow)]
    pub spiffe_id: Option<Text<'t>>,
    /// Its Consul service.
    pub service: Option<Text<'t>>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Request<'t> {
    /// `:method`.
    #[serde(borrow)]
    pub method: Option<Text<'t>>,
    /// `:scheme`.
    pub scheme: Option<Text<'t>>,
    /// `:authority`.
    pub authority: Option<Text<'t>>,
    /// The path without its query: in its normal form if it has one.
    pub path: Option<Text<'t>>,
    /// base64url of the SHA-256 of the query.
    pub query_sha256: Option<Text<'t>>,
    /// `x-request-id`.
    pub request_id: Option<Text<'t>>,
    /// W3C Trace Context.
    pub trace_id: Option<Text<'t>>,
    /// W3C Trace Context.
    pub span_id: Option<Text<'t>>,
}

/// What the caller got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Response {
    /// The HTTP status.
    pub status: Option<u64>,
    /// Envoy's response flags.
    pub flags: Option<u64>,
}

/// How long it took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Durations {
    /// From the headers to the verdict, unless that was reached at once.
    pub decided: Option<u64>,
    /// The whole call.
    pub total: Option<u64>,
}

/// Decisions of a stream since it began, recorded or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Let through.
    pub permits: u64,
    /// Refused.
    pub rejects: u64,
    /// Left undecided.
    pub abandoned: u64,
    /// Permits that were not recorded, because only a sample is.
    pub sampled_out: u64,
    /// Records that were lost.
    pub lost: u64,
}

impl<'t> Record<'t> {
    /// Reads one line.
    ///
    /// # Errors
    /// Why it is not a record of this version.
    pub fn parse(text: &'t str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if record.v != VERSION {
            return Err(format!("version {} is not {VERSION}", record.v));
        }
        Ok(record)
    }

    /// When it was written, if that is a time.
    pub fn at(&self) -> Option<UnixTime> {
        UnixTime::from_rfc3339(&self.time)
    }

    /// How many decisions it stands for: a sampled permit is one of several.
    pub fn weight(&self) -> u64 {
        self.sampled.unwrap_or(1).max(1)
    }

    /// Whether the text at this JSON pointer was cut.
    pub fn is_cut(&self, pointer: &str) -> bool {
        self.truncated.iter().any(|cut| **cut == *pointer)
    }
}
