//! PUBLISH, and the end of a build that failed: the log moves to S3, and all
//! records change in one transaction.

use std::time::Duration;

use api::image::v1::{BuildState, BuildStep};

use records::Committed;

use super::bake::Baked;
use super::job::Job;
use super::{StepError, Target};
use crate::adapters::catalog::{Change, Record};
use crate::domain::build_error::{BuildError, Reason};
use crate::domain::{lifecycle, object_keys};

/// Attempts to move a log to S3; the build's end does not wait for ever.
const LOG_ATTEMPTS: u32 = 3;
/// Attempts to end a build whose image changes at the same time.
const CONFLICTS_MAX: u32 = 10;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How a build that another builder goes on with counts here.
const LOST: &str = "LOST";

impl Job {
    /// Completes the records with what was baked; [`Job::finish`] writes them.
    pub(super) async fn publish(&mut self, baked: Baked) -> Result<(), StepError> {
        let step = BuildStep::Publish;
        let snapshot = baked.result.snapshot.filter(|snapshot| !snapshot.manifest_key.is_empty());
        let snapshot =
            snapshot.ok_or_else(|| BuildError::internal(step, "the host's bake has no snapshot"))?;
        let sizes = self.build.value.snapshot_build.get_or_insert_default();
        sizes.memory_snapshot_size_bytes = baked.result.memory_bytes;
        sizes.disk_snapshot_size_bytes = baked.result.disk_difference_bytes;
        sizes.stored_size_bytes = baked.result.stored_bytes;
        for phase in baked.result.phases {
            let name = format!("bake/{}", phase.name);
            self.build.value.phases.push(api::common::v1::Phase { name, ..phase });
        }
        self.build.value.warnings.clone_from(&baked.result.warnings);
        self.version.warnings = baked.result.warnings;
        self.version.snapshot = Some(snapshot);
        self.version.app = Some(baked.app);
        Ok(())
    }

    /// Ends the build as `result` says. Returns the outcome for metrics.
    pub(super) async fn finish(&mut self, result: Result<(), StepError>) -> &'static str {
        let failure = match result {
            Ok(()) => None,
            Err(StepError::Failed(failure)) => Some(failure),
            Err(StepError::Lost) => return self.give_up(),
        };
        self.end_phase();
        match &failure {
            None => self.note("The build was successful."),
            Some(failure) => self.note(failure.sentence.clone()),
        }
        self.move_log().await;
        match self.end(failure.as_ref()).await {
            Ok(()) => self.after(failure.as_ref()).await,
            // The records could not be written while the build was ours. The builder
            // that takes it over starts again.
            Err(_) => self.give_up(),
        }
    }

    fn give_up(&self) -> &'static str {
        tracing::warn!(build_id = self.entry.build_id, "build given up; another builder goes on");
        LOST
    }

    /// Stores the log. A build without a stored log is still a build.
    async fn move_log(&mut self) {
        let key = object_keys::build_log(&self.entry.build_id);
        let bucket = &self.context.config.log_bucket;
        for attempt in 1..=LOG_ATTEMPTS {
            // Dying after this line leaves a log under a key that the next attempt's log replaces.
            match self.context.objects.put_file(bucket, &key, self.log.path(), &|_, _| {}).await {
                Ok(_) => {
                    self.build.value.log_key = key;
                    break;
                }
                Err(error) => {
                    tracing::warn!(build_id = self.entry.build_id, attempt, %error, "the log is not in S3 yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
        self.build.value.log_lines = *self.log.end().borrow();
    }

    /// Writes build, version and image in one transaction.
    ///
    /// When a call changes the image between the reads and the write (its tags, the status of another
    /// version), the transaction conflicts while the build's record is as this builder left it: the records
    /// are read again. When another builder has taken the build over, the build's record differs, and this
    /// builder writes nothing. When the answer of etcd is lost, the build's record shows whether the
    /// transaction took place.
    async fn end(&mut self, failure: Option<&BuildError>) -> Result<(), StepError> {
        for _ in 0..CONFLICTS_MAX {
            let Some(mut target) = self.target().await? else {
                return Err(StepError::Lost);
            };
            target.version.value.snapshot.clone_from(&self.version.snapshot);
            target.version.value.app.clone_from(&self.version.app);
            target.version.value.warnings.clone_from(&self.version.warnings);
            let mut build = self.build.value.clone();
            let (version, image) = (&mut target.version.value, &mut target.image.value);
            let possible = match failure {
                None => lifecycle::succeed(&mut build, version, image, self.context.clock.now()),
                Some(failure) => {
                    version.snapshot = None;
                    lifecycle::fail(&mut build, version, image, failure, self.context.clock.now())
                }
            };
            if let Err(error) = possible {
                tracing::error!(build_id = self.entry.build_id, %error, "records do not fit together");
                return Err(StepError::Lost);
            }
            // Dying before this line: the build is taken over or failed by another builder. Dying after it:
            // the build is over; what is left in S3 is removed with the version.
            let change = Change::new()
                .build(&build, Some(self.build.revision))
                .version(&target.version.value, Some(target.version.revision))
                .image(&target.image.value, Some(target.image.revision))
                .dequeue(&self.entry.build_id);
            match self.commit(change).await {
                Ok(Committed::At(revision)) => {
                    self.build = Record { value: build, revision };
                    return Ok(());
                }
                // The build is still ours: the image changed after it was read.
                Ok(Committed::Differs(Some(found))) if found.revision == self.build.revision => {}
                Ok(Committed::Differs(_)) | Err(StepError::Lost) => return Err(StepError::Lost),
                Err(StepError::Failed(error)) => {
                    tracing::error!(build_id = self.entry.build_id, %error, "a build cannot be ended");
                    return Err(StepError::Lost);
                }
            }
        }
        Err(StepError::Lost)
    }

    /// The image's records as they are now; `None` when they are gone.
    async fn target(&self) -> Result<Option<Target>, StepError> {
        let catalog = &self.context.catalog;
        let (name, version) = (&self.entry.image_name, &self.entry.image_version);
        loop {
            match (catalog.image(name).await, catalog.version(name, version).await) {
                (Ok(Some(image)), Ok(Some(version))) => return Ok(Some(Target { image, version })),
                (Ok(_), Ok(_)) => return Ok(None),
                _ if self.lease.is_alive() => tokio::time::sleep(RETRY_PAUSE).await,
                _ => return Err(StepError::Lost),
            }
        }
    }

    /// What follows the transaction; nothing depends on it.
    async fn after(&self, failure: Option<&BuildError>) -> &'static str {
        let (image, version) = (&self.entry.image_name, &self.entry.image_version);
        match failure {
            None => {
                tracing::info!(image, version, build_id = self.entry.build_id, "build SUCCESSFUL");
                // The snapshot holds the disk; the upload has served its purpose.
                let key = snapshot::manifest_key(&self.disk_prefix());
                let bucket = &self.context.config.snapshot_bucket;
                if let Err(error) = snapshot::delete(&self.context.objects, bucket, &key).await {
                    tracing::warn!(key, %error, "a disk is left over until its version is deleted");
                }
                debug_assert_eq!(self.build.value.state(), BuildState::Successful);
                "SUCCESSFUL"
            }
            Some(failure) => {
                let code = failure.reason.code();
                tracing::info!(image, version, build_id = self.entry.build_id, reason = code, "build FAILED");
                if failure.reason == Reason::InternalPlatformError {
                    tracing::error!(
                        build_id = self.entry.build_id,
                        failure = failure.sentence,
                        "a build failed for our reasons"
                    );
                }
                self.remove_objects().await;
                code
            }
        }
    }
}
