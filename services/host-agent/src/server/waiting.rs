//! How many tunnel requests may wait for launches and wakes: of one microVM, and of the host. The one is below the other, so
//! that the callers of one microVM that is slow to wake leave room for those of every other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A request's place among those that wait, until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    _of_microvm: OwnedSemaphorePermit,
    _of_host: OwnedSemaphorePermit,
}

/// Takes a place of `microvm`'s and of `host`'s; the error says for what too many wait.
pub fn wait_in(microvm: &Arc<Semaphore>, host: &Arc<Semaphore>) -> Result<Waiting, &'static str> {
    let of_microvm = Arc::clone(microvm).try_acquire_owned();
    let of_host = Arc::clone(host).try_acquire_owned();
    match (of_microvm, of_host) {
        (Ok(of_microvm), Ok(of_host)) => Ok(Waiting { _of_microvm: of_microvm, _of_host: of_host }),
        (Err(_), _) => Err("too many requests wait for the microVM"),
        (Ok(_), Err(_)) => Err("too many requests wait for microVMs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_microvm_leaves_room_for_the_others() {
        let host = Arc::new(Semaphore::new(3));
        let (slow, other) = (Arc::new(Semaphore::new(2)), Arc::new(Semaphore::new(2)));
        let first = wait_in(&slow, &host).unwrap();
        let _second = wait_in(&slow, &host).unwrap();
        assert_eq!(wait_in(&slow, &host).unwrap_err(), "too many requests wait for the microVM");
        let _of_other = wait_in(&other, &host).unwrap();
        assert_eq!(wait_in(&other, &host).unwrap_err(), "too many requests wait for microVMs");
        drop(first);
        assert_eq!((slow.available_permits(), host.available_permits()), (1, 1));
        wait_in(&slow, &host).unwrap();
    }
}
