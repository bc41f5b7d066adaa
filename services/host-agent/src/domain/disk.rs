//! Who gets the room on the data directory's file system: bytes in, bytes out.
//!
//! ```text
//!  | used | free: guests' disks, images, bakes | reserve: suspends | absent |
//!                                              |<---- reserve file ------->|
//! ```
//!
//! Disks of guests are sparse, so that together they promise more than there is. The *reserve* is what suspends need: the
//! host keeps it in a file that it shortens when a snapshot finds no room elsewhere. Where the file system is itself in a
//! sparse file, the disk beneath may have less room than the file system believes; the difference is *absent*, and the
//! reserve file holds it too: so a guest meets a full file system, and never a disk beneath that fails.

/// The file system as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Bytes that may still be written.
    pub available: u64,
    /// Bytes of the reserve file.
    pub held: u64,
    /// Bytes that this host may still take from the disk beneath, if the file system is in a file.
    pub beneath: Option<u64>,
}

/// What the room is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    /// Bytes to be kept for suspends.
    pub reserve: u64,
    /// Bytes that are to be free before anything new begins.
    pub free_min: u64,
    /// Bytes that suspends under way have been given.
    pub claimed: u64,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes that the reserve file is to have.
    pub file: u64,
    /// Those of them that are for suspends.
    pub reserve: u64,
    /// Bytes left for everything else.
    pub free: u64,
    /// Bytes that lack before anything new may begin; 0 when it may.
    pub lacking: u64,
}

/// Decides. `kept` is the reserve as decided before: it does not shrink for the sake of guests, and grows only from what is
/// free beyond the least.
pub fn decide(now: &Situation, kept: u64, wants: &Wants) -> Budget {
    let room = now.available + now.held;
    let usable = now.beneath.map_or(room, |beneath| beneath.min(room));
    let least = wants.free_min + wants.claimed;
    let reserve = wants.reserve.min(usable.saturating_sub(least).max(kept)).min(usable);
    Budget {
        file: room - usable + reserve,
        reserve,
        free: usable - reserve,
        lacking: (wants.free_min + wants.reserve).saturating_sub(usable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WANTS: Wants = Wants { reserve: 20, free_min: 5, claimed: 0 };

    fn now(available: u64, held: u64) -> Situation {
        Situation { available, held, beneath: None }
    }

    #[test]
    fn the_reserve_grows_from_what_is_to_spare_and_guests_do_not_eat_it() {
        let check = |available, held, kept, file, free, lacking| {
            let budget = decide(&now(available, held), kept, &WANTS);
            assert_eq!(
                (budget.file, budget.free, budget.lacking),
                (file, free, lacking),
                "{available} {held}"
            );
        };
        check(90, 0, 0, 20, 70, 0);
        check(15, 0, 0, 10, 5, 10);
        // Full: what is kept stays.
        check(0, 20, 20, 20, 0, 5);
        check(0, 7, 7, 7, 0, 18);
        check(3, 0, 0, 0, 3, 22);
        // A guest has given something back: first the least that is free, then the reserve.
        check(4, 7, 7, 7, 4, 14);
        check(9, 7, 7, 11, 5, 9);
        // Less runs: less is kept.
        let fewer = decide(&now(0, 20), 20, &Wants { reserve: 8, ..WANTS });
        assert_eq!((fewer.file, fewer.free, fewer.lacking), (8, 12, 0));
    }

    #[test]
    fn what_a_suspend_was_given_is_not_taken_back_while_it_writes() {
        let claimed = Wants { claimed: 12, ..WANTS };
        assert_eq!(decide(&now(12, 8), 8, &claimed).file, 8);
        assert_eq!(decide(&now(12, 8), 8, &WANTS).file, 15);
    }

    #[test]
    fn a_disk_beneath_that_has_less_counts() {
        let shared = |beneath| Situation { beneath: Some(beneath), ..now(90, 0) };
        let budget = decide(&shared(40), 0, &WANTS);
        assert_eq!(budget, Budget { file: 70, reserve: 20, free: 20, lacking: 0 });
        let budget = decide(&Situation { available: 0, held: 90, ..shared(10) }, 20, &WANTS);
        assert_eq!(budget, Budget { file: 90, reserve: 10, free: 0, lacking: 15 });
        assert_eq!(decide(&shared(0), 0, &WANTS).free, 0);
        assert_eq!(decide(&shared(1000), 0, &WANTS), decide(&now(90, 0), 0, &WANTS));
    }

    proptest! {
        #[test]
        fn nothing_is_promised_twice(
            available in 0u64..1000, held in 0u64..1000, kept in 0u64..1000, reserve in 0u64..1000,
            free_min in 0u64..100, claimed in 0u64..100, beneath in proptest::option::of(0u64..2000),
        ) {
            let now = Situation { available, held, beneath };
            let budget = decide(&now, kept.min(held), &Wants { reserve, free_min, claimed });
            prop_assert!(budget.file + budget.free == available + held);
            prop_assert!(budget.reserve <= reserve && budget.reserve <= budget.file);
            prop_assert!(budget.free + budget.reserve <= beneath.unwrap_or(u64::MAX));
            if budget.lacking == 0 && claimed == 0 {
                prop_assert!(budget.free >= free_min && budget.reserve == reserve);
            }
        }
    }
}
