//! After a restart: what became of each microVM of the journal, and putting it
//! into a true state.
//!
//! Two steps, because slots of engines that go must not be handed out and those
//! of engines that stay must not be removed: [`survey`] looks at everything and
//! ends what must not live, then the slot pool starts, then [`recover`] builds
//! the drivers.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::ids::MicrovmId;
use tokio::sync::{mpsc, watch};

use super::core::{self, Core, Live, stop};
use super::driver::{Driver, NOTICES_MAX};
use super::end::exit_sentence;
use super::gate::{Activity, Gate};
use super::guest::{GuestConnection, connect_guest, repair_request};
use super::suspend::LocalManifest;
use super::{EndOrder, Handle, View};
use crate::adapters::files::{self, DataDirectory, MicrovmFiles};
use crate::adapters::journal::{Journal, Tombstone};
use crate::adapters::logs::Log;
use crate::domain::phase::Event;
use crate::domain::recovery::{Cause, Decision, EngineFound, SnapshotFound, decide};
use crate::domain::{Failure, Phase, Spec};
use crate::host::{Host, Template, now_ms};
use crate::resources::{EngineHeld, Resources, SlotHeld};

/// More observations than are ever published between two writes of the journal,
/// so that their numbers rise across a restart.
const OBSERVATIONS_UNSAVED_MAX: u64 = 16;
/// How long an engine whose guest has ended may take to say so.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A microVM as a restart found it.
pub struct Found {
    id: MicrovmId,
    journal: Journal,
    spec: Spec,
    machine: Option<Arc<dyn vmm::Machine>>,
    decision: Decision,
    /// How its guest had ended, when the engine could still tell.
    last_words: Option<String>,
}

/// What became of it.
pub enum Recovered {
    /// It lives or sleeps; drive it.
    Driver(Box<Driver>, Handle),
    /// It has ended; report it.
    Ended(MicrovmId, Tombstone),
    /// Nothing is left of it.
    Nothing,
}

impl Found {
    /// Name of the slot that must be kept for it.
    #[must_use]
    pub fn slot(&self, slots: &slot::PoolSettings) -> Option<String> {
        self.machine.as_ref()?;
        self.journal.slot.map(|index| slots.namespace(index))
    }

    /// Its engine, when that lives on.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.machine.as_ref().map(|machine| machine.process().pid)
    }
}

/// Looks at every journal, decides, and ends the engines that must not live.
///
/// # Errors
/// When the data directory cannot be read.
pub async fn survey(
    data: &DataDirectory,
    engine: &dyn vmm::Engine,
    template: &Template,
    slots: &slot::PoolSettings,
) -> Result<Vec<Found>, Failure> {
    let directory = data.microvms();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(|error| Failure::io(&directory, &error))? {
        let path = entry.map_err(|error| Failure::io(&directory, &error))?.path();
        match look(data, engine, template, slots, &path).await {
            Ok(Some(found)) => all.push(found),
            Ok(None) => files::discard(&path),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "not a microVM's directory; removed");
                files::discard(&path);
            }
        }
    }
    Ok(all)
}

async fn look(
    data: &DataDirectory,
    engine: &dyn vmm::Engine,
    template: &Template,
    slots: &slot::PoolSettings,
    path: &Path,
) -> Result<Option<Found>, Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id: MicrovmId = name.parse().map_err(|error| Failure::Internal(format!("{name}: {error}")))?;
    let files = data.microvm(name);
    let Some(journal) = latest_journal(&files)? else {
        return Ok(None);
    };
    let spec = journal.spec()?;
    let mut machine = None;
    if let (Some(process), Some(slot)) = (journal.process, journal.slot) {
        let size = spec.snapshot.size();
        let machine_spec =
            template.machine(name, size, &slots.namespace(slot), files.live_disk(), files.run());
        let handle = vmm::ProcessHandle { pid: process.pid, start_time: process.start_time };
        machine = engine.adopt(&machine_spec, &handle).await.unwrap_or_else(|error| {
            tracing::warn!(microvm = name, %error, "an engine could not be adopted");
            None
        });
    }
    let mut last_words = None;
    let found = match &machine {
        None => EngineFound::Dead,
        Some(machine) => match machine.status().await {
            Ok(vmm::Status::Running) => EngineFound::Running,
            Ok(vmm::Status::Paused) => EngineFound::Paused,
            _ => {
                let exited = tokio::time::timeout(EXIT_TIMEOUT, machine.exited()).await;
                last_words = exited.ok().map(|reason| exit_sentence(&reason));
                EngineFound::Dead
            }
        },
    };
    let snapshot = if journal.sequence > 0 && LocalManifest::read(&files.snapshot(journal.sequence)).is_some()
    {
        SnapshotFound::Local
    } else if journal.remote.is_some() || journal.sequence == 0 {
        // Without a sequence the host was about to fetch it from S3.
        SnapshotFound::Remote
    } else {
        SnapshotFound::Missing
    };
    let decision = decide(journal.phase, found, snapshot);
    tracing::info!(microvm = name, phase = ?journal.phase, engine = ?found, ?snapshot, ?decision, "found");
    if !matches!(decision, Decision::Adopt | Decision::ResumeInPlace)
        && let Some(machine) = machine.take()
    {
        stop(machine.as_ref()).await;
    }
    Ok(Some(Found { id, journal, spec, machine, decision, last_words }))
}

/// The journal written last: the file, or the copy in a snapshot's manifest. The
/// copy is newer when the agent died right after a suspend, and all there is when a
/// power cut damaged the file.
fn latest_journal(files: &MicrovmFiles) -> Result<Option<Journal>, Failure> {
    let copies = files.snapshot_sequences().into_iter();
    let copy = copies
        .filter_map(|sequence| LocalManifest::read(&files.snapshot(sequence))?.journal)
        .max_by_key(|journal| journal.revision);
    match (Journal::read(&files.journal()), copy) {
        (Ok(Some(journal)), Some(copy)) if copy.revision > journal.revision => Ok(Some(copy)),
        (Ok(Some(journal)), _) => Ok(Some(journal)),
        (Ok(None), copy) => Ok(copy),
        (Err(error), Some(copy)) => {
            tracing::warn!(%error, "the journal is damaged; its copy in the snapshot counts");
            Ok(Some(copy))
        }
        (Err(error), None) => Err(error),
    }
}

/// Puts a microVM into the state that was decided.
///
/// # Errors
/// When its log cannot be opened.
pub async fn recover(host: &Arc<Host>, found: Found) -> Result<Recovered, Failure> {
    let Found { id, journal, spec, machine, decision, last_words } = found;
    let (mut core, notices) = build(host, id, journal, spec)?;
    // The clock as well: after a power cut the journal may be much older than what was reported.
    core.journal.observation = (core.journal.observation + OBSERVATIONS_UNSAVED_MAX).max(now_ms());
    match decision {
        Decision::Remove => {
            files::remove(core.files.directory())?;
            return Ok(Recovered::Nothing);
        }
        Decision::ReportTerminated(cause) => return bury(&mut core, cause, last_words),
        Decision::BackToSuspended => {
            if core.journal.phase == Phase::Waking {
                core.enter(Event::IsSuspended, "");
            }
            core.remove_other_snapshots();
            clear(&mut core);
        }
        Decision::Adopt | Decision::ResumeInPlace => {
            let Some(machine) = machine else {
                return bury(&mut core, Cause::EngineLost, None);
            };
            if let Err(failure) = adopt(&mut core, machine, decision == Decision::ResumeInPlace).await {
                tracing::error!(microvm = %core.id, error = %failure, "a running microVM could not be kept");
                return bury(&mut core, Cause::EngineLost, None);
            }
        }
    }
    core.save_settled();
    core.publish();
    let (driver, handle) = Driver::new(core, notices);
    Ok(Recovered::Driver(Box::new(driver), handle))
}

fn clear(core: &mut Core) {
    core.journal.meter.close_engine();
    core.journal.process = None;
    core.journal.slot = None;
    files::discard(&core.files.live_disk());
    files::discard(&core.files.run());
}

fn bury(core: &mut Core, cause: Cause, last_words: Option<String>) -> Result<Recovered, Failure> {
    let reason = match cause {
        Cause::EngineLost => last_words
            .unwrap_or_else(|| "The host lost the microVM's engine while its agent was down.".to_owned()),
        Cause::SnapshotLost => "The host lost the microVM's snapshot.".to_owned(),
        Cause::EndHadBegun => core.journal.reason.clone(),
    };
    let discard = core.journal.discard;
    Ok(match core.bury(&EndOrder { reason, discard }) {
        Some(tombstone) => Recovered::Ended(core.id.clone(), tombstone),
        None => Recovered::Nothing,
    })
}

/// Takes over a running engine: its slot, its memory, its image, its link. On failure its engine has been ended.
async fn adopt(core: &mut Core, machine: Arc<dyn vmm::Machine>, paused: bool) -> Result<(), Failure> {
    core.remove_other_snapshots();
    let mut resources = Resources::new(&core.host.pool);
    resources.paths.extend([core.files.live_disk(), core.files.run()]);
    resources.engine = EngineHeld::Machine(Arc::clone(&machine));
    let adopted = match adopt_slot(core, &mut resources).await {
        Ok(dialer) => go_on(core, machine.as_ref(), &dialer, paused).await.map(|linked| (dialer, linked)),
        Err(failure) => Err(failure),
    };
    let (dialer, connection) = match adopted {
        Ok(adopted) => adopted,
        Err(failure) => {
            resources.release().await;
            return Err(failure);
        }
    };
    resources.outlive_this_process();
    let gate = Arc::new(Gate::new(dialer.clone(), core.host.config.limits.connections_per_microvm));
    let (link, pump) = core.pump(connection, dialer.clone());
    if core.journal.phase == Phase::Suspending {
        core.enter(Event::IsRunning, "");
    }
    core.idle_floor_ms = core.host.monotonic_ms();
    core.live = Some(Live { machine, resources, dialer, link, gate, sampled: Instant::now(), pump });
    core.log.append("the host-agent restarted; the microVM was not touched");
    Ok(())
}

async fn adopt_slot(core: &Core, resources: &mut Resources) -> Result<slot::Dialer, Failure> {
    let host = &core.host;
    let index = core.journal.slot.ok_or_else(|| Failure::Internal("the journal names no slot".to_owned()))?;
    let slot = host
        .pool
        .adopt(&host.config.slots.namespace(index), core.spec.egress.clone())
        .await
        .map_err(|error| Failure::Internal(Failure::chain(&error).0))?;
    let dialer = slot.dialer();
    resources.slot = SlotHeld::Taken(slot);
    resources.image = Some(host.bases.ensure(&core.spec.snapshot).await?);
    let baseline = host.baseline_mib(core.spec.snapshot.memory_mib);
    resources.memory = Some(host.capacity.reserve_adopted(u64::from(baseline)));
    Ok(dialer)
}

/// Lets a guest that stood still run on; the link that was made for it, if any.
async fn go_on(
    core: &mut Core,
    machine: &dyn vmm::Machine,
    dialer: &slot::Dialer,
    paused: bool,
) -> Result<Option<GuestConnection>, Failure> {
    if !paused {
        return Ok(None);
    }
    machine.resume().await.map_err(|error| super::start::engine_failure(&error))?;
    // It stood still while the agent was away: its clock is behind.
    core.journal.restore_count += 1;
    let repair = repair_request(&core.id, core.journal.restore_count, false)?;
    let timeout = Duration::from_millis(core.host.config.timeouts.guest_connect_ms);
    let Ok(linked) = connect_guest(dialer, timeout).await else { return Ok(None) };
    let _ = linked.link.repair_identity(repair).await;
    Ok(Some(linked))
}

/// The state of a microVM from its journal.
///
/// # Errors
/// When its log cannot be opened.
pub fn build(
    host: &Arc<Host>,
    id: MicrovmId,
    journal: Journal,
    spec: Spec,
) -> Result<(Core, mpsc::Receiver<super::core::Notice>), Failure> {
    let files = host.data.microvm(id.as_str());
    let limits = &host.config.limits;
    let log =
        Log::open(&files.logs(), limits.log_file_bytes, limits.log_bytes_per_second, journal.log_start)?;
    let (notices, receiver) = mpsc::channel(NOTICES_MAX);
    let activity = Arc::new(Activity::default());
    activity.restore(journal.meter.endpoint_bytes);
    let observed = core::observed(&id, &journal, journal.meter.endpoint_bytes);
    let view = View { phase: journal.phase, generation: journal.generation, observed, gate: None };
    let core = Core {
        host: Arc::clone(host),
        id,
        spec,
        files,
        journal,
        view: watch::Sender::new(view),
        live: None,
        activity,
        idle_floor_ms: host.monotonic_ms(),
        log: Arc::new(log),
        notices,
        upload: None,
    };
    Ok((core, receiver))
}

/// A microVM that this host has not held before.
///
/// # Errors
/// When its directory or log cannot be made.
pub fn create(
    host: &Arc<Host>,
    spec: Spec,
    generation: u64,
    phase: Phase,
) -> Result<(Driver, Handle), Failure> {
    let id = spec.id.clone();
    let files = host.data.microvm(id.as_str());
    files::remove(files.directory())?;
    files::make_directory(files.directory())?;
    let journal = Journal::new(&spec, generation, phase, now_ms());
    let (mut core, notices) = build(host, id, journal, spec)?;
    core.save()?;
    Ok(Driver::new(core, notices))
}
