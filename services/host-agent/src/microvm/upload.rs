//! Bringing a snapshot to S3 in the background, and removing those that it supersedes. Nobody waits for it: a wake in the middle
//! leaves the files it reads alone, the next suspend ends it.
//!
//! A host that has lost its lease goes on uploading: what it makes lies under its own generation. It removes nothing: the record
//! may be another host's by now, and name any of these.

use std::sync::Arc;
use std::time::Duration;

use model::SnapshotNumber;
use snapshot::{FileKind, FileSource, ManifestHead, Parent, SnapshotKind};
use tokio::sync::mpsc;

use super::core::{Core, Notice};
use crate::adapters::files::{self, SnapshotFiles};
use crate::adapters::image_snapshots::fetch_error;
use crate::adapters::journal::RemoteCopy;
use crate::adapters::local_snapshot::LocalManifest;
use crate::adapters::remote_snapshots;
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
    number: SnapshotNumber,
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
        let number = self.journal.number();
        if number.sequence == 0 || self.journal.uploaded().is_some() {
            return;
        }
        let upload = Upload {
            host: Arc::clone(&self.host),
            id: self.id.to_string(),
            number,
            spec: self.spec.clone(),
            files: self.files.snapshot(number.sequence),
            notices: self.notices.clone(),
        };
        self.upload = Some(tokio::spawn(upload.run()).abort_handle());
    }

    /// A snapshot is whole in S3: note it. The one that it supersedes stays until the record names a newer one: when this host
    /// dies now, the record has the older one, and a wake elsewhere begins with it.
    pub fn uploaded(&mut self, copy: RemoteCopy, difference_bytes: u64) {
        if copy.number() != self.journal.number() {
            // A newer snapshot was taken meanwhile: nobody has been told of this one, and its own upload supersedes it.
            self.journal.supersede(copy);
            self.save_settled();
            return;
        }
        if let Some(before) = self.journal.remote.replace(copy) {
            self.journal.supersede(before);
        }
        self.journal.difference_bytes = difference_bytes;
        // Dying before this line: the next agent uploads again, and finds it done.
        self.save_settled();
        self.publish();
    }

    /// The record names the snapshot `named`, durably: what it supersedes is nobody's to wake from any more.
    pub fn recorded(&mut self, generation: u64, named: SnapshotNumber) {
        let unneeded = self.journal.unneeded(generation, named);
        if unneeded.is_empty() || self.removing || self.host.is_fenced() {
            return;
        }
        self.removing = true;
        let (host, notices) = (Arc::clone(&self.host), self.notices.clone());
        tokio::spawn(async move {
            let mut removed = Vec::new();
            for copy in unneeded {
                match snapshot::delete(&host.store, host.bucket(), &copy.manifest_key).await {
                    Ok(_) => removed.push(copy),
                    // The next report that is answered tries again.
                    Err(error) => {
                        tracing::warn!(manifest = copy.manifest_key, %error, "an older snapshot stays in S3 for now");
                    }
                }
            }
            // Dying here: the journal still names them, and they are removed again.
            let _ = notices.send(Notice::Removed(removed)).await;
        });
    }

    /// S3 does not have these any more.
    pub fn removed(&mut self, copies: &[RemoteCopy]) {
        self.removing = false;
        self.journal.superseded.retain(|copy| !copies.contains(copy));
        if !copies.is_empty() {
            self.save_settled();
        }
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
                    tracing::warn!(microvm = self.id, snapshot = %self.number, attempt, %error, "upload failed");
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
        let prefix = remote_snapshots::snapshot_prefix(&self.id, self.number);
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
            generation: Some(self.number.generation),
            sequence: Some(self.number.sequence),
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
            generation: self.number.generation,
            sequence: self.number.sequence,
            manifest_key: published.manifest_key,
            manifest_digest: published.manifest_digest,
        };
        Ok((copy, manifest.difference_bytes + stats.file_bytes))
    }
}
