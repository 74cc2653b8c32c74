//! Conversations with Consul about intentions.

use super::*;

const MATCH: &str = "/v1/connect/intentions/match?by=destination&name=orders";
const LIST: &str = "/v1/connect/intentions?filter=x";
const OWN: &str = "/v1/config/service-intentions/orders";
const ANY: &str = "/v1/config/service-intentions/*?dc=dc2";

fn protocol(parts: &[&str]) -> Protocol {
    Protocol::ConsulIntentions {
        wait: Span::from_secs(16),
        token: Some(Secret("s.secret".to_owned())),
        questions: Box::new(Questions {
            parts: parts.iter().map(ToString::to_string).collect(),
            list: LIST.to_owned(),
        }),
    }
}

/// The workers' feeds, and one that asks.
struct Talk {
    feeds: Vec<Feed<String>>,
    asks: usize,
}

fn read(body: &[u8], _: &str) -> Result<Read<String>, String> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    match text.contains("good") {
        true => Ok(Read { document: text, notes: Vec::new(), mark: String::new() }),
        false => Err("not good".to_owned()),
    }
}

fn talk(parts: &[&str]) -> Talk {
    let shared: Rc<Memory> = Rc::default();
    let feeds = (1..=2).map(|worker| {
        let site = Site {
            shared: Rc::clone(&shared) as Rc<dyn SharedData>,
            worker,
            limits: Limits::DEFAULT,
        };
        let uri = Uri::parse(&format!("http://consul{}", parts[0])).unwrap();
        let endpoint = Endpoint { uri, ..endpoint(protocol(parts)) };
        Feed::remote(endpoint, 1000, "", &site)
    });
    Talk { feeds: feeds.collect(), asks: 0 }
}

impl Talk {
    /// The path that is asked for now, if one is.
    fn path(&mut self, now: UnixTime) -> Option<String> {
        let mut due = Vec::new();
        for (place, feed) in self.feeds.iter_mut().enumerate() {
            feed.sync(now, &reader(read));
            due.extend(feed.due(ID, now).map(|fetch| (place, fetch)));
        }
        assert!(due.len() <= 1, "{due:?}");
        let (place, fetch) = due.pop()?;
        self.asks = place;
        assert_eq!(header(&fetch, "x-consul-token"), Some("s.secret"));
        assert_eq!(header(&fetch, "if-none-match"), None);
        header(&fetch, ":path").map(str::to_owned)
    }

    #[track_caller]
    fn asks(&mut self, path: &str, now: UnixTime) {
        assert_eq!(self.path(now).as_deref(), Some(path));
    }

    fn hears(&mut self, status: u16, index: Option<&str>, body: &str, now: UnixTime) -> Outcome {
        let answer = match index {
            Some(index) => at_index(status, index, body),
            None => http(status, None, body),
        };
        self.feeds[self.asks].answered(answer, now, &reader(read))
    }

    /// What every worker has.
    fn documents(&mut self, now: UnixTime) -> Vec<Option<String>> {
        let documents = self.feeds.iter_mut().map(|feed| {
            feed.sync(now, &reader(read));
            feed.usable(now).map(|document| document.to_string())
        });
        documents.collect()
    }

    #[track_caller]
    fn have(&mut self, document: &str, now: UnixTime) {
        assert_eq!(self.documents(now), vec![Some(document.to_owned()); 2]);
    }
}

fn is_updated(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Updated { .. })
}

fn held(path: &str, index: u64) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}index={index}&wait=16000ms")
}

#[test]
fn answers_that_have_the_index_are_held_back_by_it() {
    let mut talk = talk(&[MATCH]);
    talk.asks(MATCH, at(0));
    assert!(is_updated(&talk.hears(200, Some("7"), "good 1", at(0))));
    talk.have("7\ngood 1", at(0));
    talk.asks(&held(MATCH, 7), after(0, 100));
    assert!(is_updated(&talk.hears(200, Some("9"), "good 2", at(5))));
    talk.have("9\ngood 2", at(5));
    // One about another service moves the index only: nothing new is published, and it is asked on.
    talk.asks(&held(MATCH, 9), at(5));
    assert_eq!(talk.hears(200, Some("12"), "good 2", at(6)), Outcome::Unchanged);
    talk.have("9\ngood 2", at(6));
    talk.asks(&held(MATCH, 12), at(6));
    // An index that goes back: from the start, but not at once.
    assert!(is_updated(&talk.hears(200, Some("3"), "good 3", at(7))));
    assert_eq!(talk.path(after(7, 500)), None);
    talk.asks(MATCH, at(17));
}

#[test]
fn an_old_consul_is_asked_for_its_list_and_then_for_the_document() {
    let mut talk = talk(&[MATCH]);
    talk.asks(MATCH, at(0));
    // The first answer counts, though it has no index.
    assert!(is_updated(&talk.hears(200, None, "good 1", at(0))));
    talk.have("0\ngood 1", at(0));
    talk.asks(LIST, at(0));
    // What the list says is not read: to whoever may not see anything it is empty.
    assert_eq!(talk.hears(200, Some("7"), "[]", at(0)), Outcome::More);
    talk.asks(MATCH, at(0));
    assert_eq!(talk.hears(200, None, "good 1", at(0)), Outcome::Unchanged);
    talk.asks(&held(LIST, 7), after(0, 100));
    assert_eq!(talk.hears(200, Some("8"), "[]", at(5)), Outcome::More);
    talk.asks(MATCH, at(5));
    assert!(is_updated(&talk.hears(200, None, "good 2", at(5))));
    talk.have("8\ngood 2", at(5));
    // At once again, as the question was held back.
    talk.asks(&held(LIST, 8), at(5));
    // Held back to the end, the document is confirmed by itself and not by the list.
    assert_eq!(talk.hears(200, Some("8"), "[]", at(21)), Outcome::More);
    talk.asks(MATCH, at(21));
    assert_eq!(talk.hears(200, None, "good 2", at(21)), Outcome::Unchanged);
    talk.asks(&held(LIST, 8), at(21));
}

#[test]
fn a_revoked_token_does_not_make_the_intentions_vanish() {
    let mut talk = talk(&[MATCH]);
    talk.asks(MATCH, at(0));
    talk.hears(200, None, "good 1", at(0));
    talk.asks(LIST, at(0));
    talk.hears(200, Some("7"), "[]", at(0));
    talk.asks(MATCH, at(0));
    // The list would still answer.
    let Outcome::Failed { reason, .. } = talk.hears(403, None, "Permission denied", at(1)) else {
        panic!()
    };
    assert_eq!(reason, "answered with status 403");
    talk.have("0\ngood 1", at(1));
    assert_eq!(talk.path(after(1, 200)), None);
    // From the start: the index means nothing any more.
    assert_eq!(talk.path(at(12)).as_deref(), Some(LIST));
    talk.hears(200, Some("7"), "[]", at(12));
    talk.asks(MATCH, at(12));
    talk.hears(403, None, "", at(12));
    // Too old to be relied on.
    assert_eq!(talk.documents(at(61)), [None, None]);
}

#[test]
fn two_entries_are_one_document() {
    let mut talk = talk(&[OWN, ANY]);
    talk.asks(LIST, at(0));
    assert_eq!(talk.hears(200, Some("7"), "[]", at(0)), Outcome::More);
    talk.asks(OWN, at(0));
    assert_eq!(talk.hears(200, Some("7"), "{\"a\":\"good\"}", at(0)), Outcome::More);
    talk.asks(ANY, at(0));
    assert!(is_updated(&talk.hears(404, Some("7"), "Config entry not found", at(0))));
    talk.have("7\n[{\"a\":\"good\"},null]", at(0));
    talk.asks(&held(LIST, 7), after(0, 100));
    talk.hears(200, Some("9"), "[]", at(4));
    talk.asks(OWN, at(4));
    talk.hears(404, Some("9"), "", at(4));
    talk.asks(ANY, at(4));
    talk.hears(200, Some("9"), "{\"b\":\"good\"}", at(4));
    talk.have("9\n[null,{\"b\":\"good\"}]", at(4));
}

#[test]
fn whatever_goes_wrong_within_a_conversation_keeps_the_document_and_begins_anew() {
    for (status, index, body) in [
        (500, Some("8"), ""),
        // No Consul says so.
        (404, None, "Not Found"),
        (403, Some("8"), ""),
        (200, Some("8"), "{\"a\":1}],[{"),
        (200, Some("8"), "<html>"),
    ] {
        let mut talk = talk(&[OWN, ANY]);
        talk.path(at(0));
        talk.hears(200, Some("7"), "[]", at(0));
        talk.path(at(0));
        talk.hears(200, Some("7"), "[\"good\"]", at(0));
        talk.path(at(0));
        talk.hears(404, Some("7"), "", at(0));
        talk.asks(&held(LIST, 7), after(0, 100));
        talk.hears(200, Some("8"), "[]", at(3));
        talk.asks(OWN, at(3));
        let outcome = talk.hears(status, index, body, at(3));
        assert!(matches!(outcome, Outcome::Failed { .. } | Outcome::Unfit { .. }), "{outcome:?}");
        talk.have("7\n[[\"good\"],null]", at(3));
        let again = (31..200).find_map(|tenth| talk.path(after(0, tenth * 100)));
        assert_eq!(again.as_deref(), Some(LIST), "{status} {body}");
    }
}

#[test]
fn a_document_that_is_unfit_is_asked_for_again_when_the_index_moves() {
    let mut talk = talk(&[MATCH]);
    talk.asks(MATCH, at(0));
    talk.hears(200, Some("7"), "good 1", at(0));
    talk.asks(&held(MATCH, 7), after(0, 100));
    assert!(matches!(talk.hears(200, Some("8"), "null", at(2)), Outcome::Unfit { .. }));
    talk.have("7\ngood 1", at(2));
    talk.asks(&held(MATCH, 8), at(2));
    assert!(is_updated(&talk.hears(200, Some("9"), "good 2", at(3))));
    talk.have("9\ngood 2", at(3));
}

#[test]
fn a_server_whose_index_always_moves_is_not_asked_as_fast_as_it_answers() {
    let mut talk = talk(&[MATCH]);
    let mut questions = 0;
    for tick in 0..1000 {
        let now = after(0, tick * 10);
        if talk.path(now).is_some() {
            questions += 1;
            talk.hears(200, Some(&questions.to_string()), "good 1", now);
        }
    }
    assert!((50..=110).contains(&questions), "{questions}");
}
