//! Permissions: what an intention says about the HTTP request, matched as Envoy's RBAC filter matches it.
//!
//! A header that occurs several times is matched line by line, and one line that fits is enough; a list
//! in one line is one value. `Invert` turns the outcome of all lines round, and a header that is not
//! there never meets an inverted value: that is why a deny with `Invert` does not stop who leaves the
//! header out. Otherwise than Envoy's, a denial of some paths or methods denies every tunnel (CONNECT).

use super::Question;
use super::pattern::Pattern;
use super::token::Demand;
use crate::arrival::CONNECT;

/// One permission of an intention.
#[derive(Debug)]
pub(super) struct Permission {
    /// What it decides if it matches.
    pub(super) allows: bool,
    pub(super) path: Option<PathTest>,
    /// Any method if there is none.
    pub(super) methods: Box<[Box<str>]>,
    /// All of them.
    pub(super) headers: Box<[HeaderTest]>,
    /// What the access token must say in addition.
    pub(super) token: Option<Demand>,
}

#[derive(Debug)]
pub(super) enum PathTest {
    Exact(Box<str>),
    Prefix(Box<str>),
    Regex(Pattern),
}

/// What a header must be.
#[derive(Debug)]
pub(super) struct HeaderTest {
    /// In lower case.
    pub(super) name: Box<str>,
    pub(super) value: ValueTest,
    pub(super) invert: bool,
    /// Of ASCII letters only, as in Envoy. Not for regular expressions.
    pub(super) ignore_case: bool,
}

#[derive(Debug)]
pub(super) enum ValueTest {
    Present,
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Contains(Box<str>),
    Regex(Pattern),
}

/// Whether something matches; `None`: that cannot be said.
pub(super) type Truth = Option<bool>;

/// All of `parts`: one that does not match decides, even beside one about which nothing can be said.
fn all(parts: impl IntoIterator<Item = Truth>) -> Truth {
    parts
        .into_iter()
        .try_fold(Some(true), |whole, part| match (whole, part) {
            (_, Some(false)) => Err(Some(false)),
            (Some(true), Some(true)) => Ok(Some(true)),
            _ => Ok(None),
        })
        .unwrap_or_else(|decided| decided)
}

impl Permission {
    /// Whether the permission is about this request.
    pub(super) fn matches(&self, question: &Question<'_>) -> Truth {
        // In a tunnel every method and every path can be used, so also what is denied here.
        let hidden = question.method == CONNECT && !self.allows;
        let method = hidden
            || self.methods.is_empty()
            || self.methods.iter().any(|method| **method == *question.method);
        if !method {
            return Some(false);
        }
        let path = self.path.as_ref().filter(|_| !hidden);
        let path = path.map_or(Some(true), |test| test.matches(question.path));
        let token = self.token.as_ref().map(|demand| demand.is_met(question.token));
        let headers = self.headers.iter().map(|test| test.matches(question.headers));
        all([path, token.map_or(Some(true), Some)].into_iter().chain(headers))
    }
}

impl PathTest {
    /// A request without a path, as a CONNECT is, meets none.
    fn matches(&self, path: Option<&str>) -> Truth {
        let Some(path) = path else { return Some(false) };
        match self {
            Self::Exact(exact) => Some(**exact == *path),
            Self::Prefix(prefix) => Some(path.starts_with(&**prefix)),
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }
}

impl HeaderTest {
    fn matches(&self, headers: &[(&[u8], &[u8])]) -> Truth {
        let name = self.name.as_bytes();
        let lines = headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let mut lines = lines.map(|(_, value)| *value).peekable();
        if lines.peek().is_none() {
            return Some(self.invert && matches!(self.value, ValueTest::Present));
        }
        let mut any = Some(false);
        for line in lines {
            match self.value.matches(line, self.ignore_case) {
                Some(true) => {
                    any = Some(true);
                    break;
                }
                Some(false) => {}
                None => any = None,
            }
        }
        any.map(|any| any != self.invert)
    }
}

impl ValueTest {
    fn matches(&self, value: &[u8], ignore_case: bool) -> Truth {
        let same = |one: &[u8], other: &str| {
            if ignore_case {
                one.eq_ignore_ascii_case(other.as_bytes())
            } else {
                one == other.as_bytes()
            }
        };
        let matches = match self {
            Self::Present => true,
            Self::Exact(text) => same(value, text),
            Self::Prefix(text) => value.get(..text.len()).is_some_and(|part| same(part, text)),
            Self::Suffix(text) => {
                let from = value.len().checked_sub(text.len());
                from.and_then(|from| value.get(from..)).is_some_and(|part| same(part, text))
            }
            // INVARIANT: not empty, or there would be no such test.
            Self::Contains(text) => value.windows(text.len().max(1)).any(|part| same(part, text)),
            Self::Regex(pattern) => return pattern.matches(value),
        };
        Some(matches)
    }
}
