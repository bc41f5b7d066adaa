//! Driving one microVM to where its record says it should be: launches and
//! ends. Each is one task that holds the microVM's turn, asks its host, and
//! tries again only with the same generation, which hosts treat as one request.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::hostagent::v1::{LaunchRequest, TerminateRequest};
use model::HostId;
use model::state::{MicrovmEvent, MicrovmState};
use tonic::Status;

use super::memory::Handle;
use super::write::Changed;
use super::{BACKOFF_FIRST, Term, pause};
use crate::adapters::agents::{Failure, bounded, classify};
use crate::adapters::codec;
use crate::domain::microvm::{Intent, Microvm};
use crate::domain::placement::Demand;
use crate::refusal::Refusal;

/// Hosts a launch or wake tries before it gives up for lack of room.
pub(crate) const PLACES_MAX: usize = 3;
/// Longest wait for a host to drop what it should not hold.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of one attempt to launch.
enum Attempt {
    Done,
    Again(Status),
    Elsewhere(Status),
    Failed(String),
}

impl Term {
    /// Launches a PENDING microVM, or ends it with the reason.
    #[tracing::instrument(skip_all, fields(microvm = %handle.id))]
    pub(crate) async fn drive_launch(self: Arc<Self>, handle: Arc<Handle>) {
        let began = Instant::now();
        let launched = tokio::select! {
            launched = self.launch(&handle) => launched,
            // The end takes over and tells the host.
            () = handle.ending.cancelled() => return,
        };
        let microvm = handle.current();
        match launched {
            Ok(()) => {
                self.context.metrics.launch("running", began.elapsed());
                // The payload is only for the run hook.
                tracing::debug!(host = %microvm.placement.host, "launched");
            }
            Err(reason) => {
                self.context.metrics.launch("failed", began.elapsed());
                self.give_up(&handle, &reason).await;
                self.discard(&microvm.placement.host, &microvm).await;
            }
        }
    }

    async fn launch(self: &Arc<Self>, handle: &Arc<Handle>) -> Result<(), String> {
        let _turn = handle.operate().await.map_err(|refusal| refusal.to_string())?;
        let mut backoff = BACKOFF_FIRST;
        let mut tried = Vec::new();
        loop {
            let microvm = handle.current();
            if microvm.state != MicrovmState::Pending || microvm.intent == Intent::End {
                return Ok(());
            }
            let timeout = Duration::from_secs(self.settings().timeouts.launch_seconds);
            let spent = SystemTime::now().duration_since(microvm.placement.time).unwrap_or_default();
            let Some(left) = timeout.checked_sub(spent) else {
                return Err("The launch did not finish in time.".to_owned());
            };
            match self.attempt_launch(&microvm, left).await {
                Attempt::Done => return Ok(()),
                Attempt::Failed(reason) => return Err(reason),
                Attempt::Again(status) => {
                    tracing::debug!(host = %microvm.placement.host, %status, "launch not answered yet");
                    pause(&mut backoff).await;
                }
                Attempt::Elsewhere(status) => {
                    tried.push(microvm.placement.host.clone());
                    if tried.len() >= PLACES_MAX {
                        return Err(reason_of(&status));
                    }
                    self.move_elsewhere(handle, &tried).await.map_err(|refusal| refusal.to_string())?;
                }
            }
        }
    }

    async fn attempt_launch(self: &Arc<Self>, microvm: &Microvm, timeout: Duration) -> Attempt {
        let host = &microvm.placement.host;
        let Some(address) = self.grpc_address(host) else {
            return Attempt::Again(Status::unavailable(format!("host {host} is away")));
        };
        let request =
            LaunchRequest { generation: microvm.placement.generation, spec: Some(codec::host_spec(microvm)) };
        let answer = match self.context.agents.client(&address) {
            Ok(mut client) => bounded(timeout, client.launch(rpc::request(request))).await,
            Err(status) => Err(status),
        };
        let status = match answer {
            Ok(launched) => match self.observe_answer(host, launched.observed).await {
                Ok(()) => return Attempt::Done,
                Err(refusal) => return Attempt::Failed(refusal.to_string()),
            },
            Err(status) => status,
        };
        match classify(&status) {
            Failure::Again => Attempt::Again(status),
            Failure::Full => Attempt::Elsewhere(status),
            Failure::NotHere | Failure::Final => Attempt::Failed(reason_of(&status)),
        }
    }

    /// Places a microVM on another host, durably, with the next generation.
    pub(crate) async fn move_elsewhere(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        exclude: &[HostId],
    ) -> Result<Arc<Microvm>, Refusal> {
        let microvm = handle.current();
        let now = SystemTime::now();
        // A snapshot of a running app starts only on the platform it was taken on;
        // a version's own snapshot says what it needs by its engine.
        let slept = microvm.snapshot.is_some();
        let demand = Demand {
            memory_mib: u64::from(microvm.spec.baseline_mib),
            engine: microvm.spec.snapshot.engine.clone(),
            architecture: api::common::v1::Architecture::Unspecified,
            fingerprint: if slept { microvm.placement.fingerprint.clone() } else { String::new() },
            exclude: exclude.to_vec(),
        };
        let (host, fingerprint) = {
            let memory = self.memory();
            let key = &microvm.spec.snapshot.manifest_key;
            let host = memory.fleet.choose(&demand, key, now).map_err(Refusal::NoRoom)?;
            let spec = memory.fleet.get(&host).map(|host| host.spec.platform_fingerprint.clone());
            (host, spec.unwrap_or_default())
        };
        let from = microvm.placement.clone();
        // Dying after this write is fine: the old host is told to drop it when it
        // reports, the new one is asked by the next launch or wake.
        let (moved, _) = self
            .update(handle, |record| {
                if record.placement != from {
                    return Ok(Changed::No);
                }
                record.place(host.clone(), fingerprint.clone(), now);
                Ok(Changed::Yes)
            })
            .await?;
        let term = Arc::clone(self);
        self.spawn(async move { term.discard(&from.host, &microvm).await });
        Ok(moved)
    }

    /// Ends a microVM whose end is decided; returns when it is TERMINATED.
    #[tracing::instrument(skip_all, fields(microvm = %handle.id))]
    pub(crate) async fn drive_end(self: Arc<Self>, handle: Arc<Handle>) {
        handle.ending.cancel();
        let _turn = handle.operate_end().await;
        let mut backoff = BACKOFF_FIRST;
        loop {
            let microvm = handle.current();
            if microvm.state == MicrovmState::Terminated {
                return;
            }
            match self.ask_to_end(&microvm).await {
                Ok(()) => match self.ended(&handle).await {
                    Ok(()) => return,
                    Err(refusal) => tracing::debug!(%refusal, "end not recorded yet"),
                },
                Err(status) => {
                    tracing::debug!(host = %microvm.placement.host, %status, "end not answered yet");
                }
            }
            pause(&mut backoff).await;
        }
    }

    /// Returns when the host holds nothing of it any more, as far as anybody
    /// can know.
    async fn ask_to_end(self: &Arc<Self>, microvm: &Microvm) -> Result<(), Status> {
        let host = &microvm.placement.host;
        if self.is_lost(host) {
            // Its S3 objects stay: only the host knows their keys' full list.
            tracing::warn!(%host, "ended without its host; its snapshot objects in S3 may remain");
            return Ok(());
        }
        let Some(address) = self.grpc_address(host) else {
            return Err(Status::unavailable("the host is away"));
        };
        let request = TerminateRequest {
            microvm_id: microvm.id.to_string(),
            generation: microvm.placement.generation,
            reason: microvm.state_reason.clone(),
            discard: false,
        };
        let timeout = Duration::from_secs(self.settings().timeouts.terminate_seconds);
        let mut client = self.context.agents.client(&address)?;
        match bounded(timeout, client.terminate(rpc::request(request))).await {
            Ok(answer) => {
                // For its totals; the end itself is recorded by the caller.
                let _ = self.observe_answer(host, answer.observed).await;
                Ok(())
            }
            Err(status) if classify(&status) == Failure::NotHere => Ok(()),
            Err(status) => Err(status),
        }
    }

    async fn ended(self: &Arc<Self>, handle: &Handle) -> Result<(), Refusal> {
        let now = SystemTime::now();
        let change = |record: &mut Microvm| {
            if record.state == MicrovmState::Terminated {
                return Ok(Changed::No);
            }
            let reason = record.state_reason.clone();
            happen(record, MicrovmEvent::Ended, &reason, now)
        };
        self.update(handle, change).await.map(|_| ())
    }

    /// Records that a microVM ended without anybody asking for it.
    pub(crate) async fn give_up(self: &Arc<Self>, handle: &Arc<Handle>, reason: &str) {
        let now = SystemTime::now();
        let change = |record: &mut Microvm| {
            // An end in progress has its own task and reason.
            if record.intent == Intent::End {
                return Ok(Changed::No);
            }
            happen(record, MicrovmEvent::Ended, reason, now)
        };
        let mut backoff = BACKOFF_FIRST;
        while let Err(refusal) = self.update(handle, change).await {
            if self.is_over() || matches!(refusal, Refusal::MicrovmNotFound(_)) {
                return;
            }
            tracing::warn!(microvm = %handle.id, %refusal, "cannot record an end yet");
            pause(&mut backoff).await;
        }
    }

    /// Tells a host to drop what it should not hold; once, for tidiness: it is
    /// told again whenever it reports it.
    pub(crate) async fn discard(&self, host: &HostId, microvm: &Microvm) {
        let Some(address) = self.grpc_address(host) else {
            return;
        };
        let Ok(mut client) = self.context.agents.client(&address) else {
            return;
        };
        let request = TerminateRequest {
            microvm_id: microvm.id.to_string(),
            generation: microvm.placement.generation,
            reason: String::new(),
            discard: true,
        };
        if let Err(status) = bounded(DISCARD_TIMEOUT, client.terminate(rpc::request(request))).await {
            tracing::debug!(%host, microvm = %microvm.id, %status, "not discarded yet");
        }
    }
}

/// Applies an event as a change.
pub(crate) fn happen(
    record: &mut Microvm,
    event: MicrovmEvent,
    reason: &str,
    at: SystemTime,
) -> Result<Changed, Refusal> {
    record.happen(event, reason, at).map_err(|illegal| Refusal::Internal(illegal.to_string()))?;
    Ok(Changed::Yes)
}

/// What a record says of a host's refusal. Damage is said by its code too: who reads the record has to tell it from a
/// host that was busy.
fn reason_of(status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::DataLoss => format!("DATA_LOSS: {}", status.message()),
        _ => status.message().to_owned(),
    }
}
