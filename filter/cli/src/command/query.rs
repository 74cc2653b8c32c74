//! `airflow-envoy audit query`: which calls were decided how.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use airflow_envoy_core::time::UnixTime;
use clap::{Args, ValueEnum};

use super::{Exit, Failed, time};
use crate::audit::parallel::each_chunk;
use crate::audit::select::Wanted;
use crate::audit::{Chunk, Decision, Found, Place, Reader, Record};
use crate::output::{Style, complain, print};

/// Decisions of which it is remembered that they were shown: a collector delivers at least once, and
/// what it delivers again comes soon.
const REMEMBERED: usize = 100_000;

/// How often a file that is followed is looked at.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// One line for each, in columns
    Table,
    /// The records as they are, one on each line
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Outcome {
    Permit,
    Reject,
    Abandoned,
}

/// Shows the decisions that match; `*` in a value is any run of characters.
///
/// It reads and does not verify: `audit verify` says whether the records are the ones that were written.
#[derive(Debug, Args)]
pub struct Options {
    /// Files with records; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The DAG; repeatable, as all of these
    #[arg(long, value_name = "GLOB")]
    dag: Vec<String>,
    /// The task
    #[arg(long, value_name = "GLOB")]
    task: Vec<String>,
    /// The run
    #[arg(long, value_name = "GLOB")]
    run: Vec<String>,
    /// The destination's name in the policy
    #[arg(long, value_name = "GLOB")]
    destination: Vec<String>,
    /// The code of a refusal
    #[arg(long, value_name = "GLOB")]
    code: Vec<String>,
    /// What was decided
    #[arg(long, value_name = "DECISION")]
    decision: Vec<Outcome>,
    /// The rule that decided or came nearest
    #[arg(long, value_name = "GLOB")]
    rule: Vec<String>,
    /// The temporary grant
    #[arg(long, value_name = "GLOB")]
    grant: Vec<String>,
    /// The trace (W3C Trace Context)
    #[arg(long, value_name = "GLOB")]
    trace: Vec<String>,
    /// The decision's id, as in the answer
    #[arg(long, value_name = "GLOB")]
    decision_id: Vec<String>,
    /// Not before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<UnixTime>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<UnixTime>,
    /// Goes on with what is written to the file, until it is interrupted
    #[arg(long)]
    follow: bool,
    /// How decisions are shown
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, style: Style) -> Result<Exit, Failed> {
    let query = Query {
        wanted: options.wanted(),
        json: options.json || matches!(options.format, Format::Json),
        style,
    };
    if options.follow {
        let [path] = options.files.as_slice() else {
            return Err(Failed::usage("--follow is about one file"));
        };
        if path.as_os_str() != "-" {
            return follow(path, &query);
        }
    }
    let mut shown = Shown::default();
    let mut reader = Reader::new(&options.files)?;
    if options.follow {
        // Whoever writes to standard input waits for no other thread.
        while let Some(chunk) = reader.next_chunk()? {
            query.show(&query.find(&chunk), &mut shown);
        }
        return Ok(Exit::Good);
    }
    let find = || |chunk: &Chunk| query.find(chunk);
    each_chunk(&mut reader, find, |found: Vec<Hit>| query.show(&found, &mut shown))?;
    Ok(Exit::Good)
}

impl Options {
    fn wanted(&self) -> Wanted {
        let decision = |outcome: &Outcome| match outcome {
            Outcome::Permit => Decision::Permit,
            Outcome::Reject => Decision::Reject,
            Outcome::Abandoned => Decision::Abandoned,
        };
        Wanted {
            dags: self.dag.clone(),
            tasks: self.task.clone(),
            runs: self.run.clone(),
            destinations: self.destination.clone(),
            codes: self.code.clone(),
            decisions: self.decision.iter().map(decision).collect(),
            rules: self.rule.clone(),
            grants: self.grant.clone(),
            traces: self.trace.clone(),
            ids: self.decision_id.clone(),
            since: self.since,
            until: self.until,
        }
    }
}

/// A decision that is asked for: its id, and how it is shown.
type Hit = (String, String);

struct Query {
    wanted: Wanted,
    json: bool,
    style: Style,
}

impl Query {
    fn find(&self, chunk: &Chunk) -> Vec<Hit> {
        let mut hits = Vec::new();
        chunk.each(|_, found| {
            let Found::Record(head) = found else { return };
            let Ok(record) = Record::parse(head.text) else { return };
            if self.wanted.matches(&record) {
                let id = record.decision_id.as_deref().unwrap_or_default().to_owned();
                let line = if self.json { head.text.to_owned() } else { row(&record, self.style) };
                hits.push((id, line));
            }
        });
        hits
    }

    fn show(&self, hits: &[Hit], shown: &mut Shown) {
        let mut text = String::new();
        for (id, line) in hits {
            if shown.is_new(id) {
                text.push_str(line);
                text.push('\n');
            }
        }
        if !text.is_empty() {
            print(&text);
        }
    }
}

/// What was shown lately.
#[derive(Default)]
struct Shown {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Shown {
    fn is_new(&mut self, id: &str) -> bool {
        if id.is_empty() {
            return true;
        }
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// A line of the table. Values are somebody else's: none of them may move the cursor.
fn row(record: &Record<'_>, style: Style) -> String {
    let told = |text: Option<&str>| plain(text.unwrap_or("-"));
    let decision = record.decision.map_or("-", Decision::name);
    let padded = format!("{decision:9}");
    let decision = match record.decision {
        Some(Decision::Permit) => style.good(&padded),
        Some(Decision::Reject) => style.bad(&padded),
        _ => style.warn(&padded),
    };
    let caller = record
        .caller
        .identity
        .as_ref()
        .map(|identity| format!("{}/{}", plain(&identity.dag_id), plain(&identity.task_id)));
    let request = &record.request;
    let why = match (&record.code, &record.grant) {
        (Some(code), _) => plain(code),
        (None, Some(grant)) => {
            format!("{} by grant {}", told(record.rule.as_deref()), plain(grant))
        }
        (None, None) => told(record.rule.as_deref()),
    };
    let sampled = match record.weight() {
        1 => String::new(),
        many => format!(" ×{many}"),
    };
    let shadow = if record.mode.is_some() { " (shadow)" } else { "" };
    format!(
        "{} {decision} {} {} {}{} {why}{shadow}{sampled} {}",
        told(Some(&record.time)),
        caller.as_deref().unwrap_or("-"),
        told(request.method.as_deref()),
        told(request.authority.as_deref()),
        told(request.path.as_deref()),
        style.faint(&told(record.decision_id.as_deref())),
    )
}

/// Shows what is in a file and what is written to it. A file that became shorter was emptied, and one
/// that is another one now was renamed: the new one is read from its beginning.
fn follow(path: &Path, query: &Query) -> Result<Exit, Failed> {
    let told = |error: std::io::Error| Failed::from(format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(told)?;
    let mut same = identity(&file);
    let (mut rest, mut shown) = (Vec::new(), Shown::default());
    loop {
        if take(&mut file, &mut rest, query, &mut shown).map_err(told)? {
            continue;
        }
        std::thread::sleep(PAUSE);
        let at = file.stream_position().map_err(told)?;
        if file.metadata().map_err(told)?.len() < at {
            complain(&format!("airflow-envoy: {}: was emptied, begins again", path.display()));
            file.seek(SeekFrom::Start(0)).map_err(told)?;
            rest.clear();
        } else if let Ok(new) = File::open(path)
            && identity(&new) != same
        {
            // What was written to the old one until now.
            while take(&mut file, &mut rest, query, &mut shown).map_err(told)? {}
            same = identity(&new);
            file = new;
            rest.clear();
        }
    }
}

/// Which file it is, whatever its name.
fn identity(file: &File) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Shows what is new; `false` if nothing is.
fn take(
    file: &mut File,
    rest: &mut Vec<u8>,
    query: &Query,
    shown: &mut Shown,
) -> std::io::Result<bool> {
    const MOST: u64 = 1 << 20;
    const MOST_LINE: usize = 8 << 20;
    if file.take(MOST).read_to_end(rest)? == 0 {
        return Ok(false);
    }
    if let Some(end) = memchr::memrchr(b'\n', rest) {
        let behind = rest.split_off(end + 1);
        let lines = std::mem::replace(rest, behind);
        query.show(&query.find(&Chunk::new(Place::default(), lines)), shown);
    } else if rest.len() > MOST_LINE {
        rest.clear();
    }
    Ok(true)
}

fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' => plain.push(character),
            _ => plain.extend(character.escape_debug()),
        }
    }
    plain
}
