//! Reads a policy document. Every fault is told; a document with a fault is not a policy.
//!
//! And the conditions of a grant, which speaks of the roles and destinations of a policy that was read
//! before.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde_json::Value;

use super::agreement::{Agreement, Entry, FROM, MAY_ASSERT};
use super::authority::{HostFault, Hosts};
use super::glob::Values;
use super::grantable::{Approver, Granting, MAX_DURATION};
use super::path::normalise_pattern;
use super::rule::{Effect, Rule, Terms, Validity};
use super::selector::{Condition, FIELDS, Subject};
use super::signed::read_signers;
use crate::arrival::{CONNECT, is_method};
use crate::document::{Faults, Node, Object, Path, Report, suggestion};
use crate::limits::Limits;
use crate::quote::quote;
use crate::time::Span;

/// Names are suggested out of at most this many.
const MOST_SUGGESTIONS: usize = 1_000;

/// A policy document, read but not indexed.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) revision: Option<u64>,
    pub(super) roles: Vec<Role>,
    /// By number.
    pub(super) destinations: Vec<Arc<str>>,
    pub(super) hosts: Hosts,
    /// Sorted by id: the number of a rule is its rank, wherever it stood in the document.
    pub(super) rules: Vec<Rule>,
    pub(super) granting: Granting,
    pub(super) agreement: Option<Agreement>,
}

/// A role and the selectors of which one must match.
#[derive(Debug)]
pub(super) struct Role {
    pub(super) name: Arc<str>,
    pub(super) any: Vec<Box<[Arc<Condition>]>>,
}

/// What the rules of a document may refer to, each with its number.
#[derive(Default)]
pub(super) struct Names<'a> {
    roles: FxHashMap<&'a str, u32>,
    destinations: FxHashMap<&'a str, u32>,
    approvers: FxHashMap<&'a str, u32>,
}

impl<'a> Names<'a> {
    /// What a grant may refer to: the roles and the destinations of a policy, by number.
    pub(super) fn new(
        roles: impl Iterator<Item = &'a str>,
        destinations: impl Iterator<Item = &'a str>,
    ) -> Self {
        Self {
            roles: roles.zip(0..).collect(),
            destinations: destinations.zip(0..).collect(),
            approvers: FxHashMap::default(),
        }
    }
}

/// Which calls a rule is about, as far as it says so.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) from: Option<Box<[Arc<Condition>]>>,
    /// The inner `None` is any destination.
    #[expect(clippy::option_option, reason = "the outer one is a fault, the inner one is `*`")]
    pub(super) to: Option<Option<Arc<[u32]>>>,
    pub(super) methods: Option<Arc<[Box<str>]>>,
    pub(super) paths: Option<Arc<Values>>,
}

/// Where each id of a document stands. Rules and what is grantable share them, because a decision names
/// either.
type Ids<'a> = FxHashMap<Arc<str>, Path<'a>>;

/// What was read before, by what it is and its texts: most parts of a rule are those of another
/// one too.
type Known<'a> = FxHashMap<((u8, &'a str), Vec<&'a str>), Part>;

#[derive(Clone)]
enum Part {
    Condition(Arc<Condition>),
    Destinations(Option<Arc<[u32]>>),
    Methods(Arc<[Box<str>]>),
    Paths(Arc<Values>),
}

/// What is known as `name`, of which [`Subject::identity`] has the kinds up to 2, or else read.
fn once<'a>(
    known: &mut Known<'a>,
    name: (u8, &'a str),
    node: &Node<'a>,
    report: &mut Report,
    read: &mut dyn FnMut(&mut Report) -> Option<Part>,
) -> Option<Part> {
    let key = node.texts().map(|texts| (name, texts));
    if let Some(found) = key.as_ref().and_then(|key| known.get(key)) {
        return Some(found.clone());
    }
    let value = read(report)?;
    // A fault is to be told wherever it stands.
    if let Some(key) = key.filter(|_| report.is_clean()) {
        known.insert(key, value.clone());
    }
    Some(value)
}

pub(super) fn document(value: &Value, limits: &Limits) -> Result<Document, Faults> {
    let mut report = Report::new();
    let document = read(value, limits, &mut report);
    report.finish(document)
}

pub(super) fn read(value: &Value, limits: &Limits, report: &mut Report) -> Option<Document> {
    let mut top = Node::root(value).object(report)?;
    if let Some(version) = top.required(report, "version")
        && version.value.as_u64() != Some(1)
    {
        version.fault(report, "the only version is 1");
    }
    let revision = top.optional("revision").and_then(|node| node.integer(report, 0, u64::MAX));
    let (mut names, mut known) = (Names::default(), Known::default());

    let mut roles = Vec::new();
    for (name, node) in
        top.optional("roles").and_then(|node| node.entries(report)).unwrap_or_default()
    {
        check_id(name, &node, report);
        names.roles.insert(name, 0);
        let any = role(&node, &mut known, report).unwrap_or_default();
        roles.push(Role { name: name.into(), any });
    }

    let mut destinations: Vec<Arc<str>> = Vec::new();
    let mut hosts = Hosts::default();
    for (name, node) in
        top.optional("destinations").and_then(|node| node.entries(report)).unwrap_or_default()
    {
        check_id(name, &node, report);
        let number = u32::try_from(destinations.len()).unwrap_or(u32::MAX);
        names.destinations.insert(name, number);
        destinations.push(name.into());
        destination(&node, number, &destinations, &mut hosts, report);
    }

    let mut approvers = Vec::new();
    for (name, node) in
        top.optional("approvers").and_then(|node| node.entries(report)).unwrap_or_default()
    {
        check_id(name, &node, report);
        let number = u32::try_from(approvers.len()).unwrap_or(u32::MAX);
        names.approvers.insert(name, number);
        approvers.extend(approver(name, &node, limits, report));
    }

    let (mut rules, mut grantables, mut ids) = (Vec::new(), Vec::new(), Ids::default());
    let mut parts = Parts { names: &names, known: &mut known, ids: &mut ids, limits };
    if let Some(node) = top.required(report, "rules") {
        rules = read_list(&node, "rules", &mut parts, report, read_rule);
    }
    if let Some(node) = top.optional("grantable") {
        grantables = read_list(&node, "grantables", &mut parts, report, read_grantable);
    }
    let agreement = top.optional("agreement").map(|node| read_agreement(&node, &mut parts, report));
    top.finish(report);
    let granting = Granting::new(grantables, approvers);
    Some(Document { revision, roles, destinations, hosts, rules, granting, agreement })
}

/// Who may grant: a name and its keys.
fn approver(name: &str, node: &Node<'_>, limits: &Limits, report: &mut Report) -> Option<Approver> {
    let mut object = node.object(report)?;
    let list = object.required(report, "keys").and_then(|list| list.nonempty_array(report));
    object.finish(report);
    let keys = read_signers(node, &list?, limits, report)?;
    Some(Approver { name: name.into(), keys: keys.each_named() })
}

fn role<'a>(
    node: &Node<'a>,
    known: &mut Known<'a>,
    report: &mut Report,
) -> Option<Vec<Box<[Arc<Condition>]>>> {
    let mut object = node.object(report)?;
    let any = object.required(report, "any").and_then(|any| any.nonempty_array(report));
    object.finish(report);
    Some(any?.iter().filter_map(|selector| read_selector(selector, None, known, report)).collect())
}

fn destination(
    node: &Node<'_>,
    number: u32,
    destinations: &[Arc<str>],
    hosts: &mut Hosts,
    report: &mut Report,
) {
    let Some(mut object) = node.object(report) else { return };
    let list = object.required(report, "hosts").and_then(|list| list.nonempty_array(report));
    object.finish(report);
    for host in list.unwrap_or_default() {
        let Some(text) = host.string(report) else { continue };
        match hosts.add(text, number) {
            Ok(()) => {}
            Err(HostFault::Invalid(problem)) => {
                host.fault(report, format!("{} {problem}", quote(text)))
            }
            Err(HostFault::Taken(other)) => {
                let other = destinations.get(other as usize).map(AsRef::as_ref).unwrap_or_default();
                host.fault(
                    report,
                    format!("{} belongs to destination {} already", quote(text), quote(other)),
                );
            }
        }
    }
}

/// What the rules of a document are read with.
struct Parts<'p, 'a> {
    names: &'p Names<'a>,
    known: &'p mut Known<'a>,
    ids: &'p mut Ids<'a>,
    limits: &'p Limits,
}

/// Reads a list of rules by `read`, sorted by id.
fn read_list<'a>(
    node: &Node<'a>,
    what: &str,
    parts: &mut Parts<'_, 'a>,
    report: &mut Report,
    read: fn(&Node<'a>, &mut Parts<'_, 'a>, &mut Report) -> Option<Rule>,
) -> Vec<Rule> {
    let most = parts.limits.policy_rules;
    if let Value::Array(rules) = node.value
        && rules.len() > most
    {
        let found = rules.len();
        node.fault(report, format!("{found} {what} are more than the {most} that are allowed"));
        return Vec::new();
    }
    let mut rules = Vec::new();
    let mut places = 0_usize;
    for element in node.array(report).unwrap_or_default() {
        let Some(rule) = read(&element, parts, report) else { continue };
        if let Some(first) = parts.ids.insert(Arc::clone(&rule.id), element.path.clone()) {
            element.fault(report, format!("the id {} is that of {first} already", quote(&rule.id)));
        }
        let destinations = rule.to.as_ref().map_or(1, |to| to.len());
        let paths = rule.paths.as_ref().map_or(1, |paths| paths.texts().count());
        places = places.saturating_add(destinations.saturating_mul(paths));
        rules.push(rule);
    }
    let most = parts.limits.policy_places;
    if places > most {
        let problem = format!(
            "the {what} name {places} pairs of destination and path, more than the {most} that are allowed"
        );
        node.fault(report, problem);
    }
    rules.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    rules
}

fn read_rule<'a>(node: &Node<'a>, parts: &mut Parts<'_, 'a>, report: &mut Report) -> Option<Rule> {
    let mut object = node.object(report)?;
    let id = read_id(&mut object, report);
    let intent = object.optional("intent").and_then(|node| node.string(report)).map(Into::into);
    let effect = object
        .required(report, "effect")
        .and_then(|node| node.choice(report, &[("allow", Effect::Allow), ("deny", Effect::Deny)]));
    object.required(report, "to");
    let allows = effect == Some(Effect::Allow);
    let scope = read_scope(node, &mut object, allows, parts, report);
    let valid = object.optional("valid").and_then(|node| read_validity(&node, report));
    let shadow = object
        .optional("mode")
        .and_then(|node| node.choice(report, &[("enforce", false), ("shadow", true)]));
    object.finish(report);
    Some(Rule {
        id: id?.into(),
        intent,
        effect: effect?,
        shadow: shadow.unwrap_or_default(),
        from: scope.from.unwrap_or_default(),
        to: scope.to?,
        methods: scope.methods,
        paths: scope.paths,
        valid: valid.map(Box::new),
    })
}

/// What may be granted: an allow rule, and on which terms a grant brings some of it to life.
fn read_grantable<'a>(
    node: &Node<'a>,
    parts: &mut Parts<'_, 'a>,
    report: &mut Report,
) -> Option<Rule> {
    let mut object = node.object(report)?;
    let id = read_id(&mut object, report);
    let intent = object.optional("intent").and_then(|node| node.string(report)).map(Into::into);
    // Who may receive it is never everybody by omission.
    object.required(report, "from");
    object.required(report, "to");
    let scope = read_scope(node, &mut object, true, parts, report);
    let max_duration = object.required(report, "max_duration").and_then(|node| {
        let span = node.span(report)?;
        let least = Span::from_secs(1);
        if !(least..=MAX_DURATION).contains(&span) {
            node.fault(report, format!("{span} is not between {least} and {MAX_DURATION}"));
        }
        Some(span)
    });
    let approvers = object.required(report, "approvers").and_then(|node| {
        let mut numbers = Vec::new();
        for name in node.strings(report)? {
            match parts.names.approvers.get(name) {
                Some(number) => numbers.push(*number),
                None => unknown("approver", name, &parts.names.approvers, &node, report),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Some(numbers.into())
    });
    object.finish(report);
    let Scope { from, to, methods, paths } = scope;
    let (effect, id) = (Effect::Allow, id?.into());
    let (from, to) = (from?, to?);
    let terms = Terms { max_duration: max_duration?, approvers: approvers? };
    let valid = Some(Box::new(Validity { terms: Some(terms), ..Validity::default() }));
    Some(Rule { id, intent, effect, shadow: false, from, to, methods, paths, valid })
}

/// Who may present identities, and who may assert what in them.
fn read_agreement<'a>(
    node: &Node<'a>,
    parts: &mut Parts<'_, 'a>,
    report: &mut Report,
) -> Agreement {
    let elements = node.nonempty_array(report).unwrap_or_default();
    let most = parts.limits.policy_agreements;
    if elements.len() > most {
        let found = elements.len();
        node.fault(report, format!("{found} entries are more than the {most} that are allowed"));
        return Agreement(Box::default());
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(elements.len());
    for element in elements {
        let Some(entry) = read_entry(&element, parts, report) else { continue };
        let place = entries.partition_point(|known| known.id <= entry.id);
        entries.insert(place, entry);
    }
    Agreement(entries.into())
}

fn read_entry<'a>(
    node: &Node<'a>,
    parts: &mut Parts<'_, 'a>,
    report: &mut Report,
) -> Option<Entry> {
    let mut object = node.object(report)?;
    let id: Option<Arc<str>> = read_id(&mut object, report).map(Into::into);
    // Denials name entries as they name rules.
    if let Some(id) = &id
        && let Some(first) = parts.ids.insert(Arc::clone(id), node.path.clone())
    {
        node.fault(report, format!("the id {} is that of {first} already", quote(id)));
    }
    let from = object.required(report, "from");
    let from = from.and_then(|node| read_fields(&node, &FROM, parts, report));
    let may_assert = match object.optional("may_assert") {
        Some(node) => read_fields(&node, &MAY_ASSERT, parts, report),
        None => Some(Box::default()),
    };
    object.finish(report);
    Some(Entry { id: id?, from: from?, may_assert: may_assert? })
}

/// The conditions of an object that may have just these fields of selectors, in their order.
fn read_fields<'a>(
    node: &Node<'a>,
    names: &[&str],
    parts: &mut Parts<'_, 'a>,
    report: &mut Report,
) -> Option<Box<[Arc<Condition>]>> {
    let mut object = node.object(report)?;
    if matches!(node.value, Value::Object(members) if members.is_empty()) {
        node.fault(report, "must not be empty");
    }
    let mut conditions = Vec::new();
    let fields = names.iter().filter_map(|name| FIELDS.iter().find(|field| field.name == *name));
    for field in fields {
        if let Some(node) = object.optional(field.name) {
            let (subject, name) = (Subject::Fact(field), field.name);
            conditions.extend(read_condition(&node, subject, name, parts.known, report));
        }
    }
    object.finish(report);
    Some(conditions.into())
}

/// Reads the conditions of a grant out of its claims.
pub(super) fn grant_scope<'a>(
    node: &Node<'a>,
    object: &mut Object<'a>,
    names: &Names<'a>,
    limits: &Limits,
    report: &mut Report,
) -> Scope {
    let (mut known, mut ids) = (Known::default(), Ids::default());
    let mut parts = Parts { names, known: &mut known, ids: &mut ids, limits };
    object.required(report, "from");
    read_scope(node, object, true, &mut parts, report)
}

/// The id of a rule, of what may be granted, or of a grant.
pub(super) fn read_id<'a>(object: &mut Object<'a>, report: &mut Report) -> Option<&'a str> {
    let id = object.required(report, "id")?;
    let text = id.string(report)?;
    check_id(text, &id, report);
    Some(text)
}

/// Reads which calls a rule is about; with `allows` one that allows them.
fn read_scope<'a>(
    node: &Node<'a>,
    object: &mut Object<'a>,
    allows: bool,
    parts: &mut Parts<'_, 'a>,
    report: &mut Report,
) -> Scope {
    let (names, limits) = (parts.names, parts.limits);
    let known = &mut *parts.known;
    let from =
        object.optional("from").and_then(|node| read_selector(&node, Some(names), known, report));
    let to = object.optional("to").and_then(|node| {
        once(known, (3, "to"), &node, report, &mut |report| {
            read_destinations(&node, names, report).map(Part::Destinations)
        })
    });
    let methods = object.optional("methods").and_then(|node| {
        once(known, (3, "methods"), &node, report, &mut |report| {
            read_methods(&node, report).map(Part::Methods)
        })
    });
    let paths = object.optional("paths").and_then(|node| {
        once(known, (3, "paths"), &node, report, &mut |report| {
            read_paths(&node, limits, report).map(Part::Paths)
        })
    });
    if let (true, Some(Part::Methods(methods)), Some(_)) = (allows, &methods, &paths)
        && methods.iter().any(|method| **method == *CONNECT)
    {
        let problem = "allows `CONNECT` for some paths, and a tunnel has none that can be seen: \
                       tunnels need a rule of their own, without `paths`";
        node.fault(report, problem);
    }
    Scope {
        from,
        to: match to {
            Some(Part::Destinations(to)) => Some(to),
            _ => None,
        },
        methods: match methods {
            Some(Part::Methods(methods)) => Some(methods),
            _ => None,
        },
        paths: match paths {
            Some(Part::Paths(paths)) => Some(paths),
            _ => None,
        },
    }
}

/// A selector; with `names` that of a rule, which may ask for roles.
fn read_selector<'a>(
    node: &Node<'a>,
    names: Option<&Names<'_>>,
    known: &mut Known<'a>,
    report: &mut Report,
) -> Option<Box<[Arc<Condition>]>> {
    let mut object = node.object(report)?;
    if matches!(node.value, Value::Object(members) if members.is_empty()) {
        node.fault(report, "must not be empty");
        return None;
    }
    let mut conditions = Vec::new();
    match (names, object.optional("roles")) {
        (Some(names), Some(roles)) => {
            for name in roles.texts().unwrap_or_default() {
                if !names.roles.contains_key(name) {
                    unknown("role", name, &names.roles, &roles, report);
                }
            }
            conditions.extend(read_condition(&roles, Subject::Roles, "roles", known, report));
        }
        (None, Some(roles)) => roles.fault(report, "a role cannot ask for roles"),
        (_, None) => {}
    }
    for field in &FIELDS {
        if let Some(node) = object.optional(field.name) {
            conditions.extend(read_condition(
                &node,
                Subject::Fact(field),
                field.name,
                known,
                report,
            ));
        }
    }
    if let Some(claims) = object.optional("claims") {
        let entries = claims.entries(report).unwrap_or_default();
        if matches!(claims.value, Value::Object(members) if members.is_empty()) {
            claims.fault(report, "must not be empty");
        }
        for (name, node) in entries {
            let subject = Subject::Claim(name.into());
            conditions.extend(read_condition(&node, subject, name, known, report));
        }
    }
    object.finish(report);
    Some(conditions.into())
}

fn read_condition<'a>(
    node: &Node<'a>,
    subject: Subject,
    name: &'a str,
    known: &mut Known<'a>,
    report: &mut Report,
) -> Option<Arc<Condition>> {
    let (kind, _) = subject.identity();
    let part = once(known, (kind, name), node, report, &mut |report| {
        let values = Values::new(node.strings(report)?);
        Some(Part::Condition(Arc::new(Condition { subject: subject.clone(), values })))
    });
    match part {
        Some(Part::Condition(condition)) => Some(condition),
        _ => None,
    }
}

/// Numbers of destinations; `Some(None)` for any destination.
#[expect(clippy::option_option, reason = "the outer one is a fault, the inner one is `*`")]
fn read_destinations(
    node: &Node<'_>,
    names: &Names<'_>,
    report: &mut Report,
) -> Option<Option<Arc<[u32]>>> {
    let texts = node.strings(report)?;
    if texts.contains(&"*") {
        if texts.len() > 1 {
            node.fault(report, "`*` is every destination and stands alone");
        }
        return Some(None);
    }
    let mut numbers = Vec::new();
    for name in texts {
        match names.destinations.get(name) {
            Some(number) => numbers.push(*number),
            None => unknown("destination", name, &names.destinations, node, report),
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(Some(numbers.into()))
}

fn read_methods(node: &Node<'_>, report: &mut Report) -> Option<Arc<[Box<str>]>> {
    let methods = node.strings(report)?;
    for method in &methods {
        // Without `*`: nobody who writes that here means a method of this name.
        if is_method(method) && !method.contains('*') {
            continue;
        }
        let upper = method.to_ascii_uppercase();
        let problem = if is_method(&upper) && !method.contains('*') {
            format!("`{method}`: methods are case-sensitive, did you mean `{upper}`?")
        } else {
            format!("{} is not a method; leave `methods` out to mean every one", quote(method))
        };
        node.fault(report, problem);
    }
    Some(methods.into_iter().map(Into::into).collect())
}

fn read_paths(node: &Node<'_>, limits: &Limits, report: &mut Report) -> Option<Arc<Values>> {
    let mut patterns = Vec::new();
    for element in node.nonempty_array(report)? {
        let Some(text) = element.string(report) else { continue };
        match normalise_pattern(text, limits) {
            Ok(pattern) => patterns.push(pattern),
            Err(problem) => element.fault(report, format!("{} {problem}", quote(text))),
        }
    }
    Some(Arc::new(Values::new(patterns.iter().map(String::as_str))))
}

fn read_validity(node: &Node<'_>, report: &mut Report) -> Option<Validity> {
    let mut object = node.object(report)?;
    let not_before = object.optional("not_before").and_then(|node| node.time(report));
    let expires_at = object.optional("expires_at").and_then(|node| node.time(report));
    object.finish(report);
    if matches!(node.value, Value::Object(members) if members.is_empty()) {
        node.fault(report, "must not be empty");
    }
    if let (Some(start), Some(end)) = (not_before, expires_at)
        && start >= end
    {
        node.fault(report, format!("`not_before` {start} is not earlier than `expires_at` {end}"));
    }
    Some(Validity { not_before, expires_at, terms: None })
}

fn check_id(text: &str, node: &Node<'_>, report: &mut Report) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if text.is_empty() || text.len() > 128 || !text.bytes().all(plain) {
        let shown = quote(text);
        let problem =
            format!("{shown} is not a name of 1 to 128 letters, digits, `.`, `_` and `-`");
        node.fault(report, problem);
    }
}

fn unknown(
    kind: &str,
    name: &str,
    known: &FxHashMap<&str, u32>,
    node: &Node<'_>,
    report: &mut Report,
) {
    // Looking for close names is slow: not for faults that are only counted.
    if report.is_full() {
        return node.fault(report, "");
    }
    let shown: String = name.chars().take(64).collect();
    let mut candidates: Vec<&str> = known.keys().copied().collect();
    candidates.sort_unstable();
    candidates.truncate(MOST_SUGGESTIONS);
    let close = suggestion(&shown, &candidates);
    let shown = quote(name);
    let problem = match close {
        Some(close) => format!("there is no {kind} {shown}, did you mean `{close}`?"),
        None => format!("there is no {kind} {shown}"),
    };
    node.fault(report, problem);
}
