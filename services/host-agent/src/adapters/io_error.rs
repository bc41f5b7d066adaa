//! I/O errors on the host's files, with what a full disk's reader wants to know.

use std::path::Path;

use crate::domain::HostError;
use crate::domain::error::is_disk_full;

impl HostError {
    /// An I/O failure on one of the host's files.
    pub fn io(path: &Path, error: &std::io::Error) -> Self {
        if is_disk_full(error) {
            return Self::disk_full(path);
        }
        Self::Internal(format!("{}: {error}", path.display()))
    }

    /// The disk is full; names the data directory's file system as the limit.
    pub fn disk_full(path: &Path) -> Self {
        Self::DiskFull { path: path.display().to_string(), limit: limit(path) }
    }

    /// The guest whose disk this is stands still, because the file system is full.
    pub fn out_of_space(disk: &Path) -> Self {
        Self::OutOfSpace { limit: limit(disk) }
    }
}

/// The size of the file system that a file is to be on, and what is left of it.
fn limit(path: &Path) -> String {
    nix::sys::statvfs::statvfs(path.parent().unwrap_or(path)).map_or_else(
        |_| "size of its file system".to_owned(),
        |stat| {
            let unit = stat.fragment_size();
            format!(
                "{} MiB of file system, {} MiB free",
                (stat.blocks() * unit) >> 20,
                (stat.blocks_available() * unit) >> 20
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_names_the_file() {
        let error = HostError::io(Path::new("/tmp/x"), &std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(error.to_string().contains("/tmp/x"), "{error}");
    }
}
