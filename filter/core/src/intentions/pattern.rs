//! Regular expressions of intentions: RE2's, as Envoy reads them, as far as there is no doubt about them.
//!
//! The engine here is another one. What both could read differently, or only one of them knows, is not
//! handed to it: a pattern is read by a grammar of its own, written anew with every character that is not
//! a letter or a digit escaped, and what is not in that grammar is a fault. So is what RE2 refuses.
//! `\s` is without the vertical tab, as in RE2.

use std::fmt::Write as _;

use regex_lite::{Regex, RegexBuilder};

/// Bytes of a compiled pattern. One step of matching costs as much time.
const COMPILED_BYTES: usize = 64 * 1024;

/// Most repetitions that RE2 counts.
const MOST_REPETITIONS: u32 = 1000;

/// A regular expression that is matched with the whole of a text.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// It ignores case. RE2 does so by Unicode, this engine by ASCII.
    folds: bool,
}

impl Pattern {
    /// Reads a pattern in RE2's syntax.
    ///
    /// # Errors
    /// What it has that is not understood, as the end of a sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut translation =
            Translation { rest: text, to: r"\A(?:".to_owned(), open: 0, folds: false, wide: false };
        translation.alternatives()?;
        let Translation { mut to, folds, wide, .. } = translation;
        if folds && wide {
            return Err("ignores the case of characters outside ASCII".to_owned());
        }
        to.push_str(r")\z");
        let mut builder = RegexBuilder::new(&to);
        let regex = builder.size_limit(COMPILED_BYTES).build();
        // What the engine says quotes the translation, which nobody wrote.
        let regex = regex.map_err(|_| "is not a regular expression, or too large".to_owned())?;
        Ok(Self { regex, folds })
    }

    /// Whether it is the whole of `text`; `None` if that cannot be said.
    pub(super) fn matches(&self, text: &[u8]) -> Option<bool> {
        // No element of RE2's syntax matches octets that are not UTF-8, but for `\C`, which is a fault here.
        let Ok(text) = std::str::from_utf8(text) else { return Some(false) };
        (!self.folds || text.is_ascii()).then(|| self.regex.is_match(text))
    }
}

/// A pattern that is being read, and what was written of it anew.
struct Translation<'t> {
    rest: &'t str,
    to: String,
    /// Groups that are open.
    open: usize,
    folds: bool,
    /// It names a character outside ASCII.
    wide: bool,
}

/// The names between `[:` and `:]`; all are of ASCII.
const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

impl Translation<'_> {
    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let next = characters.next();
        self.rest = characters.as_str();
        next
    }

    fn skip(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Everything, to the end of the pattern.
    fn alternatives(&mut self) -> Result<(), String> {
        // Whether there is something that `*` could repeat.
        let mut repeatable = false;
        while let Some(character) = self.next() {
            repeatable = match character {
                '|' => {
                    self.to.push('|');
                    false
                }
                '(' => self.group()?,
                ')' => {
                    let open = self.open.checked_sub(1);
                    self.open = open.ok_or("has a `)` too many")?;
                    self.to.push(')');
                    true
                }
                '*' | '+' | '?' | '{' => {
                    if !repeatable {
                        return Err(format!("has a `{character}` that repeats nothing"));
                    }
                    self.repetition(character)?;
                    false
                }
                '.' => {
                    self.to.push('.');
                    true
                }
                '^' | '$' => {
                    self.to.push(character);
                    false
                }
                '[' => {
                    self.class()?;
                    true
                }
                ']' | '}' => return Err(format!("has a `{character}` that closes nothing")),
                '\\' => self.escape()?,
                character => {
                    self.literal(character);
                    true
                }
            };
        }
        if self.open > 0 { Err("has a `(` that is not closed".to_owned()) } else { Ok(()) }
    }

    /// What follows `(`; whether it can be repeated.
    fn group(&mut self) -> Result<bool, String> {
        if !self.skip("?") {
            self.open += 1;
            // Nobody looks at what a group matched.
            self.to.push_str("(?:");
            return Ok(false);
        }
        if self.skip("P<") {
            let (name, rest) = self.rest.split_once('>').ok_or("has a group without a name")?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if name.is_empty() || !name.bytes().all(plain) {
                return Err("has a group without a name".to_owned());
            }
            self.rest = rest;
            self.open += 1;
            self.to.push_str("(?:");
            return Ok(false);
        }
        self.to.push_str("(?");
        let mut negative = false;
        loop {
            let Some(character) = self.next() else {
                return Err("has a `(` that is not closed".to_owned());
            };
            match character {
                // That of greed changes nothing about whether the whole text matches.
                'i' | 'm' | 's' | 'U' => {
                    self.folds |= character == 'i' && !negative;
                    self.to.push(character);
                }
                '-' if !negative => {
                    negative = true;
                    self.to.push('-');
                }
                ':' | ')' if !self.to.ends_with('-') => {
                    if character == ':' {
                        self.open += 1;
                    } else if self.to.ends_with('?') {
                        return Err("has an empty group of flags".to_owned());
                    }
                    self.to.push(character);
                    return Ok(false);
                }
                _ => return Err("has a group or a flag that is not understood".to_owned()),
            }
        }
    }

    fn repetition(&mut self, operator: char) -> Result<(), String> {
        if operator == '{' {
            let (inner, rest) = self.rest.split_once('}').ok_or("has a `{` that is not closed")?;
            let number = |text: &str| {
                let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse().ok().filter(|number: &u32| plain && *number <= MOST_REPETITIONS)
            };
            let fault = || format!("has a repetition that is not of numbers to {MOST_REPETITIONS}");
            let (least, most) = match inner.split_once(',') {
                None => (number(inner), number(inner)),
                Some((least, "")) => (number(least), Some(MOST_REPETITIONS)),
                Some((least, most)) => (number(least), number(most)),
            };
            if least.ok_or_else(fault)? > most.ok_or_else(fault)? {
                return Err(fault());
            }
            // Writing to a `String` cannot fail.
            let _ = write!(self.to, "{{{inner}}}");
            self.rest = rest;
        } else {
            self.to.push(operator);
        }
        if self.skip("?") {
            self.to.push('?');
        }
        Ok(())
    }

    fn literal(&mut self, character: char) {
        self.wide |= !character.is_ascii();
        if character.is_ascii_alphanumeric() || !character.is_ascii() {
            self.to.push(character);
        } else {
            let _ = write!(self.to, r"\x{:02X}", u32::from(character));
        }
    }

    /// What follows `\` outside of a class; whether it can be repeated.
    fn escape(&mut self) -> Result<bool, String> {
        match self.rest.chars().next() {
            Some(character @ ('b' | 'B' | 'A' | 'z')) => {
                self.next();
                self.to.push('\\');
                self.to.push(character);
                Ok(false)
            }
            Some('S') => {
                self.next();
                self.to.push_str(r"[^\t\n\f\r\x20]");
                Ok(true)
            }
            Some('s') => {
                self.next();
                self.to.push_str(r"[\t\n\f\r\x20]");
                Ok(true)
            }
            Some(character @ ('d' | 'D' | 'w' | 'W')) => {
                self.next();
                self.to.push('\\');
                self.to.push(character);
                Ok(true)
            }
            _ => {
                let character = self.escaped_character()?;
                self.literal(character);
                Ok(true)
            }
        }
    }

    /// What follows `\`, if that is one character.
    fn escaped_character(&mut self) -> Result<char, String> {
        let fault = || "has an escape that is not understood".to_owned();
        let character = self.next().ok_or_else(fault)?;
        Ok(match character {
            'a' => '\u{07}',
            'f' => '\u{0c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{0b}',
            'x' => {
                let (digits, rest) = match self.rest.strip_prefix('{') {
                    Some(rest) => rest.split_once('}').ok_or_else(fault)?,
                    None => self.rest.split_at_checked(2).ok_or_else(fault)?,
                };
                self.rest = rest;
                let plain = (1..=6).contains(&digits.len())
                    && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                let number = u32::from_str_radix(digits, 16).ok().filter(|_| plain);
                number.and_then(char::from_u32).ok_or_else(fault)?
            }
            character if character.is_ascii_punctuation() && character != '_' => character,
            _ => return Err(fault()),
        })
    }

    /// What follows `[`.
    fn class(&mut self) -> Result<(), String> {
        let fault = || "has a class that is not understood".to_owned();
        self.to.push('[');
        if self.skip("^") {
            self.to.push('^');
        }
        let mut first = true;
        loop {
            if self.skip("]") {
                // As the first one it would stand for itself.
                if first {
                    return Err(fault());
                }
                self.to.push(']');
                return Ok(());
            }
            if self.skip("[:") {
                let (name, rest) = self.rest.split_once(":]").ok_or_else(fault)?;
                if !POSIX_CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
                    return Err(fault());
                }
                self.rest = rest;
                let _ = write!(self.to, "[:{name}:]");
                first = false;
                continue;
            }
            let whole = [(r"\d", r"\d"), (r"\D", r"\D"), (r"\w", r"\w"), (r"\W", r"\W")];
            let whole = whole.into_iter().chain([(r"\s", r"\t\n\f\r\x20")]);
            if let Some((_, written)) = whole.into_iter().find(|(name, _)| self.skip(name)) {
                self.to.push_str(written);
                first = false;
                continue;
            }
            let from = self.class_character().ok_or_else(fault)??;
            // `-` stands for itself at the ends only, where no range can be meant.
            if from == '-' && !first && !self.rest.starts_with(']') {
                return Err(fault());
            }
            first = false;
            self.literal(from);
            if self.rest.starts_with("-]") || !self.skip("-") {
                continue;
            }
            let to = self.class_character().ok_or_else(fault)??;
            if to < from || to == '[' {
                return Err(fault());
            }
            self.to.push('-');
            self.literal(to);
        }
    }

    fn class_character(&mut self) -> Option<Result<char, String>> {
        match self.next()? {
            '\\' => Some(self.escaped_character()),
            ']' => None,
            character => Some(Ok(character)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> Option<bool> {
        Pattern::parse(pattern).unwrap().matches(text.as_bytes())
    }

    #[test]
    fn the_whole_text_is_matched_as_re2_does() {
        for (pattern, text, expected) in [
            ("/v1/.*", "/v1/a", true),
            ("/v1/.*", "x/v1/a", false),
            ("a|ab", "ab", true),
            ("(a|b)*c{2,3}", "abbacc", true),
            ("v[0-9]", "v7", true),
            ("v[0-9]", "v77", false),
            (r"[\w.-]+@[^@]+", "a.b-c@x", true),
            (r"[a&&b]", "&", true),
            (r"[[a]", "[", true),
            (r"[[:alpha:]_]+", "ab_", true),
            (r"a\sb", "a b", true),
            (r"a\sb", "a\u{0b}b", false),
            (r"\x61\x{62}\.", "ab.", true),
            ("(?i)Ab", "aB", true),
            ("(?i:A)b", "aB", false),
            ("(?P<x>a)+?", "aaa", true),
            ("^a$", "a", true),
            ("", "", true),
            ("", "a", false),
            ("a#b ", "a#b ", true),
            ("ä+", "ää", true),
            ("a-b", "a-b", true),
        ] {
            assert_eq!(matches(pattern, text), Some(expected), "{pattern} {text}");
        }
        assert_eq!(matches("(?i)k.", "k\u{e4}"), None);
        assert_eq!(Pattern::parse(".*").unwrap().matches(b"\xff"), Some(false));
    }

    #[test]
    fn what_the_two_engines_may_read_differently_is_a_fault() {
        for pattern in [
            r"\pL",
            r"\p{Greek}",
            r"\C",
            r"\Qa\E",
            r"\Z",
            r"\1",
            r"\u0041",
            r"\<a",
            r"a{,2}",
            "a{ 2 }",
            "a{2",
            "a**",
            "a{1001}",
            "a{3,2}",
            "*a",
            "(?x)a",
            "(?R)a",
            "(?=a)",
            "(?!a)",
            "(?<=a)",
            "(?)",
            "(?-)a",
            "(a",
            "a)",
            "[",
            "[]a]",
            "[z-a]",
            "[a",
            "]",
            "}",
            "[[:alfa:]]",
            "(?i)ä",
            r"(?i)\x{212A}",
            r"\_",
            r"[\S]",
            "[a-c-e]",
            r"\",
        ] {
            // `\<` is an escaped `<` to RE2 and a word's start to others: here it is the former.
            if pattern == r"\<a" {
                assert_eq!(matches(pattern, "<a"), Some(true));
                continue;
            }
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
        assert!(Pattern::parse(&"(a{1000}){1000}".to_owned()).is_err());
    }
}
