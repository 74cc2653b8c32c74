//! What was found: tables, ratios against bars, and everything as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::percentile;

use super::Plan;
use super::machine::QUIET;
use super::statistics::{Estimate, median, quieter_half};
use super::variants::{AGAIN, NONE};

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
    /// Cores that others were using meanwhile.
    pub interference: f64,
    /// How much the two without a filter differ, as a share.
    pub disagreement: f64,
}

impl Sample {
    fn noise(&self) -> f64 {
        self.interference + 2.0 * self.disagreement
    }

    fn added(&self) -> f64 {
        self.envoy + self.helper - self.floor
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
    /// One of each round.
    pub samples: Vec<Sample>,
}

impl Measured {
    /// The samples that count.
    pub fn kept(&self) -> Vec<Sample> {
        quieter_half(&self.samples, 5, Sample::noise)
    }

    /// Processor time for a request that the variant adds, its helper's included.
    pub fn added(&self) -> Vec<f64> {
        self.of(Sample::added)
    }

    fn of(&self, value: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.kept().iter().map(value).collect()
    }
}

/// Latencies of one round, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Paced {
    /// What half of the calls did not exceed.
    pub p50: f64,
    /// What 99 of 100 did not exceed.
    pub p99: f64,
    /// Cores that others were using meanwhile.
    pub interference: f64,
}

impl Paced {
    /// Of sorted latencies.
    pub fn of(sorted: &[Duration], interference: f64) -> Self {
        let at = |share| {
            percentile(sorted, share).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
        };
        Self { p50: at(0.5), p99: at(0.99), interference }
    }
}

/// Latencies of a variant.
#[derive(Debug, Clone)]
pub struct Latency {
    /// Its name.
    pub id: String,
    /// One of each round.
    pub rounds: Vec<Paced>,
}

impl Latency {
    fn of(&self, value: impl Fn(&Paced) -> f64) -> Vec<f64> {
        let kept = quieter_half(&self.rounds, 3, |round| round.interference);
        kept.iter().map(value).collect()
    }
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
    /// How long the run waited for others.
    pub waited: Duration,
    /// What was asked for.
    pub plan: Plan,
    /// Variants.
    pub measured: Vec<Measured>,
    /// Latencies at a fixed rate.
    pub latencies: Vec<Latency>,
}

/// What a variant of ours is compared with, and what it should not exceed.
struct Bar {
    about: &'static str,
    /// What follows the label of the build.
    ours: &'static str,
    other: Other,
    most: f64,
}

enum Other {
    /// A variant by its name.
    Variant(&'static str),
    /// One of the same build.
    Same(&'static str),
}

/// Ratios of the processor time that is added to that of no filter.
const BARS: [Bar; 12] = [
    bar("known, 50 rules ÷ jwt_authn (cache) and RBAC", "", "jwt+rbac", 0.6),
    bar("known ÷ ext_authz by gRPC, both processes", "", "ext_authz/grpc", 0.2),
    bar("300 routes ÷ native, 300 routes", "/routes", "jwt+rbac/routes", 0.8),
    bar("1 000 callers ÷ native, default cache", "/tokens", "jwt+rbac/tokens", 0.2),
    same("1 000 callers ÷ one caller", "/tokens", "", 1.2),
    same("1 000 rules ÷ 50 rules", "/many-rules", "", 1.1),
    same("100 000 rules ÷ 50 rules", "/most-rules", "", 1.1),
    bar("fresh RS256 ÷ jwt_authn, no cache", "/cold-rs256", "jwt", 0.9),
    bar("fresh ES256 ÷ jwt_authn, no cache", "/cold-es256", "jwt/es256", 1.0),
    bar("fresh pair ÷ jwt_authn, two providers, no cache", "/cold", "jwt/both", 1.1),
    same("denial ÷ permit", "/denied", "", 1.5),
    same("audit log ÷ no audit", "/audit-log", "", 1.1),
];

const fn bar(about: &'static str, ours: &'static str, other: &'static str, most: f64) -> Bar {
    Bar { about, ours, other: Other::Variant(other), most }
}

const fn same(about: &'static str, ours: &'static str, other: &'static str, most: f64) -> Bar {
    Bar { about, ours, other: Other::Same(other), most }
}

/// A ratio, and the bar that it should not exceed if there is one.
#[derive(Debug, Clone)]
pub struct Ratio {
    /// The label of the build.
    pub module: String,
    /// What is divided by what.
    pub about: String,
    /// The ratio.
    pub value: Estimate,
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
    fn find(&self, id: &str) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.id == id)
    }

    /// Cores that others were using, in the median of the samples that count.
    pub fn interference(&self) -> f64 {
        let kept = self.measured.iter().flat_map(|measured| measured.of(|one| one.interference));
        median(&kept.collect::<Vec<_>>())
    }

    /// Microseconds of Envoy for a request without a filter.
    pub fn floor(&self) -> f64 {
        self.find(AGAIN).map_or(f64::NAN, |again| median(&again.of(|sample| sample.floor)))
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
            let found = Estimate::of(&again.added());
            // Less than this the method does not resolve anyway.
            if found.low > 0.5 || found.high < -0.5 {
                let text = show(found, 2);
                doubts.push(format!("no filter is told from no filter: {text} µs"));
            }
        }
        if self.plan.rounds < 8 {
            doubts.push(format!("{} rounds are too few", self.plan.rounds));
        }
        doubts
    }

    /// Ratios against the bars, of each build; and of each build against the first one.
    pub fn ratios(&self) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        let ratio = |module: &str, about: String, ours: &str, other: &str, most| {
            let (ours, other) = (self.find(ours)?, self.find(other)?);
            let value = Estimate::of_ratio(&ours.added(), &other.added());
            Some(Ratio { module: module.to_owned(), about, value, most })
        };
        for module in &self.plan.modules {
            let label = &module.label;
            for bar in &BARS {
                let other = match bar.other {
                    Other::Variant(id) => id.to_owned(),
                    Other::Same(suffix) => format!("{label}{suffix}"),
                };
                let ours = format!("{label}{}", bar.ours);
                ratios.extend(ratio(label, bar.about.to_owned(), &ours, &other, Some(bar.most)));
            }
            ratios.extend(self.tail(label));
        }
        if let [first, others @ ..] = self.plan.modules.as_slice() {
            for other in others {
                let of_first =
                    self.measured.iter().filter(|one| one.module.as_ref() == Some(&first.label));
                for measured in of_first {
                    let suffix = measured.id.strip_prefix(&first.label).unwrap_or_default();
                    let ours = format!("{}{suffix}", other.label);
                    let about = format!("{ours} ÷ {}", measured.id);
                    ratios.extend(ratio(&other.label, about, &ours, &measured.id, None));
                }
            }
        }
        ratios
    }

    /// The 99th percentile at a fixed rate, against the native filters.
    fn tail(&self, label: &str) -> Option<Ratio> {
        let find = |id: &str| self.latencies.iter().find(|latency| latency.id == id);
        let p99 = |id: &str| Some(find(id)?.of(|round| round.p99));
        let value = Estimate::of_ratio(&p99(label)?, &p99("jwt+rbac")?);
        let about = "99th percentile of latency ÷ jwt_authn (cache) and RBAC".to_owned();
        Some(Ratio { module: label.to_owned(), about, value, most: Some(1.1) })
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
            "Envoy {}, {} rounds of {} requests on {} connections, others used {:.2} cores, {} s waited for quiet.\n\
             No filter: {:.1} µs of Envoy's processor time for a request.",
            self.envoy,
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
            let helper = median(&measured.of(|sample| sample.helper));
            let share = median(&measured.of(|sample| sample.rate / sample.floor_rate));
            writeln!(
                out,
                "| `{}` | {} | {} | {} | {share:.2} | {} of {} |",
                measured.id,
                measured.about,
                show(Estimate::of(&measured.added()), 1),
                if helper > 0.0 { format!("{helper:.1}") } else { String::new() },
                measured.kept().len(),
                measured.samples.len(),
            )?;
        }
        writeln!(out, "\n| ratio of what is added | | [95 %] | bar | |\n|---|--:|---|--:|---|")?;
        for ratio in self.ratios() {
            let Estimate { median, low, high } = ratio.value;
            let most = ratio.most.map(|most| format!("≤ {most}")).unwrap_or_default();
            writeln!(
                out,
                "| {}: {} | {median:.2} | {low:.2} to {high:.2} | {most} | {} |",
                ratio.module,
                ratio.about,
                ratio.verdict(),
            )?;
        }
        writeln!(
            out,
            "\n| at {} requests/s | p50 µs | added | p99 µs [95 %] |\n|---|--:|--:|--:|",
            plan.rate
        )?;
        let of_floor = self.latencies.iter().find(|latency| latency.id == NONE);
        let floor = of_floor.map_or(f64::NAN, |latency| median(&latency.of(|round| round.p50)));
        for latency in &self.latencies {
            let p50 = median(&latency.of(|round| round.p50));
            let p99 = Estimate::of(&latency.of(|round| round.p99));
            writeln!(
                out,
                "| `{}` | {p50:.0} | {:.0} | {} |",
                latency.id,
                p50 - floor,
                show(p99, 0)
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
                "interference_cores": sample.interference, "disagreement": sample.disagreement,
            })
        };
        let measured = self.measured.iter().map(|one| {
            json!({
                "id": one.id, "about": one.about, "module": one.module,
                "added_us": estimate(Estimate::of(&one.added())),
                "helper_us": median(&one.of(|sample| sample.helper)),
                "throughput": median(&one.of(|sample| sample.rate / sample.floor_rate)),
                "kept": one.kept().len(),
                "samples": one.samples.iter().map(sample).collect::<Vec<_>>(),
            })
        });
        let ratios = self.ratios();
        let ratios = ratios.iter().map(|ratio| {
            json!({
                "module": ratio.module, "about": ratio.about, "ratio": estimate(ratio.value),
                "bar": ratio.most, "verdict": ratio.verdict(),
            })
        });
        let latencies = self.latencies.iter().map(|latency| {
            json!({
                "id": latency.id,
                "p50_us": estimate(Estimate::of(&latency.of(|round| round.p50))),
                "p99_us": estimate(Estimate::of(&latency.of(|round| round.p99))),
                "rounds": latency.rounds.iter().map(|round| json!({
                    "p50_us": round.p50, "p99_us": round.p99,
                    "interference_cores": round.interference,
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
            "rounds": plan.rounds, "requests": plan.requests, "connections": plan.connections,
            "rate": plan.rate, "probes": self.probes, "waited_seconds": self.waited.as_secs(),
            "interference_cores": self.interference(), "doubts": self.doubts(),
            "variants": measured.collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
            "latencies": latencies.collect::<Vec<_>>(),
        })
    }
}

fn show(estimate: Estimate, digits: usize) -> String {
    let Estimate { median, low, high } = estimate;
    format!("{median:.digits$} [{low:.digits$}, {high:.digits$}]")
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::super::Module;
    use super::*;

    fn measured(id: &str, added: f64, interference: f64) -> Measured {
        // Half of the samples are of a machine that is not quiet, and far off.
        let sample = |number: u32| Sample {
            envoy: 20.0 + added + if number.is_multiple_of(2) { 0.0 } else { 50.0 },
            helper: 0.0,
            floor: 20.0,
            rate: 40_000.0,
            floor_rate: 50_000.0,
            interference: if number.is_multiple_of(2) { interference } else { 0.9 },
            disagreement: 0.0,
        };
        let module = id.starts_with("ours").then(|| "ours".to_owned());
        Measured {
            id: id.to_owned(),
            about: format!("about {id}"),
            module,
            samples: (0..16).map(sample).collect(),
        }
    }

    pub(in super::super) fn report(interference: f64) -> Report {
        let all = [
            (AGAIN, 0.1),
            ("jwt", 30.0),
            ("jwt+rbac", 10.0),
            ("jwt+rbac/no-cache", 40.0),
            ("jwt+rbac/tokens", 45.0),
            ("ext_authz/http", 35.0),
            ("ext_authz/grpc", 29.0),
            ("ours", 5.0),
            ("ours/tokens", 7.0),
            ("ours/cold-rs256", 25.0),
        ];
        let path = PathBuf::from("/nowhere.wasm");
        Report {
            machine: json!({}),
            envoy: "1.40.0".to_owned(),
            pinned: true,
            probes: 1,
            waited: Duration::ZERO,
            plan: Plan::full(vec![Module { label: "ours".to_owned(), path }]),
            measured: all.map(|(id, added)| measured(id, added, interference)).into(),
            latencies: ["none", "jwt+rbac", "ours"]
                .map(|id| Latency {
                    id: id.to_owned(),
                    rounds: vec![Paced { p50: 100.0, p99: 300.0, interference: 0.0 }; 6],
                })
                .into(),
        }
    }

    #[test]
    fn ratios_are_of_the_quiet_samples_and_judged_by_their_intervals() {
        let ratios = report(0.05).ratios();
        let found: Vec<_> = ratios
            .iter()
            .map(|ratio| (ratio.about.as_str(), ratio.value.median, ratio.verdict()))
            .collect();
        assert_eq!(
            found,
            [
                ("known, 50 rules ÷ jwt_authn (cache) and RBAC", 0.5, "met"),
                ("known ÷ ext_authz by gRPC, both processes", 5.0 / 29.0, "met"),
                ("1 000 callers ÷ native, default cache", 7.0 / 45.0, "met"),
                ("1 000 callers ÷ one caller", 1.4, "missed"),
                ("fresh RS256 ÷ jwt_authn, no cache", 25.0 / 30.0, "met"),
                ("99th percentile of latency ÷ jwt_authn (cache) and RBAC", 1.0, "met"),
            ]
        );
        let value = Estimate { median: 0.5, low: 0.4, high: 0.7 };
        let open = Ratio { module: String::new(), about: String::new(), value, most: Some(0.6) };
        assert_eq!(open.verdict(), "open");
    }

    #[test]
    fn a_second_build_is_compared_with_the_first() {
        let mut report = report(0.05);
        let path = PathBuf::from("/nowhere.wasm");
        report.plan.modules.push(Module { label: "next".to_owned(), path });
        report
            .measured
            .push(Measured { module: Some("next".to_owned()), ..measured("next", 4.0, 0.0) });
        let ratios = report.ratios();
        let between = ratios.iter().find(|ratio| ratio.about == "next ÷ ours").unwrap();
        assert_eq!((between.value.median, between.verdict()), (0.8, ""));
    }

    #[test]
    fn what_should_not_be_believed_says_so() {
        assert_eq!(report(0.05).doubts(), Vec::<String>::new());
        let mut loud = report(0.5);
        loud.pinned = false;
        loud.plan.rounds = 3;
        loud.measured[0] = measured(AGAIN, 2.0, 0.5);
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
            sample.helper = 6.0;
            sample.envoy -= 6.0;
        }
        let text = report.text();
        let row = "| `ext_authz/grpc` | about ext_authz/grpc | 29.0 [29.0, 29.0] | 6.0 | 0.80 | 8 of 16 |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| `ours` | 100 | 0 | 300 [300, 300] |"), "{text}");
    }
}
