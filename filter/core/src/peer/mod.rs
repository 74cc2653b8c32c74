//! The mesh peer: whose client certificate the request came with.
//!
//! The host says what it knows about the certificate in one text ([`Arrival::peer`]), which Envoy writes once
//! for each TLS connection: whether the certificate was validated in this very handshake, the
//! SHA-256 digest of it, the end of its validity in seconds since 1970, and its URIs, separated by blanks:
//!
//! ```text
//! true 3f…9c 1795435489 spiffe://td.consul/ns/default/dc/dc1/svc/airflow-worker
//! ```
//!
//! `-` stands for what there is not. Several URIs are joined by commas, which no SPIFFE ID has, so that two are never
//! one. Or, if so configured, the peer is whom a trusted hop names in `x-forwarded-client-cert`.
//!
//! What it is not: TLS. Envoy has verified the chain; here it is read what that proved.
//!
//! [`Arrival::peer`]: crate::arrival::Arrival::peer

mod spiffe;
pub mod xfcc;

use std::borrow::Cow;

use crate::configuration::Requirement;
use crate::document::{Node, Report};
use crate::quote::{quote, quote_list};
use crate::reject::{Code, Reject};
use crate::time::UnixTime;

pub use self::spiffe::{ConsulService, SpiffeId};

/// The filter state by which Envoy tells what it knows about the client's certificate.
pub const EVIDENCE: &str = "airflow_envoy.peer";

/// The header by which proxies tell about the certificates of their callers.
pub const XFCC_HEADER: &str = "x-forwarded-client-cert";

/// Which peers are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether a request needs a peer. Never [`Requirement::Off`].
    pub identity: Requirement,
    /// Who may vouch for peers, each as it is in SPIFFE IDs.
    pub trust_domains: Vec<Box<str>>,
    /// Who says who the peer is.
    pub source: Source,
}

/// Who says who the peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The certificate of the TLS connection.
    Tls,
    /// `x-forwarded-client-cert`, of a request whose TLS connection is that of one of these.
    Xfcc(Vec<SpiffeId>),
}

/// What came with a request about its peer, before anybody believes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presented<'a> {
    evidence: Option<&'a [u8]>,
    /// The header, several of its lines joined as one (RFC 9110 §5.3); `None` unless it is looked at.
    xfcc: Option<Cow<'a, [u8]>>,
}

/// What came with a request, kept to compare with what comes with another one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    evidence: Option<Box<[u8]>>,
    xfcc: Option<Box<[u8]>>,
}

/// A verified peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// The SHA-256 digest of its certificate (DER).
    pub digest: [u8; 32],
    /// When it ceases to be believed: its certificate, or that of the hop which vouches for it, expires.
    pub expires_at: UnixTime,
}

impl Settings {
    /// Reads the configuration's `peer`; `None` inside if it is off.
    #[expect(clippy::option_option, reason = "the outer one is a fault, the inner one is `off`")]
    /// Its `narrow`, which is the catalog's to read, is handed out.
    pub(crate) fn read<'a>(
        node: &Node<'a>,
        report: &mut Report,
        narrow: &mut Option<Node<'a>>,
    ) -> Option<Option<Self>> {
        let mut object = node.object(report)?;
        let identity = crate::configuration::requirement(&mut object, report, "identity");
        if identity == Requirement::Off {
            for unused in ["trust_domains", "source", "narrow"] {
                if let Some(node) = object.optional(unused) {
                    node.fault(report, "is not used, because `identity` is `off`");
                }
            }
            object.finish(report);
            return Some(None);
        }
        let trust_domains =
            object.required(report, "trust_domains").and_then(|node| trust_domains(&node, report));
        let source =
            object.optional("source").map_or(Some(Source::Tls), |node| source(&node, report));
        *narrow = object.optional("narrow");
        object.finish(report);
        Some(Some(Self { identity, trust_domains: trust_domains?, source: source? }))
    }

    /// What of a request is about its peer.
    pub fn presented<'a>(
        &self,
        evidence: Option<&'a [u8]>,
        headers: &[(&'a [u8], &'a [u8])],
    ) -> Presented<'a> {
        let mut xfcc: Option<Cow<'a, [u8]>> = None;
        if let Source::Xfcc(_) = self.source {
            for &(name, value) in headers {
                if !name.eq_ignore_ascii_case(XFCC_HEADER.as_bytes()) {
                    continue;
                }
                match &mut xfcc {
                    None => xfcc = Some(Cow::Borrowed(value)),
                    Some(lines) => {
                        let lines = lines.to_mut();
                        lines.push(b',');
                        lines.extend_from_slice(value);
                    }
                }
            }
        }
        Presented { evidence, xfcc }
    }

    /// Who the peer is; `None` if there is none and none is needed.
    ///
    /// # Errors
    /// `peer_missing` without a certificate that was validated in this connection's handshake, unless the peer is
    /// optional and there is no certificate at all; `peer_invalid` for one that does not name exactly one
    /// workload, or has expired; `peer_untrusted` for a foreign trust domain and for a hop that may not speak for others.
    pub fn verify(&self, presented: &Presented<'_>, now: UnixTime) -> Result<Option<Peer>, Reject> {
        let Some(tls) = self.by_tls(presented.evidence, now)? else { return Ok(None) };
        let Source::Xfcc(hops) = &self.source else { return Ok(Some(tls)) };
        if !hops.contains(&tls.id) {
            let hops = quote_list(hops.iter().map(SpiffeId::as_str));
            let hop = quote(tls.id.as_str());
            let detail = format!(
                "the TLS peer {hop} may not say who called it: trusted with `{XFCC_HEADER}` are {hops}"
            );
            return Err(Reject::new(Code::PeerUntrusted, detail));
        }
        self.by_hop(&tls, presented.xfcc.as_deref())
    }

    /// Whose certificate the TLS connection has.
    fn by_tls(&self, evidence: Option<&[u8]>, now: UnixTime) -> Result<Option<Peer>, Reject> {
        let Some(evidence) = evidence.filter(|evidence| !evidence.is_empty()) else {
            return self.missing(|| {
                format!(
                    "there is no client certificate, or the listener does not tell of it: Envoy's filter state \
                     `{EVIDENCE}` is missing"
                )
            });
        };
        let unreadable = |what| {
            let detail = format!("Envoy's filter state `{EVIDENCE}` has no {what}");
            Reject::new(Code::PeerInvalid, detail)
        };
        let mut parts = evidence.splitn(4, |byte| *byte == b' ');
        let mut next = |what| parts.next().ok_or_else(|| unreadable(what));
        let (validated, digest) = (next("validation")?, next("digest")?);
        let (expiry, uris) = (next("end of validity")?, next("URIs")?);
        if digest == b"-" {
            return self.missing(|| "there is no client certificate".to_owned());
        }
        if validated != b"true" {
            // Not even where it is optional: whoever has one is meant to be known by it.
            let detail = "the client certificate was not validated in this connection's handshake: it is untrusted, \
                          or an earlier TLS session was resumed";
            return Err(Reject::new(Code::PeerMissing, detail));
        }
        let digest = self::digest(digest).ok_or_else(|| unreadable("digest"))?;
        let seconds = std::str::from_utf8(expiry).ok().and_then(|text| text.parse::<i64>().ok());
        let last = UnixTime::from_secs(seconds.ok_or_else(|| unreadable("end of validity"))?);
        // The last second belongs to the validity (RFC 5280 §4.1.2.5).
        let expires_at = last.plus(crate::time::Span::from_secs(1));
        if now >= expires_at {
            let detail = format!(
                "the client certificate expired at {last}; it is {now}: the connection is older than the certificate"
            );
            return Err(Reject::new(Code::PeerInvalid, detail));
        }
        let id = self.workload(uris, "the client certificate")?;
        Ok(Some(Peer { id, digest, expires_at }))
    }

    /// Whom the hop names. It counts what the hop says about the one caller that it has: `x-forwarded-client-cert` must
    /// have one element by it. One about the hop itself, which Envoy here appends, is none.
    fn by_hop(&self, hop: &Peer, xfcc: Option<&[u8]>) -> Result<Option<Peer>, Reject> {
        let hop_name = || quote(hop.id.as_str());
        let none =
            || format!("{} does not say that its caller has a client certificate", hop_name());
        let invalid = |problem: &str| {
            let detail = format!("header `{XFCC_HEADER}` of {} {problem}", hop_name());
            Reject::new(Code::PeerInvalid, detail)
        };
        let Some(xfcc) = xfcc else { return self.missing(none) };
        let mut elements = xfcc::parse(xfcc).map_err(invalid)?;
        let by_hop = |element: &xfcc::Element<'_>| matches!(element.by.as_slice(), [by] if **by == *hop.id.as_str().as_bytes());
        elements.pop_if(|last| last.digest() == Some(hop.digest) && !by_hop(last));
        let element = match elements.as_slice() {
            [] => return self.missing(none),
            [element] if by_hop(element) => element,
            [_] => return Err(invalid("has an element that another proxy wrote")),
            _ => {
                return Err(invalid(
                    "has several elements: the hop must set the header anew (`SANITIZE_SET`)",
                ));
            }
        };
        let digest = element.digest().ok_or_else(|| invalid("has no SHA-256 digest (`Hash`)"))?;
        let uri = match element.uris.as_slice() {
            [uri] if !uri.is_empty() => uri,
            [] | [_] => return Err(invalid("names no URI of the caller's certificate (`URI`)")),
            _ => return Err(invalid("names several URIs of the caller's certificate (`URI`)")),
        };
        let id = self.workload(uri, "the certificate of the hop's caller")?;
        Ok(Some(Peer { id, digest, expires_at: hop.expires_at }))
    }

    fn missing(&self, detail: impl FnOnce() -> String) -> Result<Option<Peer>, Reject> {
        match self.identity {
            Requirement::Required => Err(Reject::new(Code::PeerMissing, detail())),
            Requirement::Optional | Requirement::Off => Ok(None),
        }
    }

    /// The one workload that the URIs of a certificate name.
    fn workload(&self, uris: &[u8], whose: &str) -> Result<SpiffeId, Reject> {
        let text = String::from_utf8_lossy(uris);
        if matches!(uris, b"" | b"-") {
            let detail = format!("{whose} has no URI that names a workload");
            return Err(Reject::new(Code::PeerInvalid, detail));
        }
        let id = SpiffeId::parse(uris).map_err(|problem| {
            let detail = if uris.contains(&b',') {
                format!(
                    "{whose} has several URIs, or one with a comma, not one SPIFFE ID: {}",
                    quote(&text)
                )
            } else {
                format!("the URI {} of {whose} {problem}", quote(&text))
            };
            Reject::new(Code::PeerInvalid, detail)
        })?;
        if !self.trust_domains.iter().any(|known| **known == *id.trust_domain()) {
            let known = quote_list(self.trust_domains.iter().map(AsRef::as_ref));
            let detail = format!(
                "the peer {} is of trust domain {}; trusted: {known}",
                quote(id.as_str()),
                quote(id.trust_domain())
            );
            return Err(Reject::new(Code::PeerUntrusted, detail));
        }
        Ok(id)
    }
}

impl Presented<'_> {
    /// A copy that outlives the request.
    pub fn keep(&self) -> Kept {
        Kept { evidence: self.evidence.map(Into::into), xfcc: self.xfcc.as_deref().map(Into::into) }
    }
}

impl Kept {
    /// Whether the very same came with another request.
    pub fn is(&self, presented: &Presented<'_>) -> bool {
        let same = |kept: &Option<Box<[u8]>>, other: Option<&[u8]>| match (kept, other) {
            (None, None) => true,
            (Some(kept), Some(other)) => crate::cache::same(kept, other),
            (None, Some(_)) | (Some(_), None) => false,
        };
        same(&self.evidence, presented.evidence) && same(&self.xfcc, presented.xfcc.as_deref())
    }

    /// How many bytes it keeps.
    pub fn bytes(&self) -> usize {
        [&self.evidence, &self.xfcc].into_iter().flatten().map(|kept| kept.len()).sum()
    }
}

/// A SHA-256 digest in hexadecimal digits of either case.
fn digest(text: &[u8]) -> Option<[u8; 32]> {
    let (pairs, rest) = text.as_chunks::<2>();
    let mut digest = [0; 32];
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (octet, [high, low]) in digest.iter_mut().zip(pairs) {
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        *octet = u8::try_from(nibble(*high)? << 4 | nibble(*low)?).ok()?;
    }
    Some(digest)
}

fn trust_domains(node: &Node<'_>, report: &mut Report) -> Option<Vec<Box<str>>> {
    let names = node.strings(report)?;
    for name in &names {
        // With a path it is an ID exactly if the name is one of a trust domain, and begins with no scheme.
        let probe = SpiffeId::parse(format!("spiffe://{name}/x").as_bytes());
        if !probe.is_ok_and(|id| id.trust_domain() == *name) {
            let problem = format!(
                "{} is not the name of a trust domain, such as `a1f10e00-0000-4000-8000-00000000c0de.consul`: small letters, \
                 digits, `.`, `-` and `_`",
                quote(name)
            );
            node.fault(report, problem);
        }
    }
    Some(names.into_iter().map(Into::into).collect())
}

fn source(node: &Node<'_>, report: &mut Report) -> Option<Source> {
    if node.value == "tls" {
        return Some(Source::Tls);
    }
    if node.value.is_string() {
        node.fault(report, "expected `tls` or an object with `xfcc`");
        return None;
    }
    let mut object = node.object(report)?;
    let xfcc = object.required(report, "xfcc").and_then(|node| node.object(report));
    object.finish(report);
    let mut xfcc = xfcc?;
    let hops = xfcc.required(report, "hops").and_then(|node| node.nonempty_array(report));
    xfcc.finish(report);
    let mut ids = Vec::new();
    for hop in hops? {
        let text = hop.string(report)?;
        match SpiffeId::parse(text.as_bytes()) {
            Ok(id) => ids.push(id),
            Err(problem) => hop.fault(report, format!("{} {problem}", quote(text))),
        }
    }
    Some(Source::Xfcc(ids))
}
