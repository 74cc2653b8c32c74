//! The case corpus against the filter in its test host: the same cases as the core's, through the ABI.

use crate::host::{self, Cryptography, Filter};

pub const NOW: i64 = 1_795_262_400;
use airflow_envoy_corpus::{Answer, Exchange, Expectation, Subject, telling};

/// The filter; configured anew for every configuration of the corpus, as Envoy does.
#[derive(Default)]
pub struct Plugin {
    filter: Option<Filter>,
}

impl Subject for Plugin {
    fn name(&self) -> &'static str {
        "plugin, test host"
    }

    fn configure(&mut self, configuration: &[u8]) -> Result<(), String> {
        let configuration = &*telling(configuration, &["code", "rule"]);
        let accepted = match &mut self.filter {
            Some(filter) => filter.configure(configuration),
            None => Filter::start(configuration).map(|filter| self.filter = Some(filter)),
        };
        accepted.map_err(|log| log.join("\n"))
    }

    fn answer(&mut self, exchange: &Exchange, now: i64) -> Result<Answer, String> {
        let filter = self.filter.as_mut().ok_or("not configured")?;
        host::set_now(now);
        host::set_peer(exchange.peer.clone());
        let (stream, goes_on) = filter.request(&exchange.headers);
        let seen = host::seen(stream);
        filter.end(stream);
        let Some(reply) = seen.reply else {
            assert!(goes_on, "a request without a reply goes on");
            let rule = seen.state.get("airflow_envoy.rule").cloned();
            return Ok(Answer::Permit { rule, headers: seen.headers });
        };
        assert!(!goes_on, "a request with a reply does not go on");
        let state = |name: &str| seen.state.get(name).cloned();
        let code = state("airflow_envoy.code").ok_or("no code in filter state")?;
        if reply.grpc_status >= 0 {
            let (named, detail) = reply.body.split_once(": ").ok_or("no code in the message")?;
            assert_eq!(named, code);
            return Ok(Answer::Reject {
                status: airflow_envoy_corpus::expected_status(&code),
                rule: state("airflow_envoy.rule"),
                nearest: None,
                detail: detail.to_owned(),
                action: None,
                code,
            });
        }
        let problem: serde_json::Value =
            serde_json::from_str(&reply.body).map_err(|error| error.to_string())?;
        assert_eq!(problem["code"], code);
        let member = |name: &str| problem[name].as_str().map(str::to_owned);
        Ok(Answer::Reject {
            status: u16::try_from(reply.status).map_err(|error| error.to_string())?,
            rule: member("rule"),
            nearest: member("nearest"),
            detail: member("detail").unwrap_or_default(),
            action: Some(member("action").unwrap_or_default()),
            code,
        })
    }
}

impl Plugin {
    /// Time passes for the filter, but not on its clock.
    pub fn tick(&mut self) {
        if let Some(filter) = &mut self.filter {
            filter.tick(0);
        }
    }
}

fn run(cryptography: Cryptography) -> usize {
    host::set_cryptography(cryptography);
    match airflow_envoy_corpus::run(&mut Plugin::default(), NOW).verdict() {
        Ok(summary) => println!("{summary}"),
        Err(failures) => panic!("{failures}"),
    }
    host::verified_by_host()
}

#[test]
fn every_case_is_answered_as_it_must_be_where_the_host_verifies() {
    assert!(run(Cryptography::Right) > 1000, "the host is asked for most algorithms");
}

#[test]
fn every_case_is_answered_as_it_must_be_where_the_host_cannot_verify() {
    run(Cryptography::Missing);
}

#[test]
fn a_host_that_verifies_wrongly_is_not_trusted_with_it() {
    for cryptography in [
        Cryptography::Gullible,
        Cryptography::Stubborn,
        Cryptography::Garbled,
        Cryptography::Failing,
    ] {
        let asked = std::thread::spawn(move || run(cryptography)).join().unwrap();
        // At every configuration it is asked the known answers, and then never again.
        host::set_cryptography(cryptography);
        assert!(asked > 0);
        let log = std::thread::spawn(move || {
            host::set_cryptography(cryptography);
            let _filter = Filter::start(crate::requests::inline("/v1/**").to_string()).unwrap();
            host::log().join("\n")
        });
        let log = log.join().unwrap();
        assert!(log.contains("verified by the host: nothing"), "{log}");
    }
}

#[test]
fn a_host_that_fails_later_is_replaced_for_that_signature() {
    host::set_cryptography(Cryptography::Right);
    let mut plugin = Plugin::default();
    let case = airflow_envoy_corpus::cases().unwrap();
    let case =
        case.iter().find(|case| matches!(case.expected, Expectation::Permit { .. })).unwrap();
    let exchange = case.exchange(NOW).unwrap();
    plugin.configure(&exchange.configuration).unwrap();
    assert!(
        host::log()
            .join("")
            .contains("verified by the host: RS256, RS384, RS512, ES256, ES384, ES512")
    );
    host::set_cryptography(Cryptography::Failing);
    assert!(matches!(plugin.answer(&exchange, NOW), Ok(Answer::Permit { .. })));
}
