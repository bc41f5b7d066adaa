//! The manifest of a microVM's snapshot on the host's disk.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::{self, SnapshotFiles};
use super::journal::Journal;
use crate::domain::HostError;

/// `manifest.json` of a snapshot on the host.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalManifest {
    pub sequence: u64,
    /// Of the placement that it was made under.
    pub generation: u64,
    /// Digest of the image snapshot it differs from.
    pub base_digest: String,
    /// Length of the device state in bytes.
    pub device_state_bytes: u64,
    /// Length of the memory difference in bytes.
    pub memory_difference_bytes: u64,
    /// Size of the memory difference, and of the disk's where it is known, in bytes.
    pub difference_bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The journal as of this sleep; `None` where the snapshot came from S3.
    #[serde(default)]
    pub journal: Option<Journal>,
    /// Whether the guest ran on: what was open in it then has no other end any more.
    #[serde(default)]
    pub recovery_point: bool,
}

impl LocalManifest {
    /// Reads a snapshot's manifest; `None` when there is none or the files do not have the lengths it says.
    pub fn read(files: &SnapshotFiles) -> Option<Self> {
        let manifest: Self = serde_json::from_slice(&std::fs::read(files.manifest()).ok()?).ok()?;
        let length = |path: &Path| std::fs::metadata(path).map(|data| data.len()).ok();
        let whole = length(&files.device_state()) == Some(manifest.device_state_bytes)
            && length(&files.memory_difference()) == Some(manifest.memory_difference_bytes)
            && files.disk().exists();
        whole.then_some(manifest)
    }

    /// Writes it durably: from here on the snapshot exists.
    pub fn write(&self, files: &SnapshotFiles) -> Result<(), HostError> {
        let text =
            serde_json::to_vec(self).map_err(|error| HostError::Internal(format!("manifest: {error}")))?;
        files::replace(&files.manifest(), &text, true)
    }
}
