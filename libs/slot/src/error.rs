//! Why a slot, or the pool, could not be had.

use std::io;
use std::time::Duration;

use crate::command::CommandError;
use crate::settings::SettingsError;

/// Why a slot, or the pool, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("cannot read a listing")]
    Listing(#[source] serde_json::Error),
    #[error("namespace {name}")]
    Namespace { name: String, source: io::Error },
    #[error("namespace {name} cannot be removed")]
    Remains { name: String },
    #[error("no slot came free within {} ms", .waited.as_millis())]
    Exhausted { waited: Duration },
    #[error("{name} is not a slot in use of this pool")]
    NotInUse { name: String },
    #[error("the pool of slots is shut down")]
    Closed,
    #[error("cannot switch IPv4 forwarding")]
    Forwarding(#[source] io::Error),
}
