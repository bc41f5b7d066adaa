//! What the edge counts.

use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Bounds of the wait histogram, in seconds.
const WAIT_BOUNDS: [f64; 12] = [0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Status {
    pub code: u16,
}

#[derive(Debug)]
pub struct Metrics {
    pub requests: Family<Status, Counter>,
    /// Seconds that requests waited for a launch or a wake.
    pub waits: Histogram,
    pub tunnels_open: Gauge,
    pub tunnels_opened: Counter,
    /// Requests sent again after they met a dead connection.
    pub resent: Counter,
    pub connections: Gauge,
    pub websockets: Gauge,
}

impl Metrics {
    pub fn register(registry: &Mutex<Registry>) -> Self {
        telemetry::register(registry, Some("edge"), |part| Self {
            requests: part.add("requests", "Requests answered, by status", Family::default()),
            waits: part.add("wait_seconds", "Waits for a launch or a wake", Histogram::new(WAIT_BOUNDS)),
            tunnels_open: part.add("tunnels_open", "Tunnels that stand", Gauge::default()),
            tunnels_opened: part.add("tunnels_opened", "Tunnels opened", Counter::default()),
            resent: part.add(
                "requests_resent",
                "Requests sent again after a dead connection",
                Counter::default(),
            ),
            connections: part.add("connections", "Client connections", Gauge::default()),
            websockets: part.add("websockets", "WebSockets that are open", Gauge::default()),
        })
    }
}
