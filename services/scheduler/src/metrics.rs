//! Counters and gauges for Prometheus.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use api::host::v1::HostState;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// The scheduler's metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    operations: Family<Operation, Counter>,
    launch_seconds: Histogram,
    leading: Gauge,
    terms: Counter<u64, AtomicU64>,
    living: Gauge,
    bakes: Gauge,
    hosts: Family<State, Gauge>,
}

impl Metrics {
    /// Metrics that show up in `registry`.
    pub fn register(registry: &Mutex<Registry>) -> Self {
        telemetry::register(registry, Some("scheduler"), |part| Self {
            operations: part.add("operations", "Operations on microVMs by outcome", Family::default()),
            launch_seconds: part.add(
                "launch_seconds",
                "Time from the record to RUNNING or failure",
                // 5 ms to about 80 s.
                Histogram::new(exponential_buckets(0.005, 2.0, 15)),
            ),
            leading: part.add("leading", "1 while this replica leads", Gauge::default()),
            terms: part.add("terms", "Terms of leadership begun", Counter::default()),
            living: part.add("microvms", "MicroVMs that have not ended", Gauge::default()),
            bakes: part.add("bakes", "Bakes with a reservation", Gauge::default()),
            hosts: part.add("hosts", "Hosts by state", Family::default()),
        })
    }

    pub(crate) fn operation(&self, operation: &'static str, succeeded: bool) {
        let outcome = if succeeded { "succeeded" } else { "failed" };
        self.operations.get_or_create(&Operation { operation, outcome }).inc();
    }

    pub(crate) fn launch(&self, outcome: &'static str, took: Duration) {
        self.operations.get_or_create(&Operation { operation: "launch", outcome }).inc();
        self.launch_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leading.set(i64::from(leads));
        if leads {
            self.terms.inc();
        }
    }

    pub(crate) fn gauges(&self, living: usize, bakes: usize, hosts: impl Iterator<Item = HostState>) {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.living.set(signed(living));
        self.bakes.set(signed(bakes));
        let mut counts = [("READY", 0), ("DRAINING", 0), ("DRAINED", 0), ("LOST", 0), ("REFUSED", 0)];
        for host in hosts {
            let index = match host {
                HostState::Ready => 0,
                HostState::Draining => 1,
                HostState::Drained => 2,
                HostState::Lost | HostState::Unspecified => 3,
                HostState::Refused => 4,
            };
            counts[index].1 += 1;
        }
        for (state, count) in counts {
            self.hosts.get_or_create(&State { state }).set(count);
        }
    }
}
