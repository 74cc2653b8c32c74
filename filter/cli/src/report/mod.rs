//! What an audit trail says in sum: who talks to whom, what is refused and why, what is slow.
//!
//! Records are taken one by one and counted with bounded memory ([`bounded`]). Whether the trail is
//! whole and true is not its business: `audit verify` says that, and a report repeats it.

pub mod bounded;
mod json;
mod page;
mod text;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use airflow_envoy_core::time::UnixTime;

use self::bounded::{Bounded, Histogram, Ranges, Timeline, Weight};
use crate::audit::record::{Counts, Decision, Kind, Record};
use crate::audit::{Found, Seen};
use crate::graph::State;
use crate::model::Model;
use crate::output::html::short;

/// Keys of each kind that are counted one by one.
const MOST: usize = 5_000;

/// Streams that are told one by one.
const MOST_STREAMS: usize = 10_000;

/// Characters of a name.
const MOST_NAME: usize = 200;

/// A caller as a report tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Who {
    /// A verified Airflow identity's DAG.
    Dag(String),
    /// The subject or client of a verified access token.
    Subject(String),
    /// A verified mesh peer.
    Peer(String),
    /// Nobody: nothing was verified.
    #[default]
    Unverified,
}

/// Where a call went.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Target {
    /// A destination of the policy.
    Destination(String),
    /// A host that is none, as the caller named it.
    Host(String),
    /// Not even that is known.
    #[default]
    Unknown,
}

/// Calls of a caller to a target.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// Let through.
    pub permits: u64,
    /// Of these, by a temporary grant.
    pub granted: u64,
    /// Refused.
    pub rejects: u64,
    /// Let through although they were refused: whole-filter shadow mode.
    pub unenforced: u64,
    /// Left before it was decided.
    pub abandoned: u64,
}

impl Weight for Traffic {
    fn weight(&self) -> u64 {
        [self.permits, self.rejects, self.unenforced, self.abandoned]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl Traffic {
    fn add(&mut self, record: &Record<'_>) {
        let weight = record.weight();
        let unenforced = record.mode.as_deref() == Some("shadow");
        let count = match record.decision {
            Some(Decision::Permit) => {
                if record.grant.is_some() {
                    self.granted = self.granted.saturating_add(weight);
                }
                &mut self.permits
            }
            Some(Decision::Reject) if unenforced => &mut self.unenforced,
            Some(Decision::Reject) => &mut self.rejects,
            Some(Decision::Abandoned) | None => &mut self.abandoned,
        };
        *count = count.saturating_add(weight);
    }
}

/// What tells refusals apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cause {
    /// The code.
    pub code: String,
    /// The deny rule.
    pub rule: Option<String>,
    /// The rule that came nearest to allowing it.
    pub nearest: Option<String>,
    /// Who called.
    pub who: Who,
    /// The task.
    pub task: Option<String>,
    /// Where to.
    pub target: Target,
}

/// Refusals of one cause.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    /// How many.
    pub count: u64,
    /// Of these, let through in shadow mode.
    pub unenforced: u64,
    /// The first.
    pub first: Option<UnixTime>,
    /// The last.
    pub last: Option<UnixTime>,
    /// The explanation of the last one.
    pub detail: String,
    /// Its method and path.
    pub request: String,
    /// Its id.
    pub decision_id: String,
}

impl Weight for Refusals {
    fn weight(&self) -> u64 {
        self.count
    }
}

/// What a rule or a grant decided.
#[derive(Debug, Clone, Default)]
pub struct Use {
    /// Calls that it permitted.
    pub permits: u64,
    /// Calls that it refused.
    pub rejects: u64,
    /// Calls about which it would have decided otherwise: a shadow rule.
    pub watched: u64,
    /// The first.
    pub first: Option<UnixTime>,
    /// The last.
    pub last: Option<UnixTime>,
    /// Of a grant: what may be granted by this name.
    pub grantable: Option<String>,
    /// Of a grant: who used it, at most a few.
    pub who: Vec<Who>,
}

impl Weight for Use {
    fn weight(&self) -> u64 {
        self.permits.saturating_add(self.rejects).saturating_add(self.watched)
    }
}

impl Use {
    fn note(&mut self, at: UnixTime) {
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
        self.last = Some(self.last.map_or(at, |last| last.max(at)));
    }
}

/// How long calls of a destination took.
#[derive(Debug, Clone, Default)]
pub struct Durations {
    /// Permitted calls as a whole.
    pub total: Histogram,
    /// The decision alone, of all calls.
    pub decided: Histogram,
}

impl Weight for Durations {
    fn weight(&self) -> u64 {
        self.decided.count().max(self.total.count())
    }
}

/// One worker's stream.
#[derive(Debug, Default)]
pub struct Stream {
    /// The Envoy process.
    pub process: String,
    /// The version of the filter.
    pub version: String,
    /// The key that signs, if one does.
    pub key_id: String,
    /// The first record.
    pub first: Option<UnixTime>,
    /// The last record.
    pub last: Option<UnixTime>,
    /// Different records.
    pub records: u64,
    /// What the last checkpoint counts.
    pub counts: Option<Counts>,
    /// Why it ended, if it did.
    pub ended: Option<String>,
    /// Records that it says were lost.
    pub lost: u64,
    seen: Ranges,
}

impl Stream {
    /// Places in the stream, up to the last one, whose records are not there and that it does not say are lost.
    pub fn missing(&self) -> u64 {
        self.seen.missing().saturating_sub(self.lost)
    }
}

/// What is counted, of which time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// From this time on.
    pub since: Option<UnixTime>,
    /// Before this time.
    pub until: Option<UnixTime>,
}

impl Window {
    fn has(self, at: UnixTime) -> bool {
        self.since.is_none_or(|since| since <= at) && self.until.is_none_or(|until| at < until)
    }
}

/// What `audit verify` said of the same files.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// What is wrong; none if the trail is whole and true.
    pub faults: Vec<String>,
    /// How many records there are.
    pub records: u64,
    /// For how many of them a good signature vouches; `None` if signatures were not checked.
    pub vouched: Option<u64>,
}

/// A rule of a policy beside what the trail says of it.
#[derive(Debug, Clone)]
pub struct RuleUse {
    /// Its id.
    pub id: String,
    /// What it does: `allow`, `deny`, `shadow allow`, `shadow deny`.
    pub effect: &'static str,
    /// Why it is there.
    pub intent: Option<String>,
    /// Where it stands.
    pub place: String,
    /// How it stands in time.
    pub state: State,
    /// When it ceases to apply.
    pub expires_at: Option<UnixTime>,
    /// What it decided.
    pub used: Use,
}

/// The sums.
#[derive(Debug)]
pub struct Report {
    /// The time it is about.
    pub window: Window,
    /// All decisions in it.
    pub all: Traffic,
    /// Records of decisions in it.
    pub recorded: u64,
    /// The first of them.
    pub first: Option<UnixTime>,
    /// The last of them.
    pub last: Option<UnixTime>,
    /// By caller and target.
    pub traffic: Bounded<(Who, Target), Traffic>,
    /// By cause.
    pub refusals: Bounded<Cause, Refusals>,
    /// By rule.
    pub rules: Bounded<String, Use>,
    /// By grant.
    pub grants: Bounded<String, Use>,
    /// By destination.
    pub durations: Bounded<String, Durations>,
    /// By time and code; `permit`, `abandoned` and codes.
    pub timeline: Timeline,
    /// By name.
    pub streams: BTreeMap<String, Stream>,
    /// Records of streams beyond those.
    pub other_streams: u64,
    /// Records that were there more than once.
    pub duplicates: u64,
    /// Records that cannot be read.
    pub unreadable: u64,
    /// Records outside of the window.
    pub outside: u64,
    /// What the reader saw.
    pub seen: Seen,
    /// What the verifier says; `None` if it was not asked.
    pub verified: Option<Verified>,
    /// With a policy: each of its rules.
    pub policy: Option<Vec<RuleUse>>,
}

impl Report {
    /// Nothing yet.
    pub fn new(window: Window) -> Self {
        Self {
            window,
            all: Traffic::default(),
            recorded: 0,
            first: None,
            last: None,
            traffic: Bounded::new(MOST),
            refusals: Bounded::new(MOST),
            // A policy may have more rules than that; of those in use none must be forgotten.
            rules: Bounded::new(4 * MOST),
            grants: Bounded::new(MOST),
            durations: Bounded::new(MOST),
            timeline: Timeline::default(),
            streams: BTreeMap::new(),
            other_streams: 0,
            duplicates: 0,
            unreadable: 0,
            outside: 0,
            seen: Seen::default(),
            verified: None,
            policy: None,
        }
    }

    /// Counts what was found in a line.
    pub fn take(&mut self, found: &Found<'_>) {
        let Found::Record(head) = found else {
            self.unreadable += 1;
            return;
        };
        match Record::parse(head.text).ok().and_then(|record| record.at().map(|at| (record, at))) {
            Some((record, at)) => self.add(&record, at),
            None => self.unreadable += 1,
        }
    }

    fn add(&mut self, record: &Record<'_>, at: UnixTime) {
        if !self.note_stream(record, at) {
            self.duplicates += 1;
        } else if record.kind == Kind::Decision {
            if self.window.has(at) {
                self.add_decision(record, at);
            } else {
                self.outside += 1;
            }
        }
    }

    /// Whether the record is new.
    fn note_stream(&mut self, record: &Record<'_>, at: UnixTime) -> bool {
        let has_room = self.streams.len() < MOST_STREAMS;
        let stream = match self.streams.entry(name(&record.stream)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) if has_room => entry.insert(Stream::default()),
            Entry::Vacant(_) => {
                self.other_streams += 1;
                return true;
            }
        };
        if !stream.seen.insert(record.seq) {
            return false;
        }
        stream.records += 1;
        stream.first = Some(stream.first.map_or(at, |first| first.min(at)));
        let is_last = stream.last.is_none_or(|last| last <= at);
        stream.last = Some(stream.last.map_or(at, |last| last.max(at)));
        if let Some(key_id) = &record.key_id {
            stream.key_id = name(key_id);
        }
        match record.kind {
            Kind::Begin => {
                stream.process = record.process.as_deref().map(name).unwrap_or_default();
                stream.version = record.version.as_deref().map(name).unwrap_or_default();
            }
            Kind::Checkpoint if is_last => stream.counts = record.counts.or(stream.counts),
            Kind::End => {
                stream.counts = record.counts.or(stream.counts);
                stream.ended = Some(record.reason.as_deref().map(name).unwrap_or_default());
            }
            Kind::Loss => {
                stream.lost = stream.lost.saturating_add(record.records.unwrap_or_default());
            }
            Kind::Checkpoint | Kind::Decision => {}
        }
        true
    }

    fn add_decision(&mut self, record: &Record<'_>, at: UnixTime) {
        let weight = record.weight();
        self.recorded += 1;
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
        self.last = Some(self.last.map_or(at, |last| last.max(at)));
        let (who, target) = (who(record), target(record));
        self.all.add(record);
        self.traffic.entry((who.clone(), target.clone())).add(record);
        let code = record.code.as_deref().map(name).unwrap_or_else(|| "no_code".to_owned());
        match record.decision {
            Some(Decision::Permit) => self.timeline.add(at, "permit", weight),
            Some(Decision::Reject) => self.timeline.add(at, &code, weight),
            Some(Decision::Abandoned) | None => self.timeline.add(at, "abandoned", weight),
        }
        if let Target::Destination(destination) = &target {
            let durations = self.durations.entry(destination.clone());
            // One that was made at once does not say how long it took.
            let at_once = record.duration_us.total.and(Some(0));
            if let Some(decided) = record.duration_us.decided.or(at_once) {
                durations.decided.add(decided, weight);
            }
            if let (Some(Decision::Permit), Some(total)) =
                (record.decision, record.duration_us.total)
            {
                durations.total.add(total, weight);
            }
        }
        if let Some(rule) = record.rule.as_deref() {
            let used = self.rules.entry(name(rule));
            used.note(at);
            let count = match record.decision {
                Some(Decision::Permit) => &mut used.permits,
                _ => &mut used.rejects,
            };
            *count = count.saturating_add(weight);
        }
        for shadow in record.shadow.iter().take(16) {
            // `rule:permit` or `rule:reject`.
            let rule = shadow.rsplit_once(':').map_or(&**shadow, |(rule, _)| rule);
            let used = self.rules.entry(name(rule));
            used.note(at);
            used.watched = used.watched.saturating_add(weight);
        }
        if let Some(grant) = record.grant.as_deref() {
            let used = self.grants.entry(name(grant));
            used.note(at);
            used.permits = used.permits.saturating_add(weight);
            used.grantable = record.rule.as_deref().map(name);
            if used.who.len() < 8 && !used.who.contains(&who) {
                used.who.push(who.clone());
            }
        }
        if record.decision == Some(Decision::Reject) {
            let identity = record.caller.identity.as_ref();
            let cause = Cause {
                code,
                rule: record.rule.as_deref().map(name),
                nearest: record.nearest.as_deref().map(name),
                who,
                task: identity.map(|identity| name(&identity.task_id)),
                target,
            };
            let refusals = self.refusals.entry(cause);
            refusals.count = refusals.count.saturating_add(weight);
            if record.mode.as_deref() == Some("shadow") {
                refusals.unenforced = refusals.unenforced.saturating_add(weight);
            }
            refusals.first = Some(refusals.first.map_or(at, |first| first.min(at)));
            if refusals.last.is_none_or(|last| last <= at) {
                refusals.last = Some(at);
                refusals.detail =
                    short(record.detail.as_deref().unwrap_or_default(), 2 * MOST_NAME);
                let request = &record.request;
                let method = request.method.as_deref().unwrap_or("?");
                let authority = request.authority.as_deref().unwrap_or_default();
                let path = request.path.as_deref().unwrap_or_default();
                refusals.request = name(&format!("{method} {authority}{path}"));
                refusals.decision_id = record.decision_id.as_deref().map(name).unwrap_or_default();
            }
        }
    }

    /// Puts the rules of a policy beside what was counted.
    pub fn compare(&mut self, model: &Model, state: impl Fn(&crate::model::Rule) -> State) {
        // With several sources a rule is called by its source too.
        let qualified: HashMap<&str, &Use> = (self.rules.sorted().into_iter().rev())
            .filter_map(|(id, used)| Some((id.split_once('/')?.1, used)))
            .collect();
        let rules = model.rules.iter().map(|rule| {
            let used = self.rules.find(&rule.id).or_else(|| qualified.get(&*rule.id).copied());
            let used = used.cloned().unwrap_or_default();
            RuleUse {
                id: rule.id.clone(),
                effect: match (rule.shadow, rule.allows) {
                    (false, true) => "allow",
                    (false, false) => "deny",
                    (true, true) => "shadow allow",
                    (true, false) => "shadow deny",
                },
                intent: rule.intent.clone(),
                place: rule.place.to_string(),
                state: state(rule),
                expires_at: rule.expires_at,
                used,
            }
        });
        let rules = rules.collect();
        self.policy = Some(rules);
    }

    /// Rules of the policy that decided nothing, of those that could have.
    pub fn unused(&self) -> impl Iterator<Item = &RuleUse> {
        let idle = |rule: &&RuleUse| rule.used.weight() == 0 && rule.state != State::NotYet;
        self.policy.iter().flatten().filter(idle)
    }

    /// Rules of the policy that are over, or are soon.
    pub fn ending(&self) -> impl Iterator<Item = &RuleUse> {
        let ends = |rule: &&RuleUse| matches!(rule.state, State::Soon | State::Over);
        self.policy.iter().flatten().filter(ends)
    }

    /// Destinations by the time in which 95 of 100 permitted calls were done, the slowest first.
    pub fn slowest(&self) -> Vec<(&String, &Durations)> {
        let mut all = self.durations.sorted();
        all.retain(|(_, durations)| durations.total.count() > 0);
        all.sort_by_key(|(_, durations)| std::cmp::Reverse(durations.total.percentile(95)));
        all
    }

    /// Records missing in all streams, and records that they say are lost.
    pub fn gaps(&self) -> (u64, u64) {
        let sum =
            |of: fn(&Stream) -> u64| self.streams.values().map(of).fold(0, u64::saturating_add);
        (sum(Stream::missing), sum(|stream| stream.lost))
    }

    /// What is to be said of the trail itself, and whether it is good.
    pub fn evidence(&self) -> (bool, String) {
        let (missing, lost) = self.gaps();
        let mut told = match &self.verified {
            None => "Not verified: this report counts what the files say. `--keys` or `--verify` tells whether \
                     they were changed."
                .to_owned(),
            Some(Verified { faults, .. }) if !faults.is_empty() => {
                format!("The trail has {}.", crate::output::plural(faults.len(), "fault"))
            }
            Some(Verified { vouched: Some(vouched), records, .. }) => {
                format!("The trail is whole; signatures vouch for {vouched} of {records} records.")
            }
            Some(_) => "The trail is whole by its hashes. Its signatures were not checked: without `--keys`, \
                        whoever can write the files can make a chain anew."
                .to_owned(),
        };
        for (count, what) in [
            (missing, "missing in the streams"),
            (lost, "lost, as the filter itself says"),
            (self.unreadable, "not readable"),
        ] {
            if count > 0 {
                told.push_str(&format!(" Records {what}: {count}."));
            }
        }
        let verified = self.verified.as_ref();
        let whole =
            verified.is_some_and(|one| one.faults.is_empty() && one.vouched == Some(one.records));
        (whole && missing == 0 && lost == 0 && self.unreadable == 0, told)
    }
}

impl Who {
    /// Their name.
    pub fn name(&self) -> &str {
        match self {
            Self::Dag(name) | Self::Subject(name) | Self::Peer(name) => name,
            Self::Unverified => "nobody verified",
        }
    }

    /// What the name is of.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Dag(_) => "DAG",
            Self::Subject(_) => "subject of an access token",
            Self::Peer(_) => "mesh peer",
            Self::Unverified => "",
        }
    }
}

impl Target {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Destination(name) | Self::Host(name) => name,
            Self::Unknown => "unknown",
        }
    }

    /// What the name is of.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Destination(_) => "destination",
            Self::Host(_) => "host, no destination",
            Self::Unknown => "",
        }
    }
}

fn name(text: &str) -> String {
    short(text, MOST_NAME)
}

fn who(record: &Record<'_>) -> Who {
    let caller = &record.caller;
    if let Some(identity) = &caller.identity {
        return Who::Dag(name(&identity.dag_id));
    }
    let token = caller.token.as_ref();
    if let Some(subject) =
        token.and_then(|token| token.subject.as_ref().or(token.client_id.as_ref()))
    {
        return Who::Subject(name(subject));
    }
    let peer = caller.peer.as_ref();
    match peer.and_then(|peer| peer.service.as_ref().or(peer.spiffe_id.as_ref())) {
        Some(peer) => Who::Peer(name(peer)),
        None => Who::Unverified,
    }
}

fn target(record: &Record<'_>) -> Target {
    match (&record.destination, &record.request.authority) {
        (Some(destination), _) => Target::Destination(name(destination)),
        (None, Some(authority)) => Target::Host(name(authority)),
        (None, None) => Target::Unknown,
    }
}

/// A duration for people.
fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..100_000 => format!("{}.{} ms", micros / 1_000, micros / 100 % 10),
        100_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10),
    }
}

#[cfg(test)]
mod tests;
