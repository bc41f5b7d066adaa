//! Files that say what a machine-wide switch of the kernel was before the pools changed it. They lie where a restart of the
//! machine clears them, as it does the switches.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Opens a record, made empty if there is none, and keeps other pools from it until it is closed.
pub(crate) fn locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}
