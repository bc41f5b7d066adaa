//! What one simulated host holds. Every change is a new observation; what has
//! changed since the last report goes into the next.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use api::common::v1::Metering;
use api::errors::{reason, status};
use api::host::v1::{HostUsage, ObservedMicrovm};
use api::microvm::v1::{LastTransition, MicrovmState, SnapshotCopies};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::{Cache, SLOTS};

const DISK_FREE_BYTES: u64 = 1 << 40;
const DIFFERENCE_BYTES: u64 = 8 << 20;
const CACHED_KEYS_MAX: usize = 1000;

pub struct Table {
    held: Mutex<Held>,
    cache: Cache,
    changes: watch::Sender<()>,
    launched: AtomicU64,
}

#[derive(Default)]
struct Held {
    microvms: HashMap<String, Entry>,
    unreported: HashSet<String>,
}

struct Entry {
    observed: ObservedMicrovm,
    baseline_mib: u64,
}

impl Table {
    pub fn new(cache: Cache) -> Self {
        Self { held: Mutex::default(), cache, changes: watch::Sender::new(()), launched: AtomicU64::new(0) }
    }

    pub fn launched(&self) -> u64 {
        self.launched.load(Ordering::Relaxed)
    }

    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Takes a snapshot into the caches of all hosts.
    pub fn cache(&self, manifest_key: &str) {
        self.lock_cache().insert(manifest_key.to_owned());
        self.changes.send_replace(());
    }

    /// Drops a snapshot from the caches of all hosts.
    pub fn evict(&self, manifest_key: &str) {
        self.lock_cache().remove(manifest_key);
        self.changes.send_replace(());
    }

    /// Starts a microVM. The same launch again is answered as the first was.
    pub fn launch(&self, id: &str, generation: u64, guest_mib: u32) -> Result<ObservedMicrovm, Status> {
        let mut held = self.lock();
        if let Some(entry) = held.microvms.get(id) {
            fence(&entry.observed, generation)?;
            if entry.observed.generation == generation {
                return Ok(entry.observed.clone());
            }
        }
        if held.microvms.len() >= SLOTS as usize {
            let text = "every simulated slot is taken";
            return Err(status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, text, &[]));
        }
        let observed =
            ObservedMicrovm { microvm_id: id.to_owned(), generation, ..ObservedMicrovm::default() };
        let entry = Entry {
            observed,
            // A guest's memory is four times what is accounted for.
            baseline_mib: u64::from(guest_mib) / 4,
        };
        held.microvms.insert(id.to_owned(), entry);
        self.launched.fetch_add(1, Ordering::Relaxed);
        self.change(held, id, MicrovmState::Running, "launch")
    }

    pub fn suspend(&self, id: &str, generation: u64) -> Result<ObservedMicrovm, Status> {
        let held = self.here(id, generation)?;
        self.change(held, id, MicrovmState::Suspended, "suspend")
    }

    pub fn resume(&self, id: &str, generation: u64) -> Result<ObservedMicrovm, Status> {
        let held = self.here(id, generation)?;
        self.change(held, id, MicrovmState::Running, "wake")
    }

    pub fn terminate(&self, id: &str, generation: u64) -> Result<ObservedMicrovm, Status> {
        let held = self.here(id, generation)?;
        let observed = self.change(held, id, MicrovmState::Terminated, "")?;
        self.forget(id, generation);
        Ok(observed)
    }

    /// Forgets a microVM that the scheduler says is not this host's, unless it has been placed here anew since.
    pub fn forget(&self, id: &str, generation: u64) {
        let mut held = self.lock();
        if held.microvms.get(id).is_some_and(|entry| entry.observed.generation > generation) {
            return;
        }
        held.microvms.remove(id);
        held.unreported.remove(id);
        drop(held);
        self.changes.send_replace(());
    }

    /// Everything, or what changed since the last call.
    pub fn observed(&self, complete: bool) -> Vec<ObservedMicrovm> {
        let mut held = self.lock();
        let unreported = std::mem::take(&mut held.unreported);
        let observed = |entry: &Entry| entry.observed.clone();
        if complete {
            return held.microvms.values().map(observed).collect();
        }
        let changed = unreported.iter().filter_map(|id| held.microvms.get(id));
        changed.map(observed).collect()
    }

    pub fn usage(&self) -> HostUsage {
        let cached = self.lock_cache().iter().take(CACHED_KEYS_MAX).cloned().collect();
        let held = self.lock();
        let running = held.microvms.values().filter(|entry| entry.observed.state() == MicrovmState::Running);
        let (mut count, mut memory_used_mib) = (0, 0);
        for entry in running {
            count += 1;
            memory_used_mib += entry.baseline_mib;
        }
        let suspended = u32::try_from(held.microvms.len()).unwrap_or(u32::MAX) - count;
        HostUsage {
            memory_used_mib,
            slots_used: count,
            running: count,
            suspended,
            disk_free_bytes: DISK_FREE_BYTES,
            cached_manifest_keys: cached,
            ..HostUsage::default()
        }
    }

    fn here(&self, id: &str, generation: u64) -> Result<MutexGuard<'_, Held>, Status> {
        let held = self.lock();
        match held.microvms.get(id) {
            Some(entry) => fence(&entry.observed, generation)?,
            None => {
                let text = format!("{id} is not on this host");
                return Err(status(Code::NotFound, reason::NOT_HERE, text, &[]));
            }
        }
        Ok(held)
    }

    fn change(
        &self,
        mut held: MutexGuard<'_, Held>,
        id: &str,
        state: MicrovmState,
        kind: &str,
    ) -> Result<ObservedMicrovm, Status> {
        let Some(entry) = held.microvms.get_mut(id) else {
            return Err(Status::internal("a simulated host lost a microVM"));
        };
        let observed = &mut entry.observed;
        // A command that finds its work done changes nothing.
        if observed.state() != state {
            observed.state = state.into();
            observed.state_time = Some(api::timestamp(SystemTime::now()));
            observed.observation += 1;
            observed.metering = Some(Metering::default());
            observed.last_transition = Some(LastTransition { kind: kind.to_owned(), ..Default::default() });
            if state == MicrovmState::Suspended {
                let copies = observed.snapshot.get_or_insert_with(SnapshotCopies::default);
                copies.local = true;
                copies.sequence += 1;
                copies.generation = observed.generation;
                copies.difference_bytes = DIFFERENCE_BYTES;
            }
        }
        let observed = observed.clone();
        held.unreported.insert(id.to_owned());
        drop(held);
        self.changes.send_replace(());
        Ok(observed)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_cache(&self) -> MutexGuard<'_, std::collections::BTreeSet<String>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a command that is older than what is held.
fn fence(held: &ObservedMicrovm, generation: u64) -> Result<(), Status> {
    if generation < held.generation {
        let text = format!("{} is held with a newer generation", held.microvm_id);
        return Err(status(Code::FailedPrecondition, reason::STALE_GENERATION, text, &[]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_observed_step_by_step_and_reported_once() {
        let table = Table::new(Cache::default());
        let first = table.launch("microvm-1", 2, 2048).unwrap();
        assert_eq!((first.state(), first.observation), (MicrovmState::Running, 1));
        assert_eq!(table.launch("microvm-1", 2, 2048).unwrap(), first, "the same launch again");
        assert_eq!(table.launched(), 1);
        assert_eq!(table.usage().memory_used_mib, 512);
        assert_eq!(table.observed(false), [first]);
        assert!(table.observed(false).is_empty());
        let asleep = table.suspend("microvm-1", 2).unwrap();
        assert_eq!((asleep.state(), asleep.observation), (MicrovmState::Suspended, 2));
        assert!(asleep.snapshot.is_some_and(|copies| copies.local && copies.sequence == 1));
        assert_eq!((table.usage().running, table.usage().suspended), (0, 1));
        assert_eq!(table.resume("microvm-1", 2).unwrap().observation, 3);
        assert_eq!(table.suspend("microvm-1", 1).unwrap_err().code(), Code::FailedPrecondition);
        let ended = table.terminate("microvm-1", 2).unwrap();
        assert_eq!((ended.state(), ended.observation), (MicrovmState::Terminated, 4));
        assert_eq!(table.terminate("microvm-1", 2).unwrap_err().code(), Code::NotFound);
        assert!(table.observed(true).is_empty());
    }
}
