//! What time it is, passed in: a program reads the system's clock, and a test
//! that waits for something to expire moves a clock of its own instead.
//!
//! A wall clock may be set. What must not happen early because of that goes by a [`Steady`] clock. Only readings are here:
//! whoever sleeps until a time keeps its sleeps short and reads the clock again.

#![warn(missing_docs)]

mod steady;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

pub use steady::{Difference, FOLLOWED_MAX, Mark, Steady};

/// A clock; clones show the same time.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

#[derive(Debug)]
struct Manual {
    start: Instant,
    /// What has passed by itself, for one that follows another.
    follows: Option<fn() -> Duration>,
    shows: Mutex<Shown>,
}

/// What a manual clock shows.
#[derive(Debug, Clone)]
struct Shown {
    passed: Duration,
    wall: SystemTime,
    boot: u32,
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
        Self::moved(start, None)
    }

    /// A manual clock that also moves as `passed` grows, for a world with a time of its own: each of its machines has one, and
    /// sets its wall clock alone.
    #[must_use]
    pub fn following(start: SystemTime, passed: fn() -> Duration) -> Self {
        Self::moved(start - passed(), Some(passed))
    }

    fn moved(wall: SystemTime, follows: Option<fn() -> Duration>) -> Self {
        let shows = Mutex::new(Shown { passed: Duration::ZERO, wall, boot: 0 });
        Self(Some(Arc::new(Manual { start: Instant::now(), follows, shows })))
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.0.as_ref().map_or_else(SystemTime::now, |manual| manual.shows().wall + manual.followed())
    }

    /// A reading that never goes back, to measure with.
    #[must_use]
    pub fn instant(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, |manual| manual.start + manual.passed())
    }

    /// How long the machine has been up, the time it was suspended included. Processes of one boot read the same.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        let Some(manual) = &self.0 else {
            let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            let seconds = u64::try_from(up.tv_sec).unwrap_or(0);
            return Duration::new(seconds, u32::try_from(up.tv_nsec).unwrap_or(0));
        };
        manual.passed()
    }

    /// Which boot of which machine [`Clock::uptime`] counts from; empty when the system does not say.
    #[must_use]
    pub fn boot(&self) -> String {
        match &self.0 {
            Some(manual) => format!("manual-{}", manual.shows().boot),
            None => std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|id| id.trim().to_owned())
                .unwrap_or_default(),
        }
    }

    /// Moves a manual clock on.
    ///
    /// # Panics
    /// On the system's clock, which nobody moves.
    pub fn advance(&self, by: Duration) {
        let mut shows = self.to_be_moved().shows();
        shows.passed += by;
        shows.wall += by;
    }

    /// Sets the wall clock alone, as an operator or a time service does: no time passes.
    ///
    /// # Panics
    /// On the system's clock.
    pub fn set_wall(&self, wall: SystemTime) {
        let manual = self.to_be_moved();
        manual.shows().wall = wall - manual.followed();
    }

    /// Makes a manual clock that of a machine that has just started again.
    ///
    /// # Panics
    /// On the system's clock.
    pub fn reboot(&self) {
        self.to_be_moved().shows().boot += 1;
    }

    fn to_be_moved(&self) -> &Manual {
        self.0.as_ref().expect("only a manual clock is moved")
    }
}

impl Manual {
    fn followed(&self) -> Duration {
        self.follows.map_or(Duration::ZERO, |passed| passed())
    }

    fn passed(&self) -> Duration {
        self.shows().passed + self.followed()
    }

    fn shows(&self) -> MutexGuard<'_, Shown> {
        self.shows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_it_is_moved() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let clock = Clock::manual(start);
        let (other, instant, uptime) = (clock.clone(), clock.instant(), clock.uptime());
        assert_eq!((clock.now(), clock.instant()), (start, instant));
        other.advance(Duration::from_secs(60));
        assert_eq!(clock.now(), start + Duration::from_secs(60));
        assert_eq!(clock.instant() - instant, Duration::from_secs(60));
        assert_eq!(clock.uptime() - uptime, Duration::from_secs(60));
        other.set_wall(start);
        assert_eq!((clock.now(), clock.uptime() - uptime), (start, Duration::from_secs(60)));
    }

    #[test]
    fn one_that_follows_moves_by_itself_and_is_set_alone() {
        thread_local! { static PASSED: std::cell::Cell<u64> = const { std::cell::Cell::new(5) } }
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let clock = Clock::following(start, || Duration::from_secs(PASSED.get()));
        assert_eq!((clock.now(), clock.uptime()), (start, Duration::from_secs(5)));
        PASSED.set(65);
        assert_eq!((clock.now(), clock.uptime()), (start + Duration::from_secs(60), Duration::from_secs(65)));
        clock.set_wall(start);
        PASSED.set(75);
        assert_eq!((clock.now(), clock.uptime()), (start + Duration::from_secs(10), Duration::from_secs(75)));
    }

    #[test]
    fn the_system_says_how_long_it_has_been_up() {
        let clock = Clock::system();
        let (first, second) = (clock.uptime(), clock.uptime());
        assert!(first > Duration::ZERO && second >= first);
        assert_eq!(clock.boot(), clock.boot());
    }
}
