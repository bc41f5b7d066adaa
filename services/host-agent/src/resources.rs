//! What one engine holds of its host, and giving it back.
//!
//! A start takes things one by one, and each step can fail. Whoever starts an engine puts what it has into a
//! [`Resources`], which gives all of it back in the one safe order: the engine first, its files with it, the slot when the
//! engine has been reaped (a process that still held the tap would keep the namespace alive), the memory last.
//!
//! An error path awaits [`Resources::release`], so that a retry finds every name free. Dropping gives back as well, for a
//! future that is dropped half-way; there the files go at once and the rest in the background. A microVM that runs
//! outlives this process: [`Resources::outlive_this_process`] makes the drop leave everything where it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::adapters::files;
use crate::adapters::image_snapshots::ImageSnapshotLease;
use crate::domain::HostError;
use crate::domain::capacity::Reservation;

/// How long work waits that nobody waits for and that would slow down the answer to whoever does.
pub const BACKGROUND_DELAY: Duration = Duration::from_millis(50);

pub struct Resources {
    pool: slot::Pool,
    pub engine: EngineHeld,
    pub slot: SlotHeld,
    /// Files and directories of this engine alone.
    pub paths: Vec<PathBuf>,
    pub memory: Option<Reservation>,
    /// Keeps the image snapshot in the cache.
    pub image: Option<ImageSnapshotLease>,
    outlives: bool,
}

#[derive(Default)]
pub enum EngineHeld {
    #[default]
    None,
    /// Waits for its state.
    Prepared(Box<dyn vmm::Prepared>),
    Machine(Arc<dyn vmm::Machine>),
}

#[derive(Default)]
pub enum SlotHeld {
    #[default]
    None,
    Reserved(slot::Reserved),
    Taken(slot::Slot),
}

impl Resources {
    pub fn new(pool: &slot::Pool) -> Self {
        Self {
            pool: pool.clone(),
            engine: EngineHeld::None,
            slot: SlotHeld::None,
            paths: Vec::new(),
            memory: None,
            image: None,
            outlives: false,
        }
    }

    /// From here on a drop leaves the engine to the next agent.
    pub fn outlive_this_process(&mut self) {
        self.outlives = true;
    }

    /// The slot of an engine made ahead.
    ///
    /// # Errors
    /// [`HostError::Internal`] when it has none: a bug.
    pub fn take_reserved(&mut self) -> Result<slot::Reserved, HostError> {
        match std::mem::take(&mut self.slot) {
            SlotHeld::Reserved(slot) => Ok(slot),
            _ => Err(HostError::Internal("an engine made ahead has no slot".to_owned())),
        }
    }

    /// The process of an engine made ahead.
    ///
    /// # Errors
    /// [`HostError::Internal`] when it has none: a bug.
    pub fn take_prepared(&mut self) -> Result<Box<dyn vmm::Prepared>, HostError> {
        match std::mem::take(&mut self.engine) {
            EngineHeld::Prepared(prepared) => Ok(prepared),
            _ => Err(HostError::Internal("an engine made ahead has no process".to_owned())),
        }
    }

    /// Ends the engine, waits until it is reaped, then gives the slot back.
    pub async fn stop_engine(&mut self) {
        stop_engine(std::mem::take(&mut self.engine)).await;
        give_slot_back(&self.pool, std::mem::take(&mut self.slot)).await;
    }

    /// Gives everything back.
    pub async fn release(mut self) {
        let paths = std::mem::take(&mut self.paths);
        // Names go while the process that holds the files does.
        let remove = files::blocking(move || {
            paths.iter().for_each(|path| files::discard(path));
            Ok(())
        });
        let (removed, ()) = tokio::join!(remove, stop_engine(std::mem::take(&mut self.engine)));
        if let Err(error) = removed {
            tracing::error!(%error, "files are left over");
        }
        give_slot_back(&self.pool, std::mem::take(&mut self.slot)).await;
        (self.memory, self.image) = (None, None);
    }
}

impl Drop for Resources {
    fn drop(&mut self) {
        let (engine, slot) = (std::mem::take(&mut self.engine), std::mem::take(&mut self.slot));
        let empty = matches!((&engine, &slot), (EngineHeld::None, SlotHeld::None));
        if self.outlives || (empty && self.paths.is_empty()) {
            return;
        }
        self.paths.iter().for_each(|path| files::discard(path));
        // Without a runtime this process is ending; the next agent's start finds and ends the engine.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (pool, rest) = (self.pool.clone(), (self.memory.take(), self.image.take()));
        runtime.spawn(async move {
            stop_engine(engine).await;
            give_slot_back(&pool, slot).await;
            drop(rest);
        });
    }
}

/// A failure to end an engine process is a bug worth shouting about.
async fn stop_engine(engine: EngineHeld) {
    let stopped = match engine {
        EngineHeld::None => Ok(()),
        EngineHeld::Prepared(prepared) => prepared.stop().await,
        EngineHeld::Machine(machine) => machine.stop().await,
    };
    if let Err(error) = stopped {
        tracing::error!(%error, "an engine process could not be ended");
    }
}

/// A slot that a microVM had goes off the caller's path: there are others ready, so that it can wait until whoever asked
/// has been answered.
async fn give_slot_back(pool: &slot::Pool, slot: SlotHeld) {
    match slot {
        SlotHeld::None => {}
        SlotHeld::Reserved(reserved) => {
            if let Err(error) = reserved.remove().await {
                tracing::error!(%error, "a slot could not be removed");
            }
        }
        SlotHeld::Taken(slot) => {
            let pool = pool.clone();
            tokio::spawn(async move {
                tokio::time::sleep(BACKGROUND_DELAY).await;
                let name = slot.name().to_owned();
                if let Err(error) = pool.recycle(slot).await {
                    tracing::error!(slot = name, %error, "a slot could not be removed");
                }
            });
        }
    }
}
