//! The file system of the data directory, the disk beneath it, and the file that keeps room on it.

use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use rustix::fs::{FallocateFlags, fallocate};

use super::files;
use crate::domain::HostError;

/// Block devices that are files.
const LOOP_MAJOR: u64 = 7;
/// Free ranges shorter than this stay as they are.
const TRIM_BYTES_MIN: &str = "1M";
/// A large file system that was never trimmed takes minutes.
const TRIM_TIMEOUT: Duration = Duration::from_secs(600);

/// A mounted file system.
#[derive(Debug, Clone)]
pub struct Volume {
    root: PathBuf,
    /// The file that it is in, if it is in one.
    file: Option<PathBuf>,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub capacity: u64,
    pub available: u64,
    /// What is left on the disk beneath, of a file system in a file.
    pub beneath: Option<u64>,
}

impl Volume {
    /// The file system that `root` is on.
    pub fn of(root: &Path) -> Self {
        let file = std::fs::metadata(root).ok().and_then(|data| backing_file(data.dev()));
        Self { root: root.to_owned(), file }
    }

    pub fn is_in_a_file(&self) -> bool {
        self.file.is_some()
    }

    pub fn space(&self) -> Result<Space, HostError> {
        let stat = |path: &Path| {
            let stat = statvfs(path).map_err(|error| HostError::io(path, &error.into()))?;
            let bytes = |blocks: u64| blocks * stat.fragment_size();
            Ok((bytes(stat.blocks()), bytes(stat.blocks_available())))
        };
        let (capacity, available) = stat(&self.root)?;
        let beneath = match &self.file {
            Some(file) => Some(stat(file)?.1),
            None => None,
        };
        Ok(Space { capacity, available, beneath })
    }

    /// Gives what is free back to the disk beneath.
    pub async fn trim(&self) -> Result<(), HostError> {
        let mut command = tokio::process::Command::new("fstrim");
        command.args(["--minimum", TRIM_BYTES_MIN]).arg(&self.root);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(TRIM_TIMEOUT, command.output()).await;
        let output = output.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match output.map_err(|error| HostError::Internal(format!("fstrim: {error}")))? {
            output if output.status.success() => Ok(()),
            output => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(HostError::Internal(format!("fstrim: {said}")))
            }
        }
    }
}

/// The file that a loop device shows as a disk, where this machine's own root directory leads to it.
fn backing_file(device: u64) -> Option<PathBuf> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    if major != LOOP_MAJOR {
        return None;
    }
    let name = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let file = PathBuf::from(std::fs::read_to_string(name).ok()?.trim_end_matches('\n'));
    file.is_file().then_some(file)
}

/// A file of blocks that nobody uses, so that nobody else gets them.
#[derive(Debug)]
pub struct ReserveFile {
    path: PathBuf,
    bytes: u64,
}

impl ReserveFile {
    /// The file as an earlier agent left it; none is one of no bytes.
    pub fn open(path: PathBuf) -> Self {
        let bytes = std::fs::metadata(&path).map_or(0, |data| data.len());
        Self { path, bytes }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it so long. When it cannot be made longer it stays as it was. Dying in between leaves some length between the
    /// two, which the next agent reads.
    pub fn resize(&mut self, bytes: u64) -> Result<(), HostError> {
        let failed = |error: io::Error| HostError::io(&self.path, &error);
        if bytes == 0 {
            files::remove(&self.path)?;
            self.bytes = 0;
            return Ok(());
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.path).map_err(failed)?;
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            if let Err(error) = fallocate(&file, FallocateFlags::empty(), self.bytes, more) {
                // What it has got of the way is beyond its end.
                let _ = file.set_len(self.bytes);
                return Err(failed(error.into()));
            }
        } else {
            file.set_len(bytes).map_err(failed)?;
        }
        self.bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_file_holds_blocks_and_gives_them_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reserve");
        let mut file = ReserveFile::open(path.clone());
        let occupied = || std::fs::metadata(&path).map_or(0, |data| data.blocks() * 512);
        file.resize(3 << 20).unwrap();
        assert!((3 << 20..4 << 20).contains(&occupied()), "{}", occupied());
        file.resize(1 << 20).unwrap();
        assert!((1 << 20..2 << 20).contains(&occupied()), "{}", occupied());
        assert_eq!(ReserveFile::open(path.clone()).bytes(), 1 << 20);
        file.resize(1 << 60).unwrap_err();
        assert_eq!(file.bytes(), 1 << 20, "there is no disk of that size");
        assert!(occupied() < 2 << 20);
        file.resize(0).unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_system_in_a_file_gives_back_what_is_free() {
        let xfs = testkit::Xfs::mount(512);
        let volume = Volume::of(&xfs.path());
        let image = std::fs::metadata(volume.file.as_ref().unwrap()).unwrap();
        assert_eq!(image.len(), 512 << 20);
        let space = volume.space().unwrap();
        assert!(space.capacity <= 512 << 20 && space.beneath.is_some(), "{space:?}");
        let occupied = || std::fs::metadata(volume.file.as_ref().unwrap()).unwrap().blocks() * 512;
        let before = occupied();
        let file = xfs.path().join("file");
        std::fs::write(&file, vec![1; 64 << 20]).unwrap();
        files::sync(&file).unwrap();
        assert!(occupied() >= before + (48 << 20), "{} bytes, and {before} before", occupied());
        std::fs::remove_file(&file).unwrap();
        // XFS lets go of the blocks of a removed file when it comes to it.
        files::sync(&xfs.path()).unwrap();
        let began = std::time::Instant::now();
        while occupied() >= before + (32 << 20) {
            assert!(
                began.elapsed() < testkit::PATIENCE,
                "{} bytes are still held, and {before} before",
                occupied()
            );
            volume.trim().await.unwrap();
        }
    }

    #[test]
    fn a_file_system_says_what_it_has() {
        let space = Volume::of(Path::new("/")).space().unwrap();
        assert!(space.capacity > space.available, "{space:?}");
        assert_eq!(backing_file(0), None);
    }
}
