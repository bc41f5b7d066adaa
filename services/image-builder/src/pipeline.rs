//! One build, from artifact to version.
//!
//! ```text
//! FETCH -> UNPACK -> CONTAINER -> DISK -> BAKE (-> VALIDATE) -> PUBLISH
//! ```
//!
//! The state is in etcd: the build's record names the step it is in. Nothing before PUBLISH is kept when a
//! builder dies; the builder that takes it over starts from the front with a higher attempt number, which is
//! part of every S3 key and of the generation hosts are given, so that nothing an older attempt still does
//! can be mistaken for the newer one's.
//!
//! Every write of a running build names the revision of the build's record it
//! replaces. Taking a build over writes that record, so that a builder that lost
//! its lease without noticing fails its next write and stops ([`StepError::Lost`]).

use std::sync::Arc;
use std::time::Duration;

use api::image::v1::{Image, ImageBuild, ImageVersion};
use clock::Clock;
use object_store::Store as Objects;
use records::Lease;
use tokio_util::sync::CancellationToken;

use crate::adapters::buildkit::BuildKit;
use crate::adapters::catalog::{Catalog, QueueEntry, Record};
use crate::adapters::layout::{Layout, Work};
use crate::adapters::network::Networks;
use crate::adapters::peers::Peers;
use crate::bases::BaseImages;
use crate::config::Config;
use crate::domain::build_error::BuildError;
use crate::log::Logs;
use crate::metrics::Metrics;

mod bake;
mod container;
mod finish;
mod job;
mod source;

use job::Job;

/// How often, and how long apart, the removal of a work directory is tried.
const REMOVAL_ATTEMPTS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

/// Everything a build uses; one per process.
#[derive(Debug)]
pub struct Context {
    pub clock: Clock,
    pub config: Arc<Config>,
    pub instance: String,
    pub catalog: Catalog,
    pub objects: Objects,
    pub peers: Peers,
    pub layout: Layout,
    pub networks: Networks,
    pub buildkit: BuildKit,
    pub bases: BaseImages,
    pub logs: Arc<Logs>,
    pub metrics: Metrics,
}

#[derive(Debug)]
pub struct BuildLease {
    pub entry: QueueEntry,
    pub build: Record<ImageBuild>,
    pub version: ImageVersion,
    pub lease: Lease,
}

/// Why a build stopped without a version.
#[derive(Debug)]
pub enum StepError {
    /// It failed; the record must say so.
    Failed(BuildError),
    /// It is not ours any more, or we are shutting down; another builder goes on.
    Lost,
}

impl From<BuildError> for StepError {
    fn from(failure: BuildError) -> Self {
        Self::Failed(failure)
    }
}

/// Runs a build to its end, or until it is no longer ours.
pub async fn run(context: Arc<Context>, build: BuildLease, shutdown: CancellationToken) {
    let build_id = build.entry.build_id.clone();
    context.metrics.began();
    let lease = build.lease.clone();
    let outcome = match Job::begin(Arc::clone(&context), build).await {
        Ok(mut job) => {
            let steps = job.steps();
            let result = tokio::select! {
                result = steps => result,
                () = lease.lost() => Err(StepError::Lost),
                () = shutdown.cancelled() => Err(StepError::Lost),
            };
            // Dropping the steps killed their processes and hung up on hosts.
            job.clean_up().await;
            job.finish(result).await
        }
        Err(stop) => {
            tracing::warn!(build_id, ?stop, "a build could not begin here; another attempt will");
            "LOST"
        }
    };
    context.logs.end(&build_id);
    context.metrics.ended(outcome);
    // If this fails the lease runs out by itself and the build is taken over then.
    let _ = lease.revoke().await;
}

/// Removes a work directory. Processes of a sandbox that was just killed may still hold it for a moment.
async fn remove_work(work: Work, name: &str) {
    let removed = tokio::task::spawn_blocking(move || {
        let mut removed = work.remove();
        for _ in 1..REMOVAL_ATTEMPTS {
            if removed.is_ok() {
                break;
            }
            std::thread::sleep(REMOVAL_PAUSE);
            removed = work.remove();
        }
        removed
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(name, %error, "a work directory is left until the next start");
    }
}

/// Records of an image that change together when a build ends.
#[derive(Debug)]
struct Target {
    image: Record<Image>,
    version: Record<ImageVersion>,
}

/// Empties the layer cache when it is over its bound; only while no build runs here.
pub async fn bound_cache(context: &Context) {
    let (layout, bytes_max) = (context.layout.clone(), context.config.build.layer_cache_bytes_max);
    // Dying in the middle leaves layers that their daemon finds broken and makes again.
    let bounded = tokio::task::spawn_blocking(move || {
        if layout.cache_bytes()? <= bytes_max {
            return Ok(());
        }
        std::fs::remove_dir_all(layout.cache())?;
        std::fs::create_dir(layout.cache())
    });
    if let Ok(Err(error)) = bounded.await {
        tracing::warn!(%error, "the layer cache could not be bounded");
    }
}
