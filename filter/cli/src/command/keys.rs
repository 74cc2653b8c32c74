//! `airflow-envoy keys`: the keys that sign policies, grants and the audit trail.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Exit, Failed};
use crate::jwk::{Kind, PrivateKey, exposure, public_keys};
use crate::output::{Style, complain, print};

const EXAMPLES: &str = "\
Examples:
  airflow-envoy keys new --out policy-key.json              # the private JWK; prints the public one
  airflow-envoy keys new --alg ES256 --out approver.json
  airflow-envoy keys public policy-key.json --list          # for policy.trust.keys, or keys of approvers
  airflow-envoy keys public old.json new.json > keys.json   # a JWK Set
  airflow-envoy keys new --out - | vault kv put secret/audit key=-    # not on this disk
  airflow-envoy keys show policy-key.json

One form of key for all: a JWK (RFC 7517), for EdDSA (Ed25519) or ES256 (P-256).";

/// Makes and shows the keys that sign policies, grants and the audit trail.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a private key in a new file that only its owner may read, and prints its public half
    New {
        /// What it signs by
        #[arg(long, value_enum, default_value = "EdDSA")]
        alg: Alg,
        /// Where it is written; never over something. With `-` the private key is printed, and nothing else
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The key's name, instead of its thumbprint (RFC 7638)
        #[arg(long, value_name = "KID")]
        kid: Option<String>,
    },
    /// Prints the public halves of keys as a JWK Set
    Public {
        /// Files with private or public JWKs, or sets of them; `-` is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Prints the list alone, as `policy.trust.keys` and `keys` of approvers have it
        #[arg(long)]
        list: bool,
    },
    /// Says what is in files with keys, without their secrets
    Show {
        /// Files with private or public JWKs, or sets of them; `-` is standard input
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Alg {
    /// Ed25519 (RFC 8037)
    #[value(name = "EdDSA", alias = "eddsa", alias = "Ed25519")]
    EdDsa,
    /// ECDSA on P-256 (RFC 7518)
    #[value(name = "ES256", alias = "es256")]
    Es256,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    match &options.command {
        Command::New { alg, out, kid } => {
            let kind = match alg {
                Alg::EdDsa => Kind::EdDsa,
                Alg::Es256 => Kind::Es256,
            };
            let mut key = PrivateKey::generate(kind)?;
            if let Some(kid) = kid {
                key =
                    key.named(kid).map_err(|problem| Failed::usage(format!("--kid {problem}")))?;
            }
            if out.as_os_str() == "-" {
                // On one line, as an environment has it.
                print(&format!("{}\n", key.private_jwk()));
            } else {
                key.write_new(out)?;
                print(&format!("{:#}\n", key.public_jwk()));
            }
        }
        Command::Public { files, list } => {
            let keys = Value::Array(public_keys(files)?);
            let told = if *list { keys } else { json!({ "keys": keys }) };
            print(&format!("{told:#}\n"));
        }
        Command::Show { files, json } => show(files, *json, style)?,
    }
    Ok(Exit::Good)
}

fn show(files: &[PathBuf], json: bool, style: Style) -> Result<(), Failed> {
    let mut told = Vec::new();
    let mut text = String::new();
    for file in files {
        let name = file.display().to_string();
        for found in crate::jwk::described(file)? {
            let half = if found.private { "private" } else { "public" };
            let algorithm = found.algorithm.name();
            text.push_str(&format!(
                "{name}: {half}, {algorithm}, kid {}\n",
                style.strong(&found.id)
            ));
            if found.id != found.thumbprint {
                text.push_str(&style.faint(&format!("  thumbprint {}\n", found.thumbprint)));
            }
            if let Some(warning) = exposure(file).filter(|_| found.private) {
                complain(&format!("{}: {warning}", style.warn("warning")));
            }
            told.push(json!({
                "file": name, "private": found.private, "alg": algorithm,
                "kid": found.id, "thumbprint": found.thumbprint,
            }));
        }
    }
    print(&if json { format!("{:#}\n", json!({ "keys": told })) } else { text });
    Ok(())
}
