use proptest::prelude::*;

use super::*;

fn head() -> ManifestHead {
    ManifestHead {
        kind: SnapshotKind::Microvm,
        engine: "qemu 7.2.0".to_owned(),
        platform_fingerprint: "tcg-max".to_owned(),
        guest_bundle_version: "0011223344".to_owned(),
        memory_mib: 512,
        vcpu_count: 1,
        disk_size_bytes: 1 << 30,
        image_name: "app".to_owned(),
        image_version: "1.0".to_owned(),
        microvm_id: Some("microvm-1".to_owned()),
        generation: Some(3),
        sequence: Some(1),
        parent: Some(Parent {
            manifest_key: "images/app/1.0/manifest.json".to_owned(),
            manifest_digest: "ab".repeat(32),
        }),
        created_unix_ms: 1_700_000_000_000,
        labels: BTreeMap::from([("reason".to_owned(), "idle".to_owned())]),
    }
}

fn chunk(index: u32, raw_len: u32) -> ChunkEntry {
    ChunkEntry { index, raw_len, stored_len: 100, digest: digest(&index.to_le_bytes()) }
}

fn manifest() -> Manifest {
    let whole = CHUNK_BYTES as u32;
    Manifest {
        format: FORMAT,
        head: head(),
        files: vec![
            FileEntry { kind: FileKind::Device, logical_size: 13_000, chunks: vec![chunk(0, 13_000)] },
            FileEntry {
                kind: FileKind::MemoryDifference,
                logical_size: 3 * CHUNK_BYTES - 5,
                chunks: vec![chunk(0, whole), chunk(2, whole - 5)],
            },
        ],
    }
}

#[test]
fn the_bytes_are_canonical() {
    let (bytes, digest_of) = manifest().encode().unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    assert!(text.starts_with(r#"{"format":1,"head":{"kind":"microvm","engine":"qemu 7.2.0","#), "{text}");
    assert!(!text.contains('\n'));
    assert_eq!(digest_of, digest(&bytes));
    let read = Manifest::decode(&bytes).unwrap();
    assert_eq!(read, manifest());
    assert_eq!(read.encode().unwrap().0, bytes);
}

#[test]
fn names_in_json_and_in_keys_are_the_same() {
    for kind in FileKind::ALL {
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.name()));
    }
    assert_eq!(chunk_key("a/b", FileKind::DiskDifference, 12), "a/b/disk-difference/000012");
    assert_eq!(prefix_of(&manifest_key("a/b")).unwrap(), "a/b");
    for key in ["manifest.json", "/manifest.json", "a/manifest", "a/xmanifest.json", ""] {
        assert!(prefix_of(key).is_err(), "{key}");
    }
}

#[test]
fn rules() {
    type Change = fn(&mut Manifest);
    let cases: &[(&str, Change, &str)] = &[
        ("format", |m| m.format = 2, "format 2"),
        ("no files", |m| m.files.clear(), "no files"),
        ("a kind twice", |m| m.files[1].kind = FileKind::Device, "twice"),
        ("order of files", |m| m.files.swap(0, 1), "out of order"),
        ("no parent", |m| m.head.parent = None, "no parent"),
        ("parent's digest", |m| m.head.parent.as_mut().unwrap().manifest_digest.clear(), "parent"),
        ("file too large", |m| m.files[0].logical_size = FILE_BYTES_MAX + 1, "over the limit"),
        ("order of chunks", |m| m.files[1].chunks.swap(0, 1), "out of order"),
        ("a chunk twice", |m| m.files[1].chunks[1].index = 0, "out of order"),
        ("behind the end", |m| m.files[1].chunks[1].index = 3, "should hold 0 bytes"),
        ("far behind the end", |m| m.files[1].chunks[1].index = u32::MAX, "should hold 0 bytes"),
        ("raw length", |m| m.files[1].chunks[1].raw_len += 1, "should hold"),
        ("empty object", |m| m.files[0].chunks[0].stored_len = 0, "cannot be 0"),
        ("huge object", |m| m.files[0].chunks[0].stored_len = u32::MAX, "cannot be"),
        ("short digest", |m| m.files[0].chunks[0].digest.truncate(63), "digest"),
        ("digest in capitals", |m| m.files[0].chunks[0].digest = "AB".repeat(32), "digest"),
        ("long text", |m| m.head.engine = "x".repeat(2000), "longer than"),
        ("labels", |m| m.head.labels = (0..100).map(|n| (n.to_string(), String::new())).collect(), "labels"),
    ];
    for (name, change, expected) in cases {
        let mut changed = manifest();
        change(&mut changed);
        let bytes = serde_json::to_vec(&changed).unwrap();
        let detail = Manifest::decode(&bytes).unwrap_err();
        assert!(detail.contains(expected), "{name}: {detail}");
        assert!(matches!(changed.encode(), Err(Error::Invalid { .. })), "{name}");
    }
}

#[test]
fn fields_nobody_knows_are_refused() {
    let (bytes, _) = manifest().encode().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    for place in [r#"{"format""#, r#"{"kind":"microvm""#, r#"{"index""#, r#"{"manifest_key""#] {
        let changed = text.replacen(place, &format!(r#"{{"extra":1,{}"#, &place[1..]), 1);
        assert_ne!(changed, text, "{place}");
        let detail = Manifest::decode(changed.as_bytes()).unwrap_err();
        assert!(detail.contains("unknown field"), "{place}: {detail}");
    }
}

#[test]
fn the_largest_files_fit_into_a_manifest() {
    let chunks = (0..(32u64 << 30) / CHUNK_BYTES).map(|index| chunk(index as u32, CHUNK_BYTES as u32));
    let mut large = manifest();
    large.head.parent = None;
    large.files = [FileKind::Memory, FileKind::Disk]
        .map(|kind| FileEntry { kind, logical_size: 32 << 30, chunks: chunks.clone().collect() })
        .into();
    let (bytes, _) = large.encode().unwrap();
    assert!((bytes.len() as u64) < MANIFEST_BYTES_MAX / 2, "{} bytes", bytes.len());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (mut bytes, _) = manifest().encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = Manifest::decode(&bytes) {
            prop_assert!(read.encode().is_ok());
        }
    }
}
