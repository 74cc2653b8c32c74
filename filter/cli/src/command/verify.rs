//! `airflow-envoy verify`: would the filter take this signed policy?

use std::path::PathBuf;

use airflow_envoy_core::policy::Accepted;
use clap::Args;
use serde_json::json;

use super::{Exit, Failed};
use crate::jwk::public_keys;
use crate::output::{Style, plural, print};
use crate::signing::{admit, read_document, trust};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy verify policy.jws --keys keys.json
  airflow-envoy verify new.jws --keys keys.json --after deployed.jws   # nor is it older
  curl -s http://policy/policy.jws | airflow-envoy verify - --keys keys.json";

/// Verifies a signed policy as a filter does that requires one of these keys.
///
/// Says who signed it and which revision it is. The exit code is 1 if the filter would not take it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The signed policy; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// JWKs, or a set of them, as in policy.trust.keys; repeatable
    #[arg(long, value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// A signed policy that the filter has accepted before
    #[arg(long, value_name = "FILE")]
    after: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let inputs = options.keys.iter().chain([&options.file]).chain(&options.after);
    if inputs.filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(Failed::usage("standard input can be only one of the inputs"));
    }
    let trust = trust(public_keys(&options.keys)?)?;
    let last: Option<Accepted> = match &options.after {
        None => None,
        Some(file) => {
            let admitted = admit(&trust, &read_document(file)?, None);
            admitted.map_err(|problem| format!("{}: {problem}", file.display()))?.accepted
        }
    };
    let name = options.file.display();
    let admitted = admit(&trust, &read_document(&options.file)?, last.as_ref());
    let (told, text, exit) = match &admitted {
        Ok(admitted) => {
            let rules = admitted.policy.rule_count();
            let revision = admitted.policy.revision();
            let signer = admitted.signer.as_ref();
            let by = signer.map(ToString::to_string).unwrap_or_default();
            let told = json!({
                "file": name.to_string(), "valid": true, "revision": revision, "rules": rules,
                "key_id": signer.and_then(|signer| signer.key_id.as_deref()),
                "thumbprint": signer.map(|signer| &signer.thumbprint),
            });
            let revision = revision.unwrap_or_default();
            let ok = style.good("ok");
            let text =
                format!("{ok}: signed by {by}, revision {revision}, {}\n", plural(rules, "rule"));
            (told, text, Exit::Good)
        }
        Err(problem) => {
            let told = json!({ "file": name.to_string(), "valid": false, "problem": problem });
            (told, format!("{name}: {}: {problem}\n", style.bad("refused")), Exit::Findings)
        }
    };
    print(&if options.json { format!("{told:#}\n") } else { text });
    Ok(exit)
}
