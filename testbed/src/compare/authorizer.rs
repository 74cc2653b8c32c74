//! Servers that Envoy asks: external authorizers that allow everything, and a collector of audit records. Each has
//! a thread of its own, whose processor time is that of its variant.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use crate::error::{Context as _, Result};
use crate::process::{Process, free_port};

use super::machine::{this_thread, thread_time};

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1: 200 allows, 403 does not. A body is read to its end.
    Http,
    /// gRPC: `envoy.service.auth.v3.Authorization/Check`.
    Grpc,
}

/// A running server, until the process ends.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    thread: PathBuf,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    asked: AtomicU64,
    denies: AtomicBool,
}

impl Server {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// If there is none.
    pub fn start(speaks: Speaks) -> Result<Self> {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("authorizer".to_owned())
            .spawn(move || {
                let started = || -> Result<_> {
                    let runtime = Builder::new_current_thread().enable_all().build();
                    let runtime = runtime.context("starting a runtime")?;
                    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
                    let listener = listener.context("opening a port")?;
                    let address = listener.local_addr().context("reading the port")?;
                    Ok((runtime, listener, address, this_thread()?))
                };
                match started() {
                    Ok((runtime, listener, address, thread)) => {
                        if sender.send(Ok((address, thread))).is_ok() {
                            runtime.block_on(accept(listener, speaks, shared));
                        }
                    }
                    // Whoever waited has gone; there is nobody to tell.
                    Err(error) => drop(sender.send(Err(error))),
                }
            })
            .context("starting a thread")?;
        let (address, thread) = receiver.recv().context("a server's thread")??;
        Ok(Self { address, thread, state })
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.state.asked.load(Ordering::Relaxed)
    }

    /// Denies everything from now on, or allows it again.
    pub fn deny(&self, denies: bool) {
        self.state.denies.store(denies, Ordering::Relaxed);
    }

    /// Processor time so far.
    ///
    /// # Errors
    /// If its thread has ended.
    pub fn time(&self) -> Result<Duration> {
        thread_time(&self.thread)
    }
}

async fn accept(listener: TcpListener, speaks: Speaks, state: Arc<State>) {
    loop {
        // A failed accept passes.
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Small answers must not wait for each other.
        let _: Result<(), _> = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        tokio::spawn(serve(stream, speaks, state));
    }
}

/// Serves a connection until it ends.
async fn serve(stream: TcpStream, speaks: Speaks, state: Arc<State>) {
    let stream = TokioIo::new(stream);
    // A broken connection is Envoy's to notice.
    match speaks {
        Speaks::Http => {
            let answer = service_fn(move |request: Request<Incoming>| {
                let denies = state.judge();
                async move {
                    let _: Result<_, _> = request.into_body().collect().await;
                    let mut answer = Response::new(Full::new(Bytes::new()));
                    let status = if denies { StatusCode::FORBIDDEN } else { StatusCode::OK };
                    *answer.status_mut() = status;
                    Ok::<_, Infallible>(answer)
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            let _: Result<_, _> = server.serve_connection(stream, answer).await;
        }
        Speaks::Grpc => {
            let answer = service_fn(move |request: Request<Incoming>| {
                let message = if state.judge() { DENIED } else { ALLOWED };
                async move {
                    let _: Result<_, _> = request.into_body().collect().await;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    let body = Full::new(Bytes::from_static(message))
                        .with_trailers(std::future::ready(Some(Ok::<_, Infallible>(trailers))));
                    let mut answer = Response::new(body);
                    let media = HeaderValue::from_static("application/grpc");
                    answer.headers_mut().insert(CONTENT_TYPE, media);
                    Ok::<_, Infallible>(answer)
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _: Result<_, _> = server.serve_connection(stream, answer).await;
        }
    }
}

impl State {
    /// Counts a question; whether the answer is no.
    fn judge(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.denies.load(Ordering::Relaxed)
    }
}

/// A gRPC frame of a `CheckResponse` with `status` (field 1) of code OK, which is the default, and `ok_response` (3).
const ALLOWED: &[u8] = &[0, 0, 0, 0, 4, 0x0a, 0, 0x1a, 0];
/// The same with `status.code` 7, PERMISSION_DENIED.
const DENIED: &[u8] = &[0, 0, 0, 0, 4, 0x0a, 2, 0x08, 7];

/// OPA with its Envoy plugin.
#[derive(Debug)]
pub struct Opa {
    /// Where it answers to gRPC.
    pub address: SocketAddr,
    process: Process,
}

impl Opa {
    /// Starts `program` with a module of Rego, whose answer is `envoy/authz/allow`.
    ///
    /// # Errors
    /// If it does not listen within ten seconds.
    pub fn start(
        program: &Path,
        name: &'static str,
        module: &str,
        directory: &Path,
    ) -> Result<Self> {
        let file = |suffix: &str| directory.join(format!("{name}{suffix}"));
        let (rego, configuration) = (file(".rego"), file(".json"));
        std::fs::write(&rego, module).context(rego.display())?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let settings = serde_json::json!({ "plugins": { "envoy_ext_authz_grpc": {
            "addr": address.to_string(), "path": "envoy/authz/allow",
        } } });
        std::fs::write(&configuration, settings.to_string()).context(configuration.display())?;
        let api = format!("127.0.0.1:{}", free_port()?);
        let mut process = Process::start("OPA", program, &file(".log"), |command| {
            command.args(["run", "--server", "--log-level", "error", "--addr", &api]);
            command.args(["--disable-telemetry", "--config-file"]).arg(&configuration).arg(&rego);
        })?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(address).is_err() {
            if !process.is_running() || Instant::now() > deadline {
                return Err(process.failed("does not listen"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { address, process })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Processor time so far.
    ///
    /// # Errors
    /// If it has ended.
    pub fn time(&self) -> Result<Duration> {
        crate::cost::processor_time(self.process.id())
    }
}
