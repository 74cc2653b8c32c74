//! What a policy lets people grant for a while: which calls at most, to whom, for how long, and who may.
//!
//! By itself it allows nothing: only a [`Grant`](super::Grant) brings some of it to life.

use std::sync::Arc;

use super::index::{Index, Search};
use super::rule::{Question, Rule};
use crate::jose::KeySet;
use crate::time::Span;

/// Longest time that anything may be granted for. What is needed longer is a rule.
pub(super) const MAX_DURATION: Span = Span::from_secs(30 * 24 * 3600);

/// What is grantable by one policy, and by whom.
#[derive(Debug, Default)]
pub(super) struct Granting {
    /// Sorted by id; each allows what a grant of it may allow at most.
    rules: Box<[Rule]>,
    /// Of each of them.
    terms: Box<[Terms]>,
    index: Index,
    /// By number.
    pub(super) approvers: Box<[Approver]>,
}

/// On which terms something may be granted.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) max_duration: Span,
    /// Numbers of approvers, sorted.
    pub(super) approvers: Box<[u32]>,
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
    pub(super) fn new(grantables: Vec<(Rule, Terms)>, approvers: Vec<Approver>) -> Self {
        let (rules, terms): (Vec<_>, Vec<_>) = grantables.into_iter().unzip();
        let index = Index::new(&rules, (0_u32..).zip(&rules).map(|(number, _)| number));
        Self { rules: rules.into(), terms: terms.into(), index, approvers: approvers.into() }
    }

    /// What is grantable, by number.
    #[cfg(feature = "explain")]
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = (&Rule, &Terms)> {
        self.rules.iter().zip(&self.terms)
    }

    /// The number of the one with this id.
    pub(super) fn number(&self, id: &str) -> Option<u32> {
        let place = self.rules.binary_search_by(|rule| (*rule.id).cmp(id)).ok()?;
        u32::try_from(place).ok()
    }

    /// The one of this number.
    pub(super) fn nth(&self, number: u32) -> Option<(&Rule, &Terms)> {
        Some((self.rules.get(number as usize)?, self.terms.get(number as usize)?))
    }

    /// Who may grant on these terms.
    pub(super) fn approvers_of(&self, terms: &Terms) -> impl Iterator<Item = &Approver> {
        terms.approvers.iter().filter_map(|number| self.approvers.get(*number as usize))
    }

    /// The first one by id of which a grant could allow the call.
    pub(super) fn covering(&self, question: &Question<'_>) -> Option<(&Rule, &Terms)> {
        self.nth(first(&self.rules, &self.index, question, &|_| true)?)
    }
}

/// The number of the first allow rule of `rules` that applies and that `also` is true of.
pub(super) fn first(
    rules: &[Rule],
    index: &Index,
    question: &Question<'_>,
    also: &dyn Fn(u32) -> bool,
) -> Option<u32> {
    let mut first: Option<u32> = None;
    index.candidates(question, Search::Certain, |number| {
        if first.is_some_and(|found| found <= number) {
            return false;
        }
        let rule = rules.get(number as usize);
        let found = rule.is_some_and(|rule| rule.applies(question)) && also(number);
        if found {
            first = Some(number);
        }
        !found
    });
    first
}
