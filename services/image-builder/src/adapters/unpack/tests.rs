use super::*;
use std::io::Cursor;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

enum Entry {
    File(&'static str, Vec<u8>, u32),
    Link(&'static str, &'static str),
    Directory(&'static str),
}
use Entry::{Directory, File as Plain, Link};

fn zipped(entries: &[Entry]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for entry in entries {
        match entry {
            Plain(name, body, mode) => {
                writer.start_file(*name, SimpleFileOptions::default().unix_permissions(*mode)).unwrap();
                writer.write_all(body).unwrap();
            }
            Link(name, target) => writer.add_symlink(*name, *target, SimpleFileOptions::default()).unwrap(),
            Directory(name) => writer.add_directory(*name, SimpleFileOptions::default()).unwrap(),
        }
    }
    writer.finish().unwrap().into_inner()
}

fn dockerfile() -> Entry {
    Plain("Dockerfile", b"FROM debian-12\n".to_vec(), 0o644)
}

fn limits() -> ArchiveSettings {
    ArchiveSettings {
        entries_max: 10,
        unpacked_bytes_max: 8 << 20,
        ratio_max: 100,
        ..ArchiveSettings::default()
    }
}

fn run(bytes: &[u8]) -> (tempfile::TempDir, Result<Unpacked, Error>) {
    run_with(bytes, &limits())
}

fn run_with(bytes: &[u8], limits: &ArchiveSettings) -> (tempfile::TempDir, Result<Unpacked, Error>) {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("a.zip");
    let target = directory.path().join("context");
    fs::write(&archive, bytes).unwrap();
    fs::create_dir(&target).unwrap();
    let owner = nix::unistd::getuid().as_raw();
    let result = unpack(&archive, &target, limits, owner);
    (directory, result)
}

/// What stands in an archive's directory of the entry called `name`, and in front of its bytes.
struct Headers {
    directory: usize,
    local: usize,
}

impl Headers {
    fn of(bytes: &[u8], name: &str) -> Self {
        let find = |magic: &[u8], length: usize| {
            let headers = (0..bytes.len() - length).filter(|at| bytes[*at..].starts_with(magic));
            headers.into_iter().find(|at| bytes[at + length..].starts_with(name.as_bytes())).unwrap()
        };
        Self { directory: find(b"PK\x01\x02", 46), local: find(b"PK\x03\x04", 30) }
    }
}

/// Overwrites what the entry called `name` says of its system (3 is Unix, 0 is DOS) and its attributes there.
fn with_attributes(mut bytes: Vec<u8>, name: &str, system: u8, attributes: u32) -> Vec<u8> {
    let Headers { directory, .. } = Headers::of(&bytes, name);
    bytes[directory + 5] = system;
    bytes[directory + 38..directory + 42].copy_from_slice(&attributes.to_le_bytes());
    bytes
}

/// Overwrites the flags and the method of the entry called `name`.
fn with_method(mut bytes: Vec<u8>, name: &str, flags: u16, method: u16) -> Vec<u8> {
    let Headers { directory, local } = Headers::of(&bytes, name);
    for (at, value) in
        [(directory + 8, flags), (directory + 10, method), (local + 6, flags), (local + 8, method)]
    {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn renamed(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    while let Some(at) = bytes.windows(from.len()).position(|window| window == from.as_bytes()) {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

#[test]
fn a_good_artifact_keeps_its_tree_and_exec_bits() {
    let (directory, result) = run(&zipped(&[
        dockerfile(),
        Directory("empty"),
        Plain("bin/run.sh", b"#!/bin/sh\n".to_vec(), 0o4755),
        Link("bin/link", "../Dockerfile"),
    ]));
    assert_eq!(result.unwrap(), Unpacked { entries: 4, bytes: 25, left_out: 0 });
    let context = directory.path().join("context");
    let mode = |path: &str| fs::metadata(context.join(path)).unwrap().permissions().mode();
    assert_eq!(mode("bin/run.sh") & 0o7777, 0o755, "exec bits stay, set-user-id goes");
    assert!(context.join("empty").is_dir());
    assert_eq!(fs::read_to_string(context.join("bin/link")).unwrap(), "FROM debian-12\n");
}

#[test]
fn evil_archives_are_refused_with_a_reason() {
    let bomb = || Plain("bomb", vec![0; 4 << 20], 0o644);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "Dockerfile"];
    let many = names.map(|name| Plain(name, vec![], 0o644));
    let mut truncated = zipped(&[dockerfile(), Plain("x", b"hello hello hello".to_vec(), 0o644)]);
    truncated.drain(20..30);
    let evil = zipped(&[dockerfile(), Plain("AA/evil", b"x".to_vec(), 0o644)]);
    let absolute = zipped(&[dockerfile(), Plain("Xetc/passwd", b"x".to_vec(), 0o644)]);
    let through = zipped(&[dockerfile(), Link("a", "/etc"), Plain("a/passwd", b"x".to_vec(), 0o644)]);
    let windows = zipped(&[dockerfile(), Plain("..\\..\\evil", b"x".to_vec(), 0o644)]);
    let twice = zipped(&[dockerfile(), Plain("same1", vec![], 0o644), Plain("same2", vec![], 0o644)]);
    let device =
        with_attributes(zipped(&[dockerfile(), Plain("disk", vec![], 0o644)]), "disk", 3, 0o060_644 << 16);
    for (name, bytes, expected) in [
        ("not a zip", b"hello".to_vec(), "not a zip archive"),
        ("empty", Vec::new(), "not a zip archive"),
        ("broken", truncated, "not a usable zip"),
        ("traversal", renamed(evil, "AA/evil", "../evil"), "leads outside"),
        ("absolute", renamed(absolute, "Xetc/passwd", "/etc/passwd"), "is absolute"),
        ("through a link", through, "both a file and a directory"),
        ("Windows traversal", windows, "leads outside"),
        ("device", device, "special file"),
        ("bomb", zipped(&[dockerfile(), bomb()]), "times its size"),
        ("too many", zipped(&many), "more than 10"),
        ("duplicate", renamed(twice, "same2", "same1"), "same name"),
        ("no Dockerfile", zipped(&[Plain("app.py", vec![], 0o644)]), "no file named Dockerfile"),
    ] {
        let (directory, result) = run(&bytes);
        let error = result.err().unwrap_or_else(|| panic!("{name} was accepted")).to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert!(!directory.path().join("evil").exists(), "{name} wrote outside");
    }
}

#[test]
fn headers_that_lie_about_sizes_are_no_help() {
    // The directory says that 4 MiB of zeroes are 5 bytes.
    let mut bytes = zipped(&[dockerfile(), Plain("bomb", vec![0; 4 << 20], 0o644)]);
    let size = (4u32 << 20).to_le_bytes();
    while let Some(at) = bytes.windows(4).position(|window| window == size) {
        bytes[at..at + 4].copy_from_slice(&5u32.to_le_bytes());
    }
    let (directory, result) = run(&bytes);
    assert!(result.is_err());
    let written = fs::metadata(directory.path().join("context/bomb")).map_or(0, |meta| meta.len());
    assert!(written <= 2 << 20, "{written} bytes were written");
}

/// All paths below the unpacked artifact, with the kind of each, its permissions, and where a link leads.
fn tree(directory: &tempfile::TempDir) -> Vec<String> {
    let root = directory.path().join("context");
    let mut found = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(&root).unwrap().display();
            if meta.is_symlink() {
                found.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            } else if meta.is_dir() {
                open.push(path.clone());
            } else {
                found.push(format!("{name} {:o}", meta.permissions().mode() & 0o7777));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn archives_of_other_systems_are_read_as_they_were_meant() {
    let text = || b"x".to_vec();
    // Windows' tools: backslashes, and no Unix modes.
    let windows =
        zipped(&[dockerfile(), Plain("app\\run.sh", text(), 0o644), Plain(".\\top", text(), 0o600)]);
    let windows = ["Dockerfile", "app\\run.sh", ".\\top"]
        .into_iter()
        .fold(windows, |bytes, name| with_attributes(bytes, name, 0, 0x20));
    // macOS' tar: names with "./", and its own files.
    let mac = zipped(&[
        Directory("./"),
        Plain("./Dockerfile", b"FROM debian-12\n".to_vec(), 0o644),
        Plain("./app/./x", text(), 0o640),
        Plain("__MACOSX/._Dockerfile", text(), 0o644),
        Plain(".DS_Store", text(), 0o644),
        Plain("e\u{301}", text(), 0o644),
        Plain("A", text(), 0o644),
        Plain("a", text(), 0o644),
    ]);
    // Debian's zip in the C locale: UTF-8, and nothing says so.
    let accents =
        zipped(&[dockerfile(), Plain("app/é.txt", text(), 0o644), Plain("日本.txt", text(), 0o644)]);
    let accents = with_method(with_method(accents, "app/é.txt", 0, 8), "日本.txt", 0, 8);
    let old = zipped(&[dockerfile(), Plain("caf?", text(), 0o644)]);
    let old = {
        let mut bytes = with_method(old, "caf?", 0, 8);
        while let Some(at) = bytes.windows(4).position(|window| window == b"caf?") {
            bytes[at + 3] = 0x82; // é in code page 437
        }
        bytes
    };
    let links = zipped(&[
        dockerfile(),
        Link("app/.venv/bin/python3", "/usr/bin/python3"),
        Link("packages/a/node_modules/b", "../../b"),
        Link("dangling", "nowhere/at/all"),
        Link("out", "../../../etc/passwd"),
    ]);
    for (name, bytes, expected) in [
        ("Windows", windows, vec!["Dockerfile 755", "app/run.sh 755", "top 755"]),
        (
            "macOS",
            mac,
            vec![".DS_Store 644", "A 644", "Dockerfile 644", "a 644", "app/x 640", "e\u{301} 644"],
        ),
        ("UTF-8", accents, vec!["Dockerfile 644", "app/é.txt 644", "日本.txt 644"]),
        ("code page 437", old, vec!["Dockerfile 644", "café 644"]),
        (
            "links",
            links,
            vec![
                "Dockerfile 644",
                "app/.venv/bin/python3 -> /usr/bin/python3",
                "dangling -> nowhere/at/all",
                "out -> ../../../etc/passwd",
                "packages/a/node_modules/b -> ../../b",
            ],
        ),
    ] {
        let (directory, result) = run(&bytes);
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tree(&directory), expected, "{name}");
    }
}

#[test]
fn what_is_not_read_here_is_named_before_anything_is_written() {
    let zip = || zipped(&[dockerfile(), Plain("app/data", b"some text".to_vec(), 0o644)]);
    for (flags, method, expected) in [
        (0, 9, "the entry 'app/data' uses Deflate64; make the zip with store or deflate"),
        (0, 12, "uses Bzip2"),
        (0, 14, "uses Lzma"),
        (0, 93, "uses Zstd"),
        (0, 95, "uses Xz"),
        (1, 8, "the entry 'app/data' is encrypted"),
    ] {
        let (directory, result) = run(&with_method(zip(), "app/data", flags, method));
        let error = result.err().unwrap_or_else(|| panic!("{expected}: accepted")).to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(tree(&directory), Vec::<String>::new(), "{expected}");
    }
    // The first part of a split one.
    let mut split = zip();
    let end = split.len() - 22;
    split[end + 4] = 1;
    let error = run(&split).1.err().unwrap_or_else(|| panic!("a split zip was accepted")).to_string();
    assert!(error.contains("not a usable zip"), "{error}");
}

#[test]
fn more_entries_than_sixteen_bits_count_are_read_and_bounded() {
    const ENTRIES: usize = 70_000;
    let names: Vec<String> = (1..ENTRIES).map(|number| format!("d{}/{number}", number % 100)).collect();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for name in std::iter::once("Dockerfile").chain(names.iter().map(String::as_str)) {
        writer
            .start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored))
            .unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    let limits = |entries_max| ArchiveSettings { entries_max, ..ArchiveSettings::default() };
    let (directory, result) = run_with(&bytes, &limits(ENTRIES));
    assert_eq!(result.unwrap().entries, ENTRIES);
    assert!(directory.path().join("context/d99/69999").is_file());
    let refused = |bytes: &[u8]| run_with(bytes, &limits(ENTRIES - 1)).1.err().unwrap().to_string();
    assert!(refused(&bytes).contains("more than 69999 entries"), "{}", refused(&bytes));
    // A small number in the end record hides no large one.
    let mut lying = bytes;
    let end = lying.len() - 22;
    lying[end + 8..end + 12].copy_from_slice(&[1, 0, 1, 0]);
    assert!(refused(&lying).contains("more than 69999 entries"), "{}", refused(&lying));
    lying[end - 12] ^= 1;
    assert!(refused(&lying).contains("not where it says"), "{}", refused(&lying));
}
