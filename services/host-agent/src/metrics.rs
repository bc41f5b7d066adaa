//! Counters for `/metrics`.

use std::sync::Mutex;

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
    unreadable: Gauge,
    memory_mib: Gauge,
    engines_ahead: Gauge,
    wakes_waiting: Gauge,
}

/// Upper bounds of the buckets, in seconds: from a suspend of milliseconds to a bake of minutes.
const BUCKETS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

impl Metrics {
    pub fn register(registry: &Mutex<Registry>) -> Self {
        telemetry::register(registry, Some("host"), |part| Self {
            seconds: part.add(
                "transition_seconds",
                "Launches, suspends, wakes and bakes",
                Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            ),
            failures: part.add("transition_failures", "Those that failed", Family::default()),
            ends: part.add("microvms_ended", "MicroVMs that ended", Counter::default()),
            upload_failures: part.add(
                "upload_failures",
                "Attempts to upload that failed",
                Counter::default(),
            ),
            tunnels: part.add("tunnels_opened", "Connections to guest ports", Counter::default()),
            running: part.add("microvms_running", "MicroVMs running", Gauge::default()),
            suspended: part.add("microvms_suspended", "MicroVMs suspended here", Gauge::default()),
            unreadable: part.add(
                "microvms_unreadable",
                "MicroVMs whose files were put aside because they could not be read",
                Gauge::default(),
            ),
            engines_ahead: part.add("engines_ahead", "Engines that wait for a microVM", Gauge::default()),
            wakes_waiting: part.add(
                "wakes_waiting",
                "MicroVMs that wait for their turn to be woken",
                Gauge::default(),
            ),
            memory_mib: part.add("memory_mib", "Baseline guest memory handed out", Gauge::default()),
        })
    }

    pub fn transition(&self, kind: &str, seconds: f64) {
        self.seconds.get_or_create(&Kind { kind: kind.to_owned() }).observe(seconds);
    }

    pub fn failed(&self, kind: &str) {
        self.failures.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

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

    /// So many microVMs wait for their turn to be woken.
    pub fn wakes_wait(&self, count: usize) {
        self.wakes_waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many microVMs' files are put aside.
    pub fn unreadable(&self, count: usize) {
        self.unreadable.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn holds(&self, running: u32, suspended: u32, memory_mib: u64, engines_ahead: usize) {
        self.running.set(i64::from(running));
        self.suspended.set(i64::from(suspended));
        self.engines_ahead.set(i64::try_from(engines_ahead).unwrap_or(i64::MAX));
        self.memory_mib.set(i64::try_from(memory_mib).unwrap_or(i64::MAX));
    }
}
