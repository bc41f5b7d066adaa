//! Generations: which commands are too old for the placement a host holds, and which snapshot is the session.

use api::microvm::v1::SnapshotCopies;
use model::SnapshotNumber;

/// How an offered generation stands to the one held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
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

/// Whether the copy in S3 that a wake names must be fetched, given the number of the local snapshot (sequence 0: none). A local
/// one that is newer was made under the placement that is held, and the record is behind.
pub fn must_fetch(local: SnapshotNumber, offered: SnapshotNumber, offered_remote: bool) -> bool {
    offered_remote && (local.sequence == 0 || offered > local)
}

/// Whether the snapshot that a host holds is the one that a record names. A record of an older scheduler has no generation, and
/// the digest is known once there is a copy in S3.
pub fn is_named(held: &SnapshotCopies, named: &SnapshotCopies) -> bool {
    let same = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
    held.sequence == named.sequence
        && (named.generation == 0 || held.generation == named.generation)
        && same(&held.manifest_digest, &named.manifest_digest)
}

/// Whether what a host holds of an older placement is not what the record names: it slept or woke here while nobody heard of it,
/// and the session went on elsewhere. Under the placement that it holds, a host is ahead of the record, never beside it. What is
/// held is the generation and, of what sleeps, its snapshot.
pub fn has_diverged(
    (held, asleep_with): (u64, Option<&SnapshotCopies>),
    offered: u64,
    named: Option<&SnapshotCopies>,
) -> bool {
    let Some(named) = named.filter(|_| fence(held, offered) == Fence::Newer) else { return false };
    !asleep_with.is_some_and(|held| is_named(held, named))
}

/// Whether a host may drop what sleeps on it: the record names just that, and S3 has it.
pub fn is_spare(held: Option<&SnapshotCopies>, named: &SnapshotCopies) -> bool {
    named.remote && held.is_some_and(|held| is_named(held, named))
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
            ((0, 0), (1, 1), true, true),
            ((1, 1), (1, 1), true, false),
            ((1, 2), (1, 1), true, false),
            ((1, 1), (1, 2), true, true),
            ((0, 0), (1, 1), false, false),
            // The other host's is the session, though this one has slept more often.
            ((1, 6), (2, 5), true, true),
            // A record without a generation, and nothing here.
            ((0, 0), (0, 1), true, true),
        ] {
            let number = |(generation, sequence)| SnapshotNumber::new(generation, sequence);
            let found = must_fetch(number(local), number(offered), remote);
            assert_eq!(found, expected, "{local:?} {offered:?} {remote}");
        }
    }

    #[test]
    fn a_copy_is_named_by_generation_sequence_and_digest() {
        let copies = |generation, sequence, digest: &str| SnapshotCopies {
            generation,
            sequence,
            manifest_digest: digest.to_owned(),
            ..Default::default()
        };
        for (held, named, expected) in [
            (copies(1, 4, "a"), copies(1, 4, "a"), true),
            (copies(1, 4, ""), copies(1, 4, "a"), true),
            (copies(1, 4, ""), copies(0, 4, ""), true),
            (copies(1, 4, "b"), copies(1, 4, "a"), false),
            (copies(1, 6, ""), copies(1, 4, "a"), false),
            (copies(1, 4, ""), copies(2, 4, ""), false),
        ] {
            assert_eq!(is_named(&held, &named), expected, "{held:?} {named:?}");
        }
    }

    #[test]
    fn what_an_older_placement_left_is_compared_and_only_what_s3_has_is_spare() {
        let copies = |generation, sequence, remote| SnapshotCopies {
            generation,
            sequence,
            remote,
            ..Default::default()
        };
        let (held, named) = (copies(1, 4, false), copies(1, 4, true));
        let newer = copies(2, 5, true);
        assert!(!has_diverged((1, Some(&held)), 2, Some(&named)), "it is what the record names");
        assert!(has_diverged((1, Some(&held)), 2, Some(&newer)));
        assert!(has_diverged((1, None), 2, Some(&named)), "it is awake");
        assert!(!has_diverged((1, None), 1, Some(&newer)), "under its own placement it is ahead");
        assert!(!has_diverged((1, Some(&held)), 2, None));
        assert!(is_spare(Some(&held), &named));
        assert!(!is_spare(Some(&held), &held), "S3 has no copy");
        assert!(!is_spare(Some(&held), &newer) && !is_spare(None, &named));
    }
}
