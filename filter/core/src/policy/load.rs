//! Reads a policy document a slice at a time: what [`Policy::parse`] reads, and with the same faults.
//!
//! A scanner finds where the entries and elements of the large members begin and end; each of them is
//! parsed, read and forgotten by itself. So there is never a tree of the whole document in memory, and
//! no step takes longer than its largest entry or rule.
//!
//! Rules refer to roles and destinations. If these come first, as in a document whose members are sorted,
//! rules are read as they are found; if not, they are only checked to be JSON, and parsed again when
//! everything that they may refer to is known.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use serde_json::{Map, Value};

use super::Policy;
use super::read::{AGREEMENT, Document, List, Reading, Section, read_numbers};
use crate::document::{Fault, Faults, Node, Path, Report};
use crate::json::{self, JsonError, Scanner};
use crate::limits::Limits;
use crate::pace::Pace;

/// Bytes of JSON that are read in about one unit.
const BYTES_PER_UNIT: usize = 10;

/// Nesting of an element: in a list, in the document.
const OUTSIDE: usize = 2;

impl Policy {
    /// Reads a policy document at `pace`.
    ///
    /// # Errors
    /// All faults of the document.
    pub async fn load(document: &[u8], limits: &Limits, pace: &Pace) -> Result<Self, Faults> {
        // What is no object, or must not even nest as deep as a policy does, is refused at its first byte.
        let is_object = document.trim_ascii_start().first() == Some(&b'{');
        if document.len() > limits.policy_bytes || !is_object || limits.json_depth <= OUTSIDE {
            return Self::parse(document, limits);
        }
        let mut loading = Loading::new(document, *limits, pace);
        if let Err(error) = loading.scan().await {
            loading.reading.release(pace).await;
            let problem = error.to_string();
            return Err(Faults(vec![Fault { path: String::new(), problem }]));
        }
        Ok(Self::index(loading.finish().await?, pace).await)
    }
}

struct Loading<'d> {
    text: &'d [u8],
    limits: Limits,
    pace: &'d Pace,
    reading: Reading,
    /// The members of the document; of those that were read by themselves, no value but an empty one.
    top: Map<String, Value>,
    sections: [Option<Report>; Section::ALL.len()],
    lists: [FoundList; List::ALL.len()],
}

/// A list of the document.
#[derive(Default)]
struct FoundList {
    found: usize,
    /// Where its elements are, unless they were read as they were found.
    spans: Vec<Range<u32>>,
    /// What is wrong with those that were read.
    report: Report,
}

impl<'d> Loading<'d> {
    fn new(text: &'d [u8], limits: Limits, pace: &'d Pace) -> Self {
        Self {
            text,
            limits,
            pace,
            reading: Reading::new(limits),
            top: Map::new(),
            sections: Default::default(),
            lists: Default::default(),
        }
    }

    /// Goes through the whole document: afterwards it is known to be JSON.
    async fn scan(&mut self) -> Result<(), JsonError> {
        let mut scanner = Scanner::new(self.text);
        let mut more = scanner.enter_object();
        while let Some(start) = self.at(more).await? {
            let name = self.name(&mut scanner, start).await?;
            if self.top.contains_key(&name) {
                return Err(json::duplicate(&name));
            }
            let colon = scanner.colon();
            self.at(colon).await?;
            let section = Section::ALL.into_iter().find(|section| section.name() == name);
            let list = List::ALL.into_iter().find(|list| list.name() == name);
            let value = match (scanner.peek(), section, list) {
                (Some(b'{'), Some(section), _) => {
                    self.scan_section(&mut scanner, section).await?;
                    Value::Object(Map::new())
                }
                (Some(b'['), _, Some(list)) => {
                    self.scan_list(&mut scanner, list).await?;
                    Value::Array(Vec::new())
                }
                _ => match self.value(&mut scanner, 1).await?.1 {
                    // Of what has a name that nobody reads, that it is there is the fault.
                    Value::Array(_) | Value::Object(_) if !is_known(&name) => Value::Null,
                    value => value,
                },
            };
            self.top.insert(name, value);
            more = scanner.next_member();
        }
        let rest = scanner.end();
        self.at(rest).await
    }

    async fn scan_section(
        &mut self,
        scanner: &mut Scanner<'d>,
        section: Section,
    ) -> Result<(), JsonError> {
        // In the order of the names, as the document has no other.
        let mut entries: BTreeMap<String, Range<u32>> = BTreeMap::new();
        let mut more = scanner.enter_object();
        while let Some(start) = self.at(more).await? {
            let name = self.name(scanner, start).await?;
            match entries.entry(name) {
                Entry::Occupied(taken) => return Err(json::duplicate(taken.key())),
                Entry::Vacant(free) => {
                    let colon = scanner.colon();
                    self.at(colon).await?;
                    free.insert(self.value(scanner, OUTSIDE).await?.0);
                }
            }
            more = scanner.next_member();
        }
        self.reading.expect(section, entries.len());
        let mut report = Report::new();
        let path = Path::default().member(section.name());
        for (name, span) in entries {
            let value = self.read_again(&span).await?;
            let node = Node { path: path.member(&name), value: &value };
            self.reading.entry(section, &name, &node, &mut report);
        }
        if let Some(place) = self.sections.get_mut(section as usize) {
            *place = Some(report);
        }
        Ok(())
    }

    async fn scan_list(&mut self, scanner: &mut Scanner<'d>, list: List) -> Result<(), JsonError> {
        // What is grantable refers to approvers besides, and comes after the rules.
        let ready = list == List::Rules
            && [Section::Roles, Section::Destinations]
                .iter()
                .all(|section| self.sections.get(*section as usize).is_some_and(Option::is_some));
        let path = Path::default().member(list.name());
        let mut found = FoundList::default();
        let mut more = scanner.enter_array();
        while self.at(more).await?.is_some() {
            let (span, value) = self.value(scanner, OUTSIDE).await?;
            if !ready {
                found.spans.push(span);
            } else if found.found < self.limits.policy_rules {
                let node = Node { path: path.element(found.found), value: &value };
                self.reading.element(list, &node, &mut found.report);
            }
            found.found = found.found.saturating_add(1);
            more = scanner.next_element();
        }
        if let Some(place) = self.lists.get_mut(list as usize) {
            *place = found;
        }
        Ok(())
    }

    /// Reads what was only scanned, and tells all faults in the order in which a document is read.
    async fn finish(mut self) -> Result<Document, Faults> {
        let pace = self.pace;
        let mut report = Report::new();
        let top = Value::Object(std::mem::take(&mut self.top));
        let revision = {
            let mut members = match Node::root(&top).object(&mut report) {
                Some(members) => members,
                None => return report.finish(None),
            };
            let revision = read_numbers(&mut members, &mut report);
            for section in Section::ALL {
                let node = members.optional(section.name());
                match self.sections.get_mut(section as usize).and_then(Option::take) {
                    Some(found) => report.append(found),
                    // It is none, and that is told.
                    None => _ = node.and_then(|node| node.entries(&mut report)),
                }
            }
            for list in List::ALL {
                let Some(node) = list.of(&mut members, &mut report) else { continue };
                let found =
                    self.lists.get_mut(list as usize).map(std::mem::take).unwrap_or_default();
                if self.reading.has_too_many(list, found.found, &node, &mut report) {
                    self.reading.forget(list, pace).await;
                    continue;
                }
                report.append(found.report);
                // With no elements found it may be no list, and that is told.
                if found.found == 0 {
                    let _ = node.array(&mut report);
                }
                for (index, span) in found.spans.into_iter().enumerate() {
                    let Ok(value) = self.read_again(&span).await else { continue };
                    let node = Node { path: node.path.element(index), value: &value };
                    self.reading.element(list, &node, &mut report);
                }
                self.reading.check_places(list, &node, &mut report);
            }
            self.reading.agreement(&mut members, &mut report);
            members.finish(&mut report);
            revision
        };
        if !report.is_clean() {
            self.reading.release(pace).await;
            return report.finish(None);
        }
        Ok(self.reading.finish(revision, pace).await)
    }

    /// The name of a member that begins at `start`.
    async fn name(&self, scanner: &mut Scanner<'d>, start: usize) -> Result<String, JsonError> {
        let span = start..scanner.skip_value();
        let name = self.parse(&span, 0).await?;
        // INVARIANT: the scanner leads here by a quote only.
        Ok(match name {
            Value::String(name) => name,
            _ => String::new(),
        })
    }

    /// The value that begins here, which has `outside` others around it.
    async fn value(
        &self,
        scanner: &mut Scanner<'d>,
        outside: usize,
    ) -> Result<(Range<u32>, Value), JsonError> {
        let start = scanner.position();
        let span = start..scanner.skip_value();
        let value = self.parse(&span, outside).await?;
        // INVARIANT: the limit on the bytes of a policy is below `u32::MAX`.
        let narrow = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
        Ok((narrow(span.start)..narrow(span.end), value))
    }

    async fn read_again(&self, span: &Range<u32>) -> Result<Value, JsonError> {
        self.parse(&(span.start as usize..span.end as usize), OUTSIDE).await
    }

    async fn parse(&self, span: &Range<usize>, outside: usize) -> Result<Value, JsonError> {
        let text = self.text.get(span.clone()).unwrap_or_default();
        self.pace.spend(1 + text.len() / BYTES_PER_UNIT).await;
        match json::parse(text, self.limits.json_depth.saturating_sub(outside)) {
            Ok(value) => Ok(value),
            Err(JsonError::Syntax { line, column }) => {
                let (before, line_start) = self.lines(span.start).await;
                Err(JsonError::Syntax {
                    line: before + line,
                    column: if line == 1 { span.start - line_start + column } else { column },
                })
            }
            Err(error) => Err(error),
        }
    }

    /// What the scanner found; a fault of it is told as `serde_json` tells it: behind the byte that must
    /// not be there.
    async fn at<T>(&self, found: Result<T, usize>) -> Result<T, JsonError> {
        match found {
            Ok(found) => Ok(found),
            Err(place) => {
                let behind = (place + 1).min(self.text.len());
                let (before, line_start) = self.lines(behind).await;
                Err(JsonError::Syntax { line: before + 1, column: behind - line_start })
            }
        }
    }

    /// How many lines end before `place`, and where its own begins.
    async fn lines(&self, place: usize) -> (usize, usize) {
        let (mut lines, mut start, mut position) = (0, 0, 0);
        for part in self.text.get(..place).unwrap_or_default().chunks(16 * 1024) {
            lines += part.iter().filter(|byte| **byte == b'\n').count();
            if let Some(last) = part.iter().rposition(|byte| *byte == b'\n') {
                start = position + last + 1;
            }
            position += part.len();
            self.pace.spend(16).await;
        }
        (lines, start)
    }
}

/// Whether a document may have a member of this name.
fn is_known(name: &str) -> bool {
    matches!(name, "version" | "revision" | AGREEMENT)
        || Section::ALL.into_iter().any(|section| section.name() == name)
        || List::ALL.into_iter().any(|list| list.name() == name)
}
