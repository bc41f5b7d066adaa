//! The host's end of a link: a reader task, a writer task, and callers waiting
//! for answers by exchange number.
//!
//! ```text
//!  call ──> requests (bounded) ──> writer task ──> stream
//!   ^                                                │
//!   └── oneshot ── waiting (exchange -> caller) ── reader task ──> events (bounded)
//! ```
//!
//! The writer is a task so that a caller who gives up in the middle of a write cannot leave half a frame on
//! the stream. When either task ends, for whatever reason, the link is dead: every waiter gets
//! [`Error::Closed`] and the event receiver gets [`Event::Closed`] last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use api::common::v1::LogLine;
use api::guest::v1::{
    AppExited, AwaitReadyRequest, AwaitReadyResponse, CallHookRequest, CallHookResponse, GetStatsRequest,
    GetStatsResponse, PrepareSnapshotRequest, RepairIdentityRequest, RepairIdentityResponse, SetClockRequest,
    StartAppRequest, StartAppResponse, StreamLogsRequest,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::frame::{self, Body, Frame};

mod tasks;
#[cfg(test)]
mod tests;

/// Most exchanges without an answer at one time.
const EXCHANGES_MAX: usize = 64;

/// Events kept for a receiver that is slow; more log events are dropped and counted.
const EVENTS_MAX: usize = 256;

/// How long the guest may take for an exchange that has no timeout of its own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the start of an app may take, which is the first that a guest does: on a busy machine it is still booting.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a flush before a snapshot may take: the guest writes back its disk cache.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

/// What the guest gets beyond the timeout it was told, to report that it ran out.
const REPORT_SLACK: Duration = Duration::from_secs(2);

/// The same for an app that is started, which has its guest to itself and leaves little for the report. Nobody's request
/// waits for it.
const READY_SLACK: Duration = Duration::from_secs(20);

/// Why an exchange has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the link to the guest is closed: {0}")]
    Closed(String),
    /// The guest did not answer in time. The link may still work.
    #[error("the guest did not answer {call} within {after:?}")]
    TimedOut { call: &'static str, after: Duration },
    #[error("the guest failed {call}: {message}")]
    Failed {
        call: &'static str,
        /// The guest's sentence, cut at 512 bytes.
        message: String,
        /// True when the guest found the request itself wrong.
        invalid: bool,
    },
    #[error("the guest answered {0} with another message")]
    Protocol(&'static str),
    /// More exchanges at a time than a link carries, or a request over the frame limit.
    #[error("the request {0} does not fit the link")]
    Refused(&'static str),
}

/// What the guest says unasked.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Lines of the app's output, in order.
    Logs {
        /// At most [`crate::LOG_LINES_PER_EVENT_MAX`] lines of at most [`crate::LOG_LINE_BYTES_MAX`] bytes.
        lines: Vec<LogLine>,
        /// Lines lost before the first of these, in the guest or here.
        dropped: u64,
    },
    /// The app's first process has ended. Sent again on every new link.
    AppExited(AppExited),
    /// The app asks not to be put to sleep for this long, a time of [`crate::KEEP_AWAKE_SECONDS`]; `None` gives that up.
    KeepAwake(Option<Duration>),
    /// The link is dead; the last event.
    Closed { reason: String },
}

/// One link to one guest. Cloning gives another handle to the same link; the
/// link ends when all handles are dropped, with [`Link::close`], or with the stream.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    requests: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
    next_exchange: AtomicU32,
    stop: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Callers by exchange number, until the link is dead.
#[derive(Debug, Default)]
struct Waiting(Mutex<WaitingState>);

#[derive(Debug, Default)]
struct WaitingState {
    callers: HashMap<u32, oneshot::Sender<Body>>,
    closed: Option<String>,
}

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, WaitingState> {
        // Nothing panics while it holds the lock, so a poisoned state is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, exchange: u32, body: Body) {
        // No caller: it gave up. Late answers are dropped.
        if let Some(caller) = self.lock().callers.remove(&exchange) {
            let _ = caller.send(body);
        }
    }

    /// The first reason wins; dropping the senders wakes every caller.
    fn close(&self, reason: &str) -> String {
        let mut state = self.lock();
        state.callers.clear();
        state.closed.get_or_insert_with(|| reason.to_owned()).clone()
    }
}

/// Takes a caller off the table when its future is dropped.
struct Registration<'a> {
    waiting: &'a Waiting,
    exchange: u32,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.waiting.lock().callers.remove(&self.exchange);
    }
}

impl Link {
    /// Starts a link on a connected stream. Must be called inside a tokio runtime.
    ///
    /// Set TCP_NODELAY on a TCP stream first. The receiver should be drained;
    /// when it is not, log events are dropped and counted, nothing else suffers.
    pub fn start<S>(stream: S) -> (Self, mpsc::Receiver<Event>)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (requests, requests_out) = mpsc::channel(EXCHANGES_MAX);
        // Two places are kept free for AppExited and Closed, which are never dropped.
        let (events, events_out) = mpsc::channel(EVENTS_MAX + tasks::EVENTS_RESERVED);
        let waiting = Arc::new(Waiting::default());
        let stop = CancellationToken::new();
        tokio::spawn(tasks::run(stream, requests_out, Arc::clone(&waiting), events, stop.clone()));
        let shared = Shared { requests, waiting, next_exchange: AtomicU32::new(1), stop };
        (Self { shared: Arc::new(shared) }, events_out)
    }

    /// Starts the app. Once in a microVM's life.
    ///
    /// # Errors
    /// As [`Error`]; [`Error::Failed`] carries why the app could not be started.
    pub async fn start_app(&self, request: StartAppRequest) -> Result<StartAppResponse, Error> {
        match self.call("StartApp", Body::StartAppRequest(request), START_TIMEOUT).await? {
            Body::StartAppResponse(response) => Ok(response),
            _ => Err(Error::Protocol("StartApp")),
        }
    }

    /// Waits until the app is ready, at most for the request's timeout.
    ///
    /// # Errors
    /// As [`Error`]; an app that is not ready is an outcome, not an error.
    pub async fn await_ready(&self, request: AwaitReadyRequest) -> Result<AwaitReadyResponse, Error> {
        let timeout = asked_timeout(request.timeout.as_ref()) + READY_SLACK;
        match self.call("AwaitReady", Body::AwaitReadyRequest(request), timeout).await? {
            Body::AwaitReadyResponse(response) => Ok(response),
            _ => Err(Error::Protocol("AwaitReady")),
        }
    }

    /// Has the guest get ready for a snapshot; `sync` for bakes.
    pub async fn prepare_snapshot(&self, sync: bool) -> Result<(), Error> {
        let request = Body::PrepareSnapshotRequest(PrepareSnapshotRequest { sync });
        match self.call("PrepareSnapshot", request, PREPARE_TIMEOUT).await? {
            Body::PrepareSnapshotResponse(_) => Ok(()),
            _ => Err(Error::Protocol("PrepareSnapshot")),
        }
    }

    /// Gives a restored clone its own identity. Let nothing reach the app before
    /// this has succeeded; on any error stop the microVM.
    pub async fn repair_identity(
        &self,
        request: RepairIdentityRequest,
    ) -> Result<RepairIdentityResponse, Error> {
        match self.call("RepairIdentity", Body::RepairIdentityRequest(request), ANSWER_TIMEOUT).await? {
            Body::RepairIdentityResponse(response) => Ok(response),
            _ => Err(Error::Protocol("RepairIdentity")),
        }
    }

    /// Sets the wall clock of a guest that stood still for a moment and of which nothing else is old.
    pub async fn set_clock(&self, now: SystemTime) -> Result<(), Error> {
        let request = Body::SetClockRequest(SetClockRequest { wall_clock: Some(api::timestamp(now)) });
        match self.call("SetClock", request, ANSWER_TIMEOUT).await? {
            Body::SetClockResponse(_) => Ok(()),
            _ => Err(Error::Protocol("SetClock")),
        }
    }

    /// Calls a hook of the app, at most for the request's timeout.
    ///
    /// # Errors
    /// As [`Error`]; a hook that fails or does not answer is in the response.
    pub async fn call_hook(&self, request: CallHookRequest) -> Result<CallHookResponse, Error> {
        let timeout = asked_timeout(request.timeout.as_ref()) + REPORT_SLACK;
        match self.call("CallHook", Body::CallHookRequest(request), timeout).await? {
            Body::CallHookResponse(mut response) => {
                response.error = tasks::cut(response.error);
                Ok(response)
            }
            _ => Err(Error::Protocol("CallHook")),
        }
    }

    /// Asks for log lines from a sequence number on; `u64::MAX` means only new
    /// lines. They come as [`Event::Logs`]. Asking again moves the position.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Refused`].
    pub async fn stream_logs(&self, from_sequence: u64) -> Result<(), Error> {
        let body = Body::StreamLogsRequest(StreamLogsRequest { from_sequence });
        self.send("StreamLogs", self.exchange(), body).await
    }

    /// Reads what the guest uses. The guest's word: show it, bill nothing by it.
    pub async fn stats(&self) -> Result<GetStatsResponse, Error> {
        match self.call("GetStats", Body::GetStatsRequest(GetStatsRequest {}), ANSWER_TIMEOUT).await? {
            Body::GetStatsResponse(response) => Ok(response),
            _ => Err(Error::Protocol("GetStats")),
        }
    }

    /// Ends the link; pending calls get [`Error::Closed`].
    pub fn close(&self) {
        self.shared.stop.cancel();
    }

    /// True once the link is dead.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.waiting.lock().closed.is_some()
    }

    /// Numbers start at 1 (0 marks events) and may wrap: an exchange is long over by then.
    fn exchange(&self) -> u32 {
        loop {
            let exchange = self.shared.next_exchange.fetch_add(1, Ordering::Relaxed);
            if exchange != 0 {
                return exchange;
            }
        }
    }

    async fn send(&self, call: &'static str, exchange: u32, body: Body) -> Result<(), Error> {
        let bytes = frame::encode(&Frame { exchange, body: Some(body) }).map_err(|_| Error::Refused(call))?;
        self.shared.requests.send(bytes).await.map_err(|_| self.closed())
    }

    async fn call(&self, call: &'static str, body: Body, timeout: Duration) -> Result<Body, Error> {
        let exchange = self.exchange();
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.shared.waiting.lock();
            if let Some(reason) = &state.closed {
                return Err(Error::Closed(reason.clone()));
            }
            if state.callers.len() >= EXCHANGES_MAX {
                return Err(Error::Refused(call));
            }
            state.callers.insert(exchange, answer);
        }
        let _registration = Registration { waiting: &self.shared.waiting, exchange };
        let exchanged = async {
            self.send(call, exchange, body).await?;
            answered.await.map_err(|_| self.closed())
        };
        match tokio::time::timeout(timeout, exchanged).await {
            Err(_) => Err(Error::TimedOut { call, after: timeout }),
            Ok(Ok(Body::Failure(failure))) => {
                Err(Error::Failed { call, message: tasks::cut(failure.message), invalid: failure.invalid })
            }
            Ok(answer) => answer,
        }
    }

    fn closed(&self) -> Error {
        let reason = self.shared.waiting.lock().closed.clone();
        Error::Closed(reason.unwrap_or_else(|| "closing".to_owned()))
    }
}

/// The guest's own timeout plus what it needs to report.
fn asked_timeout(timeout: Option<&prost_types::Duration>) -> Duration {
    timeout.and_then(|timeout| api::duration(timeout).ok()).unwrap_or_default()
}
