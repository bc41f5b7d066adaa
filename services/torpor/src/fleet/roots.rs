//! The CAs that clients of this machine trust, together with the fleet's own: many clients take one file of CAs instead of
//! the system's, and their other calls over HTTPS must go on working.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::files;
use crate::error::CliError;

/// Where distributions keep the system's CAs, in one file of PEM; the first that is there counts.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Largest file of the system's CAs, in bytes.
const SYSTEM_BYTES_MAX: u64 = 16 << 20;

/// The file of the system's CAs and the fleet's, beside the fleet's own.
pub fn file(ca: &Path) -> PathBuf {
    ca.with_file_name("roots.pem")
}

/// The file of the system's CAs, on a machine that has them.
pub fn system() -> Option<&'static Path> {
    SYSTEM.iter().map(Path::new).find(|path| path.is_file())
}

/// Writes that file anew. A machine without CAs has the fleet's only.
pub fn write(ca: &Path) -> Result<(), CliError> {
    let system = system();
    let mut all = system.map_or(Ok(Vec::new()), read)?;
    if !all.is_empty() && !all.ends_with(b"\n") {
        all.push(b'\n');
    }
    all.extend(std::fs::read(ca).map_err(|error| files::named(ca, &error))?);
    Ok(files::write_public(&file(ca), &all)?)
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut content = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(SYSTEM_BYTES_MAX + 1).read_to_end(&mut content))
        .map_err(|error| files::named(path, &error))?;
    if content.len() as u64 > SYSTEM_BYTES_MAX {
        let message = format!("{} has more than {SYSTEM_BYTES_MAX} bytes", path.display());
        return Err(
            CliError::failed(message).next("it holds the system's CAs: update-ca-certificates makes it anew")
        );
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fleets_ca_comes_after_the_systems() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, "the fleet's\n").unwrap();
        for _ in 0..2 {
            write(&ca).unwrap();
            let all = std::fs::read(file(&ca)).unwrap();
            let system = SYSTEM.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
            assert!(all.starts_with(&system) && all.ends_with(b"\nthe fleet's\n"));
            assert!(all.len() <= system.len() + 1 + "the fleet's\n".len(), "written anew");
        }
    }
}
