//! The policy: read once, compiled to an index, asked for every request.
//!
//! **Default deny; any matching deny rule wins; the order of rules never matters; a deny rule that
//! cannot be evaluated denies.** A condition about a fact that is unknown is neither true nor false:
//! an allow rule with such a condition does not match, a deny rule with one does. The same holds for
//! roles: whether a role is held may be unknown.
//!
//! A tunnel (CONNECT) hides the methods and paths that it carries. An allow rule is about tunnels only if
//! it names `CONNECT` and no paths; a deny rule about some methods or paths cannot be evaluated for one.
//!
//! What the caller looks like is settled before ([`crate::facts::Caller`]); what is asked for is
//! normalised here, because what rules compare must have one form only: the authority, and the path
//! ([`path`]). Deciding depends on nothing but its arguments, cannot fail and, for a permit by the only
//! source, allocates nothing unless the path or the authority was not in its normal form.
//!
//! How the values of a document compare, each to the whole of a fact and case-sensitively: `*` is any
//! run of characters, also none, and cannot be escaped. A claim is named as it is in the token, or by
//! a JSON Pointer (RFC 6901) if the name begins with `/` and no claim has it; strings, whole numbers
//! and booleans compare by their text, arrays by each element, anything else is unknown. A host
//! without a port means the default port of the request's scheme; `*.example.com` is every name below
//! `example.com`, and an exact host, then the longer domain, comes first.
//!
//! What may be allowed for a while only, and by whom, is declared `grantable` there; a [`Grant`] that such an
//! approver signed brings it to life ([`PolicySet::with_grants`]).
//!
//! Before any rule, an identity must be covered by the policy's `agreement`, if there is one ([`agreement`]).
//!
//! Several sources decide together as a [`PolicySet`]; a signed document is opened by a [`Trust`]
//! before it is read.
//!
//! What it is not: it verifies no credential, fetches no document, and does not know Consul's
//! intentions, which are a layer of their own.

mod agreement;
pub(crate) mod authority;
#[cfg(feature = "explain")]
pub mod explain;
mod glob;
mod grant;
mod grantable;
mod grants;
mod index;
mod load;
mod nearest;
pub mod path;
mod read;
mod rule;
mod selector;
mod set;
mod signed;
#[cfg(feature = "explain")]
mod within;

use std::sync::Arc;

use rustc_hash::FxHashSet;
use serde_json::Value;

use self::agreement::Agreement;
use self::authority::{Authority, Hosts};
use self::grantable::Granting;
use self::index::{Callers, Group, Index, Search};
use self::read::Role;
use self::rule::{Effect, Question, Rule};
use self::selector::{Condition, Subject, Truth, Who};
use crate::document::{Fault, Faults};
use crate::json;
use crate::limits::Limits;
use crate::pace::{Pace, at_once, release};

pub use self::grant::{Approval, Grant, Unfit};
pub use self::grants::GrantDocument;
pub use self::set::{Decision, Outcome, PolicySet, ShadowVerdict, Standing};
pub use self::signed::{Accepted, Admitted, Opened, Signer, Trust};
#[cfg(feature = "explain")]
pub use self::within::Grantable;

/// Shadow rules reported for one decision; the rest is dropped.
const MOST_SHADOW_VERDICTS: usize = 16;

/// A compiled policy. A document that has a fault is not one.
#[derive(Debug)]
pub struct Policy {
    revision: Option<u64>,
    /// Its own address is what a [`Standing`] remembers the policy by.
    mark: Arc<()>,
    roles: Roles,
    destinations: Box<[Arc<str>]>,
    hosts: Hosts,
    /// Sorted by id.
    rules: Box<[Rule]>,
    allow: Index,
    /// The allow rules by caller, to find the nearest one.
    callers: Callers,
    deny: Index,
    /// Shadow rules, allowing and denying.
    shadow: Index,
    granting: Granting,
    /// `None`: it says nothing about who may present and assert identities.
    agreement: Option<Agreement>,
}

impl Policy {
    /// Reads a policy document.
    ///
    /// # Errors
    /// All faults of the document.
    pub fn parse(document: &[u8], limits: &Limits) -> Result<Self, Faults> {
        let whole = |problem| Faults(vec![Fault { path: String::new(), problem }]);
        if document.len() > limits.policy_bytes {
            let most = limits.policy_bytes;
            return Err(whole(format!("{} bytes are more than {most}", document.len())));
        }
        let value =
            json::parse(document, limits.json_depth).map_err(|error| whole(error.to_string()))?;
        Self::from_value(&value, limits)
    }

    /// Reads a policy document that is part of another one.
    ///
    /// # Errors
    /// All faults of the document.
    pub fn from_value(document: &Value, limits: &Limits) -> Result<Self, Faults> {
        let read = read::document(document, limits)?;
        Ok(at_once(Self::index(read, &Pace::unhurried())))
    }

    /// Compiles what was read of a document.
    async fn index(read: read::Document, pace: &Pace) -> Self {
        let rules = read.rules.into_boxed_slice();
        let allow = |rule: &Rule| !rule.shadow && rule.effect == Effect::Allow;
        let deny = |rule: &Rule| !rule.shadow && rule.effect == Effect::Deny;
        Self {
            revision: read.revision,
            mark: Arc::new(()),
            allow: Index::new(&rules, allow, pace).await,
            callers: Callers::new(&rules, allow, pace).await,
            deny: Index::new(&rules, deny, pace).await,
            shadow: Index::new(&rules, |rule| rule.shadow, pace).await,
            roles: Roles::new(read.roles, &rules, pace).await,
            destinations: read.destinations.into(),
            hosts: read.hosts,
            rules,
            granting: read.granting,
            agreement: read.agreement,
        }
    }

    /// Frees it a slice at a time.
    pub async fn release(self, pace: &Pace) {
        release(self.rules, 2, pace).await;
        for index in [self.allow, self.deny, self.shadow] {
            index.release(pace).await;
        }
        self.callers.release(pace).await;
        release(self.roles.selectors, 2, pace).await;
        release(self.destinations, 1, pace).await;
        self.hosts.release(pace).await;
        self.granting.release(pace).await;
    }

    /// The document's own number for itself.
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// How many rules it has, shadow rules included.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// The number of the destination that has `authority`, and its name.
    fn destination(&self, authority: &Authority<'_>) -> Option<(u32, &Arc<str>)> {
        let number = self.hosts.find(authority)?;
        Some((number, self.destinations.get(number as usize)?))
    }

    /// The first allow rule by id that applies.
    fn allowing(&self, question: &Question<'_>) -> Option<&Rule> {
        self.first(&self.allow, Search::Certain, question)
    }

    /// The first deny rule that applies to the path as it is, or else as servers read it that cut the
    /// parameters of its segments off: `/admin;x/users` must not pass by a rule about `/admin/**`.
    fn denying(&self, question: &Question<'_>) -> Option<&Rule> {
        if self.deny.is_empty() {
            return None;
        }
        self.first(&self.deny, Search::Possible, question).or_else(|| {
            let path = path::without_parameters(question.path?)?;
            self.first(&self.deny, Search::Possible, &Question { path: Some(&path), ..*question })
        })
    }

    /// The first rule by id that applies.
    fn first(&self, index: &Index, search: Search, question: &Question<'_>) -> Option<&Rule> {
        self.rule(index.first(&self.rules, search, question, &|_| true)?)
    }

    /// The first shadow rules by id that have the effect `changing` and apply.
    fn shadowing(&self, question: &Question<'_>, changing: Effect) -> Vec<&Rule> {
        if self.shadow.is_empty() {
            return Vec::new();
        }
        // The first ones, ascending.
        let mut numbers: Vec<u32> = Vec::new();
        let mut collect = |question: &Question<'_>| {
            self.shadow.candidates(question, Search::Possible, |number| {
                if numbers.len() >= MOST_SHADOW_VERDICTS
                    && numbers.last().is_some_and(|last| *last <= number)
                {
                    return false;
                }
                let rule = self.rule(number).filter(|rule| rule.effect == changing);
                if rule.is_some_and(|rule| rule.applies(question))
                    && let Err(place) = numbers.binary_search(&number)
                {
                    numbers.insert(place, number);
                    numbers.truncate(MOST_SHADOW_VERDICTS);
                }
                true
            });
        };
        collect(question);
        if changing == Effect::Deny
            && let Some(path) = question.path.and_then(path::without_parameters)
        {
            collect(&Question { path: Some(&path), ..*question });
        }
        numbers.into_iter().filter_map(|number| self.rule(number)).collect()
    }

    fn rule(&self, number: u32) -> Option<&Rule> {
        self.rules.get(number as usize)
    }
}

/// The name of a role and one of its selectors.
type RoleSelector = (Arc<str>, Box<[Arc<Condition>]>);

/// The roles of a policy, found by caller.
#[derive(Debug)]
struct Roles {
    selectors: Box<[RoleSelector]>,
    all: Group,
    /// Only selectors of roles that a deny rule asks for.
    denying: Group,
}

impl Roles {
    async fn new(roles: Vec<Role>, rules: &[Rule], pace: &Pace) -> Self {
        let mut selectors: Vec<RoleSelector> = Vec::with_capacity(roles.len());
        for role in roles {
            let named = role.any.into_iter().map(|selector| (Arc::clone(&role.name), selector));
            selectors.extend(named);
            pace.spend(1).await;
        }
        let selectors = selectors.into_boxed_slice();
        let mut asked_for: FxHashSet<&str> = FxHashSet::default();
        for rule in rules.iter().filter(|rule| rule.effect == Effect::Deny) {
            let conditions = rule.from.iter();
            let roles = conditions.filter(|condition| matches!(condition.subject, Subject::Roles));
            asked_for.extend(roles.flat_map(|condition| condition.values.texts()));
            pace.spend(1).await;
        }
        let (mut all, mut denying) = (Vec::with_capacity(selectors.len()), Vec::new());
        for (number, (name, _)) in (0_u32..).zip(&selectors) {
            all.push(number);
            denying.extend(asked_for.contains(&**name).then_some(number));
            pace.spend(1).await;
        }
        let conditions = |member: u32| {
            selectors.get(member as usize).map_or(&[][..], |(_, selector)| &**selector)
        };
        Self {
            all: Group::new(all, conditions, pace).await,
            denying: Group::new(denying, conditions, pace).await,
            selectors,
        }
    }

    /// The names of the roles about which `wanted` can be said, sorted. Of a role that has several
    /// selectors it may say [`Truth::Unknown`] besides [`Truth::Yes`]; the latter prevails.
    fn find(&self, who: &Who<'_>, wanted: Truth) -> Box<[Arc<str>]> {
        let (group, search) = match wanted {
            Truth::Yes => (&self.all, Search::Certain),
            Truth::No | Truth::Unknown => (&self.denying, Search::Possible),
        };
        let mut found = Vec::new();
        group.candidates(who, search, &mut |number| {
            let selector = self.selectors.get(number as usize);
            let matching = selector.filter(|(_, selector)| selector::all(selector, who) == wanted);
            found.extend(matching.map(|(name, _)| Arc::clone(name)));
            true
        });
        found.sort_unstable();
        found.dedup();
        found.into()
    }
}
