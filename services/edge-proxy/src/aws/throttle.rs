//! Token buckets, one per operation. A bucket holds as many tokens as its
//! operation may be called per second and fills at that rate.
//!
//! All keys of a fleet act for its one account, so these are the account's
//! buckets; each edge has its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Throttles;

const SECOND_NS: u64 = 1_000_000_000;

/// The buckets of an account, by operation.
#[derive(Debug)]
pub struct Buckets {
    buckets: HashMap<&'static str, Bucket>,
    started: Instant,
}

/// A bucket as the time at which it will be full again, in nanoseconds.
#[derive(Debug)]
struct Bucket {
    per_second: u32,
    full_at: AtomicU64,
}

impl Buckets {
    /// Full buckets for `operations`, by name.
    #[must_use]
    pub fn new(limits: &Throttles, operations: impl Iterator<Item = &'static str>) -> Self {
        Self {
            buckets: operations.map(|operation| (operation, Bucket::new(limit(limits, operation)))).collect(),
            started: Instant::now(),
        }
    }

    /// Takes a token of an operation at `now`.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&self, operation: &str, now: Instant) -> Result<(), Duration> {
        let Some(bucket) = self.buckets.get(operation) else {
            return Ok(());
        };
        let now = now.saturating_duration_since(self.started).as_nanos();
        bucket.take(u64::try_from(now).unwrap_or(u64::MAX))
    }
}

/// Calls per second of an operation; 0 means no limit.
fn limit(limits: &Throttles, operation: &str) -> u32 {
    match operation {
        "RunMicrovm" => limits.run_microvm,
        "ResumeMicrovm" => limits.resume_microvm,
        "SuspendMicrovm" => limits.suspend_microvm,
        "TerminateMicrovm" => limits.terminate_microvm,
        "GetMicrovm" => limits.get_microvm,
        "CreateMicrovmAuthToken" => limits.create_microvm_auth_token,
        "CreateMicrovmShellAuthToken" => limits.create_microvm_shell_auth_token,
        _ if ["Create", "Update", "Delete", "Tag", "Untag"]
            .iter()
            .any(|verb| operation.starts_with(verb)) =>
        {
            limits.changes
        }
        _ => limits.other,
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
    use super::*;

    fn buckets(run_microvm: u32, other: u32) -> Buckets {
        let limits = Throttles { run_microvm, other, ..Throttles::default() };
        Buckets::new(&limits, ["RunMicrovm", "ListMicrovms"].into_iter())
    }

    #[test]
    fn a_burst_passes_then_the_rate() {
        let buckets = buckets(5, 0);
        let start = buckets.started;
        for _ in 0..5 {
            assert_eq!(buckets.take("RunMicrovm", start), Ok(()));
        }
        let wait = buckets.take("RunMicrovm", start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(200));
        // A refusal costs nothing.
        assert_eq!(buckets.take("RunMicrovm", start).unwrap_err(), wait);
        assert_eq!(buckets.take("RunMicrovm", start + wait), Ok(()));
        assert!(buckets.take("RunMicrovm", start + wait).is_err());
        // No more than a burst gathers, however long the pause.
        let later = start + Duration::from_secs(100);
        let passed = (0..10).filter(|_| buckets.take("RunMicrovm", later).is_ok());
        assert_eq!(passed.count(), 5);
    }

    #[test]
    fn operations_do_not_share() {
        let buckets = buckets(1, 1);
        let now = buckets.started;
        assert!(buckets.take("RunMicrovm", now).is_ok());
        assert!(buckets.take("RunMicrovm", now).is_err());
        assert!(buckets.take("ListMicrovms", now).is_ok());
        assert!(buckets.take("ListMicrovms", now).is_err());
    }

    #[test]
    fn zero_means_no_limit() {
        let buckets = buckets(0, 0);
        let now = buckets.started;
        assert!((0..1000).all(|_| buckets.take("RunMicrovm", now).is_ok()));
        assert!((0..1000).all(|_| buckets.take("ListMicrovms", now).is_ok()));
    }
}
