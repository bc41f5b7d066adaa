//! The machine's IPv4 forwarding switch: on while any pool needs it, and put back afterwards.
//!
//! Several pools may share a machine, and any of them may die without saying so. What the switch was before
//! the first of them is therefore kept in a file that a restart of the machine clears, under a lock.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
const RECORD: &str = "/run/torpor-ip-forward";

/// Switches forwarding on and records what it was, unless a pool did before.
pub(crate) fn switch_on() -> io::Result<()> {
    let mut record = locked(Path::new(RECORD))?;
    let mut before = String::new();
    record.read_to_string(&mut before)?;
    if before.is_empty() {
        // Dying after this line leaves a record of the truth; dying before it leaves the switch as it was.
        record.write_all(std::fs::read_to_string(SWITCH)?.trim().as_bytes())?;
        record.sync_all()?;
    }
    std::fs::write(SWITCH, "1")
}

/// Puts the switch back to what was recorded. Only for the last pool.
pub(crate) fn put_back() -> io::Result<()> {
    let mut record = locked(Path::new(RECORD))?;
    let mut before = String::new();
    record.read_to_string(&mut before)?;
    if before == "0" {
        // Dying after this line leaves the record: the next pool to stop puts the same value back.
        std::fs::write(SWITCH, "0")?;
    }
    // Emptied, not removed: another pool may be waiting for this very lock.
    record.set_len(0)
}

fn locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}
