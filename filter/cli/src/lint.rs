//! What is wrong with a policy though it is one: rules that can never match, that are over, that nobody
//! needs, or that allow more than anybody can have meant.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use airflow_envoy_core::document::suggestion;
use airflow_envoy_core::quote::{quote, quote_list};
use airflow_envoy_core::time::{Span, UnixTime};

use crate::model::{Agreement, Model, Rule, Selector, meet};
use crate::source::Place;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It cannot be used so.
    Error,
    /// It is probably not meant so.
    Warning,
    /// It is good to know.
    Note,
}

impl Severity {
    /// Its name, also in SARIF 2.1.0 §3.27.10.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Kinds of findings of one command.
pub trait Kind: Copy + Eq + 'static {
    /// All of them.
    const KINDS: &'static [Self];
    /// The stable name.
    fn name(self) -> &'static str;
    /// What it means.
    fn meaning(self) -> &'static str;
    /// How bad it is.
    fn severity(self) -> Severity;
}

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lint {
    /// The text is not YAML or JSON.
    Syntax,
    /// The document is not a policy.
    Invalid,
    /// A rule that no call can match.
    NeverMatches,
    /// An allow rule of which a deny rule leaves nothing.
    Shadowed,
    /// A rule that is over.
    Expired,
    /// A rule that is over soon.
    ExpiresSoon,
    /// A role that no rule asks for.
    UnusedRole,
    /// A destination that no rule is about.
    UnusedDestination,
    /// An approver who may grant nothing.
    UnusedApprover,
    /// An allow rule for everybody and everything.
    OverBroad,
    /// A rule that says what another one says.
    Duplicate,
    /// A word that is probably misspelt.
    UnknownWord,
}

impl Lint {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Syntax,
        Self::Invalid,
        Self::NeverMatches,
        Self::Shadowed,
        Self::Expired,
        Self::ExpiresSoon,
        Self::UnusedRole,
        Self::UnusedDestination,
        Self::UnusedApprover,
        Self::OverBroad,
        Self::Duplicate,
        Self::UnknownWord,
    ];

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Invalid => "invalid",
            Self::NeverMatches => "never-matches",
            Self::Shadowed => "shadowed",
            Self::Expired => "expired",
            Self::ExpiresSoon => "expires-soon",
            Self::UnusedRole => "unused-role",
            Self::UnusedDestination => "unused-destination",
            Self::UnusedApprover => "unused-approver",
            Self::OverBroad => "over-broad",
            Self::Duplicate => "duplicate",
            Self::UnknownWord => "unknown-word",
        }
    }

    /// What it means.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Syntax => "The text is not YAML or JSON",
            Self::Invalid => "The document is not a policy",
            Self::NeverMatches => "No call can match the rule or the agreement",
            Self::Shadowed => "A deny rule leaves nothing of the allow rule",
            Self::Expired => "The rule is over",
            Self::ExpiresSoon => "The rule is over soon",
            Self::UnusedRole => "No rule asks for the role",
            Self::UnusedDestination => "No rule is about the destination",
            Self::UnusedApprover => "Nothing is grantable by the approver",
            Self::OverBroad => "The rule allows everybody everything, or the agreement does",
            Self::Duplicate => "Another rule says the same, or another agreement as much",
            Self::UnknownWord => "The word is probably misspelt",
        }
    }

    /// Whether a policy with it cannot be used.
    pub const fn is_error(self) -> bool {
        matches!(self, Self::Syntax | Self::Invalid)
    }
}

impl Kind for Lint {
    const KINDS: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }

    fn meaning(self) -> &'static str {
        self.meaning()
    }

    fn severity(self) -> Severity {
        if self.is_error() { Severity::Error } else { Severity::Warning }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding<K = Lint> {
    /// Its kind.
    pub lint: K,
    /// Where.
    pub place: Place,
    /// Where in the document: `rules[3].from`; may be empty.
    pub path: String,
    /// What, lower case, no full stop.
    pub message: String,
    /// Another place that has to do with it, and what stands there.
    pub related: Option<(Place, String)>,
}

/// What is taken as given.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// The time.
    pub now: UnixTime,
    /// How long before its end a rule is over soon.
    pub expiring: Span,
}

/// Registered methods (IANA) of which requests are made.
const METHODS: [&str; 22] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "QUERY",
    "LINK",
    "UNLINK",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "PURGE",
];

/// Run types of Airflow 2 and 3.
const RUN_TYPES: [&str; 7] = [
    "manual",
    "scheduled",
    "backfill",
    "dataset_triggered",
    "asset_triggered",
    "operator_triggered",
    "asset_materialization",
];

/// All findings about a policy, by their places. `path_of` says where in its file the rule of an index is;
/// what is grantable is counted in the whole policy.
pub fn lint(model: &Model, given: Given, path_of: &dyn Fn(usize) -> String) -> Vec<Finding> {
    let path_of = &|index: usize, rule: &Rule| match rule.granted {
        true => format!("grantable[{index}]"),
        false => path_of(index),
    };
    let mut findings = Vec::new();
    let mut alive = Vec::new();
    let grantable = model.grantable.iter().map(|grantable| &grantable.rule);
    for (index, rule) in model.rules.iter().enumerate().chain(grantable.enumerate()) {
        let mut note = |lint, message: String| {
            let (place, path) = (rule.place.clone(), path_of(index, rule));
            findings.push(Finding { lint, place, path, message, related: None });
        };
        if one_rule(model, rule, given, &mut note) {
            alive.push((index, rule));
        }
    }
    findings.extend(duplicates(&alive, path_of));
    findings.extend(shadowed(model, &alive, path_of));
    findings.extend(unused(model));
    findings.extend(agreement(model.agreement.as_deref().unwrap_or_default()));
    findings.sort_by(|one, other| one.place.cmp(&other.place).then(one.lint.cmp(&other.lint)));
    findings
}

/// Notes what is odd about one rule; returns whether it can have an effect.
fn one_rule(model: &Model, rule: &Rule, given: Given, note: &mut dyn FnMut(Lint, String)) -> bool {
    let name = title(rule);
    if rule.is_over(given.now) {
        let end = rule.expires_at.unwrap_or_default();
        note(Lint::Expired, format!("{name} is over since {end}: it can be removed"));
        return false;
    }
    if let Some(end) = rule.expires_at.filter(|end| *end <= given.now.plus(given.expiring)) {
        let left = end.since(given.now);
        note(Lint::ExpiresSoon, format!("{name} is over at {end}, in {}", rough(left)));
    }
    let mut alive = true;
    if rule.allows {
        if let Some(why) = unmet(&rule.from).or_else(|| model.contradiction(&rule.from)) {
            note(Lint::NeverMatches, format!("{name} can never match: {why}"));
            alive = false;
        }
    } else if let Some(why) = keys_without_issuer(&rule.from) {
        // Of whom a peer is unknown a rule about peers denies.
        note(Lint::NeverMatches, format!("{name} can never match: {why}"));
        alive = false;
    }
    let words = |list: &[String],
                 known: &[&str],
                 what: &str,
                 note: &mut dyn FnMut(Lint, String)| {
        for word in list.iter().filter(|word| !known.contains(&word.as_str())) {
            if word.contains('*') {
                continue;
            }
            let close = suggestion(word, known).map(|close| format!(", did you mean `{close}`?"));
            let close = close.unwrap_or_default();
            let shown = quote(word);
            note(Lint::UnknownWord, format!("{name}: {shown} is no {what} that is known{close}"));
        }
    };
    words(rule.methods.as_deref().unwrap_or_default(), &METHODS, "method", note);
    let run_types = rule.from.get("run_types").map(Vec::as_slice).unwrap_or_default();
    words(run_types, &RUN_TYPES, "run type", note);

    let anybody = rule.from.values().all(|values| values.iter().any(|value| value == "*"));
    let anything = rule.paths.as_ref().is_none_or(|paths| paths.iter().any(|path| path == "/**"));
    if alive && rule.allows && !rule.shadow && anybody && anything {
        let to = rule.to.as_ref().map_or_else(
            || "every destination".to_owned(),
            |to| quote_list(to.iter().map(String::as_str)),
        );
        let methods = match &rule.methods {
            None => "do anything".to_owned(),
            Some(_) if rule.allows_only_tunnels() => "open tunnels".to_owned(),
            Some(methods) => format!("{} any path", methods.join(", ")),
        };
        // A tunnel has no path that could be named.
        let or_what = if rule.names_tunnels() { "" } else { ", or what in `paths`" };
        let problem =
            format!("{name} lets every caller {methods} at {to}: say who in `from`{or_what}");
        note(Lint::OverBroad, problem);
    }
    alive
}

/// Why nobody can meet these conditions, whoever calls, if nobody can.
fn unmet(from: &Selector) -> Option<String> {
    keys_without_issuer(from)
        .or_else(|| {
            let services = from.get("services")?;
            services.iter().all(|service| service.contains("://")).then(|| {
                "a service is a name in Consul; SPIFFE IDs are asked for by `spiffe_ids`".to_owned()
            })
        })
        .or_else(|| {
            let ids = from.get("spiffe_ids")?;
            let possible = ids.iter().any(|id| meet(id, "spiffe://*"));
            (!possible).then(|| "a SPIFFE ID begins with `spiffe://`".to_owned())
        })
}

/// Why no key can meet these conditions, if none can.
fn keys_without_issuer(from: &Selector) -> Option<String> {
    let keys = from.get("key_ids")?;
    if keys.iter().any(|key| key.contains(['/', '*'])) {
        return None;
    }
    let keys = quote_list(keys.iter().map(String::as_str));
    Some(format!("a key id is `issuer/kid`, and none of {keys} has a `/`"))
}

/// How sentences name it.
fn title(rule: &Rule) -> String {
    let kind = if rule.granted { "grantable" } else { "rule" };
    format!("{kind} {}", quote(&rule.id))
}

fn duplicates(rules: &[(usize, &Rule)], path_of: &dyn Fn(usize, &Rule) -> String) -> Vec<Finding> {
    let mut seen: HashMap<String, &Rule> = HashMap::new();
    let mut findings = Vec::new();
    // Who may grant something and for how long makes a difference, too.
    for (index, rule) in rules.iter().filter(|(_, rule)| !rule.granted) {
        let sorted = |list: &Option<Vec<String>>| {
            let set = list.as_ref().map(|list| list.iter().collect::<BTreeSet<_>>());
            format!("{set:?}")
        };
        let from: BTreeMap<&str, BTreeSet<&String>> = rule
            .from
            .iter()
            .map(|(field, values)| (field.as_str(), values.iter().collect()))
            .collect();
        let (methods, paths) = (sorted(&rule.methods), sorted(&rule.paths));
        let Rule { allows, shadow, to, not_before, expires_at, .. } = rule;
        let key =
            format!("{allows}{shadow}{from:?}{to:?}{methods}{paths}{not_before:?}{expires_at:?}");
        let Some(first) = seen.get(&key) else {
            seen.insert(key, rule);
            continue;
        };
        let message = format!("rule {} says what {} says", quote(&rule.id), quote(&first.id));
        findings.push(Finding {
            lint: Lint::Duplicate,
            place: rule.place.clone(),
            path: path_of(*index, rule),
            message,
            related: Some((first.place.clone(), format!("rule {}", quote(&first.id)))),
        });
    }
    findings
}

/// Allow rules of which one deny rule leaves nothing.
fn shadowed(
    model: &Model,
    rules: &[(usize, &Rule)],
    path_of: &dyn Fn(usize, &Rule) -> String,
) -> Vec<Finding> {
    let enforced = || rules.iter().filter(|(_, rule)| !rule.shadow);
    // A deny rule that asks for a field by literal values covers only rules that ask for one of these.
    let mut by_value: HashMap<(&str, &str), Vec<&Rule>> = HashMap::new();
    // The others by their destinations.
    let mut others: HashMap<Option<&str>, Vec<&Rule>> = HashMap::new();
    for (_, rule) in enforced().filter(|(_, rule)| !rule.allows) {
        let literal = |(field, values): &(&String, &Vec<String>)| {
            *field != "roles" && values.iter().all(|value| !value.contains('*'))
        };
        match rule.from.iter().find(literal) {
            None => match &rule.to {
                None => others.entry(None).or_default().push(rule),
                Some(to) => {
                    for name in to {
                        others.entry(Some(name)).or_default().push(rule);
                    }
                }
            },
            Some((field, values)) => {
                for value in values {
                    by_value.entry((field, value)).or_default().push(rule);
                }
            }
        }
    }
    let mut findings = Vec::new();
    for (index, rule) in enforced().filter(|(_, rule)| rule.allows) {
        let ways = model.ways(&rule.from);
        let keys = ways.first().into_iter().flatten();
        let keyed = keys.filter_map(|(field, values)| {
            by_value.get(&(field.as_str(), values.first()?.as_str()))
        });
        let own = rule.to.as_ref().and_then(|to| others.get(&Some(to.first()?.as_str())));
        let any = others.get(&None);
        let mut candidates = own.into_iter().chain(any).chain(keyed).flatten();
        let covering = candidates
            .find(|deny| deny.denies_requests_of(rule) && model.implies(&rule.from, &deny.from));
        let Some(deny) = covering else { continue };
        let (name, other) = (title(rule), quote(&deny.id));
        let some = deny.methods.is_some() || deny.paths.is_some();
        let why = if some && rule.allows_only_tunnels() {
            ", for a tunnel could carry what it is about"
        } else {
            ""
        };
        findings.push(Finding {
            lint: Lint::Shadowed,
            place: rule.place.clone(),
            path: path_of(*index, rule),
            message: format!(
                "{name} has no effect: rule {other} denies everything that it allows{why}"
            ),
            related: Some((deny.place.clone(), format!("rule {other}"))),
        });
    }
    findings
}

/// What is odd about who may assert what.
fn agreement(entries: &[Agreement]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let name = format!("agreement {}", quote(&entry.id));
        let mut note = |lint, message, related: Option<&Agreement>| {
            let related = related
                .map(|other| (other.place.clone(), format!("agreement {}", quote(&other.id))));
            let (place, path) = (entry.place.clone(), format!("agreement[{index}]"));
            findings.push(Finding { lint, place, path, message, related });
        };
        if let Some(why) = unmet(&entry.from).or_else(|| foreign_keys(&entry.from)) {
            note(Lint::NeverMatches, format!("{name} can never hold: {why}"), None);
            continue;
        }
        if entry.is_everything() {
            let message = format!(
                "{name} lets every peer assert everything: name peers in `from`, or leave `agreement` out"
            );
            note(Lint::OverBroad, message, None);
        }
        // Of two that say the same the second is told.
        let covering = entries.iter().enumerate().find(|(other_index, other)| {
            *other_index != index
                && other.covers(entry)
                && (*other_index < index || !entry.covers(other))
        });
        if let Some((_, other)) = covering {
            let other_name = quote(&other.id);
            let message = format!("{name} lets nobody assert what {other_name} does not");
            note(Lint::Duplicate, message, Some(other));
        }
    }
    findings
}

/// Why no key of these is one of these issuers.
fn foreign_keys(from: &Selector) -> Option<String> {
    let (keys, issuers) = (from.get("key_ids")?, from.get("issuers")?);
    let own = |key: &String| issuers.iter().any(|issuer| meet(key, &format!("{issuer}/*")));
    (!keys.iter().any(own)).then(|| "none of its `key_ids` is one of its `issuers`".to_owned())
}

fn unused(model: &Model) -> Vec<Finding> {
    let mut roles: BTreeSet<&str> = BTreeSet::new();
    let mut destinations: BTreeSet<&str> = BTreeSet::new();
    let mut every_destination = false;
    let grantable = model.grantable.iter().map(|grantable| &grantable.rule);
    for rule in model.rules.iter().chain(grantable) {
        roles.extend(rule.from.get("roles").into_iter().flatten().map(String::as_str));
        match &rule.to {
            None => every_destination |= rule.allows,
            Some(to) => destinations.extend(to.iter().map(String::as_str)),
        }
    }
    let mut findings = Vec::new();
    let mut note = |lint, place: &Place, path, message| {
        findings.push(Finding { lint, place: place.clone(), path, message, related: None });
    };
    for (name, role) in model.roles.iter().filter(|(name, _)| !roles.contains(name.as_str())) {
        let message = format!("no rule asks for the role {}", quote(name));
        note(Lint::UnusedRole, &role.place, format!("roles.{name}"), message);
    }
    for (name, destination) in &model.destinations {
        if !every_destination && !destinations.contains(name.as_str()) {
            let message = format!("no rule allows anything at the destination {}", quote(name));
            let path = format!("destinations.{name}");
            note(Lint::UnusedDestination, &destination.place, path, message);
        }
    }
    let approvers: BTreeSet<&String> =
        model.grantable.iter().flat_map(|grantable| &grantable.approvers).collect();
    for (name, place) in model.approvers.iter().filter(|(name, _)| !approvers.contains(name)) {
        let message = format!("nothing is grantable by the approver {}", quote(name));
        note(Lint::UnusedApprover, place, format!("approvers.{name}"), message);
    }
    findings
}

/// "3 days", for people.
fn rough(span: Span) -> String {
    let minutes = span.as_millis() / 60_000;
    let (number, unit) = match minutes {
        0..120 => (minutes, "minute"),
        120..2880 => (minutes / 60, "hour"),
        _ => (minutes / 1440, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::load::read_bytes;
    use crate::source::merge::merge;

    const TOP: &str = "version: 1\nroles:\n  ds: {any: [{teams: [ds]}]}\n  mesh: {any: [{services: [w]}]}\n\
        destinations:\n  orders: {hosts: [orders.internal]}\nrules:\n";

    fn found(rules: &[&str]) -> Vec<(Lint, String)> {
        let mut text = TOP.to_owned();
        for rule in [
            "{id: base, effect: allow, from: {roles: [ds, mesh]}, to: [orders], methods: [GET], paths: [/base]}",
        ]
        .iter()
        .chain(rules)
        {
            text.push_str(&format!("  - {rule}\n"));
        }
        let source = merge(vec![read_bytes("p.yaml", text.as_bytes()).unwrap()]);
        source.policy().unwrap();
        let now = UnixTime::from_rfc3339("2026-11-21T12:00:00Z").unwrap();
        let given = Given { now, expiring: Span::from_secs(14 * 86_400) };
        let findings = lint(&Model::new(&source.node), given, &|index| format!("rules[{index}]"));
        findings.into_iter().map(|finding| (finding.lint, finding.message)).collect()
    }

    #[test]
    fn a_policy_without_fault_has_no_finding() {
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn each_kind_of_finding_is_found_and_only_that() {
        for (rules, lint, told) in [
            (
                &["{id: x, effect: allow, from: {services: ['spiffe://td/ns/w']}, to: [orders]}"][..],
                Lint::NeverMatches,
                "a service is a name in Consul",
            ),
            (
                &["{id: x, effect: allow, from: {spiffe_ids: [w, 'spif/*']}, to: [orders]}"],
                Lint::NeverMatches,
                "a SPIFFE ID begins with `spiffe://`",
            ),
            (
                &["{id: x, effect: allow, from: {key_ids: [kid]}, to: [orders]}"],
                Lint::NeverMatches,
                "a key id is `issuer/kid`",
            ),
            (
                &["{id: x, effect: allow, from: {roles: [ds], teams: [sales]}, to: [orders]}"],
                Lint::NeverMatches,
                "whoever holds the role `ds` has other teams",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: [x]}, to: [orders], valid: {expires_at: 2026-11-21T12:00:00Z}}",
                ],
                Lint::Expired,
                "over since 2026-11-21T12:00:00Z",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: [x]}, to: [orders], valid: {expires_at: 2026-11-23T12:00:00Z}}",
                ],
                Lint::ExpiresSoon,
                "in 2 days",
            ),
            (
                &["{id: x, effect: allow, to: [orders]}"],
                Lint::OverBroad,
                "every caller do anything",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: ['*']}, to: [orders], methods: [GET], paths: ['/**']}",
                ],
                Lint::OverBroad,
                "GET any path",
            ),
            (
                &["{id: x, effect: allow, to: [orders], methods: [CONNECT]}"],
                Lint::OverBroad,
                "every caller open tunnels at `orders`: say who in `from`",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: [a]}, to: [orders], methods: [CONNECT]}",
                    "{id: y, effect: deny, from: {dags: [a]}, to: [orders], methods: [PUT], paths: [/x]}",
                ],
                Lint::Shadowed,
                "everything that it allows, for a tunnel could carry what it is about",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: [a]}, to: [orders], methods: [CONNECT, GET]}",
                    "{id: y, effect: deny, from: {dags: [a]}, to: [orders], methods: [GET]}",
                ],
                Lint::Shadowed,
                "everything that it allows",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: [a]}, to: [orders], paths: ['/a/{sub}/b']}",
                    "{id: y, effect: deny, from: {dags: [a]}, to: [orders], paths: ['/a/*/b']}",
                ],
                Lint::Shadowed,
                "rule `x` has no effect",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: [a, b]}, to: [orders], methods: [GET, PUT]}",
                    "{id: y, effect: allow, from: {dags: [b, a]}, to: [orders], methods: [PUT, GET]}",
                ],
                Lint::Duplicate,
                "rule `y` says what `x` says",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {roles: [ds], dags: [ds_a]}, to: [orders], paths: [/a/b]}",
                    "{id: y, effect: deny, from: {teams: [d*], dags: ['ds_*']}, to: ['*'], paths: ['/a/**']}",
                ],
                Lint::Shadowed,
                "rule `y` denies everything that it allows",
            ),
            (
                &[
                    "{id: x, effect: allow, from: {dags: [a]}, to: [orders]}",
                    "{id: y, effect: deny, from: {dags: [b, a]}, to: [orders]}",
                ],
                Lint::Shadowed,
                "rule `x` has no effect",
            ),
            (
                &["{id: x, effect: allow, from: {dags: [x]}, to: [orders], methods: [DELTE]}"],
                Lint::UnknownWord,
                "did you mean `DELETE`?",
            ),
            (
                &["{id: x, effect: deny, from: {run_types: [manul]}, to: [orders], paths: [/x]}"],
                Lint::UnknownWord,
                "did you mean `manual`?",
            ),
        ] {
            let found = found(rules);
            assert_eq!(found.len(), 1, "{rules:?}: {found:?}");
            assert_eq!(found[0].0, lint, "{rules:?}: {found:?}");
            assert!(found[0].1.contains(told), "{rules:?}: {found:?}");
        }
    }

    #[test]
    fn each_oddity_of_an_agreement_is_told() {
        let found = |entries: &[&str]| {
            let entries: String = entries.iter().map(|entry| format!("  - {entry}\n")).collect();
            let text = format!("version: 1\nagreement:\n{entries}rules: []\n");
            let source = merge(vec![read_bytes("p.yaml", text.as_bytes()).unwrap()]);
            source.policy().unwrap();
            let given = Given { now: UnixTime::default(), expiring: Span::ZERO };
            let findings = lint(&Model::new(&source.node), given, &|_| String::new());
            let told = |one: Finding| (one.lint, one.place.line, one.message);
            findings.into_iter().map(told).collect::<Vec<_>>()
        };
        let worker = "{id: a, from: {services: [airflow-*], issuers: [airflow]}}";
        assert_eq!(found(&[worker]), []);
        assert_eq!(
            found(&[worker, "{id: b, from: {services: [etl]}, may_assert: {dags: [e]}}"]),
            []
        );
        for (entry, lint, told) in [
            ("{id: b, from: {key_ids: [k]}}", Lint::NeverMatches, "can never hold: a key id is"),
            ("{id: b, from: {services: ['spiffe://x']}}", Lint::NeverMatches, "by `spiffe_ids`"),
            (
                "{id: b, from: {issuers: [airflow], key_ids: [idp/1]}}",
                Lint::NeverMatches,
                "none of its `key_ids` is one of its `issuers`",
            ),
            ("{id: b, from: {issuers: ['*']}}", Lint::OverBroad, "every peer assert everything"),
            (
                "{id: b, from: {services: [airflow-worker], issuers: [airflow]}, may_assert: {dags: [d]}}",
                Lint::Duplicate,
                "agreement `b` lets nobody assert what `a` does not",
            ),
            (worker, Lint::Duplicate, "lets nobody assert"),
        ] {
            // Two of one name are a fault, which is not of interest here.
            let entry = entry.replace("{id: a,", "{id: c,");
            let found = found(&[worker, &entry]);
            let it = found.iter().find(|(kind, line, _)| (*kind, *line) == (lint, 4));
            assert!(it.is_some_and(|(.., message)| message.contains(told)), "{entry}: {found:?}");
            let others = found.iter().filter(|(kind, line, _)| (*kind, *line) != (lint, 4));
            assert!(lint == Lint::OverBroad || others.count() == 0, "{entry}: {found:?}");
        }
        // The narrower one is told, wherever it stands.
        let narrow = "{id: b, from: {services: [airflow-worker], issuers: [airflow]}}";
        assert_eq!(found(&[narrow, worker]).len(), 1);
        assert_eq!(found(&[narrow, worker])[0].1, 3);
    }

    #[test]
    fn a_deny_rule_that_leaves_something_shadows_nothing() {
        for deny in [
            "{id: y, effect: deny, from: {teams: [ds], dags: [ds_b]}, to: ['*'], paths: ['/a/**']}",
            "{id: y, effect: deny, from: {teams: [ds]}, to: ['*'], paths: ['/a/c']}",
            "{id: y, effect: deny, from: {teams: [ds]}, to: ['*'], methods: [PUT]}",
            "{id: y, effect: deny, from: {tags: [pii]}, to: ['*']}",
            "{id: y, effect: deny, to: ['*'], mode: shadow}",
            "{id: y, effect: deny, to: ['*'], valid: {not_before: 2027-01-01T00:00:00Z}}",
        ] {
            let allow = "{id: x, effect: allow, from: {roles: [ds], dags: [ds_a]}, to: [orders], paths: [/a/b]}";
            assert_eq!(found(&[allow, deny]), [], "{deny}");
        }
    }

    #[test]
    fn a_deny_rule_about_ones_own_path_shadows_no_other_path() {
        for (allow, deny) in [
            ("paths: [/a/b]", "paths: ['/a/{sub}']"),
            ("paths: ['/a/*']", "paths: ['/a/{sub}']"),
            ("paths: ['/a/{sub}']", "paths: ['/a/s*']"),
            ("paths: ['/a/{sub}']", "paths: ['/a/*sub*']"),
            ("methods: [CONNECT, GET]", "methods: [GET], paths: [/x]"),
        ] {
            let allow =
                format!("{{id: x, effect: allow, from: {{dags: [a]}}, to: [orders], {allow}}}");
            let deny =
                format!("{{id: y, effect: deny, from: {{dags: [a]}}, to: [orders], {deny}}}");
            assert_eq!(found(&[&allow, &deny]), [], "{allow} {deny}");
        }
    }

    #[test]
    fn what_is_grantable_is_looked_at_like_a_rule() {
        const KEY: &str =
            "{keys: [{kty: OKP, crv: Ed25519, x: 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo}]}";
        let found = |grantable: &str| {
            let text = format!(
                "version: 1\nroles: {{ds: {{any: [{{teams: [ds]}}]}}}}\n\
                 destinations: {{orders: {{hosts: [o]}}, cards: {{hosts: [c]}}}}\n\
                 approvers: {{on-call: {KEY}, idle: {KEY}}}\n\
                 grantable:\n  - {{id: g, max_duration: 1h, approvers: [on-call], {grantable}}}\n\
                 rules:\n  - {{id: no-cards, effect: deny, to: [cards], methods: [POST]}}\n"
            );
            let source = merge(vec![read_bytes("p.yaml", text.as_bytes()).unwrap()]);
            source.policy().unwrap();
            let given = Given { now: UnixTime::default(), expiring: Span::ZERO };
            let findings = lint(&Model::new(&source.node), given, &|_| "rules".to_owned());
            let told =
                findings.into_iter().map(|finding| (finding.lint, finding.path, finding.message));
            told.collect::<Vec<_>>()
        };
        let idle = (
            Lint::UnusedApprover,
            "approvers.idle".to_owned(),
            "nothing is grantable by the approver `idle`".to_owned(),
        );
        // It uses the role and the destination.
        let fit = "from: {roles: [ds]}, to: [orders], paths: [/a]";
        assert_eq!(found(fit), std::slice::from_ref(&idle));
        for (grantable, lint, message) in [
            (
                "from: {roles: [ds]}, to: [cards, orders], methods: [GET, POST], paths: [/a]",
                None,
                "",
            ),
            (
                "from: {roles: [ds]}, to: [cards], methods: [POST], paths: [/a]",
                Some(Lint::Shadowed),
                "grantable `g` has no effect: rule `no-cards` denies everything that it allows",
            ),
            (
                "from: {dags: ['*'], roles: [ds]}, to: [orders], methods: [DELTE], paths: [/a]",
                Some(Lint::UnknownWord),
                "grantable `g`: `DELTE` is no method that is known, did you mean `DELETE`?",
            ),
            (
                "from: {spiffe_ids: [w], roles: [ds]}, to: [orders], paths: [/a]",
                Some(Lint::NeverMatches),
                "grantable `g` can never match: a SPIFFE ID begins with `spiffe://`",
            ),
        ] {
            let mut found = found(grantable);
            found.retain(|(lint, ..)| *lint != Lint::UnusedDestination);
            assert_eq!(found.remove(0), idle);
            let expected = lint.map(|lint| (lint, "grantable[0]".to_owned(), message.to_owned()));
            assert_eq!(found, Vec::from_iter(expected), "{grantable}");
        }
        let broad = found("from: {dags: ['*']}, to: [orders]");
        assert!(broad.iter().any(|(lint, path, told)| {
            *lint == Lint::OverBroad
                && path == "grantable[0]"
                && told.starts_with("grantable `g` lets every caller do anything at `orders`")
        }));
    }

    #[test]
    fn roles_and_destinations_that_no_rule_names_are_told() {
        let text = "version: 1\nroles: {a: {any: [{teams: [x]}]}}\ndestinations: {b: {hosts: [b]}}\nrules: []\n";
        let source = merge(vec![read_bytes("p.yaml", text.as_bytes()).unwrap()]);
        let given = Given { now: UnixTime::default(), expiring: Span::ZERO };
        let findings = lint(&Model::new(&source.node), given, &|_| String::new());
        let lints: Vec<Lint> = findings.iter().map(|finding| finding.lint).collect();
        assert_eq!(lints, [Lint::UnusedRole, Lint::UnusedDestination]);
        assert_eq!(findings[0].place.to_string(), "p.yaml:2:9");
    }
}
