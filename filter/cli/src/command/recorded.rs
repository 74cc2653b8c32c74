//! A decision from the audit trail, for who wants to know why.

use std::path::PathBuf;

use airflow_envoy_core::facts::Caller;
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::UnixTime;
use serde_json::{Map, Value};

use super::Failed;
use crate::audit::record::{Text, Values};
use crate::audit::{Decision, Found, Kind, Reader, Record, record};
use crate::evaluate::{Peer, Request, Said, Token};
use crate::output::{Style, complain};
use crate::replay;

/// A decision as it was recorded.
#[derive(Debug)]
pub(super) struct Recorded {
    /// What the policy saw of the caller.
    pub caller: Caller,
    /// The same for people.
    pub said: Said,
    /// What was asked for, if that is recorded.
    pub request: Option<Request>,
    /// When it was decided.
    pub at: UnixTime,
    /// What was decided.
    pub decision: Decision,
    /// Why it was refused.
    pub code: Option<String>,
    /// Why it was refused, as a sentence.
    pub detail: String,
    /// The rule that decided.
    pub rule: Option<String>,
    /// The rule that came nearest.
    pub nearest: Option<String>,
    /// What the caller got.
    pub status: Option<u64>,
    /// The decision's id.
    pub id: String,
    /// What the record leaves open.
    pub notes: Vec<String>,
}

/// Finds the decision of this id.
///
/// # Errors
/// A file that cannot be read, and that it is not there.
pub(super) fn find(files: &[PathBuf], id: &str) -> Result<Recorded, Failed> {
    let mut reader = Reader::new(files)?;
    while let Some(chunk) = reader.next_chunk()? {
        let mut recorded = None;
        chunk.each(|_, found| {
            if let Found::Record(head) = found
                && recorded.is_none()
                && head.kind == Kind::Decision
                && head.text.contains(id)
                && let Ok(record) = Record::parse(head.text)
                && record.decision_id.as_deref() == Some(id)
            {
                recorded = Some(read(&record));
            }
        });
        if let Some(recorded) = recorded {
            return recorded.map_err(Failed::from);
        }
    }
    let hint = "sampled permits and those of other streams have no record here";
    Err(format!("decision {} is not in the trail; {hint}", quote(id)).into())
}

fn read(record: &Record<'_>) -> Result<Recorded, String> {
    let text = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
    let at = replay::decided_at(record).ok_or("the record has no time")?;
    let asked = &record.request;
    let request = text(&asked.method).zip(text(&asked.authority)).map(|(method, host)| Request {
        method,
        scheme: text(&asked.scheme).unwrap_or_else(|| "http".to_owned()),
        host,
        path: text(&asked.path).unwrap_or_default(),
    });
    let mut notes = Vec::new();
    if !record.truncated.is_empty() {
        let cut: Vec<&str> = record.truncated.iter().map(|cut| &**cut).collect();
        notes.push(format!("the record has only the beginning of {}", cut.join(", ")));
    }
    if record.caller.token.is_some() {
        notes.push("claims of the access token that were not recorded count as unknown".to_owned());
    }
    if let Some(grant) = &record.grant {
        notes.push(format!("it was permitted by the temporary grant {}", quote(grant)));
    }
    Ok(Recorded {
        caller: replay::caller(&record.caller),
        said: said(&record.caller),
        request,
        at,
        decision: record.decision.ok_or("the record has no `decision`")?,
        code: text(&record.code),
        detail: text(&record.detail).unwrap_or_default(),
        rule: text(&record.rule),
        nearest: text(&record.nearest),
        status: record.response.status,
        id: text(&record.decision_id).unwrap_or_default(),
        notes,
    })
}

/// What is recorded of a caller, by the names of claims.
fn said(caller: &record::Caller<'_>) -> Said {
    let mut said = Said::default();
    if let Some(identity) = &caller.identity {
        let mut claims = Map::new();
        for (name, text) in [
            ("dag_id", Some(&identity.dag_id)),
            ("task_id", Some(&identity.task_id)),
            ("run_id", Some(&identity.run_id)),
            ("issuer", identity.issuer.as_ref()),
            ("key_id", identity.key_id.as_ref()),
        ] {
            if let Some(text) = text {
                claims.insert(name.to_owned(), (&**text).into());
            }
        }
        for (name, values) in [
            ("run_type", &identity.run_type),
            ("queue", &identity.queue),
            ("team", &identity.team),
            ("owners", &identity.owners),
            ("tags", &identity.tags),
            ("roles", &identity.roles),
        ] {
            if let Some(values) = values {
                claims.insert(name.to_owned(), list(values));
            }
        }
        said.identity = Some(claims);
    }
    if let Some(token) = &caller.token {
        let text = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
        let mut claims = token.claims.clone();
        if let Some(subject) = &token.subject {
            claims.insert("sub".to_owned(), (&**subject).into());
        }
        let issuer = text(&token.issuer).unwrap_or_default();
        said.token = Some(Token { issuer, key_id: text(&token.key_id), claims });
    }
    if let Some(peer) = &caller.peer {
        let text = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
        said.peer = Some(Peer { service: text(&peer.service), spiffe_id: text(&peer.spiffe_id) });
    }
    said
}

/// One value as a text, others as a list.
fn list(values: &Values<'_>) -> Value {
    match &**values {
        [one] => (&**one).into(),
        more => more.iter().map(|text| &**text).collect(),
    }
}

impl Recorded {
    /// For people: what was decided, in a line.
    pub(super) fn told(&self, style: Style) -> String {
        let decided = match (self.decision, &self.code, &self.rule) {
            (Decision::Permit, _, Some(rule)) => {
                style.good(&format!("permit by rule {}", quote(rule)))
            }
            (Decision::Permit, ..) => style.good("permit"),
            (decision, Some(code), _) => style.bad(&format!("{} {code}", decision.name())),
            (decision, None, _) => style.warn(decision.name()),
        };
        let id = style.faint(&format!("decision {}", self.id));
        let mut text = format!("{} {decided}\n  {id}\n", style.strong("recorded:"));
        for note in &self.notes {
            text.push_str(&format!("  {}: {note}\n", style.warn("note")));
        }
        text
    }

    /// What is to be explained of it, or that nothing can be.
    pub(super) fn request(&self) -> Option<&Request> {
        if self.request.is_none() {
            complain("airflow-envoy: the record does not say what was asked for");
        }
        self.request.as_ref()
    }
}
