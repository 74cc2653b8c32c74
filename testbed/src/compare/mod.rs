//! What this filter costs a real Envoy beside Envoy's own filters and external authorizers.
//!
//! One Envoy with one worker runs every variant as a listener of its own, so that they can be asked in turn within a
//! moment: no filter, a variant, no filter. What Envoy's threads, and whoever works for the variant, had of processors
//! for each request is divided by what the two without a filter around it had. So the speed of the machine, which a
//! host changes within seconds, is not in a figure, and a sample is so short that it has one speed. There are many of
//! them, in another order in every round; those whose two floors disagree are dropped. Before anything is measured,
//! every variant that decides has shown that it lets pass what it should and nothing else.
//!
//! What it is not: a benchmark of Envoy. The answer is Envoy's own, so that no upstream is measured; a request by
//! HTTP/1.1 has no body; there is no TLS.

mod authorizer;
pub mod chart;
mod credentials;
mod drive;
mod machine;
pub mod readme;
pub mod report;
mod rounds;
mod settings;
#[cfg(test)]
mod simulation;
mod stage;
pub mod statistics;
mod variants;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::error::{Context as _, Result};

use self::credentials::Issuers;
use self::machine::Gate;
use self::report::Report;
use self::rounds::Run;
use self::stage::Stage;
use self::variants::{Callers, Helper, Maker, Variant};

pub use self::variants::{Module, Sizes};

/// What is measured, and how much.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Builds of the filter.
    pub modules: Vec<Module>,
    /// OPA with its Envoy plugin.
    pub opa: Option<PathBuf>,
    /// Only variants whose names contain one of these, or are what is behind its `=`; all if there are none.
    pub only: Vec<String>,
    /// How often everything is measured, each time by another Envoy.
    pub runs: usize,
    /// Rounds of a run; in each, every variant is asked.
    pub rounds: usize,
    /// Requests of a sample; half of them where each has fresh credentials.
    pub requests: usize,
    /// Connections.
    pub connections: usize,
    /// Requests to each variant before the first round.
    pub warm: usize,
    /// Rounds in which requests come at a fixed rate.
    pub paced_rounds: usize,
    /// That rate, a second.
    pub rate: u32,
    /// For how long.
    pub paced_time: Duration,
    /// Where Envoy and where the load runs, if there are two processors to keep them apart.
    pub processors: Option<(usize, usize)>,
    /// How long to wait in all for others to leave the machine alone.
    pub patience: Duration,
    /// How large everything is.
    pub sizes: Sizes,
}

impl Plan {
    /// Some minutes on a quiet machine.
    pub fn full(modules: Vec<Module>) -> Self {
        Self {
            modules,
            opa: None,
            only: Vec::new(),
            runs: 1,
            rounds: 80,
            requests: 600,
            connections: 16,
            warm: 2_000,
            paced_rounds: 60,
            rate: 1_000,
            paced_time: Duration::from_millis(250),
            processors: machine::processors(),
            patience: Duration::from_secs(600),
            sizes: Sizes {
                rules: 50,
                many_rules: 1_000,
                most_rules: 100_000,
                routes: 300,
                callers: 1_000,
                fresh: 0,
            },
        }
    }

    /// One round, for a look whether everything still works; its figures mean nothing.
    pub fn quick(modules: Vec<Module>) -> Self {
        let full = Self::full(modules);
        Self {
            rounds: 1,
            requests: 120,
            connections: 4,
            warm: 20,
            paced_rounds: 1,
            rate: 200,
            paced_time: Duration::from_millis(200),
            patience: Duration::ZERO,
            sizes: Sizes { many_rules: 200, most_rules: 3_000, callers: 150, ..full.sizes },
            ..full
        }
    }

    /// Requests of a sample of `variant`.
    fn requests_of(&self, variant: &Variant) -> usize {
        match (variant.callers, variant.helper) {
            _ if variant.later => self.requests * 3,
            (Callers::Fresh, _) => self.requests / 2,
            (_, Some(Helper::OpaAllow | Helper::OpaRules)) => (self.requests / 5).max(100),
            _ => self.requests,
        }
    }

    /// Requests before the first round.
    fn warm_of(&self, variant: &Variant) -> usize {
        match variant.callers {
            Callers::Fresh => self.warm / 8,
            Callers::One => self.warm,
            // Each has been seen, whatever other connections they came by.
            Callers::Thousand => self.warm.max(variant.requests.count().saturating_mul(2)),
        }
    }
}

/// Measures, as often as asked.
///
/// # Errors
/// If something does not start, or a variant does not answer what it must.
pub async fn run(mut plan: Plan, directory: &Path, mut say: impl FnMut(&str)) -> Result<Report> {
    fs::create_dir_all(directory).context(directory.display())?;
    // What is used up in a run: by connections, warming up, samples with a call on each connection, and probes.
    let round = plan.requests / 2 + plan.connections;
    plan.sizes.fresh = plan.connections + plan.warm / 8 + (plan.rounds + 1) * round + 64;
    let sizes = plan.sizes;
    say("minting credentials");
    let issuers = Issuers::new(&[sizes.rules, sizes.many_rules, sizes.most_rules])?;
    let variants =
        Maker::new(&issuers, sizes, &plan.only).all(&plan.modules, plan.opa.is_some())?;
    // Before this process is kept on one processor.
    let machine = machine::description();

    let mut whole: Option<Report> = None;
    for number in 1..=plan.runs {
        say(&format!("run {number} of {}: starting Envoy", plan.runs));
        // Another Envoy has seen none of the credentials.
        let found = once(&plan, &machine, &issuers, variants.clone(), directory, &mut say).await?;
        match &mut whole {
            None => whole = Some(found),
            Some(whole) => whole.join(found),
        }
    }
    whole.context("a run")
}

async fn once(
    plan: &Plan,
    machine: &Value,
    issuers: &Issuers,
    mut variants: Vec<Variant>,
    directory: &Path,
    say: &mut impl FnMut(&str),
) -> Result<Report> {
    let stage = Stage::set(plan, issuers, &variants, directory).await?;
    let mut probes = 0;
    let mut lanes = Vec::with_capacity(variants.len());
    for variant in &mut variants {
        probes += stage.verify(variant).await.context(&variant.id)?;
        let warm = plan.warm_of(variant);
        lanes.push(stage.warm(variant, plan.connections, warm).context(&variant.id)?);
    }
    say(&format!("all {} variants answer what they must ({probes} probes)", variants.len()));

    let mut gate = Gate { patience: plan.patience, waited: Duration::ZERO };
    let mut run = Run { plan, stage: &stage, gate: &mut gate, variants, lanes };
    let (measured, interference) = run.rounds(say)?;
    let latencies = run.paced(say)?;
    Ok(Report {
        machine: machine.clone(),
        envoy: stage.version.clone(),
        pinned: plan.processors.is_some(),
        probes,
        waited: gate.waited,
        plan: plan.clone(),
        interference,
        measured,
        latencies,
    })
}
