//! `airflow-envoy report`: what an audit trail says in sum.

use std::path::PathBuf;

use airflow_envoy_core::time::{Span, UnixTime};
use clap::Args;

use super::{Exit, Failed, clock, span, time, usable_policy, write};
use crate::audit::Reader;
use crate::graph::State;
use crate::output::{Style, print};
use crate::report::{Report, Window};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy report audit.log --html report.html
  airflow-envoy report envoy.log envoy.log.1 --policy policy/ --since 2026-11-21T00:00:00Z
  zcat audit-*.gz | airflow-envoy report - --json | jq .refusals";

/// Tells who called what, what was refused and why, and what was slow, from audit records.
///
/// Files are plain records or Envoy's log, in any order; a record that is there twice counts once.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files with audit records; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where a page is written; `-` is standard output, instead of the summary
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,
    /// The sums for programs, instead of the summary
    #[arg(long)]
    json: bool,
    /// Files and folders of the policy whose unused and ending rules are told
    #[arg(long, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    /// Only decisions from this time on
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<UnixTime>,
    /// Only decisions before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<UnixTime>,
    /// How long before its end a rule is told to be over soon
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "14d")]
    expiring: Span,
    /// The time at which rules end or not, instead of now
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixTime>,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let page_to_stdout = options.html.as_ref().is_some_and(|path| path.as_os_str() == "-");
    if page_to_stdout && options.json {
        return Err(Failed::usage("--html - and --json both write to standard output"));
    }
    // What is wrong with it must be told before hours of records are read.
    let policy = match options.policy.as_slice() {
        [] => None,
        names => Some(usable_policy(names, style)?.2),
    };
    let now = options.at.unwrap_or_else(clock);
    let mut report = Report::new(Window { since: options.since, until: options.until });
    let mut reader = Reader::new(&options.files)?;
    report.seen = reader.each(|_, found| report.take(&found))?;
    if let Some(model) = &policy {
        let expiring = options.expiring;
        report.compare(model, |rule| State::of(rule.not_before, rule.expires_at, now, expiring));
    }
    if let Some(path) = &options.html {
        let names: Vec<String> =
            options.files.iter().map(|name| name.display().to_string()).collect();
        write(path, &report.page(&names.join(" "), now))?;
    }
    if options.json {
        print(&format!("{:#}\n", report.json()));
    } else if !page_to_stdout {
        print(&report.text(style));
    }
    let faulty = report.verified.as_ref().is_some_and(|verified| !verified.faults.is_empty());
    Ok(if faulty { Exit::Findings } else { Exit::Good })
}
