//! The command line of the testbed; `scripts/testbed` is the way in.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use airflow_envoy_testbed::airflow::{self, Api, Run};
use airflow_envoy_testbed::certificates::connector;
use airflow_envoy_testbed::compare::{self, Module, Plan, chart, readme};
use airflow_envoy_testbed::document::Source;
use airflow_envoy_testbed::error::{Context as _, Error, Result};
use airflow_envoy_testbed::identity::MINT_PATH;
use airflow_envoy_testbed::rotation::{self, Row, run as run_phases};
use airflow_envoy_testbed::{
    Answer, Call, ORDERS, Oidc, Options, Task, Testbed, TokenRequest, cost, eventually,
    filter_file, repository, write_private,
};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

/// Try Airflow Envoy on this machine.
#[derive(Parser)]
#[command(bin_name = "scripts/testbed", disable_help_subcommand = true)]
struct Cli {
    /// Where a running testbed keeps its files.
    #[arg(long, hide = true)]
    directory: Option<PathBuf>,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run in the foreground until interrupted.
    Run {
        /// A real Airflow, too.
        #[arg(long)]
        airflow: bool,
    },
    /// Call through Envoy as an Airflow task, and show the whole answer.
    Call(Box<CallArguments>),
    /// Show one call that is allowed and one that is denied.
    Show,
    /// Show a run of Airflow's demo DAG, and of one that the policy denies.
    #[command(hide = true)]
    ShowAirflow,
    /// Run a DAG of the testbed's Airflow to its end, and show what its tasks did.
    Trigger {
        /// The DAG.
        dag: String,
        /// The run's configuration, as a JSON object.
        #[arg(long, default_value = "{}")]
        conf: String,
    },
    /// Show processes, ports, health and decisions.
    Status,
    /// Make the OIDC provider sign with new keys.
    Rotate {
        /// Drop the old keys at once, as after a leak.
        #[arg(long)]
        drop: bool,
    },
    /// Change keys, policy and servers under load, and print what callers noticed as a table.
    #[command(hide = true)]
    Rotation {
        /// Shorter, for a look whether everything still holds.
        #[arg(long)]
        quick: bool,
        /// Only phases whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Measure what the audit trail costs Envoy, and print it as a table.
    #[command(hide = true)]
    AuditCost {
        /// Rounds in which every Envoy is asked.
        #[arg(long, default_value_t = 20)]
        rounds: usize,
    },
    /// Measure this filter beside Envoy's own filters and external authorizers.
    #[command(hide = true)]
    Compare(Comparison),
    /// Measure what an identity costs the reader of a connection, on an Airflow of its own.
    #[command(hide = true)]
    MintCost {
        /// The API server's worker processes.
        #[arg(long, default_value_t = 1)]
        workers: u32,
        /// Uses `PostgreSQL`.
        #[arg(long)]
        postgres: bool,
        /// For `mint_cost.py`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Succeed if a testbed is ready.
    #[command(hide = true)]
    Running {
        /// And has Airflow.
        #[arg(long)]
        airflow: bool,
    },
}

#[derive(Args)]
struct CallArguments {
    /// The DAG.
    #[arg(long, default_value = "ds_churn")]
    dag: String,
    /// The task.
    #[arg(long, default_value = "load")]
    task: String,
    /// The run.
    #[arg(long)]
    run: Option<String>,
    /// The kind of run: `scheduled`, `manual`, `backfill` …
    #[arg(long)]
    run_type: Option<String>,
    /// The try number.
    #[arg(long = "try", default_value_t = 1)]
    try_number: u32,
    /// The team of the DAG.
    #[arg(long, default_value = "data-science")]
    team: String,
    /// An Airflow role that may act on the DAG; repeatable.
    #[arg(long)]
    role: Vec<String>,
    /// The method.
    #[arg(long, default_value = "GET")]
    method: String,
    /// The destination's host.
    #[arg(long, default_value = ORDERS)]
    host: String,
    /// Path and query.
    #[arg(long, default_value = "/v1/orders/7")]
    path: String,
    /// The token's algorithm: RS256, PS256, ES256 or EdDSA.
    #[arg(long, default_value = "RS256")]
    alg: String,
    /// Send no access token.
    #[arg(long)]
    no_token: bool,
    /// Send no Airflow identity.
    #[arg(long)]
    no_identity: bool,
    /// One more header, `name:value`; repeatable.
    #[arg(long, value_parser = header)]
    header: Vec<(String, String)>,
    /// By HTTP/2.
    #[arg(long)]
    http2: bool,
}

#[derive(Args)]
struct Comparison {
    /// A build of the filter; repeatable. Each is compared with everything, and with the first one.
    #[arg(long, value_name = "LABEL=PATH", value_parser = Module::parse)]
    module: Vec<Module>,
    /// OPA with its Envoy plugin (`opa_envoy_linux_amd64_static`), too.
    #[arg(long)]
    opa: Option<PathBuf>,
    /// Only variants whose names contain this; repeatable.
    #[arg(long)]
    only: Vec<String>,
    /// Rounds in which every variant is asked.
    #[arg(long)]
    rounds: Option<usize>,
    /// Requests of a sample.
    #[arg(long)]
    requests: Option<usize>,
    /// How many seconds to wait in all for others to leave the machine alone.
    #[arg(long)]
    patience: Option<u64>,
    /// One round of few requests: whether everything works. The figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Put the picture and the ratios of the first build into the README, unless they are not to be believed.
    #[arg(long)]
    update_readme: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let results = cli.directory.clone().unwrap_or_else(|| repository().join("target/compare"));
    let directory = cli.directory.unwrap_or_else(|| repository().join(".testbed/run"));
    let done = match cli.command {
        Verb::Run { airflow } => run(&directory, airflow).await.map(|()| String::new()),
        Verb::Call(arguments) => call(&directory, *arguments).await,
        Verb::Show => show(&directory).await,
        Verb::ShowAirflow => show_airflow(&directory).await,
        Verb::Trigger { dag, conf } => trigger(&directory, &dag, &conf).await,
        Verb::Status => status(&directory).await,
        Verb::Rotate { drop } => rotate(&directory, drop).await,
        Verb::Rotation { quick, filter } => rotation(quick, &filter).await,
        Verb::AuditCost { rounds } => audit_cost(rounds).await,
        Verb::Compare(comparison) => compare(comparison, &results).await,
        Verb::MintCost { workers, postgres, arguments } => {
            mint_cost(workers, postgres, &arguments).await
        }
        Verb::Running { airflow } => Running::find(&directory).and_then(|running| {
            if airflow { running.airflow_home().map(|_| String::new()) } else { Ok(String::new()) }
        }),
    };
    match done {
        Ok(text) => {
            // Whoever closes the pipe has read enough.
            let _: Result<(), _> = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a testbed in `directory`, which `state.json` describes as long as it is ready.
async fn run(directory: &Path, with_airflow: bool) -> Result<()> {
    // Signals first: one that arrives while we start must end us, too.
    let mut interrupted = signal(SignalKind::interrupt()).context("listening for signals")?;
    let mut terminated = signal(SignalKind::terminate()).context("listening for signals")?;

    fs::create_dir_all(directory).context(directory.display())?;
    let mut lock = File::options();
    let lock = lock.write(true).create(true).truncate(false).open(directory.join("lock"));
    let mut lock = lock.context("opening the lock")?;
    // Twice: a look at whether we run holds the lock for an instant.
    if lock.try_lock().is_err() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        lock.try_lock().map_err(|_| Error::new("a testbed is running here already"))?;
    }
    lock.set_len(0).context("writing the lock")?;
    write!(lock, "{}", std::process::id()).context("writing the lock")?;
    let state = directory.join("state.json");
    let _: Result<(), _> = fs::remove_file(&state);

    let text = format!("{:#}\n", airflow_envoy_testbed::policy()?);
    let policy = directory.join("policy.json");
    fs::write(&policy, text).context(policy.display())?;
    let options = Options {
        listener_port: preferred(10000),
        admin_port: preferred(9901),
        directory: Some(directory.to_owned()),
        policy: Source::File(policy),
        airflow: with_airflow.then(|| airflow::Options {
            triggerer: true,
            port: preferred(8080),
            ..airflow::Options::default()
        }),
        log_level: "info",
        ..Options::default()
    };
    let mut testbed = tokio::select! {
        testbed = Testbed::start(options) => testbed?,
        _ = interrupted.recv() => return Ok(()),
        _ = terminated.recv() => return Ok(()),
    };
    // Envoy reads the filter while the first health check is under way, which may cost it that one.
    // Should it stay so, `status` says it.
    let _: Result<()> = eventually("the destination inside is healthy", async || {
        testbed.stat("cluster.orders.membership_healthy").await.is_ok_and(|healthy| healthy > 0)
    })
    .await;
    let secret = directory.join("client-secret");
    write_private(&secret, &testbed.oidc.secret)?;
    // Written aside and renamed: whoever sees it sees it whole.
    let draft = directory.join("state.draft");
    fs::write(&draft, testbed.summary().to_string()).context(draft.display())?;
    fs::rename(&draft, &state).context(state.display())?;

    let ended = loop {
        tokio::select! {
            _ = interrupted.recv() => break Ok(()),
            _ = terminated.recv() => break Ok(()),
            () = tokio::time::sleep(Duration::from_millis(500)) => {
                if let Err(error) = testbed.check() {
                    break Err(error);
                }
            }
        }
    };
    let _: Result<(), _> = fs::remove_file(&state);
    // By a signal, so that its audit trail has an end.
    let _: Result<()> = testbed.quit_envoy().await;
    ended
}

/// A running testbed, seen from another process.
struct Running {
    state: Value,
    directory: PathBuf,
}

impl Running {
    fn find(directory: &Path) -> Result<Self> {
        let none = || Error::new("no testbed is running: `scripts/testbed up`");
        // The files of a killed testbed stay behind; its lock does not.
        let lock = File::open(directory.join("lock")).map_err(|_| none())?;
        if lock.try_lock_shared().is_ok() {
            return Err(none());
        }
        let starting = || Error::new("the testbed is still starting");
        let text = fs::read_to_string(directory.join("state.json")).map_err(|_| starting())?;
        let state: Value = serde_json::from_str(&text).context("reading the testbed's state")?;
        let holder = fs::read_to_string(directory.join("lock")).unwrap_or_default();
        if state.get("supervisor").and_then(Value::as_u64) != holder.parse().ok() {
            return Err(starting());
        }
        Ok(Self { state, directory: directory.to_owned() })
    }

    fn address(&self, name: &str) -> Result<SocketAddr> {
        let address = self.state.pointer(&format!("/addresses/{name}")).and_then(Value::as_str);
        address.context(name)?.parse().context(name)
    }

    fn oidc(&self) -> Result<Oidc> {
        let secret = fs::read_to_string(self.directory.join("client-secret"));
        let authority = CertificateDer::from_pem_file(self.directory.join("authority.crt"));
        Ok(Oidc {
            address: self.address("idp")?,
            secret: secret.context("reading the client secret")?,
            connector: connector(authority.context("reading the authority")?)?,
        })
    }

    /// The folder of Airflow.
    fn airflow_home(&self) -> Result<PathBuf> {
        let home = self.state.pointer("/airflow/home").and_then(Value::as_str).map(PathBuf::from);
        home.ok_or_else(|| Error::new("no Airflow is running: `scripts/testbed up --airflow`"))
    }

    /// The API of Airflow.
    async fn airflow(&self) -> Result<Api> {
        let passwords = self.airflow_home()?.join("passwords.json");
        let text = fs::read_to_string(&passwords).context(passwords.display())?;
        let passwords: Value = serde_json::from_str(&text).context(passwords.display())?;
        let password =
            passwords.get(airflow::USER).and_then(Value::as_str).context("a password")?;
        let address = self.state.pointer("/airflow/address").and_then(Value::as_str);
        let address = address.context("an address")?.parse().context("an address")?;
        Api::log_in(address, password).await
    }

    async fn admin(&self, path: &str) -> Result<Answer> {
        Call::get("admin", path).send(self.address("admin")?, None).await
    }

    async fn identity(&self, task: &Task, token: Option<&str>) -> Result<String> {
        let asked = json!({ "task": task.to_json(), "token": token }).to_string();
        let connector = self.oidc()?.connector;
        // Beside a real Airflow it has a cluster of its own.
        let issuer = self.address("testbed-jwks").or_else(|_| self.address("airflow-jwks"))?;
        let answer = Call::post("airflow.internal", MINT_PATH, asked)
            .send(issuer, Some((&connector, "airflow.internal")))
            .await?;
        let identity = answer.json().get("identity").and_then(Value::as_str).map(str::to_owned);
        identity.context("minting an identity")
    }
}

async fn call(directory: &Path, arguments: CallArguments) -> Result<String> {
    let running = Running::find(directory)?;
    let mut task = Task::new(&arguments.dag, &arguments.task).team(&arguments.team);
    task.run = arguments.run.unwrap_or(task.run);
    task.run_type = arguments.run_type.unwrap_or(task.run_type);
    task.try_number = arguments.try_number;
    task.roles = arguments.role;

    let token = if arguments.no_token {
        None
    } else {
        let asked = TokenRequest { algorithm: arguments.alg, ..TokenRequest::default() };
        Some(running.oidc()?.token(&asked).await?)
    };
    let mut call = Call::new(&arguments.method, &arguments.host, &arguments.path);
    if !arguments.no_identity {
        call = call.identity(&running.identity(&task, token.as_deref()).await?);
    }
    if let Some(token) = &token {
        call = call.token(token);
    }
    for (name, value) in &arguments.header {
        call = call.header(name, value);
    }
    if arguments.http2 {
        call = call.http2();
    }
    let answer = call.send(running.address("listener")?, None).await?;
    let CallArguments { method, host, path, dag, task, team, .. } = arguments;
    Ok(format!(
        "{method} http://{host}{path}\nas task `{task}` of DAG `{dag}`, team `{team}`\n\n{}",
        shown(&answer)
    ))
}

/// Two calls that say what this is about.
async fn show(directory: &Path) -> Result<String> {
    let allowed = call(directory, CallArguments::example()).await?;
    let another = CallArguments { team: "sales".to_owned(), ..CallArguments::example() };
    let denied = call(directory, another).await?;
    let rule = |title: &str| format!("── {title} {}\n", "─".repeat(70 - title.len()));
    Ok(format!("{}{allowed}\n{}{denied}", rule("allowed"), rule("denied")))
}

/// A DAG that the policy allows and one that it denies: what their tasks did, and what the denied one's log says.
async fn show_airflow(directory: &Path) -> Result<String> {
    let api = Running::find(directory)?.airflow().await?;
    let rule = |title: &str| format!("\n── {title} {}\n", "─".repeat(70 - title.len()));
    // Both at once.
    let allowed = api.trigger("ds_orders", json!({})).await?;
    let denied = api.trigger("etl_orders", json!({})).await?;
    let mut text = rule("Airflow: allowed") + &ran(&api, &allowed, false).await?;
    text += &rule("Airflow: denied");
    text += &ran(&api, &denied, true).await?;
    Ok(text)
}

async fn trigger(directory: &Path, dag: &str, configuration: &str) -> Result<String> {
    let api = Running::find(directory)?.airflow().await?;
    let configuration = serde_json::from_str(configuration).context("the configuration")?;
    let run = api.trigger(dag, configuration).await?;
    ran(&api, &run, true).await
}

/// What the tasks of `run` did, when it is over; if asked for, also what those that failed say in their logs.
async fn ran(api: &Api, run: &Run, explained: bool) -> Result<String> {
    let state = api.wait(run).await?;
    let mut text = format!("DAG `{}`, run `{}`: {state}\n", run.dag, run.id);
    for task in api.tasks(run).await? {
        text += &format!("  {task}\n");
        if !explained || task.state() != "failed" {
            continue;
        }
        for line in api.log(run, &task, task.try_number()).await?.lines() {
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let event = line.get("event").and_then(Value::as_str).unwrap_or_default();
            if line.get("level").is_some_and(|level| level == "error" || level == "warning") {
                let problem: Value = serde_json::from_str(event).unwrap_or_default();
                let shown =
                    if problem.is_object() { format!("{problem:#}") } else { event.to_owned() };
                text += &format!("    | {}\n", shown.replace('\n', "\n    | "));
            }
        }
    }
    Ok(text)
}

impl CallArguments {
    /// What `call` does without arguments.
    fn example() -> Self {
        #[derive(Parser)]
        struct Defaults {
            #[command(flatten)]
            arguments: CallArguments,
        }
        Defaults::parse_from(["call"]).arguments
    }
}

async fn status(directory: &Path) -> Result<String> {
    let running = Running::find(directory)?;
    let number =
        |pointer: &str| running.state.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let clusters = running.admin("/clusters").await?.text();
    let health = |cluster: &str| {
        let flags = clusters
            .lines()
            .filter(|line| line.starts_with(&format!("{cluster}::")))
            .find_map(|line| line.split_once("::health_flags::"));
        flags.map_or_else(String::new, |(_, flags)| flags.trim_matches('/').replace('/', ", "))
    };
    let mut text = String::from("processes\n");
    for name in ["supervisor", "processes/envoy", "processes/oidc"] {
        let short = name.trim_start_matches("processes/");
        text += &format!("  {short:12} {}\n", number(&format!("/{name}")));
    }
    let components = running.state.pointer("/airflow/processes").and_then(Value::as_array);
    for (name, id) in
        ["api-server", "scheduler", "triggerer"].iter().zip(components.into_iter().flatten())
    {
        text += &format!("  {name:12} {id}\n");
    }
    if let Ok(home) = running.airflow_home() {
        let address = running.state.pointer("/airflow/address").and_then(Value::as_str);
        text += &format!(
            "Airflow\n  http://{}/  as `{}`, password in {}\n  AIRFLOW_HOME {}\n",
            address.unwrap_or_default(),
            airflow::USER,
            home.join("passwords.json").display(),
            home.display()
        );
    }
    text += "addresses and health\n";
    let addresses = running.state.get("addresses").and_then(Value::as_object);
    for (name, address) in addresses.into_iter().flatten() {
        let health = match name.as_str() {
            "listener" => running.admin("/ready").await?.text().trim().to_lowercase(),
            cluster => health(cluster),
        };
        text += &format!("  {name:12} {:16} {health}\n", address.as_str().unwrap_or_default());
    }
    text += "decisions\n";
    let stats = running.admin("/stats?filter=airflow_envoy&usedonly").await?.text();
    for line in stats.lines() {
        text += &format!("  {}\n", line.trim_start_matches("wasmcustom.airflow_envoy."));
    }
    Ok(text)
}

async fn rotate(directory: &Path, drop: bool) -> Result<String> {
    Running::find(directory)?.oidc()?.rotate(drop).await?;
    let old = if drop { "gone" } else { "kept" };
    Ok(format!("the OIDC provider signs with new keys; the old ones are {old}\n"))
}

async fn rotation(quick: bool, filter: &str) -> Result<String> {
    println!("{}", Row::HEAD);
    let rows = run_phases(
        if quick { rotation::Plan::QUICK } else { rotation::Plan::WHOLE },
        filter,
        |row| {
            println!("{row}");
        },
    )
    .await?;
    let wrong: Vec<_> = rows.iter().flat_map(|row| &row.tally.examples).collect();
    if wrong.is_empty() {
        return Ok(String::new());
    }
    Err(Error::new(format!("not as expected, for example:\n  {wrong:#?}")))
}

async fn audit_cost(rounds: usize) -> Result<String> {
    let rows: String =
        cost::run(cost::Plan::of(rounds)).await?.iter().map(|row| format!("{row}\n")).collect();
    Ok(format!("{}\n{rows}", cost::Row::HEAD))
}

async fn compare(asked: Comparison, directory: &Path) -> Result<String> {
    let mut modules = asked.module;
    if modules.is_empty() {
        modules.push(Module { label: "airflow-envoy".to_owned(), path: filter_file()? });
    }
    let mut plan = if asked.quick { Plan::quick(modules) } else { Plan::full(modules) };
    plan.opa = asked.opa;
    plan.only = asked.only;
    plan.rounds = asked.rounds.unwrap_or(plan.rounds);
    plan.requests = asked.requests.unwrap_or(plan.requests);
    plan.patience = asked.patience.map_or(plan.patience, Duration::from_secs);

    let report = compare::run(plan, directory, |line| eprintln!("{line}")).await?;
    let text = report.text();
    let picture = chart::svg(&report);
    let write = |path: PathBuf, content: &str| fs::write(&path, content).context(path.display());
    write(directory.join("compare.json"), &format!("{:#}\n", report.json()))?;
    write(directory.join("compare.md"), &text)?;
    write(directory.join("compare.svg"), &picture)?;
    if asked.update_readme {
        let doubts = report.doubts().join("; ");
        if !doubts.is_empty() {
            return Err(Error::new(format!("{text}\nThe README keeps its picture: {doubts}")));
        }
        let (path, place) = (repository().join("README.md"), repository().join(readme::PICTURE));
        let old = fs::read_to_string(&path).context(path.display())?;
        let new = readme::updated(&old, &report)?;
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).context(folder.display())?;
        }
        write(place, &picture)?;
        write(path, &new)?;
    }
    Ok(text)
}

async fn mint_cost(workers: u32, postgres: bool, arguments: &[String]) -> Result<String> {
    let options = airflow::Options { workers, postgres, ..airflow::Options::default() };
    let options = Options { airflow: Some(options), ..Options::default() };
    let testbed = Testbed::start(options).await?;
    let airflow = testbed.real_airflow.as_ref().context("Airflow")?;
    airflow.mint_cost(arguments).await
}

/// A whole answer, as text.
fn shown(answer: &Answer) -> String {
    let mut text = format!("{:?} {}\n", answer.version, answer.status);
    for (name, value) in &answer.headers {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    match answer.json() {
        Value::Null => text + "\n" + &answer.text(),
        body => format!("{text}\n{body:#}\n"),
    }
}

/// The port that people remember, if it is free.
fn preferred(port: u16) -> u16 {
    if TcpListener::bind(("127.0.0.1", port)).is_ok() { port } else { 0 }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected `name:value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
