//! The writing side.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::common::v1::LogSource;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::line::Stored;
use crate::reader::{Reader, stored_lines};

/// How large a log gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub file_bytes_max: u64,
    pub full: Full,
}

/// What happens when a log's file is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The next line begins a new file. The full one stays, in place of the one
    /// before it: a log has at most two files.
    Rotate,
    /// A line says so, and only the platform's lines are still taken, up to this many more bytes.
    Stop { platform_bytes_max: u64 },
}

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    files: Arc<Files>,
    bounds: Bounds,
    state: Mutex<State>,
    end: watch::Sender<u64>,
}

/// Where a log's files are.
#[derive(Debug)]
pub(crate) struct Files {
    pub current: PathBuf,
    /// The file before the current one, if the log rotates.
    pub before: PathBuf,
}

impl Files {
    pub(crate) fn of(path: &Path) -> Self {
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        Self { current: path.to_owned(), before: path.with_extension(format!("1.{extension}")) }
    }
}

#[derive(Debug)]
struct State {
    /// Absent when the next line begins a new file.
    file: Option<File>,
    file_bytes: u64,
    next: u64,
    origin: u64,
    full: bool,
}

impl Log {
    /// Opens the log whose current file is `path`, or begins it. Its directory must be there.
    pub fn open(path: &Path, bounds: Bounds) -> io::Result<Self> {
        let files = Files::of(path);
        let (mut next, mut origin) = (0, 0);
        for stored in stored_lines(&files.before).chain(stored_lines(&files.current)) {
            next = next.max(stored.s + 1);
            origin = origin.max(stored.g);
        }
        let mut state = State { file: None, file_bytes: 0, next, origin, full: false };
        state.open(&files.current)?;
        let end = watch::Sender::new(next);
        Ok(Self { files: Arc::new(files), bounds, state: Mutex::new(state), end })
    }

    /// Begins a log at `path` in place of one that may be there.
    pub fn begin(path: &Path, bounds: Bounds) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Self::open(path, bounds),
        }
    }

    /// Adds a line, cut if it is overlong. A line that cannot be stored (full disk) is
    /// lost: who writes a log goes on without it.
    pub fn append(&self, source: LogSource, text: impl Into<String>) {
        self.append_from(source.into(), 0, text);
    }

    /// Adds a line that had a number where it came from; `origin` is that number plus one.
    pub fn append_from(&self, source: i32, origin: u64, text: impl Into<String>) {
        let mut state = self.lock();
        let ours = source == i32::from(LogSource::Platform);
        if let Full::Stop { platform_bytes_max } = self.bounds.full {
            let limit = self.bounds.file_bytes_max;
            if ours && state.file_bytes >= limit + platform_bytes_max {
                return;
            }
            if !ours && state.file_bytes >= limit {
                if !std::mem::replace(&mut state.full, true) {
                    let marker = format!("The output is over {limit} bytes; the rest is not kept.");
                    self.write(&mut state, LogSource::Platform.into(), 0, marker);
                }
                return;
            }
        }
        self.write(&mut state, source, origin, text.into());
    }

    fn write(&self, state: &mut State, source: i32, origin: u64, text: String) {
        let stored = Stored::new(state.next, source, origin, text);
        let mut line = serde_json::to_vec(&stored).expect("text and numbers always serialize");
        line.push(b'\n');
        state.origin = state.origin.max(origin);
        if let Err(error) = state.write(&self.files.current, &line) {
            tracing::debug!(%error, "a log line is lost");
            return;
        }
        state.next += 1;
        if self.bounds.full == Full::Rotate && state.file_bytes >= self.bounds.file_bytes_max {
            state.file = None;
            // Dying before this line: the next start finds a full file and rotates it with
            // the first line it writes.
            let _ = std::fs::rename(&self.files.current, &self.files.before);
        }
        self.end.send_replace(state.next);
    }

    /// The largest origin stored so far; 0 without one.
    #[must_use]
    pub fn origin(&self) -> u64 {
        self.lock().origin
    }

    /// Number of the next line; changes when lines are stored.
    #[must_use]
    pub fn end(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }

    /// The current file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.files.current
    }

    /// A reader of the lines from `from` on.
    #[must_use]
    pub fn reader(&self, from: u64) -> Reader {
        Reader::of(Arc::clone(&self.files), from)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn open(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::options().append(true).read(true).create(true).open(path)?;
        self.file_bytes = whole_lines(&mut file)?;
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, path: &Path, line: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.open(path)?;
        }
        let file = self.file.as_mut().expect("it was just opened");
        if let Err(error) = file.write_all(line) {
            // What was written of the line must not stand before the next one.
            let _ = file.set_len(self.file_bytes);
            return Err(error);
        }
        self.file_bytes += line.len() as u64;
        Ok(())
    }
}

/// Cuts off a last line that a crash tore, lest the next line be joined to it. Returns the file's length.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    let start = file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    io::Read::read_to_end(file, &mut tail)?;
    let whole = match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => start + at as u64 + 1,
        None => start,
    };
    if whole < length {
        file.set_len(whole)?;
    }
    Ok(whole)
}

/// More than one stored line has: each byte of its text takes six at most, as `\u001b`.
const TAIL_BYTES: u64 = 8 * crate::LINE_BYTES_MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LINE_BYTES_MAX, LINES_PER_BATCH};

    const ROTATE: Bounds = Bounds { file_bytes_max: 1 << 20, full: Full::Rotate };

    fn texts(reader: &mut Reader) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let lines = reader.read().unwrap();
            if lines.is_empty() {
                return all;
            }
            assert!(lines.len() <= LINES_PER_BATCH);
            all.extend(lines.into_iter().map(|line| line.text));
        }
    }

    #[test]
    fn numbering_survives_a_restart_and_a_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        let log = Log::open(&path, ROTATE).unwrap();
        log.append(LogSource::Platform, "launched");
        log.append_from(LogSource::Stdout.into(), 6, "a");
        drop(log);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"s\":2,\"t\":1,\"o\":1,\"x\":\"to").unwrap();
        let log = Log::open(&path, ROTATE).unwrap();
        assert_eq!((log.origin(), *log.end().borrow()), (6, 2));
        log.append_from(LogSource::Stderr.into(), 7, "b");
        let lines = log.reader(0).read().unwrap();
        let seen: Vec<_> =
            lines.iter().map(|line| (line.sequence, line.text.as_str(), line.source())).collect();
        let expected =
            [(0, "launched", LogSource::Platform), (1, "a", LogSource::Stdout), (2, "b", LogSource::Stderr)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn lines_come_from_any_position_and_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::begin(&directory.path().join("b.log"), ROTATE).unwrap();
        for number in 0..3000 {
            log.append(LogSource::Stdout, format!("line {number}"));
        }
        for from in [0, 1, 1023, 1024, 2999] {
            let lines = texts(&mut log.reader(from));
            assert_eq!((lines[0].as_str(), lines.len() as u64), (&*format!("line {from}"), 3000 - from));
        }
        let mut reader = log.reader(3000);
        assert!(reader.read().unwrap().is_empty());
        log.append(LogSource::Stdout, "more");
        std::fs::remove_file(log.path()).unwrap();
        assert_eq!(texts(&mut reader), ["more"], "a follower may finish");
        assert!(log.reader(u64::MAX).read().unwrap().is_empty());
    }

    #[test]
    fn two_files_take_turns_and_a_reader_follows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        let bounds = Bounds { file_bytes_max: 2_000, full: Full::Rotate };
        let log = Log::open(&path, bounds).unwrap();
        let mut reader = log.reader(0);
        let mut seen = Vec::new();
        for number in 0..1000 {
            log.append(LogSource::Stdout, format!("{number}"));
            if number % 7 == 0 {
                seen.extend(texts(&mut reader));
            }
        }
        seen.extend(texts(&mut reader));
        assert_eq!(seen, (0..1000).map(|number| number.to_string()).collect::<Vec<_>>());
        let bytes: u64 = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes < 5_000, "{bytes}");
        // A reader that fell behind misses what is gone and gets the rest.
        let late = texts(&mut log.reader(0));
        assert!(late.len() < 100 && late.last().is_some_and(|text| text == "999"));
        // So does one that comes after the log was closed and opened.
        drop(log);
        assert_eq!(texts(&mut Reader::open(&path, 0)), late);
        assert_eq!(*Log::open(&path, bounds).unwrap().end().borrow(), 1000);
    }

    #[test]
    fn a_flood_is_bounded_and_our_own_lines_still_get_in() {
        let directory = tempfile::tempdir().unwrap();
        let full = Full::Stop { platform_bytes_max: 200 };
        let bounds = Bounds { file_bytes_max: 100_000, full };
        let log = Log::begin(&directory.path().join("b.log"), bounds).unwrap();
        for _ in 0..1_000 {
            log.append(LogSource::Stdout, "ä".repeat(20_000));
        }
        log.append(LogSource::Platform, "the end");
        log.append(LogSource::Platform, "z".repeat(1_000));
        log.append(LogSource::Platform, "too much");
        let size = std::fs::metadata(log.path()).unwrap().len();
        assert!(size < 100_000 + 2 * LINE_BYTES_MAX as u64, "{size}");
        let lines = log.reader(0).read().unwrap();
        assert!(lines[0].text.len() <= LINE_BYTES_MAX && lines[0].text.ends_with('…'));
        let marker = "The output is over 100000 bytes; the rest is not kept.";
        assert!(lines.iter().any(|line| line.text == marker && line.source() == LogSource::Platform));
        assert!(lines.iter().all(|line| line.text != "too much"));
    }

    #[test]
    fn logs_of_earlier_image_builders_are_read() {
        let mut batch = crate::Batch::new(3);
        for sequence in [2, 3] {
            let line =
                format!(r#"{{"sequence":{sequence},"time_unix_us":1500000,"source":"STDERR","text":"x"}}"#);
            batch.add(line.as_bytes());
        }
        batch.add(b"nonsense");
        let lines = batch.take();
        assert_eq!((lines.len(), lines[0].sequence, lines[0].source()), (1, 3, LogSource::Stderr));
        let time = lines[0].time.unwrap();
        assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    }
}
