//! Where a file's bytes lie on the device (FIEMAP).
#![allow(unsafe_code)] // No crate wraps this ioctl; one call, on a buffer of our own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
const FIEMAP_FLAG_SYNC: u32 = 0x1;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
/// Allocated and at a fixed place: none of unknown place, delayed allocation,
/// encoded, encrypted, not aligned, inline, packed with others.
const UNPLACED: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

/// Extents asked for in one call.
const BATCH: usize = 256;

/// More extents than this are not worth comparing.
const EXTENTS_MAX: usize = 1 << 20;

/// File systems whose physical offsets mean the same block for every file in
/// them, and that write shared blocks to a new place: XFS and Btrfs.
const COMPARABLE: [u64; 2] = [0x5846_5342, 0x9123_683E];

/// What backs a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// Written blocks from this byte of the device on.
    Placed(u64),
    /// Data, at no place that could be compared.
    Unplaced,
    /// Nothing, or blocks never written: reads as zero.
    Zero,
}

/// A range of a file and what backs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub start: u64,
    pub end: u64,
    pub backing: Backing,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// Whether equal physical offsets of two files in this file's file system mean the same block.
pub(super) fn comparable(file: &File) -> io::Result<bool> {
    let magic = rustix::fs::fstatfs(file)?.f_type;
    Ok(COMPARABLE.contains(&(magic as u64)))
}

/// The written extents of the first `size` bytes, rising; what is in between
/// is zero. Writes dirty pages back first, so that what was overwritten has its
/// new place. `None` when the file system cannot tell, or too many.
pub(super) fn extents(file: &File, size: u64) -> io::Result<Option<Vec<Extent>>> {
    let mut found = Vec::new();
    let mut from = 0;
    while from < size {
        let mut request = Request {
            start: from,
            length: size - from,
            flags: FIEMAP_FLAG_SYNC,
            mapped_extents: 0,
            extent_count: BATCH as u32,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        };
        // SAFETY: the descriptor is open for the length of the call, and the
        // kernel writes at most `extent_count` extents behind the 32 byte header,
        // which is exactly the room `Request` has.
        let outcome = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut request) };
        if outcome != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EBADR) => Ok(None),
                _ => Err(error),
            };
        }
        let batch = &request.extents[..(request.mapped_extents as usize).min(BATCH)];
        let Some(last) = batch.last() else { break };
        found.extend(batch.iter().filter_map(|raw| convert(raw, size)));
        if found.len() > EXTENTS_MAX {
            return Ok(None);
        }
        if last.flags & FIEMAP_EXTENT_LAST != 0 {
            break;
        }
        let next = last.logical + last.length;
        if next <= from {
            return Err(io::Error::other("the file system's list of extents does not advance"));
        }
        from = next;
    }
    Ok(Some(found))
}

fn convert(raw: &RawExtent, size: u64) -> Option<Extent> {
    let end = (raw.logical + raw.length).min(size);
    let backing = if raw.flags & UNPLACED != 0 {
        Backing::Unplaced
    } else if raw.flags & FIEMAP_EXTENT_UNWRITTEN != 0 {
        return None;
    } else {
        Backing::Placed(raw.physical)
    };
    (raw.logical < end).then_some(Extent { start: raw.logical, end, backing })
}

/// Ranges in which two files may differ, as `(offset, length)`, rising and not
/// touching: those that are not backed by the same blocks or by nothing in both.
pub(super) fn unequal(a: &[Extent], b: &[Extent], size: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let (mut a, mut b) = (Cursor::new(a), Cursor::new(b));
    let mut at = 0;
    while at < size {
        let (backing_a, end_a) = a.at(at, size);
        let (backing_b, end_b) = b.at(at, size);
        let end = end_a.min(end_b);
        let same = match (backing_a, backing_b) {
            (Backing::Zero, Backing::Zero) => true,
            (Backing::Placed(a), Backing::Placed(b)) => a == b,
            _ => false,
        };
        if !same {
            match ranges.last_mut() {
                Some((start, length)) if *start + *length == at => *length += end - at,
                _ => ranges.push((at, end - at)),
            }
        }
        at = end;
    }
    ranges
}

/// Walks a list of extents forward.
struct Cursor<'a> {
    rest: &'a [Extent],
}

impl<'a> Cursor<'a> {
    fn new(extents: &'a [Extent]) -> Self {
        Self { rest: extents }
    }

    /// What backs the byte at `offset`, and up to where that goes on.
    fn at(&mut self, offset: u64, size: u64) -> (Backing, u64) {
        while let Some((first, rest)) = self.rest.split_first()
            && first.end <= offset
        {
            self.rest = rest;
        }
        match self.rest.first() {
            None => (Backing::Zero, size),
            Some(extent) if extent.start > offset => (Backing::Zero, extent.start.min(size)),
            Some(extent) => {
                let backing = match extent.backing {
                    Backing::Placed(physical) => Backing::Placed(physical + (offset - extent.start)),
                    other => other,
                };
                (backing, extent.end.min(size))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(start: u64, end: u64, physical: u64) -> Extent {
        Extent { start, end, backing: Backing::Placed(physical) }
    }

    #[test]
    fn unequal_ranges() {
        let unplaced = Extent { start: 10, end: 20, backing: Backing::Unplaced };
        let base = [placed(0, 40, 1000), placed(60, 100, 2000)];
        type Case<'a> = (&'a str, &'a [Extent], &'a [Extent], &'a [(u64, u64)]);
        let cases: &[Case] = &[
            ("both empty", &[], &[], &[]),
            ("the same", &base, &base, &[]),
            (
                "the same, cut differently",
                &[placed(0, 10, 1000), placed(10, 40, 1010), placed(60, 100, 2000)],
                &base,
                &[],
            ),
            (
                "overwritten inside",
                &[placed(0, 10, 1000), placed(10, 20, 5000), placed(20, 40, 1020), placed(60, 100, 2000)],
                &base,
                &[(10, 10)],
            ),
            ("a hole punched", &[placed(0, 40, 1000), placed(60, 80, 2000)], &base, &[(80, 20)]),
            (
                "written into a hole",
                &[placed(0, 40, 1000), placed(40, 60, 7000), placed(60, 100, 2000)],
                &base,
                &[(40, 20)],
            ),
            ("moved by one", &[placed(1, 40, 1000), placed(60, 100, 2000)], &base, &[(0, 40)]),
            ("nothing against all", &[], &base, &[(0, 40), (60, 40)]),
            ("unplaced is never equal", &[unplaced], &[unplaced], &[(10, 10)]),
        ];
        for (name, a, b, expected) in cases {
            assert_eq!(unequal(a, b, 100), *expected, "{name}");
            assert_eq!(unequal(b, a, 100), *expected, "{name}, turned round");
        }
    }
}
