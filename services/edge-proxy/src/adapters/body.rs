//! Bodies that pass through without being gathered.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

type Unread = Arc<Mutex<Option<Incoming>>>;

/// A request body that can be had back until its first frame is asked for, so
/// that a request which met a dead connection can be sent on another.
#[derive(Debug)]
pub struct ReplayBody {
    unread: Unread,
    taken: Option<Incoming>,
    hint: SizeHint,
    ended: bool,
}

/// The way back to the body.
#[derive(Debug)]
pub struct Replay(Unread);

impl ReplayBody {
    pub fn new(body: Incoming) -> (Self, Replay) {
        let (hint, ended) = (body.size_hint(), body.is_end_stream());
        let unread: Unread = Arc::new(Mutex::new(Some(body)));
        (Self { unread: unread.clone(), taken: None, hint, ended }, Replay(unread))
    }

    /// No body.
    pub fn empty() -> Self {
        Self { unread: Unread::default(), taken: None, hint: SizeHint::with_exact(0), ended: true }
    }
}

impl Replay {
    /// The body, if nothing of it was read.
    pub fn back(self) -> Option<Incoming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.taken.is_none() {
            let body = self.unread.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.taken = body;
        }
        match &mut self.taken {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
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
}

#[derive(Debug)]
enum Source {
    App(Incoming),
    Edge(Full<Bytes>),
}

impl ResponseBody {
    pub fn app(body: Incoming, permit: OwnedSemaphorePermit) -> Self {
        Self { source: Source::App(body), _permit: Some(permit) }
    }

    /// A text of the edge's own.
    pub fn text(text: &'static str) -> Self {
        Self { source: Source::Edge(Full::from(text)), _permit: None }
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
