//! Puts the API together: bind and load first, then follow and serve.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aws_model::{Limits, PageTokens, operations};
use rpc::TlsIdentity;
use sigv4::Verifier;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::aws::arn::Fleet;
use crate::aws::audit::{Audit, Writer};
use crate::aws::body::Bodies;
use crate::aws::handler::Api;
use crate::aws::key_file::KeyFile;
use crate::aws::keys::Keys;
use crate::aws::services::Services;
use crate::aws::throttle::Buckets;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::server::listener::Listener;

/// Name of the service in the scope of signatures, for both models.
const SERVICE: &str = "lambda";
/// Longest wait at the end for audit records to be written.
const AUDIT_DRAIN: Duration = Duration::from_secs(5);

/// The API, bound and not yet serving.
pub struct ApiServer {
    listener: Listener,
    api: Api,
    key_file: Option<KeyFile>,
    records: Writer,
}

impl ApiServer {
    /// Loads certificate and keys, binds the socket.
    ///
    /// # Errors
    /// One line that names the setting that cannot be used.
    pub async fn build(
        config: &Config,
        identity: &TlsIdentity,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let Config { aws, region, account, .. } = config;
        let keys = Arc::new(Keys::default());
        let key_file = match &aws.key_file {
            None => None,
            Some(path) => {
                let opened = KeyFile::open(path, account);
                let (file, map) =
                    opened.map_err(|error| anyhow::anyhow!("aws.key_file: {}: {error}", path.display()))?;
                keys.set_file(map);
                Some(file)
            }
        };
        let (audit, records) =
            Audit::open(aws.audit_file.as_deref(), aws.unauthenticated_audit_file.as_deref())
                .context("aws.audit_file, aws.unauthenticated_audit_file")?;
        let listener = Listener::bind(aws.socket(), aws.limits.bounds()).await?;
        let services = Services::new(identity, &config.schedulers, &config.image_builders, aws.limits.call());
        // Not a secret: what a page token says may be known, it only must not be
        // taken for another's by accident. All edges of a fleet share it.
        let seal = std::fs::read(&config.tls.ca).context("tls.ca")?;
        let api = Api {
            fleet: Fleet { region: region.clone(), account: account.clone() },
            services: services.context("schedulers and image_builders")?,
            tokens: PageTokens::new(&seal),
            verifier: Verifier::new(region.as_str(), SERVICE),
            keys,
            bodies: Bodies::new(aws.limits.body_bytes, aws.limits.body_read(), aws.limits.body_memory_bytes),
            buckets: Buckets::new(&aws.throttles, operations().iter().map(|operation| operation.name)),
            audit,
            in_flight: Arc::new(Semaphore::new(aws.limits.requests)),
            limits: Limits {
                body_bytes_max: aws.limits.body_bytes,
                run_hook_payload_bytes_max: aws.limits.run_hook_payload_bytes,
            },
            metrics,
        };
        Ok(Self { listener, api, key_file, records })
    }

    /// Where the API will be served.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_address()
    }

    /// Serves until `shutdown`, drains, returns.
    pub async fn serve(self, store: &records::Store, shutdown: CancellationToken) {
        let Self { listener, api, key_file, records } = self;
        let following = CancellationToken::new();
        let _stop_following = following.clone().drop_guard();
        api.keys.follow(store, api.fleet.account.clone(), following.clone());
        if let Some(file) = key_file {
            tokio::spawn(file.follow(api.keys.clone(), following));
        }
        listener.serve(Arc::new(api), shutdown).await;
        records.ended(AUDIT_DRAIN).await;
    }
}
