//! Finds records in files: bare lines as a collector keeps them, and the logs of Envoy, as text or as JSON.
//!
//! Files are read in chunks that end with a line, so that several threads can look at them; neither a
//! file nor a line is ever in memory as a whole if it is large.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use airflow_envoy_core::json::{self, JsonError};
use memchr::{memchr, memchr_iter, memmem, memrchr};
use serde_json::Value;

use super::canonical::{self, scan};
use super::record::Kind;

/// Bytes of a chunk, unless one line is longer.
const CHUNK: usize = 1 << 20;

/// Bytes of a line: many times what the filter hands to Envoy's log at once. A longer one is foreign.
const MOST_LINE: usize = 8 << 20;

/// Nesting of a line that is looked into: that of a record, in a log line.
const MOST_DEPTH: usize = 32;

/// A line of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Which of the reader's files, from 0.
    pub file: u32,
    /// The line, from 1.
    pub line: u64,
    /// The byte of the file where the line begins, from 0.
    pub offset: u64,
}

/// What a [`Reader`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Bytes.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Records.
    pub records: u64,
    /// Lines that are no record, and have none.
    pub foreign: u64,
    /// Lines that were a record once, by what is left of them.
    pub damaged: u64,
}

impl Seen {
    /// Adds what was seen elsewhere.
    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.lines += other.lines;
        self.records += other.records;
        self.foreign += other.foreign;
        self.damaged += other.damaged;
    }
}

/// What was found in a line.
#[derive(Debug)]
pub enum Found<'t> {
    /// A record, by its members as they are written.
    Record(Head<'t>),
    /// What was a record, or is one in a form that the filter does not write.
    Damaged(Damaged),
}

/// A record in its canonical form: its text, and the members of every kind as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'t> {
    /// The whole line without its end: what the next record's hash is of.
    pub text: &'t str,
    /// The version.
    pub v: &'t str,
    /// What it is about.
    pub kind: Kind,
    /// The stream, as far as it is a text.
    pub stream: &'t str,
    /// The place in the stream, as far as it is a number.
    pub seq: Option<u64>,
    /// The time.
    pub time: &'t str,
    /// The hash of the line before.
    pub prev: Option<&'t str>,
    /// The key of the signature.
    pub key_id: Option<&'t str>,
    /// The signature.
    pub signature: Option<&'t str>,
    /// The member `caller` as it is written, or nothing.
    pub caller: &'t str,
    /// Where the member `signature` with the comma before it stands in the text.
    signature_at: (usize, usize),
}

/// What is left of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// What is wrong with it.
    pub problem: String,
    /// Its stream, if that can be made out.
    pub stream: Option<String>,
    /// Its place in the stream, if that can be made out.
    pub seq: Option<u64>,
}

impl<'t> Head<'t> {
    /// What its signature is over: the line without the member `signature`.
    pub fn signed(&self) -> [&'t str; 2] {
        let (start, end) = self.signature_at;
        [self.text.get(..start).unwrap_or_default(), self.text.get(end..).unwrap_or_default()]
    }

    /// Reads the members that every record has; `None` if it is none.
    fn read(text: &'t str) -> Result<Option<Self>, canonical::Fault> {
        let (mut v, mut kind) = (None, None);
        let mut head = Self {
            text,
            v: "",
            kind: Kind::Decision,
            stream: "",
            seq: None,
            time: "",
            prev: None,
            key_id: None,
            signature: None,
            caller: "",
            signature_at: (0, 0),
        };
        let bare = |value: &'t str| value.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        scan(text, |member| match member.name {
            "v" => v = Some(member.value),
            "kind" => kind = bare(member.value).and_then(Kind::from_name),
            "stream" => head.stream = bare(member.value).unwrap_or_default(),
            "seq" => head.seq = member.value.parse().ok(),
            "time" => head.time = bare(member.value).unwrap_or_default(),
            "prev" => head.prev = bare(member.value),
            "key_id" => head.key_id = bare(member.value),
            "caller" => head.caller = member.value,
            "signature" => {
                head.signature = bare(member.value);
                // Members that every record has stand before it.
                head.signature_at = (member.start.saturating_sub(1), member.end);
            }
            _ => {}
        })?;
        Ok(v.zip(kind).map(|(v, kind)| Self { v, kind, ..head }))
    }
}

/// Part of a file: whole lines.
#[derive(Debug)]
pub struct Chunk {
    /// Where its first line stands.
    pub start: Place,
    bytes: Vec<u8>,
    /// Lines that were left out before it: too long to be looked at.
    skipped: u64,
}

impl Chunk {
    /// The chunk of these lines, which begin at `start`.
    pub fn new(start: Place, bytes: Vec<u8>) -> Self {
        Self { start, bytes, skipped: 0 }
    }

    /// Shows every record in it, and every line that was one.
    pub fn each(&self, mut take: impl FnMut(Place, Found<'_>)) -> Seen {
        let mut seen = Seen {
            bytes: self.bytes.len() as u64,
            lines: self.skipped,
            foreign: self.skipped,
            ..Seen::default()
        };
        let mut place = self.start;
        let mut rest = self.bytes.as_slice();
        while !rest.is_empty() {
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let line = rest.get(..end).unwrap_or_default();
            let (mut records, mut damaged) = (0, 0);
            find_in_line(line, &mut |found| {
                match found {
                    Found::Record(_) => records += 1,
                    Found::Damaged(_) => damaged += 1,
                }
                take(place, found);
            });
            seen.lines += 1;
            seen.records += records;
            seen.damaged += damaged;
            seen.foreign += u64::from(records + damaged == 0);
            rest = rest.get(end + 1..).unwrap_or_default();
            place.line += 1;
            place.offset += end as u64 + 1;
        }
        seen
    }
}

/// A line of a file: a record, a record behind a prefix of Envoy's, or a JSON object that has such lines
/// in a text.
fn find_in_line(line: &[u8], take: &mut dyn FnMut(Found<'_>)) {
    let Some(at) = memmem::find(line, b"{\"") else {
        // Between the brace and the first name something was changed.
        if resembles(line) {
            take(damaged(line, "is not JSON".to_owned()));
        }
        return;
    };
    let candidate = line.get(at..).unwrap_or_default().trim_ascii_end();
    let fault = match std::str::from_utf8(candidate) {
        Ok(text) => match Head::read(text) {
            Ok(Some(head)) => return take(Found::Record(head)),
            Ok(None) => None,
            Err(fault) => Some(fault),
        },
        Err(error) => Some(canonical::Fault { at: error.valid_up_to(), problem: "is not UTF-8" }),
    };
    match json::parse(candidate, MOST_DEPTH) {
        Ok(Value::Object(members))
            if !members.contains_key("v") && !members.contains_key("kind") =>
        {
            let before = |text: &&String| text.contains("{\"");
            let texts = members.values().filter_map(|value| match value {
                Value::String(text) => Some(text),
                _ => None,
            });
            for text in texts.filter(before) {
                for line in text.lines() {
                    find_in_text(line, take);
                }
            }
        }
        read => {
            if !resembles(candidate) {
                return;
            }
            let problem = match (read, fault) {
                (Err(error @ (JsonError::DuplicateMember { .. } | JsonError::TooDeep)), _) => {
                    error.to_string()
                }
                (Ok(_), Some(canonical::Fault { at, problem })) => {
                    format!("is not in its canonical form: {problem}, at byte {at} of the record")
                }
                (Err(_), Some(canonical::Fault { at, problem })) => {
                    format!("is not a record any more: {problem}, at byte {at} of the record")
                }
                (_, None) => "has no `v` or `kind` that this version knows".to_owned(),
            };
            take(damaged(candidate, problem));
        }
    }
}

/// A line in a text of a JSON object: there is no object around it any more.
fn find_in_text(line: &str, take: &mut dyn FnMut(Found<'_>)) {
    let candidate =
        line.find("{\"").and_then(|at| line.get(at..)).unwrap_or_default().trim_ascii_end();
    match Head::read(candidate) {
        Ok(Some(head)) => take(Found::Record(head)),
        Ok(None) | Err(_) if !resembles(line.as_bytes()) => {}
        Ok(None) => {
            let problem = "has no `v` or `kind` that this version knows".to_owned();
            take(damaged(line.as_bytes(), problem));
        }
        Err(canonical::Fault { at, problem }) => {
            let problem =
                format!("is not a record any more: {problem}, at byte {at} of the record");
            take(damaged(line.as_bytes(), problem));
        }
    }
}

/// Whether a line looks like what is left of a record: it has at least two of the members that every
/// record has, perhaps inside a text.
fn resembles(line: &[u8]) -> bool {
    let members = [&b"\"kind\":"[..], b"\"prev\":", b"\"seq\":", b"\"stream\":"];
    let escaped = [&b"\\\"kind\\\":"[..], b"\\\"prev\\\":", b"\\\"seq\\\":", b"\\\"stream\\\":"];
    let has = |name: &&&[u8]| memmem::find(line, name).is_some();
    members.iter().filter(has).count() >= 2 || escaped.iter().filter(has).count() >= 2
}

fn damaged(line: &[u8], problem: String) -> Found<'static> {
    let behind = |name: &[u8]| {
        let at = memmem::find(line, name)?;
        line.get(at + name.len()..)
    };
    let stream = behind(b"\"stream\":\"").and_then(|rest| {
        let end = memchr(b'"', rest).filter(|end| *end <= 64)?;
        std::str::from_utf8(rest.get(..end)?).ok().map(str::to_owned)
    });
    let seq = behind(b"\"seq\":").and_then(|rest| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()
    });
    Found::Damaged(Damaged { problem, stream, seq })
}

/// Files, read one after the other.
pub struct Reader {
    names: Vec<String>,
    /// Those that were not opened yet.
    sources: VecDeque<PathBuf>,
    open: Option<Source>,
    /// How many were opened.
    opened: u32,
}

/// A file that is being read.
struct Source {
    input: Box<dyn Read + Send>,
    place: Place,
    /// What stands behind the last whole line.
    carried: Vec<u8>,
    /// The line that is being read is too long.
    skipping: bool,
    /// Such lines.
    skipped: u64,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reader").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Reader {
    /// Reads these files; `-` is standard input.
    ///
    /// # Errors
    /// A file that is not there, before any is read.
    pub fn new(paths: &[PathBuf]) -> Result<Self, String> {
        for path in paths.iter().filter(|path| path.as_os_str() != "-") {
            if std::fs::metadata(path).map_err(|error| told(path, &error))?.is_dir() {
                return Err(format!("{}: is a folder", path.display()));
            }
        }
        let names = paths.iter().map(|path| path.display().to_string()).collect();
        Ok(Self { names, sources: paths.iter().cloned().collect(), open: None, opened: 0 })
    }

    /// The names of the files, by number.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The next lines; `None` after the last ones.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, String> {
        loop {
            if self.open.is_none() {
                let Some(path) = self.sources.pop_front() else { return Ok(None) };
                self.open = Some(Source::open(&path, self.opened)?);
                self.opened += 1;
            }
            let Some(source) = &mut self.open else { return Ok(None) };
            match source.next_chunk() {
                Ok(Some(chunk)) => return Ok(Some(chunk)),
                Ok(None) => self.open = None,
                Err(error) => {
                    let name = usize::try_from(source.place.file).ok();
                    let name = name.and_then(|number| self.names.get(number));
                    return Err(format!("{}: {error}", name.map_or("?", String::as_str)));
                }
            }
        }
    }

    /// Shows every record, and every line that was one, in the order of files and lines.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn each(&mut self, mut take: impl FnMut(Place, Found<'_>)) -> Result<Seen, String> {
        let mut seen = Seen::default();
        while let Some(chunk) = self.next_chunk()? {
            seen.add(chunk.each(&mut take));
        }
        Ok(seen)
    }
}

impl Source {
    fn open(path: &Path, file: u32) -> Result<Self, String> {
        let input: Box<dyn Read + Send> = if path.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            Box::new(File::open(path).map_err(|error| told(path, &error))?)
        };
        let place = Place { file, line: 1, offset: 0 };
        Ok(Self { input, place, carried: Vec::new(), skipping: false, skipped: 0 })
    }

    fn next_chunk(&mut self) -> std::io::Result<Option<Chunk>> {
        let mut bytes = std::mem::take(&mut self.carried);
        loop {
            let had = bytes.len();
            bytes.reserve(CHUNK);
            let read = self.input.by_ref().take(CHUNK as u64).read_to_end(&mut bytes)?;
            if read == 0 {
                if bytes.is_empty() && self.skipped == 0 && !self.skipping {
                    return Ok(None);
                }
                if self.skipping {
                    self.pass(had as u64, 1);
                    bytes.clear();
                    self.skipping = false;
                }
                return Ok(Some(self.chunk(bytes)));
            }
            let news = bytes.get(had..).unwrap_or_default();
            if self.skipping {
                let Some(end) = memchr(b'\n', news) else {
                    self.pass(read as u64, 0);
                    bytes.clear();
                    continue;
                };
                self.pass(end as u64 + 1, 1);
                bytes.drain(..end + 1);
                self.skipping = false;
                // What is left is looked at below, as if it had just been read.
                if let Some(end) = memrchr(b'\n', &bytes) {
                    self.carried = bytes.split_off(end + 1);
                    return Ok(Some(self.chunk(bytes)));
                }
                continue;
            }
            if let Some(end) = memrchr(b'\n', news) {
                self.carried = bytes.split_off(had + end + 1);
                return Ok(Some(self.chunk(bytes)));
            }
            if bytes.len() > MOST_LINE {
                self.pass(bytes.len() as u64, 0);
                self.skipped += 1;
                bytes.clear();
                self.skipping = true;
            }
        }
    }

    /// Goes on behind what is not looked at.
    fn pass(&mut self, bytes: u64, lines: u64) {
        self.place.offset += bytes;
        self.place.line += lines;
    }

    fn chunk(&mut self, bytes: Vec<u8>) -> Chunk {
        let skipped = std::mem::take(&mut self.skipped);
        let start = self.place;
        let lines = memchr_iter(b'\n', &bytes).count() as u64;
        self.pass(bytes.len() as u64, lines);
        Chunk { start, bytes, skipped }
    }
}

fn told(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"decision":"permit","kind":"decision","prev":"AAAA","seq":1,"stream":"00000000000000aa","time":"2026-11-22T08:00:00.000Z","v":1}"#;
    const BEGIN: &str = r#"{"kind":"begin","seq":0,"signature":"c2ln","stream":"00000000000000aa","time":"2026-11-22T08:00:00.000Z","v":1}"#;

    /// What is found in a file: texts of records, problems of what was one, and what was seen.
    fn find(bytes: &[u8]) -> (Vec<String>, Vec<(u64, Damaged)>, Seen) {
        let chunk = Chunk::new(Place { file: 0, line: 1, offset: 0 }, bytes.to_vec());
        let (mut records, mut faults) = (Vec::new(), Vec::new());
        let seen = chunk.each(|place, found| match found {
            Found::Record(head) => records.push(head.text.to_owned()),
            Found::Damaged(damaged) => faults.push((place.line, damaged)),
        });
        (records, faults, seen)
    }

    #[test]
    fn records_are_found_in_plain_files_and_in_logs_of_both_forms() {
        let prefix = "[2026-11-22 08:00:00.123][17][info][wasm] [source/extensions/common/wasm/context.cc:1137] wasm log airflow: ";
        let json_log = serde_json::json!({
            "level": "info", "message": format!("wasm log airflow: {BEGIN}\n{RECORD}"), "time": 7,
        });
        for (name, text, foreign) in [
            ("plain", format!("{BEGIN}\n{RECORD}\n"), 0),
            ("without a last line end", format!("{BEGIN}\n{RECORD}"), 0),
            ("CRLF", format!("{BEGIN}\r\n{RECORD}\r\n"), 0),
            ("log", format!("{prefix}{BEGIN}\n{RECORD}\n[x] initializing {{\"a\":1}}\n"), 1),
            ("json log", format!("{{\"message\":\"starting\"}}\n{json_log}\n\nplain\n"), 3),
        ] {
            let (records, faults, seen) = find(text.as_bytes());
            assert_eq!(records, [BEGIN, RECORD], "{name}");
            assert_eq!(faults, [], "{name}");
            assert_eq!((seen.records, seen.foreign, seen.damaged), (2, foreign, 0), "{name}");
        }
    }

    #[test]
    fn what_was_a_record_is_told_from_what_never_was_one() {
        for (text, problem) in [
            (
                RECORD.replace("\"kind\"", "\"kine\""),
                "has no `v` or `kind` that this version knows",
            ),
            (
                RECORD.replace("\"decision\",", "\"delusion\","),
                "has no `v` or `kind` that this version knows",
            ),
            (
                RECORD.replace("\"seq\":1", "\"seq\": 1"),
                "is not in its canonical form: expected a value, at byte 59 of the record",
            ),
            (RECORD.replace("\"seq\":1", "\"seq\":1,\"seq\":2"), "`seq`"),
            (
                RECORD.replace("\"v\":1}", "\"v\":1"),
                "is not a record any more: expected `,` or `}`, at byte ",
            ),
            (RECORD.replacen('{', "[", 1), "is not JSON"),
        ] {
            let (records, faults, _) = find(format!("foreign\n{text}\n").as_bytes());
            assert_eq!(records.len(), 0, "{text}");
            let [(2, damaged)] = faults.as_slice() else { panic!("{text}: {faults:?}") };
            assert!(damaged.problem.contains(problem), "{text}: {}", damaged.problem);
            assert_eq!(damaged.stream.as_deref(), Some("00000000000000aa"));
        }
        let mut bytes = RECORD.as_bytes().to_vec();
        bytes[14] = 0xff;
        assert_eq!(find(&bytes).1.len(), 1);
        let inside = serde_json::json!({"message": RECORD}).to_string();
        assert_eq!(find(inside.replace("\\\"v\\\"", "\\\"v").as_bytes()).1.len(), 1);
        assert_eq!(find(inside.replace("\\\"v\\\"", "\\v\\\"").as_bytes()).1.len(), 1);
    }

    #[test]
    fn what_a_signature_is_over_is_the_line_without_it() {
        let mut signed = String::new();
        Chunk::new(Place::default(), BEGIN.into()).each(|_, found| {
            let Found::Record(head) = found else { panic!("{found:?}") };
            assert_eq!(head.signature, Some("c2ln"));
            signed = head.signed().concat();
        });
        assert_eq!(signed, BEGIN.replace(r#","signature":"c2ln""#, ""));
    }

    #[test]
    fn places_hold_over_chunks_and_lines_that_are_too_long() {
        let folder =
            std::env::temp_dir().join(format!("airflow-envoy-reader-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let long = "y".repeat(3 * CHUNK);
        let endless = "x".repeat(MOST_LINE + 2 * CHUNK);
        let text = format!("{RECORD}\n{long}{RECORD}\n{endless}{RECORD}\n{RECORD}\n{RECORD}");
        let (one, two) = (folder.join("one"), folder.join("two"));
        std::fs::write(&one, &text).unwrap();
        std::fs::write(&two, &endless).unwrap();
        let mut reader = Reader::new(&[one, two]).unwrap();
        let mut places = Vec::new();
        let seen =
            reader.each(|place, _| places.push((place.file, place.line, place.offset))).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let size = RECORD.len() as u64;
        let fourth = 3 * size + 3 + long.len() as u64 + endless.len() as u64;
        assert_eq!(
            places,
            [(0, 1, 0), (0, 2, size + 1), (0, 4, fourth), (0, 5, fourth + size + 1)]
        );
        assert_eq!((seen.records, seen.foreign), (4, 2));
    }

    #[test]
    fn nothing_that_is_read_panics() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let seeds = [RECORD, BEGIN, "{\"message\":\"{\\\"v\\\":1,\\\"kind\\\":\\\"end\\\"}\"}"];
        for round in 0..20_000 {
            let mut bytes = seeds[round % seeds.len()].as_bytes().to_vec();
            for _ in 0..random() % 8 {
                let at = random() as usize % bytes.len();
                match random() % 4 {
                    0 => bytes[at] = random() as u8,
                    1 => bytes.truncate(at.max(1)),
                    2 => bytes.insert(at, b"{}[]\",:\\0-\n"[random() as usize % 11]),
                    _ => bytes.extend_from_within(at..),
                }
            }
            find(&bytes);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let _ = super::super::Record::parse(&text);
        }
        for text in ["{\"a\":[".repeat(200_000), "{\"v\":1,\"kind\":".repeat(100_000)] {
            find(text.as_bytes());
            assert!(super::super::Record::parse(&text).is_err());
        }
        let huge = RECORD.replace("\"seq\":1", &format!("\"seq\":{}", "9".repeat(100_000)));
        let (records, ..) = find(huge.as_bytes());
        assert_eq!(records.len(), 1, "canonical, but of no place");
    }
}
