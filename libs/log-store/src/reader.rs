//! The reading side.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use api::common::v1::LogLine;

use crate::line::{Batch, Stored};
use crate::log::Files;

/// One reader's place in a log. It reads whole lines from the page cache and keeps
/// its file open: a log that is moved or removed meanwhile is read to its end.
#[derive(Debug)]
pub struct Reader {
    files: Arc<Files>,
    batch: Batch,
    file: Option<BufReader<File>>,
    /// The file to read when `file` has no more.
    after: Option<File>,
    /// Bytes of a line that is not whole yet.
    line: Vec<u8>,
}

impl Reader {
    /// A reader of the lines from `from` on of the log whose current file is `path`, also
    /// when nobody writes it any more.
    #[must_use]
    pub fn open(path: &Path, from: u64) -> Self {
        Self::of(Arc::new(Files::of(path)), from)
    }

    pub(crate) fn of(files: Arc<Files>, from: u64) -> Self {
        let file = File::open(&files.before).or_else(|_| File::open(&files.current));
        Self {
            files,
            batch: Batch::new(from),
            file: file.ok().map(BufReader::new),
            after: None,
            line: Vec::new(),
        }
    }

    /// The next lines, at most a message full; none when there are no more yet. Blocking.
    pub fn read(&mut self) -> io::Result<Vec<LogLine>> {
        while !self.batch.is_full() {
            if let Some(file) = &mut self.file {
                file.read_until(b'\n', &mut self.line)?;
                if self.line.last() == Some(&b'\n') {
                    self.batch.add(&self.line);
                    self.line.clear();
                    continue;
                }
            }
            match self.after.take() {
                Some(next) => {
                    self.line.clear();
                    self.file = Some(BufReader::new(next));
                }
                None => match self.next_file()? {
                    // The log may have written to our file after we read to its end and before it
                    // turned to the next: our file is read to its end once more before we leave it.
                    Some(next) => self.after = Some(next),
                    None => break,
                },
            }
        }
        Ok(self.batch.take())
    }

    /// The file after the one that is being read, if there is one. When the log has
    /// rotated once since ours was opened, that is the current one. When it has rotated
    /// more often, the older of the two that are left comes first.
    fn next_file(&self) -> io::Result<Option<File>> {
        let mine = self.file.as_ref().map(|file| identity(file.get_ref())).transpose()?;
        let Ok(current) = File::open(&self.files.current) else {
            return Ok(None);
        };
        if mine == Some(identity(&current)?) {
            return Ok(None);
        }
        match File::open(&self.files.before) {
            Ok(before) if mine != Some(identity(&before)?) => Ok(Some(before)),
            _ => Ok(Some(current)),
        }
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The stored lines of one file; a torn last line is left out.
pub(crate) fn stored_lines(path: &Path) -> impl Iterator<Item = Stored> + use<> {
    File::open(path)
        .into_iter()
        .flat_map(|file| BufReader::new(file).lines().map_while(Result::ok))
        .filter_map(|line| Stored::parse(line.as_bytes()))
}
