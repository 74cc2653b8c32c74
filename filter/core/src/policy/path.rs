//! The one normal form of a request's path (RFC 3986 §6.2.2) and the patterns that match it.
//!
//! In the normal form every octet that a path segment may hold as such (`pchar`, RFC 3986 §3.3) is
//! written as such and every other one as `%XX` in upper case; dot segments are removed and slashes
//! not repeated. That goes one step beyond RFC 3986, which would keep `%3A` and `:` apart: servers
//! decode both to the same name, so a rule for `/jobs:run` must not be escaped by `/jobs%3Arun`.
//! A trailing slash means something and stays.
//!
//! What servers are known to read differently is refused, never guessed: an encoded `/`, a `\`, NUL
//! and control characters, invalid escapes, octets outside ASCII that are not escaped, `..` above the
//! root or behind an empty segment, and dot segments with parameters (`..;x`).
//!
//! A permitted request goes on with [its path put right](sent_on). What stands in the query is not read.

use std::borrow::Cow;

use super::glob::{self, Key, Values};
use super::selector::Truth;
use crate::facts::Fact;
use crate::limits::Limits;

/// A segment of a pattern that stands for the `sub` of the access token. No path in its normal form has a
/// brace, so it is nothing else.
pub(super) const SUBJECT: &str = "{sub}";

/// The path of a `:path` in its normal form, borrowed if it was in that form already.
///
/// The query is left out. Only the origin form (RFC 9112 §3.2.1) has a path: `*` and the authority
/// of a CONNECT are refused; the absolute form does not reach an HTTP filter, Envoy splits it.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with "the path".
pub fn normalise<'a>(target: &'a str, limits: &Limits) -> Result<Cow<'a, str>, &'static str> {
    // One pass is enough for nearly all of them.
    if let Some(path) = plain_path(target, limits) {
        return Ok(Cow::Borrowed(path));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // In a request line these would end the target.
    if query.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err("has a space or a control character in its query");
    }
    if !path.starts_with('/') {
        return Err("does not begin with `/`");
    }
    if path.len() > limits.path_bytes {
        return Err("is too long");
    }
    if path.bytes().filter(|byte| *byte == b'/').count() > limits.path_segments {
        return Err("has too many segments");
    }
    let octets = normalise_octets(path.as_bytes(), Escaped::Decoded)?;
    let normal = remove_dot_segments(&octets)?;
    Ok(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

/// What the upstream gets for a target whose path was not in its normal form, if that is not the
/// target itself: the path as RFC 3986 §6.2.2 normalises it, and the query as it was sent.
///
/// Reserved characters stay escaped. A server decodes them to the name that was judged; sent bare
/// they may mean something else to it, as `+` and `;` do to some.
pub fn sent_on(target: &str) -> Option<String> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let octets = normalise_octets(path.as_bytes(), Escaped::Kept).ok()?;
    let mut sent_on = remove_dot_segments(&octets).ok()?;
    sent_on.extend(target.split_once('?').into_iter().flat_map(|(_, query)| ["?", query]));
    (sent_on != target).then_some(sent_on)
}

/// What becomes of escaped reserved characters (RFC 3986 §2.2) that a segment may hold bare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escaped {
    Decoded,
    Kept,
}

/// The path of a target if it needs no closer look: no escape, no repeated slash, no segment that begins with a dot,
/// and nothing in the query that ends a request line.
fn plain_path<'a>(target: &'a str, limits: &Limits) -> Option<&'a str> {
    let (mut previous, mut slashes) = (0, 0_usize);
    let mut rest = target.bytes();
    for byte in &mut rest {
        let plain = match byte {
            b'?' => break,
            b'/' | b'.' => previous != b'/',
            _ => is_segment_octet(byte),
        };
        if !plain {
            return None;
        }
        slashes += usize::from(byte == b'/');
        previous = byte;
    }
    let query = rest.len();
    if rest.any(|byte| byte <= b' ' || byte == 0x7f) {
        return None;
    }
    let end = target.len() - query;
    let path = target.get(..end)?;
    let path = path.strip_suffix('?').unwrap_or(path);
    let fits =
        path.starts_with('/') && path.len() <= limits.path_bytes && slashes <= limits.path_segments;
    fits.then_some(path)
}

/// `pchar` without escapes (RFC 3986 §3.3). One pattern, of which the compiler makes a set of bits: it is asked of
/// every octet of every path.
const fn is_segment_octet(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&'..=b'.' | b'0'..=b';' | b'=' | b'@'..=b'Z' | b'_' | b'a'..=b'z' | b'~')
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Gives every octet its one spelling. A `/` that it returns was one in `path`.
fn normalise_octets(path: &[u8], reserved: Escaped) -> Result<String, &'static str> {
    let mut normal = String::with_capacity(path.len());
    let mut rest = path.iter().copied();
    while let Some(byte) = rest.next() {
        let octet = match byte {
            b'/' => {
                normal.push('/');
                continue;
            }
            b'%' => match (rest.next().and_then(hex_value), rest.next().and_then(hex_value)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err("has an invalid escape"),
            },
            0x80.. => return Err("has an octet outside ASCII that is not escaped"),
            b' ' => return Err("has a space"),
            b'#' => return Err("has a fragment"),
            _ => byte,
        };
        match octet {
            b'/' => return Err("has an encoded `/`"),
            b'\\' => return Err("has a `\\`"),
            0x00..=0x1f | 0x7f => return Err("has a control character"),
            _ if is_segment_octet(octet)
                && (byte != b'%' || is_unreserved(octet) || reserved == Escaped::Decoded) =>
            {
                normal.push(char::from(octet));
            }
            _ => {
                normal.push('%');
                normal.push(hex_digit(octet >> 4));
                normal.push(hex_digit(octet & 0x0f));
            }
        }
    }
    Ok(normal)
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn hex_digit(value: u8) -> char {
    char::from_digit(u32::from(value), 16).unwrap_or_default().to_ascii_uppercase()
}

/// RFC 3986 §5.2.4, with repeated slashes collapsed. The two commute as long as no `..` takes an
/// empty segment away, so that is refused.
fn remove_dot_segments(path: &str) -> Result<String, &'static str> {
    let mut kept: Vec<&str> = Vec::new();
    let mut last = "";
    for segment in path.split('/').skip(1) {
        let name = segment.split_once(';').map_or(segment, |(name, _)| name);
        if name.len() < segment.len() && matches!(name, "." | "..") {
            return Err("has a dot segment with parameters");
        }
        match segment {
            "." => {}
            ".." => match kept.pop() {
                None => return Err("leads above the root"),
                Some("") => return Err("has `..` behind an empty segment"),
                Some(_) => {}
            },
            _ => kept.push(segment),
        }
        last = segment;
    }
    let mut normal = String::with_capacity(path.len());
    for segment in kept.iter().filter(|segment| !segment.is_empty()) {
        normal.push('/');
        normal.push_str(segment);
    }
    if matches!(last, "" | "." | "..") {
        normal.push('/');
    }
    Ok(normal)
}

/// A path in its normal form without the parameters of its segments (RFC 3986 §3.3), if it has any.
pub(crate) fn without_parameters(path: &str) -> Option<String> {
    if !path.contains(';') {
        return None;
    }
    let mut bare = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split_once(';').map_or(segment, |(name, _)| name);
        // Whoever cuts parameters off also collapses the slashes that this leaves.
        if !name.is_empty() || segments.peek().is_none() {
            bare.push('/');
            bare.push_str(name);
        }
    }
    Some(bare)
}

/// Whether a path in its normal form matches one of `patterns`, which [`normalise_pattern`] returned.
/// Unknown if it does so only for some `sub`, and that of the caller is unknown.
pub(super) fn matches_any(patterns: &Values, path: &str, subjects: &Fact) -> Truth {
    let known = subjects.values();
    let is_subject = |segment: &str| {
        known.is_some_and(|subjects| subjects.iter().any(|subject| is_escaped(subject, segment)))
    };
    if patterns.matches_by(|pattern, path| matches(pattern, path, is_subject), path) {
        return Truth::Yes;
    }
    let perhaps = known.is_none()
        && patterns.matches_by(|pattern, path| matches(pattern, path, |_| true), path);
    if perhaps { Truth::Unknown } else { Truth::No }
}

/// Whether one of `patterns` has the variable.
pub(super) fn name_subject(patterns: &Values) -> bool {
    // Nearly none has a brace.
    let mut texts = patterns.texts().filter(|text| text.contains('{'));
    texts.any(|text| text.split('/').any(|segment| segment == SUBJECT))
}

/// Whether `segment`, in its normal form, is `text`. There is no segment for a text that is empty, or has a
/// `/`, or is `.` or `..`: a normal path has no such ones.
fn is_escaped(text: &str, segment: &str) -> bool {
    let mut wanted = text.bytes();
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        let octet = match byte {
            // INVARIANT: in the normal form two digits follow.
            b'%' => match (rest.next().and_then(hex_value), rest.next().and_then(hex_value)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return false,
            },
            _ => byte,
        };
        if wanted.next() != Some(octet) {
            return false;
        }
    }
    wanted.next().is_none()
}

fn matches(pattern: &str, path: &str, is_subject: impl Fn(&str) -> bool) -> bool {
    // Most patterns are the path's own words, and then, perhaps, `**`.
    let before = pattern.strip_suffix("/**");
    let behind = path.strip_prefix(before.unwrap_or(pattern));
    if behind.is_some_and(|behind| {
        behind.is_empty() || (before.is_some() && behind.as_bytes().first() == Some(&b'/'))
    }) {
        return true;
    }
    if differ_at_once(pattern, path) {
        return false;
    }
    let (wanted, rest) = pattern_segments(pattern);
    let mut given = path.split('/').skip(1);
    for wanted in wanted {
        let Some(segment) = given.next() else { return false };
        if wanted == SUBJECT {
            if segment.is_empty() || !is_subject(segment) {
                return false;
            }
            continue;
        }
        // A wildcard stands for nothing within a segment, but not for a segment that is not there.
        if wanted != segment && (segment.is_empty() || !glob::matches(wanted, segment)) {
            return false;
        }
    }
    rest || given.next().is_none()
}

/// Whether they differ before the pattern's first wildcard or variable, as most that do not match do.
fn differ_at_once(pattern: &str, path: &str) -> bool {
    let both = pattern.bytes().zip(path.bytes());
    let mut fixed = both.take_while(|(wanted, _)| !matches!(wanted, b'*' | b'{'));
    fixed.any(|(wanted, given)| wanted != given)
}

/// The segments of a pattern before `**`, and whether it ends with that.
fn pattern_segments(text: &str) -> (impl Iterator<Item = &str>, bool) {
    let before = text.strip_suffix("/**");
    (before.unwrap_or(text).split('/').skip(1), before.is_some())
}

/// The keys of a pattern's segments before `**`, and whether it ends with that.
pub(super) fn pattern_keys(text: &str) -> (impl Iterator<Item = Key<'_>>, bool) {
    let (segments, rest) = pattern_segments(text);
    let key = |segment| match segment {
        // It may be anything.
        SUBJECT => Key::Prefix(""),
        segment => Key::of(segment),
    };
    (segments.map(key), rest)
}

/// Whether every path that the pattern `narrow` matches is one that `wide` matches. A wildcard of `wide` takes
/// anything, also one of `narrow`.
#[cfg(feature = "explain")]
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    let (wanted, rest) = pattern_segments(wide);
    let (mut given, open) = pattern_segments(narrow);
    for wanted in wanted {
        let Some(segment) = given.next() else { return false };
        let within = wanted != SUBJECT && !segment.is_empty() && glob::matches(wanted, segment);
        if wanted != segment && !within {
            return false;
        }
    }
    rest || (!open && given.next().is_none())
}

/// The normal form of a rule's path pattern.
///
/// `*` is any run of characters within one segment that is not empty, `**` as the last segment is
/// everything that follows, also nothing: `/a/**` matches `/a`, `/a/` and `/a/b/c`. `{sub}` is one whole
/// segment that is the `sub` of the caller's access token.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub(super) fn normalise_pattern(text: &str, limits: &Limits) -> Result<String, &'static str> {
    if text.contains('?') {
        return Err("has a query: only paths are matched");
    }
    let normal = normalise(text, limits)?.into_owned();
    // These are put right in a request; in a rule they are a mistake.
    if normal != normalise_octets(text.as_bytes(), Escaped::Decoded)? {
        return Err("has empty or dot segments");
    }
    let normal = with_variables(text, &normal)?;
    let mut segments = normal.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment.contains("**") && (segment != "**" || segments.peek().is_some()) {
            return Err("has `**` elsewhere than as its last segment");
        }
    }
    Ok(normal)
}

/// The normal form of a pattern with its variables as they were written: both have the same segments.
fn with_variables(text: &str, normal: &str) -> Result<String, &'static str> {
    let mut whole = String::with_capacity(normal.len());
    for (written, segment) in text.split('/').zip(normal.split('/')).skip(1) {
        whole.push('/');
        whole.push_str(match written {
            SUBJECT => SUBJECT,
            _ if written.contains(['{', '}']) => {
                return Err("has braces: the only variable is `{sub}`, a whole segment; \
                            a brace itself is written `%7B` or `%7D`");
            }
            _ => segment,
        });
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(target: &str) -> Result<String, &'static str> {
        normalise(target, &Limits::DEFAULT).map(Cow::into_owned)
    }

    #[test]
    fn a_path_has_one_normal_form() {
        for (target, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a?b=/../c", "/a"),
            ("/?", "/"),
            ("/%61%2d%2E%5f%7e", "/a-._~"),
            ("/a%3ab%40%21%3b%2B", "/a:b@!;+"),
            ("/a%20b%c3%a9", "/a%20b%C3%A9"),
            ("/a[b]{c}|d^e`f\"g<h>", "/a%5Bb%5D%7Bc%7D%7Cd%5Ee%60f%22g%3Ch%3E"),
            ("/%25%3f%23", "/%25%3F%23"),
            ("/a//b///c", "/a/b/c"),
            ("//", "/"),
            ("//a", "/a"),
            ("/a//", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/.", "/"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/..b/c..", "/a/..b/c.."),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/*", "/*"),
        ] {
            assert_eq!(normal(target).as_deref(), Ok(expected), "{target}");
        }
    }

    #[test]
    fn what_servers_read_differently_is_refused() {
        for target in [
            "",
            "*",
            "a",
            "?a",
            "http://a/b",
            "a:443",
            "/a%2fb",
            "/a%2Fb",
            "/a\\b",
            "/a%5cb",
            "/a%00",
            "/\0",
            "/a%0a",
            "/a\t",
            "/%7f",
            "/a b",
            "/%",
            "/%4",
            "/%g0",
            "/%0",
            "/%+1",
            "/\u{fc}",
            "/a#b",
            "/..",
            "/a/../..",
            "/%2e%2e",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/.;/b",
            "/a/%2e%2e%3b/b",
            "/a//../b",
            "/a//./../b",
            "/a//b/../..",
        ] {
            assert!(normal(target).is_err(), "{target:?} became {:?}", normal(target));
        }
    }

    #[test]
    fn what_is_sent_on_keeps_reserved_characters_escaped() {
        for (target, expected) in [
            ("/a%2bb%3Bc?x=%2b", Some("/a%2Bb%3Bc?x=%2b")),
            ("/a%2Bb", None),
            ("/%61//b/../c%3A?", Some("/a/c%3A?")),
            ("/a+b;c", None),
            ("/a%20b[", Some("/a%20b%5B")),
        ] {
            assert_eq!(sent_on(target).as_deref(), expected, "{target}");
            let sent_on = sent_on(target).unwrap_or_else(|| target.to_owned());
            assert_eq!(normal(&sent_on), normal(target), "it is the path that was judged");
        }
    }

    #[test]
    fn parameters_are_cut_off_every_segment() {
        assert_eq!(without_parameters("/a/b"), None);
        for (path, bare) in
            [("/a;x/b", "/a/b"), ("/a;x=1;y/b;", "/a/b"), ("/;a/;/b", "/b"), ("/a/;", "/a/")]
        {
            assert_eq!(without_parameters(path).as_deref(), Some(bare), "{path}");
        }
    }

    #[test]
    fn a_query_that_would_end_the_request_line_is_refused() {
        for target in ["/a?b HTTP/1.1", "/a?b\tc", "/a?\u{7f}"] {
            assert!(normal(target).is_err(), "{target:?}");
        }
        assert_eq!(normal("/a?b=%20\u{fc}").as_deref(), Ok("/a"));
    }

    #[test]
    fn the_octets_of_a_segment_are_those_of_the_rfc() {
        // RFC 3986 §3.3: `unreserved`, `sub-delims`, `:` and `@`.
        let pchar =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@";
        for octet in 0..=u8::MAX {
            assert_eq!(is_segment_octet(octet), pchar.contains(&octet), "{octet:#x}");
        }
    }

    #[test]
    fn a_path_in_normal_form_is_not_copied() {
        for target in ["/", "/v1/orders/7?x=1", "/a%20b", "/.well-known/a"] {
            let path = normalise(target, &Limits::DEFAULT).unwrap();
            assert!(matches!(path, Cow::Borrowed(_)), "{target}");
        }
    }

    #[test]
    fn length_and_number_of_segments_are_bounded() {
        let limits = Limits { path_bytes: 8, path_segments: 3, ..Limits::DEFAULT };
        assert!(normalise("/a/b/c?long-query", &limits).is_ok());
        assert!(normalise("/a/b/c/", &limits).is_err());
        assert!(normalise("/123456789", &limits).is_err());
    }

    #[test]
    fn the_normal_form_is_its_own_normal_form() {
        // Every path of up to five pieces out of those that mean something.
        let pieces = ["/", "a", ".", "%2e", "%2E", "%25", "%2f", ";", "%61", "[", "%c3", "*"];
        let mut checked = 0;
        for number in 0..pieces.len().pow(5) {
            let (mut number, mut target) = (number, String::from("/"));
            while number > 0 {
                target.push_str(pieces[number % pieces.len()]);
                number /= pieces.len();
            }
            if let Ok(once) = normal(&target) {
                assert_eq!(normal(&once).as_deref(), Ok(once.as_str()), "{target}");
                checked += 1;
            }
        }
        assert!(checked > 50_000, "{checked}");
    }

    #[test]
    fn patterns_match_whole_segments() {
        for (pattern, matching, other) in [
            ("/v1/orders", &["/v1/orders"][..], &["/v1/orders/", "/v1", "/v1/orders/7"][..]),
            ("/v1/orders/", &["/v1/orders/"], &["/v1/orders"]),
            ("/v1/*", &["/v1/a"], &["/v1/", "/v1", "/v1/a/", "/v1/a/b"]),
            ("/v1/*/items", &["/v1/a/items"], &["/v1/items", "/v1/a/b/items", "/v1//items"]),
            ("/v1/ds_*x", &["/v1/ds_x", "/v1/ds_1x"], &["/v1/ds_", "/v1/DS_x"]),
            ("/v1/**", &["/v1", "/v1/", "/v1/a/b/"], &["/v2", "/v1a", "/"]),
            ("/**", &["/", "/a", "/a/b/"], &[]),
            ("/caf%c3%a9%3a", &["/caf%C3%A9:"], &["/cafe"]),
            ("/", &["/"], &["/a"]),
        ] {
            let normal = normalise_pattern(pattern, &Limits::DEFAULT).unwrap();
            let paths = Values::new([normal.as_str()]);
            for path in matching {
                assert_eq!(
                    matches_any(&paths, path, &Fact::Unknown),
                    Truth::Yes,
                    "{pattern} {path}"
                );
            }
            for path in other {
                assert_eq!(
                    matches_any(&paths, path, &Fact::Unknown),
                    Truth::No,
                    "{pattern} {path}"
                );
            }
        }
    }

    #[test]
    fn a_variable_is_one_whole_segment_that_is_the_callers_subject() {
        let patterns = ["/t/{sub}/run", "/own/{sub}", "/tree/{sub}/**", "/lit/%7Bsub%7D"];
        let normal = patterns.map(|text| normalise_pattern(text, &Limits::DEFAULT).unwrap());
        let paths = Values::new(normal.iter().map(String::as_str));
        assert!(name_subject(&paths));
        assert!(!name_subject(&Values::new([normal[3].as_str()])));
        for (subject, target, expected) in [
            ("7f-e", "/t/7f-e/run", Truth::Yes),
            ("7f-e", "/t/%37f%2De/run", Truth::Yes),
            ("7f-e", "/t/7f-E/run", Truth::No),
            ("7f-e", "/t/7f-ee/run", Truth::No),
            ("7f-e", "/t/7f-/run", Truth::No),
            ("7f-e", "/t/7f-e", Truth::No),
            ("7f-e", "/t/7f-e;x/run", Truth::No),
            ("7f-e", "/tree/7f-e", Truth::Yes),
            ("7f-e", "/tree/7f-e/a/b", Truth::Yes),
            ("7f-e", "/tree/other/a", Truth::No),
            ("a b\u{fc}%", "/own/a%20b%c3%bc%25", Truth::Yes),
            ("a%20b", "/own/a%20b", Truth::No),
            ("a:b@c", "/own/a%3ab@c", Truth::Yes),
            ("*", "/own/anything", Truth::No),
            ("*", "/own/*", Truth::Yes),
            ("a/b", "/own/a/b", Truth::No),
            ("", "/own/", Truth::No),
            ("", "/own", Truth::No),
            ("..", "/own/x", Truth::No),
            ("{sub}", "/own/%7Bsub%7D", Truth::Yes),
            ("x", "/own/%7Bsub%7D", Truth::No),
            ("x", "/lit/%7Bsub%7D", Truth::Yes),
            ("x", "/lit/x", Truth::No),
        ] {
            let path = normalise(target, &Limits::DEFAULT).unwrap();
            let found = matches_any(&paths, &path, &Fact::one(subject));
            assert_eq!(found, expected, "{subject} {target}");
        }
        for (path, expected) in [
            ("/t/anybody/run", Truth::Unknown),
            ("/t//run", Truth::No),
            ("/t/anybody/stop", Truth::No),
            ("/own/", Truth::No),
            ("/lit/%7Bsub%7D", Truth::Yes),
        ] {
            assert_eq!(matches_any(&paths, path, &Fact::Unknown), expected, "{path}");
            let nobody = Fact::Known(Vec::new());
            assert_ne!(matches_any(&paths, path, &nobody), Truth::Unknown, "{path}");
        }
    }

    #[test]
    fn braces_that_are_no_variable_are_refused_with_how_to_write_them() {
        for pattern in ["/{id}", "/a{sub}", "/{sub}a", "/{sub}*", "/{", "/}", "/{Sub}", "/%7b{sub}"]
        {
            let problem = normalise_pattern(pattern, &Limits::DEFAULT).unwrap_err();
            assert!(
                problem.contains("`{sub}`") && problem.contains("`%7B`"),
                "{pattern}: {problem}"
            );
        }
        let literal = normalise_pattern("/%7Bid%7d", &Limits::DEFAULT);
        assert_eq!(literal.as_deref(), Ok("/%7Bid%7D"));
    }

    #[test]
    fn patterns_that_could_be_misread_are_refused() {
        for pattern in [
            "", "a", "*", "**", "/a/**/b", "/a**", "/**a", "/a/../b", "/a/./b", "/a//b", "/a/.",
            "/..", "/a?b", "/a#b", "/a%2fb", "/a\\b", "/%zz", "/\u{fc}", "/a/***",
        ] {
            assert!(normalise_pattern(pattern, &Limits::DEFAULT).is_err(), "{pattern}");
        }
    }
}
