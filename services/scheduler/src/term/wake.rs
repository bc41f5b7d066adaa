//! Wakes: where the microVM sleeps, or on another host when that one is gone or
//! drained and S3 has a copy. A wake that fails leaves it asleep.

use std::sync::Arc;
use std::time::Duration;

use api::host::v1::HostState;
use api::hostagent::v1::ResumeRequest;
use backoff::Backoff;
use model::state::MicrovmState;
use model::{HostId, MicrovmId};
use tonic::Status;

use super::Term;
use super::memory::Handle;
use super::place::PLACES_MAX;
use super::suspend::operable;
use crate::adapters::agents::{ErrorClass, classify, is_lease_changed, refusal_of};
use crate::adapters::microvms as codec;
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;

/// How often, and after how long, a host is asked again that has a lease which its watch has not brought yet.
const LEASE_PAUSES_MAX: u32 = 5;
const LEASE_PAUSE: Duration = Duration::from_millis(200);

/// Longest wait for the only copy of what sleeps on a draining host to come to S3. Edges hold their requests for longer.
const UPLOAD_WAIT: Duration = Duration::from_secs(20);

impl Term {
    /// Wakes a microVM; returns when it is RUNNING. One that runs already is a
    /// success. When its host is gone and S3 has a copy, it wakes elsewhere.
    pub async fn resume(self: &Arc<Self>, id: &MicrovmId) -> Result<Arc<Microvm>, Refusal> {
        let (term, handle) = (Arc::clone(self), self.handle(id)?);
        self.detached(async move {
            operable(&handle.current(), "resumed")?;
            let _turn = handle.operate().await?;
            // Going to sleep by itself: first let it, then wake it.
            let patience = Duration::from_secs(term.config().timeouts.suspend_seconds);
            let settled = handle.until(|record| record.state != MicrovmState::Suspending);
            let _ = tokio::time::timeout(patience, settled).await;
            let microvm = handle.current();
            operable(&microvm, "resumed")?;
            if microvm.state == MicrovmState::Running {
                return Ok(microvm);
            }
            let woken = handle.unless_ending(term.wake(&handle)).await;
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
            let status = match self.resume_on_host(&microvm).await? {
                Ok(()) => return Ok(()),
                Err(status) => status,
            };
            tried.push(host.clone());
            let class = classify(&status);
            let elsewhere = matches!(class, ErrorClass::Full | ErrorClass::NotHere);
            if !elsewhere || !handle.current().has_remote_copy() || tried.len() >= PLACES_MAX {
                return Err(refusal_of(&host, status));
            }
            // A host that gave it up for a move that nobody recorded takes it back under a new generation only.
            let exclude = if class == ErrorClass::NotHere { &[] } else { tried.as_slice() };
            microvm = match self.move_elsewhere(handle, exclude).await {
                Ok(moved) => moved,
                // No room anywhere: the first host's answer says it best.
                Err(Refusal::NoRoom(_)) => return Err(refusal_of(&host, status)),
                Err(refusal) => return Err(refusal),
            };
        }
    }

    /// Where it wakes: where it sleeps, or elsewhere when that host is gone or drained and S3 has a copy. A drained host's copy that is on
    /// its way to S3 is waited for.
    async fn place_to_wake(self: &Arc<Self>, handle: &Arc<Handle>) -> Result<Arc<Microvm>, Refusal> {
        let drained = |state| matches!(state, Some(HostState::Draining | HostState::Drained));
        if drained(self.host_state(&handle.current().placement.host)) {
            let _ = tokio::time::timeout(UPLOAD_WAIT, handle.until(|record| record.has_remote_copy())).await;
        }
        let microvm = handle.current();
        let host = &microvm.placement.host;
        let fenced = self.is_fenced(host, self.now());
        match (self.host_state(host), microvm.has_remote_copy()) {
            // A refused host takes nothing new; what it holds is its own.
            (Some(HostState::Ready | HostState::Refused), _) => Ok(microvm),
            (Some(HostState::Draining | HostState::Drained), true) => {
                self.move_elsewhere(handle, std::slice::from_ref(host)).await
            }
            (Some(HostState::Draining | HostState::Drained), false) => {
                Err(Refusal::away(host, "it is drained and holds the only copy"))
            }
            // Fence, then place. When the host is only cut off from etcd, its guests may
            // still answer; it stops their traffic when its lease ends. A second copy
            // that woke before that would answer beside the first.
            (_, true) if fenced => self.move_elsewhere(handle, std::slice::from_ref(host)).await,
            (_, true) => Err(Refusal::away(host, "the microVM can wake elsewhere soon")),
            (_, false) => Err(Refusal::away(host, "it holds the only copy")),
        }
    }

    fn host_state(&self, host: &HostId) -> Option<HostState> {
        self.memory().hosts.get(host).map(|host| host.state())
    }

    /// Asks the host, again when it has a lease that is not heard of here yet: the outer error is ours, the inner one the host's.
    async fn resume_on_host(self: &Arc<Self>, microvm: &Microvm) -> Result<Result<(), Status>, Refusal> {
        let mut pauses = Backoff::new(LEASE_PAUSE, LEASE_PAUSE);
        for _ in 0..LEASE_PAUSES_MAX {
            match self.try_resume_on_host(microvm).await? {
                Err(status) if is_lease_changed(&status) => pauses.pause().await,
                answer => return Ok(answer),
            }
        }
        self.try_resume_on_host(microvm).await
    }

    async fn try_resume_on_host(self: &Arc<Self>, microvm: &Microvm) -> Result<Result<(), Status>, Refusal> {
        let host = &microvm.placement.host;
        let address = self.grpc_address(host).ok_or_else(|| Refusal::away(host, "it cannot be asked"))?;
        let request = ResumeRequest {
            generation: microvm.placement.generation,
            spec: Some(codec::host_spec(microvm, self.now())),
            snapshot: microvm.snapshot.clone(),
            lease: self.host_lease(host),
        };
        let timeout = Duration::from_secs(self.config().timeouts.resume_seconds);
        let mut client = match self.context.agents.client(host, &address) {
            Ok(client) => client,
            Err(status) => return Ok(Err(status)),
        };
        match self.answer_of(host, timeout, client.resume(rpc::request(request))).await {
            Ok(answer) => self.observe_answer(host, answer.observed).await.map(Ok),
            Err(status) => Ok(Err(status)),
        }
    }
}
