//! `airflow-envoy audit`: is the trail the one that was written, and what does it say?

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Exit, Failed, query};
use crate::audit::link::{Keys, hash_text};
use crate::audit::verify::{self, Fault, Options as How, Stream, Verified, Witness, name};
use crate::audit::{Place, Reader};
use crate::output::{Style, plural, print};

/// Faults that are shown as text; all are counted.
const MOST_SHOWN: usize = 100;

const EXAMPLES: &str = "\
Examples:
  airflow-envoy audit verify audit.ndjson --keys audit-keys.json
  airflow-envoy audit verify envoy.log.1 envoy.log --keys audit-keys.json --open
  zcat envoy.log.*.gz | airflow-envoy audit verify - --keys audit-keys.json --rotated --open
  airflow-envoy audit verify audit.ndjson --keys audit-keys.json --witness seen.json   # each night
  airflow-envoy audit query audit.ndjson --dag 'ds_*' --decision reject --since 2026-11-22T00:00:00Z
  airflow-envoy audit keys audit.ndjson

Files are what a collector keeps, one record on each line, or logs of Envoy, as text or as JSON.";

/// Verifies and reads the audit trail.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(VerifyOptions),
    Query(Box<query::Options>),
    Keys(KeysOptions),
}

/// Finds any edit, removal, reordering, insertion or truncation, and says where.
///
/// The records of each stream are put together from all files, whatever their order. The exit code is 1 if
/// there is a fault.
#[derive(Debug, Args)]
pub struct VerifyOptions {
    /// Files with records; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Public keys (JWK Set or JWK) that may have signed; repeatable
    #[arg(long, value_name = "JWKS")]
    keys: Vec<PathBuf>,
    /// Streams may still run: none of them needs an end
    #[arg(long)]
    open: bool,
    /// Older files are gone: a stream may begin with any record
    #[arg(long)]
    rotated: bool,
    /// Keeps the last record of each stream, and fails if one that was kept has changed or vanished
    #[arg(long, value_name = "FILE")]
    witness: Option<PathBuf>,
    /// Prints the result for programs
    #[arg(long)]
    json: bool,
}

/// Lists the keys that signed, with their streams and periods.
#[derive(Debug, Args)]
pub struct KeysOptions {
    /// Files with records; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Prints the result for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    match &options.command {
        Command::Verify(options) => run_verify(options, style),
        Command::Query(options) => query::run(options, style),
        Command::Keys(options) => run_keys(options, style),
    }
}

fn run_verify(options: &VerifyOptions, style: Style) -> Result<Exit, Failed> {
    let keys = read_keys(&options.keys)?;
    let witness = match &options.witness {
        Some(path) => read_witness(path)?,
        None => None,
    };
    let how = How { keys, open: options.open, rotated: options.rotated, witness };
    let mut reader = Reader::new(&options.files)?;
    let mut progress = Progress::new(&options.files);
    let verified = verify::verify(&mut reader, &how, |bytes| progress.show(bytes));
    progress.clear();
    let verified = verified?;
    if verified.streams.is_empty() && verified.faults.is_empty() {
        let what = plural(usize::try_from(verified.seen.lines).unwrap_or(usize::MAX), "line");
        return Err(format!("no record in {what}: nothing was verified").into());
    }
    if options.json {
        print(&format!("{:#}\n", verify_json(&verified, reader.names(), options)));
    } else {
        print(&verify_text(&verified, reader.names(), options, style));
    }
    if !verified.faults.is_empty() {
        return Ok(Exit::Findings);
    }
    // What was found to be changed is not what to compare with the next time.
    if let Some(path) = &options.witness {
        let heads = how.witness.unwrap_or_default().after(&verified);
        replace(path, &format!("{:#}\n", heads.document()))?;
    }
    Ok(Exit::Good)
}

/// The keys in these files, of which there must be one.
pub(super) fn read_keys(paths: &[PathBuf]) -> Result<Keys, Failed> {
    let mut keys = Keys::default();
    for path in paths {
        let told = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        let document = std::fs::read(path).map_err(|error| told(&error))?;
        keys.add(&document).map_err(|problem| told(&problem))?;
    }
    if !paths.is_empty() && keys.is_empty() {
        return Err("--keys: there is no key in it".into());
    }
    Ok(keys)
}

/// The witness, if there is one yet.
fn read_witness(path: &Path) -> Result<Option<Witness>, Failed> {
    let told =
        |problem: &dyn std::fmt::Display| Failed::from(format!("{}: {problem}", path.display()));
    match std::fs::read(path) {
        Ok(document) => Witness::read(&document).map(Some).map_err(|problem| told(&problem)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(told(&error)),
    }
}

/// Writes a file that is there whole or not at all.
fn replace(path: &Path, text: &str) -> Result<(), Failed> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Says on a terminal how far it is.
struct Progress {
    whole: u64,
    told: u64,
    is_wanted: bool,
}

impl Progress {
    /// Bytes between two lines.
    const STEP: u64 = 32 << 20;

    fn new(files: &[PathBuf]) -> Self {
        let sizes = files.iter().filter_map(|file| std::fs::metadata(file).ok());
        let whole = sizes.map(|meta| meta.len()).sum();
        Self { whole, told: 0, is_wanted: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, bytes: u64) {
        if !self.is_wanted || bytes < self.told + Self::STEP {
            return;
        }
        self.told = bytes;
        let part = bytes.saturating_mul(100).checked_div(self.whole).unwrap_or_default();
        let mut terminal = std::io::stderr();
        let _ = write!(terminal, "\r{} MB, {} %", bytes / 1_000_000, part.min(100));
        let _ = terminal.flush();
    }

    fn clear(&self) {
        if self.told > 0 {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

/// A fault as text without colours: where, what, which records, and what it means.
pub(super) fn fault_text(fault: &Fault, names: &[String]) -> String {
    let place = place_text(fault.place, names);
    format!("{place}: {}: {}{}", fault.code.name(), about(fault), fault.told)
}

fn place_text(place: Option<Place>, names: &[String]) -> String {
    let Some(Place { file, line, offset }) = place else { return "the trail".to_owned() };
    let name = usize::try_from(file).ok().and_then(|file| names.get(file));
    format!("{}:{line} (byte {offset})", name.map_or("?", String::as_str))
}

fn about(fault: &Fault) -> String {
    let stream = fault.stream.map(|stream| format!("stream {}", name(stream)));
    let seqs = fault.seqs.map(|(from, to)| match from == to {
        true => format!("record {from}"),
        false => format!("records {from} to {to}"),
    });
    let parts: Vec<String> = stream.into_iter().chain(seqs).collect();
    if parts.is_empty() { String::new() } else { format!("{}: ", parts.join(" ")) }
}

fn verify_text(
    verified: &Verified,
    names: &[String],
    options: &VerifyOptions,
    style: Style,
) -> String {
    let mut text = String::new();
    for fault in verified.faults.iter().take(MOST_SHOWN) {
        let place = style.strong(&place_text(fault.place, names));
        let code = style.bad(&format!("error[{}]", fault.code.name()));
        text.push_str(&format!("{place}: {code}: {}{}\n", about(fault), fault.told));
    }
    if let Some(more) = verified.faults.len().checked_sub(MOST_SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!("and {} more, see --json\n", plural(more, "fault")));
    }
    for (number, stream) in &verified.streams {
        let mut warn = |told: String| {
            let stream = name(*number);
            text.push_str(&format!("{}: stream {stream}: {told}\n", style.warn("warning")));
        };
        if stream.lost > 0 {
            warn(format!("{} records were lost, as the stream itself says", stream.lost));
        }
        if stream.backwards > 0 {
            let place = place_text(stream.backwards_at, names);
            warn(format!("the clock went back {} times, first at {place}", stream.backwards));
        }
        let tail = unvouched_tail(stream);
        if verified.checked && tail > 0 {
            warn(format!("no signature vouches for its last {tail} records yet"));
        }
    }
    let seen = &verified.seen;
    let records: u64 = verified.streams.values().map(|stream| stream.records).sum();
    let vouched: u64 = verified.streams.values().map(vouched).sum();
    let summary = format!(
        "{} in {}{}, {} foreign lines",
        counted(records, "record"),
        counted(verified.streams.len() as u64, "stream"),
        match verified.duplicates {
            0 => String::new(),
            more => format!(", {more} of them more than once"),
        },
        seen.foreign
    );
    let verdict = match verified.faults.len() {
        0 => style.good("ok"),
        faults => style.bad(&plural(faults, "fault")),
    };
    text.push_str(&format!("{verdict}: {summary}\n"));
    if verified.checked {
        text.push_str(&format!("signatures vouch for {vouched} of {records} records\n"));
    } else {
        text.push_str(&format!(
            "{}\n",
            style.warn(
                "SIGNATURES WERE NOT CHECKED: without --keys, whoever can write the files can make a chain anew"
            )
        ));
    }
    if options.open && options.witness.is_none() {
        text.push_str(
            &style.faint("note: with --open, a tail that was cut off is found only by --witness\n"),
        );
    }
    text
}

fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

pub(super) fn vouched(stream: &Stream) -> u64 {
    stream.vouched.iter().map(|(from, to)| to - from + 1).sum()
}

/// Records behind the last one that is vouched for.
fn unvouched_tail(stream: &Stream) -> u64 {
    match stream.vouched.last() {
        Some((_, to)) => stream.seqs.1.saturating_sub(*to),
        None => stream.records,
    }
}

fn place_json(place: Option<Place>, names: &[String]) -> Value {
    let Some(Place { file, line, offset }) = place else { return Value::Null };
    let name = usize::try_from(file).ok().and_then(|file| names.get(file));
    json!({"file": name, "line": line, "offset": offset})
}

fn verify_json(verified: &Verified, names: &[String], options: &VerifyOptions) -> Value {
    let faults = verified.faults.iter().map(|fault| {
        json!({
            "code": fault.code.name(), "place": place_json(fault.place, names),
            "stream": fault.stream.map(name), "from_seq": fault.seqs.map(|(from, _)| from),
            "to_seq": fault.seqs.map(|(_, to)| to), "message": fault.told,
        })
    });
    let streams = verified.streams.iter().map(|(number, stream)| {
        let vouched = stream.vouched.iter();
        let vouched = vouched.map(|(from, to)| json!({"from_seq": from, "to_seq": to}));
        json!({
            "stream": name(*number), "process": stream.process, "records": stream.records,
            "from_seq": stream.seqs.0, "to_seq": stream.seqs.1, "head": hash_text(&stream.head),
            "ended": stream.ended, "successor": stream.successor.map(name),
            "vouched": vouched.collect::<Vec<_>>(), "lost": stream.lost, "backwards": stream.backwards,
            "keys": stream.keys.keys().collect::<Vec<_>>(),
        })
    });
    let seen = &verified.seen;
    json!({
        "ok": verified.faults.is_empty(), "signatures": if verified.checked { "checked" } else { "unchecked" },
        "open": options.open, "rotated": options.rotated,
        "faults": faults.collect::<Vec<_>>(), "streams": streams.collect::<Vec<_>>(),
        "duplicates": verified.duplicates,
        "seen": {
            "bytes": seen.bytes, "lines": seen.lines, "records": seen.records, "foreign": seen.foreign,
            "damaged": seen.damaged,
        },
    })
}

fn run_keys(options: &KeysOptions, style: Style) -> Result<Exit, Failed> {
    let mut reader = Reader::new(&options.files)?;
    let verified = verify::verify(&mut reader, &How::default(), |_| {})?;
    let mut keys: std::collections::BTreeMap<&str, Vec<(u64, &str, &str)>> = Default::default();
    let mut unsigned = 0;
    for (number, stream) in &verified.streams {
        unsigned += u64::from(stream.keys.is_empty());
        for (key, (from, to)) in &stream.keys {
            keys.entry(key).or_default().push((*number, from, to));
        }
    }
    if options.json {
        let keys = keys.iter().map(|(key, streams)| {
            let streams = streams.iter();
            let streams = streams
                .map(|(stream, from, to)| json!({"stream": name(*stream), "from": from, "to": to}));
            json!({"key_id": key, "streams": streams.collect::<Vec<_>>()})
        });
        let told = json!({"keys": keys.collect::<Vec<_>>(), "unsigned_streams": unsigned});
        print(&format!("{told:#}\n"));
        return Ok(Exit::Good);
    }
    let mut text = String::new();
    for (key, streams) in keys {
        let from = streams.iter().map(|(_, from, _)| *from).min().unwrap_or_default();
        let to = streams.iter().map(|(.., to)| *to).max().unwrap_or_default();
        let shown = style.strong(&airflow_envoy_core::quote::quote(key));
        text.push_str(&format!(
            "key {shown}: {} from {from} to {to}\n",
            plural(streams.len(), "stream")
        ));
        for (stream, from, to) in streams {
            text.push_str(&style.faint(&format!("  {} {from} to {to}\n", name(stream))));
        }
    }
    if unsigned > 0 {
        text.push_str(&format!("{} without a signature\n", counted(unsigned, "stream")));
    }
    print(&text);
    Ok(Exit::Good)
}
