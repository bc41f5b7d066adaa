//! Snapshots against a real S3 server in the process.

#![allow(clippy::unwrap_used)] // Helpers of tests may panic like the tests themselves.

mod bench;
mod damage;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bench::{BUCKET, Bench, MIB, PREFIX, allocated, head, noise, same};
use proptest::prelude::*;
use snapshot::{
    CHUNK_BYTES, Error, FileKind, FileSource, ManifestHead, delete, discard_unpublished, fetch, manifest_key,
    upload, verify,
};

#[tokio::test]
async fn a_snapshot_comes_back() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    let seen = Mutex::new(Vec::new());
    let progress = |done, total| seen.lock().unwrap().push((done, total));
    let published = upload(&bench.store, BUCKET, PREFIX, &head(), &sources, &progress).await.unwrap();
    assert_eq!(published.manifest_key, format!("{PREFIX}/manifest.json"));
    let expected_total = 2 * CHUNK_BYTES - 100 + 13_000;
    assert_eq!(seen.lock().unwrap().first(), Some(&(0, expected_total)));
    assert_eq!(seen.lock().unwrap().last(), Some(&(expected_total, expected_total)));
    let keys = ["device/000000", "manifest.json", "memory-difference/000000", "memory-difference/000002"];
    assert_eq!(bench.keys().await, keys.map(|key| format!("{PREFIX}/{key}")));
    let listed = bench.store.list_prefix(BUCKET, PREFIX, 100).await.unwrap();
    assert_eq!(published.stored_bytes, listed.iter().map(|entry| entry.size).sum::<u64>());
    assert_eq!(published.files[1].objects, 2);

    let fetched = bench.fetch_to("fetched", Some(&published.manifest_digest)).await.unwrap();
    assert_eq!(fetched.manifest_digest, published.manifest_digest);
    assert_eq!(fetched.manifest.head, head());
    for source in &sources {
        assert!(same(&source.path, &fetched.paths[&source.kind]), "{}", source.kind);
    }
    let memory = &fetched.paths[&FileKind::MemoryDifference];
    assert!(allocated(memory) < MIB, "holes stay holes: {} bytes", allocated(memory));
    let found = verify(&bench.store, BUCKET, &published.manifest_key, None, &|_, _| {}).await.unwrap();
    assert_eq!(found.problems, []);

    assert_eq!(delete(&bench.store, BUCKET, &published.manifest_key).await.unwrap(), 3);
    assert!(bench.keys().await.is_empty());
    assert_eq!(delete(&bench.store, BUCKET, &published.manifest_key).await.unwrap(), 0, "again is fine");
    let error = bench.fetch_to("gone", None).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound { object } if object.ends_with("s1/manifest.json")), "{error}");
}

#[tokio::test]
async fn files_of_zeros_and_empty_files_need_no_chunks() {
    let bench = Bench::new().await;
    let sources = [
        bench.file(FileKind::Memory, 10 * MIB, &[(5 * MIB, vec![0; 100_000])]),
        bench.file(FileKind::Device, 0, &[]),
    ];
    let published = bench.publish(&sources).await;
    assert_eq!(bench.keys().await, std::slice::from_ref(&published.manifest_key));
    let fetched = bench.fetch_to("fetched", None).await.unwrap();
    assert_eq!(allocated(&fetched.paths[&FileKind::Memory]), 0);
    assert!(sources.iter().all(|source| same(&source.path, &fetched.paths[&source.kind])));
}

#[tokio::test]
async fn publishing_again_writes_nothing_and_publishing_something_else_is_refused() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    let first = bench.publish(&sources).await;
    // Not one write may happen from here on.
    bench.server.fail_puts_after(0);
    assert_eq!(bench.publish(&sources).await, first);

    let other = [bench.file(FileKind::Device, 13_000, &[(0, noise(9, 13_000))]), sources[0].clone()];
    let outcome = upload(&bench.store, BUCKET, PREFIX, &head(), &other, &|_, _| {}).await;
    assert!(matches!(outcome, Err(Error::AlreadyPublished { .. })), "{outcome:?}");
    let outcome = discard_unpublished(&bench.store, BUCKET, PREFIX).await;
    assert!(matches!(outcome, Err(Error::AlreadyPublished { .. })), "{outcome:?}");
    let found = verify(&bench.store, BUCKET, &first.manifest_key, Some(&first.manifest_digest), &|_, _| {});
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
        assert!(outcome.as_ref().is_err_and(Error::retryable), "after {writes} writes: {outcome:?}");
        bench.server.heal();
        assert!(matches!(bench.fetch_to("none", None).await, Err(Error::NotFound { .. })));
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
    assert!(matches!(bench.fetch_to("none", None).await, Err(Error::NotFound { .. })));
    // A neighbour below the same prefix survives.
    bench.store.put(BUCKET, &format!("{PREFIX}/deeper/manifest.json"), "x".into()).await.unwrap();
    assert!(discard_unpublished(&bench.store, BUCKET, PREFIX).await.unwrap() > 0);
    assert_eq!(bench.keys().await, [format!("{PREFIX}/deeper/manifest.json")]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let bench = Bench::new().await;
    let sources = bench.sources();
    let twice = [sources[0].clone(), sources[0].clone()];
    let no_parent = ManifestHead { parent: None, ..head() };
    let nowhere = [FileSource { kind: FileKind::Disk, path: bench.folder.path().join("nowhere") }];
    let (head, none) = (head(), &|_: u64, _: u64| {});
    let upload_of = |prefix, head, sources| upload(&bench.store, BUCKET, prefix, head, sources, none);
    assert!(matches!(upload_of(PREFIX, &head, &[]).await, Err(Error::Invalid { .. })));
    assert!(matches!(upload_of(PREFIX, &head, &twice).await, Err(Error::Invalid { .. })));
    assert!(matches!(upload_of(PREFIX, &no_parent, &sources).await, Err(Error::Invalid { .. })));
    assert!(matches!(upload_of("a/../b", &head, &sources).await, Err(Error::Store(_))));
    assert!(matches!(upload_of(PREFIX, &head, &nowhere).await, Err(Error::File { .. })));
    bench.publish(&sources).await;
    let full = bench.empty_folder("full");
    std::fs::write(full.join("something"), "x").unwrap();
    let outcome = fetch(&bench.store, BUCKET, &manifest_key(PREFIX), None, &full, none).await;
    assert!(matches!(outcome, Err(Error::Invalid { .. })), "{outcome:?}");
    assert!(matches!(delete(&bench.store, BUCKET, PREFIX).await, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn holes_cost_no_time() {
    let bench = Bench::new().await;
    let pieces: Vec<_> = (0..6).map(|index| (index * 1_300 * MIB + 12_345, noise(index, 1 << 20))).collect();
    let source = bench.file(FileKind::Disk, 8 << 30, &pieces);
    let start = Instant::now();
    bench.publish(std::slice::from_ref(&source)).await;
    let up = start.elapsed();
    let fetched = bench.fetch_to("fetched", None).await.unwrap();
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
    let bench = Bench::new().await;
    let (store, sources, folder) = (bench.store.clone(), bench.sources(), bench.empty_folder("fetched"));
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
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn throughput() {
    let bench = Bench::new().await;
    // Half of the pages noise, half of them text-like: about what guest memory is.
    let page = |seed: u64| {
        if seed.is_multiple_of(2) { noise(seed, 4096) } else { b"torpor! ".repeat(512) }
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
