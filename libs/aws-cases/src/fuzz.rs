//! Chance for tests that change requests at random, and how long they go on: a fixed number of requests from a fixed seed, so
//! that a pass means the same every time. `TORPOR_FUZZ_SECONDS` goes on for that long, `TORPOR_FUZZ_SEED` starts elsewhere.

use std::time::{Duration, Instant};

const SEED: u64 = 20_260_730;

/// A generator of numbers (SplitMix64): a run is repeated by its seed alone.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed that repeats what follows.
    pub fn seed(&self) -> u64 {
        self.0
    }

    #[allow(clippy::should_implement_trait)] // it never ends
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("it is below a usize")
    }

    pub fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// How long a run goes on.
pub struct Run {
    pub seed: u64,
    least: u64,
    until: Instant,
}

impl Run {
    /// A run of `least` requests, or of as long as the environment says.
    pub fn from_environment(least: u64) -> Self {
        let set = |name: &str, default: u64| {
            std::env::var(name).map_or(default, |text| text.parse().expect("a number is set"))
        };
        let until = Instant::now() + Duration::from_secs(set("TORPOR_FUZZ_SECONDS", 0));
        Self { seed: set("TORPOR_FUZZ_SEED", SEED), least, until }
    }

    pub fn goes_on(&self, done: u64) -> bool {
        done < self.least || Instant::now() < self.until
    }
}
