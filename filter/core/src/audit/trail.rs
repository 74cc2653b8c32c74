//! One worker's part of the audit trail: what is known of requests under way, the chain of their
//! records, and where the records go.
//!
//! A record is written when its stream has ended, so that it says what became of the request. Until
//! then nothing of a permit is kept that is not needed for it; who called was written down once, when the
//! credentials were verified.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::chain::{Begin, Chain, Counts, EndReason, Line, Loss, LossReason, Predecessor};
use super::collector::{Attempt, Collector, Step};
use super::record::{Decided, Decision, Fragment, RequestParts};
use super::registry::{BEAT, Registry};
use super::settings::Settings;
use super::spool::Spool;
use crate::answer::Rejection;
use crate::arrival::{Arrival, DecisionId, StreamId};
use crate::gate::Verdict;
use crate::hexadecimal;
use crate::limits::Limits;
use crate::policy::{ShadowVerdict, path};
use crate::reject::Code;
use crate::shared::SharedData;
use crate::status;
use crate::time::UnixTime;

/// Bytes of lines that wait for the log at most.
const SPOOL_BYTES: usize = 1024 * 1024;

/// Bytes of lines that are handed to the log before the next tick.
const LOG_BYTES: usize = 16 * 1024;

/// Records that are written together: their code and their data come into the processor's nearest cache
/// once for all of them, and not after each request anew.
const TOGETHER: usize = 16;

/// One worker's part of the audit trail.
pub struct Trail {
    settings: Settings,
    /// The names of the claims, for whoever opens sessions.
    claims: Rc<[String]>,
    mode: &'static str,
    /// The stream's number: the worker's.
    stream: u64,
    process: u64,
    /// `None` until the first record, and after the last one.
    chain: Option<Chain>,
    /// It was closed: a record that comes later is a stream of its own.
    closed: bool,
    registry: Registry,
    /// The stream that this one follows in the same worker, and its place.
    former: Option<(Predecessor, Registry)>,
    counts: Counts,
    /// Permits since the last one that was recorded, where not each is.
    unsampled: u64,
    /// The last signed record.
    signed: Predecessor,
    /// Records since the last signed one.
    unsigned: u64,
    checkpoint_at: UnixTime,
    beat_at: UnixTime,
    pending: FxHashMap<StreamId, Pending>,
    /// Requests whose streams have ended and whose records are still to be written, in this order.
    over: Vec<(Pending, Ended)>,
    /// Bytes of what was asked for by them.
    over_bytes: usize,
    log: Spool,
    collector: Option<Collector>,
    /// What was lost and not said yet: one for each reason.
    losses: Vec<Loss>,
    tally: Tally,
}

/// A stream that has ended, for its record.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// The time.
    pub now: UnixTime,
    /// The time since the epoch, to the nanosecond, if the host has such a clock.
    pub clock: Option<Duration>,
    /// The HTTP status that the caller got, if the host knows one.
    pub status: Option<u16>,
    /// Envoy's response flags.
    pub flags: u64,
}

/// What was counted since the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Records written.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Checkpoints among them.
    pub checkpoints: u64,
    /// Records that reached nobody.
    pub lost: u64,
}

impl Tally {
    /// Every counter that moved: its name and by how much.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("audit.records", self.records),
            ("audit.bytes", self.bytes),
            ("audit.checkpoints", self.checkpoints),
            ("audit.lost", self.lost),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
    }
}

/// A request whose stream has not ended.
#[derive(Debug)]
struct Pending {
    decision_id: DecisionId,
    request: Fragment,
    begun: Option<Duration>,
    /// From the headers to the decision.
    deciding: Option<Duration>,
    /// `None` while it waits.
    outcome: Option<Outcome>,
}

/// What was decided, as its record will have it.
#[derive(Debug)]
struct Outcome {
    decision: Decision,
    shadow_mode: bool,
    because: Option<Box<Because>>,
    rule: Option<Arc<str>>,
    grant: Option<Arc<str>>,
    destination: Option<Arc<str>>,
    shadow: Box<[String]>,
    policies: Option<Rc<Fragment>>,
    caller: Option<Rc<Fragment>>,
    /// The status of a request that was answered here.
    status: Option<u16>,
}

/// Why a request was refused.
#[derive(Debug)]
struct Because {
    code: Code,
    detail: String,
    nearest: Option<String>,
    rule: Option<String>,
}

impl Trail {
    /// A trail that begins with its first record.
    pub(crate) fn new(
        settings: Settings,
        mode: &'static str,
        worker: u64,
        shared: Rc<dyn SharedData>,
    ) -> Self {
        let registry = Registry::new(shared, settings.signer.as_ref().map(|key| key.key_id()));
        let stream = hexadecimal::of_number(worker);
        Self {
            claims: settings.claims.iter().cloned().collect(),
            mode,
            stream: worker,
            process: registry.process(worker),
            chain: None,
            closed: false,
            registry,
            former: None,
            counts: Counts::default(),
            unsampled: 0,
            signed: Predecessor { stream: String::new(), seq: 0, hash: String::new() },
            unsigned: 0,
            checkpoint_at: UnixTime::default(),
            beat_at: UnixTime::default(),
            pending: FxHashMap::default(),
            over: Vec::new(),
            over_bytes: 0,
            log: Spool::new(match &settings.collector {
                // All that the collector keeps may come at once.
                Some(collector) => SPOOL_BYTES.saturating_add(collector.queue_bytes),
                None => SPOOL_BYTES,
            }),
            collector: settings
                .collector
                .clone()
                .map(|settings| Collector::new(settings, stream, worker)),
            losses: Vec::new(),
            tally: Tally::default(),
            settings,
        }
    }

    /// The claims of access tokens that are recorded.
    pub(crate) fn claims(&self) -> Rc<[String]> {
        Rc::clone(&self.claims)
    }

    /// A request arrived, and this became of it.
    pub(crate) fn arrived(
        &mut self,
        arrival: &Arrival<'_>,
        verdict: &Verdict,
        policies: &Rc<Fragment>,
        limits: &Limits,
    ) {
        if matches!(verdict, Verdict::Status(_)) || self.leaves_out(verdict) {
            return;
        }
        let pending = Pending {
            decision_id: arrival.decision_id,
            request: request(arrival.headers, limits),
            begun: None,
            deciding: None,
            outcome: Outcome::of(verdict, policies),
        };
        self.pending.insert(arrival.stream, pending);
    }

    /// A request that waited was decided.
    pub(crate) fn decided(&mut self, stream: StreamId, verdict: &Verdict, policies: &Rc<Fragment>) {
        if self.leaves_out(verdict) {
            self.pending.remove(&stream);
        } else if let Some(pending) = self.pending.get_mut(&stream) {
            pending.outcome = Outcome::of(verdict, policies);
        }
    }

    /// Counts a permit, and says whether it has no record of its own.
    fn leaves_out(&mut self, verdict: &Verdict) -> bool {
        let (Verdict::Permit(_), Some(one_of)) = (verdict, self.settings.sample) else {
            return false;
        };
        // The first one is recorded.
        let left_out = self.unsampled != 0;
        self.unsampled = self.unsampled.saturating_add(1).checked_rem(one_of).unwrap_or_default();
        if left_out {
            self.counts.permits = self.counts.permits.saturating_add(1);
            self.counts.sampled_out = self.counts.sampled_out.saturating_add(1);
        }
        left_out
    }

    /// When the request of this stream came, and when it was decided unless that was at once or is still to be.
    pub fn timed(&mut self, stream: StreamId, begun: Option<Duration>, now: Option<Duration>) {
        if let Some(pending) = self.pending.get_mut(&stream) {
            pending.begun = pending.begun.or(begun);
            if pending.outcome.is_some() {
                pending.deciding = between(pending.begun, now);
            }
        }
    }

    /// The stream has ended: if there is to be a record of it, `ended` says how, and it is written, at the next tick
    /// at the latest. `ended` is told whether what the caller got is for the host to say. Whether there is to be one.
    pub fn ended(&mut self, stream: StreamId, ended: impl FnOnce(bool) -> Ended) -> bool {
        let Some(pending) = self.pending.remove(&stream) else { return false };
        let asks = pending.outcome.as_ref().is_some_and(|outcome| outcome.status.is_none());
        self.over_bytes = self.over_bytes.saturating_add(pending.request.bytes());
        self.over.push((pending, ended(asks)));
        // The first one begins the chain at once: from then on a worker that is killed is missed.
        if self.chain.is_none() || self.over.len() >= TOGETHER || self.over_bytes >= LOG_BYTES {
            self.catch_up();
        }
        true
    }

    /// Writes the records that are still to be written. Whatever else is written comes after them.
    fn catch_up(&mut self) {
        self.over_bytes = 0;
        let mut over = std::mem::take(&mut self.over);
        for (pending, ended) in over.drain(..) {
            self.record(pending, &ended);
        }
        // With its room, for the next ones.
        self.over = over;
    }

    fn record(&mut self, pending: Pending, ended: &Ended) {
        let Pending { decision_id, request, begun, deciding, outcome } = pending;
        self.count(outcome.as_ref().map_or(Decision::Abandoned, |outcome| outcome.decision));
        let micros = |span: Duration| u64::try_from(span.as_micros()).ok();
        let because = outcome.as_ref().and_then(|outcome| outcome.because.as_deref());
        let empty = Decided {
            time: ended.now,
            decision: Decision::Abandoned,
            decision_id: decision_id.as_str(),
            shadow_mode: false,
            code: because.map(|because| because.code.name()),
            detail: because.map(|because| because.detail.as_str()),
            nearest: because.and_then(|because| because.nearest.as_deref()),
            rule: because.and_then(|because| because.rule.as_deref()),
            grant: outcome.as_ref().and_then(|outcome| outcome.grant.as_deref()),
            destination: None,
            shadow: &[],
            policies: None,
            caller: None,
            request: Some(&request),
            status: None,
            flags: ended.flags,
            decided_us: deciding.and_then(micros),
            total_us: between(begun, ended.clock).and_then(micros),
            sampled: None,
        };
        let decided = match &outcome {
            None => empty,
            Some(outcome) => Decided {
                decision: outcome.decision,
                shadow_mode: outcome.shadow_mode,
                rule: empty.rule.or(outcome.rule.as_deref()),
                destination: outcome.destination.as_deref(),
                shadow: &outcome.shadow,
                policies: outcome.policies.as_deref(),
                caller: outcome.caller.as_deref(),
                status: outcome.status.or(ended.status),
                sampled: self.settings.sample.filter(|_| outcome.decision == Decision::Permit),
                ..empty
            },
        };
        let line = self.chain(ended.now).decision(&decided);
        self.written(line, ended.now);
        if self.closed {
            self.end(ended.now, EndReason::Shutdown);
        } else if self.unsigned >= self.settings.checkpoint_records {
            self.checkpoint(ended.now);
        }
    }

    fn count(&mut self, decision: Decision) {
        let count = match decision {
            Decision::Permit => &mut self.counts.permits,
            Decision::Reject => &mut self.counts.rejects,
            Decision::Abandoned => &mut self.counts.abandoned,
        };
        *count = count.saturating_add(1);
    }

    /// What writes records; the first one is written if there is none yet.
    fn chain(&mut self, now: UnixTime) -> &mut Chain {
        let chain = self.chain.take().unwrap_or_else(|| self.begin(now));
        self.chain.insert(chain)
    }

    fn begin(&mut self, now: UnixTime) -> Chain {
        let name = hexadecimal::of_number(self.stream);
        let predecessor = match self.former.take() {
            Some((last, place)) => self.registry.take_over(&place, last, &name, now),
            None => self.registry.enter(&name, now),
        };
        let begin = Begin {
            time: now,
            stream: self.stream,
            process: self.process,
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("AIRFLOW_ENVOY_COMMIT").unwrap_or("unknown"),
            mode: self.mode,
            sample: self.settings.sample,
            predecessor: predecessor.as_ref(),
        };
        let (chain, line) = Chain::begin(&begin, self.settings.signer.clone());
        self.signed = chain.last();
        self.registry.note(&self.signed, false, now);
        (self.checkpoint_at, self.beat_at) = (now, now);
        self.deliver(line, now);
        chain
    }

    /// A record of a decision was written.
    fn written(&mut self, line: Line, now: UnixTime) {
        self.unsigned = self.unsigned.saturating_add(1);
        self.deliver(line, now);
    }

    /// Hands a record to where records go.
    fn deliver(&mut self, line: Line, now: UnixTime) {
        self.tally.records = self.tally.records.saturating_add(1);
        self.tally.bytes = self.tally.bytes.saturating_add(line.len() as u64);
        let open = !self.closed;
        let Some(collector) = self.collector.as_mut().filter(|_| open) else {
            return self.keep_for_log(line);
        };
        let copy = self.settings.log.then(|| line.clone());
        let refused = collector.offer(line, now).err();
        match copy {
            Some(line) => self.keep_for_log(line),
            // The log is what the collector falls back to.
            None => self.fall_back(refused.unwrap_or_default()),
        }
    }

    fn keep_for_log(&mut self, line: Line) {
        if let Err(line) = self.log.push(line) {
            self.lost(&[line], LossReason::Memory);
        }
    }

    /// Records reached nobody. It is said as soon as records do again.
    fn lost(&mut self, lines: &[Line], reason: LossReason) {
        // Those of a stream that ended cannot be named by another one.
        let stream = hexadecimal::of_number(self.stream);
        let own = || lines.iter().filter(|line| line.stream() == stream).map(Line::seq);
        let lost = lines.len() as u64;
        self.tally.lost = self.tally.lost.saturating_add(lost);
        self.counts.lost = self.counts.lost.saturating_add(own().count() as u64);
        let (Some(from_seq), Some(to_seq)) = (own().min(), own().max()) else { return };
        let records = own().count() as u64;
        match self.losses.iter_mut().find(|loss| loss.reason == reason) {
            Some(loss) => {
                loss.records = loss.records.saturating_add(records);
                loss.from_seq = loss.from_seq.min(from_seq);
                loss.to_seq = loss.to_seq.max(to_seq);
            }
            None => self.losses.push(Loss { records, from_seq, to_seq, reason }),
        }
    }

    /// Lines for the log: all that wait, or only if there are enough for a write of their own.
    pub fn take_log(&mut self, all: bool) -> Vec<Line> {
        if all {
            self.catch_up();
        }
        if all || self.closed || self.log.bytes() >= LOG_BYTES {
            return self.log.take_up_to(LOG_BYTES.saturating_mul(4));
        }
        Vec::new()
    }

    /// What became of lines for the log: whether it showed them.
    pub fn logged(&mut self, lines: &[Line], shown: bool, now: UnixTime) {
        if !shown {
            return self.lost(lines, LossReason::Log);
        }
        if self.closed {
            return;
        }
        self.tell_losses(now);
    }

    fn tell_losses(&mut self, now: UnixTime) {
        if self.losses.is_empty() {
            return;
        }
        self.catch_up();
        for loss in std::mem::take(&mut self.losses) {
            let line = self.chain(now).loss(now, &loss);
            self.written(line, now);
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: UnixTime) -> Vec<Step> {
        self.catch_up();
        if self.chain.is_some() {
            let since = now.since(self.checkpoint_at);
            let due = since >= self.settings.checkpoint_time || now < self.checkpoint_at;
            if self.unsigned > 0 && due {
                self.checkpoint(now);
            } else if now.since(self.beat_at) >= BEAT || now < self.beat_at {
                self.beat(false, now);
            }
        }
        let steps = match &mut self.collector {
            Some(collector) => collector.tick(now),
            None => Vec::new(),
        };
        self.carry_out(steps)
    }

    /// The answer to a post of the collector.
    pub(crate) fn answered(
        &mut self,
        attempt: Attempt,
        status: Option<u16>,
        now: UnixTime,
    ) -> Vec<Step> {
        let steps = match &mut self.collector {
            Some(collector) => collector.answered(attempt, status, now),
            None => Vec::new(),
        };
        self.carry_out(steps)
    }

    /// Keeps for the log what the collector gives back; the other steps are for the host.
    fn carry_out(&mut self, steps: Vec<Step>) -> Vec<Step> {
        let mut others = Vec::new();
        for step in steps {
            match step {
                Step::Log(lines) => self.fall_back(lines),
                other => others.push(other),
            }
        }
        others
    }

    fn fall_back(&mut self, lines: Vec<Line>) {
        // It has them already.
        if self.settings.log {
            return;
        }
        for line in lines {
            self.keep_for_log(line);
        }
    }

    fn checkpoint(&mut self, now: UnixTime) {
        let counts = self.counts;
        let Some(chain) = &mut self.chain else { return };
        let line = chain.checkpoint(now, &counts);
        (self.unsigned, self.checkpoint_at) = (0, now);
        self.tally.checkpoints = self.tally.checkpoints.saturating_add(1);
        self.deliver(line, now);
        self.beat(false, now);
    }

    /// Lets the other workers know how far this stream is.
    fn beat(&mut self, closed: bool, now: UnixTime) {
        self.beat_at = now;
        if let Some(chain) = &self.chain {
            // What a successor names is signed: what came after it may be gone with the worker.
            if closed || self.unsigned == 0 {
                self.signed = chain.last();
            }
            self.registry.note(&self.signed, closed, now);
        }
    }

    /// The stream ends; everything that waits for the collector is for the log now.
    pub fn end(&mut self, now: UnixTime, reason: EndReason) {
        self.catch_up();
        self.closed = true;
        let lines = self.collector.as_mut().map(Collector::close).unwrap_or_default();
        self.fall_back(lines);
        // The last chance to say what was lost; the end vouches for it.
        self.tell_losses(now);
        let counts = self.counts;
        if let Some(chain) = &mut self.chain {
            let line = chain.end(now, &counts, reason);
            self.unsigned = 0;
            self.deliver(line, now);
            self.beat(true, now);
        }
        if let Some(chain) = self.chain.take() {
            // A record that comes later must not have a number twice. Workers' numbers are odd.
            self.stream = self.stream.wrapping_add(2);
            self.former = Some((chain.last(), self.registry.clone()));
            self.counts = Counts::default();
        }
    }

    /// Follows another trail of the same worker, which has ended: its requests are still under way.
    pub(crate) fn follow(&mut self, former: &mut Self) {
        self.pending.extend(former.pending.drain());
        self.former = former.former.take();
    }

    /// How it is.
    pub fn status(&self, now: UnixTime) -> status::Audit {
        status::Audit {
            stream: self.stream,
            seq: self.chain.as_ref().map(|chain| chain.last().seq),
            lost: self.counts.lost,
            checkpoint_age: self.chain.as_ref().map(|_| now.since(self.checkpoint_at)),
            collector: self.collector.as_ref().map(Collector::breaker),
        }
    }

    /// What was counted since the last call.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}

impl Outcome {
    /// What a verdict leaves to be recorded; nothing while the request waits.
    fn of(verdict: &Verdict, policies: &Rc<Fragment>) -> Option<Self> {
        match verdict {
            Verdict::Permit(permit) => Some(Self {
                decision: Decision::Permit,
                shadow_mode: false,
                because: None,
                rule: Some(permit.shared_rule()),
                grant: permit.shared_grant(),
                destination: permit.shared_destination(),
                shadow: shadow(permit.shadow()),
                policies: Some(Rc::clone(policies)),
                caller: permit.caller(),
                status: None,
            }),
            Verdict::Reject(rejection) => {
                // To a caller of gRPC every answer is 200 (its status is in the trailers).
                let status = if rejection.grpc { 200 } else { rejection.status() };
                Some(Self { status: Some(status), ..Self::refused(rejection, policies) })
            }
            Verdict::Pass(pass) => {
                Some(Self { shadow_mode: true, ..Self::refused(pass.rejection(), policies) })
            }
            Verdict::Status(_) | Verdict::Wait => None,
        }
    }

    fn refused(rejection: &Rejection, policies: &Rc<Fragment>) -> Self {
        let Rejection { reject, known, .. } = rejection;
        let by_policy = matches!(
            reject.code,
            Code::AuthorityInvalid
                | Code::PathInvalid
                | Code::DestinationUnknown
                | Code::IntentionDenied
                | Code::PeerNotAllowed
                | Code::AssertionNotAllowed
                | Code::PolicyNoMatch
                | Code::PolicyDenied
        );
        let because = Because {
            code: reject.code,
            detail: reject.detail.clone(),
            nearest: reject.nearest.clone(),
            rule: reject.rule.clone(),
        };
        Self {
            decision: Decision::Reject,
            shadow_mode: false,
            because: Some(Box::new(because)),
            rule: None,
            grant: None,
            destination: known.destination.clone(),
            shadow: shadow(&known.shadow),
            policies: by_policy.then(|| Rc::clone(policies)),
            caller: known.caller().cloned(),
            status: None,
        }
    }
}

fn shadow(verdicts: &[ShadowVerdict]) -> Box<[String]> {
    verdicts.iter().map(ToString::to_string).collect()
}

/// A clock that was set back says nothing.
fn between(earlier: Option<Duration>, later: Option<Duration>) -> Option<Duration> {
    later?.checked_sub(earlier?)
}

/// What a request asks for, whether or not it can be read: the first of each header.
fn request(headers: &[(&[u8], &[u8])], limits: &Limits) -> Fragment {
    let mut parts = RequestParts::default();
    let mut target = None;
    for (name, value) in headers {
        let slot = match *name {
            b":method" => &mut parts.method,
            b":scheme" => &mut parts.scheme,
            b":authority" => &mut parts.authority,
            b":path" => &mut target,
            b"x-request-id" => &mut parts.request_id,
            b"traceparent" => &mut parts.traceparent,
            _ => continue,
        };
        *slot = slot.or(Some(*value));
    }
    let mut normal = None;
    if let Some(target) = target {
        let end = target.iter().position(|byte| *byte == b'?');
        let (path, query) =
            target.split_at_checked(end.unwrap_or(target.len())).unwrap_or((target, &[]));
        parts.query = query.strip_prefix(b"?");
        parts.path = Some(path);
        let path = std::str::from_utf8(path).ok();
        normal = path.and_then(|path| path::normalise(path, limits).ok());
    }
    if let Some(normal) = &normal {
        parts.path = Some(normal.as_bytes());
    }
    Fragment::request(&parts)
}

/// Without what it remembers.
impl std::fmt::Debug for Trail {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Trail").field("counts", &self.counts).finish_non_exhaustive()
    }
}
