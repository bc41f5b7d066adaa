//! Reading files with holes without reading the holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Indices of the blocks of `block_bytes` that are not entirely holes, rising.
/// Costs at most two system calls per block of data and none per hole.
///
/// On file systems that do not know holes, every block counts as data.
pub(crate) fn blocks_with_data(file: &File, size: u64, block_bytes: u64) -> io::Result<Vec<u64>> {
    let mut blocks = Vec::new();
    let mut from = 0;
    while from < size {
        match next_data(file, from)? {
            Some(data) if data < size => {
                let block = data / block_bytes;
                blocks.push(block);
                from = (block + 1) * block_bytes;
            }
            _ => break,
        }
    }
    Ok(blocks)
}

/// Offset of the first data at or behind `from`; `None` when only holes follow.
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL) => Ok(Some(from)),
        Err(error) => Err(error.into()),
    }
}

/// Data ranges of the first `size` bytes as `(offset, length)`, rising.
pub(crate) fn data_ranges(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while from < size {
        let Some(start) = next_data(file, from)?.filter(|start| *start < size) else {
            break;
        };
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL) => size,
            Err(error) => return Err(error.into()),
        };
        ranges.push((start, end - start));
        from = end;
    }
    Ok(ranges)
}

/// Reads exactly `length` bytes at `offset`.
pub(crate) fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer)
}
