//! Disk copies and differences, on an XFS of our own and on whatever the
//! temporary folder is on. The XFS tests need root.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use snapshot::Error;
use snapshot::disk::{CopyMethod, DifferenceMethod, apply, difference, is_reflink_filesystem, reflink};
use testkit::Xfs;

use crate::world::{MIB, allocated, same};

const DISK_BYTES: u64 = 64 * MIB;

fn noise(seed: u8, length: u64) -> Vec<u8> {
    (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 7) as u8 ^ seed | 1).collect()
}

/// A disk with 8 MiB of data at 1 MiB and at 40 MiB.
fn make_base(folder: &Path) -> PathBuf {
    let path = folder.join("base");
    let file = File::create(&path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    file.write_all_at(&noise(1, 8 * MIB), MIB).unwrap();
    file.write_all_at(&noise(2, 8 * MIB), 40 * MIB).unwrap();
    file.sync_all().unwrap();
    path
}

/// What a guest does to a disk.
#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, length: u64, seed: u8 },
    WriteZeros { offset: u64, length: u64 },
    Discard { offset: u64, length: u64 },
    Allocate { offset: u64, length: u64 },
}

fn change(path: &Path, changes: &[Change]) {
    use rustix::fs::{FallocateFlags, fallocate};
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for change in changes {
        match *change {
            Change::Write { offset, length, seed } => {
                file.write_all_at(&noise(seed, length), offset).unwrap()
            }
            Change::WriteZeros { offset, length } => {
                file.write_all_at(&vec![0; length as usize], offset).unwrap();
            }
            Change::Discard { offset, length } => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, punch, offset, length).unwrap();
            }
            Change::Allocate { offset, length } => {
                fallocate(&file, FallocateFlags::KEEP_SIZE, offset, length).unwrap();
            }
        }
    }
}

/// Changes a copy, takes its difference, applies that to another copy and
/// compares. Returns the difference's stats.
fn round_trip(folder: &Path, changes: &[Change]) -> snapshot::disk::DifferenceStats {
    let base = make_base(folder);
    let [live, out, copy] = ["live", "out", "copy"].map(|name| folder.join(name));
    for path in [&live, &out, &copy] {
        let _ = std::fs::remove_file(path);
    }
    reflink(&base, &live).unwrap();
    change(&live, changes);
    let stats = difference(&live, &base, &out).unwrap();
    assert_eq!(stats.file_bytes, std::fs::metadata(&out).unwrap().len());
    reflink(&base, &copy).unwrap();
    apply(&out, &copy).unwrap();
    assert!(same(&live, &copy), "{changes:?}");
    // Once more is the same.
    apply(&out, &copy).unwrap();
    assert!(same(&live, &copy), "{changes:?}, applied twice");
    stats
}

fn cases() -> Vec<(&'static str, Vec<Change>, u64, u64)> {
    use Change::{Allocate, Discard, Write, WriteZeros};
    vec![
        ("nothing", vec![], 0, 0),
        ("one page in data", vec![Write { offset: 2 * MIB, length: 4096, seed: 9 }], 4096, 0),
        ("across a page border", vec![Write { offset: 2 * MIB + 4000, length: 200, seed: 9 }], 8192, 0),
        ("into a hole", vec![Write { offset: 20 * MIB, length: MIB, seed: 9 }], MIB, 0),
        ("the same bytes again", vec![Write { offset: MIB, length: 8 * MIB, seed: 1 }], 0, 0),
        ("discarded", vec![Discard { offset: 2 * MIB, length: MIB }], 0, MIB),
        ("discarded where nothing was", vec![Discard { offset: 20 * MIB, length: MIB }], 0, 0),
        ("zeros over data", vec![WriteZeros { offset: 41 * MIB, length: MIB }], 0, MIB),
        ("zeros into a hole", vec![WriteZeros { offset: 20 * MIB, length: MIB }], 0, 0),
        ("allocated, never written", vec![Allocate { offset: 20 * MIB, length: 4 * MIB }], 0, 0),
        (
            "allocated over a discard",
            vec![Discard { offset: 2 * MIB, length: MIB }, Allocate { offset: 2 * MIB, length: MIB }],
            0,
            MIB,
        ),
        ("the last page", vec![Write { offset: DISK_BYTES - 100, length: 100, seed: 3 }], 4096, 0),
    ]
}

#[test]
fn differences_by_extents() {
    let xfs = Xfs::mount(400);
    assert!(is_reflink_filesystem(&xfs.path()).unwrap());
    for (name, changes, data_bytes, zero_bytes) in cases() {
        let stats = round_trip(&xfs.path(), &changes);
        assert_eq!(stats.method, DifferenceMethod::Extents, "{name}");
        assert_eq!((stats.data_bytes, stats.zero_bytes), (data_bytes, zero_bytes), "{name}");
    }
}

#[test]
fn differences_by_contents() {
    // Memory never shares blocks.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    assert!(!is_reflink_filesystem(folder.path()).unwrap());
    for (name, changes, data_bytes, zero_bytes) in cases() {
        let stats = round_trip(folder.path(), &changes);
        assert_eq!(stats.method, DifferenceMethod::Contents, "{name}");
        assert_eq!((stats.data_bytes, stats.zero_bytes), (data_bytes, zero_bytes), "{name}");
    }
}

#[test]
fn blocks_shared_with_something_else_still_differ() {
    let xfs = Xfs::mount(400);
    let base = make_base(&xfs.path());
    let [live, other, out] = ["live", "other", "out"].map(|name| xfs.path().join(name));
    reflink(&base, &live).unwrap();
    change(&live, &[Change::Write { offset: 2 * MIB, length: MIB, seed: 7 }]);
    // A copy of the live disk makes every block of it shared; not with the base.
    reflink(&live, &other).unwrap();
    let stats = difference(&live, &base, &out).unwrap();
    assert_eq!((stats.method, stats.data_bytes), (DifferenceMethod::Extents, MIB));
}

#[test]
fn copies_share_blocks_where_they_can() {
    let xfs = Xfs::mount(400);
    let base = make_base(&xfs.path());
    let copy = xfs.path().join("copy");
    let free = |path: &Path| rustix::fs::statvfs(path).unwrap().f_bfree;
    let before = free(&base);
    assert_eq!(reflink(&base, &copy).unwrap(), CopyMethod::Reflink);
    assert!(before - free(&base) < 256, "no room was taken");
    assert!(same(&base, &copy));
    let error = reflink(&base, &copy).unwrap_err();
    assert!(matches!(&error, Error::File { path, .. } if *path == copy), "never over a file: {error}");

    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let far = folder.path().join("far");
    assert_eq!(reflink(&base, &far).unwrap(), CopyMethod::SparseCopy);
    assert!(same(&base, &far));
    assert!(allocated(&far) <= 17 * MIB, "holes stay holes");
    let near = folder.path().join("near");
    assert_eq!(reflink(&far, &near).unwrap(), CopyMethod::SparseCopy);
    assert!(same(&base, &near));
}

#[test]
fn damaged_differences_touch_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let base = make_base(folder.path());
    let [live, out, copy] = ["live", "out", "copy"].map(|name| folder.path().join(name));
    reflink(&base, &live).unwrap();
    change(
        &live,
        &[
            Change::Write { offset: 2 * MIB, length: 8192, seed: 7 },
            Change::Discard { offset: 41 * MIB, length: MIB },
        ],
    );
    difference(&live, &base, &out).unwrap();
    reflink(&base, &copy).unwrap();
    let good = std::fs::read(&out).unwrap();
    assert_eq!(good.len(), 72 + 8192 + 2 * 24);
    let mut damaged: Vec<Vec<u8>> = vec![vec![], good[..71].to_vec(), good[..good.len() - 1].to_vec()];
    damaged.push([good.as_slice(), &[0]].concat());
    // Every byte of the header and of the table, and some of the data.
    let places = (0..72).chain((72..72 + 8192).step_by(1000)).chain(72 + 8192..good.len());
    for place in places.filter(|place| !(16..24).contains(place)) {
        let mut bytes = good.clone();
        bytes[place] ^= 0x10;
        damaged.push(bytes);
    }
    for bytes in damaged {
        std::fs::write(&out, &bytes).unwrap();
        let error = apply(&out, &copy).unwrap_err();
        assert!(
            matches!(&error, Error::Corrupt { object, .. } if *object == out.display().to_string()),
            "{error}"
        );
    }
    assert!(same(&base, &copy), "the disk is as it was");
    std::fs::write(&out, &good).unwrap();
    apply(&out, &copy).unwrap();
    assert!(same(&live, &copy));
}

#[test]
fn disks_of_other_sizes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = make_base(folder.path());
    let [live, out] = ["live", "out"].map(|name| folder.path().join(name));
    reflink(&base, &live).unwrap();
    difference(&live, &base, &out).unwrap();
    OpenOptions::new().write(true).open(&live).unwrap().set_len(DISK_BYTES + 4096).unwrap();
    assert!(matches!(apply(&out, &live), Err(Error::Invalid { .. })));
    std::fs::remove_file(&out).unwrap();
    assert!(matches!(difference(&live, &base, &out), Err(Error::Invalid { .. })));
    assert!(!out.exists());
}

fn any_change() -> impl Strategy<Value = Change> {
    let place = (0..DISK_BYTES - 3 * MIB, 1..2 * MIB);
    // Holes and allocations on disk blocks, as guests ask for them.
    let blocks = (0..(DISK_BYTES / 4096) - 600, 1..512u64).prop_map(|(at, count)| (at * 4096, count * 4096));
    prop_oneof![
        3 => (place.clone(), any::<u8>()).prop_map(|((offset, length), seed)| Change::Write { offset, length, seed }),
        1 => place.prop_map(|(offset, length)| Change::WriteZeros { offset, length }),
        2 => blocks.clone().prop_map(|(offset, length)| Change::Discard { offset, length }),
        1 => blocks.prop_map(|(offset, length)| Change::Allocate { offset, length }),
    ]
}

#[test]
fn any_changes_come_back() {
    let xfs = Xfs::mount(400);
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(12)
    });
    let outcome = runner.run(&prop::collection::vec(any_change(), 0..10), |changes| {
        let by_extents = round_trip(&xfs.path(), &changes);
        let by_contents = round_trip(memory.path(), &changes);
        prop_assert_eq!(by_extents.data_bytes, by_contents.data_bytes);
        prop_assert_eq!(by_extents.zero_bytes, by_contents.zero_bytes);
        Ok(())
    });
    outcome.unwrap();
}
