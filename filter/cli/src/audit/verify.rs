//! Is the trail the one that was written? What is wrong with it, where, and what is still vouched for.
//!
//! Each line has the hash of the one before it, so a line that vouches for another vouches for all before
//! it; a good signature is where that begins. Records are put in the order of their numbers first, whatever
//! files they come from: where they stand matters only for telling that somebody moved them.
//!
//! What cannot be seen here: a tail that was cut off a stream that still runs, and a whole stream that no
//! other one names. That is what a [`Witness`] is for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use airflow_envoy_core::quote::quote;
use serde_json::{Map, Value, json};

use super::link::{
    Hash, Keys, Link, Links, Rest, Signature, hash_text, read_hash, stream_number, text_of,
};
use super::parallel::each_chunk;
use super::reader::{Damaged, Place, Reader, Seen};
use super::record::Kind;

/// Lines that are told one by one because they are no records any more; a file that somebody rewrote as a
/// whole has as many as it has lines.
const MOST_LINES_TOLD: usize = 100_000;

/// How to look at a trail.
#[derive(Debug, Default)]
pub struct Options {
    /// What signatures are checked with; none: they are not.
    pub keys: Keys,
    /// Streams may still run: none of them needs an end.
    pub open: bool,
    /// Older files are gone: a stream may begin with any record, and who it took over from may be missing.
    pub rotated: bool,
    /// Heads that were seen before.
    pub witness: Option<Witness>,
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "said by `meaning`")]
pub enum Code {
    Edited,
    Damaged,
    Removed,
    Beginning,
    Truncated,
    Reordered,
    Inserted,
    Signature,
    Unsigned,
    KeyUnknown,
    Version,
    Predecessor,
    Forked,
    Witness,
}

impl Code {
    /// All of them, in the order of the README's table.
    pub const ALL: [Self; 14] = [
        Self::Edited,
        Self::Damaged,
        Self::Removed,
        Self::Beginning,
        Self::Truncated,
        Self::Reordered,
        Self::Inserted,
        Self::Signature,
        Self::Unsigned,
        Self::KeyUnknown,
        Self::Version,
        Self::Predecessor,
        Self::Forked,
        Self::Witness,
    ];

    /// What it means; for people, as a sentence without a full stop.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Edited => "The line is not the one that was written",
            Self::Damaged => "What was a record is none any more",
            Self::Removed => "Records are missing, and no record says that they were lost",
            Self::Beginning => {
                "The stream does not begin with its first record (`--rotated`: no fault)"
            }
            Self::Truncated => {
                "The stream neither ends nor is taken over from (`--open`: no fault), or its successor names a later record"
            }
            Self::Reordered => "The line stands elsewhere than it was written",
            Self::Inserted => "There is another record of this number, or one behind the end",
            Self::Signature => {
                "The signature was not made with the key that it names: the chain before it was made anew"
            }
            Self::Unsigned => "A begin, checkpoint or end has no signature, though keys are given",
            Self::KeyUnknown => "Signed by a key that is not among those given",
            Self::Version => "A record of a version that this tool does not know",
            Self::Predecessor => {
                "The stream that this one took over from is missing (`--rotated`: no fault), or not the one that it names"
            }
            Self::Forked => "Two streams took over from the same one",
            Self::Witness => "A record that was seen before has changed or vanished",
        }
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Damaged => "damaged",
            Self::Removed => "removed",
            Self::Beginning => "beginning-missing",
            Self::Truncated => "truncated",
            Self::Reordered => "reordered",
            Self::Inserted => "inserted",
            Self::Signature => "signature-invalid",
            Self::Unsigned => "unsigned",
            Self::KeyUnknown => "key-unknown",
            Self::Version => "version-unknown",
            Self::Predecessor => "predecessor-missing",
            Self::Forked => "forked",
            Self::Witness => "witness-contradicted",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault it is.
    pub code: Code,
    /// Where it shows, if it does anywhere.
    pub place: Option<Place>,
    /// The stream.
    pub stream: Option<u64>,
    /// The first and the last record that it is about.
    pub seqs: Option<(u64, u64)>,
    /// What it means; lower case, no full stop.
    pub told: String,
}

/// What was found out about one stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stream {
    /// Its process, as its begin says.
    pub process: Option<String>,
    /// How many records there are, each once.
    pub records: u64,
    /// The first and the last one.
    pub seqs: (u64, u64),
    /// The hash of the last one.
    pub head: Hash,
    /// Whether it was ended.
    pub ended: bool,
    /// The stream that took over from it.
    pub successor: Option<u64>,
    /// Ranges of records that a good signature vouches for.
    pub vouched: Vec<(u64, u64)>,
    /// Records that the stream says were lost, and are.
    pub lost: u64,
    /// Keys of its signatures, each with the first and last time.
    pub keys: BTreeMap<String, (String, String)>,
    /// How many records are older than the one before them, and the first of these.
    pub backwards: u64,
    /// The first of these.
    pub backwards_at: Option<Place>,
}

/// What was found out about a trail.
#[derive(Debug, Default)]
pub struct Verified {
    /// What was seen.
    pub seen: Seen,
    /// What is wrong, in the order of files and lines; what has no place comes last.
    pub faults: Vec<Fault>,
    /// The streams.
    pub streams: BTreeMap<u64, Stream>,
    /// Records that stand there more than once, word for word.
    pub duplicates: u64,
    /// Whether signatures were checked.
    pub checked: bool,
}

/// The last record of each stream as it was seen before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Witness(pub BTreeMap<u64, (u64, Hash)>);

impl Witness {
    /// Reads what [`Self::document`] writes.
    ///
    /// # Errors
    /// Why it is none.
    pub fn read(document: &[u8]) -> Result<Self, String> {
        let value =
            airflow_envoy_core::json::parse(document, 8).map_err(|error| error.to_string())?;
        let streams = value.get("streams").and_then(Value::as_object);
        let streams = streams.ok_or("is no witness: it has no object `streams`")?;
        let head = |(name, head): (&String, &Value)| {
            let read = || {
                let stream = stream_number(name)?;
                let seq = head.get("seq").and_then(Value::as_u64)?;
                Some((stream, (seq, read_hash(text_of(head, "hash")?)?)))
            };
            read().ok_or_else(|| format!("is no witness: {} has no `seq` and `hash`", quote(name)))
        };
        streams.iter().map(head).collect::<Result<_, _>>().map(Self)
    }

    /// As a document.
    pub fn document(&self) -> Value {
        let head = |(stream, (seq, hash)): (&u64, &(u64, Hash))| {
            (name(*stream), json!({"seq": seq, "hash": hash_text(hash)}))
        };
        let streams: Map<String, Value> = self.0.iter().map(head).collect();
        json!({"version": 1, "streams": streams})
    }

    /// With the heads that were seen now.
    pub fn after(&self, verified: &Verified) -> Self {
        let mut heads = self.0.clone();
        for (number, stream) in &verified.streams {
            heads.insert(*number, (stream.seqs.1, stream.head));
        }
        Self(heads)
    }
}

/// The name of a stream.
pub fn name(stream: u64) -> String {
    format!("{stream:016x}")
}

/// Verifies what `reader` reads. `progress` is told the bytes that were read.
///
/// # Errors
/// A file that cannot be read.
pub fn verify(
    reader: &mut Reader,
    options: &Options,
    mut progress: impl FnMut(u64),
) -> Result<Verified, String> {
    let mut trail = Trail::default();
    let mut order = 0;
    each_chunk(
        reader,
        || |chunk: &super::Chunk| Links::of(chunk, &options.keys),
        |found: Links| {
            trail.seen.add(found.seen);
            progress(trail.seen.bytes);
            let room = |taken: usize| MOST_LINES_TOLD.saturating_sub(taken);
            trail.damaged.extend(found.damaged.into_iter().take(room(trail.damaged.len())));
            let versions = found.foreign_versions.into_iter();
            trail.versions.extend(versions.take(room(trail.versions.len())));
            let mut current: Option<(u64, &mut Vec<Link>)> = None;
            for (stream, mut link) in found.links {
                link.order = order;
                order += 1;
                match &mut current {
                    Some((same, links)) if *same == stream => links.push(link),
                    _ => {
                        let links = trail.streams.entry(stream).or_default();
                        links.push(link);
                        current = Some((stream, links));
                    }
                }
            }
        },
    )?;
    Ok(trail.judge(options))
}

/// All that was read.
#[derive(Default)]
struct Trail {
    streams: HashMap<u64, Vec<Link>>,
    damaged: Vec<(Place, Damaged)>,
    versions: Vec<(Place, String)>,
    seen: Seen,
}

/// A stream as far as its chain is settled.
struct Settled {
    /// One for each number, ascending.
    links: Vec<Link>,
    /// Those that have the number of another one.
    others: Vec<Link>,
    duplicates: u64,
}

impl Trail {
    fn judge(mut self, options: &Options) -> Verified {
        let mut verified =
            Verified { seen: self.seen, checked: !options.keys.is_empty(), ..Verified::default() };
        // Records that are not where they were: said once, by what they are themselves.
        let mut known: BTreeSet<(u64, u64)> = BTreeSet::new();
        for (place, damaged) in self.damaged {
            let stream = damaged.stream.as_deref().and_then(stream_number);
            known.extend(stream.zip(damaged.seq));
            verified.faults.push(Fault {
                code: Code::Damaged,
                place: Some(place),
                stream,
                seqs: damaged.seq.map(|seq| (seq, seq)),
                told: format!("damaged: the line {}", damaged.problem),
            });
        }
        for (place, version) in self.versions {
            verified.faults.push(Fault {
                code: Code::Version,
                place: Some(place),
                stream: None,
                seqs: None,
                told: format!(
                    "a record of version {}, which this tool cannot check",
                    quote(&version)
                ),
            });
        }
        let mut settled: BTreeMap<u64, Settled> = BTreeMap::new();
        for (stream, links) in self.streams.drain() {
            settled.insert(stream, settle(links));
        }
        for fault in renumbered(&mut settled) {
            known.extend(fault.stream.zip(fault.seqs.map(|(seq, _)| seq)));
            verified.faults.push(fault);
        }
        settled.retain(|_, stream| !stream.links.is_empty());
        let mut forks = Vec::new();
        let successors = successors(&settled, &mut forks);
        for (number, stream) in &settled {
            verified.duplicates += stream.duplicates;
            let vouched = vouched(&stream.links);
            let mut last = 0;
            let vouched_to = vouched.iter().enumerate().map(|(at, vouched)| {
                last = if *vouched { at + 1 } else { last };
                last
            });
            let vouched_to: Vec<usize> = vouched_to.collect();
            let most = vouched_to.last().copied().unwrap_or_default();
            let losses = losses(&stream.links, &vouched, most, verified.checked);
            let forged = |link: &Link| link.signature == Signature::Bad;
            let mut judge = Judge {
                number: *number,
                links: &stream.links,
                options,
                known: &known,
                vouched_to,
                vouched,
                forged: stream.links.iter().rposition(forged),
                successor: successors.get(number).copied(),
                explained: apart(&losses),
                losses,
                faults: Vec::new(),
                lost: 0,
            };
            judge.chain();
            judge.ends();
            judge.lost();
            judge.signatures();
            judge.order();
            judge.others(&stream.others);
            let report = judge.report();
            verified.faults.append(&mut judge.faults);
            verified.streams.insert(*number, report);
        }
        predecessors(&settled, options, &known, &mut verified.faults);
        // A begin that was tampered with may name any stream: that is told, and the other one is as it was.
        let told = |stream: u64| {
            let begin = |fault: &Fault| fault.stream == Some(stream) && fault.seqs == Some((0, 0));
            verified.faults.iter().any(begin)
        };
        forks.retain(|(first, fault)| !told(*first) && !fault.stream.is_some_and(told));
        verified.faults.extend(forks.into_iter().map(|(_, fault)| fault));
        if let Some(witness) = &options.witness {
            contradictions(witness, &settled, options, &mut verified.faults);
        }
        let key = |fault: &Fault| (fault.place.is_none(), fault.place, fault.stream, fault.seqs);
        verified.faults.sort_by_key(key);
        verified
    }
}

/// Puts the records of a stream in the order of their numbers, each once.
fn settle(mut links: Vec<Link>) -> Settled {
    links.sort_by_key(|link| link.seq);
    let mut groups: Vec<Vec<Link>> = Vec::new();
    let (mut chosen, mut others, mut duplicates) = (Vec::with_capacity(links.len()), Vec::new(), 0);
    let doubled = links.iter().zip(links.iter().skip(1)).any(|(one, next)| one.seq == next.seq);
    if !doubled {
        return Settled { links, others, duplicates };
    }
    let mut seen: HashSet<(u64, Hash)> = HashSet::with_capacity(links.len());
    for link in links {
        if !seen.insert((link.seq, link.hash)) {
            duplicates += 1;
            continue;
        }
        match groups.last_mut() {
            Some(group) if group.first().is_some_and(|first| first.seq == link.seq) => {
                group.push(link);
            }
            _ => groups.push(vec![link]),
        }
    }
    // Backwards: what comes after says which of several is meant.
    let mut wanted: Option<(u64, Option<Hash>)> = None;
    while let Some(mut group) = groups.pop() {
        let before = groups.last().and_then(|group| group.first()).map(|link| link.hash);
        let rank = |link: &Link| {
            let named = wanted.is_some_and(|(seq, prev)| {
                seq == link.seq.saturating_add(1) && prev == Some(link.hash)
            });
            let follows = before.is_some() && link.prev == before;
            (!named, link.signature != Signature::Good, !follows, link.order)
        };
        group.sort_by_key(rank);
        let mut group = group.into_iter();
        if let Some(link) = group.next() {
            wanted = Some((link.seq, link.prev));
            chosen.push(link);
        }
        others.extend(group);
    }
    chosen.reverse();
    Settled { links: chosen, others, duplicates }
}

/// Finds records whose own number or stream was changed: they name the record before the gap that they
/// left. Takes them out of where they are now.
fn renumbered(settled: &mut BTreeMap<u64, Settled>) -> Vec<Fault> {
    let mut gaps: HashMap<Hash, (u64, u64)> = HashMap::new();
    for (number, stream) in settled.iter() {
        let mut links = stream.links.iter().peekable();
        while let Some(link) = links.next() {
            let next = link.seq.saturating_add(1);
            let goes_on = links.peek().is_some_and(|after| {
                after.seq == next && (after.prev == Some(link.hash) || stream.others.is_empty())
            });
            if !goes_on {
                gaps.insert(link.hash, (*number, next));
            }
        }
    }
    let mut faults = Vec::new();
    let mut take = |number: u64, link: &Link| {
        let Some((stream, seq)) = link.prev.and_then(|prev| gaps.get(&prev)).copied() else {
            return false;
        };
        if (stream, seq) == (number, link.seq) {
            return false;
        }
        let told = format!(
            "edited: the line says that it is record {} of stream {}, but the hash in it is of the record before \
             record {seq} of stream {}",
            link.seq,
            name(number),
            name(stream)
        );
        faults.push(Fault {
            code: Code::Edited,
            place: Some(link.place),
            stream: Some(stream),
            seqs: Some((seq, seq)),
            told,
        });
        true
    };
    for (number, stream) in settled.iter_mut() {
        stream.links.retain(|link| !take(*number, link));
        stream.others.retain(|link| !take(*number, link));
    }
    faults
}

/// Which stream took over from which; of two that name the same one a fault of the second, with the first.
fn successors(
    settled: &BTreeMap<u64, Settled>,
    forks: &mut Vec<(u64, Fault)>,
) -> HashMap<u64, u64> {
    let mut successors: HashMap<u64, u64> = HashMap::new();
    for (number, begin, (before, ..)) in begins(settled) {
        if let Some(first) = successors.insert(before, number) {
            let fault = Fault {
                code: Code::Forked,
                place: Some(begin.place),
                stream: Some(number),
                seqs: Some((begin.seq, begin.seq)),
                told: format!(
                    "forked: stream {} was taken over from by stream {} already",
                    name(before),
                    name(first)
                ),
            };
            forks.push((first, fault));
        }
    }
    successors
}

/// The first records that name a stream before theirs.
fn begins(
    settled: &BTreeMap<u64, Settled>,
) -> impl Iterator<Item = (u64, &Link, (u64, u64, Option<Hash>))> {
    settled.iter().filter_map(|(number, stream)| {
        let begin = stream.links.first()?;
        Some((*number, begin, begin.rest.as_ref()?.predecessor?))
    })
}

fn predecessors(
    settled: &BTreeMap<u64, Settled>,
    options: &Options,
    known: &BTreeSet<(u64, u64)>,
    faults: &mut Vec<Fault>,
) {
    let told = faults.iter().filter_map(|fault| Some((fault.stream?, fault.seqs?.0)));
    let told: HashSet<(u64, u64)> = told.collect();
    for (number, begin, (before, seq, hash)) in begins(settled) {
        let mut fault = |told: String| {
            faults.push(Fault {
                code: Code::Predecessor,
                place: Some(begin.place),
                stream: Some(number),
                seqs: Some((begin.seq, begin.seq)),
                told,
            });
        };
        let before_name = name(before);
        let Some(stream) = settled.get(&before) else {
            if !options.rotated {
                fault(format!(
                    "the stream took over from stream {before_name} after its record {seq}, and nothing of that is there"
                ));
            }
            continue;
        };
        // Either of the two may have been found out already.
        if told.contains(&(before, seq)) || told.contains(&(number, begin.seq)) {
            continue;
        }
        let last = stream.links.last().map_or(0, |link| link.seq);
        let named = stream.links.binary_search_by_key(&seq, |link| link.seq);
        match named.ok().and_then(|at| stream.links.get(at)) {
            Some(link) if hash != Some(link.hash) => fault(format!(
                "edited: the stream took over from stream {before_name} after its record {seq}, and the hash that it \
                 names is another one: either of the two lines was changed"
            )),
            // A hole is told already, and so is a line that is no record any more.
            None if seq > last && !known.contains(&(before, last.saturating_add(1))) => {
                faults.push(Fault {
                    code: Code::Truncated,
                    place: Some(begin.place),
                    stream: Some(before),
                    seqs: Some((last.saturating_add(1), seq)),
                    told: format!(
                        "truncated: stream {} took over after record {seq}, and the last one here is {last}",
                        name(number)
                    ),
                });
            }
            _ => {}
        }
    }
}

fn contradictions(
    witness: &Witness,
    settled: &BTreeMap<u64, Settled>,
    options: &Options,
    faults: &mut Vec<Fault>,
) {
    for (number, (seq, hash)) in &witness.0 {
        let stream = settled.get(number);
        let link = stream.and_then(|stream| {
            let at = stream.links.binary_search_by_key(seq, |link| link.seq).ok()?;
            stream.links.get(at)
        });
        // What was seen may have gone with its file; what comes after it must still follow it.
        let follows = stream.and_then(|stream| stream.links.first()).is_some_and(|first| {
            first
                .seq
                .checked_sub(1)
                .is_some_and(|before| before > *seq || before == *seq && first.prev == Some(*hash))
        });
        let told = match link {
            Some(link) if link.hash == *hash => continue,
            Some(_) => "changed: the record is another one than it was when it was witnessed",
            None if options.rotated && (stream.is_none() || follows) => continue,
            None => "vanished: the record was there when it was witnessed",
        };
        faults.push(Fault {
            code: Code::Witness,
            place: link.map(|link| link.place),
            stream: Some(*number),
            seqs: Some((*seq, *seq)),
            told: told.to_owned(),
        });
    }
}

/// Which records a good signature vouches for: its own, and those before it as long as each has the hash
/// that the next one names.
fn vouched(links: &[Link]) -> Vec<bool> {
    let mut vouched = vec![false; links.len()];
    let mut next: Option<&Link> = None;
    for (link, vouched) in links.iter().zip(vouched.iter_mut()).rev() {
        let named = next.is_some_and(|next| follows(link, next));
        *vouched = named || link.signature == Signature::Good;
        next = vouched.then_some(link);
    }
    vouched
}

/// Whether `next` names `link` as the record before it.
fn follows(link: &Link, next: &Link) -> bool {
    link.seq.checked_add(1) == Some(next.seq) && next.prev == Some(link.hash)
}

/// One stream.
struct Judge<'v> {
    number: u64,
    links: &'v [Link],
    options: &'v Options,
    /// Records that are missing for a reason that was told.
    known: &'v BTreeSet<(u64, u64)>,
    vouched: Vec<bool>,
    /// For each record how many there are up to the last one that is vouched for, it included.
    vouched_to: Vec<usize>,
    /// The last one with a bad signature.
    forged: Option<usize>,
    successor: Option<u64>,
    /// Records that the stream itself says were lost.
    losses: Vec<Lost>,
    /// The same as ranges that are sorted and apart, so that a hole looks at few of them.
    explained: Vec<(u64, u64)>,
    faults: Vec<Fault>,
    lost: u64,
}

impl Judge<'_> {
    fn fault(&mut self, code: Code, place: Option<Place>, seqs: (u64, u64), told: String) {
        let stream = Some(self.number);
        self.faults.push(Fault { code, place, stream, seqs: Some(seqs), told });
    }

    fn is_vouched(&self, at: usize) -> bool {
        self.vouched.get(at).copied().unwrap_or_default()
    }

    /// What a fault leaves without a voucher: the records before it, back to the last one with one.
    fn unvouched_before(&self, at: usize) -> String {
        if !self.options.keys.is_empty() {
            let from = at
                .checked_sub(1)
                .and_then(|at| self.vouched_to.get(at).copied())
                .unwrap_or_default();
            if let (Some(from), Some(to)) = (
                self.links.get(from).filter(|_| from < at),
                at.checked_sub(1).and_then(|at| self.links.get(at)),
            ) {
                return format!(
                    "; no signature vouches for records {} to {} any more",
                    from.seq, to.seq
                );
            }
        }
        String::new()
    }

    /// Breaks and gaps between records.
    fn chain(&mut self) {
        let pairs = || self.links.iter().zip(self.links.iter().skip(1)).enumerate();
        let mut gaps = Vec::new();
        let mut broken = Vec::new();
        for (at, (link, next)) in pairs() {
            if link.seq.checked_add(1) != Some(next.seq) {
                gaps.push(at);
            } else if next.prev != Some(link.hash) {
                broken.push(at);
            }
        }
        for at in gaps {
            self.gap(at);
        }
        let mut broken = broken.into_iter().peekable();
        while let Some(first) = broken.next() {
            let mut last = first;
            while broken.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            if first == last {
                self.broken_once(first);
            } else {
                for at in first + 1..=last {
                    self.edited(
                        at,
                        "neither does it name the record before it, nor does the next one name it",
                    );
                }
            }
        }
    }

    fn edited(&mut self, at: usize, why: &str) {
        let Some(link) = self.links.get(at) else { return };
        let told = format!("edited: {why}{}", self.unvouched_before(at));
        self.fault(Code::Edited, Some(link.place), (link.seq, link.seq), told);
    }

    /// The record at `at + 1` names another hash than the record before it has, and that is all.
    fn broken_once(&mut self, at: usize) {
        let (Some(link), Some(next)) = (self.links.get(at), self.links.get(at + 1)) else { return };
        let names = format!("the line's hash is not the one that record {} names", next.seq);
        // A good signature is over the whole line: that line is as it was written.
        if link.signature == Signature::Good && !self.is_vouched(at + 1) {
            return self
                .edited(at + 1, &format!("it does not name record {}, which is signed", link.seq));
        }
        if self.is_vouched(at + 1) {
            return self.edited(at, &names);
        }
        // Nobody vouches for either. A last record that does not fit is more likely than one that was
        // written anew with all that follows it.
        if self.forged.is_some_and(|forged| forged > at) {
            return self.edited(
                at + 1,
                &format!("it does not name record {}, and no good signature follows", link.seq),
            );
        }
        if at + 2 == self.links.len() && next.kind == Kind::Decision && at > 0 {
            let either = format!(
                "it does not name record {}: either of the two was changed, and no record follows that would say which",
                link.seq
            );
            return self.edited(at + 1, &either);
        }
        self.edited(at, &names);
    }

    /// Records are missing behind the one at `at`.
    fn gap(&mut self, at: usize) {
        let (Some(link), Some(next)) = (self.links.get(at), self.links.get(at + 1)) else { return };
        let (from, to) = (link.seq + 1, next.seq - 1);
        let place = next.place;
        for (from, to) in self.unexplained(from, to) {
            let told = format!(
                "removed: {} {} {}, and no record says that they were lost{}",
                records(from, to),
                if from == to {
                    "is missing between records"
                } else {
                    "are missing between records"
                },
                format_args!("{} and {}", link.seq, next.seq),
                self.unvouched_before(at + 1)
            );
            self.fault(Code::Removed, Some(place), (from, to), told);
        }
    }

    /// Parts of a gap that nothing explains; counts what was lost.
    fn unexplained(&mut self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let first = self.explained.partition_point(|(_, last)| *last < from);
        let near = self.explained.iter().skip(first).take_while(|(first, _)| *first <= to);
        let mut holes: Vec<(u64, u64)> = near.copied().collect();
        let left: u64 =
            without((from, to), &mut holes).iter().map(|(from, to)| to - from + 1).sum();
        self.lost += (to - from + 1).saturating_sub(left);
        let known = self.known.range((self.number, from)..=(self.number, to));
        holes.extend(known.map(|(_, seq)| (*seq, *seq)));
        without((from, to), &mut holes)
    }

    /// How the stream begins and ends.
    fn ends(&mut self) {
        let (Some(first), Some(last)) = (self.links.first(), self.links.last()) else { return };
        if first.seq > 0 && !self.options.rotated {
            for (from, to) in self.unexplained(0, first.seq - 1) {
                let what = records(from, to);
                let told =
                    format!("the beginning is missing: {what}; with --rotated that is no fault");
                self.fault(Code::Beginning, Some(first.place), (from, to), told);
            }
        }
        let beyond = last.seq.saturating_add(1);
        // One that the next record does not name was put there, which is told already.
        let ends = |(at, link): (usize, &Link)| {
            let named = self.links.get(at + 1).is_none_or(|next| follows(link, next));
            link.kind == Kind::End && named
        };
        let end = self.links.iter().enumerate().position(ends);
        match end.and_then(|end| self.links.get(end)) {
            Some(end) if end.seq != last.seq => {
                let told = format!("inserted: the stream ended with record {}", end.seq);
                let next = end.seq + 1;
                self.fault(Code::Inserted, Some(last.place), (next, last.seq), told);
            }
            Some(_) => {}
            None if self.options.open
                || self.successor.is_some()
                || self.known.contains(&(self.number, beyond)) => {}
            None => {
                let told = format!(
                    "truncated: after record {} the stream neither ends nor is taken over from; with --open \
                     that is no fault",
                    last.seq
                );
                self.fault(Code::Truncated, Some(last.place), (beyond, beyond), told);
            }
        }
    }

    /// More is missing than was lost.
    fn lost(&mut self) {
        let said = self.losses.iter().fold(0, |sum: u64, loss| sum.saturating_add(loss.records));
        let ranges = || self.losses.iter().map(|loss| loss.range);
        let first = ranges().map(|(first, _)| first).min();
        let (Some(first), Some(last)) = (first, ranges().map(|(_, last)| last).max()) else {
            return;
        };
        if self.lost > said {
            let told = format!(
                "removed: {} records are missing among {}, and only {said} are said to be lost",
                self.lost,
                records(first, last)
            );
            let behind = self.links.iter().find(|link| link.seq > last).map(|link| link.place);
            self.fault(Code::Removed, behind, (first, last), told);
        }
    }

    fn signatures(&mut self) {
        if self.options.keys.is_empty() {
            return;
        }
        let edited: HashSet<u64> = self
            .faults
            .iter()
            .filter(|fault| fault.code == Code::Edited)
            .filter_map(|fault| fault.seqs.map(|(seq, _)| seq))
            .collect();
        let mut unknown: BTreeMap<String, (u64, &Link)> = BTreeMap::new();
        let mut unsigned: Option<(u64, &Link)> = None;
        let mut told = Vec::new();
        let mut good = None;
        let broken = !edited.is_empty();
        for link in self.links.iter().filter(|link| !edited.contains(&link.seq)) {
            let key = || {
                let key = link.rest.as_ref().and_then(|rest| rest.key_id.as_deref());
                quote(key.unwrap_or_default())
            };
            match (link.signature, link.kind) {
                (Signature::Good, _) => good = Some(link.seq),
                (Signature::Bad, _) => {
                    let before = link.seq.checked_sub(1);
                    let since = good.map_or(0, |good| good + 1);
                    let range = before.filter(|before| *before >= since).map(|before| {
                        format!(
                            "that or one of {} was changed and the chain made anew",
                            records(since, before)
                        )
                    });
                    let range = range
                        .filter(|_| !broken)
                        .unwrap_or_else(|| "the line was changed".to_owned());
                    told.push((
                        link,
                        format!("the signature is not one of key {}: {range}", key()),
                    ));
                }
                (Signature::KeyUnknown, _) => {
                    unknown.entry(key()).or_insert((0, link)).0 += 1;
                }
                (Signature::Absent, Kind::Begin | Kind::Checkpoint | Kind::End) => {
                    unsigned.get_or_insert((0, link)).0 += 1;
                }
                (Signature::Absent | Signature::Unchecked, _) => {}
            }
        }
        let seqs = |link: &Link| (link.seq, link.seq);
        for (link, told) in told {
            self.fault(Code::Signature, Some(link.place), seqs(link), told);
        }
        for (key, (count, link)) in unknown {
            let told =
                format!("signed by key {key}, which is not among those given ({count} signatures)");
            self.fault(Code::KeyUnknown, Some(link.place), seqs(link), told);
        }
        if let Some((count, link)) = unsigned {
            let told = format!(
                "not signed, though its kind is where keys are used ({count} such records)"
            );
            self.fault(Code::Unsigned, Some(link.place), seqs(link), told);
        }
    }

    /// Records that do not stand where they were written: as few as could have been moved.
    fn order(&mut self) {
        let mut files: BTreeMap<u32, Vec<&Link>> = BTreeMap::new();
        for link in self.links {
            files.entry(link.place.file).or_default().push(link);
        }
        let mut moved = Vec::new();
        for links in files.values() {
            moved.extend(displaced(links));
        }
        for (place, seq) in moved {
            let told = "reordered: the line stands at another place among the stream's records than it was written";
            self.fault(Code::Reordered, Some(place), (seq, seq), told.to_owned());
        }
    }

    fn others(&mut self, others: &[Link]) {
        for link in others {
            let told = format!(
                "inserted: there is another record {}, and {}",
                link.seq,
                if self
                    .links
                    .binary_search_by_key(&link.seq.saturating_add(1), |next| next.seq)
                    .is_ok()
                {
                    "that one is what the next record names"
                } else {
                    "only one of them can be what was written"
                }
            );
            self.fault(Code::Inserted, Some(link.place), (link.seq, link.seq), told);
        }
    }

    fn report(&self) -> Stream {
        let mut stream = Stream {
            records: self.links.len() as u64,
            successor: self.successor,
            lost: self.lost,
            ..Stream::default()
        };
        if let (Some(first), Some(last)) = (self.links.first(), self.links.last()) {
            stream.seqs = (first.seq, last.seq);
            stream.head = last.hash;
            stream.ended = last.kind == Kind::End;
            stream.process = first.rest.as_ref().and_then(|rest| rest.process.clone());
        }
        for (link, _) in self.links.iter().zip(&self.vouched).filter(|(_, vouched)| **vouched) {
            match stream.vouched.last_mut() {
                Some((_, to)) if to.checked_add(1) == Some(link.seq) => *to = link.seq,
                _ => stream.vouched.push((link.seq, link.seq)),
            }
        }
        let mut latest = 0;
        for link in self.links {
            if link.time < latest {
                stream.backwards += 1;
                stream.backwards_at.get_or_insert(link.place);
            }
            latest = latest.max(link.time);
            if let Some(Rest { key_id: Some(key), time, .. }) = link.rest.as_deref() {
                let period = stream.keys.entry(key.clone());
                period.or_insert_with(|| (time.clone(), time.clone())).1.clone_from(time);
            }
        }
        stream
    }
}

/// What a record says was lost.
struct Lost {
    /// The first and the last one; between them may be some that were not lost.
    range: (u64, u64),
    records: u64,
}

/// The ranges of losses, sorted, those that meet put together.
fn apart(losses: &[Lost]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = losses.iter().map(|loss| loss.range).collect();
    ranges.sort_unstable();
    let mut apart: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match apart.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    apart
}

/// What the records of a stream say was lost. Each says so behind what it is about, and whoever removes
/// records can write one that nobody vouches for: with keys only one in a tail that no signature has reached
/// yet does without. `vouched_to` is how many records there are up to the last one that is vouched for.
fn losses(links: &[Link], vouched: &[bool], vouched_to: usize, checked: bool) -> Vec<Lost> {
    let losses = links.iter().zip(vouched).enumerate().filter_map(|(at, (link, vouched))| {
        let rest = link.rest.as_ref()?;
        let (first, last) = rest.lost?;
        let trusted = !checked || *vouched || at >= vouched_to;
        let lost = Lost { range: (first, last), records: rest.lost_records };
        (trusted && first <= last && last < link.seq).then_some(lost)
    });
    losses.collect()
}

/// "record 7", "records 7 to 9".
fn records(from: u64, to: u64) -> String {
    if from == to { format!("record {from}") } else { format!("records {from} to {to}") }
}

/// What is left of a range without others.
fn without((mut from, to): (u64, u64), holes: &mut [(u64, u64)]) -> Vec<(u64, u64)> {
    holes.sort_unstable();
    let mut left = Vec::new();
    for (first, last) in holes.iter().copied() {
        if first > from {
            left.push((from, to.min(first - 1)));
        }
        match last.max(from).checked_add(u64::from(last >= from)) {
            Some(next) if next <= to => from = next,
            _ => return left,
        }
    }
    left.push((from, to));
    left
}

/// The fewest records of a file without which the others stand in their order: all but a longest
/// increasing subsequence.
fn displaced(links: &[&Link]) -> Vec<(Place, u64)> {
    let ascending = |(one, next): (&&Link, &&Link)| one.order < next.order;
    if links.iter().zip(links.iter().skip(1)).all(ascending) {
        return Vec::new();
    }
    // Patience sorting: of the runs of each length, the one that ends earliest, by index.
    let mut tops: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; links.len()];
    let order = |at: usize| links.get(at).map_or(0, |link| link.order);
    for (at, slot) in before.iter_mut().enumerate() {
        let length = tops.partition_point(|top| order(*top) < order(at));
        *slot = length.checked_sub(1).and_then(|length| tops.get(length).copied());
        match tops.get_mut(length) {
            Some(top) => *top = at,
            None => tops.push(at),
        }
    }
    let mut kept = vec![false; links.len()];
    let mut at = tops.last().copied();
    while let Some(index) = at {
        if let Some(kept) = kept.get_mut(index) {
            *kept = true;
        }
        at = before.get(index).copied().flatten();
    }
    let moved = links.iter().zip(kept).filter(|(_, kept)| !kept);
    moved.map(|(link, _)| (link.place, link.seq)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_range_is_what_no_hole_covers() {
        for (range, holes, left) in [
            ((3, 9), &[][..], &[(3, 9)][..]),
            ((3, 9), &[(5, 6)], &[(3, 4), (7, 9)]),
            ((3, 9), &[(9, 9), (3, 3), (5, 7), (6, 7)], &[(4, 4), (8, 8)]),
            ((3, 9), &[(0, 3), (8, 20)], &[(4, 7)]),
            ((3, 9), &[(0, u64::MAX)], &[]),
            ((3, 9), &[(4, 8), (5, 5)], &[(3, 3), (9, 9)]),
            ((3, u64::MAX), &[(u64::MAX, u64::MAX)], &[(3, u64::MAX - 1)]),
            ((3, 9), &[(0, 1), (20, 30)], &[(3, 9)]),
        ] {
            assert_eq!(without(range, &mut holes.to_vec()), left, "{holes:?}");
        }
    }
}
