//! A small HTTP/1.1 and HTTP/2 server on a free loopback port, with or without TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::error::{Context as _, Result};

/// Answers requests.
pub trait Service: Send + Sync + 'static {
    /// The answer, or `None` to close the connection without one.
    fn answer(
        &self,
        request: Request<Bytes>,
    ) -> impl Future<Output = Option<Response<Bytes>>> + Send;

    /// Learns of a new connection.
    fn connected(&self) {}
}

/// Serves on a free loopback port until the runtime ends.
///
/// # Errors
/// If no port is free.
pub async fn serve<S: Service>(service: Arc<S>, tls: Option<TlsAcceptor>) -> Result<SocketAddr> {
    serve_at(SocketAddr::from(([127, 0, 0, 1], 0)), service, tls).await
}

/// The same at `address`.
///
/// # Errors
/// If it is taken.
pub async fn serve_at<S: Service>(
    address: SocketAddr,
    service: Arc<S>,
    tls: Option<TlsAcceptor>,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.context("opening a port")?;
    let address = listener.local_addr().context("reading the port")?;
    tokio::spawn(async move {
        // A failed accept is the peer's affair, or passes.
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (service, tls) = (Arc::clone(&service), tls.clone());
            service.connected();
            tokio::spawn(async move {
                match tls {
                    None => connection(stream, service).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            connection(stream, service).await;
                        }
                    }
                }
            });
        }
    });
    Ok(address)
}

async fn connection<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Arc<S>,
) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let service = Arc::clone(&service);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.context("reading a request")?.to_bytes();
            let answer = service.answer(Request::from_parts(head, body)).await;
            answer.map(|answer| answer.map(Full::new)).context("closing on purpose")
        }
    });
    // A broken connection ends here; whoever called knows of it at the other end.
    let _: Result<(), _> = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

/// An answer of `status` with a body of JSON or text.
pub fn reply(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    if let Ok(status) = hyper::StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(hyper::header::CONTENT_TYPE, value);
    }
    response
}
