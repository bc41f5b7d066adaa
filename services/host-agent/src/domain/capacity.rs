//! How much guest memory the host has handed out. The host accounts for the
//! baseline; what a guest uses beyond it is metered, not reserved.

use std::sync::{Arc, Mutex, PoisonError};

/// The host's memory budget.
#[derive(Debug, Clone)]
pub struct Capacity {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    total_mib: u64,
    used_mib: u64,
}

/// Memory handed out; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    capacity: Capacity,
    mib: u64,
}

impl Capacity {
    /// A budget of `total_mib` MiB of baseline memory.
    #[must_use]
    pub fn new(total_mib: u64) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { total_mib, used_mib: 0 })) }
    }

    /// Hands out `mib`, or says how much is free.
    ///
    /// # Errors
    /// The free MiB, when that is less.
    pub fn reserve(&self, mib: u64) -> Result<Reservation, u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let free = inner.total_mib.saturating_sub(inner.used_mib);
        if mib > free {
            return Err(free);
        }
        inner.used_mib += mib;
        Ok(Reservation { capacity: self.clone(), mib })
    }

    /// Hands out `mib` even beyond the budget, for microVMs that already run
    /// when the agent starts.
    #[must_use]
    pub fn reserve_adopted(&self, mib: u64) -> Reservation {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).used_mib += mib;
        Reservation { capacity: self.clone(), mib }
    }

    /// MiB handed out.
    #[must_use]
    pub fn used_mib(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).used_mib
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = self.capacity.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.used_mib =
            inner.used_mib.checked_sub(self.mib).expect("a reservation is given back once, by its own drop");
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
    }
}
