//! Claims builds that have no owner, as many at a time as the settings allow.
//!
//! A build that is not over has an entry in the queue; one that a builder works on has an owner key under
//! that builder's lease. When a builder dies its lease runs out, the owner key goes, every replica sees it,
//! and one of them takes the build over by a transaction that makes itself the owner, counts the attempt and
//! writes the build's record. A build that was begun too often is failed instead, with the reason. So no
//! build stays IN_PROGRESS for ever.

use std::sync::Arc;
use std::time::Duration;

use api::image::v1::BuildStep;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::adapters::catalog::{Change, Error, OWNERS, QUEUE, QueueEntry, Record};
use crate::domain::build_error::{BuildError, Reason};
use crate::domain::lifecycle;
use crate::domain::object_keys::version_prefixes;
use crate::pipeline::{self, BuildLease, Context};

/// How often the queue is looked at even if nothing was seen to change.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time a stopping process gives its builds to clean up.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Works on the queue until `shutdown`, then gives builds up and cleans up.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(context.config.build.concurrent_max));
    let freed = Arc::new(Notify::new());
    let builds = TaskTracker::new();
    let mut queue = context.catalog.store().watch(QUEUE);
    let mut owners = context.catalog.store().watch(OWNERS);
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = queue.next() => {}
            _ = owners.next() => {}
            () = freed.notified() => {}
            _ = interval.tick() => {}
        }
        while let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            match claim_next(&context).await {
                Ok(Some(build)) => start(&context, build, permit, &freed, &builds, &shutdown),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the build queue cannot be read");
                    break;
                }
            }
        }
        prune_when_idle(&context, &permits).await;
    }
    builds.close();
    if tokio::time::timeout(STOP_TIMEOUT, builds.wait()).await.is_err() {
        tracing::warn!("builds did not stop in time; the next start cleans up");
    }
}

fn start(
    context: &Arc<Context>,
    build: BuildLease,
    permit: OwnedSemaphorePermit,
    freed: &Arc<Notify>,
    builds: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let (context, freed, shutdown) = (Arc::clone(context), Arc::clone(freed), shutdown.clone());
    let entry = &build.entry;
    let span = tracing::info_span!(
        "build",
        build_id = entry.build_id,
        image = entry.image_name,
        version = entry.image_version,
        attempt = entry.attempt
    );
    let work = async move {
        pipeline::run(context, build, shutdown).await;
        drop(permit);
        freed.notify_one();
    };
    builds.spawn(work.instrument(span));
}

/// Claims the oldest build that has no owner.
async fn claim_next(context: &Context) -> Result<Option<BuildLease>, Error> {
    let queue = context.catalog.queue().await?;
    if queue.is_empty() {
        return Ok(None);
    }
    let owned = context.catalog.owned().await?;
    for entry in queue.into_iter().filter(|entry| !owned.contains(&entry.value.build_id)) {
        match claim(context, entry).await {
            Ok(Some(build)) => return Ok(Some(build)),
            Ok(None) => {}
            // Another replica was faster.
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Takes one build over.
///
/// When two replicas claim the same build, both transactions expect the owner key to be absent, so one of
/// them conflicts. When an owner's lease runs out while its process still works (a pause, a cut network), the
/// new owner's transaction also writes the build's record; the old owner names an older revision in its next
/// write, conflicts, and stops. When this process dies between the lease and the transaction, nothing was
/// written and the lease runs out unused; when it dies after the transaction, the owner key goes with the
/// lease, and the attempt counts against `attempts_max`, so that a build that kills its builder ends.
async fn claim(context: &Context, entry: Record<QueueEntry>) -> Result<Option<BuildLease>, Error> {
    let catalog = &context.catalog;
    let QueueEntry { build_id, image_name, image_version, .. } = &entry.value;
    let (Some(build), Some(version)) =
        (catalog.build(build_id).await?, catalog.version(image_name, image_version).await?)
    else {
        // The image was deleted after the listing.
        catalog.apply(Change::new().dequeue(build_id)).await?;
        return Ok(None);
    };
    if lifecycle::is_over(&build.value) {
        catalog.apply(Change::new().dequeue(build_id)).await?;
        return Ok(None);
    }
    if entry.value.attempt >= context.config.build.attempts_max {
        fail(context, entry).await?;
        return Ok(None);
    }
    let lease = catalog.store().lease(Duration::from_secs(context.config.build.lease_seconds)).await?;
    let (mut build, mut version, mut entry) = (build, version, entry);
    entry.value.attempt += 1;
    if let Err(error) = lifecycle::begin(&mut build.value, &mut version.value, context.clock.now()) {
        tracing::error!(build_id = build.value.build_id, %error, "a queued build cannot begin");
        return Ok(None);
    }
    let change = Change::new()
        .own(&entry.value.build_id, &context.instance, lease.id())
        .queue(&entry.value, Some(entry.revision))
        .build(&build.value, Some(build.revision))
        .version(&version.value, Some(version.revision));
    // Dying after this line: the lease runs out and the attempt counts.
    build.revision = catalog.apply(change).await?;
    let (build_id, attempt) = (&entry.value.build_id, entry.value.attempt);
    tracing::info!(
        build_id,
        attempt,
        image = entry.value.image_name,
        version = entry.value.image_version,
        "build IN_PROGRESS"
    );
    Ok(Some(BuildLease { entry: entry.value, build, version: version.value, lease }))
}

/// Ends a build whose builders died too often.
async fn fail(context: &Context, entry: Record<QueueEntry>) -> Result<(), Error> {
    let catalog = &context.catalog;
    let QueueEntry { build_id, image_name, image_version, attempt, image_id, .. } = &entry.value;
    let (Some(mut build), Some(mut version), Some(mut image)) = (
        catalog.build(build_id).await?,
        catalog.version(image_name, image_version).await?,
        catalog.image(image_name).await?,
    ) else {
        return Ok(());
    };
    let step = match build.value.step() {
        BuildStep::Unspecified => BuildStep::Fetch,
        step => step,
    };
    let sentence = format!("The builder stopped in the middle of the build {attempt} times.");
    let failure = BuildError::new(step, Reason::BuilderLost, sentence);
    let (of_build, of_version, of_image) = (&mut build.value, &mut version.value, &mut image.value);
    if let Err(error) = lifecycle::fail(of_build, of_version, of_image, &failure, context.clock.now()) {
        tracing::error!(build_id, %error, "an abandoned build cannot be failed");
        return Ok(());
    }
    let change = Change::new()
        .build(&build.value, Some(build.revision))
        .version(&version.value, Some(version.revision))
        .image(&image.value, Some(image.revision))
        .dequeue(build_id);
    catalog.apply(change).await?;
    tracing::info!(
        build_id,
        image = image_name,
        version = image_version,
        reason = failure.reason.code(),
        "build FAILED"
    );
    // Dying before or in the middle of this leaves objects that go with the version.
    for prefix in version_prefixes(image_id, image_version) {
        if let Err(error) = context.objects.delete_prefix(&context.config.snapshot_bucket, &prefix).await {
            tracing::warn!(prefix, %error, "objects of a build are left over");
        }
    }
    Ok(())
}

/// Keeps the layer cache within its bound, while no build uses it.
async fn prune_when_idle(context: &Context, permits: &Semaphore) {
    let all = u32::try_from(context.config.build.concurrent_max).unwrap_or(u32::MAX);
    let Ok(_alone) = permits.try_acquire_many(all) else {
        return;
    };
    let limit = context.config.build.layer_cache_bytes_max;
    if context.buildkit.cache_may_exceed(limit).await {
        pipeline::bound_cache(context).await;
    }
}
