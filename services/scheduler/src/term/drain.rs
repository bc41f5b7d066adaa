//! Draining a host: nothing new is placed on it, what runs there is put to sleep, and, if the caller wants that, goes on
//! elsewhere as soon as S3 has it and a host has room.
//!
//! The mark in etcd is all there is to know: the records say what is still to do. So a drain goes on under the next leader,
//! and whoever asked for it may ask again how far it has come.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::host::v1::{DrainLeft, DrainProgress, Host};
use api::microvm::v1::TransitionCause;
use futures::StreamExt as _;
use model::state::MicrovmState;
use model::{HostId, MicrovmId};
use records::Expect;

use super::Term;
use super::memory::{Handle, Memory};
use crate::domain::microvm::{Intent, Microvm};
use crate::refusal::Refusal;

/// Prefix of the keys that mark drained hosts.
pub const DRAINS: &str = "drains/";
/// The mark of a host whose microVMs go on elsewhere; that of another is empty.
const WAKE_ELSEWHERE: &[u8] = b"wake-elsewhere";
/// Suspends and wakes at a time for a draining host.
const DRAIN_CONCURRENT: usize = 4;
/// When a microVM did not move, it is tried again after this: an app's hook may be what refuses.
const AGAIN: Duration = Duration::from_secs(10);
/// Most microVMs that are named as not having moved.
const LEFT_MAX: usize = 100;

/// Why a microVM of a draining host has not moved, and when it is tried again.
#[derive(Debug)]
pub(crate) struct Unmoved {
    reason: String,
    again: SystemTime,
}

/// What a drain has to do for a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Todo {
    /// It runs, or something is under way.
    Suspend,
    /// It sleeps, and S3 does not have it yet.
    Upload,
    /// It sleeps because of the drain, and is to go on elsewhere.
    Wake,
}

/// Whether a host's mark says that its microVMs go on elsewhere.
pub(crate) fn wakes_elsewhere(mark: &[u8]) -> bool {
    mark == WAKE_ELSEWHERE
}

impl Term {
    /// Stops placements on a host, and moves what is there. Asked again it goes on, and says how far it has come.
    pub async fn drain(self: &Arc<Self>, host: &HostId, wake_elsewhere: bool) -> Result<Host, Refusal> {
        self.host(host)?;
        let now = self.now();
        let marked = {
            let mut memory = self.memory();
            let host = memory.hosts.entry(host, now);
            host.draining && host.wake_elsewhere == wake_elsewhere
        };
        if !marked {
            let mark = if wake_elsewhere { WAKE_ELSEWHERE.to_vec() } else { Vec::new() };
            let key = format!("{DRAINS}{host}");
            let put = self.context.store.put_if(&key, mark, Expect::Any, Some(&self.leadership));
            put.await?;
            // Dying here is fine: the next leader reads the mark and drains.
            tracing::info!(%host, wake_elsewhere, "draining");
            let mut memory = self.memory();
            let entry = memory.hosts.entry(host, now);
            (entry.draining, entry.wake_elsewhere) = (true, wake_elsewhere);
        }
        self.continue_drain(host);
        self.host(host)
    }

    /// Lets a drained host take placements again. What the drain put to sleep to wake it elsewhere, and could not, wakes here.
    pub async fn undrain(self: &Arc<Self>, host: &HostId) -> Result<Host, Refusal> {
        self.host(host)?;
        let key = format!("{DRAINS}{host}");
        let delete = self.context.store.delete_if(&key, Expect::Any, Some(&self.leadership));
        delete.await?;
        // When the scheduler dies here, those sleep until a request or a caller wakes them.
        tracing::info!(%host, "taking placements again");
        let left: Vec<Arc<Handle>> = {
            let mut memory = self.memory();
            let entry = memory.hosts.entry(host, self.now());
            entry.draining = false;
            let woken = std::mem::take(&mut entry.wake_elsewhere);
            let left = memory.on_host(host);
            for handle in &left {
                memory.unmoved.remove(&handle.id);
            }
            left.into_iter().filter(|handle| woken && slept_for_drain(&handle.current())).collect()
        };
        let term = Arc::clone(self);
        self.spawn(async move { term.wake_moved(left).await });
        self.host(host)
    }

    /// Goes on with every drain, once each, and wakes what a drain has moved and the other host did not wake at once.
    pub(crate) fn continue_drains(self: &Arc<Self>) {
        let now = self.now();
        let (draining, moved): (Vec<HostId>, Vec<Arc<Handle>>) = {
            let mut memory = self.memory();
            let hosts = memory.hosts.iter().filter(|(_, host)| host.draining && host.lease_gone.is_none());
            let draining = hosts.map(|(id, _)| id.clone()).collect();
            let due = memory.unmoved.iter().filter(|(_, unmoved)| unmoved.again <= now);
            let due = due.filter_map(|(id, _)| memory.get(id));
            let moved: Vec<_> = due.filter(|one| one.is_idle() && is_moved_asleep(&one.current())).collect();
            for one in &moved {
                if let Some(unmoved) = memory.unmoved.get_mut(&one.id) {
                    unmoved.again = now + AGAIN;
                }
            }
            (draining, moved)
        };
        for host in draining {
            self.continue_drain(&host);
        }
        if !moved.is_empty() {
            let term = Arc::clone(self);
            self.spawn(async move { term.wake_moved(moved).await });
        }
    }

    /// Suspends and wakes what is due on a draining host, unless that is under way.
    fn continue_drain(self: &Arc<Self>, host: &HostId) {
        let now = self.now();
        let due: Vec<Arc<Handle>> = {
            let mut memory = self.memory();
            let wake = memory.hosts.get(host).is_some_and(|host| host.wake_elsewhere);
            let is_due = |handle: &Arc<Handle>| {
                let tried = memory.unmoved.get(&handle.id).is_none_or(|unmoved| unmoved.again <= now);
                let todo = todo(&handle.current(), wake);
                tried && handle.is_idle() && matches!(todo, Some(Todo::Suspend | Todo::Wake))
            };
            let due: Vec<_> = memory.on_host(host).into_iter().filter(is_due).collect();
            if due.is_empty() || !memory.draining.insert(host.clone()) {
                return;
            }
            due
        };
        let (term, host) = (Arc::clone(self), host.clone());
        self.spawn(async move {
            term.work_off(due, false).await;
            // A term that is over is dropped with this note.
            term.memory().draining.remove(&host);
        });
    }

    /// Wakes what a drain has put to sleep; one that does not wake is tried again.
    pub(crate) async fn wake_moved(self: &Arc<Self>, handles: Vec<Arc<Handle>>) {
        self.work_off(handles, true).await;
    }

    /// Suspends those that run and wakes those that sleep, a few at a time, and notes why one does not move.
    async fn work_off(self: &Arc<Self>, handles: Vec<Arc<Handle>>, wake_only: bool) {
        let moves = handles.into_iter().map(|handle| {
            let term = Arc::clone(self);
            async move {
                let moved = match handle.current().state {
                    MicrovmState::Running if !wake_only => {
                        term.suspend(&handle.id, TransitionCause::Drain).await
                    }
                    MicrovmState::Suspended => term.resume(&handle.id).await,
                    _ => return,
                };
                term.note_move(&handle.id, moved.err());
            }
        });
        let moves: Vec<_> = moves.collect();
        let mut moves = futures::stream::iter(moves).buffer_unordered(DRAIN_CONCURRENT);
        while moves.next().await.is_some() {}
    }

    fn note_move(&self, id: &MicrovmId, refusal: Option<Refusal>) {
        let again = self.now() + AGAIN;
        let mut memory = self.memory();
        let Some(refusal) = refusal.filter(|_| memory.get(id).is_some()) else {
            memory.unmoved.remove(id);
            return;
        };
        let before = memory.unmoved.insert(id.clone(), Unmoved { reason: refusal.to_string(), again });
        if before.is_none() {
            tracing::warn!(microvm = %id, %refusal, "does not move for the drain yet");
        }
    }
}

/// How far the drain of a host has come.
pub(crate) fn progress(memory: &Memory, id: &HostId, wake_elsewhere: bool) -> DrainProgress {
    let mut progress = DrainProgress::default();
    for handle in memory.on_host(id) {
        let record = handle.current();
        // One that is being woken here runs in a moment.
        let waking = record.state == MicrovmState::Suspended && !handle.is_idle();
        let todo = if waking { Some(Todo::Suspend) } else { todo(&record, wake_elsewhere) };
        let Some(todo) = todo else { continue };
        let (count, otherwise) = match todo {
            Todo::Suspend if waking => (&mut progress.running, "it is being woken".to_owned()),
            Todo::Suspend => (&mut progress.running, format!("it is {}", record.state)),
            Todo::Upload => (&mut progress.only_here, "its only copy is on its way to S3".to_owned()),
            Todo::Wake => (&mut progress.to_wake, "it sleeps, and is about to wake elsewhere".to_owned()),
        };
        *count += 1;
        if progress.left.len() < LEFT_MAX {
            let unmoved = memory.unmoved.get(&record.id).filter(|_| todo != Todo::Upload);
            let refused = unmoved.is_some();
            let reason = unmoved.map_or(otherwise, |unmoved| unmoved.reason.clone());
            progress.left.push(DrainLeft { microvm_id: record.id.to_string(), reason, refused });
        }
    }
    progress
}

/// What is to be done before the host can go; nothing when it has ended, or S3 has it and it may sleep.
fn todo(record: &Microvm, wake_elsewhere: bool) -> Option<Todo> {
    match record.state {
        MicrovmState::Terminated => None,
        MicrovmState::Suspended if !record.has_remote_copy() => Some(Todo::Upload),
        MicrovmState::Suspended => (wake_elsewhere && slept_for_drain(record)).then_some(Todo::Wake),
        _ => Some(Todo::Suspend),
    }
}

/// Whether a drain has moved a microVM to another host and not woken it there: the leader died in between.
pub(crate) fn is_moved_asleep(record: &Microvm) -> bool {
    slept_for_drain(record) && record.snapshot.as_ref().is_some_and(|copies| copies.remote && !copies.local)
}

/// Whether a microVM sleeps because its host was drained: it ran, and nobody wanted it to sleep.
fn slept_for_drain(record: &Microvm) -> bool {
    let last = record.last_transition.as_ref();
    record.state == MicrovmState::Suspended
        && record.intent == Intent::Live
        && last.is_some_and(|last| last.kind == "suspend" && last.cause() == TransitionCause::Drain)
}
