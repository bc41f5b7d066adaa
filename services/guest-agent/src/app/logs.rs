//! The app's output: split into lines, numbered, kept in a bounded ring until the host has them. An app that
//! writes faster than it may loses lines, never time: lost lines are counted by the gaps in the numbers.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use api::common::v1::{LogLine, LogSource};
use guest_link::{LOG_LINE_BYTES_MAX, LOG_LINES_PER_EVENT_MAX, truncate_text};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

mod splitter;

use splitter::Splitter;

/// Text kept for the host, in bytes.
const RING_BYTES_MAX: usize = 1024 * 1024;

/// What a line costs the ring beyond its text, in bytes.
const LINE_OVERHEAD_BYTES: usize = 64;

/// Text in one event, in bytes; one line may pass it.
const EVENT_BYTES: usize = 64 * 1024;

/// Output kept for long, in bytes per second.
const INTAKE_BYTES_PER_SECOND: f64 = 1024.0 * 1024.0;

/// Output kept at once before the rate counts, in bytes.
const INTAKE_BURST_BYTES: f64 = 4.0 * 1024.0 * 1024.0;

/// Bytes read from the app at a time.
const READ_BYTES: usize = 64 * 1024;

/// Below everything else in the guest: an app that floods its output waits for itself.
const COLLECTOR_NICE: i32 = 10;

/// A run of lines without a gap, for one event.
#[derive(Debug, PartialEq)]
pub struct Batch {
    pub lines: Vec<LogLine>,
    /// Lines lost between the position asked for and the first of these.
    pub dropped: u64,
    pub next: u64,
}

#[derive(Debug, Default)]
pub struct Logs {
    ring: Mutex<Ring>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    next_sequence: u64,
}

impl Ring {
    fn push(&mut self, line: LogLine) {
        self.bytes += line.text.len() + LINE_OVERHEAD_BYTES;
        self.lines.push_back(line);
        while self.bytes > RING_BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else {
                return;
            };
            self.bytes -= oldest.text.len() + LINE_OVERHEAD_BYTES;
        }
    }

    fn batch(&self, from: u64) -> Option<Batch> {
        let start = self.lines.partition_point(|line| line.sequence < from);
        let first = self.lines.get(start)?.sequence;
        let mut batch = Batch { lines: Vec::new(), dropped: first - from, next: first };
        let mut bytes = 0;
        for line in self.lines.range(start..).take(LOG_LINES_PER_EVENT_MAX) {
            if line.sequence != batch.next || bytes > EVENT_BYTES {
                break;
            }
            bytes += line.text.len();
            batch.next += 1;
            batch.lines.push(line.clone());
        }
        Some(batch)
    }
}

impl Logs {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A position to read from: `from`, or the end when that lies beyond it.
    pub fn position(&self, from: u64) -> u64 {
        from.min(self.ring().next_sequence)
    }

    /// Waits for lines from a position on, or until `stop` holds (see [`Logs::wake`]).
    pub fn wait_batch(&self, from: u64, stop: impl Fn() -> bool) -> Option<Batch> {
        let mut ring = self.ring();
        loop {
            if stop() {
                return None;
            }
            if let Some(batch) = ring.batch(from) {
                return Some(batch);
            }
            ring = self.changed.wait(ring).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has every waiter look at its `stop` again.
    pub fn wake(&self) {
        drop(self.ring());
        self.changed.notify_all();
    }

    /// Adds lines; those of `None` only use up a number.
    fn add(&self, texts: impl Iterator<Item = Option<String>>, source: LogSource, time: SystemTime) {
        let mut ring = self.ring();
        for text in texts {
            let sequence = ring.next_sequence;
            ring.next_sequence += 1;
            if let Some(text) = text {
                ring.push(LogLine { time: Some(time.into()), source: source.into(), text, sequence });
            }
        }
        drop(ring);
        self.changed.notify_all();
    }
}

/// A token bucket over the app's output.
struct Intake {
    tokens: f64,
    at: Instant,
}

impl Intake {
    fn new(now: Instant) -> Self {
        Self { tokens: INTAKE_BURST_BYTES, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.duration_since(self.at).as_secs_f64() * INTAKE_BYTES_PER_SECOND;
        self.tokens = (self.tokens + earned).min(INTAKE_BURST_BYTES);
        self.at = now;
    }

    fn take(&mut self, bytes: usize) -> bool {
        #[allow(clippy::cast_precision_loss, reason = "a line is at most 16 KiB")]
        let cost = (bytes + LINE_OVERHEAD_BYTES) as f64;
        let room = self.tokens >= cost;
        if room {
            self.tokens -= cost;
        }
        room
    }
}

/// Text of a line: invalid UTF-8 replaced, at most [`LOG_LINE_BYTES_MAX`].
fn text_of(line: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(line).into_owned();
    truncate_text(&mut text, LOG_LINE_BYTES_MAX);
    text
}

/// Collects both streams until both have ended.
pub fn collect(logs: &Arc<Logs>, stdout: OwnedFd, stderr: OwnedFd) {
    lower_priority();
    let mut intake = Intake::new(Instant::now());
    let mut streams = vec![
        (File::from(stdout), LogSource::Stdout, Splitter::default()),
        (File::from(stderr), LogSource::Stderr, Splitter::default()),
    ];
    let mut buffer = vec![0; READ_BYTES];
    while !streams.is_empty() {
        let mut set: Vec<_> =
            streams.iter().map(|(file, _, _)| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut set, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return crate::console::say(&format!("collecting output failed: {error}")),
        }
        let ready: Vec<bool> =
            set.iter().map(|entry| entry.revents().is_some_and(|events| !events.is_empty())).collect();
        drop(set);
        intake.refill(Instant::now());
        let mut ready = ready.into_iter();
        streams.retain_mut(|(file, source, splitter)| {
            if ready.next() != Some(true) {
                return true;
            }
            // Blocking is impossible: poll said that there is input or an end.
            let count = file.read(&mut buffer).unwrap_or(0);
            let keep = |line: &[u8], intake: &mut Intake| intake.take(line.len()).then(|| text_of(line));
            let mut lines = Vec::new();
            if count == 0 {
                splitter.end(|line| lines.push(keep(line, &mut intake)));
            } else {
                splitter.feed(&buffer[..count], |line| lines.push(keep(line, &mut intake)));
            }
            if !lines.is_empty() {
                logs.add(lines.into_iter(), *source, SystemTime::now());
            }
            count > 0
        });
    }
}

#[allow(unsafe_code)] // setpriority has no wrapper
fn lower_priority() {
    // SAFETY: integer arguments; 0 is the calling thread. Failing leaves it as it was.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, COLLECTOR_NICE) };
}

#[cfg(test)]
mod tests;
