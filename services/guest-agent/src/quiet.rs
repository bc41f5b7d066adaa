//! Whether the guest stands still.
//!
//! A server listens before it is ready more often than not: it forks workers, and those import the app. A
//! snapshot of that moment makes every clone finish the start again, on the caller's time and in memory of
//! its own. Without a ready hook, stillness is the only sign there is.

use std::fs;
use std::time::{Duration, Instant};

/// Length of one look. Several of /proc/stat's ticks (10 ms), so that a few do not matter.
const WINDOW: Duration = Duration::from_millis(250);
/// Ticks of work that still count as standing still in one look: timers and the agent.
const CALM_TICKS: u64 = 3;
/// Calm looks in a row that make it quiet.
const CALM_WINDOWS: u32 = 2;
/// Longest wait for quiet: an app that never rests is ready all the same.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Watches the processors from its first look on.
#[derive(Default)]
pub struct Quiet {
    began: Option<Instant>,
    window: Option<(Instant, u64)>,
    calm: u32,
}

impl Quiet {
    /// Takes a look; `busy_ticks` are the processors' so far. True when it has been quiet
    /// long enough, when it has waited long enough, or when there is nothing to look at.
    pub fn look(&mut self, now: Instant, busy_ticks: Option<u64>) -> bool {
        let Some(ticks) = busy_ticks else { return true };
        let began = *self.began.get_or_insert(now);
        let (since, before) = *self.window.get_or_insert((now, ticks));
        if now.saturating_duration_since(since) >= WINDOW {
            self.calm = if ticks.saturating_sub(before) <= CALM_TICKS { self.calm + 1 } else { 0 };
            self.window = Some((now, ticks));
        }
        self.calm >= CALM_WINDOWS || now.saturating_duration_since(began) >= WAIT_MAX
    }
}

/// Ticks that the processors have not been idle since the guest's boot; waiting for the disk is not idle.
pub fn busy_ticks() -> Option<u64> {
    parse(&fs::read_to_string("/proc/stat").ok()?)
}

fn parse(stat: &str) -> Option<u64> {
    const IDLE: usize = 3;
    const GUEST: usize = 8; // from here on time is counted in earlier fields too
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    fields
        .take(GUEST)
        .enumerate()
        .filter(|(index, _)| *index != IDLE)
        .map(|(_, field)| field.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_does_not_count_and_waiting_does() {
        let stat = "cpu  10 20 30 999999 5 1 2 0 7 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse(stat), Some(68));
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn quiet_takes_calm_looks_in_a_row() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut quiet = Quiet::default();
        for (millis, ticks, expected) in [
            (0, 0, false),
            (250, 20, false),  // busy
            (300, 21, false),  // not a whole look
            (500, 22, false),  // calm, once
            (750, 60, false),  // busy again
            (1000, 61, false), // calm, once
            (1250, 62, true),  // calm, twice
        ] {
            assert_eq!(quiet.look(at(millis), Some(ticks)), expected, "at {millis} ms");
        }
    }

    #[test]
    fn an_app_that_never_rests_is_ready_in_the_end() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        assert!(!quiet.look(start, Some(0)));
        assert!(!quiet.look(start + WAIT_MAX / 2, Some(1_000)));
        assert!(quiet.look(start + WAIT_MAX, Some(2_000)));
        assert!(Quiet::default().look(start, None));
    }
}
