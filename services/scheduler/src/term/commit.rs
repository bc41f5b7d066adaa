//! Durable changes: compare-and-sets guarded by leadership, of one key or of several that belong together.
//!
//! A write whose fate is unknown is tried again with the same expectation until etcd says what became of it
//! or leadership is lost ([`records::Store::commit`]). When etcd says that somebody else changed the key,
//! what is there is the truth and memory follows it.
//!
//! When a leader is deposed between its last look at the leadership and its
//! write, etcd refuses the write: the leadership is one of its conditions. So a
//! leader that was paused for minutes cannot overwrite what its successor wrote.

use std::sync::Arc;
use std::time::SystemTime;

use model::HostId;
use model::state::MicrovmEvent;
use records::{Committed, Error as StoreError, Expect, Tenure, Write};

use super::memory::Handle;
use super::{Term, hosts};
use crate::adapters::microvms as codec;
use crate::domain::microvm::Microvm;
use crate::domain::observation::RecordChange;
use crate::refusal::Refusal;

impl Term {
    /// Changes a record: durable first, then visible. `change` may run more
    /// than once, on fresh copies. Returns the record and whether it changed.
    pub(crate) async fn update(
        self: &Arc<Self>,
        handle: &Handle,
        change: impl Fn(&mut Microvm) -> Result<RecordChange, Refusal>,
    ) -> Result<(Arc<Microvm>, bool), Refusal> {
        self.update_without(None, handle, change).await
    }

    /// The same, for a change that takes the microVM from `gone`, whose lease has ended: only as long as it has none in etcd, too.
    /// What this leader knows of leases comes by a watch, which may be behind by any time, while the host has a new lease, has
    /// told us of what it holds, and serves it.
    ///
    /// # Errors
    /// [`Refusal::HostAway`] when the host has a lease again; nothing has changed.
    pub(crate) async fn update_without(
        self: &Arc<Self>,
        gone: Option<&HostId>,
        handle: &Handle,
        change: impl Fn(&mut Microvm) -> Result<RecordChange, Refusal>,
    ) -> Result<(Arc<Microvm>, bool), Refusal> {
        let mut revision = handle.revision.lock().await;
        loop {
            let current = handle.current();
            let mut next = (*current).clone();
            let changed = change(&mut next)?;
            let next = Arc::new(next);
            match changed {
                RecordChange::None => return Ok((current, false)),
                RecordChange::Totals => {
                    self.memory().publish_totals(handle, Arc::clone(&next));
                    return Ok((next, true));
                }
                RecordChange::Passing => {
                    log_change(&current, &next);
                    self.memory().publish(handle, Arc::clone(&next), self.now());
                    return Ok((next, true));
                }
                RecordChange::Durable => {}
            }
            // When the scheduler dies before this line, nothing has changed. When it
            // dies after it, watchers have not heard of the change, and the next
            // leader reads the new record, tells them and goes on from there.
            let mut writes = vec![put(&next, Expect::Revision(*revision))];
            writes.extend(gone.map(|host| Write::Absent { key: hosts::key(host) }));
            match (self.commit(writes).await?, gone) {
                (Committed::At(stored), _) => {
                    *revision = stored;
                    log_change(&current, &next);
                    self.memory().publish(handle, Arc::clone(&next), self.now());
                    self.timers_changed.notify_one();
                    return Ok((next, true));
                }
                (Committed::Differs(Some(found)), Some(host)) if found.revision == *revision => {
                    return Err(Refusal::away(
                        host,
                        "its lease is back, and this leader has not heard of that yet",
                    ));
                }
                (Committed::Differs(Some(found)), _) => {
                    tracing::warn!(microvm = %handle.id, "the record was changed by somebody else; following it");
                    let theirs = codec::decode(&found.value);
                    let theirs = theirs.map_err(|error| Refusal::Internal(error.to_string()))?;
                    *revision = found.revision;
                    self.memory().publish(handle, Arc::new(theirs), self.now());
                }
                (Committed::Differs(None), _) => {
                    tracing::warn!(microvm = %handle.id, "the record was deleted by somebody else");
                    self.memory().forget(&handle.id, self.now());
                    return Err(Refusal::MicrovmNotFound(handle.id.clone()));
                }
            }
        }
    }

    /// Writes a new record. Its handle's write lock must be held, so that nobody acts on it before.
    pub(crate) async fn create(&self, microvm: &Microvm) -> Result<i64, Refusal> {
        match self.commit(vec![put(microvm, Expect::Absent)]).await? {
            Committed::At(revision) => Ok(revision),
            Committed::Differs(_) => Err(Refusal::Internal(format!("the fresh id {} is taken", microvm.id))),
        }
    }

    /// Does all writes or none, guarded by leadership. The first write's key
    /// tells whether an attempt went through whose answer was lost.
    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<Committed, Refusal> {
        Ok(self.context.store.commit(writes, Tenure::Leader(&self.leadership)).await?)
    }
}

fn put(microvm: &Microvm, expect: Expect) -> Write {
    Write::Put { key: codec::key(&microvm.id), value: codec::encode(microvm), expect, lease: None }
}

/// Applies an event as a change that must be durable.
pub(crate) fn apply_event(
    record: &mut Microvm,
    event: MicrovmEvent,
    reason: &str,
    at: SystemTime,
) -> Result<RecordChange, Refusal> {
    record.apply_event(event, reason, at).map_err(|illegal| Refusal::Internal(illegal.to_string()))?;
    Ok(RecordChange::Durable)
}

/// Has a record go back to its recovery point, as a change that must be durable.
pub(crate) fn go_back(record: &mut Microvm, lost: &str, now: SystemTime) -> Result<RecordChange, Refusal> {
    record.go_back(lost, now).map_err(|illegal| Refusal::Internal(illegal.to_string()))?;
    Ok(RecordChange::Durable)
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

/// A store error that is no conflict.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::LeadershipLost => Self::NotLeading,
            StoreError::TooLarge { .. } => Self::Internal(error.to_string()),
            other => Self::Store(other.to_string()),
        }
    }
}
