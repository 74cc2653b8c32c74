//! `airflow-envoy approve`: a request becomes a grant.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use airflow_envoy_core::time::Span;
use clap::Args;

use super::grant::{PolicyOptions, SigningOptions, carry_out, describe, refused};
use super::{Exit, Failed, clock, read_key, span, usable_policy};
use crate::granting::Request;
use crate::output::{Style, complain};
use crate::source::load::Found;
use crate::source::read_file;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy approve request.yaml --policy policy/ --by ada --key ada.json --store grants.json
  pbpaste | airflow-envoy approve - --policy policy/ --by ada --key ada.json --for 30m --yes \\
      --store consul://127.0.0.1:8500/airflow-envoy/grants";

/// Grants what somebody requested.
///
/// Nobody vouches for a request: it is checked against the policy, shown, and signed only after a yes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The request, as `airflow-envoy request` writes it; `-` is standard input
    #[arg(value_name = "REQUEST")]
    request: PathBuf,
    #[command(flatten)]
    policy: PolicyOptions,
    /// For less time than is asked for
    #[arg(long = "for", value_name = "SPAN", value_parser = span)]
    duration: Option<Span>,
    /// Does not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    signing: SigningOptions,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let stdin = options.request.as_os_str() == "-";
    let inputs: Vec<_> = options.policy.files.iter().chain([&options.request]).cloned().collect();
    if inputs.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(Failed::usage("standard input can be only one of the inputs"));
    }
    let key = read_key(&options.signing.key, &inputs, style)?;
    let found = if stdin { Found::StandardInput } else { Found::File(options.request.clone()) };
    let name = found.name();
    let document = read_file(&found).map_err(|error| Failed::from(error.to_string()))?;
    let mut request =
        Request::read(&document.value()).map_err(|problem| format!("{name}: {problem}"))?;
    if let Some(duration) = options.duration {
        if duration > request.duration {
            return Err(Failed::usage("--for is more than is asked for"));
        }
        request.duration = duration;
    }
    let (_, policy, _) = usable_policy(&options.policy.files, style)?;
    let now = clock();
    request.check(&policy, now).map_err(refused)?;
    if !options.yes {
        complain(&format!(
            "{}\n{}",
            style.strong("requested:"),
            describe(&request, now).trim_end()
        ));
        if !agreed()? {
            return Err(refused("not granted"));
        }
    }
    carry_out(&policy, &request, &key, &options.signing, style)
}

/// Asks on the terminal.
fn agreed() -> Result<bool, Failed> {
    if !std::io::stdin().is_terminal() {
        return Err(Failed::usage("there is no terminal to ask on: say --yes to grant this"));
    }
    complain("grant this? [y/N]");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| format!("standard input: {error}"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
