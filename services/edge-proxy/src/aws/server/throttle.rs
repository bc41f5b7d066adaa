//! Token buckets, one per operation. A bucket holds as many tokens as its
//! operation may be called per second and fills at that rate.
//!
//! All keys of a fleet act for its one account, so these are the account's buckets; each edge has its own.

use std::time::{Duration, Instant};

use aws_model::OperationName;

use crate::domain::rate::Bucket;

/// The buckets of an account, by operation.
#[derive(Debug)]
pub(crate) struct Buckets(
    /// In the order of the names.
    Vec<Bucket>,
);

impl Buckets {
    /// Buckets that are full `now`. `rate` says how often per second an operation may be called; 0 means no limit.
    pub(crate) fn new(now: Instant, rate: impl Fn(OperationName) -> u32) -> Self {
        Self(OperationName::ALL.iter().map(|name| Bucket::new(rate(*name).into(), now)).collect())
    }

    /// Takes a token of an operation at `now`.
    pub(crate) fn take(&self, operation: OperationName, now: Instant) -> Result<(), Duration> {
        self.0[operation as usize].take(now)
    }
}

#[cfg(test)]
mod tests {
    use aws_model::OperationName::*;

    use super::*;

    #[test]
    fn operations_do_not_share() {
        let now = Instant::now();
        let buckets = Buckets::new(now, |name| if name == GetMicrovm { 0 } else { 1 });
        assert!(buckets.take(RunMicrovm, now).is_ok());
        assert!(buckets.take(RunMicrovm, now).is_err());
        assert!(buckets.take(ListMicrovms, now).is_ok());
        assert!(buckets.take(ListMicrovms, now).is_err());
        assert!((0..1000).all(|_| buckets.take(GetMicrovm, now).is_ok()));
    }
}
