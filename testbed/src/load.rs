//! Load at a fixed rate, whose every answer is judged.
//!
//! The loop is open: a request is due when its time has come, whether or not earlier ones were answered; what waits for
//! a connection is late, and its latency says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::certificates::server_name;
use crate::error::{Context as _, Error, Result};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What calls are made, and what they may be answered.
pub trait Traffic: Send + Sync + 'static {
    /// The request with this number, from 0.
    fn request(&self, number: u64) -> Request<Empty<Bytes>>;

    /// What that request may be answered, when it was sent and answered at these times.
    fn expected(&self, number: u64, sent: Instant, answered: Instant) -> Expected;
}

/// What a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Whether it may be let through.
    pub allowed: bool,
    /// The codes with which it may be refused.
    pub refused: &'static [&'static str],
}

/// How much load, for how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Requests a second.
    pub rate: u32,
    /// Connections, each of which is used again and again.
    pub connections: usize,
    /// For how long.
    pub time: Duration,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Answers that were right.
    pub right: u64,
    /// Calls that were let through and should not have been.
    pub wrongly_allowed: u64,
    /// Calls that were refused, by a 4xx, and should not have been, or for another reason.
    pub wrongly_refused: u64,
    /// Answers of 5xx.
    pub unavailable: u64,
    /// Calls without an answer.
    pub unanswered: u64,
    /// Connections that Envoy had closed when they were to be used again; the call was made on a fresh one.
    pub reconnections: u64,
    /// How often the filter refused with which code.
    pub codes: BTreeMap<String, u64>,
    /// The first answer of each kind that was not right, as a sentence.
    pub examples: Vec<String>,
    micros: Vec<u32>,
}

impl Load {
    /// Makes calls at `address` and judges the answers.
    ///
    /// # Errors
    /// If there are no connections to use.
    pub async fn run<T: Traffic>(self, address: SocketAddr, traffic: Arc<T>) -> Result<Tally> {
        let lanes = u64::try_from(self.connections).context("connections")?;
        let begun = Instant::now() + Duration::from_millis(20);
        let tasks: Vec<_> = (0..lanes)
            .map(|lane| {
                let traffic = Arc::clone(&traffic);
                tokio::spawn(async move {
                    let mut connection = Connection::new(address);
                    let mut tally = Tally::default();
                    let step = usize::try_from(lanes).unwrap_or(1);
                    for number in (lane..).step_by(step) {
                        let due = Duration::from_secs(number) / self.rate;
                        if due >= self.time {
                            break;
                        }
                        // What is late was due before; what is not counts from when it goes.
                        let late = begun.elapsed() > due;
                        tokio::time::sleep_until((begun + due).into()).await;
                        let sent = Instant::now();
                        let answer = connection.call(|| traffic.request(number)).await;
                        let answered = Instant::now();
                        let expected = traffic.expected(number, sent, answered);
                        let from = if late { begun + due } else { sent };
                        tally.count(answer, expected, answered.saturating_duration_since(from));
                    }
                    tally.reconnections = connection.reconnections;
                    tally
                })
            })
            .collect();
        let mut whole = Tally::default();
        for task in tasks {
            whole.add(task.await.context("a connection's task")?);
        }
        whole.micros.sort_unstable();
        Ok(whole)
    }
}

impl Tally {
    /// All calls.
    pub fn calls(&self) -> u64 {
        self.right + self.wrong()
    }

    /// Those that were not answered as they should have been.
    pub fn wrong(&self) -> u64 {
        self.wrongly_allowed + self.wrongly_refused + self.unavailable + self.unanswered
    }

    /// The latency that this share of the calls (0 to 1) did not exceed.
    pub fn latency(&self, share: f64) -> Duration {
        percentile(&self.micros, share)
            .map_or(Duration::ZERO, |micros| Duration::from_micros(u64::from(*micros)))
    }

    /// Adds another one's calls.
    pub fn add(&mut self, other: Self) {
        self.right += other.right;
        self.wrongly_allowed += other.wrongly_allowed;
        self.wrongly_refused += other.wrongly_refused;
        self.unavailable += other.unavailable;
        self.unanswered += other.unanswered;
        self.reconnections += other.reconnections;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        for example in other.examples {
            self.exemplify(example);
        }
        self.micros.extend(other.micros);
        self.micros.sort_unstable();
    }

    fn count(&mut self, answer: Result<Answered>, expected: Expected, latency: Duration) {
        self.micros.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.unanswered += 1;
                return self.exemplify(format!("unanswered: {error}"));
            }
        };
        let right = match answer.status {
            200..400 => expected.allowed,
            _ => answer.code.as_deref().is_some_and(|code| expected.refused.contains(&code)),
        };
        let counter = match answer.status {
            _ if right => &mut self.right,
            200..400 => &mut self.wrongly_allowed,
            500.. => &mut self.unavailable,
            _ => &mut self.wrongly_refused,
        };
        *counter += 1;
        if !right {
            let code = answer.code.as_deref().unwrap_or_default();
            self.exemplify(format!("{} {code}, where {expected:?}", answer.status));
        }
        if let Some(code) = answer.code {
            *self.codes.entry(code).or_default() += 1;
        }
    }

    fn exemplify(&mut self, example: String) {
        if self.examples.len() < 8 && !self.examples.contains(&example) {
            self.examples.push(example);
        }
    }
}

/// The value that this share (0 to 1) of sorted values does not exceed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an index, within the list by construction"
)]
pub fn percentile<T>(sorted: &[T], share: f64) -> Option<&T> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share.clamp(0.0, 1.0)).round() as usize)
}

/// What is judged of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// The filter's code, if it refused.
    pub code: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// A connection that is used again and again, and made anew when Envoy closed it.
pub struct Connection {
    address: SocketAddr,
    tls: Option<TlsConnector>,
    open: Option<(SendRequest<Empty<Bytes>>, AbortHandle)>,
    reconnections: u64,
}

impl Connection {
    /// One to `address`, not made yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, tls: None, open: None, reconnections: 0 }
    }

    /// One to `address` as a service of the mesh, not made yet.
    pub fn of_mesh(address: SocketAddr, tls: TlsConnector) -> Self {
        Self { address, tls: Some(tls), open: None, reconnections: 0 }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// If there is no whole answer on a fresh connection.
    pub async fn call(&mut self, request: impl Fn() -> Request<Empty<Bytes>>) -> Result<Answered> {
        // A server may close a connection that was used before at any time: that is no answer to this request.
        if self.open.is_some() {
            if let Ok(answer) = self.attempt(request()).await {
                return Ok(answer);
            }
            self.reconnections += 1;
        }
        self.close();
        let stream = TcpStream::connect(self.address).await.context("connecting")?;
        stream.set_nodelay(true).context("connecting")?;
        let opened = match &self.tls {
            None => open(stream).await,
            Some(tls) => {
                let stream = tls.connect(server_name(crate::ORDERS)?, stream).await;
                open(stream.context("TLS")?).await
            }
        };
        self.open = Some(opened?);
        self.attempt(request()).await
    }

    async fn attempt(&mut self, request: Request<Empty<Bytes>>) -> Result<Answered> {
        let (sender, _) = self.open.as_mut().context("a connection")?;
        let exchange = async {
            sender.ready().await.context("sending")?;
            read(sender.send_request(request).await.context("sending")?).await
        };
        match timeout(PATIENCE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::new(format!("no answer within {PATIENCE:?}"))),
        }
    }

    fn close(&mut self) {
        if let Some((_, driver)) = self.open.take() {
            driver.abort();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

async fn open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(SendRequest<Empty<Bytes>>, AbortHandle)> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.context("connecting")?;
    Ok((sender, tokio::spawn(connection).abort_handle()))
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answered> {
    let (head, body) = response.into_parts();
    // A connection is used again only when its answer was read.
    let body = body.collect().await.context("reading the answer")?.to_bytes();
    let code = head.headers.get("x-airflow-envoy-code");
    Ok(Answered {
        status: head.status.as_u16(),
        code: code.and_then(|code| code.to_str().ok()).map(str::to_owned),
        body,
    })
}

/// What a caller shows, ready to be sent.
#[derive(Debug, Clone)]
pub struct Credentials {
    authorization: HeaderValue,
    identity: HeaderValue,
}

impl Credentials {
    /// A token and an identity.
    ///
    /// # Errors
    /// If they cannot be header values.
    pub fn new(token: &str, identity: &str) -> Result<Self> {
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {token}")).context("the token")?;
        authorization.set_sensitive(true);
        let mut identity = HeaderValue::from_str(identity).context("the identity")?;
        identity.set_sensitive(true);
        Ok(Self { authorization, identity })
    }
}

/// A GET of `path` of the destination inside.
pub fn get(path: &str, credentials: Option<&Credentials>) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    // INVARIANT: a path of a test; of nonsense would become `/`.
    *request.uri_mut() = path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(hyper::header::HOST, HeaderValue::from_static(crate::ORDERS));
    if let Some(credentials) = credentials {
        headers.insert(hyper::header::AUTHORIZATION, credentials.authorization.clone());
        headers.insert("x-airflow-identity", credentials.identity.clone());
    }
    request
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::server::{Service, reply, serve};

    /// Answers by path.
    struct Server(AtomicU64);

    impl Service for Server {
        async fn answer(&self, request: Request<Bytes>) -> Option<Response<Bytes>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let mut answer = match request.uri().path() {
                "/allowed" => reply(200, "text/plain", ""),
                "/down" => reply(503, "text/plain", ""),
                "/close" => return None,
                _ => reply(403, "text/plain", ""),
            };
            let code = HeaderValue::from_static("policy_no_match");
            answer.headers_mut().insert("x-airflow-envoy-code", code);
            Some(answer)
        }
    }

    struct Paths;

    impl Traffic for Paths {
        fn request(&self, number: u64) -> Request<Empty<Bytes>> {
            let path = match number % 10 {
                0..4 => "/allowed",
                4..7 => "/denied",
                7 => "/down",
                8 => "/close",
                _ => "/allowed",
            };
            get(path, None)
        }

        fn expected(&self, number: u64, _: Instant, _: Instant) -> Expected {
            match number % 10 {
                // Wrong on purpose: one allowed, one refused.
                9 => Expected { allowed: false, refused: &["policy_no_match"] },
                6 => Expected { allowed: true, refused: &[] },
                4 | 5 => Expected { allowed: false, refused: &["policy_no_match"] },
                _ => Expected { allowed: true, refused: &[] },
            }
        }
    }

    #[tokio::test]
    async fn every_answer_is_judged_and_the_rate_is_kept() {
        let server = Arc::new(Server(AtomicU64::new(0)));
        let address = serve(Arc::clone(&server), None).await.unwrap();
        let load = Load { rate: 500, connections: 7, time: Duration::from_millis(400) };
        let begun = Instant::now();
        let tally = load.run(address, Arc::new(Paths)).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(390));
        let seen = (tally.right, tally.wrongly_allowed, tally.wrongly_refused);
        assert_eq!(seen, (120, 20, 20), "{:?}", tally.examples);
        assert_eq!((tally.unavailable, tally.unanswered, tally.calls()), (20, 20, 200));
        assert!(tally.latency(0.5) <= tally.latency(0.99) && tally.latency(1.0) > Duration::ZERO);
        assert_eq!(tally.examples.len(), 4, "{:?}", tally.examples);
    }
}
