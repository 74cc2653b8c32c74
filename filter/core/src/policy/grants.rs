//! A document of grants, and those of it that a set of policies takes into effect.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::grant::{Grant, Message, Unfit, unknown};
use super::grantable::Granting;
use super::index::{Index, Search};
use super::rule::{Question, Rule};
use super::set::PolicySet;
use crate::document::{Fault, Faults, Node, Report};
use crate::jose::SignatureVerifier;
use crate::json;
use crate::limits::Limits;
use crate::pace::{Pace, at_once};
use crate::quote::quote;
use crate::time::UnixTime;

/// Grants as they are fetched: signed messages of which nothing was verified.
///
/// The document is `{"version": 1, "grants": ["<compact JWS>", …]}`. It needs no signature of its own:
/// who stores it may withhold a grant, and cannot widen one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantDocument {
    messages: Box<[Box<str>]>,
}

impl GrantDocument {
    /// Reads a document of grants, but not the grants.
    ///
    /// # Errors
    /// All faults of the document.
    pub fn parse(document: &[u8], limits: &Limits) -> Result<Self, Faults> {
        let whole = |problem| Faults(vec![Fault { path: String::new(), problem }]);
        if document.len() > limits.grants_bytes {
            let most = limits.grants_bytes;
            return Err(whole(format!("{} bytes are more than {most}", document.len())));
        }
        let value =
            json::parse(document, limits.json_depth).map_err(|error| whole(error.to_string()))?;
        Self::from_value(&value, limits)
    }

    /// Reads a document of grants that is part of another one.
    ///
    /// # Errors
    /// All faults of the document.
    pub fn from_value(document: &Value, limits: &Limits) -> Result<Self, Faults> {
        let mut report = Report::new();
        let read = Self::read(&Node::root(document), limits, &mut report);
        report.finish(read)
    }

    pub(crate) fn read(node: &Node<'_>, limits: &Limits, report: &mut Report) -> Option<Self> {
        let mut object = node.object(report)?;
        if let Some(version) = object.required(report, "version")
            && version.value.as_u64() != Some(1)
        {
            version.fault(report, "the only version is 1");
        }
        let list = object.required(report, "grants");
        object.finish(report);
        let list = list?;
        let grants = list.array(report)?;
        let (found, most) = (grants.len(), limits.grants);
        if found > most {
            list.fault(report, format!("{found} grants are more than the {most} that are allowed"));
            return None;
        }
        // What is no text is no grant, and does not spoil the others.
        let text = |grant: &Node<'_>| grant.value.as_str().unwrap_or_default().into();
        Some(Self { messages: grants.iter().map(text).collect() })
    }

    /// The messages, each to be a compact JWS.
    pub fn messages(&self) -> impl ExactSizeIterator<Item = &str> {
        self.messages.iter().map(AsRef::as_ref)
    }
}

/// The grants of one policy that are in effect at their times.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// In the order of the document.
    rules: Box<[Rule]>,
    /// The number of the grantable of each.
    grantables: Box<[u32]>,
    index: Index,
}

impl Grants {
    fn new(grants: Vec<Grant>) -> Self {
        let grantables = grants.iter().map(|grant| grant.number).collect();
        let rules: Box<[Rule]> = grants.into_iter().map(|grant| grant.rule).collect();
        let index = at_once(Index::new(&rules, |_| true, &Pace::unhurried()));
        Self { index, rules, grantables }
    }

    /// The first grant of the document that permits the call, and the grantable that it is of: both are about the call.
    pub(super) fn allowing<'g>(
        &'g self,
        granting: &'g Granting,
        question: &Question<'_>,
    ) -> Option<(&'g Arc<str>, &'g Rule)> {
        let grantable = |number: u32| {
            let grantable = self.grantables.get(number as usize)?;
            granting.nth(*grantable)
        };
        let within = |number| grantable(number).is_some_and(|rule| rule.applies(question));
        let number = self.index.first(&self.rules, Search::Certain, question, &within)?;
        Some((&self.rules.get(number as usize)?.id, grantable(number)?))
    }

    fn in_effect(&self, now: UnixTime) -> usize {
        self.rules.iter().filter(|rule| rule.is_valid(now)).count()
    }
}

impl PolicySet {
    /// The same policies with those grants of `document` that are some of what they declare grantable,
    /// and the others. None of those spoils another one. What has ended is left out without a word.
    ///
    /// A grant names its grantable as a decision names a rule: by its id, with several sources that have
    /// the same by `<source>/<id>`.
    pub fn with_grants(
        &self,
        document: &GrantDocument,
        now: UnixTime,
        limits: &Limits,
        verifier: &dyn SignatureVerifier,
    ) -> (Self, Vec<Unfit>) {
        let names: Vec<_> = self.policies().map(|(_, policy)| policy.names()).collect();
        let mut grants: Vec<Vec<Grant>> = names.iter().map(|_| Vec::new()).collect();
        let mut unfit = Vec::new();
        for (index, text) in document.messages().enumerate() {
            let message = match Message::open(text.as_bytes(), limits) {
                Ok(message) => message,
                Err(problem) => {
                    unfit.push(Unfit { index, id: None, problem });
                    continue;
                }
            };
            if message.has_ended(now) {
                continue;
            }
            let verified = self.source_of(&message).and_then(|source| {
                let (_, policy) = self.policies().nth(source).ok_or_else(String::new)?;
                let names = names.get(source).ok_or_else(String::new)?;
                let approval = message.verify(&policy.granting, names, limits, verifier)?;
                Ok((source, approval.grant))
            });
            match verified {
                // So few that going through them is cheaper than hashing.
                Ok((_, grant)) if grants.iter().flatten().any(|known| known.id == grant.id) => {
                    let problem = "the id is that of a grant before it".to_owned();
                    unfit.push(Unfit { index, id: Some(grant.id.to_string()), problem });
                }
                Ok((source, grant)) => {
                    if let Some(grants) = grants.get_mut(source) {
                        grants.push(grant);
                    }
                }
                Err(problem) => {
                    unfit.push(Unfit { index, id: message.id().map(str::to_owned), problem });
                }
            }
        }
        let grants: Rc<[Grants]> = grants.into_iter().map(Grants::new).collect();
        (self.granted(grants), unfit)
    }

    /// How many of its grants are in effect at `now`.
    pub fn grants_in_effect(&self, now: UnixTime) -> usize {
        self.grants().iter().map(|grants| grants.in_effect(now)).sum()
    }

    /// The place of the source whose grantable the grant is of.
    fn source_of(&self, message: &Message) -> Result<usize, String> {
        let (wanted, id) = message.grantable()?;
        let mut having = self.policies().enumerate().filter(|(_, (name, policy))| {
            // One who decides alone may have no name.
            let named = wanted.is_none_or(|wanted| wanted == *name || name.is_empty());
            named && policy.granting.number(id).is_some()
        });
        let (place, (first, _)) = having.next().ok_or_else(|| unknown(id))?;
        if let Some((_, (second, _))) = having.next() {
            let (first, second, id) = (quote(first), quote(second), quote(id));
            return Err(format!(
                "{id} is grantable by the policies {first} and {second}: name one before it"
            ));
        }
        Ok(place)
    }
}
