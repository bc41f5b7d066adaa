//! Why a program that is there cannot be run, in words: the kernel has five for a hundred causes.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use nix::errno::Errno;

/// Bytes that are looked at: the kernel reads no longer first line of a script.
const HEAD_BYTES: u64 = 256;
const ELF: &[u8] = b"\x7fELF";
/// Where an ELF file names the machine that it is for.
const ELF_MACHINE: std::ops::Range<usize> = 18..20;
#[cfg(target_arch = "x86_64")]
const OWN: (u16, &str) = (62, "x86_64");
#[cfg(target_arch = "aarch64")]
const OWN: (u16, &str) = (183, "arm64");
/// Others that people bring.
const MACHINES: [(u16, &str); 4] = [(3, "x86"), (40, "arm"), (62, "x86_64"), (183, "arm64")];

/// What the kernel meant when it refused the file at `path` with `error`, as the rest of a sentence; `None` where it said it all.
pub(super) fn explain(path: &Path, error: Errno) -> Option<String> {
    let found = path.metadata().ok()?;
    if found.is_dir() {
        return Some("it is a directory".to_owned());
    }
    let mut head = Vec::new();
    // What cannot be read by the app's user may be run all the same.
    let _ = File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    match error {
        Errno::ENOENT => match interpreter(&head) {
            Some(name) if name.ends_with('\r') => Some(format!(
                "its interpreter {name:?} does not exist, because the file has Windows line ends; \
                 take them out, for example with RUN sed -i 's/\\r$//' {}",
                path.display()
            )),
            Some(name) => Some(format!("its interpreter {name:?} does not exist in the image")),
            None if head.starts_with(ELF) => {
                Some("the loader that it asks for does not exist in the image: it was linked for another C library".to_owned())
            }
            None => None,
        },
        Errno::ENOEXEC => match machine(&head) {
            Some(other) if other != OWN.1 => {
                Some(format!("it is a program for {other}, and this microVM is {}", OWN.1))
            }
            Some(_) => Some("it is a damaged program".to_owned()),
            None => Some("it is neither a program nor a script that begins with #!".to_owned()),
        },
        Errno::EACCES => Some(
            "it is not executable for the app's user; say so when it is copied (COPY --chmod=755), or with a RUN chmod".to_owned(),
        ),
        _ => None,
    }
}

/// The program that a script names in its first line.
fn interpreter(head: &[u8]) -> Option<String> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    Some(line.trim_matches([' ', '\t']).split([' ', '\t']).next()?.to_owned())
}

/// The machine that a program is for.
fn machine(head: &[u8]) -> Option<&'static str> {
    let number = head.get(ELF_MACHINE).filter(|_| head.starts_with(ELF))?;
    let number = u16::from_le_bytes(number.try_into().ok()?);
    Some(MACHINES.iter().find(|(known, _)| *known == number).map_or("another machine", |(_, name)| name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_said_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let elf = |machine: u16| {
            let mut head = b"\x7fELF\x02\x01\x01".to_vec();
            head.resize(18, 0);
            head.extend(machine.to_le_bytes());
            head
        };
        let other = if OWN.0 == 62 { (183, "arm64") } else { (62, "x86_64") };
        for (name, content, error, expected) in [
            (
                "crlf",
                b"#!/bin/sh\r\nexec x\r\n".to_vec(),
                Errno::ENOENT,
                "its interpreter \"/bin/sh\\r\" does not exist, because",
            ),
            (
                "env",
                b"#! /opt/none -x\n".to_vec(),
                Errno::ENOENT,
                "its interpreter \"/opt/none\" does not exist in the image",
            ),
            ("musl", elf(OWN.0), Errno::ENOENT, "the loader that it asks for"),
            (
                "foreign",
                elf(other.0),
                Errno::ENOEXEC,
                &format!("it is a program for {}, and this microVM is {}", other.1, OWN.1),
            ),
            ("odd", elf(9999), Errno::ENOEXEC, "it is a program for another machine"),
            ("damaged", elf(OWN.0), Errno::ENOEXEC, "it is a damaged program"),
            ("text", b"hello".to_vec(), Errno::ENOEXEC, "neither a program nor a script"),
            ("plain", b"#!/bin/sh\n".to_vec(), Errno::EACCES, "not executable"),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            let said = explain(&path, error).unwrap_or_else(|| panic!("{name}: nothing was said"));
            assert!(said.contains(expected), "{name}: {said}");
        }
        assert_eq!(explain(directory.path(), Errno::EACCES).as_deref(), Some("it is a directory"));
        assert_eq!(explain(&directory.path().join("nothing"), Errno::ENOENT), None);
        std::fs::write(directory.path().join("empty"), "").unwrap();
        assert_eq!(explain(&directory.path().join("empty"), Errno::ENOENT), None);
    }
}
