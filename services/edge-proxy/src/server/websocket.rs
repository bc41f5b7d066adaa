//! The bytes of one WebSocket, from its handshake to its end. They pass unread but for the heads of the app's frames: when the
//! edge stops, a client is told so by a close frame (1001, going away), and only between two frames would it understand one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_util::sync::CancellationToken;
use tunnel::{Ended, Session};

use crate::domain::frames::Frames;

/// A close frame of an app's side with the code 1001 (RFC 6455, sections 5.5.1 and 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];
/// Longest wait for the rest of the frame that is under way when the edge goes.
const FRAME_WAIT: Duration = Duration::from_secs(1);
/// How long before its drain time is over the edge takes leave of WebSockets, unless that is more than half of it.
pub const LEAVE_WAIT: Duration = Duration::from_secs(2);

/// Carries bytes until both sides have closed or one fails; when `leave` is cancelled, until the client has been told that the
/// edge goes.
pub async fn carry<C, A>(client: C, app: A, leave: &CancellationToken)
where
    C: AsyncRead + AsyncWrite + Unpin,
    A: AsyncRead + AsyncWrite + Unpin,
{
    let leaving = Arc::new(Leaving::default());
    let mut client = Framed { stream: client, frames: Frames::default(), leaving: leaving.clone() };
    let mut session = Session::new(&mut client, app);
    let never = CancellationToken::new();
    if !matches!(session.carry(|_| (), leave, &never).await, Ended::Cut) {
        return;
    }
    leaving.asked.store(true, Ordering::Relaxed);
    if leaving.within.load(Ordering::Relaxed) {
        let rest = session.carry(|_| (), &leaving.whole, &never);
        let _ = tokio::time::timeout(FRAME_WAIT, rest).await;
    }
    drop(session);
    if client.frames.is_between() {
        let told = tokio::time::timeout(LEAVE_WAIT - FRAME_WAIT, say_going_away(&mut client.stream)).await;
        tracing::debug!(?told, "a WebSocket's client was told that the edge goes");
    }
}

/// Sends the close frame and waits until the client has closed: closing first could take the frame with it.
async fn say_going_away<C: AsyncRead + AsyncWrite + Unpin>(client: &mut C) -> io::Result<()> {
    client.write_all(&GOING_AWAY).await?;
    client.shutdown().await?;
    let mut answer = [0; 1024];
    while client.read(&mut answer).await? > 0 {}
    Ok(())
}

/// What a WebSocket and the end of its edge agree on.
#[derive(Debug, Default)]
struct Leaving {
    /// No frame is begun any more.
    asked: AtomicBool,
    /// A frame is under way.
    within: AtomicBool,
    /// Cancelled when there is none any more.
    whole: CancellationToken,
}

/// A client's stream with its place among the frames that are written to it.
#[derive(Debug)]
struct Framed<S> {
    stream: S,
    frames: Frames,
    leaving: Arc<Leaving>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let asked = this.leaving.asked.load(Ordering::Relaxed);
        if asked {
            if !this.frames.is_within() {
                // Whoever asked stops this; nobody wakes it.
                this.leaving.whole.cancel();
                return Poll::Pending;
            }
            bytes = &bytes[..this.frames.rest(bytes)];
        }
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.frames.pass(&bytes[..written]);
        this.leaving.within.store(this.frames.is_within(), Ordering::Relaxed);
        if asked && !this.frames.is_within() {
            this.leaving.whole.cancel();
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// Client and app of a WebSocket, what makes the edge leave, and the task that carries.
    fn world() -> (DuplexStream, DuplexStream, CancellationToken, tokio::task::JoinHandle<()>) {
        let ((client, edge), (app, to_app)) = (duplex(1024), duplex(1024));
        let leave = CancellationToken::new();
        let told = leave.clone();
        (client, app, leave, tokio::spawn(async move { carry(edge, to_app, &told).await }))
    }

    async fn rest(stream: &mut DuplexStream) -> Vec<u8> {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest
    }

    #[tokio::test(start_paused = true)]
    async fn between_two_frames_the_client_is_told() {
        for frame in [&b""[..], b"\x81\x05hello", b"\x01\x01a\x89\x00", b"\x82\x7e\x00\x80"] {
            let (mut client, mut app, leave, carried) = world();
            let frame = if frame.ends_with(b"\x80") { [frame, &[7; 128]].concat() } else { frame.to_vec() };
            app.write_all(&frame).await.unwrap();
            let mut seen = vec![0; frame.len()];
            client.read_exact(&mut seen).await.unwrap();
            leave.cancel();
            assert_eq!((seen, rest(&mut client).await), (frame, GOING_AWAY.to_vec()));
            // The app's side closes with it.
            drop(client);
            carried.await.unwrap();
            assert_eq!(rest(&mut app).await, b"");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_under_way_is_finished_first_and_none_is_begun() {
        let (mut client, mut app, leave, carried) = world();
        app.write_all(b"\x81\x05he").await.unwrap();
        client.read_exact(&mut [0; 4]).await.unwrap();
        leave.cancel();
        tokio::time::sleep(FRAME_WAIT / 2).await;
        app.write_all(b"llo\x81\x04next").await.unwrap();
        assert_eq!(rest(&mut client).await, [b"llo".as_slice(), &GOING_AWAY].concat());
        drop(client);
        carried.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn where_it_would_not_be_understood_nothing_is_said() {
        // Half a frame whose rest does not come, the app's own close frame, and what is no frame.
        for bytes in [&b"\x81\x05he"[..], b"\x88\x02\x03\xe8", b"echo\n"] {
            let (mut client, mut app, leave, carried) = world();
            app.write_all(bytes).await.unwrap();
            client.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
            leave.cancel();
            assert_eq!(rest(&mut client).await, b"", "{bytes:?}");
            carried.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_close_is_not_waited_for() {
        let (mut client, _app, leave, carried) = world();
        leave.cancel();
        client.read_exact(&mut [0; GOING_AWAY.len()]).await.unwrap();
        let begun = tokio::time::Instant::now();
        carried.await.unwrap();
        assert!(begun.elapsed() <= LEAVE_WAIT);
    }
}
