//! The time of day as it passes, whatever becomes of the wall clock.
//!
//! ```text
//! wall clock     ──────────┐ set by nine hours    ┌────────  set right again
//!                          └──────────────────────┘
//! steady clock   ────────────────────────────────────────  passes as the machine's uptime does
//! ```
//!
//! Small corrections, as a time service makes them, are followed. A larger one is a *jump*: the steady clock goes on by the
//! uptime and catches up by one second in a hundred at most, so that a life that is counted by it is never shorter by more than
//! a hundredth. The uptime counts the time in which the machine was suspended: there both clocks move on together.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::Clock;

/// Largest correction of the wall clock that is followed at once. Beyond it is a jump.
pub const FOLLOWED_MAX: Duration = Duration::from_secs(5);
/// After a jump a steady clock catches up by this part of the time that passes.
const CATCH_UP: u32 = 100;

/// How two clocks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// By how much.
    pub by: Duration,
    /// Whether the first one is later.
    pub ahead: bool,
}

impl Difference {
    /// What `first` shows compared with `second`.
    #[must_use]
    pub fn between(first: SystemTime, second: SystemTime) -> Self {
        match first.duration_since(second) {
            Ok(by) => Self { by, ahead: true },
            Err(behind) => Self { by: behind.duration(), ahead: false },
        }
    }
}

/// "9h 0m 2s ahead", "12.5s behind".
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, side) = (self.by.as_secs(), if self.ahead { "ahead" } else { "behind" });
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{:.1}s {side}", self.by.as_secs_f64()),
            (0, 0, minutes) => write!(f, "{minutes}m {}s {side}", seconds % 60),
            (0, hours, minutes) => write!(f, "{hours}h {minutes}m {}s {side}", seconds % 60),
            (days, hours, minutes) => write!(f, "{days}d {hours}h {minutes}m {side}"),
        }
    }
}

/// What a steady clock showed, for the process that goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The machine's boot.
    pub boot: String,
    /// Its uptime then, milliseconds.
    pub uptime_ms: u64,
    /// The time then, milliseconds since 1970.
    pub unix_ms: u64,
}

impl Mark {
    /// The time it was left at.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.unix_ms)
    }
}

/// A clock that no jump of the wall clock moves.
#[derive(Debug)]
pub struct Steady {
    clock: Clock,
    last: Mutex<Reading>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    time: SystemTime,
    uptime: Duration,
}

impl Steady {
    /// Begins with what the wall clock shows; or goes on from a mark that was left in the same boot of this machine, so that
    /// a process that is started again between two steps of the wall clock sees them all the same.
    #[must_use]
    pub fn new(clock: Clock, mark: Option<&Mark>) -> Self {
        let uptime = clock.uptime();
        let left = mark.filter(|mark| !mark.boot.is_empty() && mark.boot == clock.boot());
        let start =
            left.map(|mark| Reading { time: mark.time(), uptime: Duration::from_millis(mark.uptime_ms) });
        let start = start.filter(|start| start.uptime <= uptime);
        let last = Mutex::new(start.unwrap_or_else(|| Reading { time: clock.now(), uptime }));
        Self { clock, last }
    }

    /// The time of day, as far as it has passed. Never goes back.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.read().0
    }

    /// How the wall clock differs after a jump; `None` while it is followed.
    #[must_use]
    pub fn jump(&self) -> Option<Difference> {
        self.read().1
    }

    /// Where it stands, to be gone on from.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.read();
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let since = last.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Mark { boot: self.clock.boot(), uptime_ms: ms(last.uptime), unix_ms: ms(since) }
    }

    fn read(&self) -> (SystemTime, Option<Difference>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (wall, uptime) = (self.clock.now(), self.clock.uptime());
        let passed = uptime.saturating_sub(last.uptime);
        let expected = last.time + passed;
        let apart = Difference::between(wall, expected);
        let catch_up = (passed / CATCH_UP).min(apart.by);
        let time = match apart {
            Difference { by, .. } if by <= FOLLOWED_MAX => wall.max(last.time),
            Difference { ahead: true, .. } => expected + catch_up,
            Difference { ahead: false, .. } => expected - catch_up,
        };
        *last = Reading { time, uptime };
        let jump = Difference::between(wall, time);
        (time, Some(jump).filter(|jump| jump.by > FOLLOWED_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    #[test]
    fn small_corrections_are_followed_and_never_back() {
        let clock = Clock::manual(start());
        let steady = Steady::new(clock.clone(), None);
        clock.advance(HOUR);
        assert_eq!(steady.now(), start() + HOUR);
        clock.set_wall(start() + HOUR + FOLLOWED_MAX);
        assert_eq!(steady.now(), start() + HOUR + FOLLOWED_MAX);
        clock.set_wall(start() + HOUR);
        assert_eq!(steady.now(), start() + HOUR + FOLLOWED_MAX, "it waits for the wall clock");
        clock.advance(FOLLOWED_MAX * 2);
        assert_eq!(steady.now(), start() + HOUR + FOLLOWED_MAX * 2);
        assert_eq!(steady.jump(), None);
    }

    #[test]
    fn a_jump_moves_it_by_a_hundredth_of_what_passes() {
        for (ahead, jumped) in [(true, start() + 9 * HOUR), (false, start() - 9 * HOUR)] {
            let clock = Clock::manual(start());
            let steady = Steady::new(clock.clone(), None);
            clock.set_wall(jumped);
            assert_eq!(steady.now(), start());
            assert_eq!(steady.jump(), Some(Difference { by: 9 * HOUR, ahead }));
            clock.advance(HOUR);
            let passed = if ahead { HOUR + HOUR / 100 } else { HOUR - HOUR / 100 };
            assert_eq!(steady.now(), start() + passed);
            // Set right again: what it caught up with meanwhile it gives back as slowly.
            clock.set_wall(start() + HOUR);
            assert_eq!(steady.jump(), Some(Difference { by: HOUR / 100, ahead: !ahead }));
            clock.advance(HOUR);
            assert_eq!((steady.now(), steady.jump()), (start() + 2 * HOUR, None));
        }
    }

    #[test]
    fn it_is_gone_on_with_in_the_same_boot() {
        let clock = Clock::manual(start());
        let mark = Steady::new(clock.clone(), None).mark();
        clock.advance(HOUR);
        clock.set_wall(start() + 9 * HOUR);
        let after = Steady::new(clock.clone(), Some(&mark));
        assert_eq!(after.jump(), Some(Difference { by: 8 * HOUR - HOUR / 100, ahead: true }));
        clock.reboot();
        let rebooted = Steady::new(clock.clone(), Some(&mark));
        assert_eq!((rebooted.now(), rebooted.jump()), (start() + 9 * HOUR, None));
        let nobodys = Mark { boot: String::new(), ..mark };
        assert_eq!(Steady::new(clock, Some(&nobodys)).jump(), None);
    }

    #[test]
    fn differences_read_well() {
        for (seconds, text) in [
            (12.5, "12.5s ahead"),
            (62.0, "1m 2s ahead"),
            (32_402.0, "9h 0m 2s ahead"),
            (90_060.0, "1d 1h 1m ahead"),
            (-10_800.0, "3h 0m 0s behind"),
        ] {
            let ahead = seconds > 0.0;
            let by = Duration::from_secs_f64(f64::abs(seconds));
            assert_eq!(Difference { by, ahead }.to_string(), text);
        }
    }
}
