//! A client's byte stream that does not wait for ever for a client that does not read, and that holds what the connection
//! holds until it closes, whoever has it by then.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::server::activity::Activity;

/// A stream whose writes fail when the other side takes nothing for a while.
#[derive(Debug)]
pub struct Patient<S, H> {
    stream: S,
    /// What was read ahead, and is read again.
    ahead: Bytes,
    wait: Duration,
    /// While a write waits.
    blocked: Option<Pin<Box<Sleep>>>,
    activity: Option<Arc<Activity>>,
    _held: H,
}

impl<S, H> Patient<S, H> {
    /// Waits at most `wait` for the other side to take something, and tells the connection's `activity`. `held` is dropped with
    /// the stream.
    pub fn new(stream: S, wait: Duration, activity: Option<Arc<Activity>>, held: H) -> Self {
        Self { stream, ahead: Bytes::new(), wait, blocked: None, activity, _held: held }
    }

    /// The same stream, which is to give `ahead` once more.
    pub fn rewound(mut self, ahead: Bytes) -> Self {
        self.ahead = ahead;
        self
    }

    fn say_blocked(&self, blocked: bool) {
        if let Some(activity) = &self.activity {
            activity.set_blocked(blocked);
        }
    }

    /// What to make of a write that may have to wait.
    fn waited<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.blocked.take().is_some() {
                self.say_blocked(false);
            }
            return written;
        }
        let wait = self.wait;
        self.say_blocked(true);
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        blocked.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin, H: Unpin> AsyncRead for Patient<S, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, H: Unpin> AsyncWrite for Patient<S, H> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.waited(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.waited(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.waited(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.waited(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slow_is_waited_for_and_one_that_stopped_is_not() {
        let wait = Duration::from_secs(10);
        let (mut client, server) = duplex(1);
        let mut server = Patient::new(server, wait, None, ());
        let writing = tokio::spawn(async move { server.write_all(&[0; 8]).await });
        // Each byte comes in time, all of them together would not.
        for _ in 0..4 {
            tokio::time::sleep(wait - Duration::from_secs(1)).await;
            client.read_exact(&mut [0; 1]).await.unwrap();
        }
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 1);
    }
}
