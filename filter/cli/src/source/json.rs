//! JSON with places. The core's own reader says whether a text is JSON; this one knows where everything
//! in it stands.

use std::collections::HashMap;
use std::rc::Rc;

use airflow_envoy_core::json::{JsonError, parse};
use airflow_envoy_core::quote::quote;
use serde_json::Value;

use super::{Content, Lines, MOST_DEPTH, Member, Node, Place, Unreadable};

/// Reads a JSON document.
pub(super) fn read(file: &str, text: &str) -> Result<Node, Unreadable> {
    let mut reader =
        Reader { file: file.into(), text, lines: Lines::new(text), at: 0, depth_left: MOST_DEPTH };
    match parse(text.as_bytes(), MOST_DEPTH) {
        Ok(_) => {}
        Err(JsonError::Syntax { line, column }) => {
            let place = Place { file: reader.file, line, column };
            let problem = if text.trim().is_empty() { "is empty" } else { "is not valid JSON" };
            return Err(Unreadable { place, problem: problem.to_owned() });
        }
        // These the reader below meets again, and knows where.
        Err(JsonError::DuplicateMember { .. } | JsonError::TooDeep) => {}
    }
    reader.value()
}

struct Reader<'t> {
    file: Rc<str>,
    text: &'t str,
    lines: Lines<'t>,
    at: usize,
    depth_left: usize,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn place(&self, at: usize) -> Place {
        let (line, column) = self.lines.find(at);
        Place { file: Rc::clone(&self.file), line, column }
    }

    fn fault<T>(&self, at: usize, problem: impl Into<String>) -> Result<T, Unreadable> {
        Err(Unreadable { place: self.place(at), problem: problem.into() })
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
    }

    /// Goes on behind `wanted`, if that comes next.
    fn eat(&mut self, wanted: char) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn value(&mut self) -> Result<Node, Unreadable> {
        self.skip_space();
        let start = self.at;
        let place = self.place(start);
        let content = match self.rest().bytes().next() {
            Some(b'{') => self.map()?,
            Some(b'[') => self.list()?,
            Some(_) => self.scalar()?,
            None => return self.fault(start, "ends too early"),
        };
        Ok(Node { place, content })
    }

    fn deeper(&mut self) -> Result<(), Unreadable> {
        match self.depth_left.checked_sub(1) {
            Some(left) => self.depth_left = left,
            None => return self.fault(self.at, format!("is nested deeper than {MOST_DEPTH}")),
        }
        self.at += 1;
        Ok(())
    }

    fn map(&mut self) -> Result<Content, Unreadable> {
        self.deeper()?;
        let mut members: Vec<Member> = Vec::new();
        let mut seen: HashMap<String, Place> = HashMap::new();
        while !self.eat('}') {
            self.eat(',');
            self.skip_space();
            let start = self.at;
            let place = self.place(start);
            let Content::Text(name) = self.scalar()? else {
                return self.fault(start, "expected the name of a member");
            };
            if let Some(first) = seen.insert(name.clone(), place.clone()) {
                let problem = format!("{} stands here already: {first}", quote(&name));
                return self.fault(start, problem);
            }
            if !self.eat(':') {
                return self.fault(self.at, "expected `:`");
            }
            members.push(Member { name, place, value: self.value()? });
        }
        self.depth_left += 1;
        Ok(Content::Map(members))
    }

    fn list(&mut self) -> Result<Content, Unreadable> {
        self.deeper()?;
        let mut elements = Vec::new();
        while !self.eat(']') {
            self.eat(',');
            elements.push(self.value()?);
        }
        self.depth_left += 1;
        Ok(Content::List(elements))
    }

    fn scalar(&mut self) -> Result<Content, Unreadable> {
        let start = self.at;
        let rest = self.rest();
        let length = if rest.starts_with('"') {
            let mut escaped = false;
            let inner = rest.bytes().skip(1).position(|byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            });
            inner.map_or(rest.len(), |inner| inner + 2)
        } else {
            rest.find([',', ']', '}', ':', ' ', '\t', '\r', '\n']).unwrap_or(rest.len())
        };
        self.at += length;
        let token = rest.get(..length).unwrap_or_default();
        match serde_json::from_str(token) {
            Ok(Value::Null) => Ok(Content::Null),
            Ok(Value::Bool(value)) => Ok(Content::Bool(value)),
            Ok(Value::Number(number)) => Ok(Content::Number(number)),
            Ok(Value::String(text)) => Ok(Content::Text(text)),
            _ => self.fault(start, "is not valid JSON"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_is_what_the_core_reads_with_places() {
        let text =
            "{\n  \"a\": [1, -2.5, true, null, \"x\\u00e9\\\"\\\\\"],\n  \"b\": {\"c\": {}}\n}";
        let node = read("p.json", text).unwrap();
        assert_eq!(node.value(), json!({"a": [1, -2.5, true, null, "xé\"\\"], "b": {"c": {}}}));
        let place = node.locate("a[4]", "");
        assert_eq!(place.to_string(), "p.json:2:30");
        assert_eq!(node.locate("b.c", "").to_string(), "p.json:3:9");
    }

    #[test]
    fn faults_are_told_where_they_stand() {
        for (text, told) in [
            ("", "p.json:1: is empty"),
            ("{\n  \"a\": 1,\n}", "p.json:3:1: is not valid JSON"),
            ("{\"a\": 1,\n \"\\u0061\": 2}", "p.json:2:2: `a` stands here already: p.json:1:2"),
            (&"[".repeat(100_000), "p.json:1:33: is nested deeper than 32"),
        ] {
            assert_eq!(read("p.json", text).unwrap_err().to_string(), told);
        }
    }
}
