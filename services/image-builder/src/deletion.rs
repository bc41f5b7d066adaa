//! Removes images and versions that are DELETING: host caches, S3 objects, then the records. Everything can
//! be repeated. When the image-builder dies anywhere in between, the records still say DELETING, and the next
//! sweep of any replica goes on. Two replicas may remove the same version at the same time: each step is a
//! deletion of things that may be gone already, and the records are the last.

use std::sync::Arc;
use std::time::Duration;

use api::image::v1::{Image, ImageState, ImageVersion, VersionState};
use model::state::{ImageEvent, VersionEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::adapters::catalog::{Change, Error as CatalogError, Record};
use crate::domain::configuration::S3Uri;
use crate::domain::{lifecycle, object_keys};
use crate::pipeline::Context;

/// Requests that may wait; more are found again by the next sweep.
const PENDING_MAX: usize = 256;
/// How often records that still say DELETING are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Attempts before a deletion is marked DELETE_FAILED.
const ATTEMPTS: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Times a version's removal meets a change of its image.
const CONFLICTS_MAX: u32 = 8;

/// Tells the remover that there is something to do.
#[derive(Debug, Clone)]
pub struct Remover {
    wake: mpsc::Sender<String>,
}

/// The receiving end of [`Remover`].
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<String>);

/// A remover and its other end.
pub fn channel() -> (Remover, Requests) {
    let (wake, requests) = mpsc::channel(PENDING_MAX);
    (Remover { wake }, Requests(requests))
}

impl Remover {
    /// Something of the image `name` is DELETING now.
    pub fn notify(&self, name: &str) {
        // When the queue is full the next sweep finds it.
        let _ = self.wake.try_send(name.to_owned());
    }
}

/// Removes what is DELETING until `shutdown`.
pub async fn run(context: Arc<Context>, mut requests: Requests, shutdown: CancellationToken) {
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        let name = tokio::select! {
            () = shutdown.cancelled() => return,
            name = requests.0.recv() => name,
            _ = sweep.tick() => None,
        };
        let names = match name {
            Some(name) => vec![name],
            None => match context.catalog.images().await {
                Ok(images) => images.into_iter().map(|image| image.value.name).collect(),
                Err(_) => continue,
            },
        };
        for name in names {
            tokio::select! {
                () = shutdown.cancelled() => return,
                removed = remove(&context, &name) => if let Err(error) = removed {
                    tracing::warn!(image = name, %error, "a deletion did not get on; it is tried again");
                }
            }
        }
    }
}

/// Why a deletion did not get on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("records")]
    Records(#[from] CatalogError),
    #[error("S3")]
    Objects(#[from] object_store::Error),
    #[error("a snapshot")]
    Snapshot(#[from] snapshot::Error),
    #[error("the scheduler: {0}")]
    Scheduler(String),
    #[error("microVMs of it are still alive")]
    InUse,
}

async fn remove(context: &Context, name: &str) -> Result<(), Error> {
    let Some(image) = context.catalog.image(name).await? else {
        return Ok(());
    };
    let versions = context.catalog.versions(name).await?;
    if image.value.state() == ImageState::Deleting {
        let removed = retry(name, || remove_image(context, &image, &versions)).await;
        return match removed {
            Ok(()) => Ok(()),
            Err(error) => give_up_image(context, image, &error).await,
        };
    }
    for version in versions.iter().filter(|version| version.value.state() == VersionState::Deleting) {
        if let Err(error) = retry(name, || remove_version(context, &image.value, &version.value)).await {
            give_up_version(context, version, &error).await?;
        }
    }
    Ok(())
}

async fn retry<F>(name: &str, attempt: impl Fn() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    for number in 1..ATTEMPTS {
        let Err(error) = attempt().await else {
            return Ok(());
        };
        tracing::warn!(image = name, attempt = number, %error, "a deletion is tried again");
        tokio::time::sleep(RETRY_PAUSE * number).await;
    }
    attempt().await
}

async fn remove_image(
    context: &Context,
    image: &Record<Image>,
    versions: &[Record<ImageVersion>],
) -> Result<(), Error> {
    let Image { name, image_arn, .. } = &image.value;
    // A launch that read the record before it said DELETING may have come after the check of the call. The scheduler answers
    // once it launches nothing of it any more, so this sees that launch, and the deletion waits until its microVM ends.
    still_unused(context, image_arn, None).await?;
    for version in versions {
        remove_files(context, &image.value, &version.value).await?;
        context.catalog.apply(records_of(context, &version.value).await?).await?;
    }
    // Dying before this line: the image still says DELETING and has nothing left.
    context.catalog.apply(Change::new().remove_image(name, image.revision)).await?;
    tracing::info!(image = name, "image DELETED");
    Ok(())
}

async fn remove_version(context: &Context, image: &Image, version: &ImageVersion) -> Result<(), Error> {
    still_unused(context, &image.image_arn, Some(&version.image_version)).await?;
    remove_files(context, image, version).await?;
    let records = records_of(context, version).await?;
    // Dying before this line: the version still says DELETING and has no files.
    end(context, version, records).await?;
    tracing::info!(image = image.name, version = version.image_version, "version DELETED");
    Ok(())
}

/// Writes the end of a version's deletion, successful or not, together with the image. The image is not
/// UPDATING any more unless another of its versions is being deleted too.
///
/// When two replicas end the last two versions of an image at the same time, both would see the other one's
/// version DELETING and leave the image UPDATING for ever. So every end writes the image at the revision that
/// it read before the versions: the slower replica conflicts, reads again, and sees that its version is the
/// last one.
async fn end(context: &Context, version: &ImageVersion, change: Change) -> Result<(), CatalogError> {
    let (name, number) = (&version.image_name, &version.image_version);
    let mut attempts = 1..CONFLICTS_MAX;
    loop {
        let attempt = attempts.next();
        let image = context.catalog.image(name).await?;
        let versions = context.catalog.versions(name).await?;
        let is_this = |other: &Record<ImageVersion>| other.value.image_version == *number;
        let mut going = versions.iter().filter(|other| other.value.state() == VersionState::Deleting);
        let Some(Record { mut value, revision }) = image.filter(|_| going.clone().any(is_this)) else {
            // The image went as a whole, or another replica ended this deletion.
            return Ok(());
        };
        if going.all(is_this) {
            // An image that is not UPDATING stays as it is.
            let _ = lifecycle::image(&mut value, ImageEvent::TrimEnded, context.clock.now());
        }
        let change = change.clone().image(&value, Some(revision));
        match context.catalog.apply(change).await {
            Err(error) if error.is_conflict() && attempt.is_some() => {}
            result => return result.map(|_| ()),
        }
    }
}

async fn still_unused(context: &Context, arn: &str, version: Option<&str>) -> Result<(), Error> {
    match context.peers.in_use(arn, version, true).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::InUse),
        Err(status) => Err(Error::Scheduler(status.message().to_owned())),
    }
}

/// Removes a version's snapshot from hosts and everything of it from S3.
async fn remove_files(context: &Context, image: &Image, version: &ImageVersion) -> Result<(), Error> {
    let settings = &context.config;
    if let Some(snapshot) = &version.snapshot {
        let key = &snapshot.manifest_key;
        // Hosts that cannot be asked now drop it when they miss its manifest.
        if let Err(status) = context.peers.evict(key).await {
            tracing::warn!(key, error = status.message(), "hosts were not asked to drop an image");
        }
        snapshot::delete(&context.objects, &settings.snapshot_bucket, key).await?;
    }
    for prefix in object_keys::version_prefixes(&image.id, &version.image_version) {
        context.objects.delete_prefix(&settings.snapshot_bucket, &prefix).await?;
    }
    for build in context.catalog.build_ids(&version.image_name, &version.image_version).await? {
        context.objects.delete(&settings.log_bucket, &object_keys::build_log(&build)).await?;
    }
    remove_artifact(context, version).await
}

/// Removes a version's artifact, when an upload put it there and no other version names it.
///
/// The image's record goes after it: whoever makes an image of the same name and content anew finds that the artifact is gone,
/// and uploads it again.
async fn remove_artifact(context: &Context, version: &ImageVersion) -> Result<(), Error> {
    let uri = artifact(version);
    let bucket = &context.config.artifact_bucket;
    let uploaded = S3Uri::parse(uri)
        .filter(|place| place.bucket == *bucket && object_keys::is_named_by_content(&place.key));
    let Some(S3Uri { bucket, key }) = uploaded else { return Ok(()) };
    for image in context.catalog.images().await? {
        let others = context.catalog.versions(&image.value.name).await?;
        // Those that are going as well do not count: each would wait for the other.
        let stay = |other: &Record<ImageVersion>| {
            let same = other.value.image_name == version.image_name
                && other.value.image_version == version.image_version;
            !same
                && image.value.state() != ImageState::Deleting
                && other.value.state() != VersionState::Deleting
        };
        if others.iter().any(|other| stay(other) && artifact(&other.value) == uri) {
            return Ok(());
        }
    }
    // In a bucket of the user's own that right may be missing; the version goes all the same.
    if let Err(error) = context.objects.delete(&bucket, &key).await {
        tracing::warn!(uri, %error, "an artifact that nothing names any more stays in S3");
    }
    Ok(())
}

fn artifact(version: &ImageVersion) -> &str {
    let configuration = version.configuration.as_ref();
    configuration.and_then(|given| given.code_artifact.as_ref()).map_or("", |artifact| &artifact.uri)
}

/// The removal of a version's records.
async fn records_of(context: &Context, version: &ImageVersion) -> Result<Change, CatalogError> {
    let (name, number) = (&version.image_name, &version.image_version);
    let builds = context.catalog.build_ids(name, number).await?;
    let change = builds
        .iter()
        .fold(Change::new(), |change, build| change.remove_build(name, number, build).dequeue(build));
    Ok(change.remove_version(name, number))
}

async fn give_up_image(context: &Context, image: Record<Image>, error: &Error) -> Result<(), Error> {
    let Record { mut value, revision } = image;
    if lifecycle::image(&mut value, ImageEvent::DeleteFailed, context.clock.now()).is_ok() {
        context.catalog.apply(Change::new().image(&value, Some(revision))).await?;
        tracing::error!(image = value.name, %error, "image DELETE_FAILED; deleting it again tries again");
    }
    Ok(())
}

async fn give_up_version(
    context: &Context,
    version: &Record<ImageVersion>,
    error: &Error,
) -> Result<(), Error> {
    let mut value = version.value.clone();
    if lifecycle::version(&mut value, VersionEvent::DeleteFailed, context.clock.now()).is_ok() {
        value.state_reason = format!("The deletion failed: {error}.");
        let failed = Change::new().version(&value, Some(version.revision));
        end(context, &value, failed).await?;
        tracing::error!(image = value.image_name, version = value.image_version, %error, "version DELETE_FAILED");
    }
    Ok(())
}
