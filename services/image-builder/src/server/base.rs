//! Making base images, with the log as a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::common::v1::{LogLine, LogSource};
use api::errors::{self, reason};
use api::image::v1::{BaseImage, BuildBaseImageRequest, BuildBaseImageResponse};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::refusal::status;
use crate::adapters::base::{self, RECIPES, Recipe, Tar};
use crate::adapters::catalog::{BaseEntry, Change};
use crate::adapters::layout::Work;
use crate::images::Images;
use crate::pipeline::{Context, bases, now};

/// What a caller receives.
pub(super) type BaseStream = Pin<Box<dyn Stream<Item = Result<BuildBaseImageResponse, Status>> + Send>>;

/// Lines a slow caller may leave unread; more are dropped, the build goes on.
const QUEUE_LINES: usize = 1000;
/// Life of the lock without its builder.
const LOCK_TTL: Duration = Duration::from_secs(10);

/// Starts to make a base image. It is given up when the caller hangs up.
pub(super) fn start(
    context: Arc<Context>,
    images: Images,
    request: BuildBaseImageRequest,
) -> Result<BaseStream, Status> {
    let recipe = RECIPES.into_iter().find(|recipe| recipe.name == request.name).ok_or_else(|| {
        let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        errors::invalid(&[("name".to_owned(), format!("must be one of: {}", names.join(", ")))])
    })?;
    let (sender, receiver) = mpsc::channel(QUEUE_LINES);
    tokio::spawn(async move {
        let last = tokio::select! {
            last = make(&context, &images, recipe, request.rebuild, &sender) => last,
            () = sender.closed() => return,
        };
        let message =
            last.map(|base| BuildBaseImageResponse { base_image: Some(base), ..Default::default() });
        let _ = sender.send(message).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

type Sender = mpsc::Sender<Result<BuildBaseImageResponse, Status>>;

async fn make(
    context: &Arc<Context>,
    images: &Images,
    recipe: Recipe,
    rebuild: bool,
    sender: &Sender,
) -> Result<BaseImage, Status> {
    let known = || async { bases::known(&context.catalog).await.map_err(|error| status(error.into())) };
    if !rebuild && known().await?.resolve(recipe.name, None).is_some() {
        return find(images, recipe.name).await;
    }
    let store = context.catalog.store();
    let unavailable = |error: records::Error| status(crate::adapters::catalog::Error::from(error).into());
    let lease = store.lease(LOCK_TTL).await.map_err(unavailable)?;
    let lock = Change::new().lock_base(recipe.name, &context.instance, lease.id());
    if let Err(error) = context.catalog.apply(lock).await {
        return Err(match error.is_conflict() {
            true => {
                let text = format!("The base image {} is being made already", recipe.name);
                errors::status(Code::FailedPrecondition, reason::STATE_CONFLICT, text, &[])
            }
            false => status(error.into()),
        });
    }
    let version = known().await?.resolve(recipe.name, None).unwrap_or(0) + 1;
    let cleaning = Cleaning::new(context, &format!("base-{}", recipe.name)).map_err(failed)?;
    let made = make_version(context, recipe, version, &cleaning.work, sender).await;
    let _ = lease.revoke().await;
    made?;
    find(images, recipe.name).await
}

async fn make_version(
    context: &Arc<Context>,
    recipe: Recipe,
    version: u64,
    work: &Work,
    sender: &Sender,
) -> Result<(), Status> {
    let mut sequence = 0;
    let mut line = |source: LogSource, text: String| {
        let lines = vec![LogLine {
            time: Some(api::timestamp(SystemTime::now())),
            source: source.into(),
            text,
            sequence,
        }];
        sequence += 1;
        let _ = sender.try_send(Ok(BuildBaseImageResponse { lines, base_image: None }));
    };
    let number = version.to_string();
    line(LogSource::Platform, format!("Making {} version {number} from Debian's packages.", recipe.name));
    let tar =
        base::make(recipe, &work.scratch(), |text| line(LogSource::Stdout, text)).await.map_err(failed)?;
    line(LogSource::Platform, format!("Storing {} bytes.", tar.size_bytes));
    let key = format!("bases/{}/{number}-{}.tar.zst", recipe.name, &tar.digest[..16]);
    let bucket = &context.settings.snapshot_bucket;
    // Dying after this line leaves an object that no record names; the next
    // version's key is another one.
    context.objects.put_file(bucket, &key, &tar.path, &|_, _| {}).await.map_err(|error| {
        errors::unavailable(reason::STORE_UNAVAILABLE, error.to_string(), Duration::from_secs(1))
    })?;
    import(context, work, recipe.name, &number, &tar, &mut line).await.map_err(failed)?;
    let base = BaseImage {
        name: recipe.name.to_owned(),
        version: number,
        size_bytes: tar.size_bytes,
        create_time: Some(api::timestamp(now())),
        ..BaseImage::default()
    };
    let entry = BaseEntry { base: Some(base.clone()), key, digest: tar.digest };
    context.catalog.apply(Change::new().new_base(&entry)).await.map_err(|error| status(error.into()))?;
    tracing::info!(base = base.name, version = base.version, "base image made");
    Ok(())
}

/// Keeps the tar here and makes it known to buildah, so that the first build
/// need not.
async fn import(
    context: &Context,
    work: &Work,
    name: &str,
    version: &str,
    tar: &Tar,
    line: &mut impl FnMut(LogSource, String),
) -> io::Result<()> {
    let kept = context.layout.base(name, version);
    tokio::fs::rename(&tar.path, &kept).await?;
    let session = context.buildah.session(None, &format!("base-{name}")).await;
    let log = |text: String| line(LogSource::Stdout, text);
    let imported = context.buildah.import(&session, work, &kept, (name, version), log).await;
    session.close().await;
    imported.map_err(io::Error::other)
}

async fn find(images: &Images, name: &str) -> Result<BaseImage, Status> {
    let bases = images.bases().await.map_err(status)?;
    bases.into_iter().find(|base| base.name == name).ok_or_else(|| errors::not_found("base image", name))
}

/// A work directory that goes when its owner does, also when that is dropped.
struct Cleaning {
    work: Work,
}

impl Cleaning {
    fn new(context: &Context, name: &str) -> io::Result<Self> {
        Ok(Self { work: context.layout.work(name)? })
    }
}

impl Drop for Cleaning {
    fn drop(&mut self) {
        if let Err(error) = self.work.remove() {
            tracing::warn!(%error, "files of a base image are left over");
        }
    }
}

fn failed(error: io::Error) -> Status {
    let text = format!("The base image could not be made: {error}");
    errors::status(Code::FailedPrecondition, reason::STATE_CONFLICT, text, &[])
}
