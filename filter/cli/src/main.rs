//! The binary `airflow-envoy`.

use std::process::ExitCode;

use airflow_envoy_cli::command::{Cli, run};
use clap::Parser as _;

fn main() -> ExitCode {
    ExitCode::from(run(Cli::parse()).code())
}
