//! Waiting for a condition up to a deadline.

use std::time::{Duration, Instant};

/// Longest wait for anything on a loaded machine without virtualization. Only a
/// test that fails waits this long.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

/// Polls until the condition gives a value.
///
/// # Panics
/// When it gives none within [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Polls until the condition holds.
///
/// # Panics
/// When it does not hold within [`PATIENCE`].
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    eventually(what, || {
        let holds = holds();
        async { holds.await.then_some(()) }
    })
    .await;
}
