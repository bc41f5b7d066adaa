//! What uploads and downloads share: how much at once, and where work blocks.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{FuturesOrdered, StreamExt as _};

use crate::Progress;
use crate::error::Error;

/// Chunks on their way up at once. Uploads run in the background of a host that serves others. Each takes up
/// to three times its size of memory while it is encoded: 25 MiB in all.
pub const UPLOADS_IN_FLIGHT: usize = 2;

/// Chunks on their way down at once. Somebody waits for a download, and most of
/// it is waiting for the store. Each takes up to twice its size: 33 MiB in all.
pub const DOWNLOADS_IN_FLIGHT: usize = 4;

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

/// Does the work for every piece, `at_once` at a time, and returns the
/// results in the order of the pieces. The first error drops what is running.
///
/// Pieces are plain indices: closures over borrowed ones would make futures
/// that the compiler cannot prove to be `Send`.
pub(crate) async fn for_each_piece<T, F>(
    at_once: usize,
    pieces: Vec<Piece>,
    work: impl Fn(Piece) -> F,
) -> Result<Vec<T>, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut results = Vec::with_capacity(pieces.len());
    let mut pieces = pieces.into_iter();
    let mut running = FuturesOrdered::new();
    loop {
        while running.len() < at_once
            && let Some(piece) = pieces.next()
        {
            running.push_back(work(piece));
        }
        match running.next().await {
            Some(result) => results.push(result?),
            None => return Ok(results),
        }
    }
}

/// One chunk's worth of work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// Position of its file among the snapshot's files.
    pub file: usize,
    /// Position of the chunk in what there is to do for the file.
    pub chunk: usize,
}

/// Every piece of files that have this many chunks each.
pub(crate) fn pieces(chunks: impl Iterator<Item = usize>) -> Vec<Piece> {
    let of_file = |(file, count)| (0..count).map(move |chunk| Piece { file, chunk });
    chunks.enumerate().flat_map(of_file).collect()
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
        Self { done: AtomicU64::new(0), total, progress }
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
