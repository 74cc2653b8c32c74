//! What two policies decide differently: who gains access and who loses it, whatever the texts say.
//!
//! Two things are said, and they are kept apart:
//! - **certain**: "nobody gains" or "nobody loses", if it follows from the rules themselves. A rule that
//!   both policies have, by whatever name, in whatever order and through whatever role, changes nothing.
//!   A rule that only one has changes nothing in a direction if a rule of the other covers it
//!   ([`resolve`]).
//! - **found**: differences by witnesses. Only calls that a changed rule is about can differ, so for each
//!   changed rule representative calls are made ([`witness`]) and both policies decide them, by the core.
//!   What is reported was decided so. What was not found is not proven absent.
//!
//! What it is not: a comparison of codes and explanations. A call that is refused before and after is no
//! difference, whatever it is told.

pub mod resolve;
pub mod witness;

use std::collections::{BTreeMap, BTreeSet};

use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::{Span, UnixTime};

use self::resolve::Resolved;
use self::witness::Search;
use crate::evaluate::{Answer, Request, Said};
use crate::model::{Agreement, Model, Rule};
use crate::run::UnderTest;

/// Paths that are told of one difference.
const MOST_PATHS: usize = 4;

/// What two policies decide differently.
#[derive(Debug)]
pub struct Comparison {
    /// What was found: losses after gains, each by the rules that decided.
    pub differences: Vec<Difference>,
    /// What may be granted differently; sentences.
    pub grantable: Vec<String>,
    /// It is certain that nobody gains without a grant.
    pub no_gain: bool,
    /// It is certain that nobody loses what needs no grant.
    pub no_loss: bool,
    /// Calls that both decided.
    pub calls: usize,
    /// There were more calls to try than were allowed.
    pub cut: bool,
    /// What the texts say differently though no call was found that it matters for; sentences.
    pub textual: Vec<String>,
}

/// Calls that one policy permits and the other refuses, all by the same rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The new policy permits; otherwise the old one does.
    pub is_gain: bool,
    /// The rule that permits.
    pub rule: String,
    /// Names of the destinations that were found.
    pub destinations: BTreeSet<String>,
    /// Methods that were found.
    pub methods: BTreeSet<String>,
    /// Some of the paths that were found.
    pub paths: Vec<String>,
    /// How many calls were found.
    pub calls: usize,
    /// One of them.
    pub witness: Witness,
}

/// A call that two policies decide differently.
#[derive(Debug, Clone, PartialEq)]
pub struct Witness {
    /// Who calls.
    pub said: Said,
    /// What is asked for.
    pub request: Request,
    /// When.
    pub at: UnixTime,
    /// What the old policy decides.
    pub before: Answer,
    /// What the new policy decides.
    pub after: Answer,
}

impl Comparison {
    /// Whether no difference was found, in access or in what may be granted.
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty() && self.grantable.is_empty()
    }

    /// How many differences are gains.
    pub fn gains(&self) -> usize {
        self.differences.iter().filter(|difference| difference.is_gain).count()
    }
}

/// Compares two policies for calls from `now` on, by at most about `most` calls.
pub fn compare(old: &UnderTest, new: &UnderTest, now: UnixTime, most: usize) -> Comparison {
    let (before, after) = (resolve::rules(&old.model, now), resolve::rules(&new.model, now));
    let hosts = resolve::Hosts::new(&old.model, &new.model);
    let unlike = |these: &[Resolved<'_>], those: &[Resolved<'_>]| -> Vec<usize> {
        let known: BTreeSet<_> = those.iter().map(|one| &one.meaning).collect();
        let changed = |(_, one): &(usize, &Resolved<'_>)| !known.contains(&one.meaning);
        these.iter().enumerate().filter(changed).map(|(index, _)| index).collect()
    };
    let (gone, come) = (unlike(&before, &after), unlike(&after, &before));
    let (gone_rules, come_rules) = (pick(&before, &gone), pick(&after, &come));
    let no_gain = hosts.lose_only()
        && resolve::agrees_no_more(&old.model, &new.model)
        && resolve::nobody_gains(&gone_rules, &before, &come_rules, &after);
    let no_loss = hosts.gain_only()
        && resolve::agrees_no_more(&new.model, &old.model)
        && resolve::nobody_gains(&come_rules, &after, &gone_rules, &before);

    let mut found: BTreeMap<(bool, String, String), Difference> = BTreeMap::new();
    let mut search = Search::new(old, new, &before, &after, &hosts, now);
    let outcome = if no_gain && no_loss {
        witness::Tried::default()
    } else {
        search.run(&gone, &come, most, &mut |witness| note(&mut found, witness))
    };
    let mut differences: Vec<Difference> = found.into_values().collect();
    differences.sort_by(|one, other| {
        other.is_gain.cmp(&one.is_gain).then_with(|| one.rule.cmp(&other.rule))
    });
    let mut textual = textual(old, new, &before, &after, &gone_rules, &come_rules, &differences);
    textual.extend(agreement(old, new));
    let witness::Tried { calls, cut } = outcome;
    let grantable = grantable(old, new);
    Comparison { differences, grantable, no_gain, no_loss, calls, cut, textual }
}

/// Who may assert what in only one of the policies, or otherwise, by the names of the entries.
fn agreement(old: &UnderTest, new: &UnderTest) -> Vec<String> {
    let (before, after) = match (&old.model.agreement, &new.model.agreement) {
        (None, None) => return Vec::new(),
        (None, Some(_)) => return vec!["the old policy has no agreement".to_owned()],
        (Some(_), None) => return vec!["the new policy has no agreement".to_owned()],
        (Some(before), Some(after)) => (before, after),
    };
    let find =
        |entries: &'_ [Agreement], id: &str| entries.iter().find(|entry| entry.id == id).cloned();
    let gone = before.iter().filter(|entry| find(after, &entry.id).is_none());
    let mut told: Vec<String> =
        gone.map(|entry| format!("agreement {} is gone", quote(&entry.id))).collect();
    for entry in after {
        let shown = quote(&entry.id);
        match find(before, &entry.id) {
            None => told.push(format!("agreement {shown} is new")),
            Some(old) if !(old.covers(entry) && entry.covers(&old)) => {
                told.push(format!("agreement {shown} is another one"));
            }
            Some(_) => {}
        }
    }
    told
}

/// What may be granted in only one of the policies, or otherwise.
fn grantable(old: &UnderTest, new: &UnderTest) -> Vec<String> {
    let all = |policy: &UnderTest| -> BTreeMap<String, _> {
        let entries = policy.model.grantable.iter().enumerate().map(|(index, grantable)| {
            let meaning = resolve::meaning(&grantable.rule, &policy.model);
            let member = |path: String| policy.document.pointer(&path).cloned();
            let most = member(format!("/grantable/{index}/max_duration"));
            let most = most.as_ref().and_then(|span| Span::parse(span.as_str()?));
            let keys = grantable.approvers.iter().filter_map(|name| {
                let keys = policy.document.get("approvers")?.get(name)?.get("keys")?.as_array()?;
                Some(keys.iter().map(ToString::to_string).collect::<Vec<_>>())
            });
            let keys: BTreeSet<String> = keys.flatten().collect();
            (grantable.rule.id.clone(), (meaning, most, keys))
        });
        entries.collect()
    };
    let (before, after) = (all(old), all(new));
    let ids: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut told = Vec::new();
    for id in ids {
        let shown = quote(id);
        match (before.get(id), after.get(id)) {
            (None, Some(_)) => told.push(format!("{shown} is new")),
            (Some(_), None) => told.push(format!("{shown} is gone")),
            (Some((what, most, keys)), Some((new_what, new_most, new_keys))) => {
                let changes = [
                    (what != new_what, "what it allows, and to whom"),
                    (most != new_most, "how long it may last"),
                    (keys != new_keys, "who may grant it"),
                ];
                let changes: Vec<&str> =
                    changes.iter().filter(|(is_so, _)| *is_so).map(|(_, what)| *what).collect();
                if !changes.is_empty() {
                    told.push(format!("{shown} differs in {}", changes.join("; ")));
                }
            }
            (None, None) => {}
        }
    }
    told
}

fn pick<'m>(all: &[Resolved<'m>], which: &[usize]) -> Vec<Resolved<'m>> {
    which.iter().filter_map(|index| all.get(*index)).cloned().collect()
}

/// Puts a witness to those that were decided by the same rules.
fn note(found: &mut BTreeMap<(bool, String, String), Difference>, witness: Witness) {
    let (is_gain, permitting, refusing) = match (&witness.before.outcome, &witness.after.outcome) {
        (Err(reject), Ok(rule)) => (true, rule, reject),
        (Ok(rule), Err(reject)) => (false, rule, reject),
        _ => return,
    };
    let refusal = refusing.rule.clone().unwrap_or_else(|| refusing.code.name().to_owned());
    let answers = [&witness.before, &witness.after];
    let destination = answers.iter().find_map(|answer| answer.destination.clone());
    let method = witness.request.method.clone();
    let path = witness.request.path.clone();
    let rule = permitting.clone();
    let entry = found.entry((is_gain, rule.clone(), refusal)).or_insert_with(|| Difference {
        is_gain,
        rule,
        destinations: BTreeSet::new(),
        methods: BTreeSet::new(),
        paths: Vec::new(),
        calls: 0,
        witness,
    });
    entry.calls = entry.calls.saturating_add(1);
    entry.destinations.extend(destination);
    entry.methods.insert(method);
    if !path.is_empty() && entry.paths.len() < MOST_PATHS && !entry.paths.contains(&path) {
        entry.paths.push(path);
    }
}

/// What the texts say differently beside the differences: names, intents, shadow rules, rules that are
/// over, and changed rules for which no call was found.
fn textual(
    old: &UnderTest,
    new: &UnderTest,
    before: &[Resolved<'_>],
    after: &[Resolved<'_>],
    gone: &[Resolved<'_>],
    come: &[Resolved<'_>],
    differences: &[Difference],
) -> Vec<String> {
    let mut told = Vec::new();
    for resolved in before {
        let rule = resolved.rule;
        let same = |other: &&Resolved<'_>| other.meaning == resolved.meaning;
        let mut others = after.iter().filter(same).map(|other| other.rule);
        let Some(first) = others.clone().next() else { continue };
        match others.find(|other| other.id == rule.id) {
            Some(other) if other.intent != rule.intent => {
                told.push(format!("the intent of rule {} is another one", quote(&rule.id)));
            }
            Some(_) => {}
            None => {
                let (was, is) = (quote(&rule.id), quote(&first.id));
                told.push(format!("rule {was} is now rule {is}, and means the same"));
            }
        }
    }
    let decided: BTreeSet<&str> = differences
        .iter()
        .flat_map(|difference| [&difference.witness.before, &difference.witness.after])
        .filter_map(Answer::decider)
        .collect();
    let silent = |rules: &[Resolved<'_>], what: &str, told: &mut Vec<String>| {
        for resolved in rules.iter().filter(|one| !decided.contains(one.rule.id.as_str())) {
            let id = quote(&resolved.rule.id);
            told.push(format!("rule {id} is {what}, and no call was found for which that matters"));
        }
    };
    silent(gone, "only in the old policy as it is there", &mut told);
    silent(come, "only in the new policy as it is there", &mut told);
    let shadows = |model: &'_ Model| -> BTreeMap<String, Rule> {
        let rules = model.rules.iter().filter(|rule| rule.shadow);
        rules.map(|rule| (rule.id.clone(), rule.clone())).collect()
    };
    let (old_shadows, new_shadows) = (shadows(&old.model), shadows(&new.model));
    let ids: BTreeSet<&String> = old_shadows.keys().chain(new_shadows.keys()).collect();
    for id in ids {
        let shown = quote(id);
        match (old_shadows.get(id), new_shadows.get(id)) {
            (Some(_), None) => told.push(format!("shadow rule {shown} is gone")),
            (None, Some(_)) => told.push(format!("shadow rule {shown} is new")),
            (Some(one), Some(other))
                if resolve::meaning(one, &old.model) != resolve::meaning(other, &new.model) =>
            {
                told.push(format!("shadow rule {shown} is another one"));
            }
            _ => {}
        }
    }
    told
}
