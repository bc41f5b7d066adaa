//! What time it is, passed in: a program reads the system's clock, and a test
//! that waits for something to expire moves a clock of its own instead.
//!
//! Only readings are here. Whoever sleeps until a time keeps its sleeps short and
//! reads the clock again, because a wall clock may be set as well.

#![warn(missing_docs)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A clock; clones show the same time.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

#[derive(Debug)]
struct Manual {
    start: (SystemTime, Instant),
    passed: Mutex<Duration>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands at `start` until it is moved.
    #[must_use]
    pub fn manual(start: SystemTime) -> Self {
        Self(Some(Arc::new(Manual { start: (start, Instant::now()), passed: Mutex::default() })))
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.0.as_ref().map_or_else(SystemTime::now, |manual| manual.start.0 + manual.passed())
    }

    /// A reading that never goes back, to measure with.
    #[must_use]
    pub fn instant(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, |manual| manual.start.1 + manual.passed())
    }

    /// Moves a manual clock on.
    ///
    /// # Panics
    /// On the system's clock, which nobody moves.
    pub fn advance(&self, by: Duration) {
        let manual = self.0.as_ref().expect("only a manual clock is moved");
        *manual.passed.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Manual {
    fn passed(&self) -> Duration {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_it_is_moved() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let clock = Clock::manual(start);
        let (other, instant) = (clock.clone(), clock.instant());
        assert_eq!((clock.now(), clock.instant()), (start, instant));
        other.advance(Duration::from_secs(60));
        assert_eq!(clock.now(), start + Duration::from_secs(60));
        assert_eq!(clock.instant() - instant, Duration::from_secs(60));
    }
}
