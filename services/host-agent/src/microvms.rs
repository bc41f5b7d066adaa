//! Every microVM this host holds, and the reports of those that have ended.

mod tidy;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::host::v1::{HostUsage, ObservedMicrovm};
use api::microvm::v1::{Idleness, MicrovmState, SnapshotCopies, TransitionCause};
use model::ids::MicrovmId;
use tokio::sync::oneshot;

use crate::adapters::files;
use crate::adapters::journal::Tombstone;
use crate::domain::fence::{Fence, fence};
use crate::domain::metering::Meter;
use crate::domain::{HostError, LocalState, Spec};
use crate::host::{Host, timestamp};
use crate::microvm::{self, Command, Driver, EndOrder, First, Handle, Outcome, ResumeOrder};
use crate::wakes::Turn;

/// Rounds of "drop the older, start the newer" before a launch gives up.
const REPLACE_ROUNDS_MAX: usize = 3;
const MANIFEST_KEYS_MAX: usize = 1000;
/// Longest wait for microVMs to write down what they used, when the agent stops.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Microvms {
    host: Arc<Host>,
    live: Mutex<HashMap<String, Handle>>,
    ended: Mutex<HashMap<String, EndReport>>,
    draining: AtomicBool,
}

struct EndReport {
    tombstone: Tombstone,
    /// True once the scheduler has answered a report that named it.
    known: bool,
    remote_done: bool,
}

impl EndReport {
    /// One that the scheduler has not been told of.
    fn unknown(tombstone: Tombstone) -> Self {
        let remote_done = tombstone.remote_prefix.is_empty();
        Self { tombstone, known: false, remote_done }
    }
}

impl Microvms {
    /// No microVMs yet, and the reports of ends that an earlier agent left.
    pub fn open(host: Arc<Host>) -> Arc<Self> {
        let mut ended = HashMap::new();
        if let Ok(entries) = std::fs::read_dir(host.data.ended()) {
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                let id = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
                match (id, Tombstone::read(&path)) {
                    (Some(id), Some(tombstone)) => drop(ended.insert(id, EndReport::unknown(tombstone))),
                    _ => files::discard(&path),
                }
            }
        }
        Arc::new(Self {
            host,
            live: Mutex::default(),
            ended: Mutex::new(ended),
            draining: AtomicBool::new(false),
        })
    }

    /// Notes what the scheduler says of the host.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// True while the host is being drained, as far as it has heard.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Drives a microVM and remembers it until it is gone.
    pub fn adopt(self: &Arc<Self>, driver: Driver, handle: Handle, first: First) {
        let id = handle.id.to_string();
        self.live().insert(id.clone(), handle.clone());
        let microvms = Arc::clone(self);
        tokio::spawn(async move {
            let tombstone = driver.drive(first).await;
            microvms.retire(&handle);
            if let Some(tombstone) = tombstone {
                microvms.remember_end(id, tombstone);
            }
            microvms.host.changed();
        });
    }

    /// Keeps the report of a microVM that has ended.
    pub fn remember_end(&self, id: String, tombstone: Tombstone) {
        self.ended().insert(id, EndReport::unknown(tombstone));
    }

    fn retire(&self, handle: &Handle) {
        let mut live = self.live();
        // A newer one with this id may have taken its place.
        if live.get(&*handle.id).is_some_and(|held| held.view.same_channel(&handle.view)) {
            live.remove(&*handle.id);
        }
    }

    /// The microVM, if the host holds it.
    pub fn get(&self, id: &str) -> Option<Handle> {
        let handle = self.live().get(id)?.clone();
        if handle.view.borrow().state == LocalState::Gone {
            self.retire(&handle);
            return None;
        }
        Some(handle)
    }

    /// Why a microVM has ended, if this host still knows.
    pub fn end_reason(&self, id: &str) -> Option<String> {
        self.ended().get(id).map(|ended| ended.tombstone.reason.clone())
    }

    /// Starts a microVM; answers when it is RUNNING.
    pub async fn launch(self: &Arc<Self>, spec: Spec, generation: u64) -> Outcome {
        let id = spec.id.clone();
        for _ in 0..REPLACE_ROUNDS_MAX {
            let Some(handle) = self.get(id.as_str()) else {
                return self.launch_new(spec, generation).await;
            };
            let held = handle.view.borrow().generation;
            match fence(held, generation) {
                Fence::Stale => {
                    return Err(HostError::StaleGeneration { held, offered: generation });
                }
                Fence::Same => return handle.command(Command::Launch, Some(generation)).await,
                Fence::Newer => {
                    let order = EndOrder::discarding(format!("Replaced by generation {generation}."));
                    handle.command(Command::End(order), Some(generation)).await?;
                }
            }
        }
        Err(HostError::Conflict(format!("{id} is being replaced")))
    }

    async fn launch_new(self: &Arc<Self>, spec: Spec, generation: u64) -> Outcome {
        let id = spec.id.clone();
        self.refuse_ended(id.as_str(), generation)?;
        self.host.check_room(spec.snapshot.memory_mib, 0).await?;
        let (reply, answer) = oneshot::channel();
        let joined = {
            let mut live = self.live();
            match live.get(id.as_str()) {
                Some(handle) => Some(handle.clone()),
                None => {
                    let (driver, handle) =
                        microvm::create(&self.host, spec, generation, LocalState::Launching)?;
                    // The lock is held, so that a second launch of this id joins this one.
                    live.insert(id.to_string(), handle.clone());
                    drop(live);
                    self.adopt(driver, handle, First::Launch(reply));
                    None
                }
            }
        };
        match joined {
            Some(handle) => handle.command(Command::Launch, Some(generation)).await,
            None => {
                answer.await.unwrap_or_else(|_| Err(HostError::Internal("the driver is gone".to_owned())))
            }
        }
    }

    /// A microVM that ended under this or a newer generation never starts again.
    fn refuse_ended(&self, id: &str, generation: u64) -> Result<(), HostError> {
        let mut ended = self.ended();
        let Some(entry) = ended.get(id) else { return Ok(()) };
        match fence(entry.tombstone.generation, generation) {
            Fence::Stale | Fence::Same => Err(HostError::Ended { reason: entry.tombstone.reason.clone() }),
            Fence::Newer => {
                ended.remove(id);
                files::discard(&self.host.data.ended().join(id));
                Ok(())
            }
        }
    }

    /// Puts a microVM to sleep; answers when it is SUSPENDED.
    pub async fn suspend(&self, id: &str, generation: u64, cause: TransitionCause) -> Outcome {
        self.held(id)?.command(Command::Suspend(cause), Some(generation)).await
    }

    /// Keeps a running microVM from falling asleep by itself for `duration` from now; `None` gives that up.
    pub async fn keep_awake(
        &self,
        id: &str,
        generation: u64,
        duration: Option<Duration>,
    ) -> Result<Option<Idleness>, HostError> {
        let handle = self.held(id)?;
        handle.command(Command::KeepAwake(duration), Some(generation)).await?;
        Ok(self.idleness_of(&handle))
    }

    /// What keeps a microVM awake and when it sleeps; `None` when it does not run.
    pub fn idleness(&self, id: &str, generation: u64) -> Result<Option<Idleness>, HostError> {
        let handle = self.held(id)?;
        let held = handle.view.borrow().generation;
        match fence(held, generation) {
            Fence::Stale => Err(HostError::StaleGeneration { held, offered: generation }),
            Fence::Same | Fence::Newer => Ok(self.idleness_of(&handle)),
        }
    }

    fn idleness_of(&self, handle: &Handle) -> Option<Idleness> {
        let running = handle.view.borrow().state == LocalState::Running;
        running.then(|| handle.activity.idleness(&handle.idle, &self.host))
    }

    /// Waits until a microVM may be woken; `None` when it is awake or about to be.
    pub async fn turn_to_wake(&self, spec: &Spec) -> Result<Option<Turn>, HostError> {
        let state = self.get(spec.id.as_str()).map(|handle| handle.view.borrow().state);
        if !matches!(state, None | Some(LocalState::Suspending | LocalState::Suspended)) {
            return Ok(None);
        }
        let turn = self.host.wakes.turn(spec.id.as_str(), &spec.image_name).await;
        turn.map(Some).map_err(|full| HostError::Capacity(full.to_string()))
    }

    /// Wakes a microVM; answers when it is RUNNING. One that this host does not
    /// hold is fetched from S3 first.
    pub async fn resume(
        self: &Arc<Self>,
        spec: Spec,
        generation: u64,
        snapshot: Option<SnapshotCopies>,
        turn: Option<Turn>,
    ) -> Outcome {
        let id = spec.id.clone();
        let handle = match self.get(id.as_str()) {
            Some(handle) => handle,
            None => {
                self.refuse_ended(id.as_str(), generation)?;
                if !snapshot.as_ref().is_some_and(|copies| copies.remote && !copies.manifest_key.is_empty()) {
                    return Err(HostError::NotHere { id: id.to_string() });
                }
                self.host.check_room(spec.snapshot.memory_mib, 0).await?;
                let (driver, handle) =
                    microvm::create(&self.host, spec.clone(), generation, LocalState::Suspended)?;
                self.adopt(driver, handle.clone(), First::Settled);
                handle
            }
        };
        handle
            .command(Command::Resume(Some(Box::new(ResumeOrder { spec, snapshot })), turn), Some(generation))
            .await
    }

    /// Ends a microVM. Repeating it succeeds.
    pub async fn terminate(&self, id: &str, generation: u64, order: EndOrder) -> Outcome {
        let id: MicrovmId = id.parse().map_err(|error| invalid("microvm_id", &error))?;
        if let Some(handle) = self.get(id.as_str()) {
            let (discard, reason) = (order.discard, order.reason.clone());
            return match handle.command(Command::End(order), Some(generation)).await {
                Err(HostError::Ended { .. }) => Ok(self.gone(&id, generation, &reason, discard)),
                outcome => outcome,
            };
        }
        Ok(self.gone(&id, generation, &order.reason, order.discard))
    }

    /// The answer for a microVM that is not here. Without `discard` what S3 has
    /// of it is removed, since no other host will do that.
    fn gone(&self, id: &MicrovmId, generation: u64, reason: &str, discard: bool) -> ObservedMicrovm {
        let mut ended = self.ended();
        if discard {
            ended.remove(id.as_str());
            files::discard(&self.host.data.ended().join(id.as_str()));
        } else if !ended.contains_key(id.as_str()) {
            let tombstone = Tombstone {
                generation,
                reason: reason.to_owned(),
                ended_ms: self.host.now_ms(),
                observation: 1,
                meter: Meter::default(),
                remote_prefix: microvm::remote_prefix(id.as_str()),
            };
            let place = self.host.data.ended().join(id.as_str());
            if let Err(error) = files::make_directory(&place).and_then(|()| tombstone.write(&place)) {
                tracing::error!(microvm = %id, %error, "an end is not recorded");
            }
            ended.insert(id.to_string(), EndReport { tombstone, known: false, remote_done: false });
        }
        match ended.get(id.as_str()) {
            Some(entry) => observed_end(id.as_str(), &entry.tombstone),
            None => ObservedMicrovm {
                microvm_id: id.to_string(),
                generation,
                state: MicrovmState::Terminated.into(),
                state_reason: reason.to_owned(),
                ..Default::default()
            },
        }
    }

    /// Drops what the scheduler says is stale: no hook, no report.
    pub async fn drop_stale(&self, id: &str) {
        if let Some(handle) = self.get(id) {
            tracing::info!(microvm = id, "stale; dropping it");
            let order = EndOrder::discarding("The scheduler placed it elsewhere.");
            if let Err(error) = handle.command(Command::End(order), None).await {
                tracing::warn!(microvm = id, %error, "a stale microVM could not be dropped yet");
            }
        } else if let Some(entry) = self.ended().get_mut(id) {
            entry.known = true;
        }
    }

    /// What is to be reported: everything held, and the ends that the scheduler does not know yet.
    pub fn unreported(&self) -> Vec<ObservedMicrovm> {
        self.observed_where(|ended| !ended.known)
    }

    /// Everything held, and every end still remembered.
    pub fn observed(&self) -> Vec<ObservedMicrovm> {
        self.observed_where(|_| true)
    }

    fn observed_where(&self, wanted: impl Fn(&EndReport) -> bool) -> Vec<ObservedMicrovm> {
        let handles: Vec<Handle> = self.live().values().cloned().collect();
        let mut all: Vec<ObservedMicrovm> = handles
            .iter()
            .filter(|handle| handle.view.borrow().state != LocalState::Gone)
            .map(Handle::observed)
            .collect();
        let ended = self.ended();
        let ends = ended.iter().filter(|(_, entry)| wanted(entry));
        all.extend(ends.map(|(id, entry)| observed_end(id, &entry.tombstone)));
        all
    }

    /// The scheduler has answered a report that named these.
    pub fn reported(&self, observed: &[ObservedMicrovm]) {
        let mut ended = self.ended();
        for one in observed.iter().filter(|one| one.state() == MicrovmState::Terminated) {
            if let Some(entry) = ended.get_mut(&one.microvm_id)
                && entry.tombstone.generation == one.generation
            {
                entry.known = true;
            }
        }
    }

    pub fn usage(&self) -> HostUsage {
        let (mut running, mut suspended) = (0, 0);
        for handle in self.live().values() {
            match handle.view.borrow().state {
                LocalState::Suspended => suspended += 1,
                LocalState::Gone => {}
                _ => running += 1,
            }
        }
        let engines_ahead = self.host.ahead.count();
        let (_, slots_taken) = self.host.pool.counts();
        // Engines that only wait make room for microVMs.
        let slots_used = slots_taken.saturating_sub(engines_ahead);
        self.host.metrics.wakes_wait(self.host.wakes.waiting());
        self.host.metrics.holds(running, suspended, self.host.capacity.used_mib(), engines_ahead);
        let disk = self.host.disk.report();
        HostUsage {
            memory_used_mib: self.host.capacity.used_mib(),
            slots_used: u32::try_from(slots_used).unwrap_or(u32::MAX),
            running,
            suspended,
            disk_free_bytes: disk.free,
            disk_capacity_bytes: disk.capacity,
            disk_reserved_bytes: disk.reserved,
            disk_short: disk.short,
            cached_manifest_keys: self.host.image_snapshots.manifest_keys(MANIFEST_KEYS_MAX),
        }
    }

    /// Has every running microVM's use written down: the agent stops. What does not answer in time is as after a crash.
    pub async fn save_meters(&self) {
        let handles: Vec<Handle> = self.live().values().cloned().collect();
        let saves = handles.iter().map(|handle| handle.command(Command::Save, None));
        if tokio::time::timeout(SAVE_TIMEOUT, futures::future::join_all(saves)).await.is_err() {
            tracing::warn!("not every microVM's use was written down");
        }
    }

    /// True when no transition is under way.
    pub fn is_settled(&self) -> bool {
        self.live().values().all(|handle| handle.view.borrow().state.is_settled())
    }

    fn held(&self, id: &str) -> Result<Handle, HostError> {
        if let Some(handle) = self.get(id) {
            return Ok(handle);
        }
        match self.end_reason(id) {
            Some(reason) => Err(HostError::Ended { reason }),
            None => Err(HostError::NotHere { id: id.to_owned() }),
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> MutexGuard<'_, HashMap<String, EndReport>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn observed_end(id: &str, tombstone: &Tombstone) -> ObservedMicrovm {
    ObservedMicrovm {
        microvm_id: id.to_owned(),
        generation: tombstone.generation,
        state: MicrovmState::Terminated.into(),
        state_reason: tombstone.reason.clone(),
        state_time: Some(timestamp(tombstone.ended_ms)),
        observation: tombstone.observation,
        metering: Some(microvm::metering(&tombstone.meter, tombstone.meter.endpoint_bytes)),
        ..Default::default()
    }
}

fn invalid(field: &str, error: &model::ids::IdError) -> HostError {
    HostError::Invalid(vec![(field.to_owned(), error.to_string())])
}
