//! Chance that a seed decides: the same seed, the same draws.

use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

use uuid::Uuid;

/// A generator of 64 bits of state (SplitMix64): small, good enough to choose faults with, and the same in every version of
/// every library, so that a seed in a report stays good.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// One stream of a seed; streams of different names are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut chance = Self(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        chance.draw();
        chance.draw();
        chance
    }

    /// The numbers that follow a state.
    pub fn from_state(state: u64) -> Self {
        Self(state)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.draw() % (range.end - range.start)
    }

    /// True in so many of a thousand cases.
    pub fn per_mille(&mut self, cases: u64) -> bool {
        self.within(0..1000) < cases
    }

    pub fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// One of several; `None` of none.
    pub fn one<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(all.len()).ok().filter(|count| *count > 0)?;
        all.get(usize::try_from(self.within(0..count)).unwrap_or(0))
    }
}

thread_local! {
    static IDS: Cell<u64> = const { Cell::new(0) };
}

/// Has the ids that are drawn on this thread begin as the seed says.
pub fn seed_ids(seed: u64) {
    IDS.set(Chance::new(seed, 7).draw());
}

/// The next id of this thread.
pub fn next_id() -> Uuid {
    let mut chance = Chance(IDS.get());
    let (high, low) = (chance.draw(), chance.draw());
    IDS.set(chance.0);
    uuid::Builder::from_random_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes()).into_uuid()
}
