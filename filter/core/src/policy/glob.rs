//! Globs over single values, and a map that finds the globs which may match a value.
//!
//! `*` stands for any run of characters, also none; nothing else is special and nothing escapes it.
//! A glob is compared to the whole value, case-sensitively.

use rustc_hash::FxHashMap;

/// A value of a selector that contains at least one `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob(Box<str>);

/// What an index can look up of a value in a policy: the value, or what every match begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    /// Matches this value only.
    Exact(&'a str),
    /// Matches only values that begin so; with the empty prefix that says nothing.
    Prefix(&'a str),
}

impl<'a> Key<'a> {
    /// The key of `text` as it is written in the policy.
    pub(super) fn of(text: &'a str) -> Self {
        match text.split_once('*') {
            None => Self::Exact(text),
            Some((prefix, _)) => Self::Prefix(prefix),
        }
    }
}

impl Glob {
    pub(super) fn new(text: &str) -> Self {
        Self(text.into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole of `value` matches.
    pub(super) fn matches(&self, value: &str) -> bool {
        let mut parts = self.0.split('*');
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
}

/// The values of one selector field, ORed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Values {
    /// Sorted, so that a long list costs little.
    exact: Box<[Box<str>]>,
    globs: Box<[Glob]>,
}

impl Values {
    pub(super) fn new<'t>(texts: impl IntoIterator<Item = &'t str>) -> Self {
        let (globs, mut exact): (Vec<_>, Vec<_>) =
            texts.into_iter().partition(|text| text.contains('*'));
        exact.sort_unstable();
        exact.dedup();
        Self {
            exact: exact.into_iter().map(Into::into).collect(),
            globs: globs.into_iter().map(Glob::new).collect(),
        }
    }

    pub(super) fn matches(&self, value: &str) -> bool {
        self.exact.binary_search_by(|exact| (**exact).cmp(value)).is_ok()
            || self.globs.iter().any(|glob| glob.matches(value))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key<'_>> {
        self.texts().map(Key::of)
    }

    /// The values as written, those without `*` first.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.exact.iter().map(AsRef::as_ref).chain(self.globs.iter().map(Glob::as_str))
    }
}

/// A map from [`Key`]s, asked with a value for everything whose key may match the value.
///
/// One hash look-up, and one more for each *length* of prefix among the keys: the number of keys
/// does not matter.
#[derive(Debug, Clone)]
pub(super) struct KeyMap<T> {
    exact: FxHashMap<Box<str>, T>,
    prefixes: Option<Box<Prefixes<T>>>,
}

#[derive(Debug, Clone)]
struct Prefixes<T> {
    /// The lengths that occur, ascending.
    lengths: Vec<usize>,
    by_text: FxHashMap<Box<str>, T>,
}

impl<T> Default for KeyMap<T> {
    fn default() -> Self {
        Self { exact: FxHashMap::default(), prefixes: None }
    }
}

impl<T> KeyMap<T> {
    /// The place of `key`, made by `new` if it is not there yet.
    pub(super) fn entry(&mut self, key: Key<'_>, new: impl FnOnce() -> T) -> &mut T {
        match key {
            Key::Exact(text) => self.exact.entry(text.into()).or_insert_with(new),
            Key::Prefix(text) => {
                let prefixes = self.prefixes.get_or_insert_with(|| {
                    Box::new(Prefixes { lengths: Vec::new(), by_text: FxHashMap::default() })
                });
                if let Err(place) = prefixes.lengths.binary_search(&text.len()) {
                    prefixes.lengths.insert(place, text.len());
                }
                prefixes.by_text.entry(text.into()).or_insert_with(new)
            }
        }
    }

    /// Everything whose key may match `value`.
    pub(super) fn matching<'m>(&'m self, value: &str) -> impl Iterator<Item = &'m T> {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(value) };
        let prefixed = self.prefixes.iter().flat_map(move |prefixes| {
            prefixes
                .lengths
                .iter()
                .map_while(move |length| {
                    Some(value.get(..*length)).filter(|_| *length <= value.len())
                })
                .flatten()
                .filter_map(|prefix| prefixes.by_text.get(prefix))
        });
        exact.into_iter().chain(prefixed)
    }

    /// Everything in the map.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.exact
            .values()
            .chain(self.prefixes.iter().flat_map(|prefixes| prefixes.by_text.values()))
    }

    /// The same keys with other contents.
    pub(super) fn map<U>(self, change: impl Fn(T) -> U) -> KeyMap<U> {
        let map = |entries: FxHashMap<Box<str>, T>| {
            entries.into_iter().map(|(text, value)| (text, change(value))).collect()
        };
        KeyMap {
            exact: map(self.exact),
            prefixes: self.prefixes.map(|prefixes| {
                Box::new(Prefixes { lengths: prefixes.lengths, by_text: map(prefixes.by_text) })
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let compiled = Glob::new(glob);
            for value in matching {
                assert!(compiled.matches(value), "{glob} {value}");
            }
            for value in other {
                assert!(!compiled.matches(value), "{glob} {value}");
            }
        }
    }

    #[test]
    fn a_hostile_glob_costs_no_more_than_its_length_times_the_value() {
        let glob = Glob::new(&format!("{}b", "a*".repeat(1000)));
        assert!(!glob.matches(&"a".repeat(10_000)));
    }

    #[test]
    fn the_map_finds_every_key_that_may_match() {
        let mut map = KeyMap::default();
        for (number, text) in
            ["team1_a", "team1_*", "team*", "*", "*_a", "\u{fc}*"].iter().enumerate()
        {
            map.entry(Key::of(text), Vec::new).push(number);
        }
        let found = |value: &str| {
            let mut found: Vec<_> = map.matching(value).flatten().copied().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found("team1_a"), [0, 1, 2, 3, 4]);
        assert_eq!(found("team12"), [2, 3, 4]);
        assert_eq!(found(""), [3, 4]);
        assert_eq!(found("\u{fd}x"), [3, 4]);
        assert_eq!(found("\u{fc}"), [3, 4, 5]);
    }
}
