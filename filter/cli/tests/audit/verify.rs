//! Verification of trails that were written by the core, whole and tampered with.

use std::path::{Path, PathBuf};

use airflow_envoy_cli::audit::Reader;
use airflow_envoy_cli::audit::link::Keys;
use airflow_envoy_cli::audit::verify::{Code, Fault, Options, Verified, Witness, verify};
use airflow_envoy_core::audit::{Loss, LossReason};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::Signer as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::trail::{Called, Stream, key, signer};

const SEED: [u8; 32] = [7; 32];
const OTHER_SEED: [u8; 32] = [8; 32];

fn keys() -> Keys {
    let mut keys = Keys::default();
    keys.add(json!({"keys": [key(SEED, "k1").1]}).to_string().as_bytes()).unwrap();
    keys
}

fn options() -> Options {
    Options { keys: keys(), ..Options::default() }
}

fn path(name: &str) -> PathBuf {
    let name = format!("verify-{}-{name}", std::process::id());
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Verifies files with these lines.
fn verify_files(name: &str, files: &[&[String]], options: &Options) -> Verified {
    let paths: Vec<PathBuf> =
        (0..files.len()).map(|number| path(&format!("{name}-{number}"))).collect();
    for (path, lines) in paths.iter().zip(files) {
        std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
            .unwrap();
    }
    let verified = verify(&mut Reader::new(&paths).unwrap(), options, |_| {}).unwrap();
    paths.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    verified
}

fn verify_lines(name: &str, lines: &[String], options: &Options) -> Verified {
    verify_files(name, &[lines], options)
}

/// Three streams that interleave, of which one died and was taken over from; then a fourth.
fn good() -> Vec<String> {
    let sign = || Some(signer(&key(SEED, "k1").0));
    let mut lines = Vec::new();
    let (mut one, begin) = Stream::begin(1, sign(), None);
    lines.push(begin);
    let (mut two, begin) = Stream::begin(2, sign(), None);
    lines.push(begin);
    for number in 0..45 {
        let read = Called { path: &format!("/v1/orders/{number}"), ..Called::READ };
        lines.push(one.call(&read));
        if number % 3 > 0 {
            lines.push(two.call(&Called { rule: None, code: Some("policy_no_match"), ..read }));
        }
        if number % 10 == 9 {
            lines.push(one.checkpoint());
            lines.push(two.checkpoint());
        }
    }
    // The second one dies at its checkpoint.
    lines.push(two.checkpoint());
    lines.push(one.end());
    let (mut three, begin) = Stream::begin(3, sign(), Some(&two.chain.last()));
    lines.push(begin);
    lines.extend((0..20).map(|_| three.call(&Called::READ)));
    lines.push(three.end());
    let (mut four, begin) = Stream::begin(4, sign(), Some(&three.chain.last()));
    lines.push(begin);
    lines.extend((0..10).map(|_| four.call(&Called::READ)));
    lines.push(four.end());
    lines
}

fn codes(verified: &Verified) -> Vec<Code> {
    verified.faults.iter().map(|fault| fault.code).collect()
}

#[test]
fn a_whole_trail_has_no_faults_however_its_files_are_given() {
    let lines = good();
    let verified = verify_lines("whole", &lines, &options());
    assert_eq!(verified.faults, []);
    assert!(verified.checked);
    assert_eq!(verified.streams.len(), 4);
    for stream in verified.streams.values() {
        assert_eq!(stream.vouched, [stream.seqs], "all is vouched for");
        assert_eq!((stream.records, stream.backwards), (stream.seqs.1 + 1, 0));
    }
    assert_eq!(verified.streams[&2].successor, Some(3));
    let (first, second) = lines.split_at(50);
    let verified = verify_files("rotated", &[second, first, second], &options());
    assert_eq!(verified.faults, []);
    assert_eq!(verified.duplicates, second.len() as u64);
    let prefix = "[2026-11-22 08:00:00.123][17][info][wasm] [context.cc:1137] wasm log airflow: ";
    let log: Vec<String> =
        lines.chunks(3).map(|lines| format!("{prefix}{}", lines.join("\n"))).collect();
    assert_eq!(verify_lines("log", &log, &options()).faults, []);
    let json_log: Vec<String> =
        log.iter().map(|text| json!({"level": "info", "message": text}).to_string()).collect();
    assert_eq!(verify_lines("json", &json_log, &options()).faults, []);
}

#[test]
fn without_keys_the_chain_is_checked_and_nothing_is_vouched_for() {
    let verified = verify_lines("keyless", &good(), &Options::default());
    assert_eq!(verified.faults, []);
    assert!(!verified.checked);
    assert!(verified.streams.values().all(|stream| stream.vouched.is_empty()));
}

#[test]
fn faults_say_what_was_done() {
    let lines = good();
    let of = |stream: u64, seq: u64| {
        lines.iter().position(|line| identity(line) == (stream, seq)).unwrap()
    };
    let edit = |index: usize, from: &str, to: &str| {
        let mut lines = lines.clone();
        assert!(lines[index].contains(from), "{}", lines[index]);
        lines[index] = lines[index].replacen(from, to, 1);
        lines
    };
    let without = |indices: &[usize]| {
        let kept = lines.iter().enumerate().filter(|(index, _)| !indices.contains(index));
        kept.map(|(_, line)| line.clone()).collect::<Vec<_>>()
    };
    let mut swapped = lines.clone();
    swapped.swap(of(1, 5), of(1, 20));
    let mut doubled = lines.clone();
    doubled.insert(30, lines[of(1, 5)].replace("ds_churn", "ds_other"));
    for (name, lines, expected) in [
        (
            "an edited record",
            edit(of(1, 15), "ds_churn", "ds_chart"),
            vec![(
                Code::Edited,
                15,
                15,
                "the line's hash is not the one that record 16 names; no signature vouches for records 12 to 14 any more",
            )],
        ),
        (
            "a record under another number",
            edit(of(1, 15), "\"seq\":15", "\"seq\":95"),
            vec![(Code::Edited, 15, 15, "says that it is record 95 of stream 0000000000000001")],
        ),
        (
            "a record of another stream",
            edit(of(1, 15), "\"stream\":\"0000000000000001\"", "\"stream\":\"0000000000000002\""),
            vec![(Code::Edited, 15, 15, "of stream 0000000000000002, but")],
        ),
        (
            "records that are gone",
            without(&[of(1, 15), of(1, 16)]),
            vec![(Code::Removed, 15, 16, "records 15 to 16 are missing between records 14 and 17")],
        ),
        (
            "a beginning that is gone",
            without(&[of(1, 0)]),
            vec![(Code::Beginning, 0, 0, "the beginning is missing: record 0")],
        ),
        (
            "an end that is gone",
            without(&[of(1, 50)]),
            vec![(Code::Truncated, 50, 50, "after record 49 the stream neither ends")],
        ),
        (
            "what a successor names is gone",
            without(&[of(2, 35)]),
            vec![(
                Code::Truncated,
                35,
                35,
                "took over after record 35, and the last one here is 34",
            )],
        ),
        (
            "moved lines",
            swapped,
            vec![
                (Code::Reordered, 20, 20, "another place"),
                (Code::Reordered, 5, 5, "another place"),
            ],
        ),
        (
            "a second record of one number",
            doubled,
            vec![(
                Code::Inserted,
                5,
                5,
                "there is another record 5, and that one is what the next record names",
            )],
        ),
        (
            "a line that is no record",
            edit(of(1, 15), "\"kind\":", "\"kind\";"),
            vec![(Code::Damaged, 15, 15, "damaged: the line is not a record any more")],
        ),
        (
            "another version",
            edit(of(1, 15), "\"v\":1", "\"v\":2"),
            vec![(Code::Removed, 15, 15, "missing"), (Code::Version, 0, 0, "version `2`")],
        ),
        (
            "a signature that is changed",
            edit(of(1, 11), "\"signature\":\"", "\"signature\":\"AAAA"),
            vec![(Code::Edited, 11, 11, "hash")],
        ),
    ] {
        let verified = verify_lines("said", &lines, &options());
        let mut faults: Vec<&Fault> = verified.faults.iter().collect();
        faults.sort_by_key(|fault| (fault.code, fault.place));
        let mut expected = expected;
        expected.sort_by_key(|(code, from, ..)| (*code, std::cmp::Reverse(*from)));
        assert_eq!(faults.len(), expected.len(), "{name}: {faults:#?}");
        for (fault, (code, from, to, told)) in faults.into_iter().zip(expected) {
            assert_eq!(fault.code, code, "{name}: {fault:?}");
            if code != Code::Version {
                assert_eq!(fault.seqs, Some((from, to)), "{name}: {fault:?}");
            }
            assert!(fault.told.contains(told), "{name}: {}", fault.told);
        }
    }
}

#[test]
fn options_excuse_what_they_say_and_nothing_else() {
    let lines = good();
    let (older, newer) = lines.split_at(60);
    let cut = verify_lines("older", older, &options());
    assert_eq!(codes(&cut), [Code::Truncated, Code::Truncated]);
    assert_eq!(codes(&verify_lines("open", older, &Options { open: true, ..options() })), []);
    let rest = verify_lines("newer", newer, &options());
    assert_eq!(codes(&rest), [Code::Beginning, Code::Beginning]);
    assert_eq!(codes(&verify_lines("tail", newer, &Options { rotated: true, ..options() })), []);
    let strangers = || {
        let mut keys = Keys::default();
        keys.add(key(OTHER_SEED, "k2").1.to_string().as_bytes()).unwrap();
        Options { keys, ..Options::default() }
    };
    let verified = verify_lines("strangers", &lines, &strangers());
    assert_eq!(codes(&verified), [Code::KeyUnknown; 4]);
    let (mut unsigned, begin) = Stream::begin(9, None, None);
    let lines = [begin, unsigned.call(&Called::READ), unsigned.end()];
    assert_eq!(codes(&verify_lines("unsigned", &lines, &options())), [Code::Unsigned]);
    assert_eq!(codes(&verify_lines("unsigned", &lines, &Options::default())), []);
}

#[test]
fn what_a_stream_says_was_lost_is_no_fault() {
    let (mut stream, begin) = Stream::begin(9, Some(signer(&key(SEED, "k1").0)), None);
    let mut lines = vec![begin];
    lines.extend((0..9).map(|_| stream.call(&Called::READ)));
    let loss = Loss { records: 3, from_seq: 4, to_seq: 6, reason: LossReason::Collector };
    lines.push(stream.chain.loss(stream.now, &loss).as_str().to_owned());
    lines.push(stream.end());
    let lost: Vec<String> = lines.iter().take(4).chain(lines.iter().skip(7)).cloned().collect();
    let verified = verify_lines("loss", &lost, &options());
    assert_eq!(verified.faults, []);
    let stream = &verified.streams[&9];
    assert_eq!(stream.lost, 3);
    assert_eq!(stream.vouched, [(0, 0), (7, 11)], "nothing vouches over a gap but a signature");
    let more: Vec<String> = lines.iter().take(3).chain(lines.iter().skip(7)).cloned().collect();
    let verified = verify_lines("loss", &more, &options());
    assert_eq!(verified.faults.iter().map(|fault| fault.seqs).collect::<Vec<_>>(), [Some((3, 3))]);
}

#[test]
fn what_was_removed_is_not_explained_by_a_loss_that_nobody_vouches_for() {
    let (mut stream, begin) = Stream::begin(9, Some(signer(&key(SEED, "k1").0)), None);
    let mut lines = vec![begin];
    lines.extend((0..9).map(|_| stream.call(&Called::READ)));
    lines.push(stream.end());
    // In the place of record 3, by somebody without the key: records 4 to 8 were lost.
    let forged = |seq: u64, from: u64, to: u64, before: &str| {
        let prev = URL_SAFE_NO_PAD.encode(Sha256::digest(before.as_bytes()));
        json!({
            "from_seq": from, "kind": "loss", "prev": prev, "reason": "collector", "records": to - from + 1,
            "seq": seq, "stream": "0000000000000009", "time": "2026-11-22T08:00:00.000Z", "to_seq": to, "v": 1,
        })
        .to_string()
    };
    let removed = |verified: &Verified| -> Vec<_> {
        let faults = verified.faults.iter().filter(|fault| fault.code == Code::Removed);
        faults.filter_map(|fault| fault.seqs).collect()
    };
    let with = |loss: String, from: usize| -> Vec<String> {
        lines[..3].iter().cloned().chain([loss]).chain(lines[from..].iter().cloned()).collect()
    };
    let before = with(forged(3, 4, 8, &lines[2]), 9);
    assert_eq!(removed(&verify_lines("before", &before, &options())), [(4, 8)]);
    assert_eq!(
        removed(&verify_lines("before", &before, &Options::default())),
        [(4, 8)],
        "what is lost is lost before that is said"
    );
    // Two of them, so that each comes behind what it explains but the last.
    let mut both = with(forged(5, 3, 4, "what is gone"), 9);
    both.insert(4, forged(6, 7, 8, &both[3]));
    assert_eq!(removed(&verify_lines("both", &both, &options())), [(3, 4), (7, 8)]);
}

#[test]
fn no_more_is_missing_than_was_lost() {
    // Two were lost, at both ends of what the record names; somebody removed those between them.
    let (mut stream, begin) = Stream::begin(9, Some(signer(&key(SEED, "k1").0)), None);
    let mut lines = vec![begin];
    lines.extend((0..9).map(|_| stream.call(&Called::READ)));
    let loss = Loss { records: 2, from_seq: 3, to_seq: 6, reason: LossReason::Memory };
    lines.push(stream.chain.loss(stream.now, &loss).as_str().to_owned());
    lines.push(stream.end());
    let without = |gone: &[usize]| -> Vec<_> {
        let kept = lines.iter().enumerate().filter(|(at, _)| !gone.contains(at));
        let lines: Vec<String> = kept.map(|(_, line)| line.clone()).collect();
        let verified = verify_lines("between", &lines, &options());
        verified.faults.iter().map(|fault| (fault.code, fault.seqs)).collect()
    };
    assert_eq!(without(&[3, 6]), []);
    assert_eq!(without(&[3, 4, 5, 6]), [(Code::Removed, Some((3, 6)))]);
    assert_eq!(without(&[3, 4, 6]), [(Code::Removed, Some((3, 6)))]);
}

#[test]
fn a_witness_finds_a_tail_that_is_gone_and_a_chain_that_was_made_anew() {
    let lines = good();
    let open = || Options { open: true, ..options() };
    let verified = verify_lines("witness", &lines[..60], &open());
    let witness = Witness::default().after(&verified);
    let witness = Witness::read(witness.document().to_string().as_bytes()).unwrap();
    let seen = |lines: &[String]| {
        let options = Options { witness: Some(witness.clone()), ..open() };
        codes(&verify_lines("witness", lines, &options))
    };
    assert_eq!(seen(&lines), []);
    assert_eq!(seen(&lines[..59]), [Code::Witness]);
    assert_eq!(seen(&lines[..40]), [Code::Witness; 2]);
    let (mut anew, begin) = Stream::begin(1, Some(signer(&key(SEED, "k1").0)), None);
    let mut forged = vec![begin];
    forged.extend((0..50).map(|_| anew.call(&Called::READ)));
    forged.extend(lines.iter().filter(|line| !line.contains("\"0000000000000001\"")).cloned());
    assert_eq!(seen(&forged), [Code::Witness], "who has the key can forge, but not unsay");
    assert!(Witness::read(b"{\"streams\":{\"x\":{}}}").is_err());
}

/// Random numbers that a seed repeats (xorshift64).
struct Random(u64);

impl Random {
    /// From `AIRFLOW_ENVOY_SEED` or the clock; says which.
    fn new() -> Self {
        let given = std::env::var("AIRFLOW_ENVOY_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = given.unwrap_or(clock).max(1);
        println!("AIRFLOW_ENVOY_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }
}

/// Writes a stream's records anew from `from` on, with another key that goes by the same name.
fn forge(lines: &mut [String], stream: &str, from: usize, resign: bool) {
    let key = ed25519_dalek::SigningKey::from_bytes(&OTHER_SEED);
    let mut last: Option<String> = None;
    for (index, line) in lines.iter_mut().enumerate() {
        if !line.contains(&format!("\"stream\":\"{stream}\"")) {
            continue;
        }
        if index >= from {
            let mut record: Value = serde_json::from_str(line).unwrap();
            if let Some(last) = &last {
                record["prev"] = last.as_str().into();
            }
            if index == from {
                record["time"] = "2026-11-22T07:59:59.999Z".into();
            }
            if let Some(members) = record.as_object_mut()
                && members.remove("signature").is_some()
                && resign
            {
                let signed = key.sign(record.to_string().as_bytes());
                record["signature"] = URL_SAFE_NO_PAD.encode(signed.to_bytes()).into();
            }
            *line = record.to_string();
        }
        last = Some(URL_SAFE_NO_PAD.encode(Sha256::digest(line.as_bytes())));
    }
}

/// Which stream and record a line is.
fn identity(line: &str) -> (u64, u64) {
    let record: Value = serde_json::from_str(line).unwrap();
    let stream = record["stream"].as_str().unwrap();
    (u64::from_str_radix(stream, 16).unwrap(), record["seq"].as_u64().unwrap())
}

#[test]
fn every_tampering_is_found_and_nothing_else_is_reported() {
    let whole = good();
    let mut random = Random::new();
    let mut done = [0; 9];
    for round in 0..1_000 {
        let mut lines = whole.clone();
        let kind = random.below(9);
        let at = random.below(lines.len());
        let (stream, seq) = identity(&lines[at]);
        // Which records and lines (from 1) may be named.
        let mut records = vec![(stream, seq, seq)];
        let mut places = vec![at as u64 + 1];
        match kind {
            0 => {
                let mut bytes = lines[at].clone().into_bytes();
                let index = random.below(bytes.len());
                let before = bytes[index];
                while bytes[index] == before {
                    bytes[index] = b' ' + random.below(95) as u8;
                }
                lines[at] = String::from_utf8(bytes).unwrap();
            }
            1 => {
                lines.remove(at);
                places = vec![];
            }
            2 => {
                let mine = |line: &String| identity(line).0 == stream;
                let others: Vec<usize> =
                    (0..lines.len()).filter(|other| *other != at && mine(&lines[*other])).collect();
                let other = others[random.below(others.len())];
                let with = identity(&lines[other]).1;
                lines.swap(at, other);
                records.push((stream, with, with));
                // Of three that stand in reverse order nobody can say which one stayed.
                if seq.abs_diff(with) == 2 {
                    records.push((stream, seq.min(with), seq.max(with)));
                }
                places.push(other as u64 + 1);
            }
            3 => {
                // Whole lines and a part of one. Of a trail that is all gone nothing is left to tell.
                let at = at.max(1);
                places = vec![at as u64 + 1];
                // A whole stream that no other one names leaves nothing either: what a witness is for.
                if identity(&lines[at]) == (4, 0) {
                    continue;
                }
                let gone = lines.split_off(at);
                let mut tails: Vec<(u64, u64)> = gone.iter().map(|line| identity(line)).collect();
                tails.sort_unstable();
                tails.dedup_by_key(|(stream, _)| *stream);
                records = tails.iter().map(|(stream, seq)| (*stream, *seq, u64::MAX)).collect();
                // Who is named by a stream that goes with it was taken over from by nobody.
                records.push((2, 36, 36));
                lines.push(gone[0][..random.below(gone[0].len())].to_owned());
            }
            4 => {
                let (mut alien, begin) =
                    Stream::begin(random.next(), Some(signer(&key(OTHER_SEED, "k1").0)), None);
                let inserted = if random.below(2) == 0 { begin } else { alien.call(&Called::READ) };
                records = vec![(identity(&inserted).0, 0, u64::MAX)];
                lines.insert(at, inserted);
            }
            5 => {
                let changed = lines[at].replacen("2026", "2025", 1);
                lines.insert(random.below(lines.len()), changed);
                places = (1..=lines.len() as u64)
                    .filter(|line| identity(&lines[*line as usize - 1]) == (stream, seq))
                    .collect();
            }
            6 => {
                let from = random.below(lines.len());
                if from == at {
                    continue;
                }
                let mut record: Value = serde_json::from_str(&lines[from]).unwrap();
                record["stream"] = format!("{stream:016x}").into();
                record["seq"] = seq.into();
                lines[at] = record.to_string();
            }
            7 | 8 => {
                forge(&mut lines, &format!("{stream:016x}"), at, kind == 7);
                records = vec![(stream, seq, u64::MAX)];
                places = vec![];
                // Its successor names what is not there any more.
                records.extend([(3, 0, 0), (4, 0, 0)]);
            }
            _ => unreachable!(),
        }
        // With the begin of the third stream goes who took over from the second.
        if (stream, seq) == (3, 0) {
            records.push((2, 36, 36));
        }
        let verified = verify_lines("tampered", &lines, &options());
        let told = |fault: &Fault| {
            let place = fault.place.is_some_and(|place| places.contains(&place.line));
            let record = |&(stream, from, to): &(u64, u64, u64)| {
                let touches = |(first, last): (u64, u64)| first <= to && from <= last;
                fault.stream == Some(stream) && fault.seqs.is_none_or(touches)
            };
            place || records.iter().any(record)
        };
        let changed = lines.get(at).map_or("(gone)", String::as_str);
        assert!(
            !verified.faults.is_empty(),
            "round {round}, kind {kind}, record {seq} of {stream}: nothing was found\n{changed}"
        );
        let beyond: Vec<&Fault> = verified.faults.iter().filter(|fault| !told(fault)).collect();
        assert!(
            beyond.is_empty(),
            "round {round}, kind {kind}, record {seq} of {stream}:\n{beyond:#?}\n{:#?}\n{changed}",
            verified.faults
        );
        done[kind] += 1;
    }
    assert!(done.iter().all(|rounds| *rounds > 50), "{done:?}");
}

#[test]
fn any_amount_of_damage_is_survived_and_found() {
    let whole = good();
    let mut random = Random::new();
    let numbers =
        ["0", "1", "18446744073709551615", "18446744073709551614", "99999999999999999999"];
    let (mut lossy, begin) = Stream::begin(6, None, None);
    let loss = |from_seq, to_seq| Loss { records: 1, from_seq, to_seq, reason: LossReason::Memory };
    let mut losses = vec![begin];
    for (from, to) in [(0, u64::MAX), (u64::MAX, u64::MAX), (9, 3), (5, 7), (6, 9)] {
        losses.push(lossy.chain.loss(lossy.now, &loss(from, to)).as_str().to_owned());
    }
    for round in 0..60 {
        let mut lines: Vec<Vec<u8>> =
            whole.iter().chain(&losses).map(|line| line.clone().into_bytes()).collect();
        for _ in 0..=random.below(40) {
            let at = random.below(lines.len());
            match random.below(5) {
                0 => {
                    let line = &mut lines[at];
                    let index = random.below(line.len());
                    line[index] = random.below(256) as u8;
                }
                1 => {
                    let index = random.below(lines[at].len());
                    lines[at].truncate(index + 1);
                }
                2 => {
                    let line = lines[at].clone();
                    lines.insert(random.below(lines.len()), line);
                }
                3 => {
                    lines.remove(at);
                }
                _ => {
                    let text = String::from_utf8_lossy(&lines[at]).into_owned();
                    let Some((before, behind)) = text.split_once("\"seq\":") else { continue };
                    let behind = behind.trim_start_matches(|one: char| one.is_ascii_digit());
                    let number = numbers[random.below(numbers.len())];
                    lines[at] = format!("{before}\"seq\":{number}{behind}").into_bytes();
                }
            }
        }
        let path = path("damaged");
        std::fs::write(&path, lines.join(&b'\n')).unwrap();
        for options in [options(), Options { open: true, rotated: true, ..Options::default() }] {
            let mut reader = Reader::new(std::slice::from_ref(&path)).unwrap();
            let verified = verify(&mut reader, &options, |_| {}).unwrap();
            let witness = Witness(
                verified.streams.keys().map(|stream| (*stream, (u64::MAX, [0; 32]))).collect(),
            );
            let options = Options { witness: Some(witness), ..options };
            let mut reader = Reader::new(std::slice::from_ref(&path)).unwrap();
            let verified = verify(&mut reader, &options, |_| {}).unwrap();
            assert!(!verified.faults.is_empty(), "round {round}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
