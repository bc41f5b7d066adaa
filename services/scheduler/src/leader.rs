//! Who leads. One replica holds the election's lease and runs a [`Term`]; the
//! others know its address and tell it to whoever asks them.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use records::{Event, Store};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::term::{Context, Term};

const ELECTION: &str = "scheduler";
/// How often a scheduler looks whether etcd answers.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a term that could not begin.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The term this replica leads, if it does, and who leads otherwise.
#[derive(Debug, Default)]
pub struct Leader {
    term: RwLock<Option<Arc<Term>>>,
    address: RwLock<String>,
    /// Since when etcd has not answered.
    away_since: RwLock<Option<Instant>>,
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

    /// How long etcd has not answered; `None` while it does.
    pub fn store_away(&self) -> Option<Duration> {
        let since = *self.away_since.read().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    pub(crate) fn store_answers(&self, answers: bool) {
        let mut since = self.away_since.write().unwrap_or_else(PoisonError::into_inner);
        *since = if answers { None } else { since.or_else(|| Some(Instant::now())) };
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

/// Notes whether etcd answers, for those who ask why nobody leads.
pub(crate) async fn watch_store(store: Store, leader: Arc<Leader>) {
    loop {
        let answers = !matches!(store.leader(ELECTION).await, Err(error) if error.is_unavailable());
        if answers == leader.store_away().is_some() {
            tracing::warn!(answers, "etcd");
        }
        leader.store_answers(answers);
        tokio::time::sleep(LOOK).await;
    }
}
