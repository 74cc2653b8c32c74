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

use crate::abi;
use crate::host;
use crate::pairs::{Headers, Pairs};
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

/// The stream has ended. Not when Envoy logs it: that it may do several times, and before the end.
impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            let mut worker = worker.borrow_mut();
            worker.gate.gone(self.id);
            if let Some(trail) = worker.gate.trail() {
                record(&mut trail.borrow_mut(), self.id);
            }
        }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let Some(worker) = &self.worker else {
            host::log(LogLevel::Critical, "a request came before a configuration was accepted");
            let _ = hostcalls::send_http_response(503, Vec::new(), None);
            return Action::Pause;
        };
        let map = abi::header_map(MapType::HttpRequestHeaders).unwrap_or_default();
        let headers = Headers::read(&map);
        let verdict = {
            let mut worker = worker.borrow_mut();
            let (begun, verified) = (host::since_epoch(), worker.gate.verifications());
            let now = host::at(begun);
            worker.shared.at(now);
            let peer = if worker.gate.wants_peer() { host::peer() } else { None };
            let arrival = Arrival {
                stream: self.id,
                headers: headers.as_slice(),
                peer: peer.as_deref(),
                now,
                decision_id: worker.next_decision(),
            };
            let verdict = worker.gate.request(&arrival);
            let mut decided = None;
            if !matches!(verdict, Verdict::Wait | Verdict::Status(_)) {
                decided = worker.measure(begun, verified);
            }
            if let Some(trail) = worker.gate.trail() {
                trail.borrow_mut().timed(self.id, begun, decided);
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
        let map = abi::header_map(MapType::HttpRequestTrailers).unwrap_or_default();
        for (name, _) in Pairs::new(&map).filter(|(name, _)| ends_here(name)) {
            abi::remove_header(MapType::HttpRequestTrailers, name);
        }
        self.after_headers()
    }
}

/// Writes the audit record of a stream that has ended, if there is to be one.
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

fn grpc_status(number: u32) -> GrpcStatusCode {
    match number {
        3 => GrpcStatusCode::InvalidArgument,
        7 => GrpcStatusCode::PermissionDenied,
        8 => GrpcStatusCode::ResourceExhausted,
        16 => GrpcStatusCode::Unauthenticated,
        _ => GrpcStatusCode::Unavailable,
    }
}

/// The property that is the filter state `wasm.airflow_envoy.<name>`, known when the filter is built.
macro_rules! state_name {
    ($name:literal) => {
        concat!("airflow_envoy.", $name)
    };
}

/// The filter state that names the task.
const TASK: [&str; 3] = [state_name!("dag_id"), state_name!("task_id"), state_name!("run_id")];

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
    state(state_name!("decision"), "permit");
    state(state_name!("decision_id"), permit.decision_id().as_str());
    state(state_name!("rule"), permit.rule());
    state_if(state_name!("grant"), permit.grant());
    state_if(state_name!("destination"), permit.destination());
    for (name, value) in TASK.into_iter().zip(permit.task().iter().flatten()) {
        state(name, value);
    }
    let numbers = [state_name!("try_number"), state_name!("map_index")];
    for (name, value) in numbers.into_iter().zip(permit.numbers().iter().flatten()) {
        state(name, value);
    }
    state_shadow(permit.shadow());
}

/// Lets go on what would have been refused, with what the upstream can rely on.
fn let_by(pass: &Pass) {
    edit(pass.remove(), pass.set());
    state(state_name!("decision"), "permit");
    state(state_name!("shadow_decision"), "reject");
    state_rejection(pass.rejection(), state_name!("shadow_code"), state_name!("shadow_rule"));
}

/// Answers the request here.
fn reply(rejection: &Rejection) {
    state(state_name!("decision"), "reject");
    state_rejection(rejection, state_name!("code"), state_name!("rule"));
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
        abi::remove_header(MapType::HttpRequestHeaders, name.as_bytes());
    }
    for (name, value) in set {
        abi::replace_header(MapType::HttpRequestHeaders, name.as_bytes(), value.as_bytes());
    }
}

/// Why a request was refused, or would have been; the names say which.
fn state_rejection(rejection: &Rejection, code: &'static str, rule: &'static str) {
    let Known { dag_id, task_id, run_id, destination, shadow, .. } = &rejection.known;
    state(code, rejection.reject.code.name());
    state(state_name!("decision_id"), rejection.decision_id.as_str());
    state_if(rule, rejection.reject.rule.as_deref());
    state_if(state_name!("destination"), destination.as_deref());
    for (name, value) in TASK.into_iter().zip([dag_id, task_id, run_id]) {
        state_if(name, value.as_deref());
    }
    state_shadow(shadow);
}

/// Envoy's filter state `wasm.airflow_envoy.…`, for its access log, rate limits and tracing.
fn state(name: &'static str, value: &str) {
    abi::set_property(name, value.as_bytes());
}

/// The shadow rules that would have changed the decision, as `rule:permit` or `rule:reject`.
fn state_shadow(shadow: &[ShadowVerdict]) {
    if shadow.is_empty() {
        return;
    }
    let verdicts: Vec<_> = shadow.iter().map(ToString::to_string).collect();
    state(state_name!("shadow"), &verdicts.join(","));
}

fn state_if(name: &'static str, value: Option<&str>) {
    if let Some(value) = value {
        state(name, value);
    }
}
