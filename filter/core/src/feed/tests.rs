//! One feed, and several workers with one store.

mod intentions;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::pace::HASHED_AT_ONCE;
use crate::shared::Memory;

const ID: FeedId = FeedId(0);

fn at(seconds: i64) -> UnixTime {
    UnixTime::from_secs(1_000_000 + seconds)
}

fn after(seconds: i64, millis: i64) -> UnixTime {
    at(seconds).plus(Span::from_millis(millis))
}

fn endpoint(protocol: Protocol) -> Endpoint {
    Endpoint {
        name: "main".to_owned(),
        cluster: "policy".to_owned(),
        uri: Uri::parse("http://policy.internal/policy.json").unwrap(),
        interval: Span::from_secs(10),
        min_interval: Span::from_secs(2),
        timeout: Span::from_secs(1),
        max_age: Span::from_secs(60),
        protocol,
    }
}

fn consul() -> Protocol {
    let token = Some(Secret("s.secret".to_owned()));
    Protocol::ConsulKv { wait: Span::from_secs(16), token }
}

fn long_poll() -> Protocol {
    Protocol::LongPoll { wait: Span::from_secs(16) }
}

fn read_good(body: &[u8], _: &str) -> Result<Read<String>, String> {
    match std::str::from_utf8(body) {
        Ok(text) if text.starts_with("good") => {
            Ok(Read { document: text.to_owned(), notes: Vec::new(), mark: String::new() })
        }
        _ => Err("not good".to_owned()),
    }
}

fn read() -> Reader<String> {
    reader(read_good)
}

fn ok(body: &str) -> Answer {
    http(200, Some("\"1\""), body)
}

fn http(status: u16, etag: Option<&str>, body: &str) -> Answer {
    let etag = etag.map(str::to_owned);
    Answer::Http(Response { status, etag, body: body.into(), ..Response::default() })
}

fn at_index(status: u16, index: &str, body: &str) -> Answer {
    let index = Some(index.to_owned());
    Answer::Http(Response { status, index, body: body.into(), ..Response::default() })
}

fn header<'f>(fetch: &'f Fetch, name: &str) -> Option<&'f str> {
    fetch.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

/// Workers of one process.
struct Process {
    shared: Rc<Memory>,
    protocol: Protocol,
    workers: Vec<Feed<String>>,
}

impl Process {
    fn new(workers: u64, protocol: Protocol) -> Self {
        let mut process = Self { shared: Rc::default(), protocol, workers: Vec::new() };
        for number in 1..=workers {
            process.start(number);
        }
        process
    }

    fn start(&mut self, number: u64) {
        let site = Site {
            shared: Rc::clone(&self.shared) as Rc<dyn SharedData>,
            worker: number,
            limits: Limits::DEFAULT,
        };
        self.workers.push(Feed::remote(endpoint(self.protocol.clone()), 100, "", &site));
    }

    /// All workers tick; the fetches that are due.
    fn tick(&mut self, now: UnixTime) -> Vec<(usize, Fetch)> {
        let mut due = Vec::new();
        for (number, feed) in self.workers.iter_mut().enumerate() {
            feed.sync(now, &read());
            due.extend(feed.due(ID, now).map(|fetch| (number, fetch)));
        }
        due
    }

    /// The one worker whose fetch is due.
    fn fetch(&mut self, now: UnixTime) -> (usize, Fetch) {
        let mut due = self.tick(now);
        assert_eq!(due.len(), 1, "one worker fetches: {due:?}");
        due.remove(0)
    }

    fn answer(&mut self, worker: usize, answer: Answer, now: UnixTime) -> Outcome {
        self.workers[worker].answered(answer, now, &read())
    }

    fn documents(&mut self, now: UnixTime) -> Vec<Option<String>> {
        for feed in &mut self.workers {
            feed.sync(now, &read());
        }
        self.workers.iter().map(|feed| feed.usable(now).map(|it| it.to_string())).collect()
    }
}

/// Where the first part of a document of this version is.
fn document_key(version: u64) -> String {
    format!("airflow-envoy.0.document.{}.0", version % 2)
}

fn alone(protocol: Protocol) -> Process {
    Process::new(1, protocol)
}

fn loaded(protocol: Protocol) -> Process {
    let mut process = alone(protocol);
    let (worker, _) = process.fetch(at(0));
    assert_eq!(process.answer(worker, ok("good 1"), at(0)), Outcome::Updated { notes: vec![] });
    process
}

#[test]
fn one_worker_fetches_and_all_use_it() {
    let mut process = Process::new(5, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    assert_eq!(process.documents(at(0)), vec![None; 5]);
    process.answer(leader, ok("good 1"), after(0, 50));
    assert_eq!(process.documents(after(0, 51)), vec![Some("good 1".to_owned()); 5]);
    // An hour at rest: one callout per interval, however many workers there are.
    let mut fetches = 0;
    for tick in 1..36_000 {
        let now = after(0, tick * 100);
        for (worker, fetch) in process.tick(now) {
            assert_eq!(worker, leader, "the leader stays");
            assert_eq!(header(&fetch, "if-none-match"), Some("\"1\""));
            fetches += 1;
            assert_eq!(process.answer(worker, http(304, None, ""), now), Outcome::Unchanged);
        }
    }
    // Jitter takes up to a tenth off.
    assert!((355..=402).contains(&fetches), "{fetches}");
    let (_, values) = process.shared.size();
    assert!(values <= 3, "{values}");
}

#[test]
fn a_leader_that_is_gone_is_replaced_when_its_lease_is_over() {
    let mut process = Process::new(3, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    // It dies with its question open.
    drop(process.workers.remove(leader));
    let mut replaced_at = None;
    for tick in 1..100 {
        if !process.tick(after(0, tick * 100)).is_empty() {
            replaced_at = Some(tick);
            break;
        }
    }
    assert_eq!(replaced_at, Some(30));
}

#[test]
fn a_leader_that_leaves_is_replaced_at_once() {
    let mut process = Process::new(2, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    process.answer(leader, ok("good 1"), at(0));
    process.workers[leader].leave(at(1));
    drop(process.workers.remove(leader));
    assert!(process.tick(at(2)).is_empty());
    assert!(process.workers[0].leads(at(2)));
    process.fetch(at(10));
}

#[test]
fn a_new_worker_has_the_document_before_it_asks_anybody() {
    let mut process = loaded(Protocol::Poll);
    process.workers.clear();
    process.start(9);
    assert_eq!(process.documents(at(1)), [Some("good 1".to_owned())]);
}

#[test]
fn what_is_configured_otherwise_is_another_document() {
    let mut process = loaded(Protocol::Poll);
    process.protocol = long_poll();
    process.start(2);
    assert_eq!(process.documents(at(1)), [Some("good 1".to_owned()), None]);
    let (worker, _) = process.fetch(at(1));
    process.answer(worker, ok("good 2"), at(1));
    assert_eq!(process.documents(at(1)), [Some("good 1".into()), Some("good 2".into())]);
}

#[test]
fn nothing_grows_over_many_configurations() {
    let shared = Rc::new(Memory::default());
    let mut now = at(0);
    let mut without_a_place = 0;
    for number in 1..500 {
        let site = Site {
            shared: Rc::clone(&shared) as Rc<dyn SharedData>,
            worker: number,
            limits: Limits::DEFAULT,
        };
        let mut feed = Feed::remote(endpoint(Protocol::Poll), 100, &number.to_string(), &site);
        feed.sync(now, &read());
        assert!(feed.due(ID, now).is_some());
        assert!(matches!(feed.answered(ok("good"), now, &read()), Outcome::Updated { .. }));
        without_a_place += usize::from(feed.remote.as_ref().unwrap().record.is_alone());
        now = now.plus(Span::from_secs(30));
    }
    assert_eq!(without_a_place, 0, "places of ten minutes ago are free again");
    let (_, values) = shared.size();
    assert!(values <= 64 * 2, "{values}");
    // Many at the same time: the last ones fetch for themselves.
    for number in 0..100 {
        let site = Site {
            shared: Rc::clone(&shared) as Rc<dyn SharedData>,
            worker: number + 1000,
            limits: Limits::DEFAULT,
        };
        let mut feed = Feed::remote(endpoint(Protocol::Poll), 100, &format!("x{number}"), &site);
        feed.sync(now, &read());
        assert!(feed.due(ID, now).is_some());
        assert!(matches!(feed.answered(ok("good"), now, &read()), Outcome::Updated { .. }));
        assert!(feed.usable(now).is_some());
    }
    assert!(shared.size().1 <= 64 * 2);
}

#[test]
fn a_host_without_a_store_lets_each_worker_fetch() {
    struct Nothing;
    impl SharedData for Nothing {
        fn read(&self, _: &str) -> Option<(Vec<u8>, crate::shared::Stamp)> {
            None
        }
        fn write(
            &self,
            _: &str,
            _: &[u8],
            _: Option<crate::shared::Stamp>,
        ) -> Result<(), crate::shared::Refused> {
            Err(crate::shared::Refused::Unsupported)
        }
        fn announced(&self) -> u64 {
            0
        }
        fn announce(&self) {}
    }
    for worker in 1..3 {
        let site = Site { shared: Rc::new(Nothing), worker, limits: Limits::DEFAULT };
        let mut feed = Feed::remote(endpoint(Protocol::Poll), 100, "", &site);
        feed.sync(at(0), &read());
        assert!(feed.due(ID, at(0)).is_some());
        feed.answered(ok("good"), at(0), &read());
        assert!(feed.usable(at(0)).is_some());
        assert!(feed.due(ID, at(1)).is_none());
        assert!(feed.due(ID, at(10)).is_some());
    }
}

#[test]
fn of_two_that_finish_the_first_wins() {
    let mut process = Process::new(2, Protocol::Poll);
    let (slow, _) = process.fetch(at(0));
    // Its lease ends while it works.
    let other = 1 - slow;
    let mut due = None;
    for tick in 1..50 {
        let now = after(0, tick * 100);
        process.workers[other].sync(now, &read());
        due = due.or_else(|| process.workers[other].due(ID, now));
    }
    assert!(due.is_some());
    assert!(matches!(process.answer(slow, ok("good slow"), at(5)), Outcome::Updated { .. }));
    assert_eq!(process.answer(other, ok("good other"), at(6)), Outcome::Superseded);
    assert_eq!(process.documents(at(6)), vec![Some("good slow".to_owned()); 2]);
}

#[test]
fn a_fetch_that_is_never_answered_is_made_again() {
    let mut process = alone(Protocol::Poll);
    process.fetch(at(0));
    assert!(process.tick(after(1, 900)).is_empty());
    process.fetch(at(2));
}

#[test]
fn an_answer_to_nothing_changes_nothing() {
    let mut process = loaded(Protocol::Poll);
    assert_eq!(process.answer(0, ok("good 2"), at(1)), Outcome::Superseded);
    assert_eq!(process.documents(at(1)), [Some("good 1".to_owned())]);
}

#[test]
fn an_unfit_document_keeps_the_last_good_one_and_its_tag() {
    let mut process = loaded(Protocol::Poll);
    process.fetch(at(10));
    let unfit = |repeated| Outcome::Unfit { reason: "not good".to_owned(), repeated };
    assert_eq!(process.answer(0, http(200, Some("\"2\""), "bad"), at(10)), unfit(false));
    assert_eq!(process.documents(at(10)), [Some("good 1".to_owned())]);
    let (_, fetch) = process.fetch(at(20));
    assert_eq!(header(&fetch, "if-none-match"), Some("\"1\""));
    assert_eq!(process.answer(0, http(200, Some("\"2\""), "bad"), at(20)), unfit(true));
}

#[test]
fn every_other_answer_is_a_failure_and_changes_nothing() {
    for (answer, unfit) in [
        (Answer::None, false),
        (Answer::TooLarge { bytes: 101 }, true),
        (http(500, None, "good 9"), false),
        (http(0, None, "good 9"), false),
        (http(204, None, ""), false),
        (http(200, None, ""), true),
    ] {
        let mut process = loaded(Protocol::Poll);
        process.fetch(at(10));
        let outcome = process.answer(0, answer.clone(), at(10));
        assert_eq!(matches!(outcome, Outcome::Unfit { .. }), unfit, "{answer:?}");
        assert_eq!(matches!(outcome, Outcome::Failed { .. }), !unfit, "{answer:?}");
        assert_eq!(process.workers[0].current().unwrap().as_str(), "good 1");
    }
    let mut empty = alone(Protocol::Poll);
    empty.fetch(at(0));
    assert!(matches!(empty.answer(0, http(304, None, ""), at(0)), Outcome::Failed { .. }));
}

#[test]
fn failures_back_off_open_the_breaker_and_one_success_closes_it() {
    let mut process = alone(Protocol::Poll);
    let mut now = at(0);
    let mut waits = Vec::new();
    for failures in 1..=6 {
        let (_, _) = process.fetch(now);
        process.answer(0, Answer::None, now);
        let feed = &process.workers[0];
        let expected = if failures < 3 { Breaker::Closed } else { Breaker::Open };
        assert_eq!(feed.breaker(), expected, "after {failures}");
        waits.push(feed.next_at().since(now).as_millis());
        now = feed.next_at();
    }
    for (wait, most) in waits.iter().zip([500, 1000, 2000, 4000, 8000, 10_000]) {
        assert!((most / 2..=most).contains(wait), "{waits:?}");
    }
    assert!(process.workers[0].retry_at(at(0)) > at(0));
    process.fetch(now);
    assert_eq!(process.workers[0].breaker(), Breaker::HalfOpen);
    process.answer(0, ok("good"), now);
    assert_eq!(process.workers[0].breaker(), Breaker::Closed);
    assert!(process.workers[0].usable(now).is_some());
}

#[test]
fn a_document_that_cannot_be_confirmed_grows_too_old() {
    let mut process = loaded(Protocol::Poll);
    assert!(process.workers[0].usable(at(60)).is_some());
    assert!(process.workers[0].usable(at(61)).is_none());
    process.fetch(at(61));
    assert_eq!(process.answer(0, http(304, None, ""), at(61)), Outcome::Unchanged);
    assert!(process.workers[0].usable(at(61)).is_some());
}

#[test]
fn a_clock_that_is_set_back_stops_no_refresh() {
    let mut process = Process::new(2, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    process.answer(leader, ok("good 1"), at(0));
    assert!(process.workers[leader].usable(at(-60)).is_some());
    assert!(process.workers[leader].usable(at(-61)).is_none());
    let (leader, _) = process.fetch(at(-3600));
    process.answer(leader, http(304, None, ""), at(-3600));
    assert!(process.documents(at(-3600)).iter().all(Option::is_some));
    assert!(process.tick(at(-3596)).is_empty());
}

#[test]
fn a_short_max_age_fetches_sooner_and_never_too_soon() {
    for (cache_control, age, least, most) in [
        (None, None, 9_000, 10_000),
        (Some("max-age=5"), None, 4_500, 5_000),
        (Some("public, Max-Age = \"7\", must-revalidate"), Some("2"), 4_500, 5_000),
        (Some("max-age=0"), None, 1_800, 2_000),
        (Some("max-age=3600"), None, 9_000, 10_000),
        (Some("no-store"), None, 9_000, 10_000),
        (Some("max-age=-1"), Some("x"), 9_000, 10_000),
    ] {
        let mut process = alone(Protocol::Poll);
        process.fetch(at(0));
        let response = Response {
            status: 200,
            cache_control: cache_control.map(str::to_owned),
            age: age.map(str::to_owned),
            body: b"good".to_vec(),
            ..Response::default()
        };
        process.answer(0, Answer::Http(response), at(0));
        let wait = process.workers[0].next_at().since(at(0)).as_millis();
        assert!((least..=most).contains(&wait), "{cache_control:?}: {wait}");
    }
}

#[test]
fn who_wants_a_fetch_gets_one_from_the_leader_and_not_too_often() {
    let mut process = Process::new(3, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    process.answer(leader, ok("good 1"), at(0));
    let other = (leader + 1) % 3;
    assert!(process.tick(at(1)).is_empty());
    let mut fetches = 0;
    // Requests with unknown keys, a hundred a second, for ten seconds.
    for tick in 0..100 {
        let now = after(1, tick * 100);
        for _ in 0..10 {
            process.workers[other].want(now);
        }
        for (worker, _) in process.tick(now) {
            assert_eq!(worker, leader);
            process.answer(worker, http(304, None, ""), now);
            fetches += 1;
        }
    }
    assert!((4..=6).contains(&fetches), "one per two seconds: {fetches}");
}

#[test]
fn nobody_gets_a_fetch_from_an_endpoint_that_is_known_to_fail() {
    let mut process = alone(Protocol::Poll);
    let mut now = at(0);
    for _ in 0..5 {
        process.fetch(now);
        process.answer(0, Answer::None, now);
        now = process.workers[0].next_at();
    }
    let before = now.minus(Span::from_millis(200));
    process.workers[0].want(before);
    assert!(process.tick(before).is_empty());
}

#[test]
fn a_long_poll_is_asked_again_as_soon_as_it_is_answered() {
    let mut process = alone(long_poll());
    let (_, fetch) = process.fetch(at(0));
    assert_eq!(header(&fetch, "prefer"), None, "the first answer is wanted at once");
    process.answer(0, ok("good 1"), after(0, 30));
    assert!(process.tick(after(0, 30)).is_empty(), "not as fast as it can answer");
    let (_, fetch) = process.fetch(after(0, 100));
    assert_eq!(header(&fetch, "prefer"), Some("wait=16"));
    assert_eq!(header(&fetch, "if-none-match"), Some("\"1\""));
    assert_eq!(fetch.timeout, Span::from_secs(18));
    // It is held, and the leader stays the leader.
    assert!(process.tick(at(4)).is_empty());
    assert!(process.tick(at(6)).is_empty() && process.workers[0].leads(at(6)));
    process.answer(0, http(200, Some("\"2\""), "good 2"), at(7));
    assert_eq!(process.workers[0].as_of(), at(7));
    assert!(process.workers[0].due(ID, at(7)).is_some());
    // Held to the end.
    process.answer(0, http(304, None, ""), at(23));
    process.fetch(at(23));
}

#[test]
fn a_server_that_does_not_wait_is_not_asked_in_a_loop() {
    for tag in [None, Some("\"1\"")] {
        let mut process = alone(long_poll());
        let mut asked = 0;
        for tick in 0..600 {
            let now = after(0, tick * 100);
            for (worker, _) in process.tick(now) {
                asked += 1;
                process.answer(worker, http(200, tag, "good"), now);
            }
        }
        assert!((6..=9).contains(&asked), "in a minute, {tag:?}: {asked}");
    }
}

#[test]
fn consul_is_asked_with_the_index_that_it_gave() {
    let mut process = alone(consul());
    let (_, fetch) = process.fetch(at(0));
    assert_eq!(header(&fetch, ":path"), Some("/policy.json"));
    assert_eq!(header(&fetch, "x-consul-token"), Some("s.secret"));
    assert!(!format!("{fetch:?}").contains("s.secret"));
    process.answer(0, at_index(200, "42", "good 1"), after(0, 20));
    let (_, fetch) = process.fetch(after(0, 100));
    assert_eq!(header(&fetch, ":path"), Some("/policy.json?index=42&wait=16000ms"));
    process.answer(0, at_index(200, "50", "good 2"), at(3));
    assert_eq!(process.documents(at(3)), [Some("good 2".to_owned())]);
    let (_, fetch) = process.fetch(at(3));
    assert_eq!(header(&fetch, ":path"), Some("/policy.json?index=50&wait=16000ms"));
    // An unfit value: the next one is waited for.
    let unfit = process.answer(0, at_index(200, "60", "bad"), at(4));
    assert!(matches!(unfit, Outcome::Unfit { .. }));
    assert_eq!(process.workers[0].breaker(), Breaker::Closed);
    let (_, fetch) = process.fetch(at(4));
    assert_eq!(header(&fetch, ":path"), Some("/policy.json?index=60&wait=16000ms"));
    assert_eq!(process.documents(at(4)), [Some("good 2".to_owned())]);
}

#[test]
fn consuls_index_starts_anew_after_anything_odd() {
    for (answer, expected) in [
        (Answer::None, None),
        (at_index(500, "43", ""), None),
        (at_index(403, "43", ""), None),
        (at_index(200, "41", "good"), None),
        (at_index(200, "0", "good"), None),
        (at_index(200, "x", "good"), None),
        (http(200, None, "good"), None),
        (Answer::TooLarge { bytes: 1000 }, None),
        (at_index(200, "43", "good"), Some(43)),
        (at_index(404, "43", ""), Some(43)),
    ] {
        let mut process = alone(consul());
        process.fetch(at(0));
        process.answer(0, at_index(200, "42", "good 1"), at(0));
        process.fetch(after(0, 100));
        process.answer(0, answer.clone(), at(20));
        assert_eq!(process.workers[0].remote.as_ref().unwrap().index, expected, "{answer:?}");
    }
    assert_eq!(next_index(None, Some("0")), Some(1));
}

#[test]
fn a_key_that_is_not_in_consul_is_waited_for() {
    let mut process = alone(consul());
    process.fetch(at(0));
    let outcome = process.answer(0, at_index(404, "7", ""), at(0));
    let reason = "the key does not exist".to_owned();
    assert_eq!(outcome, Outcome::Failed { reason, repeated: false });
    let (_, fetch) = process.fetch(after(0, 100));
    assert_eq!(header(&fetch, ":path"), Some("/policy.json?index=7&wait=16000ms"));
    assert_eq!(process.workers[0].breaker(), Breaker::Closed);
    process.answer(0, at_index(200, "9", "good"), at(2));
    assert_eq!(process.documents(at(2)), [Some("good".to_owned())]);
}

#[test]
fn discovery_leads_to_the_keys_and_is_repeated_when_they_fail() {
    let discovery = Protocol::Discovery {
        issuer: "https://idp".to_owned(),
        keys_cluster: "idp-keys".to_owned(),
    };
    let document = r#"{"issuer":"https://idp","jwks_uri":"http://keys/jwks"}"#;
    let mut process = alone(discovery);
    let (_, fetch) = process.fetch(at(0));
    assert_eq!((fetch.cluster.as_str(), header(&fetch, ":path")), ("policy", Some("/policy.json")));
    // Bounds are those of the keys; here the document is larger than what tests allow a body to be.
    assert_eq!(process.answer(0, http(200, None, document), after(0, 50)), Outcome::More);
    let keys = process.workers[0].due(ID, after(0, 50)).unwrap();
    assert_eq!((keys.cluster.as_str(), header(&keys, ":path")), ("idp-keys", Some("/jwks")));
    assert_eq!(header(&keys, ":authority"), Some("keys"));
    process.answer(0, ok("good"), after(0, 90));
    assert_eq!(process.workers[0].as_of(), after(0, 50));
    let (_, fetch) = process.fetch(after(10, 90));
    assert_eq!(header(&fetch, ":path"), Some("/jwks"));
    process.answer(0, http(404, None, ""), after(10, 90));
    let now = process.workers[0].next_at();
    let (_, fetch) = process.fetch(now);
    assert_eq!(header(&fetch, ":path"), Some("/policy.json"));
    let wrong = r#"{"issuer":"https://evil","jwks_uri":"http://keys/jwks"}"#;
    assert!(matches!(process.answer(0, http(200, None, wrong), now), Outcome::Unfit { .. }));
    assert_eq!(process.documents(now), [Some("good".to_owned())]);
}

#[test]
fn keys_that_fail_behind_a_discovery_that_works_open_the_breaker() {
    let discovery = Protocol::Discovery { issuer: "i".to_owned(), keys_cluster: "keys".to_owned() };
    let document = r#"{"issuer":"i","jwks_uri":"http://keys/jwks"}"#;
    let mut process = alone(discovery);
    let mut now = at(0);
    for _ in 0..3 {
        process.fetch(now);
        assert_eq!(process.answer(0, http(200, None, document), now), Outcome::More);
        assert!(process.workers[0].due(ID, now).is_some());
        process.answer(0, Answer::None, now);
        now = process.workers[0].next_at();
    }
    assert_eq!(process.workers[0].breaker(), Breaker::Open);
}

#[test]
fn what_the_reader_notes_is_told_to_the_next_reader_even_after_all_workers_were_replaced() {
    let counting = |body: &[u8], last: &str| {
        let number: u64 = std::str::from_utf8(body).unwrap().parse().unwrap();
        if !last.is_empty() && number <= last.parse().unwrap() {
            return Err(format!("{number} is not more than {last}"));
        }
        Ok(Read { document: String::new(), notes: vec![], mark: number.to_string() })
    };
    let mut process = alone(Protocol::Poll);
    process.fetch(at(0));
    let first = process.workers[0].answered(ok("7"), at(0), &reader(counting));
    assert!(matches!(first, Outcome::Updated { .. }));
    process.workers.clear();
    process.start(2);
    process.workers[0].sync(at(20), &reader(counting));
    assert!(process.workers[0].due(ID, at(20)).is_some());
    let reason = "6 is not more than 7".to_owned();
    let second = process.workers[0].answered(ok("6"), at(20), &reader(counting));
    assert_eq!(second, Outcome::Unfit { reason, repeated: false });
}

#[test]
fn what_the_reader_notes_outlives_a_change_of_the_configuration() {
    let noting = |_: &[u8], last: &str| {
        let mark = "noted".to_owned();
        if last.is_empty() {
            return Ok(Read { document: String::new(), notes: vec![], mark });
        }
        Err(format!("after {last}"))
    };
    let mut process = alone(Protocol::Poll);
    process.fetch(at(0));
    process.workers[0].answered(ok("7"), at(0), &reader(noting));
    for (number, protocol) in [(2, long_poll()), (3, consul())] {
        process.protocol = protocol;
        process.start(number);
        let feed = process.workers.last_mut().unwrap();
        feed.sync(at(1), &reader(noting));
        assert!(feed.due(ID, at(1)).is_some());
        let reason = "after noted".to_owned();
        let outcome = feed.answered(ok("7"), at(1), &reader(noting));
        assert_eq!(outcome, Outcome::Unfit { reason, repeated: false });
    }
}

#[test]
fn the_same_bytes_again_are_no_update() {
    let mut process = loaded(Protocol::Poll);
    process.fetch(at(10));
    let again = http(200, Some("\"2\""), "good 1");
    assert_eq!(process.answer(0, again, at(10)), Outcome::Unchanged);
    let (_, fetch) = process.fetch(at(20));
    assert_eq!(header(&fetch, "if-none-match"), Some("\"2\""));
}

#[test]
fn what_others_wrote_into_the_store_breaks_nothing() {
    let junk: [&[u8]; 4] = [b"", b"\xff", b"a\nb\nc", b"\n\n\n\n\n\n\n\n\n\n\n\n\n\n"];
    for junk in junk {
        let mut process = Process::new(2, Protocol::Poll);
        for slot in 0..64 {
            for part in ["state", "document.0.0", "document.1.0", "wanted"] {
                let key = format!("airflow-envoy.{slot}.{part}");
                process.shared.write(&key, junk, None).unwrap();
            }
        }
        let (leader, _) = process.fetch(at(0));
        process.answer(leader, ok("good"), at(0));
        assert_eq!(process.documents(at(0)), vec![Some("good".to_owned()); 2]);
    }
}

/// A reader that counts: every document is a number, and a smaller one than before is unfit.
fn counting(body: &[u8], last: &str) -> Result<Read<String>, String> {
    let text = std::str::from_utf8(body).unwrap();
    let number: u64 = text.parse().unwrap();
    match last.parse::<u64>() {
        Ok(last) if number < last => Err(format!("{number} is less than {last}")),
        _ => Ok(Read { document: text.to_owned(), notes: vec![], mark: number.to_string() }),
    }
}

#[test]
fn who_cannot_load_what_was_published_neither_trusts_the_old_document_nor_stays_without() {
    for lost in [&b""[..], b"junk"] {
        let mut process = Process::new(2, Protocol::Poll);
        let (leader, _) = process.fetch(at(0));
        process.answer(leader, ok("good 1"), at(0));
        assert_eq!(process.documents(at(0)), vec![Some("good 1".to_owned()); 2]);
        process.fetch(at(10));
        process.answer(leader, http(200, Some("\"2\""), "good 2"), at(10));
        process.shared.write(&document_key(2), lost, None).unwrap();
        let other = 1 - leader;
        process.documents(at(10));
        assert_eq!(process.workers[other].as_of(), at(0), "the old one was not confirmed");
        let mut asked = 0;
        for second in 11..40 {
            for (worker, fetch) in process.tick(at(second)) {
                asked += 1;
                let tag = header(&fetch, "if-none-match").map(str::to_owned);
                let answer = match tag.as_deref() {
                    Some("\"2\"") => http(304, None, ""),
                    _ => http(200, Some("\"2\""), "good 2"),
                };
                process.answer(worker, answer, at(second));
            }
        }
        assert_eq!(process.documents(at(40)), vec![Some("good 2".to_owned()); 2]);
        assert!(asked <= 4, "{asked}");
    }
}

#[test]
fn a_document_that_another_version_was_written_over_is_not_loaded() {
    // A leader that was stopped between the two writes of a publication goes on after another one
    // has published the same version.
    let mut process = Process::new(2, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    process.answer(leader, ok("good 1"), at(0));
    let late = process.shared.read(&document_key(1)).unwrap().0;
    let digest = |body: &str| hexadecimal::of_bytes(&Sha256::digest(body));
    let late = String::from_utf8_lossy(&late)
        .replace(&digest("good 1"), &digest("good 0"))
        .replace("good 1", "good 0");
    process.shared.write(&document_key(1), late.as_bytes(), None).unwrap();
    let documents = process.documents(at(0));
    assert!(!documents.contains(&Some("good 0".to_owned())), "{documents:?}");
}

#[test]
fn a_publication_that_broke_off_leaves_nobody_without_a_document() {
    let mut process = Process::new(2, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    process.answer(leader, ok("good 1"), at(0));
    process.documents(at(0));
    let before = process.shared.read("airflow-envoy.0.state").unwrap().0;
    process.fetch(at(10));
    process.answer(leader, http(200, Some("\"2\""), "good 2"), at(10));
    process.shared.write("airflow-envoy.0.state", &before, None).unwrap();
    // Its VM is gone, a new one comes, and the server is back at the first document.
    process.workers.remove(leader);
    process.start(9);
    for tick in 0..200 {
        let now = after(10, tick * 100);
        for (worker, fetch) in process.tick(now) {
            let answer = match header(&fetch, "if-none-match") {
                Some(_) => http(304, None, ""),
                None => ok("good 1"),
            };
            process.answer(worker, answer, now);
        }
    }
    assert_eq!(process.documents(at(30)), vec![Some("good 1".to_owned()); 2]);
}

#[test]
fn a_document_that_cannot_be_read_here_does_not_keep_the_old_one_young() {
    let mut process = Process::new(2, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    process.answer(leader, ok("good 1"), at(0));
    process.documents(at(0));
    process.fetch(at(10));
    process.answer(leader, ok("good 2"), at(10));
    let refusing = |_: &[u8], _: &str| Err("not here".to_owned());
    let other = &mut process.workers[1 - leader];
    assert!(matches!(other.sync(at(10), &reader(refusing)), Some(Outcome::Unfit { .. })));
    assert!(other.sync(at(10), &reader(refusing)).is_none(), "it is read once");
    assert!(other.usable(at(60)).is_some() && other.usable(at(61)).is_none());
}

#[test]
fn what_the_reader_notes_outlives_a_change_of_the_configuration_and_back() {
    let mut process = alone(Protocol::Poll);
    let mut fetched = |process: &mut Process, number, body, seconds| {
        process.start(number);
        let feed = process.workers.last_mut().unwrap();
        feed.sync(at(seconds), &reader(counting));
        let before = feed.current().map(|it| it.to_string());
        assert!(feed.due(ID, at(seconds)).is_some());
        (before, feed.answered(ok(body), at(seconds), &reader(counting)))
    };
    let fetched = &mut fetched;
    process.workers.clear();
    assert!(matches!(fetched(&mut process, 1, "5", 0).1, Outcome::Updated { .. }));
    process.workers.clear();
    process.protocol = long_poll();
    assert!(matches!(fetched(&mut process, 2, "9", 20).1, Outcome::Updated { .. }));
    process.workers.clear();
    process.protocol = Protocol::Poll;
    let (before, outcome) = fetched(&mut process, 3, "6", 40);
    assert_eq!(before, None, "what was replaced elsewhere is not in use again");
    let reason = "6 is less than 9".to_owned();
    assert_eq!(outcome, Outcome::Unfit { reason, repeated: false });
}

#[test]
fn a_leader_that_reads_for_longer_than_its_lease_publishes_all_the_same() {
    use std::cell::RefCell;
    let mut process = Process::new(2, Protocol::Poll);
    let (slow, _) = process.fetch(at(0));
    let other = Rc::new(RefCell::new(process.workers.remove(1 - slow)));
    let waiting = Rc::clone(&other);
    let slowly = move |body: &[u8], last: &str| {
        waiting.borrow_mut().sync(at(4), &read());
        assert!(waiting.borrow_mut().due(ID, at(4)).is_some(), "the lease is over");
        read_good(body, last)
    };
    let outcome = process.workers[0].answered(ok("good slow"), at(0), &reader(slowly));
    assert!(matches!(outcome, Outcome::Updated { .. }), "{outcome:?}");
    let mut other = other.borrow_mut();
    assert_eq!(other.answered(ok("good other"), at(8), &read()), Outcome::Superseded);
    assert!(other.sync(at(8), &read()).is_some());
    assert_eq!(other.usable(at(8)).map(|it| it.as_str()), Some("good slow"));
}

#[test]
fn no_server_is_asked_more_than_ten_times_a_second() {
    type Server = fn(u64) -> Answer;
    let servers: [(&str, Server, usize); 5] = [
        ("an unfit value", |_| at_index(200, "7", "bad"), 60),
        ("an index that rises", |n| at_index(200, &n.to_string(), "bad"), 60),
        ("another value each time", |n| at_index(200, &n.to_string(), &format!("good {n}")), 610),
        ("no value", |n| at_index(404, &n.to_string(), ""), 60),
        ("no index", |_| http(200, None, "bad"), 60),
    ];
    for (what, server, most) in servers {
        let mut process = alone(consul());
        let (mut asked, mut now) = (0, at(0));
        while now < at(60) {
            for (worker, _) in process.tick(now) {
                let mut open = true;
                while open && now < at(60) {
                    asked += 1;
                    now = now.plus(Span::from_millis(21));
                    process.answer(worker, server(asked), now);
                    open = process.workers[worker].due(ID, now).is_some();
                }
            }
            now = now.plus(Span::from_millis(10));
        }
        assert!(asked as usize <= most, "{what}: {asked} in a minute");
    }
}

#[test]
fn the_tag_of_one_place_is_not_shown_to_another() {
    let discovery = Protocol::Discovery { issuer: "i".to_owned(), keys_cluster: "keys".to_owned() };
    let at_place = |place: &str| {
        let document = format!(r#"{{"issuer":"i","jwks_uri":"http://k/{place}"}}"#);
        http(200, None, &document)
    };
    let mut process = alone(discovery);
    process.fetch(at(0));
    process.answer(0, at_place("old"), at(0));
    process.workers[0].due(ID, at(0)).unwrap();
    process.answer(0, ok("good 1"), at(0));
    // The keys move: the old place is gone, and the new one happens to use the same tag.
    process.fetch(at(10));
    process.answer(0, http(404, None, ""), at(10));
    let now = process.workers[0].next_at();
    process.fetch(now);
    process.answer(0, at_place("new"), now);
    let keys = process.workers[0].due(ID, now).unwrap();
    assert_eq!(header(&keys, ":path"), Some("/new"));
    assert_eq!(header(&keys, "if-none-match"), None);
}

#[test]
fn a_wish_from_before_the_clock_was_set_back_does_not_hide_a_new_one() {
    let mut process = Process::new(2, Protocol::Poll);
    let (leader, _) = process.fetch(at(0));
    process.answer(leader, ok("good 1"), at(0));
    process.workers[leader].want(at(9));
    process.fetch(at(9));
    process.answer(leader, http(304, None, ""), at(9));
    let mut now = at(-60);
    let (leader, _) = process.fetch(now);
    process.answer(leader, http(304, None, ""), now);
    now = now.plus(Span::from_secs(4));
    process.workers[1 - leader].want(now);
    process.fetch(now);
}

#[test]
fn not_modified_is_no_answer_to_a_question_without_a_tag() {
    let mut process = alone(Protocol::Poll);
    process.fetch(at(0));
    process.answer(0, http(200, None, "good 1"), at(0));
    process.fetch(at(10));
    let outcome = process.answer(0, http(304, None, ""), at(10));
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
}

#[test]
fn a_tag_that_is_too_long_to_be_kept_is_none() {
    let mut process = alone(Protocol::Poll);
    process.fetch(at(0));
    let tag = format!("\"{}\"", "x".repeat(100_000));
    process.answer(0, http(200, Some(&tag), "good 1"), at(0));
    let (_, fetch) = process.fetch(at(10));
    assert_eq!(header(&fetch, "if-none-match"), None);
}

/// A reader that takes its time: a unit for each byte.
fn slow_reader() -> Reader<String> {
    Rc::new(|body: Body, mark: String, pace: Pace| {
        Box::pin(async move {
            for _ in body.iter() {
                pace.spend(1).await;
            }
            read_good(&body, &mark)
        })
    })
}

fn large(version: usize) -> String {
    format!("good {version} {}", "x".repeat(600_000 + version))
}

/// Goes on loading in every worker until there is nothing more to do; the outcomes of each.
fn load(workers: &mut [Feed<String>], now: UnixTime) -> Vec<Vec<Outcome>> {
    let mut outcomes = vec![Vec::new(); workers.len()];
    for _ in 0..10_000 {
        for (feed, outcomes) in workers.iter_mut().zip(&mut outcomes) {
            outcomes.extend(feed.go_on(500, now));
        }
        if workers.iter().all(|feed| !feed.is_loading()) {
            return outcomes;
        }
    }
    panic!("it is never loaded: {outcomes:?}");
}

fn large_feeds(workers: u64) -> Process {
    large_feeds_by(Protocol::Poll, workers)
}

fn large_feeds_by(protocol: Protocol, workers: u64) -> Process {
    let mut process = Process::new(0, protocol);
    for number in 1..=workers {
        let shared = Rc::clone(&process.shared) as Rc<dyn SharedData>;
        let site = Site { shared, worker: number, limits: Limits::DEFAULT };
        let endpoint = endpoint(process.protocol.clone());
        process.workers.push(Feed::remote(endpoint, 1 << 20, "", &site));
    }
    process
}

fn first_word(feed: &Feed<String>, now: UnixTime) -> Option<String> {
    feed.usable(now).map(|it| it.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_large_document_is_loaded_while_the_one_before_it_stays_in_use() {
    let mut process = large_feeds(2);
    let (mut now, slow) = (at(0), slow_reader());
    let mut sizes = Vec::new();
    for version in 1..=4 {
        let (leader, _) = process.fetch(now);
        let feed = &mut process.workers[leader];
        assert_eq!(feed.answered(ok(&large(version)), now, &slow), Outcome::Loading);
        let before = (version > 1).then(|| format!("good {}", version - 1));
        for seconds in 0..5 {
            now = now.plus(Span::from_secs(1));
            for feed in &mut process.workers {
                assert_eq!(feed.sync(now, &slow), None);
                assert!(
                    feed.due(ID, now).is_none(),
                    "who loads stays the leader, and asks nothing"
                );
                feed.go_on(500, now);
                assert_eq!(first_word(feed, now), before, "{seconds}");
            }
        }
        let outcomes = load(&mut process.workers, now);
        assert_eq!(outcomes[leader], [Outcome::Updated { notes: vec![] }]);
        let other = &mut process.workers[1 - leader];
        assert_eq!(other.sync(now, &slow), Some(Outcome::Loading));
        assert_eq!(first_word(other, now), before);
        let outcomes = load(&mut process.workers, now);
        assert_eq!(outcomes[1 - leader], [Outcome::Updated { notes: vec![] }]);
        for feed in &mut process.workers {
            assert_eq!(first_word(feed, now), Some(format!("good {version}")));
            assert_eq!(feed.take_retired().len(), usize::from(version > 1), "the former one");
        }
        sizes.push(process.shared.size().0);
        now = now.plus(Span::from_secs(20));
    }
    let most = sizes.iter().max().unwrap();
    assert!(*most < 700_000, "only the last document is kept: {sizes:?}");
}

#[test]
fn a_large_document_that_is_replaced_while_it_is_loaded_comes_into_use_all_the_same() {
    let (mut process, slow) = (large_feeds(2), slow_reader());
    let (leader, _) = process.fetch(at(0));
    process.workers[leader].answered(ok(&large(1)), at(0), &slow);
    load(&mut process.workers, at(0));
    let other = 1 - leader;
    assert_eq!(process.workers[other].sync(at(0), &slow), Some(Outcome::Loading));
    while process.workers[other].is_loading() {
        // Past the copying.
        process.workers[other].go_on(100_000, at(0));
        if !process.workers[leader].is_loading()
            && process.workers[leader].due(ID, at(10)).is_some()
        {
            process.workers[leader].answered(ok(&large(2)), at(10), &slow);
        }
        process.workers[leader].go_on(u64::MAX, at(10));
    }
    assert_eq!(first_word(&process.workers[other], at(10)).as_deref(), Some("good 1"));
    assert_eq!(process.workers[other].as_of(), at(0), "the newer one does not make it younger");
    process.workers[other].sync(at(10), &slow);
    load(&mut process.workers, at(10));
    assert_eq!(first_word(&process.workers[other], at(10)).as_deref(), Some("good 2"));
}

#[test]
fn a_large_document_of_which_a_part_is_lost_is_fetched_again() {
    let (mut process, slow) = (large_feeds(2), slow_reader());
    let (leader, _) = process.fetch(at(0));
    process.workers[leader].answered(ok(&large(1)), at(0), &slow);
    load(&mut process.workers, at(0));
    let parts: Vec<_> = (0..4).map(|part| format!("airflow-envoy.0.document.1.{part}")).collect();
    let (first, _) = process.shared.read(&parts[0]).unwrap();
    assert!(process.shared.read(&parts[2]).is_some() && process.shared.read(&parts[3]).is_none());
    for junk in
        [&b""[..], b"junk", &first[..first.len() - 1], &[first.clone(), first.clone()].concat()]
    {
        process.shared.write(&parts[1], junk, None).unwrap();
        let shared = Rc::clone(&process.shared) as Rc<dyn SharedData>;
        let site = Site { shared, worker: 9, limits: Limits::DEFAULT };
        process.workers.push(Feed::remote(endpoint(Protocol::Poll), 1 << 20, "", &site));
        let new = process.workers.len() - 1;
        process.workers[new].sync(at(1), &slow);
        load(&mut process.workers[new..], at(1));
        assert_eq!(first_word(&process.workers[new], at(1)), None);
        process.workers.truncate(2);
        process.shared.write(&parts[1], &first, None).unwrap();
    }
}

#[test]
fn a_held_answer_is_as_new_as_its_arrival_however_long_it_is_read() {
    let (mut process, slow) = (large_feeds_by(long_poll(), 1), slow_reader());
    process.fetch(at(0));
    process.answer(0, ok("good 0"), at(0));
    let (_, fetch) = process.fetch(at(1));
    assert!(header(&fetch, "prefer").is_some());
    let feed = &mut process.workers[0];
    let answer = http(200, Some("\"2\""), &large(1));
    assert_eq!(feed.answered(answer, at(2), &slow), Outcome::Loading);
    load(std::slice::from_mut(feed), at(30));
    assert_eq!(first_word(feed, at(30)).as_deref(), Some("good 1"));
    assert_eq!(feed.as_of(), at(2));
    assert_eq!(first_word(feed, at(63)), None, "a minute after it came");
}

#[test]
fn a_large_document_that_is_lost_while_the_same_one_is_looked_at_is_published_again() {
    let (mut process, slow) = (large_feeds(2), slow_reader());
    let (leader, _) = process.fetch(at(0));
    process.workers[leader].answered(ok(&large(1)), at(0), &slow);
    load(&mut process.workers, at(0));
    let other = 1 - leader;

    assert!(process.workers[leader].due(ID, at(10)).is_some());
    let feed = &mut process.workers[leader];
    assert_eq!(feed.answered(ok(&large(1)), at(10), &slow), Outcome::Loading);
    // Meanwhile the other one misses a part.
    process.shared.write("airflow-envoy.0.document.1.1", b"", None).unwrap();
    assert_eq!(process.workers[other].sync(at(10), &slow), Some(Outcome::Superseded));
    let outcomes = load(&mut process.workers[leader..=leader], at(10));
    assert_eq!(outcomes[0], [Outcome::Superseded]);

    assert!(process.workers[leader].due(ID, at(12)).is_some(), "as soon as may be");
    process.workers[leader].answered(ok(&large(1)), at(12), &slow);
    load(&mut process.workers, at(12));
    process.workers[other].sync(at(12), &slow);
    load(&mut process.workers, at(12));
    assert_eq!(first_word(&process.workers[other], at(12)).as_deref(), Some("good 1"));
}

/// A worker alone, whose documents may be as large as policies.
fn of_policies(protocol: Protocol) -> Process {
    let mut process = Process::new(0, protocol);
    let shared = Rc::clone(&process.shared) as Rc<dyn SharedData>;
    let site = Site { shared, worker: 1, limits: Limits::DEFAULT };
    let most = Limits::DEFAULT.policy_bytes;
    process.workers.push(Feed::remote(endpoint(process.protocol.clone()), most, "", &site));
    process
}

/// A document of so many bytes.
fn of_size(bytes: usize) -> String {
    let mut text = "good ".to_owned();
    text.extend(std::iter::repeat_n('x', bytes - text.len()));
    text
}

#[test]
fn for_an_answer_that_is_very_large_memory_is_made_ready_and_it_is_asked_for_once_more() {
    const BYTES: usize = 8 << 20;
    let mut process = of_policies(long_poll());
    process.fetch(at(0));
    process.answer(0, ok("good 1"), at(0));
    let (_, fetch) = process.fetch(at(1));
    assert!(fetch.room.is_empty() && fetch.max_body < BYTES, "{}", fetch.max_body);
    let tag = header(&fetch, "if-none-match").unwrap().to_owned();
    assert_eq!(process.answer(0, Answer::TooLarge { bytes: BYTES }, at(2)), Outcome::Loading);

    let feed = &mut process.workers[0];
    let mut slices = 1;
    let outcome = loop {
        assert_eq!(feed.due(ID, at(4)), None, "it is not ready yet");
        assert!(feed.leads(at(4)));
        match feed.go_on(500, at(4)) {
            Some(outcome) => break outcome,
            None => slices += 1,
        }
    };
    assert_eq!(outcome, Outcome::More);
    assert!(slices >= BYTES / (1 << 20), "less than a MiB at a time: {slices}");
    assert_eq!(first_word(feed, at(4)).as_deref(), Some("good 1"), "it stays in use");
    let fetch = feed.due(ID, at(4)).unwrap();
    assert!((BYTES..2 * BYTES).contains(&fetch.room.len()), "{}", fetch.room.len());
    assert_eq!(fetch.max_body, Limits::DEFAULT.policy_bytes);
    assert_eq!(header(&fetch, "if-none-match"), Some(tag.as_str()));
    let answer = http(200, Some("\"2\""), &of_size(BYTES));
    assert_eq!(process.answer(0, answer, at(5)), Outcome::Loading);
    let outcomes = load(&mut process.workers, at(5));
    assert_eq!(outcomes[0], [Outcome::Updated { notes: vec![] }]);
    assert_eq!(process.workers[0].breaker(), Breaker::Closed);

    // There is memory for the next one of this size.
    let (_, fetch) = process.fetch(at(6));
    assert!(fetch.room.is_empty() && fetch.max_body > BYTES);
    let answer = http(200, Some("\"3\""), &of_size(BYTES + 1));
    assert_eq!(process.answer(0, answer, at(7)), Outcome::Loading);
}

#[test]
fn an_answer_is_asked_for_once_more_only_once_and_only_if_it_may_be_so_large() {
    let mut process = of_policies(Protocol::Poll);
    let most = Limits::DEFAULT.policy_bytes;
    process.fetch(at(0));
    let outcome = process.answer(0, Answer::TooLarge { bytes: most + 1 }, at(0));
    assert!(matches!(outcome, Outcome::Unfit { .. }), "{outcome:?}");

    let now = process.workers[0].next_at();
    process.fetch(now);
    assert_eq!(process.answer(0, Answer::TooLarge { bytes: most }, now), Outcome::Loading);
    assert_eq!(load(&mut process.workers, now), [[Outcome::More]]);
    let (_, fetch) = process.fetch(now);
    assert_eq!((fetch.max_body, fetch.room.len()), (most, most));
    let outcome = process.answer(0, Answer::TooLarge { bytes: most }, now);
    assert!(matches!(outcome, Outcome::Unfit { .. }), "{outcome:?}");
}

#[test]
fn memory_that_is_ready_is_given_up_with_the_lead() {
    let mut process = of_policies(Protocol::Poll);
    process.fetch(at(0));
    process.answer(0, Answer::TooLarge { bytes: 8 << 20 }, at(0));
    assert_eq!(load(&mut process.workers, at(0)), [[Outcome::More]]);
    // It comes back to life when another one leads.
    process.start(2);
    process.workers[1].sync(at(9), &read());
    assert!(process.workers[1].due(ID, at(9)).is_some());
    process.workers[0].sync(at(9), &read());
    assert_eq!(process.workers[0].due(ID, at(9)), None);
    let (worker, fetch) = process.fetch(at(20));
    assert_eq!((worker, fetch.room.len()), (0, 0));
}

#[test]
fn a_large_answer_is_not_looked_at_in_the_callback_that_brings_it() {
    // Each is so many steps of hashing.
    for (parts, at_once) in [(12, true), (16, true), (17, false), (40, false)] {
        let mut process = large_feeds(1);
        let body = of_size(parts * HASHED_AT_ONCE);
        process.fetch(at(0));
        process.answer(0, ok(&body), at(0));
        load(&mut process.workers, at(0));

        process.fetch(at(10));
        process.answer(0, ok(&body), at(10));
        let mut left = 0;
        while process.workers[0].is_loading() {
            left += 1;
            // As much as one step costs.
            let outcome = process.workers[0].go_on(1, at(10));
            assert!(matches!(outcome, None | Some(Outcome::Unchanged)), "{outcome:?}");
        }
        assert_eq!(left < parts - 1, at_once, "{left} of {parts}");
    }
}

/// A store that counts the bytes that go in and out.
#[derive(Default)]
struct Counted {
    memory: Memory,
    moved: Cell<usize>,
}

impl SharedData for Counted {
    fn read(&self, key: &str) -> Option<(Vec<u8>, crate::shared::Stamp)> {
        let found = self.memory.read(key)?;
        self.moved.set(self.moved.get() + found.0.len());
        Some(found)
    }

    fn write(
        &self,
        key: &str,
        value: &[u8],
        unchanged: Option<crate::shared::Stamp>,
    ) -> Result<(), crate::shared::Refused> {
        self.moved.set(self.moved.get() + value.len());
        self.memory.write(key, value, unchanged)
    }

    fn announced(&self) -> u64 {
        self.memory.announced()
    }

    fn announce(&self) {
        self.memory.announce();
    }
}

#[test]
fn a_large_document_goes_through_the_store_a_few_parts_at_a_time() {
    const BYTES: usize = 8 << 20;
    let store = Rc::new(Counted::default());
    let site = |worker| Site {
        shared: Rc::clone(&store) as Rc<dyn SharedData>,
        worker,
        limits: Limits::DEFAULT,
    };
    let most = Limits::DEFAULT.policy_bytes;
    let mut feeds =
        [1, 2].map(|number| Feed::remote(endpoint(Protocol::Poll), most, "", &site(number)));
    let mut most_moved = 0;
    let mut counted = |feed: &mut Feed<String>, act: &dyn Fn(&mut Feed<String>)| {
        store.moved.set(0);
        act(feed);
        most_moved = most_moved.max(store.moved.get());
    };
    let now = at(0);
    feeds[0].sync(now, &read());
    feeds[0].due(ID, now).unwrap();
    for document in [of_size(BYTES), of_size(BYTES - 1)] {
        counted(&mut feeds[0], &|feed| {
            feed.due(ID, at(20));
            feed.answered(ok(&document), now, &read());
        });
        for worker in [0, 1] {
            counted(&mut feeds[worker], &|feed| _ = feed.sync(now, &read()));
            while feeds[worker].is_loading() {
                counted(&mut feeds[worker], &|feed| _ = feed.go_on(500, now));
            }
        }
        assert_eq!(feeds[1].current().map(|it| it.len()), Some(document.len()));
    }
    assert!((200_000..2 << 20).contains(&most_moved), "{most_moved} bytes at once");
}
