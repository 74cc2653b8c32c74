//! Where a request has its credentials, and what they are: byte strings that nobody has believed yet.
//!
//! In their headers; by configuration also in `proxy-authorization`, as clients of a proxy send them, or
//! the access token in a cookie, as browsers do ([`Ways`]).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::arrival::{IDENTITY_HEADER, PROXY_HEADER, Request};
use crate::configuration::{Requirement, Ways};
use crate::credential::Presented;
use crate::limits::Limits;
use crate::reject::{Code, Credential, Reject};

/// The user of `proxy-authorization` who has no access token.
const NOBODY: &[u8] = b"airflow";

/// The credentials of a request, each if it is looked at and there.
#[derive(Default)]
pub(super) struct Credentials<'a> {
    pub(super) token: Option<Cow<'a, [u8]>>,
    pub(super) identity: Option<Cow<'a, [u8]>>,
}

/// Who looks for credentials: whether each of the two is looked at, and where.
#[derive(Clone, Copy)]
pub(super) struct Look<'g> {
    pub(super) token: Requirement,
    pub(super) identity: Requirement,
    pub(super) ways: &'g Ways,
    pub(super) limits: &'g Limits,
}

impl<'a> Credentials<'a> {
    /// Finds them.
    ///
    /// # Errors
    /// `token_scheme_unsupported`; `request_malformed` for a `proxy-authorization` or a cookie that cannot
    /// be read; `header_repeated` for a cookie that occurs twice; `*_ambiguous` for two credentials of one
    /// kind that do not speak for the same caller; `*_malformed` and the like for such that cannot be
    /// compared.
    pub(super) fn find(
        request: &Request<'a>,
        headers: &[(&'a [u8], &'a [u8])],
        look: Look<'_>,
    ) -> Result<Self, Reject> {
        let mut token = look.token.wants(|| bearer(request))?.flatten().map(Cow::Borrowed);
        let mut identity =
            look.identity.wants(|| Ok(request.identity))?.flatten().map(Cow::Borrowed);
        match (look.ways, request.proxy_authorization) {
            (Ways::Proxy, Some(value)) => {
                let by_proxy = Self::basic(value, look)?;
                let limits = look.limits;
                token = one(token, by_proxy.token, Credential::Token, limits)?;
                identity = one(identity, by_proxy.identity, Credential::Identity, limits)?;
            }
            (Ways::Cookie(name), _) => {
                let cookies = Cookies::read(headers, name)?;
                token = token.or(cookies.token.map(Cow::Borrowed));
            }
            (Ways::Headers | Ways::Proxy, _) => {}
        }
        Ok(Self { token, identity })
    }

    /// `Basic` and the canonical base64 of `user:password` (RFC 7617 §2): the access token, or `airflow`
    /// for none, and the Airflow identity, or nothing for none.
    fn basic(value: &[u8], look: Look<'_>) -> Result<Self, Reject> {
        let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
        let (scheme, encoded) = value.split_at_checked(end).unwrap_or((value, &[]));
        if !scheme.eq_ignore_ascii_case(b"basic") {
            // The scheme is not quoted, as with `authorization`.
            let detail = format!(
                "header `{PROXY_HEADER}` is not `Basic` and the access token and the Airflow identity as user and password"
            );
            return Err(Reject::new(Code::TokenSchemeUnsupported, detail));
        }
        let encoded = encoded.trim_ascii();
        // Two credentials and a colon, four octets for three.
        let most = look.limits.token_bytes.saturating_mul(2).saturating_add(3) / 3 * 4;
        if encoded.len() > most {
            let detail =
                format!("header `{PROXY_HEADER}` has {} bytes, allowed: {most}", encoded.len());
            return Err(Reject::new(Code::TokenTooLarge, detail));
        }
        let malformed = |problem| {
            let detail = format!("header `{PROXY_HEADER}` {problem}");
            Err(Reject::new(Code::RequestMalformed, detail))
        };
        let Ok(mut user) = STANDARD.decode(encoded) else {
            return malformed("is not canonical base64");
        };
        let Some(colon) = user.iter().position(|byte| *byte == b':') else {
            return malformed("has no colon between user and password");
        };
        let mut password = user.split_off(colon);
        password.remove(0);
        if user.is_empty() && look.token != Requirement::Off {
            return malformed("has no user; without an access token it is `airflow`");
        }
        let token = (look.token != Requirement::Off && user != NOBODY).then_some(user);
        let identity =
            (look.identity != Requirement::Off && !password.is_empty()).then_some(password);
        Ok(Self { token: token.map(Cow::Owned), identity: identity.map(Cow::Owned) })
    }
}

/// The credential that counts, of one that came in its own header and one that came for the proxy. Clients
/// send both where an Airflow connection is called through the proxy: each was read at another time, so they
/// differ byte for byte, but they must speak for the same caller. It is the caller's own word that is
/// compared, as with the plain headers; what counts is verified.
fn one<'a>(
    own: Option<Cow<'a, [u8]>>,
    by_proxy: Option<Cow<'a, [u8]>>,
    credential: Credential,
    limits: &Limits,
) -> Result<Option<Cow<'a, [u8]>>, Reject> {
    let (Some(own), Some(by_proxy)) = (&own, &by_proxy) else { return Ok(own.or(by_proxy)) };
    if own != by_proxy {
        let read = |text| Presented::parse(text, credential, limits);
        if !read(own)?.speaks_for_the_caller_of(&read(by_proxy)?) {
            let (code, header, what) = match credential {
                Credential::Token => (Code::TokenAmbiguous, "authorization", "`iss` and `sub`"),
                Credential::Identity => (
                    Code::IdentityAmbiguous,
                    IDENTITY_HEADER,
                    "`iss`, `sub`, run, map index and try",
                ),
            };
            let noun = credential.noun();
            let detail = format!(
                "the {noun} of header `{header}` and that of header `{PROXY_HEADER}` differ in {what}"
            );
            return Err(Reject::new(code, detail));
        }
    }
    Ok(Some(own.clone()))
}

/// The token of `authorization: Bearer …` (RFC 6750 §2.1); the scheme is case-insensitive (RFC 9110 §11.1).
fn bearer<'a>(request: &Request<'a>) -> Result<Option<&'a [u8]>, Reject> {
    let Some(value) = request.authorization else { return Ok(None) };
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at_checked(end).unwrap_or((value, &[]));
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        // The scheme is not quoted: a token sent without one would stand in its place.
        let detail = "header `authorization` is not `Bearer` and a token";
        return Err(Reject::new(Code::TokenSchemeUnsupported, detail));
    }
    Ok(Some(token.trim_ascii()))
}

/// The cookies of a request (RFC 6265 §4.2.1), several headers as one: browsers that speak HTTP/2 send
/// several (RFC 9113 §8.2.3).
pub(super) struct Cookies<'a> {
    /// The value of the cookie that is looked for.
    pub(super) token: Option<&'a [u8]>,
    /// Whether there is such a cookie, also one without a value.
    found: bool,
}

impl<'a> Cookies<'a> {
    /// Looks for the cookie `name`.
    pub(super) fn read(headers: &[(&'a [u8], &'a [u8])], name: &str) -> Result<Self, Reject> {
        let mut cookies = Self { token: None, found: false };
        for header in cookie_headers(headers) {
            let Ok(header) = std::str::from_utf8(header) else {
                let detail = "header `cookie` is not UTF-8";
                return Err(Reject::new(Code::RequestMalformed, detail));
            };
            for value in header.split(';').filter_map(|pair| value_of(pair, name)) {
                if std::mem::replace(&mut cookies.found, true) {
                    let detail = format!("cookie `{name}` occurs more than once");
                    return Err(Reject::new(Code::HeaderRepeated, detail));
                }
                // An empty one is how a server takes a cookie back.
                cookies.token = (!value.is_empty()).then_some(value.as_bytes());
            }
        }
        Ok(cookies)
    }

    /// What is left of the cookies without `name`, unless that is nothing; [`Self::find`] found no fault
    /// with them. `None` if there is no such cookie.
    pub(super) fn without(headers: &[(&[u8], &[u8])], name: &str) -> Option<String> {
        let mut found = false;
        let mut kept = String::new();
        for header in cookie_headers(headers).filter_map(|value| std::str::from_utf8(value).ok()) {
            for pair in header.split(';') {
                if value_of(pair, name).is_some() {
                    found = true;
                } else if !pair.trim().is_empty() {
                    kept.push_str(if kept.is_empty() { "" } else { "; " });
                    kept.push_str(pair.trim());
                }
            }
        }
        found.then_some(kept)
    }
}

fn cookie_headers<'a>(headers: &[(&'a [u8], &'a [u8])]) -> impl Iterator<Item = &'a [u8]> {
    let named = |name: &[u8]| name.eq_ignore_ascii_case(b"cookie");
    headers.iter().filter(move |(known, _)| named(known)).map(|(_, value)| *value)
}

/// The value of a cookie pair, if it is called `name` by any server: some strip more around the name than
/// RFC 6265 has there.
fn value_of<'p>(pair: &'p str, name: &str) -> Option<&'p str> {
    let blank = |character: char| character.is_whitespace() || character.is_control();
    let (known, value) = pair.split_once('=')?;
    (known.trim_matches(blank) == name).then(|| value.trim_matches(blank))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token and identity.
    type Found = (Option<Vec<u8>>, Option<Vec<u8>>);

    fn look(ways: &Ways) -> Look<'_> {
        let (token, identity) = (Requirement::Optional, Requirement::Optional);
        Look { token, identity, ways, limits: &Limits::DEFAULT }
    }

    fn find<'a>(more: &[(&'a [u8], &'a [u8])], look: Look<'_>) -> Result<Found, Code> {
        let pseudo: [(&[u8], &[u8]); 3] =
            [(b":method", b"GET"), (b":authority", b"a"), (b":path", b"/")];
        let headers = [&pseudo, more].concat();
        let request = Request::read(&headers).unwrap();
        let found = Credentials::find(&request, &headers, look).map_err(|reject| reject.code)?;
        Ok((found.token.map(Cow::into_owned), found.identity.map(Cow::into_owned)))
    }

    fn some(text: &str) -> Option<Vec<u8>> {
        (!text.is_empty()).then(|| text.as_bytes().to_vec())
    }

    #[test]
    fn user_and_password_are_token_and_identity() {
        for (user, token, identity) in [
            ("t:i", "t", "i"),
            ("airflow:i", "", "i"),
            ("t:", "t", ""),
            ("airflow:", "", ""),
            ("t:i:j", "t", "i:j"),
            ("Airflow:i", "Airflow", "i"),
        ] {
            let value = format!("bAsIc   {}", STANDARD.encode(user));
            let headers = [(&b"proxy-authorization"[..], value.as_bytes())];
            let found = find(&headers, look(&Ways::Proxy));
            assert_eq!(found, Ok((some(token), some(identity))), "{user}");
            let ignored = find(&headers, look(&Ways::Headers));
            assert_eq!(ignored, Ok((None, None)), "not configured: {user}");
        }
    }

    #[test]
    fn what_is_not_looked_at_is_not_read() {
        let value = format!("Basic {}", STANDARD.encode(":i"));
        let headers = [(&b"proxy-authorization"[..], value.as_bytes())];
        let without_token = Look { token: Requirement::Off, ..look(&Ways::Proxy) };
        assert_eq!(find(&headers, without_token), Ok((None, some("i"))));
        assert_eq!(find(&headers, look(&Ways::Proxy)), Err(Code::RequestMalformed));
        let value = format!("Basic {}", STANDARD.encode("t:i"));
        let headers = [(&b"proxy-authorization"[..], value.as_bytes())];
        let without_identity = Look { identity: Requirement::Off, ..look(&Ways::Proxy) };
        assert_eq!(find(&headers, without_identity), Ok((some("t"), None)));
    }

    #[test]
    fn only_canonical_base64_of_user_and_password_is_read() {
        for (value, code) in [
            ("", Code::TokenSchemeUnsupported),
            ("dDpp", Code::TokenSchemeUnsupported),
            ("Bearer dDpp", Code::TokenSchemeUnsupported),
            ("Basic\tdDpp", Code::TokenSchemeUnsupported),
            ("Basic", Code::RequestMalformed),
            ("Basic ", Code::RequestMalformed),
            ("Basic dGk=", Code::RequestMalformed),
            ("Basic Oml=", Code::RequestMalformed),
            ("Basic Omk=", Code::RequestMalformed),
            ("Basic dDppag", Code::RequestMalformed),
            ("Basic dDppag=", Code::RequestMalformed),
            ("Basic dDppah==", Code::RequestMalformed),
            ("Basic dDp p", Code::RequestMalformed),
            ("Basic dDp-", Code::RequestMalformed),
            ("Basic dDpp, Basic dDpp", Code::RequestMalformed),
        ] {
            let headers = [(&b"proxy-authorization"[..], value.as_bytes())];
            assert_eq!(find(&headers, look(&Ways::Proxy)), Err(code), "{value}");
        }
        let long = format!("Basic {}", STANDARD.encode([b'a'; 40_000]));
        let headers = [(&b"proxy-authorization"[..], long.as_bytes())];
        assert_eq!(find(&headers, look(&Ways::Proxy)), Err(Code::TokenTooLarge));
    }

    #[test]
    fn a_cookie_is_the_token_if_nothing_else_is() {
        let ways = Ways::Cookie("_token".into());
        for (cookies, token) in [
            (&["_token=t"][..], "t"),
            (&["a=b; _token=t;c=d"], "t"),
            (&["a=b", "_token=t"], "t"),
            (&["a=b;  \u{a0}_token = t "], "t"),
            (&["_token=t=="], "t=="),
            (&["_token=\"t\""], "\"t\""),
            (&["_token="], ""),
            (&["_token"], ""),
            (&["__token=t; _tokens=t; _TOKEN=t; a=_token=t"], ""),
        ] {
            let headers: Vec<(&[u8], &[u8])> =
                cookies.iter().map(|value| (&b"Cookie"[..], value.as_bytes())).collect();
            assert_eq!(find(&headers, look(&ways)), Ok((some(token), None)), "{cookies:?}");
            assert_eq!(find(&headers, look(&Ways::Headers)), Ok((None, None)));
            let header = (&b"authorization"[..], &b"Bearer h"[..]);
            let both = [&headers[..], &[header]].concat();
            assert_eq!(find(&both, look(&ways)), Ok((some("h"), None)), "{cookies:?}");
        }
        for cookies in
            [&["_token=t; _token=t"][..], &["_token=t", "_token="], &["_token=;_token =t"]]
        {
            let headers: Vec<(&[u8], &[u8])> =
                cookies.iter().map(|value| (&b"cookie"[..], value.as_bytes())).collect();
            assert_eq!(find(&headers, look(&ways)), Err(Code::HeaderRepeated), "{cookies:?}");
        }
        let bytes = [(&b"cookie"[..], &b"a=\xff"[..])];
        assert_eq!(find(&bytes, look(&ways)), Err(Code::RequestMalformed));
        assert_eq!(find(&bytes, look(&Ways::Headers)), Ok((None, None)));
    }

    #[test]
    fn other_cookies_are_left() {
        for (cookies, left) in [
            (&["_token=t"][..], Some("")),
            (&["a=b; _token=t;c=d; "], Some("a=b; c=d")),
            (&["a=b", "_token =t", "c"], Some("a=b; c")),
            (&["a=b; c=d"], None),
            (&[], None),
        ] {
            let headers: Vec<(&[u8], &[u8])> =
                cookies.iter().map(|value| (&b"cookie"[..], value.as_bytes())).collect();
            assert_eq!(Cookies::without(&headers, "_token").as_deref(), left, "{cookies:?}");
        }
    }
}
