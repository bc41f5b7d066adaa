//! One leader at a time, by a key that exists once and is tied to a lease.
//!
//! A leader's writes carry its key's creation revision as a guard, so a leader
//! that does not know yet that it was replaced cannot write.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::backend::{Condition, Outcome, Step, Transaction};
use crate::watch::{Event, backoff};
use crate::{Error, Expect, Lease, Result, Store};

/// A campaigner asks again after this long even if its watch was silent.
const RECHECK: Duration = Duration::from_secs(5);

pub(crate) fn election_key(name: &str) -> String {
    format!("elections/{name}")
}

/// Proof of having won an election. Clones share it.
#[derive(Debug, Clone)]
pub struct Leadership {
    key: String,
    create_revision: i64,
    lease: Lease,
    store: Store,
}

impl Leadership {
    /// True until the lease's local deadline passes or a guarded write is refused.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.lease.is_alive()
    }

    /// Returns once leadership is over, at the local deadline at the latest.
    pub fn lost(&self) -> BoxFuture<'_, ()> {
        self.lease.lost()
    }

    /// When the leader must have stopped unless its lease is renewed.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.lease.deadline()
    }

    /// Fencing number: rises with every new leader.
    #[must_use]
    pub fn create_revision(&self) -> i64 {
        self.create_revision
    }

    /// Steps down, so that another can lead at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: the lease then runs out by itself.
    pub fn resign(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.end();
            let _ = self.store.delete_if(&self.key, Expect::Revision(self.create_revision), None).await;
            self.lease.revoke().await
        })
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn end(&self) {
        self.lease.end();
    }
}

impl Store {
    /// Waits until this instance leads the election `name`; however long etcd or another leader makes it
    /// wait. `instance` (an address) is what others read as the leader and must belong to one process at a
    /// time: an earlier term of the same instance, left behind by a crash, is replaced at once.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::TooLarge`]: asking again will not help.
    pub fn campaign<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Leadership>> {
        Box::pin(async move {
            let key = election_key(name);
            let mut backoff = backoff();
            loop {
                match self.campaign_once(&key, instance, ttl).await {
                    Ok(Some(leadership)) => return Ok(leadership),
                    Ok(None) => backoff.reset(),
                    Err(error) if error.is_unavailable() || matches!(error, Error::LeaseLost) => {
                        tracing::debug!(%error, name, "cannot campaign; trying again");
                        backoff.pause().await;
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// One attempt; None when another leader came and went meanwhile.
    async fn campaign_once(&self, key: &str, instance: &str, ttl: Duration) -> Result<Option<Leadership>> {
        let lease = self.lease(ttl).await?;
        loop {
            match self.claim(key, instance, &lease).await {
                Ok(Some(create_revision)) => {
                    let (key, store) = (key.to_owned(), self.clone());
                    return Ok(Some(Leadership { key, create_revision, lease, store }));
                }
                Ok(None) => {}
                Err(error) => {
                    let _ = lease.revoke().await;
                    return Err(error);
                }
            }
            tokio::select! {
                biased;
                () = lease.lost() => return Ok(None),
                () = self.vacant(key) => {}
            }
        }
    }

    /// Creates the key if it is not there or is our own former term's. Returns its creation revision.
    async fn claim(&self, key: &str, instance: &str, lease: &Lease) -> Result<Option<i64>> {
        let full = self.full(key)?;
        let create = Transaction {
            conditions: vec![Condition::Created { key: full.clone(), at: 0 }],
            steps: vec![Step::Put { key: full.clone(), value: instance.into(), lease: Some(lease.id()) }],
            reads: vec![full],
            values: true,
            repeatable: false,
        };
        // A claim that waited for etcd may come after the end of its lease: that is no reason to give up.
        let holder = match self.backend().transact(create).await.map_err(Error::or_lease_lost)? {
            Outcome::Done(revision) => return Ok(Some(revision)),
            Outcome::Refused(found) => found.into_iter().next().flatten(),
        };
        let Some(holder) = holder.filter(|holder| holder.value == instance.as_bytes()) else {
            return Ok(None);
        };
        // Our own former term, or a claim whose answer was lost. Deleting it
        // fences whatever of it still runs; the next round creates anew.
        match self.delete_if(key, Expect::Revision(holder.modified), None).await {
            Ok(_) | Err(Error::Conflict { .. }) => Err(Error::LeaseLost),
            Err(error) => Err(error),
        }
    }

    /// Returns when the key is gone, or after a while to look again.
    async fn vacant(&self, key: &str) {
        let mut watch = self.watch(key);
        let gone = async {
            loop {
                match watch.next().await {
                    Event::Snapshot(entries) if !entries.iter().any(|(found, _)| found == key) => return,
                    Event::Delete(deleted) if deleted == key => return,
                    _ => {}
                }
            }
        };
        let _ = tokio::time::timeout(RECHECK, gone).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::StoreSize;
    use crate::backend::{Backend, Changes, Keeper, Page, Pair, Range};

    /// etcd to which the first claim comes after the end of its lease.
    #[derive(Default)]
    struct Late {
        claims: AtomicU32,
    }

    fn silent<T: Send + 'static>() -> BoxFuture<'static, Result<T>> {
        Box::pin(std::future::pending())
    }

    impl Backend for Late {
        fn get(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Option<Pair>>> {
            silent()
        }

        fn page(&self, _: Range, _: i64, _: i64) -> BoxFuture<'_, Result<Page>> {
            silent()
        }

        fn count(&self, _: Range) -> BoxFuture<'_, Result<i64>> {
            silent()
        }

        fn transact(&self, _: Transaction) -> BoxFuture<'_, Result<Outcome>> {
            let late = self.claims.fetch_add(1, Ordering::Relaxed) == 0;
            let detail = "NotFound: etcdserver: requested lease not found".to_owned();
            Box::pin(async move { if late { Err(Error::Refused { detail }) } else { Ok(Outcome::Done(2)) } })
        }

        fn size(&self) -> BoxFuture<'_, Result<StoreSize>> {
            silent()
        }

        fn compact(&self, _: i64) -> BoxFuture<'_, Result<()>> {
            silent()
        }

        fn grant(&self, _: i64) -> BoxFuture<'_, Result<i64>> {
            Box::pin(async { Ok(1) })
        }

        fn revoke(&self, _: i64) -> BoxFuture<'_, Result<()>> {
            Box::pin(async { Ok(()) })
        }

        fn keep_alive(&self, _: i64, _: Duration) -> BoxFuture<'_, Result<Box<dyn Keeper>>> {
            silent()
        }

        fn watch(&self, _: Range, _: i64) -> BoxFuture<'_, Result<Box<dyn Changes>>> {
            silent()
        }
    }

    #[tokio::test]
    async fn a_claim_that_came_too_late_is_made_again() {
        let store = Store::over(Arc::new(Late::default()), "/torpor/");
        let won = store.campaign("scheduler", "a:1", Duration::from_secs(3)).await;
        assert_eq!(won.unwrap().create_revision(), 2);
    }
}
