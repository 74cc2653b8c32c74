//! `airflow-envoy config`: is the filter deployed so that it can do what it is for?

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Exit, Failed, write};
use crate::envoy::{self, Setting};
use crate::lint::{Finding, Severity};
use crate::output::sarif::sarif;
use crate::output::{Style, count, findings_json, findings_text, plural};
use crate::source::Found;
use crate::source::load::{ReadError, read_envoy};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy config check envoy.yaml
  airflow-envoy config check envoy.yaml envoy-airflow-api.yaml --deny-warnings
  airflow-envoy config check envoy.yaml --format sarif --output envoy.sarif
  curl -s http://127.0.0.1:9901/config_dump | jq .configs[0].bootstrap | airflow-envoy config check -

Whether Envoy accepts the file says `envoy --mode validate -c envoy.yaml`.";

/// Works on Envoy's configuration.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Check(CheckOptions),
}

/// Says what is wrong with Envoy's configuration around the filter, and where.
///
/// Checks the filter's own configuration as the filter does, and what Envoy must do for it: that no request passes
/// by the filter, that policy and upstream read a request alike, that the clusters which it asks are there and are
/// who they say.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct CheckOptions {
    /// Files with a configuration of Envoy each, YAML or JSON; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How findings are shown
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Where findings are written instead of standard output
    #[arg(long, short, value_name = "FILE", default_value = "-", hide_default_value = true)]
    output: PathBuf,
    /// Ends with exit code 1 for warnings too
    #[arg(long)]
    deny_warnings: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
    /// For code hosts: SARIF 2.1.0
    Sarif,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let What::Check(options) = &options.what;
    let mut findings: Vec<Finding<Setting>> = Vec::new();
    for name in &options.files {
        let found =
            if name.as_os_str() == "-" { Found::StandardInput } else { Found::File(name.clone()) };
        match read_envoy(&found) {
            Ok((text, document)) => findings.extend(envoy::check(&text, &document)),
            Err(ReadError::File(problem)) => return Err(problem.into()),
            Err(ReadError::Text(unreadable)) => findings.push(Finding {
                lint: Setting::Syntax,
                place: unreadable.place,
                path: String::new(),
                message: unreadable.problem,
                related: None,
            }),
        }
    }
    let of = |severity| count(&findings, severity);
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    let format = if options.json { Format::Json } else { options.format };
    let style = if options.output.as_os_str() == "-" { style } else { Style::PLAIN };
    let text = match format {
        Format::Json => format!("{:#}\n", findings_json(&findings)),
        Format::Sarif => format!("{:#}\n", sarif(&findings)),
        Format::Text => {
            let mut text = findings_text(&findings, style);
            let ok = if errors == 0 { style.good("ok") } else { style.bad("not safe") };
            let told = [(errors, "error"), (warnings, "warning"), (of(Severity::Note), "note")];
            let told = told.into_iter().filter(|(number, _)| *number > 0);
            let mut counts: Vec<String> = told.map(|(number, noun)| plural(number, noun)).collect();
            counts.insert(0, plural(options.files.len(), "file"));
            text.push_str(&format!("{ok}: {}\n", counts.join(", ")));
            text
        }
    };
    write(&options.output, &text)?;
    let bad = errors > 0 || options.deny_warnings && warnings > 0;
    Ok(if bad { Exit::Findings } else { Exit::Good })
}
