//! Values that are read from files, and read again when the files change: certificates, above all.
//!
//! Nothing runs in the background. Whoever asks for the value also looks, now and then, whether the files are still the ones
//! that were read; so a value is as fresh as its last use, and a process that uses it rarely costs nothing.
//!
//! What is broken or half written changes nothing: the last good value stays, the log says why, and every later look
//! tries again until the files fit together.

use std::fmt::Display;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

/// How often it is looked whether the files are the ones that were read.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

type Read<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// A value and the files that it is read from.
pub struct Reloaded<T> {
    files: Vec<PathBuf>,
    read: Read<T>,
    current: ArcSwap<T>,
    looked: Mutex<Looked>,
}

/// The last look at the files.
struct Looked {
    at: Instant,
    saw: Vec<Option<Sight>>,
    /// The files could not be read then.
    broken: bool,
    last_error: String,
}

/// What a file looked like from outside. A file that is replaced by renaming has another inode, whatever its clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl<T> std::fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloaded").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T> Reloaded<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What `read` says.
    pub fn load<E: Display>(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before they are read: what changes meanwhile is noticed by the next look.
        let saw = look_at(&files);
        let current = ArcSwap::from_pointee(read()?);
        let looked = Looked { at: Instant::now(), saw, broken: false, last_error: String::new() };
        let read = Box::new(move || read().map_err(|error| error.to_string()));
        Ok(Self { files, read, current, looked: Mutex::new(looked) })
    }

    /// The value of the files as they are, or were at most [`LOOK_EVERY`] ago. A call that reads them anew blocks as long as
    /// reading small files takes.
    pub fn current(&self) -> Arc<T> {
        // Somebody who looks at this moment spares the others.
        if let Some(mut looked) = self.looked.try_lock()
            && looked.at.elapsed() >= LOOK_EVERY
        {
            self.look(&mut looked);
        }
        self.current.load_full()
    }

    /// As [`Reloaded::current`], with a look in any case.
    pub fn fresh(&self) -> Arc<T> {
        self.look(&mut self.looked.lock());
        self.current.load_full()
    }

    fn look(&self, looked: &mut Looked) {
        let saw = look_at(&self.files);
        looked.at = Instant::now();
        if saw == looked.saw && !looked.broken {
            return;
        }
        looked.saw = saw;
        match (self.read)() {
            Ok(value) => {
                looked.broken = false;
                looked.last_error.clear();
                self.current.store(Arc::new(value));
                tracing::info!(files = ?self.files, "files were read anew and are in use");
            }
            Err(error) => {
                looked.broken = true;
                if error != looked.last_error {
                    tracing::warn!(error, files = ?self.files, "what was read before stays in use");
                    looked.last_error = error;
                }
            }
        }
    }
}

/// Refuses a file that is too large to be what it should be.
///
/// # Errors
/// A message that names the file and the limit.
pub fn check_size(file: &Path) -> Result<(), String> {
    match std::fs::metadata(file) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            Err(format!("{}: larger than {FILE_BYTES_MAX} bytes", file.display()))
        }
        // One that is not there is for the reader to complain of.
        _ => Ok(()),
    }
}

fn look_at(files: &[PathBuf]) -> Vec<Option<Sight>> {
    files.iter().map(|file| std::fs::metadata(file).ok().map(|metadata| Sight::of(&metadata))).collect()
}

impl Sight {
    fn of(file: &Metadata) -> Self {
        Self { modified: file.modified().ok(), length: file.len(), inode: file.ino() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on panics

    use super::*;

    #[test]
    fn what_changes_is_read_anew_and_what_is_broken_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        let put = |file: &Path, text: &str| {
            let new = directory.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, file).unwrap();
        };
        put(&one, "a");
        put(&two, "a");
        let pair = (one.clone(), two.clone());
        let read = move || {
            let read = |file: &Path| std::fs::read_to_string(file).map_err(|error| error.to_string());
            let (one, two) = (read(&pair.0)?, read(&pair.1)?);
            if one == two { Ok(one) } else { Err(format!("{one} does not fit {two}")) }
        };
        let value = Reloaded::load(vec![one.clone(), two.clone()], read).unwrap();
        let first = value.fresh();
        assert!(Arc::ptr_eq(&first, &value.fresh()), "the same files, the same value");
        put(&one, "b");
        assert_eq!(*value.fresh(), "a", "half of a change");
        put(&two, "b");
        assert_eq!(*value.fresh(), "b", "the whole of it");
        std::fs::remove_file(&two).unwrap();
        assert_eq!(*value.fresh(), "b", "gone");
        put(&two, "b");
        assert_eq!(*value.fresh(), "b");
    }

    #[test]
    fn a_first_reading_that_fails_says_why() {
        let error = Reloaded::<()>::load(Vec::new(), || Err("no such thing")).unwrap_err();
        assert_eq!(error, "no such thing");
    }
}
