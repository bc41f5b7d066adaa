//! The size of the machine's connection table, raised by what all slots may take of it: however many connections guests
//! have, the host's own find as much room as there was without guests.
//!
//! The kernel's limit is one number for the machine. A record keeps what it was before the first pool, and
//! the share of each; the last pool puts it back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use crate::record;

const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const RECORD: &str = "/run/torpor-conntrack-max";
/// The kernel keeps its limit in a signed number of 32 bits.
const LIMIT_MAX: u64 = i32::MAX as u64;

/// Raises the limit by the entries that a pool may take; of a pool that is known, in place of what it took before.
/// `tables`: the pools' tables in the root namespace. A pool without one has gone, also one that did not say so.
pub(crate) fn make(pool: &str, entries: u64, tables: &[String]) -> io::Result<()> {
    change(|shares| {
        shares.retain(|pool, _| tables.contains(pool));
        shares.insert(pool.to_owned(), entries);
    })
}

/// Takes back the shares of pools that have gone.
pub(crate) fn give_back(tables: &[String]) -> io::Result<()> {
    change(|shares| shares.retain(|pool, _| tables.contains(pool)))
}

fn change(change: impl FnOnce(&mut BTreeMap<String, u64>)) -> io::Result<()> {
    let mut file = record::locked(Path::new(RECORD))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let limit = std::fs::read_to_string(LIMIT)?.trim().parse().map_err(io::Error::other)?;
    if limit == 0 {
        // No limit at all.
        return Ok(());
    }
    let mut room = Room::read(&text, limit);
    change(&mut room.shares);
    // Dying between the two leaves a limit that is not what the record says, which is then taken for the operator's
    // (`Room::read`). In this order it is the lower one, without the share that was being added or taken back.
    if room.limit() >= limit {
        store(&mut file, &room.text())?;
        std::fs::write(LIMIT, room.limit().to_string())
    } else {
        std::fs::write(LIMIT, room.limit().to_string())?;
        store(&mut file, &room.text())
    }
}

fn store(file: &mut File, text: &str) -> io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

#[derive(Debug, PartialEq, Eq)]
struct Room {
    /// The limit without any pool.
    before: u64,
    /// Entries by pool.
    shares: BTreeMap<String, u64>,
}

impl Room {
    /// Reads a record: a line `- BEFORE`, and a line `POOL ENTRIES` for each. When the limit is another than the
    /// record says, somebody has set it meanwhile, and what they set is what the host has by itself.
    fn read(text: &str, limit: u64) -> Self {
        let numbers = text.lines().filter_map(|line| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.parse().ok()?))
        });
        let mut shares: BTreeMap<String, u64> = numbers.collect();
        let before = shares.remove("-");
        let room = Self { before: before.unwrap_or(limit), shares };
        if room.limit() == limit { room } else { Self { before: limit, ..room } }
    }

    fn limit(&self) -> u64 {
        let sum = self.shares.values().fold(self.before, |sum, share| sum.saturating_add(*share));
        sum.min(LIMIT_MAX)
    }

    /// Empty without a pool.
    fn text(&self) -> String {
        if self.shares.is_empty() {
            return String::new();
        }
        let shares: String = self.shares.iter().map(|(pool, share)| format!("{pool} {share}\n")).collect();
        format!("- {}\n{shares}", self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(room: &Room, pool: &str, share: Option<u64>, limit: u64) -> Room {
        let mut room = Room::read(&room.text(), limit);
        match share {
            Some(share) => room.shares.insert(pool.to_owned(), share),
            None => room.shares.remove(pool),
        };
        room
    }

    #[test]
    fn the_limit_grows_by_each_pool_and_comes_back() {
        let none = Room::read("", 1000);
        let one = with(&none, "a", Some(50), 1000);
        assert_eq!(one.limit(), 1050);
        // A restart after a crash: the same pool again, then with another share.
        let again = with(&one, "a", Some(50), 1050);
        assert_eq!(again, one);
        assert_eq!(with(&one, "a", Some(70), 1050).limit(), 1070);
        let two = with(&one, "b", Some(5), 1050);
        assert_eq!(two.limit(), 1055);
        let left = with(&two, "a", None, 1055);
        assert_eq!(left.limit(), 1005);
        let gone = with(&left, "b", None, 1005);
        assert_eq!((gone.limit(), gone.text().as_str()), (1000, ""));
    }

    #[test]
    fn a_limit_that_somebody_set_is_the_hosts_own() {
        let one = with(&Room::read("", 1000), "a", Some(50), 1000);
        assert_eq!(with(&one, "b", Some(5), 5000).limit(), 5055);
        assert_eq!(with(&one, "a", None, 5000).limit(), 5000);
        assert_eq!(with(&one, "b", Some(u64::MAX), 1050).limit(), LIMIT_MAX);
    }
}
