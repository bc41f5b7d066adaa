//! The engine interface. Object-safe, so that a host can choose its engine when it starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::process::ProcessHandle;

/// Everything an engine needs to start a machine, the same for a cold boot and for a restore: a snapshot fits only a
/// machine of the same shape (`vcpu_count`, `memory_mib`, a disk, a network or none).
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Shown in process listings; letters, digits, `-`, `_` and `.`, at most 64.
    pub name: String,
    /// Virtual CPUs, at least 1.
    pub vcpu_count: u32,
    /// Guest memory in MiB, at least 64.
    pub memory_mib: u32,
    /// ELF kernel image.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initramfs: PathBuf,
    /// Kernel command line, complete.
    pub cmdline: String,
    /// Raw disk image, this machine's own; the engine locks it while it runs.
    pub disk: PathBuf,
    /// The network device, if the machine has one.
    pub network: Option<NetworkSpec>,
    /// Directory for this machine's control socket; made if missing, this machine's own, only for root.
    pub run_dir: PathBuf,
    /// User and group ids the process drops to once it has opened its files.
    pub run_as: Option<(u32, u32)>,
}

/// How a machine reaches the network.
#[derive(Debug, Clone)]
pub struct NetworkSpec {
    /// Name under `/run/netns` of the namespace the process starts in; `None` is the caller's own.
    pub netns: Option<String>,
    /// An existing tap device in that namespace.
    pub tap: String,
    /// The guest's hardware address.
    pub mac: [u8; 6],
}

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreSpec {
    /// Memory file of the image, mapped privately: never written, shared by any number of machines.
    pub base_memory: PathBuf,
    /// Device state that belongs to the base or, with a difference, to that difference.
    pub device_state: PathBuf,
    /// Memory pages that differ from the base.
    pub memory_difference: Option<PathBuf>,
}

/// What an engine is. Snapshots move only between equal fingerprints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineDescription {
    /// `qemu`.
    pub name: String,
    pub version: String,
    /// Digest over everything that device state depends on: version, machine type, accelerator, CPU features.
    pub platform_fingerprint: String,
}

/// One timed step, for traces and reports.
#[derive(Debug, Clone)]
pub struct Phase {
    /// Short stable name.
    pub name: &'static str,
    pub start: SystemTime,
    pub duration: Duration,
}

/// A loaded machine, still paused.
pub struct Restored {
    /// The machine; call [`Machine::resume`].
    pub machine: Arc<dyn Machine>,
    /// `process` (unless prepared ahead), `difference` (if there is one), `state`.
    pub phases: Vec<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// A process that waits for the state it should load.
    Prepared,
    Running,
    /// The guest stands still, ready to run.
    Paused,
    /// The guest stands still because the host had no room for what it wrote to its disk. [`Machine::resume`] has it write
    /// that again; until then it has neither succeeded nor failed.
    OutOfSpace,
    /// The guest is over; its exit reason follows.
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    GuestShutdown,
    /// The guest rebooted; machines do not come back from that.
    GuestReset,
    /// The guest's kernel gave up with this line.
    GuestPanic(String),
    /// A signal ended the process: 9 after [`Machine::stop`].
    Killed(i32),
    /// The process ended by itself; no code if it was not this program's child.
    Failed {
        code: Option<i32>,
        /// Last words on standard error.
        message: String,
    },
}

/// What a saved difference holds.
#[derive(Debug, Clone)]
pub struct DifferenceStats {
    /// Size of the difference file in bytes.
    pub bytes: u64,
    /// Pages that differ from the base, 4 KiB each.
    pub pages: u64,
    /// Those among them that are all zero and take no room in the file.
    pub zero_pages: u64,
    /// `device`, `scan`, `copy`.
    pub phases: Vec<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// CPU time of the whole process, guest and engine, in seconds.
    pub cpu_seconds: f64,
    /// Host memory that is this machine's alone, in bytes.
    pub anonymous_bytes: u64,
}

/// Starts machines.
///
/// A method that fails leaves no process behind. One whose future is dropped leaves none either, but its process may take some
/// milliseconds to go: until then its disk is [`crate::Error::DiskInUse`].
#[async_trait]
pub trait Engine: Send + Sync {
    /// Name, version and fingerprint; settled when the engine was made.
    fn describe(&self) -> EngineDescription;

    /// Cold boot. `memory_file` must not exist; it becomes the guest's memory, sparse, `memory_mib` long. The machine
    /// is running when this returns.
    async fn boot(&self, spec: &MachineSpec, memory_file: &Path) -> Result<Arc<dyn Machine>>;

    /// A process that maps `base_memory` privately and waits for state to load. It reads nothing of the disk before
    /// that: until then the disk's content may be replaced (not its length, nor the file itself), and disk and run
    /// directory may be moved; whoever adopts the machine later gives their new places.
    async fn prepare(&self, spec: &MachineSpec, base_memory: &Path) -> Result<Box<dyn Prepared>>;

    /// [`Engine::prepare`] and [`Prepared::load`] in one.
    async fn restore(&self, spec: &MachineSpec, from: &RestoreSpec) -> Result<Restored> {
        let start = SystemTime::now();
        let clock = std::time::Instant::now();
        let prepared = self.prepare(spec, &from.base_memory).await?;
        let process = Phase { name: "process", start, duration: clock.elapsed() };
        let mut restored = prepared.load(&from.device_state, from.memory_difference.as_deref()).await?;
        restored.phases.insert(0, process);
        Ok(restored)
    }

    /// Takes over a process that an earlier run of this program started with the same `spec`. `None` when that process
    /// is gone, or its id belongs to another one now. A machine found [`Status::Prepared`] can only be stopped.
    async fn adopt(&self, spec: &MachineSpec, process: &ProcessHandle) -> Result<Option<Arc<dyn Machine>>>;
}

/// A process ready to become a machine. Dropping it kills the process: there is nothing in it to lose.
#[async_trait]
pub trait Prepared: Send + Sync {
    /// The process, to be told apart in logs and listings.
    fn process(&self) -> ProcessHandle;

    /// Loads the state; the machine is paused when this returns. On failure the process is gone.
    async fn load(self: Box<Self>, device_state: &Path, memory_difference: Option<&Path>)
    -> Result<Restored>;

    /// False once the process has ended, which only something outside can have done.
    fn is_alive(&self) -> bool;

    /// Kills the process and waits until the kernel has let go of its memory and files.
    async fn stop(self: Box<Self>) -> Result<()>;
}

/// One machine. Dropping the last handle leaves the process running, to be adopted.
#[async_trait]
pub trait Machine: Send + Sync {
    /// The process, to be recorded.
    fn process(&self) -> ProcessHandle;

    async fn status(&self) -> Result<Status>;

    /// Waits until the guest is [`Status::OutOfSpace`]; at once when it is.
    async fn out_of_space(&self);

    /// Stands the guest still. Idempotent. One that is [`Status::OutOfSpace`] stays that, and this fails.
    async fn pause(&self) -> Result<()>;

    /// Lets the guest run, also one that is [`Status::OutOfSpace`]: without room it is so again at once. Idempotent.
    async fn resume(&self) -> Result<()>;

    /// Writes the device state of a paused machine, synced to disk. For the bake: memory is in its file already.
    async fn save_device_state(&self, device_state: &Path) -> Result<()>;

    /// Writes device state and memory difference of a paused machine that was restored. Neither is synced: the guest need not
    /// stand still for that, so it is for whoever names the files, before it names them. After a failure neither file exists
    /// and the machine is still paused, ready to `resume`.
    async fn save_difference(&self, device_state: &Path, memory_difference: &Path)
    -> Result<DifferenceStats>;

    /// The end of what the guest wrote to its console, at most 64 KiB; still there after the guest's own exit.
    async fn console(&self) -> Result<String>;

    /// Kills the process and waits until the kernel has let go of its memory and files. Idempotent.
    async fn stop(&self) -> Result<()>;

    /// Waits for the end of the machine. Any number of callers, also afterwards.
    async fn exited(&self) -> ExitReason;

    /// CPU and memory used so far; costs the same for every memory size.
    fn usage(&self) -> Result<Usage>;
}
