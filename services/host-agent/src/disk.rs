//! The host's disk: how much room there is, what is kept of it for suspends, and who is turned away.
//!
//! A host that is short of disk takes nothing new: no launch, no bake, no microVM from elsewhere. It lets go of image
//! snapshots that nobody needs, and goes on with what it has: what sleeps here wakes, and what runs is put to sleep out of the
//! reserve. Guests that write all the same meet a full disk, stand still, and go on when there is room (`microvm::space`).
//!
//! Nothing here is written down but the reserve file, whose length is all there is to know.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::adapters::files::{self, DataDirectory};
use crate::adapters::volume::{ReserveFile, Space, Volume};
use crate::config::DiskSettings;
use crate::domain::HostError;
use crate::domain::capacity::Capacity;
use crate::domain::disk::{Budget, Situation, Wants, decide};
use crate::host::Host;

/// How often the room is looked at, and the reserve brought to its size. Guests fill what is free meanwhile, and where the
/// disk beneath has less than the file system believes, some of what is left to others there.
const INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two trims of a file system whose disk beneath is short.
const TRIM_PAUSE: Duration = Duration::from_secs(60);
/// Free bytes with which a guest that stands still goes on, unless less than that is the least that is to be free.
const GO_ON_BYTES: u64 = 32 << 20;
/// What is kept when nothing runs, for what may wake.
const RESERVE_BYTES_MIN: u64 = 256 << 20;
/// What a transition writes beside the snapshot: journal, manifest, a line of the log.
const BOOKKEEPING_BYTES: u64 = 16 << 20;

/// The room on the data directory's file system.
pub struct Disk {
    volume: Volume,
    settings: DiskSettings,
    memory: Capacity,
    state: Mutex<State>,
    short: AtomicBool,
}

struct State {
    file: ReserveFile,
    /// The part of the file that is for suspends.
    kept: u64,
    /// What suspends under way have been given.
    claimed: u64,
}

/// Room that a transition may use; given back when dropped.
pub struct Claim {
    disk: Arc<Disk>,
    bytes: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.disk.state().claimed -= self.bytes;
    }
}

/// What is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Bytes that the host has for itself: taken, free and reserved.
    pub capacity: u64,
    pub free: u64,
    pub reserved: u64,
    /// Nothing new is taken.
    pub short: bool,
}

impl Disk {
    /// The disk of the data directory, with the reserve that an earlier agent left.
    pub fn open(data: &DataDirectory, settings: DiskSettings, memory: Capacity) -> Arc<Self> {
        let file = ReserveFile::open(data.reserve());
        let kept = file.bytes();
        let state = Mutex::new(State { file, kept, claimed: 0 });
        let volume = Volume::of(data.root());
        Arc::new(Self { volume, settings, memory, state, short: AtomicBool::new(false) })
    }

    /// What there is, for the scheduler and for people.
    pub fn report(&self) -> Report {
        let state = self.state();
        let Ok((space, budget)) = self.look(&state, 0, 0) else { return Report::unknown() };
        let taken = space.capacity.saturating_sub(space.available + state.file.bytes());
        Report {
            capacity: taken + budget.free + budget.reserve,
            free: budget.free,
            reserved: budget.reserve,
            short: budget.lacking > 0,
        }
    }

    /// Bytes that lack before something new may begin that has so much baseline memory and writes so many `bytes` at once; 0
    /// when it may.
    fn lacking(&self, memory_mib: u64, bytes: u64) -> Result<u64, HostError> {
        Ok(self.look(&self.state(), memory_mib, bytes)?.1.lacking)
    }

    /// Whether a guest that stands still may go on.
    pub fn has_room(&self) -> bool {
        let looked = self.look(&self.state(), 0, 0);
        looked.is_ok_and(|(space, budget)| budget.free >= GO_ON_BYTES.min(self.free_min(&space)))
    }

    /// Makes room for a transition that writes `bytes` beside its bookkeeping, out of the reserve as far as it has to. There
    /// may be less in the end: then the write says so.
    pub async fn claim(self: &Arc<Self>, bytes: u64) -> Claim {
        let bytes = bytes + BOOKKEEPING_BYTES;
        self.state().claimed += bytes;
        let claim = Claim { disk: Arc::clone(self), bytes };
        if self.volume.space().is_ok_and(|space| space.available < bytes) {
            let disk = Arc::clone(self);
            if let Err(error) = files::blocking(move || disk.use_reserve(bytes)).await {
                tracing::error!(%error, "the reserve could not be used");
            }
        }
        claim
    }

    /// Room for a transition that writes `bytes` beside its bookkeeping to `path`, of what is free and not out of the reserve.
    ///
    /// # Errors
    /// DISK_FULL when there is too little.
    pub fn claim_beside_reserve(self: &Arc<Self>, bytes: u64, path: &Path) -> Result<Claim, HostError> {
        let bytes = bytes + BOOKKEEPING_BYTES;
        let mut state = self.state();
        let (_, budget) = self.look(&state, 0, 0)?;
        if budget.free < bytes {
            let limit = format!("{} MiB free beside the reserve for suspends", budget.free >> 20);
            return Err(HostError::DiskFull { path: path.display().to_string(), limit });
        }
        state.claimed += bytes;
        Ok(Claim { disk: Arc::clone(self), bytes })
    }

    /// Not out of what is absent: the disk beneath does not have it.
    fn use_reserve(&self, bytes: u64) -> Result<(), HostError> {
        let mut state = self.state();
        let held = state.kept.min(state.file.bytes());
        let used = bytes.saturating_sub(self.volume.space()?.available).min(held);
        if used == 0 {
            return Ok(());
        }
        tracing::warn!(bytes = used, "the disk is full; using the reserve");
        let left = state.file.bytes() - used;
        state.file.resize(left)?;
        state.kept = held - used;
        Ok(())
    }

    /// Brings the reserve file to its size. Returns how many bytes lack.
    fn settle(&self) -> Result<u64, HostError> {
        let mut state = self.state();
        let (_, budget) = self.look(&state, 0, 0)?;
        if budget.file != state.file.bytes()
            && let Err(error) = state.file.resize(budget.file)
        {
            // Guests were faster; the next look finds less.
            tracing::debug!(%error, bytes = budget.file, "the reserve could not be resized");
        }
        state.kept = budget.reserve.min(state.file.bytes());
        Ok(budget.lacking)
    }

    fn look(&self, state: &State, more_mib: u64, more: u64) -> Result<(Space, Budget), HostError> {
        let space = self.volume.space()?;
        let of_ours = |bytes: u64| {
            bytes.saturating_sub(self.settings.left_to_others_bytes) / u64::from(self.settings.shared_by)
        };
        let situation = Situation {
            // Without a disk beneath, what is shared is this file system.
            available: if self.volume.is_in_a_file() { space.available } else { of_ours(space.available) },
            held: state.file.bytes(),
            beneath: space.beneath.map(of_ours),
        };
        let memory = (self.memory.used_mib() + more_mib) << 20;
        let reserve = percent(memory, self.settings.reserve_percent).max(RESERVE_BYTES_MIN);
        let wants = Wants {
            reserve: reserve.min(percent(space.capacity, self.settings.reserve_percent_max)),
            free_min: self.free_min(&space) + more,
            claimed: state.claimed,
        };
        Ok((space, decide(&situation, state.kept, &wants)))
    }

    fn free_min(&self, space: &Space) -> u64 {
        percent(space.capacity, self.settings.free_percent_min)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    /// A file system that does not answer has no room.
    fn unknown() -> Self {
        Self { capacity: 0, free: 0, reserved: 0, short: true }
    }
}

fn percent(bytes: u64, percent: u32) -> u64 {
    bytes / 100 * u64::from(percent)
}

impl Host {
    /// Turns away something new with a guest of `memory_mib`, that writes so many `bytes` at once, when the host is short of
    /// room; image snapshots that nobody needs go first.
    pub async fn check_room(&self, memory_mib: u32, bytes: u64) -> Result<(), HostError> {
        let baseline = u64::from(self.baseline_mib(memory_mib));
        let mut lacking = self.disk.lacking(baseline, bytes)?;
        while lacking > 0 {
            // The file system may take its time to count what is freed.
            let Some(freed) = self.let_go_of_an_image().await else {
                return Err(HostError::Capacity(format!(
                    "the host's disk has no room for anything new: {} MiB lack (limits: disk.free_percent_min, \
                     disk.reserve_percent)",
                    (lacking >> 20).max(1)
                )));
            };
            lacking = lacking.saturating_sub(freed);
        }
        Ok(())
    }

    /// Removes the image snapshot that was used longest ago, of those that no microVM here needs. Returns the bytes it took;
    /// `None` when there is none.
    async fn let_go_of_an_image(&self) -> Option<u64> {
        let cache = self.image_snapshots.clone();
        let freed = files::blocking(move || Ok(cache.let_go())).await.ok()??;
        // Engines made of it hold its files.
        self.ahead.forget_evicted(self).await;
        self.changed();
        Some(freed)
    }

    async fn keep_room_once(&self) -> Result<(), HostError> {
        let lacking = self.disk.settle()?;
        let short = lacking > 0;
        if short {
            // One at a time: by the next look its bytes are counted as free.
            self.let_go_of_an_image().await;
        }
        if self.disk.short.swap(short, Ordering::Relaxed) != short {
            let Report { capacity, free, reserved, .. } = self.disk.report();
            if short {
                tracing::error!(
                    lacking,
                    free,
                    reserved,
                    capacity,
                    "the host is short of disk and takes nothing new"
                );
            } else {
                tracing::info!(free, reserved, capacity, "the disk has room again");
            }
            self.changed();
        }
        Ok(())
    }
}

/// Keeps the reserve, lets go of images when the host is short of disk, and gives what is free back to the disk beneath. Runs until it is
/// dropped.
pub async fn keep_room(host: Arc<Host>) {
    tokio::join!(keep_reserve(&host), keep_trimmed(&host));
}

async fn keep_reserve(host: &Host) {
    let mut failed = false;
    loop {
        match host.keep_room_once().await {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(%error, "the room on the disk is not kept");
            }
            Err(_) => {}
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Only where the file system is in a file: of a real disk the system's own timer takes care, if it wants any.
async fn keep_trimmed(host: &Host) {
    let disk = &host.disk;
    if !disk.volume.is_in_a_file() {
        return;
    }
    let interval = Duration::from_secs(disk.settings.trim_interval_seconds);
    let mut trimmed = Instant::now();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let short = disk.short.load(Ordering::Relaxed);
        if trimmed.elapsed() < if short { TRIM_PAUSE.min(interval) } else { interval } {
            continue;
        }
        if let Err(error) = disk.volume.trim().await {
            tracing::warn!(%error, "free room is not given back to the disk beneath");
        }
        trimmed = Instant::now();
    }
}
