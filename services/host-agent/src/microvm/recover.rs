//! After a restart: what became of each microVM of the journal, and putting it into a true state.
//!
//! Two steps, because slots of engines that go must not be handed out and those of engines that stay must not
//! be removed: [`load_journals`] looks at everything and ends what must not live, then the slot pool starts,
//! then [`recover`] builds the drivers.

use std::sync::Arc;
use std::time::Duration;

use api::microvm::v1::ActivityKind;
use model::ids::MicrovmId;

use super::core::Core;
use super::create::build;
use super::driver::Driver;
use super::end::exit_sentence;
use super::guest::{GuestConnection, connect_guest};
use super::{EndOrder, Handle};
use crate::adapters::files::{self, DataDirectory, MicrovmFiles};
use crate::adapters::journal::{Journal, Tombstone};
use crate::adapters::local_snapshot::LocalManifest;
use crate::domain::local_state::Event;
use crate::domain::recovery::{Cause, Decision, EngineFound, SnapshotFound, decide};
use crate::domain::{HostError, LocalState, Spec};
use crate::host::{Host, Template};
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

pub enum Recovered {
    /// It lives or sleeps; drive it.
    Driver(Box<Driver>, Handle),
    /// It ran, and is asleep as of its recovery point; wake it.
    WentBack(Box<Driver>, Handle),
    Ended(MicrovmId, Tombstone),
    Nothing,
}

impl Found {
    /// Name of the slot that must be kept for it.
    pub fn slot(&self, slots: &slot::PoolSettings) -> Option<String> {
        self.machine.as_ref()?;
        self.journal.slot.map(|index| slots.namespace(index))
    }

    /// Its engine, when that lives on.
    pub fn pid(&self) -> Option<u32> {
        self.machine.as_ref().map(|machine| machine.process().pid)
    }
}

/// Looks at every journal, decides, and ends the engines that must not live.
///
/// A journal that cannot be read is of no microVM that could go on: without it neither the slot nor the generation is known, so
/// that its engine can be neither reached nor fenced, and is ended with those that no journal names. Its directory is put aside,
/// because what made it unreadable may be a passing error of the disk, or an agent older than the one that wrote it. The
/// scheduler is told which these are, and keeps the record of one that sleeps.
pub async fn load_journals(
    data: &DataDirectory,
    engine: &dyn vmm::Engine,
    template: &Template,
    slots: &slot::PoolSettings,
) -> Result<Vec<Found>, HostError> {
    let directory = data.microvms();
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(|error| HostError::io(&directory, &error))? {
        let path = entry.map_err(|error| HostError::io(&directory, &error))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(id) = name.parse::<MicrovmId>() else {
            tracing::warn!(path = %path.display(), "this is no microVM's and is removed");
            files::discard(&path);
            continue;
        };
        match load_journal(data, engine, template, slots, &id).await {
            Ok(Some(found)) => all.push(found),
            Ok(None) => files::discard(&path),
            Err(error) => {
                tracing::error!(microvm = %id, %error, "a microVM cannot be recovered from its directory");
                data.put_aside(&path, id.as_str());
            }
        }
    }
    Ok(all)
}

async fn load_journal(
    data: &DataDirectory,
    engine: &dyn vmm::Engine,
    template: &Template,
    slots: &slot::PoolSettings,
    id: &MicrovmId,
) -> Result<Option<Found>, HostError> {
    let name = id.as_str();
    let files = data.microvm(name);
    let Some(mut journal) = latest_journal(&files)? else {
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
            // One that is out of space is not ours to set going before there is room; its driver sees to it.
            Ok(vmm::Status::Running | vmm::Status::OutOfSpace) => EngineFound::Running,
            Ok(vmm::Status::Paused) => EngineFound::Paused,
            _ => {
                let exited = tokio::time::timeout(EXIT_TIMEOUT, machine.exited()).await;
                last_words = exited.ok().map(|reason| exit_sentence(&reason));
                EngineFound::Dead
            }
        },
    };
    let manifest = LocalManifest::read(&files.snapshot(journal.sequence)).filter(|_| journal.sequence > 0);
    let snapshot = if let Some(manifest) = manifest {
        journal.complete(manifest.generation);
        SnapshotFound::Local
    } else if journal.remote.is_some() || journal.sequence == 0 {
        // Without a sequence the host was about to fetch it from S3.
        SnapshotFound::Remote
    } else {
        SnapshotFound::Missing
    };
    // The agent may have died on any line. When it died between a suspend's manifest and the end of the engine, the session
    // is in both; the snapshot counts, and the engine, which stood still since, must never run again. When it died before
    // the manifest, the engine is all there is, and runs on.
    let decision = decide(journal.state, found, snapshot, journal.has_points(&spec));
    tracing::info!(microvm = name, state = ?journal.state, engine = ?found, ?snapshot, ?decision, "found");
    if !matches!(decision, Decision::Adopt | Decision::ResumeInPlace)
        && let Some(machine) = machine.take()
    {
        stop(machine.as_ref()).await;
    }
    Ok(Some(Found { id: id.clone(), journal, spec, machine, decision, last_words }))
}

/// The journal written last: the file, or the copy in a snapshot's manifest. The copy is newer when the agent
/// died right after a suspend, and all there is when a power cut damaged the file. `None` when there is nothing that one could
/// be missing from: the agent died before it had written the first.
fn latest_journal(files: &MicrovmFiles) -> Result<Option<Journal>, HostError> {
    let sequences = files.snapshot_sequences();
    let copies = sequences.iter();
    let copy = copies
        .copied()
        .filter_map(|sequence| LocalManifest::read(&files.snapshot(sequence))?.journal)
        .max_by_key(|journal| journal.revision);
    match (Journal::read(&files.journal()), copy) {
        (Ok(Some(journal)), Some(copy)) if copy.revision > journal.revision => Ok(Some(copy)),
        (Ok(Some(journal)), _) => Ok(Some(journal)),
        (Ok(None), None) if !sequences.is_empty() => {
            Err(HostError::Internal(format!("{} is missing beside snapshots", files.journal().display())))
        }
        (Ok(None), copy) => Ok(copy),
        (Err(error), Some(copy)) => {
            tracing::warn!(%error, "the journal is damaged; its copy in the snapshot counts");
            Ok(Some(copy))
        }
        (Err(error), None) => Err(error),
    }
}

/// Puts a microVM into the state that was decided.
pub async fn recover(host: &Arc<Host>, found: Found) -> Result<Recovered, HostError> {
    let Found { id, journal, spec, machine, decision, last_words } = found;
    let (mut core, notices) = build(host, id, journal, spec)?;
    // The clock as well: after a power cut the journal may be much older than what was reported.
    core.journal.observation = (core.journal.observation + OBSERVATIONS_UNSAVED_MAX).max(host.now_ms());
    match decision {
        Decision::Remove => {
            files::remove(core.files.directory())?;
            return Ok(Recovered::Nothing);
        }
        Decision::ReportTerminated(cause) => return record_end(&mut core, cause, last_words),
        Decision::GoBack => {
            if !core.can_go_back() {
                return record_end(&mut core, Cause::EngineLost, last_words);
            }
            let lost =
                last_words.unwrap_or_else(|| "The engine was lost while its agent was down.".to_owned());
            core.go_back(&lost).await;
        }
        Decision::BackToSuspended => {
            if core.journal.state == LocalState::Waking {
                core.enter(Event::IsSuspended, "");
            }
            core.remove_other_snapshots();
            core.forget_engine();
        }
        Decision::Adopt | Decision::ResumeInPlace => {
            let Some(machine) = machine else {
                return record_end(&mut core, Cause::EngineLost, None);
            };
            if let Err(failure) = adopt(&mut core, machine, decision == Decision::ResumeInPlace).await {
                tracing::error!(microvm = %core.id, error = %failure, "a running microVM could not be kept");
                return record_end(&mut core, Cause::EngineLost, None);
            }
        }
    }
    core.save_settled();
    core.publish();
    let (driver, handle) = Driver::new(core, notices);
    let driver = Box::new(driver);
    Ok(match decision {
        Decision::GoBack => Recovered::WentBack(driver, handle),
        _ => Recovered::Driver(driver, handle),
    })
}

fn record_end(core: &mut Core, cause: Cause, last_words: Option<String>) -> Result<Recovered, HostError> {
    let reason = match cause {
        Cause::EngineLost => last_words
            .unwrap_or_else(|| "The host lost the microVM's engine while its agent was down.".to_owned()),
        Cause::SnapshotLost => "The host lost the microVM's snapshot.".to_owned(),
        Cause::EndHadBegun => core.journal.reason.clone(),
    };
    let discard = core.journal.discard;
    Ok(match core.record_end(&EndOrder { reason, discard }) {
        Some(tombstone) => Recovered::Ended(core.id.clone(), tombstone),
        None => Recovered::Nothing,
    })
}

/// Takes over a running engine: its slot, its memory, its image, its link. On failure its engine has been ended.
async fn adopt(core: &mut Core, machine: Arc<dyn vmm::Machine>, paused: bool) -> Result<(), HostError> {
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
    if core.journal.state == LocalState::Suspending {
        core.enter(Event::IsRunning, "");
    }
    core.activity.begin(ActivityKind::HostRestart, &core.host);
    let (uptime_ms, baseline_mib) =
        (core.host.uptime_ms(), core.host.baseline_mib(core.spec.snapshot.memory_mib));
    core.journal.meter.adopt_engine(uptime_ms, !paused, baseline_mib);
    core.live = Some(core.make_live(machine, resources, dialer, connection));
    core.log.append("the host-agent restarted; the microVM was not touched");
    Ok(())
}

async fn adopt_slot(core: &Core, resources: &mut Resources) -> Result<slot::Dialer, HostError> {
    let host = &core.host;
    let index =
        core.journal.slot.ok_or_else(|| HostError::Internal("the journal names no slot".to_owned()))?;
    let slot = host
        .pool
        .adopt(&host.config.slots.namespace(index), core.spec.egress.clone())
        .await
        .map_err(|error| HostError::Internal(HostError::chain(&error).0))?;
    let dialer = slot.dialer();
    resources.slot = SlotHeld::Taken(slot);
    resources.image = Some(host.image_snapshots.ensure(&core.spec.snapshot).await?);
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
) -> Result<Option<GuestConnection>, HostError> {
    if !paused {
        return Ok(None);
    }
    machine.resume().await.map_err(|error| super::start::engine_error(&error))?;
    // It stood still while the agent was away: its clock is behind, and nothing else is old.
    let timeout = Duration::from_millis(core.host.config.timeouts.guest_connect_ms);
    let Ok(linked) = connect_guest(dialer, timeout).await else { return Ok(None) };
    let _ = linked.link.set_clock(core.host.clock.now()).await;
    Ok(Some(linked))
}

/// A failure to end an engine process is a bug worth shouting about.
async fn stop(machine: &dyn vmm::Machine) {
    if let Err(error) = machine.stop().await {
        tracing::error!(%error, "an engine process could not be ended");
    }
}
