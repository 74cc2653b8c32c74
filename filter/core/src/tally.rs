//! Counts that are kept in the worker and handed to the host from time to time: a host call for
//! every request would cost more than the counting.

use std::borrow::Cow;

use crate::gate::Verdict;
use crate::jose::Algorithm;
use crate::policy::ShadowVerdict;
use crate::reject::Credential;
use crate::series::{Decided, Series};
use crate::time::Span;

/// What was counted since the last time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Requests parked.
    pub parked: u64,
    /// Requests whose caller left before they were decided.
    pub abandoned: u64,
    /// Requests whose pair of credentials was known.
    pub session_hits: u64,
    /// Credentials that were known when their pair was not.
    pub credential_hits: u64,
    /// Credentials whose signature was known to be invalid.
    pub refused_hits: u64,
    /// How long each request that was parked and is decided now has waited.
    pub waited: Vec<Span>,
    /// Decisions and what shadow rules would have changed, by rule and destination: the counters' names.
    decisions: Vec<(String, u64)>,
    /// Signatures verified: by credential, algorithm and whether it was valid.
    verifications: [[[u64; 2]; Algorithm::ALL.len()]; 2],
    /// Their sum.
    verified: u64,
    /// What becomes `decisions`. It stays when the rest is taken.
    series: Series,
}

impl Tally {
    /// Signatures verified, or tried.
    pub fn verifications(&self) -> u64 {
        self.verified
    }

    /// Every counter that moved: its name and by how much.
    pub fn counters(&self) -> impl Iterator<Item = (Cow<'_, str>, u64)> {
        let verifications =
            [Credential::Token, Credential::Identity].into_iter().zip(&self.verifications);
        let verifications = verifications.flat_map(|(credential, by_algorithm)| {
            Algorithm::ALL.iter().zip(by_algorithm).flat_map(move |(algorithm, counts)| {
                ["invalid", "valid"].into_iter().zip(*counts).map(move |(outcome, count)| {
                    (credential.name(), algorithm.name(), outcome, count)
                })
            })
        });
        let verifications = verifications.filter(|(.., count)| *count > 0).map(
            |(credential, algorithm, outcome, count)| {
                let name = ["verifications", credential, algorithm, outcome].join(".");
                (Cow::Owned(name), count)
            },
        );
        let decisions = self.decisions.iter();
        [
            ("requests.parked", self.parked),
            ("requests.abandoned", self.abandoned),
            ("credentials.session_hit", self.session_hits),
            ("credentials.credential_hit", self.credential_hits),
            ("credentials.refused_hit", self.refused_hits),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (Cow::Borrowed(name), count))
        .chain(verifications)
        .chain(decisions.map(|(name, count)| (Cow::Borrowed(name.as_str()), *count)))
    }

    /// What was counted until now; the counts begin anew.
    pub(crate) fn take(&mut self) -> Self {
        let mut series = std::mem::take(&mut self.series);
        let decisions = series.take();
        let taken = std::mem::replace(self, Self { series, ..Self::default() });
        Self { decisions, ..taken }
    }

    /// A signature was verified, or found invalid.
    pub(crate) fn verified(
        &mut self,
        credential: Credential,
        algorithm: Algorithm,
        is_valid: bool,
    ) {
        let by_algorithm = self.verifications.get_mut(credential as usize);
        let counts = by_algorithm.and_then(|counts| counts.get_mut(algorithm as usize));
        if let Some(count) = counts.and_then(|counts| counts.get_mut(usize::from(is_valid))) {
            *count = count.saturating_add(1);
            self.verified = self.verified.saturating_add(1);
        }
    }

    pub(crate) fn verdict(&mut self, verdict: &Verdict) {
        let (group, rejection) = match verdict {
            Verdict::Permit(permit) => {
                let (destination, rule) = (permit.destination(), Some(permit.rule()));
                let word = "permit";
                self.series.count(Decided { group: "decisions", word, destination, rule });
                return self.shadow(destination, permit.shadow());
            }
            Verdict::Wait => {
                self.parked = self.parked.saturating_add(1);
                return;
            }
            Verdict::Reject(rejection) => ("decisions", rejection.as_ref()),
            Verdict::Pass(pass) => ("shadow_decisions", pass.rejection()),
            // No decision.
            Verdict::Status(_) => return,
        };
        let (word, rule) = (rejection.reject.code.name(), rejection.reject.rule.as_deref());
        let destination = rejection.known.destination.as_deref();
        self.series.count(Decided { group, word, destination, rule });
        self.shadow(destination, &rejection.known.shadow);
    }

    fn shadow(&mut self, destination: Option<&str>, verdicts: &[ShadowVerdict]) {
        for verdict in verdicts {
            let word = if verdict.permits { "permit" } else { "reject" };
            let (group, rule) = ("shadow_rules", Some(&*verdict.rule));
            self.series.count(Decided { group, word, destination, rule });
        }
    }
}
