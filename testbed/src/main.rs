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
use airflow_envoy_testbed::consul::Client;
use airflow_envoy_testbed::document::Source;
use airflow_envoy_testbed::error::{Context as _, Error, Result};
use airflow_envoy_testbed::identity::MINT_PATH;
use airflow_envoy_testbed::load::Credentials;
use airflow_envoy_testbed::mesh::agent::{self, Token, Trust};
use airflow_envoy_testbed::mesh::intentions::Action;
use airflow_envoy_testbed::mesh::operate::{Change, Operator};
use airflow_envoy_testbed::mesh::services::WORKER;
use airflow_envoy_testbed::rotation::{self, Row, run as run_phases};
use airflow_envoy_testbed::{
    Answer, Call, ORDERS, Oidc, Options, Task, Testbed, TokenRequest, cost, eventually,
    filter_file, mesh, repository, soak, write_private,
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
        /// In a mesh, with a real Consul.
        #[arg(long)]
        consul: bool,
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
    /// Let one service of the mesh call another, or not; `*` is every service.
    Intention {
        #[command(subcommand)]
        verb: IntentionVerb,
    },
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
    /// Keep Envoy under load while everything changes, and print its memory as a table; fail if it grows.
    #[command(hide = true)]
    Soak {
        /// For how long.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// Rules of the large policy.
        #[arg(long, default_value_t = 10_000)]
        rules: usize,
        /// Calls a second.
        #[arg(long, default_value_t = 1_000)]
        rate: u32,
        /// Shorter, for a look whether it still runs.
        #[arg(long)]
        quick: bool,
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
    /// Keep the certificate of a service of a Consul mesh in files that Envoy watches. Runs until it is ended.
    Certificates(CertificatesArguments),
    /// Succeed if a testbed is ready.
    #[command(hide = true)]
    Running {
        /// And has Airflow.
        #[arg(long)]
        airflow: bool,
        /// And is in a mesh.
        #[arg(long)]
        consul: bool,
    },
}

#[derive(Subcommand)]
enum IntentionVerb {
    /// Allow it, and wait until the gate acts by it.
    Allow(Pair),
    /// Deny it, and wait until the gate acts by it.
    Deny(Pair),
    /// Forget what was said of the two, and wait until the gate acts by it.
    Delete(Pair),
    /// Show all, those that count more first.
    List,
}

#[derive(Args)]
struct Pair {
    /// The service that calls, as `airflow-worker`.
    source: String,
    /// The service that is called, as `orders`.
    destination: String,
}

#[derive(Args)]
struct CertificatesArguments {
    /// The service.
    #[arg(long)]
    service: String,
    /// Where its files go; made if it is not there.
    #[arg(long)]
    directory: PathBuf,
    /// Consul's local agent: an address and a port; else what the variable `CONSUL_HTTP_ADDR` says, else 127.0.0.1:8500.
    #[arg(long)]
    consul: Option<SocketAddr>,
    /// Which roots peers are checked against: all that Consul lists, or only the active one.
    #[arg(long, value_enum, default_value = "listed")]
    trust: Trust,
    /// The auth method by which each certificate's token is had, with the JWT in `--bearer`. Else the token is in the variable
    /// `CONSUL_HTTP_TOKEN`, unless Consul has no access control.
    #[arg(long, requires = "bearer")]
    login: Option<String>,
    /// The file with the JWT that the platform gives the workload.
    #[arg(long, requires = "login")]
    bearer: Option<PathBuf>,
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
    /// In the mesh: call the gate as this service, with a certificate of its own, instead of through the worker's Envoy.
    #[arg(long = "as", value_name = "SERVICE")]
    service: Option<String>,
}

#[derive(Args)]
struct Comparison {
    /// A build of the filter; repeatable. Each is compared with everything, and with the first one.
    #[arg(long, value_name = "LABEL=PATH", value_parser = Module::parse)]
    module: Vec<Module>,
    /// OPA with its Envoy plugin (`opa_envoy_linux_amd64_static`), too.
    #[arg(long)]
    opa: Option<PathBuf>,
    /// Only variants whose names contain this, or are what is behind its `=`; repeatable.
    #[arg(long)]
    only: Vec<String>,
    /// How often everything is measured, each time by another Envoy.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Rounds of a run; in each, every variant is asked.
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
        Verb::Run { airflow, consul } => {
            run(&directory, airflow, consul).await.map(|()| String::new())
        }
        Verb::Call(arguments) => call(&directory, *arguments).await,
        Verb::Show => show(&directory).await,
        Verb::ShowAirflow => show_airflow(&directory).await,
        Verb::Trigger { dag, conf } => trigger(&directory, &dag, &conf).await,
        Verb::Status => status(&directory).await,
        Verb::Intention { verb } => intention(&directory, verb).await,
        Verb::Rotate { drop } => rotate(&directory, drop).await,
        Verb::Rotation { quick, filter } => rotation(quick, &filter).await,
        Verb::Soak { minutes, rules, rate, quick } => soak_for(minutes, rules, rate, quick).await,
        Verb::AuditCost { rounds } => audit_cost(rounds).await,
        Verb::Compare(comparison) => compare(comparison, &results).await,
        Verb::MintCost { workers, postgres, arguments } => {
            mint_cost(workers, postgres, &arguments).await
        }
        Verb::Certificates(arguments) => certificates(arguments).await.map(|()| String::new()),
        Verb::Running { airflow, consul } => Running::find(&directory).and_then(|running| {
            if airflow {
                running.airflow_home()?;
            }
            // The two differ in where calls go: one that is up is not the other.
            match (consul, running.mesh()) {
                (true, Err(error)) => Err(error),
                (false, Ok(_)) => Err(Error::new("a testbed in a mesh is running")),
                _ => Ok(String::new()),
            }
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

/// Keeps a certificate until this process is ended.
async fn certificates(arguments: CertificatesArguments) -> Result<()> {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let consul = match (arguments.consul, variable("CONSUL_HTTP_ADDR")) {
        (Some(address), _) => address,
        (None, Some(address)) => {
            let address = address.strip_prefix("http://").unwrap_or(&address);
            address.parse().context("CONSUL_HTTP_ADDR: expected an IP address and a port")?
        }
        (None, None) => SocketAddr::from(([127, 0, 0, 1], 8500)),
    };
    let token = match (arguments.login, arguments.bearer, variable("CONSUL_HTTP_TOKEN")) {
        (Some(method), Some(bearer), _) => Token::Login { method, bearer },
        (_, _, Some(token)) => Token::Secret(token),
        _ => Token::Nobody,
    };
    let CertificatesArguments { service, directory, trust, .. } = arguments;
    let options = agent::Options { consul, service, directory, token, trust };
    agent::run(options, |sentence| eprintln!("{sentence}")).await
}

/// Runs a testbed in `directory`, which `state.json` describes as long as it is ready.
async fn run(directory: &Path, with_airflow: bool, with_consul: bool) -> Result<()> {
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

    let policy = directory.join("policy.json");
    let document = if with_consul { mesh::policy()? } else { airflow_envoy_testbed::policy()? };
    fs::write(&policy, format!("{document:#}\n")).context(policy.display())?;
    let options = if with_consul { mesh::whole(preferred(10001))? } else { Options::default() };
    let options = Options {
        listener_port: preferred(10000),
        admin_port: preferred(9901),
        directory: Some(directory.to_owned()),
        policy: Source::File(policy),
        airflow: with_airflow.then(|| airflow::Options {
            triggerer: true,
            proxy: with_consul,
            port: preferred(8080),
            ..airflow::Options::default()
        }),
        log_level: "info",
        ..options
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
    // Nobody is to call a gate that is about to end.
    if let Some(services) = testbed.mesh.as_ref().and_then(|mesh| mesh.services.as_ref()) {
        let _: Result<()> = services.deregister().await;
    }
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

    /// The mesh.
    fn mesh(&self) -> Result<Operator> {
        let folder = self.state.pointer("/mesh/certificates").and_then(Value::as_str);
        let none = || Error::new("no mesh is running: `scripts/testbed up --consul`");
        Ok(Operator {
            certificates: folder.map(PathBuf::from).ok_or_else(none)?,
            consul: Client::new(self.address("consul")?, None),
            gate: self.address("listener")?,
        })
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
    let CallArguments { method, host, path, dag, task, team, service, .. } = arguments;
    let (answer, from) = match (service, running.mesh()) {
        (Some(service), mesh) => {
            (mesh?.call_as(&service, call).await?, format!(", from service `{service}`"))
        }
        (None, Ok(_)) => {
            let answer = call.send(running.address("worker")?, None).await?;
            (answer, format!(", from service `{WORKER}`"))
        }
        (None, Err(_)) => (call.send(running.address("listener")?, None).await?, String::new()),
    };
    Ok(format!(
        "{method} http://{host}{path}\nas task `{task}` of DAG `{dag}`, team `{team}`{from}\n\n{}",
        shown(&answer)
    ))
}

/// Two calls that say what this is about.
async fn show(directory: &Path) -> Result<String> {
    let allowed = call(directory, CallArguments::example()).await?;
    let another = CallArguments { team: "sales".to_owned(), ..CallArguments::example() };
    let denied = call(directory, another).await?;
    let mut text = format!("{}{allowed}\n{}{denied}", rule("allowed"), rule("denied"));
    if Running::find(directory)?.mesh().is_ok() {
        let service = Some("airflow-scheduler".to_owned());
        let other = call(directory, CallArguments { service, ..CallArguments::example() }).await?;
        text += &format!("\n{}{other}", rule("the same call from another service"));
    }
    Ok(text)
}

fn rule(title: &str) -> String {
    format!("── {title} {}\n", "─".repeat(70_usize.saturating_sub(title.len())))
}

async fn intention(directory: &Path, verb: IntentionVerb) -> Result<String> {
    let mesh = Running::find(directory)?.mesh()?;
    let (change, Pair { source, destination }) = match verb {
        IntentionVerb::List => return mesh.intentions().await,
        IntentionVerb::Allow(pair) => (Change::Put(Action::Allow), pair),
        IntentionVerb::Deny(pair) => (Change::Put(Action::Deny), pair),
        IntentionVerb::Delete(pair) => (Change::Delete, pair),
    };
    let running = Running::find(directory)?;
    let CallArguments { dag, task, team, path, .. } = CallArguments::example();
    let token = running.oidc()?.token(&TokenRequest::default()).await?;
    let identity = running.identity(&Task::new(&dag, &task).team(&team), Some(&token)).await?;
    let credentials = Credentials::new(&token, &identity)?;
    let (mut text, caller) = mesh.change(change, &source, &destination, &path, credentials).await?;
    if let Some(service) = caller {
        let next = CallArguments { service: Some(service), ..CallArguments::example() };
        text += &format!("\n{}{}", rule("the next call"), call(directory, next).await?);
    }
    Ok(text)
}

/// A DAG that the policy allows and one that it denies: what their tasks did, and what the denied one's log says.
async fn show_airflow(directory: &Path) -> Result<String> {
    let api = Running::find(directory)?.airflow().await?;
    // Both at once.
    let allowed = api.trigger("ds_orders", json!({})).await?;
    let denied = api.trigger("etl_orders", json!({})).await?;
    let mut text = format!("\n{}", rule("Airflow: allowed")) + &ran(&api, &allowed, false).await?;
    text += &format!("\n{}", rule("Airflow: denied"));
    text += &ran(&api, &denied, true).await?;
    if Running::find(directory)?.mesh().is_ok() {
        let raw = api.trigger("raw_clients", json!({})).await?;
        text += &format!("\n{}", rule("Airflow: with requests, httpx, curl …"));
        text += &ran(&api, &raw, true).await?;
    }
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
    let number = |pointer: &str| running.state.pointer(pointer).and_then(Value::as_u64);
    let clusters = running.admin("/clusters").await?.text();
    let health = |cluster: &str| {
        let flags = clusters
            .lines()
            .filter(|line| line.starts_with(&format!("{cluster}::")))
            .find_map(|line| line.split_once("::health_flags::"));
        flags.map_or_else(String::new, |(_, flags)| flags.trim_matches('/').replace('/', ", "))
    };
    let mut text = String::from("processes\n");
    for name in
        ["supervisor", "processes/envoy", "processes/worker", "processes/oidc", "processes/consul"]
    {
        if let Some(id) = number(&format!("/{name}")) {
            text += &format!("  {:12} {id}\n", name.trim_start_matches("processes/"));
        }
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
    if let Ok(mesh) = running.mesh() {
        text += &mesh.status().await?;
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

async fn soak_for(minutes: u64, rules: usize, rate: u32, quick: bool) -> Result<String> {
    let whole = soak::Plan::of(Duration::from_secs(minutes.saturating_mul(60)));
    let plan = if quick { soak::Plan::QUICK } else { soak::Plan { rules, rate, ..whole } };
    println!("{}", soak::Sample::HEAD);
    let found = soak::run(plan, |sample| println!("{sample}")).await?;
    let late = |share| format!("{:.1}", found.tally.latency(share).as_secs_f64() * 1e3);
    println!(
        "{} calls: p50 {} ms, p99 {} ms, at most {} ms",
        found.tally.calls(),
        late(0.5),
        late(0.99),
        late(1.0)
    );
    let faults = found.faults();
    if faults.is_empty() {
        return Ok(String::new());
    }
    Err(Error::new(format!("not as expected: {}", faults.join("; "))))
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
    plan.runs = asked.runs.into();
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
