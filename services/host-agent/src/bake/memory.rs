//! Guest memory after a bake: pages that are zero become holes, which cost
//! neither disk nor a read, and the rest is counted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::domain::HostError;

/// Page of guest memory, in bytes.
const PAGE: usize = 4096;
/// Bytes read at once.
const WINDOW: usize = 1 << 20;

/// Punches the zero pages of `path` out and returns the bytes that are left. Blocks. Dying in the middle
/// loses nothing: a hole reads as the zeros that were there.
pub fn punch_zero_pages(path: &Path) -> Result<u64, HostError> {
    let work = || -> std::io::Result<u64> {
        let file = File::options().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        let mut buffer = vec![0u8; WINDOW];
        let mut data_bytes = 0;
        let mut offset = 0;
        while let Some(start) = next_data(&file, offset)? {
            let end = seek(&file, SeekFrom::Hole(start))?.min(length);
            let mut at = start - start % PAGE as u64;
            while at < end {
                let count = file.read_at(&mut buffer, at)?;
                if count == 0 {
                    break;
                }
                data_bytes += punch_window(&file, &buffer[..count], at)?;
                at += count as u64;
            }
            offset = end.max(at);
        }
        Ok(data_bytes)
    };
    work().map_err(|error| HostError::io(path, &error))
}

fn next_data(file: &File, offset: u64) -> std::io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => Ok(Some(start)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Punches runs of zero pages in one window; returns the bytes that are not.
fn punch_window(file: &File, bytes: &[u8], at: u64) -> std::io::Result<u64> {
    let mut data_bytes = 0;
    let mut run: Option<u64> = None;
    let mut position = at;
    let punch = |from: u64, to: u64| {
        fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from)
    };
    for page in bytes.chunks(PAGE) {
        if page.len() == PAGE && is_zero(page) {
            run.get_or_insert(position);
        } else {
            data_bytes += page.len() as u64;
            if let Some(from) = run.take() {
                punch(from, position)?;
            }
        }
        position += page.len() as u64;
    }
    if let Some(from) = run {
        punch(from, position)?;
    }
    Ok(data_bytes)
}

fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(16).all(|chunk| chunk == [0u8; 16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn zeros_become_holes_and_data_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        let mut bytes = vec![0u8; 8 << 20];
        for page in [0usize, 7, 8, 300, 2047] {
            bytes[page * PAGE + 5] = 1;
        }
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(punch_zero_pages(&path).unwrap(), 5 * PAGE as u64);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(punch_zero_pages(&path).unwrap(), 5 * PAGE as u64, "again changes nothing");
    }
}
