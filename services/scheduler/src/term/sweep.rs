//! What happens by the clock: deadlines, hosts given up, drains, retention, key rotation, gauges. One task for
//! deadlines, one for records beyond their number, one for the days' use and one for the rest, whatever the number of
//! microVMs.

use std::sync::Arc;
use std::time::Duration;

use model::HostId;
use model::state::MicrovmState;

use super::Term;
use super::memory::Handle;
use crate::domain::microvm::REASON_LIFETIME;
use crate::domain::timers::{self, Due};

/// Longest sleep of the deadline task: ends may be held back meanwhile, or not any more.
const TICK: Duration = Duration::from_secs(1);
const DUE_MAX: usize = 256;
/// When a deadline's work failed, it is due again after this.
const AGAIN: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_millis(500);
/// Sweeps between looks at keys and the store.
const SLOW_SWEEPS: u32 = 20;

impl Term {
    pub(crate) fn start_sweeps(self: &Arc<Self>) {
        let term = Arc::clone(self);
        self.spawn(async move { term.watch_deadlines().await });
        let term = Arc::clone(self);
        self.spawn(async move { term.forget_surplus().await });
        let term = Arc::clone(self);
        self.spawn(async move { term.count_days().await });
        let term = Arc::clone(self);
        self.spawn(async move { term.sweep().await });
        let term = Arc::clone(self);
        self.spawn(async move { term.sweep_snapshots().await });
    }

    async fn watch_deadlines(self: Arc<Self>) {
        loop {
            if self.ends_are_held_back() {
                tokio::time::sleep(TICK).await;
                continue;
            }
            let now = self.now();
            let (due, next) = {
                let mut memory = self.memory();
                (memory.timers.take_due(now, DUE_MAX), memory.timers.earliest())
            };
            let due = due.iter().filter_map(|id| self.handle(id).ok());
            let (forgotten, ended): (Vec<Arc<Handle>>, Vec<Arc<Handle>>) =
                due.partition(|handle| handle.current().terminate_time.is_some());
            for handle in ended {
                let term = Arc::clone(&self);
                self.spawn(async move { term.deadline(handle).await });
            }
            if !forgotten.is_empty() {
                let term = Arc::clone(&self);
                self.spawn(async move { term.forget(forgotten).await });
            }
            let wait = next.map_or(TICK, |next| next.duration_since(now).unwrap_or_default().min(TICK));
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = self.timers_changed.notified() => {}
            }
        }
    }

    /// Erases records whose retention is over. Their timers were taken out to get here, see [`Term::deadline`].
    async fn forget(self: Arc<Self>, handles: Vec<Arc<Handle>>) {
        if let Err(refusal) = self.erase(&handles).await {
            tracing::debug!(%refusal, records = handles.len(), "records not forgotten yet");
            let again = self.now() + AGAIN;
            let mut memory = self.memory();
            for handle in &handles {
                // Those that are gone have no timer to set.
                if memory.get(&handle.id).is_some() {
                    memory.timers.set(&handle.id, Some(again));
                }
            }
        }
    }

    /// Ends a microVM whose time is over. The timer was taken out to get here: when this fails it is set
    /// again, and when the leader dies the next one sets the timers of all records anew.
    async fn deadline(self: Arc<Self>, handle: Arc<Handle>) {
        let now = self.now();
        let microvm = handle.current();
        let done = match timers::next(&microvm, self.config().retention()) {
            // It moved since: whoever changed the record set the timer anew.
            Some((deadline, _)) if deadline > now => {
                self.memory().timers.set(&handle.id, Some(deadline));
                return;
            }
            Some((_, Due::End)) => self.begin_end(&handle, REASON_LIFETIME).await.map(|_| ()),
            // It ended meanwhile, and its retention is over: the next round forgets it.
            Some((_, Due::Forget)) => Ok(()),
            None => return,
        };
        if let Err(refusal) = done {
            tracing::debug!(microvm = %handle.id, %refusal, "deadline not served yet");
            self.memory().timers.set(&handle.id, Some(now + AGAIN));
        }
    }

    async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count: u32 = 0;
        loop {
            ticks.tick().await;
            self.keep_time().await;
            self.leave_lost_hosts();
            self.continue_drains();
            let term = Arc::clone(&self);
            self.spawn(async move { term.remove_deleted_connectors().await });
            let term = Arc::clone(&self);
            self.spawn(async move { term.remove_dangling_domains().await });
            if count.is_multiple_of(SLOW_SWEEPS) {
                self.look_at_store().await;
                self.rotate_keys().await;
            }
            self.gauge();
            count = count.wrapping_add(1);
        }
    }

    /// What ran on a host that is gone for good has ended; what slept there
    /// stays, it may wake elsewhere or when the host is back.
    ///
    /// The grace is longer than the fence: when a host was only cut off, it is back
    /// within it and goes on with what it ran. When it is back after the grace, it
    /// reports what it holds, and is told to drop what was ended here meanwhile.
    ///
    /// What has a recovery point is not ended at all: it goes on elsewhere as soon as the host has stopped its traffic, and
    /// when that cannot be recorded the next sweep tries again.
    fn leave_lost_hosts(self: &Arc<Self>) {
        let (now, fence, grace) = (self.now(), self.config().fence_grace(), self.config().lost_grace());
        let fenced: Vec<(HostId, bool, Vec<Arc<Handle>>)> = {
            let memory = self.memory();
            let holding = memory.hosts.iter().filter(|(_, host)| host.held > 0).map(|(id, _)| id);
            let given_up = holding.filter(|id| self.may_give_up(&memory, id, fence, now));
            let lost = |id: &HostId| self.may_give_up(&memory, id, grace, now);
            given_up.map(|id| (id.clone(), lost(id), memory.on_host(id))).collect()
        };
        for (host, lost, handles) in fenced {
            for handle in handles {
                let record = handle.current();
                let (term, reason) = (Arc::clone(self), format!("Host {host} was lost."));
                match record.state {
                    MicrovmState::Running | MicrovmState::Suspending if record.has_recovery_point() => {
                        let host = host.clone();
                        self.spawn(async move { term.recover(&host, &handle, &reason).await });
                    }
                    MicrovmState::Pending | MicrovmState::Running | MicrovmState::Suspending if lost => {
                        let host = host.clone();
                        self.spawn(async move {
                            term.record_unasked_end(Some(&host), &handle, &reason).await;
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Erases the oldest terminated records beyond their number, as many as there are, however fast they come.
    async fn forget_surplus(self: Arc<Self>) {
        loop {
            let surplus = self.memory().surplus(self.config().retained_max, DUE_MAX);
            let handles: Vec<Arc<Handle>> = surplus.iter().filter_map(|id| self.handle(id).ok()).collect();
            if handles.is_empty() {
                tokio::time::sleep(SWEEP).await;
            } else if let Err(refusal) = self.erase(&handles).await {
                tracing::debug!(%refusal, "records beyond their number not forgotten yet");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    async fn rotate_keys(&self) {
        let rotation = Duration::from_secs(self.config().key_rotation_seconds);
        let store = &self.context.store;
        if let Err(error) = self.token_keys.rotate(store, &self.leadership, rotation, self.wall()).await {
            tracing::warn!(%error, "token keys not rotated yet");
        }
    }

    fn gauge(&self) {
        // Counting a million records every half second would be a waste.
        let memory = self.memory();
        let hosts = memory.hosts.iter().map(|(_, host)| host.state());
        self.context.metrics.gauges(memory.living(), memory.hosts.bakes(), hosts);
    }
}
