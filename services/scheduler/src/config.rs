//! The settings of a scheduler, with defaults that suit one machine.

use std::time::Duration;

use model::limits;
use serde::{Deserialize, Serialize};
use settings::{EtcdSettings, TelemetrySettings, TlsSettings};

/// A payload is part of a record, which has a bound of its own.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// A connector goes with all its versions in one transaction.
const CONNECTOR_VERSIONS_MAX: usize = 90;

/// Everything a scheduler can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the gRPC server listens, "address:port".
    pub listen: String,
    /// Address others reach it at; also its name in the election, so it must
    /// belong to one process. Empty means the address it listens on.
    pub advertise: String,
    pub region: String,
    pub account: String,
    /// Domain of endpoints; a microVM's is "<uuid>.<domain>".
    pub endpoint_domain: String,
    /// Port of endpoints in their URLs; 443 is left out of them.
    pub endpoint_port: u16,
    /// Largest run-hook payload, bytes.
    pub run_hook_payload_bytes_max: usize,
    /// Most microVMs that live at once.
    pub microvms_max: usize,
    /// Bytes of the disks of running microVMs that a host may have for each byte free on its own.
    pub disk_overcommit: u32,
    /// How long a terminated record stays readable, seconds.
    pub retention_seconds: u64,
    /// Most terminated records; beyond this the oldest are forgotten early.
    pub retained_max: usize,
    /// Pause between two looks at all snapshots in S3 for those of microVMs that no record names, seconds; 0 turns them off.
    pub orphan_sweep_seconds: u64,
    /// Such snapshots are removed when nothing of the microVM was written for this long, seconds.
    pub orphan_age_seconds: u64,
    /// Life of the leader's lease without keepalive, seconds.
    pub lease_seconds: u64,
    /// After a host's lease is gone this long, what ran there is given up, seconds.
    pub host_lost_grace_seconds: u64,
    /// After a host's lease is gone this long, what sleeps there may be placed
    /// elsewhere: by then the host has stopped its traffic, seconds.
    pub fence_grace_seconds: u64,
    /// How often hosts report, milliseconds.
    pub heartbeat_interval_ms: u64,
    /// A host whose clock differs by more is refused, seconds. A report may take some of that on its way.
    pub host_clock_difference_max_seconds: u64,
    /// Take the wall clock as it is when a term begins, even if it jumped after the last leader's mark of the time. For one
    /// start, when the jump was right.
    pub trust_clock: bool,
    /// Most bytes etcd takes, its --quota-backend-bytes. From 80 % on nothing is launched.
    pub etcd_bytes_max: u64,
    /// Age at which the newest token key gets a successor, seconds.
    pub key_rotation_seconds: u64,
    pub limits: Limits,
    pub quotas: Quotas,
    pub timeouts: Timeouts,
    pub tls: TlsSettings,
    pub etcd: EtcdSettings,
    pub telemetry: TelemetrySettings,
}

/// Longest waits for one answer of a host, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// A whole launch, fetching the snapshot and the run hook included.
    pub launch_seconds: u64,
    pub suspend_seconds: u64,
    /// A wake, fetching the snapshot and the resume hook included.
    pub resume_seconds: u64,
    /// One attempt to end a microVM, with its hook.
    pub terminate_seconds: u64,
}

/// Bounds of what a caller may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Shortest idle window, seconds. AWS's clients check 60 themselves.
    pub idle_min_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { idle_min_seconds: limits::IDLE_DURATION_MIN.as_secs() }
    }
}

/// Most of what the account may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Baseline memory of all microVMs that have not ended, suspended ones
    /// included, MiB; absent means as much as the hosts have.
    pub memory_mib: Option<u64>,
    pub connectors_max: usize,
    pub connector_versions_max: usize,
    pub access_keys_max: usize,
    /// Own domains with their certificates.
    pub domains_max: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            memory_mib: None,
            connectors_max: 100,
            connector_versions_max: 50,
            access_keys_max: 1000,
            domains_max: 100,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { launch_seconds: 180, suspend_seconds: 90, resume_seconds: 180, terminate_seconds: 75 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7401".to_owned(),
            advertise: String::new(),
            region: "us-east-1".to_owned(),
            account: "000000000000".to_owned(),
            endpoint_domain: "microvms.localhost".to_owned(),
            endpoint_port: 8443,
            run_hook_payload_bytes_max: limits::RUN_HOOK_PAYLOAD_BYTES_MAX,
            microvms_max: 1_000_000,
            disk_overcommit: 32,
            retention_seconds: 24 * 3600,
            retained_max: 100_000,
            orphan_sweep_seconds: 3600,
            orphan_age_seconds: 24 * 3600,
            lease_seconds: 3,
            host_lost_grace_seconds: 30,
            fence_grace_seconds: 5,
            heartbeat_interval_ms: 1000,
            host_clock_difference_max_seconds: 10,
            trust_clock: false,
            // etcd's own default.
            etcd_bytes_max: 2 << 30,
            key_rotation_seconds: 24 * 3600,
            limits: Limits::default(),
            quotas: Quotas::default(),
            timeouts: Timeouts::default(),
            tls: TlsSettings::default(),
            etcd: EtcdSettings::default(),
            telemetry: TelemetrySettings::default(),
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), settings::Error> {
        let quotas = &self.quotas;
        let idle = 1..=limits::IDLE_DURATION_MAX.as_secs();
        settings::check([
            (!self.listen.is_empty(), "listen must be an address with a port"),
            (
                !self.advertise.is_empty() || !self.listens_everywhere(),
                "advertise must be set when listen is not one address",
            ),
            (!self.region.is_empty(), "region must not be empty"),
            (!self.account.is_empty(), "account must not be empty"),
            (!self.endpoint_domain.is_empty(), "endpoint_domain must not be empty"),
            ((1..=60).contains(&self.lease_seconds), "lease_seconds must be 1 to 60"),
            (
                self.host_lost_grace_seconds >= self.fence_grace_seconds,
                "host_lost_grace_seconds must not be shorter than fence_grace_seconds",
            ),
            (
                (50..=60_000).contains(&self.heartbeat_interval_ms),
                "heartbeat_interval_ms must be 50 to 60000",
            ),
            (
                // A report that takes longer than 5 s is given up by its host.
                (6..=3600).contains(&self.host_clock_difference_max_seconds),
                "host_clock_difference_max_seconds must be 6 to 3600",
            ),
            (self.etcd_bytes_max > 0, "etcd_bytes_max must be at least 1"),
            (self.key_rotation_seconds >= 3600, "key_rotation_seconds must be at least 3600"),
            (self.microvms_max > 0, "microvms_max must be at least 1"),
            (self.disk_overcommit > 0, "disk_overcommit must be at least 1"),
            (
                self.run_hook_payload_bytes_max <= PAYLOAD_BYTES_MAX,
                "run_hook_payload_bytes_max must be at most 65536",
            ),
            (idle.contains(&self.limits.idle_min_seconds), "limits.idle_min_seconds must be 1 to 28800"),
            (
                (1..=CONNECTOR_VERSIONS_MAX).contains(&quotas.connector_versions_max),
                "quotas.connector_versions_max must be 1 to 90",
            ),
            (quotas.connectors_max <= 10_000, "quotas.connectors_max must be at most 10000"),
            (quotas.access_keys_max <= 10_000, "quotas.access_keys_max must be at most 10000"),
            (quotas.domains_max <= limits::DOMAINS_MAX, "quotas.domains_max must be at most 10000"),
        ])
    }

    /// Two replicas must not have the same name in the election.
    fn listens_everywhere(&self) -> bool {
        self.listen.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
    }

    pub(crate) fn retention(&self) -> Duration {
        Duration::from_secs(self.retention_seconds)
    }

    pub(crate) fn lost_grace(&self) -> Duration {
        Duration::from_secs(self.host_lost_grace_seconds)
    }

    pub(crate) fn fence_grace(&self) -> Duration {
        Duration::from_secs(self.fence_grace_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_make_sense_and_bad_values_are_named() {
        Config::default().check().unwrap();
        let bad = Config { lease_seconds: 0, ..Config::default() };
        assert_eq!(bad.check().unwrap_err().to_string(), "settings: lease_seconds must be 1 to 60");
        let bad = Config {
            quotas: Quotas { connector_versions_max: 91, ..Quotas::default() },
            ..Config::default()
        };
        assert_eq!(
            bad.check().unwrap_err().to_string(),
            "settings: quotas.connector_versions_max must be 1 to 90"
        );
    }
}
