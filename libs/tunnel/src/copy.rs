//! Carries bytes between a tunnel and a guest, and tells who is listening that they moved.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Buffer per direction, in bytes: two TLS records.
const BUFFER: usize = 32 * 1024;

/// How much was carried, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// From the client to the guest.
    pub to_guest: u64,
    /// From the guest to the client.
    pub from_guest: u64,
}

/// Why the carrying ended.
#[derive(Debug)]
pub enum Ended {
    /// Both sides had closed.
    Closed,
    /// The token was cancelled; both connections were dropped where they stood.
    Cut,
    /// One side failed.
    Failed(io::Error),
}

/// Carries bytes both ways until both sides have closed, one fails, or `stop` is cancelled. A side that
/// closes its half leaves the other half open. `activity` is called with every number of bytes that went to
/// or came from the guest; it must be quick.
pub async fn copy<T, G>(
    mut tunnel: T,
    guest: G,
    activity: impl FnMut(u64) + Unpin,
    stop: &CancellationToken,
) -> (Copied, Ended)
where
    T: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let mut guest = Counted { inner: guest, copied: Copied::default(), activity };
    let ended = tokio::select! {
        result = tokio::io::copy_bidirectional_with_sizes(&mut tunnel, &mut guest, BUFFER, BUFFER) => match result {
            Ok(_) => Ended::Closed,
            Err(error) => Ended::Failed(error),
        },
        () = stop.cancelled() => Ended::Cut,
    };
    (guest.copied, ended)
}

/// A stream that counts what passes.
struct Counted<S, A> {
    inner: S,
    copied: Copied,
    activity: A,
}

impl<S: AsyncRead + Unpin, A: FnMut(u64) + Unpin> AsyncRead for Counted<S, A> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let count = (buffer.filled().len() - before) as u64;
        if count > 0 {
            self.copied.from_guest += count;
            (self.activity)(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, A: FnMut(u64) + Unpin> AsyncWrite for Counted<S, A> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        if count > 0 {
            self.copied.to_guest += count as u64;
            (self.activity)(count as u64);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn halves_close_one_by_one_and_bytes_are_counted() {
        let (mut client, tunnel) = duplex(1024);
        let (mut app, guest) = duplex(1024);
        let carried = tokio::spawn(async move {
            let mut seen = 0;
            let stop = CancellationToken::new();
            let (copied, ended) = copy(tunnel, guest, |count| seen += count, &stop).await;
            (copied, ended, seen)
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        app.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        // The client's half is closed, and the answer still comes through.
        app.write_all(b"an answer").await.unwrap();
        app.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "an answer");
        let (copied, ended, seen) = carried.await.unwrap();
        assert_eq!(copied, Copied { to_guest: 8, from_guest: 9 });
        assert!(matches!(ended, Ended::Closed));
        assert_eq!(seen, 17);
    }

    #[tokio::test]
    async fn the_token_cuts() {
        let (mut client, tunnel) = duplex(1024);
        let (_app, guest) = duplex(1024);
        let stop = CancellationToken::new();
        stop.cancel();
        let (_, ended) = copy(tunnel, guest, |_| (), &stop).await;
        assert!(matches!(ended, Ended::Cut));
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
