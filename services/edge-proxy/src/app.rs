//! Puts the edge together: bind and connect first, then follow and serve.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use clock::Clock;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use rpc::TlsIdentity;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapters::dial::Dialer;
use crate::adapters::domains::Domains;
use crate::adapters::routes;
use crate::adapters::scheduler::Scheduler;
use crate::adapters::tls_apps::TlsApps;
use crate::adapters::token_keys::TokenKeys;
use crate::adapters::tunnels::Tunnels;
#[cfg(feature = "aws")]
use crate::aws::app::ApiServer;
use crate::config::Config;
use crate::domain::route::Table;
use crate::metrics::Metrics;
use crate::server::browser::REDEMPTIONS_MAX;
use crate::server::endpoint::Endpoints;
use crate::server::listener::Listener;
use crate::server::send::Sender;
use crate::server::websocket::LEAVE_WAIT;

/// How often unused tunnels are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The whole program: settings, telemetry, the service, an exit code.
pub fn main() -> ExitCode {
    telemetry::run_service(
        "edge-proxy",
        "The public face of a Torpor fleet",
        |config: &Config| Ok(&config.telemetry),
        async |config: Config, telemetry: &telemetry::Guard| {
            let shutdown = telemetry::shutdown_on_signal()?;
            let app = App::build(config, Clock::system(), &telemetry.registry()).await?;
            tracing::info!(addresses = ?app.local_addresses()?, "serving endpoints");
            #[cfg(feature = "aws")]
            if let Some(addresses) = app.api_addresses()? {
                tracing::info!(?addresses, "serving the AWS-compatible API");
            }
            app.run(shutdown).await;
            anyhow::Ok(())
        },
    )
}

/// An edge, bound and not yet serving.
pub struct App {
    config: Config,
    clock: Clock,
    listener: Listener,
    #[cfg(feature = "aws")]
    api: Option<ApiServer>,
    store: records::Store,
    domains: Domains,
    scheduler: Arc<Scheduler>,
    client: tunnel::Client,
    metrics: Arc<Metrics>,
}

// Both futures are boxed here, so that they are compiled once and not in every program and test that polls them.
impl App {
    /// Checks the settings, loads certificates, binds the sockets.
    pub fn build(
        config: Config,
        clock: Clock,
        registry: &Arc<Mutex<Registry>>,
    ) -> BoxFuture<'_, anyhow::Result<Self>> {
        Box::pin(async move {
            config.check()?;
            let identity =
                TlsIdentity::load(&config.tls.ca, &config.tls.cert, &config.tls.key).context("tls")?;
            identity.register(registry);
            let store = records::Store::connect(&config.etcd).await.context("etcd")?;
            let domains = Domains::follow(&store, &config.domain);
            let bounds = config.limits.bounds();
            let listener = Listener::bind(config.endpoint_socket(), Some(domains.clone()), bounds).await?;
            let scheduler = Scheduler::new(&identity, &config.schedulers).context("schedulers")?;
            Ok(Self {
                listener,
                #[cfg(feature = "aws")]
                api: ApiServer::build(&config, &identity, &store, &clock, registry).await?,
                store,
                domains,
                scheduler: Arc::new(scheduler),
                client: tunnel::Client::new(&identity),
                metrics: Arc::new(Metrics::register(registry)),
                config,
                clock,
            })
        })
    }

    /// Where the endpoints will be served, in the order of the setting.
    pub fn local_addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.listener.local_addresses()
    }

    /// Where the AWS-compatible API will be served, if it will.
    #[cfg(feature = "aws")]
    pub fn api_addresses(&self) -> std::io::Result<Option<Vec<SocketAddr>>> {
        self.api.as_ref().map(ApiServer::local_addresses).transpose()
    }

    /// Serves until `shutdown`, drains, returns. Requests that come before the first keys and routes wait for them, within
    /// the waits they have anyway.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let following = CancellationToken::new();
            let _stop_following = following.clone().drop_guard();
            let limits = self.config.limits;
            let table = Arc::new(Table::new(limits.per_microvm()));
            let keys = TokenKeys::follow(&self.store);
            routes::follow(self.scheduler.clone(), table.clone(), following.clone());
            let tunnels = Arc::new(Tunnels::new(
                limits.idle_tunnel(),
                limits.idle_tunnels,
                self.metrics.tunnels_open.clone(),
            ));
            let sweeping = tokio::spawn(sweep(tunnels.clone()));
            let (response_wait, unread, drain) = (limits.response(), limits.unread(), limits.drain());
            let dialer = Arc::new(Dialer {
                table: table.clone(),
                scheduler: self.scheduler.clone(),
                client: self.client,
                limits,
            });
            let (websockets, leave) = (TaskTracker::new(), CancellationToken::new());
            let sender = Sender {
                dialer,
                response_wait,
                tunnels: tunnels.clone(),
                tls_apps: Arc::new(TlsApps::new()),
                metrics: self.metrics.clone(),
                websockets: websockets.clone(),
                unread,
                stopping: shutdown.clone(),
                leave: leave.clone(),
            };
            let endpoints = Arc::new(Endpoints {
                domain: self.config.domain,
                domains: self.domains.clone(),
                clock: self.clock,
                keys,
                table,
                scheduler: self.scheduler,
                sender,
                redemptions: Semaphore::new(REDEMPTIONS_MAX),
                metrics: self.metrics,
            });
            let leaving = tokio::spawn(leave_after(shutdown.clone(), drain, leave));
            let (domains, listener, stopping) = (self.domains, self.listener, shutdown.clone());
            let serving = async move {
                // A handshake cannot wait for the certificate it should show, so the first of them does.
                tokio::select! { () = domains.listed() => {}, () = stopping.cancelled() => {} }
                listener.serve(endpoints, stopping).await;
            };
            #[cfg(feature = "aws")]
            let serving = async {
                let api = self.api.map(|api| api.serve(shutdown));
                tokio::join!(serving, futures::future::OptionFuture::from(api))
            };
            serving.await;
            websockets.close();
            websockets.wait().await;
            leaving.abort();
            sweeping.abort();
            tunnels.clear();
        })
    }
}

/// WebSockets have the drain time to end by themselves. What is left of them then is told that the edge goes, a moment before
/// the connections are cut that some of them share with other streams.
async fn leave_after(shutdown: CancellationToken, drain: Duration, leave: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(drain - LEAVE_WAIT.min(drain / 2)).await;
    leave.cancel();
}

async fn sweep(tunnels: Arc<Tunnels>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        tunnels.sweep();
    }
}
