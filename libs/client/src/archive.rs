//! A directory as an artifact.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Why a directory cannot become an artifact.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("{0} has no Dockerfile at its root")]
    NoDockerfile(PathBuf),
    #[error("the file name {0} is not valid UTF-8")]
    Name(PathBuf),
    #[error("{directory} holds more than {limit} files")]
    TooMany { directory: PathBuf, limit: usize },
    #[error("cannot zip {path}")]
    Io { path: PathBuf, source: io::Error },
}

/// Most files one artifact may have; image-builder refuses more.
const FILES_MAX: usize = 10_000;

/// Writes `directory` as a zip into `out`: files and directories in a fixed
/// order with a fixed date, so that the same tree gives the same bytes.
/// Symbolic links and special files are left out; `.git` is skipped.
pub fn zip_directory(directory: &Path, out: impl Write + Seek) -> Result<(), ArchiveError> {
    if !directory.join("Dockerfile").is_file() {
        return Err(ArchiveError::NoDockerfile(directory.to_owned()));
    }
    let mut files = Vec::new();
    collect(directory, directory, &mut files)?;
    files.sort();
    let mut zip = ZipWriter::new(out);
    for relative in files {
        let path = directory.join(&relative);
        let failed = |source: io::Error| ArchiveError::Io { path: path.clone(), source };
        let name = relative.to_str().ok_or_else(|| ArchiveError::Name(path.clone()))?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().map_err(failed)?.permissions());
        let options = SimpleFileOptions::default().unix_permissions(mode & 0o777);
        zip.start_file(name, options).map_err(|e| failed(e.into()))?;
        io::copy(&mut File::open(&path).map_err(failed)?, &mut zip).map_err(failed)?;
    }
    zip.finish().map_err(|e| ArchiveError::Io { path: directory.to_owned(), source: e.into() })?;
    Ok(())
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::Io { path: directory.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        let path = entry.path();
        if kind.is_dir() && entry.file_name() != ".git" {
            collect(root, &path, files)?;
        } else if kind.is_file() {
            if files.len() >= FILES_MAX {
                return Err(ArchiveError::TooMany { directory: root.to_owned(), limit: FILES_MAX });
            }
            files.push(path.strip_prefix(root).expect("found below the root").to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn the_same_tree_gives_the_same_zip() {
        let directory = tempfile::tempdir().unwrap();
        let mut out = Cursor::new(Vec::new());
        assert!(matches!(zip_directory(directory.path(), &mut out), Err(ArchiveError::NoDockerfile(_))));
        std::fs::write(directory.path().join("Dockerfile"), "FROM debian-12").unwrap();
        std::fs::create_dir(directory.path().join("app")).unwrap();
        std::fs::write(directory.path().join("app/main.py"), "print()").unwrap();
        let zip = || {
            let mut out = Cursor::new(Vec::new());
            zip_directory(directory.path(), &mut out).unwrap();
            out.into_inner()
        };
        let bytes = zip();
        assert_eq!(bytes, zip());
        let archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        let names: Vec<_> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
        assert_eq!(names, ["Dockerfile", "app/main.py"]);
    }
}
