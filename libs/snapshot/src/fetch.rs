//! From a published snapshot back to files, and checking one in place.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::Store;

use crate::Progress;
use crate::chunk::{self, CHUNK_BYTES, Decoded};
use crate::error::Error;
use crate::manifest::{ChunkEntry, FileKind, MANIFEST_BYTES_MAX, Manifest, chunk_key, digest, prefix_of};
use crate::transfer::{DOWNLOADS_IN_FLIGHT, Piece, Tally, address, blocking, for_each_piece, pieces};

/// A snapshot that lies in a local folder.
#[derive(Debug)]
pub struct Fetched {
    pub manifest: Manifest,
    /// blake3 of the manifest, in hexadecimal.
    pub manifest_digest: String,
    /// Where each file is: `<folder>/<kind>`.
    pub paths: BTreeMap<FileKind, PathBuf>,
}

/// An object that is not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `s3://bucket/key`.
    pub object: String,
    pub detail: String,
}

/// Outcome of [`verify`].
#[derive(Debug)]
pub struct Verification {
    pub manifest: Manifest,
    /// blake3 of the manifest, in hexadecimal.
    pub manifest_digest: String,
    /// Damaged or missing chunks, in the order of the manifest; empty when the snapshot is whole.
    pub problems: Vec<Problem>,
}

/// Reads a manifest; returns it with the digest of its bytes. `expected` is the
/// digest it must have, when the caller knows it.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Corrupt`] naming the manifest,
/// [`Error::Invalid`] for a key that is not a manifest's, [`Error::Store`].
pub async fn read_manifest(
    store: &Store,
    bucket: &str,
    manifest_key: &str,
    expected: Option<&str>,
) -> Result<(Manifest, String), Error> {
    prefix_of(manifest_key)?;
    let object = address(bucket, manifest_key);
    let bytes = match store.get(bucket, manifest_key, MANIFEST_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Err(Error::NotFound { object }),
        Err(object_store::Error::TooLarge { .. }) => {
            return Err(Error::corrupt(object, "it is too long for a manifest"));
        }
        Err(error) => return Err(error.into()),
    };
    let digest = digest(&bytes);
    if expected.is_some_and(|expected| expected != digest) {
        return Err(Error::corrupt(object, "its digest is not the one on record"));
    }
    match Manifest::decode(&bytes) {
        Ok(manifest) => Ok((manifest, digest)),
        Err(detail) => Err(Error::corrupt(object, detail)),
    }
}

/// Writes a snapshot's files into `folder`, which must exist and be empty.
///
/// Holes and zero pages take no space. When this returns, files and folder are synced to disk, so renaming
/// the folder into its final place is all that is left to do. After an error, a crash or when the future is
/// dropped, the folder holds incomplete files: delete it whole.
///
/// # Errors
/// [`Error::NotFound`] without a manifest; [`Error::Corrupt`] naming the first object that is damaged or
/// missing; [`Error::Invalid`], [`Error::File`], [`Error::Store`].
pub async fn fetch(
    store: &Store,
    bucket: &str,
    manifest_key: &str,
    manifest_digest: Option<&str>,
    folder: &Path,
    progress: Progress<'_>,
) -> Result<Fetched, Error> {
    let (manifest, manifest_digest) = read_manifest(store, bucket, manifest_key, manifest_digest).await?;
    let source = Source { store, bucket, prefix: prefix_of(manifest_key)?, manifest: &manifest };
    let layout: Vec<(FileKind, u64)> =
        manifest.files.iter().map(|file| (file.kind, file.logical_size)).collect();
    let place = folder.to_owned();
    let targets = blocking(move || create_files(&place, &layout)).await?;

    let tally = Tally::start(manifest.raw_bytes(), progress);
    for_each_piece(DOWNLOADS_IN_FLIGHT, chunks_of(&manifest), |piece| {
        source.write_chunk(&targets, piece, &tally)
    })
    .await?;

    // A crash before all of this is synced must not leave a folder that looks
    // finished: the caller renames it only after we return.
    let paths = targets.iter().map(|(kind, target)| (*kind, target.path.clone())).collect();
    let place = folder.to_owned();
    blocking(move || sync_files(&place, &targets)).await?;
    Ok(Fetched { manifest, manifest_digest, paths })
}

/// Reads and checks every object of a snapshot without writing anything.
///
/// Damage to chunks is reported in [`Verification::problems`], all of it.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Corrupt`] when the manifest itself is damaged, [`Error::Store`].
pub async fn verify(
    store: &Store,
    bucket: &str,
    manifest_key: &str,
    manifest_digest: Option<&str>,
    progress: Progress<'_>,
) -> Result<Verification, Error> {
    let (manifest, manifest_digest) = read_manifest(store, bucket, manifest_key, manifest_digest).await?;
    let source = Source { store, bucket, prefix: prefix_of(manifest_key)?, manifest: &manifest };
    let tally = Tally::start(manifest.raw_bytes(), progress);
    let findings =
        for_each_piece(DOWNLOADS_IN_FLIGHT, chunks_of(&manifest), |piece| source.check_chunk(piece, &tally))
            .await?;
    let problems = findings.into_iter().flatten().collect();
    Ok(Verification { manifest, manifest_digest, problems })
}

fn chunks_of(manifest: &Manifest) -> Vec<Piece> {
    pieces(manifest.files.iter().map(|file| file.chunks.len()))
}

/// Where chunks come from.
struct Source<'a> {
    store: &'a Store,
    bucket: &'a str,
    prefix: &'a str,
    manifest: &'a Manifest,
}

impl Source<'_> {
    fn entry(&self, piece: Piece) -> (FileKind, &ChunkEntry) {
        let file = &self.manifest.files[piece.file];
        (file.kind, &file.chunks[piece.chunk])
    }

    async fn write_chunk(
        &self,
        targets: &BTreeMap<FileKind, Target>,
        piece: Piece,
        tally: &Tally<'_>,
    ) -> Result<(), Error> {
        let (kind, chunk) = self.entry(piece);
        let target = &targets[&kind];
        let decoded = self.read_chunk(kind, chunk).await?;
        let file = Arc::clone(&target.file);
        let offset = u64::from(chunk.index) * CHUNK_BYTES;
        blocking(move || write_runs(&file, offset, &decoded)).await.map_err(Error::file(&target.path))?;
        tally.add(u64::from(chunk.raw_len));
        Ok(())
    }

    async fn check_chunk(&self, piece: Piece, tally: &Tally<'_>) -> Result<Option<Problem>, Error> {
        let (kind, chunk) = self.entry(piece);
        let finding = match self.read_chunk(kind, chunk).await {
            Ok(_) => None,
            Err(Error::Corrupt { object, detail }) => Some(Problem { object, detail }),
            Err(error) => return Err(error),
        };
        tally.add(u64::from(chunk.raw_len));
        Ok(finding)
    }

    /// A chunk whose length, digest and form are as the manifest says.
    async fn read_chunk(&self, kind: FileKind, chunk: &ChunkEntry) -> Result<Decoded, Error> {
        let key = chunk_key(self.prefix, kind, chunk.index);
        let corrupt = |detail: String| Error::corrupt(address(self.bucket, &key), detail);
        let stored: Bytes = match self.store.get(self.bucket, &key, u64::from(chunk.stored_len)).await {
            Ok(stored) => stored,
            // The manifest names it, so this is loss of data and not a question of where to look.
            Err(error) if error.is_not_found() => return Err(corrupt("it is missing".to_owned())),
            Err(object_store::Error::TooLarge { .. }) => {
                return Err(corrupt(format!("it is longer than {} bytes", chunk.stored_len)));
            }
            Err(error) => return Err(error.into()),
        };
        if stored.len() as u64 != u64::from(chunk.stored_len) {
            return Err(corrupt(format!("it has {} of {} bytes", stored.len(), chunk.stored_len)));
        }
        let (expected, raw_len) = (chunk.digest.clone(), chunk.raw_len as usize);
        let checked = blocking(move || {
            if digest(&stored) != expected {
                return Err("its digest is not the one in the manifest".to_owned());
            }
            chunk::decode(&stored, raw_len)
        });
        checked.await.map_err(corrupt)
    }
}

/// A file being written.
struct Target {
    path: PathBuf,
    file: Arc<File>,
}

fn create_files(folder: &Path, layout: &[(FileKind, u64)]) -> Result<BTreeMap<FileKind, Target>, Error> {
    let mut entries = std::fs::read_dir(folder).map_err(Error::file(folder))?;
    if entries.next().is_some() {
        return Err(Error::invalid(format!("{} is not empty", folder.display())));
    }
    let mut targets = BTreeMap::new();
    for (kind, size) in layout {
        let path = folder.join(kind.name());
        let file = create_sparse(&path, *size).map_err(Error::file(&path))?;
        targets.insert(*kind, Target { path, file: Arc::new(file) });
    }
    Ok(targets)
}

fn create_sparse(path: &Path, size: u64) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_len(size)?;
    Ok(file)
}

fn write_runs(file: &File, offset: u64, decoded: &Decoded) -> io::Result<()> {
    decoded.runs().try_for_each(|(at, bytes)| file.write_all_at(bytes, offset + at))
}

fn sync_files(folder: &Path, targets: &BTreeMap<FileKind, Target>) -> Result<(), Error> {
    for target in targets.values() {
        target.file.sync_all().map_err(Error::file(&target.path))?;
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file(folder))
}
