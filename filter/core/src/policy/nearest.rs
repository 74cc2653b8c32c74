//! The rule that a denial by default names: the allow rule that comes nearest to the call.
//!
//! A denied caller chooses how often it is asked, so its cost has a bound that no policy moves
//! ([`Limits::nearest_rules`]): the search takes the rules in the order of the index, those for the path of the call
//! first and among these those for its caller, and of so many it names the one with the fewest misses. It depends on
//! nothing but the policy and the call; whoever explains a call elsewhere finds the same rule.

use super::Policy;
use super::rule::{Question, Rule};
use crate::limits::Limits;

/// How often a rule may be met for each that is looked at: one that stands in many places is met again and again.
const MEETINGS: usize = 8;

/// A search for the nearest rule.
#[derive(Debug)]
struct Search {
    seen: Seen,
    /// Rules met, each as often as it was.
    met: usize,
    most: usize,
    /// The number of the nearest rule, behind its misses.
    nearest: Option<(usize, u32)>,
    /// Rules of which conditions were evaluated.
    evaluated: usize,
}

/// Numbers of rules, in a table with open addresses that is at most half full.
#[derive(Debug)]
struct Seen {
    /// A number plus one; 0 is free.
    slots: Box<[u32]>,
    count: usize,
}

impl Policy {
    /// The allow rule that has the fewest misses among those that are looked at, of several the first by id, and
    /// how many.
    pub(super) fn nearest(
        &self,
        question: &Question<'_>,
        limits: &Limits,
    ) -> Option<(usize, &Rule)> {
        let (misses, number) = self.search(question, limits).nearest?;
        Some((misses, self.rule(number)?))
    }

    fn search(&self, question: &Question<'_>, limits: &Limits) -> Search {
        // A small policy needs no large table.
        let most = limits.nearest_rules.min(self.rules.len());
        let mut search = Search {
            seen: Seen::new(most),
            met: 0,
            most: limits.nearest_rules,
            nearest: None,
            evaluated: 0,
        };
        self.allow.nearby(question, |number| search.meet(number, question, &self.rules));
        search
    }
}

impl Search {
    /// Looks at a rule unless it has; false at the end of the search.
    fn meet(&mut self, number: u32, question: &Question<'_>, rules: &[Rule]) -> bool {
        self.met = self.met.saturating_add(1);
        if self.seen.count >= self.most || self.met > self.most.saturating_mul(MEETINGS) {
            return false;
        }
        if !self.seen.insert(number) {
            return true;
        }
        // So many misses and it is nearer than the nearest one known.
        let most = match self.nearest {
            None => usize::MAX,
            Some((misses, nearest)) if number < nearest => misses,
            Some((misses, _)) => misses.saturating_sub(1),
        };
        // A rule without a miss would have allowed the call.
        if most > 0
            && let Some(rule) = rules.get(number as usize)
        {
            self.evaluated = self.evaluated.saturating_add(1);
            let misses = rule.misses(question).take(most.saturating_add(1)).count();
            if misses <= most {
                self.nearest = Some((misses, number));
            }
        }
        true
    }
}

impl Seen {
    /// Room for `most` numbers.
    fn new(most: usize) -> Self {
        let slots = most.saturating_mul(2).max(2).next_power_of_two();
        Self { slots: vec![0; slots].into_boxed_slice(), count: 0 }
    }

    /// Whether the number is new. One for which there is no room is.
    fn insert(&mut self, number: u32) -> bool {
        let last = self.slots.len().saturating_sub(1);
        let entry = number.wrapping_add(1);
        // Neighbours are in the list of one place: its upper bits spread them.
        let mut place = (number.wrapping_mul(0x9e37_79b9) >> 16) as usize & last;
        for _ in 0..=last {
            match self.slots.get_mut(place) {
                Some(slot) if *slot == entry => return false,
                Some(slot) if *slot == 0 => {
                    *slot = entry;
                    break;
                }
                _ => place = place.wrapping_add(1) & last,
            }
        }
        self.count = self.count.saturating_add(1);
        true
    }
}
