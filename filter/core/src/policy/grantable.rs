//! What a policy lets people grant for a while: which calls at most, to whom, for how long, and who may.
//!
//! By itself it allows nothing: only a [`Grant`](super::Grant) brings some of it to life.

use std::sync::Arc;

use super::index::{Index, Search};
use super::rule::{Question, Rule};
use crate::jose::KeySet;
use crate::pace::{Pace, release};
use crate::time::Span;

/// Longest time that anything may be granted for. What is needed longer is a rule.
pub(super) const MAX_DURATION: Span = Span::from_secs(30 * 24 * 3600);

/// What is grantable by one policy, and by whom.
#[derive(Debug, Default)]
pub(super) struct Granting {
    /// Sorted by id; each has terms, and allows what a grant of it may allow at most.
    rules: Box<[Rule]>,
    index: Index,
    /// By number.
    pub(super) approvers: Box<[Approver]>,
}

/// Who may grant.
#[derive(Debug)]
pub(super) struct Approver {
    pub(super) name: Arc<str>,
    /// Each with a `kid`.
    pub(super) keys: KeySet,
}

impl Granting {
    /// Of rules sorted by id.
    pub(super) async fn new(rules: Vec<Rule>, approvers: Vec<Approver>, pace: &Pace) -> Self {
        let index = Index::new(&rules, |_| true, pace).await;
        Self { rules: rules.into(), index, approvers: approvers.into() }
    }

    /// Frees it a slice at a time.
    pub(super) async fn release(self, pace: &Pace) {
        release(self.rules, 2, pace).await;
        self.index.release(pace).await;
    }

    /// What is grantable, by number.
    #[cfg(feature = "explain")]
    pub(super) fn all(&self) -> &[Rule] {
        &self.rules
    }

    /// The number of the one with this id.
    pub(super) fn number(&self, id: &str) -> Option<u32> {
        let place = self.rules.binary_search_by(|rule| (*rule.id).cmp(id)).ok()?;
        u32::try_from(place).ok()
    }

    /// The one of this number.
    pub(super) fn nth(&self, number: u32) -> Option<&Rule> {
        self.rules.get(number as usize)
    }

    /// Who may grant it.
    pub(super) fn approvers_of(&self, rule: &Rule) -> impl Iterator<Item = &Approver> {
        let approvers = rule.terms().map(|terms| &*terms.approvers).unwrap_or_default();
        approvers.iter().filter_map(|number| self.approvers.get(*number as usize))
    }

    /// The first one by id of which a grant could allow the call.
    pub(super) fn covering(&self, question: &Question<'_>) -> Option<&Rule> {
        self.nth(self.index.first(&self.rules, Search::Certain, question, &|_| true)?)
    }
}
