//! What the streams of one Envoy process write down about themselves, so that of one that died nobody
//! can say that it never was: the next stream names it.
//!
//! There are [`SLOTS`] places in what the workers share, and nothing can be removed from there. Whoever
//! takes over a stream's place, by compare-and-swap, is the only one to name it.

use std::rc::Rc;

use super::chain::Predecessor;
use crate::hexadecimal;
use crate::shared::{Refused, SharedData, Stamp};
use crate::time::{Span, UnixTime};

/// Places of streams.
const SLOTS: u32 = 64;

/// Time between two signs of life.
pub(super) const BEAT: Span = Span::from_secs(10);

/// Who gave none for so long is dead.
const DEAD: Span = Span::from_secs(30);

/// Or is ahead by so much: the clock was set back since.
const AHEAD: Span = Span::from_secs(-30);

/// A place that nobody took over for so long may be used for something else, if there is no other.
const ABANDONED: Span = Span::from_secs(600);

/// Digits of a SHA-256 in base64url.
const HASH_DIGITS: usize = 43;

/// A stream's place.
#[derive(Clone)]
pub(super) struct Registry {
    shared: Rc<dyn SharedData>,
    /// Tells trails apart that do not belong together: by their keys.
    mark: String,
    slot: Option<(u32, Option<Stamp>)>,
}

/// What is written there.
struct Entry {
    mark: String,
    last: Predecessor,
    beat: UnixTime,
    closed: bool,
}

impl Registry {
    pub(super) fn new(shared: Rc<dyn SharedData>, key_id: Option<&str>) -> Self {
        let mark = key_id.unwrap_or_default().replace('\n', " ");
        Self { shared, mark, slot: None }
    }

    /// A random number that the workers share: whoever asks first gives it.
    pub(super) fn process(&self, worker: u64) -> u64 {
        const KEY: &str = "airflow-envoy.audit.process";
        let known = || {
            let (bytes, _) = self.shared.read(KEY)?;
            u64::from_str_radix(std::str::from_utf8(&bytes).ok()?, 16).ok()
        };
        known().unwrap_or_else(|| {
            // Not the worker's own number, which names its stream.
            let own = worker.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
            let _ = self.shared.write(KEY, hexadecimal::of_number(own).as_bytes(), None);
            known().unwrap_or(own)
        })
    }

    /// Takes a place for `stream`, and takes over a stream that ended or died, if there is one.
    pub(super) fn enter(&mut self, stream: &str, now: UnixTime) -> Option<Predecessor> {
        let own = self.entry(stream, now);
        let (mut free, mut old) = (None, None);
        for slot in 0..SLOTS {
            let found = self.shared.read(&key(slot));
            let stamp = found.as_ref().map(|(_, stamp)| *stamp);
            let Some(entry) = found.as_ref().and_then(|(bytes, _)| Entry::decode(bytes)) else {
                free = free.or(Some((slot, stamp)));
                // They are taken in order: beyond one that never was there is none.
                if stamp.is_none() {
                    break;
                }
                continue;
            };
            let silent = now.since(entry.beat);
            let is_over = entry.closed || silent > DEAD || silent < AHEAD;
            if !is_over {
                continue;
            }
            if entry.mark != self.mark {
                old = old.or((silent > ABANDONED).then_some((slot, stamp)));
            } else if self.write((slot, stamp), &own) {
                // One that died before its first record has nothing to name.
                if entry.last.hash.len() == HASH_DIGITS {
                    return Some(entry.last);
                }
                return None;
            }
        }
        if let Some(place) = free.or(old) {
            self.write(place, &own);
        }
        None
    }

    /// Takes the place of `former`, a stream of the same worker that ended; what it was called, unless
    /// somebody was faster.
    pub(super) fn take_over(
        &mut self,
        former: &Self,
        last: Predecessor,
        stream: &str,
        now: UnixTime,
    ) -> Option<Predecessor> {
        let Some(place) = former.slot else {
            self.enter(stream, now);
            return Some(last);
        };
        if self.write(place, &self.entry(stream, now)) {
            return Some(last);
        }
        self.enter(stream, now)
    }

    /// Writes down how far the stream is, or that it is closed.
    pub(super) fn note(&mut self, last: &Predecessor, closed: bool, now: UnixTime) {
        let Some(place) = self.slot else { return };
        let entry = Entry { mark: self.mark.clone(), last: last.clone(), beat: now, closed };
        if !self.write(place, &entry) && !closed {
            // Somebody thought that this one is dead. It goes on elsewhere, and takes nobody over.
            let free = (0..SLOTS).find(|slot| self.shared.read(&key(*slot)).is_none());
            if let Some(slot) = free {
                self.write((slot, None), &entry);
            }
        }
    }

    fn entry(&self, stream: &str, now: UnixTime) -> Entry {
        let last = Predecessor { stream: stream.to_owned(), seq: 0, hash: String::new() };
        Entry { mark: self.mark.clone(), last, beat: now, closed: false }
    }

    /// Whether the place is this stream's now.
    fn write(&mut self, (slot, stamp): (u32, Option<Stamp>), entry: &Entry) -> bool {
        self.slot = None;
        let key = key(slot);
        match self.shared.write(&key, &entry.encode(), stamp) {
            Ok(()) => {}
            Err(Refused::Changed | Refused::Unsupported) => return false,
        }
        // Where there was none yet, another one may have been faster, or be so now.
        let Some((bytes, stamp)) = self.shared.read(&key) else { return false };
        let is_own = Entry::decode(&bytes).is_some_and(|found| found.last == entry.last);
        self.slot = is_own.then_some((slot, Some(stamp)));
        is_own
    }
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let Self { mark, last: Predecessor { stream, seq, hash }, beat, closed } = self;
        let beat = beat.as_millis();
        format!("{mark}\n{stream}\n{seq}\n{hash}\n{beat}\n{}", u8::from(*closed)).into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.split('\n');
        let mark = lines.next()?.to_owned();
        let stream = lines.next()?.to_owned();
        let seq = lines.next()?.parse().ok()?;
        let hash = lines.next()?.to_owned();
        let beat = UnixTime::from_millis(lines.next()?.parse().ok()?);
        let closed = lines.next()? == "1";
        // They are written into records as they are.
        let plain = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let fit = stream.len() == 16 && plain(&stream) && plain(&hash);
        fit.then_some(Self { mark, last: Predecessor { stream, seq, hash }, beat, closed })
    }
}

fn key(slot: u32) -> String {
    format!("airflow-envoy.audit.{slot}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Memory;

    const START: UnixTime = UnixTime::from_secs(1_000_000);

    fn after(seconds: i64) -> UnixTime {
        START.plus(Span::from_secs(seconds))
    }

    fn last(stream: &str, seq: u64) -> Predecessor {
        Predecessor { stream: stream.to_owned(), seq, hash: "h".repeat(HASH_DIGITS) }
    }

    const NAMES: [&str; 4] =
        ["000000000000000a", "000000000000000b", "000000000000000c", "000000000000000d"];

    fn registry(shared: &Rc<Memory>, key: &str) -> Registry {
        Registry::new(Rc::clone(shared) as Rc<dyn SharedData>, Some(key))
    }

    #[test]
    fn a_stream_that_ended_or_died_is_named_by_one_successor_only() {
        for closed in [true, false] {
            let shared = Rc::new(Memory::default());
            let [mut a, mut b, mut c] = [(); 3].map(|()| registry(&shared, "k"));
            assert_eq!(a.enter(NAMES[0], START), None);
            a.note(&last(NAMES[0], 7), closed, START);
            // One that lives is left alone.
            let now = after(if closed { 1 } else { 31 });
            if !closed {
                assert_eq!(b.enter(NAMES[1], after(30)), None, "it may live");
            }
            assert_eq!(c.enter(NAMES[2], now), Some(last(NAMES[0], 7)));
            assert_eq!(registry(&shared, "k").enter(NAMES[3], now), None);
        }
    }

    #[test]
    fn one_that_was_thought_dead_goes_on_elsewhere() {
        let shared = Rc::new(Memory::default());
        let [mut a, mut b, mut c] = [(); 3].map(|()| registry(&shared, "k"));
        a.enter(NAMES[0], START);
        a.note(&last(NAMES[0], 7), false, START);
        assert_eq!(b.enter(NAMES[1], after(60)), Some(last(NAMES[0], 7)));
        b.note(&last(NAMES[1], 1), false, after(60));
        a.note(&last(NAMES[0], 9), false, after(61));
        a.note(&last(NAMES[0], 10), true, after(62));
        assert_eq!(c.enter(NAMES[2], after(63)), Some(last(NAMES[0], 10)));
    }

    #[test]
    fn streams_of_another_key_are_not_taken_over() {
        let shared = Rc::new(Memory::default());
        let mut a = registry(&shared, "k");
        a.enter(NAMES[0], START);
        a.note(&last(NAMES[0], 7), true, START);
        assert_eq!(registry(&shared, "other").enter(NAMES[1], after(1)), None);
        assert_eq!(registry(&shared, "k").enter(NAMES[2], after(1)), Some(last(NAMES[0], 7)));
    }

    #[test]
    fn the_places_are_bounded_and_what_is_not_an_entry_is_none() {
        let shared = Rc::new(Memory::default());
        shared.write(&key(0), b"\xff garbage", None).unwrap();
        shared.write(&key(1), b"k\n\"evil\n7\nh\n0\n1", None).unwrap();
        for number in 0..100_u64 {
            let mut one = registry(&shared, "k");
            assert_eq!(one.enter(&hexadecimal::of_number(number), START), None);
            one.note(&last(&hexadecimal::of_number(number), 1), false, START);
        }
        assert!(shared.size().1 <= SLOTS as usize);
    }

    #[test]
    fn the_workers_of_a_process_share_its_number() {
        let shared = Rc::new(Memory::default());
        let number = registry(&shared, "k").process(1);
        assert_eq!(registry(&shared, "k").process(2), number);
        assert_ne!(registry(&Rc::new(Memory::default()), "k").process(2), number);
    }
}
