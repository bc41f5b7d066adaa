//! One supervisor per data directory: an exclusive lock on `run/lock`, held as
//! long as the process lives. The kernel gives it back whatever way it ends.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::files::named;
use crate::error::{CliError, Kind};

/// The lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Takes the lock, or says that another supervisor holds it.
pub fn take(run_dir: &Path) -> Result<Lock, CliError> {
    let path = run_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| named(&path, &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(CliError::new(Kind::Conflict, "a fleet is running in this data directory already")
                .next("see torpor status; stop it with torpor down; or name another --data-dir"))
        }
        Err(error) => Err(named(&path, &error.into()).into()),
    }
}

/// True when some process holds the lock.
pub fn held(run_dir: &Path) -> bool {
    matches!(take(run_dir), Err(failure) if failure.kind == Kind::Conflict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let lock = take(directory.path()).unwrap();
        assert_eq!(take(directory.path()).expect_err("held").kind, Kind::Conflict);
        assert!(held(directory.path()));
        drop(lock);
        assert!(!held(directory.path()));
    }
}
