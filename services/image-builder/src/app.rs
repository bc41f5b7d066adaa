//! Assembles an image-builder from its settings: binds its socket, cleans up
//! what an earlier process left, then runs server, queue and remover until told
//! to stop.

use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use api::image::v1::image_service_server::ImageServiceServer;
use object_store::{Config as ObjectConfig, Store as Objects};
use prometheus_client::registry::Registry;
use rpc::{BoundServer, ServerBuilder, TlsIdentity};
use settings::S3Settings;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::adapters::buildah::Buildah;
use crate::adapters::catalog::Catalog;
use crate::adapters::hosts::Fleet;
use crate::adapters::layout::Layout;
use crate::adapters::network::Networks;
use crate::adapters::sandbox::Sandbox;
use crate::config::Settings;
use crate::deletion::{self, Requests};
use crate::images::Images;
use crate::log::Logs;
use crate::metrics::Metrics;
use crate::pipeline::{self, Context};
use crate::queue;
use crate::server::Service;

/// Wait between attempts to make sure of the buckets while S3 is not there yet.
const BUCKET_RETRY: std::time::Duration = std::time::Duration::from_millis(500);
/// Largest request and answer, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// An image-builder that holds its address and serves nothing yet.
pub struct App {
    server: BoundServer,
    context: Arc<Context>,
    images: Images,
    requests: Requests,
}

impl App {
    /// Builds everything from `settings`.
    ///
    /// # Errors
    /// Names the setting or the part of the machine that cannot be used.
    pub async fn build(settings: Settings, registry: &Arc<Mutex<Registry>>) -> anyhow::Result<Self> {
        settings.check()?;
        let tls = &settings.tls;
        let identity = TlsIdentity::load(&tls.ca, &tls.cert, &tls.key).context("tls")?;
        let server = ServerBuilder::bind(&settings.listen.to_string(), &identity).await?;
        let store = records::Store::connect(&settings.etcd).await.context("etcd")?;
        let objects = Objects::connect(&object_config(&settings.s3)).context("s3")?;
        let fleet = Fleet::new(identity, &settings.schedulers)
            .map_err(|status| anyhow::anyhow!("schedulers: {}", status.message()))?;
        let layout = Layout::new(settings.data_dir.clone(), settings.build.uid_base);
        let prepared = layout.clone();
        tokio::task::spawn_blocking(move || prepared.prepare()).await?.context("data_dir")?;
        let networks = Networks::new(layout.networks(), settings.build.denied_networks.clone());
        networks.reconcile().await.context("data_dir")?;
        let sandbox =
            Sandbox::new(settings.build.sandbox_program.clone()).context("build.sandbox_program")?;
        let buildah = Buildah::new(sandbox, layout.clone(), settings.build.clone());
        buildah.reconcile().await;
        let instance = match settings.instance.as_str() {
            "" => uuid::Uuid::new_v4().to_string(),
            given => given.to_owned(),
        };
        let (remover, requests) = deletion::channel();
        let catalog = Catalog::new(store);
        let images = Images {
            catalog: catalog.clone(),
            fleet: fleet.clone(),
            remover,
            settings: settings.clone(),
            admission: Arc::default(),
        };
        let context = Arc::new(Context {
            instance,
            catalog,
            objects,
            fleet,
            networks,
            buildah,
            logs: Logs::new(layout.logs(), settings.log.bytes_max),
            metrics: Metrics::new(registry),
            layout,
            settings,
        });
        Ok(Self { server, context, images, requests })
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.local_addr()
    }

    /// Runs until `shutdown`, then stops: builds in progress are given up for
    /// another replica, and nothing of them is left on this machine.
    ///
    /// # Errors
    /// When the server fails.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { server, context, images, requests } = self;
        tracing::info!(address = %server.local_addr(), instance = context.instance, "image-builder listens");
        let service = ImageServiceServer::new(Service::new(images, Arc::clone(&context)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let work = async {
            // Containers that an earlier process left in the storage.
            pipeline::prune(&context).await;
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
    for bucket in [&context.settings.snapshot_bucket, &context.settings.log_bucket] {
        while let Err(error) = context.objects.ensure_bucket(bucket).await {
            tracing::warn!(bucket, %error, "waiting for S3");
            tokio::time::sleep(BUCKET_RETRY).await;
        }
    }
}

fn object_config(settings: &S3Settings) -> ObjectConfig {
    ObjectConfig {
        endpoint: settings.endpoint.clone(),
        region: settings.region.clone(),
        access_key_id: settings.access_key_id.clone(),
        secret_access_key: settings.secret_access_key.as_ref().map(|secret| secret.expose().to_owned()),
        path_style: settings.path_style,
        ..ObjectConfig::default()
    }
}
