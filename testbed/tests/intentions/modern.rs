//! A server that answers as newer Consuls do, for what 1.8 does not know: permissions, tokens, configuration entries, and
//! an index with every answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use airflow_envoy_testbed::server::{Service, reply, serve};
use hyper::body::Bytes;
use hyper::{Request, Response};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What there is at one index.
#[derive(Clone)]
pub struct State {
    pub index: u64,
    /// The answer to `match`.
    pub matched: Value,
    /// The entries of the destination and of `*`; null for one that is not there.
    pub entries: [Value; 2],
    /// What everything is answered with instead.
    pub instead: Option<(u16, String)>,
}

pub struct Modern {
    state: watch::Sender<State>,
    asked: Mutex<Vec<String>>,
}

impl Modern {
    pub async fn start(matched: Value, entries: [Value; 2]) -> (Arc<Self>, SocketAddr) {
        let state = State { index: 10, matched, entries, instead: None };
        let modern = Arc::new(Self { state: watch::Sender::new(state), asked: Mutex::default() });
        let address = serve(Arc::clone(&modern), None).await.unwrap();
        (modern, address)
    }

    /// Changes what there is; the index moves.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            state.index += 1;
            change(state);
        });
    }

    /// The paths that were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Service for Modern {
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        let target = request.uri().path_and_query().unwrap().to_string();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(target.clone());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let value = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let mut state = self.state.subscribe();
        if let (Some(index), Some(wait)) = (value("index"), value("wait")) {
            let index: u64 = index.parse().unwrap();
            let wait = Duration::from_millis(wait.strip_suffix("ms").unwrap().parse().unwrap());
            // Over is as good as changed.
            let _ = tokio::time::timeout(wait, state.wait_for(|state| state.index > index)).await;
        }
        let state = state.borrow().clone();
        if let Some((status, body)) = state.instead {
            return Some(reply(status, "text/plain", body));
        }
        let body = match path {
            "/v1/connect/intentions/match" => state.matched,
            "/v1/connect/intentions" => json!([]),
            "/v1/config/service-intentions/orders" => state.entries[0].clone(),
            "/v1/config/service-intentions/*" => state.entries[1].clone(),
            _ => return Some(reply(404, "text/plain", "no such thing")),
        };
        let mut answer = match body {
            Value::Null => reply(404, "text/plain", "Config entry not found"),
            body => reply(200, "application/json", body.to_string()),
        };
        answer.headers_mut().insert("x-consul-index", state.index.into());
        Some(answer)
    }
}
