//! A token bucket: how often something may happen, or how many bytes may pass. It holds what may pass in one second and
//! fills at that rate. One atomic number, so that a bucket per address or microVM costs its neighbours nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SECOND_NS: u64 = 1_000_000_000;

/// A bucket as the time at which it will be full again, in nanoseconds after `started`.
#[derive(Debug)]
pub struct Bucket {
    per_second: u64,
    started: Instant,
    full_at: AtomicU64,
}

impl Bucket {
    /// A bucket that is full `now`; 0 `per_second` means no limit.
    pub fn new(per_second: u64, now: Instant) -> Self {
        Self { per_second, started: now, full_at: AtomicU64::new(0) }
    }

    pub fn is_unlimited(&self) -> bool {
        self.per_second == 0
    }

    /// Takes one token.
    ///
    /// # Errors
    /// When there is none: after how long there will be one. A refusal costs nothing.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        if self.is_unlimited() {
            return Ok(());
        }
        let now = self.at(now);
        let one = self.time_of(1);
        let mut wait = 0;
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let full_at = full_at.max(now).saturating_add(one);
            // Empty is a whole second away from full. Whoever looked at the clock before the last one did waits no longer.
            wait = (full_at - now).saturating_sub(SECOND_NS).min(one);
            (wait == 0).then_some(full_at)
        });
        taken.map(drop).map_err(|_| Duration::from_nanos(wait))
    }

    /// Takes tokens for what has happened already, also those that are not there yet; says how long to wait until they are.
    pub fn owe(&self, count: u64, now: Instant) -> Duration {
        if self.is_unlimited() {
            return Duration::ZERO;
        }
        let now = self.at(now);
        let (time, mut wait) = (self.time_of(count), 0);
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let full_at = full_at.max(now).saturating_add(time);
            wait = (full_at - now).saturating_sub(SECOND_NS);
            Some(full_at)
        });
        Duration::from_nanos(wait)
    }

    /// True when nothing is owed and nothing was taken lately: such a bucket may be forgotten.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.load(Ordering::Relaxed) <= self.at(now)
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long it takes for `count` tokens to come.
    fn time_of(&self, count: u64) -> u64 {
        let time = u128::from(count) * u128::from(SECOND_NS) / u128::from(self.per_second);
        u64::try_from(time).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate() {
        let start = Instant::now();
        let bucket = Bucket::new(5, start);
        for _ in 0..5 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        let wait = bucket.take(start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(200));
        // A refusal costs nothing.
        assert_eq!(bucket.take(start).unwrap_err(), wait);
        assert_eq!(bucket.take(start + wait), Ok(()));
        assert!(bucket.take(start + wait).is_err());
        assert!(!bucket.is_full(start + wait));
        // No more than a burst gathers, however long the pause.
        let later = start + Duration::from_secs(100);
        assert!(bucket.is_full(later));
        let passed = (0..10).filter(|_| bucket.take(later).is_ok());
        assert_eq!(passed.count(), 5);
    }

    #[test]
    fn what_is_owed_is_waited_for() {
        let start = Instant::now();
        let bucket = Bucket::new(1000, start);
        assert_eq!(bucket.owe(1000, start), Duration::ZERO);
        assert_eq!(bucket.owe(500, start), Duration::from_millis(500));
        assert_eq!(bucket.owe(250, start + Duration::from_millis(500)), Duration::from_millis(250));
    }

    #[test]
    fn zero_means_no_limit() {
        let now = Instant::now();
        let bucket = Bucket::new(0, now);
        assert!((0..1000).all(|_| bucket.take(now).is_ok()));
        assert_eq!(bucket.owe(u64::MAX, now), Duration::ZERO);
    }
}
