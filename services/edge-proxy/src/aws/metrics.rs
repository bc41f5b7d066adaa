//! What the API counts.

use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::ConnectionMetrics;

/// Bounds of the histogram, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Label of the API's request counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Request {
    /// Name of the operation; empty when the path leads nowhere.
    pub operation: &'static str,
    pub code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Operation {
    /// Name of the operation; empty when the path leads nowhere.
    pub operation: &'static str,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    /// Requests answered, by operation and status.
    pub requests: Family<Request, Counter>,
    /// Seconds that the answers took, by operation.
    pub seconds: Family<Operation, Histogram, fn() -> Histogram>,
    pub connections: ConnectionMetrics,
}

impl Metrics {
    pub(crate) fn register(registry: &Mutex<Registry>) -> Self {
        telemetry::register(registry, Some("edge"), |part| Self {
            requests: part.add(
                "api_requests",
                "Requests of the API answered, by operation and status",
                Family::default(),
            ),
            seconds: part.add(
                "api_seconds",
                "Times of the API's answers, by operation",
                Family::new_with_constructor(|| Histogram::new(BOUNDS)),
            ),
            connections: ConnectionMetrics::register(part, "api_", " of the API"),
        })
    }
}
