//! The host calls that the filter makes, in forms that cannot trap.
//!
//! The SDK panics on header bytes that are not UTF-8 and on statuses that it does not expect; only
//! its `_bytes` forms are used, and only where the host can answer nothing unexpected.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::time::UNIX_EPOCH;

use airflow_envoy_core::time::UnixTime;
use proxy_wasm::hostcalls;
use proxy_wasm::types::{Bytes, LogLevel, MapType, MetricType};

/// The host's clock.
pub(crate) fn now() -> UnixTime {
    let since_epoch = hostcalls::get_current_time()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .and_then(|span| i64::try_from(span.as_millis()).ok());
    // Without a clock nothing is valid: at the end of time everything has expired.
    UnixTime::from_millis(since_epoch.unwrap_or(i64::MAX))
}

/// A random number, from the host by way of WASI `random_get`.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// One line in Envoy's log, which adds the plugin's name.
pub(crate) fn log(level: LogLevel, message: &str) {
    // A log line that cannot be written must not stop a decision.
    let _ = hostcalls::log(level, message);
}

/// All headers of a map, in order, repeated ones repeated.
pub(crate) fn headers(map: MapType) -> Vec<(String, Bytes)> {
    hostcalls::get_map_bytes(map).unwrap_or_default()
}

/// Metrics by name, defined when they are first needed. The names come from the closed list of codes
/// and from the configuration, so their number is bounded.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    ids: HashMap<String, u32>,
}

impl Metrics {
    /// Adds `by` to the counter `airflow_envoy.<name>`.
    pub(crate) fn add(&mut self, name: &str, by: u64) {
        if let Some(id) = self.id(MetricType::Counter, name) {
            let _ = hostcalls::increment_metric(id, i64::try_from(by).unwrap_or(i64::MAX));
        }
    }

    /// Sets the gauge `airflow_envoy.<name>`.
    pub(crate) fn set(&mut self, name: &str, value: u64) {
        if let Some(id) = self.id(MetricType::Gauge, name) {
            let _ = hostcalls::record_metric(id, value);
        }
    }

    fn id(&mut self, kind: MetricType, name: &str) -> Option<u32> {
        match self.ids.entry(name.to_owned()) {
            Entry::Occupied(known) => Some(*known.get()),
            Entry::Vacant(unknown) => {
                let id = hostcalls::define_metric(kind, &format!("airflow_envoy.{name}")).ok()?;
                Some(*unknown.insert(id))
            }
        }
    }
}
