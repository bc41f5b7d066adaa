//! Bringing a guest up from a snapshot, the same for launch and wake: disk,
//! slot, engine, identity, hook. What fails gives everything back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::connectors::egress;
use super::core::{self, Core, Live};
use super::gate::Gate;
use super::guest::{GuestConnection, call_hook, connect_guest, link_failure, repair_request};
use crate::adapters::bases::BaseLease;
use crate::adapters::{files, journal};
use crate::domain::Failure;
use crate::domain::capacity::Reservation;
use crate::domain::hooks::Hook;
use crate::domain::transition::Stopwatch;
use crate::failpoint;

/// What a start begins from.
pub struct Plan {
    /// The image's snapshot.
    pub base: BaseLease,
    /// Disk to share extents with.
    pub disk: PathBuf,
    /// Device state to load.
    pub device_state: PathBuf,
    /// Memory pages that differ from the image's, on a wake.
    pub memory_difference: Option<PathBuf>,
    /// Hook to call last, with its body.
    pub hook: Option<(Hook, String)>,
    /// True on a launch.
    pub first: bool,
}

/// A restored engine and what it holds, before its guest is known to be well.
struct Raised {
    machine: Arc<dyn vmm::Machine>,
    slot: slot::Slot,
    memory: Reservation,
    base: BaseLease,
}

impl Core {
    /// Brings the guest up. On success the caller still has to journal RUNNING
    /// and open the gate by publishing; on failure nothing is left.
    ///
    /// # Errors
    /// Any [`Failure`]; [`Failure::Interrupted`] when `cancel` fired.
    pub async fn start(
        &mut self,
        watch: &Stopwatch,
        plan: Plan,
        cancel: &CancellationToken,
    ) -> Result<Live, Failure> {
        let (hook, first) = (plan.hook.clone(), plan.first);
        let raised = self.raise(watch, plan).await?;
        failpoint::hit(if first { "launch-restored" } else { "wake-restored" });
        let made_well = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Failure::Interrupted("the microVM is being terminated".to_owned())),
            reason = raised.machine.exited() => Err(Failure::Engine(format!(
                "the engine ended while the guest was starting: {}",
                super::end::exit_sentence(&reason),
            ))),
            made_well = self.make_well(watch, &raised, hook, first) => made_well,
        };
        match made_well {
            Ok(connection) => {
                let connector = raised.slot.connector();
                let gate =
                    Arc::new(Gate::new(connector.clone(), self.host.config.limits.connections_per_microvm));
                let (link, pump) = self.pump(Some(connection), connector);
                self.journal.process = Some(process(raised.machine.as_ref()));
                self.journal.slot = Some(raised.slot.index());
                let Raised { machine, slot, memory, base } = raised;
                self.idle_floor_ms = self.host.monotonic_ms();
                Ok(Live { machine, slot, link, gate, memory, base, sampled: Instant::now(), pump })
            }
            Err(failure) => {
                self.unwind(raised).await;
                Err(failure)
            }
        }
    }

    async fn unwind(&self, raised: Raised) {
        core::stop(raised.machine.as_ref()).await;
        core::recycle(&self.host, raised.slot);
        files::discard(&self.files.live_disk());
        files::discard(&self.files.run());
    }

    /// Disk and slot side by side, then the engine; returns with the guest running.
    async fn raise(&mut self, watch: &Stopwatch, plan: Plan) -> Result<Raised, Failure> {
        let egress = egress(&self.spec)?;
        let memory_mib = core::memory_mib(&self.spec);
        let memory = self
            .host
            .capacity
            .reserve(u64::from(self.host.baseline_mib(memory_mib)))
            .map_err(|free| Failure::Capacity(format!("the host has {free} MiB of guest memory left")))?;
        let (from, to) = (plan.disk.clone(), self.files.live_disk());
        let run = self.files.run();
        let disk = watch.step(
            "disk",
            files::blocking(move || {
                files::remove(&run)?;
                files::make_directory(&run)?;
                clone_disk(&from, &to)
            }),
        );
        let slot = watch.step("slot", self.host.pool.take(egress));
        let (disk, slot) = tokio::join!(disk, slot);
        let slot = slot.map_err(|error| Failure::Capacity(Failure::chain(&error).0));
        let slot = match (disk, slot) {
            (Ok(()), Ok(slot)) => slot,
            (disk, slot) => {
                files::discard(&self.files.live_disk());
                files::discard(&self.files.run());
                let failure = match &slot {
                    Err(failure) => failure.clone(),
                    Ok(_) => Failure::Internal(String::new()),
                };
                if let Ok(slot) = slot {
                    core::recycle(&self.host, slot);
                }
                return Err(disk.err().unwrap_or(failure));
            }
        };
        let spec = self.machine_spec(slot.name());
        let restore = vmm::RestoreSpec {
            base_memory: plan.base.memory(),
            device_state: plan.device_state,
            memory_difference: plan.memory_difference,
        };
        let began = watch.elapsed();
        let restored = watch.step("restore", self.host.engine.restore(&spec, &restore)).await;
        let machine = match restored {
            Ok(restored) => {
                let mut start = began;
                for step in &restored.phases {
                    watch.record(&format!("restore.{}", step.name), start, step.duration);
                    start += step.duration;
                }
                restored.machine
            }
            Err(error) => {
                core::recycle(&self.host, slot);
                files::discard(&self.files.live_disk());
                files::discard(&self.files.run());
                return Err(engine_failure(&error));
            }
        };
        Ok(Raised { machine, slot, memory, base: plan.base })
    }

    /// Lets the guest run, gives it its identity, calls its hook.
    async fn make_well(
        &self,
        watch: &Stopwatch,
        raised: &Raised,
        hook: Option<(Hook, String)>,
        first: bool,
    ) -> Result<GuestConnection, Failure> {
        let timeouts = &self.host.config.timeouts;
        let repair = repair_request(&self.id, self.journal.restore_count, first)?;
        watch.step("resume", raised.machine.resume()).await.map_err(|error| engine_failure(&error))?;
        let connector = raised.slot.connector();
        let connect = connect_guest(&connector, Duration::from_millis(timeouts.guest_connect_ms));
        let connection = watch.step("guest", connect).await?;
        watch
            .step("identity", connection.link.repair_identity(repair))
            .await
            .map_err(|error| link_failure(&error))?;
        failpoint::hit(if first { "launch-identity" } else { "wake-identity" });
        if let Some((hook, body)) = hook {
            // The hook's own output must reach the log even when it fails the launch.
            let mut connection = connection;
            let _ = connection.link.stream_logs(self.log.next_guest()).await;
            let answer = watch.step("hook", call_hook(&connection.link, hook, body)).await;
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
    #[must_use]
    pub fn machine_spec(&self, netns: &str) -> vmm::MachineSpec {
        let snapshot = self.spec.snapshot.clone().unwrap_or_default();
        let size = (snapshot.vcpu_count, snapshot.memory_mib);
        self.host.template.machine(self.id.as_str(), size, netns, self.files.live_disk(), self.files.run())
    }
}

/// What an engine's error means to the caller.
#[must_use]
pub fn engine_failure(error: &vmm::Error) -> Failure {
    match error {
        vmm::Error::DiskFull { path } => Failure::disk_full(path),
        vmm::Error::Corrupt { path, .. } => {
            tracing::error!(%error, "a snapshot file is damaged");
            Failure::Corrupt { object: path.display().to_string() }
        }
        _ => {
            let (text, full) = Failure::chain(error);
            if full {
                Failure::disk_full(std::path::Path::new("the microVM's files"))
            } else {
                Failure::Engine(text)
            }
        }
    }
}

/// An engine process as the journal has it.
#[must_use]
pub fn process(machine: &dyn vmm::Machine) -> journal::Process {
    let handle = machine.process();
    journal::Process { pid: handle.pid, start_time: handle.start_time }
}

/// A copy of `from` that shares its extents, in place of what `to` was.
///
/// # Errors
/// Names the file.
pub fn clone_disk(from: &std::path::Path, to: &std::path::Path) -> Result<(), Failure> {
    files::remove(to)?;
    snapshot::disk::reflink(from, to).map(drop).map_err(|error| {
        let (text, full) = Failure::chain(&error);
        if full { Failure::disk_full(to) } else { Failure::Internal(text) }
    })
}
