//! The file that holds a difference between two disks.
//!
//! ```text
//! header, 72 bytes: magic "TORPDIFF"  u32 version  u32 runs
//!                   u64 size of the disk  u64 data length  u64 reserved (0)  blake3 (32 bytes)
//! data:             the bytes of all data runs, one after the other
//! table:            per run u64 offset, u64 length, u64 kind (1 data, 2 zero)
//! ```
//!
//! Numbers are little endian. The digest covers data and table and, because
//! their lengths follow from the header, is the last thing needed to trust both.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;

use crate::manifest::FILE_BYTES_MAX;
use crate::sparse;

/// Most runs in a difference; a disk of 16 GiB cannot have more.
pub const RUNS_MAX: u32 = 1 << 21;

const MAGIC: &[u8; 8] = b"TORPDIFF";
const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: u64 = 72;
const RUN_BYTES: u64 = 24;
const WRITE_BUFFER_BYTES: usize = 1024 * 1024;
const READ_BYTES: u64 = 1024 * 1024;

/// Length of a difference with this much data in this many runs.
pub(super) fn file_bytes(data_bytes: u64, runs: usize) -> u64 {
    HEADER_BYTES + data_bytes + runs as u64 * RUN_BYTES
}

/// What a run does to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Its bytes are in the data.
    Data,
    /// It becomes zero.
    Zero,
}

/// A range of the disk that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub offset: u64,
    pub length: u64,
    pub kind: RunKind,
}

/// Writes a difference from front to back; the header comes last.
pub(super) struct Writer {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    runs: Vec<Run>,
    data_bytes: u64,
}

impl Writer {
    pub(super) fn new(mut file: File) -> io::Result<Self> {
        // The room of the header stays zero until everything else is there: a
        // file whose writer died has no magic and is refused.
        file.seek(SeekFrom::Start(HEADER_BYTES))?;
        Ok(Self {
            out: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file),
            hasher: blake3::Hasher::new(),
            runs: Vec::new(),
            data_bytes: 0,
        })
    }

    /// Appends a range that holds `bytes` now.
    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.add(offset, bytes.len() as u64, RunKind::Data)?;
        self.hasher.update(bytes);
        self.data_bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Appends a range that is zero now.
    pub(super) fn zero(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.add(offset, length, RunKind::Zero)
    }

    fn add(&mut self, offset: u64, length: u64, kind: RunKind) -> io::Result<()> {
        let full = self.runs.len() >= RUNS_MAX as usize;
        match self.runs.last_mut() {
            Some(last) if last.kind == kind && last.offset + last.length == offset => last.length += length,
            _ if full => {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "the disks differ in too many places",
                ));
            }
            _ => self.runs.push(Run { offset, length, kind }),
        }
        Ok(())
    }

    /// Completes and syncs the file; returns its runs.
    pub(super) fn finish(mut self, disk_size: u64) -> io::Result<Vec<Run>> {
        for run in &self.runs {
            let kind: u64 = match run.kind {
                RunKind::Data => 1,
                RunKind::Zero => 2,
            };
            let mut entry = [0; RUN_BYTES as usize];
            entry[..8].copy_from_slice(&run.offset.to_le_bytes());
            entry[8..16].copy_from_slice(&run.length.to_le_bytes());
            entry[16..].copy_from_slice(&kind.to_le_bytes());
            self.hasher.update(&entry);
            self.out.write_all(&entry)?;
        }
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut header = [0; HEADER_BYTES as usize];
        let count = u32::try_from(self.runs.len()).expect("the number of runs is limited");
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&count.to_le_bytes());
        header[16..24].copy_from_slice(&disk_size.to_le_bytes());
        header[24..32].copy_from_slice(&self.data_bytes.to_le_bytes());
        header[40..].copy_from_slice(self.hasher.finalize().as_bytes());
        file.write_all_at(&header, 0)?;
        file.sync_all()?;
        Ok(self.runs)
    }
}

/// A difference that was read and found in order.
#[derive(Debug)]
pub(super) struct Difference {
    pub disk_size: u64,
    pub runs: Vec<Run>,
}

/// Reads a difference and checks all of it: lengths, digest, order and bounds of
/// its runs. The inner error is a sentence about what does not fit.
pub(super) fn read(file: &File) -> io::Result<Result<Difference, String>> {
    let length = file.metadata()?.len();
    if length < HEADER_BYTES {
        return Ok(Err("it is shorter than a difference's header".to_owned()));
    }
    let header = sparse::read_at(file, 0, HEADER_BYTES as usize)?;
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let (version, count) = (word(8) as u32, (word(8) >> 32) as u32);
    let (disk_size, data_bytes) = (word(16), word(24));
    if &header[..8] != MAGIC || version != VERSION || word(32) != 0 {
        return Ok(Err("it does not start like a difference".to_owned()));
    }
    if count > RUNS_MAX || disk_size > FILE_BYTES_MAX || data_bytes > disk_size {
        return Ok(Err("its header is out of bounds".to_owned()));
    }
    let table_bytes = u64::from(count) * RUN_BYTES;
    if length != file_bytes(data_bytes, count as usize) {
        return Ok(Err(format!("{length} bytes are not what its header says")));
    }
    if hash(file, HEADER_BYTES, length)?.as_bytes()[..] != header[40..] {
        return Ok(Err("its digest does not fit its content".to_owned()));
    }
    let table_len = usize::try_from(table_bytes).expect("the number of runs is limited");
    let table = sparse::read_at(file, HEADER_BYTES + data_bytes, table_len)?;
    Ok(read_table(&table, disk_size, data_bytes).map(|runs| Difference { disk_size, runs }))
}

fn hash(file: &File, from: u64, to: u64) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut at = from;
    while at < to {
        let piece = READ_BYTES.min(to - at);
        hasher.update(&sparse::read_at(file, at, piece as usize)?);
        at += piece;
    }
    Ok(hasher.finalize())
}

fn read_table(table: &[u8], disk_size: u64, data_bytes: u64) -> Result<Vec<Run>, String> {
    let (mut runs, mut behind, mut data) = (Vec::with_capacity(table.len() / RUN_BYTES as usize), 0, 0);
    for entry in table.chunks_exact(RUN_BYTES as usize) {
        let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
        let (offset, length) = (word(0), word(8));
        let kind = match word(16) {
            1 => RunKind::Data,
            2 => RunKind::Zero,
            other => return Err(format!("a run of kind {other} is not known")),
        };
        let end = offset.checked_add(length).filter(|end| length > 0 && *end <= disk_size);
        let Some(end) = end.filter(|_| offset >= behind) else {
            return Err("its runs overlap, are empty, or leave the disk".to_owned());
        };
        if kind == RunKind::Data {
            data += length;
        }
        behind = end;
        runs.push(Run { offset, length, kind });
    }
    if data == data_bytes { Ok(runs) } else { Err("its runs and its data do not match".to_owned()) }
}
