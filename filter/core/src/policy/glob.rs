//! Globs over single values, lists of them, and a table that finds those which may match a value.
//!
//! `*` stands for any run of characters, also none; nothing else is special and nothing escapes it.
//! A glob is compared to the whole value, case-sensitively.

use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use crate::pace::Pace;

/// Entries of a table that are handled between two looks at the pace: about ten microseconds.
const AT_ONCE: usize = 1024;
const UNITS: usize = 10;

/// In a list of lengths, that of a suffix.
const SUFFIX: u32 = 1 << 31;

/// What an index can look up of a value in a policy: the value, or what every match begins or ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    /// Matches this value only.
    Exact(&'a str),
    /// Matches only values that begin so; with the empty prefix that says nothing.
    Prefix(&'a str),
    /// Matches only values that end so; never empty.
    Suffix(&'a str),
}

impl<'a> Key<'a> {
    /// The key of `text` as it is written in the policy.
    pub(super) fn of(text: &'a str) -> Self {
        match (text.split_once('*'), text.rsplit_once('*')) {
            (Some(("", _)), Some((_, suffix))) if !suffix.is_empty() => Self::Suffix(suffix),
            (Some((prefix, _)), _) => Self::Prefix(prefix),
            (None, _) => Self::Exact(text),
        }
    }
}

/// Whether the whole of `value` matches `glob`; without a `*` it matches only itself.
pub(super) fn matches(glob: &str, value: &str) -> bool {
    let mut parts = glob.split('*');
    // The first part is anchored at the front, the last one at the end, and each of the others
    // is best taken where it occurs first: that leaves most to the parts behind it.
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = value.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

/// Texts of a policy of which one must match: the values of a selector field, the paths of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Values {
    /// Most lists have no other, and a decision reaches this one without a further step.
    first: Box<str>,
    others: Option<Box<Others>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Others {
    /// Those that match nothing but themselves, sorted, so that a long list costs little.
    exact: Box<[Box<str>]>,
    globs: Box<[Box<str>]>,
}

impl Values {
    /// Of at least one text: a document has no empty list.
    pub(super) fn new<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        // `{`: a variable, if the texts are paths. Among other texts it does no harm.
        let (globs, mut exact): (Vec<_>, Vec<_>) =
            texts.into_iter().partition(|text| text.contains(['*', '{']));
        exact.sort_unstable();
        exact.dedup();
        let (mut exact, mut globs) = (exact.into_iter(), globs.into_iter());
        let first = exact.next().or_else(|| globs.next()).unwrap_or_default();
        let others = Others {
            exact: exact.map(Into::into).collect(),
            globs: globs.map(Into::into).collect(),
        };
        let alone = others.exact.is_empty() && others.globs.is_empty();
        Self { first: first.into(), others: (!alone).then(|| Box::new(others)) }
    }

    /// Whether one of the values matches.
    pub(super) fn matches(&self, value: &str) -> bool {
        self.matches_by(matches, value)
    }

    /// Whether one of the texts is `given` or, read by `matches`, matches it.
    pub(super) fn matches_by(&self, matches: impl Fn(&str, &str) -> bool, given: &str) -> bool {
        let others = |others: &Others| {
            others.exact.binary_search_by(|exact| (**exact).cmp(given)).is_ok()
                || others.globs.iter().any(|glob| matches(glob, given))
        };
        *self.first == *given
            || matches(&self.first, given)
            || self.others.as_deref().is_some_and(others)
    }

    /// What an index looks up of the values.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key<'_>> {
        self.texts().map(Key::of)
    }

    /// The texts as written, those that match only themselves first.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let others = self.others.iter().flat_map(|others| others.exact.iter().chain(&others.globs));
        std::iter::once(&self.first).chain(others).map(AsRef::as_ref)
    }
}

/// Numbers found by [`Key`]s, many maps in one table: a place says which of them.
///
/// It remembers only hashes of its keys, so it may find too much, never too little. That suits an
/// index, whose findings are looked at in full, and leaves nothing on the way but two flat arrays.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Where in `entries` each bucket begins, and the end of the last one.
    starts: Box<[u32]>,
    /// Hashes and numbers, ascending.
    entries: Box<[(u32, u32)]>,
}

impl Table {
    /// The table of `entries`: what [`hash`] makes of a place and a key, and a number; the numbers of one
    /// key in ascending order.
    pub(super) async fn new(entries: Vec<(u32, u32)>, pace: &Pace) -> Self {
        let buckets = entries.len().next_power_of_two();
        let of = |hash| bucket(hash, buckets);
        let (starts, mut entries) = distribute(&entries, buckets, of, pace).await;
        let mut rest = &mut *entries;
        for bounds in starts.windows(2) {
            let [start, end] = bounds else { break };
            let (one, others) = rest.split_at_mut((end - start) as usize);
            one.sort_unstable();
            rest = others;
            // Most have one entry or none.
            pace.spend(one.len() / 16 + usize::from(end % 64 == 0)).await;
        }
        Self { starts, entries }
    }

    /// The numbers at `place` whose key may match `value`, one ascending list for each such key: one
    /// look-up, and one more for each of `lengths`, those that prefixes and suffixes at
    /// this place have. The number of keys does not matter.
    pub(super) fn matching<'t>(
        &'t self,
        place: u32,
        lengths: &'t [u32],
        value: &'t str,
    ) -> impl Iterator<Item = impl Iterator<Item = u32> + 't> + 't {
        let parts = lengths.iter().filter_map(|length| match length & !SUFFIX {
            prefix if prefix == *length => Some(Key::Prefix(value.get(..prefix as usize)?)),
            suffix => {
                let start = value.len().checked_sub(suffix as usize)?;
                Some(Key::Suffix(value.get(start..)?))
            }
        });
        let keys = std::iter::once(Key::Exact(value)).chain(parts);
        keys.map(move |key| self.find(hash(place, key)))
    }

    fn find(&self, hash: u32) -> impl Iterator<Item = u32> {
        let bucket = bucket(hash, self.starts.len().saturating_sub(1));
        let bounds = self.starts.get(bucket).zip(self.starts.get(bucket + 1));
        let entries =
            bounds.and_then(|(start, end)| self.entries.get(*start as usize..*end as usize));
        let entries = entries.unwrap_or_default().iter();
        entries.filter(move |(known, _)| *known == hash).map(|(_, number)| *number)
    }
}

/// The bucket of a hash: a larger hash has no lower one.
fn bucket(hash: u32, buckets: usize) -> usize {
    ((u64::from(hash) * buckets as u64) >> 32) as usize
}

/// The hash that a [`Table`] has instead of `key` at `place`.
pub(super) fn hash(place: u32, key: Key<'_>) -> u32 {
    let mut hasher = FxHasher::default();
    (place, key).hash(&mut hasher);
    // Every bit of the hash counts towards the upper ones of the product.
    (hasher.finish().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// `entries` by buckets, those of one bucket in the order in which they were, and where each bucket begins.
pub(super) async fn distribute(
    entries: &[(u32, u32)],
    buckets: usize,
    bucket: impl Fn(u32) -> usize,
    pace: &Pace,
) -> (Box<[u32]>, Box<[(u32, u32)]>) {
    // INVARIANT: there are far fewer entries than `u32::MAX`.
    let mut starts = vec![0_u32; buckets + 1].into_boxed_slice();
    for some in entries.chunks(AT_ONCE) {
        for (key, _) in some {
            if let Some(count) = starts.get_mut(bucket(*key)) {
                *count += 1;
            }
        }
        pace.spend(UNITS).await;
    }
    let mut end = 0_u32;
    for some in starts.chunks_mut(AT_ONCE) {
        for count in some {
            end += *count;
            *count = end;
        }
        pace.spend(UNITS / 4).await;
    }
    // From the last one backwards, every end becomes a start.
    let mut sorted = vec![(0, 0); entries.len()].into_boxed_slice();
    for some in entries.rchunks(AT_ONCE) {
        for entry in some.iter().rev() {
            let Some(place) = starts.get_mut(bucket(entry.0)) else { continue };
            *place = place.saturating_sub(1);
            if let Some(free) = sorted.get_mut(*place as usize) {
                *free = *entry;
            }
        }
        pace.spend(UNITS * 2).await;
    }
    (starts, sorted)
}

/// Notes the length of `key`, if it is a part of values, in the ascending `lengths` of its place.
pub(super) fn note_length(lengths: &mut Vec<u32>, key: Key<'_>) {
    let length = |text: &str| u32::try_from(text.len()).unwrap_or(SUFFIX).min(SUFFIX - 1);
    let length = match key {
        Key::Exact(_) => return,
        Key::Prefix(text) => length(text),
        Key::Suffix(text) => length(text) | SUFFIX,
    };
    if let Err(place) = lengths.binary_search(&length) {
        lengths.insert(place, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::at_once;

    fn table_of(entries: Vec<(u32, u32)>) -> Table {
        at_once(Table::new(entries, &Pace::unhurried()))
    }

    #[test]
    fn a_star_is_any_run_of_characters_also_none() {
        for (glob, matching, other) in [
            ("*", &["", "a", "ümlaut", "a*b"][..], &[][..]),
            ("ds_*", &["ds_", "ds_x", "ds_*"], &["ds", "xds_", "DS_x"]),
            ("*_daily", &["_daily", "etl_daily", "_daily_daily"], &["daily", "etl_daily2"]),
            ("a*b", &["ab", "axb", "abb", "a\u{fc}b"], &["a", "b", "abc", "ba"]),
            ("a*a", &["aa", "aba"], &["a"]),
            ("a*bc*bc*d", &["abcbcd", "a1bc2bc3d", "abcbcbcd"], &["abcd", "abcbc", "bcbcd"]),
            ("a**b", &["ab", "axb"], &["a"]),
            ("*x*", &["x", "axb"], &["", "ab"]),
        ] {
            for value in matching {
                assert!(matches(glob, value), "{glob} {value}");
            }
            for value in other {
                assert!(!matches(glob, value), "{glob} {value}");
            }
        }
    }

    #[test]
    fn a_hostile_glob_costs_no_more_than_its_length_times_the_value() {
        let glob = format!("{}b", "a*".repeat(1000));
        assert!(!matches(&glob, &"a".repeat(10_000)));
    }

    #[test]
    fn the_table_finds_every_key_that_may_match_at_its_place() {
        let (mut entries, mut lengths) = (Vec::new(), Vec::new());
        let texts = ["team1_a", "team1_*", "team*", "*", "*_a", "\u{fc}*", "*x*\u{fc}"];
        for (number, text) in (0..).zip(texts) {
            entries.push((hash(7, Key::of(text)), number));
            entries.push((hash(8, Key::of(text)), 100));
            note_length(&mut lengths, Key::of(text));
        }
        let table = table_of(entries);
        let found = |value: &str| {
            let mut found: Vec<_> = table.matching(7, &lengths, value).flatten().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found("team1_a"), [0, 1, 2, 3, 4]);
        assert_eq!(found("team12"), [2, 3]);
        assert_eq!(found(""), [3]);
        assert_eq!(found("\u{fd}x"), [3]);
        assert_eq!(found("\u{fc}"), [3, 5, 6]);
        assert_eq!(found("x_a"), [3, 4]);
        for empty in [Table::default(), table_of(Vec::new())] {
            assert_eq!(empty.matching(7, &lengths, "x").flatten().count(), 0);
        }
    }

    #[test]
    fn a_table_gives_the_numbers_of_one_key_in_ascending_order() {
        let entries = (0..1000).map(|number| (hash(number % 7, Key::Exact("x")), number));
        let table = table_of(entries.collect());
        let found: Vec<_> = table.matching(3, &[], "x").flatten().collect();
        assert_eq!(found, (3..1000).step_by(7).collect::<Vec<_>>());
    }
}
