//! One microVM on this host: a task that drives it, and the handle others hold.
//!
//! ```text
//!  RPC handlers, tunnels ──commands──> mailbox (bounded) ──> driver task ──> engine, slot, guest, files
//!                        <──view (watch channel)────────────────┘
//! ```
//!
//! The driver does one thing at a time. While a launch, suspend or wake is under way it still reads its
//! mailbox and sorts what comes by the admission table: callers of the same transition share its outcome,
//! others queue, the end interrupts.
//!
//! News of a microVM reach the scheduler by two ways. A command's *answer* is first and goes to the caller who waits for
//! it; but the connection may break after the work is done, the caller may have given up, and a microVM that falls asleep by
//! itself or whose app exits has no caller at all. The *report* (`reporter`) carries whatever the scheduler has not
//! answered for yet, again and again, so that nothing is lost; but it may be late, and an older one may overtake a newer
//! answer. Both carry the same observation, numbered by the driver and rising within a generation: the higher number
//! wins, whichever way it came, and the scheduler takes each only once.

mod activity;
mod asleep;
mod checkpoint;
mod core;
mod create;
mod driver;
mod end;
mod gate;
mod guest;
mod inbox;
mod launch;
mod link_pump;
mod observed;
mod recover;
mod space;
mod start;
mod suspend;
mod upload;
mod wake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::host::v1::ObservedMicrovm;
use api::microvm::v1::{SnapshotCopies, TransitionCause};
use model::SnapshotNumber;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

pub use self::activity::Activity;
pub use self::create::create;
pub use self::driver::{Driver, First};
pub use self::end::exit_sentence;
pub use self::gate::{Gate, GateError, GuestStream, Pass, Portable, Successor};
pub use self::guest::{GuestConnection, Restore, call_hook, connect_guest, link_error, repair_request};
pub use self::observed::{metering, observed, phases};
pub use self::recover::{Found, Recovered, load_journals, recover};
pub use self::start::{clone_disk, engine_error};

use self::core::Notice;
use crate::adapters::logs::Log;
use crate::domain::idle::IdlePolicy;
use crate::domain::{HostError, LocalState, Spec};
use crate::wakes::Turn;

/// What others see of a microVM.
#[derive(Clone)]
pub struct View {
    /// Where it is in its life.
    pub state: LocalState,
    pub generation: u64,
    pub observed: ObservedMicrovm,
    /// The way into the guest; present while it is RUNNING.
    pub gate: Option<Arc<Gate>>,
    /// It is being dropped without a report. Its record lives on, with the generation that is held here: the scheduler must not
    /// take the end of what is here for the microVM's.
    pub discarded: bool,
}

/// What a driver is asked for.
pub enum Command {
    /// A repeat of the launch that made it.
    Launch,
    /// Asked for, or because the host is drained.
    Suspend(TransitionCause),
    /// Keep it awake for this long from now; `None` gives the lease up.
    KeepAwake(Option<Duration>),
    /// Make a recovery point.
    Checkpoint,
    /// Write down what it has used so far: the agent stops.
    Save,
    /// With the turn that it waited for, unless it seemed to be awake.
    Resume(Option<Box<ResumeOrder>>, Option<Turn>),
    End(EndOrder),
    /// Drop it if it sleeps with this snapshot: it is about to be placed elsewhere.
    GiveUp(SnapshotCopies),
}

/// A wake ordered by the scheduler.
pub struct ResumeOrder {
    /// The spec of the new placement.
    pub spec: Spec,
    /// Its latest snapshot, as the scheduler knows it.
    pub snapshot: Option<SnapshotCopies>,
}

#[derive(Debug, Clone)]
pub struct EndOrder {
    pub reason: String,
    /// Without the hook and without a report.
    pub discard: bool,
}

impl EndOrder {
    /// An end that is reported, with its reason, until the scheduler knows it.
    pub fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), discard: false }
    }

    /// An end that nobody hears of: the microVM goes on elsewhere, or its launch will be repeated.
    pub fn discarding(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), discard: true }
    }
}

/// The answer to a command: what is observed afterwards.
pub type Outcome = Result<ObservedMicrovm, HostError>;

pub struct Message {
    pub command: Command,
    /// Generation it was given under; `None` for what the host decides itself.
    pub generation: Option<u64>,
    pub reply: oneshot::Sender<Outcome>,
}

#[derive(Clone)]
pub struct Handle {
    pub id: Arc<str>,
    /// Name of its image.
    pub image: Arc<str>,
    /// True when its ingress closes the endpoint.
    pub no_ingress: bool,
    pub view: watch::Receiver<View>,
    pub activity: Arc<Activity>,
    /// When it sleeps by itself; fixed for life.
    pub idle: IdlePolicy,
    pub log: Arc<Log>,
    /// Places for tunnel requests that wait for it.
    pub waiting: Arc<Semaphore>,
    /// The newest generation that the scheduler has said must be dropped; 0 while it has not.
    pub stale: Arc<AtomicU64>,
    notices: mpsc::Sender<Notice>,
    mailbox: mpsc::Sender<Message>,
}

impl Handle {
    /// Gives a command and waits for its outcome, however long the transition
    /// takes; every step of it is bounded.
    pub async fn command(&self, command: Command, generation: Option<u64>) -> Outcome {
        let (reply, answer) = oneshot::channel();
        self.mailbox.try_send(Message { command, generation, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                HostError::Capacity(format!("too many commands wait for {}", self.id))
            }
            mpsc::error::TrySendError::Closed(_) => self.ended(),
        })?;
        answer.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// Whether the scheduler has said that what is held here must be dropped. It answers no request from then on.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed) >= self.view.borrow().generation
    }

    /// Tells the driver what its record says. A driver that is behind hears it again with the next complete report.
    pub fn recorded(&self, generation: u64, named: SnapshotNumber) {
        drop(self.notices.try_send(Notice::Recorded { generation, named }));
    }

    fn ended(&self) -> HostError {
        HostError::Ended { reason: self.view.borrow().observed.state_reason.clone() }
    }

    /// What is observed now, activity included.
    pub fn observed(&self) -> ObservedMicrovm {
        let mut observed = self.view.borrow().observed.clone();
        observed.activity_time = self.activity.last_wall_ms().map(crate::host::timestamp);
        if let Some(metering) = &mut observed.metering {
            metering.endpoint_bytes = self.activity.bytes();
        }
        observed
    }
}
