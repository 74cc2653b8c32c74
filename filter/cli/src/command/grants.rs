//! `airflow-envoy grants`: what is granted at present.

use std::path::PathBuf;

use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{GrantDocument, PolicySet};
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::UnixTime;
use clap::Args;
use serde_json::{Value, json};

use super::grant::compact;
use super::{Exit, Failed, clock, usable_policy};
use crate::granting::{Entry, entries};
use crate::output::{Style, plural, print};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy grants --policy policy/ --store grants.json
  airflow-envoy grants --policy policy/ --store consul://127.0.0.1:8500/airflow-envoy/grants --json

Without a policy nothing is verified: what is shown is what the grants say of themselves.";

/// Lists the grants of a store: what, to whom, until when and why, and which of them the filter leaves out.
///
/// The exit code is 1 if the filter leaves one out that has not ended.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The store that the filter reads
    #[arg(long, value_name = "URL")]
    store: String,
    /// A file or a folder of the policy that says what is grantable; repeatable
    #[arg(long, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// What becomes of a grant.
enum State {
    InEffect,
    /// It is to come into effect.
    Waiting,
    Ended,
    /// The filter leaves it out, and why.
    Refused(String),
    /// There was no policy to verify it with.
    Unverified,
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::InEffect => "in effect",
            Self::Waiting => "waiting",
            Self::Ended => "ended",
            Self::Refused(_) => "refused",
            Self::Unverified => "not verified",
        }
    }
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let store = Store::at(&options.store).map_err(Failed::usage)?;
    let now = clock();
    let document = store.read()?;
    let name = store.name();
    let entries = entries(document.as_deref()).map_err(|problem| format!("{name}: {problem}"))?;
    let mut refusals = None;
    if let Some(document) = document.as_deref().filter(|_| !options.policy.is_empty()) {
        let (_, policy, _) = usable_policy(&options.policy, style)?;
        let limits = Limits::DEFAULT;
        let document =
            GrantDocument::parse(document, &limits).map_err(|faults| faults.to_string())?;
        let (_, unfit) = PolicySet::from(policy).with_grants(&document, now, &limits, &RustCrypto);
        refusals = Some(unfit);
    }
    let state = |index: usize, entry: &Entry| {
        let refusal = refusals.iter().flatten().find(|unfit| unfit.index == index);
        let begins = entry.time("nbf").max(entry.time("iat"));
        match (refusal, entry.time("exp")) {
            (Some(unfit), _) => State::Refused(unfit.problem.clone()),
            (None, Some(end)) if end <= now => State::Ended,
            (None, _) if refusals.is_none() => State::Unverified,
            (None, _) if begins.is_some_and(|begins| begins > now) => State::Waiting,
            (None, _) => State::InEffect,
        }
    };
    let listed: Vec<(&Entry, State)> =
        entries.iter().enumerate().map(|(index, entry)| (entry, state(index, entry))).collect();
    let count = |wanted: &str| listed.iter().filter(|(_, state)| state.name() == wanted).count();
    let text = if options.json {
        let grants: Vec<_> = listed.iter().map(|(entry, state)| shown_json(entry, state)).collect();
        format!("{:#}\n", json!({ "store": name, "grants": grants }))
    } else {
        let mut text: String =
            listed.iter().map(|(entry, state)| shown_text(entry, state, style)).collect();
        let states = ["in effect", "waiting", "ended", "refused", "not verified"];
        let counts = states.into_iter().filter(|state| count(state) > 0);
        let counts: Vec<_> = counts.map(|state| format!("{} {state}", count(state))).collect();
        let all = plural(listed.len(), "grant");
        let of = if counts.is_empty() { String::new() } else { format!(": {}", counts.join(", ")) };
        text.push_str(&format!("{all}{of}\n"));
        text
    };
    print(&text);
    Ok(if count("refused") > 0 { Exit::Findings } else { Exit::Good })
}

fn shown_text(entry: &Entry, state: &State, style: Style) -> String {
    let claim = |name: &str| match entry.claim(name) {
        Some(Value::String(text)) => quote(text),
        Some(value) => quote(&compact(value)),
        None => "?".to_owned(),
    };
    let painted = match state {
        State::InEffect => style.good(state.name()),
        State::Waiting | State::Ended => style.faint(state.name()),
        State::Refused(_) => style.bad(state.name()),
        State::Unverified => style.warn(state.name()),
    };
    let mut text = format!("{} {painted}", style.strong(&claim("id")));
    let time = |name: &str| entry.time(name).map(|time: UnixTime| time.to_string());
    match state {
        State::Waiting => text.push_str(&format!(" from {}", time("nbf").unwrap_or_default())),
        State::InEffect | State::Unverified => {
            text.push_str(&format!(" until {}", time("exp").unwrap_or("?".to_owned())));
        }
        State::Ended => text.push_str(&format!(" at {}", time("exp").unwrap_or_default())),
        State::Refused(problem) => text.push_str(&format!(": {problem}")),
    }
    text.push('\n');
    if entry.claims.is_none() {
        return text;
    }
    let whom = match entry.claim("from") {
        Some(Value::Object(from)) => {
            let field = |(field, values): (&String, &Value)| {
                format!("{} {}", quote(field), quote(&compact(values)))
            };
            from.iter().map(field).collect::<Vec<_>>().join(", ")
        }
        _ => "?".to_owned(),
    };
    text.push_str(&format!("  {} to {whom}", claim("grantable")));
    for name in ["to", "methods", "paths"] {
        if entry.claim(name).is_some() {
            text.push_str(&format!(", {name} {}", claim(name)));
        }
    }
    let asked = match entry.claim("requested_by") {
        Some(_) => format!(", asked for by {}", claim("requested_by")),
        None => String::new(),
    };
    text.push_str(&format!("\n  {} by {}{asked}\n", claim("reason"), claim("granted_by")));
    text
}

fn shown_json(entry: &Entry, state: &State) -> Value {
    let mut told = json!({
        "state": state.name().replace(' ', "_"),
        "key_id": entry.key_id,
        "not_before": entry.time("nbf").map(|time| time.to_string()),
        "expires_at": entry.time("exp").map(|time| time.to_string()),
    });
    if let Some(members) = told.as_object_mut() {
        let names = [
            "id",
            "grantable",
            "from",
            "to",
            "methods",
            "paths",
            "reason",
            "granted_by",
            "requested_by",
        ];
        let claims = names.into_iter().filter_map(|name| Some((name, entry.claim(name)?)));
        members.extend(claims.map(|(name, value)| (name.to_owned(), value.clone())));
        if let State::Refused(problem) = state {
            members.insert("problem".to_owned(), problem.as_str().into());
        }
    }
    told
}
