//! One kind of credential: who issues it, their keys, and what was verified by them.

use std::rc::Rc;

use super::{CACHE_BYTES, CACHE_ENTRIES, Halt};
use crate::arrival::Request;
use crate::cache::Cache;
use crate::configuration::{Issuer, KeySource, Requirement};
use crate::credential::{IssuerRules, Presented, Verified, issuer_unknown};
use crate::feed::{Feed, Read, Site};
use crate::jose::{KeySet, SignatureVerifier};
use crate::limits::Limits;
use crate::reject::{Code, Credential, Reject};
use crate::tally::Tally;
use crate::time::UnixTime;

/// One kind of credential: whether it is needed, who issues it, what was verified.
pub(super) struct Realm {
    pub(super) credential: Credential,
    pub(super) requirement: Requirement,
    pub(super) issuers: Vec<TrustedIssuer>,
    pub(super) verified: Cache<FromIssuer>,
}

pub(super) struct TrustedIssuer {
    pub(super) rules: IssuerRules,
    pub(super) keys: Feed<KeySet>,
}

/// A verified credential and the index of its issuer.
pub(super) struct FromIssuer {
    pub(super) issuer: usize,
    pub(super) verified: Verified,
}

impl Requirement {
    /// What `read` finds, unless the credential is never looked at.
    pub(super) fn wants<T>(
        self,
        read: impl FnOnce() -> Result<T, Reject>,
    ) -> Result<Option<T>, Reject> {
        match self {
            Self::Off => Ok(None),
            Self::Required | Self::Optional => read().map(Some),
        }
    }
}

impl Realm {
    pub(super) fn new(
        credential: Credential,
        requirement: Requirement,
        issuers: Vec<Issuer>,
        site: &Site,
    ) -> Self {
        let issuers = issuers
            .into_iter()
            .map(|Issuer { rules, keys }| TrustedIssuer {
                rules,
                keys: match keys {
                    KeySource::Inline(keys) => Feed::fixed(keys),
                    KeySource::Remote(endpoint) => {
                        Feed::remote(endpoint, site.limits.key_set_bytes, "keys", site)
                    }
                },
            })
            .collect();
        let verified = Cache::new(CACHE_ENTRIES, CACHE_BYTES);
        Self { credential, requirement, issuers, verified }
    }

    /// Drops what the issuer's old keys vouched for; returns how many keys it has now.
    pub(super) fn forget(&mut self, issuer: usize) -> usize {
        self.verified.retain(|from| from.issuer != issuer);
        let keys = self.issuers.get(issuer).and_then(|issuer| issuer.keys.current());
        keys.map_or(0, |keys| keys.len())
    }

    pub(super) fn verify(
        &mut self,
        text: Option<&[u8]>,
        limits: &Limits,
        verifier: &dyn SignatureVerifier,
        now: UnixTime,
        tally: &mut Tally,
        missing: impl FnOnce() -> Reject,
    ) -> Result<Option<Rc<FromIssuer>>, Halt> {
        let Some(text) = text else {
            return match self.requirement {
                Requirement::Required => Err(missing().into()),
                Requirement::Optional | Requirement::Off => Ok(None),
            };
        };
        if let Some(known) = self.verified.find(text)
            && let Some(issuer) = self.issuers.get(known.issuer)
            && issuer.keys.usable(now).is_some()
        {
            known.verified.check_time(&issuer.rules, now)?;
            tally.credential_hits = tally.credential_hits.saturating_add(1);
            return Ok(Some(known));
        }
        let presented = Presented::parse(text, self.credential, limits)?;
        let (index, issuer) = self.issuer(&presented)?;
        // What no key could help is refused before anything is waited for.
        presented.check_rules(&issuer.rules)?;
        let Some(keys) = issuer.keys.usable(now) else {
            let name = &issuer.rules.name;
            let detail = match issuer.keys.current() {
                None => format!("keys of issuer `{name}` were not fetched yet"),
                Some(_) => format!("keys of issuer `{name}` are too old"),
            };
            let reject = Reject::new(Code::KeysUnavailable, detail);
            return Err(Halt::Missing(Box::new(reject), issuer.keys.next_at()));
        };
        tally.verifications = tally.verifications.saturating_add(1);
        let verified = presented.verify(&issuer.rules, keys, verifier, now)?;
        let from = Rc::new(FromIssuer { issuer: index, verified });
        self.verified.insert(text, text.len(), Rc::clone(&from));
        Ok(Some(from))
    }

    fn issuer(&self, presented: &Presented) -> Result<(usize, &TrustedIssuer), Reject> {
        let mut issuers = self.issuers.iter().enumerate();
        let found = issuers.find(|(_, issuer)| issuer.rules.issuer == presented.issuer());
        found.ok_or_else(|| {
            let trusted = self.issuers.iter().map(|known| known.rules.issuer.as_str());
            issuer_unknown(self.credential, presented.issuer(), trusted)
        })
    }
}

/// Reads a key set; one without a usable key is none.
pub(super) fn read_keys(body: &[u8], limits: &Limits) -> Result<Read<KeySet>, String> {
    let (keys, skipped) = KeySet::parse(body, limits).map_err(|error| error.to_string())?;
    if keys.is_empty() {
        return Err("it holds no usable key".to_owned());
    }
    let notes = skipped.iter().map(ToString::to_string).collect();
    Ok(Read { document: keys, notes, mark: String::new() })
}

/// The token of `authorization: Bearer …` (RFC 6750 §2.1); the scheme is case-insensitive (RFC 9110 §11.1).
pub(super) fn bearer<'a>(request: &Request<'a>) -> Result<Option<&'a [u8]>, Reject> {
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
