//! One fleet's surroundings (etcd, S3, CA, a scheduler's ear) and its agents, each with a loop-mounted XFS of
//! its own. Dropping a world takes everything away, also after a failed assertion.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rpc::{Role, TlsIdentity};
pub use testkit::PATIENCE;
use testkit::certificates::{self, identity};
use testkit::{Etcd, Script, TestS3, Xfs, free_port};

use crate::scheduler::{self, Reports};

pub const BUCKET: &str = "snapshots";

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct World {
    pub directory: tempfile::TempDir,
    pub s3: TestS3,
    pub etcd: Etcd,
    pub reports: Arc<Mutex<Reports>>,
    scheduler: Script,
}

/// One agent: its process, its disk, its names.
pub struct Agent {
    pub host_id: String,
    pub data: PathBuf,
    pub address: String,
    pub tunnel: String,
    pub identities: PathBuf,
    config: PathBuf,
    log: PathBuf,
    prefix: String,
    child: Option<Child>,
    /// Holds `data`; unmounted when everything that works on it has been stopped.
    _disk: Xfs,
}

impl World {
    pub async fn start() -> Self {
        rpc::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[]);
        let identity = identity(directory.path(), Role::Scheduler);
        let (scheduler, reports) = scheduler::serve(&identity).await;
        let s3 = TestS3::start().await;
        s3.store().ensure_bucket(BUCKET).await.unwrap();
        let etcd = Etcd::start().await;
        Self { directory, s3, etcd, reports, scheduler }
    }

    /// Starts an agent on a fresh XFS of `mib` MiB.
    pub async fn agent(&self, mib: u64) -> Agent {
        self.agent_with(mib, "").await
    }

    /// As [`World::agent`], with more settings.
    pub async fn agent_with(&self, mib: u64, settings: &str) -> Agent {
        let bundle = bundle();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("h{number}");
        let disk = Xfs::mount(mib);
        let data = disk.path();
        let unique = std::process::id().wrapping_mul(7).wrapping_add(number);
        let prefix = format!("t{:x}", unique & 0x00ff_ffff);
        let (port, tunnel_port) = (free_port(), free_port());
        let address = format!("127.0.0.1:{port}");
        let tunnel = format!("127.0.0.1:{tunnel_port}");
        let config = self.directory.path().join(format!("{name}.toml"));
        let ca = self.directory.path();
        let own = certificates::host_files(ca, &name);
        let s3 = self.s3.config();
        let text = format!(
            r#"
host_id = "{name}"
listen = "{address}"
tunnel_listen = "{tunnel}"
snapshot_bucket = "{BUCKET}"
data_dir = "{data}"
schedulers = ["{scheduler}"]
guest_bundle = "{bundle}"
memory_capacity_mib = 2048
memory_peak_factor = 1
failpoints = true
[tls]
ca = "{ca}/ca.pem"
cert = "{cert}"
key = "{key_file}"
[etcd]
endpoints = ["{etcd}"]
root = "/torpor/"
[s3]
endpoint = "{endpoint}"
region = "us-east-1"
access_key_id = "{key}"
secret_access_key = "{secret}"
path_style = true
[slots]
prefix = "{prefix}"
outer_subnet = "10.{a}.{b}.0/26"
ready = 2
total = 8
[timeouts]
lease_ttl_ms = 4000
metering_interval_ms = 500
retry_min_ms = 200
[telemetry]
log_filter = "info,host_agent=debug"
{settings}"#,
            data = data.display(),
            scheduler = self.scheduler.address,
            bundle = bundle.display(),
            ca = ca.display(),
            cert = own.cert.display(),
            key_file = own.key.display(),
            etcd = self.etcd.endpoint(),
            endpoint = s3.endpoint.unwrap(),
            key = s3.access_key_id.unwrap(),
            secret = s3.secret_access_key.unwrap(),
            a = 210 + unique % 40,
            b = (unique / 40) % 250,
        );
        std::fs::write(&config, text).unwrap();
        let log = self.directory.path().join(format!("{name}.log"));
        let identities = self.directory.path().to_owned();
        let mut agent = Agent {
            host_id: name,
            data,
            _disk: disk,
            address,
            tunnel,
            identities,
            config,
            log,
            prefix,
            child: None,
        };
        agent.start(None).await;
        agent
    }
}

impl Agent {
    /// Starts the process; with a failpoint it will die there.
    pub async fn start(&mut self, failpoint: Option<&str>) {
        let log_start = self.log_text().len();
        let log = std::fs::File::options().append(true).create(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_torpor-host-agent"));
        command.arg("--config").arg(&self.config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env_remove("TORPOR_FAILPOINT");
        if let Some(failpoint) = failpoint {
            command.env("TORPOR_FAILPOINT", failpoint);
        }
        self.child = Some(command.spawn().unwrap());
        let began = Instant::now();
        while std::net::TcpStream::connect(&self.address).is_err() || !self.is_up(log_start) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended: {}", self.log_text());
            assert!(began.elapsed() < PATIENCE, "the agent is not up: {}", self.log_text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_up(&self, log_start: usize) -> bool {
        self.log_text()[log_start..].contains("host-agent up")
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `kill -9`, or waits for a failpoint to do the like.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }

    pub async fn wait_dead(&mut self) {
        let began = Instant::now();
        while self.child.as_mut().unwrap().try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "the failpoint was not hit: {}", self.log_text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child = None;
    }

    pub fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log_text());
    }

    pub fn identity(&self, role: Role) -> Arc<TlsIdentity> {
        identity(&self.identities, role)
    }

    /// Engine processes of microVMs and bakes. One made ahead works in a directory of its own until it is somebody's.
    pub fn engines(&self) -> Vec<i32> {
        self.all_engines().into_iter().filter(|pid| !self.waits(*pid)).collect()
    }

    /// Engine processes that wait for a microVM.
    pub fn engines_ahead(&self) -> Vec<i32> {
        self.all_engines().into_iter().filter(|pid| self.waits(*pid)).collect()
    }

    fn waits(&self, pid: i32) -> bool {
        let works_in = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        works_in.starts_with(self.data.join("ahead"))
    }

    fn all_engines(&self) -> Vec<i32> {
        let mark = format!("{}/", self.data.display());
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                text.contains("qemu") && text.contains(&mark)
            })
            .collect()
    }

    /// Names in a directory of the data directory.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.data.join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn namespaces(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir("/run/netns") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(&format!("{}-", self.prefix)))
            .collect()
    }

    /// How many slots have a text in the rules about what their guest may reach.
    pub fn slots_with_rule(&self, text: &str) -> usize {
        let has = |name: &String| {
            let output = Command::new("ip")
                .args(["netns", "exec", name, "nft", "list", "chain", "inet", "torpor", "egress"])
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).contains(text)
        };
        self.namespaces().iter().filter(|name| has(name)).count()
    }
}

/// A killed agent's engines are gone when none has been seen for so long.
const NO_ENGINE_FOR: Duration = Duration::from_millis(200);

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.log_text();
            let tail: Vec<&str> = text.lines().rev().take(80).collect();
            for line in tail.iter().rev() {
                eprintln!("agent: {line}");
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // A process that the agent was about to start when it was killed is no engine before its exec: none is there when
        // none has been seen for a while.
        let (began, mut none_seen) = (Instant::now(), Instant::now());
        while none_seen.elapsed() < NO_ENGINE_FOR && began.elapsed() < Duration::from_secs(5) {
            for pid in self.all_engines() {
                none_seen = Instant::now();
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for name in self.namespaces() {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
        let tables_of_agent = [format!("torpor_{}", self.prefix), format!("torpor_{}_closed", self.prefix)];
        if let Ok(tables) = Command::new("nft").args(["list", "tables"]).output() {
            let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
            let is_agents = |line: &&str| tables_of_agent.iter().any(|table| line.ends_with(table));
            for line in tables.lines().filter(is_agents) {
                let _ = Command::new("nft").arg("delete").args(line.split_whitespace()).status();
            }
        }
    }
}

fn bundle() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest-bundle");
    let path = std::env::var_os("TORPOR_GUEST_BUNDLE").map_or_else(default, PathBuf::from);
    assert!(
        path.join("manifest.json").exists(),
        "no guest bundle in {}; run deploy/guest-bundle",
        path.display()
    );
    path
}
