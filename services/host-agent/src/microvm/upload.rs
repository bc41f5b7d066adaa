//! Bringing a snapshot to S3 in the background. Nobody waits for it: a wake in
//! the middle leaves the files it reads alone, the next suspend ends it.

use std::sync::Arc;
use std::time::Duration;

use snapshot::{FileKind, FileSource, ManifestHead, Parent, SnapshotKind};
use tokio::sync::mpsc;

use super::core::{Core, Notice};
use crate::adapters::files::{self, SnapshotFiles};
use crate::adapters::image_snapshots::fetch_error;
use crate::adapters::journal::RemoteCopy;
use crate::adapters::local_snapshot::LocalManifest;
use crate::domain::{HostError, Spec};
use crate::host::Host;
use crate::resources::BACKGROUND_DELAY;

/// How often the guest had been restored when it fell asleep: whoever wakes it next counts on from there, because a guest
/// takes a repair of its identity that it knows for a repeat.
pub const RESTORES_LABEL: &str = "restores";
/// Marks the snapshot of a guest that ran on.
pub const RECOVERY_POINT_LABEL: &str = "recovery-point";

struct Upload {
    host: Arc<Host>,
    id: String,
    generation: u64,
    sequence: u64,
    spec: Spec,
    files: SnapshotFiles,
    notices: mpsc::Sender<Notice>,
}

impl Core {
    /// Begins to upload the latest snapshot, unless S3 has it.
    pub fn start_upload(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
        let sequence = self.journal.sequence;
        if sequence == 0 || self.journal.remote.as_ref().is_some_and(|remote| remote.sequence == sequence) {
            return;
        }
        let upload = Upload {
            host: Arc::clone(&self.host),
            id: self.id.to_string(),
            generation: self.journal.generation,
            sequence,
            spec: self.spec.clone(),
            files: self.files.snapshot(sequence),
            notices: self.notices.clone(),
        };
        self.upload = Some(tokio::spawn(upload.run()).abort_handle());
    }

    /// A snapshot is whole in S3: note it, and remove the one it supersedes.
    pub fn uploaded(&mut self, copy: RemoteCopy, difference_bytes: u64) {
        if copy.sequence != self.journal.sequence {
            // A newer snapshot was taken meanwhile; its own upload supersedes this one.
            self.forget_remote(copy);
            return;
        }
        let before = self.journal.remote.replace(copy);
        self.journal.difference_bytes = difference_bytes;
        // Dying before the older copy is removed leaves it in S3 until the microVM's prefix goes with its end.
        self.save_settled();
        self.publish();
        if let Some(before) = before {
            self.forget_remote(before);
        }
    }

    fn forget_remote(&self, copy: RemoteCopy) {
        let host = Arc::clone(&self.host);
        tokio::spawn(async move {
            if let Err(error) = snapshot::delete(&host.store, host.bucket(), &copy.manifest_key).await {
                tracing::warn!(manifest = copy.manifest_key, %error, "an older snapshot stays in S3 for now");
            }
        });
    }
}

fn labels(manifest: &LocalManifest) -> std::collections::BTreeMap<String, String> {
    let restores =
        manifest.journal.as_ref().map(|journal| (RESTORES_LABEL, journal.restore_count.to_string()));
    let point = manifest.recovery_point.then(|| (RECOVERY_POINT_LABEL, String::new()));
    restores.into_iter().chain(point).map(|(label, value)| (label.to_owned(), value)).collect()
}

impl Upload {
    /// Tries until it succeeds; the driver aborts it when it is superseded.
    async fn run(self) {
        // What is woken at once is not copied at all.
        tokio::time::sleep(BACKGROUND_DELAY).await;
        let (mut attempt, mut pauses) = (0, self.host.retry_pauses(Duration::MAX));
        loop {
            match self.once().await {
                Ok((copy, difference_bytes)) => {
                    let _ = self.notices.send(Notice::Uploaded { copy, difference_bytes }).await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(microvm = self.id, sequence = self.sequence, attempt, %error, "upload failed");
                    self.host.metrics.upload_failed();
                    pauses.pause().await;
                    attempt += 1;
                }
            }
        }
    }

    async fn once(&self) -> Result<(RemoteCopy, u64), HostError> {
        let image = &self.spec.snapshot;
        let base = self.host.image_snapshots.ensure(image).await?;
        let manifest = LocalManifest::read(&self.files)
            .ok_or_else(|| HostError::Missing { object: self.files.directory().display().to_string() })?;
        let (disk, base_disk, difference) = (self.files.disk(), base.disk(), self.files.disk_difference());
        let stats = files::blocking(move || {
            files::remove(&difference)?;
            snapshot::disk::difference(&disk, &base_disk, &difference)
                .map_err(|error| fetch_error(&error, &difference))
        })
        .await?;
        let prefix = format!("microvms/{}/g{}/s{}", self.id, self.generation, self.sequence);
        let head = ManifestHead {
            kind: SnapshotKind::Microvm,
            engine: self.host.engine_description.name.clone(),
            platform_fingerprint: self.host.engine_description.platform_fingerprint.clone(),
            guest_bundle_version: image.guest_bundle_version.clone(),
            memory_mib: image.memory_mib,
            vcpu_count: image.vcpu_count,
            disk_size_bytes: image.disk_size_bytes,
            image_name: self.spec.image_name.clone(),
            image_version: self.spec.image_version.clone(),
            microvm_id: Some(self.id.clone()),
            generation: Some(self.generation),
            sequence: Some(manifest.sequence),
            parent: Some(Parent {
                manifest_key: image.manifest_key.clone(),
                manifest_digest: image.manifest_digest.clone(),
            }),
            // The snapshot's own time, so that an upload repeated after a crash makes the same manifest.
            created_unix_ms: manifest.created_ms,
            labels: labels(&manifest),
        };
        let mut sources = vec![
            FileSource { kind: FileKind::Device, path: self.files.device_state() },
            FileSource { kind: FileKind::MemoryDifference, path: self.files.memory_difference() },
            FileSource { kind: FileKind::DiskDifference, path: self.files.disk_difference() },
        ];
        if self.files.connections().exists() {
            sources.push(FileSource { kind: FileKind::Connections, path: self.files.connections() });
        }
        let published =
            snapshot::upload(&self.host.store, self.host.bucket(), &prefix, &head, &sources, &|_, _| ())
                .await;
        files::discard(&self.files.disk_difference());
        let published = published.map_err(|error| HostError::StoreUnavailable(HostError::chain(&error).0))?;
        let copy = RemoteCopy {
            sequence: self.sequence,
            manifest_key: published.manifest_key,
            manifest_digest: published.manifest_digest,
        };
        Ok((copy, manifest.difference_bytes + stats.file_bytes))
    }
}
