//! What this filter costs a real Envoy beside Envoy's own filters and external authorizers.
//!
//! One Envoy with one worker runs every variant as a listener of its own, so that they can be asked in turn within a
//! moment: no filter, a variant, no filter. Its figure is what Envoy's threads, and whoever works for the variant,
//! had of processors for each request, less than what the two without a filter around it had. The order changes with
//! every round, each round waits until nobody else uses the machine, and the noisier half of the samples is dropped.
//! Before anything is measured, every variant has shown that it lets pass what it should and nothing else.
//!
//! What it is not: a benchmark of Envoy. The answer is Envoy's own, so that no upstream is measured; a request by
//! HTTP/1.1 has no body; there is no TLS.

pub mod authorizer;
pub mod chart;
pub mod credentials;
pub mod drive;
pub mod machine;
pub mod report;
pub mod statistics;
pub mod variants;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Request, Response};

use crate::bootstrap::Bootstrap;
use crate::client::Call;
use crate::document::{Document, Source};
use crate::envoy::Launch;
use crate::error::{Context as _, Error, Result};
use crate::process::Process;
use crate::server::{Service, serve};

use self::authorizer::{Opa, Server, Speaks};
use self::credentials::Issuers;
use self::drive::{Lane, Lanes};
use self::machine::{Gate, Moment};
use self::report::{Latency, Measured, Report, Sample};
use self::statistics::Random;
use self::variants::{
    Asks, Callers, Helper, Maker, NONE, NONE_ROUTES, Probe, Servers, Sizes, Variant,
};

pub use self::variants::Module;

/// What is measured, and how much.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Builds of the filter.
    pub modules: Vec<Module>,
    /// OPA with its Envoy plugin.
    pub opa: Option<PathBuf>,
    /// Only variants whose names contain one of these; all if there are none.
    pub only: Vec<String>,
    /// Rounds; in each, every variant is asked.
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
            rounds: 16,
            requests: 4_000,
            connections: 16,
            warm: 2_000,
            paced_rounds: 6,
            rate: 1_000,
            paced_time: Duration::from_secs(3),
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

/// Measures.
///
/// # Errors
/// If something does not start, or a variant does not answer what it must.
pub async fn run(mut plan: Plan, directory: &Path, mut say: impl FnMut(&str)) -> Result<Report> {
    fs::create_dir_all(directory).context(directory.display())?;
    // What is used up: warming up, the rounds with a call on each connection, the probes.
    let round = plan.requests / 2 + plan.connections;
    plan.sizes.fresh = plan.warm / 8 + (plan.rounds + 1) * round + 64;
    let sizes = plan.sizes;
    say(&format!("minting credentials ({} fresh ones)", sizes.fresh));
    let issuers = Issuers::new(&[sizes.rules, sizes.many_rules, sizes.most_rules])?;
    let made = Maker::new(&issuers, sizes, &plan.only).all(&plan.modules, plan.opa.is_some())?;

    say("starting Envoy");
    let stage = Stage::set(&plan, &issuers, &made, directory).await?;
    let mut variants = made;
    let mut probes = 0;
    for variant in &mut variants {
        probes += stage.verify(variant).await.context(&variant.id)?;
        let warm = plan.warm_of(variant);
        stage.saturate(variant, plan.connections, warm).context(&variant.id)?;
    }
    say(&format!("all {} variants answer what they must ({probes} probes)", variants.len()));

    let mut gate = Gate { patience: plan.patience, waited: Duration::ZERO };
    let mut run = Run { plan: &plan, stage: &stage, gate: &mut gate, variants };
    let measured = run.rounds(&mut say)?;
    let latencies = run.paced(&mut say)?;
    let report = Report {
        machine: machine::description(),
        envoy: stage.version.clone(),
        pinned: stage.processors.is_some(),
        probes,
        waited: gate.waited,
        plan: plan.clone(),
        measured,
        latencies,
    };
    Ok(report)
}

/// The server of the large policy.
struct Policy(Document);

impl Service for Policy {
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        self.0.answer(&request).await
    }
}

/// Everything that runs.
struct Stage {
    envoy: Process,
    admin: SocketAddr,
    version: String,
    addresses: Vec<(String, SocketAddr)>,
    http: Server,
    grpc: Server,
    collector: Server,
    opa: Option<(Opa, Opa)>,
    processors: Option<(usize, usize)>,
}

impl Stage {
    async fn set(
        plan: &Plan,
        issuers: &Issuers,
        variants: &[Variant],
        directory: &Path,
    ) -> Result<Self> {
        let (http, grpc) = (Server::start(Speaks::Http)?, Server::start(Speaks::Grpc)?);
        let collector = Server::start(Speaks::Http)?;
        let most = variants::document(plan.sizes.most_rules, Asks::Airflow).to_string();
        let policy = Policy(Document::new(Source::Text(most)));
        let policy = serve(Arc::new(policy), None).await?;
        let opa = match &plan.opa {
            None => None,
            Some(program) => {
                let rules = variants::rego(plan.sizes.rules, issuers);
                let allow = Opa::start(program, "opa-allow", variants::ALLOW, directory)?;
                Some((allow, Opa::start(program, "opa-rules", &rules, directory)?))
            }
        };
        let servers = Servers {
            http: http.address,
            grpc: grpc.address,
            collector: collector.address,
            policy,
            opa: opa.as_ref().map(|(allow, rules)| (allow.address, rules.address)),
        };
        let names: Vec<&str> = variants.iter().map(|variant| variant.id.as_str()).collect();
        let launch = Launch {
            name: "envoy",
            access: "access",
            directory,
            concurrency: 1,
            // The level of a production's log, at which audit records are written.
            log_level: "info",
            wasm_log_level: None,
            listeners: &names,
            environment: &[],
        };
        let (envoy, addresses) =
            launch.run(&Bootstrap(variants::bootstrap(variants, &servers))).await?;
        let mut known = Vec::with_capacity(names.len());
        for (name, address) in names.iter().zip(addresses.listeners) {
            known.push(((*name).to_owned(), address.context(name)?));
        }
        // Only now: starting may use the whole machine.
        let processors = machine::processors();
        if let Some((first, second)) = processors {
            machine::pin(envoy.id(), first)?;
            machine::pin(std::process::id(), second)?;
            for opa in opa.iter().flat_map(|(allow, rules)| [allow, rules]) {
                machine::pin(opa.id(), second)?;
            }
        }
        let admin = addresses.admin;
        let information = Call::get("admin", "/server_info").send(admin, None).await?.json();
        let version = information.get("version").and_then(serde_json::Value::as_str);
        let version = version.unwrap_or_default().to_owned();
        let addresses = known;
        Ok(Self { envoy, admin, version, addresses, http, grpc, collector, opa, processors })
    }

    fn address(&self, variant: &Variant) -> Result<SocketAddr> {
        let found = self.addresses.iter().find(|(name, _)| *name == variant.id);
        found.map(|(_, address)| *address).context("a listener")
    }

    /// The processes that are measured, besides this one.
    fn processes(&self) -> Vec<u32> {
        let opa = self.opa.iter().flat_map(|(allow, rules)| [allow.id(), rules.id()]);
        opa.chain([self.envoy.id()]).collect()
    }

    /// Processor time of who works for it besides Envoy.
    fn helper_time(&self, helper: Option<Helper>) -> Result<Duration> {
        let opa = || self.opa.as_ref().context("OPA");
        match helper {
            None => Ok(Duration::ZERO),
            Some(Helper::Http) => self.http.time(),
            Some(Helper::Grpc) => self.grpc.time(),
            Some(Helper::Collector) => self.collector.time(),
            Some(Helper::OpaAllow) => opa()?.0.time(),
            Some(Helper::OpaRules) => opa()?.1.time(),
        }
    }

    fn saturate(&self, variant: &mut Variant, connections: usize, calls: usize) -> Result<()> {
        let address = self.address(variant)?;
        let Variant { requests, expected, .. } = variant;
        let mut lanes = Lanes::open(connections, address, requests, *expected)?;
        lanes.saturate(calls, requests, *expected)
    }

    /// Sees that a variant answers what it must, and how many probes showed it.
    async fn verify(&self, variant: &mut Variant) -> Result<usize> {
        let mut lane = Lane::open(self.address(variant)?)?;
        // A policy that is fetched takes its time.
        let deadline = Instant::now() + Duration::from_secs(60);
        let first = variant.requests.first()?;
        loop {
            let status = lane.call(if variant.requests.are_fresh() {
                variant.requests.next()?
            } else {
                &first
            })?;
            if status == variant.expected {
                break;
            }
            if status != 503 || Instant::now() > deadline {
                let expected = variant.expected;
                return Err(Error::new(format!("answered with {status} instead of {expected}")));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        for probe in variant.probes.clone() {
            self.probe(&mut lane, variant, &probe).await.context(probe.about)?;
        }
        let mut probes = variant.probes.len() + 1;
        let server = match variant.helper {
            Some(Helper::Http) => &self.http,
            Some(Helper::Grpc) => &self.grpc,
            _ => return Ok(probes),
        };
        let asked = server.asked();
        server.deny(true);
        let denied = lane.call(&first);
        server.deny(false);
        if denied? != 403 || server.asked() == asked {
            return Err(Error::new("the authorizer denies, and Envoy does not"));
        }
        probes += 1;
        Ok(probes)
    }

    async fn probe(&self, lane: &mut Lane, variant: &mut Variant, probe: &Probe) -> Result<()> {
        // The filter hands its counts over every tenth of a second.
        const SETTLED: Duration = Duration::from_millis(250);
        let mut before = 0;
        if let Some((names, _)) = &probe.counts {
            tokio::time::sleep(SETTLED).await;
            before = self.sum(names).await?;
        }
        let status = match &probe.request {
            Some(request) => lane.call(request)?,
            None => lane.call(variant.requests.next()?)?,
        };
        if status != probe.status {
            let expected = probe.status;
            return Err(Error::new(format!("answered with {status} instead of {expected}")));
        }
        let Some((names, growth)) = &probe.counts else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            tokio::time::sleep(SETTLED).await;
            let grown = self.sum(names).await?.saturating_sub(before);
            match (*growth, grown) {
                (0, 0) => return Ok(()),
                (1.., _) if grown >= *growth => return Ok(()),
                (0, _) => return Err(Error::new(format!("`{names}` grew by {grown}"))),
                _ if Instant::now() > deadline => {
                    return Err(Error::new(format!("`{names}` grew by {grown} only")));
                }
                _ => {}
            }
        }
    }

    /// The sum of Envoy's statistics whose names match.
    async fn sum(&self, names: &str) -> Result<u64> {
        // Only `\` and `$` of what is in the expressions must be escaped in a query.
        let names = names.replace('\\', "%5C").replace('$', "%24");
        let path = format!("/stats?filter={names}");
        let answer = Call::get("admin", &path).send(self.admin, None).await?;
        let text = answer.text();
        let values = text.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok());
        Ok(values.sum())
    }
}

/// The measurement itself.
struct Run<'r> {
    plan: &'r Plan,
    stage: &'r Stage,
    gate: &'r mut Gate,
    variants: Vec<Variant>,
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
        let envoy = || crate::cost::processor_time(stage.envoy.id());
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

    fn rounds(&mut self, say: &mut impl FnMut(&str)) -> Result<Vec<Measured>> {
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
    fn paced(&mut self, say: &mut impl FnMut(&str)) -> Result<Vec<Latency>> {
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
                let sorted = lanes.pace(rate, time, requests, *expected).context(&id)?;
                let interference = Moment::now(&processes)?.others_since(&before);
                if let Some(latency) = latencies.iter_mut().find(|latency| latency.id == *id) {
                    latency.rounds.push(report::Paced::of(&sorted, interference));
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
