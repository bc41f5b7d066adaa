//! Writes that are tried until their fate is known.
//!
//! When an answer of etcd is lost, the writes may or may not have happened. They are tried again with the
//! same expectations: if they had not happened, they happen now; if they had, etcd refuses them, and the
//! *witness*, the key of the first write, holds what that write put there. A refusal without a lost answer
//! before it is somebody else's doing, whatever the witness holds.
//!
//! So a member of etcd that is silent need not be waited for: another one is asked to do the same, and a refusal after that is as one
//! after a lost answer.

use futures::future::BoxFuture;

use crate::store::Store;
use crate::watch::backoff;
use crate::{Error, Leadership, Lease, Result, Versioned, Write};

/// What entitles a process to its writes. It also bounds how long they are tried.
#[derive(Debug, Clone, Copy)]
pub enum Tenure<'a> {
    /// Leadership, which etcd checks with every attempt.
    Leader(&'a Leadership),
    /// A lease, by the holder's clock: the expectations of the writes must keep out the next holder.
    Holder(&'a Lease),
}

/// What became of the writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// All of them were done, at this revision (0 for a removal whose answer was lost).
    At(i64),
    /// None was done: some key is not as expected. The witness is as it is now; if it
    /// is as expected, another key differs.
    Differs(Option<Versioned>),
}

impl<'a> Tenure<'a> {
    fn guard(self) -> Option<&'a Leadership> {
        match self {
            Self::Leader(leadership) => Some(leadership),
            Self::Holder(_) => None,
        }
    }

    fn check(self) -> Result<()> {
        match self {
            Self::Leader(leadership) if !leadership.is_leader() => Err(Error::LeadershipLost),
            Self::Holder(lease) if !lease.is_alive() => Err(Error::LeaseLost),
            _ => Ok(()),
        }
    }
}

impl Store {
    /// Does all writes or none, however often etcd must be asked. The first write is
    /// the witness: no other process may put the same value there.
    ///
    /// # Errors
    /// [`Error::LeadershipLost`] or [`Error::LeaseLost`] when the tenure ends first; the fate of the writes
    /// may then be unknown. [`Error::TooLarge`], [`Error::Refused`]: nothing was written.
    pub fn commit<'a>(&'a self, writes: Vec<Write>, tenure: Tenure<'a>) -> BoxFuture<'a, Result<Committed>> {
        Box::pin(async move {
            let mut backoff = backoff();
            let mut answer_lost = false;
            loop {
                tenure.check()?;
                match self.transact(writes.clone(), tenure.guard(), true).await {
                    Ok(revision) => return Ok(Committed::At(revision)),
                    Err(Error::Conflict { .. }) => match self.witness(&writes).await {
                        Ok((true, found)) if answer_lost => {
                            return Ok(Committed::At(found.map_or(0, |found| found.revision)));
                        }
                        Ok((_, found)) => return Ok(Committed::Differs(found)),
                        Err(error) if error.is_unavailable() => {}
                        Err(error) => return Err(error),
                    },
                    Err(error) if error.is_unavailable() => {
                        answer_lost |= !error.is_determinate();
                        tracing::debug!(%error, "not written yet");
                    }
                    Err(error) => return Err(error),
                }
                backoff.pause().await;
            }
        })
    }

    /// What is at the first write's key, and whether that write would leave it so.
    async fn witness(&self, writes: &[Write]) -> Result<(bool, Option<Versioned>)> {
        let Some(first) = writes.first() else {
            return Ok((false, None));
        };
        let found = self.get(first.key()).await?;
        let ours = match first {
            Write::Put { value, .. } => found.as_ref().is_some_and(|found| found.value == *value),
            Write::Delete { .. } | Write::Absent { .. } => found.is_none(),
        };
        Ok((ours, found))
    }
}
