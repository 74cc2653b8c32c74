//! Recorded decisions, decided again: what would another policy have said?
//!
//! A record has the facts by which the policy decided, so it becomes the very [`Caller`] that the filter had,
//! but for claims of the access token that were not recorded. Where these could matter, a decision is made
//! twice: with none of them, which is the strictest reading, and by a policy that asks for none of them, which
//! is the most generous one. If the two say the same the record can be decided, otherwise it cannot.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use airflow_envoy_core::facts::{Assertion, Call, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Outcome, Policy, PolicySet, Standing};
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Map, Value, json};

use crate::audit::record::{self, Decision, Record, Text, Values};

/// Callers that are remembered at a time.
const MOST_CALLERS: usize = 10_000;

/// The claims of an access token that a record always has, if the token has them.
const ALWAYS_RECORDED: [&str; 2] = ["sub", "client_id"];

/// What the policy says of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Permitted, or why not.
    pub code: Option<Code>,
    /// The rule that decided.
    pub rule: Option<String>,
    /// The rule that came nearest.
    pub nearest: Option<String>,
    /// Why it was refused, as a sentence.
    pub detail: String,
    /// The destination.
    pub destination: Option<String>,
}

impl Verdict {
    /// Whether it is permitted.
    pub fn permits(&self) -> bool {
        self.code.is_none()
    }
}

/// Why a record is not decided again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Undecidable {
    /// A text that decides was too long for a record.
    Cut,
    /// A claim that decides was not recorded.
    Claims,
    /// What was asked for is not in the record as a whole.
    Request,
}

impl Undecidable {
    /// For people.
    pub const fn told(self) -> &'static str {
        match self {
            Self::Cut => "a text that decides was cut",
            Self::Claims => "claims that decide were not recorded (`audit.claims`)",
            Self::Request => "the request is not recorded as a whole",
        }
    }

    /// For programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Claims => "claims",
            Self::Request => "request",
        }
    }
}

/// A policy to decide by again.
pub struct Judge {
    set: PolicySet,
    /// Without what it asks of claims that may not be recorded.
    generous: Option<PolicySet>,
    /// Names of these claims.
    claims: BTreeSet<String>,
    known: HashMap<String, Known>,
}

/// A caller, and what the policies say of it whatever it asks for.
struct Known {
    caller: Caller,
    standing: Standing,
    generous: Option<Standing>,
}

impl Judge {
    /// Decides by the policy of this document. Of the claims named in `recorded` a record says all: one that
    /// it does not have, the token had not.
    ///
    /// # Errors
    /// Why it is no policy.
    pub fn new(document: &Value, recorded: &[String]) -> Result<Self, String> {
        let set = |document: &Value| {
            let policy = Policy::from_value(document, &Limits::DEFAULT);
            let policy = policy.map_err(|faults| faults.to_string())?;
            Ok::<_, String>(PolicySet::new(vec![("policy".into(), Rc::new(policy))]))
        };
        let mut claims = BTreeSet::new();
        let selectors = document
            .get("roles")
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::values)
            .flat_map(|role| role.get("any").and_then(Value::as_array).into_iter().flatten())
            .chain(rules(document).filter_map(|rule| rule.get("from")));
        for selector in selectors {
            let names = selector.get("claims").and_then(Value::as_object);
            claims.extend(names.into_iter().flat_map(Map::keys).cloned());
        }
        claims.retain(|name| {
            let known = |known: &str| known == name;
            !ALWAYS_RECORDED.into_iter().any(known) && !recorded.iter().any(|name| known(name))
        });
        let generous = match claims.is_empty() {
            true => None,
            false => Some(set(&generous(document, &claims))?),
        };
        Ok(Self { set: set(document)?, generous, claims, known: HashMap::new() })
    }

    /// Decides the call of a record at `now`. `caller` is the text of its member `caller`: the same text is
    /// the same caller.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub fn decide(
        &mut self,
        record: &Record<'_>,
        caller: &str,
        now: UnixTime,
    ) -> Result<Verdict, Undecidable> {
        if record.truncated.iter().any(|cut| decides(cut)) {
            return Err(Undecidable::Cut);
        }
        let request = &record.request;
        let text = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
        let (Some(method), Some(authority)) = (text(&request.method), text(&request.authority))
        else {
            return Err(Undecidable::Request);
        };
        let path = match (request.path.as_deref(), method.as_str()) {
            (Some(path), _) => path,
            (None, airflow_envoy_core::arrival::CONNECT) => "",
            (None, _) => return Err(Undecidable::Request),
        };
        let call = Call {
            authority: &authority,
            scheme: request.scheme.as_deref().unwrap_or("http"),
            method: &method,
            target: path,
        };
        if !self.known.contains_key(caller) {
            if self.known.len() >= MOST_CALLERS {
                self.known.clear();
            }
            let known = self.know(&record.caller);
            self.known.insert(caller.to_owned(), known);
        }
        let Some(known) = self.known.get(caller) else { return Err(Undecidable::Request) };
        let decide = |set: &PolicySet, standing: &Standing| {
            set.decide(&known.caller, standing, &call, now, &Limits::DEFAULT)
        };
        let decision = decide(&self.set, &known.standing);
        if let (Some(set), Some(standing)) = (&self.generous, &known.generous) {
            let permits = |outcome: &Outcome| matches!(outcome, Outcome::Permit { .. });
            if permits(&decision.outcome) != permits(&decide(set, standing).outcome) {
                return Err(Undecidable::Claims);
            }
        }
        let destination = decision.destination.map(|name| name.to_string());
        Ok(match decision.outcome {
            // There are no grants here.
            Outcome::Permit { rule, .. } => Verdict {
                code: None,
                rule: Some(rule.to_string()),
                nearest: None,
                detail: String::new(),
                destination,
            },
            Outcome::Refuse(reject) => Verdict {
                code: Some(reject.code),
                rule: reject.rule,
                nearest: reject.nearest,
                detail: reject.detail,
                destination,
            },
        })
    }

    fn know(&self, recorded: &record::Caller<'_>) -> Known {
        let caller = caller(recorded);
        // Without a token there is no claim that could be missing.
        let missing = recorded
            .token
            .as_ref()
            .is_some_and(|token| !self.claims.iter().all(|name| token.claims.contains_key(name)));
        let generous = self.generous.as_ref().filter(|_| missing);
        let generous = generous.map(|set| set.standing(&caller, None));
        Known { standing: self.set.standing(&caller, None), generous, caller }
    }
}

/// Whether the policy looks at what is at this JSON pointer of a record.
fn decides(pointer: &str) -> bool {
    const IDLE: [&str; 5] = [
        "/caller/identity/ti_id",
        "/caller/identity/triggering_user_name",
        "/request/request_id",
        "/request/trace_id",
        "/request/span_id",
    ];
    (pointer.starts_with("/caller") || pointer.starts_with("/request")) && !IDLE.contains(&pointer)
}

/// The facts that the policy saw, but for claims that were not recorded.
pub fn caller(recorded: &record::Caller<'_>) -> Caller {
    let one = |text: &Option<Text<'_>>| match text {
        Some(text) => Fact::one(&**text),
        None => Fact::Unknown,
    };
    let all = |values: &Option<Values<'_>>| match values {
        Some(values) => Fact::Known(values.iter().map(|text| text.to_string()).collect()),
        None => Fact::Unknown,
    };
    let record::Caller { identity, token, peer } = recorded;
    // As the filter does: the token's first.
    let issuers = [
        token.as_ref().map(|token| (&token.issuer, &token.key_id)),
        identity.as_ref().map(|identity| (&identity.issuer, &identity.key_id)),
    ];
    let issuers =
        || issuers.iter().flatten().filter_map(|(issuer, key)| Some((issuer.as_ref()?, *key)));
    let key_ids = issuers().filter_map(|(issuer, key)| Some(format!("{issuer}/{}", key.as_ref()?)));
    let mut caller = Caller {
        issuers: Fact::Known(issuers().map(|(issuer, _)| issuer.to_string()).collect()),
        key_ids: Fact::Known(key_ids.collect()),
        ..Caller::default()
    };
    if let Some(identity) = identity {
        caller.assertion = identity.issuer.as_ref().map(|issuer| Assertion {
            issuer: issuer.to_string(),
            key_id: identity.key_id.as_ref().map(|key| format!("{issuer}/{key}")),
        });
        caller.dags = Fact::one(&*identity.dag_id);
        caller.tasks = Fact::one(&*identity.task_id);
        caller.runs = Fact::one(&*identity.run_id);
        caller.run_types = all(&identity.run_type);
        caller.owners = all(&identity.owners);
        caller.tags = all(&identity.tags);
        caller.teams = all(&identity.team);
        caller.airflow_roles = all(&identity.roles);
        let taken = identity.taken_roles.iter().flat_map(|taken| taken.iter());
        caller.taken_roles = taken.map(|role| role.to_string()).collect();
        caller.queues = all(&identity.queue);
    }
    if let Some(token) = token {
        caller.subjects = one(&token.subject);
        caller.scopes = all(&token.scopes);
        let mut claims = token.claims.clone();
        for (name, text) in [("sub", &token.subject), ("client_id", &token.client_id)] {
            if let Some(text) = text {
                claims.entry(name).or_insert_with(|| (&**text).into());
            }
        }
        caller.claims = claims.into();
    }
    if let Some(peer) = peer {
        // A peer that is no service is known to be none.
        caller.services = Fact::Known(peer.service.iter().map(|text| text.to_string()).collect());
        caller.spiffe_ids = one(&peer.spiffe_id);
    }
    caller
}

/// When the policy decided: a record is written when the call is over.
pub fn decided_at(record: &Record<'_>) -> Option<UnixTime> {
    let spent = record.duration_us.total.unwrap_or_default();
    let after = spent.saturating_sub(record.duration_us.decided.unwrap_or_default());
    let after = Span::from_millis(i64::try_from(after / 1000).unwrap_or(i64::MAX));
    Some(record.at()?.minus(after))
}

/// Whether a record is of a decision that was the policy's, and not that of bad credentials or a request
/// that cannot be read.
pub fn is_of_policy(record: &Record<'_>) -> bool {
    match (record.decision, record.code.as_deref()) {
        (Some(Decision::Permit), _) => true,
        (Some(Decision::Reject), Some(code)) => {
            // What Consul's intentions decided no policy changes.
            const OF_POLICY: [Code; 5] = [
                Code::PolicyNoMatch,
                Code::PolicyDenied,
                Code::DestinationUnknown,
                Code::PeerNotAllowed,
                Code::AssertionNotAllowed,
            ];
            OF_POLICY.iter().any(|known| known.name() == code)
        }
        _ => false,
    }
}

fn rules(document: &Value) -> impl Iterator<Item = &Value> {
    document.get("rules").and_then(Value::as_array).into_iter().flatten()
}

/// A policy that permits whatever this one would permit with any values of `claims`: who allows does not ask
/// for them, and who denies because of them does not deny.
fn generous(document: &Value, claims: &BTreeSet<String>) -> Value {
    let asks = |selector: &Value| {
        let names = selector.get("claims").and_then(Value::as_object);
        names.is_some_and(|names| names.keys().any(|name| claims.contains(name)))
    };
    let without = |selector: &Value| {
        let mut selector = selector.clone();
        if let Some(members) = selector.as_object_mut() {
            let empty =
                members.get_mut("claims").and_then(Value::as_object_mut).is_none_or(|names| {
                    names.retain(|name, _| !claims.contains(name));
                    names.is_empty()
                });
            if empty {
                members.remove("claims");
            }
            if members.is_empty() {
                // A selector asks for something. Whoever has a token has an issuer.
                members.insert("issuers".to_owned(), json!(["*"]));
            }
        }
        selector
    };
    let mut generous = document.clone();
    // Roles as allow rules see them, and, under other names, as deny rules do.
    let mut strict: HashMap<String, Option<String>> = HashMap::new();
    let roles = document.get("roles").and_then(Value::as_object);
    let mut named = Map::new();
    for (name, role) in roles.into_iter().flatten() {
        let any: Vec<&Value> =
            role.get("any").and_then(Value::as_array).into_iter().flatten().collect();
        if !any.iter().any(|selector| asks(selector)) {
            named.insert(name.clone(), role.clone());
            strict.insert(name.clone(), Some(name.clone()));
            continue;
        }
        let relaxed: Vec<Value> = any.iter().map(|selector| without(selector)).collect();
        let left: Vec<&Value> = any.iter().copied().filter(|selector| !asks(selector)).collect();
        named.insert(name.clone(), json!({"any": relaxed}));
        let mut other = None;
        if !left.is_empty() {
            let mut new = format!("{name}-without-claims");
            while roles.is_some_and(|roles| roles.contains_key(&new)) || named.contains_key(&new) {
                new.push('-');
            }
            named.insert(new.clone(), json!({"any": left}));
            other = Some(new);
        }
        strict.insert(name.clone(), other);
    }
    let mut kept = Vec::new();
    for rule in rules(document) {
        let mut rule = rule.clone();
        let denies = rule.get("effect").and_then(Value::as_str) == Some("deny");
        if !denies {
            if let Some(from) = rule.get_mut("from").filter(|from| asks(from)) {
                *from = without(from);
            }
            kept.push(rule);
            continue;
        }
        if rule.get("from").is_some_and(&asks) {
            continue;
        }
        if let Some(roles) = rule.pointer_mut("/from/roles").and_then(Value::as_array_mut) {
            let names = roles.iter().filter_map(|name| strict.get(name.as_str()?)?.as_deref());
            let names: Vec<Value> = names.map(Value::from).collect();
            if names.is_empty() {
                continue;
            }
            *roles = names;
        }
        kept.push(rule);
    }
    if let Some(members) = generous.as_object_mut() {
        if roles.is_some() {
            members.insert("roles".to_owned(), Value::Object(named));
        }
        members.insert("rules".to_owned(), kept.into());
    }
    generous
}
