//! The way to an HTTP collector: batches, retries, and the way out when it does not take them.
//!
//! **Nothing is lost here.** A record that was offered is either acknowledged by the collector or handed
//! back for the log; both may happen, when a batch was taken and the answer was not heard. So delivery is
//! at least once, and a repeated batch is the same bytes under the same name.
//!
//! **Nothing waits here for long.** A collector that fails is asked less and less; after [`TOLERATED`]
//! failures in a row everything goes to the log, at once, until a batch of new records finds it back.
//!
//! What it is not: it does not know what a record says, and it does no I/O; posts and lines for the log
//! are values that it returns.

mod settings;

use std::collections::VecDeque;

pub use self::settings::Settings;
use super::Line;
use crate::feed::Secret;
use crate::gate::Severity;
use crate::retry::{Breaker, Jitter, MOST_BACK_OFF, TOLERATED, back_off};
use crate::time::{Span, UnixTime};

/// The stream that the records of a batch are of.
const STREAM_HEADER: &str = "x-airflow-envoy-stream";
/// The name of a batch: the same when it is sent again, and another for every other batch.
const BATCH_HEADER: &str = "x-airflow-envoy-batch";

/// What the host has to do for the collector.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Make this callout and hand its status to [`Collector::answered`].
    Post(Post),
    /// Write these records to the log: the collector did not take them.
    Log(Vec<Line>),
    /// Tell the operator.
    Tell(Severity, String),
    /// Add one to this counter.
    Count(&'static str),
}

/// A batch on its way.
#[derive(Clone, PartialEq, Eq)]
pub struct Post {
    /// Comes back with the answer.
    pub attempt: Attempt,
    /// The Envoy cluster.
    pub cluster: String,
    /// `:method`, `:path`, `:scheme`, `:authority` and what else to send.
    pub headers: Vec<(&'static str, String)>,
    /// Newline-delimited JSON: each record and `\n`.
    pub body: Vec<u8>,
    /// Time after which to give up.
    pub timeout: Span,
}

/// Without header values: one may be a credential.
impl std::fmt::Debug for Post {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { attempt, cluster, body, .. } = self;
        let mut post = formatter.debug_struct("Post");
        post.field("attempt", attempt).field("cluster", cluster).field("bytes", &body.len());
        post.finish_non_exhaustive()
    }
}

/// Names one sending of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt(u64);

/// Keeps what the collector has not acknowledged yet.
#[derive(Debug)]
pub struct Collector {
    settings: Settings,
    /// The name of the stream, as in its records.
    stream: String,
    /// Records of no batch yet, each with the time at which it came,
    waiting: VecDeque<(UnixTime, Line)>,
    /// and their bytes.
    waiting_bytes: usize,
    /// Batches that were not taken and are to be sent again.
    again: VecDeque<Batch>,
    flights: Vec<Flight>,
    /// Bytes of everything that is kept.
    held: usize,
    attempts: u64,
    /// Failures in a row.
    failures: u32,
    /// After a failure: nothing is sent before.
    next_at: UnixTime,
    jitter: Jitter,
}

/// Records that are sent together. Once made, it never changes.
#[derive(Debug)]
struct Batch {
    lines: Vec<Line>,
    bytes: usize,
    failures: u32,
}

#[derive(Debug)]
struct Flight {
    attempt: Attempt,
    batch: Batch,
    sent_at: UnixTime,
}

impl Collector {
    /// A collector for the records of the worker's stream; `worker` starts its pseudo-random numbers.
    pub fn new(settings: Settings, stream: String, worker: u64) -> Self {
        Self {
            settings,
            stream,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            again: VecDeque::new(),
            flights: Vec::new(),
            held: 0,
            attempts: 0,
            failures: 0,
            next_at: UnixTime::default(),
            jitter: Jitter::new(worker),
        }
    }

    /// Takes a record, or gives it back for the log: there is no room, or the collector is not being
    /// asked now.
    ///
    /// # Errors
    /// The record itself.
    pub fn offer(&mut self, line: Line, now: UnixTime) -> Result<(), Line> {
        let bytes = weight(&line);
        let is_open = self.failures >= TOLERATED && !(self.flights.is_empty() && self.is_time(now));
        if is_open || self.held.saturating_add(bytes) > self.settings.queue_bytes {
            return Err(line);
        }
        self.held = self.held.saturating_add(bytes);
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        self.waiting.push_back((now, line));
        Ok(())
    }

    /// Time has passed: what is due now.
    pub fn tick(&mut self, now: UnixTime) -> Vec<Step> {
        let mut steps = Vec::new();
        // The host gives each callout an end. One without is one that the host forgot.
        let patience = self.settings.timeout.twice();
        let is_lost = |flight: &Flight| {
            let since = now.since(flight.sent_at);
            since > patience || since < Span::ZERO
        };
        while let Some(index) = self.flights.iter().position(is_lost) {
            let flight = self.flights.swap_remove(index);
            self.failed(flight.batch, "gave no answer", now, &mut steps);
        }
        self.send(now, &mut steps);
        steps
    }

    /// The answer to a post: its status, or `None` if there was none.
    pub fn answered(&mut self, attempt: Attempt, status: Option<u16>, now: UnixTime) -> Vec<Step> {
        let mut steps = Vec::new();
        let found = self.flights.iter().position(|flight| flight.attempt == attempt);
        // An answer that nobody waits for any more: the batch was given up and is on its way elsewhere.
        let Some(index) = found else { return steps };
        let Flight { batch, .. } = self.flights.swap_remove(index);
        match status {
            Some(200..=299) => {
                if self.failures >= TOLERATED {
                    let line = "the audit collector takes records again".to_owned();
                    steps.push(Step::Tell(Severity::Info, line));
                }
                self.failures = 0;
                self.held = self.held.saturating_sub(batch.bytes);
                steps.push(Step::Count("audit.collector.taken"));
            }
            Some(status) => {
                let reason = format!("answered with status {status}");
                self.failed(batch, &reason, now, &mut steps);
            }
            None => self.failed(batch, "gave no answer", now, &mut steps),
        }
        self.send(now, &mut steps);
        steps
    }

    /// Everything that is not acknowledged, in the order in which it came: for the log, because this
    /// is the end.
    pub fn close(&mut self) -> Vec<Line> {
        let flights = std::mem::take(&mut self.flights).into_iter().map(|flight| flight.batch);
        let again = std::mem::take(&mut self.again);
        let mut lines: Vec<_> = flights.chain(again).flat_map(|batch| batch.lines).collect();
        lines.extend(std::mem::take(&mut self.waiting).into_iter().map(|(_, line)| line));
        lines.sort_by_key(Line::seq);
        (self.waiting_bytes, self.held) = (0, 0);
        lines
    }

    /// Whether the collector is asked.
    pub fn breaker(&self) -> Breaker {
        match (self.failures < TOLERATED, self.flights.is_empty()) {
            (true, _) => Breaker::Closed,
            (false, false) => Breaker::HalfOpen,
            (false, true) => Breaker::Open,
        }
    }

    /// Bytes of the records that are kept.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether the last failure is long enough ago; also when the clock was set back since.
    fn is_time(&self, now: UnixTime) -> bool {
        self.failures == 0 || now >= self.next_at || self.next_at.since(now) > MOST_BACK_OFF
    }

    fn send(&mut self, now: UnixTime, steps: &mut Vec<Step>) {
        // One that failed is tried by one batch at a time.
        let room = if self.failures == 0 { self.settings.in_flight } else { 1 };
        while self.flights.len() < room && self.is_time(now) {
            let Some(batch) = self.again.pop_front().or_else(|| self.gather(now)) else { return };
            self.attempts = self.attempts.wrapping_add(1);
            let attempt = Attempt(self.attempts);
            steps.push(Step::Post(self.post(attempt, &batch)));
            self.flights.push(Flight { attempt, batch, sent_at: now });
        }
    }

    /// The next batch, if there is enough for one or the oldest record has waited long enough.
    fn gather(&mut self, now: UnixTime) -> Option<Batch> {
        let (oldest, _) = self.waiting.front()?;
        let waited = now.since(*oldest);
        let most = self.settings.batch_bytes;
        if self.waiting_bytes < most && (Span::ZERO..self.settings.batch_time).contains(&waited) {
            return None;
        }
        let mut batch = Batch { lines: Vec::new(), bytes: 0, failures: 0 };
        // A record that is larger than a batch is one by itself.
        while let Some((_, line)) = self.waiting.front()
            && (batch.lines.is_empty() || batch.bytes.saturating_add(weight(line)) <= most)
            && let Some((_, line)) = self.waiting.pop_front()
        {
            batch.bytes = batch.bytes.saturating_add(weight(&line));
            batch.lines.push(line);
        }
        self.waiting_bytes = self.waiting_bytes.saturating_sub(batch.bytes);
        Some(batch)
    }

    fn post(&self, attempt: Attempt, batch: &Batch) -> Post {
        let Settings { cluster, uri, token, timeout, .. } = &self.settings;
        let first = batch.lines.first().map_or(0, Line::seq);
        let mut headers = vec![
            (":method", "POST".to_owned()),
            (":path", uri.path.clone()),
            (":scheme", uri.scheme.to_owned()),
            (":authority", uri.authority.clone()),
            ("content-type", "application/x-ndjson".to_owned()),
            (STREAM_HEADER, self.stream.clone()),
            (BATCH_HEADER, format!("{}-{first}", self.stream)),
        ];
        let bearer = |Secret(token): &Secret| ("authorization", format!("Bearer {token}"));
        headers.extend(token.iter().map(bearer));
        let mut body = Vec::with_capacity(batch.bytes);
        for line in &batch.lines {
            body.extend_from_slice(line.as_str().as_bytes());
            body.push(b'\n');
        }
        Post { attempt, cluster: cluster.clone(), headers, body, timeout: *timeout }
    }

    /// A batch was not taken: it is sent again, unless that was tried often enough.
    fn failed(&mut self, mut batch: Batch, reason: &str, now: UnixTime, steps: &mut Vec<Step>) {
        steps.push(Step::Count("audit.collector.failed"));
        self.next_at = now.plus(self.jitter.less(back_off(self.failures, MOST_BACK_OFF), 2));
        self.failures = self.failures.saturating_add(1);
        batch.failures = batch.failures.saturating_add(1);
        if self.failures >= TOLERATED {
            if self.failures == TOLERATED {
                let line = format!("the audit collector {reason}; records go to the log");
                steps.push(Step::Tell(Severity::Warning, line));
            }
            self.again.push_back(batch);
            self.give_up(steps);
        } else if batch.failures >= TOLERATED {
            self.held = self.held.saturating_sub(batch.bytes);
            steps.push(Step::Log(batch.lines));
        } else {
            self.again.push_back(batch);
        }
    }

    /// Hands over to the log whatever is not on its way to the collector.
    fn give_up(&mut self, steps: &mut Vec<Step>) {
        let mut lines: Vec<_> =
            std::mem::take(&mut self.again).into_iter().flat_map(|batch| batch.lines).collect();
        lines.extend(std::mem::take(&mut self.waiting).into_iter().map(|(_, line)| line));
        let bytes = lines.iter().map(weight).fold(0, usize::saturating_add);
        self.held = self.held.saturating_sub(bytes);
        self.waiting_bytes = 0;
        steps.push(Step::Log(lines));
    }
}

/// The bytes of a record in a batch.
fn weight(line: &Line) -> usize {
    line.len().saturating_add(1)
}

#[cfg(test)]
mod tests;
