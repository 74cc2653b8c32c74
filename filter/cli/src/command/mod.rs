//! The commands, one module each, and what they share: options, how inputs are read, exit codes.

mod audit;
mod check;
mod completions;
mod explain;
mod print;
mod query;
mod recorded;
mod replay;
mod test;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use airflow_envoy_core::time::{Span, UnixTime};
use clap::{ColorChoice, CommandFactory as _, Parser, Subcommand};

use crate::lint::{Finding, Lint};
use crate::model::Model;
use crate::output::{Style, complain};
use crate::source::load::{ReadError, Wanted, find};
use crate::source::merge::{Problem, Source, merge};
use crate::source::read_file;

const EXIT_CODES: &str = "\
Exit codes:
  0  all is well
  1  findings, failed tests, too little coverage, faults of a trail, (explain) a call that is refused,
     or (replay) one that would be newly denied
  2  wrong usage
  3  an input that cannot be read or is no policy to decide by, or an output that cannot be written";

/// Checks, tests, explains and replays the policies of Airflow Envoy, with the code by which the filter decides,
/// and verifies its audit trail.
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
    Audit(audit::Options),
    Check(check::Options),
    Test(test::Options),
    Explain(Box<explain::Options>),
    Print(print::Options),
    Replay(replay::Options),
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
        Command::Audit(options) => audit::run(&options, style),
        Command::Check(options) => check::run(&options, style),
        Command::Test(options) => test::run(&options, style),
        Command::Explain(options) => explain::run(&options, style),
        Command::Print(options) => print::run(&options),
        Command::Replay(options) => replay::run(&options, style),
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

/// Writes a file, or standard output for `-`.
fn write(path: &std::path::Path, text: &str) -> Result<(), Failed> {
    if path.as_os_str() == "-" {
        crate::output::print(text);
        return Ok(());
    }
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}
