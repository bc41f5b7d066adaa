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
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("a.zip");
    let target = directory.path().join("context");
    fs::write(&archive, bytes).unwrap();
    fs::create_dir(&target).unwrap();
    let owner = nix::unistd::getuid().as_raw();
    let result = unpack(&archive, &target, &limits(), owner);
    (directory, result)
}

/// Overwrites the file type bits of the entry called `name`.
fn with_mode(mut bytes: Vec<u8>, name: &str, mode: u32) -> Vec<u8> {
    let header = bytes
        .windows(4)
        .enumerate()
        .filter(|(_, window)| *window == b"PK\x01\x02")
        .map(|(at, _)| at)
        .find(|at| bytes[at + 46..].starts_with(name.as_bytes()))
        .unwrap();
    bytes[header + 5] = 3; // made on Unix
    bytes[header + 38..header + 42].copy_from_slice(&(mode << 16).to_le_bytes());
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
    assert_eq!(result.unwrap(), Unpacked { entries: 4, bytes: 25 });
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
    let twice = zipped(&[dockerfile(), Plain("same1", vec![], 0o644), Plain("same2", vec![], 0o644)]);
    let device = with_mode(zipped(&[dockerfile(), Plain("disk", vec![], 0o644)]), "disk", 0o060_644);
    for (name, bytes, expected) in [
        ("not a zip", b"hello".to_vec(), "not a zip archive"),
        ("empty", Vec::new(), "not a zip archive"),
        ("broken", truncated, "not a usable zip"),
        ("traversal", renamed(evil, "AA/evil", "../evil"), "leads outside"),
        ("absolute", renamed(absolute, "Xetc/passwd", "/etc/passwd"), "is absolute"),
        ("link out", zipped(&[dockerfile(), Link("l", "../../etc/passwd")]), "leads outside"),
        ("absolute link", zipped(&[dockerfile(), Link("l", "/etc/passwd")]), "absolute target"),
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
