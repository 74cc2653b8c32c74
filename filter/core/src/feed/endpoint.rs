//! Where a document is fetched, and how its server is asked for changes.

use std::fmt;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::hexadecimal;
use crate::json;
use crate::limits::Limits;
use crate::quote::quote;
use crate::status::Origin;
use crate::time::Span;

/// A document that is fetched by HTTP callout, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name in logs and metrics: letters, digits, `-` and `_`.
    pub name: String,
    /// The Envoy cluster that the callout goes to; the URI's host never chooses one.
    pub cluster: String,
    /// What to ask for.
    pub uri: Uri,
    /// Longest time from one fetch to the next; with a protocol that waits for changes, the time
    /// between fetches when the server does not wait.
    pub interval: Span,
    /// Least time between two fetches, whatever asks for one.
    pub min_interval: Span,
    /// Time after which a callout is given up, beyond the time that the server was asked to wait.
    pub timeout: Span,
    /// Age after which a document that could not be confirmed is no longer used.
    pub max_age: Span,
    /// How the server is asked.
    pub protocol: Protocol,
}

/// An absolute `http` or `https` URI without userinfo or fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// `http` or `https`, for the `:scheme` of the callout; TLS is the cluster's own.
    pub scheme: &'static str,
    /// The `:authority` of the callout.
    pub authority: String,
    /// The `:path` of the callout.
    pub path: String,
}

/// How a server is asked for a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// Again and again, with `If-None-Match` (RFC 9110 §13.1.2).
    Poll,
    /// The server is asked to hold its answer back until the document changes or `wait` is over, by
    /// `Prefer: wait` (RFC 7240 §4.3).
    LongPoll {
        /// How long.
        wait: Span,
    },
    /// A blocking query of Consul's KV store for one raw value.
    ConsulKv {
        /// How long Consul may hold its answer back.
        wait: Span,
        /// `X-Consul-Token`.
        token: Option<Secret>,
    },
    /// A blocking query of Consul's catalog for the instances of one service.
    ConsulCatalog {
        /// How long Consul may hold its answer back.
        wait: Span,
        /// `X-Consul-Token`.
        token: Option<Secret>,
    },
    /// Consul's intentions: documents that are read together, and that change only with Consul's index.
    /// A single one whose answers have it is asked for by a blocking query. Otherwise, as with Consul before
    /// 1.9, the list is, and then the documents. What the list says is never read: to whoever may not see
    /// anything it is empty, and looks as if there were no intentions.
    ConsulIntentions {
        /// How long Consul may hold its answer back.
        wait: Span,
        /// `X-Consul-Token`.
        token: Option<Secret>,
        /// What it is asked for.
        questions: Box<Questions>,
    },
    /// OpenID Connect Discovery 1.0 §4: a document that says where the keys are, then the keys.
    Discovery {
        /// The document's `issuer` must be this one (§4.3).
        issuer: String,
        /// The Envoy cluster that serves the keys, wherever the document says they are.
        keys_cluster: String,
    },
}

/// Paths of Consul's, with their queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Questions {
    /// The documents. One: it is there, and as it comes. Several: an array of them, in which `null` stands
    /// for one that does not exist.
    pub parts: Vec<String>,
    /// The list.
    pub list: String,
}

/// A credential for a callout. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

impl Uri {
    /// Reads a URI.
    pub fn parse(text: &str) -> Option<Self> {
        ["http", "https"].into_iter().find_map(|scheme| {
            let rest = text.strip_prefix(scheme)?.strip_prefix("://")?;
            let (authority, path) = match rest.find(['/', '?']) {
                Some(at) => rest.split_at_checked(at)?,
                None => (rest, ""),
            };
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            let printable = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
            (printable && !authority.is_empty() && !authority.contains('@')).then(|| Self {
                scheme,
                authority: authority.to_owned(),
                path,
            })
        })
    }
}

impl Protocol {
    /// How long the server may hold its answer back.
    pub(super) fn wait(&self) -> Option<Span> {
        match self {
            Self::LongPoll { wait }
            | Self::ConsulKv { wait, .. }
            | Self::ConsulCatalog { wait, .. }
            | Self::ConsulIntentions { wait, .. } => Some(*wait),
            Self::Poll | Self::Discovery { .. } => None,
        }
    }

    /// Whether the server is Consul, and what it is to be told.
    pub(super) fn consul(&self) -> Option<Option<&Secret>> {
        match self {
            Self::ConsulKv { token, .. }
            | Self::ConsulCatalog { token, .. }
            | Self::ConsulIntentions { token, .. } => Some(token.as_ref()),
            Self::Poll | Self::LongPoll { .. } | Self::Discovery { .. } => None,
        }
    }

    /// The word for it in the status answer.
    pub(super) fn origin(&self) -> Origin {
        match self {
            Self::Poll => Origin::Http,
            Self::LongPoll { .. } => Origin::LongPoll,
            Self::ConsulKv { .. } => Origin::ConsulKv,
            Self::ConsulCatalog { .. } => Origin::ConsulCatalog,
            Self::ConsulIntentions { .. } => Origin::ConsulIntentions,
            Self::Discovery { .. } => Origin::Discovery,
        }
    }
}

impl Endpoint {
    /// Longest time that an answer may take; `timeout`, if the server is not asked to wait.
    pub(crate) fn longest_answer(&self) -> Span {
        let wait = self.protocol.wait().unwrap_or(Span::ZERO);
        self.timeout_after(wait)
    }

    /// Time after which a callout is given up that the server was asked to hold back for `wait`.
    pub(super) fn timeout_after(&self, wait: Span) -> Span {
        // Consul adds up to a sixteenth to the time that it waits.
        let slack = Span::from_millis(wait.as_millis().div_euclid(16));
        self.timeout.plus(wait).plus(slack)
    }

    /// Names the document among those of all filter instances: two that are configured alike, down
    /// to `salt`, which says how it is read, share one fetcher. The first half names the
    /// place that it comes from, whatever else is configured.
    pub(super) fn id(&self, salt: &str) -> String {
        let Self { cluster, uri, protocol, .. } = self;
        // `Debug` shows everything but secrets, and is the same for all VMs of one build.
        let place = Sha256::digest(format!("{cluster} {uri:?}"));
        let mut whole = Sha256::new_with_prefix(format!("{salt}\n{self:?}"));
        if let Some(Some(Secret(token))) = protocol.consul() {
            whole.update(token);
        }
        let whole = whole.finalize();
        let half = |digest: &[u8]| -> String {
            hexadecimal::of_bytes(digest).chars().take(PLACE_DIGITS).collect()
        };
        half(&place) + &half(&whole)
    }
}

/// Digits of an [`Endpoint::id`] that name the place.
pub(super) const PLACE_DIGITS: usize = 16;

/// Where the keys are, by the document of OpenID Connect Discovery 1.0 §4.2. A document that was
/// fetched by TLS must not lead to keys that are not.
///
/// # Errors
/// What is wrong with the document.
pub(super) fn discovered(
    document: &[u8],
    issuer: &str,
    scheme: &str,
    limits: &Limits,
) -> Result<Uri, String> {
    let Value::Object(members) =
        json::parse(document, limits.json_depth).map_err(|error| format!("discovery: {error}"))?
    else {
        return Err("discovery: the document is not a JSON object".to_owned());
    };
    let text = |name: &str| match members.get(name) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("discovery: `{name}` is not a string")),
        None => Err(format!("discovery: `{name}` is missing")),
    };
    let said = text("issuer")?;
    if said != issuer {
        let (said, issuer) = (quote(said), quote(issuer));
        return Err(format!("discovery: `issuer` is {said}, and not {issuer}"));
    }
    let keys = text("jwks_uri")?;
    match Uri::parse(keys) {
        Some(uri) if scheme == "https" && uri.scheme != scheme => {
            Err(format!("discovery: `jwks_uri` {} is not https", quote(keys)))
        }
        Some(uri) => Ok(uri),
        None => Err(format!(
            "discovery: `jwks_uri` {} is not an absolute http or https URI",
            quote(keys)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(protocol: Protocol) -> Endpoint {
        Endpoint {
            name: "main".to_owned(),
            cluster: "c".to_owned(),
            uri: Uri::parse("http://a/b").unwrap(),
            interval: Span::from_secs(5),
            min_interval: Span::from_secs(1),
            timeout: Span::from_secs(1),
            max_age: Span::from_secs(60),
            protocol,
        }
    }

    #[test]
    fn uris_are_absolute_and_plain() {
        let uri = Uri::parse("https://idp.example:8443?x=1").unwrap();
        assert_eq!(
            (uri.scheme, uri.authority.as_str(), uri.path.as_str()),
            ("https", "idp.example:8443", "/?x=1")
        );
        for text in [
            "",
            "idp",
            "ftp://a/",
            "http://",
            "http:///x",
            "http://u@a/",
            "http://a/#f",
            "http://a/ b",
        ] {
            assert_eq!(Uri::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_differs_in_anything_has_another_id_and_no_secret_is_shown() {
        let consul_with = |token: &str| Protocol::ConsulKv {
            wait: Span::from_secs(55),
            token: Some(Secret(token.to_owned())),
        };
        let consul = |token: &str| endpoint(consul_with(token));
        assert_eq!(consul("a").id(""), consul("a").id(""));
        assert_ne!(consul("a").id(""), consul("b").id(""));
        assert_ne!(consul("a").id(""), consul("a").id("x"));
        assert_ne!(endpoint(Protocol::Poll).id(""), consul("a").id(""));
        let place = |protocol, salt: &str| {
            endpoint(protocol).id(salt).get(..PLACE_DIGITS).map(str::to_owned)
        };
        assert_eq!(place(Protocol::Poll, ""), place(consul_with("a"), "x"));
        assert!(!format!("{:?}", consul("hush")).contains("hush"));
    }

    #[test]
    fn discovery_leads_to_the_keys_of_this_issuer_only() {
        let read = |document: &str| {
            discovered(document.as_bytes(), "https://idp", "https", &Limits::DEFAULT)
        };
        let good = r#"{"issuer":"https://idp","jwks_uri":"https://keys/jwks","more":[1]}"#;
        assert_eq!(read(good).unwrap().authority, "keys");
        for (document, words) in [
            ("<html>", "discovery: "),
            ("[]", "is not a JSON object"),
            (r#"{"jwks_uri":"https://keys/"}"#, "`issuer` is missing"),
            (r#"{"issuer":"https://idp/","jwks_uri":"https://keys/"}"#, "and not `https://idp`"),
            (r#"{"issuer":"https://idp"}"#, "`jwks_uri` is missing"),
            (r#"{"issuer":"https://idp","jwks_uri":7}"#, "is not a string"),
            (r#"{"issuer":"https://idp","jwks_uri":"/jwks"}"#, "is not an absolute"),
            (r#"{"issuer":"https://idp","jwks_uri":"http://keys/"}"#, "is not https"),
        ] {
            let error = read(document).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
