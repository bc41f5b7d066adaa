//! Small durable records in etcd: compare-and-set writes, watches that heal,
//! leases with a fencing deadline, elections.
//!
//! Keys are relative: the configured root prefix is put in front on the way out and taken off on the way in.
//! Every call is bounded in time; etcd may be killed and restarted at any moment, and a caller sees
//! [`Error::Unavailable`] until it is back. Of a cluster one member may be lost without callers seeing more of it than a
//! write whose answer is lost, or a read that takes longer. A write whose answer is lost may have happened; a caller that
//! must know uses [`Store::commit`], which tries until it is known.
//!
//! Not here: what the values mean. They are bytes.

pub mod backend;
mod commit;
mod election;
mod error;
mod etcd;
mod lease;
mod members;
mod mirror;
mod options;
mod rights;
mod store;
mod watch;

pub use commit::{Committed, Tenure};
pub use election::Leadership;
pub use error::Error;
pub use lease::Lease;
pub use mirror::{Entries, Mirror};
pub use options::{Options, TlsFiles};
pub use rights::{Access, Keys, ROOT_USER, Right, User};
pub use store::{Expect, Listing, Store, StoreSize, Versioned, Write};
pub use watch::{Event, Watch};

/// Result of every call here.
pub type Result<T> = std::result::Result<T, Error>;

/// Largest value in bytes. Anything larger belongs into the object store.
pub const VALUE_BYTES_MAX: usize = 100 * 1024;
/// Largest key in bytes, root prefix included.
pub const KEY_BYTES_MAX: usize = 512;
/// Most writes in one transaction (etcd's own default bound is 128 operations).
pub const WRITES_MAX: usize = 100;
/// Most entries one listing or one watch's snapshot may hold.
pub const LIST_ENTRIES_MAX: usize = 2_000_000;
