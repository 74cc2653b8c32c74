//! YAML 1.2 with places, as far as it says no more than JSON can.
//!
//! Anchors, aliases, merge keys and tags are refused: a policy says what it means where it is read, and
//! what cannot be referred to cannot be blown up either. So are numbers that JSON does not have. Only in
//! Envoy's configuration, where they are common, aliases are followed, as far as they do not blow it up.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use airflow_envoy_core::quote::quote;
use granit_parser::{Event, Marker, Options, Parser, ScalarStyle};
use serde_json::Number;

use super::{Content, MOST_DEPTH, MOST_VALUES, Member, Node, Place, Unreadable};

/// Values of a document with aliases, each counted wherever it is referred to.
const MOST_ALIASED: usize = 1_000_000;

/// What is done with aliases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aliases {
    /// They are a fault.
    Refused,
    /// They stand for what they refer to.
    Followed,
}

/// Reads a YAML document.
pub(super) fn read(file: &str, text: &str, aliases: Aliases) -> Result<Node, Unreadable> {
    let file: Rc<str> = file.into();
    let mut builder = Builder {
        file,
        aliases,
        anchors: HashMap::new(),
        open: Vec::new(),
        root: None,
        values: 0,
        documents: 0,
    };
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = MOST_DEPTH + 1;
    options.block_nesting_limit = MOST_DEPTH + 1;
    options.disallow_directives = true;
    // So that one may be told as what it is: the parser would otherwise say that it knows no anchor.
    options.emit_unresolved_aliases = true;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let info = error.info();
            let mut problem =
                if builder.open.len() >= MOST_DEPTH || info.contains("recursion limit") {
                    format!("is nested deeper than {MOST_DEPTH}")
                } else {
                    format!("is not valid YAML: {info}")
                };
            let line = text.lines().nth(error.marker().line().saturating_sub(1));
            if line.is_some_and(|line| line.trim_start_matches(' ').starts_with('\t')) {
                problem.push_str("; the line is indented by a tab, YAML wants spaces");
            }
            Unreadable { place: builder.place(error.marker()), problem }
        })?;
        builder.take(event, &span.start)?;
    }
    let empty = Unreadable { place: builder.whole(), problem: "is empty".to_owned() };
    builder.root.ok_or(empty)
}

struct Builder {
    file: Rc<str>,
    aliases: Aliases,
    /// What has an anchor and is complete.
    anchors: HashMap<usize, Node>,
    /// What is not complete, and its anchor.
    open: Vec<(Open, Option<usize>)>,
    root: Option<Node>,
    values: usize,
    documents: usize,
}

enum Open {
    List(Place, Vec<Node>),
    Map {
        place: Place,
        members: Vec<Member>,
        /// Where each name stands in `members`.
        seen: HashMap<String, usize>,
        /// The name whose value comes next.
        name: Option<(String, Place)>,
    },
}

impl Builder {
    fn whole(&self) -> Place {
        Place { file: Rc::clone(&self.file), line: 1, column: 1 }
    }

    fn place(&self, marker: &Marker) -> Place {
        Place { file: Rc::clone(&self.file), line: marker.line().max(1), column: marker.col() + 1 }
    }

    fn fault<T>(place: Place, problem: impl Into<String>) -> Result<T, Unreadable> {
        Err(Unreadable { place, problem: problem.into() })
    }

    fn take(&mut self, event: Event<'_>, start: &Marker) -> Result<(), Unreadable> {
        let place = self.place(start);
        let anchor = event.anchor_id();
        if self.aliases == Aliases::Refused && (anchor.is_some() || event.is_alias()) {
            let problem =
                "anchors and aliases are not allowed: write it out, or give it a name of its own";
            return Self::fault(place, problem);
        }
        if let Some(tag) = event.tag() {
            let problem = format!("tags such as {} are not allowed", quote(&tag.original()));
            return Self::fault(place, problem);
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Self::fault(place, "holds a second document: one file is one document");
                }
            }
            Event::Scalar(text, style, ..) => {
                if let Some((Open::Map { name: name @ None, seen, members, .. }, _)) =
                    self.open.last_mut()
                {
                    let text = text.into_owned();
                    if text == "<<" && style == ScalarStyle::Plain {
                        return Self::fault(place, "merge keys are not allowed: write it out");
                    }
                    if let Some(first) = seen.get(&text).and_then(|first| members.get(*first)) {
                        let shown = quote(&text);
                        let problem = format!("{shown} stands here already: {}", first.place);
                        return Self::fault(place, problem);
                    }
                    *name = Some((text, place));
                    return Ok(());
                }
                let content = match style {
                    ScalarStyle::Plain => {
                        plain(text).or_else(|problem| Self::fault(place.clone(), problem))?
                    }
                    _ => Content::Text(text.into_owned()),
                };
                self.finish(Node { place, content }, anchor)?;
            }
            Event::Alias(id) => {
                if let Some((Open::Map { name: None, .. }, _)) = self.open.last() {
                    return Self::fault(place, "an alias cannot be a member's name");
                }
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Self::fault(place, "the alias refers to what it stands in");
                };
                let (values, depth) = extent(&node);
                if self.open.len() + depth > MOST_DEPTH {
                    return Self::fault(place, format!("is nested deeper than {MOST_DEPTH}"));
                }
                self.values = self.values.saturating_add(values);
                if self.values > MOST_ALIASED {
                    return Self::fault(place, format!("has more than {MOST_ALIASED} values"));
                }
                self.add(node)?;
            }
            Event::UnresolvedAlias(name) => {
                return Self::fault(place, format!("there is no anchor {}", quote(&name)));
            }
            Event::SequenceStart(..) => self.begin(Open::List(place, Vec::new()), anchor)?,
            Event::MappingStart(..) => {
                let (members, seen) = (Vec::new(), HashMap::new());
                self.begin(Open::Map { place, members, seen, name: None }, anchor)?;
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::List(place, elements), anchor)) => {
                    self.finish(Node { place, content: Content::List(elements) }, anchor)?;
                }
                Some((Open::Map { place, members, .. }, anchor)) => {
                    self.finish(Node { place, content: Content::Map(members) }, anchor)?;
                }
                None => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, node: Node, anchor: Option<usize>) -> Result<(), Unreadable> {
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, node.clone());
        }
        self.add(node)
    }

    fn begin(&mut self, open: Open, anchor: Option<usize>) -> Result<(), Unreadable> {
        let (Open::List(place, _) | Open::Map { place, .. }) = &open;
        if let Some((Open::Map { name: None, .. }, _)) = self.open.last() {
            return Self::fault(place.clone(), "a list or a map cannot be a member's name");
        }
        if self.open.len() >= MOST_DEPTH {
            return Self::fault(place.clone(), format!("is nested deeper than {MOST_DEPTH}"));
        }
        self.open.push((open, anchor));
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), Unreadable> {
        self.values += 1;
        if self.values > MOST_VALUES {
            return Self::fault(node.place, format!("has more than {MOST_VALUES} values"));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some((Open::List(_, elements), _)) => elements.push(node),
            Some((Open::Map { members, seen, name, .. }, _)) => {
                if let Some((name, place)) = name.take() {
                    seen.insert(name.clone(), members.len());
                    members.push(Member { name, place, value: node });
                }
            }
        }
        Ok(())
    }
}

/// How many values a node has, itself among them, and how deep it is.
fn extent(node: &Node) -> (usize, usize) {
    let children = node.members().iter().map(|member| &member.value).chain(node.elements());
    let (mut values, mut depth) = (1_usize, 0);
    for child in children {
        let (own, deep) = extent(child);
        values = values.saturating_add(own);
        depth = depth.max(deep);
    }
    let is_open = matches!(node.content, Content::List(_) | Content::Map(_));
    (values, depth + usize::from(is_open))
}

/// What a plain scalar is in the core schema (YAML 1.2.2 §10.3.2).
fn plain(text: Cow<'_, str>) -> Result<Content, String> {
    let number = text.strip_prefix(['-', '+']).unwrap_or(&text);
    let float = |text: &str| text.parse().ok().and_then(Number::from_f64);
    Ok(match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "true" | "True" | "TRUE" => Content::Bool(true),
        "false" | "False" | "FALSE" => Content::Bool(false),
        _ if matches!(number, ".inf" | ".Inf" | ".INF")
            || matches!(&*text, ".nan" | ".NaN" | ".NAN") =>
        {
            return Err(format!("{} is a number that JSON does not have", quote(&text)));
        }
        _ if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            if number.len() > 1 && number.starts_with('0') {
                let problem = "begins with 0, which readers of YAML take for different numbers";
                return Err(format!("{} {problem}: leave it out, or quote the text", quote(&text)));
            }
            let digits = text.strip_prefix('+').unwrap_or(&text);
            let unsigned = digits.parse::<u64>().map(Number::from);
            match unsigned.or_else(|_| digits.parse::<i64>().map(Number::from)) {
                Ok(number) => Content::Number(number),
                Err(_) => return Err(format!("the number {} is too large", quote(&text))),
            }
        }
        _ if number.starts_with("0x") || number.starts_with("0o") => {
            return Err(format!("write {} as a decimal number, or quote the text", quote(&text)));
        }
        _ if is_float(number) => match float(text.strip_prefix('+').unwrap_or(&text)) {
            Some(number) => Content::Number(number),
            None => return Err(format!("the number {} is too large", quote(&text))),
        },
        _ => Content::Text(text.into_owned()),
    })
}

/// `1.5`, `.5`, `1e3`: digits, and a point or an exponent.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_is_one = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    digits(whole) && digits(fraction) && whole.len() + fraction.len() > 0 && exponent_is_one
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(file: &str, text: &str) -> Result<Node, Unreadable> {
        super::read(file, text, Aliases::Refused)
    }

    fn told(text: &str) -> String {
        read("p.yaml", text).map(|node| node.value().to_string()).unwrap_err().to_string()
    }

    #[test]
    fn yaml_says_what_the_same_json_says() {
        let text = "# a comment\nversion: 1\nlist: [a, 'b', \"c\\n\", ~, yes, no, 1.5, -3, +4, true]\n\
            text: |\n  two\n  lines\ntime: 2026-11-22T00:00:00Z\nempty:\n\"odd key\": {}\n1: one\n";
        assert_eq!(
            read("p.yaml", text).unwrap().value(),
            json!({
                "version": 1, "list": ["a", "b", "c\n", null, "yes", "no", 1.5, -3, 4, true],
                "text": "two\nlines\n", "time": "2026-11-22T00:00:00Z", "empty": null, "odd key": {},
                "1": "one",
            })
        );
    }

    #[test]
    fn aliases_are_followed_where_that_is_asked_for() {
        let read = |text: &str| {
            let read = super::read("e.yaml", text, Aliases::Followed);
            read.map(|node| node.value()).map_err(|error| error.to_string())
        };
        assert_eq!(
            read("a: &x {b: [&y 1, *y]}\nc: *x\n"),
            Ok(json!({"a": {"b": [1, 1]}, "c": {"b": [1, 1]}}))
        );
        for (text, expected) in [
            ("a: *x\n", "e.yaml:1:4: there is no anchor `x`"),
            ("a: &x [*x]\n", "e.yaml:1:8: the alias refers to what it stands in"),
            ("a: &x b\n*x : c\n", "e.yaml:2:1: an alias cannot be a member's name"),
        ] {
            assert_eq!(read(text), Err(expected.to_owned()));
        }
        let (mut wide, mut deep) = ("a0: &a0 [x]\n".to_owned(), "a0: &a0 [x]\n".to_owned());
        for level in 1..30 {
            let below = level - 1;
            wide.push_str(&format!("a{level}: &a{level} [*a{below}, *a{below}]\n"));
        }
        for level in 1..2_000 {
            deep.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert!(read(&wide).unwrap_err().contains("has more than"), "{:?}", read(&wide));
        assert!(read(&deep).unwrap_err().contains("nested deeper than"));
    }

    #[test]
    fn json_is_yaml_too() {
        let text = "{\"a\": [1, {\"b\": \"\\u00e9\\ud83d\\ude00\"}], \"c\": null}";
        assert_eq!(
            read("p.yaml", text).unwrap().value(),
            serde_json::from_str::<serde_json::Value>(text).unwrap()
        );
    }

    #[test]
    fn what_json_cannot_say_is_refused_where_it_stands() {
        for (text, expected) in [
            ("a: &x 1\nb: 2", "p.yaml:1:"),
            ("a: 1\nb: *x", "p.yaml:2:4: anchors and aliases"),
            ("a: !!str 1", "p.yaml:1:"),
            ("a:\n  <<: {b: 1}", "p.yaml:2:3: merge keys"),
            ("a: 1\nb: 2\na: 3", "p.yaml:3:1: `a` stands here already: p.yaml:1:1"),
            ("a: 1\n---\nb: 2", "p.yaml:2:1: holds a second document"),
            ("? [a]\n: b", "p.yaml:1:3: a list or a map cannot be a member's name"),
            (
                "a: 99999999999999999999",
                "p.yaml:1:4: the number `99999999999999999999` is too large",
            ),
            ("a: 1e999", "p.yaml:1:4: the number `1e999` is too large"),
            ("a: .inf", "p.yaml:1:4: `.inf` is a number that JSON does not have"),
            ("a: 0o17", "p.yaml:1:4: write `0o17` as a decimal number"),
            ("a: 012", "p.yaml:1:4: `012` begins with 0"),
            ("a:\n\t- b", "p.yaml:2:"),
            ("a: [b", "p.yaml:"),
            ("a: 'b", "p.yaml:"),
            ("", "p.yaml:1:1: is empty"),
            ("# only this\n", "p.yaml:1:1: is empty"),
        ] {
            let told = told(text);
            assert!(told.starts_with(expected), "{text:?}: {told}");
        }
        assert!(told("a:\n\t- b").contains("indented by a tab"));
    }

    #[test]
    fn a_bomb_of_aliases_goes_off_at_its_first_anchor() {
        let mut text = "a: &a [x, x]\n".to_owned();
        for (name, below) in ('b'..='z').zip('a'..) {
            text.push_str(&format!("{name}: &{name} [*{below}, *{below}, *{below}, *{below}]\n"));
        }
        assert!(told(&text).contains("anchors and aliases are not allowed"));
    }

    #[test]
    fn deep_nesting_is_refused_in_either_style() {
        let flow = "[".repeat(100_000);
        assert!(told(&flow).contains("nested deeper than 32"), "{}", told(&flow));
        let block: String = (0..5_000).map(|depth| format!("{}- \n", " ".repeat(depth))).collect();
        assert!(told(&block).contains("nested deeper than 32"), "{}", told(&block));
        let open = format!("{}x{}", "[".repeat(32), "]".repeat(32));
        assert!(read("p.yaml", &open).is_ok());
    }
}
