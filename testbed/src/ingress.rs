//! Envoy in front of Airflow's API server: `envoy-airflow-api.yaml` on this machine.
//!
//! | value | why |
//! |---|---|
//! | ports of the admin interface and of the listener | several testbeds at once |
//! | address and port of Airflow's API server | it is here, on a free port |
//! | path of the filter | so that Envoy may be started from anywhere |
//! | one more host of the destination, and of the virtual host | it has no name here |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::bootstrap::Bootstrap;
use crate::envoy::Launch;
use crate::error::{Context as _, Error, Result};
use crate::process::Process;
use crate::{filter_file, read, repository};

/// The name of its listener.
const LISTENER: &str = "airflow-api";
/// The name of its access log.
const ACCESS: &str = "airflow-api-access";

/// A running Envoy in front of Airflow's API server.
pub struct Ingress {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its admin interface.
    pub admin: SocketAddr,
    access: PathBuf,
    process: Mutex<Process>,
}

impl Ingress {
    /// Starts it before the API server at `server`, for callers who call it by one of `hosts`.
    ///
    /// # Errors
    /// If Envoy does not start.
    pub(crate) async fn start(
        directory: &Path,
        server: SocketAddr,
        hosts: &[String],
    ) -> Result<Self> {
        let mut bootstrap = Bootstrap::read(&repository().join("envoy-airflow-api.yaml"))?;
        bootstrap.set_admin_port(0)?;
        bootstrap.set_listener_port(0)?;
        bootstrap.set_endpoint("airflow-api", server)?;
        bootstrap.set_filter(&filter_file()?)?;
        let mut named = 0;
        let mut name = |place: Option<&mut Value>| {
            if let Some(list) = place.and_then(Value::as_array_mut) {
                list.extend(hosts.iter().map(|host| json!(host)));
                named += 1;
            }
        };
        bootstrap.configure_filter(|configuration| {
            name(configuration.pointer_mut("/policy/sources/0/inline/destinations/airflow/hosts"));
        })?;
        let routes =
            "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config";
        name(bootstrap.0.pointer_mut(&format!("{routes}/virtual_hosts/0/domains")));
        if named != 2 {
            return Err(Error::new("envoy-airflow-api.yaml has no destination or no virtual host"));
        }
        let launch = Launch {
            name: LISTENER,
            access: ACCESS,
            directory,
            concurrency: 2,
            log_level: "warning",
            wasm_log_level: None,
            listeners: &[LISTENER],
            environment: &[],
        };
        let (process, addresses) = launch.run(&bootstrap).await?;
        let access = directory.join(format!("{ACCESS}.log"));
        Ok(Self {
            address: addresses.first()?,
            admin: addresses.admin,
            access,
            process: Mutex::new(process),
        })
    }

    /// The lines of its access log.
    ///
    /// # Errors
    /// If one is not JSON.
    pub fn calls(&self) -> Result<Vec<Value>> {
        let text = read(&self.access);
        text.lines().map(|line| serde_json::from_str(line).context(line)).collect()
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.running().id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// If it does not; the fault has the end of its log.
    pub fn check(&self) -> Result<()> {
        let mut process = self.running();
        if process.is_running() { Ok(()) } else { Err(process.failed("ended")) }
    }

    fn running(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
