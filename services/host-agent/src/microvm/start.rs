//! Bringing a guest up from a snapshot, the same for launch and wake: slot, disk, engine, identity, hook.
//!
//! What fails gives everything back before it is reported, so that the next attempt finds every name free: the driver
//! keeps a microVM whose wake failed, and the next request wakes it again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::microvm::v1::ActivityKind;
use tokio_util::sync::CancellationToken;

use super::core::{Core, Live};
use super::guest::{GuestConnection, Restore, call_hook, connect_guest, link_error, repair_request};
use crate::adapters::image_snapshots::ImageSnapshotLease;
use crate::adapters::{files, journal};
use crate::domain::HostError;
use crate::domain::capacity::Reservation;
use crate::domain::hooks::Hook;
use crate::engines_ahead;
use crate::failpoint;
use crate::resources::{EngineHeld, Resources, SlotHeld};
use crate::stopwatch::Stopwatch;
use crate::wakes::Turn;

pub struct Plan {
    pub restore: Restore,
    pub base: ImageSnapshotLease,
    pub device_state: PathBuf,
    /// What the microVM has beyond the image, on a wake.
    pub own: Option<OwnState>,
    /// Hook to call last, with its body.
    pub hook: Option<(Hook, String)>,
    /// Of a wake; given back before the hook, whose time is the app's own.
    pub turn: Option<Turn>,
    /// Where it was taken before something long.
    pub memory: Option<Reservation>,
}

/// What a microVM that sleeps has beyond its image.
pub struct OwnState {
    /// Its disk, to share extents with.
    pub disk: PathBuf,
    /// Memory pages that differ from the image's.
    pub memory_difference: PathBuf,
}

/// A restored engine and what it holds, before its guest is known to be well.
struct Restored {
    machine: Arc<dyn vmm::Machine>,
    resources: Resources,
    slot: u32,
    dialer: slot::Dialer,
}

impl Core {
    /// Brings the guest up. On success the caller still has to journal RUNNING
    /// and open the gate by publishing; on failure nothing is left.
    pub async fn start(
        &mut self,
        watch: &Stopwatch,
        mut plan: Plan,
        cancel: &CancellationToken,
    ) -> Result<Live, HostError> {
        let turn = plan.turn.take();
        let host = Arc::clone(&self.host);
        let _under_way = host.ahead.starting();
        let (hook, restore) = (plan.hook.clone(), plan.restore);
        let restored = self.restore_guest(watch, plan).await?;
        failpoint::hit(if restore == Restore::First { "launch-restored" } else { "wake-restored" });
        // Before the guest runs and looks for its peers.
        self.asleep.thaw(&self.id, &restored.dialer).await;
        let repaired = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(HostError::terminating()),
            reason = restored.machine.exited() => Err(HostError::Engine(format!(
                "the engine ended while the guest was starting: {}",
                super::end::exit_sentence(&reason),
            ))),
            // Elsewhere it may have room; here it would stand still before anybody could use it.
            () = restored.machine.out_of_space() => Err(HostError::disk_full(&self.files.live_disk())),
            repaired = self.repair_guest(watch, &restored, hook, (restore, turn)) => repaired,
        };
        match repaired {
            Ok(connection) => {
                let Restored { machine, resources, slot, dialer } = restored;
                self.journal.process = Some(process(machine.as_ref()));
                self.journal.slot = Some(slot);
                self.journal.meter.begin_engine(self.host.uptime_ms());
                self.activity.begin(ActivityKind::Start, &self.host);
                Ok(self.make_live(machine, resources, dialer, Some(connection)))
            }
            Err(failure) => {
                restored.resources.release().await;
                Err(failure)
            }
        }
    }

    /// Returns with the state loaded and the guest standing still. Whatever is taken on the way is in the resources, so
    /// that one place gives it back.
    async fn restore_guest(&mut self, watch: &Stopwatch, mut plan: Plan) -> Result<Restored, HostError> {
        let snapshot = &self.spec.snapshot;
        // Memory first: making room may give back the very engine that would be taken next, and then a new process is as
        // good. The other way round a full host would refuse a launch while it holds engines for it.
        let memory = match plan.memory.take() {
            Some(memory) => memory,
            None => self.host.reserve_memory(snapshot.memory_mib).await?,
        };
        let ahead = self.host.ahead.take(plan.base.digest(), snapshot.size());
        let (mut resources, made_in) = match ahead {
            Some(engine) => engine.into_parts(),
            None => (Resources::new(&self.host.pool), None),
        };
        resources.memory = Some(memory);
        resources.paths.extend([self.files.live_disk(), self.files.run()]);
        let restored = match made_in {
            Some(directory) => self.restore_in_waiting(watch, &mut resources, directory, &plan).await,
            None => self.restore_in_new(watch, &mut resources, &plan).await,
        };
        resources.image = Some(plan.base);
        let restored = match (restored, &resources.slot) {
            (Ok(restored), SlotHeld::Taken(slot)) => Ok((restored, slot.index(), slot.dialer())),
            (Ok(_), _) => Err(HostError::Internal("an engine without a slot".to_owned())),
            (Err(failure), _) => Err(failure),
        };
        match restored {
            Ok((restored, slot, dialer)) => {
                let machine = restored.machine;
                resources.engine = EngineHeld::Machine(Arc::clone(&machine));
                Ok(Restored { machine, resources, slot, dialer })
            }
            Err(failure) => {
                resources.release().await;
                Err(failure)
            }
        }
    }

    /// In an engine that was made ahead: its slot gets this microVM's rules, its files this microVM's names, and on a wake
    /// its disk this microVM's content. The engine has not read the disk yet.
    async fn restore_in_waiting(
        &self,
        watch: &Stopwatch,
        resources: &mut Resources,
        directory: PathBuf,
        plan: &Plan,
    ) -> Result<vmm::Restored, HostError> {
        let slot = resources.take_reserved()?;
        let opened = watch.phase("slot", self.host.pool.open(slot, self.spec.egress.clone())).await;
        let slot = opened.map_err(|error| HostError::Capacity(HostError::chain(&error).0))?;
        resources.slot = SlotHeld::Taken(slot);
        let (files, content) = (self.files.clone(), plan.own.as_ref().map(|own| own.disk.clone()));
        let disk = files::blocking(move || engines_ahead::move_files(&directory, &files, content.as_deref()));
        watch.phase("disk", disk).await?;
        let prepared = resources.take_prepared()?;
        let difference = plan.own.as_ref().map(|own| own.memory_difference.as_path());
        timed_restore(watch, prepared.load(&plan.device_state, difference)).await
    }

    /// In a process started for it, after disk and slot, which are had side by side.
    async fn restore_in_new(
        &self,
        watch: &Stopwatch,
        resources: &mut Resources,
        plan: &Plan,
    ) -> Result<vmm::Restored, HostError> {
        let from = plan.own.as_ref().map_or_else(|| plan.base.disk(), |own| own.disk.clone());
        let (to, run) = (self.files.live_disk(), self.files.run());
        let disk = watch.phase(
            "disk",
            files::blocking(move || {
                files::remove(&run)?;
                files::make_directory(&run)?;
                clone_disk(&from, &to)
            }),
        );
        let slot = watch.phase("slot", self.host.take_slot(self.spec.egress.clone()));
        let (disk, slot) = tokio::join!(disk, slot);
        let slot = slot.map(|slot| {
            let netns = slot.name().to_owned();
            resources.slot = SlotHeld::Taken(slot);
            netns
        });
        disk?;
        let spec = self.machine_spec(&slot?);
        let from = vmm::RestoreSpec {
            base_memory: plan.base.memory(),
            device_state: plan.device_state.clone(),
            memory_difference: plan.own.as_ref().map(|own| own.memory_difference.clone()),
        };
        timed_restore(watch, self.host.engine.restore(&spec, &from)).await
    }

    /// Lets the guest run, gives it its identity, calls its hook.
    async fn repair_guest(
        &self,
        watch: &Stopwatch,
        restored: &Restored,
        hook: Option<(Hook, String)>,
        (restore, turn): (Restore, Option<Turn>),
    ) -> Result<GuestConnection, HostError> {
        let timeouts = &self.host.config.timeouts;
        let repair = repair_request(&self.id, self.journal.restore_count, restore)?;
        watch.phase("resume", restored.machine.resume()).await.map_err(|error| engine_error(&error))?;
        let connect = connect_guest(&restored.dialer, Duration::from_millis(timeouts.guest_connect_ms));
        let connection = watch.phase("guest", connect).await?;
        watch
            .phase("identity", connection.link.repair_identity(repair))
            .await
            .map_err(|error| link_error(&error))?;
        failpoint::hit(if restore == Restore::First { "launch-identity" } else { "wake-identity" });
        drop(turn);
        if let Some((hook, body)) = hook {
            // The hook's own output must reach the log even when it fails the launch.
            let mut connection = connection;
            let _ = connection.link.stream_logs(self.log.next_guest()).await;
            let answer = watch.phase("hook", call_hook(&connection.link, hook, body)).await;
            self.keep_lines(&mut connection);
            answer?;
            return Ok(connection);
        }
        Ok(connection)
    }

    fn keep_lines(&self, connection: &mut GuestConnection) {
        while let Ok(event) = connection.events.try_recv() {
            if let guest_link::Event::Logs { lines, dropped } = event {
                self.log.append_guest(&lines, dropped);
            }
        }
    }

    /// What the engine is told about this microVM.
    pub fn machine_spec(&self, netns: &str) -> vmm::MachineSpec {
        let size = self.spec.snapshot.size();
        self.host.template.machine(self.id.as_str(), size, netns, self.files.live_disk(), self.files.run())
    }
}

/// Loads a machine as the step "restore", with the engine's own steps in it.
async fn timed_restore(
    watch: &Stopwatch,
    restore: impl Future<Output = Result<vmm::Restored, vmm::Error>>,
) -> Result<vmm::Restored, HostError> {
    let mut start = watch.elapsed();
    let restored = watch.phase("restore", restore).await.map_err(|error| engine_error(&error))?;
    for phase in &restored.phases {
        watch.record(&format!("restore.{}", phase.name), start, phase.duration);
        start += phase.duration;
    }
    Ok(restored)
}

/// What an engine's error means to the caller.
pub fn engine_error(error: &vmm::Error) -> HostError {
    match error {
        vmm::Error::DiskFull { path } => HostError::disk_full(path),
        vmm::Error::Corrupt { path, .. } => {
            tracing::error!(%error, "a snapshot file is damaged");
            HostError::Corrupt { object: path.display().to_string() }
        }
        _ => {
            let (text, full) = HostError::chain(error);
            if full {
                HostError::disk_full(std::path::Path::new("the microVM's files"))
            } else {
                HostError::Engine(text)
            }
        }
    }
}

/// An engine process as the journal has it.
pub fn process(machine: &dyn vmm::Machine) -> journal::Process {
    let handle = machine.process();
    journal::Process { pid: handle.pid, start_time: handle.start_time }
}

/// A copy of `from` that shares its extents, in place of what `to` was.
pub fn clone_disk(from: &std::path::Path, to: &std::path::Path) -> Result<(), HostError> {
    files::remove(to)?;
    snapshot::disk::reflink(from, to).map(drop).map_err(|error| {
        let (text, full) = HostError::chain(&error);
        if full { HostError::disk_full(to) } else { HostError::Internal(text) }
    })
}
