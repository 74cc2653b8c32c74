//! A policy that is loaded a slice at a time is the one that is read in one go, and so is what is wrong
//! with it: on documents as they are, with members in any order, with faults, and with damaged bytes.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

use std::collections::BTreeMap;
use std::rc::Rc;

use airflow_envoy_core::document::Faults;
use airflow_envoy_core::facts::{Call, Caller, Fact};
use airflow_envoy_core::limits::Limits;
use airflow_envoy_core::pace::Task;
use airflow_envoy_core::policy::{Decision, Policy, PolicySet};
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::public_key;
use serde_json::{Value, json};

/// Small, so that documents of a test exceed them too.
const LIMITS: Limits =
    Limits { policy_rules: 40, policy_places: 36, json_depth: 8, ..Limits::DEFAULT };

struct Random(u64);

fn add(members: &mut Vec<(String, Value)>, name: &str, value: Value) {
    members.push((name.to_owned(), value));
}

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn one<'c, T: ?Sized>(&mut self, choices: &[&'c T]) -> &'c T {
        choices[self.below(choices.len())]
    }

    fn now_and_then(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    fn name(&mut self, what: &str, most: usize) -> String {
        format!("{what}-{}", self.below(most))
    }

    /// One that a document may have, or now and then one that it must not have.
    fn value(&mut self, good: Value, faults: usize) -> Value {
        if !self.now_and_then(faults) {
            return good;
        }
        let bad =
            [json!(7), json!(null), json!([]), json!({}), json!(""), json!(["", 1]), json!("*")];
        bad[self.below(bad.len())].clone()
    }

    fn selector(&mut self, roles: bool, faults: usize) -> Value {
        let mut selector = json!({});
        let dags = [
            json!(["ds_*"]),
            json!(["etl", "*_daily"]),
            json!(["*x*"]),
            json!([self.name("dag", 30)]),
        ];
        if self.now_and_then(2) {
            let dags = dags[self.below(dags.len())].clone();
            selector["dags"] = self.value(dags, faults);
        }
        if roles && self.now_and_then(3) {
            selector["roles"] = json!([self.name("role", 6)]);
        }
        if self.now_and_then(3) {
            selector["teams"] = self.value(json!(["a", "b"]), faults);
        }
        if self.now_and_then(6) {
            selector["claims"] = json!({"groups": ["x"], "/a/b": [self.name("c", 3)]});
        }
        if selector == json!({}) {
            selector["tasks"] = json!(["*"]);
        }
        if self.now_and_then(faults) {
            selector["dag"] = json!(["unknown field"]);
        }
        selector
    }

    fn element(&mut self, number: usize, grantable: bool, faults: usize) -> Value {
        let id =
            if self.now_and_then(faults) { self.name("r", 5) } else { format!("r{number:03}") };
        let id = if grantable { format!("g{id}") } else { id };
        let mut rule =
            json!({"id": id, "to": [self.name("d", 4)], "from": self.selector(true, faults)});
        if self.now_and_then(4) {
            rule["to"] = json!(["*"]);
        }
        if self.now_and_then(2) {
            let path = self.one(&["/a/*", "/a/b", "/**", "/x/{sub}/y", "/a/*.json"]);
            rule["paths"] = self.value(json!([path, "/c"]), faults);
        }
        if self.now_and_then(2) {
            rule["methods"] = self.value(json!(["GET", "PUT"]), faults);
        }
        if grantable {
            rule["max_duration"] = self.value(json!("1h"), faults);
            rule["approvers"] = self.value(json!(["alice"]), faults);
        } else {
            let effect = json!(self.one(&["allow", "allow", "deny"]));
            rule["effect"] = self.value(effect, faults);
            if self.now_and_then(5) {
                rule["mode"] = json!("shadow");
            }
            if self.now_and_then(5) {
                rule["intent"] = json!("says \"why\" \u{fc} \\ [{");
            }
        }
        rule
    }

    /// The members of a document, of which one in `faults` parts is faulty.
    fn members(&mut self, faults: usize) -> Vec<(String, Value)> {
        let mut members = vec![("version".to_owned(), self.value(json!(1), faults * 4))];
        if self.now_and_then(2) {
            let revision = json!(self.below(100));
            add(&mut members, "revision", self.value(revision, faults));
        }
        let mut roles = json!({});
        for number in 0..6 {
            let any = vec![self.selector(false, faults); 1 + self.below(2)];
            roles[format!("role-{number}")] = self.value(json!({"any": any}), faults);
        }
        let mut destinations = json!({});
        for number in (0..4).rev() {
            let host =
                if self.now_and_then(faults) { "taken".to_owned() } else { format!("d{number}") };
            destinations[format!("d-{number}")] = self.value(json!({"hosts": [host]}), faults);
        }
        add(&mut members, "roles", self.value(roles, faults * 4));
        if !self.now_and_then(faults * 4) {
            add(&mut members, "destinations", self.value(destinations, faults * 4));
        }
        let most = if self.now_and_then(6) { 60 } else { 30 };
        let rules = self.below(most);
        let list: Vec<_> = (0..rules).map(|number| self.element(number, false, faults)).collect();
        if !self.now_and_then(faults * 4) {
            add(&mut members, "rules", self.value(json!(list), faults * 4));
        }
        if self.now_and_then(3) {
            let rules = self.below(8);
            let list: Vec<_> =
                (0..rules).map(|number| self.element(number, true, faults)).collect();
            add(&mut members, "grantable", self.value(json!(list), faults * 4));
            if !self.now_and_then(4) {
                let key = public_key("data-p256").unwrap();
                add(
                    &mut members,
                    "approvers",
                    self.value(json!({"alice": {"keys": [key]}}), faults),
                );
            }
        }
        if self.now_and_then(3) {
            let list: Vec<_> = (0..1 + self.below(3))
                .map(|number| {
                    let id = if self.now_and_then(faults) {
                        "r001".to_owned()
                    } else {
                        format!("a{number}")
                    };
                    let from = self.value(json!({"issuers": ["airflow"]}), faults);
                    let may_assert = self.value(json!({"dags": ["ds_*", "etl"]}), faults);
                    json!({"id": id, "from": from, "may_assert": may_assert})
                })
                .collect();
            add(&mut members, "agreement", self.value(json!(list), faults * 4));
        }
        if self.now_and_then(faults * 2) {
            let inner = self.below(12);
            let deep = (0..inner).fold(json!({"x": [2]}), |inner, _| json!([1, inner]));
            add(&mut members, "unknown", deep);
        }
        if self.now_and_then(faults * 2) {
            let again = self.below(members.len());
            members.push(members[again].clone());
        }
        for index in (1..members.len()).rev() {
            if self.now_and_then(2) {
                let other = self.below(index + 1);
                members.swap(index, other);
            }
        }
        members
    }

    /// A document as text, with spaces and lines wherever they may be.
    fn text(&mut self, members: &[(String, Value)]) -> String {
        let pretty = self.now_and_then(2);
        let all = members.iter().map(|(name, value)| {
            let space = self.one(&["", " ", "\n", "\r\n\t"]);
            let value = if pretty { format!("{value:#}") } else { value.to_string() };
            format!("{space}{}{space}:{space}{value}{space}", json!(name))
        });
        let all: Vec<_> = all.collect();
        format!("{{{}}}", all.join(","))
    }

    fn damage(&mut self, text: &mut Vec<u8>) {
        let place = self.below(text.len());
        match self.below(6) {
            0 => text.truncate(place),
            1 => {
                text[place] = *self
                    .one(&[b"\"\\{}[],:0-.e\x00\xffx \nt"])
                    .get(self.below(18))
                    .unwrap_or(&b'x')
            }
            2 => _ = text.remove(place),
            3 => text.insert(place, b"\"\\{}[],:0-.e\xff1f"[self.below(15)]),
            4 => {
                let from = self.below(text.len());
                let piece = text[from..(from + 20).min(text.len())].to_vec();
                text.splice(place..place, piece);
            }
            _ => text.extend_from_slice(self.one(&["}", " x", ",", "{}", "\u{c}"]).as_bytes()),
        }
    }
}

fn load(text: &[u8], units: u64) -> (Result<Policy, Faults>, usize) {
    let text = text.to_vec();
    let mut task = Task::new(|pace| async move { Policy::load(&text, &LIMITS, &pace).await });
    for slices in 1.. {
        match task.go_on(units) {
            Ok(done) => return (done, slices),
            Err(rest) => task = rest,
        }
    }
    panic!("a task ends");
}

fn decide(policy: &PolicySet, number: usize) -> Decision<'static> {
    let caller = Caller {
        dags: Fact::one(["ds_1", "etl", "x_daily", "dag-3", "axb"][number % 5]),
        teams: if number.is_multiple_of(3) { Fact::Unknown } else { Fact::one("b") },
        tasks: Fact::one("t"),
        subjects: Fact::one("me"),
        claims: json!({"groups": ["x"], "a": {"b": "c-1"}}).as_object().cloned().unwrap().into(),
        ..Caller::default()
    };
    let call = Call {
        authority: ["d0", "d1", "d2", "d3", "other"][number / 5 % 5],
        scheme: "http",
        method: ["GET", "PUT", "POST"][number % 3],
        target: ["/a/b", "/c", "/x/me/y", "/x/you/y", "/a/f.json"][number / 7 % 5],
    };
    policy.decide(&caller, &policy.standing(&caller, None), &call, UnixTime::from_secs(1), &LIMITS)
}

#[test]
fn a_policy_loaded_in_slices_is_the_policy_read_in_one_go() {
    let mut random = Random(2026);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut most_slices, rounds) = (0, 2_000);
    for round in 0..rounds {
        let faults = [usize::MAX / 8, 60, 15, 2][round % 4];
        let members = random.members(faults);
        let mut text = random.text(&members).into_bytes();
        if round % 5 == 4 {
            random.damage(&mut text);
        }
        let units = [1, 40, 100_000][round % 3];
        let expected = Policy::parse(&text, &LIMITS);
        let (found, slices) = load(&text, units);
        most_slices = most_slices.max(slices);
        let shown = String::from_utf8_lossy(&text).into_owned();
        match (expected, found) {
            (Err(expected), Err(found)) => {
                assert_eq!(expected, found, "{shown}");
                for (kind, words) in [
                    ("syntax", "not valid JSON"),
                    ("duplicate", "occurs more than once"),
                    ("deep", "nested too deeply"),
                    ("many", "more than the 40"),
                    ("places", "more than the 36"),
                    ("ids", "already"),
                    ("unlisted", "more faults"),
                    ("unknown role", "there is no role"),
                    ("unknown field", "unknown field"),
                    ("missing", "is missing"),
                ] {
                    let told = expected.to_string().contains(words);
                    *seen.entry(kind).or_default() += usize::from(told);
                }
            }
            (Ok(expected), Ok(found)) => {
                assert_eq!(expected.revision(), found.revision(), "{shown}");
                assert_eq!(expected.rule_count(), found.rule_count(), "{shown}");
                let (expected, found) = (PolicySet::from(expected), PolicySet::from(found));
                for number in 0..40 {
                    let number = number * 13 + round;
                    assert_eq!(decide(&expected, number), decide(&found, number), "{shown}");
                }
                *seen.entry("good").or_default() += 1;
            }
            (expected, found) => panic!("{expected:?} became {found:?} for {shown}"),
        }
    }
    println!("{seen:?}, at most {most_slices} slices");
    let kinds = [
        "good",
        "deep",
        "syntax",
        "duplicate",
        "many",
        "places",
        "ids",
        "unlisted",
        "unknown role",
        "unknown field",
        "missing",
    ];
    for kind in kinds {
        assert!(seen.get(kind).is_some_and(|count| *count >= 10), "{kind} is too rare: {seen:?}");
    }
    assert!(most_slices > 100, "{most_slices}");
}

#[test]
fn every_byte_of_a_document_may_be_another_one() {
    let mut random = Random(7);
    let members = random.members(usize::MAX / 8);
    let text = random.text(&members).into_bytes();
    let text = &text[..text.len().min(700)];
    let whole = random.text(&random_small()).into_bytes();
    for text in [text, &whole] {
        for place in 0..text.len() {
            for byte in b"\"{}[],:0x\n" {
                let mut other = text.to_vec();
                other[place] = *byte;
                let expected = Policy::parse(&other, &LIMITS).map(|policy| policy.rule_count());
                let found = load(&other, 1_000).0.map(|policy| policy.rule_count());
                assert_eq!(expected, found, "{}", String::from_utf8_lossy(&other));
            }
        }
    }
}

fn random_small() -> Vec<(String, Value)> {
    let rule = json!({"id": "a", "effect": "allow", "to": ["d"], "paths": ["/x"]});
    [
        ("version", json!(1)),
        ("destinations", json!({"d": {"hosts": ["d"]}, "e": {"hosts": ["e"]}})),
        ("roles", json!({})),
        ("rules", json!([rule])),
        ("revision", json!(-1.5e3)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[test]
fn no_slice_of_a_large_policy_is_a_large_part_of_the_work() {
    let rules: Vec<_> = (0..2_000)
        .map(|number| {
            json!({"id": format!("rule-{number}"), "effect": "allow", "to": ["d"],
                   "from": {"dags": [format!("dag-{number}")]}, "paths": [format!("/v1/{number}/*")]})
        })
        .collect();
    let text =
        json!({"version": 1, "destinations": {"d": {"hosts": ["d"]}}, "roles": {}, "rules": rules});
    let text = Rc::new(text.to_string().into_bytes());
    let limits = Limits::DEFAULT;
    let run = |units: u64| {
        let text = Rc::clone(&text);
        let mut task = Task::new(|pace| async move { Policy::load(&text, &limits, &pace).await });
        let mut slices = 1;
        loop {
            match task.go_on(units) {
                Ok(policy) => return (policy.unwrap().rule_count(), slices),
                Err(rest) => (task, slices) = (rest, slices + 1),
            }
        }
    };
    let (rules, slices) = run(200);
    assert_eq!(rules, 2_000);
    // At least the bytes, ten to a unit, and some units for each rule.
    assert!(slices > text.len() / 10 / 200 + 2_000 * 4 / 200, "{slices}");
    assert_eq!(run(u64::MAX), (2_000, 1));
}
