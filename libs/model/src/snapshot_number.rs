//! Which of a microVM's snapshots is the newer one.

use std::fmt;

/// Where a snapshot stands in its microVM's life: the placement that it was made under, then its number.
///
/// The number alone does not order snapshots. A host that was cut off may have made number 6 of the first placement, which nobody
/// was told of, while another host went on from number 4 and made number 5 of the second: that one is the session.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotNumber {
    /// Generation of the placement; 0 where it is not known, which is older than any.
    pub generation: u64,
    /// Counted over all placements, from 1; 0 is no snapshot.
    pub sequence: u64,
}

impl SnapshotNumber {
    /// The snapshot of this number made under the placement of this generation.
    pub fn new(generation: u64, sequence: u64) -> Self {
        Self { generation, sequence }
    }
}

impl fmt::Display for SnapshotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}/s{}", self.generation, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_placement_is_newer_whatever_the_number() {
        let mut all = [(2, 5), (1, 6), (1, 4), (0, 9)].map(|(g, s)| SnapshotNumber::new(g, s));
        all.sort();
        assert_eq!(all.map(|one| one.to_string()), ["g0/s9", "g1/s4", "g1/s6", "g2/s5"]);
    }
}
