//! SPIFFE IDs of workloads, and what Consul writes into theirs.

use std::borrow::Cow;
use std::fmt;

use crate::facts::{Caller, Fact};

/// The longest SPIFFE ID and the longest trust domain that there are, in bytes (SPIFFE-ID §2.3).
const MOST_BYTES: usize = 2048;
const MOST_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// The namespace and the partition that services have if nobody says otherwise.
const DEFAULT: &str = "default";

/// A SPIFFE ID that names a workload: with a path (SPIFFE-ID §2, X.509-SVID §4.1), in the one spelling that the
/// standard writes. A scheme or a trust domain in capital letters is refused rather than folded: nothing that
/// issues IDs writes it, and IDs are compared byte for byte.
#[derive(Clone, PartialEq, Eq)]
pub struct SpiffeId {
    text: Box<str>,
    /// Where the path begins, with its slash.
    path_at: usize,
}

/// What the SPIFFE ID of a Consul service says: `/ns/<namespace>/dc/<datacenter>/svc/<service>`, with
/// `/ap/<partition>` before it unless the partition is `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsulService<'a> {
    /// The admin partition.
    pub partition: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The datacenter. Consul itself authorizes without looking at it.
    pub datacenter: &'a str,
    /// The service.
    pub service: &'a str,
}

impl SpiffeId {
    /// Reads one. Every octet counts: there is no escape, no NUL and nothing beyond ASCII in a SPIFFE ID.
    ///
    /// # Errors
    /// What is wrong with it, to follow its quotation in a sentence.
    pub fn parse(text: &[u8]) -> Result<Self, &'static str> {
        if text.len() > MOST_BYTES {
            return Err("has more than 2048 bytes");
        }
        let text = std::str::from_utf8(text).map_err(|_| "is not a SPIFFE ID: it is not UTF-8")?;
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or("is not a SPIFFE ID: it does not begin with `spiffe://`")?;
        let domain_bytes = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at_checked(domain_bytes).unwrap_or((rest, ""));
        let is_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if domain.is_empty() || !domain.bytes().all(is_name) {
            return Err(
                "is not a SPIFFE ID: a trust domain has small letters, digits, `.`, `-` and `_`",
            );
        }
        if domain.len() > MOST_TRUST_DOMAIN_BYTES {
            return Err("is not a SPIFFE ID: its trust domain has more than 255 bytes");
        }
        let Some(segments) = path.strip_prefix('/') else {
            return Err("has no path, so it is a trust domain and names no workload");
        };
        for segment in segments.split('/') {
            if matches!(segment, "" | "." | "..") {
                return Err("is not a SPIFFE ID: a segment of its path is empty, `.` or `..`");
            }
            if !segment.bytes().all(|byte| is_name(byte) || byte.is_ascii_uppercase()) {
                return Err(
                    "is not a SPIFFE ID: a path has letters, digits, `.`, `-` and `_`, and no escapes",
                );
            }
        }
        Ok(Self { text: text.into(), path_at: SCHEME.len().saturating_add(domain_bytes) })
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Who vouches for it, without the scheme.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.path_at).unwrap_or_default()
    }

    /// What it names within the trust domain, with the slash before it.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// The Consul service that it names; `None` if it names something else.
    pub fn consul_service(&self) -> Option<ConsulService<'_>> {
        let mut segments = self.path().split('/').skip(1);
        let mut next = || segments.next();
        let (partition, first) = match next()? {
            "ap" => (next()?, next()?),
            first => (DEFAULT, first),
        };
        let ("ns", namespace, "dc", datacenter, "svc", service) =
            (first, next()?, next()?, next()?, next()?, next()?)
        else {
            return None;
        };
        let service = ConsulService { partition, namespace, datacenter, service };
        next().is_none().then_some(service)
    }

    /// Tells the policy: the ID, and the Consul service or that there is none.
    pub fn describe(&self, caller: &mut Caller) {
        caller.spiffe_ids = Fact::one(self.as_str());
        let service = self.consul_service().map(|service| service.name().into_owned());
        caller.services = Fact::Known(service.into_iter().collect());
    }
}

impl<'a> ConsulService<'a> {
    /// How policies name it: `orders`; `team/orders` in another namespace than `default`, and
    /// `edge/team/orders` in another partition.
    pub fn name(&self) -> Cow<'a, str> {
        match (self.partition, self.namespace) {
            (DEFAULT, DEFAULT) => Cow::Borrowed(self.service),
            (DEFAULT, namespace) => Cow::Owned([namespace, "/", self.service].concat()),
            (partition, namespace) => {
                Cow::Owned([partition, "/", namespace, "/", self.service].concat())
            }
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consuls_forms_name_a_service_and_others_do_not() {
        for (path, name) in [
            ("/ns/default/dc/dc1/svc/orders", Some("orders")),
            ("/ap/default/ns/default/dc/dc1/svc/orders", Some("orders")),
            ("/ns/team/dc/dc1/svc/orders", Some("team/orders")),
            ("/ap/edge/ns/default/dc/dc1/svc/orders", Some("edge/default/orders")),
            ("/ap/edge/ns/team/dc/dc2/svc/orders", Some("edge/team/orders")),
            ("/ns/Default/dc/dc1/svc/orders", Some("Default/orders")),
            ("/ns/default/dc/dc1/svc/orders/x", None),
            ("/ns/default/dc/dc1/svc", None),
            ("/x/ns/default/dc/dc1/svc/orders", None),
            ("/ap/edge/ap/edge/ns/default/dc/dc1/svc/orders", None),
            ("/agent/client/dc/dc1/id/n", None),
            ("/gateway/mesh/dc/dc1", None),
            ("/ns/default/sa/worker", None),
        ] {
            let id = SpiffeId::parse(format!("spiffe://td.consul{path}").as_bytes()).unwrap();
            let found = id.consul_service().map(|service| service.name().into_owned());
            assert_eq!(found.as_deref(), name, "{path}");
            assert_eq!((id.trust_domain(), id.path()), ("td.consul", path));
        }
    }

    #[test]
    fn the_facts_are_the_id_and_the_service_or_that_there_is_none() {
        let mut caller = Caller::default();
        SpiffeId::parse(b"spiffe://td/agent/x").unwrap().describe(&mut caller);
        assert_eq!(caller.spiffe_ids, Fact::one("spiffe://td/agent/x"));
        assert_eq!(caller.services, Fact::Known(Vec::new()));
    }
}
