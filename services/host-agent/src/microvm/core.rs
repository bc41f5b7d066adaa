//! What a driver works on: the journal, the files, and while the microVM runs
//! its engine, slot and link. The transitions are in the modules beside this
//! one; here is what all of them do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::host::v1::ObservedMicrovm;
use api::microvm::v1::{LastTransition, MicrovmState, SnapshotCopies};
use guest_link::{Event as GuestEvent, Link};
use model::ids::MicrovmId;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::gate::{Activity, Gate};
use super::guest::connect_guest;
use super::{GuestConnection, View};
use crate::adapters::files::MicrovmFiles;
use crate::adapters::journal::{Journal, RemoteCopy};
use crate::adapters::logs::Log;
use crate::domain::app_end::AppEnd;
use crate::domain::metering::Sample;
use crate::domain::phase::{Event, next};
use crate::domain::transition::Transition;
use crate::domain::{Failure, Phase, Spec};
use crate::host::{Host, now_ms, timestamp};
use crate::resources::Resources;

/// Pause before a broken link is made again.
const RELINK_PAUSE: Duration = Duration::from_millis(100);

/// A microVM's state, owned by its driver.
pub struct Core {
    /// Shared services.
    pub host: Arc<Host>,
    /// Id.
    pub id: MicrovmId,
    /// What to run.
    pub spec: Spec,
    /// Paths.
    pub files: MicrovmFiles,
    /// What is durable.
    pub journal: Journal,
    /// What others see.
    pub view: watch::Sender<View>,
    /// The running engine and what belongs to it.
    pub live: Option<Live>,
    /// Bytes through the tunnel.
    pub activity: Arc<Activity>,
    /// Idle time is counted from here when that is later than the last activity.
    pub idle_floor_ms: u64,
    /// The app's output.
    pub log: Arc<Log>,
    /// What background work tells the driver.
    pub notices: mpsc::Sender<Notice>,
    /// The upload under way.
    pub upload: Option<AbortHandle>,
}

/// What background work tells the driver.
pub enum Notice {
    /// A snapshot is whole in S3.
    Uploaded {
        /// Where it is.
        copy: RemoteCopy,
        /// Size of its memory and disk difference in bytes.
        difference_bytes: u64,
    },
    AppExited(AppEnd),
}

/// A running engine and what belongs to it.
pub struct Live {
    /// The engine process.
    pub machine: Arc<dyn vmm::Machine>,
    /// The same engine with all that belongs to it, to be given back in the end.
    pub resources: Resources,
    /// Opens sockets in its slot.
    pub dialer: slot::Dialer,
    /// Link to the guest-agent; replaced when it breaks.
    pub link: Arc<Mutex<Option<Link>>>,
    /// The way in for tunnels.
    pub gate: Arc<Gate>,
    /// When use was sampled last.
    pub sampled: Instant,
    /// Reads the link's events.
    pub pump: AbortHandle,
}

impl Live {
    /// The link, when it works.
    ///
    /// # Errors
    /// [`Failure::Guest`] while it is broken.
    pub fn link(&self) -> Result<Link, Failure> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| Failure::Guest {
            message: "the guest-agent does not answer".to_owned(),
            outcome: "no_answer",
            exit_code: None,
        })
    }
}

impl Core {
    /// Takes the step `event`, which must be possible, and says why.
    pub fn enter(&mut self, event: Event, reason: &str) {
        let from = self.journal.phase;
        let to = next(from, event).unwrap_or_else(|| panic!("{event:?} cannot happen in {from:?}"));
        self.journal.phase = to;
        reason.clone_into(&mut self.journal.reason);
        self.journal.phase_since_ms = now_ms();
        tracing::info!(microvm = %self.id, generation = self.journal.generation, ?from, ?to, reason, "phase");
    }

    /// Writes the journal.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self) -> Result<(), Failure> {
        self.journal.write(&self.files.journal())
    }

    /// Numbers a new observation, shows it to everyone, and has it reported at
    /// once.
    pub fn publish(&mut self) {
        self.publish_quietly();
        self.host.changed();
    }

    /// Numbers a new observation that the next report may carry: a step on the
    /// way to one that follows within milliseconds, or totals. A report of its
    /// own would only take the processor from the work it tells of.
    pub fn publish_quietly(&mut self) {
        self.journal.observation += 1;
        let observed = self.observed();
        let gate = match self.journal.phase {
            Phase::Running => self.live.as_ref().map(|live| Arc::clone(&live.gate)),
            _ => None,
        };
        let view = View { phase: self.journal.phase, generation: self.journal.generation, observed, gate };
        self.view.send_replace(view);
    }

    /// What is observed now.
    #[must_use]
    pub fn observed(&self) -> ObservedMicrovm {
        observed(&self.id, &self.journal, self.activity.bytes())
    }

    /// Notes the steps of a finished transition.
    pub fn finished(&mut self, transition: Transition) {
        let total = transition.steps.last().map_or(0.0, |step| step.duration.as_secs_f64());
        self.host.metrics.transition(&transition.kind, total);
        tracing::info!(
            microvm = %self.id,
            kind = transition.kind,
            steps = transition
                .steps
                .iter()
                .map(|step| format!("{}={:.1}", step.name, step.duration.as_secs_f64() * 1000.0))
                .collect::<Vec<_>>()
                .join(" "),
            "transition (ms)"
        );
        self.journal.transition = transition;
    }

    /// Samples what the engine has used since the last sample.
    pub fn sample(&mut self) {
        let Some(live) = &mut self.live else { return };
        let interval = live.sampled.elapsed();
        live.sampled = Instant::now();
        let Ok(usage) = live.machine.usage() else { return };
        let sample =
            Sample { cpu_seconds: usage.cpu_seconds, anonymous_bytes: usage.anonymous_bytes, interval };
        self.journal.meter.endpoint_bytes = self.activity.bytes();
        self.journal.meter.sample(sample, self.host.baseline_mib(self.spec.snapshot.memory_mib));
        // Not an observation of its own: the next report carries it.
        let metering = self.observed().metering;
        self.view.send_if_modified(|view| {
            view.observed.metering = metering;
            false
        });
    }

    /// Ends the engine of `live`, waits until it is reaped, and gives
    /// everything back.
    pub async fn release(&mut self, live: Live) {
        live.gate.close();
        live.pump.abort();
        if let Ok(link) = live.link() {
            link.close();
        }
        live.resources.release().await;
        self.journal.meter.close_engine();
        self.journal.process = None;
        self.journal.slot = None;
    }

    /// Reads the link's events until the engine's run ends, and makes a new
    /// link when the old one breaks or there is none yet.
    pub fn pump(
        &self,
        mut connection: Option<GuestConnection>,
        dialer: slot::Dialer,
    ) -> (Arc<Mutex<Option<Link>>>, AbortHandle) {
        let shared = Arc::new(Mutex::new(connection.as_ref().map(|connection| connection.link.clone())));
        let link = Arc::clone(&shared);
        let log = Arc::clone(&self.log);
        let notices = self.notices.clone();
        let timeout = Duration::from_millis(self.host.config.timeouts.guest_connect_ms);
        let task = tokio::spawn(async move {
            // Nothing ends this loop while the engine runs; when it stops, the driver aborts the task.
            loop {
                let mut current = match connection.take() {
                    Some(connection) => connection,
                    None => match connect_guest(&dialer, timeout).await {
                        Ok(connection) => connection,
                        Err(_) => continue,
                    },
                };
                link.lock().unwrap_or_else(PoisonError::into_inner).replace(current.link.clone());
                let _ = current.link.stream_logs(log.next_guest()).await;
                read_events(&mut current.events, &log, &notices).await;
                link.lock().unwrap_or_else(PoisonError::into_inner).take();
                tokio::time::sleep(RELINK_PAUSE).await;
            }
        });
        (shared, task.abort_handle())
    }
}

async fn read_events(events: &mut mpsc::Receiver<GuestEvent>, log: &Log, notices: &mpsc::Sender<Notice>) {
    while let Some(event) = events.recv().await {
        match event {
            GuestEvent::Logs { lines, dropped } => log.append_guest(&lines, dropped),
            GuestEvent::AppExited(exit) => {
                let _ = notices.send(Notice::AppExited(exit.into())).await;
            }
            GuestEvent::Closed { .. } => return,
        }
    }
}

/// Ends an engine process; a failure to do so is a bug worth shouting about.
pub async fn stop(machine: &dyn vmm::Machine) {
    if let Err(error) = machine.stop().await {
        tracing::error!(%error, "an engine process could not be ended");
    }
}

/// What a journal says to the scheduler.
#[must_use]
pub fn observed(id: &MicrovmId, journal: &Journal, endpoint_bytes: u64) -> ObservedMicrovm {
    let state = match journal.phase {
        Phase::Launching => MicrovmState::Pending,
        Phase::Running => MicrovmState::Running,
        Phase::Suspending => MicrovmState::Suspending,
        // Until the guest is whole and its hook has answered, a wake may still be undone.
        Phase::Suspended | Phase::Waking => MicrovmState::Suspended,
        Phase::Terminating => MicrovmState::Terminating,
        Phase::Gone => MicrovmState::Terminated,
    };
    let remote = journal.remote.as_ref().filter(|remote| remote.sequence == journal.sequence);
    let snapshot = (journal.sequence > 0).then(|| SnapshotCopies {
        local: true,
        remote: remote.is_some(),
        difference_bytes: journal.difference_bytes,
        sequence: journal.sequence,
        manifest_key: remote.map(|remote| remote.manifest_key.clone()).unwrap_or_default(),
        manifest_digest: remote.map(|remote| remote.manifest_digest.clone()).unwrap_or_default(),
    });
    ObservedMicrovm {
        microvm_id: id.to_string(),
        generation: journal.generation,
        state: state.into(),
        state_reason: journal.reason.clone(),
        state_time: Some(timestamp(journal.phase_since_ms)),
        observation: journal.observation,
        snapshot,
        metering: Some(metering(&journal.meter, endpoint_bytes)),
        last_transition: Some(LastTransition {
            kind: journal.transition.kind.clone(),
            phases: phases(&journal.transition),
        }),
        activity_time: None,
    }
}

/// Totals as the wire has them.
#[must_use]
pub fn metering(meter: &crate::domain::metering::Meter, endpoint_bytes: u64) -> api::common::v1::Metering {
    api::common::v1::Metering {
        vcpu_seconds: meter.vcpu_seconds(),
        baseline_gib_seconds: meter.baseline_gib_seconds,
        burst_gib_seconds: meter.burst_gib_seconds,
        snapshot_bytes_read: meter.snapshot_bytes_read,
        snapshot_bytes_written: meter.snapshot_bytes_written,
        endpoint_bytes,
    }
}

/// Steps as the wire has them.
#[must_use]
pub fn phases(transition: &Transition) -> Vec<api::common::v1::Phase> {
    transition
        .steps
        .iter()
        .map(|step| api::common::v1::Phase {
            name: step.name.clone(),
            start: Some(api::duration_proto(step.start)),
            duration: Some(api::duration_proto(step.duration)),
        })
        .collect()
}
