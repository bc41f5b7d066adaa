//! What an image-builder counts.

use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// How a build ended: "SUCCESSFUL", or its reason code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// A step of a build.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    step: &'static str,
}

/// Metrics of one replica.
#[derive(Debug, Clone)]
pub struct Metrics {
    ended: Family<Outcome, Counter>,
    running: Gauge,
    steps: Family<Step, Histogram>,
}

impl Metrics {
    /// Registers all metrics.
    #[must_use]
    pub fn new(registry: &Mutex<Registry>) -> Self {
        telemetry::register(registry, None, |part| Self {
            ended: part.add("builds", "Builds that ended here, by outcome", Family::default()),
            running: part.add("builds_running", "Builds running here", Gauge::default()),
            steps: part.add(
                "build_step_seconds",
                "Time each step took",
                Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.05, 2.0, 16))),
            ),
        })
    }

    /// A build began here.
    pub fn began(&self) {
        self.running.inc();
    }

    /// A build ended here.
    pub fn ended(&self, outcome: &'static str) {
        self.running.dec();
        self.ended.get_or_create(&Outcome { outcome }).inc();
    }

    /// A step took this long.
    pub fn step(&self, step: &'static str, seconds: f64) {
        self.steps.get_or_create(&Step { step }).observe(seconds);
    }
}
