//! One running QEMU.
//!
//! A task per machine watches for its end, so that the reason is known even when nobody waits yet. It ends with the last
//! handle of the machine, which closes the control connection and leaves the process alone.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use tokio_util::task::AbortOnDropHandle;

use super::blocking;
use super::command::CONSOLE_BYTES;
use super::connection::Connection;
use super::exit;
use crate::difference;
use crate::engine::{DifferenceStats, ExitReason, Machine, Phase, Status, Usage};
use crate::error::{Error, Result};
use crate::memory::GuestMemory;
use crate::process::{Process, ProcessHandle, Stderr};

/// Device state takes some ten KiB; a file much larger is not device state.
pub(super) const DEVICE_STATE_BYTES_MAX: u64 = 16 << 20;
/// How long the end of a console may keep a dead machine around.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct QemuMachine {
    inner: Arc<Inner>,
    exit: watch::Receiver<Option<ExitReason>>,
    _watcher: AbortOnDropHandle<()>,
}

struct Inner {
    process: Arc<Process>,
    stderr: Stderr,
    connection: Connection,
    memory_bytes: u64,
    /// Held while the guest is started, stopped or saved: a save never sees a guest that moves.
    standing: Arc<Mutex<()>>,
    /// The console so far; the ring forgets what was read.
    console: Mutex<Vec<u8>>,
}

impl QemuMachine {
    /// Starts watching a process that has been set going.
    pub(super) fn start(
        process: Arc<Process>,
        stderr: Stderr,
        connection: Connection,
        memory_bytes: u64,
    ) -> Arc<dyn Machine> {
        let inner = Arc::new(Inner {
            process,
            stderr,
            connection,
            memory_bytes,
            standing: Arc::default(),
            console: Mutex::default(),
        });
        let (sender, exit) = watch::channel(None);
        let watched = inner.clone();
        let watcher = tokio::spawn(async move {
            let reason = watched.watch().await;
            sender.send_replace(Some(reason));
        });
        Arc::new(Self { inner, exit, _watcher: AbortOnDropHandle::new(watcher) })
    }
}

impl Inner {
    /// Waits for the end of the guest or of the process, and sees to it that both are over.
    async fn watch(&self) -> ExitReason {
        let mut observed = self.connection.observed();
        let mut shutdown = tokio::select! {
            seen = observed.wait_for(|seen| seen.shutdown.is_some()) => seen.ok().and_then(|seen| seen.shutdown),
            _ = self.process.exited() => None,
        };
        // The event may have come together with the exit.
        shutdown = shutdown.or_else(|| observed.borrow().shutdown);
        let Some(shutdown) = shutdown else {
            return self.process_reason().await;
        };
        let console = tokio::time::timeout(LAST_WORDS_TIMEOUT, self.console()).await;
        let console = console.unwrap_or(Ok(String::new())).unwrap_or_default();
        match shutdown.reason(&console) {
            Some(reason) => {
                // The guest is over; QEMU only waited for its console to be read.
                self.process.kill();
                self.process.exited().await;
                reason
            }
            None => self.process_reason().await,
        }
    }

    async fn process_reason(&self) -> ExitReason {
        let exit = self.process.exited().await;
        exit::of_process(exit, self.stderr.text())
    }

    async fn console(&self) -> Result<String> {
        let mut kept = self.console.lock().await;
        match self.connection.read_console().await {
            Ok(news) => {
                kept.extend_from_slice(&news);
                let surplus = kept.len().saturating_sub(CONSOLE_BYTES);
                kept.drain(..surplus);
            }
            Err(Error::Gone) => {} // then what was read before is all there is
            Err(error) => return Err(error),
        }
        Ok(String::from_utf8_lossy(&kept).into_owned())
    }

    /// Has QEMU write its state to a file in memory: then it is our own writing that may find the disk full, and QEMU
    /// needs no right to the target.
    async fn device_state(&self) -> Result<File> {
        let memory = rustix::fs::memfd_create("device-state", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| Error::io("make a file in memory", e))?;
        let file = File::from(memory);
        // QEMU takes a file only if it was opened exactly as it would have opened it: for writing alone.
        let for_writing = File::options().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let for_writing = for_writing.map_err(|e| Error::io("open a file in memory", e))?;
        self.connection.save(&for_writing).await?;
        Ok(file)
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn process(&self) -> ProcessHandle {
        self.inner.process.handle()
    }

    async fn status(&self) -> Result<Status> {
        if self.exit.borrow().is_some() || self.inner.process.has_exited() {
            return Ok(Status::Ended);
        }
        match self.inner.connection.status().await {
            Err(Error::Gone) => Ok(Status::Ended),
            other => other,
        }
    }

    async fn out_of_space(&self) {
        self.inner.connection.out_of_space().await;
    }

    async fn pause(&self) -> Result<()> {
        let _standing = self.inner.standing.lock().await;
        self.inner.connection.pause().await
    }

    async fn resume(&self) -> Result<()> {
        let _standing = self.inner.standing.lock().await;
        self.inner.connection.resume().await
    }

    async fn save_device_state(&self, device_state: &Path) -> Result<()> {
        let standing = self.inner.standing.clone().lock_owned().await;
        self.inner.connection.expect_paused().await?;
        let state = self.inner.device_state().await?;
        let path = device_state.to_owned();
        blocking(move || {
            let _standing = standing;
            write_device_state(state, &path, true)
        })
        .await
    }

    async fn save_difference(
        &self,
        device_state: &Path,
        memory_difference: &Path,
    ) -> Result<DifferenceStats> {
        let standing = self.inner.standing.clone().lock_owned().await;
        self.inner.connection.expect_paused().await?;
        // Devices first: saving them may still write to guest memory.
        let (start, clock) = (SystemTime::now(), Instant::now());
        let state = self.inner.device_state().await?;
        let device = Phase { name: "device", start, duration: clock.elapsed() };

        let process = self.inner.process.clone();
        let memory_bytes = self.inner.memory_bytes;
        let (state_path, path) = (device_state.to_owned(), memory_difference.to_owned());
        let mut stats = blocking(move || {
            // Held by the work itself: it goes on when our caller gives up, and until it is done the guest stands.
            let _standing = standing;
            let saved = std::thread::scope(|scope| {
                let state = scope.spawn(|| write_device_state(state, &state_path, false));
                let memory = save_memory(&process, memory_bytes, &path);
                let state = state.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                memory.and_then(|stats| state.map(|()| stats))
            });
            if saved.is_err() {
                // One without the other is of no use, and the room may be needed.
                let _ = std::fs::remove_file(&state_path);
                let _ = std::fs::remove_file(&path);
            }
            saved
        })
        .await?;
        stats.phases.insert(0, device);
        Ok(stats)
    }

    async fn console(&self) -> Result<String> {
        self.inner.console().await
    }

    async fn stop(&self) -> Result<()> {
        self.inner.process.stop().await.map(drop)
    }

    async fn exited(&self) -> ExitReason {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(ExitReason::Failed { code: None, message: String::new() }),
            // The watcher only goes away with the runtime.
            Err(_) => ExitReason::Failed { code: None, message: "nobody watches any more".into() },
        }
    }

    fn usage(&self) -> Result<Usage> {
        self.inner.process.usage()
    }
}

fn save_memory(process: &Process, memory_bytes: u64, path: &Path) -> Result<DifferenceStats> {
    let (start, clock) = (SystemTime::now(), Instant::now());
    let memory = GuestMemory::find(process.handle().pid, memory_bytes)?;
    // The process was alive after its files were opened, so they are its own.
    if process.has_exited() {
        return Err(Error::Gone);
    }
    let changed = memory.changed()?;
    let scan = Phase { name: "scan", start, duration: clock.elapsed() };
    let written = difference::write(path, &memory, memory_bytes, &changed)?;
    // Pages are read by the process's id. It is alive after that, too: the id was its own all the time.
    if !memory.is_there() {
        return Err(Error::Gone);
    }
    let phases = vec![scan, written.copy];
    Ok(DifferenceStats { bytes: written.bytes, pages: written.pages, zero_pages: written.zero_pages, phases })
}

/// If we die on the way, the file is cut short; nothing names it before both files are whole.
fn write_device_state(mut state: File, path: &Path, synced: bool) -> Result<()> {
    let bytes = state.metadata().map_err(|e| Error::io("read device state", e))?.len();
    if bytes == 0 || bytes > DEVICE_STATE_BYTES_MAX {
        return Err(Error::Protocol(format!("device state of {bytes} bytes")));
    }
    let mut write = || -> std::io::Result<()> {
        state.rewind()?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        std::io::copy(&mut (&mut state).take(bytes), &mut file)?;
        if synced { file.sync_all() } else { Ok(()) }
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(path);
        Error::writing(path, e)
    })
}
