//! `airflow-envoy revoke`: a grant ends at once.

use clap::Args;
use serde_json::json;

use super::{Exit, Failed, clock};
use crate::granting::remove;
use crate::output::{Style, print};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy revoke orders-write-3f9c2a7be1 --store grants.json
  airflow-envoy revoke orders-write-3f9c2a7be1 --store consul://127.0.0.1:8500/airflow-envoy/grants

Whoever can write the store can put it back until it has ended: it stays signed.";

/// Takes grants out of the store: the filter forgets them as soon as it reads it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Ids of grants
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// The store that the filter reads
    #[arg(long, value_name = "URL")]
    store: String,
    /// For programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let store = Store::at(&options.store).map_err(Failed::usage)?;
    let mut first = true;
    store.update(|found| {
        // Asked again, they may be gone because they were taken out the first time.
        let all_there = std::mem::take(&mut first);
        remove(found, &options.ids, all_there, clock())
            .map_err(|problem| format!("{}: {problem}", store.name()))
    })?;
    let text = if options.json {
        format!("{:#}\n", json!({ "revoked": options.ids, "store": store.name() }))
    } else {
        let line = |id: &String| format!("{} {id}\n", style.good("revoked:"));
        options.ids.iter().map(line).collect()
    };
    print(&text);
    Ok(Exit::Good)
}
