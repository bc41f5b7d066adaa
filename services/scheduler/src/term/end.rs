//! Ends: decided durably first, then carried out by a task of its own until the
//! host holds nothing of the microVM any more. An end goes before everything else.

use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::TerminateRequest;
use api::microvm::v1::SnapshotCopies;
use model::state::{MicrovmEvent, MicrovmState};
use model::{HostId, MicrovmId};
use tonic::{Code, Status};

use super::commit::apply_event;
use super::memory::Handle;
use super::{BACKOFF, Term};
use crate::adapters::agents::{ErrorClass, bounded, classify, refusal_of};
use crate::domain::microvm::{Intent, Microvm, REASON_SUCCESS};
use crate::domain::observation::RecordChange;
use crate::refusal::Refusal;

/// Whether a host reports the end that it was asked for, and is told to clear S3 when that is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndedBy {
    Host,
    /// It holds another placement, or none.
    Nobody,
    /// It is given up.
    WithoutHost,
}

impl EndedBy {
    /// The host that must not be back for the end to be recorded.
    fn gone(self, microvm: &Microvm) -> Option<&HostId> {
        (self == Self::WithoutHost).then_some(&microvm.placement.host)
    }
}

/// Longest wait for a host to drop what it should not hold.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

impl Term {
    /// Ends a microVM; returns when the decision is durable. One that has ended is a success.
    pub async fn terminate(self: &Arc<Self>, id: &MicrovmId) -> Result<Arc<Microvm>, Refusal> {
        let (term, handle) = (Arc::clone(self), self.handle(id)?);
        self.detached(async move {
            let ended = term.begin_end(&handle, REASON_SUCCESS).await;
            term.context.metrics.operation("terminate", ended.is_ok());
            ended
        })
        .await
    }

    /// Decides the end of a microVM durably and starts the task that does it.
    pub(crate) async fn begin_end(
        self: &Arc<Self>,
        handle: &Arc<Handle>,
        reason: &str,
    ) -> Result<Arc<Microvm>, Refusal> {
        let now = self.now();
        let change = |record: &mut Microvm| {
            if record.intent == Intent::End || record.state == MicrovmState::Terminated {
                return Ok(RecordChange::None);
            }
            record.intent = Intent::End;
            apply_event(record, MicrovmEvent::TerminateBegan, reason, now)
        };
        let (microvm, began) = self.update(handle, change).await?;
        // When the scheduler dies here, the host has not been asked: the next leader
        // finds the intent in the record and asks it.
        if began {
            let (term, handle) = (Arc::clone(self), Arc::clone(handle));
            self.spawn(async move { term.end(handle).await });
        }
        Ok(microvm)
    }

    /// Ends a microVM whose end is decided; returns when it is TERMINATED.
    ///
    /// When a launch or wake is under way, it gives way at its next wait: `ending` is cancelled before the
    /// turn is asked for, or else the end would wait for a hook that hangs. The host may still be starting
    /// the guest then; it takes the end as the next command of the same generation and stops what it has.
    ///
    /// When the host stays away, this goes on until its lease has been gone for the
    /// grace. A host that comes back later reports the microVM, and is told to drop it.
    #[tracing::instrument(skip_all, fields(microvm = %handle.id))]
    pub(crate) async fn end(self: Arc<Self>, handle: Arc<Handle>) {
        handle.ending.cancel();
        let _turn = handle.operate_end().await;
        let mut backoff = BACKOFF;
        loop {
            let microvm = handle.current();
            if microvm.state == MicrovmState::Terminated {
                return;
            }
            match self.end_on_host(&microvm).await {
                Ok(by) => match self.record_asked_end(by.gone(&microvm), &handle).await {
                    Ok(()) => {
                        // When the scheduler dies here, the sweep finds what is left.
                        if by != EndedBy::Host {
                            self.remove_snapshots_of(&microvm);
                        }
                        return;
                    }
                    Err(refusal) => tracing::debug!(%refusal, "end not recorded yet"),
                },
                Err(status) => {
                    tracing::debug!(host = %microvm.placement.host, %status, "end not answered yet");
                }
            }
            backoff.pause().await;
        }
    }

    /// Returns when the host holds nothing of it any more, as far as anybody can know.
    async fn end_on_host(self: &Arc<Self>, microvm: &Microvm) -> Result<EndedBy, Status> {
        let host = &microvm.placement.host;
        if self.is_lost(host) {
            tracing::warn!(%host, "ended without its host");
            return Ok(EndedBy::WithoutHost);
        }
        let Some(address) = self.grpc_address(host) else {
            return Err(Status::unavailable("the host is away"));
        };
        let request = TerminateRequest {
            microvm_id: microvm.id.to_string(),
            generation: microvm.placement.generation,
            reason: microvm.state_reason.clone(),
            discard: false,
            asleep_with: None,
        };
        let timeout = Duration::from_secs(self.config().timeouts.terminate_seconds);
        let mut client = self.context.agents.client(host, &address)?;
        match self.answer_of(host, timeout, client.terminate(rpc::request(request))).await {
            Ok(answer) => {
                // For its totals; the end itself is recorded by the caller.
                let _ = self.observe_answer(host, answer.observed).await;
                Ok(EndedBy::Host)
            }
            Err(status) if classify(&status) == ErrorClass::NotHere => Ok(EndedBy::Nobody),
            Err(status) => Err(status),
        }
    }

    async fn record_asked_end(
        self: &Arc<Self>,
        gone: Option<&HostId>,
        handle: &Handle,
    ) -> Result<(), Refusal> {
        let now = self.now();
        let change = |record: &mut Microvm| {
            if record.state == MicrovmState::Terminated {
                return Ok(RecordChange::None);
            }
            let reason = record.state_reason.clone();
            apply_event(record, MicrovmEvent::Ended, &reason, now)
        };
        self.update_without(gone, handle, change).await.map(|_| ())
    }

    /// Records that a microVM ended without anybody asking for it: because its host is `gone`, or else because its launch failed.
    /// False when that is not recorded: the term is over, the host is back, or the launch was reported as done at the last moment.
    pub(crate) async fn record_unasked_end(
        self: &Arc<Self>,
        gone: Option<&HostId>,
        handle: &Arc<Handle>,
        reason: &str,
    ) -> bool {
        let now = self.now();
        let change = |record: &mut Microvm| {
            let holds = match gone {
                Some(host) => record.placement.host == *host,
                None => record.state == MicrovmState::Pending,
            };
            // An end in progress has its own task and reason.
            if record.intent == Intent::End || !holds {
                return Ok(RecordChange::None);
            }
            apply_event(record, MicrovmEvent::Ended, reason, now)
        };
        let mut backoff = BACKOFF;
        let before = handle.current();
        loop {
            match self.update_without(gone, handle, change).await {
                Ok((after, _)) => {
                    let ended = after.state == MicrovmState::Terminated;
                    // When the scheduler dies here, the sweep finds what is left.
                    if ended {
                        self.remove_snapshots_of(&before);
                    }
                    return ended;
                }
                Err(refusal) if self.is_over() || is_final(&refusal) => {
                    tracing::debug!(microvm = %handle.id, %refusal, "an end is not recorded");
                    return false;
                }
                Err(refusal) => {
                    tracing::warn!(microvm = %handle.id, %refusal, "cannot record an end yet");
                    backoff.pause().await;
                }
            }
        }
    }

    /// Has the host of a microVM that sleeps drop its copy, before another one wakes it from S3. False when it is awake there, or
    /// sleeps with another snapshot than the record names.
    pub(crate) async fn have_given_up(&self, microvm: &Microvm) -> Result<bool, Refusal> {
        let host = &microvm.placement.host;
        let status = match self.drop_on_host(host, microvm, microvm.snapshot.clone()).await {
            Ok(()) => return Ok(true),
            Err(status) => status,
        };
        match classify(&status) {
            ErrorClass::NotHere => Ok(true),
            ErrorClass::Final if status.code() == Code::FailedPrecondition => Ok(false),
            _ => Err(refusal_of(host, status)),
        }
    }

    /// Tells a host to drop what it should not hold; once, for tidiness: it is
    /// told again whenever it reports it.
    pub(crate) async fn discard(&self, host: &HostId, microvm: &Microvm) {
        if let Err(status) = self.drop_on_host(host, microvm, None).await {
            tracing::debug!(%host, microvm = %microvm.id, %status, "not discarded yet");
        }
    }

    async fn drop_on_host(
        &self,
        host: &HostId,
        microvm: &Microvm,
        asleep_with: Option<SnapshotCopies>,
    ) -> Result<(), Status> {
        let address = self.grpc_address(host).ok_or_else(|| Status::unavailable("the host is away"))?;
        let mut client = self.context.agents.client(host, &address)?;
        let request = TerminateRequest {
            microvm_id: microvm.id.to_string(),
            generation: microvm.placement.generation,
            reason: String::new(),
            discard: true,
            asleep_with,
        };
        bounded(DISCARD_TIMEOUT, client.terminate(rpc::request(request))).await.map(drop)
    }
}

/// Whether an end that is refused so need not be tried again: there is no record, or its host is back.
fn is_final(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::MicrovmNotFound(_) | Refusal::HostAway { .. })
}
