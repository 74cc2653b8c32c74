//! What rules mean without the names that a policy gives to things: roles written out as their selectors,
//! destinations as their hosts. Rules of two policies can be compared so.

use std::collections::{BTreeMap, BTreeSet};

use airflow_envoy_core::arrival::CONNECT;
use airflow_envoy_core::time::UnixTime;

use crate::model::{Agreement, Model, Pattern, Rule, Selector, covers_all};

/// A rule and what it means.
#[derive(Debug, Clone)]
pub struct Resolved<'m> {
    /// As it is written.
    pub rule: &'m Rule,
    /// The policy that has it.
    pub model: &'m Model,
    /// Without names: equal for rules that do the same.
    pub meaning: Meaning,
}

/// A rule without its name, intent, and the names of roles and destinations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Meaning {
    /// It allows; otherwise it denies.
    pub allows: bool,
    /// What is asked of the caller but for roles; values sorted.
    from: Selector,
    /// Selectors of which one must match, if roles are asked for.
    roles: Option<BTreeSet<Selector>>,
    /// It is about whatever destination there is.
    pub any: bool,
    /// The hosts that it is about.
    pub hosts: BTreeSet<String>,
    methods: Option<BTreeSet<String>>,
    paths: Option<BTreeSet<Pattern>>,
    not_before: Option<UnixTime>,
    expires_at: Option<UnixTime>,
}

/// The rules that are enforced, now or later.
pub fn rules(model: &Model, now: UnixTime) -> Vec<Resolved<'_>> {
    let live = model.rules.iter().filter(|rule| !rule.shadow && !rule.is_over(now));
    live.map(|rule| {
        let mut meaning = meaning(rule, model);
        // What began already makes no difference any more.
        meaning.not_before = meaning.not_before.filter(|start| *start > now);
        Resolved { rule, model, meaning }
    })
    .collect()
}

/// Whether it is certain that no identity counts under `new` that does not count under `old`.
pub fn agrees_no_more(old: &Model, new: &Model) -> bool {
    match (&old.agreement, &new.agreement) {
        (None, _) => true,
        (Some(old), None) => old.iter().any(Agreement::is_everything),
        (Some(old), Some(new)) => {
            new.iter().all(|narrow| old.iter().any(|wide| wide.covers(narrow)))
        }
    }
}

/// What a rule of `model` means.
pub fn meaning(rule: &Rule, model: &Model) -> Meaning {
    let mut from = sorted(&rule.from);
    let roles = from.remove("roles").map(|names| {
        let roles = names.iter().filter_map(|name| model.roles.get(name));
        roles.flat_map(|role| &role.any).map(sorted).collect()
    });
    let destinations = model.destinations.iter().filter(|(name, _)| rule.is_for(name));
    Meaning {
        allows: rule.allows,
        from,
        roles,
        any: rule.to.is_none(),
        hosts: destinations.flat_map(|(_, destination)| &destination.hosts).map(normal).collect(),
        methods: rule.methods.as_ref().map(|methods| methods.iter().cloned().collect()),
        paths: rule.paths.as_ref().map(|_| rule.patterns().iter().cloned().collect()),
        not_before: rule.not_before,
        expires_at: rule.expires_at,
    }
}

fn sorted(selector: &Selector) -> Selector {
    let entries = selector.iter().map(|(field, values)| {
        let values: BTreeSet<String> = values.iter().cloned().collect();
        (field.clone(), values.into_iter().collect())
    });
    entries.collect()
}

#[expect(clippy::ptr_arg, reason = "it is mapped over lists of them")]
fn normal(host: &String) -> String {
    host.to_ascii_lowercase()
}

/// The hosts of two policies.
#[derive(Debug)]
pub struct Hosts {
    /// Those that only the old one knows.
    pub gone: BTreeSet<String>,
    /// Those that only the new one knows.
    pub come: BTreeSet<String>,
    /// One of these takes calls away from another host, or gives some back.
    overlap: bool,
}

impl Hosts {
    /// Those of these two.
    pub fn new(old: &Model, new: &Model) -> Self {
        let all = |model: &Model| -> BTreeSet<String> {
            model.destinations.values().flat_map(|one| &one.hosts).map(normal).collect()
        };
        let (old, new) = (all(old), all(new));
        let gone: BTreeSet<String> = old.difference(&new).cloned().collect();
        let come: BTreeSet<String> = new.difference(&old).cloned().collect();
        let changed = || gone.iter().chain(&come);
        let overlap = changed()
            .any(|one| old.iter().chain(&new).any(|other| one != other && meet(one, other)));
        Self { gone, come, overlap }
    }

    /// Those that only one of the policies knows.
    pub fn changed(&self) -> impl Iterator<Item = &String> {
        self.gone.iter().chain(&self.come)
    }

    /// Nothing is reached that was not reached before.
    pub fn lose_only(&self) -> bool {
        self.come.is_empty() && !self.overlap
    }

    /// Nothing is reached no more.
    pub fn gain_only(&self) -> bool {
        self.gone.is_empty() && !self.overlap
    }
}

/// Whether it is certain that nobody gains when the rules `gone` of `before` make place for the rules `come`
/// of `after`: each allow rule that came is covered by one that was there before, and each deny rule that
/// went is covered by one that is there now.
pub fn nobody_gains(
    gone: &[Resolved<'_>],
    before: &[Resolved<'_>],
    come: &[Resolved<'_>],
    after: &[Resolved<'_>],
) -> bool {
    let covered =
        |narrow: &Resolved<'_>, by: &[Resolved<'_>]| by.iter().any(|wide| wide.covers(narrow));
    let allowing = come.iter().filter(|one| one.meaning.allows);
    let denying = gone.iter().filter(|one| !one.meaning.allows);
    allowing.into_iter().all(|one| covered(one, before))
        && denying.into_iter().all(|one| covered(one, after))
}

/// Whether a request for one of these hosts of a policy may be one for the other, whatever its port.
fn meet(one: &str, other: &str) -> bool {
    let name = |host: &str| match host.rsplit_once(':') {
        Some((name, _)) if !name.is_empty() && !host.ends_with(']') => name.to_owned(),
        _ => host.to_owned(),
    };
    let below = |wide: &str, narrow: &str| {
        wide.strip_prefix('*').is_some_and(|domain| narrow.ends_with(domain))
    };
    let (one, other) = (name(one), name(other));
    one == other || below(&one, &other) || below(&other, &one)
}

impl Resolved<'_> {
    /// Whether it may be about requests for this host of either policy.
    pub fn may_be_for(&self, host: &str) -> bool {
        self.meaning.any || self.meaning.hosts.iter().any(|own| meet(own, host))
    }

    /// Whether every call to which `narrow` applies is one to which this rule of the same effect applies, too.
    /// It may say no too often.
    pub fn covers(&self, narrow: &Self) -> bool {
        let (wide, other) = (&self.meaning, &narrow.meaning);
        wide.allows == other.allows
            && (wide.any || !other.any && wide.hosts.is_superset(&other.hosts))
            && self.covers_requests(narrow)
            && wide.not_before.is_none_or(|start| other.not_before.is_some_and(|at| start <= at))
            && wide.expires_at.is_none_or(|end| other.expires_at.is_some_and(|at| at <= end))
            && self.covers_callers(narrow)
    }

    fn covers_requests(&self, narrow: &Self) -> bool {
        let (wide, other) = (&self.meaning, &narrow.meaning);
        let methods = match (&wide.methods, &other.methods) {
            (None, None) => true,
            // Without methods a rule allows no tunnel; one that denies anything denies every tunnel.
            (None, Some(methods)) => !wide.allows || !methods.contains(CONNECT),
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => wide.is_superset(narrow),
        };
        let paths = match (&wide.paths, &other.paths) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => {
                narrow.iter().all(|narrow| wide.iter().any(|wide| wide.covers(narrow)))
            }
        };
        methods && paths
    }

    fn covers_callers(&self, narrow: &Self) -> bool {
        let (wide, other) = (&self.meaning, &narrow.meaning);
        let ways: Vec<Selector> = match &other.roles {
            None => vec![other.from.clone()],
            Some(roles) => roles.iter().map(|role| both(&other.from, role)).collect(),
        };
        ways.iter().all(|way| {
            implies(way, &wide.from)
                && wide
                    .roles
                    .as_ref()
                    .is_none_or(|roles| roles.iter().any(|role| implies(way, role)))
        })
    }
}

/// What is asked by both, as far as a selector can say it: of two lists for one field, the one that is the
/// narrower.
fn both(one: &Selector, other: &Selector) -> Selector {
    let mut whole: BTreeMap<String, Vec<String>> = one.clone();
    for (field, values) in other {
        let narrower = whole.get(field).is_none_or(|known| covers_all(known, values));
        if narrower {
            whole.insert(field.clone(), values.clone());
        }
    }
    whole
}

/// Whether whoever meets `narrow` meets `wide`, field by field; neither asks for roles. It holds as well for
/// what is unknown: where `wide` does not hold, neither does `narrow`.
fn implies(narrow: &Selector, wide: &Selector) -> bool {
    wide.iter()
        .all(|(field, values)| narrow.get(field).is_some_and(|narrow| covers_all(values, narrow)))
}
