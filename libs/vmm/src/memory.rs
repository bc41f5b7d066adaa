//! Guest memory as the kernel sees it: where a process maps it, which pages are its own, and access to them.
//!
//! Nearly everything goes through files of one process that are opened once: an open file stays with that process, even if its id
//! is taken by another one meanwhile. Pages alone are read by the id, which saves the kernel a copy of each; whoever reads them
//! asks [`GuestMemory::is_there`] afterwards. They are written through the file: a write cannot be asked about afterwards.

#![allow(unsafe_code)] // PAGEMAP_SCAN has no safe wrapper.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::difference::{PAGE_BYTES, PageRange, Pages};
use crate::error::{Error, Result};

/// Regions returned by one PAGEMAP_SCAN call.
const SCAN_REGIONS: usize = 4096;
/// Pages looked at by one read of the plain pagemap.
const PAGEMAP_READ_PAGES: u64 = 8192;
/// A process of ours has some hundred mappings; more text than this is not one of ours.
const MAPS_BYTES_MAX: u64 = 4 << 20;

// From the kernel's include/uapi/linux/fs.h.
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
// From Documentation/admin-guide/mm/pagemap.rst.
const PAGEMAP_PRESENT: u64 = 1 << 63;
const PAGEMAP_SWAPPED: u64 = 1 << 62;
const PAGEMAP_FILE: u64 = 1 << 61;

#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// The memory of one guest inside its engine's process.
pub(crate) struct GuestMemory {
    /// `/proc/PID/mem`; guest memory starts at `origin` in it.
    pub(crate) content: File,
    pub(crate) origin: u64,
    pid: Pid,
    bytes: u64,
    pagemap: File,
}

impl GuestMemory {
    /// Finds the private mapping of a base memory file. The mapping is known by its size: the engine maps nothing else
    /// of a file that is `bytes` long, private and writable.
    pub(crate) fn find(pid: u32, bytes: u64) -> Result<Self> {
        let open = |name: &str, write: bool| {
            let path = format!("/proc/{pid}/{name}");
            let file = File::options().read(true).write(write).open(&path);
            file.map_err(|e| Error::io(format!("open {path}"), e))
        };
        let content = open("mem", true)?;
        let pagemap = open("pagemap", false)?;
        let mut maps = String::new();
        std::io::Read::read_to_string(
            &mut std::io::Read::take(open("maps", false)?, MAPS_BYTES_MAX),
            &mut maps,
        )
        .map_err(|e| Error::io(format!("read /proc/{pid}/maps"), e))?;
        let origin = private_mapping(&maps, bytes)
            .ok_or_else(|| Error::Protocol("its guest memory is not mapped as a private base".into()))?;
        let pid = Pid::from_raw(
            i32::try_from(pid).map_err(|_| Error::Protocol("a process id of its own kind".into()))?,
        );
        Ok(Self { content, origin, pid, bytes, pagemap })
    }

    /// Whether the process still has its memory.
    pub(crate) fn is_there(&self) -> bool {
        self.content.read_exact_at(&mut [0], self.origin).is_ok()
    }

    /// The pages that are no longer the base file's. Its cost follows what is mapped, not the size of the guest, where
    /// the kernel (6.7 and later) can scan by itself.
    pub(crate) fn changed(&self) -> Result<Vec<PageRange>> {
        match self.scan() {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::ENOSYS)) => {
                self.read_pagemap()
            }
            other => other,
        }
        .map_err(|e| Error::io("scan guest memory", e))
    }

    fn scan(&self) -> std::io::Result<Vec<PageRange>> {
        let end = self.origin + self.bytes;
        let mut ranges = Vec::new();
        let mut regions = vec![ScanRegion::default(); SCAN_REGIONS];
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start: self.origin,
            end,
            regions: regions.as_mut_ptr() as u64,
            regions_len: SCAN_REGIONS as u64,
            // Not of a file, and there: in memory or in swap.
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            // Neighbours are merged when they agree in these, so ask only for what they agree in anyway.
            return_mask: PAGE_IS_FILE,
            ..ScanArguments::default()
        };
        while arguments.start < end {
            // SAFETY: the kernel reads `arguments`, writes its `walk_end`, and at most `regions_len` elements to
            // `regions`; both live and are borrowed by nobody else during the call.
            let found = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
            if found < 0 {
                return Err(std::io::Error::last_os_error());
            }
            for region in &regions[..found as usize] {
                push(
                    &mut ranges,
                    (region.start - self.origin) / PAGE_BYTES,
                    (region.end - region.start) / PAGE_BYTES,
                );
            }
            // Fewer regions than there was room for: the walk reached the end. `walk_end` does not say so reliably: some
            // kernels leave it at the last point where their own, smaller buffer was full, and going on from there
            // would report the pages behind it twice.
            if (found as usize) < SCAN_REGIONS {
                break;
            }
            let last = regions[SCAN_REGIONS - 1].end;
            if last <= arguments.start {
                return Err(std::io::Error::other("the scan does not move on"));
            }
            arguments.start = last;
        }
        Ok(ranges)
    }

    fn read_pagemap(&self) -> std::io::Result<Vec<PageRange>> {
        let mut ranges = Vec::new();
        let mut buffer = vec![0; (PAGEMAP_READ_PAGES * 8) as usize];
        let pages = self.bytes / PAGE_BYTES;
        let mut page = 0;
        while page < pages {
            let count = (pages - page).min(PAGEMAP_READ_PAGES);
            let entries = &mut buffer[..(count * 8) as usize];
            self.pagemap.read_exact_at(entries, (self.origin / PAGE_BYTES + page) * 8)?;
            for (index, entry) in entries.chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes(entry.try_into().expect("a chunk of 8 bytes"));
                if entry & PAGEMAP_FILE == 0 && entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED) != 0 {
                    push(&mut ranges, page + index as u64, 1);
                }
            }
            page += count;
        }
        Ok(ranges)
    }
}

impl Pages for GuestMemory {
    fn read(&self, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = &mut bytes[filled..];
            let base = usize::try_from(self.origin + at).map_err(std::io::Error::other)? + filled;
            let remote = RemoteIoVec { base, len: rest.len() };
            // It may stop early, at a page that could not be had at once.
            match process_vm_readv(self.pid, &mut [IoSliceMut::new(rest)], &[remote])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        Ok(())
    }
}

fn push(ranges: &mut Vec<PageRange>, start: u64, count: u64) {
    match ranges.last_mut() {
        Some(last) if last.start + last.count == start => last.count += count,
        _ => ranges.push(PageRange { start, count }),
    }
}

/// Address of the only private, writable mapping of a file that covers exactly `bytes` from the file's start. The kernel may
/// have split it into neighbouring entries.
fn private_mapping(maps: &str, bytes: u64) -> Option<u64> {
    let mut found = None;
    let mut open: Option<(u64, u64, &str)> = None; // start, end, "device inode"
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ');
        let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let device_end = line.match_indices(' ').nth(4).map_or(line.len(), |(at, _)| at);
        let file = &line[range.len() + permissions.len() + offset.len() + 3..device_end];
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let offset = u64::from_str_radix(offset, 16).ok()?;
        open = match open {
            _ if permissions != "rw-p" || file.ends_with(" 0") => None,
            Some((first, last, same)) if last == start && same == file && offset == last - first => {
                Some((first, end, same))
            }
            _ if offset == 0 => Some((start, end, file)),
            _ => None,
        };
        if let Some((first, last, _)) = open
            && last - first == bytes
        {
            if found.is_some() {
                return None;
            }
            found = Some(first);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapping_is_found_by_its_size() {
        const MIB: u64 = 1 << 20;
        let base = "7f0000000000-7f0020000000 rw-p 00000000 fe:00 77    /base\n";
        let halves = "7f0000000000-7f0010000000 rw-p 00000000 fe:00 77    /base\n\
                      7f0010000000-7f0020000000 rw-p 10000000 fe:00 77    /base\n";
        let anonymous = "7e0000000000-7e0020000000 rw-p 00000000 00:00 0 \n";
        let shared = "7f0000000000-7f0020000000 rw-s 00000000 fe:00 77    /base\n";
        let library = "7f0030000000-7f0030001000 rw-p 00005000 fe:00 12    /lib/x.so\n";
        let cases = [
            (format!("{anonymous}{base}{library}"), Some(0x7f00_0000_0000)),
            (format!("{halves}{library}"), Some(0x7f00_0000_0000)),
            (anonymous.to_owned(), None),
            (shared.to_owned(), None),
            (format!("{base}{}", base.replace("7f00", "7d00")), None),
            (base.replace("00000000 fe", "00001000 fe"), None),
            ("garbage\n".to_owned(), None),
        ];
        for (maps, expected) in cases {
            assert_eq!(private_mapping(&maps, 512 * MIB), expected, "{maps}");
        }
    }

    /// Both ways of looking agree on a mapping of our own, in which some pages were written and others only read.
    #[test]
    fn both_scans_find_written_pages_only() {
        let some = [(0, true), (1, true), (2, false), (700, true), (6143, true), (4000, false)];
        let expected = [(0, 2), (700, 1), (6143, 1)].map(|(start, count)| PageRange { start, count });
        check_scans(24 << 20, some.into_iter(), &expected);
    }

    /// More regions than the kernel's own buffer holds (512), and more than one call of ours takes.
    #[test]
    fn scattered_pages_are_found_once_each() {
        for regions in [513, SCAN_REGIONS, 2 * SCAN_REGIONS + 700] {
            let every_other = (0..regions).map(|index| (index * 2, true));
            let expected: Vec<_> =
                (0..regions as u64).map(|index| PageRange { start: index * 2, count: 1 }).collect();
            check_scans(96 << 20, every_other, &expected);
        }
    }

    fn check_scans(bytes: u64, pages: impl Iterator<Item = (usize, bool)>, expected: &[PageRange]) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        // SAFETY: a fresh mapping that only this test touches, through the pointer, and never unmaps.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        for (page, write) in pages {
            // SAFETY: inside the mapping.
            unsafe {
                let at = base.cast::<u8>().add(page * PAGE_BYTES as usize);
                if write { at.write_volatile(1) } else { assert_eq!(at.read_volatile(), 0) }
            }
        }
        let memory = GuestMemory::find(std::process::id(), bytes).unwrap();
        assert_eq!(memory.read_pagemap().unwrap(), expected);
        assert!(memory.is_there());
        let mut page = [9; PAGE_BYTES as usize];
        for range in expected {
            memory.read(&mut page, range.start * PAGE_BYTES).unwrap();
            assert!(page[0] == 1 && page[1..].iter().all(|byte| *byte == 0));
        }
        match memory.scan() {
            Ok(ranges) => assert_eq!(ranges, expected),
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOTTY), "{e}"),
        }
        // SAFETY: the whole mapping made above, used by nobody any more; the next check needs it gone.
        unsafe { libc::munmap(base, bytes as usize) };
        assert!(!memory.is_there());
    }
}
