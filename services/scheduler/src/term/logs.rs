//! An app's output: asked of the host that holds, or held, the microVM.

use std::sync::Arc;
use std::time::Duration;

use api::hostagent::v1::{FollowLogRequest, FollowLogResponse};
use model::MicrovmId;
use model::state::MicrovmState;
use tonic::Streaming;

use super::Term;
use crate::adapters::agents::{ErrorClass, bounded, classify};
use crate::refusal::Refusal;

/// Longest wait for the first answer; the stream itself may last.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

impl Term {
    /// Opens the log of a microVM at a line.
    pub async fn follow_log(
        self: &Arc<Self>,
        id: &MicrovmId,
        from_sequence: u64,
        follow: bool,
    ) -> Result<Streaming<FollowLogResponse>, Refusal> {
        let microvm = self.handle(id)?.current();
        let host = &microvm.placement.host;
        let gone = || {
            let ended = microvm.state == MicrovmState::Terminated;
            Refusal::LogGone { id: id.clone(), end: ended.then(|| microvm.state_reason.clone()) }
        };
        let address = self.grpc_address(host).ok_or_else(gone)?;
        let request = FollowLogRequest {
            microvm_id: id.to_string(),
            generation: microvm.placement.generation,
            from_sequence,
            follow,
        };
        let refused = |status: tonic::Status| match classify(&status) {
            ErrorClass::NotHere => gone(),
            _ => Refusal::Host(Box::new(status)),
        };
        let mut client = self.context.agents.client(host, &address).map_err(refused)?;
        bounded(OPEN_TIMEOUT, client.follow_log(rpc::request(request))).await.map_err(refused)
    }
}
