//! Puts the scheduler together: bind, campaign, lead, and again.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use records::{Event, Store};
use rpc::{BoundServer, ServerBuilder, TlsIdentity};
use tokio_util::sync::CancellationToken;

use crate::adapters::agents::Agents;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::server;
use crate::term::{Context, Term};

/// Name of the election.
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
    /// The running term.
    #[must_use]
    pub fn term(&self) -> Option<Arc<Term>> {
        let term = self.term.read().unwrap_or_else(PoisonError::into_inner).clone();
        term.filter(|term| !term.is_over())
    }

    /// Address of the leader as far as known; empty when it is not.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_term(&self, term: Option<Arc<Term>>) {
        *self.term.write().unwrap_or_else(PoisonError::into_inner) = term;
    }

    fn set_address(&self, address: String) {
        *self.address.write().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

/// A scheduler that holds its address.
pub struct App {
    context: Context,
    server: BoundServer,
    instance: String,
}

impl App {
    /// Reads certificates and binds the address; starts nothing.
    ///
    /// # Errors
    /// When a certificate or the address cannot be used.
    pub async fn bind(settings: Settings, registry: &Mutex<Registry>) -> anyhow::Result<Self> {
        let tls = &settings.tls;
        let identity = TlsIdentity::load(&tls.ca, &tls.cert, &tls.key).context("settings: tls")?;
        let server = ServerBuilder::bind(&settings.listen, &identity).await?;
        let store = Store::connect(&settings.etcd).await.context("settings: etcd")?;
        let instance = match settings.advertise.as_str() {
            "" => server.local_addr().to_string(),
            address => address.to_owned(),
        };
        let context = Context {
            settings: Arc::new(settings),
            store,
            agents: Arc::new(Agents::new(identity)),
            metrics: Metrics::register(registry),
        };
        Ok(Self { context, server, instance })
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.server.local_addr()
    }

    /// Serves until `shutdown`, leading whenever it is elected.
    ///
    /// # Errors
    /// When the server fails or etcd refuses for good.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let leader = Arc::new(Leader::default());
        let routes = server::routes(&leader, &self.context);
        tracing::info!(address = %self.server.local_addr(), "serving");
        let serving = self.server.serve(routes, shutdown.clone());
        let watching = tokio::spawn(watch_leader(self.context.store.clone(), Arc::clone(&leader)));
        let leading = lead(self.context, self.instance, leader, shutdown.clone());
        let ended = tokio::select! {
            served = serving => served.map_err(anyhow::Error::from),
            led = leading => led,
        };
        watching.abort();
        shutdown.cancel();
        ended
    }
}

/// Campaigns and leads, over and over.
async fn lead(
    context: Context,
    instance: String,
    leader: Arc<Leader>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let ttl = Duration::from_secs(context.settings.lease_seconds);
    loop {
        let leadership = tokio::select! {
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
                tokio::select! { () = leadership.lost() => {}, () = shutdown.cancelled() => {} }
                // Fail closed: first nobody is answered any more, then every task stops.
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
async fn watch_leader(store: Store, leader: Arc<Leader>) {
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
