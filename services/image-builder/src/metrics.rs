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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    step: &'static str,
}

#[derive(Debug, Clone)]
pub struct Metrics {
    ended: Family<Outcome, Counter>,
    running: Gauge,
    steps: Family<Step, Histogram>,
}

impl Metrics {
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

    pub fn began(&self) {
        self.running.inc();
    }

    pub fn ended(&self, outcome: &'static str) {
        self.running.dec();
        self.ended.get_or_create(&Outcome { outcome }).inc();
    }

    pub fn step(&self, step: &'static str, seconds: f64) {
        self.steps.get_or_create(&Step { step }).observe(seconds);
    }
}
