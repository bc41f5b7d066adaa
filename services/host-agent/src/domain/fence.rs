//! Generations: which commands are too old for the placement a host holds.

/// How an offered generation stands to the one held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// Older: refuse with STALE_GENERATION.
    Stale,
    Same,
    /// Newer: the scheduler placed the microVM again since.
    Newer,
}

/// Compares the offered generation with the one held.
pub fn fence(held: u64, offered: u64) -> Fence {
    match offered.cmp(&held) {
        std::cmp::Ordering::Less => Fence::Stale,
        std::cmp::Ordering::Equal => Fence::Same,
        std::cmp::Ordering::Greater => Fence::Newer,
    }
}

/// Whether the copy in S3 that a wake names must be fetched, given the
/// sequence of the local snapshot (0: none). A microVM that went to another
/// host and came back has an old local copy here, which must not be woken.
pub fn must_fetch(local_sequence: u64, offered_sequence: u64, offered_remote: bool) -> bool {
    offered_remote && offered_sequence > local_sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations() {
        for (held, offered, expected) in
            [(3, 2, Fence::Stale), (3, 3, Fence::Same), (3, 4, Fence::Newer), (0, 1, Fence::Newer)]
        {
            assert_eq!(fence(held, offered), expected, "held {held}, offered {offered}");
        }
    }

    #[test]
    fn the_newest_copy_is_woken() {
        for (local, offered, remote, expected) in [
            (0, 1, true, true),
            (1, 1, true, false),
            (2, 1, true, false),
            (1, 2, true, true),
            (0, 1, false, false),
        ] {
            assert_eq!(must_fetch(local, offered, remote), expected, "{local} {offered} {remote}");
        }
    }
}
