//! What becomes of tokens after they were made.

use std::sync::Arc;

use model::MicrovmId;

use super::Term;
use crate::domain::microvm::Microvm;
use crate::domain::observation::RecordChange;
use crate::refusal::Refusal;

impl Term {
    /// Makes every token worthless that was made for the microVM so far.
    ///
    /// The number in the record is all there is of a revocation: tokens say how many there were when they were made,
    /// and edges follow the record. So it needs no list, and it outlives the scheduler that made it.
    pub async fn revoke_tokens(self: &Arc<Self>, id: &MicrovmId) -> Result<Arc<Microvm>, Refusal> {
        let (term, handle) = (Arc::clone(self), self.handle(id)?);
        self.detached(async move {
            let change = |record: &mut Microvm| {
                if record.has_ended() {
                    return Err(Refusal::Terminated(record.id.clone()));
                }
                record.token_revocations += 1;
                Ok(RecordChange::Durable)
            };
            let (microvm, _) = term.update(&handle, change).await?;
            tracing::info!(microvm = %microvm.id, revocations = microvm.token_revocations, "tokens revoked");
            Ok(microvm)
        })
        .await
    }
}
