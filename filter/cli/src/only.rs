//! "Nobody but X may …", tried on everybody whom the policy or the tests can mean.
//!
//! It is a search, not a proof, and this is what it searches:
//! - **callers**: every identity and every case's caller of the test file; for each rule, and for each way
//!   in which its roles can be held, one caller with just what the rule asks for, and with each entry of the
//!   agreement if there is one; one stranger of whom nothing is known that a rule could ask for. A `*` becomes `x`.
//! - **requests**: for each of the destinations each host of theirs; the methods and paths of the
//!   assertion, or all that the policy and the cases name; of a pattern one path that it matches, and
//!   every path of the policy's rules and of the cases that lies within it. A `{sub}` is the caller's own
//!   and, in rules, also `x`. If a rule of the policy allows tunnels to the destination, a tunnel besides:
//!   it may carry every method and path.
//! - **times**: the assertion's, or else the time of the run and the moment when each rule begins.
//!
//! The assertion holds if each call that is permitted comes from a caller that matches one of `may`, and
//! if at least one such call is permitted, unless `may` is empty.

use std::collections::{BTreeMap, BTreeSet};

use airflow_envoy_core::arrival::CONNECT;
use airflow_envoy_core::facts::{Assertion, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::Policy;
use airflow_envoy_core::policy::explain::glob;
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::UnixTime;
use serde_json::{Map, Value, json};

use crate::evaluate::{Evaluator, Request};
use crate::model::{Model, Pattern, Selector, subject_segment};
use crate::run::{Line, UnderTest};
use crate::suite::{Only, Suite};

/// Calls of one assertion; more would take longer than anybody waits.
const MOST_CALLS: usize = 5_000_000;

/// A `sub` that is nobody's.
const SOMEBODY: &str = "x";

/// Counterexamples that are shown.
const MOST_SHOWN: usize = 5;

/// What is wrong with the assertion, if it does not hold.
pub fn run(assertion: &Only, suite: &Suite, policy: &UnderTest, now: UnixTime) -> Vec<Line> {
    let insider = match insider(assertion, policy) {
        Ok(insider) => insider,
        Err(problem) => return vec![Line::Note(problem)],
    };
    let callers = callers(suite, &policy.model);
    let mut times = BTreeSet::from([assertion.at.unwrap_or(now)]);
    if assertion.at.is_none() {
        times.extend(policy.model.rules.iter().filter_map(|rule| rule.not_before));
    }
    let by_subject = names_subject(assertion, &policy.model);
    let subject_of = |caller: &Caller| subject(caller).filter(|_| by_subject);
    let mut requests: BTreeMap<Option<String>, Vec<Request>> = BTreeMap::new();
    let mut calls = 0_usize;
    for (_, caller) in &callers {
        let subject = subject_of(caller);
        if !requests.contains_key(&subject) {
            let found = requests_of(assertion, suite, &policy.model, subject.as_deref());
            match found {
                Ok(found) => _ = requests.insert(subject.clone(), found),
                Err(problem) => return vec![Line::Note(problem)],
            }
        }
        let own = requests.get(&subject).map_or(0, Vec::len);
        calls = calls.saturating_add(own.saturating_mul(times.len()));
        if calls > MOST_CALLS {
            let problem = format!(
                "there are more than {MOST_CALLS} calls: say `methods`, `paths` or `at` more exactly"
            );
            return vec![Line::Note(problem)];
        }
    }
    let (mut found, mut permitted) = (Vec::new(), 0_usize);
    for (told, caller) in &callers {
        let inside = insider
            .as_ref()
            .is_some_and(|(insider, request)| insider.decide(caller, request, now).outcome.is_ok());
        for request in requests.get(&subject_of(caller)).into_iter().flatten() {
            for at in &times {
                let Ok(rule) = policy.evaluator.decide(caller, request, *at).outcome else {
                    continue;
                };
                if inside {
                    permitted += 1;
                } else {
                    found.push((told, request, *at, rule));
                }
            }
        }
    }
    let mut lines = Vec::new();
    if permitted == 0 && insider.is_some() {
        let tried = format!("of {calls} calls none is permitted to those who may");
        lines.push(Line::Note(format!("{tried}: the assertion would hold for the wrong reason")));
    }
    if found.is_empty() {
        return lines;
    }
    lines.push(Line::Expected("reject whoever is none of `may`".to_owned()));
    lines.push(Line::Decided(format!("permit {} of {calls} calls", found.len())));
    for (told, request, at, rule) in found.iter().take(MOST_SHOWN) {
        let place = policy.model.rule(rule).map_or_else(String::new, |rule| rule.place.to_string());
        let rule = quote(rule);
        lines.push(Line::Note(format!("{request} at {at} by rule {rule} ({place}), as {told}")));
    }
    if let Some(more) = found.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
        lines.push(Line::Note(format!("and {more} more")));
    }
    lines
}

/// What permits just those who may, and the request by which it is asked. The core reads the selectors, so
/// that they mean what they mean in a policy.
fn insider(assertion: &Only, policy: &UnderTest) -> Result<Option<(Evaluator, Request)>, String> {
    if assertion.may.is_empty() {
        return Ok(None);
    }
    let rule = |(index, from): (usize, &Value)| json!({"id": format!("may-{index}"), "effect": "allow", "from": from, "to": ["here"]});
    let rules: Vec<Value> = assertion.may.iter().enumerate().map(rule).collect();
    let mut document = json!({
        "version": 1, "destinations": {"here": {"hosts": ["here"]}}, "rules": rules,
    });
    if let Some(roles) = policy.document.get("roles")
        && let Some(members) = document.as_object_mut()
    {
        members.insert("roles".to_owned(), roles.clone());
    }
    let policy = Policy::from_value(&document, &Limits::DEFAULT).map_err(|faults| {
        let told = faults.to_string();
        format!("`may` is not a list of selectors: {}", told.replace("rules[", "may["))
    })?;
    Ok(Some((Evaluator::new(policy), Request::parse("GET http://here/")?)))
}

/// Whether what is asked for depends on the caller.
fn names_subject(assertion: &Only, model: &Model) -> bool {
    let asked = assertion.paths.iter().flatten().any(|path| Pattern::new(path).names_subject());
    asked || model.rules.iter().flat_map(|rule| rule.patterns()).any(Pattern::names_subject)
}

/// The segment of a path that stands for the caller.
fn subject(caller: &Caller) -> Option<String> {
    caller.subjects.values()?.iter().find_map(|subject| subject_segment(subject))
}

/// Every request that is tried of callers whose `sub` is `subject`.
fn requests_of(
    assertion: &Only,
    suite: &Suite,
    model: &Model,
    subject: Option<&str>,
) -> Result<Vec<Request>, String> {
    let all = assertion.to == ["*"];
    if let Some(unknown) =
        assertion.to.iter().find(|name| !all && !model.destinations.contains_key(*name))
    {
        return Err(format!("there is no destination {}", quote(unknown)));
    }
    let mut requests = Vec::new();
    for (name, destination) in &model.destinations {
        if !all && !assertion.to.contains(name) {
            continue;
        }
        let rules = || model.rules.iter().filter(|rule| rule.is_for(name));
        let mut methods: BTreeSet<String> = BTreeSet::new();
        match &assertion.methods {
            Some(given) => methods.extend(given.iter().cloned()),
            None => {
                methods.extend(["GET", "POST", "PUT", "PATCH", "DELETE"].map(str::to_owned));
                methods.extend(rules().flat_map(|rule| rule.methods.iter().flatten().cloned()));
                methods.extend(suite.cases.iter().map(|case| case.request.method.clone()));
            }
        }
        let tunnels = methods.remove(CONNECT)
            || rules().any(|rule| rule.allows && !rule.shadow && rule.names_tunnels());
        // A caller without a `sub` has no path of its own that could be asked for.
        let own = |pattern: Pattern| match subject {
            Some(subject) => Some(pattern.of_subject(subject)),
            None => (!pattern.names_subject()).then_some(pattern),
        };
        let asked: Option<Vec<Pattern>> = assertion
            .paths
            .as_ref()
            .map(|paths| paths.iter().filter_map(|path| own(Pattern::new(path))).collect());
        let mut paths: BTreeSet<String> = BTreeSet::new();
        match &asked {
            Some(patterns) => {
                paths.extend(patterns.iter().map(|pattern| pattern.example(SOMEBODY)));
            }
            None => paths.extend(["/".to_owned()]),
        }
        let named = rules().flat_map(|rule| rule.patterns()).flat_map(|pattern| {
            let own = subject.filter(|_| pattern.names_subject());
            [Some(SOMEBODY), own].into_iter().flatten().map(|subject| pattern.example(subject))
        });
        let cases = suite.cases.iter().filter(|case| !case.request.is_tunnel());
        let named = named.chain(cases.map(|case| case.request.path.clone()));
        paths.extend(named.filter(|path| {
            asked.as_ref().is_none_or(|asked| asked.iter().any(|asked| asked.matches(path)))
        }));
        for host in &destination.hosts {
            let host =
                host.strip_prefix("*.").map_or_else(|| host.clone(), |host| format!("x.{host}"));
            if tunnels {
                let has_port = !host.ends_with(']') && host.contains(':');
                let port = if has_port { "" } else { ":443" };
                requests.push(Request::tunnel(&format!("{host}{port}")));
            }
            for method in &methods {
                requests.extend(paths.iter().map(|path| Request {
                    method: method.clone(),
                    scheme: "https".to_owned(),
                    host: host.clone(),
                    path: path.clone(),
                }));
            }
        }
    }
    Ok(requests)
}

/// Everybody, as they are to be told.
fn callers(suite: &Suite, model: &Model) -> Vec<(String, Caller)> {
    let said = suite.callers.iter().chain(suite.cases.iter().map(|case| &case.said));
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut callers = Vec::new();
    for said in said {
        if known.insert(format!("{said:?}")) {
            callers.extend(said.caller().ok().map(|caller| (said.describe(), caller)));
        }
    }
    callers.push(("a stranger".to_owned(), stranger()));
    for rule in model.rules.iter().filter(|rule| rule.allows && !rule.shadow) {
        for way in model.ways(&rule.from).iter().flat_map(|way| agreed(model, way)) {
            if known.insert(format!("{way:?}"))
                && let Some(caller) = example(&way)
            {
                let id = quote(&rule.id);
                callers.push((format!("a caller with just what rule {id} asks for"), caller));
            }
        }
    }
    callers
}

/// The way with what each entry of the agreement asks for besides.
fn agreed(model: &Model, way: &Selector) -> Vec<Selector> {
    let Some(entries) = &model.agreement else { return vec![way.clone()] };
    let mut ways = Vec::new();
    for entry in entries {
        let mut both = way.clone();
        for (field, values) in entry.from.iter().chain(&entry.may_assert) {
            let name = match (field.as_str(), both.contains_key(field)) {
                // Those of the identity alone.
                ("issuers" | "key_ids", _) => format!("identity {field}"),
                // Both must hold, as of what a role asks for.
                (_, true) => format!("{field} of role agreement {}", entry.id),
                (_, false) => field.clone(),
            };
            both.insert(name, values.clone());
        }
        ways.push(both);
    }
    ways
}

fn stranger() -> Caller {
    let none = || Fact::Known(Vec::new());
    Caller {
        dags: Fact::one("a-stranger"),
        tasks: Fact::one("a-stranger"),
        runs: Fact::one("a-stranger"),
        run_types: none(),
        owners: none(),
        tags: none(),
        teams: none(),
        airflow_roles: none(),
        taken_roles: Vec::new(),
        assertion: Some(assertion()),
        queues: none(),
        services: none(),
        spiffe_ids: none(),
        issuers: Fact::one("a-stranger"),
        key_ids: none(),
        subjects: Fact::one("a-stranger"),
        scopes: none(),
        claims: Map::new().into(),
    }
}

/// Who signed a stranger's identity.
fn assertion() -> Assertion {
    Assertion { issuer: "a-stranger".to_owned(), key_id: None }
}

/// A stranger but for what `way` asks for.
fn example(way: &Selector) -> Option<Caller> {
    let mut caller = stranger();
    let mut claims = Map::new();
    for (field, values) in way {
        // What the rule and its role ask for both.
        let plain = field.split(" of role ").next().unwrap_or_default();
        let also: Vec<&Vec<String>> = way
            .iter()
            .filter(|(other, _)| other.split(" of role ").next() == Some(plain))
            .map(|(_, values)| values)
            .collect();
        let candidates = also.iter().flat_map(|values| values.iter());
        let value = candidates.map(|value| value.replace('*', "x")).find(|value| {
            also.iter().all(|values| values.iter().any(|pattern| glob(pattern, value)))
        });
        let value = value.or_else(|| Some(values.first()?.replace('*', "x")))?;
        if let Some(name) = plain.strip_prefix("claims.") {
            put_claim(&mut claims, name, value.into());
            continue;
        }
        let slot = match plain {
            "dags" => &mut caller.dags,
            "tasks" => &mut caller.tasks,
            "runs" => &mut caller.runs,
            "run_types" => &mut caller.run_types,
            "owners" => &mut caller.owners,
            "tags" => &mut caller.tags,
            "teams" => &mut caller.teams,
            "airflow_roles" => &mut caller.airflow_roles,
            "queues" => &mut caller.queues,
            "services" => &mut caller.services,
            "spiffe_ids" => &mut caller.spiffe_ids,
            "issuers" => &mut caller.issuers,
            "key_ids" => &mut caller.key_ids,
            "subjects" => &mut caller.subjects,
            "scopes" => &mut caller.scopes,
            "identity issuers" => {
                let assertion = caller.assertion.get_or_insert_with(assertion);
                assertion.issuer = value;
                continue;
            }
            "identity key_ids" => {
                let assertion = caller.assertion.get_or_insert_with(assertion);
                assertion.key_id = Some(value);
                continue;
            }
            // A role is held by what its selector asks for.
            _ => continue,
        };
        *slot = Fact::one(value);
    }
    caller.claims = claims.into();
    Some(caller)
}

/// Puts a claim where its name or its JSON Pointer (RFC 6901) says.
pub(crate) fn put_claim(claims: &mut Map<String, Value>, name: &str, value: Value) {
    let Some(pointer) = name.strip_prefix('/') else {
        claims.insert(name.to_owned(), value);
        return;
    };
    let mut steps: Vec<String> =
        pointer.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let Some(last) = steps.pop() else { return };
    let mut place = claims;
    for step in steps {
        let next = place.entry(step).or_insert_with(|| Value::Object(Map::new()));
        match next {
            Value::Object(next) => place = next,
            _ => return,
        }
    }
    place.insert(last, value);
}
