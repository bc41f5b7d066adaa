//! A running build: what it holds, and the order of its steps.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::common::v1::{LogSource, Phase};
use api::image::v1::{BuildStep, ImageBuild, ImageVersion};
use log_store::Log;
use records::{Committed, Lease};
use tokio::task::JoinHandle;

use super::{BuildLease, Context, StepError, remove_work};
use crate::adapters::buildkit::Session;
use crate::adapters::catalog::{Change, QueueEntry, Record};
use crate::adapters::layout::Work;
use crate::domain::build_error::{BuildError, Reason};
use crate::domain::object_keys::version_prefixes;

pub(super) struct Job {
    pub(super) context: Arc<Context>,
    pub(super) entry: QueueEntry,
    pub(super) build: Record<ImageBuild>,
    pub(super) version: ImageVersion,
    pub(super) lease: Lease,
    pub(super) log: Arc<Log>,
    pub(super) work: Work,
    pub(super) session: Option<Session>,
    opening: Option<JoinHandle<io::Result<Session>>>,
    started: Instant,
    step_started: Instant,
}

/// Name of a step in phases and metrics.
pub(super) fn step_name(step: BuildStep) -> &'static str {
    match step {
        BuildStep::Unspecified => "queue",
        BuildStep::Fetch => "fetch",
        BuildStep::Unpack => "unpack",
        BuildStep::Container => "container",
        BuildStep::Disk => "disk",
        BuildStep::Bake => "bake",
        BuildStep::Validate => "validate",
        BuildStep::Publish => "publish",
    }
}

impl Job {
    /// Opens the log and the work directory of a claimed build.
    pub(super) async fn begin(context: Arc<Context>, build: BuildLease) -> Result<Self, StepError> {
        let build_id = build.entry.build_id.clone();
        let broken =
            |error: std::io::Error| BuildError::io(BuildStep::Fetch, "cannot begin the build", &error);
        let log = context.logs.begin(&build_id).map_err(broken)?;
        let layout = context.layout.clone();
        let work = tokio::task::spawn_blocking(move || layout.work(&build_id))
            .await
            .map_err(|error| BuildError::internal(BuildStep::Fetch, error))?
            .map_err(broken)?;
        let now = Instant::now();
        let BuildLease { entry, build, version, lease } = build;
        log.append(
            LogSource::Platform,
            format!("Building {} {} (attempt {}).", entry.image_name, entry.image_version, entry.attempt),
        );
        Ok(Self {
            context,
            entry,
            build,
            version,
            lease,
            log,
            work,
            session: None,
            opening: None,
            started: now,
            step_started: now,
        })
    }

    /// The steps in order. When the builder dies in one of them, the next owner starts at FETCH with a higher
    /// attempt. When the lease ran out unnoticed and another builder owns the build by now, `enter` names a
    /// revision that is not the last, and the steps stop before they touch anything that the new owner makes.
    pub(super) async fn steps(&mut self) -> Result<(), StepError> {
        if self.entry.attempt > 1 {
            // What an attempt before this one may have left. Its builder is gone; a host that still works for
            // it writes under that attempt's keys, which go with the version at the latest.
            self.remove_objects().await;
        }
        self.enter(BuildStep::Fetch).await?;
        self.fetch().await?;
        self.enter(BuildStep::Unpack).await?;
        self.unpack().await?;
        self.enter(BuildStep::Container).await?;
        self.container().await?;
        self.enter(BuildStep::Disk).await?;
        let disk = self.disk().await?;
        self.enter(BuildStep::Bake).await?;
        let baked = self.bake(&disk).await?;
        self.enter(BuildStep::Publish).await?;
        self.publish(baked).await
    }

    /// Writes the step the build is in now, and how long the one before took.
    pub(super) async fn enter(&mut self, step: BuildStep) -> Result<(), StepError> {
        self.end_phase();
        self.build.value.set_step(step);
        self.build.value.log_lines = *self.log.end().borrow();
        tracing::info!(build_id = self.entry.build_id, step = step_name(step), "build step");
        // Dying after this line: the build is taken over, or failed when it was its last attempt.
        self.save().await
    }

    pub(super) fn end_phase(&mut self) {
        let step = self.build.value.step();
        let took = self.step_started.elapsed();
        if step != BuildStep::Unspecified {
            self.build.value.phases.push(Phase {
                name: step_name(step).to_owned(),
                start: Some(api::duration_proto(self.step_started - self.started)),
                duration: Some(api::duration_proto(took)),
            });
            self.context.metrics.step(step_name(step), took.as_secs_f64());
        }
        self.step_started = Instant::now();
    }

    /// Writes the build's record while it is ours.
    pub(super) async fn save(&mut self) -> Result<(), StepError> {
        let change = Change::new().build(&self.build.value, Some(self.build.revision));
        match self.commit(change).await? {
            Committed::At(revision) => {
                self.build.revision = revision;
                Ok(())
            }
            // Another builder took the build over, which wrote its record.
            Committed::Differs(_) => Err(StepError::Lost),
        }
    }

    /// Commits a change whose first write is the build's record, for as long as the
    /// lease lives. When an answer of etcd is lost, that record shows whether the
    /// change took place: only the owner of the build writes it.
    pub(super) async fn commit(&self, change: Change) -> Result<Committed, StepError> {
        self.context.catalog.commit(change, &self.lease).await.map_err(|error| match error {
            records::Error::LeaseLost => StepError::Lost,
            error => BuildError::internal(self.build.value.step(), error).into(),
        })
    }

    /// A line of the platform's own in the build's log.
    pub(super) fn note(&self, text: impl Into<String>) {
        self.log.append(LogSource::Platform, text);
    }

    /// A bound on what a step's own waiting may take.
    pub(super) fn timed_out(step: BuildStep, limit: Duration) -> BuildError {
        let sentence = format!("The build did not end within {} seconds.", limit.as_secs());
        BuildError::new(step, Reason::BuildTimeout, sentence)
    }

    /// Removes everything of this build that is not a published version from S3.
    pub(super) async fn remove_objects(&self) {
        for prefix in version_prefixes(&self.entry.image_id, &self.entry.image_version) {
            let bucket = &self.context.config.snapshot_bucket;
            if let Err(error) = self.context.objects.delete_prefix(bucket, &prefix).await {
                // Goes with the image at the latest, whose deletion removes prefixes.
                tracing::warn!(prefix, %error, "objects of a build are left over");
            }
        }
    }

    /// Makes the build's network and session. A task of its own does it, so that
    /// what a build stopped in the middle of this has made is given back.
    pub(super) async fn open_session(&mut self) -> io::Result<()> {
        let (context, name) = (Arc::clone(&self.context), self.entry.build_id.clone());
        let opening = self.opening.insert(tokio::spawn(async move {
            let network = context.networks.create().await?;
            context.buildkit.session(network, &name, &context.config.account).await
        }));
        let opened = opening.await;
        self.opening = None;
        self.session = Some(opened.map_err(io::Error::other)??);
        Ok(())
    }

    /// Gives everything on this machine back.
    pub(super) async fn clean_up(&mut self) {
        if let Some(opening) = self.opening.take()
            && let Ok(Ok(session)) = opening.await
        {
            self.session = Some(session);
        }
        if let Some(session) = self.session.take() {
            self.context.networks.remove(session.close().await).await;
        }
        remove_work(self.work.clone(), &self.entry.build_id).await;
    }
}
