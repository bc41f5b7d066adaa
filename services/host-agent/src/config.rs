//! Settings of a host-agent, `host-agent.toml`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use settings::{EtcdSettings, S3Settings, TelemetrySettings, TlsSettings};

/// Everything a host-agent can be told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Id of the host, 1 to 63 characters of [a-z0-9-].
    pub host_id: String,
    pub listen: SocketAddr,
    pub tunnel_listen: SocketAddr,
    /// What others dial for gRPC, "address:port"; empty means `listen`.
    pub advertise: String,
    /// What edges dial for tunnels, "address:port"; empty means `tunnel_listen`.
    pub advertise_tunnel: String,
    pub tls: TlsSettings,
    pub etcd: EtcdSettings,
    pub s3: S3Settings,
    pub snapshot_bucket: String,
    /// Everything the host keeps; on XFS with reflinks.
    pub data_dir: PathBuf,
    /// Schedulers, "address:port"; the leader is found among them.
    pub schedulers: Vec<String>,
    pub guest_bundle: PathBuf,
    /// Region the guests see as AWS_REGION.
    pub region: String,
    /// Baseline guest memory the host hands out, in MiB.
    pub memory_capacity_mib: u64,
    /// Guest memory is this many times the baseline that is accounted for.
    pub memory_peak_factor: u32,
    pub disk: DiskSettings,
    pub slots: slot::PoolSettings,
    pub engine: EngineSettings,
    pub timeouts: Timeouts,
    /// Bounds on what is kept and what may wait.
    pub limits: Limits,
    /// Honour TORPOR_FAILPOINT; for crash tests only.
    pub failpoints: bool,
    pub telemetry: TelemetrySettings,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// QEMU's program; empty means the first of the usual names on the path.
    pub binary: String,
    /// User and group that engine processes run as; absent means the agent's own.
    pub run_as: Option<RunAs>,
}

/// A user and a group by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// How the room on the data directory's file system is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskSettings {
    /// Part of the file system that is free before the host takes anything new, in percent.
    pub free_percent_min: u32,
    /// What is kept for suspends, in percent of the baseline memory of what runs.
    pub reserve_percent: u32,
    /// Most that is kept so, in percent of the file system; 0 keeps nothing.
    pub reserve_percent_max: u32,
    /// Hosts that share the disk: the one that the file of the file system is on, else the file system itself.
    pub shared_by: u32,
    /// Bytes of that disk that are left to others than hosts.
    pub left_to_others_bytes: u64,
    /// How often a file system in a file gives back what is free, seconds.
    pub trim_interval_seconds: u64,
}

/// Time limits in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Lifetime of the host's etcd lease without renewal.
    pub lease_ttl_ms: u64,
    /// From a restore to the guest-agent's first answer.
    pub guest_connect_ms: u64,
    /// From a cold boot to the guest-agent's first answer.
    pub guest_boot_ms: u64,
    /// How often the engine's use is sampled.
    pub metering_interval_ms: u64,
    /// First pause after a failed upload or report; doubles up to `retry_max_ms`.
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    /// How long engines wait for another microVM of an image after the last launch or wake of one.
    pub engine_ahead_idle_ms: u64,
    /// How long reports of ended microVMs are kept.
    pub tombstone_retention_ms: u64,
    /// How long logs of ended microVMs are kept.
    pub log_retention_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes the image snapshot cache may occupy; unused ones beyond that go, oldest use first.
    pub image_cache_bytes: u64,
    /// Commands that may wait for one microVM.
    pub mailbox: usize,
    pub connections_per_microvm: usize,
    /// Tunnel requests of the whole host that may wait for launches and wakes.
    pub waiting_opens: usize,
    /// Those of them that may wait for one microVM.
    pub waiting_opens_per_microvm: usize,
    /// MicroVMs that are woken at a time; more queue, and images take turns.
    pub wakes_at_once: usize,
    /// MicroVMs in that queue; what is beyond is told to try again, or wakes on another host.
    pub wakes_waiting: usize,
    pub bakes: usize,
    /// Engines that wait for a microVM, per image in use; 0 makes none.
    pub engines_ahead: usize,
    /// Engines that wait for a microVM, of all images.
    pub engines_ahead_total: usize,
    /// Bytes of one log file; two are kept per microVM.
    pub log_file_bytes: u64,
    /// Log bytes one microVM may write per second, sustained; lines beyond that are dropped and counted.
    pub log_bytes_per_second: u64,
    /// Ended microVMs whose reports and logs are kept.
    pub tombstones: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host_id: "host-1".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7410)),
            tunnel_listen: SocketAddr::from(([127, 0, 0, 1], 7411)),
            advertise: String::new(),
            advertise_tunnel: String::new(),
            tls: TlsSettings::default(),
            etcd: EtcdSettings::default(),
            s3: S3Settings::default(),
            snapshot_bucket: "torpor-snapshots".to_owned(),
            data_dir: PathBuf::from("/var/lib/torpor/hosts/h1"),
            schedulers: vec!["127.0.0.1:7401".to_owned()],
            guest_bundle: PathBuf::from("/var/lib/torpor/bundle"),
            region: "us-east-1".to_owned(),
            memory_capacity_mib: 8192,
            memory_peak_factor: 4,
            disk: DiskSettings::default(),
            slots: slot::PoolSettings::default(),
            engine: EngineSettings::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            failpoints: false,
            telemetry: TelemetrySettings::default(),
        }
    }
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self { binary: "qemu-system-x86_64".to_owned(), run_as: None }
    }
}

impl Default for DiskSettings {
    fn default() -> Self {
        Self {
            free_percent_min: 5,
            reserve_percent: 100,
            reserve_percent_max: 20,
            shared_by: 1,
            left_to_others_bytes: 0,
            trim_interval_seconds: 600,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            lease_ttl_ms: 10_000,
            guest_connect_ms: 15_000,
            guest_boot_ms: 120_000,
            metering_interval_ms: 5_000,
            retry_min_ms: 500,
            retry_max_ms: 30_000,
            engine_ahead_idle_ms: 600_000,
            tombstone_retention_ms: 600_000,
            log_retention_ms: 3_600_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image_cache_bytes: 64 << 30,
            mailbox: 64,
            connections_per_microvm: 128,
            waiting_opens: 1024,
            waiting_opens_per_microvm: 64,
            wakes_at_once: 16,
            wakes_waiting: 1024,
            bakes: 4,
            engines_ahead: 2,
            engines_ahead_total: 8,
            log_file_bytes: 8 << 20,
            log_bytes_per_second: 1 << 20,
            tombstones: 1000,
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), String> {
        self.host_id.parse::<model::ids::HostId>().map_err(|error| format!("host_id: {error}"))?;
        self.slots.check().map_err(|error| error.to_string())?;
        if self.schedulers.is_empty() {
            return Err("schedulers: at least one is needed".to_owned());
        }
        if self.memory_peak_factor == 0 {
            return Err("memory_peak_factor: at least 1".to_owned());
        }
        for (key, value) in [
            ("limits.mailbox", self.limits.mailbox),
            ("limits.connections_per_microvm", self.limits.connections_per_microvm),
            ("limits.waiting_opens", self.limits.waiting_opens),
            ("limits.waiting_opens_per_microvm", self.limits.waiting_opens_per_microvm),
            ("limits.wakes_at_once", self.limits.wakes_at_once),
            ("limits.wakes_waiting", self.limits.wakes_waiting),
            ("limits.bakes", self.limits.bakes),
            ("limits.tombstones", self.limits.tombstones),
        ] {
            if value == 0 {
                return Err(format!("{key}: at least 1"));
            }
        }
        self.disk.check()?;
        if self.timeouts.lease_ttl_ms < 2000 {
            return Err("timeouts.lease_ttl_ms: at least 2000".to_owned());
        }
        Ok(())
    }
}

impl DiskSettings {
    fn check(&self) -> Result<(), String> {
        if !(1..=50).contains(&self.free_percent_min) {
            return Err("disk.free_percent_min: 1 to 50".to_owned());
        }
        if self.reserve_percent > 1000 {
            return Err("disk.reserve_percent: at most 1000".to_owned());
        }
        if self.reserve_percent_max > 50 {
            return Err("disk.reserve_percent_max: at most 50".to_owned());
        }
        if self.shared_by == 0 {
            return Err("disk.shared_by: at least 1".to_owned());
        }
        if self.trim_interval_seconds == 0 {
            return Err("disk.trim_interval_seconds: at least 1".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_good_and_mistakes_are_named() {
        assert_eq!(Config::default().check(), Ok(()));
        type Break = fn(&mut Config);
        let broken: &[(&str, Break)] = &[
            ("host_id", |c| c.host_id = "A".into()),
            ("schedulers", |c| c.schedulers.clear()),
            ("memory_peak_factor", |c| c.memory_peak_factor = 0),
            ("limits.bakes", |c| c.limits.bakes = 0),
            ("disk.free_percent_min", |c| c.disk.free_percent_min = 51),
            ("disk.shared_by", |c| c.disk.shared_by = 0),
            ("limits.wakes_at_once", |c| c.limits.wakes_at_once = 0),
            ("timeouts.lease_ttl_ms", |c| c.timeouts.lease_ttl_ms = 1),
        ];
        for (key, break_it) in broken {
            let mut config = Config::default();
            break_it(&mut config);
            assert!(config.check().unwrap_err().starts_with(key), "{key}");
        }
    }
}
