//! Reading intentions as Consul sends them, of any version.
//!
//! Consul leaves out what has the zero value of its kind (Go's `omitempty`), so such a member is as good
//! as none, also an unknown one. Any other unknown member may restrict what the intention allows:
//! whatever has one denies.

use std::cell::Cell;
use std::ops::Deref;

use serde_json::{Map, Value};

use super::pattern::Pattern;
use super::permission::{HeaderTest, PathTest, Permission, ValueTest};
use super::settings::Settings;
use super::token::{Claim, Demand, Provider};
use super::{ANY, Action, DEFAULT, Intention, Intentions, Place};
use crate::arrival::is_method;
use crate::json;
use crate::limits::Limits;
use crate::peer::ConsulService;
use crate::policy::path;
use crate::quote::quote;

type Members = Map<String, Value>;

/// Members of an intention that restrict nothing, in an answer to `match`.
const HARMLESS: [&str; 14] = [
    "CreateIndex",
    "CreatedAt",
    "DefaultAddr",
    "DefaultPort",
    "Description",
    "Hash",
    "ID",
    "LegacyCreateTime",
    "LegacyID",
    "LegacyMeta",
    "LegacyUpdateTime",
    "Meta",
    "ModifyIndex",
    "UpdatedAt",
];

/// Characters of an intention's name in denials, records and metrics.
const MOST_NAME: usize = 300;

/// Steps of the compiled regular expressions of all intentions together, some 5 MB.
const MOST_STEPS: usize = 200_000;

/// The settings, and how many steps regular expressions may still have.
struct Reading<'s> {
    settings: &'s Settings,
    steps: Cell<usize>,
}

impl Deref for Reading<'_> {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        self.settings
    }
}

pub(super) fn read(
    document: &[u8],
    settings: &Settings,
    limits: &Limits,
) -> Result<Intentions, String> {
    let (index, answer) = match document.first() {
        Some(digit) if digit.is_ascii_digit() => {
            let end = document.iter().position(|byte| *byte == b'\n');
            let (line, rest) =
                end.and_then(|end| document.split_at_checked(end)).unwrap_or_default();
            let index = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok());
            (index.ok_or("the index of the answer is missing")?, rest)
        }
        _ => (0, document),
    };
    let value = json::parse(answer, limits.json_depth).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    let reading = Reading { settings, steps: Cell::new(MOST_STEPS) };
    if settings.entries {
        let Value::Array(entries) = &value else {
            return Err("expected the entries of the destination and of `*`".to_owned());
        };
        let [own, any] = entries.as_slice() else {
            return Err("expected the entries of the destination and of `*`".to_owned());
        };
        read_entry(own, &settings.destination, &reading, &mut all)?;
        read_entry(any, ANY, &reading, &mut all)?;
    } else {
        let members = value.as_object().ok_or("expected an object by destinations")?;
        let listed = members.get(&*settings.destination);
        let elements = match listed.filter(|_| members.len() == 1) {
            Some(Value::Null) => &[][..],
            Some(Value::Array(elements)) => elements,
            _ => {
                return Err("expected the intentions of the destination and of no other".to_owned());
            }
        };
        for (place, element) in elements.iter().enumerate() {
            let read = read_match(element, &reading);
            all.push(read.map_err(|problem| format!("intention {place} {problem}"))?);
        }
    }
    if all.len() > limits.intentions {
        let (many, most) = (all.len(), limits.intentions);
        return Err(format!("{many} intentions are more than the {most} allowed"));
    }
    Ok(Intentions::new(all, index, settings))
}

impl Intentions {
    fn new(read: Vec<(Intention, String)>, index: u64, settings: &Settings) -> Self {
        let mut read = read;
        // Of several equal ones Consul asks the first by names; the sort is stable.
        read.sort_by(|(one, destination), (other, other_destination)| {
            let names = |intention: &Intention| {
                let Place { namespace, service, .. } = &intention.source;
                (namespace.clone(), service.clone())
            };
            let order = other.precedence.cmp(&one.precedence);
            order
                .then_with(|| names(one).cmp(&names(other)))
                .then_with(|| destination.cmp(other_destination))
        });
        let all: Box<[Intention]> = read.into_iter().map(|(intention, _)| intention).collect();
        let is_wild = |place: &Place| &*place.namespace == ANY || &*place.service == ANY;
        let (wild, mut exact): (Vec<_>, Vec<_>) =
            all.iter().enumerate().partition(|(_, intention)| is_wild(&intention.source));
        let key = |intention: &Intention| {
            let Place { partition, namespace, service } = &intention.source;
            (service.clone(), namespace.clone(), partition.clone())
        };
        exact.sort_by_key(|(_, intention)| key(intention));
        exact.dedup_by(|(_, later), (_, earlier)| later.source == earlier.source);
        let places =
            |list: Vec<(usize, &Intention)>| list.into_iter().map(|(place, _)| place).collect();
        let (exact, wild) = (places(exact), places(wild));
        Self {
            source: settings.name.as_str().into(),
            trust_domain: settings.trust_domain.as_str().into(),
            default: settings.default,
            index,
            all,
            exact,
            wild,
        }
    }
}

/// The member `name`, unless it has the zero value of its kind.
fn member<'v>(members: &'v Members, name: &str) -> Option<&'v Value> {
    members.get(name).filter(|value| !is_zero(value))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

/// A text, empty if there is none.
fn text<'v>(members: &'v Members, name: &str) -> Result<&'v str, String> {
    match member(members, name) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("has a `{name}` that is not a string")),
    }
}

fn boolean(members: &Members, name: &str) -> Result<bool, String> {
    match member(members, name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(format!("has a `{name}` that is not true or false")),
    }
}

fn list<'v>(members: &'v Members, name: &str) -> Result<&'v [Value], String> {
    match member(members, name) {
        None => Ok(&[]),
        Some(Value::Array(elements)) => Ok(elements),
        Some(_) => Err(format!("has a `{name}` that is not a list")),
    }
}

fn object<'v>(value: &'v Value, what: &str) -> Result<&'v Members, String> {
    value.as_object().ok_or_else(|| format!("has a {what} that is not an object"))
}

/// What is not known may be a restriction.
fn only(members: &Members, known: &[&[&str]]) -> Result<(), String> {
    let unknown = members.iter().find(|(name, value)| {
        !is_zero(value) && !known.iter().any(|list| list.contains(&name.as_str()))
    });
    match unknown {
        None => Ok(()),
        Some((name, _)) => Err(format!("has {}, which is not understood", quote(name))),
    }
}

fn or<'t>(text: &'t str, otherwise: &'t str) -> &'t str {
    if text.is_empty() { otherwise } else { text }
}

/// A name, or `*`; Consul knows no other wildcards.
fn name<'t>(text: &'t str, what: &str) -> Result<&'t str, String> {
    if text.is_empty() {
        return Err(format!("has no `{what}`"));
    }
    if text != ANY && text.contains(['*', '/']) {
        return Err(format!("has the `{what}` {}, which is no name", quote(text)));
    }
    Ok(text)
}

/// One intention with its destination, for the order.
fn read_match(element: &Value, settings: &Reading<'_>) -> Result<(Intention, String), String> {
    const KNOWN: [&str; 12] = [
        "Action",
        "DestinationName",
        "DestinationNS",
        "DestinationPartition",
        "JWT",
        "Permissions",
        "Precedence",
        "SourceName",
        "SourceNS",
        "SourcePartition",
        "SourcePeer",
        "SourceSamenessGroup",
    ];
    let members = element.as_object().ok_or("is not an object")?;
    let destination = name(text(members, "DestinationName")?, "DestinationName")?;
    let destination_namespace = or(text(members, "DestinationNS")?, DEFAULT);
    let about = [&*settings.destination, ANY].contains(&destination)
        && [&*settings.namespace, ANY].contains(&destination_namespace)
        && or(text(members, "DestinationPartition")?, DEFAULT) == settings.partition;
    if !about {
        return Err(format!("is about {}, and not about the destination", quote(destination)));
    }
    let source = Source {
        place: Place {
            partition: or(text(members, "SourcePartition")?, DEFAULT).into(),
            namespace: or(text(members, "SourceNS")?, DEFAULT).into(),
            service: name(text(members, "SourceName")?, "SourceName")?.into(),
        },
        peer: text(members, "SourcePeer")?,
        sameness_group: text(members, "SourceSamenessGroup")?,
    };
    let token = members.get("JWT");
    let action = only(members, &[&KNOWN, &HARMLESS, &["SourceType"]])
        .and_then(|()| read_type(text(members, "SourceType")?))
        .and_then(|()| read_action(members, settings));
    Ok(intention(&source, (destination_namespace, destination), token, action, settings))
}

/// The entry `service-intentions` of `destination`.
fn read_entry(
    value: &Value,
    destination: &str,
    settings: &Reading<'_>,
    all: &mut Vec<(Intention, String)>,
) -> Result<(), String> {
    const KNOWN: [&str; 5] = ["JWT", "Kind", "Name", "Namespace", "Partition"];
    const SOURCE: [&str; 9] = [
        "Action",
        "Name",
        "Namespace",
        "Partition",
        "Peer",
        "Permissions",
        "Precedence",
        "SamenessGroup",
        "Type",
    ];
    if value.is_null() {
        return Ok(());
    }
    let about = |problem: String| format!("the entry of {} {problem}", quote(destination));
    let members = value.as_object().ok_or_else(|| about("is not an object".to_owned()))?;
    let text_of = |name| text(members, name).map_err(about);
    let namespace = or(text_of("Namespace")?, DEFAULT);
    let partition = or(text_of("Partition")?, DEFAULT);
    let fits = text_of("Kind")? == "service-intentions"
        && text_of("Name")? == destination
        && [&*settings.namespace, ANY].contains(&namespace)
        && partition == settings.partition;
    if !fits {
        return Err(about("is one of something else".to_owned()));
    }
    // That an entry is about every namespace does not make every namespace its sources'.
    let own_namespace = if namespace == ANY { DEFAULT } else { namespace };
    // What is said of the whole is said of each source.
    let whole = only(members, &[&KNOWN, &HARMLESS, &["Sources"]]);
    let token = members.get("JWT");
    for (place, element) in list(members, "Sources").map_err(about)?.iter().enumerate() {
        let about = |problem: String| about(format!("has a source {place} that {problem}"));
        let members = element.as_object().ok_or_else(|| about("is not an object".to_owned()))?;
        let text = |name| text(members, name).map_err(about);
        let source = Source {
            place: Place {
                partition: or(text("Partition")?, partition).into(),
                namespace: or(text("Namespace")?, own_namespace).into(),
                service: name(text("Name")?, "Name").map_err(about)?.into(),
            },
            peer: text("Peer")?,
            sameness_group: text("SamenessGroup")?,
        };
        let action = whole
            .clone()
            .and_then(|()| only(members, &[&SOURCE, &HARMLESS]))
            .and_then(|()| read_type(super::read::text(members, "Type")?))
            .and_then(|()| read_action(members, settings));
        all.push(intention(&source, (namespace, destination), token, action, settings));
    }
    Ok(())
}

struct Source<'v> {
    place: Place,
    /// A mesh of another cluster.
    peer: &'v str,
    /// Peers and partitions that only Consul knows.
    sameness_group: &'v str,
}

/// Puts an intention together.
fn intention(
    source: &Source<'_>,
    (namespace, destination): (&str, &str),
    token: Option<&Value>,
    action: Result<Action, String>,
    settings: &Settings,
) -> (Intention, String) {
    let Source { place, peer, sameness_group } = source;
    let Place { partition, namespace: source_namespace, service } = place;
    let shown = |partition, namespace, service| {
        ConsulService { partition, namespace, datacenter: "", service }.name().into_owned()
    };
    let from = shown(partition, source_namespace, service);
    let to = shown(&settings.partition, namespace, destination);
    // Consul's own rule: what is exact in the destination counts before what is in the source.
    let most: u8 = match exact_parts(namespace, destination) {
        2 => 9,
        1 => 6,
        _ => 3,
    };
    let precedence =
        most.saturating_sub(2_u8.saturating_sub(exact_parts(source_namespace, service)));
    let demand = match token.filter(|token| !is_zero(token)) {
        Some(token) => read_demand(token, settings).map(Some),
        None => Ok(None),
    };
    let (action, demand) = match (action, demand) {
        (Ok(action), Ok(demand)) => (action, demand),
        (Err(problem), _) | (Ok(_), Err(problem)) => (Action::Unfit(problem), None),
    };
    let mut place = place.clone();
    let mut name = format!("{from} => {to}");
    let mut action = action;
    if !peer.is_empty() {
        // INVARIANT: no service of this mesh has such a partition, and others are refused anyway.
        place.partition = format!("peer {peer}").into();
        name = format!("{} of peer {} => {to}", from, quote(peer));
    } else if !sameness_group.is_empty() {
        action = Action::Unfit("has a `SamenessGroup`, whose members only Consul knows".to_owned());
    }
    let order = format!("{namespace}/{destination}");
    // It becomes the label of a metric. No certificate names a service that is called otherwise.
    let shown = |character: char| match character {
        ' ' | '!'..='~' if character != ';' => character,
        _ => '?',
    };
    let name: String = name.chars().take(MOST_NAME).map(shown).collect();
    (Intention { source: place, name: name.into(), precedence, token: demand, action }, order)
}

/// Parts of a name that are not wildcards: after one, nothing is exact.
fn exact_parts(namespace: &str, name: &str) -> u8 {
    match (namespace, name) {
        (ANY, _) => 0,
        (_, ANY) => 1,
        _ => 2,
    }
}

fn read_type(kind: &str) -> Result<(), String> {
    match kind {
        "" | "consul" => Ok(()),
        kind => Err(format!("has sources of the type {}, which is not understood", quote(kind))),
    }
}

fn allows(action: &str) -> Result<bool, String> {
    match action {
        "allow" => Ok(true),
        "deny" => Ok(false),
        "" => Err("has no `Action`".to_owned()),
        action => Err(format!("has the `Action` {}, which is not understood", quote(action))),
    }
}

fn read_action(members: &Members, settings: &Reading<'_>) -> Result<Action, String> {
    let permissions = list(members, "Permissions")?;
    let action = text(members, "Action")?;
    if permissions.is_empty() {
        return Ok(if allows(action)? { Action::Allow } else { Action::Deny });
    }
    if !action.is_empty() {
        return Err("has both `Action` and `Permissions`".to_owned());
    }
    let read = permissions.iter().enumerate().map(|(place, permission)| {
        let number = place.saturating_add(1);
        read_permission(permission, settings)
            .map_err(|problem| format!("has a permission {number} that {problem}"))
    });
    read.collect::<Result<_, _>>().map(Action::Permissions)
}

fn read_permission(value: &Value, reading: &Reading<'_>) -> Result<Permission, String> {
    let members = value.as_object().ok_or("is not an object")?;
    only(members, &[&["Action", "HTTP", "JWT"]])?;
    let http = member(members, "HTTP").ok_or("has no `HTTP`, or an empty one")?;
    let http = object(http, "`HTTP`")?;
    only(http, &[&["Header", "Methods", "PathExact", "PathPrefix", "PathRegex"]])?;
    let token = match member(members, "JWT") {
        Some(token) => Some(read_demand(token, reading)?),
        None => None,
    };
    let headers = list(http, "Header")?.iter().map(|header| read_header(header, reading));
    let headers: Result<Box<[_]>, String> = headers.collect();
    let methods = list(http, "Methods")?.iter().map(|method| {
        let method = method.as_str().filter(|method| is_method(method));
        method.map(Into::into).ok_or_else(|| "has a method that is none".to_owned())
    });
    let permission = Permission {
        allows: allows(text(members, "Action")?)?,
        path: read_path(http, reading)?,
        methods: methods.collect::<Result<_, _>>()?,
        headers: headers?,
        token,
    };
    let Permission { path, methods, headers, .. } = &permission;
    if path.is_none() && methods.is_empty() && headers.is_empty() {
        return Err("has an `HTTP` that asks for nothing".to_owned());
    }
    Ok(permission)
}

fn read_path(http: &Members, reading: &Reading<'_>) -> Result<Option<PathTest>, String> {
    let [exact, prefix, regex] =
        [text(http, "PathExact")?, text(http, "PathPrefix")?, text(http, "PathRegex")?];
    Ok(match (exact, prefix, regex) {
        ("", "", "") => None,
        (exact, "", "") => Some(PathTest::Exact(plain_path(exact, "PathExact")?)),
        ("", prefix, "") => Some(PathTest::Prefix(plain_path(prefix, "PathPrefix")?)),
        ("", "", regex) => Some(PathTest::Regex(read_pattern(regex, "PathRegex", reading)?)),
        _ => {
            return Err("has more than one of `PathExact`, `PathPrefix` and `PathRegex`".to_owned());
        }
    })
}

/// Requests are compared in the normal form of their paths, so one that is in another form would never
/// match: a denial would be none.
fn plain_path(text: &str, what: &str) -> Result<Box<str>, String> {
    match path::normalise(text, &Limits::DEFAULT) {
        Ok(normal) if normal == text => Ok(text.into()),
        Ok(normal) => {
            let (text, normal) = (quote(text), quote(&normal));
            Err(format!("has the `{what}` {text}, whose normal form is {normal}"))
        }
        Err(problem) => Err(format!("has a `{what}` that {problem}")),
    }
}

fn read_pattern(text: &str, what: &str, reading: &Reading<'_>) -> Result<Pattern, String> {
    let pattern =
        Pattern::parse(text).map_err(|problem| format!("has a `{what}` that {problem}"))?;
    let left = reading.steps.get().checked_sub(pattern.steps());
    reading.steps.set(left.ok_or_else(|| format!("has a `{what}` that is one too many"))?);
    Ok(pattern)
}

fn read_header(value: &Value, reading: &Reading<'_>) -> Result<HeaderTest, String> {
    const TESTS: [&str; 5] = ["Contains", "Exact", "Prefix", "Regex", "Suffix"];
    let members = object(value, "`Header`")?;
    only(members, &[&["IgnoreCase", "Invert", "Name", "Present"], &TESTS])?;
    let name = text(members, "Name")?.to_ascii_lowercase();
    if name.is_empty() {
        return Err("has a header without a name".to_owned());
    }
    // The filter puts them right before the upstream sees them, and judges them by itself.
    if name.starts_with(':') || name == "host" {
        return Err(format!("asks for the header {}, which is not compared", quote(&name)));
    }
    let mut tests = TESTS.into_iter().filter(|name| member(members, name).is_some());
    let (test, more) = (tests.next(), tests.next());
    let present = boolean(members, "Present")?;
    let ignore_case = boolean(members, "IgnoreCase")?;
    let value = match (test, present) {
        (None, true) => ValueTest::Present,
        (Some("Regex"), false) => {
            ValueTest::Regex(read_pattern(text(members, "Regex")?, "Regex", reading)?)
        }
        (Some(test), false) => {
            let text = text(members, test)?.into();
            match test {
                "Contains" => ValueTest::Contains(text),
                "Exact" => ValueTest::Exact(text),
                "Prefix" => ValueTest::Prefix(text),
                _ => ValueTest::Suffix(text),
            }
        }
        _ => return Err(format!("has a header {} with no test, or several", quote(&name))),
    };
    let foldable = !matches!(value, ValueTest::Present | ValueTest::Regex(_));
    if more.is_some() || (ignore_case && !foldable) {
        return Err(format!("has a header {} whose tests exclude each other", quote(&name)));
    }
    let invert = boolean(members, "Invert")?;
    Ok(HeaderTest { name: name.into(), value, invert, ignore_case })
}

fn read_demand(value: &Value, settings: &Settings) -> Result<Demand, String> {
    let members = object(value, "`JWT`")?;
    only(members, &[&["Providers"]])?;
    let providers = list(members, "Providers")?;
    if providers.is_empty() {
        return Err("has a `JWT` without providers".to_owned());
    }
    let read = providers.iter().map(|provider| read_provider(provider, settings));
    read.collect::<Result<_, _>>().map(Demand)
}

fn read_provider(value: &Value, settings: &Settings) -> Result<Provider, String> {
    let members = object(value, "provider")?;
    only(members, &[&["Name", "VerifyClaims"]])?;
    let name = text(members, "Name")?;
    let issuer = settings.jwt_providers.iter().find(|(known, _)| known == name);
    let Some((_, issuer)) = issuer else {
        return Err(format!(
            "asks for tokens of {}, which `jwt_providers` does not name",
            quote(name)
        ));
    };
    let claims = list(members, "VerifyClaims")?.iter().map(|claim| {
        let members = object(claim, "claim")?;
        only(members, &[&["Path", "Value"]])?;
        let path: Option<Box<[Box<str>]>> = list(members, "Path")?
            .iter()
            .map(|name| name.as_str().filter(|name| !name.is_empty()).map(Into::into))
            .collect();
        let path = path.filter(|path| !path.is_empty());
        let value = text(members, "Value")?;
        match path {
            Some(path) => Ok(Claim { path, value: value.into() }),
            None => Err("has a claim whose `Path` is none".to_owned()),
        }
    });
    let claims = claims.collect::<Result<_, String>>()?;
    Ok(Provider { issuer: issuer.as_str().into(), claims })
}
