//! The processes of the fleet, as its supervisor's record names them. Only these are ever signalled, and only while the
//! kernel says that the process is still the one that the record means.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::schedule::Shape;

pub const SCHEDULER: &str = "scheduler";
pub const EDGE: &str = "edge-proxy";
pub const BUILDER: &str = "image-builder";
pub const MEMBER: &str = "etcd";
pub const HOST: &str = "host-agent";
pub const S3: &str = "s3";

/// What `torpor up` keeps of itself, as far as it matters here.
#[derive(Deserialize)]
struct Record {
    phase: String,
    supervisor: Process,
    components: Vec<Part>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Part {
    pub name: String,
    pub process: Option<Process>,
    pub health: String,
}

impl Part {
    /// What hits the whole machine.
    pub fn machine() -> Self {
        Self { name: "machine".to_owned(), process: None, health: String::new() }
    }
}

/// A process and when the kernel started it, in ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub start_time: u64,
}

impl Process {
    fn alive(self) -> bool {
        let now = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok();
        now.as_deref().and_then(start_time) == Some(self.start_time)
    }

    /// The group that it runs as.
    pub fn group(self) -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Gid:"))?.split_whitespace().next()?.parse().ok()
    }

    /// Sends a signal, unless the process is gone.
    pub fn signal(self, signal: Signal) {
        if let (true, Ok(pid)) = (self.alive(), i32::try_from(self.pid)) {
            // It may end between the look and the signal; then there is nothing to do.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Field 22 of /proc/PID/stat. The name in field 2 may hold spaces and brackets.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A fleet that `torpor up` runs on this machine.
pub struct Fleet {
    data_dir: PathBuf,
}

impl Fleet {
    /// The running fleet in `data_dir`.
    pub fn find(data_dir: &Path) -> anyhow::Result<Self> {
        let fleet = Self { data_dir: data_dir.to_owned() };
        let record = fleet.record()?;
        anyhow::ensure!(
            record.supervisor.alive() && record.phase == "running",
            "the fleet in {} is not up; start it with: torpor up --detach --hosts 3 --schedulers 2 --edges 2 \
             --builders 2 --etcd-members 3",
            data_dir.display()
        );
        Ok(fleet)
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The program that the fleet was started by.
    pub fn program(&self) -> PathBuf {
        self.data_dir.join("bin/torpor")
    }

    /// Whether a part is well again, as another process than before.
    pub fn is_back(&self, name: &str, before: Process) -> anyhow::Result<bool> {
        let part = self.record()?.components.into_iter().find(|part| part.name == name);
        Ok(part.is_some_and(|part| {
            part.health == "healthy" && part.process.is_some_and(|process| process != before)
        }))
    }

    /// Kills the engines of a host: the processes that run in its directory.
    pub fn kill_engines(&self, host: &str) -> anyhow::Result<()> {
        let number = host.rsplit('-').next().unwrap_or_default();
        let directory = self.data_dir.join(format!("hosts/h{number}"));
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok();
            let Some(start_time) = stat.as_deref().and_then(start_time) else { continue };
            if std::fs::read_link(entry.path().join("cwd")).is_ok_and(|runs| runs.starts_with(&directory)) {
                Process { pid, start_time }.signal(Signal::SIGKILL);
            }
        }
        Ok(())
    }

    fn record(&self) -> anyhow::Result<Record> {
        let path = self.data_dir.join("run/fleet.json");
        let text = std::fs::read(&path).with_context(|| {
            format!("{}: chaos needs a fleet that torpor up runs on this machine, and root", path.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is of another version", path.display()))
    }

    /// Every part whose name begins so, in the order of their numbers.
    pub fn parts(&self, prefix: &str) -> anyhow::Result<Vec<Part>> {
        let mut parts = self.record()?.components;
        parts.retain(|part| part.name == prefix || part.name.starts_with(&format!("{prefix}-")));
        Ok(parts)
    }

    /// Names of the parts that are not well.
    pub fn sick(&self) -> anyhow::Result<Vec<String>> {
        let parts = self.record()?.components;
        Ok(parts.into_iter().filter(|part| part.health != "healthy").map(|part| part.name).collect())
    }

    pub fn shape(&self) -> anyhow::Result<Shape> {
        let count = |prefix| Ok::<_, anyhow::Error>(self.parts(prefix)?.len());
        let hosts = count(HOST)?;
        Ok(Shape {
            schedulers: count(SCHEDULER)?,
            edges: count(EDGE)?,
            builders: count(BUILDER)?,
            members: count(MEMBER)?,
            hosts,
            own_disks: (1..=hosts).all(|number| self.disk(number).is_some()),
        })
    }

    /// The data directory of host `number`, if it is a file system of its own.
    pub fn disk(&self, number: usize) -> Option<PathBuf> {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.data_dir.join(format!("hosts/h{number}"));
        let device = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.dev());
        (device(&path)? != device(path.parent()?)?).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_is_signalled() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let own = Process { pid: std::process::id(), start_time: start_time(&stat).unwrap() };
        assert!(own.alive());
        assert_eq!(own.group(), Some(nix::unistd::getgid().as_raw()));
        let stranger = Process { start_time: own.start_time + 1, ..own };
        assert!(!stranger.alive());
        stranger.signal(Signal::SIGKILL);
    }

    #[test]
    fn a_record_of_torpor_up_is_read() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let component = |name: &str, health: &str| serde_json::json!({ "name": name, "process": { "pid": 1, "start_time": 2 }, "started": 3, "health": health });
        let record = serde_json::json!({
            "phase": "running",
            "supervisor": { "pid": 1, "start_time": u64::MAX },
            "components": [component("etcd", "healthy"), component("etcd-2", "restarting"), component("host-agent-1", "healthy")],
        });
        std::fs::write(directory.path().join("run/fleet.json"), record.to_string()).unwrap();
        let fleet = Fleet { data_dir: directory.path().to_owned() };
        assert_eq!(fleet.parts(MEMBER).unwrap().len(), 2);
        assert_eq!(fleet.sick().unwrap(), ["etcd-2"]);
        assert_eq!(fleet.shape().unwrap().hosts, 1);
        let before = Process { pid: 1, start_time: 2 };
        assert!(!fleet.is_back(MEMBER, before).unwrap(), "it is the same process");
        assert!(fleet.is_back(MEMBER, Process { start_time: 1, ..before }).unwrap());
        assert!(!fleet.is_back("etcd-2", Process { start_time: 1, ..before }).unwrap(), "it is not well yet");
        assert!(Fleet::find(directory.path()).is_err(), "its supervisor is another process");
    }
}
