//! Image snapshots on this host: fetched once from S3, used by every microVM
//! of the version, removed when room is needed and nobody runs on them.
//!
//! A snapshot appears in the cache by a rename, so what has a name is whole. Two
//! launches of an image that is not there fetch it once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clock::Clock;
use serde::{Deserialize, Serialize};
use snapshot::FileKind;

use super::files::{self, DataDirectory};
use crate::domain::HostError;
use crate::domain::spec::ImageSnapshot;
use crate::failpoint;

/// Label of an image's manifest: the guest's next log line when it was taken.
pub const LOG_LABEL: &str = "guest-log-next";
/// Names of the files of a cached snapshot.
const ORIGIN: &str = "origin.json";

/// Where a cached snapshot came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub manifest_key: String,
    pub guest_bundle_version: String,
    /// First log line of the guest after the bake.
    pub log_start: u64,
}

#[derive(Clone)]
pub struct ImageSnapshots {
    inner: Arc<Inner>,
}

struct Inner {
    data: DataDirectory,
    store: object_store::Store,
    bucket: String,
    bytes_max: u64,
    clock: Clock,
    entries: Mutex<HashMap<String, Entry>>,
    /// How many microVMs need each.
    uses: Mutex<HashMap<String, usize>>,
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

struct Entry {
    origin: Origin,
    bytes: u64,
    leases: usize,
    used: std::time::Instant,
}

/// Says that a microVM is here that needs a snapshot, now or when it wakes: it goes last. What is in the cache need not be.
pub struct ImageSnapshotUse {
    cache: ImageSnapshots,
    digest: String,
}

/// Keeps one snapshot in the cache while it is held.
pub struct ImageSnapshotLease {
    cache: ImageSnapshots,
    digest: String,
    origin: Origin,
}

impl ImageSnapshots {
    /// Opens the cache and takes stock of what an earlier agent left.
    pub fn open(
        data: &DataDirectory,
        store: object_store::Store,
        bucket: &str,
        bytes_max: u64,
        clock: Clock,
    ) -> Result<Self, HostError> {
        let mut entries = HashMap::new();
        let directory = data.image_snapshots();
        for entry in std::fs::read_dir(&directory).map_err(|error| HostError::io(&directory, &error))? {
            let path = entry.map_err(|error| HostError::io(&directory, &error))?.path();
            let origin =
                std::fs::read(path.join(ORIGIN)).ok().and_then(|text| serde_json::from_slice(&text).ok());
            match (path.file_name().and_then(|name| name.to_str()), origin) {
                (Some(digest), Some(origin)) => {
                    let bytes = files::occupied_bytes(&path);
                    let entry = Entry { origin, bytes, leases: 0, used: clock.instant() };
                    entries.insert(digest.to_owned(), entry);
                }
                _ => files::discard(&path),
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                data: data.clone(),
                store,
                bucket: bucket.to_owned(),
                bytes_max,
                clock,
                entries: Mutex::new(entries),
                uses: Mutex::default(),
                fetching: Mutex::new(HashMap::new()),
            }),
        })
    }

    /// The snapshot, from the cache or from S3.
    pub async fn ensure(&self, snapshot: &ImageSnapshot) -> Result<ImageSnapshotLease, HostError> {
        let digest = &snapshot.manifest_digest;
        if let Some(lease) = self.lease(digest) {
            return Ok(lease);
        }
        let turn = {
            let mut fetching = self.inner.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(fetching.entry(digest.clone()).or_default())
        };
        let turn_taken = turn.lock().await;
        let result = match self.lease(digest) {
            Some(lease) => Ok(lease),
            None => self.fetch(&snapshot.manifest_key, digest).await,
        };
        drop(turn_taken);
        let mut fetching = self.inner.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // Two: the table's and ours. A third belongs to someone who waits for the next turn.
        if Arc::strong_count(&turn) == 2 {
            fetching.remove(digest);
        }
        result
    }

    async fn fetch(&self, manifest_key: &str, digest: &str) -> Result<ImageSnapshotLease, HostError> {
        let temporary = self.inner.data.tmp().join(format!("base-{digest}"));
        files::remove(&temporary)?;
        files::make_directory(&temporary)?;
        tracing::info!(manifest_key, "fetching an image snapshot");
        let fetched = snapshot::fetch(
            &self.inner.store,
            &self.inner.bucket,
            manifest_key,
            Some(digest),
            &temporary,
            &|_, _| (),
        )
        .await;
        let result = match fetched {
            Ok(fetched) => self.take_fetched(&fetched, &temporary, manifest_key, digest).await,
            Err(error) => Err(fetch_error(&error, &temporary)),
        };
        files::discard(&temporary);
        result
    }

    async fn take_fetched(
        &self,
        fetched: &snapshot::Fetched,
        temporary: &Path,
        manifest_key: &str,
        digest: &str,
    ) -> Result<ImageSnapshotLease, HostError> {
        for kind in [FileKind::Memory, FileKind::Disk, FileKind::Device] {
            let path = fetched
                .paths
                .get(&kind)
                .ok_or_else(|| HostError::Corrupt { object: manifest_key.to_owned() })?;
            let to = temporary.join(file_name(kind));
            if *path != to {
                std::fs::rename(path, &to).map_err(|error| HostError::io(&to, &error))?;
            }
        }
        failpoint::hit("fetch-fetched");
        let head = &fetched.manifest.head;
        let origin = Origin {
            manifest_key: manifest_key.to_owned(),
            guest_bundle_version: head.guest_bundle_version.clone(),
            log_start: head.labels.get(LOG_LABEL).and_then(|text| text.parse().ok()).unwrap_or(0),
        };
        self.adopt(temporary, digest, origin).await
    }

    /// Takes a finished directory with `memory`, `disk` and `device.state` into
    /// the cache: from a fetch or from a bake on this host.
    pub async fn adopt(
        &self,
        directory: &Path,
        digest: &str,
        origin: Origin,
    ) -> Result<ImageSnapshotLease, HostError> {
        let text =
            serde_json::to_vec(&origin).map_err(|error| HostError::Internal(format!("origin: {error}")))?;
        let (from, to) = (directory.to_owned(), self.inner.data.image_snapshot(digest));
        let target = to.clone();
        files::blocking(move || {
            for kind in [FileKind::Memory, FileKind::Disk, FileKind::Device] {
                // Also makes the first reflink of the disk quick: it would have to write this back.
                files::sync(&from.join(file_name(kind)))?;
            }
            files::replace(&from.join(ORIGIN), &text, true)?;
            files::remove(&to)?;
            std::fs::rename(&from, &to).map_err(|error| HostError::io(&to, &error))?;
            files::sync(to.parent().unwrap_or(&to))
        })
        .await?;
        let bytes = files::occupied_bytes(&target);
        let entry = Entry { origin, bytes, leases: 0, used: self.inner.clock.instant() };
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.to_owned(), entry);
        let lease = self
            .lease(digest)
            .ok_or_else(|| HostError::Internal("an image snapshot vanished from the cache".to_owned()))?;
        self.make_room();
        Ok(lease)
    }

    /// The snapshot when it is in the cache.
    fn lease(&self, digest: &str) -> Option<ImageSnapshotLease> {
        let mut entries = self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get_mut(digest)?;
        entry.leases += 1;
        entry.used = self.inner.clock.instant();
        Some(ImageSnapshotLease {
            cache: self.clone(),
            digest: digest.to_owned(),
            origin: entry.origin.clone(),
        })
    }

    /// True when the snapshot is in the cache.
    pub fn holds(&self, digest: &str) -> bool {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
    }

    /// Notes that a microVM needs a snapshot, until what is returned is dropped.
    pub fn note_use(&self, digest: &str) -> ImageSnapshotUse {
        *self.uses().entry(digest.to_owned()).or_default() += 1;
        ImageSnapshotUse { cache: self.clone(), digest: digest.to_owned() }
    }

    /// Removes the snapshot used longest ago, of those that no microVM here needs. Returns the bytes it took; `None` when there
    /// is none.
    pub fn let_go(&self) -> Option<u64> {
        let uses = self.uses().clone();
        let mut entries = self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove_oldest(&mut entries, |digest| !uses.contains_key(digest))
    }

    /// Removes unused snapshots, oldest use first, until the cache fits.
    fn make_room(&self) {
        let mut entries = self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |entries: &HashMap<String, Entry>| {
            entries.values().map(|entry| entry.bytes).sum::<u64>() <= self.inner.bytes_max
        };
        while !fits(&entries) && self.remove_oldest(&mut entries, |_| true).is_some() {}
    }

    fn remove_oldest(
        &self,
        entries: &mut HashMap<String, Entry>,
        may_go: impl Fn(&str) -> bool,
    ) -> Option<u64> {
        let unused = entries.iter().filter(|(digest, entry)| entry.leases == 0 && may_go(digest));
        let digest = unused.min_by_key(|(_, entry)| entry.used)?.0.clone();
        let entry = entries.remove(&digest)?;
        tracing::info!(digest, "evicting an image snapshot");
        files::discard(&self.inner.data.image_snapshot(&digest));
        Some(entry.bytes)
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.inner.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the snapshot with this manifest key; one that is not there is no error.
    pub fn evict(&self, manifest_key: &str) -> Result<(), HostError> {
        let mut entries = self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = entries
            .iter()
            .find(|(_, entry)| entry.origin.manifest_key == manifest_key)
            .map(|(digest, _)| digest.clone());
        let Some(digest) = digest else { return Ok(()) };
        if entries.get(&digest).is_some_and(|entry| entry.leases > 0) {
            return Err(HostError::Conflict(format!("a microVM runs on {manifest_key}")));
        }
        entries.remove(&digest);
        // Dying here leaves a directory that the next start takes into the cache again; evicting repeats.
        files::remove(&self.inner.data.image_snapshot(&digest))
    }

    /// Manifest keys of what is in the cache, at most `count`.
    pub fn manifest_keys(&self, count: usize) -> Vec<String> {
        let entries = self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().take(count).map(|entry| entry.origin.manifest_key.clone()).collect()
    }
}

impl ImageSnapshotLease {
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn memory(&self) -> PathBuf {
        self.path(FileKind::Memory)
    }

    pub fn disk(&self) -> PathBuf {
        self.path(FileKind::Disk)
    }

    pub fn device_state(&self) -> PathBuf {
        self.path(FileKind::Device)
    }

    /// First log line of the guest after the bake.
    pub fn log_start(&self) -> u64 {
        self.origin.log_start
    }

    fn path(&self, kind: FileKind) -> PathBuf {
        self.cache.inner.data.image_snapshot(&self.digest).join(file_name(kind))
    }
}

impl Drop for ImageSnapshotUse {
    fn drop(&mut self) {
        let mut uses = self.cache.uses();
        if let Some(count) = uses.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                uses.remove(&self.digest);
            }
        }
    }
}

impl Drop for ImageSnapshotLease {
    fn drop(&mut self) {
        let mut entries = self.cache.inner.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(&self.digest) {
            entry.leases = entry.leases.saturating_sub(1);
            entry.used = self.cache.inner.clock.instant();
        }
    }
}

/// Name of a file in a cached snapshot.
pub fn file_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Memory => "memory",
        FileKind::Disk => "disk",
        FileKind::Device => "device.state",
        FileKind::MemoryDifference => "memory.diff",
        FileKind::DiskDifference => "disk.diff",
        FileKind::Connections => "connections",
    }
}

/// What a failed fetch means to the caller.
pub fn fetch_error(error: &snapshot::Error, writing: &Path) -> HostError {
    if error.disk_full() {
        return HostError::disk_full(writing);
    }
    match error {
        snapshot::Error::Corrupt { object, .. } => {
            tracing::error!(object, %error, "stored bytes do not match their digest");
            HostError::Corrupt { object: object.clone() }
        }
        snapshot::Error::NotFound { object } => HostError::Missing { object: object.clone() },
        snapshot::Error::Store(_) => HostError::StoreUnavailable(HostError::chain(error).0),
        _ => HostError::Internal(HostError::chain(error).0),
    }
}
