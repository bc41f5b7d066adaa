//! Suspend, resume and terminate, as callers ask for them. One operation at a
//! time per microVM; an end goes before everything else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::hostagent::v1::{ResumeRequest, SuspendRequest};
use model::state::{MicrovmEvent, MicrovmState};
use model::{HostId, MicrovmId};
use tonic::Status;

use super::Term;
use super::drive::{PLACES_MAX, happen};
use super::memory::Handle;
use super::write::Changed;
use crate::adapters::agents::{Failure, bounded, classify};
use crate::adapters::codec;
use crate::domain::microvm::{Intent, Microvm, REASON_SUCCESS};
use crate::refusal::Refusal;
use api::host::v1::HostState;

/// When asking again makes sense while a host is away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Term {
    /// Puts a microVM to sleep; returns when it is SUSPENDED. One that sleeps
    /// already is a success.
    ///
    /// # Errors
    /// [`Refusal`]; the microVM is as its host says.
    pub async fn suspend(self: &Arc<Self>, id: &MicrovmId) -> Result<Arc<Microvm>, Refusal> {
        let (term, handle) = (Arc::clone(self), self.handle(id)?);
        self.detached(async move {
            suspendable(&handle.current())?;
            let _turn = handle.operate().await?;
            let microvm = handle.current();
            suspendable(&microvm)?;
            if microvm.state == MicrovmState::Suspended {
                return Ok(microvm);
            }
            let suspended = unless_ending(&handle, term.ask_to_suspend(&microvm)).await;
            term.context.metrics.operation("suspend", suspended.is_ok());
            suspended.map(|()| handle.current())
        })
        .await
    }

    async fn ask_to_suspend(self: &Arc<Self>, microvm: &Microvm) -> Result<(), Refusal> {
        let host = &microvm.placement.host;
        let address = self.grpc_address(host).ok_or_else(|| away(host, "it cannot be asked"))?;
        let request =
            SuspendRequest { microvm_id: microvm.id.to_string(), generation: microvm.placement.generation };
        let timeout = Duration::from_secs(self.settings().timeouts.suspend_seconds);
        let mut client = self.context.agents.client(&address).map_err(|status| answered(host, status))?;
        let answer = bounded(timeout, client.suspend(rpc::request(request))).await;
        self.observe_answer(host, answer.map_err(|status| answered(host, status))?.observed).await
    }

    /// Wakes a microVM; returns when it is RUNNING. One that runs already is a
    /// success. When its host is gone and S3 has a copy, it wakes elsewhere.
    ///
    /// # Errors
    /// [`Refusal`]; the microVM still sleeps and its snapshot is intact.
    pub async fn resume(self: &Arc<Self>, id: &MicrovmId) -> Result<Arc<Microvm>, Refusal> {
        let (term, handle) = (Arc::clone(self), self.handle(id)?);
        self.detached(async move {
            resumable(&handle.current())?;
            let _turn = handle.operate().await?;
            // Going to sleep by itself: first let it, then wake it.
            let patience = Duration::from_secs(term.settings().timeouts.suspend_seconds);
            let settled = handle.until(|record| record.state != MicrovmState::Suspending);
            let _ = tokio::time::timeout(patience, settled).await;
            let microvm = handle.current();
            resumable(&microvm)?;
            if microvm.state == MicrovmState::Running {
                return Ok(microvm);
            }
            let woken = unless_ending(&handle, term.wake(&handle)).await;
            term.context.metrics.operation("resume", woken.is_ok());
            woken.map(|()| handle.current())
        })
        .await
    }

    async fn wake(self: &Arc<Self>, handle: &Arc<Handle>) -> Result<(), Refusal> {
        let mut tried = Vec::new();
        let mut microvm = self.place_to_wake(handle).await?;
        loop {
            let host = microvm.placement.host.clone();
            let status = match self.ask_to_resume(&microvm).await? {
                Ok(()) => return Ok(()),
                Err(status) => status,
            };
            tried.push(host.clone());
            let elsewhere = classify(&status) == Failure::Full && handle.current().has_remote_copy();
            if !elsewhere || tried.len() >= PLACES_MAX {
                return Err(answered(&host, status));
            }
            microvm = match self.move_elsewhere(handle, &tried).await {
                Ok(moved) => moved,
                // No room anywhere: the first host's answer says it best.
                Err(Refusal::NoRoom(_)) => return Err(answered(&host, status)),
                Err(refusal) => return Err(refusal),
            };
        }
    }

    /// Where it wakes: where it sleeps, or elsewhere when that host is gone or
    /// drained and S3 has a copy.
    async fn place_to_wake(self: &Arc<Self>, handle: &Arc<Handle>) -> Result<Arc<Microvm>, Refusal> {
        let microvm = handle.current();
        let host = &microvm.placement.host;
        let now = SystemTime::now();
        let fence = self.settings().fence_grace();
        let (state, fenced) = {
            let memory = self.memory();
            let found = memory.fleet.get(host);
            (found.map(|host| host.state()), found.is_some_and(|host| host.gone_for(fence, now)))
        };
        match (state, microvm.has_remote_copy()) {
            (Some(HostState::Ready), _) => Ok(microvm),
            (Some(HostState::Draining | HostState::Drained), true) => {
                self.move_elsewhere(handle, std::slice::from_ref(host)).await
            }
            (Some(HostState::Draining | HostState::Drained), false) => {
                Err(away(host, "it is drained and holds the only copy"))
            }
            // Fence, then place: a host that lost its lease stops its traffic first.
            (_, true) if fenced => self.move_elsewhere(handle, std::slice::from_ref(host)).await,
            (_, true) => Err(away(host, "the microVM can wake elsewhere soon")),
            (_, false) => Err(away(host, "it holds the only copy")),
        }
    }

    /// One attempt: the outer error is ours, the inner one the host's.
    async fn ask_to_resume(self: &Arc<Self>, microvm: &Microvm) -> Result<Result<(), Status>, Refusal> {
        let host = &microvm.placement.host;
        let address = self.grpc_address(host).ok_or_else(|| away(host, "it cannot be asked"))?;
        let request = ResumeRequest {
            generation: microvm.placement.generation,
            spec: Some(codec::host_spec(microvm)),
            snapshot: microvm.snapshot.clone(),
        };
        let timeout = Duration::from_secs(self.settings().timeouts.resume_seconds);
        let mut client = match self.context.agents.client(&address) {
            Ok(client) => client,
            Err(status) => return Ok(Err(status)),
        };
        match bounded(timeout, client.resume(rpc::request(request))).await {
            Ok(answer) => self.observe_answer(host, answer.observed).await.map(Ok),
            Err(status) => Ok(Err(status)),
        }
    }

    /// Ends a microVM; returns when the decision is durable. One that has ended
    /// is a success.
    ///
    /// # Errors
    /// [`Refusal`].
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
        let now = SystemTime::now();
        let change = |record: &mut Microvm| {
            if record.intent == Intent::End || record.state == MicrovmState::Terminated {
                return Ok(Changed::No);
            }
            record.intent = Intent::End;
            happen(record, MicrovmEvent::TerminateBegan, reason, now)
        };
        let (microvm, began) = self.update(handle, change).await?;
        // Dying here is fine: the next leader finds the intent and goes on.
        if began {
            let (term, handle) = (Arc::clone(self), Arc::clone(handle));
            handle.ending.cancel();
            self.spawn(async move { term.drive_end(handle).await });
        }
        Ok(microvm)
    }
}

/// Runs an operation until it is done or the microVM's end is decided.
async fn unless_ending<T>(
    handle: &Handle,
    operation: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    tokio::select! {
        done = operation => done,
        () = handle.ending.cancelled() => Err(Refusal::Terminated(handle.id.clone())),
    }
}

fn suspendable(microvm: &Microvm) -> Result<(), Refusal> {
    use MicrovmState as S;
    match microvm.state {
        S::Running | S::Suspending | S::Suspended => Ok(()),
        S::Pending | S::Terminating => Err(conflict(microvm, "suspended")),
        S::Terminated => Err(Refusal::Terminated(microvm.id.clone())),
    }
}

fn resumable(microvm: &Microvm) -> Result<(), Refusal> {
    use MicrovmState as S;
    match microvm.state {
        S::Running | S::Suspending | S::Suspended => Ok(()),
        S::Pending | S::Terminating => Err(conflict(microvm, "resumed")),
        S::Terminated => Err(Refusal::Terminated(microvm.id.clone())),
    }
}

fn conflict(microvm: &Microvm, action: &'static str) -> Refusal {
    Refusal::StateConflict { id: microvm.id.clone(), state: microvm.state, action }
}

fn away(host: &HostId, why: &'static str) -> Refusal {
    Refusal::HostAway { host: host.clone(), why, retry_after: RETRY_AFTER }
}

/// A host's refusal, passed on; a host that was not reached is away.
fn answered(host: &HostId, status: Status) -> Refusal {
    match classify(&status) {
        Failure::Again if api::errors::reason_of(&status).is_none() => away(host, "it did not answer"),
        _ => Refusal::Host(Box::new(status)),
    }
}
