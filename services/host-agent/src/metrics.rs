//! Counters for `/metrics`.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

/// The agent's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    seconds: Family<Kind, Histogram>,
    failures: Family<Kind, Counter>,
    ends: Counter,
    upload_failures: Counter,
    tunnels: Counter,
    running: Gauge,
    suspended: Gauge,
    memory_mib: Gauge,
}

/// Upper bounds of the buckets, in seconds: from a suspend of milliseconds to a bake of minutes.
const BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

impl Metrics {
    /// Registers everything.
    #[must_use]
    pub fn register(registry: &Arc<Mutex<Registry>>) -> Self {
        let metrics = Self {
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            failures: Family::default(),
            ends: Counter::default(),
            upload_failures: Counter::default(),
            tunnels: Counter::default(),
            running: Gauge::default(),
            suspended: Gauge::default(),
            memory_mib: Gauge::default(),
        };
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = registry.sub_registry_with_prefix("host");
        registry.register(
            "transition_seconds",
            "Launches, suspends, wakes and bakes",
            metrics.seconds.clone(),
        );
        registry.register(
            "transition_failures",
            "Those that failed",
            metrics.failures.clone(),
        );
        registry.register("microvms_ended", "MicroVMs that ended", metrics.ends.clone());
        registry.register(
            "upload_failures",
            "Attempts to upload that failed",
            metrics.upload_failures.clone(),
        );
        registry.register(
            "tunnels_opened",
            "Connections to guest ports",
            metrics.tunnels.clone(),
        );
        registry.register("microvms_running", "MicroVMs running", metrics.running.clone());
        registry.register(
            "microvms_suspended",
            "MicroVMs suspended here",
            metrics.suspended.clone(),
        );
        registry.register(
            "memory_mib",
            "Baseline guest memory handed out",
            metrics.memory_mib.clone(),
        );
        metrics
    }

    /// A transition succeeded.
    pub fn transition(&self, kind: &str, seconds: f64) {
        self.seconds
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .observe(seconds);
    }

    /// A transition failed.
    pub fn failed(&self, kind: &str) {
        self.failures
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .inc();
    }

    /// A microVM ended.
    pub fn ended(&self) {
        self.ends.inc();
    }

    /// An upload failed and will be tried again.
    pub fn upload_failed(&self) {
        self.upload_failures.inc();
    }

    /// A connection to a guest port was opened.
    pub fn tunnel_opened(&self) {
        self.tunnels.inc();
    }

    /// What the host holds now.
    pub fn holds(&self, running: u32, suspended: u32, memory_mib: u64) {
        self.running.set(i64::from(running));
        self.suspended.set(i64::from(suspended));
        self.memory_mib.set(i64::try_from(memory_mib).unwrap_or(i64::MAX));
    }
}
