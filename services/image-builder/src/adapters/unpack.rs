//! Unpacks an artifact into a fresh directory. What may be in it is decided by [`crate::domain::archive`];
//! here the bytes are counted as they come out, whatever the archive's headers claim.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown, lchown, symlink};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::config::ArchiveSettings;
use crate::domain::archive::{Checker, Kind, LINK_BYTES_MAX, Refusal, check_link, check_unpacked};

/// Longest distance of the end record from the end of a zip: its comment may have 64 KiB.
const END_RECORD_WINDOW: u64 = 22 + 65_535;
const END_RECORD: &[u8; 4] = b"PK\x05\x06";
/// Bytes moved at a time.
const BUFFER_BYTES: usize = 64 * 1024;
/// Permissions kept; never set-user-id and its like.
const MODE_MASK: u32 = 0o777;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("cannot unpack the artifact")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: usize,
    pub bytes: u64,
}

fn broken(error: ZipError) -> Error {
    match error {
        ZipError::Io(error) if error.kind() == io::ErrorKind::StorageFull => Error::Io(error),
        error => Refusal::Invalid(error.to_string().trim_end_matches('.').to_owned()).into(),
    }
}

/// Unpacks `archive` into the empty directory `target`; everything in it will
/// belong to `owner` (user and group id). Blocking.
pub fn unpack(
    archive: &Path,
    target: &Path,
    limits: &ArchiveSettings,
    owner: u32,
) -> Result<Unpacked, Error> {
    let mut file = File::open(archive)?;
    let packed = file.metadata()?.len();
    check_entry_count(&mut file, packed, limits)?;
    let mut zip = ZipArchive::new(file).map_err(broken)?;
    if zip.has_duplicate_names() {
        return Err(Refusal::Invalid("two entries have the same name".to_owned()).into());
    }
    if zip.has_overlapping_files().map_err(broken)? {
        return Err(Refusal::Invalid("its entries overlap".to_owned()).into());
    }
    let entries = plan(&mut zip, limits)?;
    let mut bytes = 0;
    for (index, (path, kind)) in entries.iter().enumerate() {
        let mut entry = zip.by_index(index).map_err(broken)?;
        let mode = entry.unix_mode().unwrap_or(0);
        let place = target.join(path);
        if let Some(parent) = place.parent() {
            make_directories(target, parent, owner)?;
        }
        match kind {
            Kind::Directory => make_directories(target, &place, owner)?,
            Kind::Link => {
                let mut text = String::new();
                Read::take(&mut entry, LINK_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
                check_link(path, &text)?;
                symlink(&text, &place)?;
                lchown(&place, Some(owner), Some(owner))?;
            }
            Kind::File => {
                let mut out = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&place)?;
                let count = |more: u64| {
                    bytes += more;
                    check_unpacked(limits, packed, bytes)
                };
                copy(&mut entry, &mut out, count)?;
                let default = if mode & MODE_MASK == 0 { 0o644 } else { 0 };
                out.set_permissions(fs::Permissions::from_mode((mode & MODE_MASK) | default | 0o600))?;
                fchown(&out, Some(owner), Some(owner))?;
            }
        }
    }
    Ok(Unpacked { entries: entries.len(), bytes })
}

fn plan(zip: &mut ZipArchive<File>, limits: &ArchiveSettings) -> Result<Vec<(String, Kind)>, Error> {
    let mut checker = Checker::new(limits, zip.len())?;
    let mut entries = Vec::with_capacity(zip.len());
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(broken)?;
        if entry.encrypted() {
            return Err(Refusal::Invalid("it is encrypted".to_owned()).into());
        }
        let name = entry.name().map_err(broken)?.into_owned();
        entries.push(checker.entry(&name, entry.unix_mode())?);
    }
    checker.finish()?;
    Ok(entries)
}

/// Reads the number of entries from the end of the file, before the zip library takes memory for all of them.
fn check_entry_count(file: &mut File, size: u64, limits: &ArchiveSettings) -> Result<(), Error> {
    let start = size.saturating_sub(END_RECORD_WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(END_RECORD_WINDOW).read_to_end(&mut tail)?;
    file.seek(SeekFrom::Start(0))?;
    let mut records = tail
        .windows(12)
        .filter(|window| window.starts_with(END_RECORD))
        .map(|window| usize::from(u16::from_le_bytes([window[10], window[11]])))
        .peekable();
    if records.peek().is_none() {
        return Err(Refusal::Invalid("it is not a zip archive".to_owned()).into());
    }
    for entries in records {
        Checker::new(limits, entries)?;
    }
    Ok(())
}

fn copy(
    entry: &mut impl Read,
    out: &mut File,
    mut count: impl FnMut(u64) -> Result<(), Refusal>,
) -> Result<(), Error> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = entry.read(&mut buffer).map_err(unreadable)?;
        if length == 0 {
            return Ok(());
        }
        count(length as u64)?;
        out.write_all(&buffer[..length])?;
    }
}

/// An error while decompressing is the archive's fault.
fn unreadable(error: io::Error) -> Error {
    Refusal::Invalid(format!("an entry cannot be read ({error})")).into()
}

/// Makes `directory` and what is missing between it and `root`, for `owner`.
fn make_directories(root: &Path, directory: &Path, owner: u32) -> io::Result<()> {
    let Ok(below) = directory.strip_prefix(root) else {
        return Ok(());
    };
    let mut path = root.to_owned();
    for component in below.components() {
        path.push(component);
        match fs::create_dir(&path) {
            Ok(()) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                lchown(&path, Some(owner), Some(owner))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
