//! Puts the edge together: bind and connect first, then follow and serve.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use rpc::TlsIdentity;
use tokio_util::sync::CancellationToken;

use crate::adapters::dial::Dialer;
use crate::adapters::keys::Keys;
use crate::adapters::routes;
use crate::adapters::scheduler::Scheduler;
use crate::adapters::tunnels::Tunnels;
use crate::aws::app::ApiServer;
use crate::config::Config;
use crate::domain::route::Table;
use crate::metrics::Metrics;
use crate::server::endpoint::Endpoints;
use crate::server::listener::Listener;
use crate::server::send::Sender;

/// How often unused tunnels are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// An edge, bound and not yet serving.
pub struct App {
    config: Config,
    listener: Listener,
    api: Option<ApiServer>,
    store: records::Store,
    scheduler: Arc<Scheduler>,
    client: tunnel::Client,
    metrics: Arc<Metrics>,
}

impl App {
    /// Checks the settings, loads certificates, binds the socket.
    ///
    /// # Errors
    /// One line that names the setting that cannot be used.
    pub async fn build(config: Config, registry: &Arc<Mutex<Registry>>) -> anyhow::Result<Self> {
        config.check()?;
        let identity = TlsIdentity::load(&config.tls.ca, &config.tls.cert, &config.tls.key).context("tls")?;
        let listener = Listener::bind(config.endpoint_socket(), config.limits.bounds()).await?;
        let store = records::Store::connect(&config.etcd).await.context("etcd")?;
        let scheduler = Scheduler::new(&identity, &config.schedulers).context("schedulers")?;
        let metrics = Arc::new(Metrics::register(registry));
        let api = if config.aws.served() {
            Some(ApiServer::build(&config, &identity, metrics.clone()).await?)
        } else {
            None
        };
        Ok(Self {
            config,
            listener,
            api,
            store,
            scheduler: Arc::new(scheduler),
            client: tunnel::Client::new(&identity),
            metrics,
        })
    }

    /// Where the endpoints will be served.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_address()
    }

    /// Where the AWS-compatible API will be served, if it will.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn api_address(&self) -> std::io::Result<Option<SocketAddr>> {
        self.api.as_ref().map(ApiServer::local_address).transpose()
    }

    /// Serves until `shutdown`, drains, returns. Requests that come before the
    /// first keys and routes wait for them, within the waits they have anyway.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { config, listener, api, store, scheduler, client, metrics } = self;
        let limits = config.limits;
        let following = CancellationToken::new();
        let _stop_following = following.clone().drop_guard();
        let table = Arc::new(Table::new(limits.requests_per_microvm));
        let keys = Keys::follow(&store, following.clone());
        let api = async {
            if let Some(api) = api {
                api.serve(&store, shutdown.clone()).await;
            }
        };
        let _synced = routes::follow(scheduler.clone(), table.clone(), following.clone());
        let tunnels = Tunnels::new(limits.idle_tunnel(), limits.idle_tunnels, metrics.tunnels_open.clone());
        let tunnels = Arc::new(tunnels);
        let sweeping = tokio::spawn(sweep(tunnels.clone()));
        let dialer = Dialer { table: table.clone(), scheduler: scheduler.clone(), client, limits };
        let sender = Sender { dialer, tunnels: tunnels.clone(), metrics: metrics.clone() };
        let endpoints = Endpoints { domain: config.domain, keys, table, scheduler, sender, metrics };
        tokio::join!(listener.serve(Arc::new(endpoints), shutdown.clone()), api);
        sweeping.abort();
        tunnels.clear();
    }
}

async fn sweep(tunnels: Arc<Tunnels>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        tunnels.sweep();
    }
}
