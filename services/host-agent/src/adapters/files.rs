//! The data directory: where everything lies, and the few file operations whose order matters.
//!
//! ```text
//! <data>/image-snapshots/<digest>/   image snapshots: memory, disk, device.state, manifest.json
//! <data>/microvms/<id>/             journal.json, disk.live, snap-<sequence>/, logs/, run/
//! <data>/ended/<id>/                tombstone.json, logs/
//! <data>/ahead/<slot>/              an engine that waits for its microVM: disk, run/; emptied at start
//! <data>/bakes/<build id>/          a bake under way; never survives a restart
//! <data>/clock.json                 what the time was, see `clock_mark`
//! <data>/tmp/                       downloads under way; emptied at start
//! <data>/reserve                    room that is kept for suspends; not there when none is
//! <data>/quarantine/<id>/           a microVM's directory, or `ended-<id>` a report, that could not be read; an operator's to remove
//! ```

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use model::ids::MicrovmId;

use super::volume::{ReserveFile, Volume};
use crate::domain::HostError;

/// Most times that files of one microVM are put aside.
const ASIDE_MAX: u32 = 100;
/// Mode of files that hold secrets.
const SECRET_MODE: u32 = 0o600;
/// Mode of directories the unprivileged engine must pass through but not list.
const DIRECTORY_MODE: u32 = 0o711;
/// What a start on a full disk takes of the reserve, in bytes: it makes directories and writes journals.
const START_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone)]
pub struct DataDirectory {
    root: PathBuf,
}

impl DataDirectory {
    /// Opens (and makes) the directory, and empties what never survives a restart.
    pub fn open(root: &Path) -> Result<Self, HostError> {
        let this = Self { root: root.to_owned() };
        this.make_room_to_start();
        for directory in [
            root.to_owned(),
            this.image_snapshots(),
            this.microvms(),
            this.ended(),
            this.ahead(),
            this.bakes(),
            this.tmp(),
            this.quarantine(),
        ] {
            make_directory(&directory)?;
        }
        empty(&this.tmp())?;
        empty(&this.ahead())?;
        this.check_reflink()?;
        Ok(this)
    }

    /// Without a reserve the start goes on all the same: what is there needs little more.
    fn make_room_to_start(&self) {
        let mut reserve = ReserveFile::open(self.reserve());
        let free = Volume::of(&self.root).space().map_or(0, |space| space.available);
        if free < START_BYTES
            && reserve.bytes() > 0
            && let Err(error) = reserve.resize(reserve.bytes().saturating_sub(START_BYTES))
        {
            tracing::warn!(%error, "the disk is full and the reserve cannot be used");
        }
    }

    fn check_reflink(&self) -> Result<(), HostError> {
        let why = match snapshot::disk::is_reflink_filesystem(&self.tmp()) {
            Ok(true) => return Ok(()),
            Ok(false) => "it cannot share extents between files".to_owned(),
            Err(error) => match HostError::chain(&error) {
                (_, true) => {
                    // What sleeps here is whole, and the probe says nothing of the file system: this host must come up.
                    tracing::error!(data_dir = %self.root.display(), "the disk is full; whether it has reflinks is not known");
                    return Ok(());
                }
                (why, false) => why,
            },
        };
        Err(HostError::Internal(format!(
            "data_dir {} is not on a file system with reflinks ({why}); use XFS (mkfs.xfs -m reflink=1), for example \
             in a loop-mounted file",
            self.root.display()
        )))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn image_snapshots(&self) -> PathBuf {
        self.root.join("image-snapshots")
    }

    pub fn image_snapshot(&self, manifest_digest: &str) -> PathBuf {
        self.image_snapshots().join(manifest_digest)
    }

    pub fn microvms(&self) -> PathBuf {
        self.root.join("microvms")
    }

    pub fn microvm(&self, id: &str) -> MicrovmFiles {
        MicrovmFiles { directory: self.microvms().join(id) }
    }

    /// Reports and logs of microVMs that have ended.
    pub fn ended(&self) -> PathBuf {
        self.root.join("ended")
    }

    /// Engines that wait for a microVM.
    pub fn ahead(&self) -> PathBuf {
        self.root.join("ahead")
    }

    pub fn bakes(&self) -> PathBuf {
        self.root.join("bakes")
    }

    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Keeps room for suspends.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// What could not be read.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Puts aside what cannot be read, under `name`, or `name.2` and so on when there is such a one. What cannot be moved stays
    /// where it is: the next start tries again.
    pub fn put_aside(&self, path: &Path, name: &str) {
        let taken = |place: &PathBuf| std::fs::symlink_metadata(place).is_ok();
        let places = (1..=ASIDE_MAX).map(|number| match number {
            1 => self.quarantine().join(name),
            number => self.quarantine().join(format!("{name}.{number}")),
        });
        let Some(place) = places.into_iter().find(|place| !taken(place)) else {
            tracing::error!(path = %path.display(), limit = ASIDE_MAX, "it was put aside too often and stays where it is");
            return;
        };
        match std::fs::rename(path, &place) {
            Ok(()) => {
                tracing::error!(path = %place.display(), "put aside; nothing removes it but an operator")
            }
            Err(error) => tracing::error!(path = %path.display(), %error, "it cannot be put aside"),
        }
    }

    /// The microVMs whose directories have been put aside, at most `count`.
    pub fn unreadable(&self, count: usize) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.quarantine()) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<String> = names
            .filter_map(|name| Some(name.split('.').next()?.parse::<MicrovmId>().ok()?.to_string()))
            .collect();
        ids.sort();
        ids.dedup();
        ids.truncate(count);
        ids
    }
}

#[derive(Debug, Clone)]
pub struct MicrovmFiles {
    directory: PathBuf,
}

impl MicrovmFiles {
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn journal(&self) -> PathBuf {
        self.directory.join("journal.json")
    }

    /// The disk its engine writes to.
    pub fn live_disk(&self) -> PathBuf {
        self.directory.join("disk.live")
    }

    /// Sockets and console of its engine.
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    pub fn snapshot(&self, sequence: u64) -> SnapshotFiles {
        SnapshotFiles { directory: self.directory.join(format!("snap-{sequence}")) }
    }

    /// Removes every snapshot directory but one.
    pub fn discard_snapshots_but(&self, kept: u64) {
        for sequence in self.snapshot_sequences() {
            if sequence != kept {
                discard(self.snapshot(sequence).directory());
            }
        }
    }

    /// Sequences of the snapshot directories there are, whole or not.
    pub fn snapshot_sequences(&self) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("snap-")?.parse().ok())
            .collect()
    }
}

/// Paths of one snapshot of a microVM.
#[derive(Debug, Clone)]
pub struct SnapshotFiles {
    directory: PathBuf,
}

impl SnapshotFiles {
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn device_state(&self) -> PathBuf {
        self.directory.join("device.state")
    }

    /// Memory pages that differ from the image's.
    pub fn memory_difference(&self) -> PathBuf {
        self.directory.join("memory.diff")
    }

    /// The whole disk, sharing what is unchanged with the image's.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// Disk blocks that differ from the image's, made for the upload.
    pub fn disk_difference(&self) -> PathBuf {
        self.directory.join("disk.diff")
    }

    /// Connections of the guest that go on when it wakes; absent when there are none.
    pub fn connections(&self) -> PathBuf {
        self.directory.join("connections")
    }

    /// Written last: with it the snapshot exists, without it it does not.
    pub fn manifest(&self) -> PathBuf {
        self.directory.join("manifest.json")
    }
}

pub fn make_directory(path: &Path) -> Result<(), HostError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(|error| HostError::io(path, &error))
}

/// Replaces `path` with `bytes`: a reader sees the old or the new file, never a part. With `durable` the new
/// one also survives a power cut when this returns; without, it survives the death of this process.
pub fn replace(path: &Path, bytes: &[u8], durable: bool) -> Result<(), HostError> {
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(SECRET_MODE)
            .open(&temporary)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        // Dying here leaves the old file and a temporary one that the next write truncates.
        std::fs::rename(&temporary, path)?;
        if durable && let Some(parent) = path.parent() {
            std::fs::File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        HostError::io(path, &error)
    })
}

/// Makes a file's data and its directory's entries durable.
pub fn sync(path: &Path) -> Result<(), HostError> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| HostError::io(path, &error))
}

/// Removes a file or a whole directory; what is not there is no error.
pub fn remove(path: &Path) -> Result<(), HostError> {
    let result = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(HostError::io(path, &error)),
        _ => Ok(()),
    }
}

/// [`remove`] for a clean-up whose failure only costs space; logged.
pub fn discard(path: &Path) {
    if let Err(error) = remove(path) {
        tracing::warn!(path = %path.display(), %error, "left over; the next start removes it");
    }
}

/// Removes everything in a directory, which stays.
pub fn empty(directory: &Path) -> Result<(), HostError> {
    let entries = std::fs::read_dir(directory).map_err(|error| HostError::io(directory, &error))?;
    for entry in entries {
        remove(&entry.map_err(|error| HostError::io(directory, &error))?.path())?;
    }
    Ok(())
}

/// Bytes a file or directory occupies on disk (shared extents count).
pub fn occupied_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::read_dir(path)
            .map(|entries| entries.filter_map(Result::ok).map(|entry| occupied_bytes(&entry.path())).sum())
            .unwrap_or(0),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    }
}

/// Makes several files durable at once.
pub async fn sync_all<const N: usize>(paths: [PathBuf; N]) -> Result<(), HostError> {
    let synced = paths.map(|path| blocking(move || sync(&path)));
    futures::future::try_join_all(synced).await.map(drop)
}

/// Runs blocking file work off the runtime's own threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(HostError::Internal(format!("file work died: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn replacing_is_whole_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.json");
        replace(&path, b"one", true).unwrap();
        replace(&path, b"two", false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn removing_twice_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        make_directory(&path.join("b/c")).unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_is_put_aside_is_named_and_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory { root: directory.path().to_owned() };
        make_directory(&data.quarantine()).unwrap();
        let id = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
        for content in ["first", "second"] {
            let path = data.microvm(id).journal();
            make_directory(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            data.put_aside(data.microvm(id).directory(), id);
            assert!(!path.exists());
        }
        data.put_aside(&directory.path().join("absent"), "ended-x");
        let read = |name: &str| std::fs::read_to_string(data.quarantine().join(name).join("journal.json"));
        assert_eq!(read(id).unwrap(), "first");
        assert_eq!(read(&format!("{id}.2")).unwrap(), "second");
        assert_eq!(data.unreadable(9), [id]);
        assert!(data.unreadable(0).is_empty());
    }

    #[test]
    fn a_host_with_a_full_disk_comes_up() {
        let xfs = testkit::Xfs::mount(320);
        let data = DataDirectory::open(&xfs.path()).unwrap();
        let mut filler = std::fs::File::create(xfs.path().join("filler")).unwrap();
        for piece in [vec![1; 1 << 20], vec![1; 4096]] {
            while filler.write_all(&piece).and_then(|()| filler.sync_data()).is_ok() {}
        }
        let full = snapshot::disk::is_reflink_filesystem(&data.tmp()).unwrap_err();
        assert!(HostError::chain(&full).1, "{full:?}");
        DataDirectory::open(&xfs.path()).unwrap();
    }

    #[test]
    fn snapshots_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let files = MicrovmFiles { directory: directory.path().to_owned() };
        for name in ["snap-3", "snap-12", "snap-x", "logs"] {
            make_directory(&directory.path().join(name)).unwrap();
        }
        let mut found = files.snapshot_sequences();
        found.sort_unstable();
        assert_eq!(found, [3, 12]);
    }
}
