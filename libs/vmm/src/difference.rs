//! The memory-difference file: the pages of a machine that are no longer those of its base.
//!
//! ```text
//!   0     magic "TRPMDIFF"
//!   8     version, u32 = 1            all numbers little-endian
//!   12    page size, u32 = 4096
//!   16    guest memory, u64 bytes
//!   24    number of runs, u64
//!   32    data offset, u64, a multiple of the page size
//!   40    number of data pages, u64
//!   48    BLAKE3 of bytes 0..48 and of the run table
//!   80    zeros
//!   128   run table: { first page u64, pages u32, kind u32 } in ascending order, never overlapping
//!   ...   hole
//!   data offset: the pages of all runs of kind 0, in order, up to the end of the file
//! ```
//!
//! A run of kind 1 is pages that became zero; it has no data, but leaving it out would bring the base's content back.
//! Room for the table is set aside before the pages are read, because zeros are only found while reading.
//!
//! Files may come from elsewhere, so [`Difference::open`] believes nothing: every count is checked against the guest's
//! size and the file's length before anything is allocated or written. The pages' content is not digested here; whoever
//! moved the file has checked it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use crate::engine::Phase;
use crate::error::{Error, Result};

/// Size of a page in bytes, on every platform this runs on.
pub const PAGE_BYTES: u64 = 4096;

const MAGIC: [u8; 8] = *b"TRPMDIFF";
const VERSION: u32 = 1;
const HEADER_DIGESTED_BYTES: usize = 48;
const HEADER_BYTES: usize = 80;
const TABLE_OFFSET: u64 = 128;
const ENTRY_BYTES: usize = 16;
/// Pages copied at a time: large enough to make calls cheap, small enough to stay in the CPU's cache.
const COPY_PAGES: u64 = 128;

static ZEROS: [u8; (COPY_PAGES * PAGE_BYTES) as usize] = [0; (COPY_PAGES * PAGE_BYTES) as usize];

/// Consecutive pages, counted from the start of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    /// First page.
    pub start: u64,
    /// Number of pages, at least 1.
    pub count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u64,
    count: u32,
    kind: Kind,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// All pages recorded.
    pub pages: u64,
    /// Those without data.
    pub zero_pages: u64,
    pub copy: Phase,
}

/// Guest memory to read from.
pub trait Pages {
    /// Fills `bytes` with what guest memory has from byte `at` on.
    fn read(&self, bytes: &mut [u8], at: u64) -> std::io::Result<()>;
}

/// Writes the pages `changed` of a guest's memory to a new file at `path`, which is not synced. An existing file is replaced;
/// after a failure there is none.
///
/// If the process dies on the way, the file is incomplete without a header: `open` refuses it.
pub fn write(path: &Path, memory: &impl Pages, memory_bytes: u64, changed: &[PageRange]) -> Result<Written> {
    let result = write_file(path, memory, memory_bytes, changed);
    if result.is_err() {
        // A partial file only takes the room that the next try may need.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn write_file(path: &Path, memory: &impl Pages, memory_bytes: u64, changed: &[PageRange]) -> Result<Written> {
    let (start, clock) = (SystemTime::now(), Instant::now());
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(|e| Error::writing(path, e))?;
    let pages: u64 = changed.iter().map(|range| range.count).sum();
    let data_offset = (TABLE_OFFSET + pages * ENTRY_BYTES as u64).next_multiple_of(PAGE_BYTES);

    let mut runs: Vec<Run> = Vec::with_capacity(changed.len());
    let mut data_pages = 0;
    let mut buffer = vec![0; (COPY_PAGES * PAGE_BYTES) as usize];
    for piece in changed.iter().flat_map(pieces) {
        let buffer = &mut buffer[..(piece.count * PAGE_BYTES) as usize];
        memory.read(buffer, piece.start * PAGE_BYTES).map_err(|e| Error::io("read guest memory", e))?;
        let kept = compact(buffer, piece.start, &mut runs);
        file.write_all_at(&buffer[..kept], data_offset + data_pages * PAGE_BYTES)
            .map_err(|e| Error::writing(path, e))?;
        data_pages += kept as u64 / PAGE_BYTES;
    }
    let bytes = data_offset + data_pages * PAGE_BYTES;
    file.set_len(bytes).map_err(|e| Error::writing(path, e))?;
    let head = encode(memory_bytes, data_offset, data_pages, &runs);
    file.write_all_at(&head, 0).map_err(|e| Error::writing(path, e))?;
    let copy = Phase { name: "copy", start, duration: clock.elapsed() };
    Ok(Written { bytes, pages, zero_pages: pages - data_pages, copy })
}

fn pieces(range: &PageRange) -> impl Iterator<Item = PageRange> + use<> {
    let range = *range;
    (0..range.count)
        .step_by(COPY_PAGES as usize)
        .map(move |skip| PageRange { start: range.start + skip, count: (range.count - skip).min(COPY_PAGES) })
}

/// Moves the pages that are not zero to the front of `buffer`, notes every page in `runs`, and returns how many bytes
/// of the buffer are to be kept.
fn compact(buffer: &mut [u8], first_page: u64, runs: &mut Vec<Run>) -> usize {
    let page_bytes = PAGE_BYTES as usize;
    let mut kept = 0;
    for index in 0..buffer.len() / page_bytes {
        let at = index * page_bytes;
        let zero = buffer[at..at + page_bytes] == ZEROS[..page_bytes];
        note(runs, first_page + index as u64, if zero { Kind::Zero } else { Kind::Data });
        if !zero {
            if kept != at {
                buffer.copy_within(at..at + page_bytes, kept);
            }
            kept += page_bytes;
        }
    }
    kept
}

fn note(runs: &mut Vec<Run>, page: u64, kind: Kind) {
    match runs.last_mut() {
        Some(last)
            if last.kind == kind && last.start + u64::from(last.count) == page && last.count < u32::MAX =>
        {
            last.count += 1;
        }
        _ => runs.push(Run { start: page, count: 1, kind }),
    }
}

fn encode(memory_bytes: u64, data_offset: u64, data_pages: u64, runs: &[Run]) -> Vec<u8> {
    let mut head = Vec::with_capacity(TABLE_OFFSET as usize + runs.len() * ENTRY_BYTES);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    for number in [memory_bytes, runs.len() as u64, data_offset, data_pages] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.resize(TABLE_OFFSET as usize, 0);
    for run in runs {
        head.extend_from_slice(&run.start.to_le_bytes());
        head.extend_from_slice(&run.count.to_le_bytes());
        head.extend_from_slice(&u32::from(run.kind == Kind::Zero).to_le_bytes());
    }
    let digest = digest(&head[..HEADER_DIGESTED_BYTES], &head[TABLE_OFFSET as usize..]);
    head[HEADER_DIGESTED_BYTES..HEADER_BYTES].copy_from_slice(digest.as_bytes());
    head
}

fn digest(header: &[u8], table: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(header).update(table).finalize()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4 bytes"))
}

/// A difference file that has passed every check.
#[derive(Debug)]
pub struct Difference {
    path: PathBuf,
    file: File,
    runs: Vec<Run>,
    data_offset: u64,
}

impl Difference {
    /// Opens and checks a file for a guest with `memory_bytes` of memory.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the first broken rule.
    pub fn open(path: &Path, memory_bytes: u64) -> Result<Self> {
        let reading = |e| Error::io(format!("read {}", path.display()), e);
        let corrupt = |reason: &str| Error::corrupt(path, reason);
        let file = File::open(path).map_err(reading)?;
        let file_bytes = file.metadata().map_err(reading)?.len();
        let mut header = [0; TABLE_OFFSET as usize];
        if file_bytes < TABLE_OFFSET {
            return Err(corrupt("shorter than a header"));
        }
        file.read_exact_at(&mut header, 0).map_err(reading)?;
        let header_rules = [
            (header[..8] == MAGIC, "not a memory difference"),
            (u32_at(&header, 8) == VERSION, "unknown version"),
            (u64::from(u32_at(&header, 12)) == PAGE_BYTES, "unknown page size"),
            (u64_at(&header, 16) == memory_bytes, "made for another memory size"),
            (
                header[HEADER_BYTES..] == [0; TABLE_OFFSET as usize - HEADER_BYTES],
                "bytes where there are none",
            ),
        ];
        if let Some((_, rule)) = header_rules.iter().find(|(holds, _)| !holds) {
            return Err(corrupt(rule));
        }
        let memory_pages = memory_bytes / PAGE_BYTES;
        let (run_count, data_offset, data_pages) =
            (u64_at(&header, 24), u64_at(&header, 32), u64_at(&header, 40));
        if run_count > memory_pages || data_pages > memory_pages {
            return Err(corrupt("more pages than the guest has"));
        }
        let table_bytes = run_count * ENTRY_BYTES as u64;
        let data_fits = data_offset.is_multiple_of(PAGE_BYTES)
            && data_offset >= TABLE_OFFSET + table_bytes
            && data_offset.checked_add(data_pages * PAGE_BYTES) == Some(file_bytes);
        if !data_fits {
            return Err(corrupt("the length does not match the header"));
        }
        let mut table = vec![0; table_bytes as usize];
        file.read_exact_at(&mut table, TABLE_OFFSET).map_err(reading)?;
        if digest(&header[..HEADER_DIGESTED_BYTES], &table).as_bytes()[..]
            != header[HEADER_DIGESTED_BYTES..HEADER_BYTES]
        {
            return Err(corrupt("the digest of the header and the run table is wrong"));
        }
        let runs = decode_runs(&table, memory_pages, data_pages).map_err(corrupt)?;
        Ok(Self { path: path.to_owned(), file, runs, data_offset })
    }

    /// Writes every page into `memory`, which holds guest memory from offset `origin` on.
    pub fn apply(&self, memory: &File, origin: u64) -> Result<()> {
        let mut buffer = vec![0; (COPY_PAGES * PAGE_BYTES) as usize];
        let mut data_at = self.data_offset;
        for run in &self.runs {
            let range = PageRange { start: run.start, count: u64::from(run.count) };
            for piece in pieces(&range) {
                let bytes = (piece.count * PAGE_BYTES) as usize;
                let content = if run.kind == Kind::Zero {
                    &ZEROS[..bytes]
                } else {
                    self.file
                        .read_exact_at(&mut buffer[..bytes], data_at)
                        .map_err(|e| Error::io(format!("read {}", self.path.display()), e))?;
                    data_at += bytes as u64;
                    &buffer[..bytes]
                };
                memory
                    .write_all_at(content, origin + piece.start * PAGE_BYTES)
                    .map_err(|e| Error::io("write guest memory", e))?;
            }
        }
        Ok(())
    }
}

fn decode_runs(table: &[u8], memory_pages: u64, data_pages: u64) -> Result<Vec<Run>, &'static str> {
    let mut runs = Vec::with_capacity(table.len() / ENTRY_BYTES);
    let mut free_from = 0;
    let mut data_seen = 0;
    for entry in table.chunks_exact(ENTRY_BYTES) {
        let (start, count) = (u64_at(entry, 0), u32_at(entry, 8));
        let kind = match u32_at(entry, 12) {
            0 => Kind::Data,
            1 => Kind::Zero,
            _ => return Err("a run of unknown kind"),
        };
        let end = start.checked_add(u64::from(count)).filter(|end| *end <= memory_pages);
        let end = end.ok_or("a run outside guest memory")?;
        if count == 0 || start < free_from {
            return Err("runs that are empty, out of order or overlapping");
        }
        free_from = end;
        if kind == Kind::Data {
            data_seen += u64::from(count);
        }
        runs.push(Run { start, count, kind });
    }
    if data_seen != data_pages {
        return Err("the runs do not add up to the data");
    }
    Ok(runs)
}

#[cfg(test)]
#[path = "difference/tests.rs"]
mod tests;
