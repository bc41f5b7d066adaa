//! What a driver works on: the journal, the files, and while the microVM runs its engine, slot and link. The
//! transitions are in the modules beside this one; here is what all of them do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use api::host::v1::ObservedMicrovm;
use guest_link::Link;
use model::SnapshotNumber;
use model::ids::MicrovmId;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::View;
use super::activity::Activity;
use super::asleep::Asleep;
use super::checkpoint::Checkpoints;
use super::gate::Gate;
use super::guest::GuestConnection;
use super::observed::observed;
use super::space::OutOfSpace;
use crate::adapters::files::{self, MicrovmFiles};
use crate::adapters::image_snapshots::ImageSnapshotUse;
use crate::adapters::journal::{Journal, RemoteCopy};
use crate::adapters::logs::Log;
use crate::domain::app_end::AppEnd;
use crate::domain::local_state::{Event, next};
use crate::domain::metering::Sample;
use crate::domain::transition::Transition;
use crate::domain::{HostError, LocalState, Spec};
use crate::host::{Host, unix_ms};
use crate::resources::Resources;

/// The journal is written every so many samples while it runs: see `Meter`.
const SAMPLES_UNSAVED_MAX: u32 = 6;
/// Shortest time that a CPU use is worked out over.
const CPU_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A microVM's state, owned by its driver.
pub struct Core {
    pub host: Arc<Host>,
    pub id: MicrovmId,
    pub spec: Spec,
    pub files: MicrovmFiles,
    pub journal: Journal,
    pub view: watch::Sender<View>,
    /// The running engine and what belongs to it.
    pub live: Option<Live>,
    pub activity: Arc<Activity>,
    pub log: Arc<Log>,
    /// What background work tells the driver.
    pub notices: mpsc::Sender<Notice>,
    pub upload: Option<AbortHandle>,
    /// True while superseded copies are being removed from S3.
    pub removing: bool,
    /// Connections that wait for the guest to wake.
    pub asleep: Asleep,
    pub checkpoints: Checkpoints,
    /// Keeps its image's snapshot from being the first to go.
    pub _image: ImageSnapshotUse,
}

/// What background work tells the driver.
pub enum Notice {
    /// A snapshot is whole in S3.
    Uploaded {
        copy: RemoteCopy,
        /// Size of its memory and disk difference in bytes.
        difference_bytes: u64,
    },
    /// The record names this snapshot in S3, for the placement of this generation, durably.
    Recorded {
        generation: u64,
        named: SnapshotNumber,
    },
    /// Superseded copies that S3 does not have any more.
    Removed(Vec<RemoteCopy>),
    AppExited(AppEnd),
    /// The app asks not to be put to sleep for this long; `None` gives that up.
    KeepAwake(Option<Duration>),
}

/// A running engine and what belongs to it.
pub struct Live {
    pub machine: Arc<dyn vmm::Machine>,
    /// The same engine with all that belongs to it, to be given back in the end.
    pub resources: Resources,
    pub dialer: slot::Dialer,
    /// Link to the guest-agent; replaced when it breaks.
    pub link: Arc<Mutex<Option<Link>>>,
    pub gate: Arc<Gate>,
    /// Samples since the journal was last written for them.
    pub unsaved: u32,
    /// When the CPU use was worked out last, and the CPU time of the engine then, in seconds; `None` before its first sample.
    pub cpu: Option<(Instant, f64)>,
    pub pump: AbortHandle,
    /// While the guest stands still for want of room.
    pub out_of_space: Option<OutOfSpace>,
}

impl Live {
    /// Lets a guest that stands still run on. Its clock stood still with it and is put right; a guest-agent that does not answer
    /// hears the time at the next wake.
    pub async fn run_on(&self, now: SystemTime) -> Result<(), vmm::Error> {
        self.machine.resume().await?;
        self.set_clock(now).await;
        Ok(())
    }

    /// Puts the clock of a guest right that stood still and runs again.
    pub async fn set_clock(&self, now: SystemTime) {
        if let Ok(link) = self.link() {
            let _ = link.set_clock(now).await;
        }
    }

    /// The link, when it works.
    pub fn link(&self) -> Result<Link, HostError> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| HostError::Guest {
            message: "the guest-agent does not answer".to_owned(),
            outcome: "no_answer",
            exit_code: None,
        })
    }
}

impl Core {
    /// Takes the step `event`, which must be possible, and says why.
    pub fn enter(&mut self, event: Event, reason: &str) {
        let from = self.journal.state;
        let to = next(from, event).unwrap_or_else(|| panic!("{event:?} cannot happen in {from:?}"));
        self.journal.state = to;
        reason.clone_into(&mut self.journal.reason);
        self.journal.state_since_ms = self.host.now_ms();
        tracing::info!(microvm = %self.id, generation = self.journal.generation, ?from, ?to, reason, "state");
    }

    pub fn save(&mut self) -> Result<(), HostError> {
        self.journal.write(&self.files.journal())
    }

    /// Numbers a new observation, shows it to everyone, and has it reported at once.
    pub fn publish(&mut self) {
        self.publish_quietly();
        self.host.changed();
    }

    /// Numbers a new observation that the next report may carry: a step on the way to one that follows within
    /// milliseconds, or totals. A report of its own would only take the processor from the work it tells of.
    pub fn publish_quietly(&mut self) {
        self.journal.observation += 1;
        let observed = self.observed();
        let gate = match self.journal.state {
            LocalState::Running => self.live.as_ref().map(|live| Arc::clone(&live.gate)),
            _ => None,
        };
        let Journal { state, generation, discard: discarded, .. } = self.journal;
        let view = View { state, generation, observed, gate, discarded };
        self.view.send_replace(view);
    }

    /// A running engine with what belongs to it; from here on they outlive this process.
    pub fn make_live(
        &self,
        machine: Arc<dyn vmm::Machine>,
        mut resources: Resources,
        dialer: slot::Dialer,
        connection: Option<GuestConnection>,
    ) -> Live {
        resources.outlive_this_process();
        let gate = Arc::new(self.gate(dialer.clone()));
        let (link, pump) = self.pump(connection, dialer.clone());
        Live { machine, resources, dialer, link, gate, unsaved: 0, cpu: None, pump, out_of_space: None }
    }

    /// The way into a fresh run of the guest.
    pub fn gate(&self, dialer: slot::Dialer) -> Gate {
        Gate::new(dialer, self.host.config.limits.connections_per_microvm, self.spec.end_connections)
    }

    pub fn observed(&self) -> ObservedMicrovm {
        let mut observed = observed(&self.id, &self.journal, self.activity.bytes());
        if let Some(reason) = self.out_of_space_reason() {
            reason.clone_into(&mut observed.state_reason);
        }
        observed
    }

    /// Notes the steps of a finished transition.
    pub fn finished(&mut self, transition: Transition) {
        self.log_transition(&transition);
        self.journal.transition = transition;
    }

    pub fn log_transition(&self, transition: &Transition) {
        let total = transition.phases.last().map_or(0.0, |phase| phase.duration.as_secs_f64());
        self.host.metrics.transition(&transition.kind, total);
        tracing::info!(
            microvm = %self.id,
            kind = transition.kind,
            cause = transition.cause.reason,
            phases = transition
                .phases
                .iter()
                .map(|phase| format!("{}={:.1}", phase.name, phase.duration.as_secs_f64() * 1000.0))
                .collect::<Vec<_>>()
                .join(" "),
            "transition (ms)"
        );
    }

    /// Keeps it awake for `duration` from now, at most to the end of its life, or gives that up. Of two leases the longer
    /// counts.
    pub fn keep_awake(&mut self, duration: Option<Duration>) -> Result<(), HostError> {
        let now_ms = self.host.now_ms();
        let before = self.journal.awake_until_ms;
        self.journal.awake_until_ms = duration.map_or(0, |duration| {
            let asked_ms = now_ms.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
            let life_ms = self.spec.deadline.map_or(u64::MAX, unix_ms);
            asked_ms.min(life_ms).max(before)
        });
        // Dying after this line keeps the lease: the next agent reads it here.
        if let Err(failure) = self.save() {
            self.journal.awake_until_ms = before;
            return Err(failure);
        }
        self.apply_lease();
        tracing::info!(microvm = %self.id, until_ms = self.journal.awake_until_ms, "keep-awake lease");
        Ok(())
    }

    /// Shows the journal's lease to the idle timer, on the timer's clock.
    pub fn apply_lease(&self) {
        let left_ms = self.journal.awake_until_ms.saturating_sub(self.host.now_ms());
        let end_ms = if left_ms == 0 { 0 } else { self.host.monotonic_ms() + left_ms };
        self.activity.set_lease_end(end_ms);
    }

    /// Samples what the engine has used since the last sample.
    pub fn sample(&mut self) {
        let now = self.host.clock.instant();
        let Some(live) = &mut self.live else { return };
        // An engine that has just ended does not tell any more: it held its baseline until now.
        let usage = live.machine.usage().unwrap_or(vmm::Usage { cpu_seconds: 0.0, anonymous_bytes: 0 });
        match live.cpu {
            Some((since, before)) if now.duration_since(since) >= CPU_INTERVAL_MIN => {
                let used = (usage.cpu_seconds - before).max(0.0) / now.duration_since(since).as_secs_f64();
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a small percentage"
                )]
                self.activity.set_cpu((used * 100.0) as u32);
                live.cpu = Some((now, usage.cpu_seconds));
            }
            Some(_) => {}
            None => live.cpu = Some((now, usage.cpu_seconds)),
        }
        let sample = Sample { cpu_seconds: usage.cpu_seconds, anonymous_bytes: usage.anonymous_bytes };
        self.journal.meter.endpoint_bytes = self.activity.bytes();
        let baseline_mib = self.host.baseline_mib(self.spec.snapshot.memory_mib);
        self.journal.meter.sample(sample, self.host.uptime_ms(), baseline_mib);
        // Not an observation of its own: the next report carries it.
        let metering = self.observed().metering;
        self.view.send_if_modified(|view| {
            view.observed.metering = metering;
            false
        });
    }

    /// Samples at its interval. Dying before a write loses what `Meter` says.
    pub fn sample_running(&mut self) {
        self.sample();
        let Some(live) = &mut self.live else { return };
        live.unsaved += 1;
        if live.unsaved >= SAMPLES_UNSAVED_MAX {
            live.unsaved = 0;
            self.save_settled();
        }
    }

    /// Ends the engine of `live`, waits until it is reaped, and gives everything back.
    pub async fn release(&mut self, live: Live) {
        live.gate.close();
        live.pump.abort();
        if let Ok(link) = live.link() {
            link.close();
        }
        live.resources.release().await;
        self.journal.no_engine();
    }

    /// Forgets an engine that is gone, with the files that were its own.
    pub fn forget_engine(&mut self) {
        self.journal.no_engine();
        files::discard(&self.files.live_disk());
        files::discard(&self.files.run());
    }
}
