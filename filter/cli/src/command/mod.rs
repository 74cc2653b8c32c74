//! The commands, one module each, and what they share: options, how inputs are read, exit codes.

mod approve;
mod audit;
mod bundle;
mod check;
mod completions;
mod config;
mod diff;
mod explain;
mod grant;
mod grants;
mod graph;
mod keys;
mod print;
mod query;
mod recorded;
mod replay;
mod report;
mod request;
mod revoke;
mod sign;
mod test;
mod verify;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use airflow_envoy_core::time::{Span, UnixTime};
use clap::{ColorChoice, CommandFactory as _, Parser, Subcommand};

use crate::jwk::{PrivateKey, exposure};
use crate::lint::{Finding, Lint};
use crate::model::Model;
use crate::output::{Style, complain};
use crate::source::load::{ReadError, Wanted, find};
use crate::source::merge::{Problem, Source, merge};
use crate::source::read_file;

const EXIT_CODES: &str = "\
Exit codes:
  0  all is well
  1  findings, failed tests, too little coverage, a difference, faults of a trail, a call or a policy
     that is refused, a call that would be newly denied, or something that is not grantable
  2  wrong usage
  3  an input that cannot be read or is no policy to decide by, or an output that cannot be written";

/// Checks, tests, compares and signs the policies of Airflow Envoy, grants what they declare grantable, and
/// verifies and replays its audit trail, with the code by which the filter decides.
#[derive(Debug, Parser)]
#[command(name = "airflow-envoy", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Whether text is coloured: by default on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Options),
    Test(test::Options),
    Explain(Box<explain::Options>),
    Graph(graph::Options),
    Diff(diff::Options),
    Replay(replay::Options),
    Print(print::Options),
    Bundle(bundle::Options),
    Config(config::Options),
    Keys(keys::Options),
    Sign(sign::Options),
    Verify(verify::Options),
    Request(Box<request::Options>),
    Approve(Box<approve::Options>),
    Grant(Box<grant::Options>),
    Revoke(revoke::Options),
    Grants(grants::Options),
    Audit(audit::Options),
    Report(report::Options),
    Completions(completions::Options),
    Manual(completions::ManualOptions),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Good,
    /// There are findings or faults, tests failed, or a call is refused.
    Findings,
    /// The command line does not fit together; what `clap` finds out ends alike.
    Usage,
    /// An input cannot be read, or an output cannot be written.
    Input,
}

impl Exit {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Findings => 1,
            Self::Usage => 2,
            Self::Input => 3,
        }
    }
}

/// Why a command could not be carried out.
#[derive(Debug)]
struct Failed {
    problem: String,
    exit: Exit,
}

impl Failed {
    fn usage(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), exit: Exit::Usage }
    }
}

impl<T: Into<String>> From<T> for Failed {
    fn from(problem: T) -> Self {
        Self { problem: problem.into(), exit: Exit::Input }
    }
}

/// Carries out a command line.
pub fn run(cli: Cli) -> Exit {
    let style = Style::choose(cli.color);
    let ended = match cli.command {
        Command::Check(options) => check::run(&options, style),
        Command::Test(options) => test::run(&options, style),
        Command::Explain(options) => explain::run(&options, style),
        Command::Graph(options) => graph::run(&options),
        Command::Diff(options) => diff::run(&options, style),
        Command::Replay(options) => replay::run(&options, style),
        Command::Print(options) => print::run(&options),
        Command::Bundle(options) => bundle::run(&options, style),
        Command::Config(options) => config::run(&options, style),
        Command::Keys(options) => keys::run(&options, style),
        Command::Sign(options) => sign::run(&options, style),
        Command::Verify(options) => verify::run(&options, style),
        Command::Request(options) => request::run(&options, style),
        Command::Approve(options) => approve::run(&options, style),
        Command::Grant(options) => grant::run(&options, style),
        Command::Revoke(options) => revoke::run(&options, style),
        Command::Grants(options) => grants::run(&options, style),
        Command::Audit(options) => audit::run(&options, style),
        Command::Report(options) => report::run(&options, style),
        Command::Completions(options) => Ok(completions::run(&options)),
        Command::Manual(options) => completions::manual(&options),
    };
    ended.unwrap_or_else(|Failed { problem, exit }| {
        complain(&format!("airflow-envoy: {problem}"));
        exit
    })
}

/// The whole command line, for completions and the manual.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The time by the clock.
fn clock() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Reads a time of the command line.
fn time(text: &str) -> Result<UnixTime, String> {
    UnixTime::from_rfc3339(text)
        .ok_or_else(|| "expected a time with its zone, such as 2026-11-22T00:00:00Z".to_owned())
}

/// Reads a span of time of the command line.
fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).ok_or_else(|| "expected a span such as 30s, 15m, 12h or 14d".to_owned())
}

/// Reads and puts together the policy in these files; what is wrong with their texts is a finding.
fn read_policy(names: &[PathBuf]) -> Result<Result<Source, Vec<Finding>>, Failed> {
    let (mut documents, mut findings) = (Vec::new(), Vec::new());
    for found in find(names, Wanted::Policies)? {
        match read_file(&found) {
            Ok(document) => documents.push(document),
            Err(ReadError::File(problem)) => return Err(problem.into()),
            Err(ReadError::Text(unreadable)) => findings.push(Finding {
                lint: Lint::Syntax,
                place: unreadable.place,
                path: String::new(),
                message: unreadable.problem,
                related: None,
            }),
        }
    }
    Ok(if findings.is_empty() { Ok(merge(documents)) } else { Err(findings) })
}

/// What is wrong with a policy, as findings.
fn invalid(problems: Vec<Problem>) -> Vec<Finding> {
    let finding = |Problem { place, path, problem }| Finding {
        lint: Lint::Invalid,
        place,
        path,
        message: problem,
        related: None,
    };
    problems.into_iter().map(finding).collect()
}

/// A policy that must be one, for commands that decide by it.
fn usable_policy(
    names: &[PathBuf],
    style: Style,
) -> Result<(Source, airflow_envoy_core::policy::Policy, Model), Failed> {
    let read = read_policy(names)?;
    let read = read.and_then(|source| match source.policy() {
        Ok(policy) => Ok((source, policy)),
        Err(problems) => Err(invalid(problems)),
    });
    match read {
        Ok((source, policy)) => {
            let model = Model::new(&source.node);
            Ok((source, policy, model))
        }
        Err(findings) => {
            let told = crate::output::findings_text(&findings, style);
            Err(format!("the policy cannot be used\n{}", told.trim_end()).into())
        }
    }
}

/// Reads a private key to sign with. That others may read it is told.
fn read_key(path: &Path, inputs: &[PathBuf], style: Style) -> Result<PrivateKey, Failed> {
    let stdin = |path: &Path| path.as_os_str() == "-";
    if stdin(path) && inputs.iter().any(|input| stdin(input)) {
        return Err(Failed::usage("standard input is either the key or something else"));
    }
    let key = PrivateKey::read(path)?;
    if let Some(warning) = exposure(path) {
        complain(&format!("{}: {warning}", style.warn("warning")));
    }
    Ok(key)
}

/// Writes a file, or standard output for `-`.
fn write(path: &Path, text: &str) -> Result<(), Failed> {
    if path.as_os_str() == "-" {
        crate::output::print(text);
        return Ok(());
    }
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}
