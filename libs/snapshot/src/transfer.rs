//! What uploads and downloads share: how much at once, and where work blocks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Progress;

/// Chunks on their way at once. Each takes up to three times its size of memory
/// while it is encoded or decoded: about 25 MiB in all.
pub const CONCURRENCY: usize = 2;

/// Runs file and CPU work where it may block. A panic in it goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is never cancelled once begun; it is refused only
            // while the runtime goes down, when nobody polls this any more.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Adds up finished bytes of concurrent pieces.
pub(crate) struct Tally<'a> {
    done: AtomicU64,
    total: u64,
    progress: Progress<'a>,
}

impl<'a> Tally<'a> {
    pub(crate) fn start(total: u64, progress: Progress<'a>) -> Self {
        progress(0, total);
        Self {
            done: AtomicU64::new(0),
            total,
            progress,
        }
    }

    pub(crate) fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.total);
    }
}

/// How an object is named to people.
pub(crate) fn address(bucket: &str, key: &str) -> String {
    format!("s3://{bucket}/{key}")
}
