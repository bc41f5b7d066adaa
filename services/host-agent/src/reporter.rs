//! Telling the scheduler's leader what this host is and observes: registration, then heartbeats at the
//! interval it asks for, and at once when a microVM changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::host::v1::host_service_client::HostServiceClient;
use api::host::v1::{
    HeartbeatRequest, HostSpec, HostUsage, ObservedMicrovm, RecordedMicrovm, RegisterHostRequest,
    StaleMicrovm,
};
use backoff::Backoff;
use clock::Clock;
use futures::future::BoxFuture;
use rpc::{CallBounds, Replicas};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::adapters::lease::Standing;

const CALL: CallBounds =
    CallBounds { attempt: Duration::from_secs(5), total: Duration::from_secs(5), retry: Duration::ZERO };
/// Changes within this time of the last heartbeat wait and go in one.
const COALESCE: Duration = Duration::from_millis(10);
/// Interval when the scheduler names none.
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(2);
/// Shortest and longest interval taken from the scheduler.
const INTERVAL_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// How often a heartbeat carries everything.
const COMPLETE_INTERVAL: Duration = Duration::from_secs(30);

/// What a host holds, as far as it is reported.
pub trait Holdings: Send + Sync + 'static {
    /// Everything held, and the ends that the scheduler does not know yet.
    fn unreported(&self) -> Vec<ObservedMicrovm>;

    fn usage(&self) -> HostUsage;

    /// The scheduler has answered a report that named these, and its records say so much of them.
    fn answered(&self, observed: &[ObservedMicrovm], recorded: &[RecordedMicrovm]);

    fn set_draining(&self, draining: bool);

    /// Closes a microVM of this generation, or an older one, to requests, at once.
    fn close_stale(&self, id: &str, generation: u64);

    /// Drops it, without its hook; `ended` when its record has ended.
    fn drop_stale(self: Arc<Self>, id: String, generation: u64, ended: bool) -> BoxFuture<'static, ()>;
}

/// What a reporter looks at besides what is held.
pub struct Signals {
    pub clock: Clock,
    /// Rises with every change of any microVM.
    pub changes: watch::Sender<u64>,
    pub standing: watch::Sender<Standing>,
    /// Between attempts to reach a scheduler.
    pub pauses: Backoff,
    /// The schedulers by whose vouches the host would go on without its lease; none when it would not.
    pub vouchers: Vec<String>,
}

pub struct Reporter<H> {
    signals: Signals,
    microvms: Arc<H>,
    spec: HostSpec,
    schedulers: Replicas,
    /// What the leader has answered for: generation and observation by id.
    known: HashMap<String, (u64, u64)>,
}

/// What the leader answers to a registration.
struct Registered {
    /// How often it wants to hear.
    interval: Duration,
    /// It does not count among the vouchers that were named, and others are recorded.
    withdraw: bool,
}

impl<H: Holdings> Reporter<H> {
    pub fn new(signals: Signals, microvms: Arc<H>, spec: HostSpec, schedulers: Replicas) -> Self {
        Self { signals, microvms, spec, schedulers, known: HashMap::new() }
    }

    /// Reports until it is dropped.
    pub async fn run(mut self) {
        let mut pauses = self.signals.pauses.clone();
        loop {
            if let Err(status) = self.session(&mut pauses).await {
                tracing::warn!(code = ?status.code(), message = status.message(), "the scheduler does not take reports");
                pauses.pause().await;
            }
        }
    }

    /// Registers and reports until the leader asks for another registration, a
    /// lease has been gained, or a call fails.
    async fn session(&mut self, pauses: &mut Backoff) -> Result<(), Status> {
        let mut standing = self.signals.standing.subscribe();
        // Before the leader is asked: a lease that ends and comes back while the answer is on its way asks for another.
        let lease = standing.borrow_and_update().lease();
        let mut registered = self.register(self.signals.vouchers.clone()).await?;
        // Not gone by from here on; the leader may now forget them.
        if registered.withdraw {
            tracing::warn!("the leader is none of the settings' schedulers; no vouch is gone by");
            registered = self.register(Vec::new()).await?;
        }
        let interval = registered.interval;
        if let Some(lease) = lease {
            self.signals.standing.send_modify(|standing| standing.told(lease));
        }
        pauses.reset();
        let mut changes = self.signals.changes.subscribe();
        changes.mark_changed();
        let mut completed = Instant::now();
        let mut earliest = completed;
        loop {
            tokio::select! {
                biased;
                () = another_lease(&mut standing, lease) => return Ok(()),
                _ = changes.changed() => tokio::time::sleep_until(earliest).await,
                () = tokio::time::sleep(interval) => {}
            }
            changes.mark_unchanged();
            earliest = Instant::now() + COALESCE;
            let complete = completed.elapsed() >= COMPLETE_INTERVAL;
            if !self.heartbeat(complete).await? {
                return Ok(());
            }
            if complete {
                completed = Instant::now();
            }
        }
    }

    /// Registers. The host goes by the vouches of `vouchers` when the answer says that they are recorded, and not before.
    async fn register(&mut self, vouchers: Vec<String>) -> Result<Registered, Status> {
        let observed = self.microvms.unreported();
        let request = RegisterHostRequest {
            spec: Some(self.spec.clone()),
            observed: observed.clone(),
            clock_time: Some(api::timestamp(self.signals.clock.now())),
            usage: Some(self.microvms.usage()),
            vouchers,
        };
        let response = self
            .schedulers
            .call(CALL, request, |channel, request| async move {
                HostServiceClient::new(channel).register_host(request).await
            })
            .await?;
        tracing::info!(microvms = observed.len(), "registered");
        self.signals.standing.send_modify(|standing| standing.go_by_vouches(response.vouchers_recorded));
        self.known.clear();
        self.answered(&observed, &response.recorded);
        self.drop_stale(response.stale, &response.recorded);
        self.microvms.set_draining(response.draining);
        let interval = response.heartbeat_interval.as_ref().and_then(|interval| api::duration(interval).ok());
        let interval = interval.unwrap_or(INTERVAL_DEFAULT).clamp(INTERVAL_BOUNDS.0, INTERVAL_BOUNDS.1);
        Ok(Registered { interval, withdraw: response.withdraw_vouchers })
    }

    /// False when the leader wants a registration.
    async fn heartbeat(&mut self, complete: bool) -> Result<bool, Status> {
        let mut observed = self.microvms.unreported();
        if complete {
            self.known.retain(|id, _| observed.iter().any(|one| one.microvm_id == *id));
        } else {
            observed
                .retain(|one| self.known.get(&one.microvm_id) != Some(&(one.generation, one.observation)));
        }
        let request = HeartbeatRequest {
            host_id: self.spec.host_id.clone(),
            usage: Some(self.microvms.usage()),
            observed: observed.clone(),
            complete,
            clock_time: Some(api::timestamp(self.signals.clock.now())),
        };
        let response = self
            .schedulers
            .call(CALL, request, |channel, request| async move {
                HostServiceClient::new(channel).heartbeat(request).await
            })
            .await?;
        if response.register {
            return Ok(false);
        }
        self.answered(&observed, &response.recorded);
        self.drop_stale(response.stale, &response.recorded);
        self.microvms.set_draining(response.draining);
        Ok(true)
    }

    fn answered(&mut self, observed: &[ObservedMicrovm], recorded: &[RecordedMicrovm]) {
        for one in observed {
            self.known.insert(one.microvm_id.clone(), (one.generation, one.observation));
        }
        self.microvms.answered(observed, recorded);
    }

    /// Closes what is stale before this returns, and drops it in its own time: a suspend that is under way is finished first.
    fn drop_stale(&self, stale: Vec<StaleMicrovm>, recorded: &[RecordedMicrovm]) {
        let ended: HashSet<&str> =
            recorded.iter().filter(|one| one.ended).map(|one| one.microvm_id.as_str()).collect();
        for StaleMicrovm { microvm_id, generation } in stale {
            self.microvms.close_stale(&microvm_id, generation);
            let (microvms, ended) = (Arc::clone(&self.microvms), ended.contains(microvm_id.as_str()));
            tokio::spawn(microvms.drop_stale(microvm_id, generation, ended));
        }
    }
}

/// Waits until a lease is held that is not the one before.
async fn another_lease(standing: &mut watch::Receiver<Standing>, before: Option<i64>) {
    let _ = standing.wait_for(|now| now.lease().is_some_and(|held| Some(held) != before)).await;
}
