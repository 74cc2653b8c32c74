use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::*;
use crate::document::{Faults, Node, Report};

fn read(value: &serde_json::Value) -> Result<Settings, Faults> {
    let mut report = Report::new();
    let environment = |name: &str| (name == "COLLECTOR").then(|| "hush".to_owned());
    let settings = Settings::read(&Node::root(value), &mut report, &environment);
    report.finish(settings)
}

fn settings() -> Settings {
    let place = json!({ "cluster": "audit", "uri": "http://audit.internal/v1/records" });
    Settings { batch_bytes: 1000, queue_bytes: 4000, ..read(&place).unwrap() }
}

/// A record of 100 bytes in a batch.
fn record(seq: u64) -> Line {
    record_of(seq, 100)
}

fn record_of(seq: u64, weight: usize) -> Line {
    let text = format!("{{\"seq\":{seq}}}");
    Line::of(seq, format!("{text:.<width$}", width = weight - 1))
}

fn seqs(lines: &[Line]) -> Vec<u64> {
    lines.iter().map(Line::seq).collect()
}

/// A collector with a clock, and what became of the records.
struct World {
    collector: Collector,
    now: UnixTime,
    posts: Vec<Post>,
    logged: Vec<u64>,
    told: Vec<String>,
    next: u64,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            collector: Collector::new(settings, "0123456789abcdef".to_owned(), 7),
            now: UnixTime::from_secs(1_000_000),
            posts: Vec::new(),
            logged: Vec::new(),
            told: Vec::new(),
            next: 0,
        }
    }

    fn offer(&mut self, records: u64) {
        for _ in 0..records {
            if let Err(line) = self.collector.offer(record(self.next), self.now) {
                self.logged.push(line.seq());
            }
            self.next += 1;
        }
    }

    fn tick(&mut self, millis: i64) {
        self.now = self.now.plus(Span::from_millis(millis));
        let steps = self.collector.tick(self.now);
        self.carry_out(steps);
    }

    /// Answers the oldest post.
    fn answer(&mut self, status: Option<u16>) {
        let post = self.posts.remove(0);
        let steps = self.collector.answered(post.attempt, status, self.now);
        self.carry_out(steps);
    }

    fn carry_out(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Post(post) => self.posts.push(post),
                Step::Log(lines) => self.logged.extend(seqs(&lines)),
                Step::Tell(_, line) => self.told.push(line),
                Step::Count(_) => {}
            }
        }
    }

    /// Lets a batch of one record fail until the breaker opens.
    fn break_it(&mut self) {
        self.offer(1);
        self.tick(1000);
        for _ in 0..TOLERATED {
            self.answer(Some(500));
            self.tick(MOST_BACK_OFF.as_millis());
        }
        assert_eq!((self.posts.len(), self.collector.breaker()), (0, Breaker::Open));
    }
}

fn sent(post: &Post) -> Vec<u64> {
    let lines = post.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let text = str::from_utf8(line).unwrap();
            let digits = text.trim_start_matches("{\"seq\":").split('}').next().unwrap();
            digits.parse().unwrap()
        })
        .collect()
}

fn header<'p>(post: &'p Post, name: &str) -> Option<&'p str> {
    let found = post.headers.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| value.as_str())
}

#[test]
fn a_batch_is_sent_when_it_is_full() {
    let mut world = World::new(settings());
    world.offer(9);
    world.tick(0);
    assert!(world.posts.is_empty());
    world.offer(3);
    world.tick(0);
    assert_eq!(world.posts.len(), 1);
    let post = &world.posts[0];
    assert_eq!(sent(post), (0..10).collect::<Vec<_>>());
    assert_eq!(post.body.len(), 1000);
    assert!(post.body.ends_with(b"\n"));
}

#[test]
fn a_record_waits_no_longer_than_the_time_of_a_batch() {
    let mut world = World::new(settings());
    world.offer(1);
    world.tick(999);
    assert!(world.posts.is_empty());
    world.tick(1);
    assert_eq!(sent(&world.posts[0]), [0]);
}

#[test]
fn a_post_says_where_to_what_it_is_and_of_which_stream() {
    let token = Some(Secret("hush".to_owned()));
    let mut world = World::new(Settings { token, ..settings() });
    world.offer(10);
    world.tick(0);
    world.answer(Some(204));
    world.offer(10);
    world.tick(0);
    let post = &world.posts[0];
    assert_eq!((post.cluster.as_str(), post.timeout), ("audit", Span::from_secs(5)));
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "audit.internal"),
        (":path", "/v1/records"),
        ("content-type", "application/x-ndjson"),
        ("authorization", "Bearer hush"),
        ("x-airflow-envoy-stream", "0123456789abcdef"),
        ("x-airflow-envoy-batch", "0123456789abcdef-10"),
    ] {
        assert_eq!(header(post, name), Some(value), "{name}");
    }
    assert!(!format!("{post:?} {:?}", world.collector).contains("hush"));
}

#[test]
fn one_batch_is_on_its_way_at_once_unless_more_are_allowed() {
    for in_flight in [1, 3] {
        let mut world = World::new(Settings { in_flight, ..settings() });
        world.offer(40);
        world.tick(0);
        assert_eq!(world.posts.len(), in_flight);
        world.answer(Some(200));
        assert_eq!(world.posts.len(), in_flight, "the next one follows at once");
    }
}

#[test]
fn what_was_taken_makes_room() {
    let mut world = World::new(settings());
    world.offer(41);
    assert_eq!(world.logged, [40], "the queue is full");
    world.tick(0);
    world.offer(1);
    assert_eq!(world.logged, [40, 41], "what is on its way is kept until it is acknowledged");
    world.answer(Some(200));
    world.offer(10);
    assert_eq!((world.logged.len(), world.collector.held()), (2, 4000));
}

#[test]
fn a_batch_that_was_not_taken_is_sent_again_as_it_was() {
    for status in [Some(500), Some(302), Some(401), None] {
        let mut world = World::new(settings());
        world.offer(2);
        world.tick(1000);
        let first = world.posts[0].clone();
        world.answer(status);
        world.offer(20);
        world.tick(0);
        assert!(world.posts.is_empty(), "{status:?}: there is a pause");
        world.tick(500);
        assert_eq!(world.posts.len(), 1, "{status:?}");
        assert_eq!((&world.posts[0].body, &world.posts[0].headers), (&first.body, &first.headers));
        assert_ne!(world.posts[0].attempt, first.attempt);
        world.answer(Some(200));
        assert_eq!(sent(&world.posts[0])[0], 2);
        assert!(world.logged.is_empty());
    }
}

#[test]
fn after_some_failures_in_a_row_everything_goes_to_the_log_at_once() {
    let mut world = World::new(settings());
    world.offer(1);
    world.tick(1000);
    world.offer(3);
    for _ in 0..TOLERATED {
        assert_eq!((world.collector.breaker(), world.logged.len()), (Breaker::Closed, 0));
        world.answer(Some(503));
        world.tick(2000);
    }
    assert_eq!(world.collector.breaker(), Breaker::Open);
    assert_eq!(world.logged, [0, 1, 2, 3]);
    assert_eq!(world.collector.held(), 0);
    assert_eq!(world.told, ["the audit collector answered with status 503; records go to the log"]);
}

#[test]
fn while_the_breaker_is_open_new_records_go_to_the_log_until_one_batch_finds_it_back() {
    let mut world = World::new(settings());
    world.offer(1);
    world.tick(1000);
    for _ in 0..TOLERATED {
        world.answer(None);
        if world.collector.breaker() == Breaker::Closed {
            world.tick(2000);
        }
    }
    world.offer(2);
    assert_eq!(world.logged, [0, 1, 2]);
    world.tick(MOST_BACK_OFF.as_millis());
    world.offer(2);
    assert_eq!(world.logged.len(), 3, "it is time to try");
    world.tick(1000);
    assert_eq!(world.collector.breaker(), Breaker::HalfOpen);
    world.offer(1);
    assert_eq!(world.logged, [0, 1, 2, 5], "only that batch is at risk of having to wait");
    assert_eq!(sent(&world.posts[0]), [3, 4]);
    world.answer(Some(200));
    assert_eq!(world.collector.breaker(), Breaker::Closed);
    world.offer(1);
    assert_eq!(world.logged.len(), 4);
    assert_eq!(world.told.last().unwrap(), "the audit collector takes records again");
}

#[test]
fn a_probe_that_fails_goes_to_the_log_and_the_pause_grows() {
    let mut world = World::new(settings());
    world.break_it();
    world.offer(1);
    world.tick(1000);
    world.answer(Some(500));
    assert_eq!((world.logged.clone(), world.collector.breaker()), (vec![0, 1], Breaker::Open));
    // Four failures: between two seconds and four.
    world.tick(1999);
    world.offer(1);
    assert_eq!(world.logged, [0, 1, 2]);
    world.tick(2001);
    world.offer(1);
    assert_eq!(world.logged, [0, 1, 2]);
    assert_eq!(world.told.len(), 1, "it is told once");
}

#[test]
fn a_batch_that_always_fails_beside_others_that_do_not_goes_to_the_log() {
    let mut world = World::new(settings());
    world.offer(1);
    world.tick(1000);
    world.answer(Some(413));
    world.tick(500);
    world.answer(Some(413));
    // Something else succeeds in between.
    world.collector.failures = 0;
    world.tick(0);
    world.answer(Some(413));
    assert_eq!((world.logged.clone(), world.collector.held()), (vec![0], 0));
    assert_eq!(world.collector.breaker(), Breaker::Closed);
}

#[test]
fn an_answer_that_never_comes_is_a_failure_and_one_that_comes_late_is_nothing() {
    let mut world = World::new(settings());
    world.offer(1);
    world.tick(1000);
    let late = world.posts.remove(0);
    world.tick(10_000);
    assert!(world.posts.is_empty());
    world.tick(1);
    world.tick(500);
    assert_eq!((world.posts.len(), sent(&world.posts[0])), (1, vec![0]));
    assert_eq!(world.collector.answered(late.attempt, Some(200), world.now), []);
    world.answer(Some(200));
    assert_eq!(world.collector.held(), 0);
}

#[test]
fn a_record_larger_than_a_batch_is_one_by_itself() {
    let mut world = World::new(settings());
    for (seq, weight) in [(0, 100), (1, 1500), (2, 100)] {
        world.collector.offer(record_of(seq, weight), world.now).unwrap();
    }
    for expected in [0, 1, 2] {
        world.tick(1000);
        assert_eq!(sent(&world.posts[0]), [expected]);
        world.answer(Some(200));
    }
}

#[test]
fn at_the_end_everything_that_is_not_acknowledged_goes_to_the_log_in_order() {
    let mut world = World::new(settings());
    world.offer(10);
    world.tick(0);
    world.answer(Some(500));
    world.offer(15);
    world.tick(500);
    assert_eq!(world.posts.len(), 1);
    let lines = world.collector.close();
    assert_eq!(seqs(&lines), (0..25).collect::<Vec<_>>());
    assert_eq!((world.collector.held(), world.collector.close()), (0, Vec::new()));
    // The answer to what was given up changes nothing.
    world.answer(Some(200));
    world.tick(60_000);
    assert!(world.posts.is_empty());
}

#[test]
fn a_clock_that_is_set_back_stops_nothing() {
    let mut world = World::new(settings());
    world.break_it();
    world.tick(-86_400_000);
    world.offer(1);
    assert_eq!(world.logged, [0], "the time of the next try means nothing any more");
    world.tick(1000);
    assert_eq!(sent(&world.posts.remove(0)), [1]);
    world.tick(-86_400_000);
    assert_eq!(world.logged, [0, 1], "nor does the time of the last one");
}

/// Whatever the collector, the clock and the callers do: each record is taken, or it is in the log.
#[test]
fn no_record_is_lost_in_any_schedule() {
    let mut reached = BTreeSet::new();
    for seed in 0..100 {
        let mut random = Jitter::new(seed);
        // 0 ..= most
        let mut up_to = move |most: i64| most - random.less(Span::from_millis(most), 1).as_millis();
        let in_flight = usize::try_from(1 + up_to(3)).unwrap();
        let mut world = World::new(Settings { in_flight, ..settings() });
        let (mut taken, mut bodies) = (BTreeSet::new(), BTreeMap::new());
        let trouble = up_to(3);
        for _ in 0..300 {
            match up_to(5) {
                0 | 1 => {
                    for _ in 0..up_to(30) {
                        let seq = world.next;
                        world.next += 1;
                        let most = up_to(1300);
                        let weight = usize::try_from(20 + up_to(most)).unwrap();
                        if let Err(line) = world.collector.offer(record_of(seq, weight), world.now)
                        {
                            assert_eq!(line, record_of(seq, weight));
                            world.logged.push(seq);
                        }
                    }
                }
                2 => world.tick(up_to(400)),
                3 if up_to(8) == 0 => world.tick(up_to(40_000) - 20_000),
                3 => world.tick(up_to(3000)),
                _ if world.posts.is_empty() => world.tick(100),
                _ => {
                    let index = up_to(i64::try_from(world.posts.len()).unwrap() - 1);
                    let post = world.posts.remove(usize::try_from(index).unwrap());
                    let name = header(&post, BATCH_HEADER).unwrap().to_owned();
                    let before = bodies.insert(name, post.body.clone());
                    assert!(before.is_none_or(|before| before == post.body), "a batch changed");
                    assert!(post.body.len() <= 1000 || sent(&post).len() == 1);
                    let fails = up_to(3) < trouble;
                    // An answer may be lost on the way back, and the batch may be taken all the same.
                    let is_taken = !fails || up_to(3) == 0;
                    if is_taken {
                        taken.extend(sent(&post));
                    }
                    let status = match (fails, up_to(3)) {
                        (true, 0 | 1) => Some(500),
                        (true, 2) => None,
                        // Never answered.
                        (true, _) => continue,
                        (false, _) => Some(200),
                    };
                    let steps = world.collector.answered(post.attempt, status, world.now);
                    world.carry_out(steps);
                }
            }
            assert!(world.collector.held() <= 4000);
            assert!(world.collector.flights.len() <= in_flight);
            reached.insert(world.collector.breaker().name());
        }
        let held = world.collector.held();
        let rest = world.collector.close();
        assert_eq!(rest.iter().map(weight).sum::<usize>(), held, "what is kept is accounted for");
        let safe: BTreeSet<_> =
            seqs(&rest).into_iter().chain(world.logged).chain(taken.iter().copied()).collect();
        let lost: Vec<_> = (0..world.next).filter(|seq| !safe.contains(seq)).collect();
        assert_eq!(lost, Vec::<u64>::new(), "seed {seed}: of {} records", world.next);
        assert!(trouble > 0 || !taken.is_empty());
    }
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), ["closed", "half_open", "open"]);
}

#[test]
fn the_settings_have_defaults_and_bounds() {
    let read = |more: serde_json::Value| {
        let mut value = json!({ "cluster": "audit", "uri": "https://audit.internal/x" });
        value.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        read(&value)
    };
    let defaults = read(json!({})).unwrap();
    assert_eq!(
        (defaults.batch_bytes, defaults.queue_bytes, defaults.in_flight),
        (64 * 1024, 1024 * 1024, 1)
    );
    assert_eq!((defaults.batch_time, defaults.timeout), (Span::from_secs(1), Span::from_secs(5)));
    assert_eq!(read(json!({ "token_env": "COLLECTOR" })).unwrap().token.unwrap().0, "hush");
    for (more, problem) in [
        (json!({ "uri": "audit" }), "uri: `audit` is not an absolute http or https URI"),
        (json!({ "batch_bytes": 12 }), "batch_bytes: `12` is not between 1024 and 1048576"),
        (json!({ "queue_bytes": "1 MiB" }), "queue_bytes: expected a whole number, found a string"),
        (json!({ "in_flight": 5 }), "in_flight: `5` is not between 1 and 4"),
        (json!({ "batch_time": "1ms" }), "batch_time: 1 ms is not between 100 ms and 60 s"),
        (json!({ "retries": 3 }), "unknown field `retries`"),
        (
            json!({ "token_env": "ELSE" }),
            "token_env: the variable `ELSE` is not set to a token; see \
             `vm_config.environment_variables`",
        ),
        (
            json!({ "queue_bytes": 16384 }),
            "`queue_bytes` 16384 are less than `batch_bytes` 65536: no batch would ever be full",
        ),
    ] {
        let faults = read(more.clone()).unwrap_err().to_string();
        assert!(faults.starts_with(problem), "{more}: {faults}");
    }
}
