//! Reading a document that an operator wrote: configuration or policy.
//!
//! Every fault is collected with its path in the document, so that one look shows all of them. A
//! member that nobody asked for is a fault: a misspelt security setting must not be ignored.

use std::fmt;
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::quote::quote;
use crate::time::{Span, UnixTime};

/// One fault of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: `rules[3].from.dags`; empty for the document itself.
    pub path: String,
    /// What is wrong, lower case, no full stop, the author's own words in backticks.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            formatter.write_str(&self.problem)
        } else {
            write!(formatter, "{}: {}", self.path, self.problem)
        }
    }
}

/// All faults of a document, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("; ")?;
            }
            fault.fmt(formatter)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Collects faults while a document is read; more than [`Report::MOST`] are only counted.
#[derive(Debug, Default)]
pub struct Report {
    faults: Vec<Fault>,
    unlisted: usize,
    #[cfg(feature = "explain")]
    asked: Option<Asked>,
}

/// The members that each object of a document may have, by its path.
#[cfg(feature = "explain")]
pub type Asked = std::collections::BTreeMap<String, std::collections::BTreeSet<&'static str>>;

impl Report {
    /// Faults listed one by one.
    pub const MOST: usize = 50;

    /// An empty report.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `path` is wrong because of `problem`.
    pub fn fault(&mut self, path: impl Into<String>, problem: impl Into<String>) {
        if self.is_full() {
            self.unlisted = self.unlisted.saturating_add(1);
        } else {
            self.faults.push(Fault { path: path.into(), problem: problem.into() });
        }
    }

    /// Whether further faults are only counted: their problem need not be worked out.
    pub fn is_full(&self) -> bool {
        self.faults.len() >= Self::MOST
    }

    /// Whether nothing was wrong so far.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// Adds the faults of a later part of the document.
    pub(crate) fn append(&mut self, later: Self) {
        for Fault { path, problem } in later.faults {
            self.fault(path, problem);
        }
        self.unlisted = self.unlisted.saturating_add(later.unlisted);
    }

    /// A report that also notes the members that are asked for: what a schema of the document must
    /// know.
    #[cfg(feature = "explain")]
    pub fn recording() -> Self {
        Self { asked: Some(Asked::new()), ..Self::default() }
    }

    /// The members that were asked for.
    #[cfg(feature = "explain")]
    pub fn into_asked(self) -> Asked {
        self.asked.unwrap_or_default()
    }

    /// `value` if nothing was wrong.
    ///
    /// # Errors
    /// All faults, if there was one.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Faults> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => {
                if self.faults.is_empty() {
                    self.fault("", "unusable");
                }
                if self.unlisted > 0 {
                    let problem = format!("and {} more faults", self.unlisted);
                    self.faults.push(Fault { path: String::new(), problem });
                }
                Err(Faults(self.faults))
            }
        }
    }
}

/// Where a value stands in its document. It is written out only if something is wrong there: a
/// document without faults would otherwise cost more for its paths than for its contents.
#[derive(Debug, Clone, Default)]
pub struct Path<'a>(Option<Rc<(Path<'a>, Step<'a>)>>);

#[derive(Debug)]
enum Step<'a> {
    Member(&'a str),
    Element(usize),
}

impl<'a> Path<'a> {
    /// The path of a member.
    pub(crate) fn member(&self, name: &'a str) -> Self {
        self.then(Step::Member(name))
    }

    /// The path of an element, from 0.
    pub(crate) fn element(&self, index: usize) -> Self {
        self.then(Step::Element(index))
    }

    fn then(&self, step: Step<'a>) -> Self {
        Self(Some(Rc::new((self.clone(), step))))
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The document's nesting is bounded, and so is this recursion.
        let Some((parent, step)) = self.0.as_deref() else { return Ok(()) };
        parent.fmt(formatter)?;
        match step {
            Step::Element(index) => write!(formatter, "[{index}]"),
            Step::Member(name) => {
                let shown: String = name.chars().take(64).collect();
                match (is_plain(&shown), parent.0.is_none()) {
                    (true, true) => formatter.write_str(&shown),
                    (true, false) => write!(formatter, ".{shown}"),
                    (false, _) => write!(formatter, "[{shown:?}]"),
                }
            }
        }
    }
}

/// A value of the document and the path that leads to it.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    /// Where the value stands.
    pub path: Path<'a>,
    /// The value.
    pub value: &'a Value,
}

/// An object of the document whose members are taken one by one; what is left at
/// [`Object::finish`] is unknown and so a fault.
#[derive(Debug)]
pub struct Object<'a> {
    path: Path<'a>,
    members: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Node<'a> {
    /// The whole document.
    pub fn root(value: &'a Value) -> Self {
        Self { path: Path::default(), value }
    }

    /// Notes a fault at this place.
    pub fn fault(&self, report: &mut Report, problem: impl Into<String>) {
        report.fault(self.path.to_string(), problem);
    }

    fn expected(&self, report: &mut Report, what: &str) {
        self.fault(report, format!("expected {what}, found {}", kind(self.value)));
    }

    /// The value as an object.
    pub fn object(&self, report: &mut Report) -> Option<Object<'a>> {
        match self.value {
            Value::Object(members) => {
                Some(Object { path: self.path.clone(), members, known: Vec::with_capacity(16) })
            }
            _ => {
                self.expected(report, "an object");
                None
            }
        }
    }

    /// The members of an object whose names the author chooses, in document order of names.
    pub fn entries(&self, report: &mut Report) -> Option<Vec<(&'a str, Node<'a>)>> {
        match self.value {
            Value::Object(members) => Some(
                members
                    .iter()
                    .map(|(name, value)| {
                        (name.as_str(), Node { path: self.path.then(Step::Member(name)), value })
                    })
                    .collect(),
            ),
            _ => {
                self.expected(report, "an object");
                None
            }
        }
    }

    /// The elements of an array.
    pub fn array(&self, report: &mut Report) -> Option<Vec<Node<'a>>> {
        match self.value {
            Value::Array(elements) => Some(
                elements
                    .iter()
                    .enumerate()
                    .map(|(index, value)| self.element(index, value))
                    .collect(),
            ),
            _ => {
                self.expected(report, "an array");
                None
            }
        }
    }

    fn element(&self, index: usize, value: &'a Value) -> Self {
        Self { path: self.path.then(Step::Element(index)), value }
    }

    /// The elements of an array that must not be empty: an empty list means nothing, and nobody
    /// should have to guess whether it means everything.
    pub fn nonempty_array(&self, report: &mut Report) -> Option<Vec<Node<'a>>> {
        let elements = self.array(report)?;
        if elements.is_empty() {
            self.fault(report, "must not be empty");
            return None;
        }
        Some(elements)
    }

    /// The value as a string that is not empty.
    pub fn string(&self, report: &mut Report) -> Option<&'a str> {
        match self.value {
            Value::String(text) if text.is_empty() => {
                self.fault(report, "must not be empty");
                None
            }
            Value::String(text) => Some(text),
            _ => {
                self.expected(report, "a string");
                None
            }
        }
    }

    /// A list of strings, not empty, none of them empty.
    pub fn strings(&self, report: &mut Report) -> Option<Vec<&'a str>> {
        if let Some(texts) = self.texts() {
            return Some(texts);
        }
        let elements = self.nonempty_array(report)?;
        let read: Vec<_> = elements.iter().map(|element| element.string(report)).collect();
        read.into_iter().collect()
    }

    /// The same list, if there is nothing wrong with it.
    pub fn texts(&self) -> Option<Vec<&'a str>> {
        let text = |value: &'a Value| value.as_str().filter(|text| !text.is_empty());
        let elements = self.value.as_array().filter(|elements| !elements.is_empty())?;
        elements.iter().map(text).collect()
    }

    /// The value as `true` or `false`.
    pub fn boolean(&self, report: &mut Report) -> Option<bool> {
        if let Value::Bool(value) = self.value {
            return Some(*value);
        }
        self.expected(report, "true or false");
        None
    }

    /// The value as a whole number of at least `least` and at most `most`.
    pub fn integer(&self, report: &mut Report, least: u64, most: u64) -> Option<u64> {
        match self.value.as_u64() {
            Some(number) if (least..=most).contains(&number) => Some(number),
            Some(number) => {
                self.fault(report, format!("`{number}` is not between {least} and {most}"));
                None
            }
            None => {
                self.expected(report, "a whole number");
                None
            }
        }
    }

    /// The value as a span of time: `500ms`, `30s`, `15m`, `1h`, `7d`.
    pub fn span(&self, report: &mut Report) -> Option<Span> {
        let text = self.string(report)?;
        let span = Span::parse(text);
        if span.is_none() {
            self.fault(
                report,
                format!(
                    "{} is not a span of time such as `500ms`, `30s`, `15m` or `1h`",
                    quote(text)
                ),
            );
        }
        span
    }

    /// The value as an RFC 3339 date and time.
    pub fn time(&self, report: &mut Report) -> Option<UnixTime> {
        let text = self.string(report)?;
        let time = UnixTime::from_rfc3339(text);
        if time.is_none() {
            self.fault(
                report,
                format!("{} is not a date and time such as `2026-11-22T00:00:00Z`", quote(text)),
            );
        }
        time
    }

    /// The value as one of `choices`.
    pub fn choice<T: Copy>(&self, report: &mut Report, choices: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let index = self.index_in(report, &names)?;
        choices.get(index).map(|(_, choice)| *choice)
    }

    fn index_in(&self, report: &mut Report, names: &[&str]) -> Option<usize> {
        let text = self.string(report)?;
        let found = names.iter().position(|name| *name == text);
        if found.is_none() {
            let problem = format!("{} is none of `{}`", quote(text), names.join("`, `"));
            self.fault(report, problem);
        }
        found
    }
}

impl<'a> Object<'a> {
    /// Where the object stands.
    pub fn path(&self) -> &Path<'a> {
        &self.path
    }

    /// The member `name`, if it is there.
    pub fn optional(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.known.push(name);
        let value = self.members.get(name)?;
        Some(Node { path: self.path.then(Step::Member(name)), value })
    }

    /// The member `name`; a fault if it is not there.
    pub fn required(&mut self, report: &mut Report, name: &'static str) -> Option<Node<'a>> {
        let node = self.optional(name);
        if node.is_none() {
            report.fault(self.path.to_string(), format!("`{name}` is missing"));
        }
        node
    }

    /// Ends the reading: every member that was not asked for is a fault, with the closest known
    /// name as a suggestion.
    pub fn finish(self, report: &mut Report) {
        #[cfg(feature = "explain")]
        if let Some(asked) = &mut report.asked {
            asked.entry(self.path.to_string()).or_default().extend(&self.known);
        }
        for name in self.members.keys() {
            if self.known.contains(&name.as_str()) {
                continue;
            }
            let shown: String = name.chars().take(64).collect();
            let problem = match suggestion(&shown, &self.known) {
                Some(known) => format!("unknown field {}, did you mean `{known}`?", quote(&shown)),
                None => format!("unknown field {}", quote(&shown)),
            };
            report.fault(self.path.to_string(), problem);
        }
    }
}

/// Whether a member's name needs no quotes in a path.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// The closest of `known` to `name`, if one is close enough to be meant.
pub fn suggestion<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| (edit_distance(name, candidate), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .map(|(_, candidate)| candidate)
}

fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.chars().count()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = index;
        let mut last = index.saturating_add(1);
        if let Some(first) = row.first_mut() {
            *first = last;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(right.chars()) {
            let replaced = diagonal.saturating_add(usize::from(from != to));
            diagonal = *cell;
            last = replaced.min(last.saturating_add(1)).min(cell.saturating_add(1));
            *cell = last;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_fault_is_told_with_its_path() {
        let document = json!({"rules": [{"dag": ["x"], "name": 7, "list": []}]});
        let mut report = Report::new();
        let mut root = Node::root(&document).object(&mut report).unwrap();
        let rules = root.required(&mut report, "rules").unwrap();
        for rule in rules.array(&mut report).unwrap() {
            let mut rule = rule.object(&mut report).unwrap();
            rule.optional("dags");
            rule.required(&mut report, "name").unwrap().string(&mut report);
            rule.optional("list").unwrap().strings(&mut report);
            rule.required(&mut report, "effect");
            rule.finish(&mut report);
        }
        root.finish(&mut report);
        assert_eq!(
            report.finish(Some(())).unwrap_err().to_string(),
            "rules[0].name: expected a string, found a number; \
             rules[0].list: must not be empty; \
             rules[0]: `effect` is missing; \
             rules[0]: unknown field `dag`, did you mean `dags`?"
        );
    }

    #[test]
    fn a_flood_of_faults_is_counted_not_listed() {
        let mut report = Report::new();
        for index in 0..Report::MOST + 7 {
            report.fault(format!("[{index}]"), "wrong");
        }
        let faults = report.finish(Some(())).unwrap_err();
        assert_eq!(faults.0.len(), Report::MOST + 1);
        assert!(faults.to_string().ends_with("and 7 more faults"));
    }

    #[test]
    fn only_close_names_are_suggested() {
        let known = ["dags", "tasks", "airflow_roles"];
        assert_eq!(suggestion("dag", &known), Some("dags"));
        assert_eq!(suggestion("airflow_role", &known), Some("airflow_roles"));
        assert_eq!(suggestion("destination", &known), None);
    }

    #[test]
    fn nothing_in_a_document_can_forge_or_flood_a_log_line() {
        let long = "x\n[critical] forged ".repeat(100_000);
        let document = json!({"span": long, "time": long, "choice": long, &long: {"a": 1}});
        let mut report = Report::new();
        let mut root = Node::root(&document).object(&mut report).unwrap();
        root.optional("span").unwrap().span(&mut report);
        root.optional("time").unwrap().time(&mut report);
        root.optional("choice").unwrap().choice(&mut report, &[("a", 1)]);
        let (_, odd) = Node::root(&document).entries(&mut report).unwrap().pop().unwrap();
        odd.fault(&mut report, "wrong");
        root.finish(&mut report);
        let faults = report.finish(Some(())).unwrap_err();
        assert_eq!(faults.0.len(), 5);
        let told = faults.to_string();
        assert!(!told.contains('\n') && told.len() < 2000, "{told}");
    }

    #[test]
    fn odd_names_are_quoted_in_paths() {
        let claims = Path::default().then(Step::Member("claims"));
        assert_eq!(claims.to_string(), "claims");
        assert_eq!(
            claims.then(Step::Member("https://sts.amazonaws.com/")).to_string(),
            "claims[\"https://sts.amazonaws.com/\"]"
        );
    }
}
