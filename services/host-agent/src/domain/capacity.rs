//! How much guest memory the host has handed out. The host accounts for the
//! baseline; what a guest uses beyond it is metered, not reserved.

use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Clone)]
pub struct Capacity {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    total_mib: u64,
    used_mib: u64,
    /// Held by what can be given back at once: engines that wait for a microVM.
    idle_mib: u64,
}

/// Memory handed out; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    capacity: Capacity,
    mib: u64,
    idle: bool,
}

impl Capacity {
    /// A budget of `total_mib` MiB of baseline memory.
    pub fn new(total_mib: u64) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { total_mib, used_mib: 0, idle_mib: 0 })) }
    }

    /// Hands out `mib`, or says how much is free.
    pub fn reserve(&self, mib: u64) -> Result<Reservation, u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let free = inner.total_mib.saturating_sub(inner.used_mib);
        if mib > free {
            return Err(free);
        }
        inner.used_mib += mib;
        Ok(Reservation { capacity: self.clone(), mib, idle: false })
    }

    /// Hands out `mib` that the holder gives back when [`Capacity::is_over`], so that they do not count as used and stand in
    /// nobody's way.
    pub fn reserve_idle(&self, mib: u64) -> Result<Reservation, u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let free = inner.total_mib.saturating_sub(inner.used_mib + inner.idle_mib);
        if mib > free {
            return Err(free);
        }
        inner.idle_mib += mib;
        Ok(Reservation { capacity: self.clone(), mib, idle: true })
    }

    /// True when idle memory is in use twice and must be given back.
    pub fn is_over(&self) -> bool {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.idle_mib > 0 && inner.used_mib + inner.idle_mib > inner.total_mib
    }

    /// Hands out `mib` even beyond the budget, for microVMs that already run when the agent starts.
    pub fn reserve_adopted(&self, mib: u64) -> Reservation {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).used_mib += mib;
        Reservation { capacity: self.clone(), mib, idle: false }
    }

    /// MiB handed out, without the idle ones.
    pub fn used_mib(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).used_mib
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = self.capacity.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let account = if self.idle { &mut inner.idle_mib } else { &mut inner.used_mib };
        *account = account.checked_sub(self.mib).expect("a reservation is given back once, by its own drop");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_and_takes_back() {
        let capacity = Capacity::new(1000);
        let first = capacity.reserve(600).unwrap();
        assert_eq!(capacity.reserve(500).unwrap_err(), 400);
        let adopted = capacity.reserve_adopted(900);
        assert_eq!(capacity.used_mib(), 1500);
        assert_eq!(capacity.reserve(1).unwrap_err(), 0);
        drop((first, adopted));
        assert_eq!(capacity.used_mib(), 0);

        let idle = capacity.reserve_idle(900).unwrap();
        assert_eq!(capacity.used_mib(), 0);
        assert_eq!(capacity.reserve_idle(200).unwrap_err(), 100);
        assert!(!capacity.is_over());
        let guest = capacity.reserve(1000).unwrap();
        assert!(capacity.is_over());
        drop(idle);
        assert!(!capacity.is_over());
        assert_eq!(capacity.reserve_idle(1).unwrap_err(), 0);
        drop(guest);
    }
}
