//! What a disk has that its original has not, and putting it onto a copy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::chunk::{PAGE_BYTES, is_zero};
use crate::disk::extents;
use crate::disk::format::{self, HEADER_BYTES, Run, RunKind, Writer};
use crate::error::Error;
use crate::manifest::FILE_BYTES_MAX;
use crate::sparse;

/// Bytes that are compared, and written, at once.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// How the places to compare were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferenceMethod {
    /// From the files' extents: blocks that both share were not read.
    Extents,
    /// The file system cannot tell: everything but holes was read.
    Contents,
}

/// What a difference holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DifferenceStats {
    /// How the places to compare were found.
    pub method: DifferenceMethod,
    /// Bytes of the disk that changed and are not zero.
    pub data_bytes: u64,
    /// Bytes of the disk that became zero.
    pub zero_bytes: u64,
    /// Ranges they are in.
    pub runs: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

/// Writes to `out`, which must not exist, what it takes to make `disk` from its original `base`. The file is
/// synced to disk; after an error it is gone. A crash leaves a file that [`apply`] refuses.
///
/// Both must have the same size. Blocks that the two share are not read; what is left is compared page by
/// page, so that writing the same bytes again costs nothing.
///
/// # Errors
/// [`Error::Invalid`] for unequal or too large disks, [`Error::File`].
pub fn difference(disk: &Path, base: &Path, out: &Path) -> Result<DifferenceStats, Error> {
    let disk_file = File::open(disk).map_err(Error::file(disk))?;
    let base_file = File::open(base).map_err(Error::file(base))?;
    let size = disk_file.metadata().map_err(Error::file(disk))?.len();
    let base_size = base_file.metadata().map_err(Error::file(base))?.len();
    if size != base_size || size > FILE_BYTES_MAX {
        let detail = format!("a disk of {size} bytes has no difference to one of {base_size}");
        return Err(Error::invalid(detail));
    }
    let out_file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(out).map_err(Error::file(out))?;
    let outcome = write_difference(&disk_file, &base_file, out_file, size);
    if outcome.is_err() {
        // Best effort: an unfinished difference is refused by whoever reads it.
        let _ = std::fs::remove_file(out);
    }
    outcome.map_err(Error::file(out))
}

fn write_difference(disk: &File, base: &File, out: File, size: u64) -> io::Result<DifferenceStats> {
    let (method, ranges) = places(disk, base, size)?;
    let mut writer = Writer::new(out)?;
    for (start, length) in ranges {
        let mut at = start;
        while at < start + length {
            let window = WINDOW_BYTES.min(start + length - at);
            compare(disk, base, at, window as usize, &mut writer)?;
            at += window;
        }
    }
    let runs = writer.finish(size)?;
    let bytes = |kind| runs.iter().filter(|run| run.kind == kind).map(|run| run.length).sum();
    let data_bytes = bytes(RunKind::Data);
    Ok(DifferenceStats {
        method,
        data_bytes,
        zero_bytes: bytes(RunKind::Zero),
        runs: runs.len() as u64,
        file_bytes: format::file_bytes(data_bytes, runs.len()),
    })
}

/// Ranges in which the two may differ, as `(offset, length)`, rising.
fn places(disk: &File, base: &File, size: u64) -> io::Result<(DifferenceMethod, Vec<(u64, u64)>)> {
    let same_device = rustix::fs::fstat(disk)?.st_dev == rustix::fs::fstat(base)?.st_dev;
    if same_device
        && extents::comparable(disk)?
        && let Some(of_disk) = extents::extents(disk, size)?
        && let Some(of_base) = extents::extents(base, size)?
    {
        return Ok((DifferenceMethod::Extents, extents::unequal(&of_disk, &of_base, size)));
    }
    let mut windows = sparse::blocks_with_data(disk, size, WINDOW_BYTES)?;
    windows.extend(sparse::blocks_with_data(base, size, WINDOW_BYTES)?);
    windows.sort_unstable();
    windows.dedup();
    let range = |window: u64| (window * WINDOW_BYTES, WINDOW_BYTES.min(size - window * WINDOW_BYTES));
    Ok((DifferenceMethod::Contents, windows.into_iter().map(range).collect()))
}

fn compare(disk: &File, base: &File, offset: u64, length: usize, writer: &mut Writer) -> io::Result<()> {
    let now = sparse::read_at(disk, offset, length)?;
    let before = sparse::read_at(base, offset, length)?;
    let page_len = PAGE_BYTES as usize;
    let mut at = offset;
    for (now, before) in now.chunks(page_len).zip(before.chunks(page_len)) {
        if now != before {
            if is_zero(now) {
                writer.zero(at, now.len() as u64)?;
            } else {
                writer.data(at, now)?;
            }
        }
        at += now.len() as u64;
    }
    Ok(())
}

/// Writes a difference onto `disk`, a copy of the original it was taken from, and syncs it. All of the
/// difference is checked before the first write. Repeating after an error or a crash gives the same disk.
///
/// # Errors
/// [`Error::Corrupt`] naming the difference, [`Error::Invalid`] when the disk
/// has another size than the one it was taken from, [`Error::File`].
pub fn apply(difference: &Path, disk: &Path) -> Result<(), Error> {
    let from = File::open(difference).map_err(Error::file(difference))?;
    let read = format::read(&from).map_err(Error::file(difference))?;
    let content = read.map_err(|detail| Error::corrupt(difference.display().to_string(), detail))?;
    let onto = OpenOptions::new().read(true).write(true).open(disk).map_err(Error::file(disk))?;
    let size = onto.metadata().map_err(Error::file(disk))?.len();
    if size != content.disk_size {
        let detail =
            format!("a difference of a disk of {} bytes goes onto no disk of {size}", content.disk_size);
        return Err(Error::invalid(detail));
    }
    write_runs(&from, &onto, &content.runs).map_err(Error::file(disk))
}

fn write_runs(from: &File, onto: &File, runs: &[Run]) -> io::Result<()> {
    let mut read_at = HEADER_BYTES;
    for run in runs {
        match run.kind {
            RunKind::Zero => zero(onto, run.offset, run.length)?,
            RunKind::Data => {
                copy(from, read_at, onto, run.offset, run.length)?;
                read_at += run.length;
            }
        }
    }
    onto.sync_all()
}

fn copy(from: &File, read_at: u64, onto: &File, write_at: u64, length: u64) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let piece = WINDOW_BYTES.min(length - done);
        let bytes = sparse::read_at(from, read_at + done, piece as usize)?;
        onto.write_all_at(&bytes, write_at + done)?;
        done += piece;
    }
    Ok(())
}

/// Makes a range zero, as a hole where the file system can.
fn zero(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, punch, offset, length) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; WINDOW_BYTES.min(length) as usize];
    let mut done = 0;
    while done < length {
        let piece = WINDOW_BYTES.min(length - done);
        file.write_all_at(&zeros[..piece as usize], offset + done)?;
        done += piece;
    }
    Ok(())
}
