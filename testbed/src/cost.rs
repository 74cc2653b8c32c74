//! What the audit trail costs: Envoy's own processor time for a call, with and without it.
//!
//! Several Envoys that differ in nothing else are asked in turn, so that all meet the same machine. One of them has no
//! filter at all: what the one without a trail takes more is the filter's own time.

use std::fmt;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::audit::Collector;
use crate::error::{Context as _, Result};
use crate::load::{Connection, Credentials, get, percentile};
use crate::{Options, Task, Testbed};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rounds; in each, every Envoy is asked, another one first.
    pub rounds: usize,
    /// Calls of a round to each by a caller that it knows.
    pub known: usize,
    /// Calls of a round to each by callers that it has never seen.
    pub fresh: usize,
}

impl Plan {
    /// So many rounds of a quarter of a minute each.
    pub const fn of(rounds: usize) -> Self {
        Self { rounds, known: 1_000, fresh: 60 }
    }
}

/// The Envoys, by what becomes of the filter's records. The first has no filter.
const ENVOYS: [&str; 4] = ["no filter", "no audit", "log", "collector"];

/// Processor time of each Envoy for a call of one kind, in microseconds: a value for each round.
#[derive(Debug, Clone)]
pub struct Row {
    /// Who called.
    pub calls: &'static str,
    rounds: Vec<[f64; 4]>,
}

impl Row {
    /// The head of the table.
    pub const HEAD: &str = "| calls | µs a call: no filter | no audit | log | collector | log / no audit | collector / no audit | the filter's own: log | collector |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|";

    /// The median over the rounds, and half of the distance between the quartiles.
    fn over(&self, value: impl Fn(&[f64; 4]) -> f64) -> (f64, f64) {
        let mut values: Vec<f64> = self.rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let at = |share| percentile(&values, share).copied().unwrap_or(f64::NAN);
        (at(0.5), (at(0.75) - at(0.25)) / 2.0)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "| {} ", self.calls)?;
        for time in [
            self.over(|[bare, ..]| *bare),
            self.over(|[_, off, ..]| *off),
            self.over(|[_, _, log, _]| *log),
            self.over(|[.., collector]| *collector),
        ] {
            write!(formatter, "| {:.1} ± {:.1} ", time.0, time.1)?;
        }
        // The filter's own time is what is left without what Envoy takes anyway.
        for ratio in [
            self.over(|[_, off, log, _]| log / off),
            self.over(|[_, off, _, collector]| collector / off),
            self.over(|[bare, off, log, _]| (log - bare) / (off - bare)),
            self.over(|[bare, off, _, collector]| (collector - bare) / (off - bare)),
        ] {
            write!(formatter, "| {:.3} ± {:.3} ", ratio.0, ratio.1)?;
        }
        formatter.write_str("|")
    }
}

/// Measures Envoys of one worker each, by permitted calls on one connection.
///
/// # Errors
/// If a testbed does not come up, or a call is not answered with 200.
pub async fn run(plan: Plan) -> Result<Vec<Row>> {
    let collector = Collector::start().await?;
    let mut callers = Vec::new();
    for name in ENVOYS {
        callers.push(Caller::of(name, &collector).await?);
    }
    let kinds = [("known callers", plan.known, false), ("fresh credentials", plan.fresh, true)];
    let mut rows = kinds.map(|(calls, ..)| Row { calls, rounds: Vec::new() });
    // The first round warms up.
    for round in 0..=plan.rounds {
        for (row, (_, calls, fresh)) in rows.iter_mut().zip(kinds) {
            let mut times = [0.0; 4];
            for turn in 0..ENVOYS.len() {
                let which = (round + turn) % ENVOYS.len();
                if let (Some(time), Some(caller)) = (times.get_mut(which), callers.get_mut(which)) {
                    *time = caller.measure(calls, fresh).await.context(caller.name)?;
                }
            }
            if round > 0 {
                row.rounds.push(times);
            }
        }
    }
    Ok(rows.into())
}

/// Who calls one of the Envoys.
struct Caller {
    name: &'static str,
    testbed: Testbed,
    connection: Connection,
}

impl Caller {
    async fn of(name: &'static str, collector: &Collector) -> Result<Self> {
        let address = collector.address;
        let audit = move |configured: Value| match name {
            "log" => Some(configured),
            "collector" => {
                let sink = json!({ "cluster": "audit", "uri": "http://audit/v1/records" });
                let mut members = configured.as_object().cloned().unwrap_or_default();
                members.insert("sinks".to_owned(), json!([{ "http": sink }]));
                Some(members.into())
            }
            _ => None,
        };
        let testbed = Testbed::start(Options {
            concurrency: 1,
            // The level of a production's log, at which records are written.
            log_level: "info",
            configure: Box::new(move |configuration| {
                if let Some(members) = configuration.as_object_mut()
                    && let Some(audit) = members.remove("audit").and_then(audit)
                {
                    members.insert("audit".to_owned(), audit);
                }
            }),
            bootstrap: Box::new(move |bootstrap| {
                // INVARIANT: both are in `envoy.yaml`; an Envoy with neither would show in its figures.
                let _ = bootstrap.set_endpoint("audit", address);
                if name == "no filter" {
                    let _ = bootstrap.remove_filter();
                }
            }),
            ..Options::default()
        })
        .await?;
        Ok(Self { name, connection: Connection::new(testbed.listener), testbed })
    }

    /// Microseconds of processor time for a call.
    async fn measure(&mut self, calls: usize, fresh: bool) -> Result<f64> {
        let mut credentials = Vec::new();
        for _ in 0..if fresh { calls } else { 1 } {
            let task = Task::new("ds_churn", "load").team("data-science");
            let (token, identity) = self.testbed.credentials(&task).await?;
            credentials.push(Credentials::new(&token, &identity)?);
        }
        if !fresh {
            self.call(credentials.first()).await?;
        }
        let before = self.testbed.processor_time()?;
        for number in 0..calls {
            self.call(credentials.get(number).or(credentials.first())).await?;
        }
        // What is written and posted later is of these calls, too.
        tokio::time::sleep(Duration::from_millis(250)).await;
        let taken = self.testbed.processor_time()?.saturating_sub(before);
        Ok(taken.as_secs_f64() * 1e6 / calls as f64)
    }

    async fn call(&mut self, credentials: Option<&Credentials>) -> Result<()> {
        let answered = self.connection.call(|| get("/v1/orders/7", credentials)).await?;
        (answered.status == 200).then_some(()).context("a permitted call")
    }
}

/// Processor time of a process's threads so far.
pub(crate) fn processor_time(process: u32) -> Result<Duration> {
    let tasks = format!("/proc/{process}/task");
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(&tasks).context(&tasks)? {
        let path = task.context(&tasks)?.path().join("schedstat");
        let text = fs::read_to_string(&path).context(path.display())?;
        let time = text.split_whitespace().next().and_then(|time| time.parse::<u64>().ok());
        nanoseconds = nanoseconds.saturating_add(time.context(path.display())?);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_filters_own_time_is_without_what_envoy_takes_anyway() {
        let rounds = vec![[100.0, 150.0, 155.0, 160.0]; 3];
        let row = Row { calls: "known callers", rounds }.to_string();
        assert!(
            row.ends_with("| 1.033 ± 0.000 | 1.067 ± 0.000 | 1.100 ± 0.000 | 1.200 ± 0.000 |"),
            "{row}"
        );
    }

    #[test]
    fn the_time_of_a_process_that_works_grows() {
        let mut busy =
            std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let begun = Instant::now();
        let worked = || processor_time(busy.id()).unwrap();
        let before = worked();
        while worked() < before + Duration::from_millis(20)
            && begun.elapsed() < Duration::from_secs(20)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let after = worked();
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(after >= before + Duration::from_millis(20), "{before:?} {after:?}");
    }
}
