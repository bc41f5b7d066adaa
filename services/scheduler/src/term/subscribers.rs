//! Who watches microVMs. Each has a bounded queue; one that does not keep up is
//! cut and lists again, instead of holding everybody else back.

use std::sync::Arc;

use model::MicrovmId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::domain::microvm::Microvm;

/// Changes a subscriber may leave unread.
const QUEUE_CHANGES: usize = 4096;

#[derive(Debug, Clone)]
pub struct Change {
    pub microvm: Arc<Microvm>,
    /// Where its host takes tunnel connections.
    pub tunnel_address: String,
    pub deleted: bool,
}

#[derive(Debug)]
struct Subscriber {
    only: Option<MicrovmId>,
    queue: mpsc::Sender<Change>,
}

#[derive(Debug, Default)]
pub struct Subscribers {
    all: Vec<Subscriber>,
}

impl Subscribers {
    /// Adds one; its queue ends when it falls behind or the term is over.
    pub fn add(&mut self, only: Option<MicrovmId>) -> mpsc::Receiver<Change> {
        let (queue, changes) = mpsc::channel(QUEUE_CHANGES);
        self.all.push(Subscriber { only, queue });
        changes
    }

    /// Queues a change for everybody it concerns.
    pub fn notify(&mut self, change: &Change) {
        self.all.retain(|subscriber| {
            if subscriber.only.as_ref().is_some_and(|only| *only != change.microvm.id) {
                return !subscriber.queue.is_closed();
            }
            match subscriber.queue.try_send(change.clone()) {
                Ok(()) => true,
                Err(TrySendError::Closed(_)) => false,
                Err(TrySendError::Full(_)) => {
                    tracing::warn!("a watcher fell behind and was cut");
                    false
                }
            }
        });
    }

    pub fn close(&mut self) {
        self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::microvm::tests::sample;
    use std::time::SystemTime;

    fn change(number: u128) -> Change {
        Change {
            microvm: Arc::new(sample(number, SystemTime::UNIX_EPOCH)),
            tunnel_address: String::new(),
            deleted: false,
        }
    }

    #[test]
    fn a_slow_subscriber_is_cut_and_others_are_not() {
        let mut subscribers = Subscribers::default();
        let mut slow = subscribers.add(None);
        let mut picky = subscribers.add(Some(change(1).microvm.id.clone()));
        subscribers.notify(&change(1));
        for _ in 0..QUEUE_CHANGES {
            subscribers.notify(&change(2));
        }
        let mut received = 0;
        while slow.try_recv().is_ok() {
            received += 1;
        }
        assert_eq!(received, QUEUE_CHANGES, "what was queued is still delivered");
        assert_eq!(slow.try_recv().unwrap_err(), mpsc::error::TryRecvError::Disconnected);
        assert_eq!(picky.try_recv().unwrap().microvm.id, change(1).microvm.id);
        assert_eq!(picky.try_recv().unwrap_err(), mpsc::error::TryRecvError::Empty);
    }
}
