//! What is grantable, for tools: who may grant what to whom, and what of a grant lies beyond it.
//!
//! The filter needs none of this: there a grant that says more than its grantable permits what both
//! say.

use std::sync::Arc;

use super::grant::Grant;
use super::grantable::Terms;
use super::rule::Rule;
use super::selector::{Condition, Truth, Who, all};
use super::{Policy, glob, path};
use crate::document::Fault;
use crate::facts::Caller;
use crate::jose::KeySet;
use crate::quote::{quote, quote_list};
use crate::time::Span;

/// Something that a policy declares grantable.
#[derive(Debug, Clone, Copy)]
pub struct Grantable<'p> {
    policy: &'p Policy,
    rule: &'p Rule,
    terms: &'p Terms,
}

impl Policy {
    /// What is grantable, by id.
    pub fn grantables(&self) -> impl ExactSizeIterator<Item = Grantable<'_>> {
        self.granting.all().map(|(rule, terms)| Grantable { policy: self, rule, terms })
    }

    /// What is grantable as `id`.
    pub fn grantable(&self, id: &str) -> Option<Grantable<'_>> {
        let (rule, terms) = self.granting.nth(self.granting.number(id)?)?;
        Some(Grantable { policy: self, rule, terms })
    }

    /// Everybody who may grant something, by name, and their keys, each with a `kid`.
    pub fn approvers(&self) -> impl ExactSizeIterator<Item = (&str, &KeySet)> {
        self.granting.approvers.iter().map(|approver| (&*approver.name, &approver.keys))
    }
}

impl<'p> Grantable<'p> {
    /// Its id.
    pub fn id(&self) -> &'p str {
        &self.rule.id
    }

    /// What it is for, in words.
    pub fn intent(&self) -> Option<&'p str> {
        self.rule.intent.as_deref()
    }

    /// The longest time that it may be granted for at once.
    pub fn max_duration(&self) -> Span {
        self.terms.max_duration
    }

    /// The names of those who may grant it.
    pub fn approvers(&self) -> impl Iterator<Item = &'p str> + use<'p> {
        self.policy.granting.approvers_of(self.terms).map(|approver| &*approver.name)
    }

    /// The names of its destinations; `None` for any.
    pub fn destinations(&self) -> Option<Vec<&'p str>> {
        self.rule.to.as_ref().map(|to| names(self.policy, to))
    }

    /// Its methods; `None` for any but `CONNECT`.
    pub fn methods(&self) -> Option<Vec<&'p str>> {
        Some(self.rule.methods.as_ref()?.iter().map(AsRef::as_ref).collect())
    }

    /// Its path patterns; `None` for any path.
    pub fn paths(&self) -> Option<Vec<&'p str>> {
        Some(self.rule.paths.as_ref()?.texts().collect())
    }

    /// Whether this caller may receive it; `None` if that is unknown.
    pub fn receives(&self, caller: &Caller) -> Option<bool> {
        let who = Who { caller, held: &[], perhaps_held: &[] };
        let held = self.policy.roles.find(&who, Truth::Yes);
        match all(&self.rule.from, &Who { held: &held, ..who }) {
            Truth::Yes => Some(true),
            Truth::No => Some(false),
            Truth::Unknown => None,
        }
    }

    /// What of `grant` lies beyond it, by the member that says so. The filter permits the rest, so it is
    /// no fault; but nobody should sign what does not come into effect.
    ///
    /// A grant that leaves a member out means no more than its grantable does. Of callers, what a grant
    /// does not ask for is beyond what its grantable asks for.
    pub fn beyond(&self, grant: &Grant) -> Vec<Fault> {
        let mut beyond = Vec::new();
        let mut note = |path: String, problem| beyond.push(Fault { path, problem });
        let (rule, asked) = (self.rule, &grant.rule);
        for condition in &rule.from {
            let name = format!("from.{}", member(condition));
            let same =
                |own: &&Arc<Condition>| own.subject.identity() == condition.subject.identity();
            let wanted = || quote_list(condition.values.texts());
            let Some(own) = asked.from.iter().find(same) else {
                note(name, format!("is missing, and only {} may receive it", wanted()));
                continue;
            };
            for text in own.values.texts() {
                if !condition.values.texts().any(|wide| glob::matches(wide, text)) {
                    note(name.clone(), format!("{} is not within {}", quote(text), wanted()));
                }
            }
        }
        if let (Some(wide), Some(own)) = (&rule.to, &asked.to) {
            let extra: Vec<u32> = own.iter().copied().filter(|one| !wide.contains(one)).collect();
            for name in names(self.policy, &extra) {
                let wide = quote_list(names(self.policy, wide));
                note("to".to_owned(), format!("{} is none of {wide}", quote(name)));
            }
        }
        if let (Some(wide), Some(own)) = (&rule.methods, &asked.methods) {
            for method in own.iter().filter(|method| !wide.contains(method)) {
                let wide = quote_list(wide.iter().map(AsRef::as_ref));
                note("methods".to_owned(), format!("{} is none of {wide}", quote(method)));
            }
        }
        if let (Some(wide), Some(own)) = (&rule.paths, &asked.paths) {
            for text in own.texts().filter(|text| !wide.texts().any(|w| path::covers(w, text))) {
                let wide = quote_list(wide.texts());
                note("paths".to_owned(), format!("{} is not within {wide}", quote(text)));
            }
        }
        beyond
    }
}

/// The name of a condition in its selector.
fn member(condition: &Condition) -> String {
    match condition.subject.identity() {
        (2, claim) => format!("claims.{claim}"),
        (_, name) => name.to_owned(),
    }
}

fn names<'p>(policy: &'p Policy, numbers: &[u32]) -> Vec<&'p str> {
    let name = |number: &u32| policy.destinations.get(*number as usize).map(AsRef::as_ref);
    numbers.iter().filter_map(name).collect()
}
