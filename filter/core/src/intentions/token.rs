//! What an intention asks of the access token (Consul's `JWT`).
//!
//! What it is not: a verifier. Signature, audience and times were checked by the issuer's rules in the
//! configuration; here is only asked who issued it and what its claims say.

use serde_json::Value;

use crate::facts::Claims;

/// One of these providers, with all that it must say.
#[derive(Debug)]
pub(super) struct Demand(pub(super) Box<[Provider]>);

#[derive(Debug)]
pub(super) struct Provider {
    /// The configured name of our issuer that stands for it.
    pub(super) issuer: Box<str>,
    pub(super) claims: Box<[Claim]>,
}

#[derive(Debug)]
pub(super) struct Claim {
    /// Member by member from the payload.
    pub(super) path: Box<[Box<str>]>,
    /// A string; no element of a list, and no number, is one.
    pub(super) value: Box<str>,
}

/// A verified access token.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// The configured name of its issuer.
    pub issuer: &'a str,
    /// Its claims.
    pub claims: &'a Claims,
}

impl Demand {
    pub(super) fn is_met(&self, token: Option<Token<'_>>) -> bool {
        let Some(token) = token else { return false };
        self.0.iter().any(|provider| {
            *provider.issuer == *token.issuer
                && provider.claims.iter().all(|claim| claim.is_in(token.claims))
        })
    }
}

impl Claim {
    fn is_in(&self, claims: &Claims) -> bool {
        let mut path = self.path.iter();
        let claim = path.next().and_then(|name| claims.get(name));
        let found = claim.and_then(|claim| path.try_fold(claim, |value, name| value.get(&**name)));
        found.and_then(Value::as_str) == Some(&self.value)
    }
}
