//! What an operator does in a running mesh, from outside: call as a service, change who may call whom, look at it.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::ORDERS;
use crate::client::{Answer, Call};
use crate::consul::Client;
use crate::error::Result;
use crate::load::Credentials;
use crate::mesh::client::{Leaf, connector, roots, spiffe_id};
use crate::mesh::intentions::{self, Action};
use crate::mesh::probe::Probe;
use crate::mesh::services::{self, DESTINATION};

/// A service that no intention names: one of `*`.
const ANYBODY: &str = "some-service";

/// Who operates a mesh.
#[derive(Clone)]
pub struct Operator {
    /// Its Consul.
    pub consul: Client,
    /// Where the gate takes calls of the mesh.
    pub gate: SocketAddr,
    /// The folder with a folder of certificates for each service.
    pub certificates: PathBuf,
}

/// What is to be done to an intention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It says this from now on.
    Put(Action),
    /// It is forgotten.
    Delete,
}

impl Operator {
    /// What a caller needs to call the gate as `service`, with a leaf that Consul issues for it now.
    ///
    /// # Errors
    /// If Consul gives no leaf.
    pub async fn connector(&self, service: &str) -> Result<TlsConnector> {
        let leaf = Leaf::issue(&self.consul, service).await?;
        let server = spiffe_id(&self.consul, DESTINATION).await?;
        connector(Some(&leaf), &roots(&self.consul).await?, &server)
    }

    /// Makes `call` at the gate as `service`.
    ///
    /// # Errors
    /// If Consul gives no leaf, or there is no whole answer.
    pub async fn call_as(&self, service: &str, call: Call) -> Result<Answer> {
        let connector = self.connector(service).await?;
        call.send(self.gate, Some((&connector, ORDERS))).await
    }

    /// Connections of `service` to every worker of the gate.
    ///
    /// # Errors
    /// If Consul gives no leaf, or the gate takes none.
    pub async fn probe(
        &self,
        service: &str,
        path: &str,
        credentials: Option<Credentials>,
    ) -> Result<Probe> {
        Probe::open(self.gate, &self.connector(service).await?, path, credentials).await
    }

    /// Changes an intention; as text what that meant at the gate, and for whom: a service, of which the next call is of
    /// interest, if there is one.
    ///
    /// # Errors
    /// If Consul refuses, or the gate never acts by it.
    pub async fn change(
        &self,
        change: Change,
        source: &str,
        destination: &str,
        path: &str,
        credentials: Credentials,
    ) -> Result<(String, Option<String>)> {
        let action = async || match change {
            Change::Put(action) => {
                intentions::put(&self.consul, action, source, destination).await.map(|()| true)
            }
            Change::Delete => intentions::delete(&self.consul, source, destination).await,
        };
        let verb = match change {
            Change::Put(action) => action.name(),
            Change::Delete => "delete",
        };
        let title = format!("{verb} {source} => {destination}");
        if ![DESTINATION, "*"].contains(&destination) {
            let known = action().await?;
            let known = if known { "" } else { "there was none; " };
            return Ok((format!("{title}: {known}the gate is that of `{DESTINATION}`\n"), None));
        }
        let caller = if source == "*" { ANYBODY } else { source };
        let mut probe = self.probe(caller, path, Some(credentials)).await?;
        let before = probe.refused().await?;
        let begun = Instant::now();
        let known = action().await?;
        let after = self.refused(caller).await?;
        probe.until(after, async { Ok(()) }).await?;
        let millis = begun.elapsed().as_secs_f64() * 1000.0;
        let workers = probe.workers();
        let what = if after { "refused" } else { "let through" };
        let text = if !known {
            format!("{title}: there was none\n")
        } else if before == after {
            format!("{title}: intentions have `{caller}` {what}, as before\n")
        } else {
            format!(
                "{title}: {millis:.1} ms after this was begun, `{caller}` is {what} by all {workers} workers of the gate\n"
            )
        };
        Ok((text, Some(caller.to_owned())))
    }

    /// Whether intentions refuse `caller`: the first that matches decides, and without any the gate's own default, which
    /// is to refuse.
    async fn refused(&self, caller: &str) -> Result<bool> {
        let all = intentions::list(&self.consul).await?;
        let first = all.iter().find(|it| {
            [caller, "*"].contains(&&*it.source) && [DESTINATION, "*"].contains(&&*it.destination)
        });
        Ok(first.is_none_or(|it| it.action != Action::Allow.name()))
    }

    /// Every intention, and what the gate does without any.
    ///
    /// # Errors
    /// If Consul does not say.
    pub async fn intentions(&self) -> Result<String> {
        let mut text = String::new();
        for intention in intentions::list(&self.consul).await? {
            let _: Result<(), _> = writeln!(text, "  {intention}");
        }
        text += "  deny  whoever is left (the gate's default)\n";
        Ok(text)
    }

    /// Services, intentions and certificates, for a person.
    ///
    /// # Errors
    /// If Consul does not say.
    pub async fn status(&self) -> Result<String> {
        let mut text = String::from("services\n");
        for (service, health) in services::health(&self.consul).await? {
            let _: Result<(), _> = writeln!(text, "  {service:24} {health}");
        }
        let callable = services::callable(&self.consul, DESTINATION).await?;
        let _: Result<(), _> =
            writeln!(text, "gates of {DESTINATION} that may be called\n  {}", callable.join(", "));
        text += "intentions\n";
        text += &self.intentions().await?;
        text += "certificates\n";
        text += &self.certificates();
        Ok(text)
    }

    /// What each service's agent has published.
    fn certificates(&self) -> String {
        let mut lines = Vec::new();
        for entry in fs::read_dir(&self.certificates).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let about = fs::read_to_string(entry.path().join("live/about.json"));
            let about: Value = serde_json::from_str(&about.unwrap_or_default()).unwrap_or_default();
            let text = |member: &str| match about.get(member) {
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
                None => "?".to_owned(),
            };
            lines.push(format!(
                "  {name:24} good until {}, serial number {}\n",
                text("expires"),
                text("serial"),
            ));
        }
        lines.sort_unstable();
        lines.concat()
    }
}
