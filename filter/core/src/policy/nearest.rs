//! The rule that a denial by default names: the allow rule that comes nearest to the call.
//!
//! A denied caller chooses how often it is asked, so its cost has a bound that no policy moves
//! ([`Limits::nearest_rules`]): the search takes the rules for the path and the caller of the call first, then those for
//! one of both, then the others, leaves out what cannot be nearer than the nearest so far, and of so many names the one with the
//! fewest misses. It depends on nothing but the policy and the call; whoever explains a call elsewhere finds the
//! same rule.

use super::Policy;
use super::index::Next;
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
    /// No rule that may be met has a lower number.
    lowest: u32,
    /// The number of the nearest rule, behind its misses.
    nearest: Option<(usize, u32)>,
}

/// Numbers of rules, in a table with open addresses that is at most half full.
#[derive(Debug)]
struct Seen {
    most: usize,
    /// Many searches end with the first one: it needs no table.
    first: u32,
    /// A number plus one; 0 is free. None before the second number.
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
            lowest: self.callers.lowest(question.destination),
            nearest: None,
        };
        self.allow.nearby(&self.callers, question, |number, least| {
            search.meet(number, least, question, &self.rules)
        });
        search
    }
}

impl Search {
    /// Looks at a rule, of an ascending list, unless it has. It and others that it has not looked at have `least`
    /// misses or more.
    fn meet(&mut self, number: u32, least: usize, question: &Question<'_>, rules: &[Rule]) -> Next {
        self.met = self.met.saturating_add(1);
        if self.seen.count >= self.most || self.met > self.most.saturating_mul(MEETINGS) {
            return Next::Nothing;
        }
        if self.nearest.is_none_or(|(misses, _)| misses >= least) && self.seen.insert(number) {
            self.look(number, question, rules);
        }
        match self.nearest {
            Some((misses, _)) if misses < least => Next::Nothing,
            Some((misses, nearest)) if misses == least && nearest <= self.lowest => Next::Nothing,
            Some((misses, nearest)) if misses == least && nearest <= number => Next::List,
            _ => Next::Rule,
        }
    }

    fn look(&mut self, number: u32, question: &Question<'_>, rules: &[Rule]) {
        // So many misses and it is nearer than the nearest one known.
        let most = match self.nearest {
            None => usize::MAX,
            Some((misses, nearest)) if number < nearest => misses,
            Some((misses, _)) => misses.saturating_sub(1),
        };
        // A rule without a miss would have allowed the call.
        if most > 0
            && let Some(rule) = rules.get(number as usize)
            // An index may find what has the hash of what it looks for.
            && rule.is_for(question.destination)
        {
            let misses = rule.misses(question).take(most.saturating_add(1)).count();
            if misses <= most {
                self.nearest = Some((misses, number));
            }
        }
    }
}

impl Seen {
    /// Room for `most` numbers.
    fn new(most: usize) -> Self {
        Self { most, first: 0, slots: Box::default(), count: 0 }
    }

    /// Whether the number is new. One for which there is no room is.
    fn insert(&mut self, number: u32) -> bool {
        if self.count == 0 {
            (self.first, self.count) = (number, 1);
            return true;
        }
        if self.slots.is_empty() {
            let slots = self.most.saturating_mul(2).max(2).next_power_of_two();
            self.slots = vec![0; slots].into_boxed_slice();
            self.put(self.first);
        }
        let is_new = self.put(number);
        self.count = self.count.saturating_add(is_new.into());
        is_new
    }

    /// Puts it into the table, unless it is there.
    fn put(&mut self, number: u32) -> bool {
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
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::selector::{Truth, Who};
    use super::*;
    use crate::facts::{Caller, Fact};
    use crate::time::UnixTime;

    const LIMITS: Limits = Limits::DEFAULT;

    fn policy(rules: Vec<Value>) -> Policy {
        let document = json!({
            "version": 1, "rules": rules,
            "destinations": {"orders": {"hosts": ["orders.internal"]}, "ledger": {"hosts": ["ledger.internal"]}},
        });
        Policy::from_value(&document, &LIMITS).unwrap()
    }

    /// Puts a call to `orders` to `test`; the caller is of the DAG `ds_7` and of no team.
    fn ask<T>(policy: &Policy, path: &str, test: impl FnOnce(&Question<'_>) -> T) -> T {
        let caller =
            Caller { dags: Fact::one("ds_7"), teams: Fact::Known(Vec::new()), ..Caller::default() };
        let held =
            policy.roles.find(&Who { caller: &caller, held: &[], perhaps_held: &[] }, Truth::Yes);
        let destination = policy.destinations.iter().position(|name| **name == *"orders").unwrap();
        test(&Question {
            who: Who { caller: &caller, held: &held, perhaps_held: &[] },
            destination: Some(destination as u32),
            method: "GET",
            path: Some(path),
            now: UnixTime::from_secs(1),
        })
    }

    /// What a rule of `number` is about: each shape is another way to have very many that come near.
    fn rule(shape: &str, number: usize) -> Value {
        let mut rule = json!({"id": format!("r{number:06}"), "effect": "allow", "to": ["orders"], "from": {"teams": ["a"]}});
        let more = match shape {
            "paths" => json!({"paths": [format!("/v1/res{number}/**")]}),
            "patterns" => json!({"paths": [format!("/v1/*/res{number}")]}),
            "places" => {
                json!({"paths": (0..9).map(|other| format!("/v1/res{number}/{other}")).collect::<Vec<_>>()})
            }
            "dags" => {
                json!({"paths": ["/v1/orders"], "from": {"dags": [format!("ds_{number}")], "teams": ["a"]}})
            }
            "crowd" => json!({"paths": ["/v1/orders"]}),
            _ => json!({"to": ["*"], "methods": ["PUT"]}),
        };
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    }

    #[test]
    fn a_denial_looks_at_no_more_rules_of_a_large_policy_than_of_a_small_one() {
        for shape in ["paths", "patterns", "places", "dags", "crowd", "any"] {
            let looks = [1_000, 10_000].map(|size| {
                let rules = (0..size).map(|number| {
                    let mut rule = rule(shape, number);
                    // A single miss of the first rule would end the search.
                    rule["from"]["runs"] = json!(["manual"]);
                    rule
                });
                let policy = policy(rules.collect());
                ask(&policy, "/v1/orders", |question| {
                    let search = policy.search(question, &LIMITS);
                    let (_, number) = search.nearest.unwrap();
                    (search.seen.count, search.met, number)
                })
            });
            let [small, (seen, met, _)] = looks;
            assert_eq!(small, looks[1], "{shape}");
            // The rule at which it ends is met, too.
            let last = LIMITS.nearest_rules * MEETINGS + 1;
            assert!(seen <= LIMITS.nearest_rules && met <= last, "{shape}: {looks:?}");
            // Rules of many places are met so often that fewer are looked at.
            assert!(seen == LIMITS.nearest_rules || met == last, "{shape} is no test: {looks:?}");
        }
    }

    /// The nearest of the first `most` rules, and how many those are, without leaving any out. What is told of the misses
    /// of rules to come must be true.
    fn all(policy: &Policy, question: &Question<'_>, most: usize) -> (Option<(usize, u32)>, usize) {
        let (mut seen, mut nearest) = (BTreeSet::new(), None);
        policy.allow.nearby(&policy.callers, question, |number, least| {
            if seen.len() < most && seen.insert(number) {
                let misses = policy.rules[number as usize].misses(question).count();
                assert!(misses >= least, "{number}: {misses} {least}");
                nearest = nearest.into_iter().chain([(misses, number)]).min();
            }
            if seen.len() < most { Next::Rule } else { Next::Nothing }
        });
        (nearest, seen.len())
    }

    #[test]
    fn of_many_paths_that_begin_alike_the_nearest_is_found() {
        for count in [7, 8, 9, 40] {
            for step in [1, 3, 7, 9] {
                let rules = (0..count).map(|number| {
                    let begins = "a".repeat(number * step % 41 + 1);
                    let mut rule = rule("crowd", number);
                    rule["paths"] = json!([format!("/{begins}*/x")]);
                    rule["methods"] = json!([if number % 5 == 4 { "GET" } else { "POST" }]);
                    rule
                });
                let policy = policy(rules.collect());
                for path in [
                    format!("/{}/x", "a".repeat(50)),
                    "/aaaaaaaaaaaa/y".to_owned(),
                    "/b".to_owned(),
                ] {
                    let (expected, _) = ask(&policy, &path, |question| all(&policy, question, 64));
                    let search = ask(&policy, &path, |question| policy.search(question, &LIMITS));
                    assert_eq!(search.nearest, expected, "{count} {step} {path}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_nearer_is_left_out_and_nothing_else() {
        let (mut found, mut cut_short) = (BTreeSet::new(), 0);
        // Multiples of a number that has no divisor in common with a power of two: another order each.
        for (step, is_near) in [1, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]
            .into_iter()
            .flat_map(|step| [(step, false), (step, true)])
        {
            let rules = (0..64).map(|number| {
                let order = number * step % 64;
                let mut rule = rule(["paths", "dags", "crowd", "any"][order % 4], order % 16);
                rule["id"] = format!("r{number:06}").into();
                if is_near {
                    rule.as_object_mut().unwrap().remove("from");
                }
                if is_near || order % 3 > 0 {
                    rule["methods"] = json!(["POST"]);
                }
                if order % 5 > 0 {
                    rule["from"]["runs"] = json!(["manual"]);
                }
                if order % 7 == 0 {
                    rule["valid"] = json!({"not_before": "2027-01-01T00:00:00Z"});
                }
                rule
            });
            let policy = policy(rules.collect());
            for (path, most) in [
                ("/v1/orders", 64),
                ("/v1/res3/1", 64),
                ("/", 5),
                ("/v1/orders", 9),
                ("/v1/res3", 1),
            ] {
                let limits = Limits { nearest_rules: most, ..LIMITS };
                let (expected, seen) = ask(&policy, path, |question| all(&policy, question, most));
                let search = ask(&policy, path, |question| policy.search(question, &limits));
                // Who leaves out what cannot be nearer gets to more rules.
                let is_right = match most >= 64 {
                    true => search.nearest == expected,
                    false => search.nearest.is_some_and(|found| Some(found) <= expected),
                };
                assert!(is_right, "{step} {path} {most}: {:?} {expected:?}", search.nearest);
                cut_short += usize::from(search.seen.count < seen);
                found.extend(expected);
            }
        }
        assert!(found.len() > 10 && found.iter().any(|(misses, _)| *misses > 1), "{found:?}");
        assert!(cut_short > 10, "{cut_short}");
    }

    #[test]
    fn a_search_ends_where_nothing_nearer_can_come() {
        for (method, path, looks, nearest) in [
            // The first rule misses nothing but the path.
            ("GET", "/v1/orders", 1, (1, 0)),
            // The rule for the path misses nothing but the method; those before it by id may, too.
            ("POST", "/v1/res5/1", 6, (1, 5)),
            ("POST", "/v1/orders", LIMITS.nearest_rules, (2, 0)),
        ] {
            let rules = (0..100).map(|number| {
                let mut rule = rule("paths", number);
                rule["from"] = json!({"dags": ["ds_7"]});
                rule["methods"] = json!([method]);
                rule
            });
            let policy = policy(rules.collect());
            let search = ask(&policy, path, |question| policy.search(question, &LIMITS));
            let found = (search.seen.count, search.nearest);
            assert_eq!(found, (looks, Some(nearest)), "{method} {path}");
        }
    }

    /// Whatever rules are before it: they miss the path and the caller.
    #[test]
    fn the_callers_own_rule_is_found_among_those_of_others() {
        for size in [50, 5_000] {
            let rules = (0..size).map(|number| {
                let mut rule = rule("paths", number);
                rule["from"] = json!({"dags": [format!("ds_{}", size - number)]});
                rule
            });
            let policy = policy(rules.collect());
            let search = ask(&policy, "/v1/orders", |question| policy.search(question, &LIMITS));
            assert_eq!((search.seen.count, search.nearest), (1, Some((1, size as u32 - 7))));
        }
    }

    /// However many rules of others are for the path, or for any destination.
    #[test]
    fn the_callers_own_rule_is_found_behind_a_crowd() {
        let last = |more: Value| {
            let mut rule = rule("crowd", 9_999);
            rule["from"] = json!({"dags": ["ds_7"]});
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule
        };
        let shapes: [fn(usize) -> Value; 2] = [
            |number| rule("any", number),
            |number| {
                let from = json!({"teams": [format!("t{number}")], "runs": ["manual"]});
                json!({"id": format!("r{number:06}"), "effect": "allow", "to": ["orders"], "from": from})
            },
        ];
        for shape in shapes {
            for more in [json!({"methods": ["POST"]}), json!({"paths": ["/v1/else"]})] {
                let rules = (0..200).map(shape).chain([last(more)]);
                let policy = policy(rules.collect());
                let search =
                    ask(&policy, "/v1/orders", |question| policy.search(question, &LIMITS));
                assert_eq!(search.nearest, Some((1, 200)));
            }
        }
    }

    #[test]
    fn each_number_is_new_once() {
        let numbers = [0, 1, 2, 3, 99_999, 199_999, 65_536, 131_072, 196_608, 262_144, 0x7fff_ffff];
        for most in [1, 2, 5, 11, 64] {
            let mut seen = Seen::new(most);
            for (count, number) in numbers.into_iter().take(most).enumerate() {
                assert_eq!(seen.count, count);
                assert!(seen.insert(number) && !seen.insert(number), "{number}");
            }
            for number in numbers.into_iter().take(most) {
                assert!(!seen.insert(number), "{number}");
            }
        }
    }
}
