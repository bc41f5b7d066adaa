//! Logs of the builds that run on this replica: in files while they run, moved to S3 when they end.
//!
//! A log's size is bounded: once a build has written more than the bound, its
//! output is drained and dropped, so that a build that writes for ever neither
//! blocks nor fills anything. The platform's own few lines are still taken.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use log_store::{Bounds, Full, Log};
use parking_lot::Mutex;

mod follow;

pub use follow::BuildLogs;

/// A log may exceed its bound by this much, for the platform's own lines.
const PLATFORM_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    bounds: Bounds,
    open: Mutex<HashMap<String, Arc<Log>>>,
}

impl Logs {
    /// Logs in files of `directory`, each of at most `bytes_max` bytes.
    pub fn new(directory: PathBuf, bytes_max: u64) -> Self {
        let full = Full::Stop { platform_bytes_max: PLATFORM_BYTES_MAX };
        Self { directory, bounds: Bounds { file_bytes_max: bytes_max, full }, open: Mutex::default() }
    }

    /// Begins a build's log, replacing one of an earlier attempt.
    pub fn begin(&self, build: &str) -> io::Result<Arc<Log>> {
        let log = Arc::new(Log::begin(&self.directory.join(format!("{build}.log")), self.bounds)?);
        self.open.lock().insert(build.to_owned(), Arc::clone(&log));
        Ok(log)
    }

    /// The log of a build that runs here.
    pub fn find(&self, build: &str) -> Option<Arc<Log>> {
        self.open.lock().get(build).cloned()
    }

    /// Forgets a log and removes its file. Followers that are still reading hold the
    /// file open and read it to its end.
    pub fn end(&self, build: &str) {
        if let Some(log) = self.open.lock().remove(build) {
            let _ = std::fs::remove_file(log.path());
        }
    }
}
