//! Documents as their authors wrote them: values with the place where each of them stands.
//!
//! YAML and JSON become the same tree ([`Node`]), which gives the JSON value that the core judges and
//! finds the place in a file for a path in that value. What it is not: it knows nothing of policies
//! but how the parts of one are put together ([`merge`]).

mod json;
pub mod load;
pub mod merge;
pub mod print;
mod yaml;

use std::rc::Rc;

use airflow_envoy_core::quote::quote;
use serde_json::{Map, Number, Value};

pub use self::load::{Found, read_file};
use self::yaml::Aliases;

/// Nesting of a document, as the core allows it.
const MOST_DEPTH: usize = 32;

/// Values of one document: far more than any policy has, and less than fills a memory.
const MOST_VALUES: usize = 20_000_000;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The name of the file as it is to be told; `-` is standard input.
    pub file: Rc<str>,
    /// The line, from 1; 0 means the whole file.
    pub line: usize,
    /// The column in characters, from 1; 0 means the whole line.
    pub column: usize,
}

impl Place {
    /// The file as a whole.
    pub fn file(name: &str) -> Self {
        Self { file: name.into(), line: 0, column: 0 }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.line, self.column) {
            (0, _) => formatter.write_str(&self.file),
            (line, 0) => write!(formatter, "{}:{line}", self.file),
            (line, column) => write!(formatter, "{}:{line}:{column}", self.file),
        }
    }
}

/// Why a text is not a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Where.
    pub place: Place,
    /// Lower case, no full stop.
    pub problem: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.place, self.problem)
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub content: Content,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Members in the order of the document.
    Map(Vec<Member>),
}

/// A member of a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where the name stands.
    pub place: Place,
    /// Its value.
    pub value: Node,
}

impl Node {
    /// The value as JSON.
    pub fn value(&self) -> Value {
        // The nesting was bounded when it was read.
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(elements) => Value::Array(elements.iter().map(Self::value).collect()),
            Content::Map(members) => {
                let members = members.iter();
                let members = members.map(|member| (member.name.clone(), member.value.value()));
                Value::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    /// The members of a map; of anything else none.
    pub fn members(&self) -> &[Member] {
        match &self.content {
            Content::Map(members) => members,
            _ => &[],
        }
    }

    /// The elements of a list; of anything else none.
    pub fn elements(&self) -> &[Self] {
        match &self.content {
            Content::List(elements) => elements,
            _ => &[],
        }
    }

    /// The member of this name.
    pub fn member(&self, name: &str) -> Option<&Self> {
        self.members().iter().find(|member| member.name == name).map(|member| &member.value)
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Where the value stands to which `path` leads, a path as the core writes it: `rules[3].from.dags`.
    /// As far as the path leads, if not to its end. `problem` is what is said about it: a member or an
    /// element that it quotes is more exactly the place.
    pub fn locate(&self, path: &str, problem: &str) -> Place {
        let mut node = self;
        let mut place = self.place.clone();
        let mut rest = path;
        let mut first = true;
        'steps: while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix('[')
                && let Some((index, behind)) = behind.split_once(']')
                && let Ok(index) = index.parse::<usize>()
            {
                let Some(element) = node.elements().get(index) else { break };
                (node, place, rest, first) = (element, element.place.clone(), behind, false);
                continue;
            }
            for member in node.members() {
                let behind = step(&member.name, first).and_then(|step| rest.strip_prefix(&step));
                let ends = |behind: &&str| behind.is_empty() || behind.starts_with(['.', '[']);
                if let Some(behind) = behind.filter(ends) {
                    let behind = rest.len() - behind.len();
                    rest = rest.get(behind..).unwrap_or_default();
                    (node, place, first) = (&member.value, member.place.clone(), false);
                    continue 'steps;
                }
            }
            break;
        }
        if rest.is_empty() {
            place = node.quoted_in(problem).unwrap_or(place);
        }
        place
    }

    /// The place of the part of this value that `problem` is about.
    fn quoted_in(&self, problem: &str) -> Option<Place> {
        if let Some(named) = problem.strip_prefix("unknown field ") {
            let is_it = |member: &&Member| {
                let shown: String = member.name.chars().take(64).collect();
                named.starts_with(&quote(&shown))
            };
            return self.members().iter().find(is_it).map(|member| member.place.clone());
        }
        let mut elements = self.elements().iter();
        let told = |element: &&Self| {
            element.text().is_some_and(|text| {
                problem.contains(&quote(text)) || problem.contains(&format!("`{text}`"))
            })
        };
        elements.find(told).map(|element| element.place.clone())
    }
}

/// How the core writes a step to the member `name`.
fn step(name: &str, first: bool) -> Option<String> {
    let shown: String = name.chars().take(64).collect();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let is_plain = !shown.is_empty() && shown.bytes().all(plain);
    Some(match (is_plain, first) {
        (true, true) => shown,
        (true, false) => format!(".{shown}"),
        (false, _) => format!("[{shown:?}]"),
    })
}

/// The numbers of lines and columns in a text.
#[derive(Debug)]
struct Lines<'t> {
    text: &'t str,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { text, starts: std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect() }
    }

    /// The line and the column of a byte, from 1.
    fn find(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = self.starts.get(line.saturating_sub(1)).copied().unwrap_or_default();
        let column = self.text.get(start..at).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Node {
        yaml::read("p.yaml", text, Aliases::Refused).unwrap()
    }

    #[test]
    fn a_path_of_the_core_leads_to_its_place() {
        let node = yaml(
            "version: 1\nrules:\n  - id: a\n    from:\n      claims:\n        \"https://x/\": [a, b]\n    dag: [x]\n",
        );
        for (path, problem, line, column) in [
            ("version", "", 1, 1),
            ("rules", "", 2, 1),
            ("rules[0]", "", 3, 5),
            ("rules[0].id", "", 3, 5),
            ("rules[0].from.claims[\"https://x/\"]", "", 6, 9),
            ("rules[0].from.claims[\"https://x/\"][1]", "", 6, 27),
            ("rules[0]", "unknown field `dag`, did you mean `dags`?", 7, 5),
            ("rules[0].dag", "there is no role `x`", 7, 11),
            ("rules[7].id", "", 2, 1),
            ("", "`rules` is missing", 1, 1),
        ] {
            let place = node.locate(path, problem);
            assert_eq!((place.line, place.column), (line, column), "{path} {problem}");
        }
    }

    #[test]
    fn a_column_counts_characters() {
        let lines = Lines::new("ab\nü: x\n");
        assert_eq!(lines.find(0), (1, 1));
        assert_eq!(lines.find(3), (2, 1));
        assert_eq!(lines.find(5), (2, 2));
    }
}
