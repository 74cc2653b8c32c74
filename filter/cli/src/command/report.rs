//! `airflow-envoy report`: what an audit trail says in sum.

use std::path::PathBuf;

use airflow_envoy_core::time::{Span, UnixTime};
use clap::Args;

use super::{Exit, Failed, audit, clock, span, time, usable_policy, write};
use crate::audit::Reader;
use crate::audit::verify::{Options as How, Stream, verify};
use crate::graph::State;
use crate::output::{Style, print};
use crate::report::{Report, Verified, Window};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy report audit.log --keys audit-keys.json --html report.html
  airflow-envoy report envoy.log envoy.log.1 --policy policy/ --since 2026-11-21T00:00:00Z
  zcat audit-*.gz | airflow-envoy report - --json | jq .refusals";

/// Tells who called what, what was refused and why, and what was slow, from audit records.
///
/// Files are plain records or Envoy's log, in any order; a record that is there twice counts once.
/// The exit code is 1 if the trail was verified and has a fault.
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
    /// Public keys (JWK Set or JWK) of the trail, to verify it too; repeatable
    #[arg(long, value_name = "JWKS")]
    keys: Vec<PathBuf>,
    /// Verifies the trail too, without keys by its hashes alone
    #[arg(long)]
    verify: bool,
    /// In verifying, streams may still run: none of them needs an end
    #[arg(long)]
    open: bool,
    /// In verifying, older files are gone: a stream may begin with any record
    #[arg(long)]
    rotated: bool,
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
    let verifies = options.verify || !options.keys.is_empty();
    if verifies && options.files.iter().any(|file| file.as_os_str() == "-") {
        return Err(Failed::usage(
            "standard input cannot be read twice, to count and to verify it",
        ));
    }
    let keys = audit::read_keys(&options.keys)?;
    let now = options.at.unwrap_or_else(clock);
    let mut report = Report::new(Window { since: options.since, until: options.until });
    let mut reader = Reader::new(&options.files)?;
    report.seen = reader.each(|_, found| report.take(&found))?;
    if verifies {
        let how = How { keys, open: options.open, rotated: options.rotated, witness: None };
        let found = verify(&mut Reader::new(&options.files)?, &how, |_| {})?;
        let sum = |of: fn(&Stream) -> u64| found.streams.values().map(of).sum::<u64>();
        report.verified = Some(Verified {
            faults: found
                .faults
                .iter()
                .map(|fault| audit::fault_text(fault, reader.names()))
                .collect(),
            records: sum(|stream| stream.records),
            vouched: found.checked.then(|| sum(audit::vouched)),
        });
    }
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
