//! Suspends, as a caller or a drain asks for one.

use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::SuspendRequest;
use api::microvm::v1::TransitionCause;
use model::MicrovmId;
use model::state::MicrovmState;

use super::Term;
use crate::adapters::agents::refusal_of;
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;

impl Term {
    /// Puts a microVM to sleep; returns when it is SUSPENDED. One that sleeps already is a success.
    pub async fn suspend(
        self: &Arc<Self>,
        id: &MicrovmId,
        cause: TransitionCause,
    ) -> Result<Arc<Microvm>, Refusal> {
        let (term, handle) = (Arc::clone(self), self.handle(id)?);
        self.detached(async move {
            operable(&handle.current(), "suspended")?;
            let _turn = handle.operate().await?;
            let microvm = handle.current();
            operable(&microvm, "suspended")?;
            if microvm.state == MicrovmState::Suspended {
                return Ok(microvm);
            }
            let suspended = match handle.unless_ending(term.suspend_on_host(&microvm, cause)).await {
                // When its window is over the moment it sleeps, its end is decided before the host's answer is here.
                Err(Refusal::Terminated(_)) if has_slept_since(&handle.current(), &microvm) => Ok(()),
                suspended => suspended,
            };
            term.context.metrics.operation("suspend", suspended.is_ok());
            suspended.map(|()| handle.current())
        })
        .await
    }

    async fn suspend_on_host(
        self: &Arc<Self>,
        microvm: &Microvm,
        cause: TransitionCause,
    ) -> Result<(), Refusal> {
        let host = &microvm.placement.host;
        let address = self.grpc_address(host).ok_or_else(|| Refusal::away(host, "it cannot be asked"))?;
        let request = SuspendRequest {
            microvm_id: microvm.id.to_string(),
            generation: microvm.placement.generation,
            cause: cause.into(),
        };
        let timeout = Duration::from_secs(self.config().timeouts.suspend_seconds);
        let mut client =
            self.context.agents.client(host, &address).map_err(|status| refusal_of(host, status))?;
        let answer = self.answer_of(host, timeout, client.suspend(rpc::request(request))).await;
        self.observe_answer(host, answer.map_err(|status| refusal_of(host, status))?.observed).await
    }
}

/// Whether a microVM that was running has been suspended meanwhile, whatever has become of it since.
fn has_slept_since(now: &Microvm, before: &Microvm) -> bool {
    now.last_transition != before.last_transition
        && now.last_transition.as_ref().is_some_and(|last| last.kind == "suspend")
}

/// Whether a microVM's state lets it be suspended, or resumed; `action` says which.
pub(crate) fn operable(microvm: &Microvm, action: &'static str) -> Result<(), Refusal> {
    use MicrovmState as S;
    let id = microvm.id.clone();
    match microvm.state {
        S::Running | S::Suspending | S::Suspended => Ok(()),
        state @ (S::Pending | S::Terminating) => Err(Refusal::StateConflict { id, state, action }),
        S::Terminated => Err(Refusal::Terminated(id)),
    }
}
