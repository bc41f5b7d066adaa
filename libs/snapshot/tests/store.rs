//! Snapshots against a real S3 server in the process.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use object_store::Store;
use object_store::test_server::TestS3;
use proptest::prelude::*;
use snapshot::{
    CHUNK_BYTES, Error, FileKind, FileSource, ManifestHead, Parent, Published, SnapshotKind, delete,
    discard_unpublished, fetch, manifest_key, read_manifest, upload, verify,
};

const BUCKET: &str = "snapshots";
const PREFIX: &str = "microvms/a/g1/s1";
const MIB: u64 = 1 << 20;

fn head() -> ManifestHead {
    ManifestHead {
        kind: SnapshotKind::Microvm,
        engine: "qemu 7.2.0".to_owned(),
        platform_fingerprint: "tcg".to_owned(),
        guest_bundle_version: "1".to_owned(),
        memory_mib: 512,
        vcpu_count: 1,
        disk_size_bytes: 0,
        image_name: "app".to_owned(),
        image_version: "1.0".to_owned(),
        microvm_id: None,
        generation: Some(1),
        sequence: Some(1),
        parent: Some(Parent {
            manifest_key: "images/app/manifest.json".to_owned(),
            manifest_digest: "00".repeat(32),
        }),
        created_unix_ms: 0,
        labels: BTreeMap::new(),
    }
}

/// A server, a bucket, and a folder with files to store.
struct Bench {
    server: TestS3,
    store: Store,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let server = TestS3::start().await;
        let store = server.store();
        store.ensure_bucket(BUCKET).await.unwrap();
        Self {
            server,
            store,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A sparse file of `size` bytes with these pieces of data.
    fn file(&self, kind: FileKind, size: u64, pieces: &[(u64, Vec<u8>)]) -> FileSource {
        let path = self.folder.path().join(format!("source-{kind}"));
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        FileSource { kind, path }
    }

    /// Memory of three chunks, the middle one a hole, and a little device state.
    fn sources(&self) -> Vec<FileSource> {
        let pieces = [(4096, noise(1, 100_000)), (2 * CHUNK_BYTES + 77, noise(2, 9_000))];
        let memory = self.file(FileKind::MemoryDifference, 3 * CHUNK_BYTES - 100, &pieces);
        vec![
            memory,
            self.file(FileKind::Device, 13_000, &[(0, noise(3, 13_000))]),
        ]
    }

    async fn publish(&self, sources: &[FileSource]) -> Published {
        upload(&self.store, BUCKET, PREFIX, &head(), sources, &|_, _| {})
            .await
            .unwrap()
    }

    fn empty_folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        path
    }

    async fn fetch_to(&self, name: &str, digest: Option<&str>) -> Result<snapshot::Fetched, Error> {
        let key = manifest_key(PREFIX);
        fetch(
            &self.store,
            BUCKET,
            &key,
            digest,
            &self.empty_folder(name),
            &|_, _| {},
        )
        .await
    }

    async fn keys(&self) -> Vec<String> {
        let listed = self.store.list_prefix(BUCKET, "microvms/", 10_000).await.unwrap();
        listed.into_iter().map(|entry| entry.key).collect()
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
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

fn same(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[tokio::test]
async fn a_snapshot_comes_back() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    let seen = Mutex::new(Vec::new());
    let progress = |done, total| seen.lock().unwrap().push((done, total));
    let published = upload(&bench.store, BUCKET, PREFIX, &head(), &sources, &progress)
        .await
        .unwrap();
    assert_eq!(published.manifest_key, format!("{PREFIX}/manifest.json"));
    let expected_total = 2 * CHUNK_BYTES - 100 + 13_000;
    assert_eq!(seen.lock().unwrap().first(), Some(&(0, expected_total)));
    assert_eq!(
        seen.lock().unwrap().last(),
        Some(&(expected_total, expected_total))
    );
    let keys = [
        "device/000000",
        "manifest.json",
        "memory-difference/000000",
        "memory-difference/000002",
    ];
    assert_eq!(bench.keys().await, keys.map(|key| format!("{PREFIX}/{key}")));
    let listed = bench.store.list_prefix(BUCKET, PREFIX, 100).await.unwrap();
    assert_eq!(
        published.stored_bytes,
        listed.iter().map(|entry| entry.size).sum::<u64>()
    );
    assert_eq!(published.files[1].objects, 2);

    let fetched = bench
        .fetch_to("fetched", Some(&published.manifest_digest))
        .await
        .unwrap();
    assert_eq!(fetched.manifest_digest, published.manifest_digest);
    assert_eq!(fetched.manifest.head, head());
    for source in &sources {
        assert!(
            same(&source.path, &fetched.paths[&source.kind]),
            "{}",
            source.kind
        );
    }
    let memory = &fetched.paths[&FileKind::MemoryDifference];
    assert!(
        allocated(memory) < MIB,
        "holes stay holes: {} bytes",
        allocated(memory)
    );
    let found = verify(&bench.store, BUCKET, &published.manifest_key, None, &|_, _| {})
        .await
        .unwrap();
    assert_eq!(found.problems, []);

    assert_eq!(
        delete(&bench.store, BUCKET, &published.manifest_key)
            .await
            .unwrap(),
        3
    );
    assert!(bench.keys().await.is_empty());
    assert_eq!(
        delete(&bench.store, BUCKET, &published.manifest_key)
            .await
            .unwrap(),
        0,
        "again is fine"
    );
    let error = bench.fetch_to("gone", None).await.unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { object } if object.ends_with("s1/manifest.json")),
        "{error}"
    );
}

#[tokio::test]
async fn files_of_zeros_and_empty_files_need_no_chunks() {
    let bench = Bench::new().await;
    let sources = [
        bench.file(FileKind::Memory, 10 * MIB, &[(5 * MIB, vec![0; 100_000])]),
        bench.file(FileKind::Device, 0, &[]),
    ];
    let published = bench.publish(&sources).await;
    assert_eq!(bench.keys().await, [published.manifest_key.clone()]);
    let fetched = bench.fetch_to("fetched", None).await.unwrap();
    assert_eq!(allocated(&fetched.paths[&FileKind::Memory]), 0);
    assert!(
        sources
            .iter()
            .all(|source| same(&source.path, &fetched.paths[&source.kind]))
    );
}

#[tokio::test]
async fn publishing_again_writes_nothing_and_publishing_something_else_is_refused() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    let first = bench.publish(&sources).await;
    // Not one write may happen from here on.
    bench.server.fail_puts_after(0);
    assert_eq!(bench.publish(&sources).await, first);

    let other = [
        bench.file(FileKind::Device, 13_000, &[(0, noise(9, 13_000))]),
        sources[0].clone(),
    ];
    let outcome = upload(&bench.store, BUCKET, PREFIX, &head(), &other, &|_, _| {}).await;
    assert!(
        matches!(outcome, Err(Error::AlreadyPublished { .. })),
        "{outcome:?}"
    );
    let outcome = discard_unpublished(&bench.store, BUCKET, PREFIX).await;
    assert!(
        matches!(outcome, Err(Error::AlreadyPublished { .. })),
        "{outcome:?}"
    );
    let found = verify(
        &bench.store,
        BUCKET,
        &first.manifest_key,
        Some(&first.manifest_digest),
        &|_, _| {},
    );
    assert_eq!(found.await.unwrap().problems, []);
}

#[tokio::test]
async fn an_upload_that_fails_anywhere_publishes_nothing() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    // Three chunks and the manifest, in this order.
    for writes in 0..=3 {
        bench.server.fail_puts_after(writes);
        let outcome = upload(&bench.store, BUCKET, PREFIX, &head(), &sources, &|_, _| {}).await;
        assert!(
            outcome.as_ref().is_err_and(Error::retryable),
            "after {writes} writes: {outcome:?}"
        );
        bench.server.heal();
        assert!(matches!(
            bench.fetch_to("none", None).await,
            Err(Error::NotFound { .. })
        ));
    }
    assert!(!bench.keys().await.is_empty(), "chunks stay for the next attempt");
    bench.publish(&sources).await;
    bench.fetch_to("done", None).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_is_dropped_publishes_nothing_and_can_be_discarded() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let progress = move |done, _| {
        let _ = tell.send(done);
    };
    let head = head();
    let mut running = Box::pin(upload(&bench.store, BUCKET, PREFIX, &head, &sources, &progress));
    loop {
        tokio::select! {
            biased;
            done = told.recv() => if done.unwrap() > 0 { break },
            _ = &mut running => panic!("the first chunk is reported before the end"),
        }
    }
    drop(running);
    assert!(matches!(
        bench.fetch_to("none", None).await,
        Err(Error::NotFound { .. })
    ));
    // A neighbour below the same prefix survives.
    bench
        .store
        .put(BUCKET, &format!("{PREFIX}/deeper/manifest.json"), "x".into())
        .await
        .unwrap();
    assert!(discard_unpublished(&bench.store, BUCKET, PREFIX).await.unwrap() > 0);
    assert_eq!(bench.keys().await, [format!("{PREFIX}/deeper/manifest.json")]);
}

#[tokio::test]
async fn every_kind_of_damage_is_found_and_named() {
    type Damage = fn(&Path);
    fn flip(path: &Path, at: impl Fn(u64) -> u64) {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = at(file.metadata().unwrap().len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
    fn resize(path: &Path, by: i64) {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_add_signed(by)).unwrap();
    }
    let damages: &[(&str, Damage)] = &[
        ("first byte", |path| flip(path, |_| 0)),
        ("a byte inside", |path| flip(path, |length| length / 2)),
        ("last byte", |path| flip(path, |length| length - 1)),
        ("one byte short", |path| resize(path, -1)),
        ("one byte long", |path| resize(path, 1)),
        ("empty", |path| resize(path, -1_000_000_000)),
        ("missing", |path| std::fs::remove_file(path).unwrap()),
    ];
    let bench = Bench::new().await;
    let published = bench.publish(&bench.sources()).await;
    let digest = Some(published.manifest_digest.as_str());
    for key in bench.keys().await {
        let path = bench.server.object_path(BUCKET, &key);
        let good = std::fs::read(&path).unwrap();
        let is_manifest = key == published.manifest_key;
        for (name, damage) in damages {
            damage(&path);
            let error = bench.fetch_to("fetched", digest).await.unwrap_err();
            let named = format!("s3://{BUCKET}/{key}");
            match &error {
                Error::NotFound { object } if is_manifest && *name == "missing" => assert_eq!(*object, named),
                Error::Corrupt { object, .. } => assert_eq!(*object, named, "{name}"),
                other => panic!("{key}, {name}: {other:?}"),
            }
            let found = verify(&bench.store, BUCKET, &published.manifest_key, digest, &|_, _| {}).await;
            if is_manifest {
                assert!(found.is_err(), "{name}");
            } else {
                let problems = found.unwrap().problems;
                assert_eq!(
                    problems
                        .iter()
                        .map(|problem| problem.object.as_str())
                        .collect::<Vec<_>>(),
                    [named]
                );
            }
            std::fs::write(&path, &good).unwrap();
        }
    }
    bench.fetch_to("fetched", digest).await.unwrap();
}

#[tokio::test]
async fn objects_that_changed_places_are_found() {
    let bench = Bench::new().await;
    let published = bench.publish(&bench.sources()).await;
    let path = |index: u32| {
        bench
            .server
            .object_path(BUCKET, &format!("{PREFIX}/memory-difference/{index:06}"))
    };
    let aside = bench.folder.path().join("aside");
    std::fs::rename(path(0), &aside).unwrap();
    std::fs::rename(path(2), path(0)).unwrap();
    std::fs::rename(&aside, path(2)).unwrap();
    assert!(matches!(
        bench.fetch_to("f", None).await,
        Err(Error::Corrupt { .. })
    ));
    let found = verify(&bench.store, BUCKET, &published.manifest_key, None, &|_, _| {})
        .await
        .unwrap();
    assert_eq!(found.problems.len(), 2);
}

/// A manifest and its chunks that fit each other, but are not what we write.
#[tokio::test]
async fn a_forged_snapshot_cannot_take_more_than_it_may() {
    let bench = Bench::new().await;
    let published = bench.publish(&bench.sources()).await;
    let (mut manifest, _) = read_manifest(&bench.store, BUCKET, &published.manifest_key, None)
        .await
        .unwrap();
    // 64 MiB of zeros in the place of one chunk, with its true digest in the manifest.
    let frame = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    let header = [
        b"TCK1".as_slice(),
        &(CHUNK_BYTES as u32).to_le_bytes(),
        &200_000u32.to_le_bytes(),
    ]
    .concat();
    let bomb = [header, frame].concat();
    let chunk = &mut manifest.files[1].chunks[0];
    chunk.stored_len = bomb.len() as u32;
    chunk.digest = blake3::hash(&bomb).to_hex().to_string();
    let (bytes, digest) = manifest.encode().unwrap();
    let key = format!("{PREFIX}/memory-difference/000000");
    bench.store.put(BUCKET, &key, bomb.into()).await.unwrap();
    bench
        .store
        .put(BUCKET, &published.manifest_key, bytes.into())
        .await
        .unwrap();
    let error = bench.fetch_to("fetched", Some(&digest)).await.unwrap_err();
    let expected = format!("s3://{BUCKET}/{key}");
    assert!(
        matches!(&error, Error::Corrupt { object, .. } if *object == expected),
        "{error}"
    );

    let long = vec![b' '; 9 << 20];
    bench
        .store
        .put(BUCKET, &published.manifest_key, long.into())
        .await
        .unwrap();
    let error = bench.fetch_to("fetched", None).await.unwrap_err();
    assert!(
        matches!(&error, Error::Corrupt { detail, .. } if detail.contains("too long")),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let bench = Bench::new().await;
    bench.publish(&bench.sources()).await;
    let error = bench
        .fetch_to("fetched", Some(&"00".repeat(32)))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Corrupt { object, .. } if object.ends_with("manifest.json")),
        "{error}"
    );
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    let twice = [sources[0].clone(), sources[0].clone()];
    let no_parent = ManifestHead {
        parent: None,
        ..head()
    };
    let nowhere = [FileSource {
        kind: FileKind::Disk,
        path: bench.folder.path().join("nowhere"),
    }];
    let (head, none) = (head(), &|_: u64, _: u64| {});
    let upload_of = |prefix, head, sources| upload(&bench.store, BUCKET, prefix, head, sources, none);
    assert!(matches!(
        upload_of(PREFIX, &head, &[]).await,
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(
        upload_of(PREFIX, &head, &twice).await,
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(
        upload_of(PREFIX, &no_parent, &sources).await,
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(
        upload_of("a/../b", &head, &sources).await,
        Err(Error::Store(_))
    ));
    assert!(matches!(
        upload_of(PREFIX, &head, &nowhere).await,
        Err(Error::File { .. })
    ));
    bench.publish(&sources).await;
    let full = bench.empty_folder("full");
    std::fs::write(full.join("something"), "x").unwrap();
    let outcome = fetch(&bench.store, BUCKET, &manifest_key(PREFIX), None, &full, none).await;
    assert!(matches!(outcome, Err(Error::Invalid { .. })), "{outcome:?}");
    assert!(matches!(
        delete(&bench.store, BUCKET, PREFIX).await,
        Err(Error::Invalid { .. })
    ));
}

#[tokio::test]
async fn holes_cost_no_time() {
    let bench = Bench::new().await;
    let pieces: Vec<_> = (0..6)
        .map(|index| (index * 1_300 * MIB + 12_345, noise(index, 1 << 20)))
        .collect();
    let source = bench.file(FileKind::Disk, 8 << 30, &pieces);
    let start = Instant::now();
    bench.publish(std::slice::from_ref(&source)).await;
    let up = start.elapsed();
    let fetched = bench.fetch_to("fetched", None).await.unwrap();
    let both = start.elapsed();
    assert!(
        both < Duration::from_secs(10),
        "8 GiB of holes took {up:?} up, {both:?} with the way back"
    );
    let path = &fetched.paths[&FileKind::Disk];
    assert!(allocated(path) < 8 * MIB);
    let file = File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8 << 30);
    for (offset, bytes) in pieces {
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, offset).unwrap();
        assert!(read == bytes, "at {offset}");
    }
}

/// Services spawn these.
#[tokio::test]
async fn futures_can_move_between_threads() {
    let bench = Bench::new().await;
    let (store, sources, folder) = (
        bench.store.clone(),
        bench.sources(),
        bench.empty_folder("fetched"),
    );
    let task = tokio::spawn(async move {
        let (head, prefix) = (head(), String::from(PREFIX));
        let tell = |_, _| {};
        let key = upload(&store, BUCKET, &prefix, &head, &sources, &tell)
            .await
            .unwrap()
            .manifest_key;
        fetch(&store, BUCKET, &key, None, &folder, &tell).await.unwrap();
        verify(&store, BUCKET, &key, None, &tell).await.unwrap();
        delete(&store, BUCKET, &key).await.unwrap();
        discard_unpublished(&store, BUCKET, &prefix).await.unwrap();
        store
            .put_file(BUCKET, "file", &sources[0].path, &tell)
            .await
            .unwrap();
        store
            .get_file(BUCKET, "file", &folder.join("file"), MIB << 10, &tell)
            .await
            .unwrap();
    });
    task.await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_sparse_file_comes_back(
        size in 0..20 * MIB,
        pieces in prop::collection::vec((0..20 * MIB, 1..200_000usize, any::<u64>()), 0..6),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let bench = Bench::new().await;
            let pieces: Vec<_> = pieces
                .into_iter()
                .filter(|(offset, length, _)| offset + (*length as u64) <= size)
                .map(|(offset, length, seed)| (offset, noise(seed, length)))
                .collect();
            let source = bench.file(FileKind::Memory, size, &pieces);
            bench.publish(std::slice::from_ref(&source)).await;
            let fetched = bench.fetch_to("fetched", None).await.unwrap();
            assert!(same(&source.path, &fetched.paths[&FileKind::Memory]));
        });
    }
}

/// Prints throughput; run with `--run-ignored only --no-capture`.
#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn throughput() {
    let bench = Bench::new().await;
    // Half of the pages noise, half of them text-like: about what guest memory is.
    let page = |seed: u64| {
        if seed.is_multiple_of(2) {
            noise(seed, 4096)
        } else {
            b"torpor! ".repeat(512)
        }
    };
    let data: Vec<u8> = (0..(256 * MIB) / 4096).flat_map(page).collect();
    let source = bench.file(FileKind::Memory, 512 * MIB, &[(100 * MIB, data)]);
    let start = Instant::now();
    let published = bench.publish(std::slice::from_ref(&source)).await;
    let up = start.elapsed();
    let start = Instant::now();
    bench.fetch_to("fetched", None).await.unwrap();
    let down = start.elapsed();
    let rate = |time: Duration| 256.0 / time.as_secs_f64();
    println!(
        "256 MiB of data, {} MiB stored: up {:.0} MiB/s, down {:.0} MiB/s",
        published.stored_bytes / MIB,
        rate(up),
        rate(down)
    );
}
