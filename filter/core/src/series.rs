//! Decisions counted by rule and destination, in a bounded number of series.
//!
//! The names are those of the policy, never what a caller wrote. Still a policy may have thousands of rules, and
//! each new revision other ones, while whoever collects metrics keeps a series for ever: so the first
//! [`MOST_SERIES`] get one of their own, and what comes later is counted as [`OTHER`].

use std::hash::Hasher as _;

use rustc_hash::FxHasher;

use crate::cache::same;

/// Most series of one worker, for as long as it lives, that name a rule or a destination.
pub const MOST_SERIES: usize = 500;

/// Stands for every rule and destination beyond [`MOST_SERIES`]; no name of a policy has a bracket.
pub const OTHER: &str = "(other)";

/// What was decided, by what, about what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decided<'a> {
    /// The metric.
    pub group: &'static str,
    /// `permit`, `reject` or a code.
    pub word: &'static str,
    /// The destination's name in the policy, if it is known.
    pub destination: Option<&'a str>,
    /// The name of the rule that decided, if one did.
    pub rule: Option<&'a str>,
}

/// How often each was decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Series {
    /// Sorted by hash.
    rows: Vec<Row>,
    /// Rows that name a rule or a destination.
    named: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    hash: u64,
    group: &'static str,
    word: &'static str,
    destination: Option<Box<str>>,
    rule: Option<Box<str>>,
    count: u64,
}

impl Series {
    /// Counts one decision.
    pub(crate) fn count(&mut self, decided: Decided<'_>) {
        if let Some(row) = self.row(decided) {
            row.count = row.count.saturating_add(1);
            return;
        }
        let other = |name: Option<&str>| name.map(|_| OTHER);
        let (destination, rule) = (other(decided.destination), other(decided.rule));
        // Also two of one hash end here. There is room for it: these rows are as few as groups and words.
        if let Some(row) = self.row(Decided { destination, rule, ..decided }) {
            row.count = row.count.saturating_add(1);
        }
    }

    /// What was counted since the last time: the names of the counters, and by how much they moved.
    pub(crate) fn take(&mut self) -> Vec<(String, u64)> {
        let moved = self.rows.iter_mut().filter(|row| row.count > 0);
        moved.map(|row| (row.name(), std::mem::take(&mut row.count))).collect()
    }

    /// The row of this decision, made if there is room for it.
    fn row(&mut self, decided: Decided<'_>) -> Option<&mut Row> {
        let hash = decided.hash();
        let place = match self.rows.binary_search_by_key(&hash, |row| row.hash) {
            Ok(place) => place,
            Err(place) => {
                let is_named = decided.destination.or(decided.rule).is_some_and(|it| it != OTHER);
                if is_named && self.named >= MOST_SERIES {
                    return None;
                }
                self.named = self.named.saturating_add(is_named.into());
                self.rows.insert(place, Row::new(hash, decided));
                place
            }
        };
        self.rows.get_mut(place).filter(|row| row.is(decided))
    }
}

impl Decided<'_> {
    fn hash(&self) -> u64 {
        let mut hasher = FxHasher::default();
        for part in [Some(self.group), Some(self.word), self.destination, self.rule] {
            hasher.write(part.unwrap_or_default().as_bytes());
            // Where one ends and the next begins.
            hasher.write_u8(0);
        }
        hasher.finish()
    }
}

impl Row {
    fn new(hash: u64, decided: Decided<'_>) -> Self {
        let Decided { group, word, destination, rule } = decided;
        let (destination, rule) = (destination.map(Into::into), rule.map(Into::into));
        Self { hash, group, word, destination, rule, count: 0 }
    }

    fn is(&self, decided: Decided<'_>) -> bool {
        let equal = |known: Option<&str>, other: Option<&str>| match (known, other) {
            (Some(known), Some(other)) => same(known.as_bytes(), other.as_bytes()),
            (None, None) => true,
            _ => false,
        };
        equal(Some(self.group), Some(decided.group))
            && equal(Some(self.word), Some(decided.word))
            && equal(self.destination.as_deref(), decided.destination)
            && equal(self.rule.as_deref(), decided.rule)
    }

    /// `<group>[;destination=<name>][;rule=<name>].<word>`: names of a policy have dots, but no `;` and no
    /// `=`, and a word is the last thing because Envoy drops dots at the end.
    fn name(&self) -> String {
        let mut name = self.group.to_owned();
        for (label, value) in [(";destination=", &self.destination), (";rule=", &self.rule)] {
            if let Some(value) = value {
                name.push_str(label);
                name.push_str(value);
            }
        }
        name.push('.');
        name.push_str(self.word);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by<'a>(rule: &'a str) -> Decided<'a> {
        Decided {
            group: "decisions",
            word: "permit",
            destination: Some("orders"),
            rule: Some(rule),
        }
    }

    #[test]
    fn each_decision_is_counted_under_its_own_names() {
        let mut series = Series::default();
        let refused =
            |destination| Decided { word: "policy_no_match", destination, rule: None, ..by("") };
        for decided in
            [by("a.b"), by("main/a.b"), by("a.b"), refused(Some("orders")), refused(None)]
        {
            series.count(decided);
        }
        // The same bytes, cut elsewhere.
        series.count(Decided { destination: Some("ordersa"), ..by(".b") });
        let mut taken = series.take();
        taken.sort();
        assert_eq!(
            taken,
            [
                ("decisions.policy_no_match".to_owned(), 1),
                ("decisions;destination=orders.policy_no_match".to_owned(), 1),
                ("decisions;destination=orders;rule=a.b.permit".to_owned(), 2),
                ("decisions;destination=orders;rule=main/a.b.permit".to_owned(), 1),
                ("decisions;destination=ordersa;rule=.b.permit".to_owned(), 1),
            ]
        );
        assert_eq!(series.take(), [], "what was taken is not counted again");
        series.count(by("a.b"));
        assert_eq!(series.take(), [("decisions;destination=orders;rule=a.b.permit".to_owned(), 1)]);
    }

    #[test]
    fn names_beyond_the_limit_share_a_series_for_as_long_as_the_worker_lives() {
        let mut series = Series::default();
        for round in 0..3 {
            for number in 0..2000 {
                series.count(by(&format!("rule-{round}-{number}")));
            }
        }
        series.count(Decided { destination: None, rule: None, ..by("") });
        let taken = series.take();
        let other = "decisions;destination=(other);rule=(other).permit";
        assert_eq!(taken.len(), MOST_SERIES + 2);
        let count = |name: &str| taken.iter().find(|(known, _)| known == name).map(|(_, by)| *by);
        assert_eq!(count(other), Some(6000 - MOST_SERIES as u64));
        assert_eq!(count("decisions.permit"), Some(1));
        assert_eq!(count("decisions;destination=orders;rule=rule-0-0.permit"), Some(1));
        // Another policy has other names; the room does not come back.
        series.count(by("new"));
        assert_eq!(series.take(), [(other.to_owned(), 1)]);
        assert_eq!(series.rows.len(), MOST_SERIES + 2);
    }

    #[test]
    fn two_of_one_hash_are_not_mistaken_for_each_other() {
        let mut series = Series::default();
        series.count(by("known"));
        // What a second name with the same hash would find.
        for row in &mut series.rows {
            row.rule = Some("another".into());
        }
        series.count(by("known"));
        let names: Vec<_> = series.take().into_iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"decisions;destination=(other);rule=(other).permit".to_owned()));
    }
}
