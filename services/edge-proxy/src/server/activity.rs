//! What is under way on one client connection: how many requests, and which of their responses nobody reads. An idle
//! connection is ended by it, and a response that nobody reads gives back what it holds.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body, Frame, SizeHint};

/// Requests and responses of one connection.
#[derive(Debug)]
pub struct Activity {
    opened: Instant,
    in_flight: AtomicUsize,
    /// Requests that have begun.
    begun: AtomicU64,
    /// The client does not take what has been written.
    blocked: AtomicBool,
    /// When a request last began or ended, in milliseconds after `opened`.
    changed_ms: AtomicU64,
    responses: Mutex<Vec<Weak<dyn Unread>>>,
}

/// Keeps its connection from being idle.
#[derive(Debug)]
pub struct InFlight(Arc<Activity>);

/// A response that can be given up.
trait Unread: Send + Sync + fmt::Debug {
    /// Gives up what it holds, if the client has taken nothing since `before_ms`.
    fn give_up(&self, before_ms: u64);
    /// Where it is.
    fn address(&self) -> *const ();
}

impl Activity {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            in_flight: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            changed_ms: AtomicU64::new(0),
            responses: Mutex::default(),
        })
    }

    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.changed_ms.store(self.now_ms(), Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Says whether a write waits for the client.
    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// How many requests have begun.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// How long nothing has been under way; `None` while something is.
    pub fn idle_for(&self) -> Option<Duration> {
        let changed = self.changed_ms.load(Ordering::Relaxed);
        let idle = self.in_flight.load(Ordering::Relaxed) == 0 && !self.blocked.load(Ordering::Relaxed);
        idle.then(|| Duration::from_millis(self.now_ms().saturating_sub(changed)))
    }

    /// Gives up the responses of which the client has taken nothing for `wait`.
    pub fn give_up_unread(&self, wait: Duration) {
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let Some(before) = self.now_ms().checked_sub(wait) else { return };
        let responses: Vec<_> = self.responses().iter().filter_map(Weak::upgrade).collect();
        responses.iter().for_each(|response| response.give_up(before));
    }

    fn responses(&self) -> MutexGuard<'_, Vec<Weak<dyn Unread>>> {
        // Each change is one insertion or removal.
        self.responses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.changed_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a response under way.
#[derive(Debug)]
pub struct Watched<B: Send + fmt::Debug + 'static>(Arc<Held<B>>);

#[derive(Debug)]
struct Held<B> {
    activity: Arc<Activity>,
    /// Absent once it was given up or sent.
    body: Mutex<Option<(B, InFlight)>>,
    /// Since when the client has not taken what it was given, in milliseconds after the connection was opened;
    /// [`APPS_TURN`] while the next piece is the app's affair.
    given_ms: AtomicU64,
}

const APPS_TURN: u64 = u64::MAX;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum WatchedError<E: std::error::Error + 'static> {
    #[error("the app's response broke off")]
    Body(#[source] E),
    #[error("the client did not read the response in time")]
    Unread,
}

impl<B: Send + fmt::Debug + 'static> Watched<B> {
    pub fn new(body: B, in_flight: InFlight) -> Self {
        let activity = in_flight.0.clone();
        let given_ms = AtomicU64::new(activity.now_ms());
        let held = Arc::new(Held { activity, body: Mutex::new(Some((body, in_flight))), given_ms });
        let unread: Weak<dyn Unread> = Arc::downgrade(&(held.clone() as Arc<dyn Unread>));
        held.activity.responses().push(unread);
        Self(held)
    }
}

impl<B: Send + fmt::Debug + 'static> Drop for Watched<B> {
    fn drop(&mut self) {
        let own = self.0.address();
        self.0.activity.responses().retain(|response| response.as_ptr().cast::<()>() != own);
    }
}

impl<B> Held<B> {
    fn body(&self) -> MutexGuard<'_, Option<(B, InFlight)>> {
        // A body that panicked is not asked again: its connection is gone.
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Send + fmt::Debug> Unread for Held<B> {
    fn give_up(&self, before_ms: u64) {
        let mut body = self.body();
        let unread = body.is_some() && self.given_ms.load(Ordering::Relaxed) <= before_ms;
        let given_up = unread.then(|| body.take());
        drop(body);
        if given_up.is_some() {
            tracing::debug!("a client does not read its response");
        }
    }

    fn address(&self) -> *const () {
        std::ptr::from_ref(self).cast()
    }
}

impl<B> Body for Watched<B>
where
    B: Body<Error: std::error::Error> + Unpin + Send + fmt::Debug + 'static,
{
    type Data = B::Data;
    type Error = WatchedError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let held = &self.0;
        let mut body = held.body();
        let Some((inner, _)) = body.as_mut() else {
            return Poll::Ready(Some(Err(WatchedError::Unread)));
        };
        held.given_ms.store(APPS_TURN, Ordering::Relaxed);
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        held.given_ms.store(held.activity.now_ms(), Ordering::Relaxed);
        Poll::Ready(frame.map(|frame| frame.map_err(WatchedError::Body)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.body().as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.body().as_ref().map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn what_nobody_reads_gives_back_what_it_holds() {
        let activity = Activity::new();
        assert!(activity.idle_for().is_some());
        let body = || Watched::new(Full::new(Bytes::from("text")), activity.begin());
        let (mut unread, mut read) = (body(), body());
        assert!(activity.idle_for().is_none());
        // The app's turn: however long it takes, nobody gives up.
        read.0.given_ms.store(APPS_TURN, Ordering::Relaxed);
        activity.give_up_unread(Duration::ZERO);
        assert_eq!(activity.in_flight.load(Ordering::Relaxed), 1);
        assert!(matches!(unread.frame().await, Some(Err(WatchedError::Unread))));
        assert_eq!(read.frame().await.unwrap().unwrap().into_data().unwrap(), "text");
        assert_eq!(activity.responses().len(), 2);
        drop((unread, read));
        assert_eq!(activity.responses().len(), 0);
        assert!(activity.idle_for().is_some());
    }
}
