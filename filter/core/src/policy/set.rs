//! Policies of several sources that decide together, and what a decision is.
//!
//! They decide as one document would that has all their rules: **default deny; a matching deny rule
//! of any source wins; a deny rule that cannot be evaluated denies; the order of sources never
//! matters.** What is named is each source's own: a rule's roles and destinations are those of its
//! document. So is the look-up of an authority: no source takes a host out of another one's
//! `*.example.com` by naming it more exactly. Only `*` in `to` reaches beyond: it is every
//! destination of every source, so that a source may deny for all of them.
//!
//! An identity must be covered by the agreement of every source that has one, before any rule is asked.
//!
//! What no rule of any source says anything about, a grant may permit: one that is some of what the policy
//! of its source declares grantable ([`PolicySet::with_grants`]). It overrides no denial.
//!
//! With one source a rule is called by its id, with several `<source>/<id>`.
//!
//! What it is not: it does not know whether all sources are there. Whoever makes a set of fewer
//! decides without the denials of the others.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use super::agreement::Disagreement;
use super::authority::Authority;
use super::grants::Grants;
use super::path;
use super::rule::{Effect, Question, Rule};
use super::selector::{Truth, Who, few};
use super::{MOST_SHADOW_VERDICTS, Policy};
use crate::arrival::CONNECT;
use crate::facts::{Call, Caller};
use crate::limits::Limits;
use crate::quote::quote;
use crate::reject::{Code, Reject};
use crate::time::UnixTime;

/// Policies that decide together, each by the name of its source. Without any it refuses everything.
#[derive(Debug, Clone)]
pub struct PolicySet {
    /// Sorted by name.
    sources: Box<[(Arc<str>, Rc<Policy>)]>,
    /// Of each source; or none at all.
    grants: Rc<[Grants]>,
}

/// What the policies of a set say about a caller whatever it asks for: the roles that it holds, and
/// whether its identity is one that it may present.
///
/// Compute it once per verified caller and keep it beside; a clone shares it.
#[derive(Debug, Clone)]
pub struct Standing(Rc<[Part]>);

/// A [`Standing`] under one policy.
#[derive(Debug, Clone)]
struct Part {
    mark: Arc<()>,
    held: Box<[Arc<str>]>,
    /// Only roles that deny rules ask for: for the others unknown is as good as not held.
    perhaps_held: Box<[Arc<str>]>,
    /// Why its identity is not covered by the policy's agreement, if it is not.
    disagreement: Option<Rc<Disagreement>>,
}

/// What the policy says about one call, and what it understood the call to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'c> {
    /// Permit or refuse.
    pub outcome: Outcome,
    /// The name of the destination, if the authority is that of one: by the source whose rule
    /// decided or came nearest, or else by the first source that has it.
    pub destination: Option<Arc<str>>,
    /// The path in its normal form, if it has one; [`Cow::Borrowed`] if it was sent in that form. A tunnel
    /// has none.
    pub path: Option<Cow<'c, str>>,
    /// The authority in its normal form, if it was not sent in that form.
    pub authority: Option<String>,
    /// Shadow rules that would have changed the outcome of all sources together, each by itself, in
    /// the order of their ids: denying ones of any source beside a permit, allowing ones of any
    /// source if no rule applied. A denial by a rule stands whatever else were allowed.
    pub shadow: Vec<ShadowVerdict>,
}

/// Permit or refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The call is allowed.
    Permit {
        /// The name of the rule that allows it; with several the first by id, then by source. Of a grant,
        /// that of its grantable.
        rule: Arc<str>,
        /// The id of the grant without which no rule would have.
        grant: Option<Arc<str>>,
    },
    /// The call is refused.
    Refuse(Reject),
}

/// What a shadow rule would have made of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowVerdict {
    /// The name of the rule.
    pub rule: Arc<str>,
    /// It would have permitted what was refused; otherwise it would have refused what was permitted.
    pub permits: bool,
}

/// As filter state and audit records show it: `rule:permit` or `rule:reject`.
impl std::fmt::Display for ShadowVerdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.rule)?;
        formatter.write_str(if self.permits { ":permit" } else { ":reject" })
    }
}

impl PolicySet {
    /// The set of `sources`, each with its name; names are unique and have no `/`. Cheap: make a new
    /// one when a source has a new policy.
    pub fn new(sources: Vec<(Arc<str>, Rc<Policy>)>) -> Self {
        // So few that putting each in its place is enough; the library's sorts are large.
        let mut sorted: Vec<(Arc<str>, Rc<Policy>)> = Vec::with_capacity(sources.len());
        for source in sources {
            let place = sorted.partition_point(|(known, _)| *known <= source.0);
            sorted.insert(place, source);
        }
        Self { sources: sorted.into(), grants: Rc::default() }
    }

    /// The sources' names and policies, by name.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = (&str, &Policy)> {
        self.sources.iter().map(|(name, policy)| (&**name, &**policy))
    }

    pub(super) fn policies(&self) -> impl ExactSizeIterator<Item = (&str, &Policy)> {
        self.sources()
    }

    pub(super) fn grants(&self) -> &[Grants] {
        &self.grants
    }

    /// The same policies with these grants, of each source.
    pub(super) fn granted(&self, grants: Rc<[Grants]>) -> Self {
        Self { grants, ..self.clone() }
    }

    /// What the policies say about `caller` whatever it asks for. What is `known` of that very caller
    /// is taken over for the policies that are the same, and is what is returned if all are.
    pub fn standing(&self, caller: &Caller, known: Option<&Standing>) -> Standing {
        if let Some(known) = known.filter(|known| self.is_under(known)) {
            return known.clone();
        }
        let part = |(_, policy): &(_, Rc<Policy>)| {
            let same = |part: &&Part| Arc::ptr_eq(&part.mark, &policy.mark);
            let known = known.and_then(|known| known.0.iter().find(same));
            known.cloned().unwrap_or_else(|| Part::new(policy, caller))
        };
        Standing(self.sources.iter().map(part).collect())
    }

    /// Decides a call at `now`. A `standing` under other policies is computed anew.
    pub fn decide<'c>(
        &self,
        caller: &Caller,
        standing: &Standing,
        call: &Call<'c>,
        now: UnixTime,
        limits: &Limits,
    ) -> Decision<'c> {
        let standing = if self.is_under(standing) {
            Cow::Borrowed(standing)
        } else {
            Cow::Owned(self.standing(caller, None))
        };
        let several = self.sources.len() > 1;
        let sources = self.sources.iter().zip(standing.0.iter()).enumerate();
        let mut sources = sources.map(|(place, ((name, policy), part))| Source {
            name: several.then_some(name),
            policy,
            part,
            grants: self.grants.get(place),
        });
        decide(&mut sources, caller, call, now, limits)
    }

    /// Whether `standing` is one under these very policies.
    fn is_under(&self, standing: &Standing) -> bool {
        let mut both = self.sources.iter().zip(standing.0.iter());
        self.sources.len() == standing.0.len()
            && both.all(|((_, policy), part)| Arc::ptr_eq(&policy.mark, &part.mark))
    }
}

/// The policy as the only source.
impl From<Policy> for PolicySet {
    fn from(policy: Policy) -> Self {
        Self { sources: [(Arc::from(""), Rc::new(policy))].into(), grants: Rc::default() }
    }
}

impl Standing {
    /// The names of the roles held, those of one source after those of another, each sorted.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|part| part.held.iter().map(AsRef::as_ref))
    }
}

impl Part {
    fn new(policy: &Policy, caller: &Caller) -> Self {
        let who = Who { caller, held: &[], perhaps_held: &[] };
        Self {
            mark: Arc::clone(&policy.mark),
            held: policy.roles.find(&who, Truth::Yes),
            perhaps_held: policy.roles.find(&who, Truth::Unknown),
            disagreement: policy
                .agreement
                .as_ref()
                .and_then(|agreement| agreement.check(caller).err())
                .map(Rc::new),
        }
    }
}

/// A policy of the set that decides.
struct Source<'a> {
    /// `None` for the only one: its rules need no name before their ids.
    name: Option<&'a Arc<str>>,
    policy: &'a Policy,
    part: &'a Part,
    grants: Option<&'a Grants>,
}

/// A source and the call as its rules see it.
struct Asked<'a> {
    name: Option<&'a Arc<str>>,
    policy: &'a Policy,
    grants: Option<&'a Grants>,
    destination: Option<&'a Arc<str>>,
    question: Question<'a>,
    disagreement: Option<&'a Disagreement>,
}

impl Asked<'_> {
    fn denying(&self) -> Option<&Rule> {
        self.policy.denying(&self.question)
    }

    fn allowing(&self) -> Option<&Rule> {
        self.policy.allowing(&self.question)
    }

    /// The grant that permits the call, and its grantable.
    fn granted(&self) -> Option<(&Arc<str>, &Rule)> {
        self.grants?.allowing(&self.policy.granting, &self.question)
    }

    /// What a grant could permit the call by.
    fn grantable(&self) -> Option<&Rule> {
        self.policy.granting.covering(&self.question)
    }

    fn name_of(&self, rule: &Rule) -> Arc<str> {
        self.name_of_id(&rule.id)
    }

    fn name_of_id(&self, id: &Arc<str>) -> Arc<str> {
        match self.name {
            None => Arc::clone(id),
            Some(source) => [source, "/", id].concat().into(),
        }
    }

    /// The refusal of an identity that is not covered by the source's agreement.
    fn disagreed(&self) -> Option<Reject> {
        let Disagreement { code, entry, problem } = self.disagreement?;
        let name = self.name_of_id(entry);
        let detail = format!("agreement {} {problem}", quote(&name));
        Some(Reject { rule: Some(name.to_string()), ..Reject::new(*code, detail) })
    }
}

/// Decides by all `sources`, which are in the order of their names.
fn decide<'a, 'c>(
    sources: &mut dyn Iterator<Item = Source<'a>>,
    caller: &'a Caller,
    call: &Call<'c>,
    now: UnixTime,
    limits: &Limits,
) -> Decision<'c> {
    let (path, authority) = if call.method == CONNECT {
        (Ok(None), Authority::of_tunnel(call.authority))
    } else {
        let path = path::normalise(call.target, limits).map(Some);
        (path, Authority::parse(call.authority, call.scheme))
    };
    let (outcome, destination, shadow) = match (&authority, &path) {
        (Err(problem), _) => {
            let detail = format!("the authority {} {problem}", quote(host_of(call.authority)));
            (Outcome::Refuse(Reject::new(Code::AuthorityInvalid, detail)), None, Vec::new())
        }
        (Ok(authority), Err(problem)) => {
            let detail = format!("the path {} {problem}", quote(path_of(call.target)));
            let mut known = sources.filter_map(|source| source.policy.destination(authority));
            let destination = known.next().map(|(_, name)| Arc::clone(name));
            (Outcome::Refuse(Reject::new(Code::PathInvalid, detail)), destination, Vec::new())
        }
        (Ok(authority), Ok(path)) => {
            let mut asked = sources.map(|Source { name, policy, part, grants }| {
                let who = Who { caller, held: &part.held, perhaps_held: &part.perhaps_held };
                let (number, destination) = policy.destination(authority).unzip();
                let path = path.as_deref();
                let question =
                    Question { who, destination: number, method: call.method, path, now };
                let disagreement = part.disagreement.as_deref();
                Asked { name, policy, grants, destination, question, disagreement }
            });
            // Most sets have one source only, and then nothing is allocated.
            let (first, others) = (asked.next(), asked.collect::<Vec<_>>());
            let known = |asked: &Asked<'_>| asked.destination.is_some();
            let all = || first.iter().chain(&others);
            if let Some(reject) = all().find_map(Asked::disagreed) {
                let destination = all().find_map(|asked| asked.destination.cloned());
                (Outcome::Refuse(reject), destination, Vec::new())
            } else if all().any(known) {
                judge(first.as_slice(), &others, limits)
            } else {
                let authority = quote(host_of(call.authority));
                let detail = format!("no destination of the policy has the authority {authority}");
                (Outcome::Refuse(Reject::new(Code::DestinationUnknown, detail)), None, Vec::new())
            }
        }
    };
    let authority = authority.ok().and_then(|authority| authority.normal);
    Decision { outcome, destination, path: path.ok().flatten(), authority, shadow }
}

/// What `first` and the `others` make of a call to a destination of at least one of them.
fn judge(
    first: &[Asked<'_>],
    others: &[Asked<'_>],
    limits: &Limits,
) -> (Outcome, Option<Arc<str>>, Vec<ShadowVerdict>) {
    let all = || first.iter().chain(others);
    // Of equal ones that of the first source is taken.
    let denying = all().filter_map(|asked| Some((asked, asked.denying()?)));
    let (outcome, decider, changing) = if let Some((asked, rule)) = denying.min_by(by_id) {
        let name = asked.name_of(rule);
        let detail = rule.explain_denial(&name, &asked.question);
        let rule = Some(name.to_string());
        let reject = Reject { rule, ..Reject::new(Code::PolicyDenied, detail) };
        (Outcome::Refuse(reject), Some(asked), None)
    } else {
        let allowing = all().filter_map(|asked| Some((asked, asked.allowing()?)));
        if let Some((asked, rule)) = allowing.min_by(by_id) {
            let permit = Outcome::Permit { rule: asked.name_of(rule), grant: None };
            (permit, Some(asked), Some(Effect::Deny))
        } else if let Some((asked, permit)) = granted(&mut all()) {
            (permit, Some(asked), Some(Effect::Deny))
        } else {
            let (mut reject, nearest) = no_match(&mut all(), limits);
            if let Some((grantable, approvers)) = grantable(&mut all()) {
                let hint = format!("; {grantable} would allow it, and is grantable by {approvers}");
                reject.detail.push_str(&hint);
                reject.grantable = Some(format!("ask {approvers} to grant {grantable}"));
            }
            (Outcome::Refuse(reject), nearest, Some(Effect::Allow))
        }
    };
    let destination = decider.and_then(|asked| asked.destination);
    let destination = destination.or_else(|| all().find_map(|asked| asked.destination));
    let shadow = changing.map(|changing| shadow_verdicts(&mut all(), changing));
    (outcome, destination.cloned(), shadow.unwrap_or_default())
}

/// What no rule allows and a grant does: of several that of the first source.
fn granted<'a, 'q: 'a>(
    all: &mut dyn Iterator<Item = &'a Asked<'q>>,
) -> Option<(&'a Asked<'q>, Outcome)> {
    let granted = all.filter_map(|asked| Some((asked, asked.granted()?)));
    let (asked, (grant, rule)) = granted.min_by(|(_, (one, _)), (_, (other, _))| one.cmp(other))?;
    let grant = Some(Arc::clone(grant));
    Some((asked, Outcome::Permit { rule: asked.name_of(rule), grant }))
}

/// What somebody could grant so that the call is permitted, by its name, and who: of several the first by
/// source, then by id.
fn grantable<'a, 'q: 'a>(all: &mut dyn Iterator<Item = &'a Asked<'q>>) -> Option<(String, String)> {
    let (asked, rule) = all.filter_map(|asked| Some((asked, asked.grantable()?))).next()?;
    let approvers = asked.policy.granting.approvers_of(rule);
    let approvers = few(approvers, |approver| quote(&approver.name));
    Some((quote(&asked.name_of(rule)), approvers))
}

/// The denial by default, with the allow rule that has the fewest misses and its source.
fn no_match<'a, 'q: 'a>(
    all: &mut dyn Iterator<Item = &'a Asked<'q>>,
    limits: &Limits,
) -> (Reject, Option<&'a Asked<'q>>) {
    let nearest = all
        .filter_map(|asked| {
            let (misses, rule) = asked.policy.nearest(&asked.question, limits)?;
            Some((misses, rule, asked))
        })
        .min_by(|(misses, rule, _), (fewest, first, _)| {
            misses.cmp(fewest).then_with(|| rule.id.cmp(&first.id))
        });
    let miss = nearest
        .and_then(|(_, rule, asked)| Some((rule, rule.misses(&asked.question).next()?, asked)));
    let Some((rule, miss, asked)) = miss else {
        let detail = "no rule allows anything at this destination";
        return (Reject::new(Code::PolicyNoMatch, detail), None);
    };
    let name = asked.name_of(rule);
    let detail = rule.explain_miss(&name, miss, &asked.question);
    let nearest = Some(name.to_string());
    (Reject { nearest, ..Reject::new(Code::PolicyNoMatch, detail) }, Some(asked))
}

fn shadow_verdicts<'a, 'q: 'a>(
    all: &mut dyn Iterator<Item = &'a Asked<'q>>,
    changing: Effect,
) -> Vec<ShadowVerdict> {
    let mut found: Vec<(&Asked<'_>, &Rule)> = Vec::new();
    for asked in all {
        for rule in asked.policy.shadowing(&asked.question, changing) {
            let place = found.partition_point(|(_, known)| known.id <= rule.id);
            found.insert(place, (asked, rule));
        }
    }
    let permits = changing == Effect::Allow;
    let found = found.into_iter().take(MOST_SHADOW_VERDICTS);
    found.map(|(asked, rule)| ShadowVerdict { rule: asked.name_of(rule), permits }).collect()
}

fn by_id((_, one): &(&Asked<'_>, &Rule), (_, other): &(&Asked<'_>, &Rule)) -> std::cmp::Ordering {
    one.id.cmp(&other.id)
}

/// What a sentence may show of an authority: there may be a password before the `@`.
fn host_of(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// What a sentence may show of a target: there may be a secret in the query.
fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}
