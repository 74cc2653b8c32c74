//! The authority of a request (RFC 3986 §3.2, RFC 9110 §7.2) and the hosts of destinations.
//!
//! It compares names; it resolves none. `127.0.0.1` and `localhost` are different hosts here.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::Ipv6Addr;

use rustc_hash::FxHashMap;

use crate::pace::{Pace, release};

/// Bytes of a host name: RFC 1035 §2.3.4 ends before this.
const MOST_HOST_BYTES: usize = 255;

/// A host in its normal form and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Authority<'a> {
    /// Lower case, without a trailing dot; an IPv6 address in brackets as RFC 5952 writes it.
    pub(crate) host: Cow<'a, str>,
    /// The port as given, or the default one of the scheme.
    pub(crate) port: u16,
    /// The port is the default one of the scheme, written out or not.
    pub(crate) port_is_default: bool,
    /// The host and, if there was one, the port in their normal form, unless it was written so. A
    /// router that compares texts must not take another way than the policy judged.
    pub(crate) normal: Option<String>,
}

impl<'a> Authority<'a> {
    /// Reads `:authority`, given the scheme of the request.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub(crate) fn parse(text: &'a str, scheme: &str) -> Result<Self, &'static str> {
        let (host, written) = split(text)?;
        let default = if scheme.eq_ignore_ascii_case("https") {
            Some(443)
        } else if scheme.eq_ignore_ascii_case("http") {
            Some(80)
        } else {
            None
        };
        let port = written.or(default).ok_or("has no port and its scheme has no default one")?;
        let host = host_name(host)?;
        let digits = |port: u16| port.checked_ilog10().unwrap_or_default() as usize + 1;
        let length = host.len() + written.map_or(0, |port| 1 + digits(port));
        let is_normal = matches!(host, Cow::Borrowed(_)) && length == text.len();
        let normal = (!is_normal).then(|| match written {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        });
        Ok(Self { host, port, port_is_default: Some(port) == default, normal })
    }
}

impl<'a> Authority<'a> {
    /// Reads the `:authority` of a CONNECT, which always names the port (RFC 9110 §9.3.6). Most tunnels
    /// carry TLS, so the default port of a destination is there that of `https`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub(crate) fn of_tunnel(text: &'a str) -> Result<Self, &'static str> {
        if split(text)?.1.is_none() {
            return Err("has no port, and a CONNECT must have one");
        }
        Self::parse(text, "https")
    }
}

/// Where a request goes, by its authority. Indexed: the number of hosts does not matter.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    exact: FxHashMap<Box<str>, Vec<Entry>>,
    /// Of `*.example.com`, `example.com`.
    below: FxHashMap<Box<str>, Vec<Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// `None`: the default port of the request's scheme.
    port: Option<u16>,
    destination: u32,
}

impl Hosts {
    /// Makes room for `hosts` of them.
    pub(super) fn expect(&mut self, hosts: usize) {
        self.exact.reserve(hosts);
    }

    /// Frees them a slice at a time.
    pub(super) async fn release(self, pace: &Pace) {
        release(self.exact, 2, pace).await;
        release(self.below, 2, pace).await;
    }

    /// Adds an entry `host`, `host:port`, `*.domain` or `*.domain:port` to a destination.
    ///
    /// # Errors
    /// What is wrong with the entry, or the other destination that has the host already.
    pub(crate) fn add(&mut self, text: &str, destination: u32) -> Result<(), HostFault> {
        let (map, rest) = match text.strip_prefix("*.") {
            Some(domain) => (&mut self.below, domain),
            None => (&mut self.exact, text),
        };
        let (host, port) = split(rest).map_err(HostFault::Invalid)?;
        let host = host_name(host).map_err(HostFault::Invalid)?;
        if rest.len() < text.len() && host.starts_with('[') {
            return Err(HostFault::Invalid("is a wildcard below an address"));
        }
        let entries = map.entry(host.as_ref().into()).or_default();
        // `host` and `host:443` are the same place for an https request.
        let overlaps = |entry: &Entry| match (entry.port, port) {
            (None, Some(port)) | (Some(port), None) => matches!(port, 80 | 443),
            (one, other) => one == other,
        };
        if let Some(taken) = entries.iter().find(|entry| {
            overlaps(entry) && (entry.destination != destination || entry.port == port)
        }) {
            return Err(HostFault::Taken(taken.destination));
        }
        entries.push(Entry { port, destination });
        Ok(())
    }

    /// The destination of `authority`: an exact host beats a wildcard, a longer domain a shorter
    /// one, among the entries whose port fits.
    pub(crate) fn find(&self, authority: &Authority<'_>) -> Option<u32> {
        let fitting = |entries: &Vec<Entry>| {
            entries
                .iter()
                .find(|entry| match entry.port {
                    Some(port) => port == authority.port,
                    None => authority.port_is_default,
                })
                .map(|entry| entry.destination)
        };
        if let Some(found) = self.exact.get(authority.host.as_ref()).and_then(fitting) {
            return Some(found);
        }
        if self.below.is_empty() {
            return None;
        }
        let mut name = authority.host.as_ref();
        while let Some((_, domain)) = name.split_once('.') {
            if let Some(found) = self.below.get(domain).and_then(fitting) {
                return Some(found);
            }
            name = domain;
        }
        None
    }
}

/// Why a host cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostFault {
    /// The end of a sentence about it.
    Invalid(&'static str),
    /// It belongs to this destination already.
    Taken(u32),
}

/// Splits the port off; the host may still be anything.
fn split(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    if !text.bytes().any(|byte| matches!(byte, b'@' | b'[' | b']' | b':')) {
        return Ok((text, None));
    }
    if text.contains('@') {
        return Err("has user information");
    }
    let colon = match text.rfind(']') {
        Some(bracket) => text.get(bracket..).and_then(|tail| tail.find(':')).map(|at| bracket + at),
        None => text.find(':'),
    };
    let Some((host, port)) = colon.and_then(|at| text.split_at_checked(at)) else {
        return Ok((text, None));
    };
    let digits = port.trim_start_matches(':');
    let well_formed = port.len() == digits.len() + 1
        && (1..=5).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.parse().ok().filter(|port| well_formed && *port != 0);
    port.map(|port| (host, Some(port))).ok_or("has a port that is not a number from 1 to 65535")
}

/// The normal form of a host.
fn host_name(host: &str) -> Result<Cow<'_, str>, &'static str> {
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').ok_or("has brackets that do not match")?;
        let address: Ipv6Addr =
            address.parse().map_err(|_| "has no IPv6 address in its brackets")?;
        let mut normal = String::with_capacity(host.len());
        // Writing to a string cannot fail.
        let _ = write!(normal, "[{address}]");
        return Ok(if normal == host { Cow::Borrowed(host) } else { Cow::Owned(normal) });
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() {
        return Err("has no host");
    }
    if name.len() > MOST_HOST_BYTES {
        return Err("is too long");
    }
    let mut label = 0_usize;
    let mut upper = false;
    for byte in name.bytes() {
        match byte {
            b'.' if label == 0 => return Err("has an empty label"),
            b'.' => label = 0,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            b'A'..=b'Z' => {
                label += 1;
                upper = true;
            }
            _ => return Err("has a character that no host name has"),
        }
    }
    if label == 0 {
        return Err("has an empty label");
    }
    Ok(if upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_has_one_normal_form() {
        for (text, scheme, host, port) in [
            ("orders.internal", "http", "orders.internal", 80),
            ("orders.internal", "https", "orders.internal", 443),
            ("Orders.Internal.:8443", "HTTPS", "orders.internal", 8443),
            ("10.0.0.1:1", "http", "10.0.0.1", 1),
            ("[::1]", "http", "[::1]", 80),
            ("[0:0::0001]:65535", "http", "[::1]", 65535),
            ("under_score:080", "http", "under_score", 80),
            ("x:9", "grpc", "x", 9),
        ] {
            let authority = Authority::parse(text, scheme).unwrap();
            assert_eq!((authority.host.as_ref(), authority.port), (host, port), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_host_and_port_is_refused() {
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a::80",
            "a:80:80",
            "user@a",
            "user:pw@a",
            "a b",
            "a/b",
            "a%2eb",
            "\u{fc}.de",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:",
            "[fe80::1%eth0]",
            "[]",
            "a\0",
            "a,b",
            "*.a",
        ] {
            assert!(Authority::parse(text, "http").is_err(), "{text:?}");
        }
        assert!(Authority::parse("a", "ftp").is_err());
        assert!(Authority::parse(&"a".repeat(256), "http").is_err());
    }

    #[test]
    fn a_tunnel_names_its_port() {
        let authority = Authority::of_tunnel("A.example:443").unwrap();
        assert_eq!((authority.host.as_ref(), authority.port_is_default), ("a.example", true));
        assert_eq!(authority.normal.as_deref(), Some("a.example:443"));
        assert!(!Authority::of_tunnel("a:80").unwrap().port_is_default);
        for text in ["a", "", "a:", "[::1]", "a:0", "user@a:443", "a:443/x"] {
            assert!(Authority::of_tunnel(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exact_hosts_beat_wildcards_and_ports_must_fit() {
        let mut hosts = Hosts::default();
        for (destination, text) in
            ["*.example.com", "a.example.com", "*.b.example.com:8443", "x:80", "[::1]:90"]
                .iter()
                .enumerate()
        {
            hosts.add(text, destination as u32).unwrap();
        }
        for (text, scheme, found) in [
            ("A.example.com.", "https", Some(1)),
            ("a.example.com:443", "https", Some(1)),
            ("a.example.com:443", "http", None),
            ("c.example.com", "http", Some(0)),
            ("d.c.example.com", "http", Some(0)),
            ("example.com", "http", None),
            ("c.b.example.com:8443", "http", Some(2)),
            ("c.b.example.com", "http", Some(0)),
            ("x", "http", Some(3)),
            ("x", "https", None),
            ("[0::1]:90", "https", Some(4)),
        ] {
            let authority = Authority::parse(text, scheme).unwrap();
            assert_eq!(hosts.find(&authority), found, "{text} {scheme}");
        }
    }

    #[test]
    fn two_destinations_cannot_have_the_same_host() {
        let mut hosts = Hosts::default();
        assert_eq!(hosts.add("a", 0), Ok(()));
        assert_eq!(hosts.add("A.", 1), Err(HostFault::Taken(0)));
        assert_eq!(hosts.add("a", 0), Err(HostFault::Taken(0)), "not even twice");
        assert_eq!(
            hosts.add("a:443", 1),
            Err(HostFault::Taken(0)),
            "the default port is the same place"
        );
        assert_eq!(hosts.add("a:443", 0), Ok(()));
        assert_eq!(hosts.add("a:8443", 1), Ok(()));
        assert_eq!(hosts.add("*.a", 1), Ok(()));
        assert!(matches!(hosts.add("*", 1), Err(HostFault::Invalid(_))));
        assert!(matches!(hosts.add("*.[::1]", 1), Err(HostFault::Invalid(_))));
        assert!(matches!(hosts.add("*a.b", 1), Err(HostFault::Invalid(_))));
    }
}
