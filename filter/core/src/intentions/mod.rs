//! Consul intentions: which services of the mesh may call this one, with Consul's own semantics.
//!
//! A second layer beside the policy: it only takes away. An intention names a source and a destination.
//! **The more exact the destination, then the source, the earlier it is asked; the first one about the
//! caller is final.** It allows or denies, or has permissions about the HTTP request: the first that
//! matches decides, and if none does, **the default decides, not the next intention**. Without an
//! intention about the caller the default decides, too.
//!
//! Where Consul's documented precedence and the configuration that newer Consuls make of it for their
//! own Envoys differ, the precedence counts.
//!
//! What is not understood denies: an intention with a field that is not known, a regular expression that
//! this engine could read otherwise than Envoy's, a provider of tokens that nobody configured. A caller
//! that is no service of this mesh is denied whatever the default.
//!
//! What it is not: it fetches nothing, verifies neither certificate nor token, and normalises no path.

mod pattern;
mod permission;
mod read;
mod settings;
mod token;

use self::permission::Permission;
pub(crate) use self::settings::Surroundings;
pub use self::settings::{DefaultAction, Settings};
use self::token::Demand;
pub use self::token::Token;
use crate::peer::{ConsulService, SpiffeId};
use crate::policy::path;
use crate::quote::quote;
use crate::reject::{Code, Reject};

/// The intentions about one destination.
#[derive(Debug)]
pub struct Intentions {
    /// The name of their source.
    source: Box<str>,
    trust_domain: Box<str>,
    default: DefaultAction,
    /// Consul's index when they last changed.
    index: u64,
    /// In the order in which they are asked.
    all: Box<[Intention]>,
    /// Places in `all` of those with exact sources, by source: one per source, the first.
    exact: Box<[usize]>,
    /// Places in `all` of those with wildcards, in order; there are few.
    wild: Box<[usize]>,
}

#[derive(Debug)]
struct Intention {
    source: Place,
    /// `Source => Destination`.
    name: Box<str>,
    precedence: u8,
    /// What every caller's access token must say.
    token: Option<Demand>,
    action: Action,
}

/// The source of an intention.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    partition: Box<str>,
    /// Or `*`.
    namespace: Box<str>,
    /// Or `*`.
    service: Box<str>,
}

#[derive(Debug)]
enum Action {
    Allow,
    Deny,
    Permissions(Box<[Permission]>),
    /// It says something that is not understood: this.
    Unfit(String),
}

/// Matches every name, where Consul allows it.
const ANY: &str = "*";

/// The namespace and the partition that Consul has without Enterprise.
const DEFAULT: &str = "default";

/// Who asks, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The caller's verified certificate names it; `None`: there is none.
    pub peer: Option<&'a SpiffeId>,
    /// `:method`.
    pub method: &'a str,
    /// The path that the upstream sees as the policy compares it, without the query; `None`: there is none,
    /// or [`Intentions::ask_for_paths`] says no.
    pub path: Option<&'a str>,
    /// All headers, repeated ones repeated.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// The verified access token, if there is one.
    pub token: Option<Token<'a>>,
}

/// Why a call is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'i> {
    /// `Source => Destination` of the intention that matched; `None`: the default allows, and no intention
    /// is about the caller.
    pub intention: Option<&'i str>,
    /// The place of the permission that matched, from 0; `None`: the intention has none, or none matched.
    pub permission: Option<usize>,
}

impl Intentions {
    /// Reads an answer of Consul: its index and a line feed, if they are known, then the answer to
    /// `/v1/connect/intentions/match?by=destination`, or, with [`Settings::entries`], an array of the
    /// `service-intentions` entries of the destination and of `*`, each `null` if there is none.
    ///
    /// # Errors
    /// What makes the document as a whole unfit. An intention that is not understood makes nothing else
    /// unfit: it denies.
    pub fn parse(
        document: &[u8],
        settings: &Settings,
        limits: &crate::limits::Limits,
    ) -> Result<Self, String> {
        read::read(document, settings, limits)
    }

    /// Consul's index when they last changed; 0: unknown.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The names and precedences of all, in the order in which they are asked.
    pub fn order(&self) -> impl ExactSizeIterator<Item = (&str, u8)> {
        self.all.iter().map(|intention| (&*intention.name, intention.precedence))
    }

    /// The intentions that deny everything because they are not understood, and why.
    pub fn unfit(&self) -> impl Iterator<Item = (&str, &str)> {
        self.all.iter().filter_map(|intention| match &intention.action {
            Action::Unfit(problem) => Some((&*intention.name, &**problem)),
            _ => None,
        })
    }

    /// Whether any of them looks at paths.
    pub fn ask_for_paths(&self) -> bool {
        self.all.iter().any(|intention| match &intention.action {
            Action::Permissions(permissions) => {
                permissions.iter().any(|permission| permission.path.is_some())
            }
            _ => false,
        })
    }

    /// Decides a call as the filter does: some servers cut the parameters of segments off (`;x`), and the path
    /// that they serve must be allowed as well.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn judge_call(&self, question: &Question<'_>) -> Result<Matched<'_>, Reject> {
        let matched = self.judge(question)?;
        if let Some(bare) = question.path.and_then(path::without_parameters) {
            self.judge(&Question { path: Some(&bare), ..*question })?;
        }
        Ok(matched)
    }

    /// Decides a call by its path as it is, which is what Consul does. For one that is allowed nothing is
    /// allocated.
    ///
    /// # Errors
    /// [`Code::IntentionDenied`] with the intention that denies, or with the default.
    pub fn judge(&self, question: &Question<'_>) -> Result<Matched<'_>, Reject> {
        let Some(peer) = question.peer else {
            return Err(self.denial(None, "the caller has no certificate of this mesh"));
        };
        let service = peer.consul_service();
        let Some(service) = service.filter(|_| peer.trust_domain() == &*self.trust_domain) else {
            let (id, domain) = (quote(peer.as_str()), quote(&self.trust_domain));
            let detail = format!("{id} is no service of the mesh {domain}");
            return Err(self.denial(None, &detail));
        };
        let Some(intention) = self.first_about(&service) else {
            if self.default == DefaultAction::Allow {
                return Ok(Matched { intention: None, permission: None });
            }
            let service = quote(&service.name());
            let detail = format!("none is about {service}, and the default denies");
            return Err(self.denial(None, &detail));
        };
        let Intention { name, precedence, token, action, .. } = intention;
        let matched = |permission| Ok(Matched { intention: Some(name), permission });
        let denied = |why: &str| {
            let detail = format!("`{name}` (precedence {precedence}) {why}");
            Err(self.denial(Some(name), &detail))
        };
        // Whatever it says beyond: one that is not understood denies.
        if let Action::Unfit(problem) = action {
            return denied(&format!("{problem}, so it denies"));
        }
        if token.as_ref().is_some_and(|demand| !demand.is_met(question.token)) {
            return denied("asks for an access token that this one is not");
        }
        let permissions = match action {
            Action::Allow => return matched(None),
            Action::Deny | Action::Unfit(_) => return denied("denies"),
            Action::Permissions(permissions) => permissions,
        };
        for (place, permission) in permissions.iter().enumerate() {
            let number = place.saturating_add(1);
            match permission.matches(question) {
                Some(false) => {}
                Some(true) if permission.allows => return matched(Some(place)),
                Some(true) => return denied(&format!("denies by its permission {number}")),
                None => {
                    let why = "has a regular expression, and no certain answer for \
                               characters outside ASCII";
                    return denied(&format!("{why}, in its permission {number}"));
                }
            }
        }
        match self.default {
            DefaultAction::Allow => matched(None),
            DefaultAction::Deny => {
                denied("has no permission that this request meets, and the default denies")
            }
        }
    }

    /// The first intention about this source; it is final.
    fn first_about(&self, caller: &ConsulService<'_>) -> Option<&Intention> {
        let place = |index: &usize| self.all.get(*index);
        let key = |place: &Place| {
            let Place { partition, namespace, service } = place;
            (**service).cmp(caller.service).then_with(|| {
                (&**namespace, &**partition).cmp(&(caller.namespace, caller.partition))
            })
        };
        let exact = self.exact.binary_search_by(|index| {
            place(index).map_or(std::cmp::Ordering::Less, |intention| key(&intention.source))
        });
        let exact = exact.ok().and_then(|found| self.exact.get(found));
        let wild = self.wild.iter().find(|index| {
            place(index).is_some_and(|intention| {
                let Place { partition, namespace, service } = &intention.source;
                **partition == *caller.partition
                    && (**namespace == *ANY || **namespace == *caller.namespace)
                    && (**service == *ANY || **service == *caller.service)
            })
        });
        // The earlier of the two.
        exact.into_iter().chain(wild).min().and_then(place)
    }

    fn denial(&self, intention: Option<&str>, detail: &str) -> Reject {
        let Self { source, .. } = self;
        let rule = intention.map(|intention| format!("{source}/{intention}"));
        let detail = format!("Consul intentions `{source}`: {detail}");
        Reject { rule, ..Reject::new(Code::IntentionDenied, detail) }
    }
}

#[cfg(test)]
mod tests;
