//! What callers notice while keys and policy change: nothing wrong. `scripts/bench rotation` prints it as a table.
//!
//! Every phase makes calls at a fixed rate and judges each answer by what was true when it was given. Where the truth
//! changes, an answer may go by the former one for [`TOLERANCE`]; where only keys change, there is nothing to tolerate.

mod mesh;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use p256::elliptic_curve::rand_core::{OsRng, RngCore as _};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::document::Source;
use crate::error::{Context as _, Error, Result};
use crate::identity::now;
use crate::load::{Connection, Credentials, Expected, Load, Tally, Traffic, get, percentile};
use crate::oidc::{DISCOVERY_PATH, KEYS_PATH};
use crate::{Access, Configure, Fault, ORDERS, Options, Task, Testbed, consul, within};

/// For how long an answer may go by a policy that was replaced.
pub const TOLERANCE: Duration = Duration::from_millis(250);

/// The two paths of which a policy allows one.
const PATHS: [&str; 2] = ["/v1/orders/a", "/v1/orders/b"];
const STATUS: &str = "/airflow-envoy/status";
const KEY: &str = "airflow-envoy/policy/main";
/// Identities that are used in turn; each is verified once by every worker.
const IDENTITIES: usize = 32;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Requests a second.
    pub rate: u32,
    /// Rotations of keys, and changes of the policy, one a second.
    pub changes: u32,
    /// How long a server is away.
    pub outage: Duration,
    /// Requests with keys that do not exist.
    pub unknown_keys: u32,
    /// Changes of a policy in Consul.
    pub consul_changes: u32,
    /// Changes of a policy of a megabyte.
    pub large_changes: u32,
    /// How long nothing happens.
    pub rest: Duration,
}

impl Plan {
    /// For figures.
    pub const WHOLE: Self = Self {
        rate: 1_000,
        changes: 20,
        outage: Duration::from_secs(60),
        unknown_keys: 50_000,
        consul_changes: 100,
        large_changes: 1_000,
        rest: Duration::from_secs(60),
    };
    /// For a look whether everything still holds.
    pub const QUICK: Self = Self {
        rate: 400,
        changes: 4,
        outage: Duration::from_secs(3),
        unknown_keys: 2_000,
        consul_changes: 10,
        large_changes: 10,
        rest: Duration::from_secs(3),
    };
}

/// What a phase found.
#[derive(Debug, Clone)]
pub struct Row {
    /// What happened.
    pub phase: String,
    /// The calls.
    pub tally: Tally,
    /// Envoy's resident memory before and after, in KiB.
    pub memory_kib: (u64, u64),
    /// What else was counted.
    pub note: String,
}

impl Row {
    /// The head of the table.
    pub const HEAD: &str = "| phase | calls | wrongly refused | wrongly allowed | 5xx | unanswered | p50 ms | p99 ms | max ms | RSS MiB | |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|";
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phase, tally, memory_kib: (before, after), note } = self;
        write!(formatter, "| {phase} | {} ", tally.calls())?;
        for count in
            [tally.wrongly_refused, tally.wrongly_allowed, tally.unavailable, tally.unanswered]
        {
            write!(formatter, "| {count} ")?;
        }
        for share in [0.5, 0.99, 1.0] {
            write!(formatter, "| {} ", millis(tally.latency(share)))?;
        }
        write!(formatter, "| {} → {} | {note} |", before / 1024, after / 1024)
    }
}

/// Runs the phases whose names contain `filter` and says each row as soon as it is there.
///
/// # Errors
/// If the stage cannot be set, or something that was to happen does not.
pub async fn run(plan: Plan, filter: &str, mut say: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let wanted = |names: &[&str]| names.iter().any(|name| name.contains(filter));
    let http = [
        "at rest",
        "steady",
        "key rotations",
        "policy changes",
        "fetcher replaced",
        "OIDC provider away",
        "policy server talks garbage",
        "unknown keys",
        "large policies",
    ];
    if wanted(&http) {
        let bed = Bed::start(plan, options(by_long_poll)).await?;
        for name in http.into_iter().filter(|name| name.contains(filter)) {
            let row = match name {
                "at rest" => bed.at_rest().await,
                "steady" => bed.steady().await,
                "key rotations" => bed.key_rotations().await,
                "policy changes" => bed.policy_changes().await,
                "fetcher replaced" => bed.fetcher_replaced().await,
                "OIDC provider away" => bed.provider_away().await,
                "policy server talks garbage" => bed.garbage().await,
                "unknown keys" => bed.unknown_keys().await,
                _ => bed.large_policies().await,
            };
            let row = row.context(name)?;
            say(&row);
            rows.push(row);
        }
    }
    let kept = ["policy changes in Consul", "Consul killed and started empty"];
    if let Some(why) = consul::absence() {
        println!("SKIPPED: {why}");
    } else if wanted(&kept) {
        let bed =
            Bed::start(plan, Options { consul: Some(Access::Open), ..options(by_consul) }).await?;
        for name in kept.into_iter().filter(|name| name.contains(filter)) {
            let row =
                if name == kept[0] { bed.consul_changes().await } else { bed.consul_away().await };
            let row = row.context(name)?;
            say(&row);
            rows.push(row);
        }
    }
    if consul::absence().is_none() && wanted(&mesh::PHASES) {
        let bed = Bed::start(plan, mesh::options()).await?;
        for name in mesh::PHASES.into_iter().filter(|name| name.contains(filter)) {
            let row = bed.in_mesh(name).await.context(name)?;
            say(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn options(change: fn(&mut Value)) -> Options {
    let configure: Configure = Box::new(move |configuration| {
        for (place, value) in [
            ("/issuers/0/jwks/min_refresh", json!("500ms")),
            ("/airflow/issuers/0/jwks/min_refresh", json!("500ms")),
            ("/status/path", json!(STATUS)),
        ] {
            set(configuration, place, value);
        }
        change(configuration);
    });
    Options {
        configure,
        policy: Source::Text(policy(1, &PATHS).to_string()),
        reloadable: true,
        ..Options::default()
    }
}

fn by_long_poll(configuration: &mut Value) {
    set(configuration, "/policy/sources/0/http/long_poll", json!("55s"));
}

fn by_consul(configuration: &mut Value) {
    let source =
        json!({ "cluster": "consul", "key": KEY, "wait": "55s", "timeout": "2s", "poll": "200ms" });
    let sources = json!([{ "name": "kv", "consul_kv": source }]);
    set(configuration, "/policy/sources", sources);
}

/// Sets the member at the end of a JSON pointer, whose objects are made if they are not there.
fn set(value: &mut Value, pointer: &str, new: Value) {
    let mut place = value;
    for part in pointer.split('/').skip(1) {
        let index: Option<usize> = part.parse().ok();
        let next = match (place, index) {
            (Value::Array(list), Some(index)) => list.get_mut(index),
            (Value::Object(members), _) => Some(members.entry(part).or_insert_with(|| json!({}))),
            _ => None,
        };
        let Some(next) = next else { return };
        place = next;
    }
    *place = new;
}

/// A policy by which data science reads these paths.
fn policy(revision: u64, paths: &[&str]) -> Value {
    json!({
        "version": 1, "revision": revision,
        "destinations": { "orders": { "hosts": [ORDERS] } },
        "rules": [{
            "id": "reads", "effect": "allow", "from": { "teams": ["data-science"] },
            "to": ["orders"], "methods": ["GET"], "paths": paths,
        }],
    })
}

/// The same with so many more rules that it is about a megabyte.
fn large_policy(revision: u64) -> Value {
    let mut policy = policy(revision, &PATHS);
    let more = (0..4_000).map(|number| {
        json!({
            "id": format!("rule-{number}"),
            "intent": "One of many rules, of which each is about a DAG and a path of its own, as a generator writes them.",
            "effect": "allow", "from": { "dags": [format!("dag_{number}_{revision}")] },
            "to": ["orders"], "methods": ["GET"], "paths": [format!("/v1/teams/{number}/**")],
        })
    });
    if let Some(rules) = policy.pointer_mut("/rules").and_then(Value::as_array_mut) {
        rules.extend(more);
    }
    policy
}

/// Credentials of one token and many tasks.
#[derive(Debug, Clone)]
struct Callers {
    /// Of the team that the policy knows.
    known: Arc<Vec<Credentials>>,
    /// Of another one.
    strangers: Arc<Vec<Credentials>>,
}

/// Which of [`PATHS`] are allowed.
type Truth = [bool; 2];

/// Calls for both paths, a stranger's, one without credentials; and, if asked for, mostly such with unknown keys.
struct Mixed {
    callers: RwLock<Callers>,
    truths: RwLock<Vec<(Instant, Truth)>>,
    unknown: Option<Unknown>,
}

/// Tokens that look right but for their key and signature.
struct Unknown {
    claims: String,
    identity: String,
}

impl Unknown {
    fn new() -> Self {
        let claims = json!({
            "iss": "https://idp.internal", "aud": crate::AUDIENCE, "sub": "airflow", "client_id": "airflow",
            "iat": now(), "exp": now() + 600,
        });
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        Self { claims, identity: "e30.e30.e30".to_owned() }
    }

    fn credentials(&self) -> Option<Credentials> {
        let mut random = [0; 12];
        OsRng.fill_bytes(&mut random);
        let kid = URL_SAFE_NO_PAD.encode(random);
        let header = json!({ "alg": "RS256", "typ": "at+jwt", "kid": kid }).to_string();
        let signature = URL_SAFE_NO_PAD.encode([7; 256]);
        let token = format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), self.claims);
        Credentials::new(&token, &self.identity).ok()
    }
}

impl Traffic for Mixed {
    fn request(&self, number: u64) -> Request<Empty<Bytes>> {
        let Callers { known, strangers } =
            self.callers.read().unwrap_or_else(PoisonError::into_inner).clone();
        let index = usize::try_from(number / 10).unwrap_or_default() % IDENTITIES;
        match self.kind(number) {
            Kind::Path(path) => get(PATHS.get(path).unwrap_or(&PATHS[0]), known.get(index)),
            Kind::Stranger => get(PATHS[0], strangers.get(index)),
            Kind::Unknown => {
                let made = self.unknown.as_ref().and_then(Unknown::credentials);
                get(PATHS[0], made.as_ref())
            }
            Kind::Bare => get(PATHS[0], None),
        }
    }

    fn expected(&self, number: u64, sent: Instant, answered: Instant) -> Expected {
        let no_match = &["policy_no_match"];
        match self.kind(number) {
            Kind::Path(path) => {
                let truths = self.truths.read().unwrap_or_else(PoisonError::into_inner);
                let mut expected = Expected { allowed: false, refused: &[] };
                for (index, (from, truth)) in truths.iter().enumerate() {
                    let until = truths.get(index + 1).map(|(until, _)| *until);
                    let over = until.is_some_and(|until| until + TOLERANCE < sent);
                    if *from <= answered && !over {
                        if truth.get(path).is_some_and(|allowed| *allowed) {
                            expected.allowed = true;
                        } else {
                            expected.refused = no_match;
                        }
                    }
                }
                expected
            }
            Kind::Stranger => Expected { allowed: false, refused: no_match },
            Kind::Bare => Expected { allowed: false, refused: &["token_missing"] },
            // Invented keys may fill half of the waiting room, and no more.
            Kind::Unknown => {
                let refused = &["token_key_unknown", "waiting_room_full"];
                Expected { allowed: false, refused }
            }
        }
    }
}

enum Kind {
    Path(usize),
    Stranger,
    Bare,
    Unknown,
}

impl Mixed {
    fn kind(&self, number: u64) -> Kind {
        match number % 10 {
            0 if self.unknown.is_some() => Kind::Path(0),
            _ if self.unknown.is_some() => Kind::Unknown,
            0..4 => Kind::Path(0),
            4..8 => Kind::Path(1),
            8 => Kind::Stranger,
            _ => Kind::Bare,
        }
    }
}

/// A testbed, and the truth about it.
struct Bed {
    testbed: Arc<Testbed>,
    plan: Plan,
    traffic: Arc<Mixed>,
    revision: AtomicU64,
}

impl Bed {
    async fn start(plan: Plan, options: Options) -> Result<Self> {
        let testbed = Arc::new(Testbed::start(options).await?);
        if let Some(consul) = &testbed.consul {
            consul.put(KEY, policy(1, &PATHS).to_string()).await?;
        }
        let callers = RwLock::new(mint(&testbed).await?);
        let truths = RwLock::new(vec![(Instant::now(), [true, true])]);
        let traffic = Arc::new(Mixed { callers, truths, unknown: None });
        let bed = Self { testbed, plan, traffic, revision: AtomicU64::new(1) };
        within(Duration::from_secs(10), "the policy serves", async || {
            let mut connection = Connection::new(bed.testbed.entry());
            let known = bed.callers().known;
            let answer = connection.call(|| get(PATHS[0], known.first())).await;
            answer.is_ok_and(|answer| answer.status == 200)
        })
        .await?;
        Ok(bed)
    }

    /// Load for as long as `events` take, and a second more.
    async fn under_load(
        &self,
        phase: impl Into<String>,
        events: impl AsyncFnOnce() -> Result<String>,
    ) -> Result<Row> {
        // A phase begins with fresh credentials, and what was true before is of no interest.
        self.renew().await?;
        {
            let mut truths = self.traffic.truths.write().unwrap_or_else(PoisonError::into_inner);
            let keep = truths.len().saturating_sub(1);
            truths.drain(..keep);
        }
        let before = self.testbed.memory_kib()?;
        let load = |time| {
            let load = Load { rate: self.plan.rate, connections: 64, time };
            tokio::spawn(load.run(self.testbed.entry(), Arc::clone(&self.traffic)))
        };
        let slice = Duration::from_secs(1);
        let mut tally = Tally::default();
        let mut events = Box::pin(events());
        // Second by second, because only the events know how long they take.
        let mut running: JoinHandle<Result<Tally>> = load(slice);
        let mut renewed = Instant::now();
        let note = loop {
            tokio::select! {
                note = &mut events => break note?,
                done = &mut running => {
                    tally.add(done.context("the load")??);
                    running = load(slice);
                    // Identities live for a minute.
                    if renewed.elapsed() > Duration::from_secs(15) && self.testbed.provider.is_running() {
                        self.renew().await?;
                        renewed = Instant::now();
                    }
                }
            }
        };
        tally.add(running.await.context("the load")??);
        tally.add(load(slice).await.context("the load")??);
        let memory_kib = (before, self.testbed.memory_kib()?);
        Ok(Row { phase: phase.into(), tally, memory_kib, note })
    }

    /// Callers show new credentials from now on.
    async fn renew(&self) -> Result<()> {
        let fresh = mint(&self.testbed).await?;
        *self.traffic.callers.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    fn callers(&self) -> Callers {
        self.traffic.callers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A revision that is newer than every other.
    fn revision(&self) -> u64 {
        self.revision.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The truth from now on.
    fn holds(&self, truth: Truth) {
        let mut truths = self.traffic.truths.write().unwrap_or_else(PoisonError::into_inner);
        truths.push((Instant::now(), truth));
    }

    async fn steady(&self) -> Result<Row> {
        self.under_load("steady", async || {
            tokio::time::sleep(self.plan.rest.min(Duration::from_secs(10))).await;
            Ok("nothing happens".to_owned())
        })
        .await
    }

    async fn key_rotations(&self) -> Result<Row> {
        let plan = self.plan;
        self.under_load(format!("{} key rotations", plan.changes), async || {
            let before = self.keys_fetched().await?;
            for _ in 0..plan.changes {
                self.testbed.oidc.rotate(false).await?;
                self.testbed.airflow.rotate(false);
                self.renew().await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let fetched = self.keys_fetched().await? - before;
            Ok(format!("both issuers, used at once; {fetched} fetches at the OIDC provider"))
        })
        .await
    }

    async fn policy_changes(&self) -> Result<Row> {
        let plan = self.plan;
        let row = self.under_load(format!("{} policy changes", plan.changes), async || {
            for change in 0..plan.changes {
                let flipped = change % 2 == 0;
                let path = PATHS.get(usize::from(flipped)).unwrap_or(&PATHS[0]);
                self.holds([!flipped, flipped]);
                self.testbed.policy.set(&policy(self.revision(), &[path]));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(format!("each flips which of two paths is allowed; tolerance {TOLERANCE:?}"))
        });
        let row = row.await;
        self.restore().await?;
        row
    }

    /// Both paths are allowed again.
    async fn restore(&self) -> Result<()> {
        self.holds([true, true]);
        self.testbed.policy.set(&policy(self.revision(), &PATHS));
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    async fn fetcher_replaced(&self) -> Result<Row> {
        let leader = async || -> Result<String> {
            let answer = self.testbed.call(crate::Call::get(ORDERS, STATUS)).await?.json();
            let sources = answer.get("sources").and_then(Value::as_array).cloned();
            let main = sources
                .into_iter()
                .flatten()
                .find(|source| source.get("name").is_some_and(|name| name == "main"));
            Ok(main
                .and_then(|main| Some(main.get("leader")?.as_str()?.to_owned()))
                .unwrap_or_default())
        };
        let row = self.under_load("fetcher replaced", async || {
            let former = leader().await?;
            self.testbed.replace_vms().await?;
            let ended = Instant::now();
            let mut present = former.clone();
            within(Duration::from_secs(10), "another VM leads", async || {
                present = leader().await.unwrap_or_default();
                !present.is_empty() && present != former
            })
            .await?;
            let taken = ended.elapsed();
            // What counts: the new one fetches.
            self.holds([false, true]);
            self.testbed.policy.set(&policy(self.revision(), &[PATHS[1]]));
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(format!("every VM is new; another leads {} ms after the former ones ended, and brings the next policy", taken.as_millis()))
        });
        let row = row.await;
        self.restore().await?;
        row
    }

    async fn provider_away(&self) -> Result<Row> {
        let outage = self.plan.outage;
        self.under_load(format!("OIDC provider away for {} s", outage.as_secs()), async || {
            // Signed by Airflow, whose keys are another source: only the token's issuer is away.
            self.testbed.provider.stop();
            tokio::time::sleep(outage).await;
            self.testbed.provider.start_again().await?;
            self.renew().await?;
            Ok("tokens of before and after".to_owned())
        })
        .await
    }

    async fn garbage(&self) -> Result<Row> {
        let faults = [
            Fault::Status(500),
            Fault::Body("\u{0}\u{1}garbage".to_owned()),
            Fault::Body("{\"version\": 1".to_owned()),
            Fault::Html,
            Fault::Huge(33 << 20),
            Fault::Close,
        ];
        let each = self.plan.outage / 10;
        let row = self.under_load("policy server talks garbage", async || {
            for fault in faults {
                self.testbed.policy.fault(fault);
                tokio::time::sleep(each).await;
            }
            self.testbed.policy.heal();
            Ok(format!(
                "500, not JSON, half a policy, HTML, 33 MiB, closed: {} s each",
                each.as_secs_f32()
            ))
        });
        let row = row.await;
        let before = self.testbed.policy.fetches();
        within(Duration::from_secs(60), "the policy is fetched again", async || {
            // One that is held was sent by somebody who has the policy already.
            self.testbed.policy.held() > 0 || self.testbed.policy.fetches() > before
        })
        .await?;
        row
    }

    async fn unknown_keys(&self) -> Result<Row> {
        let plan = self.plan;
        self.renew().await?;
        let traffic = Arc::new(Mixed {
            callers: RwLock::new(self.callers()),
            truths: RwLock::new(vec![(Instant::now(), [true, true])]),
            unknown: Some(Unknown::new()),
        });
        // Each of them waits for a fetch, so many are under way at once.
        let load = Load {
            rate: plan.rate,
            connections: usize::try_from(plan.rate).context("connections")?,
            time: Duration::from_secs(1) * plan.unknown_keys / plan.rate,
        };
        let (fetched, memory) = (self.keys_fetched().await?, self.testbed.memory_kib()?);
        let begun = Instant::now();
        let tally = load.run(self.testbed.listener, traffic).await?;
        let seconds = begun.elapsed().as_secs_f32();
        let fetched = self.keys_fetched().await? - fetched;
        Ok(Row {
            phase: format!("{} calls, nine of ten with an invented key", tally.calls()),
            note: format!(
                "{fetched} fetches in {seconds:.1} s; least time between two is 500 ms; refused: {:?}",
                tally.codes
            ),
            tally,
            memory_kib: (memory, self.testbed.memory_kib()?),
        })
    }

    async fn large_policies(&self) -> Result<Row> {
        let plan = self.plan;
        let revision = "wasmcustom.airflow_envoy.policy.main.revision";
        let bytes = large_policy(0).to_string().len();
        let before = self.testbed.memory_kib()?;
        let begun = Instant::now();
        // Without calls, whose credentials are remembered and would be counted, too.
        let mut memory = Vec::new();
        for change in 1..=plan.large_changes {
            let number = self.revision();
            self.testbed.policy.set(&large_policy(number));
            within(Duration::from_secs(10), "the large policy is in use", async || {
                self.testbed.stat(revision).await.is_ok_and(|known| known == number)
            })
            .await?;
            if change % (plan.large_changes / 10).max(1) == 0 {
                memory.push((self.testbed.memory_kib()? / 1024).to_string());
            }
        }
        let each = begun.elapsed() / plan.large_changes.max(1);
        self.restore().await?;
        Ok(Row {
            phase: format!("{} policies of {} kB", plan.large_changes, bytes / 1000),
            tally: Tally::default(),
            memory_kib: (before, self.testbed.memory_kib()?),
            note: format!("{} ms each; RSS at each tenth: {} MiB", millis(each), memory.join(", ")),
        })
    }

    async fn at_rest(&self) -> Result<Row> {
        let rest = self.plan.rest;
        let counted = async || -> Result<[u64; 4]> {
            let idp = self.keys_fetched().await?;
            let Testbed { policy, airflow, .. } = &*self.testbed;
            Ok([idp, airflow.keys.fetches(), policy.fetches(), policy.held()])
        };
        let memory = self.testbed.memory_kib()?;
        let before = counted().await?;
        tokio::time::sleep(rest).await;
        let after = counted().await?;
        let [idp, airflow, policy, _] = [0, 1, 2, 3].map(|index: usize| {
            after.get(index).zip(before.get(index)).map_or(0, |(after, before)| after - before)
        });
        Ok(Row {
            phase: format!("at rest for {} s", rest.as_secs()),
            tally: Tally::default(),
            memory_kib: (memory, self.testbed.memory_kib()?),
            note: format!(
                "fetches: {idp} OIDC provider, {airflow} Airflow, {policy} policy; {} policy held",
                after[3]
            ),
        })
    }

    async fn consul_changes(&self) -> Result<Row> {
        let consul = self.testbed.consul.as_ref().context("Consul")?;
        let memory = self.testbed.memory_kib()?;
        let mut connections = self.one_connection_per_worker().await?;
        let workers = connections.len();
        self.renew().await?;
        let credentials = self.callers().known.first().cloned().context("credentials")?;
        let mut times = Vec::new();
        for change in 0..self.plan.consul_changes {
            let flipped = change % 2 == 0;
            let path = PATHS.get(usize::from(flipped)).unwrap_or(&PATHS[0]);
            let text = policy(self.revision(), &[path]).to_string();
            // Every worker is asked again and again until it has the change.
            let begun = Instant::now();
            let tasks: Vec<_> = connections
                .drain(..)
                .map(|mut connection| {
                    let credentials = credentials.clone();
                    let expected = if flipped { 403 } else { 200 };
                    tokio::spawn(async move {
                        loop {
                            let answer =
                                connection.call(|| get(PATHS[0], Some(&credentials))).await?;
                            if answer.status == expected {
                                return Ok::<_, Error>((connection, Instant::now()));
                            }
                            if begun.elapsed() > Duration::from_secs(20) {
                                return Err(Error::new("a worker never had the change"));
                            }
                        }
                    })
                })
                .collect();
            consul.put(KEY, text).await?;
            let mut last = begun;
            for task in tasks {
                let (connection, at) = task.await.context("a worker's connection")??;
                last = last.max(at);
                connections.push(connection);
            }
            times.push(last - begun);
            // Time for the next question to be asked: what comes earlier waits for that.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        consul.put(KEY, policy(self.revision(), &PATHS).to_string()).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        times.sort_unstable();
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0]
            .map(|share| percentile(&times, share).map_or_else(String::new, |time| millis(*time)));
        Ok(Row {
            phase: format!("{} policy changes in Consul", self.plan.consul_changes),
            tally: Tally::default(),
            memory_kib: (memory, self.testbed.memory_kib()?),
            note: format!(
                "from the start of the PUT to its use by {workers} workers: p50 {p50}, p90 {p90}, p99 {p99}, max {max} ms"
            ),
        })
    }

    /// Connections, one to each worker, as far as the status answer tells them apart.
    async fn one_connection_per_worker(&self) -> Result<Vec<Connection>> {
        let mut workers = BTreeMap::new();
        for number in 0..24 {
            let mut connection = Connection::new(self.testbed.listener);
            let answer = connection.call(|| get(STATUS, None)).await?;
            let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let worker = said.get("worker").and_then(Value::as_str).map(str::to_owned);
            workers.insert(worker.unwrap_or_else(|| format!("connection {number}")), connection);
        }
        Ok(workers.into_values().collect())
    }

    async fn consul_away(&self) -> Result<Row> {
        let outage = self.plan.outage / 6;
        self.under_load("Consul killed and started empty", async || {
            let consul = self.testbed.consul.as_ref().context("Consul")?;
            consul.process.stop();
            tokio::time::sleep(outage).await;
            consul.start_again().await?;
            tokio::time::sleep(outage).await;
            let begun = Instant::now();
            consul.put(KEY, policy(self.revision(), &[PATHS[1]]).to_string()).await?;
            self.holds([false, true]);
            let mut connection = Connection::new(self.testbed.listener);
            let known = self.callers().known;
            within(Duration::from_secs(20), "the new policy acts", async || {
                let answer = connection.call(|| get(PATHS[0], known.first())).await;
                answer.is_ok_and(|answer| answer.status == 403)
            })
            .await?;
            Ok(format!(
                "away for {} s, then empty for as long; a new policy acts {} ms after its PUT",
                outage.as_secs_f32(),
                begun.elapsed().as_millis()
            ))
        })
        .await
    }

    /// Fetches that the OIDC provider saw, of keys and of its description.
    async fn keys_fetched(&self) -> Result<u64> {
        let oidc = &self.testbed.oidc;
        Ok(oidc.requests(KEYS_PATH).await? + oidc.requests(DISCOVERY_PATH).await?)
    }
}

async fn mint(testbed: &Testbed) -> Result<Callers> {
    let token = testbed.oidc.token(&crate::TokenRequest::default()).await?;
    let of_team = |team: &str| {
        (0..IDENTITIES)
            .map(|number| {
                let task = Task::new("ds_churn", &format!("load_{number}")).team(team);
                Credentials::new(&token, &testbed.airflow.mint(&task, Some(&token)))
            })
            .collect::<Result<Vec<_>>>()
            .map(Arc::new)
    };
    Ok(Callers { known: of_team("data-science")?, strangers: of_team("sales")? })
}

fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}
