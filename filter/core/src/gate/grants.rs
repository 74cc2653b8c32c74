//! The temporary grants of one worker: the document as it was fetched, and what of it is in effect.
//!
//! No request waits for it, and none is refused because it is not there: without it the policies decide
//! alone.

use std::cell::{Cell, RefCell};

use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest as _, Sha256};

use super::{Effect, Severity};
use crate::configuration::{GRANTS, GrantSource};
use crate::feed::{Feed, Site};
use crate::jose::{Algorithm, PublicKey, SignatureVerifier};
use crate::limits::Limits;
use crate::policy::{GrantDocument, PolicySet, Unfit};
use crate::status::{Kind, Source};
use crate::time::UnixTime;

/// Signatures that are verified at one event or tick; the others follow. A worker that verifies a thousand
/// serves nobody else.
const SIGNATURES_AT_ONCE: usize = 32;

/// Log lines about what is left out of one document.
const MOST_LINES: usize = 20;

/// Whether a signature is good, by the digest of all that it depends on.
type Verified = FxHashMap<[u8; 32], bool>;

/// What one worker has of grants.
pub(super) struct Grants {
    pub(super) feed: Feed<GrantDocument>,
    /// The policies, with the grants in effect.
    set: PolicySet,
    /// The document or a policy is another one than the set was made of, or not all of it was verified.
    due: bool,
    /// The signatures of the document.
    verified: Verified,
    /// The grants that are left out: what they say to be their id, and why.
    told: FxHashSet<(Option<String>, String)>,
}

impl Grants {
    pub(super) fn new(source: GrantSource, policies: &PolicySet, site: &Site) -> Self {
        let feed = match source {
            GrantSource::Inline(document) => Feed::fixed(document),
            GrantSource::Remote(endpoint) => {
                Feed::remote(endpoint, site.limits.grants_bytes, GRANTS, site)
            }
        };
        let (set, verified, told) = (policies.clone(), Verified::default(), FxHashSet::default());
        Self { feed, set, due: true, verified, told }
    }

    /// The policies with the grants, unless their document is too old to be relied on.
    pub(super) fn usable(&self, now: UnixTime) -> Option<&PolicySet> {
        self.feed.usable(now).map(|_| &self.set)
    }

    /// There is a new document.
    pub(super) fn renew(&mut self) {
        self.due = true;
    }

    /// There are new policies: no call is decided by the former ones.
    pub(super) fn renew_under(&mut self, policies: &PolicySet) {
        self.set.clone_from(policies);
        self.due = true;
    }

    /// Takes what is new into effect, as far as it can be verified now.
    pub(super) fn load(
        &mut self,
        policies: &PolicySet,
        now: UnixTime,
        limits: &Limits,
        verifier: &dyn SignatureVerifier,
        effects: &mut Vec<Effect>,
    ) {
        if !self.due {
            return;
        }
        self.due = false;
        let Some(document) = self.feed.current() else { return };
        let remembering = Remembering {
            verifier,
            known: &self.verified,
            used: RefCell::default(),
            left: Cell::new(SIGNATURES_AT_ONCE),
            exhausted: Cell::new(false),
        };
        let (set, unfit) = policies.with_grants(document, now, limits, &remembering);
        let Remembering { used, exhausted, .. } = remembering;
        self.set = set;
        self.verified = used.into_inner();
        self.due = exhausted.get();
        // What was not verified yet is not unfit.
        if self.due {
            return;
        }
        // By what it is, not by its place: that changes with the others.
        let key = |unfit: &Unfit| (unfit.id.clone(), unfit.problem.clone());
        let new = unfit.iter().filter(|unfit| !self.told.contains(&key(unfit)));
        let new: Vec<String> = new.map(ToString::to_string).collect();
        self.told = unfit.iter().map(key).collect();
        if !self.is_told_here(now) {
            return;
        }
        effects.push(self.gauge(now));
        let counts = new.iter().map(|_| Effect::Count("grants.refused".to_owned()));
        effects.extend(counts);
        let more = new.len().saturating_sub(MOST_LINES);
        let more = (more > 0).then(|| format!("and {more} more grants that are left out"));
        for line in new.into_iter().take(MOST_LINES).chain(more) {
            effects.push(Effect::Log(Severity::Warning, format!("policy `{GRANTS}`: {line}")));
        }
    }

    /// How many are in effect, if it is this worker that tells.
    pub(super) fn observe(&self, now: UnixTime) -> Option<Effect> {
        self.is_told_here(now).then(|| self.gauge(now))
    }

    pub(super) fn status(&self, now: UnixTime) -> Source {
        Source {
            name: GRANTS.to_owned(),
            kind: Kind::Grants,
            count: self.in_effect(now),
            ..self.feed.status(now)
        }
    }

    fn in_effect(&self, now: UnixTime) -> usize {
        self.usable(now).map_or(0, |set| set.grants_in_effect(now))
    }

    fn gauge(&self, now: UnixTime) -> Effect {
        Effect::Gauge("grants.active".to_owned(), self.in_effect(now) as u64)
    }

    /// Whether this worker speaks for all.
    fn is_told_here(&self, now: UnixTime) -> bool {
        !self.feed.is_remote() || self.feed.leads(now)
    }
}

/// Verifies each signature once as long as it is in the document, and only so many at once: one beyond
/// counts as bad for now.
struct Remembering<'v> {
    verifier: &'v dyn SignatureVerifier,
    known: &'v Verified,
    used: RefCell<Verified>,
    left: Cell<usize>,
    exhausted: Cell<bool>,
}

impl SignatureVerifier for Remembering<'_> {
    fn verify(
        &self,
        key: &PublicKey,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        // INVARIANT: a thumbprint has one length, and so has a signature by the key that it names.
        let digest = Sha256::new().chain_update(key.thumbprint()).chain_update(signature);
        let digest: [u8; 32] = digest.chain_update(message).finalize().into();
        let good = match (self.known.get(&digest), self.left.get().checked_sub(1)) {
            (Some(known), _) => *known,
            (None, Some(left)) => {
                self.left.set(left);
                self.verifier.verify(key, algorithm, message, signature)
            }
            (None, None) => {
                self.exhausted.set(true);
                return false;
            }
        };
        self.used.borrow_mut().insert(digest, good);
        good
    }
}
