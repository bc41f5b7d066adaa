//! What waits for a driver, and sorting what arrives while a transition is under way.

use std::collections::VecDeque;

use api::host::v1::ObservedMicrovm;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::core::Notice;
use super::{Command, Message, Outcome, View};
use crate::domain::app_end::AppEnd;
use crate::domain::fence::{Fence, fence};
use crate::domain::local_state::{Admission, Ask, admit};
use crate::domain::{HostError, LocalState};

pub struct Inbox {
    pub mailbox: mpsc::Receiver<Message>,
    pub notices: mpsc::Receiver<Notice>,
    /// Commands that must wait for what is under way.
    pub backlog: VecDeque<Message>,
    backlog_max: usize,
}

impl Inbox {
    /// An inbox that lets at most `backlog_max` commands wait beyond the mailbox.
    pub fn new(
        mailbox: mpsc::Receiver<Message>,
        notices: mpsc::Receiver<Notice>,
        backlog_max: usize,
    ) -> Self {
        Self { mailbox, notices, backlog: VecDeque::new(), backlog_max }
    }

    /// How the app ended, once the guest-agent says so; other news of a microVM whose engine is gone do not matter any more.
    pub async fn app_end(&mut self) -> Option<AppEnd> {
        loop {
            if let Notice::AppExited(end) = self.notices.recv().await? {
                return Some(end);
            }
        }
    }
}

/// Runs a transition while admitting what arrives meanwhile. Returns its result
/// and those who share its outcome.
pub async fn run_transition<T>(
    inbox: &mut Inbox,
    view: &watch::Receiver<View>,
    cancel: &CancellationToken,
    transition: impl Future<Output = T>,
) -> (T, Vec<oneshot::Sender<Outcome>>) {
    let mut joined = Vec::new();
    tokio::pin!(transition);
    loop {
        tokio::select! {
            biased;
            result = &mut transition => return (result, joined),
            Some(message) = inbox.mailbox.recv(), if inbox.backlog.len() < inbox.backlog_max => {
                admit_message(inbox, view, cancel, &mut joined, message);
            }
        }
    }
}

fn admit_message(
    inbox: &mut Inbox,
    view: &watch::Receiver<View>,
    cancel: &CancellationToken,
    joined: &mut Vec<oneshot::Sender<Outcome>>,
    mut message: Message,
) {
    let (state, held, observed): (LocalState, u64, ObservedMicrovm) = {
        let view = view.borrow();
        (view.state, view.generation, view.observed.clone())
    };
    let offered = message.generation.unwrap_or(held);
    if fence(held, offered) == Fence::Stale {
        let _ = message.reply.send(Err(HostError::StaleGeneration { held, offered }));
        return;
    }
    match admit(state, ask(&message.command)) {
        // A newer placement's command is not the one under way.
        Admission::Join if offered == held => joined.push(message.reply),
        Admission::Already => {
            let _ = message.reply.send(Ok(observed));
        }
        Admission::Ended => {
            let _ = message.reply.send(Err(HostError::Ended { reason: observed.state_reason }));
        }
        Admission::Asleep => {
            let _ = message.reply.send(Err(HostError::asleep()));
        }
        Admission::Awake => {
            let _ = message.reply.send(Err(HostError::awake()));
        }
        Admission::Interrupt => {
            cancel.cancel();
            inbox.backlog.push_front(message);
        }
        Admission::Begin | Admission::After | Admission::Join => {
            // What is under way may wait for a turn itself: one that waits for it must not keep it from it.
            if let Command::Resume(_, turn) = &mut message.command {
                drop(turn.take());
            }
            inbox.backlog.push_back(message);
        }
    }
}

/// The question a command puts to the admission table.
pub fn ask(command: &Command) -> Ask {
    match command {
        Command::Launch => Ask::Launch,
        Command::Suspend(_) => Ask::Suspend,
        // All are for one that runs, and wait for what is under way.
        Command::KeepAwake(_) | Command::Checkpoint | Command::Save => Ask::KeepAwake,
        Command::Resume(..) => Ask::Resume,
        Command::End(_) => Ask::Terminate,
        Command::GiveUp(_) => Ask::GiveUp,
    }
}

pub fn answer(outcome: Outcome, replies: impl Iterator<Item = oneshot::Sender<Outcome>>) {
    for reply in replies {
        // A caller that hung up has nothing to hear.
        let _ = reply.send(outcome.clone());
    }
}
