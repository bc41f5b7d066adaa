//! The task that drives one microVM: takes commands, engine ends, guest events and timers one after the
//! other, and decides nothing that a table in `domain` can decide.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use api::microvm::v1::TransitionCause;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::core::{Core, Notice};
use super::inbox::{Inbox, answer, ask, run_transition};
use super::suspend::Slept;
use super::{Command, EndOrder, Handle, Message, Outcome};
use crate::adapters::journal::Tombstone;
use crate::domain::fence::{Fence, fence};
use crate::domain::idle::{IdleDecision, decide, sleep_sentence};
use crate::domain::local_state::{Admission, admit};
use crate::domain::transition::Cause;
use crate::domain::{HostError, LocalState};
use crate::wakes::Turn;

mod give_up;
mod lost;
mod notice;

pub const NOTICES_MAX: usize = 16;

/// How long after its deadline a host ends a microVM that the scheduler has not ended.
const DEADLINE_GRACE: Duration = Duration::from_secs(5);

pub struct Driver {
    core: Core,
    inbox: Inbox,
    /// It ran, has gone back to its recovery point, and is to be woken. Not before the host is open: while it is fenced the
    /// microVM may run elsewhere, and what a guest does to the world outside is done, whether or not anybody calls it.
    to_wake: bool,
    /// As [`Handle::stale`].
    stale: Arc<AtomicU64>,
}

/// A microVM that is gone from this host, and what is to be reported of its end; `None` when nothing is.
struct Ended {
    report: Option<Tombstone>,
}

pub enum First {
    /// A new microVM: launch it and answer.
    Launch(oneshot::Sender<Outcome>),
    /// A microVM that is settled already.
    Settled,
    /// A microVM that has gone back to its recovery point while no agent was here.
    WentBack,
}

enum Input {
    Message(Message),
    Notice(Notice),
    EngineEnded(vmm::ExitReason),
    /// The idle timer has run out; what is to be done is to be decided anew.
    IdleDue,
    CheckpointDue,
    /// The guest stands still for want of room on the disk, or it is time to look for some.
    SpaceDue,
    Sample,
    Deadline,
    /// The host is open, and this one is to be woken.
    Open,
    Nobody,
}

impl Driver {
    /// A driver and the handle to it. Nothing runs before [`Driver::drive`].
    pub fn new(core: Core, notices: mpsc::Receiver<Notice>) -> (Self, Handle) {
        let limits = &core.host.config.limits;
        let stale = Arc::<AtomicU64>::default();
        let (sender, mailbox) = mpsc::channel(limits.mailbox);
        let handle = Handle {
            id: Arc::from(core.id.as_str()),
            image: Arc::from(core.spec.image_name.as_str()),
            no_ingress: core.spec.ingress.is_closed(),
            view: core.view.subscribe(),
            activity: Arc::clone(&core.activity),
            idle: core.spec.idle,
            log: Arc::clone(&core.log),
            waiting: Arc::new(Semaphore::new(limits.waiting_opens_per_microvm)),
            stale: Arc::clone(&stale),
            notices: core.notices.clone(),
            mailbox: sender,
        };
        let inbox = Inbox::new(mailbox, notices, limits.mailbox);
        (Self { core, inbox, to_wake: false, stale }, handle)
    }

    /// Drives it until it is gone or nobody holds a handle any more. Returns
    /// what is to be reported of its end; `None` when nothing is.
    pub async fn drive(mut self, first: First) -> Option<Tombstone> {
        let mut flow = match first {
            First::Launch(reply) => self.launch(reply).await,
            First::Settled => {
                self.core.start_upload();
                ControlFlow::Continue(())
            }
            First::WentBack => {
                self.core.start_upload();
                self.to_wake = true;
                ControlFlow::Continue(())
            }
        };
        loop {
            if let ControlFlow::Break(Ended { report }) = flow {
                self.drain_mailbox();
                return report;
            }
            flow = match self.input().await {
                Input::Message(message) => self.handle_command(message).await,
                Input::Notice(notice) => self.notice(notice).await,
                Input::EngineEnded(reason) => self.engine_ended(&reason).await,
                Input::IdleDue => {
                    self.idle_due().await;
                    ControlFlow::Continue(())
                }
                Input::CheckpointDue => {
                    self.core.checkpoint_if_busy().await;
                    ControlFlow::Continue(())
                }
                Input::SpaceDue => {
                    self.core.meet_space().await;
                    ControlFlow::Continue(())
                }
                Input::Sample => {
                    self.core.sample_running();
                    ControlFlow::Continue(())
                }
                Input::Deadline => {
                    self.end(&EndOrder::because("MicroVM exceeded maximum lifetime."), true, None).await
                }
                Input::Open => self.wake_gone_back().await,
                Input::Nobody => return None,
            };
        }
    }

    /// What comes next: the backlog first, then whatever happens.
    async fn input(&mut self) -> Input {
        if let Some(message) = self.inbox.backlog.pop_front() {
            return Input::Message(message);
        }
        let checkpoint = self.core.checkpoint_due();
        let core = &self.core;
        let running = core.journal.state == LocalState::Running;
        let ended = async {
            match &core.live {
                Some(live) => live.machine.exited().await,
                None => std::future::pending().await,
            }
        };
        let idle = async {
            match core.idle_decision() {
                IdleDecision::Sleep | IdleDecision::StayAwake(_) => (),
                IdleDecision::Wait { until_ms, .. } => {
                    let rest_ms = until_ms.saturating_sub(core.host.monotonic_ms());
                    tokio::time::sleep(Duration::from_millis(rest_ms)).await;
                }
                IdleDecision::Never => std::future::pending().await,
            }
        };
        let interval = Duration::from_millis(core.host.config.timeouts.metering_interval_ms);
        tokio::select! {
            biased;
            Some(notice) = self.inbox.notices.recv() => Input::Notice(notice),
            reason = ended => Input::EngineEnded(reason),
            message = self.inbox.mailbox.recv() => message.map_or(Input::Nobody, Input::Message),
            () = core.host.open(), if self.to_wake => Input::Open,
            () = core.space_due(), if running => Input::SpaceDue,
            () = idle, if running && !core.is_out_of_space() => Input::IdleDue,
            () = due(checkpoint), if !core.is_out_of_space() => Input::CheckpointDue,
            // One that sleeps uses nothing; its end is the scheduler's alone.
            () = tokio::time::sleep(core.until_deadline()), if running => Input::Deadline,
            () = tokio::time::sleep(interval), if running => Input::Sample,
        }
    }

    /// Looks once more, since bytes may have moved meanwhile, and at what its policy names: that is measured now and at no
    /// other time.
    async fn idle_due(&mut self) {
        let requests = self.core.activity.requests();
        if self.core.spec.idle.awake_while.cpu_percent.is_some() {
            self.core.sample();
        }
        match self.core.idle_decision() {
            IdleDecision::Sleep => {
                let situation = self.core.activity.situation();
                let reason = sleep_sentence(&situation, self.core.host.monotonic_ms());
                self.fall_asleep(Cause::idle(reason), requests).await;
            }
            IdleDecision::StayAwake(reason) => self.core.activity.stay_awake(reason, &self.core.host),
            IdleDecision::Wait { .. } | IdleDecision::Never => {}
        }
    }

    async fn handle_command(&mut self, message: Message) -> ControlFlow<Ended> {
        let Message { mut command, generation, reply } = message;
        if let Err(failure) = self.fence(generation, &command) {
            return answered(reply, Err(failure));
        }
        let state = self.core.journal.state;
        match admit(state, ask(&command)) {
            Admission::Already => answered(reply, Ok(self.core.observed())),
            Admission::Asleep => answered(reply, Err(HostError::asleep())),
            Admission::Awake => answered(reply, Err(HostError::awake())),
            Admission::Ended => {
                answered(reply, Err(HostError::Ended { reason: self.core.journal.reason.clone() }))
            }
            Admission::Begin => match &mut command {
                Command::Launch => answered(reply, Ok(self.core.observed())),
                Command::Suspend(_) | Command::Checkpoint if self.core.is_out_of_space() => {
                    answered(reply, Err(HostError::out_of_space(&self.core.files.live_disk())))
                }
                Command::Suspend(cause) => {
                    let drained = *cause == TransitionCause::Drain;
                    let cause = if drained { Cause::drain() } else { Cause::requested() };
                    self.suspend(cause, vec![reply]).await;
                    ControlFlow::Continue(())
                }
                Command::KeepAwake(duration) => {
                    let kept = self.core.keep_awake(*duration);
                    answered(reply, kept.map(|()| self.core.observed()))
                }
                Command::Checkpoint => {
                    let made = self.core.checkpoint_asked().await;
                    answered(reply, made.map(|()| self.core.observed()))
                }
                Command::Save => {
                    self.core.sample();
                    let saved = self.core.save();
                    answered(reply, saved.map(|()| self.core.observed()))
                }
                Command::Resume(order, turn) => self.wake(order.take(), turn.take(), Some(reply)).await,
                Command::End(order) => self.end(order, true, Some(reply)).await,
                Command::GiveUp(named) => self.give_up(named, reply).await,
            },
            // Nothing is under way between two inputs, so a settled state never answers these.
            Admission::Join | Admission::After | Admission::Interrupt => {
                answered(reply, Err(HostError::Internal(format!("{state:?} is not settled"))))
            }
        }
    }

    /// Refuses what is older than the placement held; a newer one is taken
    /// over, since the scheduler has placed the microVM here again.
    fn fence(&mut self, offered: Option<u64>, command: &Command) -> Result<(), HostError> {
        let Some(offered) = offered else { return Ok(()) };
        let held = self.core.journal.generation;
        match fence(held, offered) {
            Fence::Stale => Err(HostError::StaleGeneration { held, offered }),
            Fence::Same => Ok(()),
            Fence::Newer => {
                self.core.journal.generation = offered;
                self.core.journal.meter.begin_placement();
                self.core.activity.begin_placement();
                // The numbering of observations begins again with a generation; a resume or an end publishes.
                if !matches!(command, Command::Resume(..) | Command::End(_) | Command::GiveUp(_)) {
                    self.core.publish();
                }
                Ok(())
            }
        }
    }

    /// When the launch fails, nothing of the microVM is left. A failed hook is the app's own verdict and is
    /// reported as the microVM's end; after any other failure the launch can be repeated here or elsewhere.
    async fn launch(&mut self, reply: oneshot::Sender<Outcome>) -> ControlFlow<Ended> {
        let cancel = CancellationToken::new();
        self.core.publish_quietly();
        let view = self.core.view.subscribe();
        let (result, joined) =
            run_transition(&mut self.inbox, &view, &cancel, self.core.launch(&cancel)).await;
        let replies = std::iter::once(reply).chain(joined);
        let Err(failure) = result else {
            answer(Ok(self.core.observed()), replies);
            return ControlFlow::Continue(());
        };
        tracing::warn!(microvm = %self.core.id, error = %failure, "launch failed");
        self.core.log.append(format!("launch failed: {failure}"));
        self.core.host.metrics.failed("launch");
        // When somebody ended the microVM while it was being launched, the launch was interrupted for that: the end that
        // was asked for is the one to record, not the interruption. It waits at the front of the backlog, and is answered
        // there once the microVM is gone.
        let asked = self.inbox.backlog.iter().find_map(|message| match &message.command {
            Command::End(order) => Some(order.clone()),
            _ => None,
        });
        let order = asked.unwrap_or_else(|| match failure {
            HostError::Hook { .. } => EndOrder::because(failure.to_string()),
            _ => EndOrder::discarding(failure.to_string()),
        });
        let report = self.core.end(&order, false).await;
        answer(Err(failure), replies);
        ControlFlow::Break(Ended { report })
    }

    /// Its own decision, which a request calls off that comes after the first `requests`. Whoever asks for a suspend meanwhile
    /// gets one all the same.
    async fn fall_asleep(&mut self, cause: Cause, requests: u64) {
        let (result, joined) = self.run_suspend(cause, Some(requests)).await;
        match result {
            Ok(Slept::CalledOff) if joined.is_empty() => {}
            Ok(Slept::CalledOff) => self.suspend(Cause::requested(), joined).await,
            result => self.suspended(result, joined).await,
        }
    }

    async fn suspend(&mut self, cause: Cause, mut replies: Vec<oneshot::Sender<Outcome>>) {
        let (result, joined) = self.run_suspend(cause, None).await;
        replies.extend(joined);
        self.suspended(result, replies).await;
    }

    async fn run_suspend(
        &mut self,
        cause: Cause,
        requests: Option<u64>,
    ) -> (Result<Slept, HostError>, Vec<oneshot::Sender<Outcome>>) {
        let cancel = CancellationToken::new();
        let view = self.core.view.subscribe();
        run_transition(&mut self.inbox, &view, &cancel, self.core.suspend(cause, requests)).await
    }

    async fn suspended(&mut self, result: Result<Slept, HostError>, replies: Vec<oneshot::Sender<Outcome>>) {
        if result.is_err() {
            self.core.host.metrics.failed("suspend");
        }
        let asleep = result.is_ok();
        let outcome = result.map(|_| self.core.observed());
        answer(outcome, replies.into_iter());
        if asleep {
            // The answer goes first.
            tokio::task::yield_now().await;
            self.core.after_suspend().await;
        }
    }

    /// A microVM whose wake fails sleeps on here, and the next request tries again. Only when this host never had its
    /// snapshot (the scheduler placed it here anew, and the copy in S3 could not be fetched) nothing is here that could
    /// sleep: the host forgets it, so that the scheduler may place it elsewhere. Nobody asks for the wake of one that has gone back
    /// to its recovery point: it ran, and goes on running.
    async fn wake(
        &mut self,
        order: Option<Box<super::ResumeOrder>>,
        turn: Option<Turn>,
        reply: Option<oneshot::Sender<Outcome>>,
    ) -> ControlFlow<Ended> {
        self.to_wake = false;
        let cancel = CancellationToken::new();
        let view = self.core.view.subscribe();
        let (result, joined) =
            run_transition(&mut self.inbox, &view, &cancel, self.core.wake(order, turn, &cancel)).await;
        if result.is_err() {
            self.core.host.metrics.failed("wake");
        }
        let mut flow = ControlFlow::Continue(());
        if let Err(failure) = &result
            && self.core.journal.sequence == 0
        {
            let report = self.core.end(&EndOrder::discarding(failure.to_string()), false).await;
            flow = ControlFlow::Break(Ended { report });
        }
        let outcome = result.map(|()| self.core.observed());
        answer(outcome, reply.into_iter().chain(joined));
        flow
    }

    async fn end(
        &mut self,
        order: &EndOrder,
        call_hook: bool,
        reply: Option<oneshot::Sender<Outcome>>,
    ) -> ControlFlow<Ended> {
        let cancel = CancellationToken::new();
        let view = self.core.view.subscribe();
        let (report, joined) =
            run_transition(&mut self.inbox, &view, &cancel, self.core.end(order, call_hook)).await;
        answer(Ok(self.core.observed()), reply.into_iter().chain(joined));
        ControlFlow::Break(Ended { report })
    }

    /// Answers everyone who still waits for a microVM that is gone.
    fn drain_mailbox(&mut self) {
        self.inbox.mailbox.close();
        let failure = HostError::Ended { reason: self.core.journal.reason.clone() };
        let observed = self.core.observed();
        while let Some(message) =
            self.inbox.backlog.pop_front().or_else(|| self.inbox.mailbox.try_recv().ok())
        {
            let ended = matches!(message.command, Command::End(_));
            let _ = message.reply.send(if ended { Ok(observed.clone()) } else { Err(failure.clone()) });
        }
    }
}

fn answered(reply: oneshot::Sender<Outcome>, outcome: Outcome) -> ControlFlow<Ended> {
    // A caller that hung up has nothing to hear.
    let _ = reply.send(outcome);
    ControlFlow::Continue(())
}

async fn due(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Core {
    /// Time until the microVM must have ended, on a clock that nobody sets. The scheduler ends it on time; the host only
    /// when nobody else did.
    fn until_deadline(&self) -> Duration {
        self.spec.deadline.map_or(Duration::MAX / 4, |deadline| {
            (deadline + DEADLINE_GRACE).duration_since(self.host.steady.now()).unwrap_or_default()
        })
    }

    fn idle_decision(&self) -> IdleDecision {
        decide(&self.spec.idle, &self.activity.situation(), self.host.monotonic_ms())
    }
}
