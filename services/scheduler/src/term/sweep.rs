//! What happens by the clock: deadlines, hosts given up, drains, retention, key rotation, gauges. One task
//! for deadlines and one for the rest, whatever the number of microVMs.

use std::sync::Arc;
use std::time::Duration;

use model::HostId;
use model::state::MicrovmState;

use super::Term;
use super::memory::Handle;
use crate::domain::microvm::REASON_LIFETIME;
use crate::domain::timers::{self, Due};

/// Longest sleep of the deadline task: the wall clock may be set.
const TICK: Duration = Duration::from_secs(1);
const DUE_MAX: usize = 256;
/// When a deadline's work failed, it is due again after this.
const AGAIN: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_millis(500);
/// Sweeps between looks at keys, drains that are stuck, and retention.
const SLOW_SWEEPS: u32 = 20;

impl Term {
    pub(crate) fn start_sweeps(self: &Arc<Self>) {
        let term = Arc::clone(self);
        self.spawn(async move { term.watch_deadlines().await });
        let term = Arc::clone(self);
        self.spawn(async move { term.sweep().await });
        let term = Arc::clone(self);
        self.spawn(async move { term.sweep_snapshots().await });
    }

    async fn watch_deadlines(self: Arc<Self>) {
        loop {
            let now = self.now();
            let (due, next) = {
                let mut memory = self.memory();
                (memory.timers.take_due(now, DUE_MAX), memory.timers.earliest())
            };
            for id in &due {
                if let Ok(handle) = self.handle(id) {
                    let term = Arc::clone(&self);
                    self.spawn(async move { term.deadline(handle).await });
                }
            }
            let wait = next.map_or(TICK, |next| next.duration_since(now).unwrap_or_default().min(TICK));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.timers_changed.notified() => {}
            }
        }
    }

    /// Does what is due for one microVM. The timer was taken out to get here: when this fails it is set
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
            Some((_, Due::Forget)) => self.erase(&handle).await,
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
            self.end_on_lost_hosts();
            let term = Arc::clone(&self);
            self.spawn(async move { term.remove_deleted_connectors().await });
            let term = Arc::clone(&self);
            self.spawn(async move { term.remove_dangling_domains().await });
            if count.is_multiple_of(SLOW_SWEEPS) {
                self.continue_drains();
                self.forget_surplus();
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
    fn end_on_lost_hosts(self: &Arc<Self>) {
        let (now, grace) = (self.now(), self.config().lost_grace());
        let lost: Vec<(HostId, Vec<Arc<Handle>>)> = {
            let memory = self.memory();
            let gone = memory.hosts.iter().filter(|(_, host)| host.held > 0 && host.gone_for(grace, now));
            gone.map(|(id, _)| (id.clone(), memory.on_host(id))).collect()
        };
        for (host, handles) in lost {
            for handle in handles {
                let running = matches!(
                    handle.current().state,
                    MicrovmState::Pending | MicrovmState::Running | MicrovmState::Suspending
                );
                if running {
                    let (term, reason) = (Arc::clone(self), format!("Host {host} was lost."));
                    self.spawn(async move {
                        term.record_unasked_end(&handle, &reason).await;
                    });
                }
            }
        }
    }

    /// Suspends what still runs on draining hosts.
    fn continue_drains(self: &Arc<Self>) {
        let draining: Vec<HostId> = {
            let memory = self.memory();
            let hosts = memory.hosts.iter().filter(|(_, host)| host.draining && host.lease_gone.is_none());
            hosts.filter(|(_, host)| host.held > 0).map(|(id, _)| id.clone()).collect()
        };
        for host in draining {
            self.suspend_all(&host);
        }
    }

    fn forget_surplus(self: &Arc<Self>) {
        let surplus = self.memory().surplus(self.config().retained_max, DUE_MAX);
        for handle in surplus.iter().filter_map(|id| self.handle(id).ok()) {
            let term = Arc::clone(self);
            self.spawn(async move {
                let _ = term.erase(&handle).await;
            });
        }
    }

    async fn rotate_keys(&self) {
        let rotation = Duration::from_secs(self.config().key_rotation_seconds);
        let store = &self.context.store;
        if let Err(error) = self.token_keys.rotate(store, &self.leadership, rotation, self.now()).await {
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
