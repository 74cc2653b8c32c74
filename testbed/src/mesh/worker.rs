//! The Envoy beside the Airflow worker: `envoy-worker.yaml` on this machine.
//!
//! | value | why |
//! |---|---|
//! | ports of the admin interface and of the listener | several testbeds at once |
//! | address and port of the gate | it is here, on a free port |
//! | paths of the certificate and of the roots | made for this run |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bootstrap::Bootstrap;
use crate::envoy::{Launch, stat};
use crate::error::{Context as _, Result};
use crate::mesh::services::DESTINATION;
use crate::process::Process;
use crate::{read, repository};

/// The name of its listener.
const LISTENER: &str = "airflow-worker";
/// The name of its access log.
const ACCESS: &str = "worker-access";

/// A running Envoy beside the worker.
pub struct Worker {
    /// Where tasks call it, in plain HTTP.
    pub address: SocketAddr,
    /// Its admin interface.
    pub admin: SocketAddr,
    access: PathBuf,
    process: Mutex<Process>,
}

/// Where to start it.
pub(crate) struct Surroundings<'s> {
    /// Where its own files go.
    pub directory: &'s Path,
    /// The folder of the agent that keeps the worker's certificate.
    pub certificates: &'s Path,
    /// Where the gate takes calls of the mesh.
    pub gate: SocketAddr,
    /// The listener's port; 0 for any.
    pub port: u16,
    /// How long connections to the gate live, if not as in the file.
    pub connections: Option<Duration>,
}

impl Worker {
    /// Starts it and returns when it has found the gate healthy.
    ///
    /// # Errors
    /// If Envoy does not start, or the gate is not healthy within ten seconds.
    pub(crate) async fn start(around: Surroundings<'_>) -> Result<Self> {
        let mut bootstrap = Bootstrap::read(&repository().join("envoy-worker.yaml"))?;
        bootstrap.set_admin_port(0)?;
        bootstrap.set_listener_port(around.port)?;
        bootstrap.set_endpoint(DESTINATION, around.gate)?;
        let tls = "/transport_socket/typed_config/common_tls_context";
        for (place, file) in [
            ("tls_certificate_sds_secret_configs/0", "certificate.json"),
            ("combined_validation_context/validation_context_sds_secret_config", "roots.json"),
        ] {
            let place = format!("{tls}/{place}/sds_config/path_config_source/path");
            let path = bootstrap.cluster(DESTINATION)?.pointer_mut(&place).context(&place)?;
            *path = around.certificates.join(file).display().to_string().into();
        }
        if let Some(time) = around.connections {
            let place = "/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/common_http_protocol_options/max_connection_duration";
            let duration = bootstrap.cluster(DESTINATION)?.pointer_mut(place).context(place)?;
            *duration = format!("{}s", time.as_secs_f32()).into();
        }
        let launch = Launch {
            name: LISTENER,
            access: ACCESS,
            directory: around.directory,
            concurrency: 2,
            log_level: "warning",
            wasm_log_level: None,
            listeners: &[LISTENER],
            environment: &[],
        };
        let (process, addresses) = launch.run(&bootstrap).await?;
        let worker = Self {
            address: addresses.first()?,
            admin: addresses.admin,
            access: around.directory.join(format!("{ACCESS}.log")),
            process: Mutex::new(process),
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !worker.gate_is_healthy().await? {
            if Instant::now() > deadline {
                return Err(worker.running().failed("does not find the gate healthy"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(worker)
    }

    /// The lines of its access log.
    ///
    /// # Errors
    /// If one is not JSON.
    pub fn calls(&self) -> Result<Vec<Value>> {
        let text = read(&self.access);
        text.lines().map(|line| serde_json::from_str(line).context(line)).collect()
    }

    /// Whether the gate is healthy in its eyes.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn gate_is_healthy(&self) -> Result<bool> {
        self.stat("cluster.orders.membership_healthy").await.map(|healthy| healthy == 1)
    }

    /// The value of the counter or gauge `name`; 0 if it does not exist yet.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        stat(self.admin, name).await
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
