//! What can go wrong with a snapshot.

use std::io;
use std::path::{Path, PathBuf};

/// Why a snapshot or disk operation failed. An `object` is `s3://bucket/key`, or the path of a local file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Stored bytes are not what their manifest says, or not readable, or missing although a manifest names
    /// them. Nothing was started from them; trying again does not help.
    #[error("{object} is corrupt: {detail}")]
    Corrupt { object: String, detail: String },
    /// There is no such snapshot: its manifest does not exist.
    #[error("there is no snapshot {object}")]
    NotFound { object: String },
    /// A different snapshot is published under the prefix; it was left alone.
    #[error("another snapshot is already published as {object}")]
    AlreadyPublished { object: String },
    /// The request makes no sense; a bug of the caller.
    #[error("invalid snapshot request: {detail}")]
    Invalid { detail: String },
    #[error("the object store failed")]
    Store(#[from] object_store::Error),
    #[error("local file {path}")]
    File { path: PathBuf, source: io::Error },
}

impl Error {
    /// Whether the same call may succeed later without anyone changing anything.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.retryable())
    }

    /// Whether a local file system is full.
    #[must_use]
    pub fn disk_full(&self) -> bool {
        let source = match self {
            Self::File { source, .. } | Self::Store(object_store::Error::File { source, .. }) => source,
            _ => return false,
        };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::Invalid { detail: detail.into() }
    }

    pub(crate) fn corrupt(object: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Corrupt { object: object.into(), detail: detail.into() }
    }

    /// For `map_err`: names the file in an error of the kernel.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}
