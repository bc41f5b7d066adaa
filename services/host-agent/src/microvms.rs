//! Every microVM this host holds, and the reports of those that have ended.

mod ended;
mod holdings;
mod tidy;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::host::v1::{HostUsage, ObservedMicrovm, RecordedMicrovm};
use api::microvm::v1::{Idleness, SnapshotCopies, TransitionCause};
use model::SnapshotNumber;
use model::ids::MicrovmId;
use tokio::sync::oneshot;

use crate::adapters::files;
use crate::adapters::journal::Tombstone;
use crate::domain::dropped::Dropped;
use crate::domain::fence::{Fence, fence, has_diverged};
use crate::domain::{HostError, LocalState, Spec};
use crate::host::Host;
use crate::microvm::{self, Command, Driver, EndOrder, First, Handle, Outcome, ResumeOrder};
use crate::wakes::Turn;
pub use ended::{EndReport, Remote, observed_end};

/// Rounds of "drop the older, start the newer" before a launch gives up.
const REPLACE_ROUNDS_MAX: usize = 3;
const MANIFEST_KEYS_MAX: usize = 1000;
/// Longest wait for microVMs to write down what they used, when the agent stops.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most microVMs that are reported as unreadable.
const UNREADABLE_MAX: usize = 100;

pub struct Microvms {
    host: Arc<Host>,
    live: Mutex<HashMap<String, Handle>>,
    ended: Mutex<HashMap<String, EndReport>>,
    dropped: Mutex<Dropped>,
    draining: AtomicBool,
}

impl Microvms {
    /// No microVMs yet, and the reports of ends that an earlier agent left.
    pub fn open(host: Arc<Host>) -> Arc<Self> {
        let mut ended = HashMap::new();
        if let Ok(entries) = std::fs::read_dir(host.data.ended()) {
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                match (name.parse::<MicrovmId>(), Tombstone::read(&path)) {
                    (Ok(id), Ok(Some(tombstone))) => {
                        ended.insert(id.to_string(), EndReport::unknown(tombstone));
                    }
                    (Ok(id), Err(error)) => {
                        tracing::error!(microvm = %id, %error, "the report of an end cannot be read");
                        host.data.put_aside(&path, &format!("ended-{id}"));
                    }
                    // No microVM's, or of an agent that died before it had written the report.
                    (Err(_), _) | (_, Ok(None)) => files::discard(&path),
                }
            }
        }
        Arc::new(Self {
            host,
            live: Mutex::default(),
            ended: Mutex::new(ended),
            dropped: Mutex::default(),
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
        let (handle, made) =
            self.get_or_create(spec, generation, LocalState::Launching, First::Launch(reply))?;
        if !made {
            return handle.command(Command::Launch, Some(generation)).await;
        }
        answer.await.unwrap_or_else(|_| Err(HostError::Internal("the driver is gone".to_owned())))
    }

    /// The microVM, and whether it was made by this. Looked for and made under one lock: of two commands that find none, one
    /// makes the driver of its directory and the other joins it.
    fn get_or_create(
        self: &Arc<Self>,
        spec: Spec,
        generation: u64,
        state: LocalState,
        first: First,
    ) -> Result<(Handle, bool), HostError> {
        let id = spec.id.to_string();
        let mut live = self.live();
        let held = live.get(&id).filter(|handle| handle.view.borrow().state != LocalState::Gone);
        if let Some(handle) = held {
            return Ok((handle.clone(), false));
        }
        let (driver, handle) = microvm::create(&self.host, spec, generation, state)?;
        live.insert(id, handle.clone());
        drop(live);
        self.adopt(driver, handle.clone(), first);
        Ok((handle, true))
    }

    /// Puts a microVM to sleep; answers when it is SUSPENDED.
    pub async fn suspend(&self, id: &str, generation: u64, cause: TransitionCause) -> Outcome {
        self.held(id)?.command(Command::Suspend(cause), Some(generation)).await
    }

    /// Makes a recovery point of a running microVM; answers when it is whole on the host.
    pub async fn checkpoint(&self, id: &str, generation: u64) -> Outcome {
        self.held(id)?.command(Command::Checkpoint, Some(generation)).await
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
        for _ in 0..REPLACE_ROUNDS_MAX {
            let in_s3 =
                snapshot.as_ref().is_some_and(|copies| copies.remote && !copies.manifest_key.is_empty());
            let handle = match self.get(id.as_str()) {
                Some(handle) if self.has_diverged(&handle, generation, snapshot.as_ref()) => {
                    if !in_s3 {
                        return Err(HostError::NotHere { id: id.to_string() });
                    }
                    // Dying in the middle: the next start finishes the end, and the command is repeated.
                    let order = EndOrder::discarding(format!("Replaced by generation {generation}."));
                    handle.command(Command::End(order), Some(generation)).await?;
                    continue;
                }
                Some(handle) => handle,
                None => {
                    self.refuse_ended(id.as_str(), generation)?;
                    if !in_s3 {
                        return Err(HostError::NotHere { id: id.to_string() });
                    }
                    self.host.check_room(spec.snapshot.memory_mib, 0).await?;
                    let (state, first) = (LocalState::Suspended, First::Settled);
                    self.get_or_create(spec.clone(), generation, state, first)?.0
                }
            };
            let order = Box::new(ResumeOrder { spec, snapshot });
            return handle.command(Command::Resume(Some(order), turn), Some(generation)).await;
        }
        Err(HostError::Conflict(format!("{id} is being replaced")))
    }

    /// Whether what the host holds has diverged. A wake in the microVM's own time between this look and the command starts from
    /// the snapshot that was looked at.
    fn has_diverged(&self, handle: &Handle, generation: u64, named: Option<&SnapshotCopies>) -> bool {
        let view = handle.view.borrow();
        let asleep_with = view.observed.snapshot.as_ref().filter(|_| view.state == LocalState::Suspended);
        has_diverged((view.generation, asleep_with), generation, named)
    }

    /// Ends a microVM. Repeating it succeeds.
    pub async fn terminate(&self, id: &str, generation: u64, order: EndOrder) -> Outcome {
        let id: MicrovmId = id.parse().map_err(|error| invalid("microvm_id", &error))?;
        if order.discard {
            self.note_dropped(id.as_str(), generation);
        }
        if let Some(handle) = self.get(id.as_str()) {
            let (discard, reason) = (order.discard, order.reason.clone());
            return match handle.command(Command::End(order), Some(generation)).await {
                Err(HostError::Ended { .. }) => Ok(self.gone(&id, generation, &reason, discard)),
                outcome => outcome,
            };
        }
        Ok(self.gone(&id, generation, &order.reason, order.discard))
    }

    /// Drops what sleeps here, if that is what `named` says; what an older placement has left here may go in any case.
    pub async fn give_up(&self, id: &str, generation: u64, named: SnapshotCopies) -> Outcome {
        let id: MicrovmId = id.parse().map_err(|error| invalid("microvm_id", &error))?;
        // Before it is dropped: what stays here is found here, and this is not asked.
        self.note_dropped(id.as_str(), generation);
        let gone = || Ok(self.gone(&id, generation, "", true));
        let Some(handle) = self.get(id.as_str()) else { return gone() };
        let command = if self.has_diverged(&handle, generation, Some(&named)) {
            Command::End(EndOrder::discarding(format!("Replaced by generation {generation}.")))
        } else {
            Command::GiveUp(named)
        };
        match handle.command(command, Some(generation)).await {
            Err(HostError::Ended { .. }) => gone(),
            outcome => outcome,
        }
    }

    /// Closes what the scheduler says is stale of this generation to requests, at once, and drops it: no hook. An answer that
    /// was made before a new placement here names the older one, and does not touch what that has begun. One whose record has
    /// `ended` leaves an end here, so that S3 is cleared of it.
    pub async fn drop_stale(self: Arc<Self>, id: String, generation: u64, ended: bool) {
        let Some(handle) = self.get(&id) else { return };
        tracing::info!(microvm = id, generation, ended, "stale; dropping it");
        self.note_dropped(&id, generation);
        let order = EndOrder::discarding("The scheduler placed it elsewhere.");
        match handle.command(Command::End(order), Some(generation)).await {
            Err(error) => tracing::warn!(microvm = id, %error, "a stale microVM could not be dropped yet"),
            Ok(_) if !ended => {}
            Ok(_) => {
                let Ok(id) = id.parse() else { return };
                self.gone(&id, generation, "It has ended.", false);
                self.record_ended(id.as_str());
            }
        }
    }

    /// Closes a microVM to requests that the scheduler says is stale of this generation.
    pub fn close_stale(&self, id: &str, generation: u64) {
        if let Some(handle) = self.get(id) {
            handle.stale.fetch_max(generation, Ordering::Relaxed);
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
            .filter(|handle| {
                let view = handle.view.borrow();
                view.state != LocalState::Gone && !view.discarded
            })
            .map(Handle::observed)
            .collect();
        let ended = self.ended();
        let ends = ended.iter().filter(|(_, entry)| wanted(entry));
        all.extend(ends.map(|(id, entry)| observed_end(id, &entry.tombstone)));
        all
    }

    /// The scheduler has answered a report that named these, and its records say so much of them.
    pub fn answered(&self, observed: &[ObservedMicrovm], recorded: &[RecordedMicrovm]) {
        self.ends_known(observed);
        for one in recorded {
            if one.ended {
                self.record_ended(&one.microvm_id);
            } else if let Some(handle) = self.get(&one.microvm_id) {
                let named = SnapshotNumber::new(one.snapshot_generation, one.snapshot_sequence);
                handle.recorded(one.generation, named);
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
        let unreadable_microvm_ids = self.host.data.unreadable(UNREADABLE_MAX);
        self.host.metrics.unreadable(unreadable_microvm_ids.len());
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
            unreadable_microvm_ids,
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

fn invalid(field: &str, error: &model::ids::IdError) -> HostError {
    HostError::Invalid(vec![(field.to_owned(), error.to_string())])
}
