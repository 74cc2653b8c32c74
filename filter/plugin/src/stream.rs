//! The stream context: one request, from its headers to its verdict.

use std::cell::RefCell;
use std::rc::Rc;

use airflow_envoy_core::answer::{Known, Rejection};
use airflow_envoy_core::arrival::{Arrival, StreamId, ends_here};
use airflow_envoy_core::audit::{Ended, Trail};
use airflow_envoy_core::gate::{Pass, Permit, Verdict};
use airflow_envoy_core::policy::ShadowVerdict;
use airflow_envoy_core::status::Reply;
use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, GrpcStatusCode, LogLevel, MapType};

use crate::host;
use crate::root::Worker;

/// One request.
pub(crate) struct Stream {
    id: StreamId,
    worker: Option<Rc<RefCell<Worker>>>,
    /// What was made of the headers when they came; a request that waited may be decided since.
    first: First,
}

/// The first answer to a request's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Answered,
    Waits,
    GoesOn,
}

impl Stream {
    pub(crate) fn new(id: StreamId, worker: Option<Rc<RefCell<Worker>>>) -> Self {
        Self { id, worker, first: First::Answered }
    }

    /// What becomes of a body or of trailers. Envoy holds them back itself while the headers are, but not
    /// if its `allow_on_headers_stop_iteration` is set: then a part that goes on takes the headers along.
    fn after_headers(&self) -> Action {
        let waits = |worker: &Rc<RefCell<Worker>>| worker.borrow().gate.waits(self.id);
        match self.first {
            First::GoesOn => Action::Continue,
            First::Waits if !self.worker.as_ref().is_none_or(waits) => Action::Continue,
            First::Waits | First::Answered => Action::Pause,
        }
    }
}

impl Context for Stream {
    fn on_done(&mut self) -> bool {
        if let Some(worker) = &self.worker {
            let mut worker = worker.borrow_mut();
            worker.gate.gone(self.id);
            if let Some(trail) = worker.gate.trail() {
                record(&mut trail.borrow_mut(), self.id);
            }
        }
        true
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let Some(worker) = &self.worker else {
            host::log(LogLevel::Critical, "a request came before a configuration was accepted");
            let _ = hostcalls::send_http_response(503, Vec::new(), None);
            return Action::Pause;
        };
        let map = host::headers(MapType::HttpRequestHeaders);
        let headers: Vec<_> =
            map.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())).collect();
        let verdict = {
            let mut worker = worker.borrow_mut();
            let (begun, verified) = (host::since_epoch(), worker.gate.verifications());
            let peer = if worker.gate.wants_peer() { host::peer() } else { None };
            let arrival = Arrival {
                stream: self.id,
                headers: &headers,
                peer: peer.as_deref(),
                now: host::at(begun),
                decision_id: worker.next_decision(),
            };
            let verdict = worker.gate.request(&arrival);
            if !matches!(verdict, Verdict::Wait | Verdict::Status(_)) {
                worker.measure(begun, verified);
            }
            if let Some(trail) = worker.gate.trail() {
                trail.borrow_mut().timed(self.id, begun, host::since_epoch());
            }
            verdict
        };
        match &verdict {
            Verdict::Permit(permit) => {
                self.first = First::GoesOn;
                forward(permit);
                Action::Continue
            }
            Verdict::Pass(pass) => {
                self.first = First::GoesOn;
                let_by(pass);
                Action::Continue
            }
            Verdict::Reject(rejection) => {
                reply(rejection);
                Action::Pause
            }
            Verdict::Status(status) => {
                tell(status);
                Action::Pause
            }
            Verdict::Wait => {
                self.first = First::Waits;
                Action::Pause
            }
        }
    }

    fn on_http_request_body(&mut self, _: usize, _: bool) -> Action {
        self.after_headers()
    }

    /// Some upstreams read trailers as if they were headers.
    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        for (name, _) in host::headers(MapType::HttpRequestTrailers) {
            if ends_here(name.as_bytes()) {
                let _ = hostcalls::remove_map_value(MapType::HttpRequestTrailers, &name);
            }
        }
        self.after_headers()
    }
}

/// Writes the audit record of a stream that has ended, if there is to be one. Not when Envoy logs the
/// stream: that it may do several times, and before the stream has ended.
fn record(trail: &mut Trail, stream: StreamId) {
    let Some(asks) = trail.awaits(stream) else { return };
    let (status, flags) = if asks { host::response() } else { (None, 0) };
    let clock = host::since_epoch();
    trail.ended(stream, &Ended { now: host::at(clock), clock, status, flags });
    append(trail, false);
}

/// Hands lines of the audit trail to Envoy's log: all that wait, or only if they are many.
pub(crate) fn append(trail: &mut Trail, all: bool) {
    loop {
        let lines = trail.take_log(all);
        if lines.is_empty() {
            return;
        }
        let shown = host::append(&lines);
        trail.logged(&lines, shown, host::now());
    }
}

/// Carries out the verdict on a parked request, whose context is the effective one.
pub(crate) fn resume(verdict: &Verdict) {
    match verdict {
        Verdict::Permit(permit) => {
            forward(permit);
            let _ = hostcalls::resume_http_request();
        }
        Verdict::Reject(rejection) => reply(rejection),
        // The gate never concludes so; a request that stays parked is answered by its deadline.
        Verdict::Wait | Verdict::Pass(_) | Verdict::Status(_) => {}
    }
}

/// Lets the upstream see what was verified, and nothing that the caller made up.
fn forward(permit: &Permit) {
    edit(permit.remove(), permit.set());
    state("decision", "permit");
    state("decision_id", permit.decision_id().as_str());
    state("rule", permit.rule());
    state_if("grant", permit.grant());
    state_if("destination", permit.destination());
    for (name, value) in
        ["dag_id", "task_id", "run_id"].into_iter().zip(permit.task().iter().flatten())
    {
        state(name, value);
    }
    state_shadow(permit.shadow());
}

/// Lets go on what would have been refused, with what the upstream can rely on.
fn let_by(pass: &Pass) {
    edit(pass.remove(), pass.set());
    state("decision", "permit");
    state("shadow_decision", "reject");
    state_rejection(pass.rejection(), "shadow_code", "shadow_rule");
}

/// Answers the request here.
fn reply(rejection: &Rejection) {
    state("decision", "reject");
    state_rejection(rejection, "code", "rule");
    let headers = rejection.headers();
    if rejection.grpc {
        let metadata = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let status = grpc_status(rejection.grpc_status());
        let _ = hostcalls::send_grpc_response(status, Some(&rejection.grpc_message()), metadata);
    } else {
        send(rejection.status(), &headers, &rejection.body());
    }
}

/// Answers a question about the filter itself; there is no decision to record.
fn tell(status: &Reply) {
    send(status.status, &status.headers, &status.body);
}

fn send(status: u16, headers: &[(&'static str, String)], body: &str) {
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let _ = hostcalls::send_http_response(status.into(), headers, Some(body.as_bytes()));
}

fn edit<'a>(
    remove: impl Iterator<Item = &'a str>,
    set: impl Iterator<Item = (&'static str, &'a str)>,
) {
    for name in remove {
        let _ = hostcalls::remove_map_value(MapType::HttpRequestHeaders, name);
    }
    for (name, value) in set {
        let value = Some(value.as_bytes());
        let _ = hostcalls::set_map_value_bytes(MapType::HttpRequestHeaders, name, value);
    }
}

/// Why a request was refused, or would have been; the names say which.
fn state_rejection(rejection: &Rejection, code: &str, rule: &str) {
    let Known { dag_id, task_id, run_id, destination, shadow, .. } = &rejection.known;
    state(code, rejection.reject.code.name());
    state("decision_id", rejection.decision_id.as_str());
    state_if(rule, rejection.reject.rule.as_deref());
    state_if("destination", destination.as_deref());
    for (name, value) in [("dag_id", dag_id), ("task_id", task_id), ("run_id", run_id)] {
        state_if(name, value.as_deref());
    }
    state_shadow(shadow);
}

fn grpc_status(number: u32) -> GrpcStatusCode {
    match number {
        3 => GrpcStatusCode::InvalidArgument,
        7 => GrpcStatusCode::PermissionDenied,
        8 => GrpcStatusCode::ResourceExhausted,
        16 => GrpcStatusCode::Unauthenticated,
        _ => GrpcStatusCode::Unavailable,
    }
}

/// Envoy's filter state `wasm.airflow_envoy.<name>`, for its access log, rate limits and tracing.
fn state(name: &str, value: &str) {
    let _ = hostcalls::set_property(vec![&format!("airflow_envoy.{name}")], Some(value.as_bytes()));
}

/// The shadow rules that would have changed the decision, as `rule:permit` or `rule:reject`.
fn state_shadow(shadow: &[ShadowVerdict]) {
    if shadow.is_empty() {
        return;
    }
    let verdicts: Vec<_> = shadow.iter().map(ToString::to_string).collect();
    state("shadow", &verdicts.join(","));
}

fn state_if(name: &str, value: Option<&str>) {
    if let Some(value) = value {
        state(name, value);
    }
}
