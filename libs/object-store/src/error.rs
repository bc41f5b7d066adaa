//! What can go wrong with the store, in the few kinds callers tell apart.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// Why a request failed.
///
/// *Determinate* errors say that the store was not changed by the call;
/// after the others it may or may not have been, see [`Error::determinate`].
/// Of a list, `key` is the prefix; a `detail` is the store's code or the kind of failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is stored under the key. A request without an answer body (head)
    /// cannot tell this from a missing bucket.
    #[error("s3://{bucket}/{key} does not exist")]
    NotFound { bucket: String, key: String },
    #[error("the bucket {bucket} does not exist")]
    NoSuchBucket { bucket: String },
    /// The credentials are wrong or have no right to the object.
    #[error("access to s3://{bucket}/{key} was denied ({code})")]
    AccessDenied { bucket: String, key: String, code: String },
    /// A body, file or list is larger than the caller's or our own limit: bytes, or keys of a list.
    #[error("s3://{bucket}/{key} is over the limit of {limit}")]
    TooLarge { bucket: String, key: String, limit: u64 },
    /// The object is already there, or is not the version expected.
    ///
    /// A conditional put whose first attempt was applied but whose answer was
    /// lost ends here too, when its second attempt meets the object of the
    /// first. Compare the content before concluding that someone else wrote it.
    #[error("s3://{bucket}/{key} is not in the state the request asked for")]
    PreconditionFailed { bucket: String, key: String },
    /// The store did not answer in time, answered 5xx, or broke off; all
    /// attempts are used up. Trying again later is reasonable.
    #[error("S3 is unavailable for {operation} of s3://{bucket}/{key}: {detail}")]
    Unavailable {
        operation: &'static str,
        bucket: String,
        key: String,
        detail: String,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The key, cut to 80 characters here, may not be used with any store.
    #[error("the object key {key:?} is not allowed: {reason}")]
    InvalidKey { key: String, reason: &'static str },
    #[error("local file {path}")]
    File { path: std::path::PathBuf, source: std::io::Error },
    /// The store refused the request for a reason of its own.
    #[error("S3 refused {operation} of s3://{bucket}/{key}: {detail}")]
    Other {
        operation: &'static str,
        bucket: String,
        key: String,
        detail: String,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// Whether the same call may succeed later without anyone changing anything.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the call is known to have changed nothing in the store.
    ///
    /// `false` for [`Error::Unavailable`] (an attempt may have been applied before its answer was lost) and
    /// for [`Error::PreconditionFailed`] (see there). All puts, deletes and multipart uploads of this crate
    /// can be repeated, so after an indeterminate error the right step is to repeat.
    #[must_use]
    pub fn determinate(&self) -> bool {
        !matches!(self, Self::Unavailable { .. } | Self::PreconditionFailed { .. })
    }

    /// Whether the object or its bucket does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoSuchBucket { .. })
    }
}

/// What the client library said, when it said something.
type Source = Option<Box<dyn std::error::Error + Send + Sync>>;

/// What a request was about, to name it in its error.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub operation: &'static str,
    pub bucket: &'a str,
    pub key: &'a str,
}

impl Target<'_> {
    pub(crate) fn not_found(self) -> Error {
        Error::NotFound { bucket: self.bucket.to_owned(), key: self.key.to_owned() }
    }

    pub(crate) fn too_large(self, limit: u64) -> Error {
        Error::TooLarge { bucket: self.bucket.to_owned(), key: self.key.to_owned(), limit }
    }

    pub(crate) fn unavailable(self, detail: impl Into<String>, source: Source) -> Error {
        Error::Unavailable {
            operation: self.operation,
            bucket: self.bucket.to_owned(),
            key: self.key.to_owned(),
            detail: detail.into(),
            source,
        }
    }

    pub(crate) fn other(self, detail: impl Into<String>, source: Source) -> Error {
        Error::Other {
            operation: self.operation,
            bucket: self.bucket.to_owned(),
            key: self.key.to_owned(),
            detail: detail.into(),
            source,
        }
    }

    /// Sorts a failure of the client library into our kinds.
    pub(crate) fn classify<E>(self, error: SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().map(str::to_owned);
        let detail = match (&code, status, &error) {
            (Some(code), _, _) => code.clone(),
            (None, Some(status), _) => format!("HTTP {status}"),
            (None, None, SdkError::TimeoutError(_)) => "no answer in time".to_owned(),
            (None, None, SdkError::DispatchFailure(_)) => "no connection".to_owned(),
            (None, None, _) => "the request could not be made".to_owned(),
        };
        let unsent = matches!(error, SdkError::ConstructionFailure(_));
        match (code.as_deref(), status) {
            (Some("NoSuchBucket"), _) => Error::NoSuchBucket { bucket: self.bucket.to_owned() },
            (Some("PreconditionFailed"), _) | (_, Some(412)) => {
                Error::PreconditionFailed { bucket: self.bucket.to_owned(), key: self.key.to_owned() }
            }
            // Two conditional writes met; the store asks to try again.
            (Some("ConditionalRequestConflict" | "OperationAborted"), _) => {
                self.unavailable(detail, Some(error.into()))
            }
            (_, Some(404)) => self.not_found(),
            (_, Some(401 | 403)) => {
                Error::AccessDenied { bucket: self.bucket.to_owned(), key: self.key.to_owned(), code: detail }
            }
            (_, Some(408 | 429 | 500..=599)) => self.unavailable(detail, Some(error.into())),
            (_, None) if !unsent => self.unavailable(detail, Some(error.into())),
            _ => self.other(detail, Some(error.into())),
        }
    }
}
