//! Why a policy decides as it does: every rule, what it asks, and whether a call is that.
//!
//! For tools that have time. It looks at every rule, one after the other, and decides nothing:
//! [`super::PolicySet::decide`] does that, for tools too.

use std::borrow::Cow;

use serde_json::Value;

use super::authority::Authority;
use super::read;
use super::rule::{Effect, Miss, Question, Rule};
use super::selector::{Condition, Subject, Truth, Who};
use super::{Policy, path};
use crate::document::{Asked, Report};
use crate::facts::{Call, Caller};
use crate::limits::Limits;
use crate::time::UnixTime;

/// A call put to every rule of one policy.
#[derive(Debug)]
pub struct Inquiry<'a> {
    policy: &'a Policy,
    caller: &'a Caller,
    held: Box<[std::sync::Arc<str>]>,
    perhaps_held: Box<[std::sync::Arc<str>]>,
    destination: Option<u32>,
    method: &'a str,
    path: Cow<'a, str>,
    /// The path as servers read it that cut parameters off.
    bare: Option<String>,
    now: UnixTime,
}

/// One rule of an [`Inquiry`].
#[derive(Debug, Clone, Copy)]
pub struct Considered<'a> {
    rule: &'a Rule,
    inquiry: &'a Inquiry<'a>,
}

/// One thing that keeps a call from being one that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was asked.
    pub condition: Asks,
    /// Both sides of the comparison, as the answer to a denied call says it.
    pub explanation: String,
    /// It may hold: something that it asks for is unknown.
    pub unknown: bool,
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asks {
    /// `paths`.
    Path,
    /// `methods`.
    Method,
    /// `from.roles`.
    Roles,
    /// A field of `from` by its name.
    Fact(&'static str),
    /// A name in `from.claims`.
    Claim(String),
    /// `valid.not_before`.
    NotBefore,
    /// `valid.expires_at`.
    ExpiresAt,
}

/// What is said of one selector of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleSelector {
    /// The role.
    pub role: String,
    /// The place of the selector in the role's `any`.
    pub index: usize,
    /// Each of its conditions: what it asks of the caller and what that has, and whether it holds;
    /// `None` if that is unknown.
    pub conditions: Vec<(Asks, String, Option<bool>)>,
}

impl RoleSelector {
    /// Whether the caller holds the role by this selector; `None` if that is unknown.
    pub fn holds(&self) -> Option<bool> {
        let all = || self.conditions.iter().map(|(_, _, holds)| *holds);
        if all().any(|holds| holds == Some(false)) {
            Some(false)
        } else if all().any(|holds| holds.is_none()) {
            None
        } else {
            Some(true)
        }
    }
}

/// The members that a policy document may have, by the path of their object: what its schema must know.
pub fn fields(document: &Value, limits: &Limits) -> Asked {
    let mut report = Report::recording();
    let _ = read::read(document, limits, &mut report);
    report.into_asked()
}

impl Policy {
    /// Puts a call to every rule; `None` if its authority or its path cannot be read, so that no rule is
    /// asked.
    pub fn inquire<'a>(
        &'a self,
        caller: &'a Caller,
        call: &Call<'a>,
        now: UnixTime,
        limits: &Limits,
    ) -> Option<Inquiry<'a>> {
        let path = path::normalise(call.target, limits).ok()?;
        let authority = Authority::parse(call.authority, call.scheme).ok()?;
        let who = Who { caller, held: &[], perhaps_held: &[] };
        Some(Inquiry {
            policy: self,
            caller,
            held: self.roles.find(&who, Truth::Yes),
            perhaps_held: self.roles.find(&who, Truth::Unknown),
            destination: self.destination(&authority).map(|(number, _)| number),
            method: call.method,
            bare: path::without_parameters(&path),
            path,
            now,
        })
    }

    /// Every role and why the caller holds it or not, by name.
    pub fn roles(&self, caller: &Caller) -> Vec<RoleSelector> {
        let who = Who { caller, held: &[], perhaps_held: &[] };
        let mut found: Vec<RoleSelector> = Vec::new();
        for (name, selector) in &self.roles.selectors {
            let index = found.iter().rev().take_while(|before| before.role == **name).count();
            let conditions = selector.iter().map(|condition| {
                let holds = match condition.truth(&who) {
                    Truth::Yes => Some(true),
                    Truth::No => Some(false),
                    Truth::Unknown => None,
                };
                (Asks::of(condition), condition.explain(&who), holds)
            });
            let conditions = conditions.collect();
            found.push(RoleSelector { role: name.to_string(), index, conditions });
        }
        found
    }
}

impl<'a> Inquiry<'a> {
    /// The rules of the policy by their ids.
    pub fn rules(&'a self) -> impl ExactSizeIterator<Item = Considered<'a>> {
        self.policy.rules.iter().map(|rule| Considered { rule, inquiry: self })
    }

    /// The rule of this id.
    pub fn rule(&'a self, id: &str) -> Option<Considered<'a>> {
        let place = self.policy.rules.binary_search_by(|rule| (*rule.id).cmp(id)).ok()?;
        self.policy.rules.get(place).map(|rule| Considered { rule, inquiry: self })
    }

    /// The path in its normal form.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn question(&self) -> Question<'_> {
        Question {
            who: Who { caller: self.caller, held: &self.held, perhaps_held: &self.perhaps_held },
            destination: self.destination,
            method: self.method,
            path: &self.path,
            now: self.now,
        }
    }
}

impl<'a> Considered<'a> {
    /// Its id.
    pub fn id(&self) -> &'a str {
        &self.rule.id
    }

    /// Whether it allows; otherwise it denies.
    pub fn allows(&self) -> bool {
        self.rule.effect == Effect::Allow
    }

    /// Whether it is only reported.
    pub fn is_shadow(&self) -> bool {
        self.rule.shadow
    }

    /// Whether it is about the destination of the call.
    pub fn is_for_destination(&self) -> bool {
        let known = |to: &std::sync::Arc<[u32]>| {
            self.inquiry.destination.is_some_and(|one| to.binary_search(&one).is_ok())
        };
        self.rule.to.as_ref().is_none_or(known)
    }

    /// Whether it takes effect on the call, if it is enforced.
    pub fn applies(&self) -> bool {
        let question = self.inquiry.question();
        let bare = self.inquiry.bare.as_deref().filter(|_| !self.allows());
        self.rule.applies(&question)
            || bare.is_some_and(|path| self.rule.applies(&Question { path, ..question }))
    }

    /// Everything but the destination that keeps the call from being one that the rule is about, in the
    /// order in which an answer tells them; at most `most`.
    pub fn failures(&self, most: usize) -> Vec<Failure> {
        let question = self.inquiry.question();
        let misses = self.rule.misses(&question).take(most);
        let failure = |miss| {
            let (condition, unknown) = match miss {
                Miss::Path => (Asks::Path, false),
                Miss::Method => (Asks::Method, false),
                Miss::Early(_) => (Asks::NotBefore, false),
                Miss::Late(_) => (Asks::ExpiresAt, false),
                Miss::Caller(condition) => {
                    let unknown = condition.truth(&question.who) == Truth::Unknown;
                    (Asks::of(condition), unknown)
                }
            };
            let explanation = self.rule.explain_miss(&self.rule.id, miss, &question);
            Failure { condition, explanation, unknown }
        };
        misses.map(failure).collect()
    }

    /// The only condition that the call fails, if it is one only.
    pub fn only_failure(&self) -> Option<Asks> {
        let question = self.inquiry.question();
        let mut misses = self.rule.misses(&question);
        let only = misses.next().filter(|_| misses.next().is_none())?;
        Some(match only {
            Miss::Path => Asks::Path,
            Miss::Method => Asks::Method,
            Miss::Early(_) => Asks::NotBefore,
            Miss::Late(_) => Asks::ExpiresAt,
            Miss::Caller(condition) => Asks::of(condition),
        })
    }

    /// Everything that it asks of a call but the destination.
    pub fn conditions(&self) -> Vec<Asks> {
        let paths = self.rule.paths.as_ref().map(|_| Asks::Path);
        let methods = self.rule.methods.as_ref().map(|_| Asks::Method);
        let caller = self.rule.from.iter().map(|condition| Asks::of(condition));
        let valid = self.rule.valid.as_deref();
        let start = valid.and_then(|valid| valid.not_before).map(|_| Asks::NotBefore);
        let end = valid.and_then(|valid| valid.expires_at).map(|_| Asks::ExpiresAt);
        paths.into_iter().chain(methods).chain(caller).chain(start).chain(end).collect()
    }
}

impl Asks {
    fn of(condition: &Condition) -> Self {
        match &condition.subject {
            Subject::Roles => Self::Roles,
            Subject::Fact(field) => Self::Fact(field.name),
            Subject::Claim(name) => Self::Claim(name.to_string()),
        }
    }
}

impl std::fmt::Display for Asks {
    /// Where it stands in its rule.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path => formatter.write_str("paths"),
            Self::Method => formatter.write_str("methods"),
            Self::Roles => formatter.write_str("from.roles"),
            Self::Fact(name) => write!(formatter, "from.{name}"),
            Self::Claim(name) => write!(formatter, "from.claims.{name}"),
            Self::NotBefore => formatter.write_str("valid.not_before"),
            Self::ExpiresAt => formatter.write_str("valid.expires_at"),
        }
    }
}
