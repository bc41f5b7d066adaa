//! Making a base image: debootstrap, upload, record, with the log as a stream.
//!
//! One replica makes a base at a time: it holds a lock under its lease. When it
//! dies, the lock goes with the lease, and the next call makes the same version
//! number under another key, for the key contains the tar's digest.

use std::io;
use std::time::Duration;

use api::common::v1::{LogLine, LogSource};
use api::image::v1::{BaseImage, BuildBaseImageRequest, BuildBaseImageResponse};
use tokio::sync::mpsc;

use super::BaseImages;
use crate::adapters::catalog::{BaseEntry, Change, Error as CatalogError};
use crate::adapters::debootstrap::{self, RECIPES, Recipe};
use crate::adapters::layout::Work;
use crate::domain::object_keys;
use crate::refusal::Refusal;

/// Lines a slow caller may leave unread; more are dropped, the build goes on.
const QUEUE_LINES: usize = 1000;
/// Life of the lock without its builder.
const LOCK_TTL: Duration = Duration::from_secs(10);

/// The lines of the log, and the finished base in the last message.
pub type Progress = mpsc::Receiver<Result<BuildBaseImageResponse, Refusal>>;
type Sender = mpsc::Sender<Result<BuildBaseImageResponse, Refusal>>;

impl BaseImages {
    /// Starts to make a base image. The work ends when the caller drops the receiver.
    pub fn make(&self, request: BuildBaseImageRequest) -> Result<Progress, Refusal> {
        let recipe = RECIPES.into_iter().find(|recipe| recipe.name == request.name).ok_or_else(|| {
            let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
            Refusal::invalid("name", format!("must be one of: {}", names.join(", ")))
        })?;
        let (sender, receiver) = mpsc::channel(QUEUE_LINES);
        let bases = self.clone();
        tokio::spawn(async move {
            let last = tokio::select! {
                last = bases.make_if_wanted(recipe, request.rebuild, &sender) => last,
                () = sender.closed() => return,
            };
            let message =
                last.map(|base| BuildBaseImageResponse { base_image: Some(base), ..Default::default() });
            let _ = sender.send(message).await;
        });
        Ok(receiver)
    }

    async fn make_if_wanted(
        &self,
        recipe: Recipe,
        rebuild: bool,
        sender: &Sender,
    ) -> Result<BaseImage, Refusal> {
        if !rebuild && self.known().await?.resolve(recipe.name, None).is_some() {
            return self.find(recipe.name).await;
        }
        let lease = self.catalog.store().lease(LOCK_TTL).await.map_err(CatalogError::from)?;
        let lock = Change::new().lock_base(recipe.name, &self.instance, lease.id());
        self.catalog.apply(lock).await.map_err(|error| match error.is_conflict() {
            true => Refusal::BaseImage(format!("The base image {} is being made already", recipe.name)),
            false => error.into(),
        })?;
        // Counted under the lock: no other replica takes the same number.
        let version = self.known().await?.resolve(recipe.name, None).unwrap_or(0) + 1;
        let cleaning = Cleaning { work: self.layout.work(&format!("base-{}", recipe.name)).map_err(failed)? };
        let made = self.make_version(recipe, version, &cleaning.work, sender).await;
        let _ = lease.revoke().await;
        made?;
        self.find(recipe.name).await
    }

    async fn make_version(
        &self,
        recipe: Recipe,
        version: u64,
        work: &Work,
        sender: &Sender,
    ) -> Result<(), Refusal> {
        let mut sequence = 0;
        let mut line = |source: LogSource, text: String| {
            let time = Some(api::timestamp(self.clock.now()));
            let lines = vec![LogLine { time, source: source.into(), text, sequence }];
            sequence += 1;
            let _ = sender.try_send(Ok(BuildBaseImageResponse { lines, base_image: None }));
        };
        let number = version.to_string();
        line(LogSource::Platform, format!("Making {} version {number} from Debian's packages.", recipe.name));
        let tar = debootstrap::make(recipe, &work.scratch(), |text| line(LogSource::Stdout, text))
            .await
            .map_err(failed)?;
        line(LogSource::Platform, format!("Storing {} bytes.", tar.size_bytes));
        let key = object_keys::base(recipe.name, &number, &tar.digest);
        // Dying after this line leaves an object that no record names.
        self.objects
            .put_file(&self.config.snapshot_bucket, &key, &tar.path, &|_, _| {})
            .await
            .map_err(|error| Refusal::Unavailable(error.to_string()))?;
        // Kept here, so that the first build need not fetch it.
        tokio::fs::rename(&tar.path, self.layout.base(recipe.name, &number)).await.map_err(failed)?;
        let base = BaseImage {
            name: recipe.name.to_owned(),
            version: number,
            size_bytes: tar.size_bytes,
            create_time: Some(api::timestamp(self.clock.now())),
            ..BaseImage::default()
        };
        let entry = BaseEntry { base: Some(base.clone()), key, digest: tar.digest };
        self.catalog.apply(Change::new().new_base(&entry)).await?;
        tracing::info!(base = base.name, version = base.version, "base image made");
        Ok(())
    }

    async fn find(&self, name: &str) -> Result<BaseImage, Refusal> {
        let found = self.all().await?.into_iter().find(|base| base.name == name);
        found.ok_or_else(|| Refusal::Internal(format!("base image not found: {name}")))
    }
}

/// A work directory that goes when its owner does, also when the caller hangs up and the work is dropped.
struct Cleaning {
    work: Work,
}

impl Drop for Cleaning {
    fn drop(&mut self) {
        if let Err(error) = self.work.remove() {
            tracing::warn!(%error, "files of a base image are left over");
        }
    }
}

fn failed(error: io::Error) -> Refusal {
    Refusal::BaseImage(format!("The base image could not be made: {error}"))
}
