//! `airflow-envoy check`: is it a policy, and can it be meant?

use std::path::PathBuf;

use airflow_envoy_core::time::{Span, UnixTime};
use clap::{Args, ValueEnum};

use super::{Exit, Failed, clock, invalid, read_policy, span, time, write};
use crate::lint::{Given, Severity, lint};
use crate::model::Model;
use crate::output::sarif::sarif;
use crate::output::{Style, count, findings_json, findings_text, plural};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy check policy.yaml
  airflow-envoy check policy/ --deny-warnings --expiring 30d
  airflow-envoy check policy/ --format sarif --output policy.sarif
  curl -s http://policy/policy.json | airflow-envoy check -

Findings:
  errors    syntax, invalid
  warnings  never-matches, shadowed, expired, expires-soon, unused-role,
            unused-destination, unused-approver, over-broad, duplicate, unknown-word";

/// Says what is wrong with a policy, and where.
///
/// A policy is a YAML or JSON file, a folder of them that make one policy together (files whose names end
/// with `_test` left out), or `-`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files and folders of one policy; `-` is standard input
    #[arg(required = true, value_name = "POLICY")]
    policy: Vec<PathBuf>,
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
    /// How long before its end a rule is told to be over soon
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "14d")]
    expiring: Span,
    /// The time to check at, instead of now
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixTime>,
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
    let given = Given { now: options.at.unwrap_or_else(clock), expiring: options.expiring };
    let mut summary = String::new();
    let findings = match read_policy(&options.policy)? {
        Err(findings) => findings,
        Ok(source) => match source.policy() {
            Err(problems) => invalid(problems),
            Ok(_) => {
                let model = Model::new(&source.node);
                let Model { rules, roles, destinations, grantable, agreement, .. } = &model;
                summary = format!(
                    "{}, {}, {}",
                    plural(rules.len(), "rule"),
                    plural(roles.len(), "role"),
                    plural(destinations.len(), "destination")
                );
                if !grantable.is_empty() {
                    summary.push_str(&format!(", {} grantable", grantable.len()));
                }
                if let Some(agreement) = agreement {
                    summary.push_str(&format!(", {}", plural(agreement.len(), "agreement")));
                }
                let path = |index| source.own_path(&format!("rules[{index}]"));
                let mut findings = lint(&model, given, &path);
                for finding in &mut findings {
                    if ["grantable[", "agreement["]
                        .iter()
                        .any(|list| finding.path.starts_with(list))
                    {
                        finding.path = source.own_path(&finding.path);
                    }
                }
                findings
            }
        },
    };
    let (errors, warnings) =
        (count(&findings, Severity::Error), count(&findings, Severity::Warning));
    let format = if options.json { Format::Json } else { options.format };
    let to_file = options.output.as_os_str() != "-";
    let text = match format {
        Format::Json => format!("{:#}\n", findings_json(&findings)),
        Format::Sarif => format!("{:#}\n", sarif(&findings)),
        Format::Text => {
            let mut text = findings_text(&findings, if to_file { Style::PLAIN } else { style });
            let ok = if errors == 0 { style.good("ok") } else { style.bad("not usable") };
            let counts = match (errors, warnings) {
                (0, 0) => summary,
                (0, _) => format!("{summary}; {}", plural(warnings, "warning")),
                (_, 0) => plural(errors, "error"),
                (_, _) => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
            };
            text.push_str(&format!("{ok}: {counts}\n"));
            text
        }
    };
    write(&options.output, &text)?;
    let bad = errors > 0 || options.deny_warnings && warnings > 0;
    Ok(if bad { Exit::Findings } else { Exit::Good })
}
