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

/// Bounds of the API's histogram, in seconds.
const API_BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Label of the request counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Status {
    /// HTTP status.
    pub code: u16,
}

/// Label of the API's request counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiRequest {
    /// Name of the operation; empty when the path leads nowhere.
    pub operation: &'static str,
    /// HTTP status.
    pub code: u16,
}

/// Label of the API's times.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ApiOperation {
    /// Name of the operation; empty when the path leads nowhere.
    pub operation: &'static str,
}

/// The edge's metrics.
#[derive(Debug)]
pub struct Metrics {
    /// Requests answered, by status.
    pub requests: Family<Status, Counter>,
    /// Seconds that requests waited for a launch or a wake.
    pub waits: Histogram,
    /// Tunnels that stand.
    pub tunnels_open: Gauge,
    /// Tunnels opened since the start.
    pub tunnels_opened: Counter,
    /// Requests sent again after they met a dead connection.
    pub resent: Counter,
    /// Client connections.
    pub connections: Gauge,
    /// Requests of the API answered, by operation and status.
    pub api_requests: Family<ApiRequest, Counter>,
    /// Seconds that the API's answers took, by operation.
    pub api_seconds: Family<ApiOperation, Histogram, fn() -> Histogram>,
    /// Client connections of the API.
    pub api_connections: Gauge,
}

impl Metrics {
    /// Registers everything under "edge".
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
            api_requests: part.add(
                "api_requests",
                "Requests of the API answered, by operation and status",
                Family::default(),
            ),
            api_seconds: part.add(
                "api_seconds",
                "Times of the API's answers, by operation",
                Family::new_with_constructor(|| Histogram::new(API_BOUNDS)),
            ),
            api_connections: part.add("api_connections", "Client connections of the API", Gauge::default()),
        })
    }
}
