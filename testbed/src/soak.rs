//! Whether memory stays where it is, under everything that happens at once: `scripts/bench soak` prints it as a table.
//!
//! Callers with fresh credentials call at a fixed rate, so that the caches fill and turn over; the policy changes, now and
//! then to a large one and back; keys are rotated; every decision is recorded. Envoy's memory is sampled all the time. It
//! may grow to a plateau, and not beyond: what the last third of the time needs is compared with what the one before
//! it needed.

use std::fmt;
use std::fs;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::audit::Collector;
use crate::document::Source;
use crate::error::{Context as _, Error, Result};
use crate::load::{Connection, Credentials, Expected, Load, Tally, Traffic, get};
use crate::{ORDERS, Options, Task, Testbed, TokenRequest, within};

/// What a callers' path is.
const PATH: &str = "/v1/orders/7";

/// Pairs of credentials in use at one time.
const PAIRS: usize = 512;

/// Memory may exceed its plateau by this share, and by so many MiB: samples meet Envoy at different moments of a change.
const SLACK: (f64, f64) = (0.05, 4.0);

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// For how long.
    pub time: Duration,
    /// Calls a second.
    pub rate: u32,
    /// Fresh pairs of credentials a second.
    pub fresh: u32,
    /// Rules of the large policy.
    pub rules: usize,
    /// Between two changes of the policy; every fifth one is to the large policy.
    pub policy_every: Duration,
    /// Between two rotations of keys.
    pub keys_every: Duration,
    /// Samples to be shown.
    pub samples: u32,
}

impl Plan {
    /// For so long, as production would at its worst.
    pub const fn of(time: Duration) -> Self {
        Self {
            time,
            rate: 1_000,
            fresh: 250,
            rules: 10_000,
            policy_every: Duration::from_secs(2),
            keys_every: Duration::from_secs(20),
            samples: 30,
        }
    }

    /// For a look whether it still runs.
    pub const QUICK: Self = Self {
        time: Duration::from_secs(18),
        rate: 200,
        fresh: 50,
        rules: 2_000,
        policy_every: Duration::from_secs(1),
        keys_every: Duration::from_secs(4),
        samples: 9,
    };
}

/// Envoy at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Since the load began.
    pub at: Duration,
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// What Envoy's own allocator has given out, in KiB.
    pub allocated_kib: u64,
    /// The resident part of the WebAssembly memories, in KiB: one for each VM.
    pub wasm_kib: u64,
    /// Sessions, tokens and identities that all workers remember.
    pub remembered: u64,
    /// Calls so far.
    pub calls: u64,
    /// Policies loaded so far, by whoever fetched them.
    pub policies: u64,
}

impl Sample {
    /// The head of the table.
    pub const HEAD: &str = "| s | calls | policies | remembered | RSS MiB | allocated MiB | wasm MiB |\n|--:|--:|--:|--:|--:|--:|--:|";
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, policies, remembered, .. } = self;
        write!(formatter, "| {} | {calls} | {policies} | {remembered} ", self.at.as_secs())?;
        for kib in [self.resident_kib, self.allocated_kib, self.wasm_kib] {
            write!(formatter, "| {:.1} ", mebibytes(kib))?;
        }
        formatter.write_str("|")
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Found {
    /// All samples.
    pub samples: Vec<Sample>,
    /// All calls.
    pub tally: Tally,
}

impl Found {
    /// What is not as it should be: memory beyond its plateau, calls that were answered wrongly, or too little that
    /// happened to say anything.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = growth(&self.samples);
        let wrong = self.tally.wrong();
        if wrong > 0 {
            faults
                .push(format!("{wrong} answers were wrong, for example {:?}", self.tally.examples));
        }
        if self.tally.calls() < 100 {
            faults.push(format!("only {} calls", self.tally.calls()));
        }
        faults
    }
}

/// Reads one kind of memory of a sample.
type Measure = fn(&Sample) -> u64;

/// Which kind of memory grew beyond its plateau.
fn growth(samples: &[Sample]) -> Vec<String> {
    let third = samples.len() / 3;
    if third == 0 {
        return vec![format!("{} samples say nothing", samples.len())];
    }
    let kinds: [(&str, Measure); 3] = [
        ("resident", |sample| sample.resident_kib),
        ("allocated", |sample| sample.allocated_kib),
        ("WebAssembly", |sample| sample.wasm_kib),
    ];
    let most = |samples: &[Sample], of: Measure| {
        mebibytes(samples.iter().map(of).max().unwrap_or_default())
    };
    let (share, mib) = SLACK;
    let grown = kinds.into_iter().filter_map(|(kind, of)| {
        let (_, later) = samples.split_at_checked(third)?;
        let (plateau, last) = later.split_at_checked(later.len() / 2)?;
        let (plateau, last) = (most(plateau, of), most(last, of));
        (last > plateau * (1.0 + share) + mib)
            .then(|| format!("{kind} memory grew beyond its plateau: {plateau:.1} → {last:.1} MiB"))
    });
    grown.collect()
}

/// Callers, of whom some are replaced all the time.
struct Callers {
    pairs: RwLock<Vec<Credentials>>,
}

impl Traffic for Callers {
    fn request(&self, number: u64) -> Request<Empty<Bytes>> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(number).unwrap_or_default() % pairs.len().max(1);
        get(PATH, pairs.get(index))
    }

    fn expected(&self, _: u64, _: Instant, _: Instant) -> Expected {
        Expected { allowed: true, refused: &[] }
    }
}

/// A policy of which one rule is met, and `others` are not.
fn policy(revision: u64, others: usize) -> Value {
    let rule = json!({
        "id": "reads", "effect": "allow", "from": { "teams": ["data-science"] },
        "to": ["orders"], "methods": ["GET"], "paths": ["/v1/orders/*"],
    });
    let more = (0..others).map(|number| {
        json!({
            "id": format!("rule-{number}"), "effect": "allow",
            "from": { "dags": [format!("dag_{number}_{revision}")] },
            "to": ["orders"], "methods": ["GET"], "paths": [format!("/v1/teams/{number}/**")],
        })
    });
    json!({
        "version": 1, "revision": revision,
        "destinations": { "orders": { "hosts": [ORDERS] } },
        "rules": std::iter::once(rule).chain(more).collect::<Vec<_>>(),
    })
}

/// Soaks an Envoy with two workers and says each sample as soon as it is there.
///
/// # Errors
/// If the stage cannot be set, or something that was to happen does not.
pub async fn run(plan: Plan, mut say: impl FnMut(&Sample)) -> Result<Found> {
    let collector = Collector::start().await?;
    let address = collector.address;
    let testbed = Testbed::start(Options {
        policy: Source::Text(policy(1, 0).to_string()),
        configure: Box::new(|configuration| {
            for (place, value) in [
                ("/issuers/0/jwks/min_refresh", json!("500ms")),
                ("/airflow/issuers/0/jwks/min_refresh", json!("500ms")),
                (
                    "/audit/sinks",
                    json!([{ "http": { "cluster": "audit", "uri": "http://audit/v1/records" } }]),
                ),
                ("/policy/sources/0/http/long_poll", json!("55s")),
            ] {
                if let Some((parent, name)) = place.rsplit_once('/')
                    && let Some(members) =
                        configuration.pointer_mut(parent).and_then(Value::as_object_mut)
                {
                    members.insert(name.to_owned(), value);
                }
            }
        }),
        bootstrap: Box::new(move |bootstrap| {
            // INVARIANT: `envoy.yaml` has the cluster; without it no batch would reach the collector.
            let _ = bootstrap.set_endpoint("audit", address);
        }),
        ..Options::default()
    })
    .await?;
    let callers = Arc::new(Callers { pairs: RwLock::new(mint(&testbed, PAIRS).await?) });
    within(Duration::from_secs(10), "the policy serves", async || {
        let answer = Connection::new(testbed.listener).call(|| callers.request(0)).await;
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .await?;

    let begun = Instant::now();
    let (mut samples, mut tally) = (Vec::new(), Tally::default());
    let (mut revision, mut changed, mut rotated) = (1, begun, begun);
    let mut oldest = 0;
    let every = plan.time / plan.samples;
    while begun.elapsed() < plan.time {
        let second = Load { rate: plan.rate, connections: 64, time: Duration::from_secs(1) };
        let load = tokio::spawn(second.run(testbed.listener, Arc::clone(&callers)));
        if rotated.elapsed() >= plan.keys_every {
            rotated = Instant::now();
            testbed.oidc.rotate(false).await?;
            testbed.airflow.rotate(false);
        }
        if changed.elapsed() >= plan.policy_every {
            changed = Instant::now();
            revision += 1;
            let rules = if revision % 5 == 0 { plan.rules } else { 0 };
            testbed.policy.set(&policy(revision, rules));
        }
        let fresh = mint(&testbed, usize::try_from(plan.fresh).unwrap_or_default()).await?;
        for pair in fresh {
            let mut pairs = callers.pairs.write().unwrap_or_else(PoisonError::into_inner);
            let count = pairs.len().max(1);
            if let Some(place) = pairs.get_mut(oldest % count) {
                *place = pair;
            }
            oldest += 1;
        }
        tally.add(load.await.context("the load")??);
        // What it took is of no interest here, and would be memory on the same machine.
        collector.forget();
        let due = every * u32::try_from(samples.len()).unwrap_or(u32::MAX);
        if begun.elapsed() >= due {
            let sample = look(&testbed, begun.elapsed(), tally.calls()).await?;
            say(&sample);
            samples.push(sample);
        }
    }
    if collector.posts() == 0 {
        return Err(Error::new("no record of a decision reached the collector"));
    }
    Ok(Found { samples, tally })
}

async fn look(testbed: &Testbed, at: Duration, calls: u64) -> Result<Sample> {
    let stats = testbed.admin("/stats").await?;
    let sum = |part: &str| -> u64 {
        let lines = stats.lines().filter_map(|line| line.split_once(": "));
        let values = lines.filter(|(name, _)| name.contains(part));
        values.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
    };
    Ok(Sample {
        at,
        resident_kib: testbed.memory_kib()?,
        allocated_kib: sum("server.memory_allocated") / 1024,
        wasm_kib: wasm_kib(&testbed.memory_map()?),
        remembered: sum("airflow_envoy.remembered."),
        calls,
        policies: sum("airflow_envoy.callouts.main.updated"),
    })
}

/// The resident part of the WebAssembly memories of a process, by its `/proc/<id>/smaps`, in KiB. V8 reserves gibibytes
/// of addresses for each and makes the beginning of them readable: no other memory looks so.
fn wasm_kib(smaps: &str) -> u64 {
    let mut total = 0;
    // The end, the resident part, of the last mapping that may be one.
    let mut candidate: Option<(u64, u64)> = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let bounds = first.split_once('-').and_then(|(start, end)| {
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        });
        if let Some((start, end)) = bounds {
            let access = words.next().unwrap_or_default();
            if let Some((former, resident)) = candidate
                && former == start
                && access.starts_with("---")
                && end.saturating_sub(start) >= 2 << 30
            {
                total += resident;
            }
            candidate = access.starts_with("rw").then_some((end, 0));
        } else if first == "Rss:"
            && let (Some((_, resident)), Some(kib)) = (&mut candidate, words.next())
        {
            *resident = kib.parse().unwrap_or_default();
        }
    }
    total
}

/// Pairs of fresh credentials: one token, and as many tasks.
async fn mint(testbed: &Testbed, pairs: usize) -> Result<Vec<Credentials>> {
    let token = testbed.oidc.token(&TokenRequest::default()).await?;
    (0..pairs)
        .map(|number| {
            let task = Task::new("ds_churn", &format!("load_{number}")).team("data-science");
            Credentials::new(&token, &testbed.airflow.mint(&task, Some(&token)))
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "a figure to be shown")]
fn mebibytes(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The memory map of a process, as `/proc` shows it.
pub(crate) fn memory_map(process: u32) -> Result<String> {
    let path = format!("/proc/{process}/smaps");
    fs::read_to_string(&path).context(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(resident_mib: &[u64], wasm_mib: &[u64]) -> Vec<Sample> {
        let both = resident_mib.iter().zip(wasm_mib);
        let sample = |(resident, wasm): (&u64, &u64)| Sample {
            at: Duration::ZERO,
            resident_kib: resident * 1024,
            allocated_kib: 1024,
            wasm_kib: wasm * 1024,
            remembered: 0,
            calls: 0,
            policies: 0,
        };
        both.map(sample).collect()
    }

    #[test]
    fn memory_may_grow_to_its_plateau_and_not_beyond() {
        let flat = [100, 200, 300, 310, 290, 310, 312, 300, 305];
        assert_eq!(growth(&samples(&flat, &[10; 9])), [""; 0]);
        let growing = [100, 200, 300, 310, 320, 330, 340, 350, 360];
        assert_eq!(
            growth(&samples(&growing, &[10; 9])),
            ["resident memory grew beyond its plateau: 330.0 → 360.0 MiB"]
        );
        let leaking = [10, 12, 14, 16, 18, 20, 22, 24, 26];
        assert_eq!(growth(&samples(&flat, &leaking)).len(), 1, "the WebAssembly memory");
        assert_eq!(growth(&samples(&[1, 2], &[1, 2])), ["2 samples say nothing"]);
    }

    #[test]
    fn the_memories_of_webassembly_are_those_before_reserved_gibibytes() {
        let map = "\
10000000-10010000 rw-p 00000000 00:00 0 \nSize: 64 kB\nRss:                  64 kB\n\
20000000-20100000 rw-p 00000000 00:00 0 \nRss:                1000 kB\nPss: 1 kB\n\
20100000-2a0000000 ---p 00000000 00:00 0 \nRss:                   0 kB\n\
300000000-300100000 rw-p 00000000 00:00 0 \nRss:                   7 kB\n\
300100000-300101000 ---p 00000000 00:00 0 \nRss:                   0 kB\n\
400000000-400100000 r--p 00000000 00:00 0 /lib\nRss:                 500 kB\n\
400100000-500100000 ---p 00000000 00:00 0 \nRss:                   0 kB\n\
500100000-500200000 rw-p 00000000 00:00 0 \nRss:                 300 kB\n\
500200000-700200000 ---p 00000000 00:00 0 \nRss:                   0 kB\n";
        assert_eq!(wasm_kib(map), 1300);
    }
}
