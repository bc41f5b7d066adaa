//! The output of one microVM's app, bounded: two files that take turns, one
//! JSON line per log line, at a bounded rate. Survives suspends, wakes and
//! restarts of the agent; the numbering goes on.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use api::common::v1::{LogLine, LogSource};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::files;
use crate::domain::HostError;

/// Longest text of one line, in bytes.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// Most lines one read returns.
pub const LINES_PER_READ: usize = 1000;
/// Latest lines kept in memory for followers, so that following reads no file.
const RECENT_LINES_MAX: usize = 512;
/// Seconds of the sustained rate that may arrive at once.
const BURST_SECONDS: f64 = 4.0;

/// One stored line; short names because there are many.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// Sequence in this file's numbering.
    s: u64,
    /// Time in nanoseconds since 1970.
    t: u64,
    /// Source, as on the wire.
    o: i32,
    /// The guest's own sequence plus one; 0 for the platform's lines.
    g: u64,
    x: String,
}

impl Stored {
    fn into_line(self) -> LogLine {
        LogLine {
            time: Some(prost_types::Timestamp {
                seconds: i64::try_from(self.t / 1_000_000_000).unwrap_or(i64::MAX),
                nanos: i32::try_from(self.t % 1_000_000_000).unwrap_or(0),
            }),
            source: self.o,
            text: self.x,
            sequence: self.s,
        }
    }
}

/// An open log.
pub struct Log {
    directory: PathBuf,
    file_bytes_max: u64,
    rate: f64,
    state: Mutex<State>,
    end: watch::Sender<u64>,
}

struct State {
    file: Option<std::fs::File>,
    file_bytes: u64,
    next: u64,
    next_guest: u64,
    tokens: f64,
    filled: Instant,
    dropped: u64,
    recent: VecDeque<LogLine>,
}

impl Log {
    /// Opens the log in `directory`, making it when it is new. `guest_start` is
    /// the first guest line wanted when no line has been stored yet.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(
        directory: &Path,
        file_bytes_max: u64,
        bytes_per_second: u64,
        guest_start: u64,
    ) -> Result<Self, HostError> {
        files::make_directory(directory)?;
        let mut next = 0;
        let mut next_guest = guest_start;
        for name in [OLD, NEW] {
            for line in read_file(&directory.join(name)) {
                next = next.max(line.s + 1);
                next_guest = next_guest.max(line.g);
            }
        }
        #[allow(clippy::cast_precision_loss)] // bytes per second
        let rate = bytes_per_second as f64;
        let state = State {
            file: None,
            file_bytes: 0,
            next,
            next_guest,
            tokens: rate * BURST_SECONDS,
            filled: Instant::now(),
            dropped: 0,
            recent: VecDeque::new(),
        };
        Ok(Self {
            directory: directory.to_owned(),
            file_bytes_max,
            rate,
            state: Mutex::new(state),
            end: watch::Sender::new(next),
        })
    }

    /// The first guest line not stored yet.
    pub fn next_guest(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).next_guest
    }

    /// Skips the guest's lines before `start`: those of the bake.
    pub fn start_guest_at(&self, start: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next_guest = state.next_guest.max(start);
    }

    /// Stores lines of the guest; those stored before are skipped, those beyond
    /// the rate are counted and reported by a line of the platform.
    pub fn append_guest(&self, lines: &[LogLine], dropped: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.dropped += dropped;
        for line in lines.iter().filter(|line| line.sequence >= state.next_guest).collect::<Vec<_>>() {
            state.next_guest = line.sequence + 1;
            if !self.within_rate(&mut state, line.text.len()) {
                state.dropped += 1;
                continue;
            }
            if state.dropped > 0 {
                let text =
                    format!("{} lines were dropped: too much output", std::mem::take(&mut state.dropped));
                self.write(&mut state, LogSource::Platform.into(), 0, text);
            }
            let guest = line.sequence + 1;
            self.write(&mut state, line.source, guest, cut(&line.text));
        }
        self.end.send_replace(state.next);
    }

    /// Stores a line of the platform.
    pub fn append(&self, text: impl Into<String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&mut state, LogSource::Platform.into(), 0, text.into());
        self.end.send_replace(state.next);
    }

    /// Lines from `from` on, at most [`LINES_PER_READ`].
    pub fn read(&self, from: u64) -> Vec<LogLine> {
        {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if from >= state.next {
                return Vec::new();
            }
            if state.recent.front().is_some_and(|first| first.sequence <= from) {
                let lines = state.recent.iter().filter(|line| line.sequence >= from);
                return lines.take(LINES_PER_READ).cloned().collect();
            }
        }
        read_directory(&self.directory, from)
    }

    /// Sequence of the next line; changes when lines are stored.
    pub fn end(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
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

    /// A line that cannot be stored (full disk) is lost; the app goes on.
    fn write(&self, state: &mut State, source: i32, guest: u64, text: String) {
        let stored = Stored { s: state.next, t: now_nanos(), o: source, g: guest, x: text };
        state.next += 1;
        let Ok(mut bytes) = serde_json::to_vec(&stored) else {
            return;
        };
        bytes.push(b'\n');
        if state.recent.len() == RECENT_LINES_MAX {
            state.recent.pop_front();
        }
        state.recent.push_back(stored.into_line());
        let current = self.directory.join(NEW);
        if state.file.is_none() {
            state.file = std::fs::OpenOptions::new().append(true).create(true).open(&current).ok();
            state.file_bytes =
                state.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |data| data.len());
        }
        if let Some(file) = &mut state.file
            && file.write_all(&bytes).is_ok()
        {
            state.file_bytes += bytes.len() as u64;
        }
        if state.file_bytes >= self.file_bytes_max {
            state.file = None;
            let _ = std::fs::rename(&current, self.directory.join(OLD));
        }
    }
}

const NEW: &str = "log.jsonl";
const OLD: &str = "log.1.jsonl";

/// Reads a log that nobody writes any more.
pub fn read_directory(directory: &Path, from: u64) -> Vec<LogLine> {
    let stored = [OLD, NEW].into_iter().flat_map(|name| read_file(&directory.join(name)));
    stored.filter(|line| line.s >= from).take(LINES_PER_READ).map(Stored::into_line).collect()
}

/// Whole lines of one file; a torn last line (the agent died) is left out.
fn read_file(path: &Path) -> impl Iterator<Item = Stored> + use<> {
    std::fs::File::open(path)
        .ok()
        .into_iter()
        .flat_map(|file| BufReader::new(file).lines().map_while(Result::ok))
        .filter_map(|line| serde_json::from_str(&line).ok())
}

fn now_nanos() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(LINE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sequence: u64, text: &str) -> LogLine {
        LogLine { sequence, text: text.to_owned(), source: LogSource::Stdout.into(), time: None }
    }

    fn texts(log: &Log, from: u64) -> Vec<String> {
        log.read(from).into_iter().map(|line| line.text).collect()
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
        assert_eq!(log.read(0).iter().map(|line| line.sequence).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn two_files_bound_the_disk_and_a_rate_bounds_the_flow() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::open(directory.path(), 2_000, 2_000, 0).unwrap();
        for sequence in 0..1000 {
            log.append_guest(&[line(sequence, "0123456789012345678901234567890123456789")], 0);
        }
        assert!(files::occupied_bytes(directory.path()) <= 16_384);
        let bytes: u64 = [NEW, OLD]
            .iter()
            .filter_map(|name| std::fs::metadata(directory.path().join(name)).ok())
            .map(|data| data.len())
            .sum();
        assert!(bytes < 5_000, "{bytes}");
        assert!(log.read(0).len() < 100, "most lines were beyond the rate");
    }

    #[test]
    fn long_lines_are_cut_at_a_character() {
        assert_eq!(cut(&"ä".repeat(10_000)).len(), LINE_BYTES_MAX);
        assert_eq!(cut("short"), "short");
    }
}
