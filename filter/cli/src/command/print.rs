//! `airflow-envoy print`: one policy document out of its files.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Exit, Failed, usable_policy, write};
use crate::output::Style;
use crate::source::print::yaml;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy print policy/ --output policy.json     # what the policy server serves
  airflow-envoy print policy.json --format yaml        # what people edit";

/// Prints a policy as one document: the JSON that the filter reads, or YAML.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files and folders of one policy; `-` is standard input
    #[arg(required = true, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    /// The language
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// Where it is written instead of standard output
    #[arg(long, short, value_name = "FILE", default_value = "-", hide_default_value = true)]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// What the filter reads
    Json,
    /// What people write
    Yaml,
}

pub(super) fn run(options: &Options) -> Result<Exit, Failed> {
    let (source, ..) = usable_policy(&options.policy, Style::PLAIN)?;
    let text = match options.format {
        Format::Json => format!("{:#}\n", source.node.value()),
        Format::Yaml => yaml(&source.node),
    };
    write(&options.output, &text)?;
    Ok(Exit::Good)
}
