//! A document that comes by HTTP callout and is fetched again and again: a key set or the policy.
//!
//! The last good document stays in use until its `max_age` is over, whatever the endpoint answers.
//! What it is not: shared between workers; each worker's gate has its own.

use std::fmt;
use std::rc::Rc;

use crate::configuration::Endpoint;
use crate::status::{Origin, Source};
use crate::time::{Span, UnixTime};

/// A callout to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    Http {
        /// `:status`; 0 if there was none that is a number.
        status: u16,
        /// The `etag` header, if there was exactly one in UTF-8.
        etag: Option<String>,
        /// The body.
        body: Vec<u8>,
    },
}

/// What an answer meant for the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is a new document; `notes` are things worth a warning, such as a skipped key.
    Updated {
        /// Lines for the log.
        notes: Vec<String>,
    },
    /// The document in use is confirmed.
    Unchanged,
    /// The endpoint could not be asked, or did not answer with a document.
    Failed {
        /// Why.
        reason: String,
    },
    /// It answered with a document that is unfit; the last good one stays.
    Unfit {
        /// Why.
        reason: String,
    },
}

/// Keeps one document current.
pub struct Feed<T> {
    endpoint: Option<Endpoint>,
    max_body: usize,
    current: Option<Rc<T>>,
    /// The bytes that `current` was read from.
    body: Vec<u8>,
    etag: Option<String>,
    confirmed_at: UnixTime,
    as_of: UnixTime,
    /// When the fetch under way was begun.
    asked_at: Option<UnixTime>,
    next_at: UnixTime,
    failures: u32,
}

impl<T> Feed<T> {
    /// A feed that has its document for good.
    pub fn fixed(document: T) -> Self {
        Self { current: Some(Rc::new(document)), ..Self::empty(None, 0) }
    }

    /// A feed that has to fetch; the first fetch is due at once.
    pub fn remote(endpoint: Endpoint, max_body: usize) -> Self {
        Self::empty(Some(endpoint), max_body)
    }

    fn empty(endpoint: Option<Endpoint>, max_body: usize) -> Self {
        Self {
            endpoint,
            max_body,
            current: None,
            body: Vec::new(),
            etag: None,
            confirmed_at: UnixTime::default(),
            as_of: UnixTime::default(),
            asked_at: None,
            next_at: UnixTime::default(),
            failures: 0,
        }
    }

    /// The document, unless there is none or it is too old to be used. After the clock was set back
    /// by more than `max_age` nobody knows how old it is.
    pub fn usable(&self, now: UnixTime) -> Option<&Rc<T>> {
        let fresh = self.endpoint.as_ref().is_none_or(|Endpoint { max_age, .. }| {
            now.since(self.confirmed_at) <= *max_age && self.confirmed_at.since(now) <= *max_age
        });
        self.current.as_ref().filter(|_| fresh)
    }

    /// The document, of whatever age.
    pub fn current(&self) -> Option<&Rc<T>> {
        self.current.as_ref()
    }

    /// The endpoint's name; `None` if the document is fixed.
    pub fn name(&self) -> Option<&str> {
        self.endpoint.as_ref().map(|endpoint| endpoint.name.as_str())
    }

    /// When the next fetch is due.
    pub fn next_at(&self) -> UnixTime {
        self.next_at
    }

    /// The document is at least as new as this moment: the fetch that confirmed it was begun then.
    pub fn as_of(&self) -> UnixTime {
        self.as_of
    }

    /// Least time between two fetches, whatever asks for them.
    pub fn min_refresh(&self) -> Span {
        Span::from_secs(2)
    }

    /// When an answer can be there at the earliest: now, if a fetch is under way.
    pub fn retry_at(&self, now: UnixTime) -> UnixTime {
        if self.asked_at.is_some() { now } else { self.next_at.max(now) }
    }

    /// How it is; what only the document's kind knows is filled in by the gate.
    pub fn status(&self, now: UnixTime) -> Source {
        let endpoint = self.endpoint.as_ref();
        Source {
            name: self.name().unwrap_or_default().to_owned(),
            from: if endpoint.is_some() { Origin::Http } else { Origin::Inline },
            ready: self.usable(now).is_some(),
            age: endpoint.and(self.current()).map(|_| now.since(self.confirmed_at)),
            max_age: endpoint.map(|endpoint| endpoint.max_age),
            next_fetch: endpoint.map(|_| self.next_at.since(now)),
            ..Source::default()
        }
    }

    /// Whether the document can be fetched again at all.
    pub fn is_remote(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Asks for a fetch as soon as may be: somebody named a key that is not in the set.
    pub fn want(&mut self, now: UnixTime) {
        // After a failure, its back-off holds.
        if self.failures == 0 {
            let earliest = self.as_of.plus(self.min_refresh()).max(now);
            self.next_at = self.next_at.min(earliest);
        }
    }

    /// The fetch that is due now, if one is. It counts as under way until [`Self::answered`].
    pub fn due(&mut self, feed: FeedId, now: UnixTime) -> Option<Fetch> {
        let endpoint = self.endpoint.as_ref()?;
        // A clock that was set back must not put the next fetch off until it has caught up.
        let set_back = self.next_at.since(now) > endpoint.interval;
        // The host answers every callout by its timeout. Should it not, waiting for ever would freeze the document.
        let given_up = |asked: UnixTime| now.since(asked) > endpoint.timeout.twice();
        let under_way = self.asked_at.is_some_and(|asked| !given_up(asked) && asked <= now);
        if under_way || (now < self.next_at && !set_back) {
            return None;
        }
        self.asked_at = Some(now);
        let mut headers = vec![
            (":method", "GET".to_owned()),
            (":path", endpoint.path.clone()),
            (":scheme", endpoint.scheme.to_owned()),
            (":authority", endpoint.authority.clone()),
            ("accept", "application/json".to_owned()),
        ];
        if let (Some(etag), Some(_)) = (&self.etag, &self.current) {
            headers.push(("if-none-match", etag.clone()));
        }
        Some(Fetch {
            feed,
            cluster: endpoint.cluster.clone(),
            headers,
            timeout: endpoint.timeout,
            max_body: self.max_body,
        })
    }

    /// Takes the answer of the fetch under way; `read` turns a body into a document and notes.
    pub fn answered(
        &mut self,
        answer: Answer,
        now: UnixTime,
        read: impl FnOnce(&[u8]) -> Result<(T, Vec<String>), String>,
    ) -> Outcome {
        let asked_at = self.asked_at.take().unwrap_or(now);
        let outcome = self.take(answer, read);
        let Some(endpoint) = &self.endpoint else { return outcome };
        match outcome {
            Outcome::Updated { .. } | Outcome::Unchanged => {
                self.failures = 0;
                self.confirmed_at = now;
                self.as_of = asked_at;
                self.next_at = now.plus(endpoint.interval);
            }
            Outcome::Failed { .. } | Outcome::Unfit { .. } => {
                self.next_at = now.plus(back_off(self.failures, endpoint.interval));
                self.failures = self.failures.saturating_add(1);
            }
        }
        outcome
    }

    fn take(
        &mut self,
        answer: Answer,
        read: impl FnOnce(&[u8]) -> Result<(T, Vec<String>), String>,
    ) -> Outcome {
        let (etag, body) = match answer {
            Answer::None => return Outcome::Failed { reason: "no answer".to_owned() },
            Answer::TooLarge { bytes } => {
                let reason = format!("{bytes} bytes are more than the {} allowed", self.max_body);
                return Outcome::Unfit { reason };
            }
            Answer::Http { status: 200, etag, body } => (etag, body),
            Answer::Http { status: 304, .. } if self.current.is_some() => {
                return Outcome::Unchanged;
            }
            Answer::Http { status, .. } => {
                return Outcome::Failed { reason: format!("answered with status {status}") };
            }
        };
        if self.current.is_some() && body == self.body {
            self.etag = etag;
            return Outcome::Unchanged;
        }
        match read(&body) {
            Ok((document, notes)) => {
                self.current = Some(Rc::new(document));
                self.body = body;
                self.etag = etag;
                Outcome::Updated { notes }
            }
            // The old tag stays: with the new one, the unfit document would be confirmed by 304.
            Err(reason) => Outcome::Unfit { reason },
        }
    }
}

/// Half a second, doubled for each failure, never more than the ordinary interval or half a minute.
fn back_off(failures: u32, interval: Span) -> Span {
    let millis = 500_i64.saturating_mul(1_i64.checked_shl(failures.min(16)).unwrap_or(i64::MAX));
    Span::from_millis(millis).min(interval).min(Span::from_secs(30))
}

impl<T> fmt::Debug for Feed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Feed")
            .field("endpoint", &self.endpoint)
            .field("loaded", &self.current.is_some())
            .field("confirmed_at", &self.confirmed_at)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: FeedId = FeedId(0);

    fn endpoint() -> Endpoint {
        Endpoint {
            name: "main".to_owned(),
            cluster: "policy".to_owned(),
            scheme: "http",
            authority: "policy.internal".to_owned(),
            path: "/policy.json".to_owned(),
            interval: Span::from_secs(5),
            timeout: Span::from_secs(1),
            max_age: Span::from_secs(60),
        }
    }

    fn http(status: u16, etag: &str, body: &str) -> Answer {
        Answer::Http { status, etag: Some(etag.to_owned()), body: body.as_bytes().to_vec() }
    }

    fn read(body: &[u8]) -> Result<(String, Vec<String>), String> {
        match std::str::from_utf8(body) {
            Ok(text) if text.starts_with("good") => Ok((text.to_owned(), Vec::new())),
            _ => Err("not good".to_owned()),
        }
    }

    fn at(seconds: i64) -> UnixTime {
        UnixTime::from_secs(1_000 + seconds)
    }

    fn loaded() -> Feed<String> {
        let mut feed = Feed::remote(endpoint(), 100);
        assert!(feed.due(ID, at(0)).is_some());
        assert_eq!(
            feed.answered(http(200, "1", "good 1"), at(0), read),
            Outcome::Updated { notes: Vec::new() }
        );
        feed
    }

    fn header<'f>(fetch: &'f Fetch, name: &str) -> Option<&'f str> {
        fetch.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn one_fetch_at_a_time_and_the_next_after_the_interval() {
        let mut feed = Feed::<String>::remote(endpoint(), 100);
        let fetch = feed.due(ID, at(0)).unwrap();
        assert_eq!(
            (header(&fetch, ":path"), header(&fetch, "if-none-match")),
            (Some("/policy.json"), None)
        );
        assert_eq!(feed.due(ID, at(1)), None);
        feed.answered(http(200, "1", "good 1"), at(1), read);
        assert_eq!(feed.due(ID, at(5)), None);
        assert_eq!(header(&feed.due(ID, at(6)).unwrap(), "if-none-match"), Some("1"));
    }

    #[test]
    fn a_fetch_that_is_never_answered_is_made_again() {
        let mut feed = Feed::<String>::remote(endpoint(), 100);
        assert!(feed.due(ID, at(0)).is_some());
        assert_eq!(feed.due(ID, at(2)), None);
        assert!(feed.due(ID, at(3)).is_some());
    }

    #[test]
    fn an_unfit_document_keeps_the_last_good_one_and_its_tag() {
        let mut feed = loaded();
        feed.due(ID, at(5)).unwrap();
        let outcome = feed.answered(http(200, "2", "bad"), at(5), read);
        assert_eq!(outcome, Outcome::Unfit { reason: "not good".to_owned() });
        assert_eq!(feed.usable(at(5)).unwrap().as_str(), "good 1");
        assert_eq!(header(&feed.due(ID, at(10)).unwrap(), "if-none-match"), Some("1"));
    }

    #[test]
    fn failures_back_off_and_recover() {
        let mut feed = Feed::<String>::remote(endpoint(), 100);
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..5 {
            assert!(feed.due(ID, now).is_some());
            feed.answered(Answer::None, now, read);
            waits.push(feed.next_at().since(now).as_millis());
            now = feed.next_at();
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 5000]);
        feed.due(ID, now);
        feed.answered(http(200, "1", "good"), now, read);
        assert!(feed.usable(now).is_some());
    }

    #[test]
    fn a_document_that_cannot_be_confirmed_grows_too_old() {
        let mut feed = loaded();
        assert!(feed.usable(at(60)).is_some());
        assert!(feed.usable(at(61)).is_none());
        feed.due(ID, at(61)).unwrap();
        assert_eq!(feed.answered(http(304, "1", ""), at(61), read), Outcome::Unchanged);
        assert!(feed.usable(at(61)).is_some());
    }

    #[test]
    fn a_clock_that_is_set_back_stops_no_refresh() {
        let mut feed = loaded();
        assert!(feed.usable(at(-60)).is_some());
        assert!(feed.usable(at(-61)).is_none());
        feed.due(ID, at(-3600)).unwrap();
        feed.answered(http(304, "1", ""), at(-3600), read);
        assert!(feed.usable(at(-3600)).is_some());
        assert_eq!(feed.due(ID, at(-3596)), None);
        assert!(feed.due(ID, at(-3595)).is_some());
    }

    #[test]
    fn every_other_answer_is_a_failure_and_changes_nothing() {
        for (answer, unfit) in [
            (Answer::None, false),
            (Answer::TooLarge { bytes: 101 }, true),
            (http(500, "9", "good 9"), false),
            (http(0, "9", "good 9"), false),
            (http(204, "9", ""), false),
            (http(200, "9", ""), true),
        ] {
            let mut feed = loaded();
            feed.due(ID, at(5)).unwrap();
            let outcome = feed.answered(answer.clone(), at(5), read);
            assert_eq!(matches!(outcome, Outcome::Unfit { .. }), unfit, "{answer:?}");
            assert_eq!(matches!(outcome, Outcome::Failed { .. }), !unfit, "{answer:?}");
            assert_eq!(feed.current().unwrap().as_str(), "good 1");
        }
        let mut empty = Feed::<String>::remote(endpoint(), 100);
        empty.due(ID, at(0));
        assert!(matches!(empty.answered(http(304, "", ""), at(0), read), Outcome::Failed { .. }));
    }

    #[test]
    fn the_same_bytes_again_are_no_update() {
        let mut feed = loaded();
        feed.due(ID, at(5)).unwrap();
        assert_eq!(feed.answered(http(200, "2", "good 1"), at(5), read), Outcome::Unchanged);
        assert_eq!(header(&feed.due(ID, at(10)).unwrap(), "if-none-match"), Some("2"));
    }
}
