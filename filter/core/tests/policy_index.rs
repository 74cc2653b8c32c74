//! The policy against an evaluator that has no index: it reads the JSON document again for every
//! call, rule by rule, and shares no code with the policy but the normal form of paths.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Decision, Outcome, Policy, PolicySet, path};
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;
use serde_json::{Map, Value, json};

#[test]
fn the_index_changes_no_decision() {
    let mut random = Random { state: 0x9e37_79b9_7f4a_7c15, crowded: false };
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..1000 {
        let size = [3, 12, 40, 120][round % 4];
        let document = random.document(size);
        let text = document.to_string();
        let policy = Policy::parse(text.as_bytes(), &Limits::DEFAULT)
            .unwrap_or_else(|faults| panic!("{faults} in {document}"));
        let policy = PolicySet::from(policy);
        for _ in 0..25 {
            let caller = random.caller();
            let standing = policy.standing(&caller, None);
            let request = random.request();
            let call = Call {
                authority: &request.authority,
                scheme: request.scheme,
                method: request.method,
                target: &request.target,
            };
            let now = UnixTime::from_secs(random.below(5) as i64 * 100);
            // More than the policy has rules: the evaluator without an index looks at all of them.
            let limits = Limits { nearest_rules: 256, ..Limits::DEFAULT };
            let decision = policy.decide(&caller, &standing, &call, now, &limits);
            let roles = standing.roles().map(ToString::to_string).collect();
            let found = Found { roles, ..Found::from(&decision) };
            let reference = Reference {
                document: &document,
                caller: &caller,
                now,
                by_subject: Cell::default(),
                by_unknown: Cell::default(),
            };
            let expected = reference.decide(&call);
            assert_eq!(found, expected, "{document} for {caller:?} and {request:?} at {now}");
            let kind = expected.outcome.split(' ').take(2).collect::<Vec<_>>().join(" ");
            *outcomes.entry(kind).or_default() += 1;
            if request.method == "CONNECT" {
                let kind = expected.outcome.split(' ').next().unwrap_or_default();
                *outcomes.entry(format!("tunnel {kind}")).or_default() += 1;
            }
            for (name, count) in
                [("subject", &reference.by_subject), ("unknown", &reference.by_unknown)]
            {
                *outcomes.entry(name.to_owned()).or_default() += usize::from(count.get());
            }
            *outcomes.entry("shadow".to_owned()).or_default() +=
                usize::from(!expected.shadow.is_empty());
            *outcomes.entry("roles".to_owned()).or_default() +=
                usize::from(!expected.roles.is_empty());
        }
    }
    println!("{outcomes:?}");
    for kind in [
        "permit by",
        "denied by",
        "no match,",
        "destination_unknown",
        "path_invalid",
        "authority_invalid",
        "tunnel permit",
        "tunnel denied",
        "tunnel no",
        "subject",
        "unknown",
        "shadow",
        "roles",
    ] {
        assert!(
            outcomes.get(kind).is_some_and(|count| *count > 200),
            "{kind} is too rare: {outcomes:?}"
        );
    }
}

#[test]
fn the_order_of_rules_never_matters() {
    let mut random = Random { state: 7, crowded: false };
    for _ in 0..200 {
        let mut document = random.document(30);
        let one = PolicySet::from(Policy::from_value(&document, &Limits::DEFAULT).unwrap());
        let rules = document["rules"].as_array_mut().unwrap();
        for index in (1..rules.len()).rev() {
            rules.swap(index, random.below(index + 1));
        }
        let other = PolicySet::from(Policy::from_value(&document, &Limits::DEFAULT).unwrap());
        for _ in 0..20 {
            let (caller, request) = (random.caller(), random.request());
            let call = Call {
                authority: &request.authority,
                scheme: request.scheme,
                method: request.method,
                target: &request.target,
            };
            let now = UnixTime::from_secs(150);
            let decide = |policy: &PolicySet| {
                let standing = policy.standing(&caller, None);
                policy.decide(&caller, &standing, &call, now, &Limits::DEFAULT)
            };
            assert_eq!(decide(&one), decide(&other), "{document}");
        }
    }
}

#[test]
fn several_sources_decide_as_one_document_of_all_their_rules() {
    let mut random = Random { state: 11, crowded: false };
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..300 {
        let document = random.document([3, 12, 40, 120][round % 4]);
        let whole = PolicySet::from(Policy::from_value(&document, &Limits::DEFAULT).unwrap());
        let (sources, source_of) = random.split(&document);
        let set = PolicySet::new(sources.clone());
        let named = |id: &str| format!("{}/{id}", source_of[id]);
        for _ in 0..25 {
            let (caller, request) = (random.caller(), random.request());
            let call = Call {
                authority: &request.authority,
                scheme: request.scheme,
                method: request.method,
                target: &request.target,
            };
            let now = UnixTime::from_secs(random.below(5) as i64 * 100);
            let limits = Limits { nearest_rules: 256, ..Limits::DEFAULT };
            let decide = |set: &PolicySet| {
                set.decide(&caller, &set.standing(&caller, None), &call, now, &limits)
            };
            let (one, mut several) = (decide(&whole), decide(&set));
            let mut expected = one.clone();
            match &mut expected.outcome {
                Outcome::Permit { rule, .. } => *rule = named(rule).into(),
                Outcome::Refuse(reject) => {
                    reject.rule = reject.rule.as_deref().map(named);
                    reject.nearest = reject.nearest.as_deref().map(named);
                }
            }
            for verdict in &mut expected.shadow {
                verdict.rule = named(&verdict.rule).into();
            }
            // What a sentence tells of roles are those of its own document.
            if let (Outcome::Refuse(one), Outcome::Refuse(several)) =
                (&mut expected.outcome, &mut several.outcome)
            {
                one.detail.clear();
                several.detail.clear();
            }
            assert_eq!(several, expected, "{document} split as {source_of:?} for {request:?}");
            let kind = Found::from(&one).outcome;
            let kind = kind.split(' ').take(2).collect::<Vec<_>>().join(" ");
            *outcomes.entry(kind).or_default() += 1;
            *outcomes.entry("shadow".to_owned()).or_default() +=
                usize::from(!one.shadow.is_empty());

            let mut turned = sources.clone();
            turned.reverse();
            assert_eq!(decide(&set), decide(&PolicySet::new(turned)), "the order matters");
        }
    }
    println!("{outcomes:?}");
    for kind in ["permit by", "denied by", "no match,", "destination_unknown", "shadow"] {
        assert!(
            outcomes.get(kind).is_some_and(|count| *count > 50),
            "{kind} is too rare: {outcomes:?}"
        );
    }
}

#[derive(Debug, PartialEq)]
struct Found {
    outcome: String,
    shadow: Vec<(String, bool)>,
    roles: Vec<String>,
}

impl From<&Decision<'_>> for Found {
    fn from(decision: &Decision<'_>) -> Self {
        let outcome = match &decision.outcome {
            Outcome::Permit { rule, .. } => format!("permit by {rule}"),
            Outcome::Refuse(reject) => match reject.code {
                Code::PolicyDenied => format!("denied by {}", reject.rule.as_deref().unwrap()),
                Code::PolicyNoMatch => format!("no match, nearest {:?}", reject.nearest),
                code => code.to_string(),
            },
        };
        let shadow = decision.shadow.iter();
        let shadow = shadow.map(|verdict| (verdict.rule.to_string(), verdict.permits)).collect();
        Self { outcome, shadow, roles: Vec::new() }
    }
}

/// The evaluator without an index.
struct Reference<'a> {
    document: &'a Value,
    caller: &'a Caller,
    now: UnixTime,
    /// A path matched by the caller's subject; one could have, were it known.
    by_subject: Cell<bool>,
    by_unknown: Cell<bool>,
}

/// As a [`PolicySet`] is made of.
type Sources = Vec<(Arc<str>, Rc<Policy>)>;

/// `None` is unknown.
type Truth = Option<bool>;

impl Reference<'_> {
    fn decide(&self, call: &Call<'_>) -> Found {
        let roles = self.document["roles"].as_object().into_iter().flatten();
        let roles = roles.filter(|(name, _)| self.role(name) == Some(true));
        let mut found = Found {
            outcome: String::new(),
            shadow: Vec::new(),
            roles: roles.map(|(name, _)| name.clone()).collect(),
        };
        let tunnel = call.method == "CONNECT";
        if tunnel && !call.authority.contains(':') {
            found.outcome = "authority_invalid".to_owned();
            return found;
        }
        let path =
            if tunnel { Ok("".into()) } else { path::normalise(call.target, &Limits::DEFAULT) };
        let Ok(path) = path else {
            found.outcome = "path_invalid".to_owned();
            return found;
        };
        let Some(destination) = self.destination(call) else {
            found.outcome = "destination_unknown".to_owned();
            return found;
        };
        let rules = self.document["rules"].as_array().unwrap();
        let of = |effect: &str, mode: &str| -> Vec<&Value> {
            let wanted = |rule: &&Value| {
                rule["effect"] == effect
                    && rule.get("mode").is_some_and(|known| known == "shadow") == (mode == "shadow")
            };
            let mut rules: Vec<_> = rules.iter().filter(wanted).collect();
            rules.sort_by_key(|rule| rule["id"].as_str().unwrap());
            rules
        };
        let id = |rule: &Value| rule["id"].as_str().unwrap().to_owned();
        let truth = |rule: &Value| self.rule(rule, &destination, call.method, &path);
        let denies = |rule: &&&Value| truth(rule) != Some(false);
        let allows = |rule: &&&Value| truth(rule) == Some(true);
        if let Some(rule) = of("deny", "enforce").iter().find(denies) {
            found.outcome = format!("denied by {}", id(rule));
        } else if let Some(rule) = of("allow", "enforce").iter().find(allows) {
            found.outcome = format!("permit by {}", id(rule));
            found.shadow =
                of("deny", "shadow").iter().filter(denies).map(|rule| (id(rule), false)).collect();
        } else {
            let all = of("allow", "enforce");
            let here = all.iter().filter(|rule| self.is_for(rule, &destination));
            let nearest = here
                .min_by_key(|rule| (self.misses(rule, call.method, &path), id(rule)))
                .map(|rule| id(rule));
            found.outcome = format!("no match, nearest {nearest:?}");
            found.shadow =
                of("allow", "shadow").iter().filter(allows).map(|rule| (id(rule), true)).collect();
        }
        found.shadow.truncate(16);
        found
    }

    fn destination(&self, call: &Call<'_>) -> Option<String> {
        let host = call.authority.to_lowercase();
        let (host, port) = host.split_once(':').unwrap_or((&host, ""));
        let host = host.strip_suffix('.').unwrap_or(host);
        let tls = call.scheme == "https" || call.method == "CONNECT";
        let default = if tls { "443" } else { "80" };
        let port = if port.is_empty() { default } else { port };
        let mut best: Option<(usize, String)> = None;
        for (name, destination) in self.document["destinations"].as_object().unwrap() {
            for entry in destination["hosts"].as_array().unwrap() {
                let (wanted, wanted_port) = entry
                    .as_str()
                    .unwrap()
                    .split_once(':')
                    .unwrap_or((entry.as_str().unwrap(), default));
                let weight = match wanted.strip_prefix('*') {
                    None if wanted == host => usize::MAX,
                    Some(suffix) if host.ends_with(suffix) && host.len() > suffix.len() => {
                        suffix.len()
                    }
                    _ => continue,
                };
                if wanted_port == port && best.as_ref().is_none_or(|(most, _)| *most < weight) {
                    best = Some((weight, name.clone()));
                }
            }
        }
        best.map(|(_, name)| name)
    }

    fn is_for(&self, rule: &Value, destination: &str) -> bool {
        rule["to"].as_array().unwrap().iter().any(|name| name == "*" || name == destination)
    }

    fn rule(&self, rule: &Value, destination: &str, method: &str, path: &str) -> Truth {
        and([
            Some(self.is_for(rule, destination)),
            self.request(rule, method, path),
            Some(self.in_time(rule)),
            and(self.conditions(rule)),
        ])
    }

    /// What a rule says of a method and a path; in a tunnel there may be any.
    fn request(&self, rule: &Value, method: &str, path: &str) -> Truth {
        if method != "CONNECT" {
            return and([Some(has_method(rule, method)), self.path(rule, path)]);
        }
        let (named, any) = (rule.get("methods").is_some(), rule.get("paths").is_none());
        match rule["effect"].as_str().unwrap() {
            "allow" => Some(named && has_method(rule, "CONNECT") && any),
            _ if has_method(rule, "CONNECT") && any => Some(true),
            _ => None,
        }
    }

    fn path(&self, rule: &Value, path: &str) -> Truth {
        let given: Vec<_> = path.split('/').skip(1).map(decoded).collect();
        let Some(patterns) = rule.get("paths") else { return Some(true) };
        or(patterns.as_array().unwrap().iter().map(|pattern| {
            let pattern = decoded(pattern.as_str().unwrap());
            let wanted: Vec<_> = pattern.split('/').skip(1).collect();
            let varies = wanted.contains(&"{sub}");
            match &self.caller.subjects {
                _ if !varies => Some(segments(&wanted, &given, None)),
                Fact::Known(subjects) => {
                    let matched = subjects.iter().any(|sub| segments(&wanted, &given, Some(sub)));
                    self.by_subject.set(self.by_subject.get() || matched);
                    Some(matched)
                }
                Fact::Unknown if segments(&wanted, &given, None) => {
                    self.by_unknown.set(true);
                    None
                }
                Fact::Unknown => Some(false),
            }
        }))
    }

    fn misses(&self, rule: &Value, method: &str, path: &str) -> usize {
        let (method, path) = if method == "CONNECT" {
            let named = rule.get("methods").is_some() && has_method(rule, method);
            (named, rule.get("paths").is_none())
        } else {
            (has_method(rule, method), self.path(rule, path) == Some(true))
        };
        let others = [method, path, self.in_time(rule)];
        let callers = self.conditions(rule);
        others.iter().filter(|held| !**held).count()
            + callers.iter().filter(|held| **held != Some(true)).count()
    }

    fn in_time(&self, rule: &Value) -> bool {
        let time = |name: &str| {
            rule["valid"][name].as_str().map(|text| UnixTime::from_rfc3339(text).unwrap())
        };
        time("not_before").is_none_or(|start| start <= self.now)
            && time("expires_at").is_none_or(|end| self.now < end)
    }

    fn conditions(&self, rule: &Value) -> Vec<Truth> {
        rule.get("from").map_or(Vec::new(), |selector| self.selector(selector))
    }

    fn selector(&self, selector: &Value) -> Vec<Truth> {
        let mut all = Vec::new();
        for (name, values) in selector.as_object().unwrap() {
            match name.as_str() {
                "roles" => all.push(or(values
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|role| self.role(role.as_str().unwrap())))),
                "claims" => {
                    for (claim, values) in values.as_object().unwrap() {
                        all.push(match self.caller.claims.get(claim).unwrap_or(&Value::Null) {
                            Value::Null => None,
                            Value::Array(elements) => {
                                or(elements.iter().map(|element| scalar(element, values)))
                            }
                            value => scalar(value, values),
                        });
                    }
                }
                name => all.push(match fact(self.caller, name) {
                    Fact::Unknown => None,
                    Fact::Known(known) => Some(known.iter().any(|value| any_glob(values, value))),
                }),
            }
        }
        all
    }

    fn role(&self, name: &str) -> Truth {
        or(self.document["roles"][name]["any"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| and(self.selector(one))))
    }
}

fn and(all: impl IntoIterator<Item = Truth>) -> Truth {
    let all: Vec<_> = all.into_iter().collect();
    if all.contains(&Some(false)) {
        Some(false)
    } else if all.contains(&None) {
        None
    } else {
        Some(true)
    }
}

fn or(all: impl IntoIterator<Item = Truth>) -> Truth {
    and(all.into_iter().map(|one| one.map(|held| !held))).map(|none| !none)
}

fn scalar(value: &Value, globs: &Value) -> Truth {
    match value {
        Value::String(text) => Some(any_glob(globs, text)),
        Value::Bool(_) | Value::Number(_) => Some(any_glob(globs, &value.to_string())),
        _ => None,
    }
}

fn has_method(rule: &Value, method: &str) -> bool {
    rule.get("methods")
        .is_none_or(|methods| methods.as_array().unwrap().iter().any(|known| known == method))
}

/// The only escape that the generator makes.
fn decoded(segment: &str) -> String {
    segment.replace("%20", " ")
}

/// Without a subject the variable stands for any.
fn segments(wanted: &[&str], given: &[String], subject: Option<&str>) -> bool {
    match (wanted, given) {
        (["**"], _) | ([], []) => true,
        (["{sub}", wanted @ ..], [segment, given @ ..]) => {
            !segment.is_empty()
                && subject.is_none_or(|subject| subject == segment)
                && segments(wanted, given, subject)
        }
        ([first, wanted @ ..], [segment, given @ ..]) => {
            (first.is_empty() == segment.is_empty())
                && glob(first.as_bytes(), segment.as_bytes())
                && segments(wanted, given, subject)
        }
        _ => false,
    }
}

fn any_glob(globs: &Value, value: &str) -> bool {
    globs
        .as_array()
        .unwrap()
        .iter()
        .any(|one| glob(one.as_str().unwrap().as_bytes(), value.as_bytes()))
}

fn glob(glob_bytes: &[u8], value: &[u8]) -> bool {
    match (glob_bytes, value) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            glob(rest, value) || (!value.is_empty() && glob(glob_bytes, &value[1..]))
        }
        ([one, rest @ ..], [other, value @ ..]) => one == other && glob(rest, value),
        _ => false,
    }
}

fn fact<'c>(caller: &'c Caller, name: &str) -> &'c Fact {
    match name {
        "dags" => &caller.dags,
        "tasks" => &caller.tasks,
        "teams" => &caller.teams,
        "tags" => &caller.tags,
        "services" => &caller.services,
        "issuers" => &caller.issuers,
        _ => panic!("the generator does not make `{name}`"),
    }
}

/// Destinations whose hosts overlap go together: who wins is decided within a document.
fn give_destination(part: &mut Value, document: &Value, name: &str) {
    for name in match name {
        "one" => &["one"][..],
        "two" | "three" => &["two", "three"],
        _ => &[],
    } {
        part["destinations"][name] = document["destinations"][name].clone();
    }
}

/// xorshift64: the same policies and calls on every run.
struct Random {
    state: u64,
    /// The rules of this document share one path, most of them ask for roles, half of them deny.
    crowded: bool,
}

#[derive(Debug)]
struct Request {
    authority: String,
    scheme: &'static str,
    method: &'static str,
    target: String,
}

const FACTS: [&str; 6] = ["dags", "tasks", "teams", "tags", "services", "issuers"];
const VALUES: [&str; 8] = ["a", "b", "ab", "ba", "abc", "team1_x", "team12_y", "ü"];
const GLOBS: [&str; 14] = [
    "a", "b", "ab", "ba", "abc", "team1_x", "a*", "team1*", "team1_*", "*", "*b", "a*c", "*a*",
    "ü*",
];
const SEGMENTS: [&str; 7] = ["v1", "a", "ab", "abc", "b", "x", "a%20b"];
const SEGMENT_GLOBS: [&str; 14] =
    ["v1", "a", "ab", "abc", "b", "*", "a*", "*b", "a*c", "x", "{sub}", "{sub}", "{sub}", "a%20b"];
const SUBJECTS: [&str; 11] = ["v1", "a", "ab", "x", "a b", "v1", "a", "ab", "a/b", "", "*"];
const TIMES: [&str; 4] = [
    "1970-01-01T00:00:00Z",
    "1970-01-01T00:01:40Z",
    "1970-01-01T00:03:20Z",
    "1970-01-01T00:05:00Z",
];

impl Random {
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 16) % bound as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn picks(&mut self, choices: &[&str], most: usize) -> Value {
        (0..=self.below(most)).map(|_| self.pick(choices)).collect::<Vec<_>>().into()
    }

    fn document(&mut self, rules: usize) -> Value {
        self.crowded = self.one_in(4);
        let roles: Map<_, _> =
            (0..8).map(|number| (format!("role{number}"), self.role())).collect();
        let rules: Vec<_> = (0..rules).map(|number| self.rule(number)).collect();
        json!({
            "version": 1,
            "roles": roles,
            "destinations": {
                "one": {"hosts": ["one.internal", "one.internal:8443"]},
                "two": {"hosts": ["*.two.internal", "two.internal:9"]},
                "three": {"hosts": ["x.two.internal", "*.y.two.internal:9"]},
            },
            "rules": rules,
        })
    }

    /// The rules of a document over two or three sources, each with the roles and the destinations
    /// that its rules name, and the source of each rule.
    fn split(&mut self, document: &Value) -> (Sources, BTreeMap<String, String>) {
        let mut source_of = BTreeMap::new();
        let mut parts: Vec<_> = (0..2 + self.below(2))
            .map(|_| json!({"version": 1, "roles": {}, "destinations": {}, "rules": []}))
            .collect();
        for rule in document["rules"].as_array().unwrap() {
            let source = self.below(parts.len());
            source_of.insert(rule["id"].as_str().unwrap().to_owned(), format!("s{source}"));
            let part = &mut parts[source];
            for role in rule["from"]["roles"].as_array().into_iter().flatten() {
                let role = role.as_str().unwrap();
                part["roles"][role] = document["roles"][role].clone();
            }
            for name in rule["to"].as_array().unwrap() {
                give_destination(part, document, name.as_str().unwrap());
            }
            part["rules"].as_array_mut().unwrap().push(rule.clone());
        }
        for name in ["one", "two"] {
            let source = self.below(parts.len());
            give_destination(&mut parts[source], document, name);
        }
        let read = |part: &Value| Rc::new(Policy::from_value(part, &Limits::DEFAULT).unwrap());
        let named = |(number, part)| (format!("s{number}").into(), read(part));
        (parts.iter().enumerate().map(named).collect(), source_of)
    }

    fn role(&mut self) -> Value {
        let any: Vec<_> = (0..=self.below(2)).map(|_| self.selector(2)).collect();
        json!({"any": any})
    }

    fn selector(&mut self, most: usize) -> Value {
        let mut selector = Map::new();
        for _ in 0..=self.below(most) {
            selector.insert(self.pick(&FACTS).to_owned(), self.picks(&GLOBS, 3));
        }
        if self.one_in(6) {
            let name = self.pick(&["c1", "c2"]);
            let values = self.picks(&["a", "true", "7", "*", "a*"], 2);
            selector.insert("claims".to_owned(), json!({name: values}));
        }
        Value::Object(selector)
    }

    fn rule(&mut self, number: usize) -> Value {
        // Few denying rules, or nothing would be permitted.
        let effect = if self.one_in(if self.crowded { 2 } else { 20 }) { "deny" } else { "allow" };
        let id = format!("{}-{number}", self.pick(&["a", "b", "c"]));
        let mut rule = json!({"id": id, "effect": effect});
        rule["to"] = match self.below(4) {
            0 => json!(["*"]),
            _ => self.picks(&["one", "two", "three"], 2),
        };
        if self.crowded || !self.one_in(5) {
            let mut selector = if self.crowded { json!({}) } else { self.selector(3) };
            if self.crowded || self.one_in(3) {
                selector["roles"] = self.picks(
                    &["role0", "role1", "role2", "role3", "role4", "role5", "role6", "role7"],
                    1,
                );
            }
            rule["from"] = selector;
        }
        let tunnels = self.one_in(5);
        if tunnels {
            rule["methods"] = json!([self.pick(&["GET", "CONNECT"]), "CONNECT"]);
        } else if self.one_in(3) {
            rule["methods"] = self.picks(&["GET", "HEAD", "POST"], 2);
        }
        // No allow rule has both.
        if !(self.crowded || self.one_in(6) || (tunnels && effect == "allow")) {
            let patterns: Vec<_> = (0..=self.below(2)).map(|_| self.pattern()).collect();
            rule["paths"] = patterns.into();
        }
        if self.one_in(6) {
            let start = self.below(3);
            rule["valid"] = match self.below(3) {
                0 => json!({"not_before": TIMES[start]}),
                1 => json!({"expires_at": TIMES[start]}),
                _ => json!({"not_before": TIMES[start], "expires_at": TIMES[start + 1]}),
            };
        }
        if self.one_in(5) {
            rule["mode"] = self.pick(&["shadow", "enforce"]).into();
        }
        rule
    }

    fn pattern(&mut self) -> String {
        let mut pattern = String::new();
        for _ in 0..self.below(4) {
            pattern.push('/');
            pattern.push_str(self.pick(&SEGMENT_GLOBS));
        }
        if pattern.is_empty() || self.one_in(4) {
            pattern.push_str(self.pick(&["/**", "/"]));
        }
        pattern
    }

    fn caller(&mut self) -> Caller {
        let mut fact = || {
            if self.one_in(4) {
                return Fact::Unknown;
            }
            Fact::Known((0..self.below(4)).map(|_| self.pick(&VALUES).to_owned()).collect())
        };
        let mut caller = Caller {
            subjects: fact(),
            dags: fact(),
            tasks: fact(),
            teams: fact(),
            tags: fact(),
            services: fact(),
            issuers: fact(),
            ..Caller::default()
        };
        if caller.subjects != Fact::Unknown {
            caller.subjects = Fact::one(self.pick(&SUBJECTS));
        }
        if !self.one_in(4) {
            let values = [
                json!("a"),
                json!(true),
                json!(7),
                json!(["a", 7]),
                json!([]),
                json!({"x": 1}),
                json!(["b", {}]),
            ];
            let mut value = || values[self.below(values.len())].clone();
            let claims = [("c1".to_owned(), value()), ("c2".to_owned(), value())];
            caller.claims = Map::from_iter(claims).into();
        }
        caller
    }

    fn request(&mut self) -> Request {
        let mut target = String::new();
        for _ in 0..self.below(4) {
            target.push_str(self.pick(&["/", "/", "/", "//", "/./"]));
            target.push_str(self.pick(&SEGMENTS));
        }
        if target.is_empty() || self.one_in(8) {
            target.push_str(self.pick(&["/", "?q", "/..", "/%61", "/%2f"]));
        }
        let method = self.pick(&["GET", "HEAD", "POST", "GET", "HEAD", "POST", "CONNECT"]);
        if method == "CONNECT" {
            let authority = self.pick(&[
                "one.internal:443",
                "ONE.internal.:8443",
                "a.two.internal:443",
                "two.internal:9",
                "one.internal:80",
                "one.internal",
            ]);
            let (authority, scheme) = (authority.to_owned(), self.pick(&["http", "https"]));
            return Request { authority, scheme, method, target: String::new() };
        }
        let authority = self.pick(&[
            "one.internal",
            "one.internal",
            "ONE.internal.:8443",
            "a.two.internal",
            "x.two.internal",
            "two.internal:9",
            "a.y.two.internal:9",
            "b.a.two.internal",
            "one.internal:1",
            "nowhere",
        ]);
        Request {
            authority: authority.to_owned(),
            scheme: self.pick(&["http", "https"]),
            method,
            target,
        }
    }
}
