//! The audit trail's surroundings: the key that signs it, and a collector that takes what the filter posts, keeps it,
//! and fails when it is told to.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use hyper::body::Bytes;
use hyper::{Request, Response};
use p256::elliptic_curve::rand_core::{OsRng, RngCore as _};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::error::{Context as _, Error, Result};
use crate::server::{Service, reply, serve_at};

/// The key that signs the trail: of Ed25519, as a JWK (RFC 8037 §2).
#[derive(Clone)]
pub struct AuditKey(SigningKey);

impl AuditKey {
    /// A new key.
    #[expect(clippy::new_without_default, reason = "no key is like another")]
    pub fn new() -> Self {
        let mut seed = [0; 32];
        OsRng.fill_bytes(&mut seed);
        Self(SigningKey::from_bytes(&seed))
    }

    /// The JWK with which a trail is verified.
    pub fn public(&self) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "x": self.x() })
    }

    /// The JWK with which one is signed.
    pub fn private(&self) -> Value {
        let d = URL_SAFE_NO_PAD.encode(self.0.as_bytes());
        json!({ "kty": "OKP", "crv": "Ed25519", "x": self.x(), "d": d })
    }

    fn x(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.verifying_key().as_bytes())
    }
}

/// Without the key.
impl fmt::Debug for AuditKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AuditKey")
    }
}

/// A running collector. It may be stopped and started again at its address; what it has taken, it keeps.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    ledger: Arc<Ledger>,
    runtime: Option<Runtime>,
}

/// How a collector fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It answers with this status, and keeps nothing.
    Refuses(u16),
    /// It keeps what comes, and answers only after this time.
    Late(Duration),
    /// It keeps what comes, and closes the connection without an answer.
    Hangs,
}

/// A batch that was posted and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `x-airflow-envoy-batch`.
    pub name: String,
    /// `x-airflow-envoy-stream`.
    pub stream: String,
    /// `authorization`, if it came.
    pub authorization: Option<String>,
    /// The body.
    pub body: String,
}

#[derive(Debug, Default)]
struct Ledger {
    trouble: Mutex<Option<Trouble>>,
    batches: Mutex<Vec<Batch>>,
    posts: Mutex<u64>,
}

impl Collector {
    /// A collector on a free port.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start() -> Result<Self> {
        let mut collector = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            ledger: Arc::default(),
            runtime: None,
        };
        collector.start_again().await?;
        Ok(collector)
    }

    /// From now on connections are refused, and those that there are end.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Listens again where it did.
    ///
    /// # Errors
    /// If the port stays taken.
    pub async fn start_again(&mut self) -> Result<()> {
        self.stop();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.context("starting a runtime")?;
        let begun = Instant::now();
        // The former listener is closed when its thread has time.
        loop {
            let serving = serve_at(self.address, Arc::clone(&self.ledger), None);
            match runtime.spawn(serving).await.context("a background task")? {
                Ok(address) => {
                    (self.address, self.runtime) = (address, Some(runtime));
                    return Ok(());
                }
                Err(error) if begun.elapsed() > Duration::from_secs(5) => {
                    runtime.shutdown_background();
                    return Err(Error::new(error.to_string()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Fails so from now on; with `None` it works.
    pub fn trouble(&self, trouble: Option<Trouble>) {
        *lock(&self.ledger.trouble) = trouble;
    }

    /// What it kept, in the order in which it came; a batch that was sent again is there again.
    pub fn batches(&self) -> Vec<Batch> {
        lock(&self.ledger.batches).clone()
    }

    /// Forgets the batches that it kept.
    pub fn forget(&self) {
        lock(&self.ledger.batches).clear();
    }

    /// The posts that reached it.
    pub fn posts(&self) -> u64 {
        *lock(&self.ledger.posts)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Service for Ledger {
    async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
        *lock(&self.posts) += 1;
        let header = |name| {
            let value = request.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let media = header("content-type").unwrap_or_default();
        if request.method() != "POST" || media != "application/x-ndjson" {
            return Some(reply(400, "text/plain", "records are posted\n"));
        }
        let trouble = *lock(&self.trouble);
        if let Some(Trouble::Refuses(status)) = trouble {
            return Some(reply(status, "text/plain", "not now\n"));
        }
        let batch = Batch {
            name: header("x-airflow-envoy-batch").unwrap_or_default(),
            stream: header("x-airflow-envoy-stream").unwrap_or_default(),
            authorization: header("authorization"),
            body: String::from_utf8_lossy(request.body()).into_owned(),
        };
        lock(&self.batches).push(batch);
        match trouble {
            Some(Trouble::Hangs) => return None,
            Some(Trouble::Late(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        Some(reply(204, "text/plain", ""))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Call;

    fn post(body: &str) -> Call {
        Call::post("audit", "/v1/records", body.to_owned())
            .header("content-type", "application/x-ndjson")
            .header("x-airflow-envoy-batch", "s-0")
            .header("x-airflow-envoy-stream", "s")
    }

    #[tokio::test]
    async fn what_it_takes_outlives_its_end_and_what_it_refuses_is_not_kept() {
        let mut collector = Collector::start().await.unwrap();
        let send = |body: &'static str, address| post(body).send(address, None);
        let address = collector.address;
        assert_eq!(send("1\n", address).await.unwrap().status, 204);
        collector.trouble(Some(Trouble::Refuses(503)));
        assert_eq!(send("2\n", address).await.unwrap().status, 503);
        collector.trouble(Some(Trouble::Hangs));
        assert!(send("3\n", address).await.is_err());
        collector.trouble(None);
        collector.stop();
        assert!(send("4\n", address).await.is_err());
        collector.start_again().await.unwrap();
        assert_eq!(collector.address, address);
        assert_eq!(send("5\n", address).await.unwrap().status, 204);
        let bodies: Vec<_> = collector.batches().into_iter().map(|batch| batch.body).collect();
        assert_eq!(bodies, ["1\n", "3\n", "5\n"]);
        assert_eq!(collector.posts(), 4);
    }
}
