//! An XFS with reflinks in a file. Mounting it needs root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted XFS; unmounted when dropped, also when a test panics.
#[derive(Debug)]
pub struct Xfs {
    folder: tempfile::TempDir,
}

impl Xfs {
    /// Makes and mounts one of `mib` MiB.
    #[must_use]
    pub fn mount(mib: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let xfs = Self { folder };
        std::fs::create_dir(xfs.path()).unwrap();
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(xfs.path()));
        xfs
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        // `mount -o loop` made the loop device, and unmounting frees it.
        let umount = |options: &[&str], path: &Path| Command::new("umount").args(options).arg(path).status();
        let mounted = self.path();
        if !umount(&[], &mounted).is_ok_and(|status| status.success()) {
            let _ = umount(&["-l"], &mounted);
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
