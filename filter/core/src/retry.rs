//! How often a server that fails is asked again: less and less, and never in step with others.

use crate::time::Span;

/// Failures in a row after which a server is asked only to see whether it is back.
pub const TOLERATED: u32 = 3;

/// Whether a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Breaker {
    /// It is, whenever there is a reason.
    #[default]
    Closed = 0,
    /// It failed too often and is being asked whether it is back.
    HalfOpen = 1,
    /// It failed too often and is left alone for a while.
    Open = 2,
}

impl Breaker {
    /// Its name in the status answer.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The longest [`back_off`].
pub const MOST_BACK_OFF: Span = Span::from_secs(30);

/// Half a second, doubled for each failure, never more than `most` or half a minute.
pub fn back_off(failures: u32, most: Span) -> Span {
    let millis = 500_i64.saturating_mul(1_i64.checked_shl(failures.min(16)).unwrap_or(i64::MAX));
    Span::from_millis(millis).min(most).min(MOST_BACK_OFF)
}

/// Pseudo-random numbers that keep the workers of many proxies out of step.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// Starts with a number that no other worker has.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The span, less up to one `part`th of it.
    pub fn less(&mut self, span: Span, part: i64) -> Span {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let most = span.as_millis().div_euclid(part).max(0).saturating_add(1);
        let less = i64::try_from(mixed >> 1).unwrap_or_default().rem_euclid(most);
        Span::from_millis(span.as_millis().saturating_sub(less))
    }
}
