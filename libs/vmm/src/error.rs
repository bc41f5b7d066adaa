//! What can go wrong with a machine, sorted by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The description of the machine is not usable: a caller's bug or a bad setting.
    #[error("machine description: {0}")]
    Spec(String),
    #[error("engine program {}: {reason}", binary.display())]
    Engine { binary: PathBuf, reason: String },
    /// The process did not come up; nothing of it is left.
    #[error("the engine process did not start: {0}")]
    Start(String),
    /// The file system under this path is full or over quota. The machine is untouched: paused, ready to `resume`.
    #[error("no space left to write {}", path.display())]
    DiskFull { path: PathBuf },
    #[error("the disk {} is in use by another machine", path.display())]
    DiskInUse { path: PathBuf },
    /// A snapshot file is not what it claims to be; using it again will fail again.
    #[error("{} is corrupt: {reason}", path.display())]
    Corrupt { path: PathBuf, reason: String },
    #[error("the machine is {status}, not paused")]
    NotPaused { status: String },
    /// The guest stands still in the middle of a write for which the host had no room.
    #[error("the guest waits for space on the host's disk")]
    OutOfSpace,
    /// The process has ended or its control connection is gone.
    #[error("the machine has ended")]
    Gone,
    #[error("{command}: {message}")]
    Command { command: &'static str, message: String },
    #[error("the engine broke its protocol: {0}")]
    Protocol(String),
    #[error("{step} took longer than {limit:?}")]
    Timeout { step: &'static str, limit: Duration },
    #[error("{action}")]
    Io {
        /// What was being done, with the path if there is one.
        action: String,
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::Io { action: action.into(), source: source.into() }
    }

    /// An error while writing `path`, where "no space" has a meaning of its own.
    pub(crate) fn writing(path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::DiskFull { path: path.to_owned() }
            }
            _ => Error::io(format!("write {}", path.display()), source),
        }
    }

    pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Error::Corrupt { path: path.to_owned(), reason: reason.into() }
    }
}
