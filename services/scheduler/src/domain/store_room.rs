//! How much room etcd has left for records, and what follows from that.

/// From this part of etcd's bound on, percent, the leader has etcd drop what was overwritten.
const COMPACT_PERCENT: u64 = 50;
/// From this part on a person is told.
const FILLING_PERCENT: u64 = 70;
/// From this part on nothing new is launched. The rest is for what lives: each suspend, wake and end is a write.
pub const FULL_PERCENT: u64 = 80;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreRoom {
    Plenty,
    /// Old revisions are to go.
    Compact,
    /// A person should make room.
    Filling,
    /// No launches.
    Full,
}

/// Judges `used` bytes of `bound`.
pub fn judge(used: u64, bound: u64) -> StoreRoom {
    let reaches = |percent: u64| u128::from(used) * 100 >= u128::from(bound) * u128::from(percent);
    match () {
        () if reaches(FULL_PERCENT) => StoreRoom::Full,
        () if reaches(FILLING_PERCENT) => StoreRoom::Filling,
        () if reaches(COMPACT_PERCENT) => StoreRoom::Compact,
        () => StoreRoom::Plenty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_by_percent() {
        for (used, room) in [
            (0, StoreRoom::Plenty),
            (499, StoreRoom::Plenty),
            (500, StoreRoom::Compact),
            (700, StoreRoom::Filling),
            (799, StoreRoom::Filling),
            (800, StoreRoom::Full),
            (u64::MAX, StoreRoom::Full),
        ] {
            assert_eq!(judge(used, 1000), room, "{used}");
        }
    }
}
