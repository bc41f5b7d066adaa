//! S3, as little of it as Torpor needs and with a bound on everything.
//!
//! A [`Store`] is a cheap handle on one endpoint and one set of credentials. It
//! puts, gets, lists and deletes objects; every body, list, attempt and wait
//! has a limit, and every failure is one of the few kinds in [`Error`].
//!
//! What it is not: no cache, no encryption, no bucket policies, no presigned
//! addresses, and no promise about a body beyond what TLS and S3 give. Whoever
//! must not trust the bytes (the `snapshot` crate) keeps digests of its own.
//!
//! Any S3-compatible endpoint will do. Checksums are sent only where the
//! protocol demands them, because servers other than AWS refuse the rest.

mod config;
mod error;
mod key;
mod store;

pub use config::Config;
pub use error::Error;
pub use key::{KEY_BYTES_MAX, check_key};
pub use store::files::{FILE_BYTES_MAX, MULTIPART_THRESHOLD_BYTES, PART_BYTES};
pub use store::listing::{FolderPage, LIST_KEYS_MAX, ObjectEntry};
pub use store::{BODY_BYTES_MAX, ObjectHead, Store};

/// Told `(bytes done, bytes in total)` from time to time; must not block.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);
