//! Which records are asked for.

use airflow_envoy_core::policy::explain::glob;
use airflow_envoy_core::time::UnixTime;

use super::record::{Decision, Kind, Record, Text};

/// What a decision must be like. A list holds if any of its globs (`*`: any run of characters) matches;
/// an empty one asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `dag_id`.
    pub dags: Vec<String>,
    /// `task_id`.
    pub tasks: Vec<String>,
    /// `run_id`.
    pub runs: Vec<String>,
    /// The destination.
    pub destinations: Vec<String>,
    /// The code of a refusal.
    pub codes: Vec<String>,
    /// What was decided.
    pub decisions: Vec<Decision>,
    /// The rule that decided, or came nearest.
    pub rules: Vec<String>,
    /// The grant.
    pub grants: Vec<String>,
    /// The trace id.
    pub traces: Vec<String>,
    /// The decision id.
    pub ids: Vec<String>,
    /// Not before.
    pub since: Option<UnixTime>,
    /// Before.
    pub until: Option<UnixTime>,
}

impl Wanted {
    /// Whether a record is a decision that is asked for.
    pub fn matches(&self, record: &Record<'_>) -> bool {
        if record.kind != Kind::Decision {
            return false;
        }
        let identity = record.caller.identity.as_ref();
        let any = |globs: &[String], values: &[Option<&Text<'_>>]| {
            let found = |value: &&Text<'_>| globs.iter().any(|pattern| glob(pattern, value));
            globs.is_empty() || values.iter().flatten().any(found)
        };
        let at = || record.at();
        any(&self.dags, &[identity.map(|identity| &identity.dag_id)])
            && any(&self.tasks, &[identity.map(|identity| &identity.task_id)])
            && any(&self.runs, &[identity.map(|identity| &identity.run_id)])
            && any(&self.destinations, &[record.destination.as_ref()])
            && any(&self.codes, &[record.code.as_ref()])
            && any(&self.rules, &[record.rule.as_ref(), record.nearest.as_ref()])
            && any(&self.grants, &[record.grant.as_ref()])
            && any(&self.traces, &[record.request.trace_id.as_ref()])
            && any(&self.ids, &[record.decision_id.as_ref()])
            && (self.decisions.is_empty()
                || record.decision.is_some_and(|decision| self.decisions.contains(&decision)))
            && self.since.is_none_or(|since| at().is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| at().is_some_and(|at| at < until))
    }
}
