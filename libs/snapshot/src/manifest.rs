//! The manifest: what a snapshot is of and which chunks its files have.
//!
//! Its bytes are canonical (fields in the order of the structs, maps sorted, no
//! spaces), so equal manifests have equal digests. Reading is strict: unknown
//! fields, unknown formats and anything out of bounds are refused.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::chunk::{CHUNK_BYTES, STORED_BYTES_MAX};
use crate::error::Error;

/// Version of the manifest's format.
pub const FORMAT: u32 = 1;

/// Longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Largest file in a snapshot, in bytes.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// Last segment of every manifest's key.
pub const MANIFEST_NAME: &str = "manifest.json";

/// Longest text in a head, in bytes; keys of parents included.
const TEXT_BYTES_MAX: usize = 1024;

/// Most labels in a head.
const LABELS_MAX: usize = 64;

/// Length of a blake3 digest in hexadecimal.
const DIGEST_CHARS: usize = 64;

/// What a snapshot is of.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// A baked image version: memory, disk and device state, all whole.
    Image,
    /// A suspended microVM: differences to its image, and device state.
    Microvm,
    /// A disk alone.
    #[default]
    Disk,
}

/// What a file of a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// All guest memory.
    Memory,
    /// The whole disk.
    Disk,
    /// The engine's device state.
    Device,
    /// Guest memory pages that differ from the parent's.
    MemoryDifference,
    /// Disk blocks that differ from the parent's.
    DiskDifference,
    /// Connections of the guest that go on when it wakes.
    Connections,
}

impl FileKind {
    pub const ALL: [Self; 6] = [
        Self::Memory,
        Self::Disk,
        Self::Device,
        Self::MemoryDifference,
        Self::DiskDifference,
        Self::Connections,
    ];

    /// Name in keys, in manifests and of fetched files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Device => "device",
            Self::MemoryDifference => "memory-difference",
            Self::DiskDifference => "disk-difference",
            Self::Connections => "connections",
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The snapshot that differences are relative to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Key of its manifest, in the same bucket.
    pub manifest_key: String,
    /// Digest of its manifest.
    pub manifest_digest: String,
}

/// What a snapshot is of, and what it takes to use it. The default is a disk alone, with nothing else said.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestHead {
    pub kind: SnapshotKind,
    /// Engine that made it, with its version; only the same one can read it.
    pub engine: String,
    /// What the engine gave the guest to run on; must be equal on the host that restores it.
    pub platform_fingerprint: String,
    /// Guest bundle that was booted.
    pub guest_bundle_version: String,
    /// Guest memory in MiB; 0 for a disk alone.
    pub memory_mib: u32,
    /// Virtual CPUs; 0 for a disk alone.
    pub vcpu_count: u32,
    /// Size of the disk in bytes.
    pub disk_size_bytes: u64,
    /// Image, such as `my-app`.
    pub image_name: String,
    /// Version of the image, such as `1.0`.
    pub image_version: String,
    /// MicroVM, for kind `microvm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microvm_id: Option<String>,
    /// Placement generation of the host that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Which suspend of the microVM it is, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// What the differences are relative to; needed when there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// When it was made, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Anything else, for people and tools.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// One stored object of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkEntry {
    /// Which [`CHUNK_BYTES`] of the file, counted from 0.
    pub index: u32,
    /// Length of the file's part, in bytes, before encoding.
    pub raw_len: u32,
    /// Length of the stored object in bytes.
    pub stored_len: u32,
    /// blake3 of the stored object, in hexadecimal.
    pub digest: String,
}

/// One file of a snapshot. Chunks that are not listed are zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// What it holds; each kind at most once.
    pub kind: FileKind,
    /// Length of the file in bytes, holes included.
    pub logical_size: u64,
    /// Its objects, by rising index.
    pub chunks: Vec<ChunkEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    pub head: ManifestHead,
    pub files: Vec<FileEntry>,
}

/// Key of the manifest of the snapshot under `prefix`.
#[must_use]
pub fn manifest_key(prefix: &str) -> String {
    format!("{prefix}/{MANIFEST_NAME}")
}

/// The prefix of the snapshot whose manifest has this key.
pub(crate) fn prefix_of(manifest_key: &str) -> Result<&str, Error> {
    manifest_key
        .strip_suffix(MANIFEST_NAME)
        .and_then(|rest| rest.strip_suffix('/'))
        .filter(|prefix| !prefix.is_empty())
        .ok_or_else(|| Error::invalid(format!("{manifest_key:?} is not the key of a manifest")))
}

/// Key of a chunk of the snapshot under `prefix`.
pub(crate) fn chunk_key(prefix: &str, kind: FileKind, index: u32) -> String {
    format!("{prefix}/{kind}/{index:06}")
}

/// Length of the part of a file that chunk `index` covers, in bytes.
pub(crate) fn raw_len(logical_size: u64, index: u32) -> u64 {
    logical_size.saturating_sub(u64::from(index) * CHUNK_BYTES).min(CHUNK_BYTES)
}

impl FileEntry {
    /// Length of all its stored objects, in bytes.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.stored_len)).sum()
    }

    fn check(&self) -> Result<(), String> {
        if self.logical_size > FILE_BYTES_MAX {
            return Err(format!("{} bytes are over the limit for a file", self.logical_size));
        }
        let mut next = 0;
        for chunk in &self.chunks {
            if chunk.index < next {
                return Err(format!("chunk {} is out of order", chunk.index));
            }
            next = chunk.index.saturating_add(1);
            let expected = raw_len(self.logical_size, chunk.index);
            if expected == 0 || u64::from(chunk.raw_len) != expected {
                return Err(format!("chunk {} should hold {expected} bytes", chunk.index));
            }
            if chunk.stored_len == 0 || u64::from(chunk.stored_len) > STORED_BYTES_MAX {
                return Err(format!("chunk {} cannot be {} bytes long", chunk.index, chunk.stored_len));
            }
            if !is_digest(&chunk.digest) {
                return Err(format!("chunk {} has no proper digest", chunk.index));
            }
        }
        Ok(())
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == DIGEST_CHARS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl ManifestHead {
    fn check(&self) -> Result<(), String> {
        if self.labels.len() > LABELS_MAX {
            return Err(format!("more than {LABELS_MAX} labels"));
        }
        let own = [
            &self.engine,
            &self.platform_fingerprint,
            &self.guest_bundle_version,
            &self.image_name,
            &self.image_version,
        ];
        let parent = self.parent.iter().flat_map(|parent| [&parent.manifest_key, &parent.manifest_digest]);
        let labels = self.labels.iter().flat_map(|(name, value)| [name, value]);
        let mut texts = own.into_iter().chain(&self.microvm_id).chain(parent).chain(labels);
        if texts.any(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(format!("a text is longer than {TEXT_BYTES_MAX} bytes"));
        }
        match &self.parent {
            Some(parent) if !is_digest(&parent.manifest_digest) => {
                Err("the parent has no proper digest".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Manifest {
    #[must_use]
    pub fn file(&self, kind: FileKind) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.kind == kind)
    }

    /// Length of all stored objects but the manifest, in bytes.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.files.iter().map(FileEntry::stored_bytes).sum()
    }

    /// Bytes of the files that chunks stand for: what there is to transfer.
    pub(crate) fn raw_bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| &file.chunks).map(|chunk| u64::from(chunk.raw_len)).sum()
    }

    /// The rules a manifest keeps beyond its shape; the sentence says which one is broken.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format {} is not known", self.format));
        }
        self.head.check()?;
        if self.files.is_empty() {
            return Err("there are no files".to_owned());
        }
        if !self.files.is_sorted_by(|a, b| a.kind < b.kind) {
            return Err("the files are out of order or twice there".to_owned());
        }
        for file in &self.files {
            file.check().map_err(|detail| format!("{}: {detail}", file.kind))?;
        }
        let relative = [FileKind::MemoryDifference, FileKind::DiskDifference];
        if self.head.parent.is_none() && relative.iter().any(|kind| self.file(*kind).is_some()) {
            return Err("there are differences but no parent".to_owned());
        }
        Ok(())
    }

    /// Canonical bytes and their blake3 digest in hexadecimal.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a manifest that could not be read again.
    pub fn encode(&self) -> Result<(Vec<u8>, String), Error> {
        self.check().map_err(Error::invalid)?;
        let bytes = serde_json::to_vec(self).expect("a manifest has only text keys and finite numbers");
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(Error::invalid(format!("the manifest takes {} bytes", bytes.len())));
        }
        let digest = digest(&bytes);
        Ok((bytes, digest))
    }

    /// Reads a manifest and checks every rule. The sentence says what is wrong.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
        manifest.check()?;
        Ok(manifest)
    }
}

/// blake3 in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[cfg(test)]
mod tests;
