//! The edge's settings.

#[cfg(feature = "aws")]
mod aws;

#[cfg(feature = "aws")]
pub use aws::{ApiLimits, AwsSettings, Throttles};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use settings::{EtcdSettings, TelemetrySettings, TlsSettings};
use tokio::sync::Semaphore;

use crate::domain::route::PerMicrovm;
use crate::server::limits::PerAddress;

/// Longest of any time setting, in milliseconds: a day.
const TIME_MAX_MS: u64 = 86_400_000;
/// Requests at one time on one HTTP/2 connection to an endpoint.
const STREAMS: u32 = 128;
/// HTTP/2 flow-control windows of such a connection, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Most addresses that one listener has.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// Addresses to bind, with the names of their settings for error messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Socket<'a> {
    pub addresses: &'a [SocketAddr],
    pub certificate: &'a Path,
    /// The key of that certificate, PEM.
    pub key: &'a Path,
    /// Names of the three settings, in this order.
    pub names: [&'static str; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub connections: usize,
    pub per_address: PerAddress,
    /// TLS handshakes at one time; more wait.
    pub handshakes: usize,
    pub handshake: Duration,
    /// Longest wait for a request's head.
    pub header_read: Duration,
    /// Longest time without a request.
    pub idle: Duration,
    /// Longest wait for a client that takes nothing of its response.
    pub unread: Duration,
    /// Largest request head in bytes.
    pub header_bytes: usize,
    /// Longest wait for requests in flight at shutdown.
    pub drain: Duration,
    /// Requests at one time on one HTTP/2 connection.
    pub streams: u32,
    /// HTTP/2 flow-control window of one request, in bytes.
    pub stream_window: u32,
    /// HTTP/2 flow-control window of one connection, in bytes.
    pub connection_window: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the endpoints are served, over TLS: one or more addresses.
    pub listen: Vec<SocketAddr>,
    /// Domain of the endpoints, "<uuid>.<domain>".
    pub domain: String,
    /// Certificate chain for `*.<domain>`, PEM.
    pub endpoint_cert: PathBuf,
    /// The key of that certificate, PEM.
    pub endpoint_key: PathBuf,
    /// Addresses of the schedulers, "host:port".
    pub schedulers: Vec<String>,
    /// Addresses of the image-builders, "host:port".
    pub image_builders: Vec<String>,
    /// Region of the fleet, as in its ARNs.
    pub region: String,
    /// Account of the fleet, 12 digits.
    pub account: String,
    #[cfg(feature = "aws")]
    pub aws: AwsSettings,
    /// This process's own identity within the fleet.
    pub tls: TlsSettings,
    pub etcd: EtcdSettings,
    pub telemetry: TelemetrySettings,
    pub limits: Limits,
}

/// Bounds, all of which have a default that works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most client connections at one time, WebSockets included.
    pub connections: usize,
    /// Most of them from one address (of IPv6: from one network of 64 bits); 0 for no bound of its own, as behind a
    /// balancer that shows its own address only.
    pub connections_per_address: usize,
    /// Most requests in flight to one microVM; more are answered 429.
    pub requests_per_microvm: usize,
    /// Most requests per second to one microVM, also the burst; more are answered 429. 0 means no limit. AWS has 40 for 4
    /// processors and 8 GB at the peak, 160 for 16 and 32.
    pub requests_per_second_per_microvm: u32,
    /// Most bytes per second to and from one microVM, headers included; more wait. 0 means no limit. AWS has 1,000,000 for a
    /// baseline of 512 MiB, twice that for each doubling.
    pub bytes_per_second_per_microvm: u64,
    /// Most requests per second from one address, also the burst; more are answered 429. 0 means no limit.
    pub requests_per_second_per_address: u32,
    /// Most TLS handshakes at one time, a quarter of them from one address; more wait, within `handshake_ms`.
    pub handshakes: usize,
    /// Longest TLS handshake of a client, in milliseconds.
    pub handshake_ms: u64,
    /// Longest wait for a request's headers, and longest idle time of a client's
    /// HTTP/1.1 connection, in milliseconds.
    pub header_read_ms: u64,
    /// Longest time without a request on a client's connection, in milliseconds; of HTTP/1.1, `header_read_ms` if
    /// that is shorter. An HTTP/2 client that only answers pings is told to go after it.
    pub idle_ms: u64,
    /// Longest wait for a client that takes nothing of a response or a WebSocket, in milliseconds.
    pub unread_ms: u64,
    /// Largest request head in bytes.
    pub header_bytes: usize,
    /// Longest wait for a launch or a wake, in milliseconds.
    pub launch_wait_ms: u64,
    /// Longest search for a host that takes the tunnel, in milliseconds.
    pub connect_ms: u64,
    /// Longest wait for the app's response headers, in milliseconds.
    pub response_ms: u64,
    /// How long an unused tunnel is kept, in milliseconds; shorter than any microVM's idle time.
    pub idle_tunnel_ms: u64,
    /// Most unused tunnels kept per microVM and port.
    pub idle_tunnels: usize,
    /// Longest wait for requests in flight and WebSockets at shutdown, in milliseconds.
    pub drain_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8443))],
            domain: "microvms.localhost".to_owned(),
            endpoint_cert: PathBuf::new(),
            endpoint_key: PathBuf::new(),
            schedulers: vec!["127.0.0.1:7401".to_owned()],
            image_builders: vec!["127.0.0.1:7402".to_owned()],
            region: "us-east-1".to_owned(),
            account: "000000000000".to_owned(),
            #[cfg(feature = "aws")]
            aws: AwsSettings::default(),
            tls: TlsSettings::default(),
            etcd: EtcdSettings::default(),
            telemetry: TelemetrySettings::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_address: 4096,
            requests_per_microvm: 1024,
            requests_per_second_per_microvm: 0,
            bytes_per_second_per_microvm: 0,
            requests_per_second_per_address: 0,
            handshakes: 1024,
            handshake_ms: 10_000,
            header_read_ms: 30_000,
            idle_ms: 120_000,
            unread_ms: 120_000,
            header_bytes: 64 * 1024,
            launch_wait_ms: 30_000,
            connect_ms: 10_000,
            response_ms: 900_000,
            idle_tunnel_ms: 15_000,
            idle_tunnels: 64,
            drain_ms: 20_000,
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), settings::Error> {
        let domain_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let region_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let limits = &self.limits;
        let times = [
            limits.handshake_ms,
            limits.header_read_ms,
            limits.idle_ms,
            limits.unread_ms,
            limits.launch_wait_ms,
            limits.connect_ms,
            limits.response_ms,
            limits.idle_tunnel_ms,
            limits.drain_ms,
        ];
        let rules = [
            ((1..=ADDRESSES_MAX).contains(&self.listen.len()), "listen: 1 to 16 addresses"),
            (
                !self.domain.is_empty()
                    && self.domain.chars().all(domain_ok)
                    && !self.domain.starts_with('.')
                    && !self.domain.ends_with('.'),
                "domain: a host name in lower case",
            ),
            (!self.schedulers.is_empty(), "schedulers: at least one address"),
            (!self.image_builders.is_empty(), "image_builders: at least one address"),
            (
                !self.region.is_empty() && self.region.chars().all(region_ok),
                "region: lower-case letters, digits and hyphens",
            ),
            (
                self.account.len() == 12 && self.account.bytes().all(|byte| byte.is_ascii_digit()),
                "account: 12 digits",
            ),
            (!self.endpoint_cert.as_os_str().is_empty(), "endpoint_cert: the endpoints need a certificate"),
            (
                !self.endpoint_key.as_os_str().is_empty(),
                "endpoint_key: the endpoints' certificate needs its key",
            ),
            (limits.connections > 0, "limits.connections: at least 1"),
            (
                limits.connections_per_address <= limits.connections,
                "limits.connections_per_address: at most limits.connections",
            ),
            (limits.handshakes > 0, "limits.handshakes: at least 1"),
            (limits.requests_per_microvm > 0, "limits.requests_per_microvm: at least 1"),
            ((8192..=1 << 20).contains(&limits.header_bytes), "limits.header_bytes: 8192 to 1048576"),
            (times.iter().all(|time| (1..=TIME_MAX_MS).contains(time)), "limits: times are 1 ms to a day"),
        ];
        let rules = rules.into_iter();
        #[cfg(feature = "aws")]
        let rules = rules.chain(self.aws.rules());
        settings::check(rules)
    }

    pub(crate) fn endpoint_socket(&self) -> Socket<'_> {
        Socket {
            addresses: &self.listen,
            certificate: &self.endpoint_cert,
            key: &self.endpoint_key,
            names: ["listen", "endpoint_cert", "endpoint_key"],
        }
    }
}

impl Limits {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            connections: self.connections,
            per_address: PerAddress {
                connections: self.connections_per_address,
                requests_per_second: self.requests_per_second_per_address,
                // The sender of a request to an endpoint is in its head.
                unverified: Semaphore::MAX_PERMITS,
            },
            handshakes: self.handshakes,
            handshake: Duration::from_millis(self.handshake_ms),
            header_read: Duration::from_millis(self.header_read_ms),
            idle: Duration::from_millis(self.idle_ms),
            unread: Duration::from_millis(self.unread_ms),
            header_bytes: self.header_bytes,
            drain: Duration::from_millis(self.drain_ms),
            streams: STREAMS,
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
        }
    }

    pub(crate) fn per_microvm(&self) -> PerMicrovm {
        PerMicrovm {
            requests: self.requests_per_microvm,
            requests_per_second: self.requests_per_second_per_microvm,
            bytes_per_second: self.bytes_per_second_per_microvm,
        }
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }

    pub(crate) fn unread(&self) -> Duration {
        Duration::from_millis(self.unread_ms)
    }

    pub(crate) fn launch_wait(&self) -> Duration {
        Duration::from_millis(self.launch_wait_ms)
    }

    pub(crate) fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms)
    }

    pub(crate) fn response(&self) -> Duration {
        Duration::from_millis(self.response_ms)
    }

    pub(crate) fn idle_tunnel(&self) -> Duration {
        Duration::from_millis(self.idle_tunnel_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let ok = Config { endpoint_cert: "a".into(), endpoint_key: "b".into(), ..Config::default() };
        ok.check().unwrap();
        type Change = fn(&mut Config);
        let broken: &[(&str, Change)] = &[
            ("listen", |config| config.listen.clear()),
            ("domain", |config| config.domain = "Example.com".into()),
            ("domain", |config| config.domain = ".example.com".into()),
            ("schedulers", |config| config.schedulers.clear()),
            ("endpoint_cert", |config| config.endpoint_cert = PathBuf::new()),
            ("image_builders", |config| config.image_builders.clear()),
            ("region", |config| config.region = "Us".into()),
            ("account", |config| config.account = "1".into()),
            ("limits.connections", |config| config.limits.connections = 0),
            ("limits.connections_per_address", |config| config.limits.connections = 1),
            ("limits.handshakes", |config| config.limits.handshakes = 0),
            ("limits.header_bytes", |config| config.limits.header_bytes = 1),
            ("limits", |config| config.limits.connect_ms = 0),
        ];
        for (field, break_it) in broken {
            let mut config = ok.clone();
            break_it(&mut config);
            let broken = config.check().unwrap_err().to_string();
            assert!(broken.starts_with(&format!("settings: {field}")), "{field}: {broken}");
        }
    }
}
