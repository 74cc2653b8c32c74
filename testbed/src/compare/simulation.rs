//! Whether the method finds the truth on a machine that is as bad as virtual ones are, where the truth is known.
//!
//! The machine's speed wanders by a fifth and more within seconds, every sample has its own small error, and now and
//! then the host takes the processor away for some milliseconds, which is counted as if it had been worked.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::report::{Measured, Ratio, Report, Sample};
use super::statistics::{Estimate, Random};
use super::variants::NONE;
use super::{Module, Plan};

/// Microseconds of a request without a filter.
const FLOOR: f64 = 20.0;
/// What the two that are compared add, and others that only take their turn.
const ADDED: [(&str, f64); 5] =
    [("ours", 6.0), ("jwt+rbac", 10.0), ("jwt", 33.0), ("jwt/cache", 2.0), ("jwt/both", 90.0)];
const TRUTH: f64 = 0.6;

struct Machine {
    random: Random,
    /// Logarithm of how slow it is.
    slow: f64,
    /// How much that wanders, and for how many milliseconds it stays as it is.
    wanders: f64,
    stays: f64,
    /// How often in a second the host takes the processor away.
    pauses: f64,
}

impl Machine {
    /// At least 0 and below 1.
    fn share(&mut self) -> f64 {
        f64::from(u32::try_from(self.random.next() >> 32).unwrap()) / 4_294_967_296.0
    }

    /// Of a normal distribution (Irwin and Hall).
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }

    /// What is counted for each of so many requests that take so many microseconds.
    fn run(&mut self, micros: f64, requests: usize) -> f64 {
        let requests = f64::from(u32::try_from(requests).unwrap());
        let (mut left, mut counted) = (micros * requests / 1e3, 0.0);
        while left > 0.0 {
            let step = left.min(5.0);
            left -= step;
            let keeps = (-step / self.stays).exp();
            self.slow =
                self.slow * keeps + self.wanders * (1.0 - keeps * keeps).sqrt() * self.normal();
            let taken = step * self.slow.max(-0.3).exp() * (1.0 + 0.02 * self.normal());
            counted += taken;
            if self.share() < self.pauses * taken / 1e3 {
                counted += 5.0 + 25.0 * self.share();
            }
        }
        counted * 1e3 / requests
    }
}

/// What a run finds there.
fn report(machine: &mut Machine, rounds: usize, requests: usize) -> Report {
    let module = Module { label: "ours".to_owned(), path: PathBuf::from("/nowhere.wasm") };
    let plan = Plan { rounds, requests, ..Plan::full(vec![module]) };
    let mut measured = ADDED.map(|(id, _)| Measured {
        id: id.to_owned(),
        about: String::new(),
        module: None,
        floor: NONE,
        samples: Vec::new(),
    });
    let mut order: Vec<usize> = (0..ADDED.len()).collect();
    for _ in 0..rounds {
        machine.random.shuffle(&mut order);
        let mut first = machine.run(FLOOR, requests);
        for index in &order {
            let envoy = machine.run(FLOOR + ADDED[*index].1, requests);
            let second = machine.run(FLOOR, requests);
            measured[*index].samples.push(Sample {
                envoy,
                helper: 0.0,
                floor: f64::midpoint(first, second),
                rate: 1.0,
                floor_rate: 1.0,
                disagreement: (first - second).abs() / first.min(second),
            });
            first = second;
        }
    }
    Report {
        machine: Value::Null,
        envoy: String::new(),
        pinned: true,
        probes: 0,
        waited: Duration::ZERO,
        plan,
        interference: vec![0.0],
        measured: measured.into(),
        latencies: Vec::new(),
    }
}

fn first_ratio(report: &Report) -> Ratio {
    let mut ratios = report.ratios();
    assert!(ratios[0].about.starts_with("known, 50 rules"));
    ratios.swap_remove(0)
}

/// Machines of which each is bad in another way.
fn machines(seed: u64) -> [Machine; 3] {
    [(0.2, 1500.0, 2.0), (0.3, 600.0, 2.0), (0.15, 1000.0, 6.0)].map(|(wanders, stays, pauses)| {
        let mut machine = Machine { random: Random(seed), slow: 0.0, wanders, stays, pauses };
        machine.slow = wanders * machine.normal();
        machine
    })
}

#[test]
fn the_interval_has_the_truth_in_it_and_is_narrow() {
    let plan = Plan::full(Vec::new());
    let (mut all, mut hits, mut width, mut sum) = (0.0, 0.0, 0.0, 0.0);
    for seed in 0..12 {
        for mut machine in machines(seed) {
            let found = first_ratio(&report(&mut machine, plan.rounds, plan.requests)).value;
            all += 1.0;
            hits += f64::from(u8::from((found.low..=found.high).contains(&TRUTH)));
            width += found.high - found.low;
            sum += found.median;
        }
    }
    assert!(hits / all >= 0.9, "{hits} of {all}");
    assert!(width / all <= 0.1, "{}", width / all);
    // It errs to no side.
    assert!((sum / all - TRUTH).abs() < 0.01, "{}", sum / all);
}

#[test]
fn many_short_samples_by_their_floors_are_surer_than_few_long_ones_less_their_floors() {
    let plan = Plan::full(Vec::new());
    for seed in 0..3 {
        for ((mut machine, mut other), number) in
            machines(seed).into_iter().zip(machines(seed)).zip(0..)
        {
            let short = first_ratio(&report(&mut machine, plan.rounds, plan.requests)).value;
            // About as many requests in all.
            let long = report(&mut other, 16, plan.rounds * plan.requests / 16);
            let less = |index: usize| -> Vec<Option<f64>> {
                let samples = long.measured[index].samples.iter();
                samples.map(|sample| Some(sample.envoy - sample.floor)).collect()
            };
            let long = Estimate::of_ratio(&less(0), &less(1));
            let (short, long) = (short.high - short.low, long.high - long.low);
            assert!(2.0 * short <= long, "machine {number} of seed {seed}: {short} {long}");
        }
    }
}
