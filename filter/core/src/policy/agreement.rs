//! Agreement: which peers may present Airflow identities at all, and who may assert what in one.
//!
//! An identity is good only by an entry of which all holds: who presents it and who signed it (`from`), and what
//! it says (`may_assert`). Here nothing is denied by a rule or allowed by one: a policy with an agreement refuses what
//! no entry covers before any rule is asked. **What is unknown never holds.**
//!
//! Of a list that an identity asserts, such as its roles, every one must be covered, and there must be one: who may assert
//! the role `User` may not assert `User` and `Admin`.

use std::sync::Arc;

use super::selector::{Condition, Subject, Truth, Who};
use crate::facts::{Assertion, Caller, Claims, Fact};
use crate::reject::Code;

/// What an entry may ask of who presents an identity and of who signed it. In this order what fails is told.
pub(super) const FROM: [&str; 4] = ["services", "spiffe_ids", "issuers", "key_ids"];

/// What an entry may ask of what the identity says.
pub(super) const MAY_ASSERT: [&str; 8] =
    ["dags", "tasks", "owners", "tags", "teams", "queues", "run_types", "airflow_roles"];

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: Arc<str>,
    pub(super) from: Box<[Arc<Condition>]>,
    /// Empty for anything.
    pub(super) may_assert: Box<[Arc<Condition>]>,
}

/// The entries, sorted by id, of which one is needed.
#[derive(Debug)]
pub(super) struct Agreement(pub(super) Box<[Entry]>);

/// Why an identity is not covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disagreement {
    pub(super) code: Code,
    /// The id of the entry that came nearest.
    pub(super) entry: Arc<str>,
    /// To follow its name in a sentence.
    pub(super) problem: String,
}

/// A caller as entries see it: the issuer and the key are those of the identity, whoever signed the token.
pub(super) struct Presenter(Caller);

impl Presenter {
    /// `None` without an identity: then there is nothing to agree on.
    pub(super) fn new(caller: &Caller) -> Option<Self> {
        let Assertion { issuer, key_id } = caller.assertion.as_ref()?;
        Some(Self(Caller {
            issuers: Fact::one(issuer.as_str()),
            key_ids: key_id.as_ref().map_or(Fact::Unknown, Fact::one),
            // No entry asks for it, and it may be large.
            claims: Claims::default(),
            ..caller.clone()
        }))
    }

    fn who(&self) -> Who<'_> {
        Who { caller: &self.0, held: &[], perhaps_held: &[] }
    }

    /// Whether a condition of `from` holds.
    pub(super) fn is(&self, condition: &Condition) -> bool {
        condition.truth(&self.who()) == Truth::Yes
    }

    /// Whether a condition of `may_assert` holds.
    pub(super) fn asserts_only(&self, condition: &Condition) -> bool {
        let Subject::Fact(field) = condition.subject else { return false };
        let values = field.of(&self.0).values().unwrap_or_default();
        // The identity asserts also what the catalog took.
        let mut values = values.iter().chain(condition.subject.taken(&self.who())).peekable();
        values.peek().is_some() && values.all(|value| condition.values.matches(value))
    }

    /// Both sides of the comparison.
    pub(super) fn explain(&self, condition: &Condition) -> String {
        condition.explain(&self.who())
    }
}

impl Agreement {
    /// Whether an entry covers the caller's identity, if it has one.
    ///
    /// # Errors
    /// How far the nearest entry is from it: of those that are about this peer and issuer the one whose
    /// `may_assert` has the fewest misses, or else the one whose `from` has; of several the first by id.
    pub(super) fn check(&self, caller: &Caller) -> Result<(), Disagreement> {
        let Some(presenter) = Presenter::new(caller) else { return Ok(()) };
        let mut nearest: Option<((usize, usize), &Entry)> = None;
        for entry in &self.0 {
            let strange = entry.from.iter().filter(|condition| !presenter.is(condition)).count();
            let excess = entry.may_assert.iter();
            let excess = excess.filter(|condition| !presenter.asserts_only(condition)).count();
            if (strange, excess) == (0, 0) {
                return Ok(());
            }
            if nearest.is_none_or(|(least, _)| (strange, excess) < least) {
                nearest = Some(((strange, excess), entry));
            }
        }
        // INVARIANT: a document's list is not empty. One without entries would cover nobody.
        Err(nearest.map_or_else(Disagreement::with_nothing, |(_, entry)| entry.miss(&presenter)))
    }
}

impl Entry {
    /// The first condition that keeps it from covering the identity.
    fn miss(&self, presenter: &Presenter) -> Disagreement {
        let entry = Arc::clone(&self.id);
        if let Some(condition) = self.from.iter().find(|condition| !presenter.is(condition)) {
            let of_peer = matches!(condition.subject.name(), "services" | "spiffe_ids");
            let both_sides = presenter.explain(condition);
            let (code, problem) = if of_peer {
                let problem = format!("lets a peer present identities, but only of {both_sides}");
                (Code::PeerNotAllowed, problem)
            } else {
                let problem = format!("lets an issuer assert identities, but only of {both_sides}");
                (Code::AssertionNotAllowed, problem)
            };
            return Disagreement { code, entry, problem };
        }
        let excess = self.may_assert.iter().find(|condition| !presenter.asserts_only(condition));
        let both_sides = excess.map(|condition| presenter.explain(condition)).unwrap_or_default();
        let problem = format!("is for this peer and issuer, but they may only assert {both_sides}");
        Disagreement { code: Code::AssertionNotAllowed, entry, problem }
    }
}

impl Disagreement {
    fn with_nothing() -> Self {
        let problem = "has no entry".to_owned();
        Self { code: Code::PeerNotAllowed, entry: Arc::from("agreement"), problem }
    }
}
