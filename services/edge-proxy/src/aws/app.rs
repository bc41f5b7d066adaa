//! Puts the API together: bind and load first, then follow and serve.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use aws_model::{Limits, PageTokens};
use clock::Clock;
use prometheus_client::registry::Registry;
use records::Store;
use rpc::TlsIdentity;
use sigv4::Verifier;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::aws::access_keys::AccessKeys;
use crate::aws::account::Account;
use crate::aws::metrics::Metrics;
use crate::aws::operations::row;
use crate::aws::server::audit::{Audit, Writer};
use crate::aws::server::body::Bodies;
use crate::aws::server::handler::Api;
use crate::aws::server::throttle::Buckets;
use crate::aws::services::Services;
use crate::config::Config;
use crate::server::listener::Listener;

/// Name of the service in the scope of signatures, for both models.
const SERVICE: &str = "lambda";
/// Requests without a good signature that are answered and recorded at one time; more wait.
const REFUSALS: usize = 64;
/// Longest wait at the end for audit records to be written.
const AUDIT_DRAIN: Duration = Duration::from_secs(5);

/// The API, bound and not yet serving.
pub struct ApiServer {
    listener: Listener,
    api: Api,
    records: Writer,
}

impl ApiServer {
    /// Loads the certificate, binds the socket; `None` when the API is not served.
    pub async fn build(
        config: &Config,
        identity: &Arc<TlsIdentity>,
        store: &Store,
        clock: &Clock,
        registry: &Mutex<Registry>,
    ) -> anyhow::Result<Option<Self>> {
        let Config { aws, region, account, .. } = config;
        if !aws.served() {
            return Ok(None);
        }
        let (audit, records) =
            Audit::open(aws.audit_file.as_deref(), aws.unauthenticated_audit_file.as_deref())
                .context("aws.audit_file, aws.unauthenticated_audit_file")?;
        let listener = Listener::bind(aws.socket(), None, aws.limits.bounds()).await?;
        let services = Services::new(identity, &config.schedulers, &config.image_builders, aws.limits.call());
        // Not a secret: what a page token says may be known, it only must not be
        // taken for another's by accident. All edges of a fleet share it.
        let seal = std::fs::read(&config.tls.ca).context("tls.ca")?;
        let api = Api {
            clock: clock.clone(),
            account: Account { region: region.clone(), account: account.clone() },
            services: services.context("schedulers and image_builders")?,
            tokens: PageTokens::new(&seal),
            verifier: Verifier::new(region.as_str(), SERVICE),
            sts_verifier: Verifier::new(region.as_str(), aws_model::sts::SERVICE),
            access_keys: AccessKeys::follow(store, account.clone()),
            bodies: Bodies::new(
                aws.limits.body_bytes,
                aws.limits.body_read(),
                aws.limits.body_stall(),
                aws.limits.body_memory_bytes,
            ),
            buckets: Buckets::new(clock.instant(), |name| (row(name).rate)(&aws.throttles)),
            audit,
            in_flight: Arc::new(Semaphore::new(aws.limits.requests)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            limits: Limits {
                body_bytes_max: aws.limits.body_bytes,
                run_hook_payload_bytes_max: aws.limits.run_hook_payload_bytes,
            },
            arm_64_is_own: aws.arm_64_is_own,
            metrics: Metrics::register(registry),
        };
        Ok(Some(Self { listener, api, records }))
    }

    /// Where the API will be served, in the order of the setting.
    pub fn local_addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.listener.local_addresses()
    }

    /// Serves until `shutdown`, drains, returns.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { listener, api, records } = self;
        listener.serve(Arc::new(api), shutdown).await;
        records.ended(AUDIT_DRAIN).await;
    }
}
