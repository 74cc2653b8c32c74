//! What the policy may look at: the caller and the request, as plain verified facts.

use serde_json::Value;

/// A fact that may be unknown. The difference between "known to be empty" and "unknown" decides:
/// an allow rule needs what it asks for to be known, and a deny rule that asks for something unknown denies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fact {
    /// Nobody said anything about it: no such claim, or no credential that would carry it.
    #[default]
    Unknown,
    /// These values, perhaps none.
    Known(Vec<String>),
}

impl Fact {
    /// Exactly one value.
    pub fn one(value: impl Into<String>) -> Self {
        Self::Known(vec![value.into()])
    }

    /// The values, or `None` if the fact is unknown.
    pub fn values(&self) -> Option<&[String]> {
        match self {
            Self::Unknown => None,
            Self::Known(values) => Some(values),
        }
    }
}

/// Everything verified about who calls. Every field but one has the name of the policy
/// selector that reads it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Caller {
    /// `dag_id` of the Airflow identity.
    pub dags: Fact,
    /// `task_id` of the Airflow identity.
    pub tasks: Fact,
    /// `run_id` of the Airflow identity.
    pub runs: Fact,
    /// `run_type` of the Airflow identity: `scheduled`, `manual`, `backfill`, `asset_triggered` …
    pub run_types: Fact,
    /// Owners of the DAG.
    pub owners: Fact,
    /// Tags of the DAG.
    pub tags: Fact,
    /// Team of the DAG (Airflow multi-team).
    pub teams: Fact,
    /// Airflow RBAC roles that may act on the DAG.
    pub airflow_roles: Fact,
    /// The task's queue.
    pub queues: Fact,
    /// Name of the calling Consul service; unknown until a mesh peer is verified.
    pub services: Fact,
    /// SPIFFE ID of the mTLS peer; unknown until a mesh peer is verified.
    pub spiffe_ids: Fact,
    /// Configured names of the issuers of the credentials that were verified.
    pub issuers: Fact,
    /// The keys that signed them, as `issuer/kid`: the configured name of the issuer, and its own of the key.
    pub key_ids: Fact,
    /// `sub` of the access token.
    pub subjects: Fact,
    /// Scopes of the access token: `scope` (space-delimited, RFC 8693 §4.2) or `scp`.
    pub scopes: Fact,
    /// Who asserts the Airflow identity, for the policy's `agreement`; `None` without an identity.
    pub assertion: Option<Assertion>,
    /// All claims of the access token, for `claims: {name: [values]}`; null without a token.
    pub claims: Value,
}

/// Who asserts an Airflow identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// The configured name of its issuer.
    pub issuer: String,
    /// The key that signed it, as `issuer/kid`, if it was named.
    pub key_id: Option<String>,
}

/// What is asked for, before the policy has normalised it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// `:authority`.
    pub authority: &'a str,
    /// `:scheme`, `http` or `https`: says which port is the default one. Not read for a CONNECT, which has
    /// none: there it is that of `https`.
    pub scheme: &'a str,
    /// `:method`, case-sensitive (RFC 9110 §9.1).
    pub method: &'a str,
    /// `:path` with its query, if any; not read for a CONNECT, which has none (RFC 9110 §9.3.6).
    pub target: &'a str,
}
