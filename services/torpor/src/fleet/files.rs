//! Files and directories of a fleet, with owner and mode set before anybody can see the content.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;

/// Writes a file with mode 0600, owned by `owner` (default: us). It appears whole or not at all: a crash
/// leaves the old file, or none, and at most a stray temporary file that the next write replaces.
pub fn write_private(path: &Path, content: &[u8], owner: Option<u32>) -> io::Result<()> {
    write(path, content, 0o600, owner)
}

/// Gives a file that somebody may have edited its mode 0600 and owner back.
pub fn keep_private(path: &Path, owner: Option<u32>) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .and_then(|()| owner.map_or(Ok(()), |owner| chown(path, Some(owner), Some(owner))))
        .map_err(|error| named(path, &error))
}

/// As [`write_private`], readable by everybody.
pub fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o644, None)
}

fn write(path: &Path, content: &[u8], mode: u32, owner: Option<u32>) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("a file has a name"))?;
    let temporary = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(&temporary, &error)),
        _ => {}
    }
    let result = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The mode above is cut by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(owner) = owner {
            chown(&temporary, Some(owner), Some(owner))?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    result.map_err(|error| named(path, &error))
}

/// Makes a directory (its parent must exist) and sets its mode and owner, also when it is there already.
pub fn directory(path: &Path, mode: u32, owner: Option<u32>) -> io::Result<()> {
    let result = (|| {
        match fs::DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        if let Some(owner) = owner {
            chown(path, Some(owner), Some(owner))?;
        }
        Ok(())
    })();
    result.map_err(|error: io::Error| named(path, &error))
}

/// The same error with the path it is about.
pub fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for content in ["one", "two"] {
            write_private(&path, content.as_bytes(), None).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn errors_name_the_path() {
        let error = write_private(Path::new("/does/not/exist/file"), b"", None).expect_err("no directory");
        assert!(error.to_string().contains("/does/not/exist/file"));
    }
}
