//! What was found: tables, ratios against bars, and everything as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::percentile;

use super::Plan;
use super::machine::QUIET;
use super::statistics::{Estimate, median, present, quieter, quotient};
use super::variants::{AGAIN, NONE, READS};

/// One sample of a variant, and the two without a filter around it. Times are microseconds of a processor for a request.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Envoy's.
    pub envoy: f64,
    /// Those of an authorizer, or of a collector.
    pub helper: f64,
    /// Envoy's without a filter.
    pub floor: f64,
    /// Requests a second.
    pub rate: f64,
    /// Those without a filter.
    pub floor_rate: f64,
    /// How much the two without a filter differ, as a share.
    pub disagreement: f64,
}

impl Sample {
    /// What the variant adds, as a share of what there is without a filter: the machine's speed is not in it.
    fn share(&self) -> f64 {
        (self.envoy + self.helper) / self.floor - 1.0
    }
}

/// What was measured of a variant.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Its name.
    pub id: String,
    /// What it is.
    pub about: String,
    /// The label of the build that it runs.
    pub module: Option<String>,
    /// The variant without a filter that it is compared with.
    pub floor: &'static str,
    /// One of each round, run after run.
    pub samples: Vec<Sample>,
}

/// Latencies of one round, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Paced {
    /// What half of the calls did not exceed.
    pub p50: f64,
    /// What 99 of 100 did not exceed.
    pub p99: f64,
}

impl Paced {
    /// Of sorted latencies.
    pub fn of(sorted: &[Duration]) -> Self {
        let at = |share| {
            percentile(sorted, share).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
        };
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

/// Latencies of a variant.
#[derive(Debug, Clone)]
pub struct Latency {
    /// Its name.
    pub id: String,
    /// One of each round, run after run.
    pub rounds: Vec<Paced>,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Report {
    /// What the machine is.
    pub machine: Value,
    /// The version of Envoy.
    pub envoy: String,
    /// Whether Envoy and the load each had a processor of their own.
    pub pinned: bool,
    /// How many probes showed that variants answer what they must.
    pub probes: usize,
    /// How long the runs waited for others.
    pub waited: Duration,
    /// What was asked for.
    pub plan: Plan,
    /// Cores that others were using, in each round.
    pub interference: Vec<f64>,
    /// Variants.
    pub measured: Vec<Measured>,
    /// Latencies at a fixed rate.
    pub latencies: Vec<Latency>,
}

/// What a variant of ours is compared with, and what it should not exceed.
struct Bar {
    about: &'static str,
    /// What follows the label of the build, and a word about it; of several the best counts.
    ours: &'static [(&'static str, &'static str)],
    other: Other,
    most: Option<f64>,
}

enum Other {
    /// A variant by its name.
    Variant(&'static str),
    /// One of the same build.
    Same(&'static str),
}

/// Ratios of the processor time that is added to that of no filter.
const BARS: [Bar; 14] = [
    bar("known, 50 rules ÷ jwt_authn (cache) and RBAC", &[("", "")], "jwt+rbac", 0.6),
    Bar {
        about: "the same of callers that send no plain headers",
        ours: &[("/bare", "")],
        other: Other::Variant("jwt+rbac"),
        most: None,
    },
    bar(
        "the same by the cheapest mode",
        &[("", EDIT), ("/filter-state", FILTER_STATE)],
        "jwt+rbac",
        0.6,
    ),
    bar("known ÷ ext_authz by gRPC, both processes", &[("", "")], "ext_authz/grpc", 0.2),
    bar(
        "300 routes ÷ native, 300 routes",
        &[("/routes", EDIT), ("/routes-filter-state", FILTER_STATE)],
        "jwt+rbac/routes",
        0.8,
    ),
    bar("1 000 callers ÷ native, default cache", &[("/tokens", "")], "jwt+rbac/tokens", 0.2),
    same("1 000 callers ÷ one caller", &[("/tokens", "")], 1.2),
    same("1 000 rules ÷ 50 rules", &[("/many-rules", "")], 1.1),
    same("100 000 rules ÷ 50 rules", &[("/most-rules", "")], 1.1),
    bar("fresh RS256 ÷ jwt_authn, no cache", &[("/cold-rs256", "")], "jwt", 0.9),
    bar("fresh ES256 ÷ jwt_authn, no cache", &[("/cold-es256", "")], "jwt/es256", 1.0),
    bar("fresh pair ÷ jwt_authn, two providers, no cache", &[("/cold", "")], "jwt/both", 1.1),
    same("denial ÷ permit", &[("/denied", "")], 1.5),
    same("audit log ÷ no audit", &[("/audit-log", "")], 1.1),
];

/// Ways to tell an upstream who calls.
const EDIT: &str = ", `identity_headers: edit`";
const FILTER_STATE: &str = ", `identity_headers: filter_state`";

type Ours = &'static [(&'static str, &'static str)];

const fn bar(about: &'static str, ours: Ours, other: &'static str, most: f64) -> Bar {
    Bar { about, ours, other: Other::Variant(other), most: Some(most) }
}

const fn same(about: &'static str, ours: Ours, most: f64) -> Bar {
    Bar { about, ours, other: Other::Same(""), most: Some(most) }
}

/// A ratio, and the bar that it should not exceed if there is one.
#[derive(Debug, Clone)]
pub struct Ratio {
    /// The label of the build.
    pub module: String,
    /// What is divided by what.
    pub about: String,
    /// The ratio of all runs. Its interval has the median of each run in it.
    pub value: Estimate,
    /// That of each run.
    pub runs: Vec<f64>,
    /// What it should not exceed.
    pub most: Option<f64>,
}

impl Ratio {
    /// `met`, `missed`, or `open` where the interval has the bar in it.
    pub fn verdict(&self) -> &'static str {
        match self.most {
            None => "",
            Some(most) if self.value.high <= most => "met",
            Some(most) if self.value.low > most => "missed",
            Some(_) => "open",
        }
    }
}

impl Report {
    /// Adds what another run of the same plan found.
    pub fn join(&mut self, other: Self) {
        self.waited += other.waited;
        self.interference.extend(other.interference);
        for (whole, more) in self.measured.iter_mut().zip(other.measured) {
            whole.samples.extend(more.samples);
        }
        for (whole, more) in self.latencies.iter_mut().zip(other.latencies) {
            whole.rounds.extend(more.rounds);
        }
    }

    fn find(&self, id: &str) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.id == id)
    }

    /// A value of each round, or none of those where the two without a filter disagree most. What the variant itself
    /// took decides nothing: else a noisy one would look better than it is.
    fn series(&self, measured: &Measured, value: impl Fn(&Sample) -> f64) -> Vec<Option<f64>> {
        let runs = measured.samples.chunks(self.plan.rounds.max(1));
        runs.flat_map(|run| {
            let noises: Vec<f64> = run.iter().map(|sample| sample.disagreement).collect();
            let kept = quieter(&noises).into_iter();
            run.iter().zip(kept).map(|(sample, kept)| kept.then(|| value(sample)))
        })
        .collect()
    }

    /// Microseconds of Envoy for a request to this variant without a filter, in the median of all samples.
    fn floor_of(&self, id: &str) -> f64 {
        let compared = self.measured.iter().filter(|measured| measured.floor == id);
        let samples = compared.flat_map(|measured| &measured.samples);
        median(&samples.map(|sample| sample.floor).collect::<Vec<_>>())
    }

    /// Microseconds of Envoy for a request without a filter.
    pub fn floor(&self) -> f64 {
        self.floor_of(NONE)
    }

    /// What a variant adds in each round that counts, its helper's part included: microseconds of a processor for
    /// a request, if one without a filter takes [`Self::floor`].
    fn rounds(&self, measured: &Measured) -> Vec<Option<f64>> {
        let floor = self.floor_of(measured.floor);
        self.series(measured, |sample| sample.share() * floor)
    }

    /// Processor time for a request that a variant adds, its helper's included, in microseconds.
    pub fn added(&self, measured: &Measured) -> Estimate {
        Estimate::of(&self.rounds(measured))
    }

    /// The part of it that its helper took.
    pub fn helper(&self, measured: &Measured) -> f64 {
        let floor = self.floor_of(measured.floor);
        median(&present(
            &self.series(measured, |sample| sample.helper / sample.floor.max(1e-9) * floor),
        ))
    }

    /// Requests a second, as a share of those without a filter.
    fn throughput(&self, measured: &Measured) -> f64 {
        median(&present(&self.series(measured, |sample| sample.rate / sample.floor_rate)))
    }

    /// Cores that others were using, in the median of all rounds.
    pub fn interference(&self) -> f64 {
        median(&self.interference)
    }

    /// Why these figures should not be believed, if so.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let interference = self.interference();
        if interference > QUIET {
            doubts.push(format!(
                "others were using {interference:.2} cores: repeat on a quiet machine"
            ));
        }
        if !self.pinned {
            doubts.push("Envoy and the load had to share one processor".to_owned());
        }
        if let Some(again) = self.find(AGAIN) {
            let found = self.added(again);
            // Less than this the method does not resolve anyway.
            if found.low > 0.5 || found.high < -0.5 {
                let text = show(found, 2);
                doubts.push(format!("no filter is told from no filter: {text} µs"));
            }
        }
        if self.plan.rounds < 24 {
            doubts.push(format!("{} rounds are too few", self.plan.rounds));
        }
        doubts
    }

    /// Ratios against the bars, of each build; what Envoy's side of a Wasm filter adds; and each build against the first one.
    pub fn ratios(&self) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        for module in &self.plan.modules {
            let label = &module.label;
            for bar in &BARS {
                let other = match bar.other {
                    Other::Variant(id) => id.to_owned(),
                    Other::Same(suffix) => format!("{label}{suffix}"),
                };
                let all = bar.ours.iter().filter_map(|(suffix, word)| {
                    let ours = format!("{label}{suffix}");
                    self.ratio(label, format!("{}{word}", bar.about), &ours, &other, bar.most)
                });
                ratios.extend(
                    all.min_by(|one, other| one.value.median.total_cmp(&other.value.median)),
                );
            }
            ratios.extend(self.tail(label));
        }
        if let [first, others @ ..] = self.plan.modules.as_slice() {
            let about = "not this filter: `wasm/reads` ÷ jwt_authn (cache) and RBAC".to_owned();
            ratios.extend(self.ratio(&first.label, about, READS, "jwt+rbac", None));
            for other in others {
                let of_first =
                    self.measured.iter().filter(|one| one.module.as_ref() == Some(&first.label));
                for measured in of_first {
                    let suffix = measured.id.strip_prefix(&first.label).unwrap_or_default();
                    let ours = format!("{}{suffix}", other.label);
                    let about = format!("{ours} ÷ {}", measured.id);
                    ratios.extend(self.ratio(&other.label, about, &ours, &measured.id, None));
                }
            }
        }
        ratios
    }

    /// What one variant adds, divided by what another one adds.
    fn ratio(
        &self,
        module: &str,
        about: String,
        ours: &str,
        other: &str,
        most: Option<f64>,
    ) -> Option<Ratio> {
        let (ours, other) = (self.rounds(self.find(ours)?), self.rounds(self.find(other)?));
        let each = self.plan.rounds.max(1);
        let runs = ours.chunks(each).zip(other.chunks(each));
        let of_run =
            |(ours, other): (&[_], &[_])| quotient(median(&present(ours)), median(&present(other)));
        let runs: Vec<f64> = runs.map(of_run).collect();
        let value = Estimate::of_ratio(&ours, &other).with(&runs);
        Some(Ratio { module: module.to_owned(), about, value, runs, most })
    }

    /// The 99th percentile at a fixed rate, against the native filters in the same round: a host that stops for
    /// some milliseconds spoils a round, and what is spoilt alike on both sides leaves the median where it is.
    fn tail(&self, label: &str) -> Option<Ratio> {
        let find = |id: &str| self.latencies.iter().find(|latency| latency.id == id);
        let (ours, native, none) = (find(label)?, find("jwt+rbac")?, find(NONE)?);
        let each = self.plan.paced_rounds.max(1);
        let kept = none
            .rounds
            .chunks(each)
            .flat_map(|run| quieter(&run.iter().map(|round| round.p99).collect::<Vec<_>>()));
        let pairs = ours.rounds.iter().zip(&native.rounds).zip(kept);
        let values: Vec<Option<f64>> = pairs
            .map(|((ours, native), kept)| kept.then(|| quotient(ours.p99, native.p99)))
            .collect();
        let runs: Vec<f64> = values.chunks(each).map(|run| median(&present(run))).collect();
        let value = Estimate::of(&values).with(&runs);
        let about = "99th percentile of latency ÷ jwt_authn (cache) and RBAC".to_owned();
        Some(Ratio { module: label.to_owned(), about, value, runs, most: Some(1.1) })
    }

    /// As Markdown.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _: std::fmt::Result = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let plan = &self.plan;
        writeln!(
            out,
            "Envoy {}, {} × {} rounds of {} requests on {} connections, others used {:.2} cores, {} s waited for quiet.\n\
             No filter: {:.1} µs of Envoy's processor time for a request.",
            self.envoy,
            plan.runs,
            plan.rounds,
            plan.requests,
            plan.connections,
            self.interference(),
            self.waited.as_secs(),
            self.floor(),
        )?;
        for doubt in self.doubts() {
            writeln!(out, "\n**NOT TO BE BELIEVED: {doubt}.**")?;
        }
        writeln!(
            out,
            "\n| variant | | µs added [95 %] | of which others | requests/s ÷ no filter | samples |\n|---|---|--:|--:|--:|--:|"
        )?;
        for measured in &self.measured {
            let helper = self.helper(measured);
            writeln!(
                out,
                "| `{}` | {} | {} | {} | {:.2} | {} of {} |",
                measured.id,
                measured.about,
                show(self.added(measured), 1),
                if helper > 0.0 { format!("{helper:.1}") } else { String::new() },
                self.throughput(measured),
                present(&self.rounds(measured)).len(),
                measured.samples.len(),
            )?;
        }
        writeln!(
            out,
            "\n| ratio of what is added | | [95 %] | each run | bar | |\n|---|--:|---|---|---|---|"
        )?;
        for ratio in self.ratios() {
            let Estimate { median, low, high } = ratio.value;
            let most = ratio.most.map(|most| format!("≤ {most}")).unwrap_or_default();
            writeln!(
                out,
                "| {}: {} | {median:.2} | {low:.2} to {high:.2} | {} | {most} | {} |",
                ratio.module,
                ratio.about,
                list(&ratio.runs),
                ratio.verdict(),
            )?;
        }
        writeln!(
            out,
            "\n| at {} requests/s | p50 µs | added | p99 µs [95 %] |\n|---|--:|--:|--:|",
            plan.rate
        )?;
        let p50 = |latency: &Latency| {
            median(&latency.rounds.iter().map(|round| round.p50).collect::<Vec<_>>())
        };
        let of_floor = self.latencies.iter().find(|latency| latency.id == NONE);
        let floor = of_floor.map_or(f64::NAN, p50);
        for latency in &self.latencies {
            writeln!(
                out,
                "| `{}` | {:.0} | {:.0} | {} |",
                latency.id,
                p50(latency),
                p50(latency) - floor,
                show(p99(latency), 0)
            )?;
        }
        Ok(())
    }

    /// As JSON, with every sample.
    pub fn json(&self) -> Value {
        let estimate = |estimate: Estimate| json!({ "median": estimate.median, "low": estimate.low, "high": estimate.high });
        let sample = |sample: &Sample| {
            json!({
                "envoy_us": sample.envoy, "helper_us": sample.helper, "floor_us": sample.floor,
                "requests_per_second": sample.rate, "floor_requests_per_second": sample.floor_rate,
                "disagreement": sample.disagreement,
            })
        };
        let measured = self.measured.iter().map(|one| {
            json!({
                "id": one.id, "about": one.about, "module": one.module, "floor": one.floor,
                "added_us": estimate(self.added(one)),
                "helper_us": self.helper(one),
                "throughput": self.throughput(one),
                "kept": present(&self.rounds(one)).len(),
                "samples": one.samples.iter().map(sample).collect::<Vec<_>>(),
            })
        });
        let ratios = self.ratios();
        let ratios = ratios.iter().map(|ratio| {
            json!({
                "module": ratio.module, "about": ratio.about, "ratio": estimate(ratio.value),
                "runs": ratio.runs, "bar": ratio.most, "verdict": ratio.verdict(),
            })
        });
        let latencies = self.latencies.iter().map(|latency| {
            let p50: Vec<_> = latency.rounds.iter().map(|round| Some(round.p50)).collect();
            json!({
                "id": latency.id,
                "p50_us": estimate(Estimate::of(&p50)),
                "p99_us": estimate(p99(latency)),
                "rounds": latency.rounds.iter().map(|round| json!({
                    "p50_us": round.p50, "p99_us": round.p99,
                })).collect::<Vec<_>>(),
            })
        });
        let plan = &self.plan;
        let modules = plan.modules.iter().map(|module| {
            json!({ "label": module.label, "sha256": module.sha256(), "bytes": module.bytes() })
        });
        json!({
            "machine": self.machine, "envoy": self.envoy, "pinned": self.pinned,
            "modules": modules.collect::<Vec<_>>(),
            "runs": plan.runs, "rounds": plan.rounds, "requests": plan.requests,
            "connections": plan.connections,
            "paced_rounds": plan.paced_rounds, "rate": plan.rate,
            "probes": self.probes, "waited_seconds": self.waited.as_secs(),
            "interference_cores": self.interference(), "doubts": self.doubts(),
            "variants": measured.collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
            "latencies": latencies.collect::<Vec<_>>(),
        })
    }
}

fn p99(latency: &Latency) -> Estimate {
    Estimate::of(&latency.rounds.iter().map(|round| Some(round.p99)).collect::<Vec<_>>())
}

fn show(estimate: Estimate, digits: usize) -> String {
    let Estimate { median, low, high } = estimate;
    format!("{median:.digits$} [{low:.digits$}, {high:.digits$}]")
}

/// Ratios of runs, one after another.
pub fn list(ratios: &[f64]) -> String {
    ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::super::Module;
    use super::*;

    /// What adds so many µs to 20, on a machine that is slower in each round than in the one before. In one of four the
    /// floors disagree, and the variant is far off.
    fn measured(id: &str, added: f64, rounds: usize) -> Measured {
        let sample = |number: usize| {
            let slow = 1.0 + f64::from(u32::try_from(number).unwrap()) / 20.0;
            let spoilt = number % 4 == 3;
            Sample {
                envoy: (20.0 + added + if spoilt { 50.0 } else { 0.0 }) * slow,
                helper: 0.0,
                floor: 20.0 * slow,
                rate: 40_000.0,
                floor_rate: 50_000.0,
                disagreement: if spoilt { 0.9 } else { 0.02 },
            }
        };
        let module = id.starts_with("ours").then(|| "ours".to_owned());
        Measured {
            id: id.to_owned(),
            about: format!("about {id}"),
            module,
            floor: NONE,
            samples: (0..rounds).map(sample).collect(),
        }
    }

    /// Latencies of rounds, in one of four of which the host stops for a while: then nothing is like anything.
    fn latency(id: &str, p99: f64, spoilt: f64) -> Latency {
        let round =
            |number: usize| Paced { p50: 100.0, p99: if number % 4 == 1 { spoilt } else { p99 } };
        Latency { id: id.to_owned(), rounds: (0..8).map(round).collect() }
    }

    pub(in super::super) fn report(interference: f64) -> Report {
        let all = [
            (AGAIN, 0.1),
            ("jwt", 30.0),
            ("jwt+rbac", 10.0),
            ("jwt+rbac/no-cache", 40.0),
            ("jwt+rbac/routes", 12.0),
            ("jwt+rbac/tokens", 45.0),
            ("ext_authz/http", 35.0),
            ("ext_authz/grpc", 29.0),
            (READS, 4.5),
            ("ours", 5.0),
            ("ours/routes", 18.0),
            ("ours/routes-filter-state", 9.0),
            ("ours/tokens", 7.0),
            ("ours/cold-rs256", 25.0),
            ("ours/bare", 8.0),
            ("ours/filter-state", 4.0),
        ];
        let path = PathBuf::from("/nowhere.wasm");
        let full = Plan::full(vec![Module { label: "ours".to_owned(), path }]);
        Report {
            machine: json!({ "processor": "a processor", "processors": 2 }),
            envoy: "1.40.0".to_owned(),
            pinned: true,
            probes: 1,
            waited: Duration::ZERO,
            plan: Plan { rounds: 24, paced_rounds: 8, ..full },
            interference: vec![interference; 24],
            measured: all.map(|(id, added)| measured(id, added, 24)).into(),
            latencies: vec![
                latency("none", 290.0, 20_000.0),
                latency("jwt+rbac", 300.0, 9_000.0),
                latency("ours", 330.0, 90.0),
            ],
        }
    }

    #[test]
    fn ratios_are_of_what_is_added_at_one_speed_and_judged_by_their_intervals() {
        let ratios = report(0.05).ratios();
        let found: Vec<_> = ratios
            .iter()
            .map(|ratio| {
                let rounded = (ratio.value.median * 1e6).round() / 1e6;
                (ratio.about.as_str(), rounded, ratio.verdict())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("known, 50 rules ÷ jwt_authn (cache) and RBAC", 0.5, "met"),
                ("the same of callers that send no plain headers", 0.8, ""),
                ("the same by the cheapest mode, `identity_headers: filter_state`", 0.4, "met"),
                ("known ÷ ext_authz by gRPC, both processes", 0.172_414, "met"),
                ("300 routes ÷ native, 300 routes, `identity_headers: filter_state`", 0.75, "met"),
                ("1 000 callers ÷ native, default cache", 0.155_556, "met"),
                ("1 000 callers ÷ one caller", 1.4, "missed"),
                ("fresh RS256 ÷ jwt_authn, no cache", 0.833_333, "met"),
                ("99th percentile of latency ÷ jwt_authn (cache) and RBAC", 1.1, "met"),
                ("not this filter: `wasm/reads` ÷ jwt_authn (cache) and RBAC", 0.45, ""),
            ]
        );
        // The rounds in which the host stopped are not in it.
        let tail = ratios[8].value;
        assert!(tail.high - tail.low < 1e-9, "{tail:?}");
        let value = Estimate { median: 0.5, low: 0.4, high: 0.7 };
        let (module, about, runs) = (String::new(), String::new(), Vec::new());
        let open = Ratio { module, about, value, runs, most: Some(0.6) };
        assert_eq!(open.verdict(), "open");
    }

    #[test]
    fn the_mode_that_is_better_with_many_routes_counts() {
        let mut report = report(0.05);
        let edits = report.measured.iter_mut().find(|one| one.id == "ours/routes").unwrap();
        *edits = measured("ours/routes", 6.0, 24);
        let ratios = report.ratios();
        let of_routes: Vec<_> =
            ratios.iter().filter(|ratio| ratio.about.contains("300 routes")).collect();
        assert_eq!(of_routes.len(), 1);
        assert!(of_routes[0].about.ends_with(", `identity_headers: edit`"));
        assert!((of_routes[0].value.median - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_second_build_is_compared_with_the_first() {
        let mut report = report(0.05);
        let path = PathBuf::from("/nowhere.wasm");
        report.plan.modules.push(Module { label: "next".to_owned(), path });
        report
            .measured
            .push(Measured { module: Some("next".to_owned()), ..measured("next", 4.0, 24) });
        let ratios = report.ratios();
        let between = ratios.iter().find(|ratio| ratio.about == "next ÷ ours").unwrap();
        assert!((between.value.median - 0.8).abs() < 1e-9);
        assert_eq!(between.verdict(), "");
    }

    #[test]
    fn each_run_is_told_and_the_interval_has_all_of_them_in_it() {
        let mut whole = report(0.05);
        whole.plan.runs = 3;
        for added in [5.9, 5.2] {
            let mut run = report(0.05);
            let ours = run.measured.iter_mut().find(|one| one.id == "ours").unwrap();
            *ours = measured("ours", added, 24);
            whole.join(run);
        }
        let ratio = whole.ratios().remove(0);
        assert_eq!(list(&ratio.runs), "0.50, 0.59, 0.52");
        assert!((ratio.value.median - 0.52).abs() < 1e-9, "{ratio:?}");
        assert!(ratio.value.low <= 0.5 && ratio.value.high >= 0.589, "{ratio:?}");
        let tail = whole.ratios().into_iter().find(|ratio| ratio.about.starts_with("99th"));
        assert_eq!(tail.unwrap().runs.len(), 3);
        let text = whole.text();
        assert!(text.contains("3 × 24 rounds"), "{text}");
        assert!(text.contains("| 0.50, 0.59, 0.52 | ≤ 0.6 | met |"), "{text}");
        let json = whole.json();
        assert_eq!(json["ratios"][0]["runs"].as_array().unwrap().len(), 3);
        assert_eq!(json["variants"][0]["samples"].as_array().unwrap().len(), 72);
        assert_eq!(json["variants"][0]["kept"], 54);
    }

    #[test]
    fn what_should_not_be_believed_says_so() {
        assert_eq!(report(0.05).doubts(), Vec::<String>::new());
        let mut loud = report(0.5);
        loud.pinned = false;
        loud.plan.rounds = 3;
        loud.measured[0] = measured(AGAIN, 2.0, 3);
        let doubts = loud.doubts().join("\n");
        for part in ["0.50 cores", "one processor", "told from", "3 rounds"] {
            assert!(doubts.contains(part), "{part}: {doubts}");
        }
        assert!(loud.text().contains("NOT TO BE BELIEVED: others were using 0.50 cores"));
    }

    #[test]
    fn the_table_has_what_is_added_and_what_helpers_took_of_it() {
        let mut report = report(0.05);
        let authorizer = report.measured.iter_mut().find(|one| one.id == "ext_authz/grpc").unwrap();
        for sample in &mut authorizer.samples {
            sample.helper = sample.floor * 0.3;
            sample.envoy -= sample.helper;
        }
        // The floor is that of the middle of the rounds, and so is what is added to it.
        let row = "| `ext_authz/grpc` | about ext_authz/grpc | 45.7 [45.7, 45.7] | 9.4 | 0.80 | 18 of 24 |";
        let text = report.text();
        assert!(text.contains(row), "{text}");
        assert!(text.contains("No filter: 31.5 µs"), "{text}");
        assert!(text.contains("| `ours` | 100 | 0 | 330 [90, 330] |"), "{text}");
    }
}
