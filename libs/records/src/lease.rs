//! A lease and the moment by which its holder must stop.
//!
//! The holder's deadline is counted by its own monotonic clock from when the last answered keepalive was
//! *sent*, so it always passes before etcd lets anybody else in, whatever happens to the connection.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::watch::backoff;
use crate::{Error, Result, Store};

/// Keepalives per time to live.
const KEEPALIVES_PER_TTL: u32 = 4;
/// The same while etcd does not answer: its members may take most of a short one to elect another of them.
const RETRIES_PER_TTL: u32 = 16;
/// Shortest time to live; etcd rounds up below this.
const TTL_MIN: Duration = Duration::from_secs(1);

/// A lease, kept alive in the background until it is revoked, lost, or every
/// clone of it is dropped (then it runs out by itself). Once over it stays over.
#[derive(Debug, Clone)]
pub struct Lease {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    id: i64,
    store: Store,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    deadline: Instant,
    ended: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    /// Takes a lease that lives `ttl` (whole seconds, at least 1) beyond its last keepalive.
    pub fn lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>> {
        Box::pin(async move {
            let ttl = Duration::from_secs(ttl.max(TTL_MIN).as_secs());
            let sent = Instant::now();
            let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
            // One whose answer is lost runs out by itself.
            let id = self.backend().grant(seconds).await?;
            let (state, _) = watch::channel(State { deadline: sent + ttl, ended: false });
            let task = tokio::spawn(keep_alive(self.clone(), id, ttl, state.clone()));
            Ok(Lease { shared: Arc::new(Shared { id, store: self.clone(), state, task }) })
        })
    }
}

impl Lease {
    #[must_use]
    pub fn id(&self) -> i64 {
        self.shared.id
    }

    /// When the holder must have stopped unless another keepalive succeeds.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.shared.state.borrow().deadline
    }

    /// True until the deadline passes or etcd says that the lease is gone.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let state = *self.shared.state.borrow();
        !state.ended && Instant::now() < state.deadline
    }

    /// Returns once the lease is over; at the deadline at the latest. Cancel safe.
    pub fn lost(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut states = self.shared.state.subscribe();
            loop {
                let state = *states.borrow_and_update();
                if state.ended || Instant::now() >= state.deadline {
                    self.end();
                    return;
                }
                tokio::select! {
                    biased;
                    changed = states.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(state.deadline) => {}
                }
            }
        })
    }

    /// Gives the lease, and every key tied to it, back now.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: it then runs out by itself. It is over for the
    /// holder either way.
    pub fn revoke(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.end();
            match self.shared.store.backend().revoke(self.shared.id).await {
                Ok(()) => Ok(()),
                Err(Error::Refused { detail }) if detail.contains("not found") => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    /// Ends the lease for its holder.
    pub(crate) fn end(&self) {
        self.shared.state.send_modify(|state| state.ended = true);
    }
}

async fn keep_alive(store: Store, id: i64, ttl: Duration, state: watch::Sender<State>) {
    let mut backoff = backoff();
    loop {
        let over = {
            let state = state.borrow();
            state.ended || Instant::now() >= state.deadline
        };
        if over || matches!(renew_while_connected(&store, id, ttl, &state).await, Renewal::Gone) {
            // A late keepalive must never bring a lease back that its holder gave up.
            state.send_modify(|state| state.ended = true);
            return;
        }
        tokio::time::sleep(backoff.next_pause().min(ttl / RETRIES_PER_TTL)).await;
    }
}

enum Renewal {
    Gone,
    Disconnected,
}

/// Whether a stream of keepalives did not open because there is no such lease.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Unavailable { detail, .. } if detail.contains("lease not found"))
}

async fn renew_while_connected(
    store: &Store,
    id: i64,
    ttl: Duration,
    state: &watch::Sender<State>,
) -> Renewal {
    let mut sent = Instant::now();
    // Opening the stream sends a first keepalive and reads its answer.
    let mut keeper = match store.backend().keep_alive(id, ttl / KEEPALIVES_PER_TTL).await {
        Ok(keeper) => keeper,
        Err(error) if is_gone(&error) => return Renewal::Gone,
        Err(error) => {
            tracing::debug!(%error, "keepalive failed");
            return Renewal::Disconnected;
        }
    };
    loop {
        state.send_modify(|state| state.deadline = sent + ttl);
        // Counted from when the one before was sent: late answers must not make keepalives rarer as well.
        tokio::time::sleep_until(sent + ttl / KEEPALIVES_PER_TTL).await;
        if state.borrow().ended {
            return Renewal::Gone;
        }
        sent = Instant::now();
        match keeper.renew().await {
            Ok(left) if left <= 0 => return Renewal::Gone,
            Ok(_) => {
                let took = sent.elapsed();
                if took > ttl / KEEPALIVES_PER_TTL {
                    tracing::warn!(?took, ?ttl, "etcd is slow to renew a lease");
                }
            }
            Err(error) => {
                tracing::debug!(%error, "keepalive not answered");
                return Renewal::Disconnected;
            }
        }
    }
}
