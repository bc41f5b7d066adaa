//! A host's machine: its disk, and the engines that run on it. Both outlive the host-agent; a power cut leaves the disk, but for
//! what was written last and not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use host_agent::simulated::{Journal, Tombstone};
use tokio::time::Instant;

use super::world::lock;

/// Slots of a host: as many as there may be microVMs, so that each can be woken in the end.
pub const SLOTS: u32 = 24;

/// A guest: what its app would lose if a session got lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// Requests that it has answered.
    pub counter: u64,
    /// How long it has run: what it does by itself, it does as this grows.
    pub ran: Duration,
}

/// The process that runs one guest.
#[derive(Debug, Clone)]
pub struct Engine {
    pub slot: u32,
    /// As it was when it was paused last.
    pub guest: Guest,
    /// Since when it has run; `None` while it is paused.
    running_since: Option<Instant>,
    pub cpu_seconds: f64,
}

impl Engine {
    pub fn is_paused(&self) -> bool {
        self.running_since.is_none()
    }

    pub fn go_on(&mut self) {
        self.running_since.get_or_insert_with(Instant::now);
    }

    pub fn pause(&mut self) {
        self.guest = self.guest_now();
        self.running_since = None;
    }

    pub fn guest_now(&self) -> Guest {
        let runs = self.running_since.map_or(Duration::ZERO, |since| since.elapsed());
        Guest { ran: self.guest.ran + runs, ..self.guest.clone() }
    }
}

/// A snapshot on the disk, whole: its manifest is written last.
#[derive(Clone)]
pub struct Snapshot {
    pub generation: u64,
    pub guest: Guest,
    /// The journal in its manifest.
    pub journal: Option<Journal>,
}

/// What the disk has of one microVM.
#[derive(Clone, Default)]
pub struct Directory {
    pub journal: Option<Journal>,
    /// The journal that a power cut leaves: writes of the journal alone are not synced.
    pub synced: Option<Journal>,
    pub snapshots: BTreeMap<u64, Snapshot>,
}

#[derive(Default)]
pub struct Disk {
    pub microvms: BTreeMap<String, Directory>,
    pub ended: BTreeMap<String, Tombstone>,
    /// Writes take so many times as long.
    pub slow: u32,
    /// Of a thousand writes, how many fail.
    pub failing: u64,
}

#[derive(Default)]
pub struct Running {
    /// By process id.
    pub engines: BTreeMap<u32, Engine>,
    pub slots: BTreeSet<u32>,
    processes: u32,
}

pub struct Machine {
    pub index: usize,
    pub disk: Mutex<Disk>,
    pub running: Mutex<Running>,
    /// It never comes back, nor does its disk.
    pub gone: Mutex<bool>,
}

impl Machine {
    pub fn new(index: usize) -> Self {
        Self { index, disk: Mutex::default(), running: Mutex::default(), gone: Mutex::default() }
    }

    pub fn is_gone(&self) -> bool {
        *lock(&self.gone)
    }

    /// Starts a process for a guest, which is paused, in a slot of its own; `None` when no slot is left.
    pub fn start(&self, guest: Guest) -> Option<(u32, u32)> {
        let mut running = lock(&self.running);
        let slot = (0..SLOTS).find(|slot| !running.slots.contains(slot))?;
        running.slots.insert(slot);
        running.processes += 1;
        let process = running.processes;
        let engine = Engine { slot, guest, running_since: None, cpu_seconds: 0.0 };
        running.engines.insert(process, engine);
        Some((process, slot))
    }

    pub fn engine<T>(&self, process: u32, act: impl FnOnce(&mut Engine) -> T) -> Option<T> {
        lock(&self.running).engines.get_mut(&process).map(act)
    }

    /// Ends a process; its slot is free once it has been reaped. Returns the guest as it was then.
    pub fn stop(&self, process: u32) -> Option<Guest> {
        let mut running = lock(&self.running);
        let engine = running.engines.remove(&process)?;
        running.slots.remove(&engine.slot);
        Some(engine.guest_now())
    }

    /// The power goes: no process is left, and of the journals what was synced, or a little more.
    pub fn cut_power(&self, mut kept: impl FnMut() -> bool) {
        *lock(&self.running) = Running { processes: 1000, ..Running::default() };
        for directory in lock(&self.disk).microvms.values_mut() {
            if !kept() {
                directory.journal = directory.synced.clone();
            }
        }
        lock(&self.disk)
            .microvms
            .retain(|_, directory| directory.journal.is_some() || !directory.snapshots.is_empty());
    }
}
