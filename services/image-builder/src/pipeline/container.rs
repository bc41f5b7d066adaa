//! CONTAINER and DISK: the Dockerfile becomes an image, the image an ext4 disk in S3.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use api::common::v1::{Architecture, LogSource};
use api::hostagent::v1::DiskRef;
use api::image::v1::{AppConfiguration, BuildStep, SnapshotBuild};
use model::MemoryClass;
use snapshot::{FileKind, FileSource, ManifestHead, SnapshotKind};

use super::StepError;
use super::job::Job;
use crate::adapters::buildkit::Error as BuildKitError;
use crate::domain::app;
use crate::domain::archive::DOCKERFILE;
use crate::domain::base_images::{Bases, base_name, base_version, stored_name};
use crate::domain::build_error::{BuildError, Reason};
use crate::domain::dockerfile::{
    BaseUse, DOCKERFILE_BYTES_MAX, Offered, Plan, Refusal as DockerfileRefusal, prepare,
};
use crate::domain::object_keys;
use crate::domain::progress::Progress;
use crate::domain::transcript::Transcript;

/// A disk in S3 and how its app is started.
pub(super) struct Prepared {
    pub(super) disk: DiskRef,
    pub(super) app: AppConfiguration,
}

impl Job {
    /// Builds the Dockerfile.
    pub(super) async fn container(&mut self) -> Result<(), StepError> {
        let step = BuildStep::Container;
        let broken = |error: std::io::Error| BuildError::io(step, "cannot build", &error);
        let plan = self.plan().await?;
        let bases = self.local_bases(&plan).await?;
        self.open_session().await.map_err(broken)?;
        let (mut progress, mut transcript) = (Progress::default(), Transcript::default());
        let session = self.session.as_ref().expect("made above");
        let log = Arc::clone(&self.log);
        let line = |text: String| {
            let event = progress.read(&text);
            transcript.add(&event);
            if let Some(shown) = event.line() {
                log.append(LogSource::Stdout, shown);
            }
        };
        let built = self.context.buildkit.build(session, &self.work, &plan.text, &bases, line).await;
        Ok(built.map_err(|error| self.container_failure(error, &transcript, &plan))?)
    }

    /// The base images of ours that the Dockerfile uses, with their tars and digests, from S3 if need be.
    async fn local_bases(&self, plan: &Plan) -> Result<Vec<(BaseUse, PathBuf, String)>, StepError> {
        let mut bases = Vec::new();
        for base in &plan.bases {
            self.note(format!("Base image {} version {}.", base.name, base.version));
            let found = self.context.bases.local_tar(&base.name, &base.version.to_string()).await;
            let (tar, digest) = found.map_err(|error| {
                let detail = format!("base image {} {}: {error}", base.name, base.version);
                BuildError::internal(BuildStep::Container, detail)
            })?;
            bases.push((base.clone(), tar, digest));
        }
        Ok(bases)
    }

    async fn plan(&self) -> Result<Plan, StepError> {
        let step = BuildStep::Container;
        let path = self.work.context().join(DOCKERFILE);
        let broken = |error: std::io::Error| BuildError::io(step, "cannot read the Dockerfile", &error);
        let size = tokio::fs::metadata(&path).await.map_err(broken)?.len();
        if size > DOCKERFILE_BYTES_MAX as u64 {
            let refusal = DockerfileRefusal::Unreadable("is larger than 1 MiB");
            return Err(BuildError::new(step, Reason::ContainerBuildFailed, refusal.to_string()).into());
        }
        let source = tokio::fs::read(&path).await.map_err(broken)?;
        let known = self.bases().await?;
        let configuration = self.version.configuration.as_ref();
        let aliases = &self.context.config.build.base_image_aliases;
        let pinned = configuration.and_then(|configuration| {
            let name = stored_name(base_name(configuration), aliases);
            Some((name, base_version(configuration)?))
        });
        let cpu = match self.build.value.architecture() {
            Architecture::Arm64 => "arm64",
            Architecture::X8664 | Architecture::Unspecified => "amd64",
        };
        let offered = Offered { bases: &known, aliases, pinned, cpu };
        prepare(&source, offered).map_err(|refusal| {
            let reason = match refusal {
                DockerfileRefusal::UnknownBase { .. } => Reason::BaseImageNotFound,
                _ => Reason::ContainerBuildFailed,
            };
            BuildError::new(step, reason, refusal.to_string()).into()
        })
    }

    async fn bases(&self) -> Result<Bases, StepError> {
        self.context.bases.known().await.map_err(|error| {
            let text = format!("The base images cannot be listed: {error}.");
            BuildError::new(BuildStep::Container, Reason::DependencyUnavailable, text).into()
        })
    }

    fn container_failure(&self, error: BuildKitError, transcript: &Transcript, plan: &Plan) -> BuildError {
        let step = BuildStep::Container;
        match error {
            BuildKitError::Failed(_) if transcript.disk_was_full() => BuildError::disk_full(step),
            BuildKitError::Failed(_) if transcript.stopped_at_from() && !plan.remote_images.is_empty() => {
                let bases: BTreeMap<String, Vec<u64>> =
                    plan.bases.iter().map(|base| (base.name.clone(), vec![base.version])).collect();
                let local = if bases.is_empty() { self.bases_hint() } else { Bases(bases).sentence() };
                let sentence = format!(
                    "The image '{}' of a FROM line could not be pulled from its registry ({}). {local}",
                    plan.remote_images.join("' or '"),
                    transcript.detail(),
                );
                BuildError::new(step, Reason::BaseImageNotFound, sentence)
            }
            BuildKitError::Failed(_) => {
                BuildError::new(step, Reason::ContainerBuildFailed, transcript.sentence())
            }
            BuildKitError::OutOfMemory(bytes) => {
                let why = format!(
                    "{} It ran out of the {} MiB of memory that a build has.",
                    transcript.sentence(),
                    bytes >> 20
                );
                BuildError::new(step, Reason::ContainerBuildFailed, why)
            }
            BuildKitError::Timeout(limit) => Self::timed_out(step, limit),
            other => own_failure(step, other),
        }
    }

    /// What the request's own base says about bases that exist.
    fn bases_hint(&self) -> String {
        let configuration = self.version.configuration.as_ref();
        configuration.map_or_else(String::new, |configuration| {
            format!("A local base image is, for example, '{}'.", base_name(configuration))
        })
    }

    /// Makes the disk, reads how the app starts, and uploads the disk.
    pub(super) async fn disk(&mut self) -> Result<Prepared, StepError> {
        let step = BuildStep::Disk;
        let memory = self.version.configuration.as_ref().and_then(|c| c.resources).unwrap_or_default();
        let class = MemoryClass::of(memory.minimum_memory_mib)
            .ok_or_else(|| BuildError::internal(step, "the version has no memory class"))?;
        let mut full = false;
        let line = |text: String| {
            full |= ["Could not allocate block", "Could not allocate inode", "too many inodes"]
                .iter()
                .any(|what| text.contains(what));
            self.log.append(LogSource::Stdout, text);
        };
        let session = self.session.as_ref().expect("a container build has a session");
        let made = self.context.buildkit.disk(session, &self.work, class.disk_bytes, line).await;
        let disk = made.map_err(|error| {
            if full {
                let gib = class.disk_bytes >> 30;
                let text = format!("The image needs more than the {gib} GiB disk of its memory class.");
                return BuildError::new(step, Reason::DiskStorageFull, text);
            }
            own_failure(step, error)
        })?;
        let app = app::read(&disk.configuration).map_err(|error| {
            let reason = match error {
                app::Refusal::NoStartCommand => Reason::NoStartCommand,
                app::Refusal::Unreadable(_) => Reason::InternalPlatformError,
            };
            BuildError::new(step, reason, error.to_string())
        })?;
        self.note(format!("Uploading the disk ({} bytes of files).", disk.tree_bytes));
        let sizes = SnapshotBuild { code_install_size_bytes: disk.tree_bytes, ..SnapshotBuild::default() };
        self.build.value.snapshot_build = Some(sizes);
        let prefix = self.disk_prefix();
        let sources = [FileSource { kind: FileKind::Disk, path: disk.path }];
        let bucket = &self.context.config.snapshot_bucket;
        // Dying in the middle: the next attempt removes the prefix.
        let published = snapshot::upload(
            &self.context.objects,
            bucket,
            &prefix,
            &self.disk_head(class.disk_bytes),
            &sources,
            &|_, _| {},
        )
        .await
        .map_err(|error| upload_failure(&error))?;
        let disk = DiskRef {
            manifest_key: published.manifest_key,
            manifest_digest: published.manifest_digest,
            size_bytes: class.disk_bytes,
        };
        Ok(Prepared { disk, app })
    }

    pub(super) fn disk_prefix(&self) -> String {
        object_keys::disk_prefix(&self.entry.image_id, &self.entry.image_version, self.entry.attempt)
    }

    fn disk_head(&self, size: u64) -> ManifestHead {
        let elapsed = self.context.clock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        ManifestHead {
            kind: SnapshotKind::Disk,
            disk_size_bytes: size,
            image_name: self.entry.image_name.clone(),
            image_version: self.entry.image_version.clone(),
            generation: Some(u64::from(self.entry.attempt)),
            created_unix_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            ..ManifestHead::default()
        }
    }
}

/// A failure of a step that is ours, not the user's.
fn own_failure(step: BuildStep, error: BuildKitError) -> BuildError {
    match error {
        BuildKitError::DiskFull => BuildError::disk_full(step),
        BuildKitError::Io(error) => BuildError::io(step, "cannot build", &error),
        BuildKitError::Timeout(limit) => Job::timed_out(step, limit),
        BuildKitError::OutOfMemory(_) => BuildError::internal(step, "making the disk ran out of memory"),
        BuildKitError::Failed(status) => {
            BuildError::internal(step, format!("making the disk ended with {status}"))
        }
    }
}

fn upload_failure(error: &snapshot::Error) -> BuildError {
    let reason =
        if error.retryable() { Reason::DependencyUnavailable } else { Reason::InternalPlatformError };
    BuildError::new(BuildStep::Disk, reason, format!("The disk could not be stored in S3: {error}."))
}
