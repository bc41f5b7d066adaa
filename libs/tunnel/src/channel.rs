//! What the two ends of an open tunnel say to each other: the guest's bytes in pieces, the end of a half, and four signals
//! with which a stream is put to sleep, so that it can go on over this connection or another one.
//!
//! ```text
//! kind: 1 byte | number: 3 bytes, big-endian | bytes
//!   0 DATA    how many bytes follow, 1 to PIECE_MAX
//!   1 END     0; the sender's half is closed
//!   2 HOLD    n; host to edge: the guest is about to sleep, send nothing more
//!   3 HELD    n; edge to host: nothing follows until RESUME
//!   4 WAKE    0; edge to host: there is something to send
//!   5 RESUME  0; host to edge: the guest is awake
//! ```

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const HEADER: usize = 4;
/// Most bytes of one piece: with its header four full TLS records, as much as rustls takes at a time.
pub(crate) const PIECE_MAX: usize = 64 * 1024 - HEADER;
/// Memory for writing that a channel keeps between pieces.
const KEPT: usize = 4 * 1024;
/// Numbers of HOLD and HELD begin again after this one.
pub(crate) const NUMBER_MAX: u32 = (1 << 24) - 1;

const DATA: u8 = 0;
const END: u8 = 1;
const HOLD: u8 = 2;
const HELD: u8 = 3;
const WAKE: u8 = 4;
const RESUME: u8 = 5;

/// What one end tells the other about the stream as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The guest is about to sleep. The number tells the answers to different ones apart.
    Hold(u32),
    /// The answer: nothing follows until [`Signal::Resume`].
    Held(u32),
    /// The edge has something for the sleeping guest.
    Wake,
    /// The guest is awake: the stream goes on.
    Resume,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Bytes of the other end's, in the caller's buffer.
    Bytes,
    /// The other end has closed its half.
    End,
    Signal(Signal),
}

/// One end of an open tunnel. To `AsyncRead` and `AsyncWrite` it is the guest's bytes and nothing else; a connection that
/// breaks off without the end of its half is an error.
#[derive(Debug)]
pub struct Channel<S> {
    stream: S,
    /// One frame that is being written.
    out: Vec<u8>,
    out_start: usize,
    /// Goes behind it.
    signal: Option<Signal>,
    header: [u8; HEADER],
    header_have: usize,
    /// Bytes of the piece that is being read.
    left: usize,
    shut: bool,
}

impl<S> Channel<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            out: Vec::new(),
            out_start: 0,
            signal: None,
            header: [0; HEADER],
            header_have: 0,
            left: 0,
            shut: false,
        }
    }

    /// The connection that carries it.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    /// Reads up to the next thing of interest, and of bytes all that have come and fit. `buffer` has room.
    pub(crate) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Event>> {
        let before = buffer.filled().len();
        loop {
            // What comes behind bytes, be it an error, is found again with the next call.
            let step = self.poll_step(cx, buffer);
            let some = buffer.filled().len() > before;
            match step {
                Poll::Ready(Ok(None)) if some && buffer.remaining() == 0 => {}
                Poll::Ready(Ok(None)) => continue,
                Poll::Pending | Poll::Ready(_) if some => {}
                Poll::Ready(Ok(Some(event))) => {
                    if event != Event::End {
                        self.header_have = 0;
                    }
                    return Poll::Ready(Ok(event));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
            return Poll::Ready(Ok(Event::Bytes));
        }
    }

    /// One read: some bytes, or a header. Gives what a header says that is not about bytes, and keeps it.
    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Option<Event>>> {
        if self.left > 0 {
            let room = self.left.min(buffer.remaining());
            let mut piece = ReadBuf::new(buffer.initialize_unfilled_to(room));
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece))?;
            let count = piece.filled().len();
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.left -= count;
            buffer.advance(count);
            return Poll::Ready(Ok(None));
        }
        ready!(self.poll_header(cx))?;
        let [kind, number @ ..] = self.header;
        let number = number.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let event = match kind {
            DATA if (1..=PIECE_MAX as u32).contains(&number) => {
                (self.left, self.header_have) = (number as usize, 0);
                return Poll::Ready(Ok(None));
            }
            // Nothing follows it, so it stays.
            END => Event::End,
            HOLD => Event::Signal(Signal::Hold(number)),
            HELD => Event::Signal(Signal::Held(number)),
            WAKE => Event::Signal(Signal::Wake),
            RESUME => Event::Signal(Signal::Resume),
            _ => {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "no frame of a tunnel")));
            }
        };
        Poll::Ready(Ok(Some(event)))
    }

    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.header_have < HEADER {
            let mut space = ReadBuf::new(&mut self.header[self.header_have..]);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
            match space.filled().len() {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                count => self.header_have += count,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Puts a signal behind what was written; it leaves with the next flush. One that has not left yet and is overtaken
    /// goes: a hold that nobody has heard of needs no word that it is over.
    pub(crate) fn signal(&mut self, signal: Signal) {
        self.signal = match (self.signal.take(), signal) {
            (Some(Signal::Hold(_)), Signal::Resume) => None,
            _ => Some(signal),
        };
    }

    fn begin(&mut self, kind: u8, number: u32) {
        let [_, number @ ..] = (number & NUMBER_MAX).to_be_bytes();
        self.out.clear();
        self.out_start = 0;
        self.out.push(kind);
        self.out.extend_from_slice(&number);
    }

    /// Writes the frame that is under way, and the signal behind it.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.out_start == self.out.len() {
                let Some(signal) = self.signal.take() else { return Poll::Ready(Ok(())) };
                let (kind, number) = match signal {
                    Signal::Hold(number) => (HOLD, number),
                    Signal::Held(number) => (HELD, number),
                    Signal::Wake => (WAKE, 0),
                    Signal::Resume => (RESUME, 0),
                };
                self.begin(kind, number);
            }
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.out_start..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out_start += count;
        }
    }

    /// Gives back the memory of a channel that will be silent for a while.
    pub(crate) fn give_back(&mut self) {
        if self.out_start == self.out.len() {
            (self.out, self.out_start) = (Vec::new(), 0);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Channel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match ready!(self.poll_event(cx, buffer))? {
                Event::Bytes | Event::End => return Poll::Ready(Ok(())),
                // Of a sleep that is over.
                Event::Signal(_) => {}
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Channel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_drain(cx))?;
        let piece = &bytes[..bytes.len().min(PIECE_MAX)];
        self.begin(DATA, piece.len() as u32);
        self.out.shrink_to(KEPT.max(HEADER + piece.len()));
        self.out.extend_from_slice(piece);
        // The piece is taken, whether or not it leaves at once.
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(self.poll_drain(cx))?;
            self.begin(END, 0);
            self.shut = true;
        }
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_signals_and_ends_arrive_in_order() {
        let (here, there) = duplex(64);
        let (mut here, mut there) = (Channel::new(here), Channel::new(there));
        let sent: Vec<u8> = (0..100_000u32).map(|index| index as u8).collect();
        let write = async {
            here.write_all(&sent).await.unwrap();
            here.signal(Signal::Hold(70_000));
            here.flush().await.unwrap();
            here.write_all(b"more").await.unwrap();
            here.signal(Signal::Hold(70_001));
            here.signal(Signal::Resume);
            here.shutdown().await.unwrap();
        };
        let read = async {
            let (mut received, mut signals) = (Vec::new(), Vec::new());
            loop {
                let mut space = [0; 1000];
                let mut space = ReadBuf::new(&mut space);
                match poll_fn(|cx| there.poll_event(cx, &mut space)).await.unwrap() {
                    Event::Bytes => received.extend_from_slice(space.filled()),
                    Event::Signal(signal) => signals.push((received.len(), signal)),
                    Event::End => return (received, signals),
                }
            }
        };
        let ((), (received, signals)) = tokio::join!(write, read);
        assert_eq!(received, [&sent[..], b"more"].concat());
        assert_eq!(signals, [(sent.len(), Signal::Hold(70_000))]);
    }

    #[tokio::test]
    async fn a_break_is_no_end() {
        let (here, there) = duplex(64);
        let (mut here, mut there) = (Channel::new(here), Channel::new(there));
        here.write_all(b"half").await.unwrap();
        here.flush().await.unwrap();
        drop(here);
        let mut received = Vec::new();
        let error = there.read_to_end(&mut received).await.unwrap_err();
        assert_eq!((error.kind(), &received[..]), (io::ErrorKind::UnexpectedEof, &b"half"[..]));

        let (mut raw, there) = duplex(64);
        raw.write_all(&[9, 0, 0, 1]).await.unwrap();
        let error = Channel::new(there).read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
