//! The engine that runs on every Linux host: QEMU's `microvm` machine, with hardware virtualization where there is any and
//! with QEMU's software CPU elsewhere.
//!
//! Launch and wake start a process that maps the image's memory file privately and waits (`-incoming defer`); the difference is
//! written into its memory *before* the device state is loaded, because loading reads the virtio rings from guest memory.
//! Device state is made with `xen-save-devices-state`, which despite its name needs no Xen and leaves memory out.
//!
//! What a hostile guest, or a QEMU taken over by one, meets: a process without privileges (`run_as`), in its own network
//! namespace, under QEMU's seccomp filter, with no file but its own open. It cannot fill a disk: its console is a ring in
//! QEMU's memory, read over the control socket, and standard error is a bounded pipe. For the console to be readable after
//! the guest's own exit, QEMU then stands still instead of leaving (`-action shutdown=pause`); the machine's task reads the
//! ring and ends the process. That also keeps the reason for an agent that was not there when it happened.
//!
//! One hole is left on QEMU before 8.2: it insists on opening the base for writing, so a QEMU taken over could change the base of
//! its own image. Later versions open it for reading only.

mod accelerator;
mod command;
mod connection;
mod exit;
mod machine;
mod prepared;
mod tsc;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use accelerator::Accelerator;
use accelerator::Platform;
use command::{Command, Mode};
use connection::Connection;
use machine::QemuMachine;
use prepared::QemuPrepared;

use crate::engine::{Engine, EngineDescription, Machine, MachineSpec, Prepared, Status};
use crate::error::{Error, Result};
use crate::process::{Launch, Process, ProcessHandle, Spawned, spawn};

/// From `exec` to the control protocol's greeting; 25 ms on an idle host.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// An earlier client of the control socket may need a moment to be noticed as gone.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to run QEMU.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QemuSettings {
    /// The program, as a path or a name in `PATH`.
    pub binary: PathBuf,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
}

impl Default for QemuSettings {
    fn default() -> Self {
        Self { binary: "qemu-system-x86_64".into(), accelerator: Accelerator::Auto }
    }
}

/// The engine.
pub struct Qemu {
    platform: Platform,
}

impl Qemu {
    /// Finds out what QEMU and what host this is.
    pub async fn new(settings: QemuSettings) -> Result<Self> {
        Ok(Self { platform: Platform::detect(&settings).await? })
    }

    async fn start(&self, spec: &MachineSpec, memory: &Path, mode: Mode) -> Result<(Connection, Spawned)> {
        let platform = self.platform.clone();
        let (owned_spec, memory) = (spec.clone(), memory.to_owned());
        let spawned = blocking(move || launch(&platform, &owned_spec, &memory, mode)).await?;
        let connected = tokio::time::timeout(START_TIMEOUT, async {
            tokio::select! {
                connection = Connection::open(&spec.run_dir) => connection,
                _ = spawned.process.exited() => Err(Error::Gone),
            }
        });
        match connected.await {
            Ok(Ok(connection)) => Ok((connection, spawned)),
            Ok(Err(_)) => {
                // Its exit explains more than the connection that broke over it.
                spawned.process.stop().await?;
                Err(Error::Start(spawned.stderr.text()))
            }
            Err(_) => Err(Error::Timeout { step: "starting the engine process", limit: START_TIMEOUT }),
        }
    }

    /// The process and its connection, if it is still that process and it answers.
    async fn find(
        &self,
        spec: &MachineSpec,
        handle: &ProcessHandle,
    ) -> Result<Option<(Arc<Process>, Connection)>> {
        let Some(process) = Process::adopt(handle)?.map(Arc::new) else {
            return Ok(None);
        };
        let connected = tokio::time::timeout(ADOPT_TIMEOUT, async {
            tokio::select! {
                connection = Connection::open(&spec.run_dir) => connection.map(Some),
                _ = process.exited() => Ok(None),
            }
        });
        match connected.await {
            Ok(connection) => Ok(connection?.map(|connection| (process, connection))),
            Err(_) => {
                Err(Error::Timeout { step: "reconnecting to the engine process", limit: ADOPT_TIMEOUT })
            }
        }
    }
}

#[async_trait]
impl Engine for Qemu {
    fn describe(&self) -> EngineDescription {
        self.platform.description.clone()
    }

    async fn boot(&self, spec: &MachineSpec, memory_file: &Path) -> Result<Arc<dyn Machine>> {
        command::check(spec)?;
        // Never over an existing file: machines may be running on it.
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(memory_file);
        file.and_then(|file| file.set_len(memory_bytes(spec))).map_err(|e| Error::writing(memory_file, e))?;
        let (connection, spawned) = self.start(spec, memory_file, Mode::Boot).await?;
        let (process, stderr) = spawned.keep();
        Ok(QemuMachine::start(process, stderr, connection, memory_bytes(spec)))
    }

    async fn prepare(&self, spec: &MachineSpec, base_memory: &Path) -> Result<Box<dyn Prepared>> {
        command::check(spec)?;
        let base =
            base_memory.metadata().map_err(|e| Error::io(format!("read {}", base_memory.display()), e))?;
        if base.len() != memory_bytes(spec) {
            let reason = format!("{} bytes instead of {}", base.len(), memory_bytes(spec));
            return Err(Error::corrupt(base_memory, reason));
        }
        let (connection, spawned) = self.start(spec, base_memory, Mode::Restore).await?;
        connection.report_migration().await?;
        Ok(Box::new(QemuPrepared::new(spawned, connection, memory_bytes(spec))))
    }

    async fn adopt(&self, spec: &MachineSpec, process: &ProcessHandle) -> Result<Option<Arc<dyn Machine>>> {
        let Some((process, connection)) = self.find(spec, process).await? else {
            return Ok(None);
        };
        match connection.status().await {
            Ok(Status::Ended) => connection.note_missed_end(),
            Ok(Status::OutOfSpace) => connection.note_stopped(),
            Ok(_) => {}
            Err(Error::Gone) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(QemuMachine::start(process, Default::default(), connection, memory_bytes(spec))))
    }
}

fn memory_bytes(spec: &MachineSpec) -> u64 {
    u64::from(spec.memory_mib) << 20
}

fn launch(platform: &Platform, spec: &MachineSpec, memory: &Path, mode: Mode) -> Result<Spawned> {
    let begun = Instant::now();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&spec.run_dir)
        .map_err(|e| Error::io(format!("make {}", spec.run_dir.display()), e))?;
    // The disk's lock comes first: a machine that is started twice must not lose its first one's control socket.
    let disk = open_disk(&spec.disk)?;
    let listener: OwnedFd = connection::listen(&spec.run_dir)?.into();
    let netns = match spec.network.as_ref().and_then(|network| network.netns.as_ref()) {
        Some(name) => {
            let path = Path::new("/run/netns").join(name);
            let file =
                std::fs::File::open(&path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
            Some(OwnedFd::from(file))
        }
        None => None,
    };
    let command = Command { platform, spec, memory, mode, control: listener.as_fd(), disk: &disk };
    let spawned = spawn(Launch {
        binary: &platform.binary,
        arguments: command.arguments(),
        directory: &spec.run_dir,
        netns,
        files: vec![listener.as_fd(), disk[0].as_fd(), disk[1].as_fd()],
    })?;
    tracing::debug!(name = spec.name, pid = spawned.process.handle().pid, took = ?begun.elapsed(), "engine process started");
    Ok(spawned)
}

/// The disk for reading and writing, and again for reading only: QEMU asks for either while it loads state, after it has
/// dropped the right to open anything itself. The lock lives in the first of the two as long as any process has it open.
fn open_disk(path: &Path) -> Result<[OwnedFd; 2]> {
    let failed = |e| Error::io(format!("open {}", path.display()), e);
    let writable = std::fs::File::options().read(true).write(true).open(path).map_err(failed)?;
    match rustix::fs::flock(&writable, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(Error::DiskInUse { path: path.to_owned() });
        }
        Err(e) => return Err(Error::io(format!("lock {}", path.display()), e)),
    }
    let readable = std::fs::File::open(path).map_err(failed)?;
    Ok([writable.into(), readable.into()])
}

/// Runs something that waits for the kernel or a disk where that holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(Error::Gone), // the runtime is shutting down
    }
}
