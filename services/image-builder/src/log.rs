//! Build logs: written to a file while a build runs, followed live from it,
//! moved to S3 when the build ends.
//!
//! A log is one JSON object per line. Its size is bounded: once a build has
//! written more than the bound, its output is drained and dropped (a build that
//! writes for ever neither blocks nor fills anything), and only the platform's
//! own few lines are still taken.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use api::common::v1::{LogLine, LogSource};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

mod follow;

pub use follow::BuildLogs;

use crate::adapters::output::LINE_BYTES_MAX;
use crate::domain::build_error::clipped;

/// Lines in one message to a follower.
pub const LINES_PER_MESSAGE: usize = 1000;
/// Bytes of text in one message to a follower.
const BYTES_PER_MESSAGE: usize = 1 << 20;
/// A log may exceed its bound by this much, for the platform's own lines.
const PLATFORM_BYTES_MAX: u64 = 1 << 20;
/// Every how many lines a log remembers where they are in its file.
const INDEX_LINES: u64 = 1024;

/// One line as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    sequence: u64,
    time_unix_us: u64,
    source: String,
    text: String,
}

impl Stored {
    fn into_line(self) -> LogLine {
        let source = LogSource::from_str_name(&format!("LOG_SOURCE_{}", self.source));
        LogLine {
            time: Some(api::timestamp(SystemTime::UNIX_EPOCH + Duration::from_micros(self.time_unix_us))),
            source: source.unwrap_or_default().into(),
            text: self.text,
            sequence: self.sequence,
        }
    }
}

/// Reads a stored line; `None` when it is none.
pub fn parse(line: &[u8]) -> Option<LogLine> {
    serde_json::from_slice::<Stored>(line).ok().map(Stored::into_line)
}

/// Logs of the builds that run on this replica.
#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    bytes_max: u64,
    open: Mutex<HashMap<String, Arc<Log>>>,
}

impl Logs {
    /// Logs in files of `directory`, each of at most `bytes_max` bytes.
    pub fn new(directory: PathBuf, bytes_max: u64) -> Self {
        Self { directory, bytes_max, open: Mutex::default() }
    }

    /// Begins a build's log, replacing one of an earlier attempt.
    pub fn begin(&self, build: &str) -> io::Result<Arc<Log>> {
        let path = self.directory.join(format!("{build}.log"));
        let file = File::options().create(true).write(true).truncate(true).open(&path)?;
        let (lines, _) = watch::channel(0);
        let writer = Writer { file, bytes: 0, index: vec![0], lines: 0, full: false };
        let log = Arc::new(Log { path, bytes_max: self.bytes_max, writer: Mutex::new(writer), lines });
        self.lock().insert(build.to_owned(), Arc::clone(&log));
        Ok(log)
    }

    /// The log of a build that runs here.
    pub fn find(&self, build: &str) -> Option<Arc<Log>> {
        self.lock().get(build).cloned()
    }

    /// Forgets a log; its file goes when its last follower does not need it.
    pub fn end(&self, build: &str) {
        if let Some(log) = self.lock().remove(build) {
            // Followers that are still reading hold the file open.
            let _ = std::fs::remove_file(&log.path);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Log>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One build's log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    bytes_max: u64,
    writer: Mutex<Writer>,
    lines: watch::Sender<u64>,
}

#[derive(Debug)]
struct Writer {
    file: File,
    bytes: u64,
    /// Where line `i * INDEX_LINES` begins.
    index: Vec<u64>,
    lines: u64,
    full: bool,
}

impl Log {
    /// Adds a line; an overlong one is cut. Never fails the build: a disk that is
    /// full is noticed elsewhere.
    pub fn add(&self, source: LogSource, text: impl Into<String>) {
        let mut writer = self.lock();
        let ours = source == LogSource::Platform;
        if !ours && writer.full {
            return;
        }
        let limit = self.bytes_max + if ours { PLATFORM_BYTES_MAX } else { 0 };
        if writer.bytes >= limit {
            if !ours {
                writer.full = true;
                let marker = format!("The output is over {} bytes; the rest is not kept.", self.bytes_max);
                self.write(&mut writer, LogSource::Platform, marker);
            }
            return;
        }
        self.write(&mut writer, source, text.into());
    }

    fn write(&self, writer: &mut Writer, source: LogSource, text: String) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let stored = Stored {
            sequence: writer.lines,
            time_unix_us: u64::try_from(now.as_micros()).unwrap_or(u64::MAX),
            source: source.as_str_name().trim_start_matches("LOG_SOURCE_").to_owned(),
            text: clipped(text, LINE_BYTES_MAX),
        };
        let mut line = serde_json::to_vec(&stored).expect("text and numbers always serialize");
        line.push(b'\n');
        if let Err(error) = writer.file.write_all(&line) {
            // Keep what is readable: cut off a partial line.
            let _ = writer.file.set_len(writer.bytes);
            let _ = writer.file.seek(SeekFrom::Start(writer.bytes));
            tracing::debug!(%error, "a log line is lost");
            return;
        }
        writer.bytes += line.len() as u64;
        writer.lines += 1;
        if writer.lines.is_multiple_of(INDEX_LINES) {
            let at = writer.bytes;
            writer.index.push(at);
        }
        self.lines.send_replace(writer.lines);
    }

    /// A line of the platform's own.
    pub fn note(&self, text: impl Into<String>) {
        self.add(LogSource::Platform, text);
    }

    pub fn lines(&self) -> watch::Receiver<u64> {
        self.lines.subscribe()
    }

    /// The file, to be moved to S3.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Opens the log for one follower.
    pub fn reader(self: &Arc<Self>) -> io::Result<Reader> {
        Ok(Reader { log: Arc::clone(self), file: File::open(&self.path)? })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One follower's view of a log. Goes on working after the log ended.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    file: File,
}

impl Reader {
    /// The next lines from `sequence` on, at most a message full. Blocking, from
    /// the page cache.
    pub fn read(&mut self, sequence: u64) -> io::Result<Vec<LogLine>> {
        let (start, end) = {
            let writer = self.log.lock();
            let at = usize::try_from(sequence / INDEX_LINES).unwrap_or(usize::MAX);
            match writer.index.get(at) {
                Some(start) if sequence < writer.lines => (*start, writer.bytes),
                _ => return Ok(Vec::new()),
            }
        };
        self.file.seek(SeekFrom::Start(start))?;
        let mut batch = Batch::new(sequence);
        let mut input = BufReader::new(io::Read::take(&self.file, end - start));
        let mut line = Vec::new();
        while !batch.is_full() {
            line.clear();
            if input.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            batch.add(&line);
        }
        Ok(batch.lines)
    }
}

/// Collects the lines of one message.
#[derive(Debug)]
pub struct Batch {
    from: u64,
    bytes: usize,
    pub lines: Vec<LogLine>,
}

impl Batch {
    /// Lines from sequence `from` on.
    pub fn new(from: u64) -> Self {
        Self { from, bytes: 0, lines: Vec::new() }
    }

    /// Adds a stored line unless it is before the wanted ones.
    pub fn add(&mut self, stored: &[u8]) {
        if let Some(line) = parse(stored).filter(|line| line.sequence >= self.from) {
            self.bytes += line.text.len();
            self.lines.push(line);
        }
    }

    /// True when the message should go out.
    pub fn is_full(&self) -> bool {
        self.lines.len() >= LINES_PER_MESSAGE || self.bytes >= BYTES_PER_MESSAGE
    }

    /// Takes the lines; what is added next follows them.
    pub fn take(&mut self) -> Vec<LogLine> {
        self.bytes = 0;
        std::mem::take(&mut self.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(bytes_max: u64) -> (tempfile::TempDir, Logs) {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::new(directory.path().to_owned(), bytes_max);
        (directory, logs)
    }

    #[test]
    fn lines_come_back_from_any_position() {
        let (_directory, logs) = logs(1 << 20);
        let log = logs.begin("b").unwrap();
        for number in 0..3000 {
            log.add(LogSource::Stdout, format!("line {number}"));
        }
        let mut reader = log.reader().unwrap();
        for from in [0, 1, 1023, 1024, 1025, 2999] {
            let lines = reader.read(from).unwrap();
            assert_eq!(lines[0].sequence, from);
            assert_eq!(lines[0].text, format!("line {from}"));
            assert!(lines.len() <= LINES_PER_MESSAGE);
        }
        assert!(reader.read(3000).unwrap().is_empty());
        assert!(reader.read(u64::MAX).unwrap().is_empty());
        logs.end("b");
        assert_eq!(reader.read(2999).unwrap().len(), 1, "a follower may finish");
    }

    #[test]
    fn a_flood_is_bounded_and_our_own_lines_still_get_in() {
        let (_directory, logs) = logs(100_000);
        let log = logs.begin("b").unwrap();
        for _ in 0..1_000 {
            log.add(LogSource::Stdout, "x".repeat(40_000));
        }
        log.note("the end");
        let size = std::fs::metadata(log.path()).unwrap().len();
        assert!(size < 100_000 + 2 * LINE_BYTES_MAX as u64, "{size}");
        let lines = log.reader().unwrap().read(0).unwrap();
        assert!(lines[0].text.len() <= LINE_BYTES_MAX && lines[0].text.ends_with('…'));
        let last: Vec<&str> = lines.iter().rev().take(2).map(|line| line.text.as_str()).collect();
        assert_eq!(last[0], "the end");
        assert!(last[1].contains("the rest is not kept"));
    }

    #[test]
    fn sources_survive_storage() {
        let (_directory, logs) = logs(1 << 20);
        let log = logs.begin("b").unwrap();
        for source in [LogSource::Platform, LogSource::Stdout, LogSource::Stderr, LogSource::Console] {
            log.add(source, "\u{fffd}\"quoted\"");
        }
        let lines = log.reader().unwrap().read(0).unwrap();
        let sources: Vec<LogSource> = lines.iter().map(LogLine::source).collect();
        assert_eq!(sources, [LogSource::Platform, LogSource::Stdout, LogSource::Stderr, LogSource::Console]);
        assert_eq!(lines[0].text, "\u{fffd}\"quoted\"");
    }
}
