//! A server, a bucket and files to store, for the tests beside it.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use object_store::Store;
use snapshot::{
    CHUNK_BYTES, Error, FileKind, FileSource, ManifestHead, Parent, Published, SnapshotKind, fetch,
    manifest_key, upload,
};
use testkit::TestS3;

pub const BUCKET: &str = "snapshots";
pub const PREFIX: &str = "microvms/a/g1/s1";
pub const MIB: u64 = 1 << 20;

pub fn head() -> ManifestHead {
    ManifestHead {
        kind: SnapshotKind::Microvm,
        engine: "qemu 7.2.0".to_owned(),
        platform_fingerprint: "tcg".to_owned(),
        guest_bundle_version: "1".to_owned(),
        memory_mib: 512,
        vcpu_count: 1,
        image_name: "app".to_owned(),
        image_version: "1.0".to_owned(),
        generation: Some(1),
        sequence: Some(1),
        parent: Some(Parent {
            manifest_key: "images/app/manifest.json".to_owned(),
            manifest_digest: "00".repeat(32),
        }),
        ..ManifestHead::default()
    }
}

/// A server, a bucket, and a folder with files to store.
pub struct World {
    pub server: TestS3,
    pub store: Store,
    pub folder: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let server = TestS3::start().await;
        let store = server.store();
        store.ensure_bucket(BUCKET).await.unwrap();
        Self { server, store, folder: tempfile::tempdir().unwrap() }
    }

    /// A sparse file of `size` bytes with these pieces of data.
    pub fn file(&self, kind: FileKind, size: u64, pieces: &[(u64, Vec<u8>)]) -> FileSource {
        let path = self.folder.path().join(format!("source-{kind}"));
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        FileSource { kind, path }
    }

    /// Memory of three chunks, the middle one a hole, and a little device state.
    pub fn sources(&self) -> Vec<FileSource> {
        let pieces = [(4096, noise(1, 100_000)), (2 * CHUNK_BYTES + 77, noise(2, 9_000))];
        let memory = self.file(FileKind::MemoryDifference, 3 * CHUNK_BYTES - 100, &pieces);
        vec![memory, self.file(FileKind::Device, 13_000, &[(0, noise(3, 13_000))])]
    }

    pub async fn publish(&self, sources: &[FileSource]) -> Published {
        upload(&self.store, BUCKET, PREFIX, &head(), sources, &|_, _| {}).await.unwrap()
    }

    pub fn empty_folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        path
    }

    pub async fn fetch_to(&self, name: &str, digest: Option<&str>) -> Result<snapshot::Fetched, Error> {
        let key = manifest_key(PREFIX);
        fetch(&self.store, BUCKET, &key, digest, &self.empty_folder(name), &|_, _| {}).await
    }

    pub async fn keys(&self) -> Vec<String> {
        let listed = self.store.list_prefix(BUCKET, "microvms/", 10_000).await.unwrap();
        listed.into_iter().map(|entry| entry.key).collect()
    }
}

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

pub fn same(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

pub fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}
