//! The services in Consul's catalog, and what says that they live.
//!
//! Airflow's own are Connect-native: each holds its leaf itself, and says by itself that it lives. The destination has a
//! sidecar, the gate, which Consul asks: its health and whether somebody listens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::consul::Client;
use crate::error::{Context as _, Result};

/// The service that tasks run in.
pub const WORKER: &str = "airflow-worker";
/// The service that deferred tasks wait in.
pub const TRIGGERER: &str = "airflow-triggerer";
/// The destination.
pub const DESTINATION: &str = "orders";

/// Airflow's services, what they are in it, and the Airflow roles that a caller may have there.
pub const AIRFLOW: [(&str, &str, &str); 4] = [
    ("airflow-scheduler", "scheduler", "Op"),
    (WORKER, "worker", "User,DataScience"),
    (TRIGGERER, "triggerer", "User,DataScience"),
    ("airflow-api-server", "api-server", "Viewer"),
];

/// How long a service counts as alive after it said so, as Consul writes it; it says so five times as often.
const ALIVE: &str = "10s";
const BEAT: Duration = Duration::from_secs(2);

/// Where the destination and its gate are.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The destination itself.
    pub destination: SocketAddr,
    /// Where its gate takes calls of the mesh.
    pub gate: SocketAddr,
    /// Where it says, to Consul, that it takes calls and its destination is healthy.
    pub health: SocketAddr,
}

/// The services, as long as this lives.
pub struct Services {
    consul: Client,
    heart: AbortHandle,
}

impl Services {
    /// Registers them all, and again should Consul have forgotten them.
    ///
    /// # Errors
    /// If Consul refuses one.
    pub async fn register(consul: Client, places: Places, threads: &Handle) -> Result<Self> {
        let known: Arc<[Value]> = definitions(places).into();
        for service in &*known {
            register(&consul, service).await?;
        }
        let (beating, services) = (consul.clone(), Arc::clone(&known));
        let heart = threads.spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                // A Consul that is away has its services again as soon as it is back.
                let _: Result<()> = beat(&beating, &services).await;
            }
        });
        Ok(Self { consul, heart: heart.abort_handle() })
    }

    /// Takes them out of the catalog, as services do that end in good order.
    ///
    /// # Errors
    /// If Consul refuses.
    pub async fn deregister(&self) -> Result<()> {
        self.heart.abort();
        let sidecar = sidecar();
        // The sidecar goes with its service, but not by itself in every version.
        for name in AIRFLOW.iter().map(|(name, _, _)| *name).chain([&*sidecar, DESTINATION]) {
            if present(&self.consul).await?.iter().any(|known| known == name) {
                let path = format!("/v1/agent/service/deregister/{name}");
                self.consul.ask("PUT", &path, String::new()).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

/// The instances of `service` that may be called by the mesh: those whose every check passes.
///
/// # Errors
/// If Consul does not say.
pub async fn callable(consul: &Client, service: &str) -> Result<Vec<String>> {
    let path = format!("/v1/health/connect/{service}?passing");
    let said = consul.ask("GET", &path, String::new()).await?;
    let instances = said.as_array().context("a list of instances")?;
    Ok(instances
        .iter()
        .filter_map(|instance| {
            let service = instance.get("Service")?;
            let address = service.get("Address")?.as_str()?;
            Some(format!("{address}:{}", service.get("Port")?))
        })
        .collect())
}

/// Every service that this agent knows, and the worst of its checks.
///
/// # Errors
/// If Consul does not say.
pub async fn health(consul: &Client) -> Result<Vec<(String, String)>> {
    let checks = consul.ask("GET", "/v1/agent/checks", String::new()).await?;
    let worst = |id: &str| {
        let of_service = checks.as_object().into_iter().flatten().filter_map(|(_, check)| {
            let ours = check.get("ServiceID")?.as_str()? == id;
            ours.then(|| check.get("Status")?.as_str())?
        });
        let rank = |status: &&str| match *status {
            "passing" => 0,
            "warning" => 1,
            _ => 2,
        };
        of_service.max_by_key(rank).unwrap_or("no check").to_owned()
    };
    let mut found: Vec<_> =
        present(consul).await?.into_iter().map(|id| (id.clone(), worst(&id))).collect();
    found.sort_unstable();
    Ok(found)
}

fn sidecar() -> String {
    format!("{DESTINATION}-sidecar-proxy")
}

fn heartbeat(service: &str) -> String {
    format!("{service}-alive")
}

/// What Consul is told of each.
fn definitions(places: Places) -> Vec<Value> {
    let Places { destination, gate, health } = places;
    let mut all: Vec<_> = AIRFLOW
        .iter()
        .map(|(name, component, roles)| {
            json!({
                "Name": name, "ID": name, "Address": "127.0.0.1", "Tags": ["airflow"],
                "Meta": { "component": component, "airflow_role": roles },
                "Connect": { "Native": true },
                "Check": { "CheckID": heartbeat(name), "Name": "alive", "TTL": ALIVE, "Status": "passing" },
            })
        })
        .collect();
    all.push(json!({
        "Name": DESTINATION, "ID": DESTINATION,
        "Address": destination.ip().to_string(), "Port": destination.port(),
        "Check": {
            "Name": "healthy", "HTTP": format!("http://{destination}/healthz"),
            "Interval": "2s", "Timeout": "1s",
        },
    }));
    // Once a second is as often as Consul asks. One that is away for a minute is forgotten.
    all.push(json!({
        "Name": sidecar(), "ID": sidecar(), "Kind": "connect-proxy",
        "Address": gate.ip().to_string(), "Port": gate.port(),
        "Proxy": {
            "DestinationServiceName": DESTINATION, "DestinationServiceID": DESTINATION,
            "LocalServiceAddress": destination.ip().to_string(), "LocalServicePort": destination.port(),
        },
        "Checks": [
            {
                "Name": "gate ready", "HTTP": format!("http://{health}/ready"),
                "Interval": "1s", "Timeout": "500ms", "DeregisterCriticalServiceAfter": "1m",
            },
            { "Name": "gate listens", "TCP": gate.to_string(), "Interval": "1s", "Timeout": "500ms" },
            { "Name": "destination", "AliasService": DESTINATION },
        ],
    }));
    all
}

async fn register(consul: &Client, service: &Value) -> Result<()> {
    let path = "/v1/agent/service/register?replace-existing-checks=true";
    consul.ask("PUT", path, service.to_string()).await.map(|_| ())
}

/// The ids of what this agent knows.
async fn present(consul: &Client) -> Result<Vec<String>> {
    let said = consul.ask("GET", "/v1/agent/services", String::new()).await?;
    let known = said.as_object().context("the agent's services")?;
    Ok(known.keys().cloned().collect())
}

async fn beat(consul: &Client, services: &[Value]) -> Result<()> {
    let present = present(consul).await?;
    for service in services {
        let id = service.get("ID").and_then(Value::as_str).unwrap_or_default();
        if !present.iter().any(|known| known == id) {
            register(consul, service).await?;
        }
    }
    for (name, _, _) in AIRFLOW {
        let path = format!("/v1/agent/check/pass/{}", heartbeat(name));
        consul.ask("PUT", &path, String::new()).await?;
    }
    Ok(())
}
