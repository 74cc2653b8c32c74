//! `airflow-envoy completions` and `airflow-envoy manual`.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::{Exit, Failed, command};
use crate::output::print;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy completions bash > ~/.local/share/bash-completion/completions/airflow-envoy
  airflow-envoy completions zsh > ~/.zfunc/_airflow-envoy
  airflow-envoy completions fish > ~/.config/fish/completions/airflow-envoy.fish";

/// Prints the completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// The shell
    shell: Shell,
}

pub(super) fn run(options: &Options) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command(), "airflow-envoy", &mut script);
    print(&String::from_utf8_lossy(&script));
    Exit::Good
}

/// Prints the manual page; with a folder, writes the pages of all commands there.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  airflow-envoy manual | man -l -")]
pub struct ManualOptions {
    /// Where the pages are written, one for each command
    folder: Option<PathBuf>,
}

pub(super) fn manual(options: &ManualOptions) -> Result<Exit, Failed> {
    let page = |command: clap::Command| {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        rendered.map(|()| page).map_err(|error| Failed::from(error.to_string()))
    };
    let mut whole = command();
    whole.build();
    let Some(folder) = &options.folder else {
        print(&String::from_utf8_lossy(&page(whole)?));
        return Ok(Exit::Good);
    };
    let write = |name: String, page: Vec<u8>| {
        let path = folder.join(name);
        fs::write(&path, page).map_err(|error| Failed::from(format!("{}: {error}", path.display())))
    };
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for command in whole.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("airflow-envoy-{}", command.get_name());
        write(format!("{name}.1"), page(command.clone())?)?;
    }
    write("airflow-envoy.1".to_owned(), page(whole)?)?;
    Ok(Exit::Good)
}
