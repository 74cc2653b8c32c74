//! The phases in a mesh: calls go through the Envoy beside the worker, while intentions, certificates and roots change.

use std::time::Duration;

use super::{Bed, PATHS, Row, by_long_poll, millis};
use crate::error::{Context as _, Result};
use crate::load::{Tally, percentile};
use crate::mesh::authority::Authority;
use crate::mesh::intentions::{Action, put};
use crate::mesh::services::{DESTINATION, WORKER};
use crate::{Options, mesh, within};

/// What happens.
pub(super) const PHASES: [&str; 3] =
    ["intention changes", "certificates renewed in the mesh", "roots changed in the mesh"];

/// How long certificates live in the last two phases; they are renewed at three fifths of it.
const LIFETIME: Duration = Duration::from_secs(15);

/// Without a catalog: for a sidecar in it, Consul 1.8 issues certificates that live shorter than ten minutes without end.
pub(super) fn options() -> Options {
    let mesh = mesh::Options {
        worker: Some(0),
        // What is left of a certificate when it is renewed is longer.
        worker_connections: Some(Duration::from_secs(2)),
        ..mesh::Options::default()
    };
    Options { mesh: Some(mesh), ..super::options(by_long_poll) }
}

impl Bed {
    pub(super) async fn in_mesh(&self, phase: &str) -> Result<Row> {
        match PHASES.iter().position(|name| *name == phase) {
            Some(0) => self.intention_changes().await,
            Some(1) => self.renewals().await,
            _ => self.roots().await,
        }
    }

    async fn intention_changes(&self) -> Result<Row> {
        let operator = self.testbed.operator().context("a mesh")?;
        let memory = self.testbed.memory_kib()?;
        self.renew().await?;
        let credentials = self.callers().known.first().cloned();
        let mut probe = operator.probe(WORKER, PATHS[0], credentials).await?;
        let mut times = Vec::new();
        for change in 0..self.plan.consul_changes {
            let denied = change % 2 == 0;
            let action = if denied { Action::Deny } else { Action::Allow };
            times.push(
                probe.until(denied, put(&operator.consul, action, WORKER, DESTINATION)).await?,
            );
            // Time for the next question to be asked: what comes earlier waits for that.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        put(&operator.consul, Action::Allow, WORKER, DESTINATION).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        times.sort_unstable();
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0]
            .map(|share| percentile(&times, share).map_or_else(String::new, |time| millis(*time)));
        Ok(Row {
            phase: format!("{} intention changes", self.plan.consul_changes),
            tally: Tally::default(),
            memory_kib: (memory, self.testbed.memory_kib()?),
            note: format!(
                "from before Consul is told to the last of {} workers: p50 {p50}, p90 {p90}, p99 {p99}, max {max} ms",
                probe.workers()
            ),
        })
    }

    async fn renewals(&self) -> Result<Row> {
        // Those that are out are as they are: a new root makes everybody ask for others.
        self.change_root("short").await?;
        let wanted = u64::from(self.plan.changes / 4).max(2);
        let row = self.under_load("certificates renewed in the mesh", async || {
            let before = self.generations()?;
            let patience = LIFETIME * u32::try_from(wanted).unwrap_or(u32::MAX);
            within(patience, "every certificate is renewed", async || {
                self.generations().is_ok_and(|now| {
                    now.iter().zip(before).all(|(now, before)| *now >= before + wanted)
                })
            })
            .await?;
            let now = self.generations()?;
            let [gate, worker] =
                [0, 1].map(|it: usize| now.get(it).zip(before.get(it)).map_or(0, |(now, before)| now - before));
            Ok(format!(
                "{gate} certificates of the gate and {worker} of the worker, each good for {} s; {}",
                LIFETIME.as_secs(),
                self.handshakes().await?
            ))
        });
        row.await
    }

    async fn roots(&self) -> Result<Row> {
        let changes = (self.plan.changes / 4).max(2);
        self.under_load(format!("{changes} roots changed in the mesh"), async || {
            for change in 0..changes {
                self.change_root(&format!("root {change}")).await?;
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Ok(format!(
                "both sides have a certificate of the new root each time; {}",
                self.handshakes().await?
            ))
        })
        .await
    }

    /// Lets Consul sign by a new root and waits until both sides have a certificate of it.
    async fn change_root(&self, name: &str) -> Result<()> {
        let consul = self.testbed.consul.as_ref().context("Consul")?;
        let before = self.generations()?;
        consul.set_authority(LIFETIME, Some(&Authority::new(name)?)).await?;
        within(Duration::from_secs(10), "both have a certificate of the new root", async || {
            self.generations()
                .is_ok_and(|now| now.iter().zip(before).all(|(now, before)| *now > before))
        })
        .await
        .map(|_| ())
    }

    /// How many certificates the gate and the worker had.
    fn generations(&self) -> Result<[u64; 2]> {
        let mesh = self.testbed.mesh.as_ref().context("a mesh")?;
        let of =
            |service| Ok::<_, crate::error::Error>(mesh.agent(service)?.published().generation);
        Ok([of(DESTINATION)?, of(WORKER)?])
    }

    /// How many connections the two sides made so far, and how many failed.
    async fn handshakes(&self) -> Result<String> {
        let worker = self.testbed.worker().context("the worker's Envoy")?;
        let made = worker.stat("cluster.orders.ssl.handshake").await?;
        let failed = worker.stat("cluster.orders.ssl.connection_error").await?;
        Ok(format!("{made} TLS handshakes so far, {failed} failed"))
    }
}
