//! The host calls that the filter makes, in forms that cannot trap.
//!
//! The SDK panics on header bytes that are not UTF-8 and on statuses that it does not expect; only
//! its `_bytes` forms are used, and only where the host can answer nothing unexpected.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, UNIX_EPOCH};

use airflow_envoy_core::audit::Line;
use airflow_envoy_core::peer::EVIDENCE;
use airflow_envoy_core::shared::{Refused, SharedData, Stamp};
use airflow_envoy_core::time::UnixTime;
use proxy_wasm::hostcalls;
use proxy_wasm::types::{Bytes, LogLevel, MapType, MetricType, Status};

/// The host's clock.
pub(crate) fn now() -> UnixTime {
    at(since_epoch())
}

/// The time that the host's clock shows, to the nanosecond; `None` without a clock.
pub(crate) fn since_epoch() -> Option<Duration> {
    hostcalls::get_current_time().ok()?.duration_since(UNIX_EPOCH).ok()
}

/// The moment that is so long after the epoch.
pub(crate) fn at(since_epoch: Option<Duration>) -> UnixTime {
    let millis = since_epoch.and_then(|span| i64::try_from(span.as_millis()).ok());
    // Without a clock nothing is valid: at the end of time everything has expired.
    UnixTime::from_millis(millis.unwrap_or(i64::MAX))
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

/// Lines of the audit trail in Envoy's log, each on its own: at info, or at the lowest level that the
/// log shows. Whether it shows any.
pub(crate) fn append(lines: &[Line]) -> bool {
    const LEVELS: [LogLevel; 4] =
        [LogLevel::Info, LogLevel::Warn, LogLevel::Error, LogLevel::Critical];
    let shown = log_level();
    let Some(level) = LEVELS.into_iter().find(|level| *level as u32 >= shown) else { return false };
    let bytes = lines.iter().map(|line| line.len().saturating_add(1)).sum();
    let mut text = String::with_capacity(bytes);
    for line in lines {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(line.as_str());
    }
    hostcalls::log(level, &text).is_ok()
}

/// The level from which on Envoy's log shows what the filter writes; above all levels if it is off. Not
/// by the SDK, which reads a level that it does not know, as that one, as one of its own.
fn log_level() -> u32 {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        fn proxy_get_log_level(level: *mut u32) -> u32;
    }
    let mut level = 0;
    // SAFETY: the host writes one number to where it is told to; it has four bytes.
    let status = unsafe { proxy_get_log_level(&raw mut level) };
    // A host that does not tell may show everything.
    if status == 0 { level } else { 0 }
}

/// What the caller of the effective stream got: the HTTP status, if any, and Envoy's response flags.
pub(crate) fn response() -> (Option<u16>, u64) {
    let number = |name: &str| {
        let bytes = hostcalls::get_property(vec!["response", name]).ok()??;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let status = number("code").and_then(|code| u16::try_from(code).ok());
    (status.filter(|status| *status > 0), number("flags").unwrap_or_default())
}

/// What Envoy knows about the client's certificate: the filter state that its listener keeps for each connection.
pub(crate) fn peer() -> Option<Bytes> {
    hostcalls::get_property(vec!["filter_state", EVIDENCE]).ok().flatten()
}

/// All headers of a map, in order, repeated ones repeated.
pub(crate) fn headers(map: MapType) -> Vec<(String, Bytes)> {
    hostcalls::get_map_bytes(map).unwrap_or_default()
}

/// What the VMs of this Envoy process share: the store of their common `vm_id`, and a counter as the
/// signal that there is something new in it. Reading a counter is far cheaper than reading the store,
/// which takes a lock that all workers share. Should Envoy keep no such counter, because
/// its `stats_config` leaves it out, what is new is found at the next tick.
#[derive(Debug, Default)]
pub(crate) struct HostShared {
    published: Option<u32>,
}

impl HostShared {
    pub(crate) fn new() -> Self {
        let name = "airflow_envoy.documents.published";
        Self { published: hostcalls::define_metric(MetricType::Counter, name).ok() }
    }
}

impl SharedData for HostShared {
    fn read(&self, key: &str) -> Option<(Vec<u8>, Stamp)> {
        let (value, stamp) = hostcalls::get_shared_data(key).ok()?;
        Some((value?, Stamp(stamp.unwrap_or_default())))
    }

    fn write(&self, key: &str, value: &[u8], unchanged: Option<Stamp>) -> Result<(), Refused> {
        hostcalls::set_shared_data(key, Some(value), unchanged.map(|Stamp(stamp)| stamp)).map_err(
            |status| match status {
                Status::CasMismatch => Refused::Changed,
                _ => Refused::Unsupported,
            },
        )
    }

    fn announced(&self) -> u64 {
        self.published.and_then(|id| hostcalls::get_metric(id).ok()).unwrap_or_default()
    }

    fn announce(&self) {
        if let Some(id) = self.published {
            let _ = hostcalls::increment_metric(id, 1);
        }
    }
}

/// Metrics by name, defined when they are first needed. The names come from closed lists, from the
/// configuration and, up to a limit, from the policy, so their number is bounded.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    ids: HashMap<String, u32>,
    /// This worker's share in gauges that are sums.
    levels: HashMap<&'static str, usize>,
}

impl Metrics {
    /// Adds `by` to the counter `airflow_envoy.<name>`.
    pub(crate) fn add(&mut self, name: &str, by: u64) {
        if let Some(id) = self.id(MetricType::Counter, name) {
            let _ = hostcalls::increment_metric(id, i64::try_from(by).unwrap_or(i64::MAX));
        }
    }

    /// Sets the gauge `airflow_envoy.<name>`, which all workers know alike.
    pub(crate) fn set(&mut self, name: &str, value: u64) {
        if let Some(id) = self.id(MetricType::Gauge, name) {
            let _ = hostcalls::record_metric(id, value);
        }
    }

    /// Makes `share` this worker's share in the gauge `airflow_envoy.<name>`, which is the sum of all workers'.
    pub(crate) fn level(&mut self, name: &'static str, share: usize) {
        let known = self.levels.insert(name, share);
        let signed = |share: usize| i64::try_from(share).unwrap_or(i64::MAX);
        let change = signed(share).saturating_sub(signed(known.unwrap_or_default()));
        // The first time in any case: a gauge that is there and 0 says more than one that is not.
        if (change != 0 || known.is_none())
            && let Some(id) = self.id(MetricType::Gauge, name)
        {
            let _ = hostcalls::increment_metric(id, change);
        }
    }

    /// Takes back this worker's shares: it ends.
    pub(crate) fn leave(&mut self) {
        let names: Vec<_> = self.levels.keys().copied().collect();
        for name in names {
            self.level(name, 0);
        }
    }

    /// Records a value in the histogram `airflow_envoy.<name>`.
    pub(crate) fn record(&mut self, name: &str, value: u64) {
        if let Some(id) = self.id(MetricType::Histogram, name) {
            let _ = hostcalls::record_metric(id, value);
        }
    }

    fn id(&mut self, kind: MetricType, name: &str) -> Option<u32> {
        if let Some(known) = self.ids.get(name) {
            return Some(*known);
        }
        let id = hostcalls::define_metric(kind, &format!("airflow_envoy.{name}")).ok()?;
        self.ids.insert(name.to_owned(), id);
        Some(id)
    }
}
