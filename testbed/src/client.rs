//! Calls: one connection each, so that no test depends on another's connection pool.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{HeaderMap, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certificates::server_name;
use crate::error::{Context as _, Error, Result};

/// How long an answer may take before the call counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request to be made.
#[derive(Debug, Clone)]
pub struct Call {
    method: String,
    authority: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Bytes,
    http2: bool,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The protocol it came by.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers, empty if there were none.
    pub trailers: HeaderMap,
}

impl Call {
    /// A request of `method` for `target` (path and query) of `authority`.
    pub fn new(method: &str, authority: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            authority: authority.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            http2: false,
        }
    }

    /// A GET.
    pub fn get(authority: &str, target: &str) -> Self {
        Self::new("GET", authority, target)
    }

    /// A POST.
    pub fn post(authority: &str, target: &str, body: impl Into<Bytes>) -> Self {
        Self::new("POST", authority, target).body(body)
    }

    /// With a body.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// With one more header; a repeated name is sent repeatedly, and the value may be any bytes that HTTP admits.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// With an access token (RFC 6750 §2.1).
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// With an Airflow identity.
    #[must_use]
    pub fn identity(self, identity: &str) -> Self {
        self.header("x-airflow-identity", identity)
    }

    /// By HTTP/2 with prior knowledge (RFC 9113 §3.3).
    #[must_use]
    pub fn http2(self) -> Self {
        Self { http2: true, ..self }
    }

    /// Makes the call at `address`, in plain text or as the server that TLS knows by a name.
    ///
    /// # Errors
    /// If there is no whole answer, or the request cannot be written in HTTP.
    pub async fn send(
        self,
        address: SocketAddr,
        tls: Option<(&TlsConnector, &str)>,
    ) -> Result<Answer> {
        let what = format!("{} {}{}", self.method, self.authority, self.target);
        let exchange = async {
            let stream = TcpStream::connect(address).await.context("connecting")?;
            match tls {
                None => self.exchange(stream).await,
                Some((connector, name)) => {
                    let stream = connector.connect(server_name(name)?, stream).await;
                    self.exchange(stream.context("TLS")?).await
                }
            }
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer.context(what),
            Err(_) => Err(Error::new(format!("{what}: no answer within {PATIENCE:?}"))),
        }
    }

    async fn exchange(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Answer> {
        let stream = TokioIo::new(stream);
        if self.http2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                    .await
                    .context("HTTP/2 handshake")?;
            let driver = tokio::spawn(connection);
            let answer = match sender.send_request(self.request()?).await {
                Ok(response) => read(response).await,
                Err(error) => Err(Error::new(error.to_string())),
            };
            driver.abort();
            answer
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(stream).await.context("HTTP handshake")?;
            let driver = tokio::spawn(connection);
            let answer = match sender.send_request(self.request()?).await {
                Ok(response) => read(response).await,
                Err(error) => Err(Error::new(error.to_string())),
            };
            driver.abort();
            answer
        }
    }

    fn request(self) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(self.method.as_str());
        request = if self.http2 {
            request.uri(format!("http://{}{}", self.authority, self.target))
        } else {
            request.uri(self.target.as_str()).header("host", self.authority)
        };
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body)).context("building the request")
    }
}

impl Answer {
    /// The first value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends `bytes` as they are and reads until the other side closes or stays silent for a second: for requests
/// that no HTTP client would write.
///
/// # Errors
/// If there is no connection.
pub async fn send_raw(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await.context("connecting")?;
    stream.write_all(bytes).await.context("sending")?;
    let mut received = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while let Ok(Ok(length @ 1..)) =
        tokio::time::timeout(Duration::from_secs(1), stream.read(&mut chunk)).await
    {
        received.extend(chunk.iter().take(length));
    }
    Ok(received)
}

async fn read(response: Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("reading the answer")?;
    Ok(Answer {
        status: head.status.as_u16(),
        version: head.version,
        headers: head.headers,
        trailers: body.trailers().cloned().unwrap_or_default(),
        body: body.to_bytes(),
    })
}
