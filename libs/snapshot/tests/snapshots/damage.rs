//! Objects that are not what they were when they were stored.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use snapshot::{CHUNK_BYTES, Error, read_manifest, verify};

use crate::world::{BUCKET, PREFIX, World};

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
    let world = World::new().await;
    let published = world.publish(&world.sources()).await;
    let digest = Some(published.manifest_digest.as_str());
    for key in world.keys().await {
        let path = world.server.object_path(BUCKET, &key);
        let good = std::fs::read(&path).unwrap();
        let is_manifest = key == published.manifest_key;
        for (name, damage) in damages {
            damage(&path);
            let error = world.fetch_to("fetched", digest).await.unwrap_err();
            let named = format!("s3://{BUCKET}/{key}");
            match &error {
                Error::NotFound { object } if is_manifest && *name == "missing" => assert_eq!(*object, named),
                Error::Corrupt { object, .. } => assert_eq!(*object, named, "{name}"),
                other => panic!("{key}, {name}: {other:?}"),
            }
            let found = verify(&world.store, BUCKET, &published.manifest_key, digest, &|_, _| {}).await;
            if is_manifest {
                assert!(found.is_err(), "{name}");
            } else {
                let problems = found.unwrap().problems;
                assert_eq!(
                    problems.iter().map(|problem| problem.object.as_str()).collect::<Vec<_>>(),
                    [named]
                );
            }
            std::fs::write(&path, &good).unwrap();
        }
    }
    world.fetch_to("fetched", digest).await.unwrap();
}

#[tokio::test]
async fn objects_that_changed_places_are_found() {
    let world = World::new().await;
    let published = world.publish(&world.sources()).await;
    let path =
        |index: u32| world.server.object_path(BUCKET, &format!("{PREFIX}/memory-difference/{index:06}"));
    let aside = world.folder.path().join("aside");
    std::fs::rename(path(0), &aside).unwrap();
    std::fs::rename(path(2), path(0)).unwrap();
    std::fs::rename(&aside, path(2)).unwrap();
    assert!(matches!(world.fetch_to("f", None).await, Err(Error::Corrupt { .. })));
    let found = verify(&world.store, BUCKET, &published.manifest_key, None, &|_, _| {}).await.unwrap();
    assert_eq!(found.problems.len(), 2);
}

/// A manifest and its chunks that fit each other, but are not what we write.
#[tokio::test]
async fn a_forged_snapshot_cannot_take_more_than_it_may() {
    let world = World::new().await;
    let published = world.publish(&world.sources()).await;
    let (mut manifest, _) = read_manifest(&world.store, BUCKET, &published.manifest_key, None).await.unwrap();
    // 64 MiB of zeros in the place of one chunk, with its true digest in the manifest.
    let frame = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    let header =
        [b"TCK1".as_slice(), &(CHUNK_BYTES as u32).to_le_bytes(), &200_000u32.to_le_bytes()].concat();
    let bomb = [header, frame].concat();
    let chunk = &mut manifest.files[1].chunks[0];
    chunk.stored_len = bomb.len() as u32;
    chunk.digest = blake3::hash(&bomb).to_hex().to_string();
    let (bytes, digest) = manifest.encode().unwrap();
    let key = format!("{PREFIX}/memory-difference/000000");
    world.store.put(BUCKET, &key, bomb.into()).await.unwrap();
    world.store.put(BUCKET, &published.manifest_key, bytes.into()).await.unwrap();
    let error = world.fetch_to("fetched", Some(&digest)).await.unwrap_err();
    let expected = format!("s3://{BUCKET}/{key}");
    assert!(matches!(&error, Error::Corrupt { object, .. } if *object == expected), "{error}");

    let long = vec![b' '; 9 << 20];
    world.store.put(BUCKET, &published.manifest_key, long.into()).await.unwrap();
    let error = world.fetch_to("fetched", None).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt { detail, .. } if detail.contains("too long")), "{error}");
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let world = World::new().await;
    world.publish(&world.sources()).await;
    let error = world.fetch_to("fetched", Some(&"00".repeat(32))).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt { object, .. } if object.ends_with("manifest.json")), "{error}");
}
