//! A tap: passes bytes on between a caller and a server, with or without TLS on the caller's side, and keeps what callers
//! sent. It is how a test learns every token that was on the way, and how a server gets an address before it runs.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::error::{Context as _, Result};

/// How much is kept of one connection, in bytes.
const KEPT: usize = 1 << 20;

/// A running tap.
#[derive(Debug)]
pub struct Tap {
    /// Where it listens.
    pub address: SocketAddr,
    target: Mutex<Option<SocketAddr>>,
    connections: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
}

/// A request that passed, as it was written (RFC 9112 §2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
}

impl Passed {
    /// The first value of the header `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Tap {
    /// A tap on a free loopback port. Until it leads somewhere it closes connections.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn open(tls: Option<TlsAcceptor>) -> Result<Arc<Self>> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("opening a port")?;
        let address = listener.local_addr().context("reading the port")?;
        let (target, connections) = (Mutex::default(), Mutex::default());
        let tap = Arc::new(Self { address, target, connections });
        let serving = Arc::clone(&tap);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (tap, tls) = (Arc::clone(&serving), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => tap.pass(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                tap.pass(stream).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(tap)
    }

    /// Leads to `target` from now on; `None` for nowhere.
    pub fn lead_to(&self, target: Option<SocketAddr>) {
        *self.target() = target;
    }

    /// The requests so far, in the order of their connections. Only HTTP/1.1 is understood.
    pub fn requests(&self) -> Vec<Passed> {
        let connections = self.connections().clone();
        connections
            .iter()
            .flat_map(|connection| {
                let bytes = connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
                requests(&String::from_utf8_lossy(&bytes))
            })
            .collect()
    }

    async fn pass(&self, caller: impl AsyncRead + AsyncWrite + Unpin) {
        let target = *self.target();
        let Some(target) = target else { return };
        let Ok(mut server) = TcpStream::connect(target).await else { return };
        let kept = Arc::new(Mutex::new(Vec::new()));
        self.connections().push(Arc::clone(&kept));
        let (mut from_caller, mut to_caller) = tokio::io::split(caller);
        let (mut from_server, mut to_server) = server.split();
        let there = async {
            let mut chunk = [0; 16 * 1024];
            while let Ok(length @ 1..) = from_caller.read(&mut chunk).await {
                let bytes = chunk.get(..length).unwrap_or_default();
                {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    let room = KEPT.saturating_sub(kept.len()).min(length);
                    kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
                }
                if to_server.write_all(bytes).await.is_err() {
                    break;
                }
            }
            let _: Result<(), _> = to_server.shutdown().await;
        };
        let back = async {
            let _: Result<_, _> = tokio::io::copy(&mut from_server, &mut to_caller).await;
            let _: Result<(), _> = to_caller.shutdown().await;
        };
        // Whichever side has nothing more to say: the other has its end, too.
        tokio::join!(there, back);
    }

    fn target(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Mutex<Vec<u8>>>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The requests in what one connection's caller wrote. A body is skipped, unless it has lines that look like a request.
fn requests(text: &str) -> Vec<Passed> {
    let mut found: Vec<Passed> = Vec::new();
    let mut in_head = false;
    for line in text.lines() {
        if let Some((method, target)) = start_line(line) {
            in_head = true;
            let (method, target) = (method.to_owned(), target.to_owned());
            found.push(Passed { method, target, headers: Vec::new() });
        } else if line.is_empty() {
            in_head = false;
        } else if let (true, Some(request), Some((name, value))) =
            (in_head, found.last_mut(), line.split_once(':'))
        {
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    found
}

/// Method and target. A body before it on the same line, which has no line end of its own, is cut off.
fn start_line(line: &str) -> Option<(&str, &str)> {
    let (before, target) = line.strip_suffix(" HTTP/1.1")?.rsplit_once(' ')?;
    let methods = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];
    methods.into_iter().find(|method| before.ends_with(method)).map(|method| (method, target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Call;
    use crate::server::serve;
    use crate::upstream::{Received, Upstream};

    #[tokio::test]
    async fn what_passes_arrives_and_is_kept() {
        let server = serve(Arc::new(Upstream::new("behind")), None).await.unwrap();
        let tap = Tap::open(None).await.unwrap();
        let call = || Call::post("orders.internal", "/a?b=c", "body").token("t1").identity("i1");
        assert!(call().send(tap.address, None).await.is_err());
        tap.lead_to(Some(server));
        let answer = call().send(tap.address, None).await.unwrap();
        assert_eq!(Received::from_answer(&answer).unwrap().header("x-airflow-identity"), ["i1"]);

        let passed = tap.requests();
        let [request] = &passed[..] else { panic!("{passed:?}") };
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/a?b=c"));
        assert_eq!(request.header("authorization"), Some("Bearer t1"));
        assert_eq!(request.header("x-airflow-identity"), Some("i1"));
    }

    #[test]
    fn requests_on_one_connection_are_told_apart() {
        let text = "POST /1 HTTP/1.1\r\nA: 1\r\n\r\nbody: noGET /2 HTTP/1.1\r\nB: 2\r\n\r\n";
        let found = requests(text);
        let seen: Vec<_> =
            found.iter().map(|request| (request.target.as_str(), &request.headers[..])).collect();
        let header = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
        assert_eq!(seen, [("/1", &header("a", "1")[..]), ("/2", &header("b", "2")[..])]);
    }
}
