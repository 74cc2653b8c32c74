//! Medians, how sure they are, and which samples are not worth keeping.
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
    /// Of `values`.
    pub fn of(values: &[f64]) -> Self {
        Self::drawn(median(values), |random| median(&random.draw(values)))
    }

    /// Of the median of `values` divided by that of `others`. What would be divided by nothing or less is infinite.
    pub fn of_ratio(values: &[f64], others: &[f64]) -> Self {
        Self::drawn(quotient(median(values), median(others)), |random| {
            quotient(median(&random.draw(values)), median(&random.draw(others)))
        })
    }

    fn drawn(median: f64, mut draw: impl FnMut(&mut Random) -> f64) -> Self {
        // The same samples have the same interval: a report can be made again.
        let mut random = Random(0x5eed);
        let mut draws: Vec<f64> = (0..DRAWS).map(|_| draw(&mut random)).collect();
        draws.sort_by(f64::total_cmp);
        let at = |index: usize| draws.get(index).copied().unwrap_or(f64::NAN);
        Self { median, low: at(DRAWS / 40), high: at(DRAWS - DRAWS / 40 - 1) }
    }
}

/// The middle value; between two, their mean. Of none: not a number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |index: Option<usize>| index.and_then(|index| sorted.get(index)).copied();
    match (at(Some(middle)), at(middle.checked_sub(1))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(lower, upper),
        (Some(only), _) => only,
        (None, _) => f64::NAN,
    }
}

/// The half of `samples` with the least `noise`, rounded up; all of them if there are fewer than `least`.
pub fn quieter_half<T: Clone>(samples: &[T], least: usize, noise: impl Fn(&T) -> f64) -> Vec<T> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|one, other| noise(one).total_cmp(&noise(other)));
    sorted.truncate(samples.len().div_ceil(2).max(least));
    sorted
}

fn quotient(value: f64, other: f64) -> f64 {
    if other > 0.0 { value / other } else { f64::INFINITY }
}

/// A sequence that looks random and is always the same (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
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

    /// As many of `values`, each any number of times.
    fn draw(&mut self, values: &[f64]) -> Vec<f64> {
        (0..values.len()).filter_map(|_| values.get(self.below(values.len())).copied()).collect()
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

    #[test]
    fn an_interval_of_what_never_varies_has_no_width() {
        let same = [3.0; 9];
        assert_eq!(Estimate::of(&same), Estimate { median: 3.0, low: 3.0, high: 3.0 });
        let half = Estimate::of_ratio(&same, &[6.0; 4]);
        assert_eq!(half, Estimate { median: 0.5, low: 0.5, high: 0.5 });
    }

    #[test]
    fn an_interval_is_what_the_order_of_draws_says() {
        // The median of 11 draws from 1 to 11 is below 3 with a probability of 0.8 %, below 4 of 5.1 % (binomial):
        // the lower end is 3, and the upper one stands as far from the median.
        let values: Vec<f64> = (1..=11).map(f64::from).collect();
        assert_eq!(Estimate::of(&values), Estimate { median: 6.0, low: 3.0, high: 9.0 });
        // One sample far away moves neither.
        let mut outlier = values.clone();
        outlier[10] = 1e9;
        assert_eq!(Estimate::of(&outlier), Estimate { median: 6.0, low: 3.0, high: 9.0 });
    }

    #[test]
    fn a_ratio_is_of_medians_and_as_unsure_as_both() {
        let one: Vec<f64> = (1..=11).map(f64::from).collect();
        let other: Vec<f64> = (11..=21).map(f64::from).collect();
        let ratio = Estimate::of_ratio(&one, &other);
        assert_eq!(ratio.median, 6.0 / 16.0);
        // As wide as that of the one at least, and no wider than if both were at their ends.
        assert!(ratio.low <= 3.0 / 16.0 && ratio.high >= 9.0 / 16.0, "{ratio:?}");
        assert!(ratio.low >= 3.0 / 19.0 && ratio.high <= 9.0 / 13.0, "{ratio:?}");
        assert!(Estimate::of_ratio(&one, &[0.0; 3]).median.is_infinite());
        assert!(Estimate::of_ratio(&one, &[-1.0; 3]).median.is_infinite());
    }

    #[test]
    fn the_noisier_half_is_dropped_unless_little_is_left() {
        let samples = [(1, 0.4), (2, 0.1), (3, 0.3), (4, 0.2), (5, 0.5)];
        let numbers = |least| {
            let kept = quieter_half(&samples, least, |(_, noise)| *noise);
            kept.into_iter().map(|(number, _)| number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), [2, 4, 3]);
        assert_eq!(numbers(4), [2, 4, 3, 1]);
        assert_eq!(numbers(9), [2, 4, 3, 1, 5]);
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
