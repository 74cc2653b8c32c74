//! The gate: everything one worker remembers, and the decision on each request.
//!
//! Events go in ([`Gate::request`], [`Gate::tick`], [`Gate::answered`], [`Gate::gone`]), values come
//! out ([`Verdict`], [`Effect`]); the host carries them out. A request that arrives before keys or
//! policy is parked, and then *decided*: by what has arrived, or by its deadline. It is never merely
//! resumed.

mod permit;
mod realm;
mod session;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::rc::Rc;

use self::permit::removals;
pub use self::permit::{DECISION_HEADER, Permit};
use self::realm::{Realm, bearer, read_keys};
use self::session::{Session, agree};
use crate::answer::{Known, Rejection};
use crate::arrival::{Arrival, DecisionId, IDENTITY_HEADER, Request, StreamId};
use crate::cache::Cache;
use crate::configuration::{Configuration, Environment, PolicySource, Waiting};
use crate::document::Faults;
use crate::feed::{Answer, Feed, FeedId, Fetch, Outcome as FeedOutcome, Read, Reader, Site};
use crate::jose::{KeySet, SignatureVerifier};
use crate::limits::Limits;
use crate::policy::{Outcome, Policy, path};
use crate::reject::{Code, Credential, Reject};
use crate::shared::{Memory, SharedData};
use crate::tally::Tally;
use crate::time::{Span, UnixTime};

/// Credentials remembered by one worker, and their bytes.
const CACHE_ENTRIES: usize = 8192;
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Time between two looks at the age of keys and policies for the metrics.
const OBSERVATION: Span = Span::from_secs(1);

/// One worker's state of one filter instance.
pub struct Gate {
    limits: Limits,
    verifier: Box<dyn SignatureVerifier>,
    tokens: Realm,
    identities: Realm,
    sessions: Cache<Session>,
    /// In the order of the configuration.
    policies: Vec<Feed<Policy>>,
    shared: Rc<dyn SharedData>,
    /// What was announced when the feeds were last looked after.
    heard: Option<u64>,
    /// Effects of what was loaded while a request was decided; they wait for the next tick.
    outbox: Vec<Effect>,
    /// Something was loaded that requests may have waited for.
    stirred: bool,
    observed_at: UnixTime,
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

/// What a gate needs of where it runs.
pub struct Host<'h> {
    /// Checks signatures.
    pub verifier: Box<dyn SignatureVerifier>,
    /// What the workers of this process share.
    pub shared: Rc<dyn SharedData>,
    /// Names this worker, and starts its pseudo-random numbers: random, and not 0.
    pub worker: u64,
    /// Looks up the environment variables that the configuration names.
    pub environment: Environment<'h>,
}

impl Host<'_> {
    /// A host with one worker and no environment variables.
    pub fn alone(verifier: Box<dyn SignatureVerifier>) -> Self {
        Self { verifier, shared: Rc::new(Memory::default()), worker: 1, environment: &|_| None }
    }
}

impl Gate {
    /// A gate by the plugin's configuration.
    ///
    /// # Errors
    /// Every fault of the configuration with its path.
    pub fn new(configuration: &[u8], host: Host<'_>) -> Result<Self, Faults> {
        let limits = Limits::DEFAULT;
        let Host { verifier, shared, worker, environment } = host;
        let configuration = Configuration::parse(configuration, &limits, environment)?;
        let Configuration { token, issuers, identity, airflow_issuers, .. } = configuration;
        let site = Site { shared: Rc::clone(&shared), worker, limits };
        let policies = configuration.policy.sources.into_iter().map(|(_, source)| match source {
            PolicySource::Inline(policy) => Feed::fixed(*policy),
            PolicySource::Remote(endpoint) => {
                Feed::remote(endpoint, limits.policy_bytes, "policy", &site)
            }
        });
        Ok(Self {
            verifier,
            tokens: Realm::new(Credential::Token, token, issuers, &site),
            identities: Realm::new(Credential::Identity, identity, airflow_issuers, &site),
            sessions: Cache::new(CACHE_ENTRIES, CACHE_BYTES),
            policies: policies.collect(),
            shared,
            heard: None,
            outbox: Vec::new(),
            stirred: false,
            observed_at: UnixTime::default(),
            forward_token: configuration.forward_token,
            waiting: configuration.waiting,
            parked: VecDeque::new(),
            tally: Tally::default(),
            limits,
        })
    }

    /// A request arrived.
    pub fn request(&mut self, arrival: &Arrival<'_>) -> Verdict {
        if self.heard != Some(self.shared.announced()) {
            self.sync(arrival.now);
        }
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
        self.sync(now);
        let mut effects = std::mem::take(&mut self.outbox);
        for id in self.feed_ids() {
            effects.extend(self.due(id, now));
        }
        if now.since(self.observed_at) >= OBSERVATION || now < self.observed_at {
            self.observed_at = now;
            self.observe(now, &mut effects);
        }
        if std::mem::take(&mut self.stirred) {
            effects.extend(self.reconsider(now));
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
        let Some((name, outcome)) = self.feed_event(id, Event::Answered(answer), now) else {
            return Vec::new();
        };
        let mut effects = std::mem::take(&mut self.outbox);
        effects.extend(outcome_count(&name, &outcome));
        let settled = matches!(outcome, FeedOutcome::Updated { .. } | FeedOutcome::Unchanged);
        self.tell(id, &name, outcome, &mut effects);
        // The next question of a conversation, before what may take long.
        effects.extend(self.due(id, now));
        if settled {
            effects.extend(self.reconsider(now));
        }
        effects
    }

    /// Loads what other workers published since the last look.
    fn sync(&mut self, now: UnixTime) {
        // First what was announced, then what was written: a later announcement is heard again.
        self.heard = Some(self.shared.announced());
        let mut effects = std::mem::take(&mut self.outbox);
        for id in self.feed_ids() {
            if let Some((name, outcome)) = self.feed_event(id, Event::Sync, now) {
                self.tell(id, &name, outcome, &mut effects);
                self.stirred = true;
            }
        }
        self.outbox = effects;
    }

    /// The age of each document and the breaker of its endpoint, from whoever fetches it.
    fn observe(&self, now: UnixTime, effects: &mut Vec<Effect>) {
        let observed = self.policies.iter().map(|feed| ("policy", feed.observe(now)));
        let issuers = self.tokens.issuers.iter().chain(&self.identities.issuers);
        let observed = observed.chain(issuers.map(|issuer| ("keys", issuer.keys.observe(now))));
        for (what, observation) in observed {
            let Some((name, age, breaker)) = observation else { continue };
            effects.push(Effect::Gauge(format!("breaker.{name}"), breaker as u64));
            if let Some(age) = age {
                let seconds = u64::try_from(age.as_millis()).unwrap_or_default() / 1000;
                effects.push(Effect::Gauge(format!("{what}.{name}.age"), seconds));
            }
        }
    }

    fn due(&mut self, id: FeedId, now: UnixTime) -> Option<Effect> {
        let due = match self.feed_mut(id) {
            AnyFeed::Policy(feed) => feed.due(id, now),
            AnyFeed::Keys(feed) => feed.due(id, now),
            AnyFeed::None => None,
        };
        due.map(Effect::Fetch)
    }

    /// Hands an event to a feed, with what reads its document; returns the feed's name and what the
    /// event meant.
    fn feed_event(
        &mut self,
        id: FeedId,
        event: Event,
        now: UnixTime,
    ) -> Option<(String, FeedOutcome)> {
        let limits = self.limits;
        match self.feed_mut(id) {
            AnyFeed::Policy(feed) => {
                let read = |body: &[u8], _: &str| {
                    let document =
                        Policy::parse(body, &limits).map_err(|faults| faults.to_string())?;
                    Ok(Read { document, notes: Vec::new(), mark: String::new() })
                };
                event.put_to(feed, now, &read)
            }
            AnyFeed::Keys(feed) => {
                event.put_to(feed, now, &|body: &[u8], _: &str| read_keys(body, &limits))
            }
            AnyFeed::None => None,
        }
    }

    /// What the operator learns of an outcome, and what it means for what is remembered.
    fn tell(&mut self, id: FeedId, name: &str, outcome: FeedOutcome, effects: &mut Vec<Effect>) {
        let what = if self.is_policy(id) { "policy" } else { "keys" };
        let (severity, text) = match outcome {
            FeedOutcome::Unchanged
            | FeedOutcome::More
            | FeedOutcome::Superseded
            | FeedOutcome::Failed { repeated: true, .. }
            | FeedOutcome::Unfit { repeated: true, .. } => return,
            FeedOutcome::Failed { reason, .. } => {
                (Severity::Warning, format!("could not be fetched: {reason}"))
            }
            FeedOutcome::Unfit { reason, .. } => {
                (Severity::Warning, format!("is unfit, the last good one stays: {reason}"))
            }
            FeedOutcome::Updated { notes } => {
                for note in notes {
                    let line = format!("{what} `{name}`: {note}");
                    effects.push(Effect::Log(Severity::Warning, line));
                }
                (Severity::Info, self.updated(id, name, effects))
            }
        };
        effects.push(Effect::Log(severity, format!("{what} `{name}` {text}")));
    }

    /// This gate ends: what it fetches for others, another one may fetch.
    pub fn leave(&mut self, now: UnixTime) {
        for id in self.feed_ids() {
            match self.feed_mut(id) {
                AnyFeed::Policy(feed) => feed.leave(now),
                AnyFeed::Keys(feed) => feed.leave(now),
                AnyFeed::None => {}
            }
        }
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
        let policies = self.policies.len();
        let tokens = self.tokens.issuers.len();
        if let Some(feed) = self.policies.get(id.0) {
            let Some(policy) = feed.current() else { return String::new() };
            let rules = policy.rule_count();
            let revision = policy.revision();
            effects.push(Effect::Gauge(format!("policy.{name}.rules"), rules as u64));
            let Some(revision) = revision else { return format!("loaded: {rules} rules") };
            effects.push(Effect::Gauge(format!("policy.{name}.revision"), revision));
            return format!("loaded: revision {revision}, {rules} rules");
        }
        // Whatever the old keys vouched for is verified again: a withdrawn key must stop at once.
        let index = id.0.saturating_sub(policies);
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

    /// The policies first, then the issuers of tokens, then those of identities.
    fn feed_ids(&self) -> impl Iterator<Item = FeedId> + use<> {
        let issuers = self.tokens.issuers.len().saturating_add(self.identities.issuers.len());
        (0..self.policies.len().saturating_add(issuers)).map(FeedId)
    }

    fn is_policy(&self, id: FeedId) -> bool {
        id.0 < self.policies.len()
    }

    fn feed_mut(&mut self, id: FeedId) -> AnyFeed<'_> {
        let Some(index) = id.0.checked_sub(self.policies.len()) else {
            return self.policies.get_mut(id.0).map_or(AnyFeed::None, AnyFeed::Policy);
        };
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

        let policy = self.usable_policy(now)?;
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

    /// The policy. With one source missing nobody knows what it would deny, so all are needed.
    fn usable_policy(&self, now: UnixTime) -> Result<&Policy, Halt> {
        let mut usable = None;
        for feed in &self.policies {
            let Some(policy) = feed.usable(now) else {
                let name = feed.name().unwrap_or_default();
                let detail = match feed.current() {
                    None => format!("policy `{name}` was not fetched yet"),
                    Some(_) => format!("policy `{name}` is too old and could not be fetched again"),
                };
                let reject = Reject::new(Code::PolicyUnavailable, detail);
                return Err(Halt::Missing(Box::new(reject), feed.next_at()));
            };
            usable = usable.or(Some(policy));
        }
        usable
            .map(AsRef::as_ref)
            .ok_or_else(|| Halt::from(Reject::new(Code::PolicyUnavailable, "there is no policy")))
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

        let session = Session::open(
            (&self.tokens, token, from_token.as_deref()),
            (&self.identities, identity, from_identity.as_deref()),
        )?;
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
}

/// Something that happened to a feed.
enum Event {
    Answered(Answer),
    /// Another worker may have published.
    Sync,
}

impl Event {
    fn put_to<T>(
        self,
        feed: &mut Feed<T>,
        now: UnixTime,
        read: Reader<'_, T>,
    ) -> Option<(String, FeedOutcome)> {
        let outcome = match self {
            Self::Answered(answer) => Some(feed.answered(answer, now, read)),
            Self::Sync => feed.sync(now, read),
        };
        Some((feed.name()?.to_owned(), outcome?))
    }
}

/// The counter of what a callout brought.
fn outcome_count(name: &str, outcome: &FeedOutcome) -> Option<Effect> {
    let word = match outcome {
        FeedOutcome::Updated { .. } => "updated",
        FeedOutcome::Unchanged => "unchanged",
        FeedOutcome::More => "discovered",
        FeedOutcome::Failed { .. } => "failed",
        FeedOutcome::Unfit { .. } => "unfit",
        FeedOutcome::Superseded => return None,
    };
    Some(Effect::Count(format!("callouts.{name}.{word}")))
}

enum AnyFeed<'a> {
    Policy(&'a mut Feed<Policy>),
    Keys(&'a mut Feed<KeySet>),
    None,
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
