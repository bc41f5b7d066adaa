//! Token buckets, one per operation. A bucket holds as many tokens as its
//! operation may be called per second and fills at that rate.
//!
//! All keys of a fleet act for its one account, so these are the account's buckets; each edge has its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_model::OperationName;

const SECOND_NS: u64 = 1_000_000_000;

/// The buckets of an account, by operation.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// In the order of the names.
    buckets: Vec<Bucket>,
    started: Instant,
}

/// A bucket as the time at which it will be full again, in nanoseconds.
#[derive(Debug)]
struct Bucket {
    per_second: u32,
    full_at: AtomicU64,
}

impl Buckets {
    /// Buckets that are full `now`. `rate` says how often per second an operation may be called; 0 means no limit.
    pub(crate) fn new(now: Instant, rate: impl Fn(OperationName) -> u32) -> Self {
        let buckets = OperationName::ALL.iter().map(|name| Bucket::new(rate(*name)));
        Self { buckets: buckets.collect(), started: now }
    }

    /// Takes a token of an operation at `now`.
    pub(crate) fn take(&self, operation: OperationName, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(self.started).as_nanos();
        self.buckets[operation as usize].take(u64::try_from(now).unwrap_or(u64::MAX))
    }
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        Self { per_second, full_at: AtomicU64::new(0) }
    }

    fn take(&self, now: u64) -> Result<(), Duration> {
        if self.per_second == 0 {
            return Ok(());
        }
        let one = SECOND_NS / u64::from(self.per_second);
        let mut wait = 0;
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let full_at = full_at.max(now).saturating_add(one);
            // Empty is a whole second away from full.
            wait = (full_at - now).saturating_sub(SECOND_NS);
            (wait == 0).then_some(full_at)
        });
        taken.map(drop).map_err(|_| Duration::from_nanos(wait))
    }
}

#[cfg(test)]
mod tests {
    use aws_model::OperationName::*;

    use super::*;

    fn buckets(run_microvm: u32, other: u32) -> Buckets {
        Buckets::new(Instant::now(), |name| if name == RunMicrovm { run_microvm } else { other })
    }

    #[test]
    fn a_burst_passes_then_the_rate() {
        let buckets = buckets(5, 0);
        let start = buckets.started;
        for _ in 0..5 {
            assert_eq!(buckets.take(RunMicrovm, start), Ok(()));
        }
        let wait = buckets.take(RunMicrovm, start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(200));
        // A refusal costs nothing.
        assert_eq!(buckets.take(RunMicrovm, start).unwrap_err(), wait);
        assert_eq!(buckets.take(RunMicrovm, start + wait), Ok(()));
        assert!(buckets.take(RunMicrovm, start + wait).is_err());
        // No more than a burst gathers, however long the pause.
        let later = start + Duration::from_secs(100);
        let passed = (0..10).filter(|_| buckets.take(RunMicrovm, later).is_ok());
        assert_eq!(passed.count(), 5);
    }

    #[test]
    fn operations_do_not_share() {
        let buckets = buckets(1, 1);
        let now = buckets.started;
        assert!(buckets.take(RunMicrovm, now).is_ok());
        assert!(buckets.take(RunMicrovm, now).is_err());
        assert!(buckets.take(ListMicrovms, now).is_ok());
        assert!(buckets.take(ListMicrovms, now).is_err());
    }

    #[test]
    fn zero_means_no_limit() {
        let buckets = buckets(0, 0);
        let now = buckets.started;
        assert!((0..1000).all(|_| buckets.take(RunMicrovm, now).is_ok()));
        assert!((0..1000).all(|_| buckets.take(ListMicrovms, now).is_ok()));
    }
}
