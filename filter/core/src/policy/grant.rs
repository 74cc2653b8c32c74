//! One temporary grant: a signed permission that ends by itself.
//!
//! A grant is a compact JWS (RFC 7515 §7.1) of the type `airflow-grant+jws` (RFC 8725 §3.11), by EdDSA
//! (Ed25519, RFC 8037) or ES256, signed by a key of an approver whom the policy names. Its claims say of
//! which `grantable` of the policy it is some, for which callers and calls, from when until when, and
//! why. It permits a call that **both** it and its grantable are about, so that no grant allows more than
//! the policy declares, whatever it says.
//!
//! What it is not: revocable by what it says. Until it ends, whoever stores the document of grants may
//! take it out and put it back.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::Policy;
use super::grantable::{Approver, Granting};
use super::read::{Names, Scope, grant_scope, read_id};
use super::rule::{Effect, Rule, Validity};
use super::signed::{ALGORITHMS, Signer};
use crate::document::{Faults, Node, Object, Report};
use crate::jose::{Jws, PublicKey, SignatureVerifier, VerifyError};
use crate::json;
use crate::limits::Limits;
use crate::quote::{quote, quote_list};
use crate::time::{Span, UnixTime};

/// The `typ` of a grant.
const TYPE: &str = "airflow-grant+jws";

/// How far the clock of who signs may be ahead.
const CLOCK_SKEW: Span = Span::from_secs(30);

/// The last second that has a date: the end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// What a grant says. Signed or not: only [`Policy::verify_grant`] tells.
#[derive(Debug)]
pub struct Grant {
    /// Names it in decisions.
    pub id: Arc<str>,
    /// The id of what it grants some of.
    pub grantable: Arc<str>,
    /// Why, in words.
    pub reason: Box<str>,
    /// Who grants, in words; what counts is the signature.
    pub granted_by: Box<str>,
    /// Who asked for it, in words.
    pub requested_by: Option<Box<str>>,
    /// When it was signed: `iat`.
    pub issued_at: UnixTime,
    /// `nbf`.
    pub not_before: UnixTime,
    /// `exp`, when it has ended.
    pub expires_at: UnixTime,
    /// The number of the grantable.
    pub(super) number: u32,
    /// Allows what the grant is about, while it is in effect.
    pub(super) rule: Rule,
}

/// A grant whose signature is by an approver of its grantable.
#[derive(Debug)]
pub struct Approval {
    /// What it says.
    pub grant: Grant,
    /// The name of the approver.
    pub approver: Arc<str>,
    /// The approver's key.
    pub signer: Signer,
}

impl Grant {
    /// When it comes into effect: at `nbf`, and not long before it was signed.
    pub fn begins_at(&self) -> UnixTime {
        self.not_before.max(self.issued_at.minus(CLOCK_SKEW))
    }

    /// Whether it is in effect at `now`.
    pub fn is_in_effect(&self, now: UnixTime) -> bool {
        self.begins_at() <= now && now < self.expires_at
    }
}

impl Policy {
    /// Reads the claims of a grant of something that this policy declares grantable. Whether somebody
    /// signed them is not asked.
    ///
    /// # Errors
    /// Every fault of the claims with its path.
    pub fn read_grant(&self, claims: &Value, limits: &Limits) -> Result<Grant, Faults> {
        read(claims, &self.granting, &self.names(), limits)
    }

    /// Verifies a grant: its type, its signature by a key of an approver of its grantable, and its claims.
    /// When it is in effect is another question.
    ///
    /// # Errors
    /// Why it is none.
    pub fn verify_grant(
        &self,
        jws: &[u8],
        limits: &Limits,
        verifier: &dyn SignatureVerifier,
    ) -> Result<Approval, String> {
        Message::open(jws, limits)?.verify(&self.granting, &self.names(), limits, verifier)
    }

    /// What a grant may refer to.
    pub(super) fn names(&self) -> Names {
        let roles = self.roles.selectors.iter().map(|(name, _)| Arc::clone(name));
        Names::new(roles, self.destinations.iter().map(Arc::clone))
    }
}

/// A grant of which nothing was verified.
pub(super) struct Message {
    jws: Jws<'static>,
    key_id: String,
    claims: Value,
}

impl Message {
    /// Reads a compact JWS of the right type.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn open(text: &[u8], limits: &Limits) -> Result<Self, String> {
        let jws =
            Jws::parse(text, limits.token_bytes, limits).map_err(|error| error.to_string())?;
        let header = jws.header();
        if !header.is_of_type(TYPE) {
            let found = header.token_type.as_deref();
            let found = found.map_or_else(|| "missing".to_owned(), quote);
            return Err(format!("`typ` is {found}, accepted: `{TYPE}`"));
        }
        // Several approvers have several keys: which one is meant is said, not tried out.
        let key_id = header.key_id.clone().ok_or("the header has no `kid`")?;
        let claims = json::parse(jws.payload(), limits.json_depth)
            .map_err(|error| format!("the payload: {error}"))?;
        Ok(Self { jws: jws.into_owned(), key_id, claims })
    }

    /// What it says to be its id.
    pub(super) fn id(&self) -> Option<&str> {
        self.claims.get("id").and_then(Value::as_str)
    }

    /// The grantable that it is of, behind the name of a source if there is one.
    ///
    /// # Errors
    /// If it names none.
    pub(super) fn grantable(&self) -> Result<(Option<&str>, &str), String> {
        let text = self.claims.get("grantable").and_then(Value::as_str);
        text.map(split_source).ok_or_else(|| "`grantable` is missing".to_owned())
    }

    /// Whether it says itself that it has ended.
    pub(super) fn has_ended(&self, now: UnixTime) -> bool {
        let end = self.claims.get("exp").and_then(Value::as_i64);
        end.is_some_and(|end| UnixTime::from_secs(end) <= now)
    }

    /// Verifies it as a grant of something that is in `granting`.
    ///
    /// # Errors
    /// Why it is none.
    pub(super) fn verify(
        &self,
        granting: &Granting,
        names: &Names,
        limits: &Limits,
        verifier: &dyn SignatureVerifier,
    ) -> Result<Approval, String> {
        let (_, grantable) = self.grantable()?;
        let found = granting.number(grantable).and_then(|number| granting.nth(number));
        let rule = found.ok_or_else(|| unknown(grantable))?;
        let (approver, key) = self.approver(granting, rule, verifier)?;
        let grant = read(&self.claims, granting, names, limits);
        Ok(Approval {
            grant: grant.map_err(|faults| faults.to_string())?,
            approver: Arc::clone(&approver.name),
            signer: Signer::from(key),
        })
    }

    /// Whose key signed it, of those who may grant it.
    fn approver<'g>(
        &self,
        granting: &'g Granting,
        grantable: &'g Rule,
        verifier: &dyn SignatureVerifier,
    ) -> Result<(&'g Approver, &'g PublicKey), String> {
        let mut failure = None;
        for approver in granting.approvers_of(grantable) {
            match self.jws.verify(&ALGORITHMS, &approver.keys, verifier) {
                Ok((_, key)) => return Ok((approver, key)),
                // That somebody else has no such key says nothing.
                Err(VerifyError::KeyUnknown { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            return Err(error.to_string());
        }
        let (key_id, id) = (quote(&self.key_id), quote(&grantable.id));
        let has_key =
            |approver: &&Approver| approver.keys.key_ids().any(|known| *known == *self.key_id);
        Err(match granting.approvers.iter().find(has_key) {
            Some(other) => {
                let other = quote(&other.name);
                format!("the key {key_id} is of approver {other}, who may not grant {id}")
            }
            None => {
                let names = granting.approvers_of(grantable).map(|approver| &*approver.name);
                let names = quote_list(names);
                format!("the key {key_id} is of none of the approvers of {id}: {names}")
            }
        })
    }
}

/// A grantable as a grant names it: its id or, as decisions do with several sources, `<source>/<id>`.
fn split_source(text: &str) -> (Option<&str>, &str) {
    text.split_once('/').map_or((None, text), |(source, id)| (Some(source), id))
}

pub(super) fn unknown(grantable: &str) -> String {
    format!("nothing is grantable as {}", quote(grantable))
}

/// Reads the claims of a grant.
fn read(
    claims: &Value,
    granting: &Granting,
    names: &Names,
    limits: &Limits,
) -> Result<Grant, Faults> {
    let mut report = Report::new();
    let root = Node::root(claims);
    let grant = root
        .object(&mut report)
        .and_then(|object| read_claims(&root, object, granting, names, limits, &mut report));
    report.finish(grant)
}

fn read_claims<'a>(
    root: &Node<'a>,
    mut object: Object<'a>,
    granting: &Granting,
    names: &Names,
    limits: &Limits,
    report: &mut Report,
) -> Option<Grant> {
    if let Some(version) = object.required(report, "version")
        && version.value.as_u64() != Some(1)
    {
        version.fault(report, "the only version is 1");
    }
    let id = read_id(&mut object, report);
    let found = object.required(report, "grantable").and_then(|node| {
        let (_, id) = split_source(node.string(report)?);
        let number = granting.number(id);
        if number.is_none() {
            node.fault(report, unknown(id));
        }
        let number = number?;
        Some((number, granting.nth(number)?))
    });
    let mut text = |object: &mut Object<'a>, name| {
        object.required(report, name).and_then(|node| node.string(report))
    };
    let (reason, granted_by) = (text(&mut object, "reason"), text(&mut object, "granted_by"));
    let requested_by = object.optional("requested_by").and_then(|node| node.string(report));
    let mut time = |object: &mut Object<'a>, name| {
        let seconds = object.required(report, name)?.integer(report, 0, LAST_SECOND)?;
        Some(UnixTime::from_secs(i64::try_from(seconds).ok()?))
    };
    let issued_at = time(&mut object, "iat");
    let (not_before, expires_at) = (time(&mut object, "nbf"), time(&mut object, "exp"));
    let scope = grant_scope(root, &mut object, names, limits, report);
    object.finish(report);
    let (number, grantable) = found?;
    let (not_before, expires_at) = (not_before?, expires_at?);
    let (duration, most) = (expires_at.since(not_before), grantable.terms()?.max_duration);
    if duration <= Span::ZERO {
        root.fault(report, format!("`nbf` {not_before} is not earlier than `exp` {expires_at}"));
    } else if duration > most {
        let grantable = quote(&grantable.id);
        let problem = format!(
            "{duration} from `nbf` to `exp` are more than {most}, the `max_duration` of {grantable}"
        );
        root.fault(report, problem);
    }
    check_places(root, &scope, limits, report);
    let mut grant = Grant {
        id: id?.into(),
        grantable: Arc::clone(&grantable.id),
        reason: reason?.into(),
        granted_by: granted_by?.into(),
        requested_by: requested_by.map(Into::into),
        issued_at: issued_at?,
        not_before,
        expires_at,
        number,
        rule: Rule {
            id: id?.into(),
            intent: None,
            effect: Effect::Allow,
            shadow: false,
            from: scope.from?,
            to: scope.to.flatten(),
            methods: scope.methods,
            paths: scope.paths,
            valid: None,
        },
    };
    let (not_before, expires_at) = (Some(grant.begins_at()), Some(grant.expires_at));
    let validity = Validity { not_before, expires_at, terms: None };
    grant.rule.valid = Some(Box::new(validity));
    Some(grant)
}

/// All grants together must not have more places in the index than a policy may.
fn check_places(root: &Node<'_>, scope: &Scope, limits: &Limits, report: &mut Report) {
    let destinations = scope.to.iter().flatten().map(|to| to.len()).sum::<usize>().max(1);
    let paths = scope.paths.as_ref().map_or(1, |paths| paths.texts().count());
    let places = destinations.saturating_mul(paths);
    let most = limits.policy_places.checked_div(limits.grants).unwrap_or_default();
    if places > most {
        let problem = format!("{places} pairs of destination and path are more than {most}");
        root.fault(report, problem);
    }
}

/// A grant of a document that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// Its place in `grants`, from 0.
    pub index: usize,
    /// What it says to be its id.
    pub id: Option<String>,
    /// Why it is left out.
    pub problem: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "grants[{}]", self.index)?;
        if let Some(id) = &self.id {
            write!(formatter, " {}", quote(id))?;
        }
        write!(formatter, ": {}", self.problem)
    }
}
