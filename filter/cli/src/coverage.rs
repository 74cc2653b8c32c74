//! What of a policy its tests have tried.
//!
//! A rule is covered when it was the one that decided a case; a shadow rule when it was reported. A
//! condition of a rule is covered when a case failed nothing of the rule but this one condition: then
//! the tests would notice if it were taken away.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use airflow_envoy_core::facts::Caller;
use airflow_envoy_core::policy::explain::Asks;
use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::UnixTime;
use serde_json::{Value, json};

use crate::evaluate::{Answer, Request};
use crate::model::Model;
use crate::run::UnderTest;
use crate::source::Place;

/// What was tried of one policy.
#[derive(Debug, Default)]
pub struct Coverage {
    /// Rules that decided.
    rules: HashSet<String>,
    /// Conditions that nobody tried yet, by rule; `None` before the first case.
    untried: Option<BTreeMap<String, BTreeSet<Asks>>>,
    conditions: usize,
}

impl Coverage {
    /// Notes a case and its answer.
    pub fn note(
        &mut self,
        policy: &UnderTest,
        caller: &Caller,
        request: &Request,
        at: UnixTime,
        answer: &Answer,
    ) {
        self.rules.extend(answer.decider().map(str::to_owned));
        self.rules.extend(answer.shadow.iter().map(|verdict| verdict.rule.to_string()));
        // Where no rule was asked none was tried.
        let is_before_rules = answer.outcome.as_ref().is_err_and(|reject| {
            use airflow_envoy_core::reject::Code;
            let codes = [Code::PeerNotAllowed, Code::AssertionNotAllowed, Code::IntentionDenied];
            codes.contains(&reject.code)
        });
        let inquiry = policy.evaluator.inquire(caller, request, at);
        let Some(inquiry) = inquiry.filter(|_| !is_before_rules) else { return };
        let conditions = &mut self.conditions;
        let untried = self.untried.get_or_insert_with(|| {
            let rules = inquiry.rules().map(|rule| {
                let asked: BTreeSet<Asks> = rule.conditions().into_iter().collect();
                *conditions += asked.len();
                (rule.id().to_owned(), asked)
            });
            rules.filter(|(_, asked)| !asked.is_empty()).collect()
        });
        for rule in inquiry.rules().filter(|rule| rule.is_for_destination()) {
            if let Some(asked) = untried.get_mut(rule.id())
                && let Some(only) = rule.only_failure()
                && asked.remove(&only)
                && asked.is_empty()
            {
                untried.remove(rule.id());
            }
        }
    }

    /// What was covered of the policy, all in all.
    pub fn report(&self, model: &Model) -> Report {
        let rules = model.rules.iter();
        let places: HashMap<&str, &Place> =
            rules.clone().map(|rule| (rule.id.as_str(), &rule.place)).collect();
        let missing = rules.clone().filter(|rule| !self.rules.contains(&rule.id));
        let missing: Vec<(String, String)> =
            missing.map(|rule| (rule.id.clone(), rule.place.to_string())).collect();
        let untried = self.untried.iter().flatten().map(|(id, asked)| {
            let place = places.get(id.as_str()).map_or_else(String::new, ToString::to_string);
            (id.clone(), place, asked.iter().map(ToString::to_string).collect())
        });
        let untried: Vec<(String, String, Vec<String>)> = untried.collect();
        let open: usize = untried.iter().map(|(_, _, asked)| asked.len()).sum();
        Report {
            rules: (rules.len() - missing.len(), rules.len()),
            conditions: (self.conditions - open, self.conditions),
            missing,
            untried,
        }
    }
}

/// How much of a policy was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Rules that decided, of how many.
    pub rules: (usize, usize),
    /// Conditions that were tried, of how many.
    pub conditions: (usize, usize),
    /// Ids and places of rules that never decided.
    pub missing: Vec<(String, String)>,
    /// Ids and places of rules of which conditions were not tried, and which.
    pub untried: Vec<(String, String, Vec<String>)>,
}

/// A part of a whole in percent, rounded down to two digits; of nothing it is all.
pub fn percent((part, whole): (usize, usize)) -> f64 {
    let hundredths = part.saturating_mul(10_000).checked_div(whole).unwrap_or(10_000);
    f64::from(u32::try_from(hundredths).unwrap_or(10_000)) / 100.0
}

impl Report {
    /// As lines of text; with `all` what is missing too.
    pub fn text(&self, all: bool) -> String {
        let (rules, conditions) = (self.rules, self.conditions);
        let mut text = format!(
            "coverage: {}/{} rules ({}%), {}/{} conditions ({}%)\n",
            rules.0,
            rules.1,
            percent(rules),
            conditions.0,
            conditions.1,
            percent(conditions)
        );
        if all {
            for (id, place) in &self.missing {
                text.push_str(&format!("  no case is decided by rule {} ({place})\n", quote(id)));
            }
            for (id, place, asked) in &self.untried {
                let asked = asked.join(", ");
                text.push_str(&format!(
                    "  no case of rule {} fails only by its {asked} ({place})\n",
                    quote(id)
                ));
            }
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let missing = self.missing.iter().map(|(id, place)| json!({"rule": id, "place": place}));
        let untried = self.untried.iter();
        let untried = untried
            .map(|(id, place, asked)| json!({"rule": id, "place": place, "conditions": asked}));
        json!({
            "rules": {"covered": self.rules.0, "of": self.rules.1, "percent": percent(self.rules)},
            "conditions": {
                "covered": self.conditions.0, "of": self.conditions.1, "percent": percent(self.conditions),
            },
            "missing": missing.collect::<Vec<_>>(),
            "untried": untried.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_is_all_and_nothing_less() {
        assert_eq!(percent((0, 0)).to_string(), "100");
        assert_eq!(percent((9_999, 10_000)).to_string(), "99.99");
        assert_eq!(percent((99_999, 100_000)).to_string(), "99.99");
        assert_eq!(percent((1, 3)).to_string(), "33.33");
    }
}
