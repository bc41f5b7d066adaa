//! Copies that share their blocks with the original where the file system can.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::sparse;

/// Piece of a file that is copied at once, in bytes.
const COPY_BYTES: u64 = 4 * 1024 * 1024;

/// How a copy came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMethod {
    /// Both files share their blocks until one of them is written.
    Reflink,
    /// The data was copied, holes were not.
    SparseCopy,
}

/// Copies `source` to `copy`, which must not exist. The copy is not synced to
/// disk; after an error it is gone.
///
/// A reflink first writes back what the source has not on disk yet, so a file
/// that was just written should be synced when that costs nobody time.
pub fn reflink(source: &Path, copy: &Path) -> Result<CopyMethod, Error> {
    let from = File::open(source).map_err(Error::file(source))?;
    let to =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(copy).map_err(Error::file(copy))?;
    let outcome = clone_or_copy(&from, &to);
    if outcome.is_err() {
        // Best effort: half a copy is of no use, and the first error says more.
        let _ = std::fs::remove_file(copy);
    }
    outcome.map_err(Error::file(copy))
}

/// Makes `copy`, which exists and is as long as `source`, the same as `source`, whoever has it open. Like [`reflink`]
/// otherwise; after an error its content is undefined.
pub fn refill(source: &Path, copy: &Path) -> Result<CopyMethod, Error> {
    let from = File::open(source).map_err(Error::file(source))?;
    let to = OpenOptions::new().write(true).open(copy).map_err(Error::file(copy))?;
    let length = |file: &File, path| file.metadata().map(|data| data.len()).map_err(Error::file(path));
    if length(&from, source)? != length(&to, copy)? {
        return Err(Error::file(copy)(io::Error::other("the copy has another length than its source")));
    }
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => return Ok(CopyMethod::Reflink),
        Err(error) if cannot_clone(error) => {}
        Err(error) => return Err(Error::file(copy)(error.into())),
    }
    // Holes of the source must be holes of the copy: what was there before would show through.
    let emptied = to.set_len(0).and_then(|()| copy_data(&from, &to));
    emptied.map(|()| CopyMethod::SparseCopy).map_err(Error::file(copy))
}

fn clone_or_copy(from: &File, to: &File) -> io::Result<CopyMethod> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(CopyMethod::Reflink),
        Err(error) if cannot_clone(error) => {
            copy_data(from, to)?;
            Ok(CopyMethod::SparseCopy)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether an error of FICLONE is about the file system and not about these files.
fn cannot_clone(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS)
}

fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    for (start, length) in sparse::data_ranges(from, size)? {
        let mut at = start;
        while at < start + length {
            at += copy_piece(from, to, at, COPY_BYTES.min(start + length - at))?;
        }
    }
    Ok(())
}

/// Copies at most `length` bytes at `offset`; returns how many it was.
fn copy_piece(from: &File, to: &File, offset: u64, length: u64) -> io::Result<u64> {
    let count = usize::try_from(length).expect("a piece fits in memory");
    let (mut read_at, mut write_at) = (offset, offset);
    match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), count) {
        Ok(copied) if copied > 0 => return Ok(copied as u64),
        Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if cannot_clone(error) => {}
        Err(error) => return Err(error.into()),
    }
    let bytes = sparse::read_at(from, offset, count)?;
    to.write_all_at(&bytes, offset)?;
    Ok(length)
}

/// Whether files in `folder` can share blocks. Tries it on two nameless files.
pub fn is_reflink_filesystem(folder: &Path) -> Result<bool, Error> {
    probe(folder).map_err(|error| Error::File { path: folder.to_owned(), source: error.into() })
}

fn probe(folder: &Path) -> Result<bool, Errno> {
    let nameless = || {
        rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    };
    // Every file system that can share blocks has nameless files.
    let from = match nameless() {
        Err(error) if cannot_clone(error) || error == Errno::ISDIR => return Ok(false),
        opened => opened?,
    };
    let to = nameless()?;
    rustix::io::pwrite(&from, &[1; 4096], 0)?;
    match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => Ok(true),
        Err(error) if cannot_clone(error) => Ok(false),
        Err(error) => Err(error),
    }
}
