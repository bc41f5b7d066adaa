//! Assembles an image-builder from its settings: binds its socket, cleans up what an earlier process left,
//! then runs server, queue and remover until told to stop.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use api::image::v1::image_service_server::ImageServiceServer;
use clock::Clock;
use futures::future::BoxFuture;
use object_store::{Config as ObjectConfig, Store as Objects};
use prometheus_client::registry::Registry;
use rpc::{BoundServer, ServerBuilder, TlsIdentity};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::adapters::buildkit::BuildKit;
use crate::adapters::catalog::Catalog;
use crate::adapters::layout::Layout;
use crate::adapters::network::{self, Networks, Reach};
use crate::adapters::peers::Peers;
use crate::adapters::sandbox::{self, Sandbox};
use crate::bases::BaseImages;
use crate::config::Config;
use crate::deletion::{self, Requests};
use crate::images::Images;
use crate::log::{BuildLogs, Logs};
use crate::metrics::Metrics;
use crate::pipeline::Context;
use crate::queue;
use crate::server::Service;

/// Wait between attempts to make sure of the buckets while S3 is not there yet.
const BUCKET_RETRY: std::time::Duration = std::time::Duration::from_millis(500);
/// Largest request and answer, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The whole program: settings, telemetry, the service, an exit code.
pub fn main() -> ExitCode {
    // A stage of a build's sandbox is this program too, and none of the below.
    sandbox::enter_if_stage();
    telemetry::run_service(
        "image-builder",
        "Builds images for Torpor",
        |config: &Config| Ok(&config.telemetry),
        async |config: Config, telemetry: &telemetry::Guard| {
            let app = App::build(config, &telemetry.registry(), Clock::system()).await?;
            app.run(telemetry::shutdown_on_signal()?).await
        },
    )
}

/// An image-builder that holds its address and serves nothing yet.
pub struct App {
    server: BoundServer,
    service: Service,
    context: Arc<Context>,
    requests: Requests,
}

impl App {
    /// Builds everything from `config`. Boxed, like [`App::run`], so that the
    /// program and the tests do not compile it again.
    pub fn build(
        config: Config,
        registry: &Arc<Mutex<Registry>>,
        clock: Clock,
    ) -> BoxFuture<'_, anyhow::Result<Self>> {
        Box::pin(Self::assemble(config, registry, clock))
    }

    async fn assemble(config: Config, registry: &Mutex<Registry>, clock: Clock) -> anyhow::Result<Self> {
        config.check()?;
        let tls = &config.tls;
        let identity = TlsIdentity::load(&tls.ca, &tls.cert, &tls.key).context("tls")?;
        identity.register(registry);
        let server = ServerBuilder::bind(&config.listen.to_string(), &identity).await?;
        let store = records::Store::connect(&config.etcd).await.context("etcd")?;
        let objects = Objects::connect(&ObjectConfig::from(&config.s3)).context("s3")?;
        let peers = Peers::new(identity, &config.schedulers)
            .map_err(|status| anyhow::anyhow!("schedulers: {}", status.message()))?;
        let layout = Layout::new(config.data_dir.clone(), config.build.uid_base);
        let prepared = layout.clone();
        tokio::task::spawn_blocking(move || prepared.prepare()).await?.context("data_dir")?;
        let reach = Reach {
            closed: config.build.closed_networks.clone(),
            open: config.build.open_networks.clone(),
            resolvers: config.build.resolvers.clone(),
            sources: tokio::task::spawn_blocking(network::machine_sources).await?,
        };
        let networks = Networks::new(layout.networks(), reach);
        networks.reconcile().await.context("data_dir")?;
        let sandbox = Sandbox::new(config.build.sandbox_program.clone()).context("build.sandbox_program")?;
        let buildkit = BuildKit::new(sandbox, layout.clone(), config.build.clone());
        buildkit.reconcile().await;
        let instance = match config.instance.as_str() {
            "" => uuid::Uuid::new_v4().to_string(),
            given => given.to_owned(),
        };
        let (remover, requests) = deletion::channel();
        let config = Arc::new(config);
        let catalog = Catalog::new(store);
        let logs = Arc::new(Logs::new(layout.logs(), config.log.bytes_max));
        let bases = BaseImages {
            catalog: catalog.clone(),
            objects: objects.clone(),
            layout: layout.clone(),
            config: Arc::clone(&config),
            clock: clock.clone(),
            instance: instance.clone(),
        };
        let images = Images {
            catalog: catalog.clone(),
            peers: peers.clone(),
            remover,
            bases: bases.clone(),
            config: Arc::clone(&config),
            clock: clock.clone(),
            admission: Arc::default(),
        };
        let followed = BuildLogs {
            catalog: catalog.clone(),
            objects: objects.clone(),
            config: Arc::clone(&config),
            local: Arc::clone(&logs),
        };
        let service = Service { images, bases: bases.clone(), logs: followed };
        let metrics = Metrics::new(registry);
        let context = Arc::new(Context {
            clock,
            config,
            instance,
            catalog,
            objects,
            peers,
            layout,
            networks,
            buildkit,
            bases,
            logs,
            metrics,
        });
        Ok(Self { server, service, context, requests })
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.server.local_addr()
    }

    /// Runs until `shutdown`, then stops: builds in progress are given up for
    /// another replica, and nothing of them is left on this machine.
    pub fn run(self, shutdown: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(self.serve(shutdown))
    }

    async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { server, service, context, requests } = self;
        tracing::info!(address = %server.local_addr(), instance = context.instance, "image-builder listens");
        let service = ImageServiceServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let work = async {
            // A process that is told to stop does not wait for S3.
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = ensure_buckets(&context) => {}
            }
            tokio::join!(
                queue::run(Arc::clone(&context), shutdown.clone()),
                deletion::run(Arc::clone(&context), requests, shutdown.clone()),
            );
        };
        let work = async {
            tokio::select! {
                biased;
                () = async { shutdown.cancelled().await; tokio::time::sleep(queue::STOP_TIMEOUT).await } => {}
                () = work => {}
            }
        };
        let (served, ()) = tokio::join!(server.serve(Routes::new(service), shutdown.clone()), work);
        Ok(served?)
    }
}

async fn ensure_buckets(context: &Context) {
    for bucket in [&context.config.snapshot_bucket, &context.config.log_bucket] {
        while let Err(error) = context.objects.ensure_bucket(bucket).await {
            tracing::warn!(bucket, %error, "waiting for S3");
            tokio::time::sleep(BUCKET_RETRY).await;
        }
    }
}
