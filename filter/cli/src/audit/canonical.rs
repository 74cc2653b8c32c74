//! The one form of a JSON text (RFC 8785), checked in one pass: the hash of a record is one of bytes, so
//! a record in any other form was not written by the filter.

/// Nesting of a record; claims are the deepest part of one.
const MOST_DEPTH: usize = 32;

/// Why a text is not canonical JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The byte of the text where that shows, from 0.
    pub at: usize,
    /// What is wrong there; lower case, no full stop.
    pub problem: &'static str,
}

/// A member of the outermost object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'t> {
    /// Its name as it is written, without the quotes.
    pub name: &'t str,
    /// Its value as it is written.
    pub value: &'t str,
    /// Where the member begins in the text.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// Checks that `text` is one object in its canonical form, and shows each of its own members to `visit`.
///
/// Fractions are let through in any form: a record has none but in claims, and how ECMAScript writes
/// them is not worth a check that the hash makes anyway.
///
/// # Errors
/// The first thing that is not canonical. Members before it have been shown.
pub fn scan<'t>(text: &'t str, mut visit: impl FnMut(Member<'t>)) -> Result<(), Fault> {
    let mut scanner = Scanner { text, bytes: text.as_bytes(), at: 0 };
    scanner.object(MOST_DEPTH, &mut |member| visit(member))?;
    if scanner.at == text.len() { Ok(()) } else { scanner.fault("something follows the object") }
}

struct Scanner<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
}

impl<'t> Scanner<'t> {
    fn fault<T>(&self, problem: &'static str) -> Result<T, Fault> {
        Err(Fault { at: self.at, problem })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn between(&self, start: usize, end: usize) -> &'t str {
        self.text.get(start..end).unwrap_or_default()
    }

    fn object(&mut self, depth: usize, visit: &mut dyn FnMut(Member<'t>)) -> Result<(), Fault> {
        let Some(depth) = depth.checked_sub(1) else { return self.fault("is nested too deeply") };
        if !self.eat(b'{') {
            return self.fault("expected an object");
        }
        if self.eat(b'}') {
            return Ok(());
        }
        let mut before: Option<&str> = None;
        loop {
            let start = self.at;
            let name = self.string()?;
            match before.map(|before| order(before, name)) {
                None | Some(std::cmp::Ordering::Less) => before = Some(name),
                Some(std::cmp::Ordering::Equal) => {
                    return Err(Fault { at: start, problem: "a member stands there twice" });
                }
                Some(std::cmp::Ordering::Greater) => {
                    return Err(Fault { at: start, problem: "the members are not in order" });
                }
            }
            if !self.eat(b':') {
                return self.fault("expected `:`");
            }
            let from = self.at;
            self.value(depth)?;
            visit(Member { name, value: self.between(from, self.at), start, end: self.at });
            if self.eat(b'}') {
                return Ok(());
            }
            if !self.eat(b',') {
                return self.fault("expected `,` or `}`");
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), Fault> {
        let Some(depth) = depth.checked_sub(1) else { return self.fault("is nested too deeply") };
        self.at += 1;
        if self.eat(b']') {
            return Ok(());
        }
        loop {
            self.value(depth)?;
            if self.eat(b']') {
                return Ok(());
            }
            if !self.eat(b',') {
                return self.fault("expected `,` or `]`");
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b'{') => self.object(depth, &mut |_| {}),
            Some(b'[') => self.array(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                let rest = self.bytes.get(self.at..).unwrap_or_default();
                let word = [&b"true"[..], b"false", b"null"];
                let Some(word) = word.into_iter().find(|word| rest.starts_with(word)) else {
                    return self.fault("expected a value");
                };
                self.at += word.len();
                Ok(())
            }
        }
    }

    /// A string; gives what is between the quotes.
    fn string(&mut self) -> Result<&'t str, Fault> {
        if !self.eat(b'"') {
            return self.fault("expected a string");
        }
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let inner = self.between(start, self.at);
                    self.at += 1;
                    return Ok(inner);
                }
                Some(b'\\') => self.escape()?,
                Some(0..0x20) => return self.fault("a control character is not escaped"),
                Some(_) => self.at += 1,
                None => return self.fault("the string does not end"),
            }
        }
    }

    /// What has a short escape has that one, other control characters are `\u00xx`, and nothing else is
    /// escaped.
    fn escape(&mut self) -> Result<(), Fault> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                return Ok(());
            }
            Some(b'u') => {}
            _ => return self.fault("not a canonical escape"),
        }
        let digits = self.text.get(self.at + 2..self.at + 6).unwrap_or_default();
        let code = u8::from_str_radix(digits, 16).unwrap_or(b' ');
        let short = matches!(code, 8 | 9 | 10 | 12 | 13);
        if code >= 0x20 || short || format!("{code:04x}") != digits {
            return self.fault("not a canonical escape");
        }
        self.at += 6;
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.eat(b'-');
        let whole = self.digits();
        let mut plain = true;
        if self.eat(b'.') {
            plain = false;
            if self.digits().is_empty() {
                return self.fault("expected a digit");
            }
        }
        if self.eat(b'e') {
            plain = false;
            if !self.eat(b'-') {
                self.eat(b'+');
            }
            if self.digits().is_empty() {
                return self.fault("expected a digit");
            }
        }
        let leading = whole.len() > 1 && whole.starts_with('0');
        if whole.is_empty() || leading || plain && self.between(start, self.at) == "-0" {
            return Err(Fault { at: start, problem: "not a canonical number" });
        }
        Ok(())
    }

    fn digits(&mut self) -> &'t str {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.between(start, self.at)
    }
}

/// Names are in the order of their UTF-16 code units (RFC 8785 §3.2.3), which is that of bytes for
/// what is ASCII.
fn order(one: &str, other: &str) -> std::cmp::Ordering {
    let plain = |text: &str| text.is_ascii() && !text.contains('\\');
    if plain(one) && plain(other) {
        return one.cmp(other);
    }
    let read = |text: &str| -> Vec<u16> {
        let read: String = serde_json::from_str(&format!("\"{text}\"")).unwrap_or_default();
        read.encode_utf16().collect()
    };
    read(one).cmp(&read(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Vec<(&str, &str)>, (usize, &'static str)> {
        let mut members = Vec::new();
        scan(text, |member| members.push((member.name, member.value)))
            .map(|()| members)
            .map_err(|fault| (fault.at, fault.problem))
    }

    #[test]
    fn members_of_a_canonical_object_are_shown_as_they_are_written() {
        let text =
            r#"{"":{},"a":[1,-2,{"b":[]}],"b":"x\"\\\n\u001f","c":true,"d":null,"e":1.5e-7,"é":0}"#;
        let members = check(text).unwrap();
        let names: Vec<_> = members.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["", "a", "b", "c", "d", "e", "é"]);
        assert_eq!(members[1].1, r#"[1,-2,{"b":[]}]"#);
        assert_eq!(check("{}").unwrap(), []);
        // U+FF61 is behind U+1F600 in UTF-16, and before it in UTF-8.
        assert!(check("{\"\u{1f600}\":0,\"\u{ff61}\":0}").is_ok());
    }

    #[test]
    fn any_other_form_is_a_fault_with_its_place() {
        for (text, at, problem) in [
            ("", 0, "expected an object"),
            ("[]", 0, "expected an object"),
            (r#"{"a":1}}"#, 7, "something follows the object"),
            (r#"{"a":1,"a":2}"#, 7, "a member stands there twice"),
            (r#"{"x":{"a":1,"a":2}}"#, 12, "a member stands there twice"),
            (r#"{"b":1,"a":2}"#, 7, "the members are not in order"),
            ("{\"\u{ff61}\":0,\"\u{1f600}\":0}", 9, "the members are not in order"),
            (r#"{"a": 1}"#, 5, "expected a value"),
            (r#"{"a":01}"#, 5, "not a canonical number"),
            (r#"{"a":-0}"#, 5, "not a canonical number"),
            (r#"{"a":-}"#, 5, "not a canonical number"),
            (r#"{"a":1.}"#, 7, "expected a digit"),
            (r#"{"a":"\u0041"}"#, 6, "not a canonical escape"),
            (r#"{"a":"\u000a"}"#, 6, "not a canonical escape"),
            (r#"{"a":"\u001F"}"#, 6, "not a canonical escape"),
            (r#"{"a":"\/"}"#, 6, "not a canonical escape"),
            ("{\"a\":\"\t\"}", 6, "a control character is not escaped"),
            (r#"{"a":"x"#, 7, "the string does not end"),
            (r#"{"a":"\"#, 6, "not a canonical escape"),
            (r#"{"a":"\u00"#, 6, "not a canonical escape"),
            (r#"{"a"1}"#, 4, "expected `:`"),
            (r#"{"a":1"b":2}"#, 6, "expected `,` or `}`"),
            (r#"{"a":[1 2]}"#, 7, "expected `,` or `]`"),
            (r#"{"a":nul}"#, 5, "expected a value"),
        ] {
            assert_eq!(check(text), Err((at, problem)), "{text}");
        }
        let bomb = format!("{{\"a\":{}", "[".repeat(1_000_000));
        assert_eq!(check(&bomb), Err((36, "is nested too deeply")));
    }
}
