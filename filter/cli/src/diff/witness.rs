//! Calls that may tell two policies apart.
//!
//! For each changed rule, of the calls that it is about:
//! - **callers**: for each way in which its roles can be held one with just what is asked for; the same with
//!   each other value that is asked for, with the values that other rules ask for, and with each fact unknown
//!   that a rule asks for; and one that meets the rule and another one of either policy, for each other one.
//!   Of the rest each is a stranger.
//! - **requests**: each host; the methods that are named, and one that is not; a path of each pattern, one that
//!   it has in common with each other pattern, and one of no pattern; a tunnel.
//! - **times**: the given one, and those at which a rule begins or ends, and just before.
//!
//! - **peers**: where a policy has an agreement, each caller also as one who meets each of its entries, of both
//!   policies; otherwise a peer is unknown unless a rule asks for it.
//!
//! If the hosts changed, every rule is tried on the changed ones; if the agreement did, every rule that allows.

use std::collections::{BTreeMap, BTreeSet};

use airflow_envoy_core::arrival::CONNECT;
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Map, Value, json};

use super::Witness;
use super::resolve::{Hosts, Resolved, agrees_no_more};
use crate::evaluate::{Peer, Request, Said, Token};
use crate::model::{Agreement, Model, Pattern, Selector, common_text, subject_segment};
use crate::only::put_claim;
use crate::run::UnderTest;

/// Callers of one changed rule.
const MOST_CALLERS: usize = 4_000;

/// Other values of one field that are tried.
const MOST_VALUES: usize = 24;

/// Times that are tried of one changed rule.
const MOST_TIMES: usize = 16;

/// Facts of which a caller has one at most.
const SINGLE: [&str; 12] = [
    "dags",
    "tasks",
    "runs",
    "run_types",
    "teams",
    "queues",
    "subjects",
    "issuers",
    "services",
    "spiffe_ids",
    "identity issuers",
    "identity key_ids",
];

/// Fields of an agreement that are about the identity alone, and what they are called here.
const OF_IDENTITY: [(&str, &str); 2] =
    [("issuers", "identity issuers"), ("key_ids", "identity key_ids")];

/// How much was tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tried {
    /// Calls that both policies decided.
    pub calls: usize,
    /// There were more.
    pub cut: bool,
}

/// What must be true of each field: one value of each list.
type Conditions = BTreeMap<String, Vec<Vec<String>>>;

/// What is known of a caller by field; a field that is not here is a stranger's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Facts {
    known: BTreeMap<String, Vec<String>>,
    unknown: BTreeSet<String>,
    stranger: bool,
}

/// A search for calls that two policies decide differently.
#[derive(Debug)]
pub struct Search<'s> {
    sides: [&'s UnderTest; 2],
    rules: [&'s [Resolved<'s>]; 2],
    hosts: &'s Hosts,
    now: UnixTime,
    /// Fields that a rule or an agreement of either policy asks for.
    asked: BTreeSet<String>,
    names_subject: bool,
    /// What the entries of the agreements ask for; if a policy has none, also nothing.
    agreements: Vec<Conditions>,
}

impl<'s> Search<'s> {
    /// Of these policies and their rules, which are enforced now or later.
    pub fn new(
        old: &'s UnderTest,
        new: &'s UnderTest,
        before: &'s [Resolved<'s>],
        after: &'s [Resolved<'s>],
        hosts: &'s Hosts,
        now: UnixTime,
    ) -> Self {
        let all = || before.iter().chain(after);
        let agreements = agreements(&old.model, &new.model);
        let asked = all().flat_map(|one| conditions(one)).flat_map(|way| way.into_keys());
        let asked = asked.chain(agreements.iter().flat_map(|entry| entry.keys().cloned()));
        let mut patterns = all().flat_map(|one| one.rule.patterns());
        let names_subject = patterns.any(Pattern::names_subject);
        let (asked, sides, rules) = (asked.collect(), [old, new], [before, after]);
        Self { sides, rules, hosts, now, asked, names_subject, agreements }
    }

    /// Tries the changed rules, told by their places, with about `most` calls at most.
    pub fn run(
        &mut self,
        gone: &[usize],
        come: &[usize],
        most: usize,
        found: &mut dyn FnMut(Witness),
    ) -> Tried {
        let changed_hosts: BTreeSet<String> = self.hosts.changed().cloned().collect();
        let [old, new] = self.sides.map(|side| &side.model);
        let agreed = agrees_no_more(old, new) && agrees_no_more(new, old);
        let mut regions: Vec<(&Resolved<'s>, BTreeSet<String>)> = Vec::new();
        for (rules, changed) in self.rules.iter().zip([gone, come]) {
            for (index, rule) in rules.iter().enumerate() {
                // A host that came or went may be one that a wildcard of this rule matched.
                let mut hosts: BTreeSet<String> =
                    changed_hosts.iter().filter(|host| rule.may_be_for(host)).cloned().collect();
                if changed.contains(&index) || !agreed && rule.meaning.allows {
                    hosts.extend(rule.meaning.hosts.iter().cloned());
                }
                if !hosts.is_empty() {
                    regions.push((rule, hosts));
                }
            }
        }
        let mut tried = Tried::default();
        let mut left = most;
        let mut waiting = regions.len();
        for (rule, hosts) in regions {
            // What one does not need is for the others.
            let share = (left / waiting.max(1)).max(1);
            let Tried { calls, cut } = self.region(rule, &hosts, share, found);
            tried.calls += calls;
            tried.cut |= cut;
            left = left.saturating_sub(calls);
            waiting = waiting.saturating_sub(1);
        }
        tried
    }

    /// Tries the calls that `rule` is about at these hosts.
    fn region(
        &self,
        rule: &Resolved<'s>,
        hosts: &BTreeSet<String>,
        most: usize,
        found: &mut dyn FnMut(Witness),
    ) -> Tried {
        let all = || self.rules.iter().flat_map(|rules| rules.iter());
        let near = |other: &&Resolved<'s>| hosts.iter().any(|host| other.may_be_for(host));
        let mut others: Vec<&Resolved<'s>> = all().filter(near).collect();
        others.sort_by(|one, other| one.meaning.cmp(&other.meaning));
        others.dedup_by(|one, other| one.meaning == other.meaning);
        let mut tried = Tried::default();
        let (callers, cut) = self.callers(rule, &others);
        tried.cut |= cut;
        let times = self.times(&others);
        let mut requests: BTreeMap<String, Vec<Request>> = BTreeMap::new();
        for facts in callers {
            let said = self.said(&facts);
            let Ok(caller) = said.caller() else { continue };
            let subject = said.token.as_ref().and_then(|token| token.claims.get("sub"));
            let subject = subject.and_then(Value::as_str).and_then(subject_segment);
            let own = subject.unwrap_or_else(|| "x".to_owned());
            let asked = requests
                .entry(own.clone())
                .or_insert_with(|| requests_of(rule, hosts, &others, &own));
            for request in asked.iter() {
                for at in &times {
                    if tried.calls >= most {
                        tried.cut = true;
                        return tried;
                    }
                    tried.calls += 1;
                    let [old, new] = self.sides;
                    let before = old.evaluator.decide(&caller, request, *at);
                    let after = new.evaluator.decide(&caller, request, *at);
                    if before.outcome.is_ok() != after.outcome.is_ok() {
                        let (said, request) = (said.clone(), request.clone());
                        found(Witness { said, request, at: *at, before, after });
                    }
                }
            }
        }
        tried
    }

    fn times(&self, others: &[&Resolved<'s>]) -> BTreeSet<UnixTime> {
        let bounds = others.iter().flat_map(|one| [one.rule.not_before, one.rule.expires_at]);
        let later = bounds.flatten().filter(|time| *time > self.now);
        let both = later.flat_map(|time| [time.minus(Span::from_millis(1000)), time]);
        let mut times: BTreeSet<UnixTime> = both.filter(|time| *time > self.now).collect();
        while times.len() >= MOST_TIMES {
            times.pop_last();
        }
        times.insert(self.now);
        times
    }

    /// Callers that `rule` is about, the plain ones first, and whether there were more.
    fn callers(&self, rule: &Resolved<'s>, others: &[&Resolved<'s>]) -> (Vec<Facts>, bool) {
        let mut collected = Collected::default();
        let ways = conditions(rule);
        let ways: Vec<Conditions> = ways
            .iter()
            .flat_map(|way| self.agreements.iter().map(|entry| agreed(way, entry)))
            .collect();
        let other_ways: Vec<(bool, Conditions)> = others
            .iter()
            .flat_map(|other| conditions(other).into_iter().map(|way| (other.meaning.allows, way)))
            .collect();
        for way in &ways {
            let Some(facts) = solve(way) else { continue };
            collected.add(facts.clone());
            collected.add(Facts { stranger: true, ..facts });
        }
        for way in &ways {
            for (_, other) in &other_ways {
                let both = together(way, other);
                if let Some(facts) = solve(&both) {
                    collected.add(facts);
                }
            }
        }
        for way in &ways {
            let Some(base) = solve(way) else { continue };
            // Facts that somebody asks for, and nobody knows.
            for field in &self.asked {
                let mut facts = base.clone();
                facts.known.remove(field);
                facts.unknown.insert(field.clone());
                collected.add(facts);
            }
            self.vary(way, &base, &other_ways, &mut collected);
        }
        for way in &ways {
            for (allows, other) in &other_ways {
                let both = together(way, other);
                let Some(base) = solve(&both) else { continue };
                self.vary(&both, &base, &[], &mut collected);
                // A deny rule also denies those of whom it does not know what it asks for.
                let (denying, allowing) = match (rule.meaning.allows, allows) {
                    (true, false) => (other, way),
                    (false, true) => (way, other),
                    _ => continue,
                };
                let Some(base) = solve(allowing) else { continue };
                let own = denying.keys().filter(|field| !allowing.contains_key(*field));
                let mut all_unknown = base.clone();
                for field in own {
                    let mut facts = solve(&both).unwrap_or_else(|| base.clone());
                    facts.known.remove(field);
                    facts.unknown.insert(field.clone());
                    collected.add(facts);
                    all_unknown.unknown.insert(field.clone());
                }
                collected.add(all_unknown);
            }
        }
        (collected.facts, collected.cut)
    }

    /// The caller with each other value of each field in turn.
    fn vary(
        &self,
        way: &Conditions,
        base: &Facts,
        others: &[(bool, Conditions)],
        collected: &mut Collected,
    ) {
        for (field, lists) in way {
            let mut values = solutions(field, lists);
            let theirs = others.iter().filter_map(|(_, other)| other.get(field)).flatten();
            let theirs: BTreeSet<&String> = theirs.flatten().collect();
            for their in theirs.into_iter().take(MOST_VALUES) {
                let theirs = vec![their.clone()];
                let mut both: Vec<Vec<String>> = lists.clone();
                both.push(theirs);
                values.extend(solutions(field, &both));
            }
            for value in values.into_iter().take(MOST_VALUES) {
                let mut facts = base.clone();
                facts.known.insert(field.clone(), value);
                collected.add(facts);
            }
        }
    }

    /// What credentials would say of such a caller.
    fn said(&self, facts: &Facts) -> Said {
        let one = |field: &str| facts.known.get(field).and_then(|values| values.first()).cloned();
        let is_unknown = |field: &str| facts.unknown.contains(field);
        let is_asked = |field: &str| self.asked.contains(field) || facts.known.contains_key(field);
        let mut identity = Map::new();
        let text = |field: &str, default: &str| {
            let value = one(field).unwrap_or_else(|| default.to_owned());
            Value::from(value)
        };
        identity.insert("dag_id".to_owned(), text("dags", "some_dag"));
        identity.insert("task_id".to_owned(), text("tasks", "some_task"));
        identity.insert("run_id".to_owned(), text("runs", "some_run"));
        for (field, claim) in [("run_types", "run_type"), ("teams", "team"), ("queues", "queue")] {
            if is_asked(field) && !is_unknown(field) {
                identity.insert(claim.to_owned(), one(field).map_or(Value::Null, Value::from));
            }
        }
        for (field, claim) in [("owners", "owners"), ("tags", "tags"), ("airflow_roles", "roles")] {
            if is_asked(field) && !is_unknown(field) {
                let values = facts.known.get(field).cloned().unwrap_or_default();
                identity.insert(claim.to_owned(), json!(values));
            }
        }
        let stranger = |usual: &str| if facts.stranger { "some-issuer" } else { usual }.to_owned();
        let by_agreement = one("identity issuers").is_some() || one("identity key_ids").is_some();
        let own_key = one("identity key_ids");
        let own_key = own_key.as_deref().and_then(|key| key.split_once('/'));
        let issuer = one("identity issuers")
            .or_else(|| own_key.map(|(issuer, _)| issuer.to_owned()))
            .or_else(|| one("issuers"))
            .unwrap_or_else(|| stranger("airflow"));
        identity.insert("issuer".to_owned(), issuer.into());
        if let Some((_, key)) = own_key {
            identity.insert("key_id".to_owned(), key.into());
        }
        let mut claims = Map::new();
        if (is_asked("subjects") || self.names_subject) && !is_unknown("subjects") {
            claims.insert("sub".to_owned(), text("subjects", "some-subject"));
        }
        if is_asked("scopes") && !is_unknown("scopes") {
            let scopes = facts.known.get("scopes").cloned().unwrap_or_default();
            claims.insert("scope".to_owned(), scopes.join(" ").into());
        }
        for field in self.asked.iter().filter(|field| !is_unknown(field)) {
            let Some(name) = field.strip_prefix("claims.") else { continue };
            let values = facts.known.get(field).cloned().unwrap_or_default();
            let value = match values.as_slice() {
                [] => json!("some-value"),
                [one] => json!(one),
                several => json!(several),
            };
            put_claim(&mut claims, name, value);
        }
        let key = one("key_ids").filter(|key| key.contains('/'));
        // An issuer that the rule asks for beside that of the agreement is the token's.
        let asked_issuer = one("issuers").filter(|_| by_agreement);
        let needs_token = !claims.is_empty() || key.is_some() || asked_issuer.is_some();
        let (issuer, key_id) = match key.as_deref().and_then(|key| key.split_once('/')) {
            Some((issuer, key_id)) => (issuer.to_owned(), Some(key_id.to_owned())),
            None => (asked_issuer.unwrap_or_else(|| stranger("idp")), None),
        };
        let token = needs_token.then_some(Token { issuer, key_id, claims });
        let (service, spiffe_id) = (one("services"), one("spiffe_ids"));
        let peer =
            (service.is_some() || spiffe_id.is_some()).then_some(Peer { service, spiffe_id });
        Said { identity: Some(identity), token, peer }
    }
}

/// Callers, each once, as many as are allowed.
#[derive(Debug, Default)]
struct Collected {
    seen: BTreeSet<Facts>,
    facts: Vec<Facts>,
    cut: bool,
}

impl Collected {
    fn add(&mut self, facts: Facts) {
        if self.facts.len() >= MOST_CALLERS {
            self.cut = true;
        } else if self.seen.insert(facts.clone()) {
            self.facts.push(facts);
        }
    }
}

/// What a rule asks of its callers: one for each selector of its roles.
fn conditions(rule: &Resolved<'_>) -> Vec<Conditions> {
    let plain = |selector: &Selector| -> Conditions {
        let entries = selector.iter().filter(|(field, _)| *field != "roles");
        entries.map(|(field, values)| (field.clone(), vec![values.clone()])).collect()
    };
    let own = plain(&rule.rule.from);
    let Some(names) = rule.rule.from.get("roles") else { return vec![own] };
    let roles = names.iter().filter_map(|name| rule.model.roles.get(name));
    roles.flat_map(|role| &role.any).map(|selector| together(&own, &plain(selector))).collect()
}

/// What the entries of both agreements ask for, each once.
fn agreements(old: &Model, new: &Model) -> Vec<Conditions> {
    let mut all: Vec<Conditions> = Vec::new();
    for model in [old, new] {
        let entries: Vec<Conditions> = match &model.agreement {
            None => vec![Conditions::new()],
            Some(entries) => entries.iter().flat_map(agreement).collect(),
        };
        for entry in entries {
            if !all.contains(&entry) {
                all.push(entry);
            }
        }
    }
    all
}

/// What a way and an entry ask for both. Of a list that an identity asserts the entry must cover every one, so
/// that the way's values are those that both allow.
fn agreed(way: &Conditions, entry: &Conditions) -> Conditions {
    let mut way = way.clone();
    for (field, lists) in &mut way {
        let Some(asked) = entry.get(field).and_then(|lists| lists.first()) else { continue };
        if SINGLE.contains(&field.as_str()) {
            continue;
        }
        for list in lists.iter_mut() {
            let both = list.iter().flat_map(|one| asked.iter().map(move |two| (one, two)));
            *list = both.filter_map(|(one, two)| common_text(one, two)).collect();
        }
    }
    for (field, lists) in entry {
        let known = way.contains_key(field) && !SINGLE.contains(&field.as_str());
        if !known {
            way = together(&way, &Conditions::from([(field.clone(), lists.clone())]));
        }
    }
    way
}

/// The ways in which an entry can hold. What belongs together is chosen together: a SPIFFE ID and the service that
/// it names, a key and its issuer.
fn agreement(entry: &Agreement) -> Vec<Conditions> {
    let mut asked = Conditions::new();
    for (field, values) in entry.from.iter().chain(&entry.may_assert) {
        let own = OF_IDENTITY.iter().find(|(name, _)| name == field).map(|(_, own)| *own);
        asked.entry(own.unwrap_or(field).to_owned()).or_default().push(values.clone());
    }
    let any = vec!["*".to_owned()];
    let all = |field: &str| entry.from.get(field).unwrap_or(&any).iter();
    let with = |way: &Conditions, chosen: [(&str, String); 2]| {
        let mut way = way.clone();
        for (field, value) in chosen {
            way.insert(field.to_owned(), vec![vec![value]]);
        }
        way
    };
    let mut ways = vec![asked];
    if let Some(ids) = entry.from.get("spiffe_ids") {
        let pairs = ids.iter().flat_map(|id| all("services").map(move |service| (id, service)));
        let pairs: Vec<(String, String)> =
            pairs.filter_map(|(id, service)| workload(id, service)).collect();
        let chosen = |way: &Conditions| {
            let pairs = pairs.iter().cloned();
            let ways =
                pairs.map(|(id, service)| with(way, [("spiffe_ids", id), ("services", service)]));
            ways.collect::<Vec<_>>()
        };
        ways = ways.iter().flat_map(chosen).collect();
    }
    if let Some(keys) = entry.from.get("key_ids") {
        let pairs = keys.iter().flat_map(|key| all("issuers").map(move |issuer| (key, issuer)));
        let pairs: Vec<(String, String)> = pairs
            .filter_map(|(key, issuer)| {
                let key = common_text(key, &format!("{issuer}/*"))?;
                let (issuer, key) = key.split_once('/')?;
                let some = |text: &str| if text.is_empty() { "x" } else { text }.to_owned();
                let (issuer, key) = (some(issuer), some(key));
                Some((format!("{issuer}/{key}"), issuer))
            })
            .collect();
        let chosen = |way: &Conditions| {
            let pairs = pairs.iter().cloned();
            let ways = pairs.map(|(key, issuer)| {
                with(way, [("identity key_ids", key), ("identity issuers", issuer)])
            });
            ways.collect::<Vec<_>>()
        };
        ways = ways.iter().flat_map(chosen).collect();
    }
    ways
}

/// A SPIFFE ID of a Consul service that both globs allow, and the service, if one is found.
fn workload(id: &str, service: &str) -> Option<(String, String)> {
    let domain = id.strip_prefix("spiffe://").and_then(|rest| rest.split(['/', '*']).next());
    let domain = domain.filter(|domain| !domain.is_empty()).unwrap_or("some.consul");
    let stem = format!("spiffe://{domain}/ns/default/dc/dc1/svc/");
    let text = common_text(id, &format!("{stem}{service}"))?;
    let name = text.strip_prefix(&stem)?;
    let name = if name.is_empty() { "some-service" } else { name };
    Some((format!("{stem}{name}"), name.to_owned()))
}

fn together(one: &Conditions, other: &Conditions) -> Conditions {
    let mut both = one.clone();
    for (field, lists) in other {
        let known = both.entry(field.clone()).or_default();
        for list in lists {
            if !known.contains(list) {
                known.push(list.clone());
            }
        }
    }
    both
}

/// A caller that meets the conditions, if one is found.
fn solve(conditions: &Conditions) -> Option<Facts> {
    let mut facts = Facts::default();
    for (field, lists) in conditions {
        facts.known.insert(field.clone(), solutions(field, lists).into_iter().next()?);
    }
    Some(facts)
}

/// Values of a field of which one is in each of the lists, some of those that there are.
fn solutions(field: &str, lists: &[Vec<String>]) -> Vec<Vec<String>> {
    let is_single = SINGLE.contains(&field);
    let is_claim = field.starts_with("claims.");
    let mut globs: Vec<Vec<String>> = vec![Vec::new()];
    for list in lists {
        let mut longer = Vec::new();
        for chosen in &globs {
            for glob in list {
                match chosen.as_slice() {
                    [only] if is_single => {
                        longer.extend(common_text(only, glob).map(|text| vec![text]));
                    }
                    // A claim is one value if that will do, or else a list.
                    [only] if is_claim && common_text(only, glob).is_some() => {
                        longer.extend(common_text(only, glob).map(|text| vec![text]));
                    }
                    chosen => {
                        let mut chosen = chosen.to_vec();
                        chosen.push(glob.clone());
                        longer.push(chosen);
                    }
                }
                if longer.len() >= MOST_VALUES {
                    break;
                }
            }
        }
        globs = longer;
    }
    let mut values: Vec<Vec<String>> = Vec::new();
    // A name that is only what stands before a `*` is an odd one: it comes last.
    for (fill, chosen) in ["x", ""].iter().flat_map(|fill| globs.iter().map(move |one| (fill, one)))
    {
        let filled = chosen.iter().map(|glob| glob.replace('*', fill));
        let mut filled: Vec<String> = filled.filter(|text| !text.is_empty()).collect();
        filled.dedup();
        if !filled.is_empty() && !values.contains(&filled) {
            values.push(filled);
        }
    }
    values
}

/// Requests that `rule` is about at these hosts, by a caller whose `sub` is `own`.
fn requests_of(
    rule: &Resolved<'_>,
    hosts: &BTreeSet<String>,
    others: &[&Resolved<'_>],
    own: &str,
) -> Vec<Request> {
    let methods: BTreeSet<String> = match &rule.rule.methods {
        Some(methods) => methods.iter().cloned().collect(),
        None => {
            let named = others.iter().flat_map(|other| other.rule.methods.iter().flatten());
            let mut methods: BTreeSet<String> = named.cloned().collect();
            let usual = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "REPORT"];
            methods.extend(
                usual.iter().find(|one| !methods.contains(**one)).map(|one| (*one).to_owned()),
            );
            methods
        }
    };
    let tunnels = methods.contains(CONNECT) || !rule.meaning.allows;
    let paths = paths(rule, others, own);
    let mut requests = Vec::new();
    for host in hosts {
        let host = host.strip_prefix("*.").map_or_else(|| host.clone(), |host| format!("x.{host}"));
        for path in &paths {
            let plain = methods.iter().filter(|method| *method != CONNECT);
            requests.extend(plain.map(|method| Request {
                method: method.clone(),
                scheme: "https".to_owned(),
                host: host.clone(),
                path: path.clone(),
            }));
        }
        if tunnels {
            let has_port = !host.ends_with(']') && host.contains(':');
            let port = if has_port { "" } else { ":443" };
            requests.push(Request::tunnel(&format!("{host}{port}")));
        }
    }
    requests
}

fn paths(rule: &Resolved<'_>, others: &[&Resolved<'_>], own: &str) -> Vec<String> {
    let patterns: BTreeSet<&Pattern> = others.iter().flat_map(|one| one.rule.patterns()).collect();
    let mut found: Vec<String> = Vec::new();
    let mut add = |path: String| {
        if path.starts_with('/') && !found.contains(&path) {
            found.push(path);
        }
    };
    let everything = Pattern::new("/**");
    let asked: Vec<&Pattern> = match rule.rule.patterns() {
        [] => vec![&everything],
        patterns => patterns.iter().collect(),
    };
    for pattern in &asked {
        add(pattern.of_subject(own).example(own));
        // Deeper than any other pattern says, and its own stem.
        if let Some(path) = pattern.common(&everything, own) {
            if pattern.matches_below() {
                add(format!("{path}/x/x/x"));
                add(format!("{path}/"));
            }
            add(if path.is_empty() { "/".to_owned() } else { path });
        }
    }
    for pattern in &asked {
        for other in &patterns {
            // The own one, and somebody else's.
            for subject in [own, "x"] {
                if let Some(path) = pattern.of_subject(own).common(&other.of_subject(subject), own)
                {
                    if pattern.matches_below() && other.matches_below() {
                        add(format!("{path}/x"));
                    }
                    add(if path.is_empty() { "/".to_owned() } else { path });
                }
            }
        }
    }
    found
}
