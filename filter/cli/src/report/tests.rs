use airflow_envoy_core::time::Span;

use super::*;
use crate::audit::Place;
use crate::audit::reader::Chunk;
use crate::source::load::read_bytes;

const BEGIN: &str = r#"{"kind":"begin","mode":"enforce","process":"00000000000000b2","seq":0,"stream":"00000000000000a1","time":"2026-11-22T08:00:00.000Z","v":1,"version":"0.1.0"}"#;

/// A record of a decision: its place, its time, and members that come after `caller` in the alphabet.
fn decision(seq: u64, time: &str, decision: &str, more: &str) -> String {
    let mut record: serde_json::Value = serde_json::from_str(&format!(
        r#"{{"kind":"decision","decision":"{decision}","seq":{seq},"stream":"00000000000000a1","prev":"x",
            "time":"2026-11-22T{time}.000Z","v":1,"decision_id":"{seq:032x}"}}"#
    ))
    .unwrap();
    let more: serde_json::Value = serde_json::from_str(more).unwrap();
    for (name, value) in more.as_object().unwrap() {
        record[name] = value.clone();
    }
    record.to_string()
}

fn report(lines: &[String], window: Window) -> Report {
    let mut report = Report::new(window);
    let chunk = Chunk::new(Place { file: 0, line: 1, offset: 0 }, lines.join("\n").into_bytes());
    report.seen = chunk.each(|_, found| report.take(&found));
    report
}

fn trail() -> Vec<String> {
    let caller = r#""caller":{"identity":{"dag_id":"ds_x","task_id":"t","run_id":"r"}}"#;
    let orders = r#""destination":"orders","duration_us":{"decided":10,"total":2000}"#;
    let at_once = r#""destination":"orders","duration_us":{"total":2000}"#;
    vec![
        BEGIN.to_owned(),
        decision(
            1,
            "08:00:01",
            "permit",
            &format!(r#"{{{caller},{orders},"rule":"reads","sampled":10}}"#),
        ),
        decision(
            2,
            "08:00:02",
            "permit",
            &format!(r#"{{{caller},{at_once},"rule":"more","grant":"g1"}}"#),
        ),
        decision(
            3,
            "08:00:03",
            "reject",
            &format!(
                r#"{{{caller},{orders},"code":"policy_no_match","nearest":"reads","detail":"no","shadow":["trial:permit"],
                   "request":{{"method":"PUT","authority":"orders.internal","path":"/v1"}}}}"#
            ),
        ),
        decision(
            4,
            "08:00:04",
            "reject",
            r#"{"code":"token_missing","request":{"authority":"x:1"}}"#,
        ),
        decision(
            5,
            "09:00:00",
            "reject",
            &format!(
                r#"{{{caller},{orders},"code":"policy_no_match","nearest":"reads","mode":"shadow"}}"#
            ),
        ),
        decision(7, "09:00:01", "abandoned", r#"{"caller":{"token":{"subject":"bob"}}}"#),
    ]
}

#[test]
fn decisions_are_counted_by_their_weight_and_each_once() {
    let mut lines = trail();
    lines.extend(trail());
    lines.push("[2026-11-22] [info] another line".to_owned());
    let report = report(&lines, Window::default());
    let all = report.all;
    assert_eq!(
        (all.permits, all.granted, all.rejects, all.unenforced, all.abandoned),
        (11, 1, 2, 1, 1)
    );
    assert_eq!((report.recorded, report.duplicates, report.unreadable), (6, 7, 0));
    assert_eq!(report.seen.foreign, 1);
    let traffic = report.traffic.sorted();
    let (pair, busiest) = traffic[0];
    assert_eq!(*pair, (Who::Dag("ds_x".to_owned()), Target::Destination("orders".to_owned())));
    assert_eq!((busiest.permits, busiest.rejects), (11, 1));
    assert!(report.traffic.find(&(Who::Unverified, Target::Host("x:1".to_owned()))).is_some());
    assert!(report.traffic.find(&(Who::Subject("bob".to_owned()), Target::Unknown)).is_some());
    // Only permitted calls count for how long calls take; for how long decisions do, also those made at once.
    let (_, durations) = report.slowest()[0];
    assert_eq!((durations.total.count(), durations.decided.count()), (11, 13));
}

#[test]
fn refusals_are_told_by_cause_with_the_last_example() {
    let report = report(&trail(), Window::default());
    let refusals = report.refusals.sorted();
    let (cause, first) = refusals[0];
    assert_eq!((cause.code.as_str(), cause.nearest.as_deref()), ("policy_no_match", Some("reads")));
    assert_eq!((first.count, first.unenforced), (2, 1));
    assert_eq!(first.last.unwrap().to_string(), "2026-11-22T09:00:00Z");
    assert_eq!(first.decision_id, format!("{:032x}", 5));
    assert_eq!(report.json()["refusals"][1]["code"], "token_missing");
    assert_eq!(report.json()["refusals"][1]["target"]["authority"], "x:1");
}

#[test]
fn a_window_leaves_out_what_is_before_and_after() {
    let at = |text: &str| UnixTime::from_rfc3339(text);
    let window = Window { since: at("2026-11-22T08:00:02Z"), until: at("2026-11-22T09:00:00Z") };
    let report = report(&trail(), window);
    assert_eq!((report.recorded, report.outside), (3, 3));
    assert_eq!(report.all.permits, 1);
}

#[test]
fn what_is_missing_or_unreadable_is_told() {
    let mut lines = trail();
    lines.push(decision(8, "99:00:00", "permit", "{}"));
    let mut report = report(&lines, Window::default());
    assert_eq!(report.gaps(), (1, 0));
    let (good, told) = report.evidence();
    assert!(
        !good && told.starts_with("Not verified") && told.contains("missing in the streams: 1"),
        "{told}"
    );
    assert!(told.contains("not readable: 1"), "{told}");
    report.verified = Some(Verified { faults: vec!["x".to_owned()], records: 7, vouched: Some(7) });
    assert_eq!(report.evidence().1.split('.').next(), Some("The trail has 1 fault"));
}

#[test]
fn only_a_trail_that_signatures_vouch_for_as_a_whole_is_good() {
    let mut lines = trail();
    lines.truncate(6);
    let mut report = report(&lines, Window::default());
    for (vouched, good) in [(None, false), (Some(5), false), (Some(6), true)] {
        report.verified = Some(Verified { faults: Vec::new(), records: 6, vouched });
        assert_eq!(report.evidence().0, good, "{vouched:?}");
    }
}

#[test]
fn rules_of_a_policy_stand_beside_what_they_decided() {
    let policy = "version: 1\ndestinations: {orders: {hosts: [orders]}}\nrules:\n  \
        - {id: reads, effect: allow, to: [orders], methods: [GET], valid: {expires_at: 2026-12-01T00:00:00Z}}\n  \
        - {id: trial, effect: allow, mode: shadow, to: [orders], methods: [PUT]}\n  \
        - {id: idle, effect: deny, to: [orders]}\n  \
        - {id: later, effect: deny, to: [orders], valid: {not_before: 2026-12-01T00:00:00Z}}\n";
    let model = Model::new(&read_bytes("p.yaml", policy.as_bytes()).unwrap());
    let now = UnixTime::from_rfc3339("2026-11-22T10:00:00Z").unwrap();
    let state = |rule: &crate::model::Rule| {
        State::of(rule.not_before, rule.expires_at, now, Span::from_secs(86_400 * 14))
    };
    let unused = |report: &Report| report.unused().map(|rule| rule.id.clone()).collect::<Vec<_>>();
    let mut plain = report(&trail(), Window::default());
    plain.compare(&model, state);
    assert_eq!(unused(&plain), ["idle"]);
    let ending: Vec<(&str, u64)> =
        plain.ending().map(|rule| (&*rule.id, rule.used.weight())).collect();
    assert_eq!(ending, [("reads", 10)]);
    // With several sources records name those too.
    let lines: Vec<String> =
        trail().iter().map(|line| line.replace("\"reads\"", "\"main/reads\"")).collect();
    let mut sources = report(&lines, Window::default());
    sources.compare(&model, state);
    assert_eq!(unused(&sources), ["idle"]);
}

#[test]
fn what_strangers_make_up_fills_no_memory() {
    let mut lines = vec![BEGIN.to_owned()];
    for seq in 1..=15_000 {
        let more =
            format!(r#"{{"code":"token_missing","request":{{"authority":"made-up-{seq}"}}}}"#);
        lines.push(decision(seq, "08:00:00", "reject", &more));
    }
    let report = report(&lines, Window::default());
    assert!(report.traffic.len() <= 2 * MOST && report.refusals.len() <= 2 * MOST);
    assert_eq!(report.all.rejects, 15_000);
    let kept: u64 = report.traffic.sorted().iter().map(|(_, traffic)| traffic.weight()).sum();
    assert_eq!(kept + report.traffic.given_up(), 15_000);
}
