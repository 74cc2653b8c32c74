//! Runs the tests of a file against a policy.

use airflow_envoy_core::quote::quote;
use airflow_envoy_core::time::UnixTime;

use crate::coverage::Coverage;
use crate::evaluate::{Answer, Evaluator};
use crate::model::Model;
use crate::only;
use crate::source::Place;
use crate::suite::{Case, Expected, Suite};

/// A policy under test.
#[derive(Debug)]
pub struct UnderTest {
    /// What decides.
    pub evaluator: Evaluator,
    /// What it says.
    pub model: Model,
    /// Its document.
    pub document: serde_json::Value,
}

/// What became of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// Where it stands.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// What was expected and what was decided, line by line; empty if it passed.
    pub failure: Vec<Line>,
}

/// A line of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// What was expected.
    Expected(String),
    /// What was decided.
    Decided(String),
    /// What helps to understand it.
    Note(String),
}

impl std::fmt::Display for Line {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Expected(text) => write!(formatter, "- {text}"),
            Self::Decided(text) => write!(formatter, "+ {text}"),
            Self::Note(text) => write!(formatter, "  {text}"),
        }
    }
}

/// Runs every test of `suite` that `wanted` names. What has no time of its own is decided at `now`.
pub fn run(
    suite: &Suite,
    policy: &UnderTest,
    now: UnixTime,
    wanted: &dyn Fn(&str) -> bool,
    mut coverage: Option<&mut Coverage>,
) -> Vec<Tested> {
    let cases = suite.cases.iter().filter(|case| wanted(&case.name)).map(|case| {
        let failure = run_case(case, policy, now, coverage.as_deref_mut());
        Tested { place: case.place.clone(), name: case.name.clone(), failure }
    });
    let mut tested: Vec<Tested> = cases.collect();
    for assertion in suite.only.iter().filter(|assertion| wanted(&assertion.name)) {
        let failure = only::run(assertion, suite, policy, now);
        let (place, name) = (assertion.place.clone(), assertion.name.clone());
        tested.push(Tested { place, name, failure });
    }
    tested
}

fn run_case(
    case: &Case,
    policy: &UnderTest,
    now: UnixTime,
    coverage: Option<&mut Coverage>,
) -> Vec<Line> {
    let at = case.at.unwrap_or(now);
    let caller = match case.said.caller() {
        Ok(caller) => caller,
        Err(problem) => return vec![Line::Note(problem)],
    };
    let answer = policy.evaluator.decide(&caller, &case.request, at);
    if let Some(coverage) = coverage {
        coverage.note(policy, &caller, &case.request, at, &answer);
    }
    if is_expected(&answer, &case.expected) {
        return Vec::new();
    }
    let mut lines = vec![
        Line::Note(format!("{} at {at}", case.request)),
        Line::Note(format!("as {}", case.said.describe())),
        Line::Expected(case.expected.to_string()),
        Line::Decided(told(&answer)),
    ];
    if let Err(reject) = &answer.outcome {
        lines.push(Line::Note(reject.detail.clone()));
    }
    let nearest = answer.outcome.as_ref().err().and_then(|reject| reject.nearest.as_deref());
    for id in answer.decider().into_iter().chain(nearest) {
        if let Some((what, place)) = policy.model.named(id) {
            lines.push(Line::Note(format!("{what} {} is at {place}", quote(id))));
        }
    }
    let Expected { rule, nearest, .. } = &case.expected;
    for id in rule.iter().chain(nearest) {
        if policy.model.named(id).is_none() {
            lines.push(Line::Note(format!("the policy has no rule {}", quote(id))));
        }
    }
    lines
}

/// The answer with its shadow rules.
fn told(answer: &Answer) -> String {
    let mut told = answer.to_string();
    if !answer.shadow.is_empty() {
        let shadow: Vec<String> = answer.shadow.iter().map(|one| quote(&one.rule)).collect();
        told.push_str(&format!(", shadow rules {}", shadow.join(" ")));
    }
    told
}

fn is_expected(answer: &Answer, expected: &Expected) -> bool {
    let rule_is = expected.rule.as_deref().is_none_or(|rule| answer.decider() == Some(rule));
    let outcome_is = match &answer.outcome {
        Ok(_) => expected.permit,
        Err(reject) => {
            !expected.permit
                && expected.code.as_deref().is_none_or(|code| code == reject.code.name())
                && expected
                    .nearest
                    .as_ref()
                    .is_none_or(|rule| reject.nearest.as_ref() == Some(rule))
                && expected.detail.as_deref().is_none_or(|part| reject.detail.contains(part))
        }
    };
    let shadow_is = expected.shadow.as_ref().is_none_or(|expected| {
        let mut found: Vec<&str> = answer.shadow.iter().map(|one| &*one.rule).collect();
        let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        found.sort_unstable();
        expected.sort_unstable();
        found == expected
    });
    rule_is && outcome_is && shadow_is
}
