//! A microVM's tunnel at the rate that it may have: beyond it bytes wait, so that a client sees latency and no error.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::domain::route::Traffic;

/// A stream whose bytes are counted against its microVM's rate. What has passed is owed, and the next bytes wait until the
/// debt is paid.
#[derive(Debug)]
pub struct Paced<S> {
    stream: S,
    traffic: Arc<Traffic>,
    /// Reads and writes may be different tasks' affairs, so each has its pause.
    reads: Pause,
    writes: Pause,
}

#[derive(Debug, Default)]
struct Pause(Option<Pin<Box<Sleep>>>);

impl Pause {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.0 {
            ready!(sleep.as_mut().poll(cx));
            self.0 = None;
        }
        Poll::Ready(())
    }

    fn begin(&mut self, wait: Duration) {
        if !wait.is_zero() {
            self.0 = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }
}

impl<S> Paced<S> {
    pub fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic, reads: Pause::default(), writes: Pause::default() }
    }

    /// How long the bytes after these have to wait.
    fn passed(&self, bytes: usize) -> Duration {
        let rate = &self.traffic.bytes;
        if bytes == 0 || rate.is_unlimited() {
            return Duration::ZERO;
        }
        rate.owe(bytes as u64, Instant::now())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.reads.poll_over(cx));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let wait = self.passed(buffer.filled().len() - before);
        self.reads.begin(wait);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.writes.poll_over(cx));
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        let wait = self.passed(written);
        self.writes.begin(wait);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.writes.poll_over(cx));
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, buffers))?;
        let wait = self.passed(written);
        self.writes.begin(wait);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
