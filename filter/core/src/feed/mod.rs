//! A document that comes by HTTP callout and is fetched again and again: a key set or a policy.
//!
//! **One worker fetches, all use it.** A feed has a [`record`] in the data that the workers of one
//! Envoy process share. Whoever holds the lease in it is the leader: it fetches, validates and
//! publishes the bytes; the others load them when the version in the record changes. A leader that is
//! gone is replaced when its lease is over.
//!
//! **The last good document stays in use** until its `max_age` is over, whatever the endpoint answers,
//! and requests never wait for the refresh of one that is usable. An endpoint that fails is asked
//! less and less; after [`TOLERATED`] failures in a row its breaker is open.
//!
//! **A large document is loaded a slice at a time** ([`Feed::go_on`]), so that no request waits for it;
//! the former one stays in use until the new one is read. A small one is there at once. What cannot be
//! sliced is the copy of an answer out of the host; so for the first answer that is very large, memory is made ready
//! a slice at a time, and it is asked for once more.
//!
//! What it is not: it does not know what it carries; the reader is an argument.

mod endpoint;
mod intentions;
mod record;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use self::endpoint::discovered;
pub use self::endpoint::{Endpoint, Protocol, Questions, Secret, Uri};
use self::intentions::{Conversation, Next, Step};
use self::record::{LEASE, Place, Record, State};
use crate::hexadecimal;
use crate::limits::Limits;
use crate::pace::{Pace, Task, sha256};
pub use crate::retry::Breaker;
use crate::retry::{Jitter, TOLERATED, back_off};
use crate::shared::SharedData;
use crate::status::{Failure, Source};
use crate::time::{Span, UnixTime};

/// Between two questions to a server that waits for changes: it may have something new at any time,
/// and must not be asked as fast as it can answer.
const PAUSE: Span = Span::from_millis(100);

/// What is spent on a new document as soon as it is there.
const AT_ONCE: u64 = 1_000;

/// An answer of more bytes is not looked at in the callback that brings it: to copy it out of the host took its time.
const LARGE: usize = 256 * 1024;

/// An answer of so many bytes is taken over wherever there is memory for it; for a larger one, memory is made ready
/// before, see [`room`].
const AT_HAND: usize = 4 * 1024 * 1024;

/// Bytes of memory that are made ready at once, and what that costs.
const READY_AT_ONCE: usize = 64 * 1024;
const UNITS_PER_READY: usize = 50;

/// Bytes of the line with Consul's index before published intentions.
const MOST_INDEX: usize = "18446744073709551615\n".len();

/// Time after which the place of the keys is looked up again, if nothing fails before.
const REDISCOVERY: Span = Span::from_secs(3600);

/// A callout to be made.
#[derive(Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Which feed asks; comes back with the answer.
    pub feed: FeedId,
    /// The Envoy cluster.
    pub cluster: String,
    /// `:method`, `:path`, `:scheme`, `:authority` and what else to send.
    pub headers: Vec<(&'static str, String)>,
    /// Time after which to give up.
    pub timeout: Span,
    /// Answers with a longer body must not be read.
    pub max_body: usize,
    /// Memory for the body of the answer, made ready: to be freed when the body is read, and not before.
    pub room: Vec<u8>,
}

/// Without header values: one may be a credential.
impl fmt::Debug for Fetch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Fetch").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Names a feed of one gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedId(pub(crate) usize);

/// What a callout brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// No answer: refused, reset, timed out, or not even sent.
    None,
    /// An answer whose body is larger than [`Fetch::max_body`].
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// An answer.
    Http(Response),
}

/// An HTTP answer, as far as feeds look at it. Headers that are not there exactly once, in UTF-8, are
/// `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// `:status`; 0 if there was none that is a number.
    pub status: u16,
    /// `etag`.
    pub etag: Option<String>,
    /// `cache-control`.
    pub cache_control: Option<String>,
    /// `age`.
    pub age: Option<String>,
    /// `x-consul-index`.
    pub index: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// What an answer, or what another worker published, meant for the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is a new document; `notes` are things worth a warning, such as a skipped key.
    Updated {
        /// Lines for the log.
        notes: Vec<String>,
    },
    /// The document in use is confirmed.
    Unchanged,
    /// The answer only says where to ask.
    More,
    /// There is a document that is not read yet: [`Feed::go_on`] reads on.
    Loading,
    /// Another worker published a document in the meantime.
    Superseded,
    /// The endpoint could not be asked, or did not answer with a document.
    Failed {
        /// Why.
        reason: String,
        /// Whether it failed so the last time.
        repeated: bool,
    },
    /// It answered with a document that is unfit; the last good one stays.
    Unfit {
        /// Why.
        reason: String,
        /// Whether it was so the last time.
        repeated: bool,
    },
}

/// A document that was read.
#[derive(Debug)]
pub struct Read<T> {
    /// The document.
    pub document: T,
    /// Lines for the log.
    pub notes: Vec<String>,
    /// What the reader wants to be told when it reads the next one: one line, kept as long as the
    /// Envoy process lives.
    pub mark: String,
}

/// The bytes of a document.
pub type Body = Rc<Vec<u8>>;

/// A document that is being read.
pub type Reading<T> = Pin<Box<dyn Future<Output = Result<Read<T>, String>>>>;

/// Reads a document at a pace: its bytes, and the mark of the one before if it has to follow on it.
pub type Reader<T> = Rc<dyn Fn(Body, String, Pace) -> Reading<T>>;

/// A reader of documents that are never so large that it matters.
pub fn reader<T: 'static>(
    read: impl Fn(&[u8], &str) -> Result<Read<T>, String> + 'static,
) -> Reader<T> {
    Rc::new(move |body, mark, _| Box::pin(std::future::ready(read(&body, &mark))))
}

/// What metrics tell of a document and its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation<'f> {
    /// The name of its source or issuer.
    pub name: &'f str,
    /// Since when it was not confirmed, if there is one.
    pub age: Option<Span>,
    /// The age after which it is no longer used.
    pub max_age: Span,
    /// Whether the endpoint is asked.
    pub breaker: Breaker,
}

/// Where feeds work.
#[derive(Clone)]
pub struct Site {
    /// What the workers share.
    pub shared: Rc<dyn SharedData>,
    /// Names this worker among those that share it; not 0.
    pub worker: u64,
    /// Bounds of what is read.
    pub limits: Limits,
}

/// Keeps one document current.
pub struct Feed<T> {
    current: Option<Rc<T>>,
    /// What was in use before, or did not come into use.
    retired: Vec<Rc<T>>,
    remote: Option<Box<Remote>>,
    loading: Option<Loading<T>>,
}

/// A document on its way into use.
enum Loading<T> {
    /// Memory is made ready for it, and then it is asked for once more.
    Awaited(Task<Vec<u8>>),
    /// Another worker published it.
    Published(Published, Task<Option<Result<Read<T>, String>>>),
    /// This worker fetched it: it is read,
    Fetched(Box<Fetched>, Task<Looked<T>>),
    /// and put where the others find it.
    Publishing(Box<Fetched>, Box<Publication<T>>, Task<()>),
    /// The place of the one before is freed.
    Tidying(Task<()>),
}

/// What the record said when a published document was found.
struct Published {
    version: u64,
    digest: String,
    as_of: UnixTime,
}

/// How a document came.
struct Fetched {
    asked: Asked,
    /// Without its body.
    response: Response,
}

/// What a fetched document was found to be.
enum Looked<T> {
    /// The one in use.
    Same,
    /// Another one.
    New { digest: String, body: Body, read: Result<Read<T>, String> },
}

struct Publication<T> {
    digest: String,
    read: Read<T>,
}

/// Everything about a feed that fetches, but for what the document is.
struct Remote {
    endpoint: Endpoint,
    limits: Limits,
    max_body: usize,
    /// Bytes of the largest body that there was memory for.
    at_hand: Rc<Cell<usize>>,
    /// Memory for the next answer.
    room: Option<Vec<u8>>,
    worker: u64,
    record: Record,
    state: State,
    /// The published document that was read last, by version and digest,
    seen: (u64, String),
    /// and whether it is the one in use.
    holds: bool,
    /// The document in use is at least as new as this moment.
    as_of: UnixTime,
    /// The callout of this worker that is under way.
    asked: Option<Asked>,
    /// Another callout follows at once.
    more: bool,
    /// Consul's index of what was seen last; `None` asks for an answer at once.
    index: Option<u64>,
    /// Where the questions for intentions are.
    conversation: Conversation,
    /// Where the keys are, and when that was looked up.
    discovered: Option<(Uri, UnixTime)>,
    /// The last time that a fetch was asked for here.
    wanted: UnixTime,
    jitter: Jitter,
}

struct Asked {
    at: UnixTime,
    /// When the answer came; it may take longer to be read.
    answered: UnixTime,
    until: UnixTime,
    /// The version in the record then.
    version: u64,
    /// The server was asked to wait for changes.
    blocking: bool,
    /// Only the place of the document is asked for.
    discovery: bool,
    /// Only what differs from the document in use is asked for.
    conditional: bool,
    /// There is memory for an answer of any size that is allowed.
    prepared: bool,
}

/// What an answer is, before its body is read.
enum Received {
    Body(Response),
    Unchanged,
    More,
    /// The endpoint works, and has no document.
    Absent(String),
    Failed(String),
    Unfit(String),
}

impl<T: 'static> Feed<T> {
    /// A feed that has its document for good.
    pub fn fixed(document: T) -> Self {
        Self { current: Some(Rc::new(document)), retired: Vec::new(), remote: None, loading: None }
    }

    /// A feed that has to fetch; the first fetch is due at once. `salt` says how the document is read:
    /// feeds of different filter instances whose endpoints are the same share it if that is the same
    /// too.
    pub fn remote(endpoint: Endpoint, max_body: usize, salt: &str, site: &Site) -> Self {
        let Site { shared, worker, limits } = site;
        let (worker, limits) = (*worker, *limits);
        let record = Record::new(Rc::clone(shared), endpoint.id(salt));
        let remote = Remote {
            endpoint,
            limits,
            max_body,
            at_hand: Rc::new(Cell::new(AT_HAND)),
            room: None,
            worker,
            record,
            state: State::default(),
            seen: (0, String::new()),
            holds: false,
            as_of: UnixTime::default(),
            asked: None,
            more: false,
            index: None,
            conversation: Conversation::default(),
            discovered: None,
            wanted: UnixTime::from_millis(i64::MIN),
            jitter: Jitter::new(worker),
        };
        Self { current: None, retired: Vec::new(), remote: Some(Box::new(remote)), loading: None }
    }

    /// The document, unless there is none or it is too old to be used. After the clock was set back
    /// by more than `max_age` nobody knows how old it is.
    pub fn usable(&self, now: UnixTime) -> Option<&Rc<T>> {
        let fresh = self.remote.as_ref().is_none_or(|remote| {
            let (as_of, max_age) = (remote.as_of, remote.endpoint.max_age);
            now.since(as_of) <= max_age && as_of.since(now) <= max_age
        });
        self.current.as_ref().filter(|_| fresh)
    }

    /// The document, of whatever age.
    pub fn current(&self) -> Option<&Rc<T>> {
        self.current.as_ref()
    }

    /// The endpoint's name; `None` if the document is fixed.
    pub fn name(&self) -> Option<&str> {
        self.remote.as_ref().map(|remote| remote.endpoint.name.as_str())
    }

    /// Whether the document can be fetched again at all.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// When the next fetch is due.
    pub fn next_at(&self) -> UnixTime {
        self.remote.as_ref().map_or_else(UnixTime::default, |remote| remote.state.next_at)
    }

    /// The document is at least as new as this moment.
    pub fn as_of(&self) -> UnixTime {
        self.remote.as_ref().map_or_else(UnixTime::default, |remote| remote.as_of)
    }

    /// Least time between two fetches.
    pub fn min_refresh(&self) -> Span {
        self.remote.as_ref().map_or(Span::ZERO, |remote| remote.endpoint.min_interval)
    }

    /// The earliest moment at which an answer may be there; far off while the breaker is open.
    pub fn retry_at(&self, now: UnixTime) -> UnixTime {
        match self.breaker() {
            Breaker::Open => self.next_at().max(now),
            Breaker::Closed | Breaker::HalfOpen => now,
        }
    }

    /// Whether the endpoint is asked.
    pub fn breaker(&self) -> Breaker {
        self.remote.as_ref().map_or(Breaker::Closed, |remote| remote.state.breaker())
    }

    /// Whether this worker fetches it for all.
    pub fn leads(&self, now: UnixTime) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.leads(now))
    }

    /// How it is; what only the document's kind knows is filled in by the gate.
    pub fn status(&self, now: UnixTime) -> Source {
        let Some(remote) = &self.remote else {
            return Source { ready: self.current.is_some(), ..Source::default() };
        };
        let Remote { endpoint, state, seen, as_of, .. } = &**remote;
        let failure = |(at, reason): &(UnixTime, String)| Failure {
            age: now.since(*at),
            reason: reason.clone(),
        };
        Source {
            name: endpoint.name.clone(),
            from: endpoint.protocol.origin(),
            ready: self.usable(now).is_some(),
            version: seen.0,
            digest: Some(state.digest.clone()).filter(|digest| !digest.is_empty()),
            age: self.current.as_ref().map(|_| now.since(*as_of)),
            max_age: Some(endpoint.max_age),
            next_fetch: Some(state.next_at.since(now)),
            breaker: state.breaker(),
            leader: state.is_led(now).then_some(state.leader),
            leads: remote.leads(now),
            error: state.error.as_ref().map(failure),
            ..Source::default()
        }
    }

    /// How it is, if it is this worker that fetches the document.
    pub fn observe(&self, now: UnixTime) -> Option<Observation<'_>> {
        let remote = self.remote.as_ref().filter(|remote| remote.leads(now))?;
        Some(Observation {
            name: &remote.endpoint.name,
            age: self.current.as_ref().map(|_| now.since(remote.as_of)),
            max_age: remote.endpoint.max_age,
            breaker: remote.state.breaker(),
        })
    }

    /// Asks for a fetch as soon as may be: somebody named a key that is not in the set.
    pub fn want(&mut self, now: UnixTime) {
        let Some(remote) = &mut self.remote else { return };
        // Asked already, and nothing was begun since.
        if remote.wanted >= remote.state.asked_at && remote.wanted <= now {
            return;
        }
        remote.wanted = now;
        remote.record.want(now);
    }

    /// Lets another worker take over at once: this one ends.
    pub fn leave(&mut self, now: UnixTime) {
        if let Some(remote) = self.remote.as_mut().filter(|remote| remote.leads(now)) {
            remote.refresh(now);
            let state = State { until: now, ..remote.state.clone() };
            remote.write(state, now);
        }
    }

    /// Looks whether another worker has published a document, and if it is new begins to load it.
    pub fn sync(&mut self, now: UnixTime, read: &Reader<T>) -> Option<Outcome> {
        let remote = self.remote.as_mut()?;
        remote.refresh(now);
        // A document that is on its way comes into use before one that is newer still, or one that
        // changes often would never do.
        if self.loading.is_some() {
            return None;
        }
        let place = remote.published()?;
        let State { version, digest, as_of, .. } = remote.state.clone();
        let (most, read, at_hand) = (remote.max_body, Rc::clone(read), Rc::clone(&remote.at_hand));
        let task = Task::new(|pace| async move {
            let body = place.get(most, &pace).await?;
            at_hand.set(at_hand.get().max(body.len()));
            Some(read(Rc::new(body), String::new(), pace).await)
        });
        self.loading = Some(Loading::Published(Published { version, digest, as_of }, task));
        match self.go_on(AT_ONCE, now) {
            None => Some(Outcome::Loading),
            outcome => outcome,
        }
    }

    /// Whether a document is on its way: [`Self::go_on`] brings it into use.
    pub fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// Whether what is on its way is the answer to a fetch of this worker.
    pub fn has_answer(&self) -> bool {
        matches!(self.loading, Some(Loading::Fetched(..) | Loading::Publishing(..)))
    }

    /// Goes on loading until about `units` (see [`Pace`]) are spent; tells when it comes to something.
    pub fn go_on(&mut self, units: u64, now: UnixTime) -> Option<Outcome> {
        let remote = self.remote.as_mut()?;
        let (next, outcome) = match self.loading.take()? {
            Loading::Awaited(task) => match task.go_on(units) {
                Err(task) => (Some(Loading::Awaited(task)), None),
                Ok(room) => {
                    remote.room = Some(room);
                    remote.more = true;
                    (None, Some(Outcome::More))
                }
            },
            Loading::Published(published, task) => match task.go_on(units) {
                Err(task) => (Some(Loading::Published(published, task)), None),
                Ok(None) => {
                    remote.refresh(now);
                    // What is newer is found at the next look.
                    if (remote.state.version, &remote.state.digest)
                        == (published.version, &published.digest)
                    {
                        remote.lose(now);
                    }
                    (None, Some(Outcome::Superseded))
                }
                Ok(Some(read)) => {
                    remote.seen = (published.version, published.digest);
                    remote.holds = read.is_ok();
                    let outcome = match read {
                        Ok(Read { document, .. }) => {
                            remote.as_of = published.as_of;
                            remote.refresh(now);
                            self.retired.extend(self.current.replace(Rc::new(document)));
                            // The leader has told the notes.
                            Outcome::Updated { notes: Vec::new() }
                        }
                        Err(reason) => Outcome::Unfit { reason, repeated: false },
                    };
                    (None, Some(outcome))
                }
            },
            Loading::Fetched(fetched, task) => match task.go_on(units) {
                Err(task) => (Some(Loading::Fetched(fetched, task)), None),
                Ok(looked) => {
                    remote.refresh(now);
                    if remote.state.version != fetched.asked.version {
                        if let Looked::New { read: Ok(Read { document, .. }), .. } = looked {
                            self.retired.push(Rc::new(document));
                        }
                        (None, Some(remote.superseded()))
                    } else {
                        match looked {
                            // Somebody found that what is in use here is not in its place any more.
                            Looked::Same if !remote.has_current() => {
                                (None, Some(remote.superseded()))
                            }
                            Looked::Same => {
                                let Fetched { asked, response } = *fetched;
                                let outcome = remote.confirmed(&asked, Some(&response), now);
                                (None, Some(outcome))
                            }
                            // The old tag stays: with the new one, the unfit document would be
                            // confirmed by 304.
                            Looked::New { read: Err(reason), .. } => {
                                let repeated = remote.unfit(&reason, &fetched.asked, now);
                                (None, Some(Outcome::Unfit { reason, repeated }))
                            }
                            Looked::New { digest, body, read: Ok(read) } => {
                                let place = remote.free_place(&fetched.asked, &digest, now);
                                match place {
                                    Err(()) => {
                                        self.retired.push(Rc::new(read.document));
                                        (None, Some(Outcome::Superseded))
                                    }
                                    Ok(place) => {
                                        let task = Task::new(|pace| async move {
                                            if let Some(place) = place {
                                                place.put(&body, &pace).await;
                                            }
                                        });
                                        let publication = Box::new(Publication { digest, read });
                                        self.loading =
                                            Some(Loading::Publishing(fetched, publication, task));
                                        return self.go_on(units, now);
                                    }
                                }
                            }
                        }
                    }
                }
            },
            Loading::Publishing(fetched, publication, task) => match task.go_on(units) {
                Err(task) => (Some(Loading::Publishing(fetched, publication, task)), None),
                Ok(()) => {
                    let Publication { digest, read } = *publication;
                    let Read { document, notes, mark } = read;
                    let document = Rc::new(document);
                    let Fetched { asked, response } = *fetched;
                    match remote.publish(&asked, &response, digest, mark, now) {
                        false => {
                            self.retired.push(document);
                            (None, Some(Outcome::Superseded))
                        }
                        true => {
                            self.retired.extend(self.current.replace(document));
                            let place = remote.record.place(remote.seen.0, "");
                            let tidying = place.and_then(|place| {
                                Task::new(|pace| async move { place.forget_former(&pace).await })
                                    .go_on(units)
                                    .err()
                            });
                            (tidying.map(Loading::Tidying), Some(Outcome::Updated { notes }))
                        }
                    }
                }
            },
            Loading::Tidying(task) => match task.go_on(units) {
                Err(task) => (Some(Loading::Tidying(task)), None),
                Ok(()) => (None, None),
            },
        };
        self.loading = next;
        outcome
    }

    /// What is no longer in use, or never was: to free a large document takes long too.
    pub fn take_retired(&mut self) -> Vec<Rc<T>> {
        std::mem::take(&mut self.retired)
    }

    /// The fetch that is due now, if one is and it is this worker's. It counts as under way until
    /// [`Self::answered`].
    pub fn due(&mut self, feed: FeedId, now: UnixTime) -> Option<Fetch> {
        let remote = self.remote.as_mut()?;
        match &self.loading {
            None | Some(Loading::Tidying(_)) => remote.due(feed, now),
            Some(Loading::Published(..)) => None,
            // Whoever has an answer in hand stays the leader until it is published.
            Some(Loading::Awaited(_) | Loading::Fetched(..) | Loading::Publishing(..)) => {
                remote.lead(now);
                None
            }
        }
    }

    /// Takes the answer of the fetch under way.
    pub fn answered(&mut self, answer: Answer, now: UnixTime, read: &Reader<T>) -> Outcome {
        let Some(remote) = &mut self.remote else { return Outcome::Superseded };
        let Some(asked) = remote.asked.take() else { return Outcome::Superseded };
        let asked = Asked { answered: now, ..asked };
        remote.refresh(now);
        if remote.state.version != asked.version {
            return remote.superseded();
        }
        if let Answer::TooLarge { bytes } = answer
            && bytes <= remote.max_body
            && !asked.prepared
        {
            // What comes next may be somewhat larger.
            let bytes = bytes.saturating_add(bytes / 8).min(remote.max_body);
            let task = Task::new(|pace| async move { room(bytes, &pace).await });
            self.loading = Some(Loading::Awaited(task));
            return Outcome::Loading;
        }
        let mut response = match remote.receive(answer, &asked, now) {
            Received::Body(response) => response,
            Received::Unchanged => return remote.confirmed(&asked, None, now),
            Received::More => {
                remote.more = true;
                return Outcome::More;
            }
            Received::Absent(reason) => return remote.absent(reason, &asked, now),
            Received::Failed(reason) => {
                let repeated = remote.failed(&reason, now);
                return Outcome::Failed { reason, repeated };
            }
            Received::Unfit(reason) => {
                let repeated = remote.failed(&reason, now);
                return Outcome::Unfit { reason, repeated };
            }
        };
        let body = Rc::new(std::mem::take(&mut response.body));
        let units = if body.len() > LARGE { 1 } else { AT_ONCE };
        remote.at_hand.set(remote.at_hand.get().max(body.len()));
        let published = remote.with_index(&body);
        let known = remote.has_current().then(|| remote.state.digest.clone());
        let (mark, read) = (remote.state.mark.clone(), Rc::clone(read));
        let task = Task::new(|pace| async move {
            let digest = hexadecimal::of_bytes(&sha256(&body, &pace).await);
            if known.is_some_and(|known| known == digest) {
                return Looked::Same;
            }
            let read = read(Rc::clone(&published), mark, pace).await;
            Looked::New { digest, body: published, read }
        });
        self.loading = Some(Loading::Fetched(Box::new(Fetched { asked, response }), task));
        self.go_on(units, now).unwrap_or(Outcome::Loading)
    }
}

impl Remote {
    /// Takes over what the record says.
    fn refresh(&mut self, now: UnixTime) {
        match self.record.read(now) {
            Some(state) => self.take(state),
            None if self.state.mark.is_empty() => self.state.mark = self.record.inherited(),
            None => {}
        }
    }

    fn take(&mut self, state: State) {
        self.state = state;
        // What confirms another document does not make the one in use any younger.
        if self.has_current() {
            self.as_of = self.state.as_of;
        }
    }

    /// The document that the state speaks of is in use now.
    fn took_over(&mut self) {
        self.seen = (self.state.version, self.state.digest.clone());
        self.holds = true;
        self.as_of = self.state.as_of;
    }

    /// Where the published document is, if it was not read yet.
    fn published(&mut self) -> Option<Place> {
        let State { version, digest, .. } = &self.state;
        if digest.is_empty() || self.is_seen() {
            return None;
        }
        self.record.place(*version, digest)
    }

    /// The published document is not where it should be: a publication broke off, or others wrote
    /// there. Only a new one helps who has it not.
    fn lose(&mut self, now: UnixTime) {
        let soon = self.state.asked_at.plus(self.endpoint.min_interval);
        let state = self.state.clone().lost(self.state.next_at.min(soon));
        self.write(state, now);
    }

    /// What this worker fetched is not what is to be published any more.
    fn superseded(&mut self) -> Outcome {
        // What Consul's index belongs to was not loaded.
        self.begin_anew();
        Outcome::Superseded
    }

    fn is_seen(&self) -> bool {
        self.seen.0 == self.state.version && self.seen.1 == self.state.digest
    }

    fn has_current(&self) -> bool {
        self.holds && self.is_seen()
    }

    fn leads(&self, now: UnixTime) -> bool {
        self.record.is_alone() || (self.state.leader == self.worker && self.state.is_led(now))
    }

    /// Whether this worker is the leader, if need be from now on.
    fn lead(&mut self, now: UnixTime) -> bool {
        if self.leads(now) {
            let rest = self.state.until.since(now);
            return self.record.is_alone() || rest.twice() > LEASE || self.claim(now);
        }
        !self.state.is_led(now) && self.claim(now)
    }

    /// Takes or renews the lease.
    fn claim(&mut self, now: UnixTime) -> bool {
        let leader = self.worker;
        self.write(State { leader, until: now.plus(LEASE), ..self.state.clone() }, now)
    }

    fn write(&mut self, state: State, now: UnixTime) -> bool {
        let written = self.record.write(&state);
        match written {
            true => self.take(state),
            false => self.refresh(now),
        }
        written
    }

    fn due(&mut self, feed: FeedId, now: UnixTime) -> Option<Fetch> {
        // The host answers every callout by its timeout. Should it not, waiting for ever would freeze
        // the document; and a clock that was set back must not put the end off.
        if self.asked.as_ref().is_some_and(|asked| (asked.at..asked.until).contains(&now)) {
            // Whoever holds a question open stays the leader, or an answer would find another one.
            self.lead(now);
            return None;
        }
        if !self.lead(now) {
            self.begin_anew();
            self.more = false;
            self.room = None;
            return None;
        }
        if now < self.due_at(now) && !self.more {
            return None;
        }
        self.more = false;
        let state = State { asked_at: now, ..self.state.clone() };
        if !self.write(state, now) {
            self.room = None;
            return None;
        }
        Some(self.fetch(feed, now))
    }

    fn due_at(&self, now: UnixTime) -> UnixTime {
        let Self { endpoint, state, .. } = self;
        // A wish from the future is older than the clock's last setting.
        let wishes = [self.record.wanted(), Some(self.wanted)].into_iter().flatten();
        let wanted = wishes.filter(|wanted| *wanted <= now).max();
        let next_at = match state.next_at {
            // A clock that was set back must not put the next fetch off until it has caught up.
            next_at if next_at.since(now) > endpoint.interval => now,
            next_at => next_at,
        };
        if wanted.is_some_and(|wanted| wanted >= state.asked_at)
            && state.breaker() == Breaker::Closed
        {
            return next_at.min(state.asked_at.plus(endpoint.min_interval));
        }
        next_at
    }

    fn fetch(&mut self, feed: FeedId, now: UnixTime) -> Fetch {
        let conditional = self.has_current().then(|| self.state.etag.clone()).flatten();
        let Endpoint { protocol, .. } = &self.endpoint;
        let mut uri = &self.endpoint.uri;
        let mut cluster = &self.endpoint.cluster;
        let mut path = uri.path.clone();
        let mut more = vec![("accept", "application/json".to_owned())];
        let mut held = None;
        let mut discovery = false;
        match protocol {
            Protocol::Poll => {}
            Protocol::LongPoll { wait } => {
                if conditional.is_some() {
                    let seconds = wait.as_secs_ceil();
                    more.push(("prefer", format!("wait={seconds}")));
                    held = Some(*wait);
                }
            }
            Protocol::ConsulKv { wait, .. } | Protocol::ConsulCatalog { wait, .. } => {
                if let Some(index) = self.index {
                    path = blocking_query(&path, index, *wait);
                    held = Some(*wait);
                }
            }
            Protocol::ConsulIntentions { wait, questions, .. } => {
                let Questions { parts, list } = &**questions;
                let Conversation { listing, .. } = &mut self.conversation;
                *listing |= parts.len() > 1;
                match (self.conversation.step(), self.conversation.listing) {
                    (Step::Part(place), _) => path.clone_from(parts.get(place).unwrap_or(list)),
                    (Step::First, true) => path.clone_from(list),
                    (Step::First, false) => {}
                }
                if let (Step::First, Some(index)) = (self.conversation.step(), self.index) {
                    path = blocking_query(&path, index, *wait);
                    held = Some(*wait);
                }
            }
            Protocol::Discovery { keys_cluster, .. } => {
                let recent = |at: UnixTime| at <= now && now.since(at) <= REDISCOVERY;
                match &self.discovered {
                    Some((keys, at)) if recent(*at) => {
                        (uri, cluster, path) = (keys, keys_cluster, keys.path.clone());
                    }
                    _ => discovery = true,
                }
            }
        }
        let mut headers = vec![
            (":method", "GET".to_owned()),
            (":path", path),
            (":scheme", uri.scheme.to_owned()),
            (":authority", uri.authority.clone()),
        ];
        headers.extend(more);
        let consul = protocol.consul();
        let token = consul.flatten().map(|Secret(token)| ("x-consul-token", token.clone()));
        headers.extend(token);
        let conditional = conditional.filter(|_| !discovery && consul.is_none());
        let is_conditional = conditional.is_some();
        headers.extend(conditional.map(|etag| ("if-none-match", etag)));
        let timeout = self.endpoint.timeout_after(held.unwrap_or(Span::ZERO));
        // Twice the fetch is made for one answer only: it is taken then, however large it has become.
        let room = self.room.take();
        let prepared = room.is_some();
        let max_body = match prepared {
            true => self.max_body,
            // As much as was there before, and a little more.
            false => self.max_body.min(self.at_hand.get().saturating_add(AT_HAND / 4)),
        };
        // What follows on a question counts as asked with it: it may have been held back.
        let (at, blocking) = self.conversation.began().unwrap_or((now, held.is_some()));
        self.asked = Some(Asked {
            at,
            answered: at,
            until: now.plus(timeout.twice()),
            version: self.state.version,
            blocking,
            discovery,
            conditional: is_conditional,
            prepared,
        });
        let room = room.unwrap_or_default();
        Fetch { feed, cluster: cluster.clone(), headers, timeout, max_body, room }
    }

    fn receive(&mut self, answer: Answer, asked: &Asked, now: UnixTime) -> Received {
        let response = match answer {
            Answer::None => return self.unanswered("no answer".to_owned()),
            Answer::TooLarge { bytes } => return self.too_large(bytes),
            Answer::Http(response) => response,
        };
        if let Protocol::ConsulKv { .. } | Protocol::ConsulCatalog { .. } = self.endpoint.protocol
            && matches!(response.status, 200 | 404)
        {
            self.index = next_index(self.index, response.index.as_deref());
            if response.status == 404 {
                return Received::Absent("the key does not exist".to_owned());
            }
        }
        if let Protocol::ConsulIntentions { questions, .. } = &self.endpoint.protocol {
            let count = questions.parts.len();
            return self.receive_intentions(response, count, asked);
        }
        match (response.status, &self.endpoint.protocol) {
            (200, Protocol::Discovery { issuer, .. }) if asked.discovery => {
                let scheme = self.endpoint.uri.scheme;
                match discovered(&response.body, issuer, scheme, &self.limits) {
                    Ok(uri) => {
                        // The tag is that of a place; which one that was is not known to all workers.
                        if self.discovered.as_ref().is_none_or(|(known, _)| *known != uri) {
                            self.state.etag = None;
                        }
                        self.discovered = Some((uri, now));
                        Received::More
                    }
                    Err(reason) => Received::Unfit(reason),
                }
            }
            (200, _) => Received::Body(response),
            (304, _) if self.has_current() && asked.conditional => Received::Unchanged,
            (status, _) => self.unanswered(format!("answered with status {status}")),
        }
    }

    /// An answer to one of the questions for intentions, of which there are `count` documents.
    fn receive_intentions(&mut self, response: Response, count: usize, asked: &Asked) -> Received {
        let status = response.status;
        let header = response.index.as_deref();
        // That of a document which is not there is what tells Consul's answer from that of a server which
        // knows no such thing.
        let absent = status == 404 && count > 1 && header.is_some();
        if status != 200 && !absent {
            return self.unanswered(format!("answered with status {status}"));
        }
        let depth = self.limits.json_depth;
        let first = self.conversation.step() == Step::First;
        let next = if first && self.conversation.listing {
            if absent {
                return self.unanswered(format!("answered with status {status}"));
            }
            let index = next_index(self.index, header);
            let moved = index != self.index;
            self.index = index;
            self.conversation.listed(asked.at, asked.blocking, moved)
        } else {
            if first {
                let index = next_index(self.index, header);
                self.conversation.moved = index != self.index;
                self.index = index;
                // An old Consul: the list has the index, and is asked at once.
                self.conversation.listing = header.is_none();
                self.more = header.is_none();
            }
            let body = (!absent).then_some(response.body);
            self.conversation.part(body, count, depth)
        };
        match next {
            Next::Ask => Received::More,
            // Nobody else would take it out of the store.
            Next::Read(body) if body.len().saturating_add(MOST_INDEX) > self.max_body => {
                self.too_large(body.len())
            }
            Next::Read(body) => Received::Body(Response { status, body, ..Response::default() }),
            Next::Unfit(reason) => {
                self.begin_anew();
                Received::Unfit(reason)
            }
        }
    }

    /// What is published of a document: that of intentions has Consul's index of when it came before it.
    fn with_index(&self, body: &Body) -> Body {
        match self.endpoint.protocol {
            Protocol::ConsulIntentions { .. } => {
                let line = format!("{}\n", self.index.unwrap_or_default());
                Rc::new([line.as_bytes(), body].concat())
            }
            _ => Rc::clone(body),
        }
    }

    /// Consul's index means nothing any more.
    fn begin_anew(&mut self) {
        self.index = None;
        self.conversation.reset();
    }

    /// After any error Consul is asked anew.
    fn unanswered(&mut self, reason: String) -> Received {
        self.begin_anew();
        Received::Failed(reason)
    }

    fn too_large(&mut self, bytes: usize) -> Received {
        self.begin_anew();
        Received::Unfit(format!("{bytes} bytes are more than the {} allowed", self.max_body))
    }

    /// The document in use is the one that the server has.
    fn confirmed(&mut self, asked: &Asked, response: Option<&Response>, now: UnixTime) -> Outcome {
        let mut state = self.succeeded(asked, response, false, now);
        if let Some(response) = response {
            state.etag.clone_from(&response.etag);
        }
        self.write(state, now);
        Outcome::Unchanged
    }

    /// Where to put a fetched document, if there is a store.
    ///
    /// # Errors
    /// Another worker was faster.
    fn free_place(
        &mut self,
        asked: &Asked,
        digest: &str,
        now: UnixTime,
    ) -> Result<Option<Place>, ()> {
        // With the lease just taken, nobody else puts a document in between.
        // Reading may have taken longer than the lease: who took it has published nothing yet.
        let version = asked.version;
        if !self.claim(now) && (self.state.version != version || !self.claim(now)) {
            return Err(());
        }
        Ok(self.record.place(version.saturating_add(1), digest))
    }

    /// Tells the others that a document is in its place.
    fn publish(
        &mut self,
        asked: &Asked,
        response: &Response,
        digest: String,
        mark: String,
        now: UnixTime,
    ) -> bool {
        if !self.claim(now) && (self.state.version != asked.version || !self.claim(now)) {
            return false;
        }
        let version = asked.version.saturating_add(1);
        let etag = response.etag.clone();
        let state = self.succeeded(asked, Some(response), true, now);
        if !self.write(State { version, digest, mark, etag, ..state }, now) {
            return false;
        }
        self.took_over();
        self.record.announce();
        true
    }

    /// The state after an answer that was as it should be.
    fn succeeded(
        &mut self,
        asked: &Asked,
        response: Option<&Response>,
        changed: bool,
        now: UnixTime,
    ) -> State {
        let interval = self.endpoint.interval;
        let etag = response.map_or(&self.state.etag, |response| &response.etag);
        let tagged = etag.is_some();
        let next_at = match self.ask_again(asked, tagged, changed, now) {
            Some(at) => at,
            None => {
                let stated = response.and_then(max_age);
                let least = self.endpoint.min_interval.min(interval);
                let fresh = stated.map_or(interval, |stated| stated.clamp(least, interval));
                now.plus(self.jitter.less(fresh, 10))
            }
        };
        // An answer that was held back is as new as its arrival, any other one as its question.
        let as_of = if asked.blocking { asked.answered } else { asked.at };
        State { as_of, next_at, failures: 0, error: None, ..self.state.clone() }
    }

    /// When to ask a server again that waits for changes, if it does.
    fn ask_again(
        &self,
        asked: &Asked,
        tagged: bool,
        changed: bool,
        now: UnixTime,
    ) -> Option<UnixTime> {
        let wait = self.endpoint.protocol.wait()?;
        let was_held = asked.blocking && asked.answered.since(asked.at).twice() >= wait;
        let can_wait = match self.endpoint.protocol {
            ref protocol if protocol.consul().is_some() => self.index.is_some(),
            _ => tagged,
        };
        // Intentions about other services move the index, too.
        let changed = changed || self.conversation.moved;
        (can_wait && (changed || was_held || !asked.blocking))
            .then(|| now.max(asked.at.plus(PAUSE)))
    }

    /// There is no document, and the endpoint works.
    fn absent(&mut self, reason: String, asked: &Asked, now: UnixTime) -> Outcome {
        let repeated = self.is_known(&reason);
        let next_at = self
            .ask_again(asked, false, !repeated, now)
            .unwrap_or_else(|| now.plus(self.endpoint.interval));
        let error = Some((now, reason.clone()));
        self.write(State { next_at, failures: 0, error, ..self.state.clone() }, now);
        Outcome::Failed { reason, repeated }
    }

    /// A document came that is none. A server that waits for changes is asked for the next one.
    fn unfit(&mut self, reason: &str, asked: &Asked, now: UnixTime) -> bool {
        let waits = self.endpoint.protocol.consul().is_some();
        let repeated = self.is_known(reason);
        let again = if waits { self.ask_again(asked, false, !repeated, now) } else { None };
        let Some(next_at) = again else { return self.failed(reason, now) };
        let error = Some((now, reason.to_owned()));
        self.write(State { next_at, error, ..self.state.clone() }, now);
        repeated
    }

    /// Nothing came that could be used; returns whether it was so the last time.
    fn failed(&mut self, reason: &str, now: UnixTime) -> bool {
        let repeated = self.is_known(reason);
        // The keys may have moved.
        self.discovered = None;
        let failures = self.state.failures;
        let next_at = now.plus(self.jitter.less(back_off(failures, self.endpoint.interval), 2));
        let error = Some((now, reason.to_owned()));
        let failures = failures.saturating_add(1);
        self.write(State { next_at, failures, error, ..self.state.clone() }, now);
        repeated
    }

    fn is_known(&self, reason: &str) -> bool {
        self.state.error.as_ref().is_some_and(|(_, known)| known == reason)
    }
}

impl State {
    fn breaker(&self) -> Breaker {
        if self.failures < TOLERATED {
            Breaker::Closed
        } else if self.asked_at >= self.next_at {
            Breaker::HalfOpen
        } else {
            Breaker::Open
        }
    }
}

fn blocking_query(path: &str, index: u64, wait: Span) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}index={index}&wait={}ms", wait.as_millis())
}

/// The index for the next blocking query: one that is missing, not a number or lower than before
/// means to begin anew, and 0 would not block.
fn next_index(last: Option<u64>, header: Option<&str>) -> Option<u64> {
    let index: u64 = header?.parse().ok()?;
    (last.is_none_or(|last| index >= last)).then_some(index.max(1))
}

/// `max-age` of `Cache-Control` (RFC 9111 §5.2.2.1) less `Age`. An answer that must not be stored says
/// nothing about how soon keys change.
fn max_age(response: &Response) -> Option<Span> {
    let directives = response.cache_control.as_deref()?.split(',').map(str::trim);
    let seconds = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let most = directives.into_iter().find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.trim().eq_ignore_ascii_case("max-age").then_some(())?;
        seconds(value.trim().trim_matches('"'))
    })?;
    let age = response.age.as_deref().and_then(seconds).unwrap_or_default();
    Some(Span::from_secs(most.saturating_sub(age).max(0)))
}

/// Memory for an answer of so many bytes. An operating system hands memory out page by page when it is first
/// written to, and that takes several times as long as the copy of the answer, which cannot be
/// cut in slices. What was written to and freed again is there at once.
async fn room(bytes: usize, pace: &Pace) -> Vec<u8> {
    let mut room = Vec::new();
    // Without, the answer is taken over as well as may be.
    if room.try_reserve_exact(bytes).is_ok() {
        while room.len() < bytes {
            let ready = room.len().saturating_add(READY_AT_ONCE).min(bytes);
            room.resize(ready, 0);
            pace.spend(UNITS_PER_READY).await;
        }
    }
    room
}

impl<T: 'static> fmt::Debug for Feed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Feed")
            .field("name", &self.name())
            .field("loaded", &self.current.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
