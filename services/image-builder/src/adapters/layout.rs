//! Where things are in the data directory of one replica.
//!
//! ```text
//! cache/<owner>/<n>/  layers of an owner's builds, owned by the sandbox's root; one build at a time uses one
//! bases/              base images as compressed tars, as they are in S3
//! networks/           one file per build network
//! logs/<build>.log    logs of builds that are running
//! work/<build>/       one build's files, removed when it ends:
//!     artifact.zip, context/ (unpacked), shared/ (written by the sandbox), scratch/,
//!     root/ (mount point)
//! ```

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    owner: u32,
}

/// One build's directory. [`Work::remove`] removes it; what a crash leaves is removed at the next start.
#[derive(Debug, Clone)]
pub struct Work {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`, with `owner` as the sandbox's root on this machine.
    pub fn new(root: PathBuf, owner: u32) -> Self {
        Self { root, owner }
    }

    /// Makes the directories that are missing and removes what an earlier
    /// process left of its builds. Blocking.
    pub fn prepare(&self) -> io::Result<()> {
        // Layers are users' files with their own modes; no other user looks at them.
        std::fs::create_dir_all(&self.root)?;
        std::fs::set_permissions(&self.root, std::fs::Permissions::from_mode(0o700))?;
        for name in ["bases", "cache", "networks", "logs", "work"] {
            std::fs::create_dir_all(self.root.join(name))?;
        }
        for left in std::fs::read_dir(self.root.join("work"))? {
            std::fs::remove_dir_all(left?.path())?;
        }
        // The builder that takes an interrupted build over writes its log anew.
        for left in std::fs::read_dir(self.logs())? {
            std::fs::remove_file(left?.path())?;
        }
        Ok(())
    }

    /// All layers.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Bytes that all layers take on the disk. Blocking, for as long as looking at every file takes.
    pub fn cache_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        let mut open = vec![self.cache()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory)? {
                let entry = entry?;
                let found = entry.metadata()?;
                bytes += found.blocks() * 512;
                if found.is_dir() {
                    open.push(entry.path());
                }
            }
        }
        Ok(bytes)
    }

    /// The layers of one of an owner's builds at a time.
    pub fn lane(&self, owner: &str, number: u32) -> PathBuf {
        self.cache().join(owner).join(number.to_string())
    }

    pub fn base(&self, name: &str, version: &str) -> PathBuf {
        self.root.join("bases").join(format!("{name}-{version}.tar.zst"))
    }

    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes an empty work directory called `name`, after removing what was there. Blocking.
    pub fn work(&self, name: &str) -> io::Result<Work> {
        let work = Work { root: self.root.join("work").join(name) };
        match std::fs::remove_dir_all(&work.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(work.mount_point())?;
        std::fs::create_dir_all(work.scratch())?;
        self.make_owned(&work.context())?;
        self.make_owned(&work.shared())?;
        Ok(work)
    }

    /// Makes a directory that is the sandbox's.
    pub fn make_owned(&self, directory: &Path) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        chown(directory, Some(self.owner), Some(self.owner))
    }
}

impl Work {
    pub fn artifact(&self) -> PathBuf {
        self.root.join("artifact.zip")
    }

    pub fn context(&self) -> PathBuf {
        self.root.join("context")
    }

    /// What the sandbox writes: the disk, the image's configuration.
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// For tools that run as the machine's root.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// An empty directory for the sandbox's root.
    pub fn mount_point(&self) -> PathBuf {
        self.root.join("root")
    }

    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
