//! Puts the scheduler together: binds, then serves and campaigns.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use clock::Clock;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use records::Store;
use rpc::{BoundServer, ServerBuilder, TlsIdentity};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use uuid::Uuid;

use crate::adapters::agents::Agents;
use crate::config::Config;
use crate::leader::{Leader, lead, watch_leader, watch_store};
use crate::metrics::Metrics;
use crate::server;
use crate::term::Context;
use crate::vouches::Vouches;

pub fn main() -> ExitCode {
    telemetry::run_service(
        "scheduler",
        "Keeps microVM records, places microVMs on hosts and drives their lives",
        |config: &Config| {
            config.check()?;
            Ok(&config.telemetry)
        },
        async |config, telemetry: &telemetry::Guard| {
            let app = App::bind(config, &telemetry.registry(), Clock::system()).await?;
            app.run(telemetry::shutdown_on_signal()?).await
        },
    )
}

/// A scheduler that holds its address.
pub struct App {
    replica: Replica,
    server: BoundServer,
}

impl App {
    /// Reads certificates and binds the address; starts nothing.
    pub fn bind(
        config: Config,
        registry: &Mutex<Registry>,
        clock: Clock,
    ) -> BoxFuture<'_, anyhow::Result<Self>> {
        // Boxed, as `run` is: who calls it does not compile it again.
        Self::bind_now(config, registry, clock).boxed()
    }

    async fn bind_now(config: Config, registry: &Mutex<Registry>, clock: Clock) -> anyhow::Result<Self> {
        let tls = &config.tls;
        let identity = TlsIdentity::load(&tls.ca, &tls.cert, &tls.key).context("settings: tls")?;
        identity.register(registry);
        let server = ServerBuilder::bind(&config.listen, &identity).await?;
        let store = Store::connect(&config.etcd).await.context("settings: etcd")?;
        let instance = match config.advertise.as_str() {
            "" => server.local_addr().to_string(),
            address => address.to_owned(),
        };
        let context = Context {
            config: Arc::new(config),
            vouches: Arc::new(Vouches::new(clock.clone(), instance.clone())),
            clock,
            store,
            agents: Arc::new(Agents::new(identity)),
            metrics: Metrics::register(registry),
            new_id: Uuid::new_v4,
        };
        Ok(Self { replica: Replica::new(context, instance), server })
    }

    /// Serves until `shutdown`, leading whenever it is elected.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
        self.run_now(shutdown).boxed()
    }

    async fn run_now(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let routes = self.replica.routes();
        tracing::info!(address = %self.server.local_addr(), "serving");
        let serving = self.server.serve(routes, shutdown.clone());
        let ended = tokio::select! {
            served = serving => served.map_err(anyhow::Error::from),
            led = self.replica.lead(shutdown.clone()) => led,
        };
        shutdown.cancel();
        ended
    }
}

/// A scheduler without the address it serves at.
#[derive(Debug, Clone)]
pub struct Replica {
    context: Context,
    /// Its name in the election.
    instance: String,
    leader: Arc<Leader>,
}

impl Replica {
    pub fn new(context: Context, instance: String) -> Self {
        Self { context, instance, leader: Arc::new(Leader::default()) }
    }

    /// What it answers.
    pub fn routes(&self) -> Routes {
        server::routes(&self.leader, &self.context)
    }

    pub fn leader(&self) -> &Leader {
        &self.leader
    }

    /// Leads whenever it is elected, until `shutdown`.
    pub async fn lead(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (store, leader) = (self.context.store.clone(), self.leader);
        let watching = AbortOnDrop(tokio::spawn(watch_leader(store.clone(), Arc::clone(&leader))));
        let looking = AbortOnDrop(tokio::spawn(watch_store(store, Arc::clone(&leader))));
        let led = lead(self.context, self.instance, leader, shutdown).await;
        drop((watching, looking));
        led
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
