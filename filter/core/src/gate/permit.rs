//! What a request goes on with: one that was authorized, and one that nobody stops.

use std::rc::Rc;
use std::sync::Arc;

use super::session::Session;
use crate::answer::Rejection;
use crate::arrival::{
    Addressed, DECISION_HEADER, DecisionId, IDENTITY_HEADER, PLAIN_HEADERS, PROXY_HEADER, Request,
};
use crate::audit::Fragment;
use crate::configuration::{IdentityHeaders, Requirement};
use crate::policy::ShadowVerdict;

/// Proof that a request was authorized, and what the upstream is to see. Only the gate makes one.
#[derive(Debug)]
pub struct Permit {
    pub(super) decision_id: DecisionId,
    pub(super) rule: Arc<str>,
    pub(super) grant: Option<Arc<str>>,
    pub(super) destination: Option<Arc<str>>,
    pub(super) remove: Removals,
    /// Which of the plain headers the caller sent: they say what was verified, or there were no permit.
    pub(super) said: [bool; 5],
    /// The cookies without the access token.
    pub(super) cookie: Onward,
    /// The path put right, with the query as it was sent, unless it was sent so.
    pub(super) target: Option<String>,
    /// The authority in its normal form, unless it was sent so.
    pub(super) authority: Option<String>,
    pub(super) session: Rc<Session>,
    pub(super) shadow: Vec<ShadowVerdict>,
    pub(super) identity_headers: IdentityHeaders,
}

/// What becomes of a header that may have a credential beside other things.
#[derive(Debug)]
pub(super) enum Onward {
    AsItCame,
    /// With this value.
    Only(String),
    Removed,
}

/// A request that would have been rejected, had the mode been to enforce. It goes on all the same, and
/// proves nothing.
#[derive(Debug)]
pub struct Pass {
    rejection: Rejection,
    remove: Removals,
}

const COOKIE_HEADER: &str = "cookie";
const AUTHORIZATION_HEADER: &str = "authorization";

/// The header by which the upstream learns that the request would have been rejected: `reject`.
pub const SHADOW_HEADER: &str = "x-airflow-shadow";

impl Permit {
    /// The decision's name.
    pub fn decision_id(&self) -> &DecisionId {
        &self.decision_id
    }

    /// The rule that allowed it.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The temporary grant without which no rule would have allowed it; the rule is then what was grantable.
    pub fn grant(&self) -> Option<&str> {
        self.grant.as_deref()
    }

    /// The destination's name in the policy.
    pub fn destination(&self) -> Option<&str> {
        self.destination.as_deref()
    }

    /// Who called, as audit records show it, if there are any.
    pub(crate) fn caller(&self) -> Option<Rc<Fragment>> {
        self.session.record.clone()
    }

    pub(crate) fn shared_rule(&self) -> Arc<str> {
        Arc::clone(&self.rule)
    }

    pub(crate) fn shared_grant(&self) -> Option<Arc<str>> {
        self.grant.clone()
    }

    pub(crate) fn shared_destination(&self) -> Option<Arc<str>> {
        self.destination.clone()
    }

    /// What the shadow rules would have changed.
    pub fn shadow(&self) -> &[ShadowVerdict] {
        &self.shadow
    }

    /// The verified DAG, task, run, try and map index, if there was an Airflow identity.
    pub fn task(&self) -> Option<&[String; 5]> {
        self.session.plain.as_ref()
    }

    /// Headers that the upstream must not see; each is in the request. They go before [`Self::set`] is done:
    /// of several cookie headers one is left.
    pub fn remove(&self) -> impl Iterator<Item = &str> {
        let cookie = (!matches!(self.cookie, Onward::AsItCame)).then_some(COOKIE_HEADER);
        self.remove.names().chain(cookie)
    }

    /// Headers that the upstream sees whatever the caller sent, but for plain ones that it sent just so. The path and
    /// the authority are among them if they were not in their normal form: what was judged is what the router sees and what
    /// goes on, whatever the listener normalises.
    pub fn set(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let cookie = match &self.cookie {
            Onward::Only(left) => Some((COOKIE_HEADER, left.as_str())),
            Onward::AsItCame | Onward::Removed => None,
        };
        let edits = self.identity_headers == IdentityHeaders::Edit;
        plain(edits.then_some(&self.session))
            .zip(self.said)
            .filter_map(|(header, said)| (!said).then_some(header))
            .chain(cookie)
            .chain(self.target.as_deref().map(|target| (":path", target)))
            .chain(self.authority.as_deref().map(|authority| (":authority", authority)))
            .chain(edits.then(|| (DECISION_HEADER, self.decision_id.as_str())))
    }
}

impl Pass {
    pub(super) fn new(rejection: Rejection, headers: &[(&[u8], &[u8])]) -> Self {
        // The caller, if the credentials verified and only the rest was refused.
        let session = rejection.known.session.as_deref();
        // Not from a `Request`: the headers may be what was refused.
        let remove = Removals::new(&Addressed::of(headers), session);
        Self { rejection, remove }
    }

    /// How it would have been refused.
    pub fn rejection(&self) -> &Rejection {
        &self.rejection
    }

    /// Headers that the upstream must not see; each is in the request.
    pub fn remove(&self) -> impl Iterator<Item = &str> {
        self.remove.names()
    }

    /// Headers that the upstream sees, whatever the caller sent. Path, authority and `authorization`
    /// stay as they came.
    pub fn set(&self) -> impl Iterator<Item = (&'static str, &str)> {
        plain(self.rejection.known.session.as_deref()).chain([
            (DECISION_HEADER, self.rejection.decision_id.as_str()),
            (SHADOW_HEADER, "reject"),
        ])
    }
}

/// The plain headers of a verified identity.
fn plain(session: Option<&Session>) -> impl Iterator<Item = (&'static str, &str)> {
    let values = session.and_then(|session| session.plain.as_ref());
    let values: &[String] = values.map_or(&[], |values| values);
    PLAIN_HEADERS.into_iter().zip(values.iter().map(String::as_str))
}

/// Headers that must not reach the upstream, each of which is in the request.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// Which of [`Self::USUAL`].
    usual: [bool; 8],
    others: Vec<String>,
}

impl Removals {
    /// Names that need no memory of their own.
    const USUAL: [&str; 8] = {
        let [dag, task, run, attempt, map_index] = PLAIN_HEADERS;
        [IDENTITY_HEADER, PROXY_HEADER, AUTHORIZATION_HEADER, dag, task, run, attempt, map_index]
    };

    /// The caller's whole Airflow family but for what is overwritten, and what was for the proxy.
    fn new(addressed: &Addressed<'_>, session: Option<&Session>) -> Self {
        let overwritten = session.is_some_and(|session| session.plain.is_some());
        let [dag, task, run, attempt, map_index] = addressed.plain.map(|is| is && !overwritten);
        let Addressed { identity, proxy, .. } = *addressed;
        let others = addressed.others.iter();
        Self {
            usual: [identity, proxy, false, dag, task, run, attempt, map_index],
            others: others.map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
        }
    }

    /// As well as the token that was verified here, if it is not to go on. `by_proxy`: credentials may come in
    /// `proxy-authorization`.
    pub(super) fn of(
        request: &Request<'_>,
        session: &Session,
        [token, identity]: [Requirement; 2],
        by_proxy: bool,
        forward_token: bool,
        identity_headers: IdentityHeaders,
    ) -> Self {
        let mut removals = Self::new(&request.addressed, Some(session));
        if identity_headers == IdentityHeaders::FilterState {
            // Envoy takes away what was verified here. What it does not know of must not pass for the filter's own: a
            // decision's name, names in other spellings, what nobody looked at. Plain headers that go on say what was
            // verified, or there would be no permit.
            let [unread_identity, unread_proxy, ..] = &mut removals.usual;
            *unread_identity &= identity == Requirement::Off;
            *unread_proxy &= !by_proxy;
            if request.addressed.decision {
                removals.others.push(DECISION_HEADER.to_owned());
            }
            return removals;
        }
        let [_, _, authorization, ..] = &mut removals.usual;
        *authorization =
            token != Requirement::Off && !forward_token && request.authorization.is_some();
        removals
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let usual = Self::USUAL.into_iter().zip(self.usual).filter(|(_, is)| *is);
        usual.map(|(name, _)| name).chain(self.others.iter().map(String::as_str))
    }
}
