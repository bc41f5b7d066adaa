//! A QEMU that has everything but its state.
//!
//! Its disk is open and *inactive*, as on the receiving side of a migration over shared storage: QEMU reads neither
//! content nor length until the state is loaded, because until then another host may be writing. That is why a disk may
//! be filled after the process was made.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;

use super::blocking;
use super::connection::Connection;
use super::machine::{DEVICE_STATE_BYTES_MAX, QemuMachine};
use crate::difference::Difference;
use crate::engine::{Phase, Prepared, Restored};
use crate::error::{Error, Result};
use crate::memory::GuestMemory;
use crate::process::{ProcessHandle, Spawned};

/// Loading takes a millisecond; reading a cold base from a slow disk may take longer.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct QemuPrepared {
    spawned: Spawned,
    connection: Connection,
    memory_bytes: u64,
}

impl QemuPrepared {
    pub(super) fn new(spawned: Spawned, connection: Connection, memory_bytes: u64) -> Self {
        Self { spawned, connection, memory_bytes }
    }

    /// The pages first: loading the state reads the devices' rings from memory.
    async fn apply(&self, memory_difference: &Path) -> Result<()> {
        let (pid, memory_bytes) = (self.spawned.process.handle().pid, self.memory_bytes);
        let path = memory_difference.to_owned();
        let process = self.spawned.process.clone();
        blocking(move || {
            let difference = Difference::open(&path, memory_bytes)?;
            let memory = GuestMemory::find(pid, memory_bytes)?;
            // Alive after its files were opened: they are its own and not those of a successor in its id.
            if process.has_exited() {
                return Err(Error::Gone);
            }
            difference.apply(&memory.content, memory.origin)
        })
        .await
    }

    async fn load_both(&self, device_state: &Path, memory_difference: Option<&Path>) -> Result<Vec<Phase>> {
        let mut phases = Vec::new();
        if let Some(path) = memory_difference {
            let (start, clock) = (SystemTime::now(), Instant::now());
            self.apply(path).await?;
            phases.push(Phase { name: "difference", start, duration: clock.elapsed() });
        }
        let (start, clock) = (SystemTime::now(), Instant::now());
        self.load_state(device_state).await?;
        phases.push(Phase { name: "state", start, duration: clock.elapsed() });
        Ok(phases)
    }

    async fn load_state(&self, device_state: &Path) -> Result<()> {
        let state = open_device_state(device_state)?;
        let loaded = tokio::time::timeout(LOAD_TIMEOUT, async {
            tokio::select! {
                loaded = self.connection.load(&state) => loaded,
                _ = self.spawned.process.exited() => Ok(false),
            }
        });
        match loaded.await {
            Ok(Ok(true)) => self.connection.expect_paused().await,
            // QEMU answers a state that it does not understand by leaving.
            Ok(Ok(false) | Err(Error::Gone)) => {
                self.spawned.process.stop().await?;
                Err(Error::corrupt(device_state, self.spawned.stderr.text()))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout { step: "loading device state", limit: LOAD_TIMEOUT }),
        }
    }
}

fn open_device_state(path: &Path) -> Result<File> {
    let failed = |e| Error::io(format!("read {}", path.display()), e);
    let file = File::open(path).map_err(failed)?;
    match file.metadata().map_err(failed)?.len() {
        1..=DEVICE_STATE_BYTES_MAX => Ok(file),
        bytes => Err(Error::corrupt(path, format!("device state of {bytes} bytes"))),
    }
}

#[async_trait]
impl Prepared for QemuPrepared {
    fn process(&self) -> ProcessHandle {
        self.spawned.process.handle()
    }

    async fn load(
        self: Box<Self>,
        device_state: &Path,
        memory_difference: Option<&Path>,
    ) -> Result<Restored> {
        match self.load_both(device_state, memory_difference).await {
            Ok(phases) => {
                let (process, stderr) = self.spawned.keep();
                let machine = QemuMachine::start(process, stderr, self.connection, self.memory_bytes);
                Ok(Restored { machine, phases })
            }
            Err(error) => {
                // Wait for its end, so that its disk and tap are free again when the caller hears of the failure.
                self.spawned.process.stop().await?;
                Err(error)
            }
        }
    }

    fn is_alive(&self) -> bool {
        !self.spawned.process.has_exited()
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.spawned.process.stop().await.map(drop)
    }
}
