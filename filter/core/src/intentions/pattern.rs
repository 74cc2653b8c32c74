//! Regular expressions of intentions: RE2's, as Envoy reads them, as far as there is no doubt about them.
//!
//! An engine of its own, because those that there are read some patterns otherwise than RE2 and are ten times as
//! large: whether a pattern is a whole text is all that is asked. What is not in this grammar is a fault,
//! and so is what RE2 refuses. Matching takes time in proportion to the text and the pattern, never more.
//!
//! What it is not: Unicode's classes and cases, look-around, and octets that are not UTF-8.

use std::sync::Arc;

/// Bytes of a pattern.
const MOST_BYTES: usize = 2000;

/// Parts of a pattern that are looked at to compile it, those that are repeated each time: also what makes no
/// step takes time.
const MOST_WORK: usize = 10 * MOST_STEPS;

/// Steps of a compiled pattern. One character of a text costs at most as many.
const MOST_STEPS: usize = 4000;

/// Groups within groups.
const MOST_NESTING: usize = 50;

/// Most repetitions that RE2 counts.
const MOST_REPETITIONS: usize = 1000;

/// A regular expression that is matched with the whole of a text.
#[derive(Debug)]
pub(super) struct Pattern {
    program: Box<[Step]>,
}

#[derive(Debug, Clone)]
enum Step {
    /// One character of these. Where the set is repeated it is shared.
    One(Arc<Set>),
    /// On at either.
    Fork(usize, usize),
    Jump(usize),
    Assert(Assertion),
    End,
}

/// Characters.
#[derive(Debug, Clone)]
struct Set {
    ranges: Vec<(char, char)>,
    negated: bool,
    folds: bool,
}

/// What must be true between two characters.
#[derive(Debug, Clone, Copy)]
enum Assertion {
    Start,
    LineStart,
    Finish,
    LineEnd,
    /// Or none.
    WordBoundary(bool),
}

enum Node {
    One(Arc<Set>),
    Assert(Assertion),
    All(Vec<Node>),
    Any(Vec<Node>),
    /// At least so often, and at most.
    Repeated(Box<Node>, usize, Option<usize>),
}

#[derive(Clone, Copy, Default)]
struct Flags {
    folds: bool,
    lines: bool,
    dot_is_all: bool,
}

impl Pattern {
    /// Reads a pattern in RE2's syntax.
    ///
    /// # Errors
    /// What it has that is not understood, as the end of a sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MOST_BYTES {
            return Err(TOO_LARGE.to_owned());
        }
        let mut parser = Parser { rest: text, nesting: 0, folds: false, wide: false };
        let node = parser.alternatives(Flags::default())?;
        if !parser.rest.is_empty() {
            return Err("has a `)` too many".to_owned());
        }
        if parser.folds && parser.wide {
            return Err("ignores the case of characters outside ASCII".to_owned());
        }
        let mut program = Vec::new();
        compile(&node, &mut program, &mut { MOST_WORK })?;
        put(&mut program, Step::End)?;
        Ok(Self { program: program.into() })
    }

    /// How large it is.
    pub(super) fn steps(&self) -> usize {
        self.program.len()
    }

    /// Whether it is the whole of `text`; `None` if that cannot be said: beyond ASCII, RE2 folds cases by
    /// Unicode, and takes octets that are not UTF-8 for characters where nobody would think so.
    pub(super) fn matches(&self, text: &[u8]) -> Option<bool> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
        let (mut here, mut next) = (Places::new(&self.program), Places::new(&self.program));
        let mut rest = text.chars();
        let mut coming = rest.next();
        here.add(0, None, coming);
        while let Some(character) = coming {
            coming = rest.next();
            for place in here.list.drain(..) {
                if let Some(Step::One(set)) = self.program.get(place)
                    && set.has(character)
                {
                    next.add(place.saturating_add(1), Some(character), coming);
                }
            }
            here.known.fill(false);
            std::mem::swap(&mut here, &mut next);
            if here.list.is_empty() {
                return Some(false);
            }
        }
        let ends = |place: &usize| matches!(self.program.get(*place), Some(Step::End));
        Some(here.list.iter().any(ends))
    }
}

impl Set {
    fn has(&self, character: char) -> bool {
        let listed =
            |character| self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&character));
        let folded = || {
            self.folds
                && (listed(character.to_ascii_lowercase())
                    || listed(character.to_ascii_uppercase()))
        };
        (listed(character) || folded()) != self.negated
    }
}

/// Where in the program a match may be.
struct Places<'p> {
    program: &'p [Step],
    list: Vec<usize>,
    known: Vec<bool>,
    /// Still to be looked at; kept for its memory.
    open: Vec<usize>,
}

impl<'p> Places<'p> {
    fn new(program: &'p [Step]) -> Self {
        Self { program, list: Vec::new(), known: vec![false; program.len()], open: Vec::new() }
    }

    /// Adds `place`, and wherever that leads without a character, between these two.
    fn add(&mut self, place: usize, before: Option<char>, after: Option<char>) {
        self.open.push(place);
        while let Some(place) = self.open.pop() {
            let Some(known) = self.known.get_mut(place) else { continue };
            if std::mem::replace(known, true) {
                continue;
            }
            match self.program.get(place) {
                Some(Step::One(_) | Step::End) => self.list.push(place),
                Some(Step::Jump(to)) => self.open.push(*to),
                Some(Step::Fork(one, other)) => self.open.extend([*other, *one]),
                Some(Step::Assert(assertion)) if assertion.holds(before, after) => {
                    self.open.push(place.saturating_add(1));
                }
                Some(Step::Assert(_)) | None => {}
            }
        }
    }
}

impl Assertion {
    fn holds(self, before: Option<char>, after: Option<char>) -> bool {
        let is_word = |character: Option<char>| {
            character.is_some_and(|character| character.is_ascii_alphanumeric() || character == '_')
        };
        match self {
            Self::Start => before.is_none(),
            Self::LineStart => matches!(before, None | Some('\n')),
            Self::Finish => after.is_none(),
            Self::LineEnd => matches!(after, None | Some('\n')),
            Self::WordBoundary(wanted) => (is_word(before) != is_word(after)) == wanted,
        }
    }
}

const TOO_LARGE: &str = "is too large";

fn put(program: &mut Vec<Step>, step: Step) -> Result<usize, String> {
    if program.len() >= MOST_STEPS {
        return Err(TOO_LARGE.to_owned());
    }
    program.push(step);
    Ok(program.len().saturating_sub(1))
}

/// Lets the step at `place` lead on to where the program ends now.
fn lead(program: &mut [Step], place: usize) {
    let end = program.len();
    if let Some(Step::Jump(to) | Step::Fork(_, to)) = program.get_mut(place) {
        *to = end;
    }
}

/// `work` is how many more nodes may be looked at.
fn compile(node: &Node, program: &mut Vec<Step>, work: &mut usize) -> Result<(), String> {
    *work = work.checked_sub(1).ok_or(TOO_LARGE)?;
    match node {
        Node::One(set) => put(program, Step::One(Arc::clone(set))).map(|_| ()),
        Node::Assert(assertion) => put(program, Step::Assert(*assertion)).map(|_| ()),
        Node::All(nodes) => nodes.iter().try_for_each(|node| compile(node, program, work)),
        Node::Any(nodes) => {
            let mut jumps = Vec::new();
            let mut nodes = nodes.iter().peekable();
            while let Some(node) = nodes.next() {
                if nodes.peek().is_none() {
                    compile(node, program, work)?;
                    break;
                }
                let first = program.len().saturating_add(1);
                let fork = put(program, Step::Fork(first, first))?;
                compile(node, program, work)?;
                jumps.push(put(program, Step::Jump(0))?);
                lead(program, fork);
            }
            jumps.into_iter().for_each(|jump| lead(program, jump));
            Ok(())
        }
        Node::Repeated(node, least, most) => {
            for _ in 0..*least {
                compile(node, program, work)?;
            }
            let mut forks = Vec::new();
            // Without an end: once more, and back.
            for _ in *least..most.unwrap_or(least.saturating_add(1)) {
                let first = program.len().saturating_add(1);
                forks.push(put(program, Step::Fork(first, first))?);
                compile(node, program, work)?;
            }
            if let (None, Some(fork)) = (most, forks.first()) {
                put(program, Step::Jump(*fork))?;
            }
            forks.into_iter().for_each(|fork| lead(program, fork));
            Ok(())
        }
    }
}

/// A pattern that is being read.
struct Parser<'t> {
    rest: &'t str,
    nesting: usize,
    /// Somewhere case is ignored.
    folds: bool,
    /// It names a character outside ASCII.
    wide: bool,
}

const DIGITS: [(char, char); 1] = [('0', '9')];
const WORD: [(char, char); 4] = [('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
/// Without the vertical tab, as in RE2.
const BLANKS: [(char, char); 4] = [('\t', '\n'), ('\u{c}', '\u{c}'), ('\r', '\r'), (' ', ' ')];

/// The names between `[:` and `:]`; all are of ASCII.
const POSIX_CLASSES: [(&str, &[(char, char)]); 14] = [
    ("alnum", &[('0', '9'), ('A', 'Z'), ('a', 'z')]),
    ("alpha", &[('A', 'Z'), ('a', 'z')]),
    ("ascii", &[('\0', '\x7f')]),
    ("blank", &[('\t', '\t'), (' ', ' ')]),
    ("cntrl", &[('\0', '\x1f'), ('\x7f', '\x7f')]),
    ("digit", &DIGITS),
    ("graph", &[('!', '~')]),
    ("lower", &[('a', 'z')]),
    ("print", &[(' ', '~')]),
    ("punct", &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')]),
    ("space", &[('\t', '\r'), (' ', ' ')]),
    ("upper", &[('A', 'Z')]),
    ("word", &WORD),
    ("xdigit", &[('0', '9'), ('A', 'F'), ('a', 'f')]),
];

/// `\d`, `\s`, `\w`, and whether the letter is capital: everything else.
fn perl_class(letter: char) -> Option<(&'static [(char, char)], bool)> {
    let ranges: &[_] = match letter.to_ascii_lowercase() {
        'd' => &DIGITS,
        's' => &BLANKS,
        'w' => &WORD,
        _ => return None,
    };
    Some((ranges, letter.is_ascii_uppercase()))
}

/// Every character that is in none of these ranges.
fn others(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let mut others = Vec::new();
    let mut from = 0;
    let mut add = |from: u32, to: u32| {
        // A range of characters leaves out what is none.
        others.extend(char::from_u32(from).zip(char::from_u32(to)));
    };
    // INVARIANT: the ranges of the classes are in order, and of ASCII.
    for (first, last) in ranges {
        if let Some(to) = u32::from(*first).checked_sub(1).filter(|to| *to >= from) {
            add(from, to);
        }
        from = u32::from(*last).saturating_add(1);
    }
    add(from, u32::from(char::MAX));
    others
}

fn one(set: Set) -> Node {
    Node::One(Arc::new(set))
}

impl Parser<'_> {
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

    /// Everything up to a `)` or the end.
    fn alternatives(&mut self, mut flags: Flags) -> Result<Node, String> {
        let mut alternatives = Vec::new();
        let mut nodes = Vec::new();
        // Whether there is something that `*` could repeat.
        let mut repeatable = false;
        while !self.rest.starts_with(')')
            && let Some(character) = self.next()
        {
            let node = match character {
                '|' => {
                    alternatives.push(Node::All(std::mem::take(&mut nodes)));
                    repeatable = false;
                    continue;
                }
                '(' => match self.group(&mut flags)? {
                    Some(node) => node,
                    None => {
                        repeatable = false;
                        continue;
                    }
                },
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.repetition(character)?;
                    let Some(node) = nodes.pop().filter(|_| repeatable) else {
                        return Err(format!("has a `{character}` that repeats nothing"));
                    };
                    nodes.push(Node::Repeated(Box::new(node), least, most));
                    repeatable = false;
                    continue;
                }
                '.' => {
                    let ranges = if flags.dot_is_all { Vec::new() } else { vec![('\n', '\n')] };
                    one(Set { ranges, negated: true, folds: false })
                }
                '^' if flags.lines => Node::Assert(Assertion::LineStart),
                '^' => Node::Assert(Assertion::Start),
                '$' if flags.lines => Node::Assert(Assertion::LineEnd),
                '$' => Node::Assert(Assertion::Finish),
                '[' => one(self.class(flags)?),
                ']' | '}' => return Err(format!("has a `{character}` that closes nothing")),
                '\\' => self.escape(flags)?,
                character => self.literal(character, flags),
            };
            repeatable = !matches!(node, Node::Assert(_));
            nodes.push(node);
        }
        alternatives.push(Node::All(nodes));
        Ok(Node::Any(alternatives))
    }

    /// What follows `(`: a group, or flags for what follows.
    fn group(&mut self, flags: &mut Flags) -> Result<Option<Node>, String> {
        let mut inner = *flags;
        if self.skip("?P<") {
            let (name, rest) = self.rest.split_once('>').ok_or("has a group without a name")?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if name.is_empty() || !name.bytes().all(plain) {
                return Err("has a group without a name".to_owned());
            }
            self.rest = rest;
        } else if self.skip("?") && !self.flags(&mut inner)? {
            *flags = inner;
            return Ok(None);
        }
        self.nesting = self.nesting.saturating_add(1);
        if self.nesting > MOST_NESTING {
            return Err("has too many groups within groups".to_owned());
        }
        let node = self.alternatives(inner)?;
        self.nesting = self.nesting.saturating_sub(1);
        if self.skip(")") { Ok(Some(node)) } else { Err("has a `(` that is not closed".to_owned()) }
    }

    /// What follows `(?`; whether it is a group that they are for.
    fn flags(&mut self, flags: &mut Flags) -> Result<bool, String> {
        let fault = || "has a group or a flag that is not understood".to_owned();
        let (mut on, mut any) = (true, false);
        loop {
            match self.next().ok_or_else(fault)? {
                'i' => flags.folds = on,
                'm' => flags.lines = on,
                's' => flags.dot_is_all = on,
                // That of greed changes nothing about whether the whole text matches.
                'U' => {}
                '-' if on => {
                    (on, any) = (false, false);
                    continue;
                }
                ':' if any || on => return Ok(true),
                ')' if any => return Ok(false),
                _ => return Err(fault()),
            }
            any = true;
            self.folds |= flags.folds;
        }
    }

    fn repetition(&mut self, operator: char) -> Result<(usize, Option<usize>), String> {
        let counts = match operator {
            '*' => (0, None),
            '+' => (1, None),
            '?' => (0, Some(1)),
            _ => {
                let (inner, rest) =
                    self.rest.split_once('}').ok_or("has a `{` that is not closed")?;
                self.rest = rest;
                let number = |text: &str| {
                    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                    text.parse().ok().filter(|number| plain && *number <= MOST_REPETITIONS)
                };
                let (least, most) = match inner.split_once(',') {
                    None => (number(inner), Some(number(inner))),
                    Some((least, "")) => (number(least), None),
                    Some((least, most)) => (number(least), Some(number(most))),
                };
                let fault =
                    || format!("has a repetition that is not of numbers to {MOST_REPETITIONS}");
                let least = least.ok_or_else(fault)?;
                let most = most.map(|most| most.ok_or_else(fault)).transpose()?;
                if most.is_some_and(|most| least > most) {
                    return Err(fault());
                }
                (least, most)
            }
        };
        self.skip("?");
        Ok(counts)
    }

    fn literal(&mut self, character: char, flags: Flags) -> Node {
        self.wide |= !character.is_ascii();
        let ranges = vec![(character, character)];
        one(Set { ranges, negated: false, folds: flags.folds })
    }

    /// What follows `\` outside of a class.
    fn escape(&mut self, flags: Flags) -> Result<Node, String> {
        let mut after = self.rest.chars();
        let letter = after.next().unwrap_or_default();
        let node = match letter {
            'A' => Node::Assert(Assertion::Start),
            'z' => Node::Assert(Assertion::Finish),
            'b' | 'B' => Node::Assert(Assertion::WordBoundary(letter == 'b')),
            _ => match perl_class(letter) {
                Some((ranges, negated)) => {
                    one(Set { ranges: ranges.to_vec(), negated, folds: flags.folds })
                }
                None => {
                    let character = self.escaped_character()?;
                    return Ok(self.literal(character, flags));
                }
            },
        };
        self.rest = after.as_str();
        Ok(node)
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
    fn class(&mut self, flags: Flags) -> Result<Set, String> {
        let fault = || "has a class that is not understood".to_owned();
        let negated = self.skip("^");
        let mut ranges = Vec::new();
        loop {
            if self.skip("]") {
                // As the first one it would stand for itself.
                if ranges.is_empty() {
                    return Err(fault());
                }
                return Ok(Set { ranges, negated, folds: flags.folds });
            }
            if self.skip("[:") {
                let (name, rest) = self.rest.split_once(":]").ok_or_else(fault)?;
                self.rest = rest;
                let plain = name.strip_prefix('^').unwrap_or(name);
                let found = POSIX_CLASSES.iter().find(|(known, _)| *known == plain);
                let (_, class) = found.ok_or_else(fault)?;
                // RE2 ignores case before it negates: then nothing but letters is left out, of both cases.
                if plain != name && flags.folds && matches!(plain, "lower" | "upper") {
                    return Err(fault());
                }
                match plain == name {
                    true => ranges.extend_from_slice(class),
                    false => ranges.extend(others(class)),
                }
                continue;
            }
            let letter = self.rest.strip_prefix('\\').and_then(|rest| rest.chars().next());
            if let Some((class, negated)) = letter.and_then(perl_class) {
                match negated {
                    false => ranges.extend_from_slice(class),
                    true => ranges.extend(others(class)),
                }
                self.next();
                self.next();
                continue;
            }
            let from = self.class_character().ok_or_else(fault)??;
            // `-` stands for itself at the ends only, where no range can be meant.
            if from == '-' && !ranges.is_empty() && !self.rest.starts_with(']') {
                return Err(fault());
            }
            let mut to = from;
            if !self.rest.starts_with("-]") && self.skip("-") {
                to = self.class_character().ok_or_else(fault)??;
                if to < from || to == '[' {
                    return Err(fault());
                }
            }
            self.wide |= !from.is_ascii() || !to.is_ascii();
            ranges.push((from, to));
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
            ("a-b", "a-b", true),
            (r"\ba\b.*", "a b", true),
            (r"a\Bb", "ab", true),
            (r"a\bb", "ab", false),
            ("a|b^c", "a", true),
            ("(a*)*b", "aaab", true),
            ("(|a)+", "aa", true),
            ("a{2,}", "a", false),
            ("a{2,}", "aaaa", true),
            ("a{0}b", "b", true),
            ("(?s).", "\n", true),
            (".", "\n", false),
            ("(?m)a$.*", "a\nb", false),
            ("(?ms)a$.*", "a\nb", true),
            (r"[^\W\d]+", "a_", true),
            (r"[^\W\d]+", "a1", false),
            (r"[[:^alpha:]]", "1", true),
            ("a(?i)b|C", "c", true),
            ("[-a]+[+--]", "a-,", true),
        ] {
            assert_eq!(matches(pattern, text), Some(expected), "{pattern} {text}");
        }
        assert_eq!(matches("(?i)k.", "k\u{e4}"), None);
        assert_eq!(matches("ä+", "ää"), None);
        assert_eq!(Pattern::parse(r"\W").unwrap().matches(b"\xff"), None);
    }

    #[test]
    fn what_re2_refuses_or_may_read_otherwise_is_a_fault() {
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
        // A class that is everything but the letters of one case, whatever their case is: RE2 leaves out both.
        for pattern in ["(?i)[[:^upper:]]", "(?i)[^[:^lower:]]", "(?i:[[:^lower:]])"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
        assert!(Pattern::parse("[[:^upper:]](?i)a").is_ok());
        assert!(Pattern::parse("(a{1000}){1000}").is_err());
        // Repetitions of nothing are work, too.
        assert!(Pattern::parse("((((){1000}){1000}){1000}){1000}").is_err());
        assert!(Pattern::parse(&format!("({}a){{1000}}", "()".repeat(400))).is_err());
        assert!(Pattern::parse(&"a".repeat(MOST_BYTES + 1)).is_err());
        assert!(Pattern::parse(&"(".repeat(100_000)).is_err());
        // Time in proportion: an engine that goes back takes for ever.
        assert_eq!(matches("(a*)*(a*)*b", &"a".repeat(20_000)), Some(false));
    }
}
