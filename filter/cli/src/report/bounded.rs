//! Counting with bounded memory: what strangers write must not fill it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use airflow_envoy_core::time::{Span, UnixTime};

/// How much something counts.
pub trait Weight {
    /// Calls.
    fn weight(&self) -> u64;
}

impl Weight for u64 {
    fn weight(&self) -> u64 {
        *self
    }
}

/// Counts by key. When there are too many keys those that count least are given up, and only their sum is kept:
/// what is frequent is counted well, and the memory stays what it is.
#[derive(Debug)]
pub struct Bounded<K, V> {
    most: usize,
    kept: HashMap<K, V>,
    /// Calls of keys that were given up.
    given_up: u64,
}

impl<K: Hash + Eq + Ord, V: Weight + Default> Bounded<K, V> {
    /// For `most` keys at least, and twice as many at most.
    pub fn new(most: usize) -> Self {
        Self { most, kept: HashMap::new(), given_up: 0 }
    }

    /// What is known of this key.
    pub fn entry(&mut self, key: K) -> &mut V {
        if self.kept.len() >= self.most.saturating_mul(2) && !self.kept.contains_key(&key) {
            self.give_up();
        }
        self.kept.entry(key).or_default()
    }

    fn give_up(&mut self) {
        let mut weights: Vec<u64> = self.kept.values().map(Weight::weight).collect();
        weights.sort_unstable_by(|one, other| other.cmp(one));
        let least = weights.get(self.most).copied().unwrap_or_default();
        let mut room = self.most;
        let mut given_up = 0_u64;
        self.kept.retain(|_, value| {
            let keep = value.weight() > least && room > 0;
            if keep {
                room -= 1;
            } else {
                given_up = given_up.saturating_add(value.weight());
            }
            keep
        });
        self.given_up = self.given_up.saturating_add(given_up);
    }

    /// What is known of `key`.
    pub fn find(&self, key: &K) -> Option<&V> {
        self.kept.get(key)
    }

    /// All that is kept, what counts most first.
    pub fn sorted(&self) -> Vec<(&K, &V)> {
        let mut all: Vec<(&K, &V)> = self.kept.iter().collect();
        all.sort_by(|(one_key, one), (other_key, other)| {
            other.weight().cmp(&one.weight()).then_with(|| one_key.cmp(other_key))
        });
        all
    }

    /// How many keys are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Calls that count for none of the keys that are kept.
    pub const fn given_up(&self) -> u64 {
        self.given_up
    }
}

/// How often something took how long, to a sixteenth.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    buckets: BTreeMap<u64, u64>,
    count: u64,
}

impl Histogram {
    /// Adds `times` times a duration of so many microseconds.
    pub fn add(&mut self, micros: u64, times: u64) {
        // The highest bit and the four below it.
        let shift = (64 - micros.leading_zeros()).saturating_sub(5);
        let bucket = (micros >> shift) << shift;
        let count = self.buckets.entry(bucket).or_default();
        *count = count.saturating_add(times);
        self.count = self.count.saturating_add(times);
    }

    /// Microseconds in which `percent` of them were done; `None` if there were none.
    pub fn percentile(&self, percent: u64) -> Option<u64> {
        let wanted = (u128::from(self.count) * u128::from(percent)).div_ceil(100).max(1);
        let mut passed = 0_u128;
        for (bucket, count) in &self.buckets {
            passed += u128::from(*count);
            if passed >= wanted {
                // The middle of the bucket.
                let shift = (64 - bucket.leading_zeros()).saturating_sub(5);
                return Some(bucket.saturating_add((1 << shift) >> 1));
            }
        }
        None
    }

    /// How many there were.
    pub const fn count(&self) -> u64 {
        self.count
    }
}

/// Counts by time and name. The spans of time become longer as there are more of them.
#[derive(Debug)]
pub struct Timeline {
    width: Span,
    bins: BTreeMap<i64, BTreeMap<String, u64>>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { width: Self::first_width(), bins: BTreeMap::new() }
    }
}

impl Timeline {
    /// Spans of time at most.
    pub const MOST: usize = 120;

    /// Names at most; what has another one is counted together.
    const NAMES: usize = 100;

    /// Each a multiple of the one before.
    const WIDTHS: [i64; 12] =
        [1, 5, 15, 60, 300, 900, 3600, 10_800, 43_200, 86_400, 604_800, 2_419_200];

    fn first_width() -> Span {
        Span::from_secs(1)
    }

    /// Adds `times` of `name` at this time.
    pub fn add(&mut self, at: UnixTime, name: &str, times: u64) {
        let mut bin = at.as_millis().div_euclid(self.width.as_millis());
        loop {
            let first = self.bins.keys().next().map_or(bin, |first| bin.min(*first));
            let last = self.bins.keys().next_back().map_or(bin, |last| bin.max(*last));
            if last.saturating_sub(first) < i64::try_from(Self::MOST).unwrap_or(i64::MAX) {
                break;
            }
            self.widen();
            bin = at.as_millis().div_euclid(self.width.as_millis());
        }
        let counts = self.bins.entry(bin).or_default();
        let name =
            if counts.contains_key(name) || counts.len() < Self::NAMES { name } else { "other" };
        match counts.get_mut(name) {
            Some(count) => *count = count.saturating_add(times),
            None => _ = counts.insert(name.to_owned(), times),
        }
    }

    fn widen(&mut self) {
        let seconds = self.width.as_millis() / 1000;
        let wider = Self::WIDTHS.into_iter().find(|width| *width > seconds);
        let wider = wider.unwrap_or_else(|| seconds.saturating_mul(2));
        let times = (wider / seconds.max(1)).max(2);
        self.width = Span::from_secs(wider);
        for (bin, counts) in std::mem::take(&mut self.bins) {
            let merged = self.bins.entry(bin.div_euclid(times)).or_default();
            for (name, count) in counts {
                let sum = merged.entry(name).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }

    /// How long each span is.
    pub const fn width(&self) -> Span {
        self.width
    }

    /// When each span begins, from the first that has something to the last, those without anything too.
    pub fn starts(&self) -> Vec<UnixTime> {
        let first = self.bins.keys().next().copied().unwrap_or_default();
        let last = self.bins.keys().next_back().copied().unwrap_or(first - 1);
        let start = |bin: i64| UnixTime::from_millis(bin.saturating_mul(self.width.as_millis()));
        (first..=last).map(start).collect()
    }

    /// The counts of `name` in each span of [`Timeline::starts`].
    pub fn counts(&self, name: &str) -> Vec<u64> {
        let count = |start: &UnixTime| {
            let bin = start.as_millis().div_euclid(self.width.as_millis());
            self.bins.get(&bin).and_then(|counts| counts.get(name)).copied().unwrap_or_default()
        };
        self.starts().iter().map(count).collect()
    }

    /// All names, the most frequent first.
    pub fn names(&self) -> Vec<(String, u64)> {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, count) in self.bins.values().flatten() {
            let sum = sums.entry(name).or_default();
            *sum = sum.saturating_add(*count);
        }
        let mut names: Vec<(String, u64)> =
            sums.into_iter().map(|(name, sum)| (name.to_owned(), sum)).collect();
        names.sort_by(|(_, one), (_, other)| other.cmp(one));
        names
    }
}

/// Numbers that were seen, as ranges: those of a stream without gaps are one.
#[derive(Debug, Default)]
pub struct Ranges {
    /// By their first number the last ones.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Ranges at most: somebody may have made up the numbers.
    const MOST: usize = 10_000;

    /// Whether the number is new; with too many ranges every one is.
    pub fn insert(&mut self, number: u64) -> bool {
        let before = self.ranges.range(..=number).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| number <= last) {
            return false;
        }
        let behind = number.checked_add(1).and_then(|next| self.ranges.remove(&next));
        let last = behind.unwrap_or(number);
        match before {
            Some((first, end)) if end.checked_add(1) == Some(number) => {
                self.ranges.insert(first, last);
            }
            _ if self.ranges.len() < Self::MOST => _ = self.ranges.insert(number, last),
            _ => {}
        }
        true
    }

    /// How many numbers from 0 to the last one were not seen.
    pub fn missing(&self) -> u64 {
        let mut next = 0;
        let mut missing = 0_u64;
        for (first, last) in &self.ranges {
            missing = missing.saturating_add(first.saturating_sub(next));
            next = last.saturating_add(1);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_frequent_is_counted_whatever_else_comes() {
        let mut counts: Bounded<u32, u64> = Bounded::new(10);
        for round in 0..10_000 {
            *counts.entry(7) += 1;
            *counts.entry(1_000 + round) += 1;
        }
        assert!(counts.len() <= 20);
        assert_eq!(counts.find(&7), Some(&10_000));
        let kept: u64 = counts.sorted().iter().map(|(_, count)| **count).sum();
        assert_eq!(kept + counts.given_up(), 20_000);
        assert_eq!(counts.sorted()[0], (&7, &10_000));
    }

    #[test]
    fn percentiles_are_right_to_a_sixteenth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), None);
        for micros in 0..100_000 {
            histogram.add(micros, 1);
        }
        for (percent, exact) in [(50, 50_000_u64), (95, 95_000), (99, 99_000)] {
            let found = histogram.percentile(percent).unwrap();
            assert!(found.abs_diff(exact) <= exact / 16, "{percent}: {found}");
        }
        let mut one = Histogram::default();
        one.add(u64::MAX, u64::MAX);
        one.add(3, 5);
        assert!(one.percentile(100).unwrap() > u64::MAX / 2);
        assert_eq!(one.count(), u64::MAX);
        // Small numbers are exact.
        one = Histogram::default();
        one.add(13, 1);
        assert_eq!(one.percentile(99), Some(13));
    }

    #[test]
    fn a_timeline_has_a_bounded_number_of_spans_and_loses_nothing() {
        let mut timeline = Timeline::default();
        for second in 0..100_000 {
            timeline.add(UnixTime::from_secs(1_000_000 + second), "permit", 2);
        }
        timeline.add(UnixTime::from_secs(1_000_000), "policy_denied", 1);
        assert!(timeline.starts().len() <= Timeline::MOST);
        assert_eq!(timeline.width(), Span::from_secs(900));
        assert_eq!(timeline.counts("permit").iter().sum::<u64>(), 200_000);
        assert_eq!(timeline.names()[1], ("policy_denied".to_owned(), 1));
        // Times that somebody made up.
        timeline.add(UnixTime::from_millis(i64::MIN), "permit", 1);
        timeline.add(UnixTime::from_millis(i64::MAX), "permit", 1);
        assert!(timeline.starts().len() <= Timeline::MOST);
        assert_eq!(timeline.counts("permit").iter().sum::<u64>(), 200_002);
        assert_eq!(Timeline::default().starts(), []);
    }

    #[test]
    fn ranges_know_what_was_seen_and_what_is_missing() {
        let mut ranges = Ranges::default();
        for number in [0, 1, 5, 3, 4, u64::MAX] {
            assert!(ranges.insert(number), "{number}");
        }
        for number in [0, 1, 3, 4, 5, u64::MAX] {
            assert!(!ranges.insert(number), "{number}");
        }
        assert_eq!(ranges.ranges.len(), 3);
        assert_eq!(ranges.missing(), 1 + (u64::MAX - 6));
        assert!(ranges.insert(2));
        assert_eq!(ranges.ranges.len(), 2);
    }
}
