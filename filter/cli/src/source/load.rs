//! From names on the command line to documents.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use airflow_envoy_core::limits::Limits;

use super::{Aliases, Node, Place, Unreadable, json, yaml};

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// `-`.
    StandardInput,
    /// A file.
    File(PathBuf),
}

/// What files of a folder are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All but tests.
    Policies,
    /// Those whose names end with `_test` before `.yaml`, `.yml` or `.json`.
    Tests,
}

impl Found {
    /// The name as it is to be told.
    pub fn name(&self) -> String {
        match self {
            Self::StandardInput => "-".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// The files that `names` mean, each once: `-`, files, and of folders what is `wanted` in them and below,
/// in the order of their names. Hidden ones are left out.
///
/// # Errors
/// What cannot be found or read, and a folder that has none.
pub fn find(names: &[PathBuf], wanted: Wanted) -> Result<Vec<Found>, String> {
    let mut found: Vec<Found> = Vec::new();
    for name in names {
        let more = if name.as_os_str() == "-" {
            vec![Found::StandardInput]
        } else if name.is_dir() {
            let mut files = Vec::new();
            walk(name, wanted, 0, &mut files)?;
            if files.is_empty() {
                let what = match wanted {
                    Wanted::Policies => "policy (`*.yaml`, `*.yml`, `*.json`)",
                    Wanted::Tests => "test (`*_test.yaml`, `*_test.yml`, `*_test.json`)",
                };
                return Err(format!("{}: the folder has no {what}", name.display()));
            }
            files.into_iter().map(Found::File).collect()
        } else {
            vec![Found::File(name.clone())]
        };
        for file in more {
            if !found.contains(&file) {
                found.push(file);
            }
        }
    }
    Ok(found)
}

fn walk(
    folder: &Path,
    wanted: Wanted,
    depth: usize,
    files: &mut Vec<PathBuf>,
) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{}: {error}", folder.display());
    if depth > 16 {
        return Err(format!("{}: folders are nested too deeply", folder.display()));
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(told)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(told)?;
    entries.sort_unstable();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            walk(&path, wanted, depth + 1, files)?;
        } else if is_document(&name) && is_test(&name) == (wanted == Wanted::Tests) {
            files.push(path);
        }
    }
    Ok(())
}

fn is_document(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending))
}

/// Whether a file holds tests, by its name.
fn is_test(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, _)| stem.ends_with("_test"))
}

/// Why a file gives no document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// It cannot be read at all.
    File(String),
    /// Its text is not a document.
    Text(Unreadable),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(problem) => formatter.write_str(problem),
            Self::Text(unreadable) => unreadable.fmt(formatter),
        }
    }
}

/// Reads a file or standard input.
///
/// # Errors
/// Why not.
pub fn read_file(found: &Found) -> Result<Node, ReadError> {
    let bytes = bytes(found)?;
    read_bytes(&found.name(), &bytes).map_err(ReadError::Text)
}

/// Reads Envoy's configuration from a file or standard input: its text, and the document in it, which may
/// have aliases.
///
/// # Errors
/// Why not.
pub fn read_envoy(found: &Found) -> Result<(String, Node), ReadError> {
    let bytes = bytes(found)?;
    let name = found.name();
    let text = text(&name, &bytes).map_err(ReadError::Text)?;
    let node = document(&name, text, Aliases::Followed).map_err(ReadError::Text)?;
    Ok((text.to_owned(), node))
}

fn bytes(found: &Found) -> Result<Vec<u8>, ReadError> {
    let name = found.name();
    let bytes = match found {
        Found::StandardInput => {
            let mut bytes = Vec::new();
            let most = Limits::DEFAULT.policy_bytes as u64 + 1;
            std::io::stdin().lock().take(most).read_to_end(&mut bytes).map(|_| bytes)
        }
        Found::File(path) => fs::read(path),
    };
    bytes.map_err(|error| ReadError::File(format!("{name}: {error}")))
}

/// Reads the document in `bytes`: JSON if the name ends so, YAML if it ends so, and otherwise by its
/// first character.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read_bytes(name: &str, bytes: &[u8]) -> Result<Node, Unreadable> {
    document(name, text(name, bytes)?, Aliases::Refused)
}

fn document(name: &str, text: &str, aliases: Aliases) -> Result<Node, Unreadable> {
    let is_yaml = name.ends_with(".yaml") || name.ends_with(".yml");
    let is_json = name.ends_with(".json") || !is_yaml && text.trim_start().starts_with(['{', '[']);
    if is_json { json::read(name, text) } else { yaml::read(name, text, aliases) }
}

/// What is in a file, as text.
fn text<'b>(name: &str, bytes: &'b [u8]) -> Result<&'b str, Unreadable> {
    let fault = |problem: String| Err(Unreadable { place: Place::file(name), problem });
    let most = Limits::DEFAULT.policy_bytes;
    if bytes.len() > most {
        return fault(format!("is larger than {most} bytes"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let place = Place { file: name.into(), line, column: 0 };
        Unreadable { place, problem: "is not UTF-8".to_owned() }
    })
}
