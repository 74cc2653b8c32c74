//! Lines that vouch for each other: each has the digest of the one before it, some are signed.

use std::fmt;
use std::rc::Rc;

use super::VERSION;
use super::key::Signer;
use super::record::{Decided, Decision};
use super::text::{Second, Text};
use crate::digest::Begun;
use crate::hexadecimal;
use crate::jose::base64url;
use crate::time::UnixTime;

/// The records of one worker, from `begin` to `end`.
#[derive(Debug)]
pub struct Chain {
    stream: Rc<str>,
    /// Number of the next record.
    next: u64,
    /// Digest of the last line, base64url.
    last: String,
    signer: Option<Signer>,
    /// What the next line is written to, empty in between.
    sheet: Text,
    /// The second of the last decision's record.
    second: Second,
}

/// A record: the canonical JSON without the line's end.
#[derive(Clone, PartialEq, Eq)]
pub struct Line {
    stream: Rc<str>,
    seq: u64,
    json: Box<str>,
}

/// What the first record of a stream says.
#[derive(Debug, Clone, Copy)]
pub struct Begin<'a> {
    /// The time.
    pub time: UnixTime,
    /// The worker's random number, which is the stream's name.
    pub stream: u64,
    /// A random number that the workers of one Envoy process share.
    pub process: u64,
    /// The filter's version.
    pub version: &'a str,
    /// The commit that it was built from.
    pub commit: &'a str,
    /// `enforce` or `shadow`.
    pub mode: &'a str,
    /// Of how many permits one is recorded, if not each.
    pub sample: Option<u64>,
    /// The stream that this one takes over from.
    pub predecessor: Option<&'a Predecessor>,
}

/// The last record that is known of a stream that ended or died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predecessor {
    /// The stream's name: 16 hexadecimal digits.
    pub stream: String,
    /// The record's number.
    pub seq: u64,
    /// SHA-256 of its line, base64url.
    pub hash: String,
}

/// Decisions since the stream's begin, recorded or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests permitted.
    pub permits: u64,
    /// Requests refused, also those that went on because the filter only watches.
    pub rejects: u64,
    /// Requests whose caller left before they were decided.
    pub abandoned: u64,
    /// Permits without a record of their own.
    pub sampled_out: u64,
    /// Records that reached nobody.
    pub lost: u64,
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The worker, or the filter in it, is taken down.
    Shutdown,
    /// The filter has a new configuration.
    Reconfigured,
}

/// Records that were written and reached nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub records: u64,
    /// The number of the first.
    pub from_seq: u64,
    /// The number of the last.
    pub to_seq: u64,
    /// Who did not take them.
    pub reason: LossReason,
}

/// Who did not take a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// The collector, and nobody else was to have it.
    Collector,
    /// Envoy's log, whose level hides everything.
    Log,
    /// There was no room to keep it.
    Memory,
}

impl EndReason {
    /// Its name in a record.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Reconfigured => "reconfigured",
        }
    }
}

impl LossReason {
    /// Its name in a record.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Collector => "collector",
            Self::Log => "log",
            Self::Memory => "memory",
        }
    }
}

impl Line {
    /// The stream that it belongs to: 16 hexadecimal digits.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// Its number in the stream.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The record, without the line's end.
    pub fn as_str(&self) -> &str {
        &self.json
    }

    /// The record as bytes, without the line's end.
    pub fn as_bytes(&self) -> &[u8] {
        self.json.as_bytes()
    }

    /// Bytes of the record, without the line's end.
    pub fn len(&self) -> usize {
        self.json.len()
    }

    /// Never: a record is an object.
    pub fn is_empty(&self) -> bool {
        self.json.is_empty()
    }
}

/// A line of any text, for tests of what carries lines.
#[cfg(test)]
impl Line {
    pub(super) fn of(seq: u64, json: String) -> Self {
        Self { stream: "0123456789abcdef".into(), seq, json: json.into() }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.json)
    }
}

/// Bytes of memory to write lines to that are kept for the next one.
const MOST_SHEET: usize = 8 * 1024;

/// A further member's name in a record, with what stands around it.
macro_rules! member {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
    ($name:literal, $value:literal) => {
        concat!(",\"", $name, "\":", $value)
    };
}

impl Chain {
    /// The first record of a stream, and what writes the next ones.
    pub fn begin(begin: &Begin<'_>, signer: Option<Signer>) -> (Self, Line) {
        let mut chain = Self {
            stream: hexadecimal::of_number(begin.stream).into(),
            next: 0,
            last: String::new(),
            signer,
            sheet: Text::with_capacity(1024),
            second: Second::default(),
        };
        let mut text = chain.text();
        text.text("", "commit", begin.commit);
        chain.key_id(&mut text);
        text.plain("kind", "begin");
        text.plain("mode", begin.mode);
        if let Some(predecessor) = begin.predecessor {
            text.name("predecessor");
            text.open('{');
            text.plain("hash", &predecessor.hash);
            text.number("seq", predecessor.seq);
            text.plain("stream", &predecessor.stream);
            text.close('}');
        }
        text.plain("process", &hexadecimal::of_number(begin.process));
        if let Some(sample) = begin.sample {
            text.number("sample", sample);
        }
        text.number("seq", chain.next);
        let mut rest = Text::default();
        rest.plain("stream", &chain.stream);
        rest.time("time", begin.time);
        rest.number("v", VERSION);
        rest.text("", "version", begin.version);
        rest.close('}');
        let line = chain.sign(text, &rest);
        (chain, line)
    }

    /// The record of a decision.
    pub fn decision(&mut self, decided: &Decided<'_>) -> Line {
        let mut text = std::mem::take(&mut self.sheet);
        let mut begun = match decided.caller {
            Some(caller) => {
                let begun = caller.begin(&mut text);
                text.literal(",");
                begun
            }
            None => {
                text.literal("{");
                Begun::default()
            }
        };
        // Its members in sorted order, pieced together from as few parts as there can be.
        if let Some(code) = decided.code {
            text.literal("\"code\":\"");
            text.json.push_str(code);
            text.literal("\",");
        }
        text.literal("\"decision\":\"");
        text.json.push_str(decided.decision.name());
        text.literal(concat!("\"", member!("decision_id", "\"")));
        // Of a decision by one worker the first half of its id is the worker's number.
        let (half, other) =
            decided.decision_id.split_at_checked(16).unwrap_or((decided.decision_id, ""));
        text.json.push_str(half);
        if let (Some(caller), None, Decision::Permit) =
            (decided.caller, decided.code, decided.decision)
        {
            begun = caller.permitted(&text.json, half);
        }
        text.json.push_str(other);
        text.literal("\"");
        let optional =
            |text: &mut Text, member: &'static str, pointer: &str, value: Option<&str>| {
                if let Some(value) = value {
                    text.literal(member);
                    if text.string(value) {
                        text.cut.push(pointer.to_owned());
                    }
                }
            };
        optional(&mut text, member!("destination"), "/destination", decided.destination);
        optional(&mut text, member!("detail"), "/detail", decided.detail);
        match (decided.decided_us, decided.total_us) {
            (None, None) => {}
            (None, Some(total)) => {
                text.literal(member!("duration_us", "{\"total\":"));
                text.whole(total);
                text.literal("}");
            }
            (Some(decided), total) => {
                text.literal(member!("duration_us", "{\"decided\":"));
                text.whole(decided);
                if let Some(total) = total {
                    text.literal(member!("total"));
                    text.whole(total);
                }
                text.literal("}");
            }
        }
        optional(&mut text, member!("grant"), "/grant", decided.grant);
        text.literal(member!("kind", "\"decision\""));
        if decided.shadow_mode {
            text.literal(member!("mode", "\"shadow\""));
        }
        optional(&mut text, member!("nearest"), "/nearest", decided.nearest);
        if let Some(policies) = decided.policies {
            text.literal(member!("policies"));
            policies.write(&mut text);
        }
        text.literal(member!("prev", "\""));
        text.json.push_str(&self.last);
        text.literal("\"");
        if let Some(request) = decided.request {
            text.literal(member!("request"));
            request.write(&mut text);
        }
        match (decided.flags, decided.status) {
            (0, None) => {}
            (0, Some(status)) => {
                text.literal(member!("response", "{\"status\":"));
                text.whole(status.into());
                text.literal("}");
            }
            (flags, status) => {
                text.literal(member!("response", "{\"flags\":"));
                text.whole(flags);
                if let Some(status) = status {
                    text.literal(member!("status"));
                    text.whole(status.into());
                }
                text.literal("}");
            }
        }
        optional(&mut text, member!("rule"), "/rule", decided.rule);
        if let Some(sampled) = decided.sampled {
            text.literal(member!("sampled"));
            text.whole(sampled);
        }
        text.literal(member!("seq"));
        text.whole(self.next);
        if !decided.shadow.is_empty() {
            text.texts("", "shadow", decided.shadow.iter().map(String::as_str));
        }
        text.literal(member!("stream", "\""));
        text.json.push_str(&self.stream);
        text.literal(concat!("\"", member!("time", "\"")));
        text.moment(decided.time, &mut self.second);
        text.literal("\"");
        if !text.cut.is_empty() {
            let cut = std::mem::take(&mut text.cut);
            text.texts("", "truncated", cut.iter().map(String::as_str));
        }
        text.number("v", VERSION);
        text.literal("}");
        self.link_from(text, begun)
    }

    /// A signed record in between. It vouches for everything before it.
    pub fn checkpoint(&mut self, time: UnixTime, counts: &Counts) -> Line {
        self.signed("checkpoint", None, time, counts)
    }

    /// The last record of the stream.
    pub fn end(&mut self, time: UnixTime, counts: &Counts, reason: EndReason) -> Line {
        self.signed("end", Some(reason), time, counts)
    }

    /// Says which records were written and reached nobody.
    pub fn loss(&mut self, time: UnixTime, loss: &Loss) -> Line {
        let mut text = self.text();
        text.number("from_seq", loss.from_seq);
        text.plain("kind", "loss");
        text.plain("prev", &self.last);
        text.plain("reason", loss.reason.name());
        text.number("records", loss.records);
        text.number("seq", self.next);
        text.plain("stream", &self.stream);
        text.time("time", time);
        text.number("to_seq", loss.to_seq);
        text.number("v", VERSION);
        text.close('}');
        self.link(text)
    }

    /// The stream's name: 16 hexadecimal digits.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The last record: what a successor names.
    pub fn last(&self) -> Predecessor {
        Predecessor {
            stream: self.stream.to_string(),
            seq: self.next.saturating_sub(1),
            hash: self.last.clone(),
        }
    }

    fn signed(
        &mut self,
        kind: &str,
        reason: Option<EndReason>,
        time: UnixTime,
        counts: &Counts,
    ) -> Line {
        let mut text = self.text();
        text.name("counts");
        text.open('{');
        text.number("abandoned", counts.abandoned);
        text.number("lost", counts.lost);
        text.number("permits", counts.permits);
        text.number("rejects", counts.rejects);
        text.number("sampled_out", counts.sampled_out);
        text.close('}');
        self.key_id(&mut text);
        text.plain("kind", kind);
        text.plain("prev", &self.last);
        if let Some(reason) = reason {
            text.plain("reason", reason.name());
        }
        text.number("seq", self.next);
        let mut rest = Text::default();
        rest.plain("stream", &self.stream);
        rest.time("time", time);
        rest.number("v", VERSION);
        rest.close('}');
        self.sign(text, &rest)
    }

    fn text(&mut self) -> Text {
        let mut text = std::mem::take(&mut self.sheet);
        text.open('{');
        text
    }

    fn key_id(&self, text: &mut Text) {
        if let Some(signer) = &self.signer {
            text.text("", "key_id", signer.key_id());
        }
    }

    /// Puts the signature where it belongs: after `text` and before `rest`.
    fn sign(&mut self, mut text: Text, rest: &Text) -> Line {
        if let Some(signer) = &self.signer {
            let message = [&text.json, ",", &rest.json].concat();
            let signature = signer.sign(message.as_bytes());
            text.plain("signature", &signature);
        }
        text.json.push(',');
        text.json.push_str(&rest.json);
        self.link(text)
    }

    /// Makes it the last line of the stream.
    fn link(&mut self, text: Text) -> Line {
        self.link_from(text, Begun::default())
    }

    /// As [`Self::link`], of a line whose digest is known in part.
    fn link_from(&mut self, mut text: Text, begun: Begun) -> Line {
        self.last.clear();
        base64url::encode_onto(&begun.finish(text.json.as_bytes()), &mut self.last);
        let json = text.json.as_str().into();
        let line = Line { stream: Rc::clone(&self.stream), seq: self.next, json };
        self.next = self.next.saturating_add(1);
        if text.json.capacity() <= MOST_SHEET {
            text.json.clear();
            text.cut.clear();
            self.sheet = text;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ed25519_dalek::Signature;
    use serde_json::{Value, json};
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::audit::key::tests::{jwk, public};
    use crate::audit::{CallerParts, Decision, Fragment, IdentityParts, RequestParts, TokenParts};
    use crate::facts::Fact;

    const TIME: UnixTime = UnixTime::from_millis(1_795_262_400_123);

    fn signer() -> Signer {
        Signer::from_jwk(jwk(1).to_string().as_bytes()).unwrap()
    }

    const BEGIN: Begin<'static> = Begin {
        time: TIME,
        stream: 0xab,
        process: 0xcd,
        version: "0.1.0",
        commit: "unknown",
        mode: "enforce",
        sample: None,
        predecessor: None,
    };

    fn decided(decision: Decision) -> Decided<'static> {
        Decided {
            time: TIME,
            decision,
            decision_id: "00000000000000ab0000000000000001",
            shadow_mode: false,
            code: None,
            detail: None,
            nearest: None,
            rule: None,
            grant: None,
            destination: None,
            shadow: &[],
            policies: None,
            caller: None,
            request: None,
            status: None,
            flags: 0,
            decided_us: None,
            total_us: None,
            sampled: None,
        }
    }

    /// RFC 8785 by other means: what `serde_json` reads, its members in a sorted map, written again.
    fn canonical(value: &Value) -> String {
        match value {
            Value::Object(members) => {
                let sorted: BTreeMap<Vec<u16>, (&String, &Value)> = members
                    .iter()
                    .map(|(name, value)| (name.encode_utf16().collect(), (name, value)))
                    .collect();
                let members: Vec<_> = sorted
                    .values()
                    .map(|(name, value)| {
                        format!("{}:{}", serde_json::to_string(name).unwrap(), canonical(value))
                    })
                    .collect();
                format!("{{{}}}", members.join(","))
            }
            Value::Array(elements) => {
                let elements: Vec<_> = elements.iter().map(canonical).collect();
                format!("[{}]", elements.join(","))
            }
            other => other.to_string(),
        }
    }

    /// Reads a line, which must be in its canonical form.
    fn read(line: &Line) -> Value {
        let value: Value = serde_json::from_str(line.as_str()).unwrap();
        assert_eq!(canonical(&value), line.as_str());
        assert_eq!(value["seq"], line.seq());
        assert_eq!(value["stream"], line.stream());
        value
    }

    fn digest(line: &Line) -> String {
        base64url::encode(&Sha256::digest(line.as_str()))
    }

    fn is_signed(line: &Line, seed: u8) -> bool {
        let mut value = read(line);
        let signature = value.as_object_mut().unwrap().remove("signature").unwrap();
        let signature = base64url::decode(signature.as_str().unwrap().as_bytes()).unwrap();
        let signature = Signature::from_slice(&signature).unwrap();
        public(seed).verify_strict(canonical(&value).as_bytes(), &signature).is_ok()
    }

    /// A caller and a request of hostile and of long texts.
    fn hostile() -> (Fragment, Fragment) {
        let odd = "\u{0}\u{1b}[2J\"\\\r\n\u{2028}\u{202e}é\u{10ffff}";
        let long = odd.repeat(200);
        let fact = Fact::Known(vec![odd.to_owned(), long.clone(), String::new()]);
        let claims = json!({
            "department": {"\u{10000}": long, "\u{e000}": [1, "x"], "a/b": 0.5, "~": null},
            "other": "secret",
        });
        let caller = Fragment::caller(&CallerParts {
            identity: Some(IdentityParts {
                dag_id: odd,
                task_id: &long,
                run_id: "r",
                map_index: -1,
                try_number: u64::MAX,
                run_type: &fact,
                queue: &Fact::Known(Vec::new()),
                team: &Fact::Unknown,
                owners: &fact,
                tags: &fact,
                roles: &fact,
                taken_roles: &[],
                ti_id: Some(odd),
                triggering_user_name: Some(&long),
                issuer: "airflow",
                key_id: Some(odd),
            }),
            token: Some(TokenParts {
                issuer: "idp",
                key_id: Some(odd),
                subject: Some(&long),
                client_id: Some(odd),
                scopes: &fact,
                claims: &claims.as_object().cloned().unwrap().into(),
                recorded: &["department".to_owned(), "absent".to_owned()],
            }),
            spiffe_id: Some(odd),
            service: Some(odd),
        });
        let mut path = b"/\xff\xc3(\"\\".to_vec();
        path.extend(vec![b'x'; 64 * 1024]);
        let request = Fragment::request(&RequestParts {
            method: Some(b"G\xc9T"),
            scheme: Some(b""),
            authority: Some(odd.as_bytes()),
            path: Some(&path),
            query: Some(b"secret"),
            request_id: Some(long.as_bytes()),
            traceparent: Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        });
        (caller, request)
    }

    #[test]
    fn every_line_is_canonical_and_names_the_one_before_it() {
        let predecessor =
            Predecessor { stream: "00000000000000aa".to_owned(), seq: 7, hash: "h".repeat(43) };
        let begin = Begin { sample: Some(10), predecessor: Some(&predecessor), ..BEGIN };
        let (mut chain, first) = Chain::begin(&begin, Some(signer()));
        let (caller, request) = hostile();
        let policies = Fragment::policies([("main", Some(42)), ("zone", None)].into_iter());
        let shadow = ["a:permit".to_owned(), "b:permit".to_owned()];
        let full = Decided {
            shadow_mode: true,
            code: Some("policy_denied"),
            detail: Some("a \"detail\"\n"),
            nearest: Some("n"),
            rule: Some("r"),
            grant: Some("g"),
            destination: Some("orders"),
            shadow: &shadow,
            policies: Some(&policies),
            caller: Some(&caller),
            request: Some(&request),
            status: Some(403),
            flags: 3,
            decided_us: Some(12),
            total_us: Some(345),
            sampled: Some(10),
            ..decided(Decision::Reject)
        };
        let counts = Counts { permits: 1, rejects: 2, abandoned: 3, sampled_out: 4, lost: 5 };
        let loss = Loss { records: 2, from_seq: 3, to_seq: 5, reason: LossReason::Collector };
        let lines = [
            first,
            chain.decision(&full),
            chain.decision(&decided(Decision::Abandoned)),
            chain.checkpoint(TIME, &counts),
            chain.loss(TIME, &loss),
            chain.end(TIME, &counts, EndReason::Shutdown),
        ];
        let read: Vec<_> = lines.iter().map(read).collect();
        for (index, value) in read.iter().enumerate() {
            assert_eq!(value["v"], 1);
            assert_eq!(value["seq"], index);
            assert_eq!(value["stream"], "00000000000000ab");
            assert_eq!(value["time"], "2026-11-21T12:00:00.123Z");
            let prev = index.checked_sub(1).map(|before| digest(&lines[before]));
            assert_eq!(value.get("prev").and_then(Value::as_str), prev.as_deref());
            assert!(!lines[index].as_str().contains('\n'));
        }
        for signed in [0, 3, 5] {
            assert!(is_signed(&lines[signed], 1));
        }
        assert_eq!(chain.last().hash, digest(&lines[5]));
        assert_eq!(chain.last().seq, 5);

        let decision = &read[1];
        assert_eq!(decision["request"]["method"], "G\u{fffd}T");
        assert_eq!(decision["request"]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(
            decision["caller"]["token"]["claims"]["department"]["\u{e000}"],
            json!([1, "x"])
        );
        assert!(!lines[1].as_str().contains("secret"));
        let path = decision["request"]["path"].as_str().unwrap();
        assert!(path.len() == 1024 && path.starts_with("/\u{fffd}\u{fffd}(\"\\xxx"), "{path}");
        let cut: Vec<_> = decision["truncated"]
            .as_array()
            .unwrap()
            .iter()
            .map(|at| at.as_str().unwrap())
            .collect();
        assert_eq!(
            cut,
            [
                "/caller/identity/owners/1",
                "/caller/identity/roles/1",
                "/caller/identity/run_type/1",
                "/caller/identity/tags/1",
                "/caller/identity/task_id",
                "/caller/identity/triggering_user_name",
                "/caller/token/claims/department/a~1b",
                "/caller/token/claims/department/~0",
                "/caller/token/claims/department/\u{10000}",
                "/caller/token/scopes/1",
                "/caller/token/subject",
                "/request/path",
                "/request/request_id",
            ]
        );
    }

    #[test]
    fn what_is_known_of_a_digest_is_that_of_the_line() {
        const IDS: [&str; 4] = [
            "00000000000000ab0000000000000001",
            "00000000000000ab0000000000000002",
            "00000000000000ac0000000000000001",
            "short",
        ];
        let (mut chain, _) = Chain::begin(&BEGIN, None);
        // Whatever is begun ends at each place of a block once.
        for length in 0..=64 {
            let service = "s".repeat(length);
            let parts = CallerParts { service: Some(&service), ..CallerParts::default() };
            let caller = Fragment::caller(&parts);
            for (id, decision, code) in [
                (IDS[0], Decision::Permit, None),
                (IDS[1], Decision::Permit, None),
                (IDS[1], Decision::Reject, Some("policy_denied")),
                (IDS[1], Decision::Reject, None),
                (IDS[2], Decision::Permit, None),
                (IDS[3], Decision::Permit, None),
                (IDS[0], Decision::Permit, None),
            ] {
                let caller = Some(&caller);
                let line =
                    chain.decision(&Decided { caller, code, decision_id: id, ..decided(decision) });
                assert_eq!(read(&line)["decision_id"], id);
                assert_eq!(chain.last().hash, digest(&line));
            }
        }
    }

    #[test]
    fn without_a_key_the_chain_is_the_same_and_says_of_no_key() {
        let (mut chain, first) = Chain::begin(&BEGIN, None);
        let end = chain.end(TIME, &Counts::default(), EndReason::Reconfigured);
        for line in [&first, &end] {
            let value = read(line);
            assert_eq!((value.get("key_id"), value.get("signature")), (None, None));
        }
        assert_eq!(read(&end)["prev"], digest(&first));
        assert_eq!(read(&end)["reason"], "reconfigured");
    }

    #[test]
    fn a_changed_line_is_not_what_was_signed() {
        let (_, first) = Chain::begin(&BEGIN, Some(signer()));
        assert!(is_signed(&first, 1));
        let changed = first.as_str().replace("enforce", "shadow");
        let changed = Line { json: changed.into(), ..first };
        assert!(!is_signed(&changed, 1));
    }
}
