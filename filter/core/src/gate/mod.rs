//! The gate: everything one worker remembers, and the decision on each request.
//!
//! Events go in ([`Gate::request`], [`Gate::tick`], [`Gate::answered`], [`Gate::gone`]), values come
//! out ([`Verdict`], [`Effect`]); the host carries them out. A request that arrives before keys or
//! policy is parked, and then *decided*: by what has arrived, or by its deadline. It is never merely
//! resumed.

mod credentials;
mod grants;
mod intentions;
mod narrowing;
mod permit;
mod realm;
mod session;
mod weight;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use self::credentials::{Cookies, Credentials, Look};
use self::grants::Grants;
use self::intentions::Layer;
use self::narrowing::Narrowing;
use self::permit::{Onward, Removals};
pub use self::permit::{Pass, Permit, SHADOW_HEADER};
use self::realm::{Realm, read_keys};
pub(crate) use self::session::Session;
use self::session::agree;
#[cfg(feature = "explain")]
pub use self::session::caller;
use crate::answer::{Known, Rejection};
pub use crate::arrival::DECISION_HEADER;
use crate::arrival::{Arrival, DecisionId, IDENTITY_HEADER, PROXY_HEADER, Request, StreamId};
use crate::audit::collector::{Attempt, Post, Step};
use crate::audit::{Fragment, Trail};
use crate::cache::Cache;
use crate::catalog::ServiceRoles;
use crate::configuration::{
    Configuration, Environment, IdentityHeaders, Mode, Policies, PolicySource, Waiting, Ways,
};
use crate::document::Faults;
use crate::feed::{
    Answer, Body, Feed, FeedId, Fetch, Observation, Outcome as FeedOutcome, Read, Reader, Site,
    reader,
};
use crate::filter_state::FilterState;
use crate::intentions::Token;
use crate::jose::{KeySet, SignatureVerifier};
use crate::limits::Limits;
use crate::pace::{Pace, Task};
use crate::peer::{self, Presented};
use crate::policy::{
    Accepted, Admitted, Decision, GrantDocument, Outcome, Policy, PolicySet, Trust, path,
};
use crate::reject::{Code, Credential, Reject};
use crate::shared::{Memory, SharedData};
use crate::status::{Kind, Reply, Source, Status};
use crate::tally::Tally;
use crate::time::{Span, UnixTime};

/// What one worker remembers of each kind: sessions, tokens, identities. By number, and by all the bytes
/// that it takes: a session is two credentials and what was read out of them, some 5 KiB.
const CACHE_ENTRIES: usize = 8192;
const CACHE_BYTES: usize = 24 * 1024 * 1024;

/// Time between two looks at the age of keys and policies for the metrics.
const OBSERVATION: Span = Span::from_secs(1);

/// What one slice of work that takes long may spend, see [`Pace`](crate::pace::Pace): about half a millisecond.
const SLICE: u64 = 500;

/// Parked requests that are decided at one event or tick. Each may cost two signatures, and a worker that
/// verifies the forged ones of a whole waiting room serves nobody else.
const DECISIONS_AT_ONCE: usize = 32;

/// One worker's state of one filter instance.
pub struct Gate {
    limits: Limits,
    verifier: Rc<dyn SignatureVerifier>,
    tokens: Realm,
    identities: Realm,
    /// Which mesh peers are believed, if any is looked at.
    peers: Option<peer::Settings>,
    sessions: Cache<Session>,
    /// By the names of their sources, in the order of the configuration.
    policies: Vec<(Arc<str>, Feed<Policy>)>,
    /// Those that are here, to decide together.
    policy: PolicySet,
    /// What permits for a while what they say nothing about.
    grants: Option<Grants>,
    /// Policies that are no longer in use, to be freed,
    retired: Vec<Rc<Policy>>,
    /// and one that is being freed.
    releasing: Option<Task<()>>,
    /// What the mesh lets through at all.
    intentions: Vec<Layer>,
    /// What takes roles away from some.
    narrowing: Option<Narrowing>,
    trust: Rc<Trust>,
    shared: Rc<dyn SharedData>,
    /// What was announced when the feeds were last looked after.
    heard: Option<u64>,
    /// Effects of what was loaded while a request was decided; they wait for the next tick.
    outbox: Vec<Effect>,
    /// Something was loaded that requests may have waited for.
    stirred: bool,
    /// What [`Self::confirmed`] was when the feeds were last looked after.
    seen: i64,
    observed_at: UnixTime,
    ways: Ways,
    forward_token: bool,
    identity_headers: IdentityHeaders,
    filter_state: FilterState,
    waiting: Waiting,
    mode: Mode,
    status_path: Option<String>,
    /// The worker's random number.
    worker: u64,
    parked: VecDeque<Parked>,
    tally: Tally,
    audit: Option<Audited>,
}

/// How decisions are recorded. Gates that follow each other in one worker share the trail.
struct Audited {
    trail: Rc<RefCell<Trail>>,
    /// The claims of access tokens that are recorded.
    claims: Rc<[String]>,
    /// The policies that decide now, as records show them.
    policies: Rc<Fragment>,
}

/// What becomes of a request.
// In wasm pointers are small, and so is the variant.
#[cfg_attr(
    target_pointer_width = "64",
    expect(
        clippy::large_enum_variant,
        reason = "most are permits; a box would be an allocation each"
    )
)]
#[derive(Debug)]
pub enum Verdict {
    /// It may go on, with the header edits of the permit.
    Permit(Permit),
    /// It is answered here.
    Reject(Box<Rejection>),
    /// It would be answered here if the mode were to enforce; so it goes on, with the header edits of the
    /// pass.
    Pass(Box<Pass>),
    /// It asks the filter how it is, and is answered here; nothing was decided.
    Status(Box<Reply>),
    /// It has to wait; an [`Effect::Decide`] follows, by its deadline at the latest.
    Wait,
}

/// What the host has to do.
#[derive(Debug)]
pub enum Effect {
    /// Make a callout and hand its answer to [`Gate::answered`].
    Fetch(Fetch),
    /// Carry out the verdict on a parked request: a permit or a reject.
    Decide(StreamId, Verdict),
    /// Write a line to the log.
    Log(Severity, String),
    /// Make a callout for the audit trail and hand the status of its answer to [`Gate::taken`].
    Post(Post),
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
    peer: Option<Vec<u8>>,
    arrived: UnixTime,
    deadline: UnixTime,
    decision_id: DecisionId,
    lacks: Lack,
    /// Something has arrived since it was last tried.
    due: bool,
}

/// When a request came, and when it is judged.
#[derive(Clone, Copy)]
struct Times {
    arrived: UnixTime,
    now: UnixTime,
}

/// Why a request cannot be permitted now.
enum Halt {
    Refuse(Box<Refusal>),
    Missing(Box<Missing>),
}

/// Why a request is not permitted, and who sent it, so far as that was verified.
struct Refusal {
    reject: Reject,
    known: Known,
    /// When trying again makes sense.
    retry_after: Option<Span>,
}

/// Something has not arrived yet.
struct Missing {
    /// If it never does.
    refusal: Refusal,
    /// When it can be there at the earliest.
    retry_at: UnixTime,
    lacks: Lack,
    /// The answer when it was looked for before; the likely one now, for whoever does not wait.
    formerly: Option<Reject>,
}

/// What a request waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// Keys or policy that are not here.
    Document,
    /// A key that is not in a set that is here.
    Key,
}

impl Parked {
    /// The request once more. Its headers are borrowed before.
    fn arrival<'a>(&'a self, headers: &'a [(&'a [u8], &'a [u8])], now: UnixTime) -> Arrival<'a> {
        let Self { stream, peer, decision_id, .. } = self;
        let peer = peer.as_deref();
        Arrival { stream: *stream, headers, peer, now, decision_id: *decision_id }
    }
}

impl Refusal {
    fn of(reject: Reject, session: &Rc<Session>) -> Self {
        let known = Known { session: Some(Rc::clone(session)), ..Known::default() };
        Self { reject, known, retry_after: None }
    }
}

impl Missing {
    fn new(reject: Reject, retry_at: UnixTime, lacks: Lack) -> Self {
        Self { refusal: reject.into(), retry_at, lacks, formerly: None }
    }

    /// If nobody waits for it any longer.
    fn refused(self, now: UnixTime) -> Refusal {
        Refusal { retry_after: Some(self.retry_at.since(now)), ..self.refusal }
    }
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self { reject, known: Known::default(), retry_after: None }
    }
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(Box::new(refusal))
    }
}

impl From<Reject> for Halt {
    fn from(reject: Reject) -> Self {
        Refusal::from(reject).into()
    }
}

impl From<Missing> for Halt {
    fn from(missing: Missing) -> Self {
        Self::Missing(Box::new(missing))
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
        let Policies { sources, intentions, trust, grants } = configuration.policy;
        let salt = format!("policy {}", trust.id());
        let read = |source| match source {
            PolicySource::Inline(policy) => Feed::fixed(*policy),
            PolicySource::Remote(endpoint) => {
                Feed::remote(endpoint, trust.document_bytes(&limits), &salt, &site)
            }
        };
        let policies: Vec<_> =
            sources.into_iter().map(|(name, source)| (name.into(), read(source))).collect();
        let intentions: Vec<_> =
            intentions.into_iter().map(|source| Layer::new(source, &site)).collect();
        let policy = policy_set(&policies);
        let mode = configuration.mode;
        let audit = configuration.audit.map(|settings| {
            let trail = Trail::new(settings, mode.name(), worker, Rc::clone(&shared));
            let claims = trail.claims();
            Audited {
                trail: Rc::new(RefCell::new(trail)),
                claims,
                policies: revisions(&policy, &intentions),
            }
        });
        Ok(Self {
            grants: grants.map(|source| Grants::new(source, &policy, &site)),
            verifier: Rc::from(verifier),
            intentions,
            narrowing: configuration.narrow.map(|narrow| Narrowing::new(narrow, &site)),
            tokens: Realm::new(Credential::Token, token, issuers, &site),
            identities: Realm::new(Credential::Identity, identity, airflow_issuers, &site),
            peers: configuration.peer,
            sessions: Cache::new(CACHE_ENTRIES, CACHE_BYTES),
            policy,
            policies,
            retired: Vec::new(),
            releasing: None,
            trust: Rc::new(trust),
            shared,
            heard: None,
            outbox: Vec::new(),
            stirred: false,
            seen: 0,
            observed_at: UnixTime::default(),
            ways: configuration.ways,
            // What only watches must not take away what the upstream lives on today.
            forward_token: configuration.forward_token || configuration.mode == Mode::Shadow,
            identity_headers: configuration.identity_headers,
            filter_state: configuration.filter_state,
            waiting: configuration.waiting,
            mode: configuration.mode,
            status_path: configuration.status_path,
            worker,
            parked: VecDeque::new(),
            tally: Tally::default(),
            audit,
            limits,
        })
    }

    /// A request arrived.
    pub fn request(&mut self, arrival: &Arrival<'_>) -> Verdict {
        if self.heard != Some(self.shared.announced()) {
            self.sync(arrival.now);
        }
        if let Some(reply) = self.status_reply(arrival) {
            return Verdict::Status(Box::new(reply));
        }
        let times = Times { arrived: arrival.now, now: arrival.now };
        let verdict = match self.authorize(arrival, times) {
            Ok(permit) => Verdict::Permit(permit),
            Err(Halt::Refuse(refusal)) => self.refuse(arrival, *refusal),
            Err(Halt::Missing(missing)) => self.wait(arrival, *missing),
        };
        self.tally.verdict(&verdict);
        if let Some(Audited { trail, policies, .. }) = &self.audit {
            trail.borrow_mut().arrived(arrival, &verdict, policies, &self.limits);
        }
        verdict
    }

    /// Whether it looks at [`Arrival::peer`]: if not, nobody has to ask for it.
    pub fn wants_peer(&self) -> bool {
        self.peers.is_some()
    }

    /// What of a decision Envoy is told.
    pub fn filter_state(&self) -> FilterState {
        self.filter_state
    }

    /// Whether decisions are carried out.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How the gate and its sources are.
    pub fn status(&self, now: UnixTime) -> Status {
        let mut sources = Vec::new();
        for (name, feed) in &self.policies {
            let policy = feed.current();
            sources.push(Source {
                name: name.to_string(),
                kind: Kind::Policy,
                revision: policy.and_then(|policy| policy.revision()),
                count: policy.map_or(0, |policy| policy.rule_count()),
                ..feed.status(now)
            });
        }
        sources.extend(self.intentions.iter().map(|layer| layer.status(now)));
        for issuer in self.tokens.issuers.iter().chain(&self.identities.issuers) {
            sources.push(Source {
                name: issuer.rules.name.clone(),
                kind: Kind::Keys,
                count: issuer.keys.current().map_or(0, |keys| keys.len()),
                ..issuer.keys.status(now)
            });
        }
        sources.extend(self.grants.iter().map(|grants| grants.status(now)));
        sources.extend(self.narrowing.iter().flat_map(|narrowing| narrowing.status(now)));
        let audit = self.audit.as_ref().map(|audited| audited.trail.borrow().status(now));
        let signatures_by_host = self.verifier.by_host().to_vec();
        Status { worker: self.worker, mode: self.mode, signatures_by_host, sources, audit }
    }

    /// Whether a large document is being loaded, or one that was replaced is being freed: then
    /// [`Self::work`] goes on with it. So does each [`Self::tick`], but there is no reason to wait for that.
    pub fn is_at_work(&self) -> bool {
        let policies = self.policies.iter().any(|(_, feed)| feed.is_loading());
        let mut issuers = self.tokens.issuers.iter().chain(&self.identities.issuers);
        let mut services = self.narrowing.iter().flat_map(|narrowing| &narrowing.services);
        policies
            || self.releasing.is_some()
            || self.retired.iter().any(is_unused)
            || self.grants.as_ref().is_some_and(|grants| grants.feed.is_loading())
            || self.intentions.iter().any(|layer| layer.feed.is_loading())
            || issuers.any(|issuer| issuer.keys.is_loading())
            || services.any(|service| service.feed.is_loading())
    }

    /// Goes on for about half a millisecond with what takes long. Requests are decided in between, by what
    /// was in use before.
    pub fn work(&mut self, now: UnixTime) -> Vec<Effect> {
        let mut effects = std::mem::take(&mut self.outbox);
        // One may wait to be freed while the next is loaded. Documents that change faster than they are loaded and
        // freed would fill the memory otherwise.
        let unused = self.retired.iter().filter(|policy| is_unused(policy)).count();
        if unused.saturating_add(self.releasing.is_some().into()) > 1 {
            self.release();
            return effects;
        }
        let mut ids = self.feed_ids();
        if let Some((id, answered)) = ids.find_map(|id| Some((id, self.feed_mut(id).on_its_way()?)))
        {
            if let Some((name, outcome)) = self.feed_event(id, Event::GoOn, now) {
                if answered {
                    effects.extend(outcome_count(&name, &outcome));
                }
                self.taken_in(id, &name, outcome, now, &mut effects);
            }
            return effects;
        }
        self.release();
        effects
    }

    /// Goes on freeing what is not used any more.
    fn release(&mut self) {
        let releasing = self.releasing.take().or_else(|| {
            let unused = self.retired.iter().position(is_unused)?;
            let policy = Rc::into_inner(self.retired.swap_remove(unused))?;
            Some(Task::new(|pace| async move { policy.release(&pace).await }))
        });
        self.releasing = releasing.and_then(|task| task.go_on(SLICE).err());
    }

    /// Time has passed: what is due now.
    pub fn tick(&mut self, now: UnixTime) -> Vec<Effect> {
        self.sync(now);
        let mut effects = self.work(now);
        for id in self.feed_ids() {
            effects.extend(self.due(id, now));
        }
        if now.since(self.observed_at) >= OBSERVATION || now < self.observed_at {
            self.observed_at = now;
            self.observe(now, &mut effects);
        }
        if std::mem::take(&mut self.stirred) {
            self.reconsider();
        }
        effects.extend(self.settle(now));
        if let Some(audited) = &self.audit {
            effects.extend(audited.trail.borrow_mut().tick(now).into_iter().filter_map(effect));
        }
        effects
    }

    /// The answer to an [`Effect::Post`] arrived: its status, or `None` if it is certain that there will
    /// be none.
    pub fn taken(&mut self, attempt: Attempt, status: Option<u16>, now: UnixTime) -> Vec<Effect> {
        let Some(audited) = &self.audit else { return Vec::new() };
        let steps = audited.trail.borrow_mut().answered(attempt, status, now);
        steps.into_iter().filter_map(effect).collect()
    }

    /// The audit trail, if decisions are recorded.
    pub fn trail(&self) -> Option<Rc<RefCell<Trail>>> {
        self.audit.as_ref().map(|audited| Rc::clone(&audited.trail))
    }

    /// Goes on for a gate of the same worker whose trail has ended: what was under way there is recorded
    /// here.
    pub fn follow(&mut self, former: &mut Self) {
        let (Some(own), Some(former)) = (&self.audit, &mut former.audit) else { return };
        own.trail.borrow_mut().follow(&mut former.trail.borrow_mut());
        former.trail = Rc::clone(&own.trail);
    }

    /// The answer to a callout arrived, or it is certain that there will be none.
    pub fn answered(&mut self, id: FeedId, answer: Answer, now: UnixTime) -> Vec<Effect> {
        let Some((name, outcome)) = self.feed_event(id, Event::Answered(answer), now) else {
            return Vec::new();
        };
        let mut effects = std::mem::take(&mut self.outbox);
        effects.extend(outcome_count(&name, &outcome));
        self.taken_in(id, &name, outcome, now, &mut effects);
        effects
    }

    /// A feed came to something.
    fn taken_in(
        &mut self,
        id: FeedId,
        name: &str,
        outcome: FeedOutcome,
        now: UnixTime,
        effects: &mut Vec<Effect>,
    ) {
        let settled = matches!(outcome, FeedOutcome::Updated { .. } | FeedOutcome::Unchanged);
        self.tell(id, name, outcome, effects);
        self.load_grants(now, effects);
        // The next question of a conversation, before what may take long.
        effects.extend(self.due(id, now));
        if settled {
            self.seen = self.confirmed();
            self.reconsider();
            effects.extend(self.settle(now));
        }
    }

    /// Loads what other workers published since the last look.
    fn sync(&mut self, now: UnixTime) {
        // First what was announced, then what was written: a later announcement is heard again.
        self.heard = Some(self.shared.announced());
        let mut effects = std::mem::take(&mut self.outbox);
        for id in self.feed_ids() {
            if let Some((name, outcome)) = self.feed_event(id, Event::Sync, now) {
                self.tell(id, &name, outcome, &mut effects);
            }
        }
        self.load_grants(now, &mut effects);
        self.outbox = effects;
        // Also a document that another worker found unchanged may be what requests wait for.
        let confirmed = self.confirmed();
        self.stirred |= confirmed != self.seen;
        self.seen = confirmed;
    }

    /// Takes grants into effect that are new, or that new policies judge otherwise. Before all policies are
    /// here nothing is decided, and good grants would be told to be bad ones.
    fn load_grants(&mut self, now: UnixTime, effects: &mut Vec<Effect>) {
        let Self { grants, policies, policy, limits, verifier, .. } = self;
        if let Some(grants) = grants
            && policies.iter().all(|(_, feed)| feed.current().is_some())
        {
            grants.load(policy, now, limits, verifier.as_ref(), effects);
        }
    }

    /// Differs from what it was when any document was replaced or confirmed that requests wait for.
    fn confirmed(&self) -> i64 {
        let policies = self.policies.iter().map(|(_, feed)| feed.as_of());
        let policies = policies.chain(self.intentions.iter().map(|layer| layer.feed.as_of()));
        let issuers = self.tokens.issuers.iter().chain(&self.identities.issuers);
        let all = policies.chain(issuers.map(|issuer| issuer.keys.as_of()));
        all.fold(0, |sum, as_of| sum.wrapping_mul(31).wrapping_add(as_of.as_millis()))
    }

    /// The age of each document, how old it may be, and the breaker of its endpoint, from whoever fetches it.
    fn observe(&self, now: UnixTime, effects: &mut Vec<Effect>) {
        let observed = self.policies.iter().map(|(_, feed)| ("policy", feed.observe(now)));
        let issuers = self.tokens.issuers.iter().chain(&self.identities.issuers);
        let observed = observed.chain(issuers.map(|issuer| ("keys", issuer.keys.observe(now))));
        let grants = self.grants.iter().map(|grants| ("policy", grants.feed.observe(now)));
        let observed = observed.chain(grants);
        let layers = self.intentions.iter().map(|layer| ("policy", layer.feed.observe(now)));
        let services = self.narrowing.iter().flat_map(|narrowing| &narrowing.services);
        let services = services.map(|service| ("policy", service.feed.observe(now)));
        let observed = observed.chain(layers).chain(services);
        for (what, observation) in observed {
            let Some(Observation { name, age, max_age, breaker }) = observation else { continue };
            effects.push(Effect::Gauge(format!("breaker.{name}"), breaker as u64));
            let spans = [("age", age), ("max_age", Some(max_age))];
            for (which, span) in spans.into_iter().filter_map(|(which, span)| Some((which, span?)))
            {
                let seconds = u64::try_from(span.as_millis()).unwrap_or_default() / 1000;
                effects.push(Effect::Gauge(format!("{what}.{name}.{which}"), seconds));
            }
        }
        effects.extend(self.grants.as_ref().and_then(|grants| grants.observe(now)));
    }

    fn due(&mut self, id: FeedId, now: UnixTime) -> Option<Effect> {
        let due = match self.feed_mut(id) {
            AnyFeed::Policy(feed) => feed.due(id, now),
            AnyFeed::Grants(feed) => feed.due(id, now),
            AnyFeed::Intentions(layer) => layer.feed.due(id, now),
            AnyFeed::Keys(feed) => feed.due(id, now),
            AnyFeed::Catalog(_, feed) => feed.due(id, now),
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
        let Self { limits, trust, policies, .. } = self;
        let limits = *limits;
        if let Some((_, feed)) = policies.get_mut(id.0) {
            let trust = Rc::clone(trust);
            let read: Reader<Policy> = Rc::new(move |body: Body, last: String, pace: Pace| {
                let trust = Rc::clone(&trust);
                Box::pin(async move {
                    let last = Accepted::from_text(&last);
                    let admitted = trust.load(&body, last.as_ref(), &limits, &pace);
                    let Admitted { policy, accepted, .. } = admitted.await?;
                    let mark = accepted.map(|accepted| accepted.to_string()).unwrap_or_default();
                    Ok(Read { document: policy, notes: Vec::new(), mark })
                })
            });
            let outcome = event.put_to(feed, now, &read);
            self.retired.extend(feed.take_retired());
            return outcome;
        }
        match self.feed_mut(id) {
            AnyFeed::Keys(feed) => {
                event.put_to_small(feed, now, move |body, _| read_keys(body, &limits))
            }
            AnyFeed::Grants(feed) => {
                let read = move |body: &[u8], _: &str| {
                    let document = GrantDocument::parse(body, &limits);
                    let document = document.map_err(|faults| faults.to_string())?;
                    Ok(Read { document, notes: Vec::new(), mark: String::new() })
                };
                event.put_to_small(feed, now, read)
            }
            AnyFeed::Intentions(layer) => {
                let read = layer.reader(limits);
                event.put_to_small(&mut layer.feed, now, read)
            }
            AnyFeed::Catalog(meta, feed) => {
                let meta = meta.to_owned();
                event.put_to_small(feed, now, move |body, _| {
                    let document = ServiceRoles::read(body, &meta, &limits)?;
                    Ok(Read { document, notes: Vec::new(), mark: String::new() })
                })
            }
            AnyFeed::Policy(_) | AnyFeed::None => None,
        }
    }

    /// What the operator learns of an outcome, and what it means for what is remembered.
    fn tell(&mut self, id: FeedId, name: &str, outcome: FeedOutcome, effects: &mut Vec<Effect>) {
        let what = if self.is_of_keys(id) {
            "keys"
        } else if id.0 >= self.end_of_intentions() {
            "catalog"
        } else {
            "policy"
        };
        let (severity, text) = match outcome {
            FeedOutcome::Unchanged
            | FeedOutcome::More
            | FeedOutcome::Loading
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
                AnyFeed::Grants(feed) => feed.leave(now),
                AnyFeed::Intentions(layer) => layer.feed.leave(now),
                AnyFeed::Keys(feed) => feed.leave(now),
                AnyFeed::Catalog(_, feed) => feed.leave(now),
                AnyFeed::None => {}
            }
        }
    }

    /// A stream has ended, decided or not.
    pub fn gone(&mut self, stream: StreamId) {
        if !self.parked.is_empty() {
            let before = self.parked.len();
            self.parked.retain(|parked| parked.stream != stream);
            let abandoned = before.saturating_sub(self.parked.len()) as u64;
            self.tally.abandoned = self.tally.abandoned.saturating_add(abandoned);
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
        self.tally.take()
    }

    /// Signatures verified since [`Self::take_tally`] was last called.
    pub fn verifications(&self) -> u64 {
        self.tally.verifications()
    }

    /// What this worker has now of that which is of interest as the sum of all workers: the gauges' names,
    /// and its share in them.
    pub fn levels(&self, now: UnixTime) -> [(&'static str, usize); 7] {
        let both = [&self.tokens, &self.identities];
        let [tokens, identities] = both.map(|realm| realm.verified.len());
        let [(forged, unknown), (more_forged, more_unknown)] = both.map(Realm::refusals);
        [
            ("requests.waiting", self.waiting()),
            ("workers.unready", usize::from(!self.is_ready(now))),
            ("remembered.sessions", self.sessions.len()),
            ("remembered.tokens", tokens),
            ("remembered.identities", identities),
            ("remembered.forged", forged.saturating_add(more_forged)),
            ("remembered.unknown_keys", unknown.saturating_add(more_unknown)),
        ]
    }

    /// Whether all keys and policies can be decided by.
    fn is_ready(&self, now: UnixTime) -> bool {
        let mut issuers = self.tokens.issuers.iter().chain(&self.identities.issuers);
        self.policies.iter().all(|(_, feed)| feed.usable(now).is_some())
            && self.intentions.iter().all(|layer| layer.feed.usable(now).is_some())
            && issuers.all(|issuer| issuer.keys.usable(now).is_some())
    }

    /// What a new document means for what is remembered; returns a few words for the log.
    fn updated(&mut self, id: FeedId, name: &str, effects: &mut Vec<Effect>) -> String {
        let policies = self.policies.len();
        let tokens = self.tokens.issuers.len();
        if let Some((_, feed)) = self.policies.get(id.0) {
            let Some(policy) = feed.current() else { return String::new() };
            self.policy = policy_set(&self.policies);
            if let Some(audited) = &mut self.audit {
                audited.policies = revisions(&self.policy, &self.intentions);
            }
            if let Some(grants) = &mut self.grants {
                grants.renew_under(&self.policy);
            }
            let rules = policy.rule_count();
            let revision = policy.revision();
            effects.push(Effect::Gauge(format!("policy.{name}.rules"), rules as u64));
            let Some(revision) = revision else { return format!("loaded: {rules} rules") };
            effects.push(Effect::Gauge(format!("policy.{name}.revision"), revision));
            return format!("loaded: revision {revision}, {rules} rules");
        }
        if let AnyFeed::Catalog(_, feed) = self.feed_mut(id) {
            let count = feed.current().map_or(0, |roles| roles.roles().len());
            self.forget_narrowed();
            return format!("loaded: {count} roles");
        }
        if let AnyFeed::Intentions(layer) = self.feed_mut(id) {
            let Some(intentions) = layer.feed.current() else { return String::new() };
            let (count, index) = (intentions.len(), intentions.index());
            effects.push(Effect::Gauge(format!("policy.{name}.rules"), count as u64));
            effects.push(Effect::Gauge(format!("policy.{name}.revision"), index));
            if let Some(audited) = &mut self.audit {
                audited.policies = revisions(&self.policy, &self.intentions);
            }
            return format!("loaded: index {index}, {count} intentions");
        }
        if !self.is_of_keys(id) {
            let Some(grants) = &mut self.grants else { return String::new() };
            grants.renew();
            let count = grants.feed.current().map_or(0, |document| document.messages().len());
            return format!("loaded: {count} grants");
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

    /// What callers of narrowed services were found to be is found out anew.
    fn forget_narrowed(&mut self) {
        if let Some(narrowing) = &self.narrowing {
            self.sessions.retain(|session| !narrowing.is_about(&session.caller));
        }
    }

    /// The policies first, then the issuers of tokens, then those of identities, then the grants, then the
    /// intentions, then the services of the catalog.
    fn feed_ids(&self) -> impl Iterator<Item = FeedId> + use<> {
        let services = self.narrowing.as_ref().map_or(0, |narrowing| narrowing.services.len());
        (0..self.end_of_intentions().saturating_add(services)).map(FeedId)
    }

    fn end_of_intentions(&self) -> usize {
        self.end_of_grants().saturating_add(self.intentions.len())
    }

    fn end_of_grants(&self) -> usize {
        self.end_of_keys().saturating_add(usize::from(self.grants.is_some()))
    }

    fn is_of_keys(&self, id: FeedId) -> bool {
        (self.policies.len()..self.end_of_keys()).contains(&id.0)
    }

    fn end_of_keys(&self) -> usize {
        let issuers = self.tokens.issuers.len().saturating_add(self.identities.issuers.len());
        self.policies.len().saturating_add(issuers)
    }

    fn feed_mut(&mut self, id: FeedId) -> AnyFeed<'_> {
        if let Some(index) = id.0.checked_sub(self.end_of_grants()) {
            if let Some(index) = index.checked_sub(self.intentions.len()) {
                let Some(Narrowing { meta, services }) = &mut self.narrowing else {
                    return AnyFeed::None;
                };
                let service = services.get_mut(index);
                return service.map_or(AnyFeed::None, |one| AnyFeed::Catalog(meta, &mut one.feed));
            }
            return self.intentions.get_mut(index).map_or(AnyFeed::None, AnyFeed::Intentions);
        }
        if id.0 >= self.end_of_keys() {
            let grants = self.grants.as_mut();
            return grants.map_or(AnyFeed::None, |grants| AnyFeed::Grants(&mut grants.feed));
        }
        let Some(index) = id.0.checked_sub(self.policies.len()) else {
            return self
                .policies
                .get_mut(id.0)
                .map_or(AnyFeed::None, |(_, feed)| AnyFeed::Policy(feed));
        };
        let mut issuers = self.tokens.issuers.iter_mut().chain(&mut self.identities.issuers);
        issuers.nth(index).map_or(AnyFeed::None, |issuer| AnyFeed::Keys(&mut issuer.keys))
    }

    /// The answer to a request for the status. Whatever cannot be read without doubt is no such request.
    fn status_reply(&self, arrival: &Arrival<'_>) -> Option<Reply> {
        let path = self.status_path.as_ref()?.as_bytes();
        let asks = |target: &[u8]| match target.strip_prefix(path) {
            Some(rest) => matches!(rest.first(), None | Some(b'?')),
            None => false,
        };
        if !arrival.headers.iter().any(|(name, value)| *name == b":path" && asks(value)) {
            return None;
        }
        let request = Request::read(arrival.headers).ok()?;
        Some(self.status(arrival.now).reply(request.method))
    }

    /// What becomes of a request that cannot be decided yet.
    fn wait(&mut self, arrival: &Arrival<'_>, mut missing: Missing) -> Verdict {
        let retry_after = missing.retry_at.since(arrival.now);
        if self.mode == Mode::Shadow {
            let refusal = match missing.formerly.take() {
                Some(reject) => reject.into(),
                None => missing.refused(arrival.now),
            };
            return self.refuse(arrival, refusal);
        }
        // To wait for what cannot come in time helps nobody.
        let may_wait = self.waiting.requests > 0
            && self.waiting.time > Span::ZERO
            && retry_after <= self.waiting.time;
        if !may_wait {
            return self.refuse(arrival, missing.refused(arrival.now));
        }
        if let Some(full) = self.no_room(missing.lacks) {
            return self.refuse(arrival, full);
        }
        self.park(arrival, missing.lacks);
        Verdict::Wait
    }

    /// Why not one more may wait. Those who name unknown keys get half of the room, so that inventing
    /// keys keeps nobody out who waits for what everybody needs.
    fn no_room(&self, lacks: Lack) -> Option<Refusal> {
        let (all, most) = (self.parked.len(), self.waiting.requests);
        let for_keys = || self.parked.iter().filter(|parked| parked.lacks == Lack::Key).count();
        let detail = if all >= most {
            format!("{all} requests wait already")
        } else if lacks == Lack::Key && for_keys() >= most.div_ceil(2) {
            "half of the requests that may wait are waiting for unknown keys already".to_owned()
        } else {
            return None;
        };
        let reject = Reject::new(Code::WaitingRoomFull, detail);
        Some(Refusal { retry_after: Some(Span::from_secs(1)), ..reject.into() })
    }

    fn park(&mut self, arrival: &Arrival<'_>, lacks: Lack) {
        self.parked.push_back(Parked {
            stream: arrival.stream,
            headers: arrival
                .headers
                .iter()
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
            peer: arrival.peer.map(<[u8]>::to_vec),
            arrived: arrival.now,
            deadline: arrival.now.plus(self.waiting.time),
            decision_id: arrival.decision_id,
            lacks,
            due: false,
        });
    }

    /// Something new has arrived, or what is here was confirmed: parked requests may be decided by it.
    fn reconsider(&mut self) {
        for parked in &mut self.parked {
            parked.due = true;
        }
    }

    /// Decides parked requests in the order in which they came: those whose time is over, and those for
    /// which something has arrived, as many as at once is allowed. The others are due at the next ticks.
    fn settle(&mut self, now: UnixTime) -> Vec<Effect> {
        let mut effects = Vec::new();
        // A deadline farther off than the waiting time was set before the clock was set back.
        let longest = self.waiting.time;
        let is_over =
            |parked: &Parked| parked.deadline <= now || parked.deadline.since(now) > longest;
        if !self.parked.iter().any(|parked| parked.due || is_over(parked)) {
            return effects;
        }
        let mut budget = DECISIONS_AT_ONCE;
        for mut parked in std::mem::take(&mut self.parked) {
            let over = is_over(&parked);
            // One for which nothing has arrived costs no signature.
            let leave = if parked.due { budget == 0 } else { !over };
            if leave {
                self.parked.push_back(parked);
                continue;
            }
            budget = budget.saturating_sub(parked.due.into());
            parked.due = false;
            let outcome = match self.try_parked(&parked, now) {
                Err(Halt::Missing(missing)) if !over && missing.retry_at <= parked.deadline => {
                    match self.no_room(missing.lacks) {
                        None => {
                            parked.lacks = missing.lacks;
                            self.parked.push_back(parked);
                            continue;
                        }
                        Some(full) => Err(full.into()),
                    }
                }
                outcome => outcome,
            };
            effects.push(self.conclude(&parked, outcome, now));
        }
        effects
    }

    fn try_parked(&mut self, parked: &Parked, now: UnixTime) -> Result<Permit, Halt> {
        let headers = borrow(&parked.headers);
        let times = Times { arrived: parked.arrived, now };
        self.authorize(&parked.arrival(&headers, now), times)
    }

    fn conclude(
        &mut self,
        parked: &Parked,
        outcome: Result<Permit, Halt>,
        now: UnixTime,
    ) -> Effect {
        let headers = borrow(&parked.headers);
        let arrival = parked.arrival(&headers, now);
        let verdict = match outcome {
            Ok(permit) => Verdict::Permit(permit),
            Err(Halt::Refuse(refusal)) => self.refuse(&arrival, *refusal),
            Err(Halt::Missing(missing)) => self.refuse(&arrival, missing.refused(now)),
        };
        self.tally.verdict(&verdict);
        self.tally.waited.push(now.since(parked.arrived));
        if let Some(Audited { trail, policies, .. }) = &self.audit {
            trail.borrow_mut().decided(parked.stream, &verdict, policies);
        }
        Effect::Decide(parked.stream, verdict)
    }

    fn refuse(
        &self,
        arrival: &Arrival<'_>,
        Refusal { reject, known, retry_after }: Refusal,
    ) -> Verdict {
        let rejection = Rejection {
            reject,
            decision_id: arrival.decision_id,
            retry_after,
            grpc: Request::speaks_grpc(arrival.headers),
            // Who came with credentials for the proxy, or with none, is told by the proxy.
            by_proxy: self.ways == Ways::Proxy
                && !Request::has_explicit_credential(arrival.headers),
            known,
        };
        match self.mode {
            Mode::Enforce => Verdict::Reject(Box::new(rejection)),
            Mode::Shadow => Verdict::Pass(Box::new(Pass::new(rejection, arrival.headers))),
        }
    }

    fn authorize(&mut self, arrival: &Arrival<'_>, times: Times) -> Result<Permit, Halt> {
        let now = times.now;
        let &Arrival { headers, decision_id, .. } = arrival;
        let request = Request::read(headers)?;
        let look = Look {
            token: self.tokens.requirement,
            identity: self.identities.requirement,
            ways: &self.ways,
            limits: &self.limits,
        };
        let credentials = Credentials::find(&request, headers, look)?;
        let session = self.session(&request, &credentials, arrival, times)?;
        agree(&request, &session, self.identities.requirement)
            .map_err(|reject| Refusal::of(reject, &session))?;

        let policy = self.usable_policy(&session, now)?;
        let policy = self.grants.as_ref().and_then(|grants| grants.usable(now)).unwrap_or(policy);
        let standing = session.standing(policy);
        let decision =
            policy.decide(&session.caller, &standing, &request.call(), now, &self.limits);
        // The mesh would refuse first; what the policy knows about the call goes into the record.
        if let Err(reject) = self.admitted(&request, &session, headers) {
            let mut refusal = Refusal::of(reject, &session);
            refusal.known.destination = decision.destination;
            return Err(refusal.into());
        }
        match decision.outcome {
            Outcome::Permit { rule, grant } => Ok(Permit {
                decision_id,
                rule,
                grant,
                destination: decision.destination,
                remove: Removals::of(
                    &request,
                    &session,
                    [self.tokens.requirement, self.identities.requirement],
                    self.ways == Ways::Proxy,
                    self.forward_token,
                    self.identity_headers,
                ),
                said: request.addressed.plain,
                cookie: self.cookie_onward(&session, headers),
                target: match decision.path {
                    Some(Cow::Owned(_)) => path::sent_on(request.target),
                    _ => None,
                },
                authority: decision.authority,
                shadow: decision.shadow,
                identity_headers: self.identity_headers,
                session,
            }),
            Outcome::Refuse(reject) => {
                let Decision { destination, shadow, .. } = decision;
                let known = Known { session: Some(session), destination, shadow };
                Err(Refusal { reject, known, retry_after: None }.into())
            }
        }
    }

    /// Whether the intentions of the mesh let the call through.
    fn admitted(
        &self,
        request: &Request<'_>,
        session: &Session,
        headers: &[(&[u8], &[u8])],
    ) -> Result<(), Reject> {
        if self.intentions.is_empty() {
            return Ok(());
        }
        let issuer = session.token_issuer.and_then(|index| self.tokens.issuers.get(index));
        let caller = intentions::Caller {
            peer: session.peer.as_ref(),
            token: issuer
                .map(|issuer| Token { issuer: &issuer.rules.name, claims: &session.caller.claims }),
        };
        let mut layers = self.intentions.iter();
        layers.try_for_each(|layer| layer.judge(caller, request, headers, &self.limits))
    }

    /// The policy. With one source missing nobody knows what it would deny, so all are needed.
    fn usable_policy(&self, session: &Rc<Session>, now: UnixTime) -> Result<&PolicySet, Halt> {
        let mut feeds = self.policies.iter();
        let policy = feeds.find(|(_, feed)| feed.usable(now).is_none());
        let policy =
            policy.map(|(name, feed)| (name, feed.current().is_some(), feed.retry_at(now)));
        let missing = policy.or_else(|| {
            let mut layers = self.intentions.iter();
            let layer = layers.find(|layer| layer.feed.usable(now).is_none())?;
            Some((&layer.name, layer.feed.current().is_some(), layer.feed.retry_at(now)))
        });
        let Some((name, is_old, retry_at)) = missing else { return Ok(&self.policy) };
        let detail = match is_old {
            false => format!("policy `{name}` was not fetched yet"),
            true => format!("policy `{name}` is too old and could not be fetched again"),
        };
        let refusal = Refusal::of(Reject::new(Code::PolicyUnavailable, detail), session);
        Err(Missing { refusal, retry_at, lacks: Lack::Document, formerly: None }.into())
    }

    /// What becomes of the cookies. An upstream that reads the access token from one must not get one that
    /// was not verified, so it goes on only as the very token that was, and only if tokens do.
    fn cookie_onward(&self, session: &Session, headers: &[(&[u8], &[u8])]) -> Onward {
        let Ways::Cookie(name) = &self.ways else { return Onward::AsItCame };
        // What only watches takes nothing away.
        if self.mode == Mode::Shadow {
            return Onward::AsItCame;
        }
        // One that cannot be read was refused before.
        let cookies = Cookies::read(headers, name).ok();
        let is_verified = cookies.is_some_and(|cookies| cookies.token == session.token.as_deref());
        if is_verified && self.forward_token {
            return Onward::AsItCame;
        }
        match Cookies::without(headers, name) {
            None => Onward::AsItCame,
            Some(left) if left.is_empty() => Onward::Removed,
            Some(left) => Onward::Only(left),
        }
    }

    /// The caller, by both credentials and by the peer: a session is of the peer that it was opened with.
    fn session(
        &mut self,
        request: &Request<'_>,
        credentials: &Credentials<'_>,
        arrival: &Arrival<'_>,
        times: Times,
    ) -> Result<Rc<Session>, Halt> {
        let now = times.now;
        let Credentials { token, identity } = credentials;
        let (token, identity) = (token.as_deref(), identity.as_deref());
        let primary = identity.or(token);
        if self.narrowing.as_mut().is_some_and(|narrowing| narrowing.is_outdated(now)) {
            self.forget_narrowed();
        }
        let presented = match &self.peers {
            Some(peers) => peers.presented(arrival.peer, arrival.headers),
            None => Presented::default(),
        };
        if let Some(session) = primary.and_then(|primary| self.sessions.find(primary))
            && session.is_of(token, identity)
            && session.presented.is(&presented)
            && (session.valid_from..session.valid_until).contains(&now)
            && self.keys_usable(&session, now)
        {
            self.tally.session_hits = self.tally.session_hits.saturating_add(1);
            return Ok(session);
        }

        // Whom the mesh would not let in costs no signature.
        let peer = match &self.peers {
            Some(peers) => peers.verify(&presented, now)?,
            None => None,
        };
        let verifier = self.verifier.as_ref();
        let (limits, tally) = (&self.limits, &mut self.tally);
        let ways = &self.ways;
        let missing = |code, header: &str| {
            let also = match ways {
                Ways::Proxy => format!(", and `{PROXY_HEADER}` does not have it"),
                Ways::Cookie(name) if code == Code::TokenMissing => {
                    format!(", and there is no cookie `{name}`")
                }
                Ways::Headers | Ways::Cookie(_) => String::new(),
            };
            let marker = if request.marker {
                "; the Airflow connection is marked for credentials, so the plugin on Airflow's \
                 side is not active"
            } else {
                ""
            };
            let detail = format!("header `{header}` is missing{also}{marker}");
            Reject { unserved: request.marker, ..Reject::new(code, detail) }
        };
        let from_token = self.tokens.verify(token, limits, verifier, times, tally, &|| {
            missing(Code::TokenMissing, "authorization")
        })?;
        let from_identity =
            self.identities.verify(identity, limits, verifier, times, tally, &|| {
                missing(Code::IdentityMissing, IDENTITY_HEADER)
            })?;

        let session = Session::open(
            (&self.tokens, from_token.as_deref()),
            (&self.identities, from_identity.as_deref()),
            (&presented, peer),
            |caller| {
                if let Some(narrowing) = &self.narrowing {
                    narrowing.narrow(caller, now);
                }
            },
            self.audit.as_ref().map(|audited| &*audited.claims),
        )?;
        let session = Rc::new(session);
        if let Some(primary) = session.identity.as_ref().or(session.token.as_ref()) {
            let primary = Rc::clone(primary);
            self.sessions.insert(primary, weight::session(&session), Rc::clone(&session));
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
    /// There is time to go on loading.
    GoOn,
}

impl Event {
    fn put_to<T: 'static>(
        self,
        feed: &mut Feed<T>,
        now: UnixTime,
        read: &Reader<T>,
    ) -> Option<(String, FeedOutcome)> {
        let outcome = match self {
            Self::Answered(answer) => Some(feed.answered(answer, now, read)),
            Self::Sync => feed.sync(now, read),
            Self::GoOn => feed.go_on(SLICE, now),
        };
        Some((feed.name()?.to_owned(), outcome?))
    }

    /// The same for documents that are read and freed at once.
    fn put_to_small<T: 'static>(
        self,
        feed: &mut Feed<T>,
        now: UnixTime,
        read: impl Fn(&[u8], &str) -> Result<Read<T>, String> + 'static,
    ) -> Option<(String, FeedOutcome)> {
        let outcome = self.put_to(feed, now, &reader(read));
        drop(feed.take_retired());
        outcome
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
        FeedOutcome::Superseded | FeedOutcome::Loading => return None,
    };
    Some(Effect::Count(format!("callouts.{name}.{word}")))
}

fn is_unused(policy: &Rc<Policy>) -> bool {
    Rc::strong_count(policy) == 1
}

fn policy_set(policies: &[(Arc<str>, Feed<Policy>)]) -> PolicySet {
    let here = policies.iter();
    PolicySet::new(
        here.filter_map(|(name, feed)| Some((Arc::clone(name), Rc::clone(feed.current()?))))
            .collect(),
    )
}

/// The policies and intentions as audit records show them.
fn revisions(policies: &PolicySet, intentions: &[Layer]) -> Rc<Fragment> {
    let mut revisions: Vec<_> =
        policies.sources().map(|(name, policy)| (name, policy.revision())).collect();
    for layer in intentions {
        let Some(document) = layer.feed.current() else { continue };
        // Members are in the order of their names (RFC 8785 §3.2.3); there are too few for a sort.
        let place = revisions.partition_point(|(name, _)| **name < *layer.name);
        revisions.insert(place, (&layer.name, Some(document.index())));
    }
    Rc::new(Fragment::policies(revisions.into_iter()))
}

/// What the host has to do for the collector of audit records.
fn effect(step: Step) -> Option<Effect> {
    match step {
        Step::Post(post) => Some(Effect::Post(post)),
        Step::Tell(severity, line) => Some(Effect::Log(severity, line)),
        Step::Count(name) => Some(Effect::Count(name.to_owned())),
        // The trail kept these lines for the log.
        Step::Log(_) => None,
    }
}

enum AnyFeed<'a> {
    Policy(&'a mut Feed<Policy>),
    Grants(&'a mut Feed<GrantDocument>),
    Keys(&'a mut Feed<KeySet>),
    Intentions(&'a mut Layer),
    /// With the member of the metadata that is read.
    Catalog(&'a str, &'a mut Feed<ServiceRoles>),
    None,
}

impl AnyFeed<'_> {
    /// Of a document that is on its way: whether it is the answer to a fetch of this worker.
    fn on_its_way(&self) -> Option<bool> {
        let (loading, answered) = match self {
            Self::Policy(feed) => (feed.is_loading(), feed.has_answer()),
            Self::Grants(feed) => (feed.is_loading(), feed.has_answer()),
            Self::Keys(feed) => (feed.is_loading(), feed.has_answer()),
            Self::Intentions(layer) => (layer.feed.is_loading(), layer.feed.has_answer()),
            Self::Catalog(_, feed) => (feed.is_loading(), feed.has_answer()),
            Self::None => (false, false),
        };
        loading.then_some(answered)
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

#[cfg(test)]
mod tests;
