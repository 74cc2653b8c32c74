//! `airflow-envoy bundle`: what the policy server serves, to the byte.

use std::path::PathBuf;

use airflow_envoy_core::policy::Policy;
use clap::Args;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::sign::{Revision, revised};
use super::{Exit, Failed, read_key, usable_policy, write};
use crate::output::{Style, complain, plural};
use crate::signing::sign;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy bundle policy/ --output policy.json
  airflow-envoy bundle policy/ --revision 43 --key policy-key.json --output policy.jws

The same policy gives the same bytes, however it is cut into files, ordered and formatted. The SHA-256 of the output
is the `digest` that the filter's status tells of the policy that it uses.";

/// Puts a policy into one file for the policy server: JSON, or with --key the signed policy.
///
/// `print` makes a document for people, this one makes what is deployed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files and folders of one policy; `-` is standard input
    #[arg(required = true, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    /// Signs it by this private key: a JWK; then a revision is needed
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    revision: Revision,
    /// Where it is written instead of standard output
    #[arg(
        long,
        short,
        visible_alias = "out",
        value_name = "FILE",
        default_value = "-",
        hide_default_value = true
    )]
    output: PathBuf,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let key = options.key.as_ref().map(|key| read_key(key, &options.policy, style)).transpose()?;
    let (source, policy, _) = usable_policy(&options.policy, style)?;
    let (mut document, revision) = revised(&source, &policy, &options.revision)?;
    sort(&mut document);
    let text = match &key {
        Some(key) => sign(&document, key)?,
        None => document.to_string(),
    };
    let text = format!("{text}\n");
    write(&options.output, &text)?;
    if options.output.as_os_str() != "-" {
        complain(&told(&policy, revision, text.as_bytes()));
    }
    Ok(Exit::Good)
}

/// Puts the rules in the order of their ids, in which they mean the same.
fn sort(document: &mut Value) {
    for member in ["rules", "grantable", "agreement"] {
        if let Some(Value::Array(rules)) = document.get_mut(member) {
            let id = |rule: &Value| rule.get("id").and_then(Value::as_str).map(str::to_owned);
            rules.sort_by_cached_key(id);
        }
    }
}

fn told(policy: &Policy, revision: Option<u64>, bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let revision =
        revision.map_or_else(|| "no revision".to_owned(), |number| format!("revision {number}"));
    format!("{revision}, {}, digest {digest}", plural(policy.rule_count(), "rule"))
}
