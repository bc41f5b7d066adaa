//! Who leads. One replica holds the election's lease and runs a [`Term`]; the
//! others know its address and tell it to whoever asks them.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use records::{Event, Store};
use tokio_util::sync::CancellationToken;

use crate::term::{Context, Term};

const ELECTION: &str = "scheduler";
/// Pause after a term that could not begin.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The term this replica leads, if it does, and who leads otherwise.
#[derive(Debug, Default)]
pub struct Leader {
    term: RwLock<Option<Arc<Term>>>,
    address: RwLock<String>,
}

impl Leader {
    pub fn term(&self) -> Option<Arc<Term>> {
        let term = self.term.read().unwrap_or_else(PoisonError::into_inner).clone();
        term.filter(|term| !term.is_over())
    }

    /// Address of the leader as far as known; empty when it is not.
    pub fn address(&self) -> String {
        self.address.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_term(&self, term: Option<Arc<Term>>) {
        *self.term.write().unwrap_or_else(PoisonError::into_inner) = term;
    }

    pub(crate) fn set_address(&self, address: String) {
        *self.address.write().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

/// Campaigns and leads, over and over.
pub(crate) async fn lead(
    context: Context,
    instance: String,
    leader: Arc<Leader>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let ttl = Duration::from_secs(context.config.lease_seconds);
    loop {
        let leadership = tokio::select! {
            biased;
            won = context.store.campaign(ELECTION, &instance, ttl) => won.context("election")?,
            () = shutdown.cancelled() => return Ok(()),
        };
        match Term::begin(context.clone(), leadership.clone()).await {
            Err(error) => {
                tracing::warn!(error = %anyhow::Error::from(error), "cannot begin a term; trying again");
                let _ = leadership.resign().await;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Ok(term) => {
                tracing::info!(term = leadership.create_revision(), "leading");
                context.metrics.leads(true);
                leader.set_term(Some(Arc::clone(&term)));
                tokio::select! { biased; () = leadership.lost() => {}, () = shutdown.cancelled() => {} }
                // Fail closed: when the lease is gone, another replica may lead already, so
                // no caller is answered any more; then every task stops.
                leader.set_term(None);
                term.stop().await;
                context.metrics.leads(false);
                tracing::info!(term = leadership.create_revision(), "no longer leading");
            }
        }
        if shutdown.is_cancelled() {
            // So that another leads at once instead of after the lease.
            let _ = leadership.resign().await;
            return Ok(());
        }
    }
}

/// Keeps the leader's address for those who ask the wrong replica.
pub(crate) async fn watch_leader(store: Store, leader: Arc<Leader>) {
    let key = format!("elections/{ELECTION}");
    let mut watch = store.watch(&key);
    loop {
        let value = match watch.next().await {
            Event::Snapshot(entries) => {
                entries.into_iter().find(|(found, _)| *found == key).map(|entry| entry.1)
            }
            Event::Put(found, value) if found == key => Some(value),
            Event::Delete(found) if found == key => None,
            Event::Put(..) | Event::Delete(_) => continue,
        };
        let address = value.map(|value| String::from_utf8_lossy(&value.value).into_owned());
        leader.set_address(address.unwrap_or_default());
    }
}
