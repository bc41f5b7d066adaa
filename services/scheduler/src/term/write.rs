//! Durable changes of one record: one compare-and-set, guarded by leadership.
//!
//! A write whose fate is unknown is tried again with the same expectation until
//! etcd says what became of it or the term is over. When it says that the key
//! changed, the stored record is read: ours means the lost answer was a yes,
//! anything else is the truth and memory follows it.

use std::sync::Arc;
use std::time::SystemTime;

use records::{Error as StoreError, Expect};

use super::memory::Handle;
use super::{BACKOFF_FIRST, Term, pause};
use crate::adapters::codec;
use crate::domain::microvm::Microvm;
use crate::refusal::Refusal;
use model::MicrovmId;

/// What a change did to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// Nothing.
    No,
    /// Running totals: kept in memory only.
    Totals,
    /// A state on the way to another: shown to everybody, but written with the
    /// next change. A new leader hears of it from the host again.
    Passing,
    /// It must be written.
    Yes,
}

/// How a durable write ended.
enum Written {
    /// Stored at this revision.
    Stored(i64),
    /// Somebody else's record is there.
    Differs(i64, Box<Microvm>),
    /// Nothing is there.
    Gone,
}

impl Term {
    /// Changes a record: durable first, then visible. `change` may run more
    /// than once, on fresh copies. Returns the record and whether it changed.
    ///
    /// # Errors
    /// What `change` says; [`Refusal::NotLeading`] when the term is over.
    pub(crate) async fn update(
        self: &Arc<Self>,
        handle: &Handle,
        change: impl Fn(&mut Microvm) -> Result<Changed, Refusal>,
    ) -> Result<(Arc<Microvm>, bool), Refusal> {
        let mut revision = handle.revision.lock().await;
        loop {
            let current = handle.current();
            let mut next = (*current).clone();
            let changed = change(&mut next)?;
            let next = Arc::new(next);
            match changed {
                Changed::No => return Ok((current, false)),
                Changed::Totals => {
                    self.memory().retotal(handle, Arc::clone(&next));
                    return Ok((next, true));
                }
                Changed::Passing => {
                    log_change(&current, &next);
                    self.memory().publish(handle, Arc::clone(&next), SystemTime::now());
                    return Ok((next, true));
                }
                Changed::Yes => {}
            }
            // Dying before this line changes nothing; after it, the next leader
            // reads the new record and goes on from there.
            match self.store(&handle.id, &next, Expect::Revision(*revision)).await? {
                Written::Stored(stored) => {
                    *revision = stored;
                    log_change(&current, &next);
                    self.memory().publish(handle, Arc::clone(&next), SystemTime::now());
                    self.timers_changed.notify_one();
                    return Ok((next, true));
                }
                Written::Differs(stored, theirs) => {
                    tracing::warn!(microvm = %handle.id, "the record was changed by somebody else; following it");
                    *revision = stored;
                    self.memory().publish(handle, Arc::new(*theirs), SystemTime::now());
                }
                Written::Gone => {
                    tracing::warn!(microvm = %handle.id, "the record was deleted by somebody else");
                    self.memory().forget(&handle.id, SystemTime::now());
                    return Err(Refusal::MicrovmNotFound(handle.id.clone()));
                }
            }
        }
    }

    /// Writes a new record. Its handle's write lock must be held, so that
    /// nobody acts on it before.
    pub(crate) async fn create(&self, microvm: &Microvm) -> Result<i64, Refusal> {
        match self.store(&microvm.id, microvm, Expect::Absent).await? {
            Written::Stored(revision) => Ok(revision),
            Written::Differs(..) | Written::Gone => {
                Err(Refusal::Internal(format!("the fresh id {} is taken", microvm.id)))
            }
        }
    }

    /// Deletes a record for good.
    pub(crate) async fn erase(self: &Arc<Self>, handle: &Handle) -> Result<(), Refusal> {
        let revision = handle.revision.lock().await;
        let key = codec::key(&handle.id);
        match self.context.store.delete_if(&key, Expect::Revision(*revision), Some(&self.leadership)).await {
            // A conflict is an earlier attempt that went through, or a record that
            // is not ours any more: gone from memory either way.
            Ok(_) | Err(StoreError::Conflict { .. }) => {
                self.memory().forget(&handle.id, SystemTime::now());
                Ok(())
            }
            Err(error) => Err(refused(error)),
        }
    }

    async fn store(&self, id: &MicrovmId, microvm: &Microvm, expect: Expect) -> Result<Written, Refusal> {
        let key = codec::key(id);
        let bytes = codec::encode(microvm);
        let mut backoff = BACKOFF_FIRST;
        loop {
            let written =
                self.context.store.put_if(&key, bytes.clone(), expect, Some(&self.leadership)).await;
            match written {
                Ok(revision) => return Ok(Written::Stored(revision)),
                Err(StoreError::Unavailable { detail, .. }) => {
                    tracing::debug!(microvm = %id, detail, "record not written yet");
                }
                Err(StoreError::Conflict { .. }) => match self.context.store.get(&key).await {
                    Ok(Some(found)) if found.value == bytes => return Ok(Written::Stored(found.revision)),
                    Ok(Some(found)) => {
                        let theirs = codec::decode(&found.value)
                            .map_err(|error| Refusal::Internal(error.to_string()))?;
                        return Ok(Written::Differs(found.revision, Box::new(theirs)));
                    }
                    Ok(None) => return Ok(Written::Gone),
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
}

/// The one line per state change.
fn log_change(before: &Microvm, after: &Microvm) {
    if before.state == after.state && before.placement.generation == after.placement.generation {
        return;
    }
    tracing::info!(
        microvm = %after.id,
        host = %after.placement.host,
        generation = after.placement.generation,
        from = %before.state,
        to = %after.state,
        reason = after.state_reason,
        "microVM changed"
    );
}

/// A store error that is nobody's conflict.
pub(crate) fn refused(error: StoreError) -> Refusal {
    match error {
        StoreError::LeadershipLost => Refusal::NotLeading,
        StoreError::TooLarge { .. } => Refusal::Internal(error.to_string()),
        other => Refusal::Store(other.to_string()),
    }
}
