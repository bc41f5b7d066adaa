//! The output of one microVM's app, bounded: two files that take turns, at a bounded
//! rate. Survives suspends, wakes and restarts of the agent; the numbering goes on.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use api::common::v1::{LogLine, LogSource};
use log_store::{Bounds, Full, Reader};
use tokio::sync::watch;

use super::files;
use crate::domain::HostError;

/// Seconds of the sustained rate that may arrive at once.
const BURST_SECONDS: f64 = 4.0;
/// The current file in a log's directory.
const FILE: &str = "log.jsonl";

pub struct Log {
    lines: log_store::Log,
    rate: f64,
    state: Mutex<State>,
}

struct State {
    next_guest: u64,
    tokens: f64,
    filled: Instant,
    dropped: u64,
}

impl Log {
    /// Opens the log in `directory`, making it when it is new. `guest_start` is
    /// the first guest line wanted when no line has been stored yet.
    pub fn open(
        directory: &Path,
        file_bytes_max: u64,
        bytes_per_second: u64,
        guest_start: u64,
    ) -> Result<Self, HostError> {
        files::make_directory(directory)?;
        let file = directory.join(FILE);
        let lines = log_store::Log::open(&file, Bounds { file_bytes_max, full: Full::Rotate })
            .map_err(|error| HostError::io(&file, &error))?;
        #[allow(clippy::cast_precision_loss)] // bytes per second
        let rate = bytes_per_second as f64;
        let state = State {
            next_guest: guest_start.max(lines.origin()),
            tokens: rate * BURST_SECONDS,
            filled: Instant::now(),
            dropped: 0,
        };
        Ok(Self { lines, rate, state: Mutex::new(state) })
    }

    /// The first guest line not stored yet.
    pub fn next_guest(&self) -> u64 {
        self.lock().next_guest
    }

    /// Skips the guest's lines before `start`: those of the bake.
    pub fn start_guest_at(&self, start: u64) {
        let mut state = self.lock();
        state.next_guest = state.next_guest.max(start);
    }

    /// Stores lines of the guest; those stored before are skipped, those beyond
    /// the rate are counted and reported by a line of the platform.
    pub fn append_guest(&self, lines: &[LogLine], dropped: u64) {
        let mut state = self.lock();
        state.dropped += dropped;
        for line in lines {
            if line.sequence < state.next_guest {
                continue;
            }
            state.next_guest = line.sequence + 1;
            if !self.within_rate(&mut state, line.text.len()) {
                state.dropped += 1;
                continue;
            }
            if state.dropped > 0 {
                let dropped = std::mem::take(&mut state.dropped);
                self.append(format!("{dropped} lines were dropped: too much output"));
            }
            self.lines.append_from(line.source, line.sequence + 1, line.text.as_str());
        }
    }

    /// Stores a line of the platform.
    pub fn append(&self, text: impl Into<String>) {
        self.lines.append(LogSource::Platform, text);
    }

    /// A reader of the lines from `from` on.
    pub fn reader(&self, from: u64) -> Reader {
        self.lines.reader(from)
    }

    /// Sequence of the next line; changes when lines are stored.
    pub fn end(&self) -> watch::Receiver<u64> {
        self.lines.end()
    }

    fn within_rate(&self, state: &mut State, bytes: usize) -> bool {
        let now = Instant::now();
        let refill = now.duration_since(state.filled).as_secs_f64() * self.rate;
        state.tokens = (state.tokens + refill).min(self.rate * BURST_SECONDS);
        state.filled = now;
        #[allow(clippy::cast_precision_loss)] // at most a line
        let cost = (bytes + 64) as f64;
        if state.tokens < cost {
            return false;
        }
        state.tokens -= cost;
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader of a log in `directory` that nobody writes any more.
pub fn reader(directory: &Path, from: u64) -> Reader {
    Reader::open(&directory.join(FILE), from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sequence: u64, text: &str) -> LogLine {
        LogLine { sequence, text: text.to_owned(), source: LogSource::Stdout.into(), time: None }
    }

    fn texts(log: &Log, from: u64) -> Vec<String> {
        log.reader(from).read().unwrap().into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn numbering_survives_a_restart_and_repeats_are_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), 1 << 20, 1 << 20, 5).unwrap();
        assert_eq!(log.next_guest(), 5);
        log.append("launched");
        log.append_guest(&[line(4, "bake"), line(5, "a"), line(6, "b")], 0);
        drop(log);
        let log = Log::open(directory.path(), 1 << 20, 1 << 20, 5).unwrap();
        assert_eq!(log.next_guest(), 7);
        log.append_guest(&[line(6, "b"), line(7, "c")], 3);
        assert_eq!(texts(&log, 0), ["launched", "a", "b", "3 lines were dropped: too much output", "c"]);
        assert_eq!(texts(&log, 4), ["c"]);
        let lines = reader(directory.path(), 0).read().unwrap();
        assert_eq!(lines.iter().map(|line| line.sequence).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn two_files_bound_the_disk_and_a_rate_bounds_the_flow() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), 2_000, 2_000, 0).unwrap();
        for sequence in 0..1000 {
            log.append_guest(&[line(sequence, "0123456789012345678901234567890123456789")], 0);
        }
        assert!(files::occupied_bytes(directory.path()) <= 16_384);
        let files = std::fs::read_dir(directory.path()).unwrap();
        let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 5_000, "{bytes}");
        assert!(texts(&log, 0).len() < 100, "most lines were beyond the rate");
    }
}
