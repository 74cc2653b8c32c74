//! When a change of an intention acts: each worker of the gate is asked again and again, on a connection of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::error::{Context as _, Error, Result};
use crate::load::{Answered, Connection, Credentials, get};

/// Where the gate tells its state.
pub const STATUS: &str = "/airflow-envoy/status";
/// The code of a call that an intention refused.
pub const DENIED: &str = "intention_denied";

/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// New connections are spread over the workers by the kernel: among so many there is one of each.
const CONNECTIONS: usize = 24;

/// Connections of one service to every worker of the gate.
pub struct Probe {
    connections: Vec<Connection>,
    path: String,
    credentials: Option<Credentials>,
}

impl Probe {
    /// Connections to the gate that ask for `path` with these credentials.
    ///
    /// # Errors
    /// If the gate takes no connection with this certificate.
    pub async fn open(
        gate: SocketAddr,
        tls: &TlsConnector,
        path: &str,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let mut workers = BTreeMap::new();
        for number in 0..CONNECTIONS {
            let mut connection = Connection::of_mesh(gate, tls.clone());
            let answer = connection.call(|| get(STATUS, None)).await?;
            let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let worker = said.get("worker").and_then(Value::as_str).map(str::to_owned);
            workers.insert(worker.unwrap_or_else(|| format!("connection {number}")), connection);
        }
        let connections = workers.into_values().collect();
        Ok(Self { connections, path: path.to_owned(), credentials })
    }

    /// How many workers are asked.
    pub fn workers(&self) -> usize {
        self.connections.len()
    }

    /// Shows other credentials from now on.
    pub fn renew(&mut self, credentials: Credentials) {
        self.credentials = Some(credentials);
    }

    /// Whether an intention refuses the call; what any worker says.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn refused(&mut self) -> Result<bool> {
        let (path, credentials) = (self.path.clone(), self.credentials.clone());
        let connection = self.connections.first_mut().context("a connection")?;
        Ok(refused(&connection.call(|| get(&path, credentials.as_ref())).await?))
    }

    /// Carries out `change` and asks until an intention refuses the call at every worker, or at none: the time from its
    /// start.
    ///
    /// # Errors
    /// If the change fails, or a worker never acts by it.
    pub async fn until(
        &mut self,
        wanted: bool,
        change: impl Future<Output = Result<()>>,
    ) -> Result<Duration> {
        // Before the change, so that each is in the middle of asking when it comes.
        let begun = Instant::now();
        let tasks: Vec<_> = self
            .connections
            .drain(..)
            .map(|mut connection| {
                let (path, credentials) = (self.path.clone(), self.credentials.clone());
                tokio::spawn(async move {
                    loop {
                        let answer = connection.call(|| get(&path, credentials.as_ref())).await?;
                        if refused(&answer) == wanted {
                            return Ok::<_, Error>((connection, Instant::now()));
                        }
                        if begun.elapsed() > PATIENCE {
                            return Err(Error::new("a worker of the gate never had the change"));
                        }
                    }
                })
            })
            .collect();
        let changed = Instant::now();
        change.await?;
        let mut last = changed;
        for task in tasks {
            let (connection, at) = task.await.context("a worker's connection")??;
            last = last.max(at);
            self.connections.push(connection);
        }
        Ok(last - changed)
    }
}

fn refused(answer: &Answered) -> bool {
    answer.code.as_deref() == Some(DENIED)
}
