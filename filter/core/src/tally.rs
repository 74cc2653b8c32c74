//! Counts that are kept in the worker and handed to the host from time to time: a host call for
//! every request would cost more than the counting.

use crate::gate::Verdict;
use crate::reject::Code;

/// What was counted since the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Requests permitted.
    pub permits: u64,
    /// Requests refused, in the order of [`Code::ALL`].
    rejects: [u64; Code::ALL.len()],
    /// Requests that would have been refused, had the mode been to enforce; in the same order.
    shadow_rejects: [u64; Code::ALL.len()],
    /// Requests parked.
    pub parked: u64,
    /// Requests whose pair of credentials was known.
    pub session_hits: u64,
    /// Credentials that were known when their pair was not.
    pub credential_hits: u64,
    /// Credentials whose signature was known to be invalid.
    pub refused_hits: u64,
    /// Signatures verified, or tried.
    pub verifications: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            permits: 0,
            rejects: [0; Code::ALL.len()],
            shadow_rejects: [0; Code::ALL.len()],
            parked: 0,
            session_hits: 0,
            credential_hits: 0,
            refused_hits: 0,
            verifications: 0,
        }
    }
}

impl Tally {
    /// Every counter that moved: its name and by how much.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let by_code = |group, counts: [u64; Code::ALL.len()]| {
            Code::ALL.iter().zip(counts).map(move |(code, count)| (group, code.name(), count))
        };
        [
            ("decisions", "permit", self.permits),
            ("requests", "parked", self.parked),
            ("credentials", "session_hit", self.session_hits),
            ("credentials", "credential_hit", self.credential_hits),
            ("credentials", "refused_hit", self.refused_hits),
            ("credentials", "verified", self.verifications),
        ]
        .into_iter()
        .chain(by_code("decisions", self.rejects))
        .chain(by_code("shadow_decisions", self.shadow_rejects))
        .filter(|(_, _, count)| *count > 0)
    }

    pub(crate) fn verdict(&mut self, verdict: &Verdict) {
        let counter = match verdict {
            Verdict::Permit(_) => Some(&mut self.permits),
            Verdict::Wait => Some(&mut self.parked),
            Verdict::Reject(rejection) => self.rejects.get_mut(rejection.reject.code as usize),
            Verdict::Pass(pass) => {
                self.shadow_rejects.get_mut(pass.rejection().reject.code as usize)
            }
            // No decision.
            Verdict::Status(_) => None,
        };
        if let Some(counter) = counter {
            *counter = counter.saturating_add(1);
        }
    }
}
