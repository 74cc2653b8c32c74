//! Medians, how sure they are, and which rounds are not worth keeping.
//!
//! Nothing here knows what was measured.

/// How often a median is drawn anew for its confidence interval.
const DRAWS: usize = 2_000;

/// A median with its 95 % confidence interval, by percentile bootstrap. Of no samples: not a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Estimate {
    /// Of what was found in each round.
    pub fn of(values: &[Option<f64>]) -> Self {
        Self::drawn(values.len(), |rounds| median_of(at(values, rounds)))
    }

    /// Of the median of `values` divided by that of `others`. Both are of the same rounds, and drawn together: what
    /// slowed a round down slowed both. What would be divided by nothing or less is infinite.
    pub fn of_ratio(values: &[Option<f64>], others: &[Option<f64>]) -> Self {
        Self::drawn(values.len().max(others.len()), |rounds| {
            quotient(median_of(at(values, rounds)), median_of(at(others, rounds)))
        })
    }

    /// As wide as to have all of `values` in it.
    #[must_use]
    pub fn with(self, values: &[f64]) -> Self {
        let low = values.iter().copied().fold(self.low, f64::min);
        let high = values.iter().copied().fold(self.high, f64::max);
        Self { low, high, ..self }
    }

    /// Multiplied.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }

    fn drawn(rounds: usize, statistic: impl Fn(&[usize]) -> f64) -> Self {
        let all: Vec<usize> = (0..rounds).collect();
        // The same samples have the same interval: a report can be made again.
        let mut random = Random(0x5eed);
        let mut draw =
            |_| statistic(&all.iter().map(|_| random.below(rounds)).collect::<Vec<usize>>());
        let mut draws: Vec<f64> = (0..DRAWS).map(&mut draw).collect();
        draws.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| draws.get(index).copied().unwrap_or(f64::NAN);
        Self { median: statistic(&all), low: at(DRAWS / 40), high: at(DRAWS - DRAWS / 40 - 1) }
    }
}

/// What there is of these rounds.
fn at(values: &[Option<f64>], rounds: &[usize]) -> Vec<f64> {
    rounds.iter().filter_map(|round| values.get(*round).copied().flatten()).collect()
}

/// What there is of all rounds.
pub fn present(values: &[Option<f64>]) -> Vec<f64> {
    values.iter().copied().flatten().collect()
}

/// The middle value; between two, their mean. Of none: not a number.
pub fn median(values: &[f64]) -> f64 {
    median_of(values.to_vec())
}

fn median_of(mut sorted: Vec<f64>) -> f64 {
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |index: Option<usize>| index.and_then(|index| sorted.get(index)).copied();
    match (at(Some(middle)), at(middle.checked_sub(1))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(lower, upper),
        (Some(only), _) => only,
        (None, _) => f64::NAN,
    }
}

/// Which three quarters, rounded up, have the least noise.
pub fn quieter(noises: &[f64]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..noises.len()).collect();
    let noise = |index: &usize| noises.get(*index).copied().unwrap_or(f64::NAN);
    order.sort_by(|one, other| noise(one).total_cmp(&noise(other)));
    order.truncate((noises.len() * 3).div_ceil(4));
    (0..noises.len()).map(|index| order.contains(&index)).collect()
}

/// `value` divided by `other`; infinite if that is nothing or less.
pub fn quotient(value: f64, other: f64) -> f64 {
    if other > 0.0 { value / other } else { f64::INFINITY }
}

/// A sequence that looks random and is always the same (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    /// Puts `values` in another order.
    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        for end in (2..=values.len()).rev() {
            values.swap(end - 1, self.below(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_one_or_between_two() {
        assert_eq!(median(&[9.0, 1.0, 4.0]), 4.0);
        assert_eq!(median(&[9.0, 1.0, 4.0, 5.0]), 4.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[f64::INFINITY, 1.0, 2.0]), 2.0);
    }

    fn some(values: impl IntoIterator<Item = f64>) -> Vec<Option<f64>> {
        values.into_iter().map(Some).collect()
    }

    #[test]
    fn an_interval_of_what_never_varies_has_no_width() {
        let same = some([3.0; 9]);
        assert_eq!(Estimate::of(&same), Estimate { median: 3.0, low: 3.0, high: 3.0 });
        let half = Estimate::of_ratio(&same, &some([6.0; 9]));
        assert_eq!(half, Estimate { median: 0.5, low: 0.5, high: 0.5 });
        assert!(Estimate::of(&[]).median.is_nan());
        assert!(Estimate::of(&[None, None]).high.is_nan());
    }

    #[test]
    fn an_interval_is_what_the_order_of_draws_says() {
        // The median of 11 draws from 1 to 11 is below 3 with a probability of 0.8 %, below 4 of 5.1 % (binomial):
        // the lower end is 3, and the upper one stands as far from the median.
        let mut values = some((1..=11).map(f64::from));
        assert_eq!(Estimate::of(&values), Estimate { median: 6.0, low: 3.0, high: 9.0 });
        // One sample far away moves neither.
        values[10] = Some(1e9);
        assert_eq!(Estimate::of(&values), Estimate { median: 6.0, low: 3.0, high: 9.0 });
    }

    #[test]
    fn what_slows_both_down_in_a_round_leaves_their_ratio_sure() {
        let slow = |round: i32| if round % 3 == 0 { 5.0 } else { 1.0 + f64::from(round) / 10.0 };
        let one = some((0..24).map(|round| 3.0 * slow(round)));
        let other = some((0..24).map(|round| 6.0 * slow(round)));
        assert_eq!(Estimate::of_ratio(&one, &other), Estimate { median: 0.5, low: 0.5, high: 0.5 });
        // In another order they have nothing in common, and the ratio is as unsure as both.
        let turned: Vec<Option<f64>> = other.iter().rev().copied().collect();
        let unsure = Estimate::of_ratio(&one, &turned);
        assert!(unsure.median == 0.5 && unsure.low < 0.45 && unsure.high > 0.55, "{unsure:?}");
    }

    #[test]
    fn a_ratio_is_of_the_rounds_that_there_are_and_never_of_nothing() {
        let ratio = Estimate::of_ratio(
            &[Some(1.0), None, Some(1.0), Some(1.0)],
            &[Some(4.0), Some(4.0), None, Some(4.0)],
        );
        assert_eq!(ratio.median, 0.25);
        assert!(Estimate::of_ratio(&some([1.0; 3]), &some([0.0; 3])).median.is_infinite());
        assert!(Estimate::of_ratio(&some([1.0; 3]), &some([-1.0; 3])).median.is_infinite());
    }

    #[test]
    fn an_interval_grows_to_what_it_must_have_in_it() {
        let whole = Estimate { median: 0.5, low: 0.4, high: 0.6 };
        assert_eq!(whole.with(&[0.45, 0.55]), whole);
        assert_eq!(whole.with(&[0.3, 0.7]), Estimate { median: 0.5, low: 0.3, high: 0.7 });
        assert_eq!(whole.times(2.0), Estimate { median: 1.0, low: 0.8, high: 1.2 });
    }

    #[test]
    fn the_noisiest_quarter_is_dropped() {
        let noises = [0.4, 0.1, 0.9, 0.2, 0.3, f64::NAN, 0.05, 0.6];
        let kept = [true, true, false, true, true, false, true, true];
        assert_eq!(quieter(&noises), kept);
        assert_eq!(quieter(&[0.7]), [true]);
        assert_eq!(quieter(&[]), [false; 0]);
    }

    #[test]
    fn a_shuffle_keeps_everything_and_changes_the_order() {
        let mut values: Vec<usize> = (0..50).collect();
        Random(1).shuffle(&mut values);
        assert_ne!(values, (0..50).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..50).collect::<Vec<_>>());
    }
}
