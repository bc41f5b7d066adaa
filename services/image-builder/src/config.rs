//! The settings of an image-builder, with defaults that suit one machine.
//! Durations are whole seconds, sizes are bytes; each name says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use model::Subnet;
use serde::{Deserialize, Serialize};
use settings::{EtcdSettings, S3Settings, TelemetrySettings, TlsSettings};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub listen: SocketAddr,
    /// Name of this replica in build leases; empty means a fresh one per start.
    pub instance: String,
    /// Directory of this replica: layers, work files, logs of running builds.
    pub data_dir: PathBuf,
    pub region: String,
    pub account: String,
    /// gRPC addresses of the schedulers, "host:port"; the leader is found among them.
    pub schedulers: Vec<String>,
    /// Most images in the account, those being deleted included.
    pub images_max: usize,
    /// Most versions of one image, failed ones included.
    pub versions_max: usize,
    /// Bucket of disks, snapshots and base images.
    pub snapshot_bucket: String,
    pub log_bucket: String,
    /// Bucket that `torpor image create` uploads to: what it put there goes with the last version that names it. Empty
    /// means that nothing goes.
    pub artifact_bucket: String,
    pub tls: TlsSettings,
    pub etcd: EtcdSettings,
    pub s3: S3Settings,
    pub telemetry: TelemetrySettings,
    pub build: BuildSettings,
    pub archive: ArchiveSettings,
    pub bake: BakeSettings,
    pub log: LogSettings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7402)),
            instance: String::new(),
            data_dir: PathBuf::from("/var/lib/torpor/builder"),
            region: "us-east-1".to_owned(),
            account: "000000000000".to_owned(),
            schedulers: vec!["127.0.0.1:7401".to_owned()],
            images_max: 100,
            versions_max: 50,
            snapshot_bucket: "torpor-snapshots".to_owned(),
            log_bucket: "torpor-logs".to_owned(),
            artifact_bucket: String::new(),
            tls: TlsSettings::default(),
            etcd: EtcdSettings::default(),
            s3: S3Settings::default(),
            telemetry: TelemetrySettings::default(),
            build: BuildSettings::default(),
            archive: ArchiveSettings::default(),
            bake: BakeSettings::default(),
            log: LogSettings::default(),
        }
    }
}

/// A file of the build machine that RUN steps may read. It is mounted under
/// `/run/torpor/` and never becomes part of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildFile {
    /// The file; one that does not exist is left out.
    pub path: PathBuf,
    /// Variables that name it during RUN steps.
    #[serde(default)]
    pub variables: Vec<String>,
}

/// What a build may use and see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildSettings {
    /// Builds at a time on this replica.
    pub concurrent_max: usize,
    /// Unfinished builds in the whole fleet, waiting ones included; more are refused.
    pub unfinished_max: usize,
    /// Times a build whose builder died is begun, the first included.
    pub attempts_max: u32,
    /// Life of a build's lease without its builder.
    pub lease_seconds: u64,
    /// Longest time for the steps of one Dockerfile.
    pub timeout_seconds: u64,
    /// CPU kinds the fleet's hosts have: "X86_64", "ARM_64".
    pub architectures: Vec<String>,
    /// Generation of the hosts' CPUs as builds report it.
    pub chipset_generation: String,
    /// Base image when a request names none.
    pub default_base_image: String,
    /// Other names a request may use for a base image, and which it means: AWS's
    /// own base stands for ours, so that requests written for AWS work.
    pub base_image_aliases: BTreeMap<String, String>,
    /// Extra CA bundle for RUN steps and registries; empty means none, absent means the machine's own bundle.
    pub ca_bundle: Option<PathBuf>,
    pub files: Vec<BuildFile>,
    /// Variables for RUN steps only, for example a package index.
    pub environment: BTreeMap<String, String>,
    /// Name servers for builds; empty means the machine's own that are not on loopback.
    pub resolvers: Vec<String>,
    /// Networks closed to builds besides those that are closed to every guest and those that this machine is on.
    pub closed_networks: Vec<Subnet>,
    /// Networks among the closed ones that builds reach, for private services such as a registry. Name servers, and the package
    /// sources and proxies that this machine is set up with, are open without that. Loopback and link-local stay closed.
    pub open_networks: Vec<Subnet>,
    /// Root file system that builds run in, made by `deploy/toolbox`.
    pub toolbox: PathBuf,
    /// First of the 65,536 user ids a build's processes get on this machine.
    pub uid_base: u32,
    /// Memory of all processes of one build, where the kernel can bound it.
    pub memory_bytes_max: u64,
    pub processes_max: u64,
    /// Free bytes on the data directory's file system below which builds fail.
    pub disk_reserve_bytes: u64,
    /// Layer cache size above which the cache is emptied when no build runs.
    pub layer_cache_bytes_max: u64,
    /// Program that sets up a build's sandbox; absent means this one.
    pub sandbox_program: Option<PathBuf>,
}

impl Default for BuildSettings {
    fn default() -> Self {
        Self {
            concurrent_max: 2,
            unfinished_max: 5,
            attempts_max: 2,
            lease_seconds: 10,
            timeout_seconds: 30 * 60,
            architectures: vec![own_architecture().to_owned()],
            chipset_generation: "1".to_owned(),
            default_base_image: "debian-12".to_owned(),
            base_image_aliases: BTreeMap::from([("al2023-1".to_owned(), "debian-12".to_owned())]),
            ca_bundle: None,
            files: Vec::new(),
            environment: BTreeMap::new(),
            resolvers: Vec::new(),
            closed_networks: Vec::new(),
            open_networks: Vec::new(),
            toolbox: PathBuf::from("/usr/lib/torpor/toolbox"),
            uid_base: 2_000_000_000,
            memory_bytes_max: 8 * GIB,
            processes_max: 4096,
            disk_reserve_bytes: GIB,
            layer_cache_bytes_max: 20 * GIB,
            sandbox_program: None,
        }
    }
}

/// Where Debian keeps the machine's CA bundle.
const SYSTEM_CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

impl BuildSettings {
    /// The CA bundle builds get, if any.
    pub fn effective_ca_bundle(&self) -> Option<PathBuf> {
        let chosen = self.ca_bundle.clone().unwrap_or_else(|| PathBuf::from(SYSTEM_CA_BUNDLE));
        (!chosen.as_os_str().is_empty() && chosen.is_file()).then_some(chosen)
    }
}

fn own_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "ARM_64" } else { "X86_64" }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArchiveSettings {
    pub bytes_max: u64,
    /// Files, directories and links in it.
    pub entries_max: usize,
    pub unpacked_bytes_max: u64,
    /// Unpacked over packed size, once more than a MiB is unpacked.
    pub ratio_max: u64,
}

impl Default for ArchiveSettings {
    fn default() -> Self {
        Self { bytes_max: 512 * MIB, entries_max: 100_000, unpacked_bytes_max: 2 * GIB, ratio_max: 100 }
    }
}

/// How a built disk becomes a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BakeSettings {
    /// Without a ready hook: longest wait for a port to listen.
    pub settle_seconds: u64,
    /// Baseline memory when a request names none, in MiB.
    pub memory_default_mib: u32,
    pub memory_peak_factor: u32,
    /// Most virtual CPUs of a guest, whatever its class.
    pub vcpu_count_max: u32,
    /// Longest wait for a host with room.
    pub placement_seconds: u64,
    /// Longest bake beyond the hooks' own time: transfer, boot, upload.
    pub timeout_seconds: u64,
    /// Bakes per build when hosts fail in the middle, the first included.
    pub attempts_max: u32,
}

impl Default for BakeSettings {
    fn default() -> Self {
        Self {
            settle_seconds: 30,
            memory_default_mib: 2048,
            memory_peak_factor: 4,
            vcpu_count_max: 4,
            placement_seconds: 120,
            timeout_seconds: 600,
            attempts_max: 3,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    pub bytes_max: u64,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { bytes_max: 64 * MIB }
    }
}

impl Config {
    pub fn check(&self) -> Result<(), settings::Error> {
        settings::check([
            (self.data_dir.is_absolute(), "data_dir must be an absolute path"),
            (!self.schedulers.is_empty(), "schedulers must name at least one address"),
            (self.build.concurrent_max > 0, "build.concurrent_max must be at least 1"),
            (self.build.attempts_max > 0, "build.attempts_max must be at least 1"),
            (!self.build.chipset_generation.trim().is_empty(), "build.chipset_generation must not be empty"),
            (
                self.build.base_image_aliases.keys().all(|name| name.parse::<model::ImageName>().is_ok()),
                "build.base_image_aliases must be names of 1 to 64 characters of [a-zA-Z0-9-_]",
            ),
            (self.build.lease_seconds > 0, "build.lease_seconds must be at least 1"),
            (self.build.toolbox.is_absolute(), "build.toolbox must be an absolute path"),
            (self.build.uid_base >= 65_536, "build.uid_base must leave the machine's own users alone"),
            (self.build.uid_base <= (1 << 31) - 65_536, "build.uid_base must be at most 2147418112"),
            (self.bake.attempts_max > 0, "bake.attempts_max must be at least 1"),
            (self.bake.memory_peak_factor > 0, "bake.memory_peak_factor must be at least 1"),
            (
                model::MemoryClass::of(self.bake.memory_default_mib).is_some(),
                "bake.memory_default_mib must be 512, 1024, 2048, 4096 or 8192",
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_usable_and_survive_toml() {
        let settings = Config::default();
        settings.check().unwrap();
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), settings);
    }

    #[test]
    fn unusable_settings_name_the_key() {
        let mut settings = Config::default();
        settings.build.concurrent_max = 0;
        assert!(settings.check().unwrap_err().to_string().contains("build.concurrent_max"));
        settings = Config::default();
        settings.bake.memory_default_mib = 700;
        assert!(settings.check().unwrap_err().to_string().contains("memory_default_mib"));
    }
}
