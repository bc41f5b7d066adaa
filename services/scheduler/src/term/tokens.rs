//! Tokens: sealed, and made worthless before their time.

use std::sync::Arc;
use std::time::Duration;

use model::MicrovmId;
use token::{Claims, Kind, PortScope};

use super::Term;
use crate::adapters::token_keys::seconds;
use crate::domain::microvm::Microvm;
use crate::domain::observation::RecordChange;
use crate::refusal::Refusal;

/// What a token is to open, checked field by field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    pub kind: Kind,
    pub ports: Vec<PortScope>,
    /// Paths with all that lies under them; empty means every path.
    pub paths: Vec<String>,
    /// Empty means every method.
    pub methods: Vec<String>,
    pub life: Duration,
}

impl NewToken {
    /// One for every path and method.
    pub fn new(kind: Kind, ports: Vec<PortScope>, life: Duration) -> Self {
        Self { kind, ports, paths: Vec::new(), methods: Vec::new(), life }
    }
}

impl Term {
    /// Seals a token, and says when it stops working, in seconds since 1970.
    pub fn mint(&self, microvm: &Microvm, asked: NewToken) -> Result<(String, u64), Refusal> {
        let now = self.wall();
        let claims = Claims {
            microvm_id: microvm.id.to_string(),
            kind: asked.kind,
            ports: asked.ports,
            paths: asked.paths,
            methods: asked.methods,
            issued_at: seconds(now),
            expires_at: seconds(now + asked.life),
            revocations: microvm.token_revocations,
        };
        let token = self.token_keys.mint(&claims, now);
        let token = token.map_err(|error| Refusal::Internal(error.to_string()))?;
        Ok((token, claims.expires_at))
    }

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
