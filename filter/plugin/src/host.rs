//! What the filter wants of its host: time, the log, metrics, and what the workers share.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use airflow_envoy_core::audit::Line;
use airflow_envoy_core::peer::EVIDENCE;
use airflow_envoy_core::shared::{Refused, SharedData, Stamp};
use airflow_envoy_core::time::UnixTime;
use proxy_wasm::hostcalls;
use proxy_wasm::types::{LogLevel, MetricType, Status};

use crate::abi;

/// The host's clock.
pub(crate) fn now() -> UnixTime {
    at(since_epoch())
}

/// The time that the host's clock shows, to the nanosecond; `None` without a clock.
pub(crate) fn since_epoch() -> Option<Duration> {
    abi::current_time().map(Duration::from_nanos)
}

/// The moment that is so long after the epoch.
pub(crate) fn at(since_epoch: Option<Duration>) -> UnixTime {
    // Not by `as_millis`, whose 128 bits WebAssembly does not have.
    let millis = since_epoch.and_then(|span| {
        let millis = span.as_secs().checked_mul(1000)?.checked_add(span.subsec_millis().into())?;
        i64::try_from(millis).ok()
    });
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
    // A host that does not tell may show everything.
    let shown = abi::log_level().unwrap_or_default();
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

/// What the caller of the effective stream got: the HTTP status, if any, and Envoy's response flags.
pub(crate) fn response() -> (Option<u16>, u64) {
    let number = |name: &str| {
        let bytes = abi::property(name)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let status = number("response\0code").and_then(|code| u16::try_from(code).ok());
    (status.filter(|status| *status > 0), number("response\0flags").unwrap_or_default())
}

/// What Envoy knows about the client's certificate: the filter state that its listener keeps for each connection.
pub(crate) fn peer() -> Option<Vec<u8>> {
    const PATH: &str = "filter_state\0airflow_envoy.peer";
    const { assert!(PATH.len() == "filter_state\0".len() + EVIDENCE.len()) };
    abi::property(PATH)
}

/// What the VMs of this Envoy process share: the store of their common `vm_id`, and a counter as the
/// signal that there is something new in it. Reading a counter is far cheaper than reading the store,
/// which takes a lock that all workers share. Should Envoy keep no such counter, because
/// its `stats_config` leaves it out, what is new is found at the next tick.
#[derive(Debug, Default)]
pub(crate) struct HostShared {
    published: Option<u32>,
    /// When the counter was read, by [`Self::at`], and what it showed.
    seen: Cell<Option<u64>>,
    at: Cell<UnixTime>,
}

impl HostShared {
    pub(crate) fn new() -> Self {
        let name = "airflow_envoy.documents.published";
        Self {
            published: hostcalls::define_metric(MetricType::Counter, name).ok(),
            ..Self::default()
        }
    }

    /// It is this time. The counter is read once in a millisecond: a request of the same one might as well have come
    /// before what was published, and a busy worker decides dozens in it.
    pub(crate) fn at(&self, now: UnixTime) {
        if self.at.replace(now) != now {
            self.seen.set(None);
        }
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
        self.seen.get().unwrap_or_else(|| {
            let announced = self.published.and_then(abi::metric).unwrap_or_default();
            self.seen.set(Some(announced));
            announced
        })
    }

    fn announce(&self) {
        if let Some(id) = self.published {
            let _ = hostcalls::increment_metric(id, 1);
            self.seen.set(None);
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
