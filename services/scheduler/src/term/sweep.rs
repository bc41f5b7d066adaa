//! What happens by the clock: deadlines, hosts given up, drains, retention, key
//! rotation, gauges. One task for deadlines and one for the rest, whatever the
//! number of microVMs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::HostId;
use model::state::MicrovmState;

use super::Term;
use super::memory::Handle;
use crate::domain::microvm::REASON_LIFETIME;
use crate::domain::timers::{self, Due};

/// Longest sleep of the deadline task: the wall clock may be set.
const TICK: Duration = Duration::from_secs(1);
/// Deadlines taken at a time.
const DUE_MAX: usize = 256;
/// When a deadline's work failed, it is due again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// Interval of everything else.
const SWEEP: Duration = Duration::from_millis(500);
/// Sweeps between looks at keys, drains that are stuck, and retention.
const SLOW_SWEEPS: u32 = 20;
/// Suspends at a time on a draining host.
const DRAIN_CONCURRENT: usize = 4;

impl Term {
    pub(crate) fn start_sweeps(self: &Arc<Self>) {
        let term = Arc::clone(self);
        self.spawn(async move { term.watch_deadlines().await });
        let term = Arc::clone(self);
        self.spawn(async move { term.sweep().await });
    }

    async fn watch_deadlines(self: Arc<Self>) {
        loop {
            let now = SystemTime::now();
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

    async fn deadline(self: Arc<Self>, handle: Arc<Handle>) {
        let now = SystemTime::now();
        let microvm = handle.current();
        let done = match timers::next(&microvm, self.settings().retention()) {
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
            self.give_up_lost_hosts();
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
    fn give_up_lost_hosts(self: &Arc<Self>) {
        let (now, grace) = (SystemTime::now(), self.settings().lost_grace());
        let lost: Vec<(HostId, Vec<Arc<Handle>>)> = {
            let memory = self.memory();
            let gone = memory.fleet.iter().filter(|(_, host)| host.held > 0 && host.gone_for(grace, now));
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
                    self.spawn(async move { term.give_up(&handle, &reason).await });
                }
            }
        }
    }

    /// Suspends what still runs on draining hosts.
    fn continue_drains(self: &Arc<Self>) {
        let draining: Vec<HostId> = {
            let memory = self.memory();
            let hosts = memory.fleet.iter().filter(|(_, host)| host.draining && host.lease_gone.is_none());
            hosts.filter(|(_, host)| host.held > 0).map(|(id, _)| id.clone()).collect()
        };
        for host in draining {
            self.suspend_all(&host);
        }
    }

    /// Suspends everything that runs on a host, a few at a time.
    pub(crate) fn suspend_all(self: &Arc<Self>, host: &HostId) {
        let (term, host) = (Arc::clone(self), host.clone());
        self.spawn(async move {
            let running = term.memory().on_host(&host).into_iter();
            let running = running.filter(|handle| {
                handle.current().state == MicrovmState::Running && handle.is_idle()
            });
            let suspends = running.map(|handle| {
                let term = Arc::clone(&term);
                async move {
                    if let Err(refusal) = term.suspend(&handle.id).await {
                        tracing::warn!(microvm = %handle.id, %refusal, "cannot be suspended for the drain yet");
                    }
                }
            });
            let suspends: Vec<_> = suspends.collect();
            let mut suspends = futures::StreamExt::buffer_unordered(futures::stream::iter(suspends), DRAIN_CONCURRENT);
            while futures::StreamExt::next(&mut suspends).await.is_some() {}
        });
    }

    fn forget_surplus(self: &Arc<Self>) {
        let surplus = self.memory().surplus(self.settings().retained_max, DUE_MAX);
        for handle in surplus.iter().filter_map(|id| self.handle(id).ok()) {
            let term = Arc::clone(self);
            self.spawn(async move {
                let _ = term.erase(&handle).await;
            });
        }
    }

    async fn rotate_keys(&self) {
        let rotation = Duration::from_secs(self.settings().key_rotation_seconds);
        let store = &self.context.store;
        if let Err(error) = self.keys.rotate(store, &self.leadership, rotation, SystemTime::now()).await {
            tracing::warn!(%error, "token keys not rotated yet");
        }
    }

    fn gauge(&self) {
        // Counting a million records every half second would be a waste.
        let memory = self.memory();
        let hosts = memory.fleet.iter().map(|(_, host)| host.state());
        self.context.metrics.fleet(memory.living(), memory.fleet.bakes(), hosts);
    }
}
