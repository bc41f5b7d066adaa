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

/// Bounds of the histogram of what the edge adds, in seconds.
const ADDED_BOUNDS: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Status {
    pub code: u16,
}

/// A client connection that was closed before TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedConnection {
    /// Which bound was reached: "address" or "listener".
    pub bound: &'static str,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// The class of the app's status ("app_2xx"), or why the edge answered itself.
    pub outcome: &'static str,
    /// Whether it waited for a launch or a wake.
    pub woke: &'static str,
}

/// One of what a gauge counts, for as long as it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The client connections of one listener.
#[derive(Debug)]
pub struct ConnectionMetrics {
    pub open: Gauge,
    /// Those that have given their buffers back until they speak again.
    pub quiet: Gauge,
    pub refused: Family<RefusedConnection, Counter>,
}

impl ConnectionMetrics {
    /// `prefix` goes before the names; `whose` behind what they mean.
    pub fn register(part: &mut telemetry::Part<'_>, prefix: &str, whose: &str) -> Self {
        Self {
            open: part.add(
                &format!("{prefix}connections"),
                &format!("Client connections{whose}"),
                Gauge::default(),
            ),
            quiet: part.add(
                &format!("{prefix}connections_quiet"),
                &format!("Client connections{whose} that wait for their next request without buffers"),
                Gauge::default(),
            ),
            refused: part.add(
                &format!("{prefix}connections_refused"),
                &format!("Client connections{whose} closed before TLS, by the bound that was reached"),
                Family::default(),
            ),
        }
    }
}

#[derive(Debug)]
pub struct Metrics {
    pub requests: Family<Status, Counter>,
    pub outcomes: Family<Outcome, Counter>,
    /// Seconds that the edge added to requests that found their microVM awake.
    pub added: Histogram,
    /// Seconds that requests waited for a launch or a wake.
    pub waits: Histogram,
    pub tunnels_open: Gauge,
    pub tunnels_opened: Counter,
    /// Requests sent again after they met a dead connection.
    pub resent: Counter,
    pub connections: ConnectionMetrics,
    pub websockets: Gauge,
}

impl Metrics {
    pub fn register(registry: &Mutex<Registry>) -> Self {
        telemetry::register(registry, Some("edge"), |part| Self {
            requests: part.add("requests", "Requests answered, by status", Family::default()),
            outcomes: part.add(
                "request_outcomes",
                "Requests answered, by class of the app's status or by the edge's reason, \
                 and by whether they woke",
                Family::default(),
            ),
            added: part.add(
                "added_seconds",
                "What the edge added to requests that found their microVM awake",
                Histogram::new(ADDED_BOUNDS),
            ),
            waits: part.add("wait_seconds", "Waits for a launch or a wake", Histogram::new(WAIT_BOUNDS)),
            tunnels_open: part.add("tunnels_open", "Tunnels that stand", Gauge::default()),
            tunnels_opened: part.add("tunnels_opened", "Tunnels opened", Counter::default()),
            resent: part.add(
                "requests_resent",
                "Requests sent again after a dead connection",
                Counter::default(),
            ),
            connections: ConnectionMetrics::register(part, "", ""),
            websockets: part.add("websockets", "WebSockets that are open", Gauge::default()),
        })
    }
}
