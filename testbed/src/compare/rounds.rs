//! Samples, taken in turn.

use std::time::{Duration, Instant};

use crate::cost::processor_time;
use crate::error::{Context as _, Result};

use super::Plan;
use super::drive::Lanes;
use super::machine::{Gate, Moment};
use super::report::{Latency, Measured, Paced, Sample};
use super::stage::Stage;
use super::statistics::Random;
use super::variants::{NONE, NONE_ROUTES, Variant};

/// The measurement itself.
pub struct Run<'r> {
    /// How much.
    pub plan: &'r Plan,
    /// What runs.
    pub stage: &'r Stage,
    /// How long it may wait for others.
    pub gate: &'r mut Gate,
    /// What is compared.
    pub variants: Vec<Variant>,
}

/// What one sample took.
#[derive(Debug, Clone, Copy)]
struct Taken {
    begun: Moment,
    ended: Moment,
    /// Microseconds of a processor for each request: Envoy's, and its helper's.
    envoy: f64,
    helper: f64,
    /// Requests a second.
    rate: f64,
}

impl Run<'_> {
    /// A sample of the variant at `index`.
    fn sample(&mut self, index: usize) -> Result<Taken> {
        let stage = self.stage;
        let variant = self.variants.get_mut(index).context("a variant")?;
        let calls = self.plan.requests_of(variant);
        let address = stage.address(variant)?;
        let Variant { requests, expected, helper, .. } = variant;
        let mut lanes = Lanes::open(self.plan.connections, address, requests, *expected)?;
        let envoy = || processor_time(stage.envoy.id());
        let processes = stage.processes();
        let begun = Moment::now(&processes)?;
        let before = (envoy()?, stage.helper_time(*helper)?);
        let clock = Instant::now();
        lanes.saturate(calls, requests, *expected)?;
        let wall = clock.elapsed();
        let after = (envoy()?, stage.helper_time(*helper)?);
        let ended = Moment::now(&processes)?;
        let calls = u32::try_from(calls).map_or(f64::MAX, f64::from).max(1.0);
        let each =
            |after: Duration, before| after.saturating_sub(before).as_secs_f64() * 1e6 / calls;
        Ok(Taken {
            begun,
            ended,
            envoy: each(after.0, before.0),
            helper: each(after.1, before.1),
            rate: calls / wall.as_secs_f64().max(1e-9),
        })
    }

    fn index(&self, id: &str) -> Result<usize> {
        self.variants.iter().position(|variant| variant.id == id).context(id)
    }

    /// Variants that are measured: all but those that the others are compared with.
    fn measured(&self) -> Vec<usize> {
        let floors = [NONE, NONE_ROUTES];
        let others = self.variants.iter().enumerate();
        let others = others.filter(|(_, variant)| !floors.contains(&variant.id.as_str()));
        others.map(|(index, _)| index).collect()
    }

    /// Processor time: all rounds.
    ///
    /// # Errors
    /// If a call is not answered as it must be.
    pub fn rounds(&mut self, say: &mut impl FnMut(&str)) -> Result<Vec<Measured>> {
        let indices = self.measured();
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); self.variants.len()];
        let mut random = Random(1);
        let mut order = indices.clone();
        let begun = Instant::now();
        let processes = self.stage.processes();
        for round in 0..self.plan.rounds {
            random.shuffle(&mut order);
            let mut last: Option<(usize, Taken)> = None;
            for &index in &order {
                let floor = self.variants.get(index).context("a variant")?.floor;
                let floor = self.index(floor)?;
                let waited = self.gate.pass(&processes)?;
                // The one after the variant before is the one before this one, unless time has passed.
                let first = match last {
                    Some((same, taken)) if same == floor && !waited => taken,
                    _ => self.sample(floor)?,
                };
                let name = |run: &Self| {
                    run.variants.get(index).map_or(String::new(), |one| one.id.clone())
                };
                let taken = self.sample(index).context(name(self))?;
                let second = self.sample(floor)?;
                if let Some(samples) = samples.get_mut(index) {
                    samples.push(sample_of(&first, &taken, &second));
                }
                last = Some((floor, second));
            }
            if round % 4 == 3 || round + 1 == self.plan.rounds {
                let (seconds, waited) = (begun.elapsed().as_secs(), self.gate.waited.as_secs());
                say(&format!(
                    "round {}, {seconds} s, of which {waited} s waiting for quiet",
                    round + 1
                ));
            }
        }
        let measured = indices.into_iter().filter_map(|index| {
            let variant = self.variants.get(index)?;
            Some(Measured {
                id: variant.id.clone(),
                about: variant.about.clone(),
                module: variant.module.clone(),
                samples: samples.get(index)?.clone(),
            })
        });
        Ok(measured.collect())
    }

    /// Latencies at a fixed rate.
    ///
    /// # Errors
    /// If a call is not answered as it must be.
    pub fn paced(&mut self, say: &mut impl FnMut(&str)) -> Result<Vec<Latency>> {
        let paced = |variant: &Variant| variant.paced;
        let mut order: Vec<usize> = (0..self.variants.len())
            .filter(|index| self.variants.get(*index).is_some_and(paced))
            .collect();
        let mut latencies: Vec<Latency> = order
            .iter()
            .filter_map(|index| self.variants.get(*index))
            .map(|variant| Latency { id: variant.id.clone(), rounds: Vec::new() })
            .collect();
        let mut random = Random(2);
        let processes = self.stage.processes();
        for _ in 0..self.plan.paced_rounds {
            random.shuffle(&mut order);
            for index in &order {
                self.gate.pass(&processes)?;
                let variant = self.variants.get_mut(*index).context("a variant")?;
                let address = self.stage.address(variant)?;
                let Variant { id, requests, expected, .. } = variant;
                let lanes = self.plan.connections.min(8);
                let mut lanes = Lanes::open(lanes, address, requests, *expected).context(&id)?;
                let before = Moment::now(&processes)?;
                let (rate, time) = (self.plan.rate, self.plan.paced_time);
                let (sorted, worked) = lanes.pace(rate, time, requests, *expected).context(&id)?;
                let after = Moment::now(&processes)?;
                let ours = worked.as_secs_f64() / after.since(&before).as_secs_f64().max(1e-9);
                let interference = (after.others_since(&before) - ours).max(0.0);
                if let Some(latency) = latencies.iter_mut().find(|latency| latency.id == *id) {
                    latency.rounds.push(Paced::of(&sorted, interference));
                }
            }
        }
        say("latencies at a fixed rate are taken");
        Ok(latencies)
    }
}

/// What a variant took more than the mean of those without a filter around it.
fn sample_of(first: &Taken, taken: &Taken, second: &Taken) -> Sample {
    let floor = f64::midpoint(first.envoy, second.envoy);
    let parts = [first, taken, second];
    let weight = |part: &Taken| part.ended.since(&part.begun).as_secs_f64();
    let whole: f64 = parts.iter().map(|part| weight(part)).sum();
    let others: f64 =
        parts.iter().map(|part| part.ended.others_since(&part.begun) * weight(part)).sum();
    Sample {
        envoy: taken.envoy,
        helper: taken.helper,
        floor,
        rate: taken.rate,
        floor_rate: f64::midpoint(first.rate, second.rate),
        interference: others / whole.max(1e-9),
        disagreement: (first.envoy - second.envoy).abs() / first.envoy.min(second.envoy).max(1e-9),
    }
}
