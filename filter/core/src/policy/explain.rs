//! Why a policy decides as it does: every rule, what it asks, and whether a call is that.
//!
//! For tools that have time. It looks at every rule, one after the other, and decides nothing:
//! [`super::PolicySet::decide`] does that, for tools too.

use std::borrow::Cow;

use serde_json::Value;

use super::agreement::Presenter;
use super::authority::Authority;
use super::read;
use super::rule::{Effect, Miss, Question, Rule};
use super::selector::{Condition, Subject, Truth, Who};
use super::{Policy, path};
use crate::arrival::CONNECT;
use crate::document::{Asked, Report};
use crate::facts::{Call, Caller};
use crate::limits::Limits;
use crate::quote::quote;
use crate::time::UnixTime;

/// A segment of a path pattern that stands for the `sub` of the caller's access token.
pub const SUBJECT: &str = path::SUBJECT;

/// A call put to every rule of one policy.
#[derive(Debug)]
pub struct Inquiry<'a> {
    policy: &'a Policy,
    caller: &'a Caller,
    held: Box<[std::sync::Arc<str>]>,
    perhaps_held: Box<[std::sync::Arc<str>]>,
    destination: Option<u32>,
    method: &'a str,
    /// `None` for a tunnel.
    path: Option<Cow<'a, str>>,
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

/// What is said of one entry of the policy's agreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Its id.
    pub id: String,
    /// Each of its conditions on who presents the identity and who signed it: both sides of the comparison, as the answer
    /// to a denied call says it, and whether it holds.
    pub from: Vec<(Asks, String, bool)>,
    /// Each of its conditions on what the identity asserts.
    pub may_assert: Vec<(Asks, String, bool)>,
}

impl Agreed {
    /// Whether it covers the identity.
    pub fn holds(&self) -> bool {
        self.from.iter().chain(&self.may_assert).all(|(_, _, holds)| *holds)
    }
}

/// Whether the whole of `value` matches `glob`, in which `*` stands for any run of characters.
pub fn glob(glob: &str, value: &str) -> bool {
    super::glob::matches(glob, value)
}

/// The members that a policy document may have, by the path of their object: what its schema must know.
pub fn fields(document: &Value, limits: &Limits) -> Asked {
    let mut report = Report::recording();
    let _ = read::read(document, limits, &mut report);
    report.into_asked()
}

/// A pattern of `paths` in its normal form, with [`SUBJECT`] as it is written.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn pattern(text: &str, limits: &Limits) -> Result<String, &'static str> {
    path::normalise_pattern(text, limits)
}

impl Policy {
    /// Puts a call to every rule; `None` if its authority or its path cannot be read, so that no rule is
    /// asked. A CONNECT is a tunnel, as where it is decided.
    pub fn inquire<'a>(
        &'a self,
        caller: &'a Caller,
        call: &Call<'a>,
        now: UnixTime,
        limits: &Limits,
    ) -> Option<Inquiry<'a>> {
        let (path, authority) = if call.method == CONNECT {
            (None, Authority::of_tunnel(call.authority))
        } else {
            let path = path::normalise(call.target, limits).ok()?;
            (Some(path), Authority::parse(call.authority, call.scheme))
        };
        let authority = authority.ok()?;
        let who = Who { caller, held: &[], perhaps_held: &[] };
        Some(Inquiry {
            policy: self,
            caller,
            held: self.roles.find(&who, Truth::Yes),
            perhaps_held: self.roles.find(&who, Truth::Unknown),
            destination: self.destination(&authority).map(|(number, _)| number),
            method: call.method,
            bare: path.as_deref().and_then(path::without_parameters),
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

impl Policy {
    /// Puts the caller's identity to every entry of the agreement, by their ids; `None` if there is no agreement, or no
    /// identity.
    pub fn agreed(&self, caller: &Caller) -> Option<Vec<Agreed>> {
        let presenter = Presenter::new(caller)?;
        let told = |condition: &std::sync::Arc<Condition>, holds: bool| {
            (Asks::of(condition), presenter.explain(condition), holds)
        };
        let entries = self.agreement.as_ref()?.0.iter().map(|entry| Agreed {
            id: entry.id.to_string(),
            from: entry.from.iter().map(|asked| told(asked, presenter.is(asked))).collect(),
            may_assert: entry
                .may_assert
                .iter()
                .map(|asked| told(asked, presenter.asserts_only(asked)))
                .collect(),
        });
        Some(entries.collect())
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

    /// The path in its normal form; `None` for a tunnel.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    fn question(&self) -> Question<'_> {
        Question {
            who: Who { caller: self.caller, held: &self.held, perhaps_held: &self.perhaps_held },
            destination: self.destination,
            method: self.method,
            path: self.path.as_deref(),
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
            || bare
                .is_some_and(|path| self.rule.applies(&Question { path: Some(path), ..question }))
    }

    /// Everything but the destination that keeps the call from being one that the rule is about, in the
    /// order in which an answer tells them; at most `most`. Of a tunnel it is what one must be allowed by,
    /// and for a deny rule what it cannot know of one.
    pub fn failures(&self, most: usize) -> Vec<Failure> {
        let question = self.inquiry.question();
        let failure = |miss| {
            let unknown = self.may_hold(miss, &question);
            let hidden = question.path.is_none() && matches!(miss, Miss::Path | Miss::Method);
            let explanation = if hidden && !self.allows() {
                let id = quote(&self.rule.id);
                format!("rule {id} cannot be evaluated for a tunnel, which hides methods and paths")
            } else {
                self.rule.explain_miss(&self.rule.id, miss, &question)
            };
            Failure { condition: Asks::missed(miss), explanation, unknown }
        };
        self.misses(&question).take(most).map(failure).collect()
    }

    /// The only condition that the call fails, if it is one only, and if it would be one that the rule is
    /// about without that condition.
    pub fn only_failure(&self) -> Option<Asks> {
        let question = self.inquiry.question();
        let mut misses = self.misses(&question);
        let only = misses.next().filter(|_| misses.next().is_none())?;
        // No rule is about tunnels because it says less of methods and paths, and a deny rule that cannot
        // know whose path it is denies without asking, too.
        let of_request = matches!(only, Miss::Path | Miss::Method);
        let denies = !self.allows() && self.may_hold(only, &question);
        let changes_nothing = of_request && (question.path.is_none() || denies);
        (!changes_nothing).then(|| Asks::missed(only))
    }

    /// As [`Rule::misses`], but for what a deny rule does not ask of a tunnel: only who allows one must name
    /// its method.
    fn misses(&self, question: &Question<'_>) -> impl Iterator<Item = Miss<'a>> {
        let rule = self.rule;
        let unasked = question.path.is_none() && !self.allows() && rule.methods.is_none();
        rule.misses(question).filter(move |miss| !(unasked && matches!(miss, Miss::Method)))
    }

    /// Whether what is missed may hold all the same: something that it is about is unknown.
    fn may_hold(&self, miss: Miss<'_>, question: &Question<'_>) -> bool {
        match (miss, question.path) {
            (Miss::Path | Miss::Method, None) => !self.allows(),
            (Miss::Path, Some(path)) => self.rule.paths.as_ref().is_some_and(|paths| {
                path::matches_any(paths, path, &question.who.caller.subjects) == Truth::Unknown
            }),
            (Miss::Caller(condition), _) => condition.truth(&question.who) == Truth::Unknown,
            (Miss::Method | Miss::Early(_) | Miss::Late(_), _) => false,
        }
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
    fn missed(miss: Miss<'_>) -> Self {
        match miss {
            Miss::Path => Self::Path,
            Miss::Method => Self::Method,
            Miss::Early(_) => Self::NotBefore,
            Miss::Late(_) => Self::ExpiresAt,
            Miss::Caller(condition) => Self::of(condition),
        }
    }

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
