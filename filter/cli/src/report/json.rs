//! A report for other programs.

use airflow_envoy_core::time::UnixTime;
use serde_json::{Value, json};

use super::bounded::Histogram;
use super::{Report, RuleUse, Target, Traffic, Use, Who};

/// Entries of each list.
const MOST: usize = 1_000;

impl Report {
    /// The sums; times are RFC 3339, durations microseconds. Of each list the first thousand.
    pub fn json(&self) -> Value {
        let traffic = self.traffic.sorted().into_iter().take(MOST).map(|((from, to), traffic)| {
            let mut value = counts(traffic);
            set(&mut value, "caller", who(from));
            set(&mut value, "target", target(to));
            value
        });
        let refusals = self.refusals.sorted().into_iter().take(MOST).map(|(cause, refusals)| {
            json!({
                "code": cause.code, "rule": cause.rule, "nearest": cause.nearest, "caller": who(&cause.who),
                "task_id": cause.task, "target": target(&cause.target), "count": refusals.count,
                "unenforced": refusals.unenforced, "first": at(refusals.first), "last": at(refusals.last),
                "detail": refusals.detail, "request": refusals.request, "decision_id": refusals.decision_id,
            })
        });
        let grants = self.grants.sorted().into_iter().take(MOST).map(|(id, used)| {
            let mut value = usage(used);
            set(&mut value, "grant", json!(id));
            set(&mut value, "grantable", json!(used.grantable));
            set(&mut value, "callers", used.who.iter().map(who).collect());
            value
        });
        let rules = self.rules.sorted().into_iter().take(MOST).map(|(id, used)| {
            let mut value = usage(used);
            set(&mut value, "rule", json!(id));
            value
        });
        let durations = self.slowest().into_iter().take(MOST).map(|(destination, durations)| {
            json!({
                "destination": destination, "total": percentiles(&durations.total),
                "decided": percentiles(&durations.decided),
            })
        });
        let named = self.timeline.names();
        let codes = named.iter().map(|(name, _)| (name.clone(), json!(self.timeline.counts(name))));
        let starts = self.timeline.starts();
        let streams = self.streams.iter().take(MOST).map(|(name, stream)| {
            let counts = stream.counts.map(|counts| {
                json!({
                    "permits": counts.permits, "rejects": counts.rejects, "abandoned": counts.abandoned,
                    "sampled_out": counts.sampled_out, "lost": counts.lost,
                })
            });
            json!({
                "stream": name, "process": stream.process, "version": stream.version, "key_id": stream.key_id,
                "first": at(stream.first), "last": at(stream.last), "records": stream.records,
                "missing": stream.missing(), "lost": stream.lost, "ended": stream.ended, "counts": counts,
            })
        });
        let (missing, lost) = self.gaps();
        let mut value = json!({
            "since": at(self.window.since), "until": at(self.window.until),
            "first": at(self.first), "last": at(self.last),
            "decisions": counts(&self.all),
            "records": {
                "decisions": self.recorded, "outside": self.outside, "duplicates": self.duplicates,
                "unreadable": self.unreadable, "foreign_lines": self.seen.foreign, "missing": missing, "lost": lost,
            },
            "verified": self.verified.as_ref().map(|verified| {
                json!({"faults": verified.faults, "records": verified.records, "vouched": verified.vouched})
            }),
            "traffic": traffic.collect::<Vec<_>>(),
            "traffic_not_told": not_told(&self.traffic.sorted(), self.traffic.given_up()),
            "refusals": refusals.collect::<Vec<_>>(),
            "refusals_not_told": not_told(&self.refusals.sorted(), self.refusals.given_up()),
            "grants": grants.collect::<Vec<_>>(),
            "rules": rules.collect::<Vec<_>>(),
            "durations_us": durations.collect::<Vec<_>>(),
            "timeline": {
                "span_seconds": self.timeline.width().as_secs_ceil(), "start": starts.first().map(ToString::to_string),
                "codes": codes.collect::<serde_json::Map<_, _>>(),
            },
            "streams": streams.collect::<Vec<_>>(),
        });
        if self.policy.is_some() {
            let rule = |rule: &RuleUse| {
                json!({
                    "rule": rule.id, "effect": rule.effect, "state": rule.state.name(), "place": rule.place,
                    "expires_at": at(rule.expires_at), "uses": rule.used.permits + rule.used.rejects + rule.used.watched,
                    "last": at(rule.used.last),
                })
            };
            set(&mut value, "unused_rules", self.unused().map(rule).collect());
            set(&mut value, "ending_rules", self.ending().map(rule).collect());
        }
        value
    }
}

/// Calls of entries that are not in a list.
fn not_told<K, V: super::Weight>(sorted: &[(K, &V)], given_up: u64) -> u64 {
    let rest = sorted.iter().skip(MOST).map(|(_, value)| value.weight());
    rest.fold(given_up, u64::saturating_add)
}

fn set(value: &mut Value, name: &str, member: Value) {
    if let Some(members) = value.as_object_mut() {
        members.insert(name.to_owned(), member);
    }
}

fn counts(traffic: &Traffic) -> Value {
    json!({
        "permits": traffic.permits, "granted": traffic.granted, "rejects": traffic.rejects,
        "unenforced": traffic.unenforced, "abandoned": traffic.abandoned,
    })
}

fn usage(used: &Use) -> Value {
    json!({
        "permits": used.permits, "rejects": used.rejects, "watched": used.watched, "first": at(used.first),
        "last": at(used.last),
    })
}

fn percentiles(histogram: &Histogram) -> Value {
    json!({
        "count": histogram.count(), "p50": histogram.percentile(50), "p95": histogram.percentile(95),
        "p99": histogram.percentile(99),
    })
}

fn at(at: Option<UnixTime>) -> Value {
    json!(at.map(|at| at.to_string()))
}

fn who(who: &Who) -> Value {
    match who {
        Who::Dag(name) => json!({"dag_id": name}),
        Who::Subject(name) => json!({"subject": name}),
        Who::Peer(name) => json!({"peer": name}),
        Who::Unverified => json!({}),
    }
}

fn target(target: &Target) -> Value {
    match target {
        Target::Destination(name) => json!({"destination": name}),
        Target::Host(name) => json!({"authority": name}),
        Target::Unknown => json!({}),
    }
}
