//! A destination: answers every request with what it received, so that a test sees what an upstream sees.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Request, Response};
use serde_json::{Value, json};

use crate::client::Answer;
use crate::server::{Service, reply};

/// An echoing upstream. The query steers it: `fail=503` answers with that status, `once=500` does so only the first time
/// that a run (`x-airflow-run-id`) asks for this target, `late=6000` answers 404 until as many milliseconds after the run
/// first asked for it, `delay=250` waits as many milliseconds first, `close` closes the
/// connection. `/healthz` is its health check.
#[derive(Debug)]
pub struct Upstream {
    name: &'static str,
    healthy: AtomicBool,
    calls: AtomicU64,
    asked: Mutex<HashMap<(String, String), Instant>>,
}

impl Upstream {
    /// A healthy upstream that calls itself `name`.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            healthy: AtomicBool::new(true),
            calls: AtomicU64::new(0),
            asked: Mutex::default(),
        }
    }

    /// Whether its health check succeeds.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// The calls that reached it, health checks not counted.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How long ago its run asked for this target for the first time; `None` if this is it. Remembered for as long as this lives: for tests.
    fn since_first(&self, request: &Request<Bytes>) -> Option<Duration> {
        let run = request.headers().get("x-airflow-run-id");
        let run =
            run.map_or_else(String::new, |run| String::from_utf8_lossy(run.as_bytes()).into());
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match asked.entry((run, request.uri().to_string())) {
            Entry::Occupied(first) => Some(first.get().elapsed()),
            Entry::Vacant(first) => {
                first.insert(Instant::now());
                None
            }
        }
    }
}

impl Service for Upstream {
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        if request.uri().path() == "/healthz" {
            let status = if self.healthy.load(Ordering::Relaxed) { 200 } else { 503 };
            return Some(reply(status, "text/plain", "ok\n"));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut status = 200;
        for parameter in request.uri().query().unwrap_or_default().split('&') {
            match parameter.split_once('=').unwrap_or((parameter, "")) {
                ("fail", code) => status = code.parse().unwrap_or(500),
                ("once", code) if self.since_first(&request).is_none() => {
                    status = code.parse().unwrap_or(500);
                }
                ("late", millis) => {
                    let since = self.since_first(&request).unwrap_or_default();
                    if since.as_millis() < millis.parse().unwrap_or(0) {
                        status = 404;
                    }
                }
                ("delay", millis) => {
                    tokio::time::sleep(Duration::from_millis(millis.parse().unwrap_or(0))).await;
                }
                ("close", _) => return None,
                _ => {}
            }
        }
        let headers: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let echo = json!({
            "upstream": self.name,
            "method": request.method().as_str(),
            "path": request.uri().path_and_query().map_or("", |target| target.as_str()),
            "headers": headers,
            "body": String::from_utf8_lossy(request.body()),
        });
        Some(reply(status, "application/json", echo.to_string()))
    }
}

/// What an upstream says that it received.
#[derive(Debug, Clone)]
pub struct Received(Value);

impl Received {
    /// What the upstream received for the call that `answer` answers; `None` if no upstream answered.
    pub fn from_answer(answer: &Answer) -> Option<Self> {
        Self::from_json(answer.json())
    }

    /// What the upstream received, if this is what it said.
    pub fn from_json(echo: Value) -> Option<Self> {
        echo.get("upstream").is_some().then_some(Self(echo))
    }

    /// The name of the upstream.
    pub fn upstream(&self) -> &str {
        self.text("upstream")
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.text("method")
    }

    /// Path and query.
    pub fn path(&self) -> &str {
        self.text("path")
    }

    /// The body.
    pub fn body(&self) -> &str {
        self.text("body")
    }

    /// Every value of the header `name`, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let headers =
            self.0.get("headers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        headers
            .iter()
            .filter_map(|header| header.as_str()?.split_once(": "))
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    fn text(&self, member: &str) -> &str {
        self.0.get(member).and_then(Value::as_str).unwrap_or_default()
    }
}
