//! One rule: what it allows or denies, and whether a call is that.

use std::sync::Arc;

use super::glob::Values;
use super::path::{SUBJECT, matches_any, name_subject};
use super::selector::{self, Condition, Truth, Who, few, push_few};
use crate::arrival::CONNECT;
use crate::quote::{push_quoted, quote};
use crate::time::{Span, UnixTime};

/// What a rule does with the calls that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

/// A compiled rule. What rules have in common they share: there is less of it to fetch when one of
/// many is decided by.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) id: Arc<str>,
    pub(super) intent: Option<Box<str>>,
    pub(super) effect: Effect,
    /// Evaluated and reported, never enforced.
    pub(super) shadow: bool,
    /// What it asks of the caller, roles first; empty for any caller.
    pub(super) from: Box<[Arc<Condition>]>,
    /// Numbers of destinations, sorted; `None` for any that a document has.
    pub(super) to: Option<Arc<[u32]>>,
    /// `None` for any method.
    pub(super) methods: Option<Arc<[Box<str>]>>,
    /// `None` for any path.
    pub(super) paths: Option<Arc<Values>>,
    /// `None` for always.
    pub(super) valid: Option<Box<Validity>>,
}

/// When a rule applies, and on which terms it does at all.
#[derive(Debug, Default)]
pub(super) struct Validity {
    pub(super) not_before: Option<UnixTime>,
    pub(super) expires_at: Option<UnixTime>,
    /// Of what is only grantable.
    pub(super) terms: Option<Terms>,
}

/// On which terms something may be granted.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) max_duration: Span,
    /// Numbers of approvers, sorted.
    pub(super) approvers: Box<[u32]>,
}

/// A call and its caller, as rules see them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) who: Who<'a>,
    /// `None` if only other policies have the authority: rules for any destination are about it too.
    pub(super) destination: Option<u32>,
    pub(super) method: &'a str,
    /// In its normal form. `None` for a tunnel, which may then carry any method and path.
    pub(super) path: Option<&'a str>,
    pub(super) now: UnixTime,
}

/// A condition of a rule that a call fails, in the order in which they are told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Miss<'r> {
    Path,
    Method,
    Caller(&'r Condition),
    Early(UnixTime),
    Late(UnixTime),
}

impl Rule {
    /// Whether the call is one that the rule is about.
    pub(super) fn truth(&self, question: &Question<'_>) -> Truth {
        let here = self.is_for(question.destination) && self.is_valid(question.now);
        let request = if here { self.asks_for(question) } else { Truth::No };
        match request {
            Truth::No => Truth::No,
            Truth::Unknown | Truth::Yes => request.min(selector::all(&self.from, &question.who)),
        }
    }

    /// Whether it is about the method and the path. A tunnel hides both: to allow one, a rule says so, and
    /// one that denies some of what it may carry cannot be evaluated.
    fn asks_for(&self, question: &Question<'_>) -> Truth {
        match (question.path, self.effect) {
            (Some(path), _) if self.has_method(question.method) => self.has_path(path, question),
            (Some(_), _) => Truth::No,
            (None, Effect::Allow) if self.names_tunnels() && self.paths.is_none() => Truth::Yes,
            (None, Effect::Allow) => Truth::No,
            (None, Effect::Deny) if self.has_method(CONNECT) && self.paths.is_none() => Truth::Yes,
            (None, Effect::Deny) => Truth::Unknown,
        }
    }

    /// Whether it takes effect: an allow rule needs to know, a deny rule that cannot know denies.
    pub(super) fn applies(&self, question: &Question<'_>) -> bool {
        match self.effect {
            Effect::Allow => self.truth(question) == Truth::Yes,
            Effect::Deny => self.truth(question) != Truth::No,
        }
    }

    /// Everything but the destination that keeps the call from being one that the rule is about.
    pub(super) fn misses<'r>(&'r self, question: &Question<'_>) -> impl Iterator<Item = Miss<'r>> {
        let (path, method) = match question.path {
            Some(path) => (self.has_path(path, question), self.has_method(question.method)),
            // What a tunnel must be allowed by.
            None => {
                (if self.paths.is_none() { Truth::Yes } else { Truth::No }, self.names_tunnels())
            }
        };
        let path = (path != Truth::Yes).then_some(Miss::Path);
        let method = (!method).then_some(Miss::Method);
        let early = self.early(question.now).map(Miss::Early);
        let late = self.late(question.now).map(Miss::Late);
        let who = question.who;
        let caller = self
            .from
            .iter()
            .filter(move |condition| condition.truth(&who) != Truth::Yes)
            .map(|condition| Miss::Caller(condition));
        path.into_iter().chain(method).chain(caller).chain(early).chain(late)
    }

    // A denial is as frequent as its caller wants, and `format!` is several times slower than appending.
    /// Why the rule, called `name`, does not allow a call that has `miss` as its first miss.
    pub(super) fn explain_miss(
        &self,
        name: &str,
        miss: Miss<'_>,
        question: &Question<'_>,
    ) -> String {
        const USUAL_BYTES: usize = 192;
        let sentence = || {
            let mut sentence = String::with_capacity(USUAL_BYTES);
            sentence.push_str("rule ");
            push_quoted(&mut sentence, name);
            sentence
        };
        match miss {
            Miss::Path | Miss::Method if question.path.is_none() => format!(
                "{} allows this destination, but no tunnel, which hides methods and paths: a rule \
                 that allows one names `{CONNECT}` in `methods` and has no `paths`",
                sentence()
            ),
            Miss::Path => {
                let mut sentence = sentence();
                sentence.push_str(" allows this destination, but only for paths ");
                let paths = self.paths.iter().flat_map(|paths| paths.texts());
                push_few(&mut sentence, paths, push_quoted);
                sentence.push_str("; this is ");
                push_quoted(&mut sentence, question.path.unwrap_or_default());
                sentence.push_str(&self.explain_subject(question));
                sentence
            }
            Miss::Method => {
                let mut sentence = sentence();
                sentence.push_str(" allows this path, but only for methods ");
                let methods = self.methods.iter().flat_map(|methods| methods.iter());
                push_few(&mut sentence, methods, |sentence, method| sentence.push_str(method));
                sentence.push_str("; this is ");
                push_quoted(&mut sentence, question.method);
                sentence
            }
            Miss::Caller(condition) => {
                let mut sentence = sentence();
                sentence.push_str(" allows this request, but only for ");
                sentence.push_str(&condition.explain(&question.who));
                sentence
            }
            Miss::Early(start) => {
                let (rule, now) = (sentence(), question.now);
                format!("{rule} allows this call, but only from {start}; it is {now}")
            }
            Miss::Late(end) => {
                let (rule, now) = (sentence(), question.now);
                format!("{rule} allowed this call, but only until {end}; it is {now}")
            }
        }
    }

    /// Why the rule, called `name`, denies a call.
    pub(super) fn explain_denial(&self, name: &str, question: &Question<'_>) -> String {
        let id = quote(name);
        let unknown = self.misses(question).find_map(|miss| match miss {
            Miss::Caller(condition) => Some(condition.explain(&question.who)),
            _ => None,
        });
        let intent = self.intent.as_deref().map(|intent| format!(": {}", quote(intent)));
        let intent = intent.unwrap_or_default();
        let path = question.path.map(|path| self.has_path(path, question));
        if path.is_none() && self.asks_for(question) == Truth::Unknown {
            return format!(
                "rule {id} denies this tunnel because it cannot be evaluated: a tunnel hides methods and \
                 paths, and the rule is about some{intent}"
            );
        }
        if path == Some(Truth::Unknown) {
            let subject = self.explain_subject(question);
            return format!(
                "rule {id} denies this call because it cannot be evaluated{subject}{intent}"
            );
        }
        match unknown {
            Some(both_sides) => format!(
                "rule {id} denies this call because it cannot be evaluated: it asks for {both_sides}"
            ),
            None => format!("rule {id} denies this call{intent}"),
        }
    }

    /// Whether it is about a destination.
    pub(super) fn is_for(&self, destination: Option<u32>) -> bool {
        let known = |to: &Arc<[u32]>| destination.is_some_and(|one| to.binary_search(&one).is_ok());
        self.to.as_ref().is_none_or(known)
    }

    fn has_method(&self, method: &str) -> bool {
        let known = self.methods.as_ref();
        known.is_none_or(|methods| methods.iter().any(|known| **known == *method))
    }

    /// Whether it names the method by which tunnels are asked for. Without `methods` it does not: who wrote
    /// "any method" did not think of one that carries all others.
    fn names_tunnels(&self) -> bool {
        self.methods.is_some() && self.has_method(CONNECT)
    }

    fn has_path(&self, path: &str, question: &Question<'_>) -> Truth {
        let subjects = &question.who.caller.subjects;
        self.paths.as_ref().map_or(Truth::Yes, |paths| matches_any(paths, path, subjects))
    }

    /// What the variable of its paths stands for, if they have it.
    fn explain_subject(&self, question: &Question<'_>) -> String {
        if !self.paths.as_ref().is_some_and(|paths| name_subject(paths)) {
            return String::new();
        }
        match question.who.caller.subjects.values() {
            Some(subjects) => {
                let subjects = few(subjects, |subject| quote(subject));
                format!("; `{SUBJECT}` is the access token's `sub`, here {subjects}")
            }
            None => format!("; `{SUBJECT}` is the access token's `sub`, which is unknown here"),
        }
    }

    /// On which terms it may be granted, if it may.
    pub(super) fn terms(&self) -> Option<&Terms> {
        self.valid.as_ref()?.terms.as_ref()
    }

    /// Whether it applies at `now` at all.
    pub(super) fn is_valid(&self, now: UnixTime) -> bool {
        self.early(now).is_none() && self.late(now).is_none()
    }

    /// When it begins to apply, if it does not yet.
    fn early(&self, now: UnixTime) -> Option<UnixTime> {
        self.valid.as_ref()?.not_before.filter(|start| *start > now)
    }

    /// When it ceased to apply, if it did.
    fn late(&self, now: UnixTime) -> Option<UnixTime> {
        self.valid.as_ref()?.expires_at.filter(|end| *end <= now)
    }
}
