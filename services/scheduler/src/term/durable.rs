//! Transactions of several keys, for what is not a microVM's record. As in
//! [`super::write`], a write whose fate is unknown is tried again with the same
//! expectation until etcd says what became of it or the term is over.

use records::{Error as StoreError, Write};

use super::write::refused;
use super::{BACKOFF_FIRST, Term, pause};
use crate::refusal::Refusal;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    /// Done, at this revision.
    At(i64),
    /// Not done: the first key is not as expected.
    Differs,
}

impl Term {
    /// Does all writes or none, guarded by leadership. The first write's key
    /// tells whether an attempt went through whose answer was lost.
    ///
    /// # Errors
    /// [`Refusal::NotLeading`] when the term is over.
    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<Committed, Refusal> {
        let Some(first) = writes.first().cloned() else {
            return Err(Refusal::Internal("a transaction without writes".to_owned()));
        };
        let mut backoff = BACKOFF_FIRST;
        loop {
            match self.context.store.txn(writes.clone(), Some(&self.leadership)).await {
                Ok(revision) => return Ok(Committed::At(revision)),
                Err(StoreError::Unavailable { detail, .. }) => {
                    tracing::debug!(detail, "transaction not done yet");
                }
                Err(StoreError::Conflict { .. }) => match self.went_through(&first).await {
                    Ok(committed) => return Ok(committed),
                    Err(error) if error.is_unavailable() => {}
                    Err(error) => return Err(refused(error)),
                },
                Err(error) => return Err(refused(error)),
            }
            if self.is_over() {
                return Err(Refusal::NotLeading);
            }
            pause(&mut backoff).await;
        }
    }

    /// What a refused transaction finds at its first key: its own doing, or not.
    async fn went_through(&self, first: &Write) -> records::Result<Committed> {
        Ok(match first {
            Write::Put { key, value, .. } => match self.context.store.get(key).await? {
                Some(found) if found.value == *value => Committed::At(found.revision),
                _ => Committed::Differs,
            },
            Write::Delete { key, .. } => match self.context.store.get(key).await? {
                None => Committed::At(0),
                Some(_) => Committed::Differs,
            },
        })
    }
}
