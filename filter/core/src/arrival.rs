//! A request as it arrives: the headers that decide, each exactly once.
//!
//! One pass over the whole header map. Reading a header by name would show only the first of
//! repeated values, and the upstream may act on another one.

use std::fmt;

use crate::facts::Call;
use crate::hexadecimal;
use crate::reject::{Code, Reject};

/// A request's header map and what the host knows about the request.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// The host's number of the stream.
    pub stream: StreamId,
    /// All headers with the pseudo-headers, in order, repeated ones repeated.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// What the host knows about the client's certificate, as [`crate::peer`] reads it; `None` if it says
    /// nothing. Asked for only if [`crate::gate::Gate::wants_peer`].
    pub peer: Option<&'a [u8]>,
    /// The time.
    pub now: crate::time::UnixTime,
    /// A fresh id for the decision.
    pub decision_id: DecisionId,
}

/// The host's number of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// Names one decision in the reply, the logs and towards the upstream: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecisionId([u8; 32]);

impl DecisionId {
    /// From a random number of the worker and a count within it.
    pub fn new(worker: u64, count: u64) -> Self {
        let mut digits = [0; 32];
        let (halves, _) = digits.as_chunks_mut();
        for (half, number) in halves.iter_mut().zip([worker, count]) {
            *half = hexadecimal::digits(number);
        }
        Self(digits)
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for DecisionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The header that carries the Airflow identity.
pub const IDENTITY_HEADER: &str = "x-airflow-identity";

/// The header that carries credentials for a proxy (RFC 9110 §11.7.2).
pub const PROXY_HEADER: &str = "proxy-authorization";

/// The header by which the upstream learns the decision's name.
pub const DECISION_HEADER: &str = "x-airflow-decision-id";

/// The method that asks for a tunnel (RFC 9110 §9.3.6).
pub const CONNECT: &str = "CONNECT";

/// The plain headers of the Airflow family, in the order of [`Request::plain`].
pub const PLAIN_HEADERS: [&str; 5] = [
    "x-airflow-dag-id",
    "x-airflow-task-id",
    "x-airflow-run-id",
    "x-airflow-try-number",
    "x-airflow-map-index",
];

/// The header by which an Airflow connection asks for credentials: a request that still has it was
/// not served by the plugin on Airflow's side.
const MARKER_HEADER: &str = "x-airflow-envoy";

/// Headers by which frameworks let a caller replace the method or the path of the request line. An upstream that
/// obeys one does something else than what the policy judged.
const OVERRIDES: [&str; 6] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-url",
    "x-rewrite-url",
];

/// Every header of the family begins so, in any case and with `_` for `-`: some upstreams fold the two.
const FAMILY: &[u8; 10] = b"x-airflow-";

/// The headers that decide, borrowed from the header map.
#[derive(Default)]
pub struct Request<'a> {
    /// `:method`.
    pub method: &'a str,
    /// `:authority`.
    pub authority: &'a str,
    /// `:path`; empty for a CONNECT, which has none.
    pub target: &'a str,
    /// `:scheme`.
    pub scheme: &'a str,
    /// `authorization`.
    pub authorization: Option<&'a [u8]>,
    /// `x-airflow-identity`.
    pub identity: Option<&'a [u8]>,
    /// `proxy-authorization`.
    pub proxy_authorization: Option<&'a [u8]>,
    /// Values of [`PLAIN_HEADERS`].
    pub plain: [Option<&'a [u8]>; 5],
    /// What is addressed to the filter or claims to come from it.
    pub addressed: Addressed<'a>,
    /// Whether Airflow's side left its marker in.
    pub marker: bool,
    /// Whether the caller speaks gRPC.
    pub grpc: bool,
}

/// Headers of a request that never go on as they came: those of the family, and `proxy-authorization`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addressed<'a> {
    /// There is an `x-airflow-identity`.
    pub identity: bool,
    /// There is a `proxy-authorization`.
    pub proxy: bool,
    /// Which of [`PLAIN_HEADERS`] there are.
    pub plain: [bool; 5],
    /// There is a [`DECISION_HEADER`].
    pub decision: bool,
    /// The names of all others as the caller wrote them, also those that are one of the above in another spelling.
    pub others: Vec<&'a [u8]>,
}

impl<'a> Addressed<'a> {
    /// Those of a header map.
    pub fn of(headers: &[(&'a [u8], &'a [u8])]) -> Self {
        let mut addressed = Self::default();
        for (name, _) in headers.iter().filter(|(name, _)| ends_here(name)) {
            addressed.note(name);
        }
        addressed
    }

    /// Notes a header that ends here, and tells which one it is, if it is one of those with a meaning.
    fn note(&mut self, name: &'a [u8]) -> Option<Member> {
        let exact = Member::of(name);
        match exact {
            Some(Member::Identity) => self.identity = true,
            Some(Member::Proxy) => self.proxy = true,
            Some(Member::Decision) => self.decision = true,
            Some(Member::Plain(place)) => {
                if let Some(found) = self.plain.get_mut(place) {
                    *found = true;
                }
            }
            Some(Member::Marker) | None => self.others.push(name),
        }
        exact.or_else(|| Member::in_any_spelling(name))
    }
}

/// A header that is addressed to the filter or claims to come from it, with a meaning of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Identity,
    Proxy,
    Decision,
    Marker,
    /// At this place of [`PLAIN_HEADERS`].
    Plain(usize),
}

impl Member {
    /// By exactly this name.
    fn of(name: &[u8]) -> Option<Self> {
        const IDENTITY: &[u8] = IDENTITY_HEADER.as_bytes();
        const PROXY: &[u8] = PROXY_HEADER.as_bytes();
        const DECISION: &[u8] = DECISION_HEADER.as_bytes();
        const MARKER: &[u8] = MARKER_HEADER.as_bytes();
        const PLAIN: [&[u8]; 5] = {
            let [dag, task, run, attempt, map_index] = PLAIN_HEADERS;
            [
                dag.as_bytes(),
                task.as_bytes(),
                run.as_bytes(),
                attempt.as_bytes(),
                map_index.as_bytes(),
            ]
        };
        const DAG: &[u8] = PLAIN[0];
        const TASK: &[u8] = PLAIN[1];
        const RUN: &[u8] = PLAIN[2];
        const TRY: &[u8] = PLAIN[3];
        const MAP_INDEX: &[u8] = PLAIN[4];
        // Constant patterns, which are compared by words; the `memcmp` of wasm goes by bytes.
        Some(match name {
            IDENTITY => Self::Identity,
            DAG => Self::Plain(0),
            TASK => Self::Plain(1),
            RUN => Self::Plain(2),
            TRY => Self::Plain(3),
            MAP_INDEX => Self::Plain(4),
            PROXY => Self::Proxy,
            DECISION => Self::Decision,
            MARKER => Self::Marker,
            _ => return None,
        })
    }

    fn in_any_spelling(name: &[u8]) -> Option<Self> {
        // As long as the longest of them.
        let mut folded = [0; DECISION_HEADER.len()];
        let folded = folded.get_mut(..name.len())?;
        for (place, byte) in folded.iter_mut().zip(name) {
            *place = fold(*byte);
        }
        Self::of(folded)
    }
}

impl<'a> Request<'a> {
    /// Reads the header map.
    ///
    /// # Errors
    /// [`Code::HeaderRepeated`] for a repeated header that decides, [`Code::RequestMalformed`] for a
    /// pseudo-header that is missing or not UTF-8, for a method that an upstream may read as another
    /// one, for a header that replaces the method or the path behind the policy's back, and for a
    /// CONNECT with a path or a protocol.
    pub fn read(headers: &[(&'a [u8], &'a [u8])]) -> Result<Self, Reject> {
        let mut request = Self::default();
        let (mut method, mut authority, mut target, mut scheme) = (None, None, None, None);
        for &(name, value) in headers {
            // Most headers are told by their first letter to be none of these.
            match name.first() {
                Some(b':') => match name {
                    b":method" => once(&mut method, value, ":method")?,
                    b":authority" => once(&mut authority, value, ":authority")?,
                    b":path" => once(&mut target, value, ":path")?,
                    b":scheme" => once(&mut scheme, value, ":scheme")?,
                    // RFC 8441 §4. Where WebSockets over HTTP/2 are wanted, Envoy turns them into the GET of
                    // HTTP/1.1 before any filter sees them; of anything else nobody knows what a rule would mean.
                    b":protocol" => {
                        let detail = "an extended CONNECT (`:protocol`) is not supported";
                        return Err(Reject::new(Code::RequestMalformed, detail));
                    }
                    _ => {}
                },
                Some(b'a' | b'A') if name.eq_ignore_ascii_case(b"authorization") => {
                    once(&mut request.authorization, value, "authorization")?;
                }
                Some(b'c' | b'C') if name.eq_ignore_ascii_case(b"content-type") => {
                    request.grpc |= is_grpc(value);
                }
                Some(b'p' | b'P') if is_for_proxy(name) => {
                    request.addressed.note(name);
                    once(&mut request.proxy_authorization, value, PROXY_HEADER)?;
                }
                Some(b'x' | b'X') => request.take_extension(name, value)?,
                _ => {}
            }
        }
        request.method = text(method, ":method")?;
        if !is_method(request.method) {
            let detail = "the method is not of capital letters, and some upstreams ignore case";
            return Err(Reject::new(Code::RequestMalformed, detail));
        }
        request.authority = text(authority, ":authority")?;
        request.target = match target {
            None if request.is_tunnel() => "",
            // A rule could be meant for the path, and the tunnel leads to the authority.
            Some(_) if request.is_tunnel() => {
                let detail = "a CONNECT has no path (RFC 9110 §9.3.6)";
                return Err(Reject::new(Code::RequestMalformed, detail));
            }
            target => text(target, ":path")?,
        };
        request.scheme = text(scheme.or(Some(b"http")), ":scheme")?;
        Ok(request)
    }

    /// A header that begins with an `x`.
    fn take_extension(&mut self, name: &'a [u8], value: &'a [u8]) -> Result<(), Reject> {
        if is_family(name) {
            return self.take_family(name, value);
        }
        if let Some(name) = OVERRIDES.iter().find(|known| same_name(name, known)) {
            let detail = format!(
                "header `{name}` asks the upstream for another method or path than the policy judges"
            );
            return Err(Reject::new(Code::RequestMalformed, detail));
        }
        Ok(())
    }

    fn take_family(&mut self, name: &'a [u8], value: &'a [u8]) -> Result<(), Reject> {
        match self.addressed.note(name) {
            Some(Member::Identity) => once(&mut self.identity, value, IDENTITY_HEADER),
            Some(Member::Plain(place)) => {
                let slot = self.plain.get_mut(place).zip(PLAIN_HEADERS.get(place));
                slot.map_or(Ok(()), |(slot, name)| once(slot, value, name))
            }
            Some(Member::Marker) => {
                self.marker = true;
                Ok(())
            }
            Some(Member::Proxy | Member::Decision) | None => Ok(()),
        }
    }

    /// Whether it asks for a tunnel.
    pub fn is_tunnel(&self) -> bool {
        self.method == CONNECT
    }

    /// What is asked for, for the policy.
    pub fn call(&self) -> Call<'a> {
        Call {
            authority: self.authority,
            scheme: self.scheme,
            method: self.method,
            target: self.target,
        }
    }

    /// Whether the header map says that the caller speaks gRPC, for a reply to headers that
    /// [`Self::read`] refused.
    pub fn speaks_grpc(headers: &[(&[u8], &[u8])]) -> bool {
        headers
            .iter()
            .any(|(name, value)| name.eq_ignore_ascii_case(b"content-type") && is_grpc(value))
    }

    /// Whether the header map has a credential for the filter beside those for a proxy.
    pub fn has_explicit_credential(headers: &[(&[u8], &[u8])]) -> bool {
        headers.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case(b"authorization") || same_name(name, IDENTITY_HEADER)
        })
    }
}

/// Without the credentials.
impl fmt::Debug for Request<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Request")
            .field("method", &self.method)
            .field("authority", &self.authority)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

fn once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8], name: &str) -> Result<(), Reject> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => {
            let detail = format!("header `{name}` occurs more than once");
            Err(Reject::new(Code::HeaderRepeated, detail))
        }
    }
}

fn text<'a>(value: Option<&'a [u8]>, name: &str) -> Result<&'a str, Reject> {
    let refuse =
        |problem| Err(Reject::new(Code::RequestMalformed, format!("header `{name}` {problem}")));
    match value.map(std::str::from_utf8) {
        Some(Ok("")) => refuse("is empty"),
        Some(Ok(text)) => Ok(text),
        Some(Err(_)) => refuse("is not UTF-8"),
        None => refuse("is missing"),
    }
}

/// Whether it is a method (RFC 9110 §9.1) and has one reading only. Methods are case-sensitive, but
/// frameworks capitalise them, so that `delete` would pass by a rule that denies `DELETE`.
pub(crate) fn is_method(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| {
            byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
        })
}

/// `application/grpc`, `application/grpc+proto` …, exactly as Envoy knows gRPC: to a caller who does
/// not speak it in Envoy's eyes, the reply would be a plain 200.
fn is_grpc(content_type: &[u8]) -> bool {
    match content_type.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+')),
        None => false,
    }
}

fn fold(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }
}

/// Whether a header of this name claims to speak for Airflow.
fn is_family(name: &[u8]) -> bool {
    let Some((first, rest)) = name.split_first_chunk() else { return false };
    // Most are spelled as the filter does, which is known by words.
    !rest.is_empty() && (first == FAMILY || first.map(fold) == *FAMILY)
}

/// Whether it is `proxy-authorization`, also with `_` for `-`.
fn is_for_proxy(name: &[u8]) -> bool {
    same_name(name, PROXY_HEADER)
}

/// Whether a header or trailer of this name never goes on: it is addressed to the filter, or claims to
/// come from it.
pub fn ends_here(name: &[u8]) -> bool {
    is_family(name) || is_for_proxy(name)
}

fn same_name(name: &[u8], known: &str) -> bool {
    name.len() == known.len()
        && name.iter().zip(known.bytes()).all(|(byte, known)| fold(*byte) == known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PSEUDO: [(&[u8], &[u8]); 3] =
        [(b":method", b"GET"), (b":authority", b"orders.internal"), (b":path", b"/v1")];

    fn read<'a>(more: &[(&'a [u8], &'a [u8])]) -> Result<Request<'a>, Reject> {
        Request::read(&[&PSEUDO, more].concat())
    }

    #[test]
    fn the_headers_that_decide_are_found_in_any_case() {
        let request = read(&[
            (b"Authorization", b"Bearer x"),
            (b"X-Airflow-Identity", b"y"),
            (b"x_airflow_dag_id", b"d"),
            (b"x-airflow-anything", b""),
            (b"accept", b"*/*"),
            (b"accept", b"text/html"),
        ])
        .unwrap();
        assert_eq!(request.authorization, Some(&b"Bearer x"[..]));
        assert_eq!(request.identity, Some(&b"y"[..]));
        assert_eq!(request.plain, [Some(&b"d"[..]), None, None, None, None]);
        let others = vec![&b"X-Airflow-Identity"[..], b"x_airflow_dag_id", b"x-airflow-anything"];
        assert_eq!(request.addressed, Addressed { others, ..Addressed::default() });
        assert_eq!((request.scheme, request.grpc, request.marker), ("http", false, false));
    }

    #[test]
    fn every_member_of_the_family_is_known_in_any_spelling() {
        let plain =
            PLAIN_HEADERS.iter().zip(0..).map(|(name, place)| (*name, Member::Plain(place)));
        let others = [
            (IDENTITY_HEADER, Member::Identity),
            (PROXY_HEADER, Member::Proxy),
            (DECISION_HEADER, Member::Decision),
            (MARKER_HEADER, Member::Marker),
        ];
        for (name, member) in plain.chain(others) {
            assert_eq!(Member::of(name.as_bytes()), Some(member), "{name}");
            for spelling in [name.to_ascii_uppercase(), name.replace('-', "_")] {
                let mut addressed = Addressed::default();
                assert_eq!(addressed.note(spelling.as_bytes()), Some(member), "{spelling}");
                assert_eq!(addressed.others, [spelling.as_bytes()]);
            }
            for other in [format!("{name}s"), name.replacen("-", "", 1)] {
                assert_eq!(Addressed::default().note(other.as_bytes()), None, "{other}");
            }
        }
    }

    #[test]
    fn a_repeated_header_that_decides_is_refused() {
        for name in [
            "authorization",
            "x-airflow-identity",
            "x-airflow-dag-id",
            "x-airflow-map-index",
            ":path",
        ] {
            let twice = [(name.as_bytes(), &b"a"[..]), (name.as_bytes(), b"a")];
            let reject = read(&twice).unwrap_err();
            assert_eq!(reject.code, Code::HeaderRepeated, "{name}");
            assert!(reject.detail.contains(name));
        }
        let folded = [(&b"x-airflow-dag-id"[..], &b"a"[..]), (b"X_Airflow_Dag_Id", b"a")];
        assert_eq!(read(&folded).unwrap_err().code, Code::HeaderRepeated);
    }

    #[test]
    fn pseudo_headers_must_be_there_and_be_text() {
        for bad in [
            &[(&b":method"[..], &b"GET"[..]), (b":path", b"/")][..],
            &[(b":method", b"GET"), (b":path", b"/\xff"), (b":authority", b"a")],
            &[(b":method", b""), (b":path", b"/"), (b":authority", b"a")],
        ] {
            assert_eq!(Request::read(bad).unwrap_err().code, Code::RequestMalformed);
        }
    }

    #[test]
    fn a_header_that_replaces_method_or_path_is_refused_in_any_spelling() {
        for name in ["x-http-method-override", "X-Original-URL", "x_rewrite_url", "X-HTTP-Method"] {
            let reject = read(&[(name.as_bytes(), b"DELETE")]).unwrap_err();
            assert_eq!(reject.code, Code::RequestMalformed, "{name}");
        }
        assert!(read(&[(b"x-original-host", b"a"), (b"x-http-methods", b"a")]).is_ok());
    }

    #[test]
    fn a_method_has_one_reading() {
        for (method, fine) in [
            ("GET", true),
            ("M-SEARCH", true),
            ("VERSION_2", true),
            ("delete", false),
            ("Delete", false),
            ("GET /admin", false),
            ("G\u{c9}T", false),
        ] {
            let headers =
                [(&b":method"[..], method.as_bytes()), (b":authority", b"a"), (b":path", b"/")];
            assert_eq!(Request::read(&headers).is_ok(), fine, "{method}");
        }
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (content_type, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC", false),
            ("application/grpc;x=y", false),
            ("application/grpc ", false),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let request = read(&[(b"content-type", content_type.as_bytes())]).unwrap();
            assert_eq!(request.grpc, grpc, "{content_type}");
        }
    }

    #[test]
    fn credentials_for_a_proxy_are_seen_once_and_go() {
        let request = read(&[(b"Proxy-Authorization", b"Basic eDp5")]).unwrap();
        assert_eq!(request.proxy_authorization, Some(&b"Basic eDp5"[..]));
        let others = vec![&b"Proxy-Authorization"[..]];
        assert_eq!(request.addressed, Addressed { others, ..Addressed::default() });
        let twice = [(&b"proxy-authorization"[..], &b"a"[..]), (b"proxy_authorization", b"a")];
        assert_eq!(read(&twice).unwrap_err().code, Code::HeaderRepeated);
        for (name, ends) in [
            ("proxy-authorization", true),
            ("PROXY_AUTHORIZATION", true),
            ("X-Airflow-Dag-Id", true),
            ("proxy-authorizations", false),
            ("proxy-connection", false),
            ("x-airflow-", false),
        ] {
            assert_eq!(ends_here(name.as_bytes()), ends, "{name}");
        }
    }

    #[test]
    fn a_tunnel_has_an_authority_and_nothing_else() {
        let connect = [(&b":method"[..], &b"CONNECT"[..]), (b":authority", b"a:443")];
        let request = Request::read(&connect).unwrap();
        assert!(request.is_tunnel());
        assert_eq!((request.target, request.authority), ("", "a:443"));
        for more in [(&b":path"[..], &b"/"[..]), (b":path", b""), (b":protocol", b"websocket")] {
            let reject = Request::read(&[&connect[..], &[more]].concat()).unwrap_err();
            assert_eq!(reject.code, Code::RequestMalformed, "{more:?}");
        }
        assert_eq!(Request::read(&connect[..1]).unwrap_err().code, Code::RequestMalformed);
        assert_eq!(read(&[(b":protocol", b"websocket")]).unwrap_err().code, Code::RequestMalformed);
    }

    #[test]
    fn the_marker_of_an_unserved_connection_is_seen() {
        assert!(read(&[(b"x-airflow-envoy", b"aud=orders")]).unwrap().marker);
    }

    #[test]
    fn decision_ids_are_32_hexadecimal_digits() {
        for (worker, count) in
            [(0x0123_4567_89ab_cdef, 255), (u64::MAX, 0), (0xfedc_ba98_7654_3210, u64::MAX - 15)]
        {
            let id = DecisionId::new(worker, count);
            assert_eq!(id.as_str(), format!("{worker:016x}{count:016x}"));
        }
    }
}
