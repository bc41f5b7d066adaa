//! Recovery points on request (RFD 0013).

use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::CheckpointRequest;
use api::microvm::v1::SnapshotCopies;
use model::MicrovmId;
use model::state::MicrovmState;

use super::Term;
use crate::adapters::agents::refusal_of;
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;

impl Term {
    /// Has the host of a running microVM make a recovery point; returns when it is whole there, and what it is. It is on its
    /// way to S3 then. From its first one on the microVM goes back to its latest snapshot when its host or engine is lost.
    ///
    /// When the scheduler dies after the host has made it, the host's report says so.
    pub async fn checkpoint(
        self: &Arc<Self>,
        id: &MicrovmId,
    ) -> Result<(Arc<Microvm>, SnapshotCopies), Refusal> {
        let (term, handle) = (Arc::clone(self), self.handle(id)?);
        self.detached(async move {
            let _turn = handle.operate().await?;
            let microvm = handle.current();
            match microvm.state {
                MicrovmState::Running => {}
                MicrovmState::Terminated => return Err(Refusal::Terminated(microvm.id.clone())),
                state => {
                    let id = microvm.id.clone();
                    return Err(Refusal::StateConflict { id, state, action: "given a recovery point" });
                }
            }
            let made = handle.unless_ending(term.checkpoint_on_host(&microvm)).await;
            term.context.metrics.operation("checkpoint", made.is_ok());
            made.map(|point| (handle.current(), point))
        })
        .await
    }

    async fn checkpoint_on_host(self: &Arc<Self>, microvm: &Microvm) -> Result<SnapshotCopies, Refusal> {
        let host = &microvm.placement.host;
        let address = self.grpc_address(host).ok_or_else(|| Refusal::away(host, "it cannot be asked"))?;
        let request = CheckpointRequest {
            microvm_id: microvm.id.to_string(),
            generation: microvm.placement.generation,
        };
        let timeout = Duration::from_secs(self.config().timeouts.suspend_seconds);
        let mut client =
            self.context.agents.client(host, &address).map_err(|status| refusal_of(host, status))?;
        let answer = self.answer_of(host, timeout, client.checkpoint(rpc::request(request))).await;
        let observed = answer.map_err(|status| refusal_of(host, status))?.observed;
        let point = observed.as_ref().and_then(|observed| observed.snapshot.clone());
        self.observe_answer(host, observed).await?;
        point.ok_or_else(|| Refusal::Internal(format!("host {host} made a recovery point and names none")))
    }
}
