//! One kind of credential: who issues it, their keys, and what they verified and what not.

use std::rc::Rc;

use super::{CACHE_BYTES, CACHE_ENTRIES, Halt, Lack, Missing, Times, weight};
use crate::cache::Cache;
use crate::configuration::{Issuer, KeySource, Requirement};
use crate::credential::{IssuerRules, Presented, Verified, issuer_unknown};
use crate::facts::Claims;
use crate::feed::{Feed, Read, Site};
use crate::jose::{KeySet, LastHeader, SignatureVerifier};
use crate::limits::Limits;
use crate::quote::quote;
use crate::reject::{Code, Credential, Reject};
use crate::tally::Tally;
use crate::time::UnixTime;

/// One kind of credential: whether it is needed, who issues it, what was verified.
pub(super) struct Realm {
    pub(super) credential: Credential,
    pub(super) requirement: Requirement,
    pub(super) issuers: Vec<TrustedIssuer>,
    pub(super) verified: Cache<FromIssuer>,
    /// Credentials whose signature is invalid by the keys that there are: nothing about time or claims,
    /// which may be judged otherwise later.
    refused: Cache<Refused>,
    last_header: LastHeader,
    /// Keys that were not in their issuer's set when somebody named them.
    unknown: Cache<Asked>,
}

/// What anybody can fill has a smaller room, so that it costs little.
const REFUSED_ENTRIES: usize = 4096;
const REFUSED_BYTES: usize = 4 * 1024 * 1024;
const UNKNOWN_ENTRIES: usize = 4096;
const UNKNOWN_BYTES: usize = 1024 * 1024;

pub(super) struct TrustedIssuer {
    pub(super) rules: IssuerRules,
    pub(super) keys: Feed<KeySet>,
}

/// A verified credential and the index of its issuer.
pub(super) struct FromIssuer {
    pub(super) issuer: usize,
    /// Byte for byte.
    pub(super) text: Rc<[u8]>,
    pub(super) verified: Verified,
}

impl FromIssuer {
    /// The same credential with these claims.
    fn with(&self, claims: Claims) -> Rc<Self> {
        let Self { issuer, text, verified } = self;
        let verified = Verified { claims, ..verified.clone() };
        Rc::new(Self { issuer: *issuer, text: Rc::clone(text), verified })
    }
}

/// A credential whose signature is invalid, and the index of its issuer.
struct Refused {
    issuer: usize,
    reject: Reject,
}

/// When a key was asked for that was not there. A set that is as new as that and does not have it either
/// says that there is no such key, to everybody who asks until keys may be fetched again.
struct Asked {
    issuer: usize,
    at: UnixTime,
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
        let refused = Cache::new(REFUSED_ENTRIES, REFUSED_BYTES);
        let unknown = Cache::new(UNKNOWN_ENTRIES, UNKNOWN_BYTES);
        let last_header = LastHeader::default();
        Self { credential, requirement, issuers, verified, refused, unknown, last_header }
    }

    /// Drops what the issuer's old keys said, for and against; returns how many keys it has now.
    pub(super) fn forget(&mut self, issuer: usize) -> usize {
        self.verified.retain(|from| from.issuer != issuer);
        self.refused.retain(|refused| refused.issuer != issuer);
        self.unknown.retain(|asked| asked.issuer != issuer);
        let keys = self.issuers.get(issuer).and_then(|issuer| issuer.keys.current());
        keys.map_or(0, |keys| keys.len())
    }

    /// How many credentials it knows to be forged, and how many keys to be unknown.
    pub(super) fn refusals(&self) -> (usize, usize) {
        (self.refused.len(), self.unknown.len())
    }

    pub(super) fn verify(
        &mut self,
        text: Option<&[u8]>,
        limits: &Limits,
        verifier: &dyn SignatureVerifier,
        times: Times,
        tally: &mut Tally,
        missing: &dyn Fn() -> Reject,
    ) -> Result<Option<Rc<FromIssuer>>, Halt> {
        let Some(text) = text else {
            return match self.requirement {
                Requirement::Required => Err(missing().into()),
                Requirement::Optional | Requirement::Off => Ok(None),
            };
        };
        let now = times.now;
        let usable = |issuer: &&TrustedIssuer| issuer.keys.usable(now).is_some();
        if let Some(known) = self.verified.find(text)
            && let Some(issuer) = self.issuers.get(known.issuer).filter(usable)
        {
            known.verified.check_time(&issuer.rules, now)?;
            tally.credential_hits = tally.credential_hits.saturating_add(1);
            if known.verified.claims.are_known() {
                return Ok(Some(known));
            }
            let claims = Presented::parse(text, self.credential, limits)?.into_claims();
            return Ok(Some(known.with(claims)));
        }
        if let Some(refused) = self.refused.find(text)
            && self.issuers.get(refused.issuer).is_some_and(|issuer| usable(&issuer))
        {
            tally.refused_hits = tally.refused_hits.saturating_add(1);
            return Err(refused.reject.clone().into());
        }
        let presented =
            Presented::parse_like(&mut self.last_header, text, self.credential, limits)?;
        let mut issuers = self.issuers.iter_mut().enumerate();
        let found = issuers.find(|(_, issuer)| issuer.rules.issuer == presented.issuer());
        let Some((index, issuer)) = found else {
            let trusted = self.issuers.iter().map(|known| known.rules.issuer.as_str());
            return Err(issuer_unknown(self.credential, presented.issuer(), trusted).into());
        };
        // What no key could help is refused before anything is waited for.
        let algorithm = presented.check_rules(&issuer.rules)?;
        let Some(keys) = issuer.keys.usable(now).map(Rc::clone) else {
            let name = &issuer.rules.name;
            let detail = match issuer.keys.current() {
                None => format!("keys of issuer `{name}` were not fetched yet"),
                Some(_) => format!("keys of issuer `{name}` are too old"),
            };
            let reject = Reject::new(Code::KeysUnavailable, detail);
            return Err(Missing::new(reject, issuer.keys.retry_at(now), Lack::Document).into());
        };
        if let Err(reject) = presented.check_key(&issuer.rules, &keys) {
            let helps = presented.needs_newer_keys(&issuer.rules, &keys, now);
            return Err(if helps && issuer.keys.is_remote() {
                ask_for_key(&mut self.unknown, (index, issuer), &presented, reject, times)
            } else {
                reject.into()
            });
        }
        let outcome = presented.verify(&issuer.rules, &keys, verifier, now);
        let is_forged = |reject: &Reject| {
            matches!(reject.code, Code::TokenSignatureInvalid | Code::IdentitySignatureInvalid)
        };
        tally.verified(self.credential, algorithm, !outcome.as_ref().is_err_and(is_forged));
        match outcome {
            Ok(verified) => {
                let from = Rc::new(FromIssuer { issuer: index, text: text.into(), verified });
                // An access token is that of many tasks, one after the other, and each session has its claims. An
                // identity is that of one, and what is in it is in the session: who comes with it once more and
                // without a session has it read again, which costs a tenth of its signature.
                let kept = match self.credential {
                    Credential::Token => Rc::clone(&from),
                    Credential::Identity => from.with(Claims::default()),
                };
                let weight = weight::verified(&kept.verified);
                self.verified.insert(Rc::clone(&from.text), weight, kept);
                Ok(Some(from))
            }
            Err(reject) => {
                if is_forged(&reject) {
                    let refused = Refused { issuer: index, reject: reject.clone() };
                    let weight = size_of::<Refused>().saturating_add(reject.detail.len());
                    self.refused.insert(text, weight, Rc::new(refused));
                }
                Err(reject.into())
            }
        }
    }
}

/// What becomes of a credential whose key is not in the set: it is refused with `reject` if the set is
/// as new as the request, or as somebody who asked for the same key a moment ago. Otherwise newer keys
/// are wanted, and the request lacks them.
fn ask_for_key(
    unknown: &mut Cache<Asked>,
    (index, issuer): (usize, &mut TrustedIssuer),
    presented: &Presented<'_>,
    reject: Reject,
    Times { arrived, now }: Times,
) -> Halt {
    let name = &issuer.rules.name;
    // With a mark, so that no `kid` can pass for none.
    let mut key = index.to_le_bytes().to_vec();
    key.push(presented.key_id().is_some().into());
    key.extend_from_slice(presented.key_id().unwrap_or_default().as_bytes());

    let as_of = issuer.keys.as_of();
    // A set from the future was fetched before the clock was set back, nobody knows how long ago.
    let confirmed = |asked: UnixTime| (asked..=now).contains(&as_of);
    let asked = unknown.find(&key).filter(|asked| asked.at <= now);
    let recent = now.since(as_of) < issuer.keys.min_refresh();
    let pending = asked.as_ref().is_some_and(|asked| !confirmed(asked.at));
    let formerly = asked.as_ref().is_some_and(|asked| confirmed(asked.at));
    let known = recent && formerly;
    if !known && !pending {
        let asked = Asked { issuer: index, at: arrived };
        unknown.insert(key, size_of::<Asked>(), Rc::new(asked));
    }
    if known || confirmed(arrived) {
        return reject.into();
    }
    issuer.keys.want(now);
    let what = match presented.key_id() {
        Some(key_id) => format!("key {} of issuer `{name}` is unknown here", quote(key_id)),
        None => format!("issuer `{name}` has no key here that fits"),
    };
    let detail = format!("{what} and the keys could not be fetched again");
    let unavailable = Reject::new(Code::KeysUnavailable, detail);
    let missing = Missing::new(unavailable, issuer.keys.retry_at(now), Lack::Key);
    Missing { formerly: formerly.then_some(reject), ..missing }.into()
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
