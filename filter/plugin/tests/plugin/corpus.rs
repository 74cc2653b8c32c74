//! The case corpus against the filter in its test host: the same cases as the core's, through the ABI.

use crate::host::{self, Filter};
use airflow_envoy_corpus::{Answer, Subject};

/// The filter; configured anew for every configuration of the corpus, as Envoy does.
#[derive(Default)]
struct Plugin {
    filter: Option<Filter>,
}

impl Subject for Plugin {
    fn name(&self) -> &'static str {
        "plugin, test host"
    }

    fn configure(&mut self, configuration: &[u8]) -> Result<(), String> {
        let accepted = match &mut self.filter {
            Some(filter) => filter.configure(configuration),
            None => Filter::start(configuration).map(|filter| self.filter = Some(filter)),
        };
        accepted.map_err(|log| log.join("\n"))
    }

    fn answer(&mut self, headers: &[(Vec<u8>, Vec<u8>)], now: i64) -> Result<Answer, String> {
        let filter = self.filter.as_mut().ok_or("not configured")?;
        host::set_now(now);
        let (stream, goes_on) = filter.request(headers);
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
            code,
        })
    }
}

#[test]
fn every_case_is_answered_as_it_must_be() {
    match airflow_envoy_corpus::run(&mut Plugin::default(), 1_795_262_400).verdict() {
        Ok(summary) => println!("{summary}"),
        Err(failures) => panic!("{failures}"),
    }
}
