//! Why a slot, or the pool, could not be had.

use std::io;
use std::time::Duration;

use crate::command::CommandError;
use crate::settings::SettingsError;

/// Why a slot, or the pool, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings break a rule.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// `ip` or `nft` did not do its work.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// `ip` or `nft` printed something unexpected.
    #[error("cannot read a listing")]
    Listing(#[source] serde_json::Error),
    /// A namespace could not be opened or set up.
    #[error("namespace {name}")]
    Namespace {
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A slot was removed and is still there.
    #[error("namespace {name} cannot be removed")]
    Remains {
        /// Its name.
        name: String,
    },
    /// No slot came free in time.
    #[error("no slot came free within {} ms", .waited.as_millis())]
    Exhausted {
        /// How long the caller waited.
        waited: Duration,
    },
    /// The name is not one this pool was told to keep.
    #[error("{name} is not a slot in use of this pool")]
    NotInUse {
        /// The name asked for.
        name: String,
    },
    /// The pool has been shut down.
    #[error("the pool of slots is shut down")]
    Closed,
    /// The machine's forwarding switch could not be set.
    #[error("cannot switch IPv4 forwarding")]
    Forwarding(#[source] io::Error),
}
