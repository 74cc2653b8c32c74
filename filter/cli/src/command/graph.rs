//! `airflow-envoy graph`: who may call what, as a picture or a page.

use std::path::PathBuf;

use airflow_envoy_core::time::{Span, UnixTime};
use clap::{Args, ValueEnum};

use super::{Exit, Failed, clock, span, time, usable_policy, write};
use crate::graph::page::policy_page;
use crate::graph::{Filter, Graph};
use crate::output::{Style, complain};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy graph policy/ --format html --output policy.html    # one page for a reviewer
  airflow-envoy graph policy/ --destination ledger                  # Mermaid, for a merge request
  airflow-envoy graph policy/ --dag 'ds_*' --format dot | dot -Tsvg > policy.svg";

/// Shows who may call what: callers, destinations and the rules between them.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files and folders of one policy; `-` is standard input
    #[arg(required = true, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    /// The language
    #[arg(long, value_enum, default_value = "mermaid")]
    format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Only rules that may be about holders of this role; a glob
    #[arg(long, value_name = "ROLE")]
    role: Vec<String>,
    /// Only rules about this destination; a glob
    #[arg(long, value_name = "NAME")]
    destination: Vec<String>,
    /// Only rules that may be about this DAG; a glob
    #[arg(long, value_name = "DAG")]
    dag: Vec<String>,
    /// How long before its end a rule is told to be over soon
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "14d")]
    expiring: Span,
    /// The time to show the policy at, instead of now
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixTime>,
    /// Where it is written instead of standard output
    #[arg(long, short, value_name = "FILE", default_value = "-", hide_default_value = true)]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// What code hosts show in Markdown
    Mermaid,
    /// What Graphviz draws
    Dot,
    /// One page that needs nothing else
    Html,
    /// For programs
    Json,
}

/// Lines that Mermaid draws unless it is told otherwise (`maxEdges`).
const MERMAID_LINES: usize = 500;

pub(super) fn run(options: &Options) -> Result<Exit, Failed> {
    let (source, _, model) = usable_policy(&options.policy, Style::PLAIN)?;
    let filter = Filter {
        roles: options.role.clone(),
        destinations: options.destination.clone(),
        dags: options.dag.clone(),
    };
    let now = options.at.unwrap_or_else(clock);
    let graph = Graph::new(&source.node, &model, &filter, now, options.expiring).tidy();
    let text = match if options.json { Format::Json } else { options.format } {
        Format::Mermaid => {
            let lines = graph.lines().len();
            if lines > MERMAID_LINES {
                complain(&format!(
                    "airflow-envoy: the diagram has {lines} lines, more than the {MERMAID_LINES} that Mermaid \
                     draws by default: choose with --role, --destination or --dag"
                ));
            }
            graph.mermaid()
        }
        Format::Dot => graph.dot(),
        Format::Json => format!("{:#}\n", graph.json()),
        Format::Html => {
            let names: Vec<String> =
                options.policy.iter().map(|name| name.display().to_string()).collect();
            policy_page(&graph, &names.join(" "), now)
        }
    };
    write(&options.output, &text)?;
    Ok(Exit::Good)
}
