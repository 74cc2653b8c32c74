//! Running the cases against whatever answers them, and judging the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::case::{Case, Exchange, Expectation, cases};

/// The reject codes without a case, and why.
const WITHOUT_A_CASE: &str = include_str!("../cases/without_a_case.json");

/// Something that answers requests as the filter does.
pub trait Subject {
    /// How the report names it.
    fn name(&self) -> &'static str;

    /// Why it cannot be asked this case; `None` if it can.
    fn excuse(&self, case: &Case) -> Option<String> {
        let _ = case;
        None
    }

    /// Whether time is its caller's to choose. If not, it is always asked with the real time, and what
    /// happens later is not asked.
    fn chooses_time(&self) -> bool {
        true
    }

    /// Starts afresh with this plugin configuration.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration, in its own words.
    fn configure(&mut self, configuration: &[u8]) -> Result<(), String>;

    /// What `case` sends at `now`, in seconds since the Unix epoch. For a subject for which time passes, minting is
    /// better done beforehand.
    ///
    /// # Errors
    /// If the case does not say what it sends.
    fn exchange(&mut self, case: &Case, now: i64) -> Result<Exchange, String> {
        case.exchange(now)
    }

    /// Answers the request of an exchange at `now`, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// If there was neither a permit nor a rejection.
    fn answer(&mut self, exchange: &Exchange, now: i64) -> Result<Answer, String>;
}

/// What a subject did with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It goes on.
    Permit {
        /// The rule that allowed it, if one did and the subject can tell.
        rule: Option<String>,
        /// The headers that the upstream sees, names in lower case.
        headers: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// It was refused.
    Reject {
        /// The HTTP status.
        status: u16,
        /// The reject code.
        code: String,
        /// The rule that denied.
        rule: Option<String>,
        /// The rule that came nearest.
        nearest: Option<String>,
        /// The explanation.
        detail: String,
        /// The advice; `None` where the reply has no room for one.
        action: Option<String>,
    },
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    subject: &'static str,
    /// Cases that were asked and judged.
    pub ran: usize,
    permits: usize,
    rejects: usize,
    unusable: usize,
    /// Cases that could not be asked, and why.
    pub excused: Vec<(String, String)>,
    /// What was wrong, a sentence each.
    pub failures: Vec<String>,
}

/// Asks `subject` every case, each twice: an answer from its memory must equal the first one.
pub fn run(subject: &mut dyn Subject, now: i64) -> Report {
    let mut report = Report { subject: subject.name(), ..Report::default() };
    let cases = match cases() {
        Ok(cases) => cases,
        Err(fault) => {
            report.failures.push(fault);
            return report;
        }
    };
    for case in &cases {
        if let Some(reason) = subject.excuse(case) {
            report.excused.push((case.name.clone(), reason));
            continue;
        }
        report.ran = report.ran.saturating_add(1);
        let count = match case.expected {
            Expectation::Permit { .. } | Expectation::Pass { .. } => &mut report.permits,
            Expectation::Reject { .. } => &mut report.rejects,
            Expectation::Unusable(_) => &mut report.unusable,
        };
        *count = count.saturating_add(1);
        if let Err(problem) = judge(subject, case, now) {
            report.failures.push(format!("{} ({}.json): {problem}", case.name, case.file));
        }
    }
    report
}

impl Report {
    /// The report's last line, if all is well.
    ///
    /// # Errors
    /// All failures; a run of nothing is one.
    pub fn verdict(&self) -> Result<String, String> {
        if self.failures.is_empty() && self.ran > 0 {
            return Ok(self.to_string());
        }
        Err(format!("{}\n{self}", self.failures.join("\n")))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "corpus: {} cases ran ({}): {} permits, {} rejects, {} unusable configurations; {} failed, {} excused",
            self.ran,
            self.subject,
            self.permits,
            self.rejects,
            self.unusable,
            self.failures.len(),
            self.excused.len()
        )
    }
}

/// What is missing in the corpus as a whole, given every reject code that there is: empty if nothing is.
pub fn coverage(codes: &[&str]) -> Vec<String> {
    let mut problems = Vec::new();
    let exceptions: BTreeMap<String, String> = match serde_json::from_str(WITHOUT_A_CASE) {
        Ok(exceptions) => exceptions,
        Err(error) => return vec![format!("without_a_case.json: {error}")],
    };
    let cases = match cases() {
        Ok(cases) => cases,
        Err(fault) => return vec![fault],
    };
    let mut names = BTreeSet::new();
    let mut covered = BTreeSet::new();
    for case in &cases {
        if !names.insert(&case.name) {
            problems.push(format!("two cases are named `{}`", case.name));
        }
        if let Expectation::Reject { code, .. } = &case.expected {
            covered.insert(code.as_str());
        }
    }
    for code in codes {
        match (covered.contains(code), exceptions.get(*code)) {
            (true, None) => {}
            (false, Some(reason)) if !reason.is_empty() => {}
            (true, Some(_)) => {
                problems.push(format!("`{code}` has a case and is listed as having none"))
            }
            (false, _) => {
                problems.push(format!("no case rejects with `{code}`, and no reason is given"))
            }
        }
    }
    for code in covered.into_iter().chain(exceptions.keys().map(String::as_str)) {
        if !codes.contains(&code) {
            problems.push(format!("there is no code `{code}`"));
        }
    }
    problems
}

/// The HTTP status that a code owes, told by its family rather than by the table that is tested.
pub fn expected_status(code: &str) -> u16 {
    match code.split('_').next() {
        _ if code.ends_with("_too_large") => 431,
        Some("request" | "header" | "authority" | "path") => 400,
        Some("token" | "identity") => 401,
        Some("destination" | "assertion" | "intention") => 403,
        Some("peer") if matches!(code, "peer_missing" | "peer_invalid") => 401,
        Some("peer") => 403,
        Some("policy") if code != "policy_unavailable" => 403,
        _ => 503,
    }
}

fn judge(subject: &mut dyn Subject, case: &Case, now: i64) -> Result<(), String> {
    let exchange = subject.exchange(case, now)?;
    match (subject.configure(&exchange.configuration), &case.expected) {
        (Ok(()), Expectation::Unusable(_)) => {
            return Err("the configuration was accepted".to_owned());
        }
        (Ok(()), _) => {}
        (Err(faults), Expectation::Unusable(fragments)) => return contains_all(&faults, fragments),
        (Err(faults), _) => return Err(format!("the configuration was refused: {faults}")),
    }
    let first = subject.answer(&exchange, now)?;
    compare(&case.expected, &first, &exchange)?;
    let second = subject.answer(&exchange, now)?;
    compare(&case.expected, &second, &exchange)
        .map_err(|problem| format!("the second time: {problem}"))?;
    match &case.later {
        Some((after, expected)) if subject.chooses_time() => {
            let answer = subject.answer(&exchange, now.saturating_add(*after))?;
            compare(expected, &answer, &exchange)
                .map_err(|problem| format!("{after} s later: {problem}"))
        }
        _ => Ok(()),
    }
}

fn compare(expected: &Expectation, answer: &Answer, exchange: &Exchange) -> Result<(), String> {
    match (expected, answer) {
        (Expectation::Permit { rule: expected, upstream }, Answer::Permit { rule, headers }) => {
            if rule.as_ref().is_some_and(|rule| rule != expected) {
                return Err(format!("allowed by {rule:?}, not by `{expected}`"));
            }
            sees(headers, upstream, exchange)
        }
        (Expectation::Pass { .. }, Answer::Permit { rule: Some(rule), .. }) => {
            Err(format!("was permitted, by `{rule}`"))
        }
        (Expectation::Pass { upstream }, Answer::Permit { rule: None, headers }) => {
            sees(headers, upstream, exchange)
        }
        (
            Expectation::Reject { code: expected, rule, nearest, detail, action, status: other },
            Answer::Reject {
                status,
                code,
                rule: told_rule,
                nearest: told_nearest,
                detail: told,
                action: advice,
            },
        ) => {
            if code != expected {
                return Err(format!("expected `{expected}`, was `{code}`: {told}"));
            }
            if *status != other.unwrap_or_else(|| expected_status(code)) {
                return Err(format!("`{code}` answered {status}"));
            }
            if rule.is_some() && rule != told_rule {
                return Err(format!("expected the rule {rule:?}, was {told_rule:?}"));
            }
            if nearest.is_some() && nearest != told_nearest {
                return Err(format!("expected the nearest rule {nearest:?}, was {told_nearest:?}"));
            }
            if told.is_empty() {
                return Err(format!("`{code}` is not explained"));
            }
            contains_all(told, detail)?;
            match advice.as_deref() {
                Some("") => Err(format!("`{code}` comes without advice")),
                Some(advice) => contains_all(advice, action),
                None if action.is_empty() => Ok(()),
                None => Err("the advice is missing".to_owned()),
            }
        }
        (_, Answer::Permit { rule, .. }) => Err(format!("was permitted, by {rule:?}")),
        (_, Answer::Reject { code, detail, .. }) => {
            Err(format!("was rejected with `{code}`: {detail}"))
        }
    }
}

fn sees(
    headers: &[(Vec<u8>, Vec<u8>)],
    upstream: &BTreeMap<String, Option<String>>,
    exchange: &Exchange,
) -> Result<(), String> {
    let minted = |text: &str| {
        let of = |minted: &Option<String>| minted.clone().unwrap_or_default();
        text.replace("${token}", &of(&exchange.token))
            .replace("${identity}", &of(&exchange.identity))
    };
    upstream.iter().try_for_each(|(name, value)| {
        header(headers, name, value.as_deref().map(minted).as_deref())
    })
}

fn header(
    headers: &[(Vec<u8>, Vec<u8>)],
    name: &str,
    expected: Option<&str>,
) -> Result<(), String> {
    let values: Vec<_> = headers
        .iter()
        .filter(|(candidate, _)| candidate.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, value)| String::from_utf8_lossy(value))
        .collect();
    let expected: Vec<_> = expected.into_iter().collect();
    if values == expected {
        return Ok(());
    }
    Err(format!("the upstream sees `{name}` as {values:?}, not as {expected:?}"))
}

fn contains_all(text: &str, fragments: &[String]) -> Result<(), String> {
    match fragments.iter().find(|fragment| !text.contains(fragment.as_str())) {
        Some(fragment) => Err(format!("does not say `{fragment}`, but: {text}")),
        None => Ok(()),
    }
}

/// A configuration with which the filter tells Envoy in filter state what `names` are, letter for letter the same
/// otherwise: what is no object stays as it is.
pub fn telling(configuration: &[u8], names: &[&str]) -> Vec<u8> {
    let begins = configuration.iter().position(|byte| !byte.is_ascii_whitespace());
    let (opening, members) = configuration.split_at(begins.map_or(0, |begins| begins + 1));
    if opening.last() != Some(&b'{') || members.trim_ascii_start().first() != Some(&b'"') {
        return configuration.to_vec();
    }
    let told = format!("\"filter_state\":[\"{}\"],", names.join("\",\""));
    [opening, told.as_bytes(), members].concat()
}
