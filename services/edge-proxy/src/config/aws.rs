//! Settings of the AWS-compatible API.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ADDRESSES_MAX, Bounds, Socket, TIME_MAX_MS};
use crate::server::limits::PerAddress;

/// Requests at one time on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// HTTP/2 flow-control windows in bytes. Requests are small: these bound what a
/// client can have lying around unread.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// The AWS-compatible API. It is served when it has a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AwsSettings {
    /// Where the API is served, over TLS: one or more addresses.
    pub listen: Vec<SocketAddr>,
    /// Certificate chain of the API, PEM. Empty: the API is not served.
    pub cert: PathBuf,
    /// The key of that certificate, PEM.
    pub key: PathBuf,
    /// File that gets one line of JSON per request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_file: Option<PathBuf>,
    /// File for the records of requests that no key's holder is known to have signed, so that they cannot
    /// push the others out; without it they go to `audit_file` too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unauthenticated_audit_file: Option<PathBuf>,
    /// Whether `ARM_64` in `cpuConfigurations` means the architecture that the fleet has: many clients send it whatever
    /// they run on, because the service has no other.
    pub arm_64_is_own: bool,
    pub limits: ApiLimits,
    pub throttles: Throttles,
}

/// Bounds of the API, all of which have a default that works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiLimits {
    /// Most client connections at one time.
    pub connections: usize,
    /// Most of them from one address (of IPv6: from one network of 64 bits); 0 for no bound of its own, as behind a
    /// balancer that shows its own address only.
    pub connections_per_address: usize,
    /// Most signed requests that are worked on at one time; more wait.
    pub requests: usize,
    /// Most requests from one address whose signature is not checked yet, because they are still coming; more wait.
    pub unverified_per_address: usize,
    /// Most requests per second from one address, also the burst; more are answered 429. 0 means no limit.
    pub requests_per_second_per_address: u32,
    /// Most TLS handshakes at one time, a quarter of them from one address; more wait, within `handshake_ms`.
    pub handshakes: usize,
    /// Longest TLS handshake of a client, in milliseconds.
    pub handshake_ms: u64,
    /// Longest wait for a request's head, and longest idle time of a client's
    /// HTTP/1.1 connection, in milliseconds.
    pub header_read_ms: u64,
    /// Longest time without a request on a client's connection, in milliseconds; of HTTP/1.1, `header_read_ms` if
    /// that is shorter.
    pub idle_ms: u64,
    /// Longest wait for a client that takes nothing of a response, in milliseconds.
    pub unread_ms: u64,
    /// Largest request head in bytes.
    pub header_bytes: usize,
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Longest wait for a whole request body, in milliseconds.
    pub body_read_ms: u64,
    /// Longest wait for the next piece of a request body, in milliseconds.
    pub body_stall_ms: u64,
    /// Memory for the bodies of all requests together, in bytes, a quarter of it for one access key; requests beyond either
    /// are answered 429.
    pub body_memory_bytes: usize,
    /// Longest `runHookPayload`, in bytes; the scheduler has a limit of its own.
    pub run_hook_payload_bytes: usize,
    /// Longest call to a service of the fleet, in milliseconds.
    pub call_ms: u64,
    /// Longest wait for requests in flight at shutdown, in milliseconds.
    pub drain_ms: u64,
}

/// Requests per second and operation that this edge takes for the account, each
/// also the burst; 0 means no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Throttles {
    pub run_microvm: u32,
    pub resume_microvm: u32,
    pub suspend_microvm: u32,
    pub terminate_microvm: u32,
    pub get_microvm: u32,
    pub create_microvm_auth_token: u32,
    pub create_microvm_shell_auth_token: u32,
    /// Each operation that creates, updates, deletes, tags or untags an image or a connector: what is written
    /// stays in etcd for a while, also when it is overwritten.
    pub changes: u32,
    pub other: u32,
}

impl Default for AwsSettings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8444))],
            cert: PathBuf::new(),
            key: PathBuf::new(),
            audit_file: None,
            unauthenticated_audit_file: None,
            arm_64_is_own: false,
            limits: ApiLimits::default(),
            throttles: Throttles::default(),
        }
    }
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_address: 256,
            requests: 512,
            unverified_per_address: 16,
            requests_per_second_per_address: 0,
            handshakes: 256,
            handshake_ms: 10_000,
            header_read_ms: 30_000,
            idle_ms: 120_000,
            unread_ms: 60_000,
            header_bytes: 64 * 1024,
            body_bytes: 1 << 20,
            body_read_ms: 10_000,
            body_stall_ms: 3000,
            body_memory_bytes: 64 << 20,
            run_hook_payload_bytes: 4096,
            call_ms: 55_000,
            drain_ms: 20_000,
        }
    }
}

impl Default for Throttles {
    fn default() -> Self {
        Self {
            run_microvm: 5,
            resume_microvm: 5,
            suspend_microvm: 2,
            terminate_microvm: 10,
            get_microvm: 100,
            create_microvm_auth_token: 50,
            create_microvm_shell_auth_token: 5,
            changes: 20,
            other: 100,
        }
    }
}

impl AwsSettings {
    pub fn served(&self) -> bool {
        !self.cert.as_os_str().is_empty()
    }

    pub(crate) fn socket(&self) -> Socket<'_> {
        Socket {
            addresses: &self.listen,
            certificate: &self.cert,
            key: &self.key,
            names: ["aws.listen", "aws.cert", "aws.key"],
        }
    }

    /// Rules of these settings: whether each holds, and its text.
    pub(super) fn rules(&self) -> [(bool, &'static str); 11] {
        let limits = &self.limits;
        let times = [
            limits.handshake_ms,
            limits.header_read_ms,
            limits.idle_ms,
            limits.unread_ms,
            limits.body_read_ms,
            limits.body_stall_ms,
            limits.call_ms,
            limits.drain_ms,
        ];
        [
            (
                self.served() != self.key.as_os_str().is_empty(),
                "aws.key: the API's certificate and its key go together",
            ),
            ((1..=ADDRESSES_MAX).contains(&self.listen.len()), "aws.listen: 1 to 16 addresses"),
            (limits.connections > 0, "aws.limits.connections: at least 1"),
            (
                limits.connections_per_address <= limits.connections,
                "aws.limits.connections_per_address: at most aws.limits.connections",
            ),
            (limits.handshakes > 0, "aws.limits.handshakes: at least 1"),
            (limits.unverified_per_address > 0, "aws.limits.unverified_per_address: at least 1"),
            ((1..=65_536).contains(&limits.requests), "aws.limits.requests: 1 to 65536"),
            ((8192..=1 << 20).contains(&limits.header_bytes), "aws.limits.header_bytes: 8192 to 1048576"),
            ((1024..=16 << 20).contains(&limits.body_bytes), "aws.limits.body_bytes: 1024 to 16777216"),
            (
                (limits.body_bytes..=1 << 30).contains(&limits.body_memory_bytes),
                "aws.limits.body_memory_bytes: aws.limits.body_bytes to 1073741824",
            ),
            (
                times.iter().all(|time| (1..=TIME_MAX_MS).contains(time)),
                "aws.limits: times are 1 ms to a day",
            ),
        ]
    }
}

impl ApiLimits {
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            connections: self.connections,
            per_address: PerAddress {
                connections: self.connections_per_address,
                requests_per_second: self.requests_per_second_per_address,
                unverified: self.unverified_per_address,
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

    pub(crate) fn body_read(&self) -> Duration {
        Duration::from_millis(self.body_read_ms)
    }

    pub(crate) fn body_stall(&self) -> Duration {
        Duration::from_millis(self.body_stall_ms)
    }

    pub(crate) fn call(&self) -> Duration {
        Duration::from_millis(self.call_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        assert!(AwsSettings::default().rules().iter().all(|(holds, _)| *holds));
        type Change = fn(&mut AwsSettings);
        let broken: &[(&str, Change)] = &[
            ("aws.key", |aws| aws.cert = "a".into()),
            ("aws.listen", |aws| aws.listen = vec![([127, 0, 0, 1], 1).into(); ADDRESSES_MAX + 1]),
            ("aws.limits.body_bytes", |aws| aws.limits.body_bytes = 0),
            ("aws.limits", |aws| aws.limits.call_ms = 0),
        ];
        for (field, break_it) in broken {
            let mut settings = AwsSettings::default();
            break_it(&mut settings);
            let broken = settings.rules().into_iter().find(|(holds, _)| !holds);
            assert!(broken.is_some_and(|(_, text)| text.starts_with(field)), "{field}");
        }
    }
}
