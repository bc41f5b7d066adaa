//! The machine's IPv4 forwarding switch: on while any pool needs it, and put back afterwards.
//!
//! Several pools may share a machine, and any of them may die without saying so. What the switch was before
//! the first of them is therefore kept in a file that a restart of the machine clears, under a lock. With it are
//! the devices that the machine had then: one that did not forward is not to become a router between its own
//! networks because guests need a way out. Devices that come later belong to somebody who counts on forwarding.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::record;

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
const RECORD: &str = "/run/torpor-ip-forward";

/// Records what the switch is and which devices the machine has, unless a pool did before, and returns the
/// devices among which nothing is to be forwarded: none on a machine that forwarded by itself.
pub(crate) fn look(devices: &[String]) -> io::Result<Vec<String>> {
    look_at(&mut record::locked(Path::new(RECORD))?, &std::fs::read_to_string(SWITCH)?, devices)
}

fn look_at(record: &mut File, switch: &str, devices: &[String]) -> io::Result<Vec<String>> {
    let mut before = String::new();
    record.read_to_string(&mut before)?;
    if before.is_empty() {
        let devices: BTreeSet<&str> =
            devices.iter().map(String::as_str).filter(|name| *name != "lo").collect();
        let words: Vec<&str> = std::iter::once(switch.trim()).chain(devices).collect();
        before = words.join(" ");
        // Dying after this line leaves a record of the truth; dying before it leaves the switch as it was.
        record.write_all(before.as_bytes())?;
        record.sync_all()?;
    }
    let mut words = before.split_ascii_whitespace();
    let forwarded = words.next() != Some("0");
    Ok(words.filter(|_| !forwarded).map(str::to_owned).collect())
}

/// Switches forwarding on. What it was must have been recorded by [`look`].
pub(crate) fn switch_on() -> io::Result<()> {
    std::fs::write(SWITCH, "1")
}

/// Puts the switch back to what was recorded. Only for the last pool.
pub(crate) fn put_back() -> io::Result<()> {
    let mut record = record::locked(Path::new(RECORD))?;
    let mut before = String::new();
    record.read_to_string(&mut before)?;
    if before.split_ascii_whitespace().next() == Some("0") {
        // Dying after this line leaves the record: the next pool to stop puts the same value back.
        std::fs::write(SWITCH, "0")?;
    }
    // Emptied, not removed: another pool may be waiting for this very lock.
    record.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Seek as _;

    use super::*;

    #[test]
    fn only_the_devices_of_a_machine_that_did_not_forward_are_kept_apart() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (switch, apart) in [("0\n", &["eth0", "eth1"][..]), ("1\n", &[])] {
            let path = std::env::temp_dir().join(format!("slot-forwarding-{}", std::process::id()));
            let mut record = record::locked(&path).unwrap();
            let first = look_at(&mut record, switch, &names(&["lo", "eth1", "eth0", "eth0"])).unwrap();
            assert_eq!(first, names(apart));
            // Later pools find the switch on, and devices that came since are not kept apart.
            record.rewind().unwrap();
            let later = look_at(&mut record, "1\n", &names(&["lo", "eth0", "docker0"])).unwrap();
            assert_eq!(later, names(apart), "{switch}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
