//! HTTP connections through tunnels, kept for the next request to the same placement of the same microVM.
//!
//! An unused connection carries no bytes, so it keeps no microVM awake, and sleeps with it. A request that meets a dead one
//! is sent again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use crate::adapters::body::ReplayBody;
use crate::domain::port::Door;
use crate::metrics::Counted;

/// Buffer of an HTTP/1.1 connection in bytes, and with it the largest response head.
const BUFFER: usize = 128 * 1024;
/// HTTP/2 flow-control windows in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A port of one placement of a microVM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortKey {
    pub microvm_id: Arc<str>,
    pub generation: u64,
    pub door: Door,
}

#[derive(Debug)]
pub enum Connection {
    /// HTTP/1.1, one request at a time.
    Http1(http1::SendRequest<ReplayBody>),
    /// HTTP/2 with prior knowledge, shared by requests, each of which holds an `InUse` until it has its whole answer.
    Http2(http2::SendRequest<ReplayBody>, InUse),
}

/// What a request holds of an HTTP/2 connection, so that the connection is not ended under it.
pub type InUse = Arc<()>;

struct Unused {
    sender: http1::SendRequest<ReplayBody>,
    since: Instant,
}

struct Multiplexed {
    sender: http2::SendRequest<ReplayBody>,
    in_use: InUse,
    used: Instant,
    carries: Arc<OnceLock<AbortHandle>>,
}

impl Multiplexed {
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.in_use) > 1
    }
}

/// Where an HTTP/2 connection's tasks run. The first is the one that reads and writes its stream.
#[derive(Clone, Default)]
struct Http2Tasks {
    carries: Arc<OnceLock<AbortHandle>>,
}

impl<F> hyper::rt::Executor<F> for Http2Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let running = tokio::spawn(task);
        self.carries.get_or_init(|| running.abort_handle());
    }
}

impl Drop for Multiplexed {
    /// Ends an unused connection without a word: left to itself it would say GOAWAY, and bytes wake a microVM that sleeps.
    fn drop(&mut self) {
        if let Some(carries) = self.carries.get().filter(|_| !self.is_in_use()) {
            carries.abort();
        }
    }
}

#[derive(Default)]
struct Kept {
    http1: HashMap<PortKey, Vec<Unused>>,
    http2: HashMap<PortKey, Multiplexed>,
}

pub struct Tunnels {
    kept: Mutex<Kept>,
    keep_for: Duration,
    keep_max: usize,
    open: Gauge,
}

impl Tunnels {
    /// Keeps at most `keep_max` unused connections per port for `keep_for`.
    /// `open` counts the tunnels that stand.
    pub fn new(keep_for: Duration, keep_max: usize, open: Gauge) -> Self {
        Self { kept: Mutex::default(), keep_for, keep_max, open }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Any state between two calls is a good one.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that seems alive.
    pub fn take(&self, key: &PortKey, http2: bool) -> Option<Connection> {
        let now = Instant::now();
        let mut kept = self.kept();
        if http2 {
            let multiplexed = kept.http2.get_mut(key)?;
            if multiplexed.sender.is_closed() {
                kept.http2.remove(key);
                return None;
            }
            multiplexed.used = now;
            return Some(Connection::Http2(multiplexed.sender.clone(), multiplexed.in_use.clone()));
        }
        let unused = kept.http1.get_mut(key)?;
        // The latest first: it is the least likely to have been closed.
        while let Some(last) = unused.pop() {
            if last.sender.is_ready() && now.duration_since(last.since) < self.keep_for {
                return Some(Connection::Http1(last.sender));
            }
        }
        kept.http1.remove(key);
        None
    }

    /// Speaks HTTP on a fresh tunnel.
    pub async fn connect<S>(&self, key: &PortKey, stream: S, http2: bool) -> hyper::Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(stream);
        let counted = Counted::new(&self.open);
        if http2 {
            let executor = Http2Tasks::default();
            let carries = executor.carries.clone();
            let (sender, connection) = http2::Builder::new(executor)
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(stream)
                .await?;
            spawn(connection, counted);
            let in_use = InUse::default();
            let multiplexed =
                Multiplexed { sender: sender.clone(), in_use: in_use.clone(), used: Instant::now(), carries };
            self.kept().http2.insert(key.clone(), multiplexed);
            return Ok(Connection::Http2(sender, in_use));
        }
        let (sender, connection) = http1::Builder::new().max_buf_size(BUFFER).handshake(stream).await?;
        spawn(connection.with_upgrades(), counted);
        Ok(Connection::Http1(sender))
    }

    /// Keeps an HTTP/1.1 connection as soon as its response has been read.
    pub fn keep(self: &Arc<Self>, key: PortKey, mut sender: http1::SendRequest<ReplayBody>) {
        if sender.is_ready() {
            return self.put(key, sender);
        }
        let this = self.clone();
        tokio::spawn(async move {
            // An error means that the connection closed with the response.
            if sender.ready().await.is_ok() {
                this.put(key, sender);
            }
        });
    }

    fn put(&self, key: PortKey, sender: http1::SendRequest<ReplayBody>) {
        let mut kept = self.kept();
        let unused = kept.http1.entry(key).or_default();
        if unused.len() < self.keep_max {
            unused.push(Unused { sender, since: Instant::now() });
        }
    }

    /// Drops what was not used for a while.
    pub fn sweep(&self) {
        let (now, keep_for) = (Instant::now(), self.keep_for);
        let mut kept = self.kept();
        kept.http1.retain(|_, unused| {
            unused.retain(|one| one.sender.is_ready() && now.duration_since(one.since) < keep_for);
            !unused.is_empty()
        });
        kept.http2.retain(|_, one| {
            if one.is_in_use() {
                one.used = now;
            }
            !one.sender.is_closed() && now.duration_since(one.used) < keep_for
        });
    }

    /// Drops all. Requests on a dropped HTTP/2 connection go on to their end.
    pub fn clear(&self) {
        *self.kept() = Kept::default();
    }
}

fn spawn<E: std::fmt::Display>(
    connection: impl Future<Output = Result<(), E>> + Send + 'static,
    counted: Counted,
) {
    tokio::spawn(async move {
        // The request in flight reports what went wrong; this is for the curious.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to an app ended");
        }
        drop(counted);
    });
}
