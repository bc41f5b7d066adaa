//! When a microVM has been idle for long enough. Activity is bytes through its
//! tunnel and nothing else: neither CPU load nor control-plane calls count.

use std::time::Duration;

/// Activity of a microVM's tunnel as the driver sees it, in milliseconds of one monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idleness {
    /// When bytes last moved, or the microVM became RUNNING if that is later.
    pub last_activity_ms: u64,
    /// Time without activity after which it sleeps; `None` never.
    pub limit: Option<Duration>,
}

/// What the idle timer has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleDecision {
    Sleep,
    /// Look again after this long.
    Wait(Duration),
    /// It never sleeps by itself.
    Never,
}

/// Decides at `now_ms`. A clock that stands before the last activity (another
/// thread has just stamped it) counts as no idle time at all.
pub fn decide(idleness: Idleness, now_ms: u64) -> IdleDecision {
    let Some(limit) = idleness.limit else {
        return IdleDecision::Never;
    };
    let idle = Duration::from_millis(now_ms.saturating_sub(idleness.last_activity_ms));
    match limit.checked_sub(idle) {
        Some(rest) if !rest.is_zero() => IdleDecision::Wait(rest),
        _ => IdleDecision::Sleep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decisions() {
        let at = |last_activity_ms, limit_s: Option<u64>, now_ms| {
            decide(Idleness { last_activity_ms, limit: limit_s.map(Duration::from_secs) }, now_ms)
        };
        assert_eq!(at(0, None, 1 << 40), IdleDecision::Never);
        assert_eq!(at(1_000, Some(60), 1_000), IdleDecision::Wait(Duration::from_secs(60)));
        assert_eq!(at(1_000, Some(60), 60_999), IdleDecision::Wait(Duration::from_millis(1)));
        assert_eq!(at(1_000, Some(60), 61_000), IdleDecision::Sleep);
        assert_eq!(at(5_000, Some(60), 1_000), IdleDecision::Wait(Duration::from_secs(60)));
        assert_eq!(at(0, Some(0), 0), IdleDecision::Sleep);
    }

    proptest! {
        /// Waiting exactly as long as told ends in sleep when nothing happened meanwhile.
        #[test]
        fn a_wait_is_never_too_long(last in 0u64..1 << 40, limit in 1u64..30_000, now in 0u64..1 << 41) {
            let idleness = Idleness { last_activity_ms: last, limit: Some(Duration::from_secs(limit)) };
            if let IdleDecision::Wait(rest) = decide(idleness, now) {
                let later = now.max(last) + u64::try_from(rest.as_millis()).unwrap();
                prop_assert_eq!(decide(idleness, later), IdleDecision::Sleep);
            }
        }
    }
}
