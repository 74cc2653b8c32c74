//! What remembered things weigh: the bytes of a worker's memory that they take, near enough.
//!
//! A bound on credentials alone would be none: what was read out of them takes several times their size.

use std::mem::size_of;

use serde_json::{Map, Value};

use super::session::Session;
use crate::credential::Verified;
use crate::facts::{Caller, Fact};

/// What an allocation costs beside its bytes: the allocator's own, and what is lost by rounding up.
const ALLOCATION: usize = 16;

/// Members of a node of the standard library's map, which has room for all of them from the first one on.
const NODE_MEMBERS: usize = 11;

/// Members of a node that was filled in any order, on average.
const MEMBERS_IN_USE: usize = 7;

fn text(text: &str) -> usize {
    if text.is_empty() { 0 } else { text.len().saturating_add(ALLOCATION) }
}

fn members(members: &Map<String, Value>) -> usize {
    let nodes = members.len().div_ceil(MEMBERS_IN_USE);
    let node = NODE_MEMBERS * (size_of::<String>() + size_of::<Value>()) + 2 * ALLOCATION;
    let held = members.iter().map(|(name, value)| text(name).saturating_add(value_of(value)));
    held.fold(nodes.saturating_mul(node), usize::saturating_add)
}

/// What a value has beside its own place. Its nesting is bounded, and so is this recursion.
fn value_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(held) => text(held),
        Value::Array(elements) => {
            let held = elements.iter().map(|element| size_of::<Value>() + value_of(element));
            held.fold(ALLOCATION, usize::saturating_add)
        }
        Value::Object(held) => members(held),
    }
}

fn fact(fact: &Fact) -> usize {
    let held = fact.values().into_iter().flatten();
    let held = held.map(|value| size_of::<String>() + text(value));
    held.fold(ALLOCATION, usize::saturating_add)
}

fn caller(caller: &Caller) -> usize {
    let facts = [
        &caller.dags,
        &caller.tasks,
        &caller.runs,
        &caller.run_types,
        &caller.owners,
        &caller.tags,
        &caller.teams,
        &caller.airflow_roles,
        &caller.queues,
        &caller.services,
        &caller.spiffe_ids,
        &caller.issuers,
        &caller.key_ids,
        &caller.subjects,
        &caller.scopes,
    ];
    facts.into_iter().map(fact).fold(value_of(&caller.claims), usize::saturating_add)
}

/// What was read out of a credential.
pub(super) fn verified(verified: &Verified) -> usize {
    let Verified { issuer_name, key_id, claims, .. } = verified;
    let texts = [issuer_name.as_str(), key_id.as_deref().unwrap_or_default()];
    let texts: usize = texts.into_iter().map(text).sum();
    size_of::<Verified>() + ALLOCATION + texts + members(claims)
}

/// A session, with both of its credentials, and the roles that it may come to hold.
pub(super) fn session(session: &Session) -> usize {
    let credentials = [&session.token, &session.identity].into_iter().flatten();
    let credentials: usize = credentials.map(|held| held.len() + ALLOCATION).sum();
    let plain: usize = session.plain.iter().flatten().map(|value| text(value)).sum();
    let record = session.record.as_ref().map_or(0, |record| record.bytes() + 4 * ALLOCATION);
    let own = size_of::<Session>() + ALLOCATION;
    let peer = session.presented.bytes();
    own + credentials + plain + record + peer + caller(&session.caller)
}
