//! What an image-builder counts.

use std::sync::{Arc, Mutex, PoisonError};

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
    pub fn new(registry: &Arc<Mutex<Registry>>) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.05, 2.0, 16));
        let metrics = Self {
            ended: Family::default(),
            running: Gauge::default(),
            steps: Family::new_with_constructor(seconds),
        };
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register(
            "builds",
            "Builds that ended here, by outcome",
            metrics.ended.clone(),
        );
        registry.register("builds_running", "Builds running here", metrics.running.clone());
        registry.register("build_step_seconds", "Time each step took", metrics.steps.clone());
        drop(registry);
        metrics
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
