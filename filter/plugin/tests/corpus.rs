//! The case corpus through the shipped host calls, against a host in the test binary.

#[expect(dead_code, reason = "shared with the other tests of the filter, which use the rest")]
mod host;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use airflow_envoy_corpus::{Answer, Subject};
use serde_json::Value;

/// What [`host::Filter::start`] sets the clock to.
const NOW: i64 = 1_800_000_000;

type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// The filter; a new one, on a thread of its own, for each configuration.
#[derive(Default)]
struct Plugin {
    worker: Option<(Sender<(Headers, i64)>, Receiver<Result<Answer, String>>)>,
}

impl Subject for Plugin {
    fn name(&self) -> &'static str {
        "plugin, native host"
    }

    fn configure(&mut self, configuration: &[u8]) -> Result<(), String> {
        let configuration = String::from_utf8(configuration.to_vec()).map_err(|e| e.to_string())?;
        let (ask, asked) = channel::<(Headers, i64)>();
        let (answer, answered) = channel();
        let (start, started) = channel();
        thread::spawn(move || {
            let mut filter = match host::Filter::start(&configuration) {
                Ok(filter) => filter,
                Err(log) => return start.send(Err(log.join("\n"))).unwrap_or_default(),
            };
            start.send(Ok(())).unwrap_or_default();
            let mut clock = NOW;
            for (headers, now) in asked {
                if now > clock {
                    filter.tick(u64::try_from(now - clock).unwrap() * 1000);
                    clock = now;
                }
                answer.send(respond(&mut filter, &headers)).unwrap_or_default();
            }
        });
        self.worker = Some((ask, answered));
        started.recv().map_err(|_| "the filter panicked".to_owned())?
    }

    fn answer(&mut self, headers: &[(Vec<u8>, Vec<u8>)], now: i64) -> Result<Answer, String> {
        let (ask, answered) = self.worker.as_ref().ok_or("not configured")?;
        let panicked = "the filter panicked";
        ask.send((headers.to_vec(), now)).map_err(|_| panicked)?;
        answered.recv().map_err(|_| panicked)?
    }
}

fn respond(filter: &mut host::Filter, headers: &Headers) -> Result<Answer, String> {
    let (stream, goes_on) = filter.request(headers);
    let seen = host::seen(stream);
    filter.end(stream);
    if goes_on {
        return match seen.reply {
            None => Ok(Answer::Permit {
                rule: seen.state.get("airflow_envoy.rule").cloned(),
                headers: seen.headers,
            }),
            Some(_) => Err("was answered and went on".to_owned()),
        };
    }
    let reply = seen.reply.ok_or("neither went on nor was answered")?;
    let problem: Value = serde_json::from_str(&reply.body).map_err(|error| error.to_string())?;
    let member = |name: &str| problem.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Answer::Reject {
        status: reply.status.try_into().map_err(|_| "no HTTP status")?,
        code: member("code").ok_or("the body has no `code`")?,
        rule: member("rule"),
        nearest: member("nearest"),
        detail: member("detail").unwrap_or_default(),
    })
}

#[test]
fn every_case_is_answered_as_it_must_be() {
    match airflow_envoy_corpus::run(&mut Plugin::default(), NOW).verdict() {
        Ok(summary) => println!("{summary}"),
        Err(failures) => panic!("{failures}"),
    }
}
