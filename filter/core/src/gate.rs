//! The gate: everything one worker remembers, and the decision on each request.
//!
//! Events go in ([`Gate::request`], [`Gate::tick`], [`Gate::answered`], [`Gate::gone`]), values come
//! out ([`Verdict`], [`Effect`]); the host carries them out. A request that arrives before keys or
//! policy is parked, and then *decided*: by what has arrived, or by its deadline. It is never merely
//! resumed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::answer::{Known, Rejection};
use crate::arrival::{Arrival, DecisionId, IDENTITY_HEADER, PLAIN_HEADERS, Request, StreamId};
use crate::cache::Cache;
use crate::configuration::{Configuration, Issuer, KeySource, PolicySource, Requirement, Waiting};
use crate::credential::{IssuerRules, Presented, Verified, issuer_unknown};
use crate::document::Faults;
use crate::facts::{Caller, Fact};
use crate::feed::{Answer, Feed, FeedId, Fetch, Outcome as FeedOutcome};
use crate::identity::{TaskIdentity, access_token_hash};
use crate::jose::{KeySet, SignatureVerifier};
use crate::limits::Limits;
use crate::policy::{Outcome, Policy, ShadowVerdict, Standing, path};
use crate::quote::quote;
use crate::reject::{Code, Credential, Reject};
use crate::tally::Tally;
use crate::time::{Span, UnixTime};

/// Credentials remembered by one worker, and their bytes.
const CACHE_ENTRIES: usize = 8192;
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// One worker's state of one filter instance.
pub struct Gate {
    limits: Limits,
    verifier: Box<dyn SignatureVerifier>,
    tokens: Realm,
    identities: Realm,
    sessions: Cache<Session>,
    policy: Feed<Policy>,
    forward_token: bool,
    waiting: Waiting,
    parked: VecDeque<Parked>,
    tally: Tally,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Verdict {
    /// It may go on, with the header edits of the permit.
    Permit(Permit),
    /// It is answered here.
    Reject(Box<Rejection>),
    /// It has to wait; an [`Effect::Decide`] follows, by its deadline at the latest.
    Wait,
}

/// What the host has to do.
#[derive(Debug)]
pub enum Effect {
    /// Make a callout and hand its answer to [`Gate::answered`].
    Fetch(Fetch),
    /// Carry out the verdict on a parked request; never [`Verdict::Wait`].
    Decide(StreamId, Verdict),
    /// Write a line to the log.
    Log(Severity, String),
    /// Add one to a counter.
    Count(String),
    /// Set a gauge.
    Gauge(String, u64),
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Something changed as it should.
    Info,
    /// Somebody should look.
    Warning,
}

/// Proof that a request was authorized, and what the upstream is to see. Only the gate makes one.
#[derive(Debug)]
pub struct Permit {
    decision_id: DecisionId,
    rule: Arc<str>,
    destination: Option<Arc<str>>,
    remove: Vec<Cow<'static, str>>,
    /// The path put right, with the query as it was sent, unless it was sent so.
    target: Option<String>,
    /// The authority in its normal form, unless it was sent so.
    authority: Option<String>,
    session: Rc<Session>,
    shadow: Vec<ShadowVerdict>,
}

/// The header by which the upstream learns the decision's name.
pub const DECISION_HEADER: &str = "x-airflow-decision-id";

impl Permit {
    /// The decision's name.
    pub fn decision_id(&self) -> &DecisionId {
        &self.decision_id
    }

    /// The rule that allowed it.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The destination's name in the policy.
    pub fn destination(&self) -> Option<&str> {
        self.destination.as_deref()
    }

    /// What the shadow rules would have changed.
    pub fn shadow(&self) -> &[ShadowVerdict] {
        &self.shadow
    }

    /// The verified DAG, task and run, if there was an Airflow identity.
    pub fn task(&self) -> Option<[&str; 3]> {
        let [dag, task, run, ..] = self.session.plain.as_ref()?;
        Some([dag, task, run])
    }

    /// Headers that the upstream must not see; each is in the request.
    pub fn remove(&self) -> impl Iterator<Item = &str> {
        self.remove.iter().map(AsRef::as_ref)
    }

    /// Headers that the upstream sees, whatever the caller sent. The path and the authority are among
    /// them if they were not in their normal form: what was judged is what the router sees and what
    /// goes on, whatever the listener normalises.
    pub fn set(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let plain = self.session.plain.iter().flatten().map(String::as_str);
        PLAIN_HEADERS
            .into_iter()
            .zip(plain)
            .chain(self.target.as_deref().map(|target| (":path", target)))
            .chain(self.authority.as_deref().map(|authority| (":authority", authority)))
            .chain(std::iter::once((DECISION_HEADER, self.decision_id.as_str())))
    }
}

/// One kind of credential: whether it is needed, who issues it, what was verified.
struct Realm {
    credential: Credential,
    requirement: Requirement,
    issuers: Vec<TrustedIssuer>,
    verified: Cache<FromIssuer>,
}

struct TrustedIssuer {
    rules: IssuerRules,
    keys: Feed<KeySet>,
}

/// A verified credential and the index of its issuer.
struct FromIssuer {
    issuer: usize,
    verified: Verified,
}

/// A caller whose credentials were verified and found to agree.
struct Session {
    /// The access token and the identity, byte for byte.
    token: Option<Box<[u8]>>,
    identity: Option<Box<[u8]>>,
    /// Indices of their issuers.
    token_issuer: Option<usize>,
    identity_issuer: Option<usize>,
    /// Neither before nor after is the session looked at without a fresh check.
    valid_from: UnixTime,
    valid_until: UnixTime,
    caller: Caller,
    /// What the policy made of the caller; made anew when the policy changes.
    standing: RefCell<Option<Rc<Standing>>>,
    /// Values of [`PLAIN_HEADERS`], if there is an identity.
    plain: Option<[String; 5]>,
}

/// A request that waits.
struct Parked {
    stream: StreamId,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    deadline: UnixTime,
    decision_id: DecisionId,
}

/// Why a request cannot be permitted now.
enum Halt {
    Refuse(Box<(Reject, Known)>),
    /// Something has not arrived yet; the code is the one to refuse with if it never does.
    Missing(Box<Reject>, UnixTime),
}

impl From<Reject> for Halt {
    fn from(reject: Reject) -> Self {
        Self::Refuse(Box::new((reject, Known::default())))
    }
}

impl Gate {
    /// A gate by the plugin's configuration.
    ///
    /// # Errors
    /// Every fault of the configuration with its path.
    pub fn new(configuration: &[u8], verifier: Box<dyn SignatureVerifier>) -> Result<Self, Faults> {
        let limits = Limits::DEFAULT;
        let configuration = Configuration::parse(configuration, &limits)?;
        Ok(Self {
            verifier,
            tokens: Realm::new(
                Credential::Token,
                configuration.token,
                configuration.issuers,
                &limits,
            ),
            identities: Realm::new(
                Credential::Identity,
                configuration.identity,
                configuration.airflow_issuers,
                &limits,
            ),
            sessions: Cache::new(CACHE_ENTRIES, CACHE_BYTES),
            policy: match configuration.policy {
                PolicySource::Inline(policy) => Feed::fixed(*policy),
                PolicySource::Remote(endpoint) => Feed::remote(endpoint, limits.policy_bytes),
            },
            forward_token: configuration.forward_token,
            waiting: configuration.waiting,
            parked: VecDeque::new(),
            tally: Tally::default(),
            limits,
        })
    }

    /// A request arrived.
    pub fn request(&mut self, arrival: &Arrival<'_>) -> Verdict {
        let verdict = match self.authorize(arrival.headers, arrival.now, arrival.decision_id) {
            Ok(permit) => Verdict::Permit(permit),
            Err(Halt::Missing(..)) if self.may_wait() => {
                self.park(arrival);
                Verdict::Wait
            }
            Err(Halt::Missing(..)) if !self.parked.is_empty() => {
                let detail = format!("{} requests wait already", self.parked.len());
                let reject = Reject::new(Code::WaitingRoomFull, detail);
                refuse(arrival, reject, Known::default(), Some(Span::from_secs(1)))
            }
            Err(Halt::Missing(reject, retry_at)) => {
                refuse(arrival, *reject, Known::default(), Some(retry_at.since(arrival.now)))
            }
            Err(Halt::Refuse(refusal)) => {
                let (reject, known) = *refusal;
                refuse(arrival, reject, known, None)
            }
        };
        self.tally.verdict(&verdict);
        verdict
    }

    /// Time has passed: what is due now.
    pub fn tick(&mut self, now: UnixTime) -> Vec<Effect> {
        let mut effects = Vec::new();
        for id in self.feed_ids() {
            let due = match self.feed(id) {
                AnyFeed::Policy(feed) => feed.due(id, now),
                AnyFeed::Keys(feed) => feed.due(id, now),
                AnyFeed::None => None,
            };
            effects.extend(due.map(Effect::Fetch));
        }
        // A deadline farther off than the waiting time was set before the clock was set back.
        let longest = self.waiting.time;
        let is_over =
            |parked: &Parked| parked.deadline <= now || parked.deadline.since(now) > longest;
        while self.parked.front().is_some_and(is_over) {
            if let Some(parked) = self.parked.pop_front() {
                effects.push(self.decide(&parked, now));
            }
        }
        effects
    }

    /// The answer to a callout arrived, or it is certain that there will be none.
    pub fn answered(&mut self, id: FeedId, answer: Answer, now: UnixTime) -> Vec<Effect> {
        let limits = self.limits;
        let (name, what, outcome) = match self.feed(id) {
            AnyFeed::Policy(feed) => {
                let outcome = feed.answered(answer, now, |body| {
                    let policy =
                        Policy::parse(body, &limits).map_err(|faults| faults.to_string())?;
                    Ok((policy, Vec::new()))
                });
                (feed.name().unwrap_or_default().to_owned(), "policy", outcome)
            }
            AnyFeed::Keys(feed) => {
                let outcome = feed.answered(answer, now, |body| read_keys(body, &limits));
                (feed.name().unwrap_or_default().to_owned(), "keys", outcome)
            }
            AnyFeed::None => return Vec::new(),
        };
        let mut effects = Vec::new();
        let (word, line) = match outcome {
            FeedOutcome::Unchanged => ("unchanged", None),
            FeedOutcome::Failed { reason } => {
                ("failed", Some((Severity::Warning, format!("could not be fetched: {reason}"))))
            }
            FeedOutcome::Unfit { reason } => (
                "unfit",
                Some((Severity::Warning, format!("is unfit, the last good one stays: {reason}"))),
            ),
            FeedOutcome::Updated { notes } => {
                for note in notes {
                    let line = format!("{what} `{name}`: {note}");
                    effects.push(Effect::Log(Severity::Warning, line));
                }
                ("updated", Some((Severity::Info, self.updated(id, &name, &mut effects))))
            }
        };
        effects.push(Effect::Count(format!("callouts.{name}.{word}")));
        if let Some((severity, text)) = line {
            effects.push(Effect::Log(severity, format!("{what} `{name}` {text}")));
        }
        if word != "failed" && word != "unfit" {
            effects.extend(self.reconsider(now));
        }
        effects
    }

    /// A stream has ended, decided or not.
    pub fn gone(&mut self, stream: StreamId) {
        if !self.parked.is_empty() {
            self.parked.retain(|parked| parked.stream != stream);
        }
    }

    /// Whether the request of this stream waits: nothing of it may go on.
    pub fn waits(&self, stream: StreamId) -> bool {
        self.parked.iter().any(|parked| parked.stream == stream)
    }

    /// Requests that wait now.
    pub fn waiting(&self) -> usize {
        self.parked.len()
    }

    /// What was counted since the last call.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// What a new document means for what is remembered; returns a few words for the log.
    fn updated(&mut self, id: FeedId, name: &str, effects: &mut Vec<Effect>) -> String {
        let tokens = self.tokens.issuers.len();
        if id.0 == 0 {
            let Some(policy) = self.policy.current() else { return String::new() };
            let rules = policy.rule_count();
            let revision = policy.revision();
            effects.push(Effect::Gauge(format!("policy.{name}.rules"), rules as u64));
            let Some(revision) = revision else { return format!("loaded: {rules} rules") };
            effects.push(Effect::Gauge(format!("policy.{name}.revision"), revision));
            return format!("loaded: revision {revision}, {rules} rules");
        }
        // Whatever the old keys vouched for is verified again: a withdrawn key must stop at once.
        let index = id.0.saturating_sub(1);
        let keys = if index < tokens {
            self.sessions.retain(|session| session.token_issuer != Some(index));
            self.tokens.forget(index)
        } else {
            let index = index.saturating_sub(tokens);
            self.sessions.retain(|session| session.identity_issuer != Some(index));
            self.identities.forget(index)
        };
        effects.push(Effect::Gauge(format!("keys.{name}"), keys as u64));
        format!("loaded: {keys} usable")
    }

    fn feed_ids(&self) -> impl Iterator<Item = FeedId> + use<> {
        let issuers = self.tokens.issuers.len().saturating_add(self.identities.issuers.len());
        (0..=issuers).map(FeedId)
    }

    fn feed(&mut self, id: FeedId) -> AnyFeed<'_> {
        let Some(index) = id.0.checked_sub(1) else { return AnyFeed::Policy(&mut self.policy) };
        let mut issuers = self.tokens.issuers.iter_mut().chain(&mut self.identities.issuers);
        issuers.nth(index).map_or(AnyFeed::None, |issuer| AnyFeed::Keys(&mut issuer.keys))
    }

    fn may_wait(&self) -> bool {
        self.waiting.time > Span::ZERO && self.parked.len() < self.waiting.requests
    }

    fn park(&mut self, arrival: &Arrival<'_>) {
        self.parked.push_back(Parked {
            stream: arrival.stream,
            headers: arrival
                .headers
                .iter()
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
            deadline: arrival.now.plus(self.waiting.time),
            decision_id: arrival.decision_id,
        });
    }

    /// Decides every parked request that can be decided now.
    fn reconsider(&mut self, now: UnixTime) -> Vec<Effect> {
        let mut effects = Vec::new();
        for parked in std::mem::take(&mut self.parked) {
            match self.try_parked(&parked, now) {
                Err(Halt::Missing(..)) if now < parked.deadline => self.parked.push_back(parked),
                outcome => effects.push(self.conclude(&parked, outcome, now)),
            }
        }
        effects
    }

    /// Decides a parked request whose time is over.
    fn decide(&mut self, parked: &Parked, now: UnixTime) -> Effect {
        let outcome = self.try_parked(parked, now);
        self.conclude(parked, outcome, now)
    }

    fn try_parked(&mut self, parked: &Parked, now: UnixTime) -> Result<Permit, Halt> {
        let headers = borrow(&parked.headers);
        self.authorize(&headers, now, parked.decision_id)
    }

    fn conclude(
        &mut self,
        parked: &Parked,
        outcome: Result<Permit, Halt>,
        now: UnixTime,
    ) -> Effect {
        let headers = borrow(&parked.headers);
        let arrival = Arrival {
            stream: parked.stream,
            headers: &headers,
            now,
            decision_id: parked.decision_id,
        };
        let verdict = match outcome {
            Ok(permit) => Verdict::Permit(permit),
            Err(Halt::Refuse(refusal)) => {
                let (reject, known) = *refusal;
                refuse(&arrival, reject, known, None)
            }
            Err(Halt::Missing(reject, retry_at)) => {
                refuse(&arrival, *reject, Known::default(), Some(retry_at.since(now)))
            }
        };
        self.tally.verdict(&verdict);
        Effect::Decide(parked.stream, verdict)
    }

    fn authorize(
        &mut self,
        headers: &[(&[u8], &[u8])],
        now: UnixTime,
        decision_id: DecisionId,
    ) -> Result<Permit, Halt> {
        let request = Request::read(headers)?;
        let session = self.session(&request, now)?;
        agree(&request, &session, self.identities.requirement)?;

        let Some(policy) = self.policy.usable(now) else {
            let name = self.policy.name().unwrap_or_default();
            let detail = match self.policy.current() {
                None => format!("policy `{name}` was not fetched yet"),
                Some(_) => format!("policy `{name}` is too old and could not be fetched again"),
            };
            let reject = Reject::new(Code::PolicyUnavailable, detail);
            return Err(Halt::Missing(Box::new(reject), self.policy.next_at()));
        };
        let standing = session.standing(policy);
        let decision =
            policy.decide(&session.caller, &standing, &request.call(), now, &self.limits);
        match decision.outcome {
            Outcome::Permit { rule } => Ok(Permit {
                decision_id,
                rule,
                destination: decision.destination,
                remove: removals(&request, &session, self.tokens.requirement, self.forward_token),
                target: match decision.path {
                    Some(Cow::Owned(_)) => path::sent_on(request.target),
                    _ => None,
                },
                authority: decision.authority,
                shadow: decision.shadow,
                session,
            }),
            Outcome::Refuse(reject) => {
                let known = session.known(decision.destination, decision.shadow);
                Err(Halt::Refuse(Box::new((reject, known))))
            }
        }
    }

    /// The caller, by both credentials.
    fn session(&mut self, request: &Request<'_>, now: UnixTime) -> Result<Rc<Session>, Halt> {
        let token = self.tokens.requirement.wants(|| bearer(request))?.flatten();
        let identity = self.identities.requirement.wants(|| Ok(request.identity))?.flatten();
        let primary = identity.or(token);
        if let Some(session) = primary.and_then(|primary| self.sessions.find(primary))
            && session.token.as_deref() == token
            && session.identity.as_deref() == identity
            && (session.valid_from..session.valid_until).contains(&now)
            && self.keys_usable(&session, now)
        {
            self.tally.session_hits = self.tally.session_hits.saturating_add(1);
            return Ok(session);
        }

        let verifier = self.verifier.as_ref();
        let (limits, tally) = (&self.limits, &mut self.tally);
        let from_token = self.tokens.verify(token, limits, verifier, now, tally, || {
            let marker = if request.marker {
                "; the Airflow connection is marked for credentials, so the plugin on Airflow's \
                 side is not active"
            } else {
                ""
            };
            Reject::new(Code::TokenMissing, format!("header `authorization` is missing{marker}"))
        })?;
        let from_identity =
            self.identities.verify(identity, limits, verifier, now, tally, || {
                let detail = format!("header `{IDENTITY_HEADER}` is missing");
                Reject::new(Code::IdentityMissing, detail)
            })?;

        let session =
            self.open(token, from_token.as_deref(), identity, from_identity.as_deref())?;
        let session = Rc::new(session);
        if let Some(primary) = primary {
            // A session holds both credentials and the token's claims.
            let weight = [token, identity].iter().flatten().map(|held| held.len()).sum();
            self.sessions.insert(primary, weight, Rc::clone(&session));
        }
        Ok(session)
    }

    /// Whether the keys behind a remembered session may still be relied on.
    fn keys_usable(&self, session: &Session, now: UnixTime) -> bool {
        let usable = |realm: &Realm, issuer: Option<usize>| {
            issuer.is_none_or(|index| {
                realm.issuers.get(index).is_some_and(|issuer| issuer.keys.usable(now).is_some())
            })
        };
        usable(&self.tokens, session.token_issuer)
            && usable(&self.identities, session.identity_issuer)
    }

    /// Puts the verified credentials together, if they agree.
    fn open(
        &self,
        token: Option<&[u8]>,
        from_token: Option<&FromIssuer>,
        identity: Option<&[u8]>,
        from_identity: Option<&FromIssuer>,
    ) -> Result<Session, Reject> {
        for (from, code) in
            [(from_token, Code::TokenBindingUnmet), (from_identity, Code::IdentityBindingUnmet)]
        {
            if from.is_some_and(|from| from.verified.claims.contains_key("cnf")) {
                let detail = "claim `cnf` binds it to a key, and no proof of one is accepted here";
                return Err(Reject::new(code, detail));
            }
        }
        let task = match from_identity {
            Some(FromIssuer { verified, .. }) => {
                bound(&verified.claims, token, self.tokens.requirement)?;
                Some(TaskIdentity::read(&verified.claims)?)
            }
            None => None,
        };
        let mut valid = (UnixTime::from_millis(i64::MIN), UnixTime::from_millis(i64::MAX));
        for (realm, from) in [(&self.tokens, from_token), (&self.identities, from_identity)] {
            if let Some(FromIssuer { issuer, verified }) = from
                && let Some(TrustedIssuer { rules, .. }) = realm.issuers.get(*issuer)
            {
                valid.1 = valid.1.min(verified.expires_at.plus(rules.clock_skew));
                for start in [verified.not_before, verified.issued_at].into_iter().flatten() {
                    valid.0 = valid.0.max(start.minus(rules.clock_skew));
                }
            }
        }
        Ok(Session {
            token: token.map(Into::into),
            identity: identity.map(Into::into),
            token_issuer: from_token.map(|from| from.issuer),
            identity_issuer: from_identity.map(|from| from.issuer),
            valid_from: valid.0,
            valid_until: valid.1,
            plain: task.as_ref().map(TaskIdentity::plain),
            caller: caller(
                from_token.map(|from| &from.verified),
                from_identity.map(|from| &from.verified),
                task,
            ),
            standing: RefCell::new(None),
        })
    }
}

enum AnyFeed<'a> {
    Policy(&'a mut Feed<Policy>),
    Keys(&'a mut Feed<KeySet>),
    None,
}

impl Requirement {
    /// What `read` finds, unless the credential is never looked at.
    fn wants<T>(self, read: impl FnOnce() -> Result<T, Reject>) -> Result<Option<T>, Reject> {
        match self {
            Self::Off => Ok(None),
            Self::Required | Self::Optional => read().map(Some),
        }
    }
}

impl Realm {
    fn new(
        credential: Credential,
        requirement: Requirement,
        issuers: Vec<Issuer>,
        limits: &Limits,
    ) -> Self {
        let issuers = issuers
            .into_iter()
            .map(|Issuer { rules, keys }| TrustedIssuer {
                rules,
                keys: match keys {
                    KeySource::Inline(keys) => Feed::fixed(keys),
                    KeySource::Remote(endpoint) => Feed::remote(endpoint, limits.key_set_bytes),
                },
            })
            .collect();
        let verified = Cache::new(CACHE_ENTRIES, CACHE_BYTES);
        Self { credential, requirement, issuers, verified }
    }

    /// Drops what the issuer's old keys vouched for; returns how many keys it has now.
    fn forget(&mut self, issuer: usize) -> usize {
        self.verified.retain(|from| from.issuer != issuer);
        let keys = self.issuers.get(issuer).and_then(|issuer| issuer.keys.current());
        keys.map_or(0, |keys| keys.len())
    }

    fn verify(
        &mut self,
        text: Option<&[u8]>,
        limits: &Limits,
        verifier: &dyn SignatureVerifier,
        now: UnixTime,
        tally: &mut Tally,
        missing: impl FnOnce() -> Reject,
    ) -> Result<Option<Rc<FromIssuer>>, Halt> {
        let Some(text) = text else {
            return match self.requirement {
                Requirement::Required => Err(missing().into()),
                Requirement::Optional | Requirement::Off => Ok(None),
            };
        };
        if let Some(known) = self.verified.find(text)
            && let Some(issuer) = self.issuers.get(known.issuer)
            && issuer.keys.usable(now).is_some()
        {
            known.verified.check_time(&issuer.rules, now)?;
            tally.credential_hits = tally.credential_hits.saturating_add(1);
            return Ok(Some(known));
        }
        let presented = Presented::parse(text, self.credential, limits)?;
        let (index, issuer) = self.issuer(&presented)?;
        // What no key could help is refused before anything is waited for.
        presented.check_rules(&issuer.rules)?;
        let Some(keys) = issuer.keys.usable(now) else {
            let name = &issuer.rules.name;
            let detail = match issuer.keys.current() {
                None => format!("keys of issuer `{name}` were not fetched yet"),
                Some(_) => format!("keys of issuer `{name}` are too old"),
            };
            let reject = Reject::new(Code::KeysUnavailable, detail);
            return Err(Halt::Missing(Box::new(reject), issuer.keys.next_at()));
        };
        tally.verifications = tally.verifications.saturating_add(1);
        let verified = presented.verify(&issuer.rules, keys, verifier, now)?;
        let from = Rc::new(FromIssuer { issuer: index, verified });
        self.verified.insert(text, text.len(), Rc::clone(&from));
        Ok(Some(from))
    }

    fn issuer(&self, presented: &Presented) -> Result<(usize, &TrustedIssuer), Reject> {
        let mut issuers = self.issuers.iter().enumerate();
        let found = issuers.find(|(_, issuer)| issuer.rules.issuer == presented.issuer());
        found.ok_or_else(|| {
            let trusted = self.issuers.iter().map(|known| known.rules.issuer.as_str());
            issuer_unknown(self.credential, presented.issuer(), trusted)
        })
    }
}

impl Session {
    fn standing(&self, policy: &Policy) -> Rc<Standing> {
        let mut standing = self.standing.borrow_mut();
        match standing.as_ref() {
            Some(standing) if standing.belongs_to(policy) => Rc::clone(standing),
            _ => Rc::clone(standing.insert(Rc::new(policy.standing(&self.caller)))),
        }
    }

    fn known(&self, destination: Option<Arc<str>>, shadow: Vec<ShadowVerdict>) -> Known {
        let [dag_id, task_id, run_id, ..] = match &self.plain {
            Some(plain) => plain.clone().map(Some),
            None => [const { None }; 5],
        };
        Known { dag_id, task_id, run_id, destination, shadow }
    }
}

/// Without the credentials.
impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("plain", &self.plain).finish_non_exhaustive()
    }
}

/// Without what it remembers.
impl std::fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Gate").field("parked", &self.parked.len()).finish_non_exhaustive()
    }
}

fn borrow(headers: &[(Vec<u8>, Vec<u8>)]) -> Vec<(&[u8], &[u8])> {
    headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect()
}

fn refuse(
    arrival: &Arrival<'_>,
    reject: Reject,
    known: Known,
    retry_after: Option<Span>,
) -> Verdict {
    Verdict::Reject(Box::new(Rejection {
        reject,
        decision_id: arrival.decision_id,
        retry_after,
        grpc: Request::speaks_grpc(arrival.headers),
        known,
    }))
}

fn read_keys(body: &[u8], limits: &Limits) -> Result<(KeySet, Vec<String>), String> {
    let (keys, skipped) = KeySet::parse(body, limits).map_err(|error| error.to_string())?;
    if keys.is_empty() {
        return Err("it holds no usable key".to_owned());
    }
    Ok((keys, skipped.iter().map(ToString::to_string).collect()))
}

/// The token of `authorization: Bearer …` (RFC 6750 §2.1); the scheme is case-insensitive (RFC 9110 §11.1).
fn bearer<'a>(request: &Request<'a>) -> Result<Option<&'a [u8]>, Reject> {
    let Some(value) = request.authorization else { return Ok(None) };
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at_checked(end).unwrap_or((value, &[]));
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        // The scheme is not quoted: a token sent without one would stand in its place.
        let detail = "header `authorization` is not `Bearer` and a token";
        return Err(Reject::new(Code::TokenSchemeUnsupported, detail));
    }
    Ok(Some(token.trim_ascii()))
}

/// The identity's `ath` (RFC 9449 §4.2) must be the digest of the access token beside it. An identity
/// without `ath` beside a token, or with one and no token, proves nothing about this pair.
fn bound(
    claims: &Map<String, Value>,
    token: Option<&[u8]>,
    requirement: Requirement,
) -> Result<(), Reject> {
    let unmet = |detail| Err(Reject::new(Code::IdentityBindingUnmet, detail));
    match (claims.get("ath"), token) {
        (_, None) if requirement == Requirement::Off => Ok(()),
        (None, None) => Ok(()),
        (Some(_), None) => unmet("claim `ath` binds it to an access token, and there is none"),
        (None, Some(_)) => unmet("claim `ath` is missing, so it is bound to no access token"),
        (Some(Value::String(ath)), Some(token)) if *ath == access_token_hash(token) => Ok(()),
        (Some(_), Some(_)) => unmet("claim `ath` is not the digest of the access token"),
    }
}

/// What the caller said about itself in plain headers must be what the identity proves.
fn agree(request: &Request<'_>, session: &Session, requirement: Requirement) -> Result<(), Reject> {
    if requirement == Requirement::Off {
        return Ok(());
    }
    for (index, name) in PLAIN_HEADERS.into_iter().enumerate() {
        let Some(said) = request.plain.get(index).copied().flatten() else { continue };
        let proven = session.plain.as_ref().and_then(|plain| plain.get(index));
        if proven.is_some_and(|proven| proven.as_bytes() == said) {
            continue;
        }
        let said = quote(&String::from_utf8_lossy(said));
        let detail = match proven {
            Some(proven) => {
                format!("header `{name}` says {said}, and the identity {}", quote(proven))
            }
            None => format!("header `{name}` says {said}, and no identity proves it"),
        };
        return Err(Reject::new(Code::IdentityHeaderMismatch, detail));
    }
    Ok(())
}

/// Headers that must not reach the upstream: the caller's whole Airflow family but for those that are
/// overwritten, and the token that was verified here.
fn removals(
    request: &Request<'_>,
    session: &Session,
    token: Requirement,
    forward_token: bool,
) -> Vec<Cow<'static, str>> {
    let mut names = Vec::with_capacity(request.family.len().saturating_add(1));
    for &name in &request.family {
        let overwritten = name == DECISION_HEADER.as_bytes()
            || (session.plain.is_some()
                && PLAIN_HEADERS.iter().any(|plain| plain.as_bytes() == name));
        if name == IDENTITY_HEADER.as_bytes() {
            names.push(Cow::Borrowed(IDENTITY_HEADER));
        } else if !overwritten {
            names.push(Cow::Owned(String::from_utf8_lossy(name).into_owned()));
        }
    }
    if token != Requirement::Off && !forward_token && request.authorization.is_some() {
        names.push(Cow::Borrowed("authorization"));
    }
    names
}

/// Everything that is verified about the caller, under the names of the policy's selectors.
fn caller(
    token: Option<&Verified>,
    identity: Option<&Verified>,
    task: Option<TaskIdentity>,
) -> Caller {
    let both = || token.into_iter().chain(identity);
    let mut caller = Caller {
        issuers: Fact::Known(both().map(|verified| verified.issuer_name.clone()).collect()),
        // With the issuer's name, which has no `/`: any issuer can call its keys as another one does.
        key_ids: Fact::Known(
            both()
                .filter_map(|Verified { issuer_name, key_id, .. }| {
                    Some(format!("{issuer_name}/{}", key_id.as_ref()?))
                })
                .collect(),
        ),
        ..Caller::default()
    };
    if let Some(Verified { claims, .. }) = token {
        if let Some(Value::String(subject)) = claims.get("sub") {
            caller.subjects = Fact::one(subject.as_str());
        }
        caller.scopes = scopes(claims);
        caller.claims = Value::Object(claims.clone());
    }
    if let Some(task) = task {
        caller.dags = Fact::one(task.dag_id);
        caller.tasks = Fact::one(task.task_id);
        caller.runs = Fact::one(task.run_id);
        caller.run_types = task.run_type;
        caller.owners = task.owners;
        caller.tags = task.tags;
        caller.teams = task.team;
        caller.airflow_roles = task.roles;
        caller.queues = task.queue;
    }
    caller
}

/// `scope`, space-delimited (RFC 8693 §4.2), or `scp` as some issuers write it: a list or a string.
fn scopes(claims: &Map<String, Value>) -> Fact {
    let words = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect();
    match (claims.get("scope"), claims.get("scp")) {
        (Some(Value::String(text)), _) | (None, Some(Value::String(text))) => {
            Fact::Known(words(text))
        }
        (None, Some(Value::Array(elements))) => {
            let scopes: Option<_> =
                elements.iter().map(|element| element.as_str().map(str::to_owned)).collect();
            scopes.map_or(Fact::Unknown, Fact::Known)
        }
        _ => Fact::Unknown,
    }
}
