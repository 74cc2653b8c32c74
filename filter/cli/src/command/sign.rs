//! `airflow-envoy sign`: a policy, signed.

use std::path::PathBuf;

use airflow_envoy_core::jose::Jws;
use airflow_envoy_core::json;
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::policy::Policy;
use clap::Args;
use serde_json::Value;

use super::{Exit, Failed, read_key, usable_policy, write};
use crate::output::{Style, complain};
use crate::signing::{read_document, sign};
use crate::source::merge::Source;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy sign policy/ --key policy-key.json --output policy.jws
  airflow-envoy sign policy/ --key policy-key.json --revision 43 --output policy.jws
  airflow-envoy sign policy/ --key policy-key.json --revision-after policy.jws --output policy.jws
  airflow-envoy print policy/ | airflow-envoy sign - --key policy-key.json --revision 43

A filter with policy.trust takes the result from any source, and no older one after it.";

/// Signs a policy: the compact JWS that the filter takes from an untrusted source.
///
/// What is no policy, or has no revision, is not signed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Files and folders of one policy; `-` is standard input
    #[arg(required = true, value_name = "POLICY")]
    policy: Vec<PathBuf>,
    /// The private key: a JWK
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    revision: Revision,
    /// Where it is written instead of standard output
    #[arg(long, short, value_name = "FILE", default_value = "-", hide_default_value = true)]
    output: PathBuf,
}

/// Which revision a policy gets.
#[derive(Debug, Args)]
pub(super) struct Revision {
    /// The revision, instead of the one that the policy names
    #[arg(long, value_name = "NUMBER", conflicts_with = "revision_after")]
    revision: Option<u64>,
    /// The revision is the next after that of this policy, signed or not
    #[arg(long, value_name = "FILE")]
    revision_after: Option<PathBuf>,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let key = read_key(&options.key, &options.policy, style)?;
    let (source, policy, _) = usable_policy(&options.policy, style)?;
    let (document, revision) = revised(&source, &policy, &options.revision)?;
    let revision = revision.ok_or_else(|| {
        Failed::usage(
            "the policy names no `revision`, and a signed one needs it: add one to the policy, or \
             say --revision or --revision-after",
        )
    })?;
    let signed = sign(&document, &key)?;
    write(&options.output, &format!("{signed}\n"))?;
    if options.output.as_os_str() != "-" {
        complain(&format!("revision {revision}, signed by {}", key.id()));
    }
    Ok(Exit::Good)
}

/// The document of a policy with the revision that is asked for, and which that is.
pub(super) fn revised(
    source: &Source,
    policy: &Policy,
    wanted: &Revision,
) -> Result<(Value, Option<u64>), Failed> {
    let revision = match (wanted.revision, &wanted.revision_after) {
        (Some(revision), _) => Some(revision),
        (None, Some(file)) => Some(revision_after(file)?),
        (None, None) => policy.revision(),
    };
    let mut document = source.node.value();
    if let (Some(revision), Some(members)) = (revision, document.as_object_mut()) {
        members.insert("revision".to_owned(), revision.into());
    }
    Ok((document, revision))
}

/// The revision after that of the policy in a file. Who signed it does not matter: it only says which
/// numbers are gone.
fn revision_after(file: &std::path::Path) -> Result<u64, Failed> {
    let name = file.display();
    let bytes = read_document(file)?;
    let limits = Limits::DEFAULT;
    let text = bytes.trim_ascii();
    let document = if text.starts_with(b"{") {
        text.to_vec()
    } else {
        let jws = Jws::parse(text, limits.policy_bytes.saturating_mul(2), &limits);
        jws.map_err(|error| format!("{name}: neither JSON nor a signed policy: {error}"))?
            .into_payload()
    };
    let document =
        json::parse(&document, limits.json_depth).map_err(|error| format!("{name}: {error}"))?;
    let revision = document.get("revision").and_then(Value::as_u64);
    let next = revision.and_then(|revision| revision.checked_add(1));
    next.ok_or_else(|| format!("{name}: has no `revision`").into())
}
