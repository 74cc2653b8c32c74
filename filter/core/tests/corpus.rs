//! The case corpus against the core itself: natively and as WebAssembly, the same file.

// Clippy does not know tests of wasm-bindgen as tests.
#![cfg_attr(
    all(target_arch = "wasm32", target_os = "unknown"),
    expect(clippy::panic, reason = "a test may panic")
)]

use airflow_envoy_core::arrival::{Arrival, DecisionId, StreamId};
use airflow_envoy_core::gate::{Gate, Host, Verdict};
use airflow_envoy_core::jose::RustCrypto;
use airflow_envoy_core::reject::Code;
use airflow_envoy_core::time::UnixTime;
use airflow_envoy_corpus::{Answer, Exchange, Subject};
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// 2026-11-21T12:00:00Z.
const NOW: i64 = 1_795_262_400;

/// The gate, asked directly.
#[derive(Default)]
struct Core {
    gate: Option<Gate>,
    asked: u32,
}

impl Subject for Core {
    fn name(&self) -> &'static str {
        if cfg!(target_os = "wasi") {
            "core, wasm32-wasip1"
        } else if cfg!(target_arch = "wasm32") {
            "core, wasm32-unknown-unknown"
        } else {
            "core, native"
        }
    }

    fn configure(&mut self, configuration: &[u8]) -> Result<(), String> {
        let gate = Gate::new(configuration, Host::alone(Box::new(RustCrypto)));
        self.gate = Some(gate.map_err(|faults| faults.to_string())?);
        Ok(())
    }

    fn answer(&mut self, exchange: &Exchange, now: i64) -> Result<Answer, String> {
        let gate = self.gate.as_mut().ok_or("not configured")?;
        self.asked += 1;
        let headers = &exchange.headers;
        let borrowed: Vec<(&[u8], &[u8])> =
            headers.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
        let verdict = gate.request(&Arrival {
            stream: StreamId(self.asked),
            headers: &borrowed,
            peer: exchange.peer.as_deref(),
            now: UnixTime::from_secs(now),
            decision_id: DecisionId::new(7, self.asked.into()),
        });
        match verdict {
            Verdict::Permit(permit) => Ok(Answer::Permit {
                rule: Some(permit.rule().to_owned()),
                headers: edited(headers, permit.remove(), permit.set().collect()),
            }),
            Verdict::Pass(pass) => Ok(Answer::Permit {
                rule: None,
                headers: edited(headers, pass.remove(), pass.set().collect()),
            }),
            Verdict::Reject(rejection) => Ok(Answer::Reject {
                status: rejection.status(),
                code: rejection.reject.code.name().to_owned(),
                action: (!rejection.grpc).then(|| rejection.reject.action()),
                rule: rejection.reject.rule,
                nearest: rejection.reject.nearest,
                detail: rejection.reject.detail,
            }),
            Verdict::Status(_) => Err("is told how the filter is".to_owned()),
            Verdict::Wait => Err("waits, though nothing has to be fetched".to_owned()),
        }
    }
}

/// The headers that the upstream sees.
fn edited<'a>(
    headers: &[(Vec<u8>, Vec<u8>)],
    remove: impl Iterator<Item = &'a str>,
    set: Vec<(&'static str, &'a str)>,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let replaced: Vec<_> = remove.chain(set.iter().map(|(name, _)| *name)).collect();
    let kept = headers.iter().filter(|(name, _)| {
        !replaced.iter().any(|replaced| replaced.as_bytes().eq_ignore_ascii_case(name))
    });
    let set = set.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    kept.cloned().chain(set).collect()
}

#[test]
fn every_case_is_answered_as_it_must_be() {
    match airflow_envoy_corpus::run(&mut Core::default(), NOW).verdict() {
        Ok(summary) => say(&summary),
        Err(failures) => panic!("{failures}"),
    }
}

#[test]
fn every_reject_code_has_a_case_or_a_reason_to_have_none() {
    let codes: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(airflow_envoy_corpus::coverage(&codes), Vec::<String>::new());
}

#[test]
fn every_reject_code_has_the_status_of_its_family() {
    for code in Code::ALL {
        assert_eq!(code.status(), airflow_envoy_corpus::expected_status(code.name()), "{code}");
    }
}

/// Prints a line that survives every test runner.
fn say(line: &str) {
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    wasm_bindgen_test::console_log!("{line}");
    #[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
    println!("{line}");
}
