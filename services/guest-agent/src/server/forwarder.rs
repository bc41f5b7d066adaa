//! Sends the app's output to the connection that asked for it. One thread, asleep
//! unless there is output to send.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use api::guest::v1::StreamLogsResponse;
use guest_link::frame::{Body, Frame};

use super::connection::Connection;
use crate::app::logs::{Batch, Logs};

/// Hands over who follows the output, and from where.
pub struct Forwarder {
    shared: Arc<Shared>,
    logs: Arc<Logs>,
}

#[derive(Default)]
struct Shared {
    wanted: Mutex<Option<(Arc<Connection>, u64)>>,
    changed: Condvar,
    /// Raised with every change, so that a wait for output can tell without the lock.
    version: AtomicU64,
}

impl Forwarder {
    pub fn start(logs: Arc<Logs>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("logs".to_owned());
        thread.spawn({
            let (shared, logs) = (Arc::clone(&shared), Arc::clone(&logs));
            move || shared.run(&logs)
        })?;
        Ok(Self { shared, logs })
    }

    /// From now on output goes to `connection`, beginning with line `from`, or with the
    /// next one when `from` lies beyond it.
    pub fn follow(&self, connection: Arc<Connection>, from: u64) {
        let position = self.logs.position(from);
        let mut wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        *wanted = Some((connection, position));
        self.shared.version.fetch_add(1, Ordering::Release);
        drop(wanted);
        self.shared.changed.notify_one();
        self.logs.wake();
    }
}

impl Shared {
    fn run(&self, logs: &Logs) {
        loop {
            let (connection, mut position, version) = self.wait_for_follower();
            let changed = || self.version.load(Ordering::Acquire) != version || connection.is_retired();
            // A follower that went away is noticed with the next output.
            while let Some(Batch { lines, dropped, next }) = logs.wait_batch(position, changed) {
                position = next;
                let body = Body::StreamLogsResponse(StreamLogsResponse { lines, dropped });
                connection.send(&Frame { exchange: 0, body: Some(body) });
            }
        }
    }

    fn wait_for_follower(&self) -> (Arc<Connection>, u64, u64) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some((connection, position)) = wanted.take() {
                return (connection, position, self.version.load(Ordering::Acquire));
            }
            wanted = self.changed.wait(wanted).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
