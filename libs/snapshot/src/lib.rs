//! Snapshots in the object store, and the disk files they are made of.
//!
//! A snapshot is a set of files (guest memory, disk, device state, or
//! differences of the first two) described by one [`Manifest`]:
//!
//! ```text
//! <prefix>/memory/000000     chunks: 4 MiB of the file each, zero pages left
//! <prefix>/memory/000007     out, compressed; an all-zero chunk has no object
//! <prefix>/device/000000
//! <prefix>/manifest.json     last to appear, first to go
//! ```
//!
//! The manifest is what makes a snapshot exist. [`upload`] puts it after every chunk it names, [`delete`]
//! removes it before any of them, and it holds the digest of each, so that a snapshot is either whole or not
//! there. Nothing a published manifest names is ever written again.
//!
//! [`fetch`] checks every object against its digest before it uses a byte of it; whatever does not fit is
//! [`Error::Corrupt`] and names the object. Choosing prefixes (they carry the generation, so that a stale
//! owner cannot reach a newer snapshot) and remembering manifest keys and digests is the caller's part; so is
//! renaming a fetched folder into place.
//!
//! [`disk`] has what happens to disk files on a host: copies that share blocks,
//! the difference between a copy and its original, and putting it back.

mod chunk;
pub mod disk;
mod error;
mod fetch;
mod manifest;
mod sparse;
mod transfer;
mod upload;

pub use chunk::{CHUNK_BYTES, PAGE_BYTES};
pub use error::Error;
pub use fetch::{Fetched, Problem, Verification, fetch, read_manifest, verify};
pub use manifest::{
    ChunkEntry, FILE_BYTES_MAX, FORMAT, FileEntry, FileKind, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest,
    ManifestHead, Parent, SnapshotKind, manifest_key,
};
pub use transfer::{DOWNLOADS_IN_FLIGHT, UPLOADS_IN_FLIGHT};
pub use upload::{FileSource, FileStats, Published, delete, discard_unpublished, upload};

/// Told `(bytes done, bytes in total)` from time to time, counted in bytes of
/// the files that are not holes; must not block.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);
