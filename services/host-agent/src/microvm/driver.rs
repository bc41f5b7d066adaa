//! The task that drives one microVM: takes commands, engine ends, guest events
//! and timers one after the other, and decides nothing that a table in `domain`
//! can decide.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::core::{Core, Notice};
use super::end::exit_sentence;
use super::inbox::{Inbox, answer, ask, attend};
use super::{Command, EndOrder, Handle, Message, Outcome};
use crate::adapters::journal::Tombstone;
use crate::domain::fence::{Fence, fence};
use crate::domain::idle::{Idleness, Verdict, judge};
use crate::domain::phase::{Admission, admit};
use crate::domain::{Failure, Phase};

/// Notices that may wait.
pub const NOTICES_MAX: usize = 16;
/// After the app's end is known by the engine's end alone: how long the guest's
/// own word for it may still take.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long after its deadline a host ends a microVM that the scheduler has not ended.
const DEADLINE_GRACE: Duration = Duration::from_secs(5);

/// One microVM's driver.
pub struct Driver {
    core: Core,
    inbox: Inbox,
}

/// What a driver begins with.
pub enum First {
    /// A new microVM: launch it and answer.
    Launch(oneshot::Sender<Outcome>),
    /// A microVM that is settled already.
    Settled,
}

enum Input {
    Message(Message),
    Notice(Notice),
    EngineEnded(vmm::ExitReason),
    Idle,
    Sample,
    Deadline,
    Nobody,
}

impl Driver {
    /// A driver and the handle to it. Nothing runs before [`Driver::drive`].
    #[must_use]
    pub fn new(core: Core, notices: mpsc::Receiver<Notice>) -> (Self, Handle) {
        let limits = &core.host.config.limits;
        let (sender, mailbox) = mpsc::channel(limits.mailbox);
        let handle = Handle {
            id: Arc::from(core.id.as_str()),
            no_ingress: core.spec.ingress.is_closed(),
            view: core.view.subscribe(),
            activity: Arc::clone(&core.activity),
            log: Arc::clone(&core.log),
            mailbox: sender,
        };
        let inbox = Inbox::new(mailbox, notices, limits.mailbox);
        (Self { core, inbox }, handle)
    }

    /// Drives it until it is gone or nobody holds a handle any more. Returns
    /// what is to be reported of its end; `None` when nothing is.
    pub async fn drive(mut self, first: First) -> Option<Tombstone> {
        match first {
            First::Launch(reply) => {
                if let Some(gone) = self.launch(reply).await {
                    self.turn_away();
                    return gone;
                }
            }
            First::Settled => self.core.start_upload(),
        }
        loop {
            let gone = match self.input().await {
                Input::Message(message) => self.obey(message).await,
                Input::Notice(notice) => self.notice(notice).await,
                Input::EngineEnded(reason) => self.engine_ended(&reason).await,
                Input::Idle => {
                    self.suspend(None).await;
                    None
                }
                Input::Sample => {
                    self.core.sample();
                    None
                }
                Input::Deadline => {
                    let reason = "MicroVM exceeded maximum lifetime.".to_owned();
                    Some(self.end(&EndOrder { reason, discard: false }, true, None).await)
                }
                Input::Nobody => return None,
            };
            if let Some(gone) = gone {
                self.turn_away();
                return gone;
            }
        }
    }

    /// What comes next: the backlog first, then whatever happens.
    async fn input(&mut self) -> Input {
        if let Some(message) = self.inbox.backlog.pop_front() {
            return Input::Message(message);
        }
        let core = &self.core;
        let running = core.journal.phase == Phase::Running;
        let ended = async {
            match &core.live {
                Some(live) => live.machine.exited().await,
                None => std::future::pending().await,
            }
        };
        let idle = async {
            match core.idle_verdict() {
                Verdict::Sleep => (),
                Verdict::Wait(rest) => tokio::time::sleep(rest).await,
                Verdict::Never => std::future::pending().await,
            }
        };
        let interval = Duration::from_millis(core.host.config.timeouts.metering_interval_ms);
        tokio::select! {
            biased;
            Some(notice) = self.inbox.notices.recv() => Input::Notice(notice),
            reason = ended => Input::EngineEnded(reason),
            message = self.inbox.mailbox.recv() => message.map_or(Input::Nobody, Input::Message),
            () = idle, if running => {
                // Bytes may have moved while we slept.
                match core.idle_verdict() {
                    Verdict::Sleep => Input::Idle,
                    Verdict::Wait(_) | Verdict::Never => Input::Sample,
                }
            }
            () = tokio::time::sleep(core.until_deadline()) => Input::Deadline,
            () = tokio::time::sleep(interval), if running => Input::Sample,
        }
    }

    /// Answers one command. `Some` when the microVM is gone afterwards.
    async fn obey(&mut self, message: Message) -> Option<Option<Tombstone>> {
        let Message { mut command, generation, reply } = message;
        if let Err(failure) = self.fence(generation, &command) {
            let _ = reply.send(Err(failure));
            return None;
        }
        let phase = self.core.journal.phase;
        match admit(phase, ask(&command)) {
            Admission::Already => {
                let _ = reply.send(Ok(self.core.observed()));
                None
            }
            Admission::Asleep => {
                let _ = reply.send(Err(Failure::Conflict("the microVM is suspended".to_owned())));
                None
            }
            Admission::Ended => {
                let _ = reply.send(Err(Failure::Ended { reason: self.core.journal.reason.clone() }));
                None
            }
            Admission::Begin => match &mut command {
                Command::Launch => {
                    let _ = reply.send(Ok(self.core.observed()));
                    None
                }
                Command::Suspend => {
                    self.suspend(Some(reply)).await;
                    None
                }
                Command::Resume(order) => self.wake(order.take(), reply).await,
                Command::End(order) => Some(self.end(order, true, Some(reply)).await),
            },
            // Nothing is under way between two inputs, so a settled phase never answers these.
            Admission::Join | Admission::After | Admission::Interrupt => {
                let _ = reply.send(Err(Failure::Internal(format!("{phase:?} is not settled"))));
                None
            }
        }
    }

    /// Refuses what is older than the placement held; a newer one is taken
    /// over, since the scheduler has placed the microVM here again.
    fn fence(&mut self, offered: Option<u64>, command: &Command) -> Result<(), Failure> {
        let Some(offered) = offered else { return Ok(()) };
        let held = self.core.journal.generation;
        match fence(held, offered) {
            Fence::Stale => Err(Failure::StaleGeneration { held, offered }),
            Fence::Same => Ok(()),
            Fence::Newer => {
                self.core.journal.generation = offered;
                // The numbering of observations begins again with a generation; a resume or an end publishes.
                if !matches!(command, Command::Resume(_) | Command::End(_)) {
                    self.core.publish();
                }
                Ok(())
            }
        }
    }

    /// `Some` when the launch failed: nothing of the microVM is left then. A
    /// failed hook is the app's own verdict and is reported as the microVM's end;
    /// after any other failure the launch can be repeated here or elsewhere.
    async fn launch(&mut self, reply: oneshot::Sender<Outcome>) -> Option<Option<Tombstone>> {
        let cancel = CancellationToken::new();
        self.core.publish_quietly();
        let view = self.core.view.subscribe();
        let (result, joined) = attend(&mut self.inbox, &view, &cancel, self.core.launch(&cancel)).await;
        let replies = std::iter::once(reply).chain(joined);
        let Err(failure) = result else {
            answer(Ok(self.core.observed()), replies);
            return None;
        };
        tracing::warn!(microvm = %self.core.id, error = %failure, "launch failed");
        self.core.host.metrics.failed("launch");
        let asked = self.inbox.backlog.iter().find_map(|message| match &message.command {
            Command::End(order) => Some(order.clone()),
            _ => None,
        });
        let order = asked.unwrap_or_else(|| EndOrder {
            reason: failure.to_string(),
            discard: !matches!(failure, Failure::Hook { .. }),
        });
        let tombstone = self.core.end(&order, false).await;
        answer(Err(failure), replies);
        Some(tombstone)
    }

    async fn suspend(&mut self, reply: Option<oneshot::Sender<Outcome>>) {
        let cancel = CancellationToken::new();
        let view = self.core.view.subscribe();
        let (result, joined) = attend(&mut self.inbox, &view, &cancel, self.core.suspend()).await;
        if result.is_err() {
            self.core.host.metrics.failed("suspend");
        }
        let asleep = result.is_ok();
        let outcome = result.map(|()| self.core.observed());
        answer(outcome, reply.into_iter().chain(joined));
        if asleep {
            // The answer goes first.
            tokio::task::yield_now().await;
            self.core.after_suspend().await;
        }
    }

    /// `Some` when it failed and this host never had the snapshot: then it holds
    /// nothing and says so.
    async fn wake(
        &mut self,
        order: Option<Box<super::ResumeOrder>>,
        reply: oneshot::Sender<Outcome>,
    ) -> Option<Option<Tombstone>> {
        let cancel = CancellationToken::new();
        let view = self.core.view.subscribe();
        let (result, joined) = attend(&mut self.inbox, &view, &cancel, self.core.wake(order, &cancel)).await;
        if result.is_err() {
            self.core.host.metrics.failed("wake");
        }
        let mut gone = None;
        if let Err(failure) = &result
            && self.core.journal.sequence == 0
        {
            gone = Some(self.core.end(&EndOrder { reason: failure.to_string(), discard: true }, false).await);
        }
        let outcome = result.map(|()| self.core.observed());
        answer(outcome, std::iter::once(reply).chain(joined));
        gone
    }

    async fn end(
        &mut self,
        order: &EndOrder,
        call_hook: bool,
        reply: Option<oneshot::Sender<Outcome>>,
    ) -> Option<Tombstone> {
        let cancel = CancellationToken::new();
        let view = self.core.view.subscribe();
        let (tombstone, joined) =
            attend(&mut self.inbox, &view, &cancel, self.core.end(order, call_hook)).await;
        answer(Ok(self.core.observed()), reply.into_iter().chain(joined));
        tombstone
    }

    async fn notice(&mut self, notice: Notice) -> Option<Option<Tombstone>> {
        match notice {
            Notice::Uploaded { copy, difference_bytes } => {
                self.core.uploaded(copy, difference_bytes);
                None
            }
            // Of a guest that has been put to sleep or has ended since: no news.
            Notice::AppExited(_) if self.core.live.is_none() => None,
            Notice::AppExited(end) => {
                let reason = end.sentence(self.core.spec.snapshot.memory_mib);
                Some(self.end(&EndOrder { reason, discard: false }, false, None).await)
            }
        }
    }

    async fn engine_ended(&mut self, reason: &vmm::ExitReason) -> Option<Option<Tombstone>> {
        let mut sentence = exit_sentence(reason);
        if matches!(reason, vmm::ExitReason::GuestShutdown | vmm::ExitReason::GuestReset)
            && let Ok(Some(Notice::AppExited(app))) =
                tokio::time::timeout(LAST_WORDS, self.inbox.notices.recv()).await
        {
            sentence = app.sentence(self.core.spec.snapshot.memory_mib);
        }
        Some(self.end(&EndOrder { reason: sentence, discard: false }, false, None).await)
    }

    /// Answers everyone who still waits for a microVM that is gone.
    fn turn_away(&mut self) {
        self.inbox.mailbox.close();
        let failure = Failure::Ended { reason: self.core.journal.reason.clone() };
        let observed = self.core.observed();
        while let Some(message) =
            self.inbox.backlog.pop_front().or_else(|| self.inbox.mailbox.try_recv().ok())
        {
            let ended = matches!(message.command, Command::End(_));
            let _ = message.reply.send(if ended { Ok(observed.clone()) } else { Err(failure.clone()) });
        }
    }
}

impl Core {
    /// Time until the microVM must have ended. The scheduler ends it on time;
    /// the host only when nobody else did.
    fn until_deadline(&self) -> Duration {
        self.spec.deadline.map_or(Duration::MAX / 4, |deadline| {
            (deadline + DEADLINE_GRACE).duration_since(std::time::SystemTime::now()).unwrap_or_default()
        })
    }

    fn idle_verdict(&self) -> Verdict {
        let limit = self.spec.idle_limit;
        let last_activity_ms = self.activity.last_ms().max(self.idle_floor_ms);
        judge(Idleness { last_activity_ms, limit }, self.host.monotonic_ms())
    }
}
