//! Chance, the same on every machine for the same seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator (splitmix64).
pub struct Random(u64);

impl Random {
    /// Of the seed in the variable `INTENTIONS_SEED`, or another one every time. It is printed.
    pub fn seeded(what: &str) -> Self {
        let given = std::env::var("INTENTIONS_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let seed = given.unwrap_or_else(|| u64::try_from(clock % 1_000_000_007).unwrap());
        println!("{what}: INTENTIONS_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }

    pub fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub fn pick<'t, T: ?Sized>(&mut self, values: &[&'t T]) -> &'t T {
        values[self.below(values.len())]
    }
}
