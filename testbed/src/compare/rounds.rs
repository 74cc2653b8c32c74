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

/// How long Envoy has to end what it began for the last answer. The kernel counts a thread's time up to when it last
/// went to sleep: of one that still works it may be 4 ms behind.
const SETTLES: Duration = Duration::from_millis(1);

/// The same where part of the work comes later: at the filter's next tick, which no other variant is to pay for.
const COMES_LATER: Duration = Duration::from_millis(120);

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
    /// The connections of each, which stay open.
    pub lanes: Vec<Lanes>,
}

/// What one sample took.
#[derive(Debug, Clone, Copy)]
struct Taken {
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
        let lanes = self.lanes.get_mut(index).context("connections")?;
        let calls = self.plan.requests_of(variant);
        let Variant { requests, expected, helper, later, .. } = variant;
        let settles = if *later { COMES_LATER } else { SETTLES };
        let taken = || -> Result<_> {
            Ok((processor_time(stage.envoy.id())?, stage.helper_time(*helper)?))
        };
        // What others threw out of the processor's caches is there again.
        lanes.saturate(self.plan.connections, requests, *expected)?;
        std::thread::sleep(SETTLES);
        let before = taken()?;
        let clock = Instant::now();
        lanes.saturate(calls, requests, *expected)?;
        let wall = clock.elapsed();
        std::thread::sleep(settles);
        let after = taken()?;
        let calls = u32::try_from(calls).map_or(f64::MAX, f64::from).max(1.0);
        let each =
            |after: Duration, before| after.saturating_sub(before).as_secs_f64() * 1e6 / calls;
        Ok(Taken {
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

    /// Processor time: all rounds, and the cores that others were using in each.
    ///
    /// # Errors
    /// If a call is not answered as it must be.
    pub fn rounds(&mut self, say: &mut impl FnMut(&str)) -> Result<(Vec<Measured>, Vec<f64>)> {
        let mut measured: Vec<(usize, Measured)> = Vec::new();
        for index in self.measured() {
            let variant = self.variants.get(index).context("a variant")?;
            let Variant { id, about, module, floor, .. } = variant.clone();
            measured.push((index, Measured { id, about, module, floor, samples: Vec::new() }));
        }
        let mut order: Vec<usize> = (0..measured.len()).collect();
        let mut random = Random(1);
        let mut interference = Vec::new();
        let begun = Instant::now();
        let processes = self.stage.processes();
        for round in 0..self.plan.rounds {
            self.gate.pass(&processes)?;
            let earlier = Moment::now(&processes)?;
            random.shuffle(&mut order);
            let mut last: Option<(usize, Taken)> = None;
            for one in &order {
                let (index, found) = measured.get_mut(*one).context("a variant")?;
                let floor = self.index(found.floor)?;
                // The one after the variant before is the one before this one.
                let first = match last {
                    Some((same, taken)) if same == floor => taken,
                    _ => self.sample(floor)?,
                };
                let taken = self.sample(*index).context(&found.id)?;
                let second = self.sample(floor)?;
                found.samples.push(sample_of(&first, &taken, &second));
                last = Some((floor, second));
            }
            interference.push(Moment::now(&processes)?.others_since(&earlier));
            if round % 20 == 19 || round + 1 == self.plan.rounds {
                let (seconds, waited) = (begun.elapsed().as_secs(), self.gate.waited.as_secs());
                say(&format!("round {}, {seconds} s; waited {waited} s for quiet", round + 1));
            }
        }
        Ok((measured.into_iter().map(|(_, found)| found).collect(), interference))
    }

    /// Latencies at a fixed rate. In each round every variant has its turn, so that any two are near in time.
    ///
    /// # Errors
    /// If a call is not answered as it must be.
    pub fn paced(&mut self, say: &mut impl FnMut(&str)) -> Result<Vec<Latency>> {
        let variants = self.variants.iter().enumerate().filter(|(_, variant)| variant.paced);
        let mut latencies: Vec<(usize, Latency)> = variants
            .map(|(index, variant)| (index, Latency { id: variant.id.clone(), rounds: Vec::new() }))
            .collect();
        let mut order: Vec<usize> = (0..latencies.len()).collect();
        let mut random = Random(2);
        let processes = self.stage.processes();
        for _ in 0..self.plan.paced_rounds {
            self.gate.pass(&processes)?;
            random.shuffle(&mut order);
            for one in &order {
                let (index, latency) = latencies.get_mut(*one).context("a variant")?;
                let variant = self.variants.get(*index).context("a variant")?;
                let lanes = self.lanes.get_mut(*index).context("connections")?;
                let (rate, time) = (self.plan.rate, self.plan.paced_time);
                let sorted = lanes.pace(rate, time, &variant.requests, variant.expected);
                latency.rounds.push(Paced::of(&sorted.context(&latency.id)?));
            }
        }
        say("latencies at a fixed rate are taken");
        Ok(latencies.into_iter().map(|(_, latency)| latency).collect())
    }
}

/// What a variant took, and what those without a filter around it took in the mean.
fn sample_of(first: &Taken, taken: &Taken, second: &Taken) -> Sample {
    Sample {
        envoy: taken.envoy,
        helper: taken.helper,
        floor: f64::midpoint(first.envoy, second.envoy),
        rate: taken.rate,
        floor_rate: f64::midpoint(first.rate, second.rate),
        disagreement: (first.envoy - second.envoy).abs() / first.envoy.min(second.envoy).max(1e-9),
    }
}
