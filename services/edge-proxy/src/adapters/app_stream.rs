//! A stream to an app of which it is not known whether it speaks TLS, and to one that does.
//!
//! ```text
//! Unsure --the app answers, or takes a long body--> Plain
//!    |
//!    +--the app shows that it has taken no request--> Turning --handshake, what was said is said again--> Tls
//! ```
//!
//! What is said before the app's first word is kept, so that it can be said again over TLS; HTTP above notices nothing. Once the
//! app is known to be plain its next connections do without all this.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::client::TlsStream;

use crate::domain::speech::{self, Heard};

/// Most bytes that are kept to be said again.
const SAID_MAX: usize = 64 * 1024;
/// How long an app that has been told so much may take to say that it has not understood. One that speaks TLS says it, or
/// closes, over the first five bytes.
const WORD_WAIT: Duration = Duration::from_millis(500);

/// Opens another stream, shakes hands on it, says there what was said here.
pub type Turn<S> = Box<dyn FnOnce(Vec<u8>, Heard) -> BoxFuture<'static, io::Result<TlsStream<S>>> + Send>;

/// A stream to an app's port. Read and write it from one task until the app has answered.
pub struct AppStream<S> {
    state: State<S>,
    /// Asked once, because those who write may do so too: of the plain stream.
    vectored: bool,
}

enum State<S> {
    Unsure(Box<Unsure<S>>),
    Turning(BoxFuture<'static, io::Result<TlsStream<S>>>),
    Plain(S),
    Tls(Box<TlsStream<S>>),
    /// It could not be turned, which whoever asked first was told.
    Failed,
}

struct Unsure<S> {
    stream: S,
    http2: bool,
    said: Vec<u8>,
    /// Runs once `said` is full.
    wait: Option<Pin<Box<Sleep>>>,
    turn: Turn<S>,
    is_plain: Box<dyn FnOnce() + Send>,
}

impl<S: AsyncWrite> AppStream<S> {
    pub fn unsure(stream: S, http2: bool, turn: Turn<S>, is_plain: Box<dyn FnOnce() + Send>) -> Self {
        let vectored = stream.is_write_vectored();
        let unsure = Unsure { stream, http2, said: Vec::new(), wait: None, turn, is_plain };
        Self { state: State::Unsure(Box::new(unsure)), vectored }
    }

    pub fn tls(stream: TlsStream<S>) -> Self {
        Self { state: State::Tls(Box::new(stream)), vectored: true }
    }
}

impl<S> AppStream<S> {
    fn leave_unsure(&mut self) -> Unsure<S> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Unsure(unsure) => *unsure,
            _ => unreachable!("called in that state only"),
        }
    }

    /// The app has answered, or there is no way back.
    fn stay_plain(&mut self, answered: bool) {
        let Unsure { stream, is_plain, .. } = self.leave_unsure();
        if answered {
            is_plain();
        }
        self.state = State::Plain(stream);
    }

    fn turn(&mut self, heard: Heard) {
        let Unsure { said, turn, .. } = self.leave_unsure();
        self.state = State::Turning(turn(said, heard));
    }

    fn poll_turned(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let State::Turning(turning) = &mut self.state {
            let turned = ready!(turning.as_mut().poll(cx));
            self.state = State::Failed;
            self.state = State::Tls(Box::new(turned?));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Unsure<S> {
    /// Writes and keeps. Not all fits for ever: `None` when the stream stays as it is.
    fn poll_say(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Option<io::Result<usize>>> {
        let room = SAID_MAX - self.said.len();
        if room == 0 {
            let wait = self.wait.get_or_insert_with(|| Box::pin(tokio::time::sleep(WORD_WAIT)));
            return wait.as_mut().poll(cx).map(|()| None);
        }
        let bytes = &bytes[..bytes.len().min(room)];
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        if let Ok(count) = &written {
            self.said.extend_from_slice(&bytes[..*count]);
        }
        Poll::Ready(Some(written))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for AppStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Plain(stream) => return Pin::new(stream).poll_read(cx, buffer),
                State::Tls(stream) => return Pin::new(stream).poll_read(cx, buffer),
                State::Turning(_) => ready!(self.poll_turned(cx))?,
                State::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                State::Unsure(unsure) => {
                    let before = buffer.filled().len();
                    let read = ready!(Pin::new(&mut unsure.stream).poll_read(cx, buffer));
                    let heard = match &read {
                        Ok(()) => speech::judge(&buffer.filled()[before..], unsure.http2),
                        Err(_) => Heard::Nothing,
                    };
                    // What comes unasked is no word on what was asked.
                    if heard == Heard::Answer || unsure.said.is_empty() {
                        let answered = !unsure.said.is_empty();
                        self.stay_plain(answered);
                        return Poll::Ready(read);
                    }
                    buffer.set_filled(before);
                    self.turn(heard);
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for AppStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match &mut self.state {
                State::Plain(stream) => return Pin::new(stream).poll_write(cx, bytes),
                State::Tls(stream) => return Pin::new(stream).poll_write(cx, bytes),
                State::Turning(_) => ready!(self.poll_turned(cx))?,
                State::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                State::Unsure(unsure) => match ready!(unsure.poll_say(cx, bytes)) {
                    Some(Err(_)) if !unsure.said.is_empty() => self.turn(Heard::Nothing),
                    Some(written) => return Poll::Ready(written),
                    None => self.stay_plain(false),
                },
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
            State::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
            State::Unsure(_) | State::Turning(_) | State::Failed => {
                let first =
                    buffers.iter().find(|buffer| !buffer.is_empty()).map_or(&[][..], |buffer| &buffer[..]);
                self.poll_write(cx, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Plain(stream) => return Pin::new(stream).poll_flush(cx),
                State::Tls(stream) => return Pin::new(stream).poll_flush(cx),
                State::Turning(_) => ready!(self.poll_turned(cx))?,
                State::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                State::Unsure(unsure) => match ready!(Pin::new(&mut unsure.stream).poll_flush(cx)) {
                    Err(_) if !unsure.said.is_empty() => self.turn(Heard::Nothing),
                    flushed => return Poll::Ready(flushed),
                },
            }
        }
    }

    /// Closes the tunnel's half, and says no farewell in TLS: a farewell is bytes, and bytes wake a microVM that sleeps, while HTTP
    /// and WebSocket say their own ends.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            State::Unsure(unsure) => Pin::new(&mut unsure.stream).poll_shutdown(cx),
            State::Tls(stream) => {
                ready!(Pin::new(&mut *stream).poll_flush(cx))?;
                Pin::new(stream.get_mut().0).poll_shutdown(cx)
            }
            State::Turning(_) | State::Failed => {
                self.state = State::Failed;
                Poll::Ready(Ok(()))
            }
        }
    }
}
