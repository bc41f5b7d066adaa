//! The files that say who this microVM is. They live in memory, in the agent's tmpfs, bound over the image's
//! files where those have a place of their own. Those that a repair changes are mapped, so that changing them
//! is a copy and no system call; their size is fixed and newlines fill the rest.
#![allow(unsafe_code)] // maps memory

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::ptr::NonNull;

use nix::mount::{MsFlags, mount};

use crate::boot::mounts::RUN_DIRECTORY;
use crate::boot::{self, Step as _};

/// A mapped file of fixed size.
#[derive(Debug)]
pub struct MappedFile {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping belongs to this value alone and is only written through `&mut`.
unsafe impl Send for MappedFile {}

impl MappedFile {
    /// Makes the file `<run directory>/<name>` of `size` bytes with a first text.
    pub fn create(name: &str, size: usize, text: &str) -> Result<Self, boot::Error> {
        let file = create(name)?;
        file.set_len(size as u64).step(format!("size {name}"))?;
        Self::map(&file, size, text).step(format!("map {name}"))
    }

    /// As [`MappedFile::create`], and bound over `/etc/<name>`.
    pub fn create_bound(name: &str, size: usize, text: &str) -> Result<Self, boot::Error> {
        let file = Self::create(name, size, text)?;
        bind(name)?;
        Ok(file)
    }

    fn map(file: &File, size: usize, text: &str) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file, placed by the kernel.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut mapped = Self { start, size };
        // Also touches the page, so that no later write faults.
        mapped.replace(text)?;
        Ok(mapped)
    }

    /// Replaces the text. A reader in that moment may see a mixture; nobody reads
    /// before a repair is acknowledged.
    pub fn replace(&mut self, text: &str) -> io::Result<()> {
        if text.len() > self.size {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // SAFETY: the mapping is `size` bytes long for as long as the process lives: it is
        // never unmapped, and the agent never shrinks the file. An app that could (root in
        // the guest) would kill its own microVM.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) };
        let (head, rest) = bytes.split_at_mut(text.len());
        head.copy_from_slice(text.as_bytes());
        rest.fill(b'\n');
        Ok(())
    }
}

/// /etc/resolv.conf, which is no part of a clone's identity but lives the same way.
#[derive(Debug)]
pub struct ResolverFile(File);

impl ResolverFile {
    /// Puts it in memory, empty.
    pub fn prepare() -> Result<Self, boot::Error> {
        let file = create("resolv.conf")?;
        bind("resolv.conf")?;
        Ok(Self(file))
    }

    /// Names the servers; what is no address is left out.
    pub fn set_name_servers(&self, servers: &[String]) -> io::Result<()> {
        let lines = servers.iter().filter(|server| server.parse::<std::net::IpAddr>().is_ok());
        let text: String = lines.map(|server| format!("nameserver {server}\n")).collect();
        self.0.write_all_at(text.as_bytes(), 0)?;
        self.0.set_len(text.len() as u64)
    }
}

/// A new file in memory, readable by all.
fn create(name: &str) -> Result<File, boot::Error> {
    let path = Path::new(RUN_DIRECTORY).join(name);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o644);
    options.open(&path).step(format!("create {}", path.display()))
}

/// Binds a file in memory over `/etc/<name>`, which is made a plain file first when the
/// image has none or has a link there.
fn bind(name: &str) -> Result<(), boot::Error> {
    let target = Path::new("/etc").join(name);
    let plain = fs::symlink_metadata(&target).is_ok_and(|metadata| metadata.is_file());
    if !plain {
        fs::create_dir_all("/etc").step("make /etc")?;
        let _ = fs::remove_file(&target);
        File::create_new(&target).step(format!("create {}", target.display()))?;
    }
    let source = Path::new(RUN_DIRECTORY).join(name);
    mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .step(format!("bind {}", target.display()))
}

/// Replaces the credentials file: directory 0700 and file 0400, both the app's.
pub fn write_credentials(credentials: &[u8], (uid, gid): (u32, u32)) -> io::Result<()> {
    let directory = Path::new(RUN_DIRECTORY).join("credentials");
    let (new, current) = (directory.join(".new"), directory.join("default"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&new)?;
    file.write_all_at(credentials, 0)?;
    file.set_permissions(fs::Permissions::from_mode(0o400))?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    chown(&directory, Some(uid), Some(gid))?;
    fs::rename(&new, &current)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_mapped_file_keeps_its_size() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(16).unwrap();
        let mut mapped = MappedFile::map(&file, 16, "localhost\n").unwrap();
        mapped.replace("one\n").unwrap();
        assert!(mapped.replace(&"x".repeat(17)).is_err());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("one{}", "\n".repeat(13)));
    }
}
