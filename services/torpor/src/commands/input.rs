//! What a command reads besides its arguments.

use std::io::{self, Read as _};
use std::path::Path;

use crate::output;

/// Reads a file, or standard input for "-". The error says what is wrong, without the file's name.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut read_from = |source: &mut dyn io::Read| source.take(bytes_max + 1).read_to_end(&mut bytes);
    let read = match path == Path::new("-") {
        true => read_from(&mut io::stdin().lock()),
        false => std::fs::File::open(path).and_then(|mut file| read_from(&mut file)),
    };
    read.map_err(|error| error.to_string())?;
    match bytes.len() as u64 > bytes_max {
        true => Err(format!("larger than {}", output::bytes(bytes_max))),
        false => Ok(bytes),
    }
}
