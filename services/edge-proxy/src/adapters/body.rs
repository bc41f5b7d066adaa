//! Bodies that pass through without being gathered.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::adapters::expect::{Consent, Waiting};
use crate::adapters::tunnels::InUse;

/// How long a body that nobody wants any more is read and thrown away. A client that sends before it reads, as most do, would
/// otherwise find its connection reset instead of the answer.
const DISCARD_TIME: Duration = Duration::from_secs(30);

/// What is known of a request's body outside of it.
#[derive(Debug, Default)]
struct Progress {
    /// The body, until its first frame is asked for.
    unread: Mutex<Option<ClientBody>>,
    /// Its last frame has been given.
    ended: AtomicBool,
}

impl Progress {
    fn take(&self) -> Option<ClientBody> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Why a request's body did not reach the app.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Client(#[from] hyper::Error),
    #[error("the app has turned the body away")]
    TurnedAway,
}

/// A client's body. What is left of it when it is dropped is thrown away, unless the client waits to be asked for it.
#[derive(Debug)]
pub struct ClientBody {
    body: Option<Incoming>,
    /// The client waits for "100 Continue".
    held_back: bool,
}

impl ClientBody {
    pub fn new(body: Incoming, held_back: bool) -> Self {
        Self { body: Some(body), held_back }
    }

    fn get(&self) -> &Incoming {
        self.body.as_ref().expect("taken by its drop only")
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !self.held_back && !body.is_end_stream()) else {
            return;
        };
        // Without a runtime the process ends, and the connection with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let discard = async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} };
                tokio::time::timeout(DISCARD_TIME, discard).await
            });
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.held_back = false;
        Pin::new(self.body.as_mut().expect("taken by its drop only")).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.get().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.get().size_hint()
    }
}

/// A request body that can be had back until its first frame is asked for, so
/// that a request which met a dead connection can be sent on another.
pub struct ReplayBody {
    progress: Arc<Progress>,
    taken: Option<ClientBody>,
    hint: SizeHint,
    ended: bool,
    /// Until the app has agreed to have it.
    verdict: Option<BoxFuture<'static, bool>>,
}

/// The way back to the body.
#[derive(Debug)]
pub struct Replay(Arc<Progress>);

impl ReplayBody {
    /// Goes to the app at once, or when it agrees.
    pub fn new(body: ClientBody, waiting: Option<Waiting>) -> (Self, Replay) {
        let (hint, ended) = (body.size_hint(), body.is_end_stream());
        let progress = Arc::new(Progress { unread: Mutex::new(Some(body)), ended: AtomicBool::new(ended) });
        let verdict = waiting.map(|waiting| -> BoxFuture<'static, bool> { Box::pin(waiting.verdict()) });
        (Self { progress: progress.clone(), taken: None, hint, ended, verdict }, Replay(progress))
    }

    /// No body.
    pub fn empty() -> Self {
        let hint = SizeHint::with_exact(0);
        Self { progress: Arc::default(), taken: None, hint, ended: true, verdict: None }
    }
}

impl Replay {
    /// The body, if nothing of it was read.
    pub fn back(self) -> Option<ClientBody> {
        self.0.take()
    }

    /// True once the app has been sent all of it.
    pub fn is_sent(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(verdict) = &mut self.verdict {
            if !ready!(verdict.as_mut().poll(cx)) {
                return Poll::Ready(Some(Err(BodyError::TurnedAway)));
            }
            self.verdict = None;
        }
        if self.taken.is_none() {
            self.taken = self.progress.take();
        }
        let Some(body) = &mut self.taken else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if frame.is_none() || body.is_end_stream() {
            self.progress.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.taken.as_ref().map_or(self.ended, Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.taken.as_ref().map_or_else(|| self.hint, Body::size_hint)
    }
}

/// A response body: the app's, or the edge's own few words. Holds the
/// microVM's request permit until it has been sent.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    _permit: Option<OwnedSemaphorePermit>,
    /// A request's body that was turned away is given up when its response has been sent.
    _consent: Option<Consent>,
    /// The app's connection is not ended before.
    _in_use: Option<InUse>,
}

#[derive(Debug)]
enum Source {
    App(Incoming),
    Edge(Full<Bytes>),
}

impl ResponseBody {
    pub fn app(
        body: Incoming,
        permit: OwnedSemaphorePermit,
        consent: Option<Consent>,
        in_use: Option<InUse>,
    ) -> Self {
        Self { source: Source::App(body), _permit: Some(permit), _consent: consent, _in_use: in_use }
    }

    /// A text of the edge's own.
    pub fn text(text: &'static str) -> Self {
        Self { source: Source::Edge(Full::from(text)), _permit: None, _consent: None, _in_use: None }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.source {
            Source::App(body) => Pin::new(body).poll_frame(cx),
            Source::Edge(text) => Pin::new(text).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::App(body) => body.is_end_stream(),
            Source::Edge(text) => text.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::App(body) => body.size_hint(),
            Source::Edge(text) => text.size_hint(),
        }
    }
}
