//! One line as it is stored, and lines on their way to a reader.

use std::time::{Duration, SystemTime};

use api::common::v1::{LogLine, LogSource};
use serde::{Deserialize, Serialize};

/// Longest text of one line, in bytes; what is longer is cut.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// Most lines that go to a reader at a time.
pub const LINES_PER_BATCH: usize = 1000;
/// Bytes of text after which a batch goes to its reader.
const BYTES_PER_BATCH: usize = 1 << 20;

/// One stored line; short names because there are many.
#[derive(Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Sequence in the log.
    #[serde(alias = "sequence")]
    pub s: u64,
    /// Time in nanoseconds since 1970.
    #[serde(default)]
    pub t: u64,
    /// Source, as on the wire.
    #[serde(default)]
    pub o: i32,
    /// Sequence of the line where it came from, plus one; 0 without one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub g: u64,
    /// Text.
    #[serde(alias = "text")]
    pub x: String,
    /// Time and source of the logs that earlier image-builders left in S3.
    #[serde(default, skip_serializing)]
    time_unix_us: u64,
    #[serde(default, skip_serializing)]
    source: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Stored {
    pub(crate) fn new(sequence: u64, source: i32, origin: u64, text: String) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let t = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Self {
            s: sequence,
            t,
            o: source,
            g: origin,
            x: clipped(text),
            time_unix_us: 0,
            source: String::new(),
        }
    }

    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    fn into_line(self) -> LogLine {
        let since = Duration::from_nanos(self.t) + Duration::from_micros(self.time_unix_us);
        let named = LogSource::from_str_name(&format!("LOG_SOURCE_{}", self.source));
        LogLine {
            time: Some(api::timestamp(SystemTime::UNIX_EPOCH + since)),
            source: named.map_or(self.o, i32::from),
            text: self.x,
            sequence: self.s,
        }
    }
}

/// The text, or as much of it as fits, whole characters, with an ellipsis.
fn clipped(mut text: String) -> String {
    const MORE: &str = "…";
    if text.len() > LINE_BYTES_MAX {
        let mut end = LINE_BYTES_MAX - MORE.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MORE);
    }
    text
}

/// Collects stored lines until there are enough for one message.
#[derive(Debug)]
pub struct Batch {
    next: u64,
    bytes: usize,
    lines: Vec<LogLine>,
}

impl Batch {
    /// Lines from sequence `from` on.
    #[must_use]
    pub fn new(from: u64) -> Self {
        Self { next: from, bytes: 0, lines: Vec::new() }
    }

    /// Adds a stored line, unless it comes before the wanted ones or is none.
    pub fn add(&mut self, stored: &[u8]) {
        if let Some(stored) = Stored::parse(stored).filter(|stored| stored.s >= self.next) {
            self.next = stored.s + 1;
            self.bytes += stored.x.len();
            self.lines.push(stored.into_line());
        }
    }

    /// True when the lines should go out.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lines.len() >= LINES_PER_BATCH || self.bytes >= BYTES_PER_BATCH
    }

    /// Takes the lines; those added next follow them.
    pub fn take(&mut self) -> Vec<LogLine> {
        self.bytes = 0;
        std::mem::take(&mut self.lines)
    }
}
