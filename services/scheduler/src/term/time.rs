//! What time it is for microVMs, and how far the leader may trust it.
//!
//! Lives, windows, retention and the absence of hosts go by a [`Steady`] clock: when the wall clock of the leader's machine is
//! set, nothing ends, is forgotten or is given up that would not have been anyway. What a token, a certificate or a connector
//! says goes by the wall clock, which everybody else reads as well.
//!
//! The leader leaves a mark in etcd. When a scheduler of the same machine and boot leads next, it goes on from there. On
//! another machine or after a reboot the two wall clocks are all there is to compare: when this one is much later, either
//! nobody led for so long or one of the clocks is wrong. Which of them cannot be known, so ends are held back for a while, and
//! an operator can see it. The hosts' clocks are witnesses: as long as most of them differ from the leader's, the leader's is
//! taken for the wrong one, and nothing ends by it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use api::host::v1::Alarm;
use clock::{Clock, Difference, Mark, Steady};
use records::Expect;

use super::Term;

/// Key of the leader's mark.
pub(crate) const MARK: &str = "clock";
/// How often the mark is left.
const MARK_INTERVAL: Duration = Duration::from_secs(60);
/// When a term's first reading is later than the mark by more than this, ends are held back.
pub(crate) const GAP_MAX: Duration = Duration::from_secs(5 * 60);
/// For how long.
pub(crate) const HOLD: Duration = Duration::from_secs(10 * 60);

/// The clock of one term.
#[derive(Debug)]
pub(crate) struct LifeClock {
    wall: Clock,
    steady: Steady,
    /// How much later than the mark the term began, when that is too much, and its uptime then.
    gap: Option<(Difference, Duration)>,
    /// Uptime at the last mark, and whether a jump has been logged.
    told: Mutex<(Option<Duration>, bool)>,
}

impl LifeClock {
    /// Goes on from what an earlier leader left, unless the operator says that the wall clock is right.
    pub fn begin(clock: &Clock, mark: Option<&Mark>, trust_wall: bool) -> Self {
        let mark = mark.filter(|_| !trust_wall);
        let steady = Steady::new(clock.clone(), mark);
        let gap = mark.map(|mark| Difference::between(steady.now(), mark.time()));
        // The same boot knows how much time has passed.
        let known = mark.is_some_and(|mark| !mark.boot.is_empty() && mark.boot == clock.boot());
        let gap = gap.filter(|gap| !known && gap.ahead && gap.by > GAP_MAX);
        if let Some(gap) = gap {
            tracing::warn!(%gap, "the clock is far from the last leader's mark; ends are held back");
        }
        Self {
            wall: clock.clone(),
            steady,
            gap: gap.map(|gap| (gap, clock.uptime())),
            told: Mutex::default(),
        }
    }

    pub fn now(&self) -> SystemTime {
        self.steady.now()
    }

    /// The rest of the hold that the term began with.
    fn hold_left(&self) -> Option<(Difference, Duration)> {
        let (gap, began) = self.gap?;
        let left = HOLD.checked_sub(self.wall.uptime().saturating_sub(began))?;
        Some((gap, left)).filter(|(_, left)| !left.is_zero())
    }

    /// Says once when the wall clock has jumped, and once when it is followed again. True when a mark is due.
    fn observe(&self) -> bool {
        let jump = self.steady.jump();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match jump {
            Some(jump) if !told.1 => {
                tracing::error!(%jump, "the wall clock has jumped; lives go on by the time that passes");
            }
            None if told.1 => tracing::info!("the wall clock is followed again"),
            _ => {}
        }
        told.1 = jump.is_some();
        let now = self.wall.uptime();
        let due = told.0.is_none_or(|marked| now.saturating_sub(marked) >= MARK_INTERVAL);
        if due {
            told.0 = Some(now);
        }
        due
    }

    fn alarms(&self) -> Vec<Alarm> {
        let jumped = self.steady.jump().map(|jump| Alarm {
            code: "CLOCK_JUMPED".to_owned(),
            message: format!(
                "The scheduler's wall clock is {jump}, measured by the time that has passed. Lives, windows and retention \
                 go by the time that passes and catch up by a hundredth of it. If the clock is wrong, set it by NTP; if it \
                 is right now, start the schedulers once with --set trust_clock=true."
            ),
        });
        let held = self.hold_left().map(|(gap, left)| Alarm {
            code: "ENDS_HELD_BACK".to_owned(),
            message: format!(
                "The scheduler's clock is {gap} of the last leader's mark: nobody led for so long, or the clock is wrong. \
                 No MicroVM is ended or forgotten by the clock for another {}s. If the clock is wrong, set it by NTP and \
                 start the scheduler again.",
                left.as_secs()
            ),
        });
        jumped.into_iter().chain(held).collect()
    }
}

impl Term {
    /// The time of day of everything that microVMs and hosts go by.
    pub fn now(&self) -> SystemTime {
        self.lives.now()
    }

    /// What the wall clock shows: for what others compare with theirs.
    pub fn wall(&self) -> SystemTime {
        self.context.clock.now()
    }

    /// Whether nothing may end by the clock for now.
    pub(crate) fn ends_are_held_back(&self) -> bool {
        self.lives.hold_left().is_some() || self.memory().hosts.outvote().is_some()
    }

    /// Notices jumps, and leaves the next leader a mark. Dying before a mark leaves the one before.
    pub(crate) async fn keep_time(&self) {
        if !self.lives.observe() {
            return;
        }
        let Ok(mark) = serde_json::to_vec(&self.lives.steady.mark()) else { return };
        let put = self.context.store.put_if(MARK, mark, Expect::Any, Some(&self.leadership));
        if let Err(error) = put.await {
            tracing::debug!(%error, "no mark of the time was left");
        }
    }

    /// What a person has to see to.
    pub fn alarms(&self) -> Vec<Alarm> {
        let (mut alarms, store) = (self.clock_alarms(), self.store_alarms());
        alarms.extend(store);
        alarms
    }

    /// What is wrong with the clocks.
    fn clock_alarms(&self) -> Vec<Alarm> {
        let mut alarms = self.lives.alarms();
        alarms.extend(self.memory().hosts.outvote().map(|(differ, known)| Alarm {
            code: "CLOCK_OUTVOTED".to_owned(),
            message: format!(
                "The clocks of {differ} of {known} hosts differ from the scheduler's by more than \
                 host_clock_difference_max_seconds ({}). The scheduler's is taken for the wrong one: no MicroVM is ended or \
                 forgotten by it. Set it by NTP.",
                self.config().host_clock_difference_max_seconds
            ),
        }));
        alarms
    }
}

/// The mark that a leader left; what cannot be read counts as none.
pub(crate) fn read_mark(value: &[u8]) -> Option<Mark> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::warn!(%error, "the last leader's mark of the time cannot be read"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_term_after_a_gap_holds_ends_back_for_a_while() {
        let clock = Clock::manual(SystemTime::UNIX_EPOCH + 1000 * HOUR);
        let mark = Steady::new(clock.clone(), None).mark();
        for (passed, set_back, trust, held) in [
            (GAP_MAX, Duration::ZERO, false, false),
            (HOUR, Duration::ZERO, false, true),
            (HOUR, Duration::ZERO, true, false),
            // Later deadlines hurt nobody.
            (HOUR, 2 * HOUR, false, false),
        ] {
            clock.reboot();
            clock.set_wall(mark.time() + passed - set_back);
            let lives = LifeClock::begin(&clock, Some(&mark), trust);
            assert_eq!(lives.hold_left().is_some(), held, "{passed:?} {set_back:?} {trust}");
            assert_eq!(lives.now(), mark.time() + passed - set_back);
            clock.advance(HOLD);
            assert_eq!(lives.hold_left(), None);
        }
    }

    #[test]
    fn the_next_term_of_a_boot_sees_a_jump_between_the_two() {
        let clock = Clock::manual(SystemTime::UNIX_EPOCH + 1000 * HOUR);
        let mark = Steady::new(clock.clone(), None).mark();
        clock.set_wall(mark.time() + 9 * HOUR);
        let lives = LifeClock::begin(&clock, Some(&mark), false);
        assert_eq!((lives.now(), lives.hold_left()), (mark.time(), None));
        assert!(lives.alarms()[0].message.contains("is 9h 0m 0s ahead"), "{:?}", lives.alarms());
        let trusting = LifeClock::begin(&clock, Some(&mark), true);
        assert_eq!((trusting.now(), trusting.alarms().len()), (clock.now(), 0));
    }
}
