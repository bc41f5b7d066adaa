//! What keeps a running microVM awake and when it sleeps. Only its host knows, and nothing of it is recorded here: a lease is
//! the host's, and lives and ends with its run of the microVM.

use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::{GetIdlenessRequest, KeepAwakeRequest};
use api::microvm::v1::Idleness;
use model::MicrovmId;
use model::state::MicrovmState;

use super::Term;
use crate::adapters::agents::{bounded, refusal_of};
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;

/// Longest wait for a host's word on it: a reader gets the record without it then.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a host to record a lease.
const KEEP_TIMEOUT: Duration = Duration::from_secs(10);

impl Term {
    /// As its host says; `None` when it does not run or the host does not answer.
    pub async fn idleness(&self, microvm: &Microvm) -> Option<Idleness> {
        if microvm.state != MicrovmState::Running {
            return None;
        }
        let host = &microvm.placement.host;
        let address = self.grpc_address(host)?;
        let mut client = self.context.agents.client(host, &address).ok()?;
        let request = GetIdlenessRequest {
            microvm_id: microvm.id.to_string(),
            generation: microvm.placement.generation,
        };
        let answer = bounded(READ_TIMEOUT, client.get_idleness(rpc::request(request))).await;
        answer.ok()?.idleness
    }

    /// Keeps a running microVM from falling asleep by itself for `duration` from now; `None` gives that up. One that sleeps
    /// is not woken for it.
    pub async fn keep_awake(
        self: &Arc<Self>,
        id: &MicrovmId,
        duration: Option<Duration>,
    ) -> Result<(Arc<Microvm>, Option<Idleness>), Refusal> {
        let microvm = self.handle(id)?.current();
        match microvm.state {
            MicrovmState::Running => {}
            MicrovmState::Terminated => return Err(Refusal::Terminated(id.clone())),
            state => return Err(Refusal::StateConflict { id: id.clone(), state, action: "kept awake" }),
        }
        let host = &microvm.placement.host;
        let address = self.grpc_address(host).ok_or_else(|| Refusal::away(host, "it cannot be asked"))?;
        let request = KeepAwakeRequest {
            microvm_id: id.to_string(),
            generation: microvm.placement.generation,
            duration: duration.map(api::duration_proto),
        };
        let mut client =
            self.context.agents.client(host, &address).map_err(|status| refusal_of(host, status))?;
        let answer = bounded(KEEP_TIMEOUT, client.keep_awake(rpc::request(request))).await;
        let idleness = answer.map_err(|status| refusal_of(host, status))?.idleness;
        Ok((microvm, idleness))
    }
}
