use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MEMORY_PAGES: u64 = 600;
const MEMORY_BYTES: u64 = MEMORY_PAGES * PAGE_BYTES;

impl Pages for File {
    fn read(&self, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
        self.read_exact_at(bytes, at)
    }
}

fn memory(fill: u8) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![fill; MEMORY_BYTES as usize], 0).unwrap();
    file
}

fn ranges(pages: impl IntoIterator<Item = u64>) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if last.start + last.count == page => last.count += 1,
            _ => ranges.push(PageRange { start: page, count: 1 }),
        }
    }
    ranges
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY_BYTES as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever pages changed, to whatever they changed: applying the difference to the base gives the memory back.
    #[test]
    fn base_and_difference_make_the_memory(changes in prop::collection::btree_map(0..MEMORY_PAGES, 0_u8..3, 0..400)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("difference");
        let changes: BTreeMap<u64, u8> = changes;
        let changed = memory(7);
        for (page, fill) in &changes {
            changed.write_all_at(&[*fill; PAGE_BYTES as usize], page * PAGE_BYTES).unwrap();
        }
        let written = write(&path, &changed, MEMORY_BYTES, &ranges(changes.keys().copied())).unwrap();
        prop_assert_eq!(written.pages, changes.len() as u64);
        prop_assert_eq!(written.zero_pages, changes.values().filter(|fill| **fill == 0).count() as u64);
        prop_assert_eq!(written.bytes, path.metadata().unwrap().len());

        let restored = memory(7);
        Difference::open(&path, MEMORY_BYTES).unwrap().apply(&restored, 0).unwrap();
        prop_assert!(content(&restored) == content(&changed));
    }

    /// No change of one byte before the data goes unnoticed.
    #[test]
    fn a_changed_head_is_refused(at in 0_usize..(128 + 3 * 16), flip in 1_u8..) {
        let (_directory, path) = sample();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= flip;
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(is_refused(&path));
    }

    /// Bytes from anywhere are refused without a panic.
    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("difference");
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(is_refused(&path));
    }
}

fn is_refused(path: &Path) -> bool {
    matches!(Difference::open(path, MEMORY_BYTES), Err(Error::Corrupt { .. }))
}

/// Three runs: data, zero, data.
fn sample() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("difference");
    let changed = memory(1);
    changed.write_all_at(&[0; PAGE_BYTES as usize], 11 * PAGE_BYTES).unwrap();
    write(&path, &changed, MEMORY_BYTES, &[PageRange { start: 10, count: 3 }]).unwrap();
    (directory, path)
}

/// A head that is consistent with itself, but wrong for the guest: the digest alone would let it through.
fn forged(memory_bytes: u64, data_pages: u64, runs: &[(u64, u32, u32)]) -> Vec<u8> {
    let plain: Vec<Run> =
        runs.iter().map(|(start, count, _)| Run { start: *start, count: *count, kind: Kind::Data }).collect();
    let mut bytes = encode(memory_bytes, PAGE_BYTES, data_pages, &plain);
    for (index, (_, _, kind)) in runs.iter().enumerate() {
        let at = TABLE_OFFSET as usize + index * ENTRY_BYTES + 12;
        bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
    }
    let digest = digest(&bytes[..HEADER_DIGESTED_BYTES], &bytes[TABLE_OFFSET as usize..]);
    bytes[HEADER_DIGESTED_BYTES..HEADER_BYTES].copy_from_slice(digest.as_bytes());
    bytes.resize((PAGE_BYTES + data_pages * PAGE_BYTES) as usize, 9);
    bytes
}

#[test]
fn forged_files_are_refused_by_their_first_broken_rule() {
    let cases: &[(&str, Vec<u8>)] = &[
        ("made for another memory size", forged(MEMORY_BYTES * 2, 1, &[(0, 1, 0)])),
        ("a run outside guest memory", forged(MEMORY_BYTES, 2, &[(MEMORY_PAGES - 1, 2, 0)])),
        ("a run outside guest memory", forged(MEMORY_BYTES, 1, &[(u64::MAX, 1, 0)])),
        (
            "runs that are empty, out of order or overlapping",
            forged(MEMORY_BYTES, 2, &[(5, 1, 0), (5, 1, 0)]),
        ),
        (
            "runs that are empty, out of order or overlapping",
            forged(MEMORY_BYTES, 2, &[(5, 1, 0), (3, 1, 0)]),
        ),
        ("runs that are empty, out of order or overlapping", forged(MEMORY_BYTES, 0, &[(5, 0, 0)])),
        ("a run of unknown kind", forged(MEMORY_BYTES, 1, &[(5, 1, 2)])),
        ("the runs do not add up to the data", forged(MEMORY_BYTES, 1, &[(5, 1, 1)])),
        ("the runs do not add up to the data", forged(MEMORY_BYTES, 1, &[(5, 2, 0)])),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("difference");
    for (rule, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        match Difference::open(&path, MEMORY_BYTES) {
            Err(Error::Corrupt { reason, .. }) => assert_eq!(&reason, rule),
            other => panic!("{rule}: {other:?}"),
        }
    }
}

#[test]
fn a_cut_or_grown_file_is_refused() {
    let (_directory, path) = sample();
    let whole = path.metadata().unwrap().len();
    for length in [0, 1, 127, 128, 200, whole - PAGE_BYTES, whole - 1, whole + 1, whole + PAGE_BYTES] {
        let copy = path.with_extension("copy");
        std::fs::copy(&path, &copy).unwrap();
        File::options().write(true).open(&copy).unwrap().set_len(length).unwrap();
        let opened = Difference::open(&copy, MEMORY_BYTES);
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{length}: {opened:?}");
    }
}

#[test]
fn no_change_at_all_is_a_valid_difference() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("difference");
    let written = write(&path, &memory(1), MEMORY_BYTES, &[]).unwrap();
    assert_eq!((written.bytes, written.pages), (PAGE_BYTES, 0));
    Difference::open(&path, MEMORY_BYTES).unwrap().apply(&memory(1), 0).unwrap();
}
