//! Snapshots against a real S3 server in the process, and copies and differences of disks.

#![allow(clippy::unwrap_used)] // Helpers of tests may panic like the tests themselves.

mod damage;
mod disk;
mod world;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use snapshot::{
    CHUNK_BYTES, Error, FileKind, FileSource, ManifestHead, delete, discard_unpublished, fetch, manifest_key,
    upload, verify,
};
use world::{BUCKET, MIB, PREFIX, World, allocated, head, noise, same};

#[tokio::test]
async fn a_snapshot_comes_back() {
    let world = World::new().await;
    let sources = world.sources();
    let seen = Mutex::new(Vec::new());
    let progress = |done, total| seen.lock().unwrap().push((done, total));
    let published = upload(&world.store, BUCKET, PREFIX, &head(), &sources, &progress).await.unwrap();
    assert_eq!(published.manifest_key, format!("{PREFIX}/manifest.json"));
    let expected_total = 2 * CHUNK_BYTES - 100 + 13_000;
    assert_eq!(seen.lock().unwrap().first(), Some(&(0, expected_total)));
    assert_eq!(seen.lock().unwrap().last(), Some(&(expected_total, expected_total)));
    let keys = ["device/000000", "manifest.json", "memory-difference/000000", "memory-difference/000002"];
    assert_eq!(world.keys().await, keys.map(|key| format!("{PREFIX}/{key}")));
    let listed = world.store.list_prefix(BUCKET, PREFIX, 100).await.unwrap();
    assert_eq!(published.stored_bytes, listed.iter().map(|entry| entry.size).sum::<u64>());
    assert_eq!(published.files[1].objects, 2);

    let fetched = world.fetch_to("fetched", Some(&published.manifest_digest)).await.unwrap();
    assert_eq!(fetched.manifest_digest, published.manifest_digest);
    assert_eq!(fetched.manifest.head, head());
    for source in &sources {
        assert!(same(&source.path, &fetched.paths[&source.kind]), "{}", source.kind);
    }
    let memory = &fetched.paths[&FileKind::MemoryDifference];
    assert!(allocated(memory) < MIB, "holes stay holes: {} bytes", allocated(memory));
    let found = verify(&world.store, BUCKET, &published.manifest_key, None, &|_, _| {}).await.unwrap();
    assert_eq!(found.problems, []);

    assert_eq!(delete(&world.store, BUCKET, &published.manifest_key).await.unwrap(), 3);
    assert!(world.keys().await.is_empty());
    assert_eq!(delete(&world.store, BUCKET, &published.manifest_key).await.unwrap(), 0, "again is fine");
    let error = world.fetch_to("gone", None).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound { object } if object.ends_with("s1/manifest.json")), "{error}");
}

#[tokio::test]
async fn files_of_zeros_and_empty_files_need_no_chunks() {
    let world = World::new().await;
    let sources = [
        world.file(FileKind::Memory, 10 * MIB, &[(5 * MIB, vec![0; 100_000])]),
        world.file(FileKind::Device, 0, &[]),
    ];
    let published = world.publish(&sources).await;
    assert_eq!(world.keys().await, std::slice::from_ref(&published.manifest_key));
    let fetched = world.fetch_to("fetched", None).await.unwrap();
    assert_eq!(allocated(&fetched.paths[&FileKind::Memory]), 0);
    assert!(sources.iter().all(|source| same(&source.path, &fetched.paths[&source.kind])));
}

#[tokio::test]
async fn publishing_again_writes_nothing_and_publishing_something_else_is_refused() {
    let world = World::new().await;
    let sources = world.sources();
    let first = world.publish(&sources).await;
    // Not one write may happen from here on.
    world.server.fail_puts_after(0);
    assert_eq!(world.publish(&sources).await, first);

    let other = [world.file(FileKind::Device, 13_000, &[(0, noise(9, 13_000))]), sources[0].clone()];
    let outcome = upload(&world.store, BUCKET, PREFIX, &head(), &other, &|_, _| {}).await;
    assert!(matches!(outcome, Err(Error::AlreadyPublished { .. })), "{outcome:?}");
    let outcome = discard_unpublished(&world.store, BUCKET, PREFIX).await;
    assert!(matches!(outcome, Err(Error::AlreadyPublished { .. })), "{outcome:?}");
    let found = verify(&world.store, BUCKET, &first.manifest_key, Some(&first.manifest_digest), &|_, _| {});
    assert_eq!(found.await.unwrap().problems, []);
}

#[tokio::test]
async fn an_upload_that_fails_anywhere_publishes_nothing() {
    let world = World::new().await;
    let sources = world.sources();
    // Three chunks and the manifest, in this order.
    for writes in 0..=3 {
        world.server.fail_puts_after(writes);
        let outcome = upload(&world.store, BUCKET, PREFIX, &head(), &sources, &|_, _| {}).await;
        assert!(outcome.as_ref().is_err_and(Error::retryable), "after {writes} writes: {outcome:?}");
        world.server.heal();
        assert!(matches!(world.fetch_to("none", None).await, Err(Error::NotFound { .. })));
    }
    assert!(!world.keys().await.is_empty(), "chunks stay for the next attempt");
    world.publish(&sources).await;
    world.fetch_to("done", None).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_is_dropped_publishes_nothing_and_can_be_discarded() {
    let world = World::new().await;
    let sources = world.sources();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let progress = move |done, _| {
        let _ = tell.send(done);
    };
    let head = head();
    let mut running = Box::pin(upload(&world.store, BUCKET, PREFIX, &head, &sources, &progress));
    loop {
        tokio::select! {
            biased;
            done = told.recv() => if done.unwrap() > 0 { break },
            _ = &mut running => panic!("the first chunk is reported before the end"),
        }
    }
    drop(running);
    assert!(matches!(world.fetch_to("none", None).await, Err(Error::NotFound { .. })));
    // A neighbour below the same prefix survives.
    world.store.put(BUCKET, &format!("{PREFIX}/deeper/manifest.json"), "x".into()).await.unwrap();
    assert!(discard_unpublished(&world.store, BUCKET, PREFIX).await.unwrap() > 0);
    assert_eq!(world.keys().await, [format!("{PREFIX}/deeper/manifest.json")]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let world = World::new().await;
    let sources = world.sources();
    let twice = [sources[0].clone(), sources[0].clone()];
    let no_parent = ManifestHead { parent: None, ..head() };
    let nowhere = [FileSource { kind: FileKind::Disk, path: world.folder.path().join("nowhere") }];
    let (head, none) = (head(), &|_: u64, _: u64| {});
    let upload_of = |prefix, head, sources| upload(&world.store, BUCKET, prefix, head, sources, none);
    assert!(matches!(upload_of(PREFIX, &head, &[]).await, Err(Error::Invalid { .. })));
    assert!(matches!(upload_of(PREFIX, &head, &twice).await, Err(Error::Invalid { .. })));
    assert!(matches!(upload_of(PREFIX, &no_parent, &sources).await, Err(Error::Invalid { .. })));
    assert!(matches!(upload_of("a/../b", &head, &sources).await, Err(Error::Store(_))));
    assert!(matches!(upload_of(PREFIX, &head, &nowhere).await, Err(Error::File { .. })));
    world.publish(&sources).await;
    let full = world.empty_folder("full");
    std::fs::write(full.join("something"), "x").unwrap();
    let outcome = fetch(&world.store, BUCKET, &manifest_key(PREFIX), None, &full, none).await;
    assert!(matches!(outcome, Err(Error::Invalid { .. })), "{outcome:?}");
    assert!(matches!(delete(&world.store, BUCKET, PREFIX).await, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn holes_cost_no_time() {
    let world = World::new().await;
    let pieces: Vec<_> = (0..6).map(|index| (index * 1_300 * MIB + 12_345, noise(index, 1 << 20))).collect();
    let source = world.file(FileKind::Disk, 8 << 30, &pieces);
    let start = Instant::now();
    world.publish(std::slice::from_ref(&source)).await;
    let up = start.elapsed();
    let fetched = world.fetch_to("fetched", None).await.unwrap();
    let both = start.elapsed();
    assert!(both < Duration::from_secs(10), "8 GiB of holes took {up:?} up, {both:?} with the way back");
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
    let world = World::new().await;
    let (store, sources, folder) = (world.store.clone(), world.sources(), world.empty_folder("fetched"));
    let task = tokio::spawn(async move {
        let (head, prefix) = (head(), String::from(PREFIX));
        let tell = |_, _| {};
        let key = upload(&store, BUCKET, &prefix, &head, &sources, &tell).await.unwrap().manifest_key;
        fetch(&store, BUCKET, &key, None, &folder, &tell).await.unwrap();
        verify(&store, BUCKET, &key, None, &tell).await.unwrap();
        delete(&store, BUCKET, &key).await.unwrap();
        discard_unpublished(&store, BUCKET, &prefix).await.unwrap();
        store.put_file(BUCKET, "file", &sources[0].path, &tell).await.unwrap();
        store.get_file(BUCKET, "file", &folder.join("file"), MIB << 10, &tell).await.unwrap();
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
            let world = World::new().await;
            let pieces: Vec<_> = pieces
                .into_iter()
                .filter(|(offset, length, _)| offset + (*length as u64) <= size)
                .map(|(offset, length, seed)| (offset, noise(seed, length)))
                .collect();
            let source = world.file(FileKind::Memory, size, &pieces);
            world.publish(std::slice::from_ref(&source)).await;
            let fetched = world.fetch_to("fetched", None).await.unwrap();
            assert!(same(&source.path, &fetched.paths[&FileKind::Memory]));
        });
    }
}

/// Prints throughput; run with `--run-ignored only --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn throughput() {
    let world = World::new().await;
    // Half of the pages noise, half of them text-like: about what guest memory is.
    let page = |seed: u64| {
        if seed.is_multiple_of(2) { noise(seed, 4096) } else { b"torpor! ".repeat(512) }
    };
    let data: Vec<u8> = (0..(256 * MIB) / 4096).flat_map(page).collect();
    let source = world.file(FileKind::Memory, 512 * MIB, &[(100 * MIB, data)]);
    let start = Instant::now();
    let published = world.publish(std::slice::from_ref(&source)).await;
    let up = start.elapsed();
    let start = Instant::now();
    world.fetch_to("fetched", None).await.unwrap();
    let down = start.elapsed();
    let rate = |time: Duration| 256.0 / time.as_secs_f64();
    println!(
        "256 MiB of data, {} MiB stored: up {:.0} MiB/s, down {:.0} MiB/s",
        published.stored_bytes / MIB,
        rate(up),
        rate(down)
    );
}
