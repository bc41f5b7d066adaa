//! From files to a published snapshot, and away with it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::Store;

use crate::Progress;
use crate::chunk::{self, CHUNK_BYTES};
use crate::error::Error;
use crate::fetch::read_manifest;
use crate::manifest::{
    ChunkEntry, FILE_BYTES_MAX, FORMAT, FileEntry, FileKind, Manifest, ManifestHead, chunk_key, digest,
    manifest_key, prefix_of, raw_len,
};
use crate::sparse;
use crate::transfer::{Piece, Tally, UPLOADS_IN_FLIGHT, address, blocking, for_each_piece, pieces};

/// A local file that becomes part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSource {
    pub kind: FileKind,
    /// Where it is; must not change during the upload.
    pub path: PathBuf,
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStats {
    pub kind: FileKind,
    /// Its length in bytes, holes included.
    pub logical_size: u64,
    pub objects: u64,
    /// Length of those objects in bytes.
    pub stored_bytes: u64,
}

/// A snapshot that exists from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Key of its manifest.
    pub manifest_key: String,
    /// blake3 of its manifest, in hexadecimal; to be kept with the key.
    pub manifest_digest: String,
    /// Length of all its objects in bytes, the manifest included.
    pub stored_bytes: u64,
    pub files: Vec<FileStats>,
}

/// Stores files as the snapshot under `prefix` and publishes it.
///
/// Can be repeated after any error and any crash: until the manifest is there, chunks are simply written
/// again; once it is there, nothing is written, and the files are compared with what is published. `prefix`
/// must belong to one writer (by carrying microVM, generation and sequence).
///
/// # Errors
/// [`Error::AlreadyPublished`] when a different snapshot is there, [`Error::Invalid`], [`Error::File`],
/// [`Error::Store`]. Chunks of a failed upload stay; see [`discard_unpublished`].
pub async fn upload(
    store: &Store,
    bucket: &str,
    prefix: &str,
    head: &ManifestHead,
    sources: &[FileSource],
    progress: Progress<'_>,
) -> Result<Published, Error> {
    let key = manifest_key(prefix);
    object_store::check_key(&key)?;
    let existing = match read_manifest(store, bucket, &key, None).await {
        Ok((_, digest)) => Some(digest),
        Err(Error::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let sources = sources.to_vec();
    let plans = blocking(move || plan(sources)).await?;
    let total = plans.iter().map(Plan::raw_bytes).sum();
    let sink = Sink {
        store,
        bucket,
        prefix,
        // With a manifest there, chunks are only digested: what it names is never written again.
        write: existing.is_none(),
        tally: Tally::start(total, progress),
    };
    let files = sink.store_files(&plans).await?;

    // A crash up to here leaves chunks that no manifest names: invisible to
    // readers, and written again by the next attempt.
    let manifest = Manifest { format: FORMAT, head: head.clone(), files };
    let (bytes, digest) = manifest.encode()?;
    let published = describe(&manifest, key, digest, bytes.len() as u64);
    match existing {
        Some(existing) if existing == published.manifest_digest => {}
        Some(_) => {
            return Err(Error::AlreadyPublished { object: address(bucket, &published.manifest_key) });
        }
        None => publish(store, bucket, &published, bytes.into()).await?,
    }
    // A crash from here on leaves a whole snapshot; repeating finds it.
    Ok(published)
}

/// Puts the manifest: the moment the snapshot begins to exist.
async fn publish(store: &Store, bucket: &str, published: &Published, bytes: Bytes) -> Result<(), Error> {
    let key = &published.manifest_key;
    match store.put_if_absent(bucket, key, bytes.clone()).await {
        Ok(()) => Ok(()),
        // An attempt whose answer was lost may have been ours.
        Err(object_store::Error::PreconditionFailed { .. }) => {
            let (_, digest) = read_manifest(store, bucket, key, None).await?;
            if digest == published.manifest_digest {
                Ok(())
            } else {
                Err(Error::AlreadyPublished { object: address(bucket, key) })
            }
        }
        // Servers without conditional puts say so; the prefix has one writer anyhow.
        Err(object_store::Error::Other { detail, .. }) if detail == "NotImplemented" => {
            Ok(store.put(bucket, key, bytes).await?)
        }
        Err(error) => Err(error.into()),
    }
}

fn describe(manifest: &Manifest, manifest_key: String, manifest_digest: String, length: u64) -> Published {
    let files = manifest
        .files
        .iter()
        .map(|file| FileStats {
            kind: file.kind,
            logical_size: file.logical_size,
            objects: file.chunks.len() as u64,
            stored_bytes: file.stored_bytes(),
        })
        .collect();
    Published { manifest_key, manifest_digest, stored_bytes: manifest.stored_bytes() + length, files }
}

/// An opened file and which of its chunks are not holes.
struct Plan {
    source: FileSource,
    file: Arc<File>,
    size: u64,
    blocks: Vec<u32>,
}

impl Plan {
    /// What there is to read.
    fn raw_bytes(&self) -> u64 {
        self.blocks.iter().map(|index| raw_len(self.size, *index)).sum()
    }
}

fn plan(mut sources: Vec<FileSource>) -> Result<Vec<Plan>, Error> {
    sources.sort_by_key(|source| source.kind);
    if sources.is_empty() || !sources.is_sorted_by(|a, b| a.kind < b.kind) {
        return Err(Error::invalid("a snapshot has at least one file and each kind once"));
    }
    sources.into_iter().map(plan_file).collect()
}

fn plan_file(source: FileSource) -> Result<Plan, Error> {
    let file = File::open(&source.path).map_err(Error::file(&source.path))?;
    let size = file.metadata().map_err(Error::file(&source.path))?.len();
    if size > FILE_BYTES_MAX {
        return Err(Error::invalid(format!("{} has {size} bytes, which is too much", source.path.display())));
    }
    let blocks = sparse::blocks_with_data(&file, size, CHUNK_BYTES)
        .map_err(Error::file(&source.path))?
        .into_iter()
        .map(|block| u32::try_from(block).expect("the largest file has 16384 chunks"))
        .collect();
    Ok(Plan { source, file: Arc::new(file), size, blocks })
}

/// Where chunks go.
struct Sink<'a> {
    store: &'a Store,
    bucket: &'a str,
    prefix: &'a str,
    write: bool,
    tally: Tally<'a>,
}

impl Sink<'_> {
    async fn store_files(&self, plans: &[Plan]) -> Result<Vec<FileEntry>, Error> {
        let pieces = pieces(plans.iter().map(|plan| plan.blocks.len()));
        let chunks =
            for_each_piece(UPLOADS_IN_FLIGHT, pieces.clone(), |piece| self.store_chunk(plans, piece)).await?;
        let mut files: Vec<FileEntry> = plans
            .iter()
            .map(|plan| FileEntry { kind: plan.source.kind, logical_size: plan.size, chunks: Vec::new() })
            .collect();
        for (piece, chunk) in pieces.into_iter().zip(chunks) {
            files[piece.file].chunks.extend(chunk);
        }
        Ok(files)
    }

    /// Encodes and stores one chunk; `None` when it turns out to be zero.
    async fn store_chunk(&self, plans: &[Plan], piece: Piece) -> Result<Option<ChunkEntry>, Error> {
        let plan = &plans[piece.file];
        let index = plan.blocks[piece.chunk];
        let raw_len = raw_len(plan.size, index);
        let file = Arc::clone(&plan.file);
        let length = usize::try_from(raw_len).expect("a chunk fits in memory");
        let encoded = blocking(move || {
            let raw = sparse::read_at(&file, u64::from(index) * CHUNK_BYTES, length)?;
            Ok(chunk::encode(&raw).map(|stored| (digest(&stored), stored)))
        })
        .await
        .map_err(Error::file(&plan.source.path))?;
        let entry = match encoded {
            None => None,
            Some((digest, stored)) => {
                let entry = ChunkEntry {
                    index,
                    raw_len: u32::try_from(raw_len).expect("a chunk is at most 4 MiB"),
                    stored_len: u32::try_from(stored.len()).expect("a stored chunk is little over 4 MiB"),
                    digest,
                };
                if self.write {
                    let key = chunk_key(self.prefix, plan.source.kind, index);
                    self.store.put(self.bucket, &key, stored.into()).await?;
                }
                Some(entry)
            }
        };
        self.tally.add(raw_len);
        Ok(entry)
    }
}

/// Deletes what an upload that never finished left under `prefix`. Returns how many objects that were.
///
/// # Errors
/// [`Error::AlreadyPublished`] when there is a manifest after all: nothing is deleted then. [`Error::Store`].
pub async fn discard_unpublished(store: &Store, bucket: &str, prefix: &str) -> Result<u64, Error> {
    let key = manifest_key(prefix);
    match store.head(bucket, &key).await {
        Ok(_) => Err(Error::AlreadyPublished { object: address(bucket, &key) }),
        Err(error) if error.is_not_found() => delete_chunks(store, bucket, prefix).await,
        Err(error) => Err(error.into()),
    }
}

/// Deletes a snapshot; one that is not there, or only half, is fine. Returns how many chunks went with it.
/// The manifest is not read, so that damaged ones can be deleted too. Whether anything still needs the
/// snapshot is the caller's to know.
///
/// # Errors
/// [`Error::Invalid`] for a key that is not a manifest's, [`Error::Store`].
pub async fn delete(store: &Store, bucket: &str, manifest_key: &str) -> Result<u64, Error> {
    let prefix = prefix_of(manifest_key)?;
    // The manifest first: a crash behind this line leaves chunks without a
    // manifest, never a manifest without chunks. Repeating removes the rest.
    store.delete(bucket, manifest_key).await?;
    delete_chunks(store, bucket, prefix).await
}

/// Only the folders that chunks are in, in case other snapshots lie below `prefix`.
async fn delete_chunks(store: &Store, bucket: &str, prefix: &str) -> Result<u64, Error> {
    let mut deleted = 0;
    for kind in FileKind::ALL {
        deleted += store.delete_prefix(bucket, &format!("{prefix}/{kind}/")).await?;
    }
    Ok(deleted)
}
