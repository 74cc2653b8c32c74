//! Grants: what is asked for, what is signed, and the document that they are kept in.
//!
//! What it is not: it does not judge. Whether something is grantable, by whom and for how long, and whether
//! a grant is good, the core says; here it is said before anybody signs.

use std::fmt::Write as _;

use airflow_envoy_core::document::{Node, Report, suggestion};
use airflow_envoy_core::jose::{Jws, RustCrypto};
use airflow_envoy_core::json;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::{Approval, GrantDocument, Grantable, Policy};
use airflow_envoy_core::quote::{quote, quote_list};
use airflow_envoy_core::time::{Span, UnixTime};
use serde_json::{Map, Value, json};

use crate::jwk::PrivateKey;
use crate::store::Change;

/// The `typ` of a grant.
pub const GRANT_TYPE: &str = "airflow-grant+jws";

/// How long a grant that has ended stays in the document: clocks differ.
const KEPT: Span = Span::from_secs(60);

/// What somebody asks to be granted. Nobody vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The id of what the policy declares grantable, behind the name of its source if there are several.
    pub grantable: String,
    /// For whom: a selector.
    pub from: Map<String, Value>,
    /// Names of destinations; `None` for all of the grantable.
    pub to: Option<Vec<String>>,
    /// `None` for all of the grantable.
    pub methods: Option<Vec<String>>,
    /// `None` for all of the grantable.
    pub paths: Option<Vec<String>>,
    /// How long.
    pub duration: Span,
    /// From when; `None` for at once.
    pub begins: Option<UnixTime>,
    /// Why, in words.
    pub reason: String,
    /// Who asks, in words.
    pub requested_by: Option<String>,
}

impl Request {
    /// Reads a request as [`Request::to_json`] writes it.
    ///
    /// # Errors
    /// Every fault with its path. What the policy says to it is not asked.
    pub fn read(document: &Value) -> Result<Self, String> {
        let mut report = Report::new();
        let request = Self::read_members(document, &mut report);
        report.finish(request).map_err(|faults| faults.to_string())
    }

    fn read_members(document: &Value, report: &mut Report) -> Option<Self> {
        let mut object = Node::root(document).object(report)?;
        let version = object.required(report, "version");
        if let Some(version) = version.filter(|version| version.value.as_u64() != Some(1)) {
            version.fault(report, "the only version is 1");
        }
        let text = |node: Node<'_>, report: &mut Report| node.string(report).map(str::to_owned);
        let grantable = object.required(report, "grantable").and_then(|node| text(node, report));
        let from = object.required(report, "from").and_then(|node| {
            node.object(report)?;
            node.value.as_object().cloned()
        });
        let mut list = |name| {
            let found = object.optional(name)?.strings(report)?;
            Some(found.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let (to, methods, paths) = (list("to"), list("methods"), list("paths"));
        let duration = object.required(report, "for").and_then(|node| node.span(report));
        let begins = object.optional("begins").and_then(|node| node.time(report));
        let reason = object.required(report, "reason").and_then(|node| text(node, report));
        let requested_by = object.optional("requested_by").and_then(|node| text(node, report));
        object.finish(report);
        Some(Self {
            grantable: grantable?,
            from: from?,
            to,
            methods,
            paths,
            duration: duration?,
            begins,
            reason: reason?,
            requested_by,
        })
    }

    /// The document by which it is handed on.
    pub fn to_json(&self) -> Value {
        let mut members = self.scope();
        let mut put = |name: &str, value: Value| _ = members.insert(name.to_owned(), value);
        put("version", 1.into());
        put("for", span_text(self.duration).into());
        if let Some(begins) = self.begins {
            put("begins", begins.to_string().into());
        }
        put("reason", self.reason.as_str().into());
        if let Some(name) = &self.requested_by {
            put("requested_by", name.as_str().into());
        }
        Value::Object(members)
    }

    fn scope(&self) -> Map<String, Value> {
        let mut members = Map::new();
        members.insert("grantable".to_owned(), self.grantable.as_str().into());
        members.insert("from".to_owned(), Value::Object(self.from.clone()));
        for (name, list) in [("to", &self.to), ("methods", &self.methods), ("paths", &self.paths)] {
            if let Some(list) = list {
                members.insert(name.to_owned(), list.as_slice().into());
            }
        }
        members
    }

    /// The claims of a grant of this.
    fn claims(&self, id: &str, by: &str, now: UnixTime) -> Value {
        let mut claims = self.scope();
        let mut put = |name: &str, value: Value| _ = claims.insert(name.to_owned(), value);
        let begins = self.begins.unwrap_or(now);
        put("version", 1.into());
        put("id", id.into());
        put("reason", self.reason.as_str().into());
        put("granted_by", by.into());
        if let Some(name) = &self.requested_by {
            put("requested_by", name.as_str().into());
        }
        put("iat", now.as_secs().into());
        put("nbf", begins.as_secs().into());
        put("exp", UnixTime::from_secs(begins.as_secs()).plus(self.duration).as_secs().into());
        Value::Object(claims)
    }

    /// Says in the terms of `policy` why this cannot be granted, and what could be.
    ///
    /// # Errors
    /// Every reason, one a line.
    pub fn check<'p>(&self, policy: &'p Policy, now: UnixTime) -> Result<Grantable<'p>, String> {
        let grantable = find(policy, &self.grantable)?;
        let shown = quote(grantable.id());
        let mut problems = Vec::new();
        let most = grantable.max_duration();
        if self.duration < Span::from_secs(1) {
            problems.push("a grant lasts at least 1s".to_owned());
        }
        if self.duration > most {
            let (asked, most) = (span_text(self.duration), span_text(most));
            problems.push(format!("{asked} is too long: {shown} is granted for at most {most}"));
        }
        if self.begins.unwrap_or(now).plus(self.duration) <= now {
            problems.push("it would have ended already".to_owned());
        }
        // With a fit duration, so that it is not told twice.
        let fit = Self { duration: Span::from_secs(1), ..self.clone() };
        match policy.read_grant(&fit.claims("id", "somebody", now), &Limits::DEFAULT) {
            Err(faults) => problems.extend(faults.0.iter().map(ToString::to_string)),
            Ok(grant) => {
                let beyond = grantable.beyond(&grant);
                problems.extend(beyond.iter().map(|fault| fault.to_string()));
            }
        }
        if problems.is_empty() {
            return Ok(grantable);
        }
        Err(format!("this cannot be granted: {}\n{}", problems.join("\n  "), offer(&grantable)))
    }
}

/// A grant that was signed, and that the core takes.
#[derive(Debug)]
pub struct Issued {
    /// The compact JWS.
    pub jws: String,
    /// What it says and who signed it.
    pub approval: Approval,
}

/// Signs a grant of what `request` asks for, in the name `by`.
///
/// # Errors
/// Why the filter would not take it, or would take less than it says; and what could be granted.
pub fn issue(
    policy: &Policy,
    request: &Request,
    id: &str,
    by: &str,
    key: &PrivateKey,
    now: UnixTime,
) -> Result<Issued, String> {
    let grantable = request.check(policy, now)?;
    // The policy may call the key by another name than its file does.
    let known =
        policy.approvers().filter(|(name, _)| grantable.approvers().any(|one| one == *name));
    let name = known
        .flat_map(|(_, keys)| keys.keys())
        .find(|known| known.thumbprint() == key.thumbprint());
    let key = match name.and_then(|known| known.id()) {
        Some(id) => key.clone().named(id)?,
        None => return Err(not_by(policy, &grantable, key)),
    };
    let claims = request.claims(id, by, now);
    let jws = key.sign_compact(GRANT_TYPE, claims.to_string().as_bytes());
    let approval = policy.verify_grant(jws.as_bytes(), &Limits::DEFAULT, &RustCrypto);
    let approval = approval.map_err(|problem| format!("this cannot be granted: {problem}"))?;
    Ok(Issued { jws, approval })
}

/// An id for a new grant.
///
/// # Errors
/// If the system has no random numbers.
pub fn new_id(grantable: &str) -> Result<String, String> {
    let mut random = [0_u8; 5];
    getrandom::fill(&mut random).map_err(|error| format!("no random numbers: {error}"))?;
    let mut id: String = own_id(grantable).chars().take(100).collect();
    id.push('-');
    for byte in random {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// What is grantable as `name`, which may have the name of its source before it.
///
/// # Errors
/// What else is.
pub fn find<'p>(policy: &'p Policy, name: &str) -> Result<Grantable<'p>, String> {
    policy.grantable(own_id(name)).ok_or_else(|| {
        let known: Vec<_> = policy.grantables().map(|grantable| grantable.id()).collect();
        if known.is_empty() {
            return "nothing is grantable: the policy has no `grantable`".to_owned();
        }
        let close = suggestion(own_id(name), &known);
        let close = close.map(|close| format!(", did you mean {}?", quote(close)));
        let (name, known) = (quote(name), quote_list(known));
        let close = close.unwrap_or_default();
        format!("nothing is grantable as {name}{close}\ngrantable are: {known}")
    })
}

fn own_id(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, id)| id)
}

/// What may be granted, in two lines.
pub fn offer(grantable: &Grantable<'_>) -> String {
    let list = |list: Option<Vec<&str>>, any: &str| list.map_or(any.to_owned(), quote_list);
    let intent = grantable.intent().map(|intent| format!(": {intent}")).unwrap_or_default();
    format!(
        "grantable is {}{intent}\n  to {}, {} {}, for at most {}, by {}",
        quote(grantable.id()),
        list(grantable.destinations(), "any destination"),
        list(grantable.methods(), "any method"),
        list(grantable.paths(), "any path"),
        span_text(grantable.max_duration()),
        quote_list(grantable.approvers()),
    )
}

/// Why this key may not grant it, and what it may.
fn not_by(policy: &Policy, grantable: &Grantable<'_>, key: &PrivateKey) -> String {
    let mut owners = policy
        .approvers()
        .filter(|(_, keys)| keys.thumbprints().any(|known| known == key.thumbprint()));
    let (id, shown) = (quote(key.id()), quote(grantable.id()));
    let may = quote_list(grantable.approvers());
    let Some((owner, _)) = owners.next() else {
        return format!("the key {id} is of no approver: {shown} is granted by {may}");
    };
    let others = policy.grantables().filter(|other| other.approvers().any(|one| one == owner));
    let others = quote_list(others.map(|other| other.id()));
    let owner = quote(owner);
    format!(
        "the key {id} is of {owner}, who may not grant {shown}: that may {may}\n\
         {owner} may grant: {others}"
    )
}

/// `2h`, `90m`, `1d`: with the largest unit that divides it, as it is read.
pub fn span_text(span: Span) -> String {
    let millis = span.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let fitting = units.into_iter().find(|(unit, _)| millis > 0 && millis % unit == 0);
    fitting.map_or_else(|| format!("{millis}ms"), |(unit, name)| format!("{}{name}", millis / unit))
}

/// One grant as it stands in the document; nothing of it was verified.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The element of `grants`.
    pub value: Value,
    /// The claims, if they can be read.
    pub claims: Option<Map<String, Value>>,
    /// The `kid`, if there is one.
    pub key_id: Option<String>,
}

impl Entry {
    fn new(value: Value) -> Self {
        let limits = Limits::DEFAULT;
        let text = value.as_str().unwrap_or_default();
        let jws = Jws::parse(text.as_bytes(), limits.token_bytes, &limits).ok();
        let claims =
            jws.as_ref().and_then(|jws| json::parse(jws.payload(), limits.json_depth).ok());
        let claims = match claims {
            Some(Value::Object(claims)) => Some(claims),
            _ => None,
        };
        let key_id = jws.and_then(|jws| jws.header().key_id.clone());
        Self { value, claims, key_id }
    }

    /// A claim.
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.as_ref()?.get(name)
    }

    /// Its `id`.
    pub fn id(&self) -> Option<&str> {
        self.claim("id")?.as_str()
    }

    /// A time among its claims.
    pub fn time(&self, name: &str) -> Option<UnixTime> {
        self.claim(name)?.as_i64().map(UnixTime::from_secs)
    }

    fn ended_before(&self, time: UnixTime) -> bool {
        self.time("exp").is_some_and(|end| end <= time)
    }
}

/// The grants of a document; `None` is a document that is not there yet.
///
/// # Errors
/// Why it is no document of grants.
pub fn entries(document: Option<&[u8]>) -> Result<Vec<Entry>, String> {
    let Some(document) = document else { return Ok(Vec::new()) };
    let limits = Limits::DEFAULT;
    let problem =
        |problem: String| format!("is no document of grants, and is left alone: {problem}");
    GrantDocument::parse(document, &limits).map_err(|faults| problem(faults.to_string()))?;
    let value =
        json::parse(document, limits.json_depth).map_err(|error| problem(error.to_string()))?;
    let grants = value.get("grants").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(grants.into_iter().map(Entry::new).collect())
}

/// The document of these grants.
fn document(entries: Vec<Entry>) -> Result<Vec<u8>, String> {
    let grants: Vec<_> = entries.into_iter().map(|entry| entry.value).collect();
    let document = json!({ "version": 1, "grants": grants });
    GrantDocument::from_value(&document, &Limits::DEFAULT).map_err(|faults| faults.to_string())?;
    Ok(format!("{document:#}\n").into_bytes())
}

/// Puts a grant into a document, and takes those out that have ended. What cannot be read stays: it is
/// somebody else's.
///
/// # Errors
/// Why it cannot.
pub fn add(found: Option<&[u8]>, id: &str, jws: &str, now: UnixTime) -> Result<Change<()>, String> {
    let mut entries = entries(found)?;
    if entries.iter().any(|entry| entry.value.as_str() == Some(jws)) {
        return Ok(Change::Keep(()));
    }
    if entries.iter().any(|entry| entry.id() == Some(id)) {
        return Err(format!("there is a grant {} already", quote(id)));
    }
    entries.retain(|entry| !entry.ended_before(now.minus(KEPT)));
    entries.push(Entry::new(jws.into()));
    Ok(Change::Write(document(entries)?, ()))
}

/// Takes the grants of these ids out of a document, and those that have ended; returns whose are gone. With
/// `all_there` each of them must be in it.
///
/// # Errors
/// Why it cannot.
pub fn remove(
    found: Option<&[u8]>,
    ids: &[String],
    all_there: bool,
    now: UnixTime,
) -> Result<Change<()>, String> {
    let mut entries = entries(found)?;
    let is_meant = |entry: &Entry| entry.id().is_some_and(|id| ids.iter().any(|one| one == id));
    for id in ids.iter().filter(|_| all_there) {
        if !entries.iter().any(|entry| entry.id() == Some(id)) {
            let known = quote_list(entries.iter().filter_map(Entry::id));
            return Err(format!("there is no grant {}; there are: {known}", quote(id)));
        }
    }
    if !entries.iter().any(is_meant) {
        return Ok(Change::Keep(()));
    }
    entries.retain(|entry| !is_meant(entry) && !entry.ended_before(now.minus(KEPT)));
    Ok(Change::Write(document(entries)?, ()))
}
