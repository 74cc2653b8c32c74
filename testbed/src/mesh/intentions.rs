//! Consul's intentions: which service may call which, as an operator writes them.
//!
//! By the questions that every Consul since 1.2 understands; one without permissions for single paths, that is.

use std::fmt;

use serde_json::{Value, json};

use crate::consul::Client;
use crate::error::{Context as _, Result};

/// Where intentions are.
const PATH: &str = "/v1/connect/intentions";

/// What an intention says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The call is allowed.
    Allow,
    /// It is not.
    Deny,
}

impl Action {
    /// As Consul writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// An intention: whether one service may call another. `*` is every service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intention {
    /// Who calls.
    pub source: String,
    /// Who is called.
    pub destination: String,
    /// `allow` or `deny`.
    pub action: String,
    /// Of two that match, the one with the higher number counts.
    pub precedence: u64,
    id: String,
}

impl fmt::Display for Intention {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, action, precedence, .. } = self;
        write!(formatter, "{action:5} {source} => {destination} (precedence {precedence})")
    }
}

/// Lets `source` call `destination`, or not, whatever was said of the two before.
///
/// # Errors
/// If Consul refuses.
pub async fn put(consul: &Client, action: Action, source: &str, destination: &str) -> Result<()> {
    let intention = json!({
        "SourceName": source, "DestinationName": destination, "SourceType": "consul",
        "Action": action.name(),
    });
    let (method, path) = match find(consul, source, destination).await? {
        None => ("POST", PATH.to_owned()),
        Some(known) => ("PUT", format!("{PATH}/{}", known.id)),
    };
    consul.ask(method, &path, intention.to_string()).await.map(|_| ())
}

/// Forgets what was said of `source` and `destination`; whether anything was.
///
/// # Errors
/// If Consul refuses.
pub async fn delete(consul: &Client, source: &str, destination: &str) -> Result<bool> {
    let Some(known) = find(consul, source, destination).await? else { return Ok(false) };
    consul.ask("DELETE", &format!("{PATH}/{}", known.id), String::new()).await?;
    Ok(true)
}

/// All of them; what counts more is first.
///
/// # Errors
/// If Consul refuses, or its answer is not a list of intentions.
pub async fn list(consul: &Client) -> Result<Vec<Intention>> {
    let said = consul.ask("GET", PATH, String::new()).await?;
    let mut found: Vec<_> = said
        .as_array()
        .context("a list of intentions")?
        .iter()
        .map(read)
        .collect::<Option<_>>()
        .context("an intention that can be read")?;
    found.sort_by(|left, right| {
        let place = |it: &Intention| (it.destination.clone(), it.source.clone());
        right.precedence.cmp(&left.precedence).then_with(|| place(left).cmp(&place(right)))
    });
    Ok(found)
}

async fn find(consul: &Client, source: &str, destination: &str) -> Result<Option<Intention>> {
    let all = list(consul).await?;
    Ok(all.into_iter().find(|it| it.source == source && it.destination == destination))
}

fn read(value: &Value) -> Option<Intention> {
    let text = |member: &str| value.get(member)?.as_str().map(str::to_owned);
    Some(Intention {
        source: text("SourceName")?,
        destination: text("DestinationName")?,
        action: text("Action")?,
        precedence: value.get("Precedence")?.as_u64()?,
        id: text("ID")?,
    })
}
