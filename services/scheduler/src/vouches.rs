//! Promises to hosts: for a while nothing of theirs is given to another (RFD 0017).
//!
//! A host that cannot reach etcd asks every scheduler that may lead for such a promise. One that does not lead gives it as well,
//! and keeps it when it comes to lead. So the promises belong to the process and not to a term.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clock::Clock;
use model::HostId;

/// How long a promise holds for the host, counted by its clock from when it asked.
pub const VOUCH: Duration = Duration::from_secs(10);
/// How much longer it is kept here: the two clocks need not run alike.
const MARGIN: Duration = Duration::from_secs(2);

/// What this scheduler has promised.
#[derive(Debug)]
pub struct Vouches {
    clock: Clock,
    /// Its address, as the election names it.
    scheduler: String,
    /// Uptime when the process began. What the process before it at this address promised is not known, only when it is over.
    began: Duration,
    /// Uptime of the last promise to each host; those that are over are forgotten.
    given: Mutex<HashMap<HostId, Duration>>,
}

impl Vouches {
    /// None yet.
    #[must_use]
    pub fn new(clock: Clock, scheduler: String) -> Self {
        let began = clock.uptime();
        Self { clock, scheduler, began, given: Mutex::default() }
    }

    /// The address of the scheduler that vouches.
    #[must_use]
    pub fn scheduler(&self) -> &str {
        &self.scheduler
    }

    /// Promises that nothing of the host's is given to another for [`VOUCH`] from now.
    pub fn vouch(&self, host: &HostId) -> Duration {
        let now = self.clock.uptime();
        let mut given = self.given();
        given.retain(|_, at| now < *at + VOUCH + MARGIN);
        given.insert(host.clone(), now);
        VOUCH
    }

    /// Whether a promise to the host has to be kept now: one that was given, or may have been given by the process before.
    #[must_use]
    pub fn binds(&self, host: &HostId) -> bool {
        let last = self.given().get(host).copied().unwrap_or(self.began);
        self.clock.uptime() < last.max(self.began) + VOUCH + MARGIN
    }

    /// Whether the host has been promised something that holds for it now.
    #[must_use]
    pub fn is_given(&self, host: &HostId) -> bool {
        self.given().get(host).is_some_and(|at| self.clock.uptime() < *at + VOUCH)
    }

    fn given(&self) -> MutexGuard<'_, HashMap<HostId, Duration>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_promise_binds_longer_than_the_host_may_go_by_it_and_so_does_one_of_the_process_before() {
        let clock = Clock::manual(SystemTime::UNIX_EPOCH);
        let (a, b): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let vouches = Vouches::new(clock.clone(), "s:1".to_owned());
        assert!(vouches.binds(&a) && !vouches.is_given(&a), "who knows what the process before promised");
        clock.advance(VOUCH);
        assert!(vouches.binds(&a));
        clock.advance(MARGIN);
        assert!(!vouches.binds(&a));
        assert_eq!(vouches.vouch(&a), VOUCH);
        clock.advance(VOUCH);
        assert!(vouches.binds(&a) && !vouches.is_given(&a) && !vouches.binds(&b));
        clock.advance(MARGIN);
        assert!(!vouches.binds(&a));
        vouches.vouch(&b);
        assert_eq!(vouches.given().len(), 1, "what is over is forgotten");
    }
}
