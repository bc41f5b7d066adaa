//! Unpacks an artifact into a fresh directory. What may be in it is decided by [`crate::domain::archive`];
//! here the bytes are counted as they come out, whatever the archive's headers claim.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown, symlink};
use std::path::Path;

use zip::read::ZipFileEntry;
use zip::result::ZipError;
use zip::{CompressionMethod, System, ZipArchive};

use crate::config::ArchiveSettings;
use crate::domain::archive::{
    Checker, Kind, LINK_BYTES_MAX, Refusal, Spelling, check_count, check_link, check_unpacked, encrypted,
    unsupported,
};

/// Longest distance of the end record from the end of a zip: its comment may have 64 KiB.
const END_RECORD_WINDOW: u64 = 22 + 65_535;
const END_RECORD: &[u8; 4] = b"PK\x05\x06";
/// Of a zip with more entries, or bytes, than the end record can name: its own, larger end record, and where that is.
const LARGE_LOCATOR: &[u8; 4] = b"PK\x06\x07";
const LARGE_LOCATOR_BYTES: u64 = 20;
const LARGE_END_RECORD: &[u8; 4] = b"PK\x06\x06";
/// Bytes moved at a time.
const BUFFER_BYTES: usize = 64 * 1024;
/// Permissions kept; never set-user-id and its like.
const MODE_MASK: u32 = 0o777;
/// Permissions of an entry from a system without them. Nobody can tell a program from another file there.
const MODE_UNKNOWN: u32 = 0o755;
/// Permissions of an entry whose tool left them out, on a system that has them.
const MODE_UNSET: u32 = 0o644;
/// Its owner, the build, reads and writes everything.
const MODE_OWNER: u32 = 0o600;

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
    /// Entries that say nothing of the artifact: its root, and what macOS adds for itself.
    pub left_out: usize,
}

/// An entry that is to be unpacked.
struct Planned {
    index: usize,
    /// Relative to the root.
    path: String,
    kind: Kind,
    /// Permissions of a file.
    mode: u32,
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
    let entries = plan(&zip, limits)?;
    let mut bytes = 0;
    for Planned { index, path, kind, mode } in &entries {
        let mut entry = zip.by_index(*index).map_err(broken)?;
        let place = target.join(path);
        if let Some(parent) = place.parent() {
            make_directories(target, parent, owner)?;
        }
        match kind {
            Kind::Directory => make_directories(target, &place, owner)?,
            Kind::Link => {
                let mut text = Vec::new();
                Read::take(&mut entry, LINK_BYTES_MAX as u64 + 1)
                    .read_to_end(&mut text)
                    .map_err(unreadable)?;
                check_link(path, &text)?;
                symlink(OsStr::from_bytes(&text), &place)?;
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
                out.set_permissions(fs::Permissions::from_mode(*mode))?;
                fchown(&out, Some(owner), Some(owner))?;
            }
        }
    }
    Ok(Unpacked { entries: entries.len(), bytes, left_out: zip.len() - entries.len() })
}

fn plan(zip: &ZipArchive<File>, limits: &ArchiveSettings) -> Result<Vec<Planned>, Error> {
    let mut names = Vec::with_capacity(zip.len());
    for index in 0..zip.len() {
        names.push(name(&zip.by_index_data(index).map_err(broken)?)?);
    }
    let mut checker = Checker::new(limits, Spelling::of(names.iter().map(String::as_str)));
    let mut entries = Vec::with_capacity(zip.len());
    for (index, name) in names.iter().enumerate() {
        let entry = zip.by_index_data(index).map_err(broken)?;
        if entry.encrypted() {
            return Err(encrypted(name).into());
        }
        let method = entry.compression();
        if ![CompressionMethod::Stored, CompressionMethod::Deflated].contains(&method) {
            return Err(unsupported(name, &method.to_string()).into());
        }
        let unix = unix_mode(&entry);
        let mode = match unix.map(|mode| mode & MODE_MASK) {
            None => MODE_UNKNOWN,
            Some(0) => MODE_UNSET,
            Some(mode) => mode | MODE_OWNER,
        };
        if let Some((path, kind)) = checker.entry(name, unix)? {
            entries.push(Planned { index, path, kind, mode });
        }
    }
    checker.finish()?;
    Ok(entries)
}

/// A name as its tool meant it: many write UTF-8 without the flag that says so.
fn name(entry: &ZipFileEntry<'_>) -> Result<String, Error> {
    match std::str::from_utf8(entry.name_raw()) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Ok(entry.name().map_err(broken)?.into_owned()),
    }
}

/// The Unix mode of an entry; none from a system that has none.
fn unix_mode(entry: &ZipFileEntry<'_>) -> Option<u32> {
    matches!(entry.system(), System::Unix | System::OsDarwin).then(|| entry.external_attributes() >> 16)
}

/// Reads the number of entries from the end of the file, before the zip library takes memory for all of them.
fn check_entry_count(file: &mut File, size: u64, limits: &ArchiveSettings) -> Result<(), Error> {
    let start = size.saturating_sub(END_RECORD_WINDOW);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    Read::take(&mut *file, END_RECORD_WINDOW).read_to_end(&mut tail)?;
    file.seek(SeekFrom::Start(0))?;
    let mut found = false;
    for (at, window) in tail.windows(12).enumerate().filter(|(_, window)| window.starts_with(END_RECORD)) {
        found = true;
        let entries = u64::from(u16::from_le_bytes([window[10], window[11]]));
        check_count(limits, entries.max(large_count(file, start + at as u64)?))?;
    }
    if found { Ok(()) } else { Err(Refusal::Invalid("it is not a zip archive".to_owned()).into()) }
}

/// The number of entries in the larger end record that belongs to the end record at `end`; 0 if it has none.
fn large_count(file: &File, end: u64) -> Result<u64, Error> {
    let mut locator = [0; 16];
    let place = end.checked_sub(LARGE_LOCATOR_BYTES);
    if let Some(place) = place {
        file.read_exact_at(&mut locator, place)?;
    }
    if !locator.starts_with(LARGE_LOCATOR) {
        return Ok(0);
    }
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let mut record = [0; 40];
    match file.read_exact_at(&mut record, word(&locator[8..])) {
        Ok(()) if record.starts_with(LARGE_END_RECORD) => Ok(word(&record[32..])),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
        _ => Err(Refusal::Invalid("its end record is not where it says".to_owned()).into()),
    }
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
