//! Carries bytes between a tunnel and a guest, and tells who is listening that they moved.

mod hold;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::channel::PIECE_MAX;

/// Buffer per direction, in bytes, and once it was full.
const BUFFER: usize = 8 * 1024;
const BUFFER_MAX: usize = PIECE_MAX;

/// How long a guest that is about to sleep is waited for when it owes an answer.
pub const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long what the client still sends is thrown away after the app has answered and closed. Closing at once would reset the
/// connection and take the answer's last bytes with it.
const LINGER: Duration = Duration::from_secs(30);
/// The same after the app's end of the connection was reset, while the client goes on sending: when it pauses for this long,
/// everything it sent has been read, and closing resets nothing.
const LINGER_PAUSE: Duration = Duration::from_millis(100);
/// After the last byte of the guest's for this long, its answer counts as complete.
const QUIET: Duration = Duration::from_millis(20);

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
    /// The guest is about to sleep: nothing was lost, and the session can go on.
    Held,
    /// One side failed.
    Failed(io::Error),
}

/// Carries bytes both ways until both sides have closed, one fails, or `stop` is cancelled. A side that
/// closes its half leaves the other half open. `activity` is called with every number of bytes that went to
/// or came from the guest; it must be quick.
pub async fn copy<T, G>(
    tunnel: T,
    guest: G,
    activity: impl FnMut(u64) + Unpin,
    stop: &CancellationToken,
) -> (Copied, Ended)
where
    T: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = Session::new(tunnel, guest);
    let ended = session.carry(activity, stop, &CancellationToken::new()).await;
    (session.progress.copied, ended)
}

/// A tunnel and the guest's connection behind it. It can be held while the guest sleeps: what was read from one side and
/// not written to the other yet stays in its buffers, and the tunnel stays open for the guest's next connection.
#[derive(Debug)]
pub struct Session<T, G> {
    tunnel: T,
    /// Absent while held.
    guest: Option<G>,
    up: Direction,
    down: Direction,
    progress: Progress,
    held: hold::Hold,
}

#[derive(Debug, Default)]
struct Progress {
    copied: Copied,
    /// When bytes last went to the guest.
    asked: Option<Instant>,
    /// When bytes last came from it, if any have since.
    answered: Option<Instant>,
}

/// The end of a direction at which its bytes are counted: the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Read,
    Written,
}

/// One direction: bytes that were read and not yet written.
#[derive(Debug, Default)]
struct Direction {
    /// Allocated with the first byte, given back while the guest sleeps.
    buffer: Vec<u8>,
    /// A read has filled it.
    filled: bool,
    start: usize,
    end: usize,
    /// Written bytes may sit in the writer's own buffer.
    unflushed: bool,
    /// The reading side has closed its half.
    ended: bool,
    /// The writing side has been told so.
    shut: bool,
    /// The guest reads no more, though it may still be answering: what comes for it is thrown away.
    refused: bool,
    /// How reading from the guest failed; what was read before is passed on.
    broken: Option<io::Error>,
}

impl<T, G> Session<T, G>
where
    T: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    /// Nothing is carried yet.
    pub fn new(tunnel: T, guest: G) -> Self {
        let (up, down) = (Direction::default(), Direction::default());
        Self {
            tunnel,
            guest: Some(guest),
            up,
            down,
            progress: Progress::default(),
            held: hold::Hold::default(),
        }
    }

    /// As [`copy`], and also until `hold` is cancelled and nothing is under way any more, [`ANSWER_WAIT`] later at the latest:
    /// what looks like a request by its bytes gets its answer first. Nothing new is taken from the client then, so that one that
    /// asks again and again does not keep the guest from its sleep. A session in which one side has closed its half is not held
    /// but cut.
    pub async fn carry(
        &mut self,
        mut activity: impl FnMut(u64),
        stop: &CancellationToken,
        hold: &CancellationToken,
    ) -> Ended {
        let mut held_since = None;
        loop {
            if hold.is_cancelled() {
                let since = *held_since.get_or_insert_with(Instant::now);
                // What the guest said before it closed its half is its answer, which the client may be slow to take.
                let delivering = self.down.ended && !self.down.shut;
                if since.elapsed() >= ANSWER_WAIT || !(self.is_busy() || delivering) {
                    if !(self.up.ended || self.up.refused || self.down.ended || self.guest.is_none()) {
                        return Ended::Held;
                    }
                    if self.down.shut {
                        self.linger(LINGER_PAUSE, [stop, stop]).await;
                    }
                    return Ended::Cut;
                }
            }
            let look = async {
                hold.cancelled().await;
                if held_since.is_some() {
                    tokio::time::sleep(QUIET).await;
                }
            };
            let held = held_since.is_some();
            let carried = std::future::poll_fn(|cx| self.poll_carry(cx, held, &mut activity));
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Cut,
                () = look => {}
                result = carried => return match (result, self.down.broken.take()) {
                    (Ok(()), Some(error)) => {
                        self.linger(LINGER_PAUSE, [stop, hold]).await;
                        Ended::Failed(error)
                    }
                    (Ok(()), None) if self.up.refused => {
                        self.linger(LINGER, [stop, hold]).await;
                        Ended::Closed
                    }
                    (Ok(()), None) => Ended::Closed,
                    (Err(error), _) => Ended::Failed(error),
                },
            }
        }
    }

    /// The app has answered and reads no more: throws away what the client sends until it closes or pauses.
    async fn linger(&mut self, pause: Duration, [stop, hold]: [&CancellationToken; 2]) {
        self.up.allocate();
        let discard = async {
            let mut next = async || tokio::time::timeout(pause, self.tunnel.read(&mut self.up.buffer)).await;
            while next().await.is_ok_and(|read| read.is_ok_and(|count| count > 0)) {}
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = hold.cancelled() => {}
            _ = tokio::time::timeout(LINGER, discard) => {}
        }
    }

    /// True while the guest owes an answer, as far as bytes tell, or is giving one.
    fn is_busy(&self) -> bool {
        let within = |since: Option<Instant>, time| since.is_some_and(|since| since.elapsed() < time);
        match self.progress.answered {
            None => within(self.progress.asked, ANSWER_WAIT),
            answered => within(answered, QUIET),
        }
    }

    fn poll_carry(
        &mut self,
        cx: &mut Context<'_>,
        held: bool,
        activity: &mut impl FnMut(u64),
    ) -> Poll<io::Result<()>> {
        let Some(guest) = &mut self.guest else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let progress = &mut self.progress;
        let up = if held && progress.answered.is_some() && !self.up.ended {
            // What has been read already stays in the buffer: it is the guest's when it wakes.
            Poll::Pending
        } else {
            self.up.poll(cx, &mut self.tunnel, guest, Counted::Written, &mut |count| {
                progress.copied.to_guest += count;
                (progress.asked, progress.answered) = (Some(Instant::now()), None);
                activity(count);
            })?
        };
        let down = self.down.poll(cx, guest, &mut self.tunnel, Counted::Read, &mut |count| {
            progress.copied.from_guest += count;
            progress.answered = Some(Instant::now());
            activity(count);
        })?;
        let heard = self.up.refused || self.down.broken.is_some();
        if (up.is_ready() || heard) && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Direction {
    fn allocate(&mut self) {
        let wanted = if self.filled { BUFFER_MAX } else { BUFFER };
        if self.start == self.end && self.buffer.len() != wanted {
            self.buffer.resize(wanted, 0);
        }
    }

    fn give_back(&mut self) {
        if self.start == self.end {
            (self.buffer, self.filled, self.start, self.end) = (Vec::new(), false, 0, 0);
        }
    }

    /// Carries until there is nothing to carry; ready when the reading side has closed and the writing side knows. A guest that
    /// takes no more is no error: an app may answer and close without reading its request to the end.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        counted: Counted,
        count: &mut impl FnMut(u64),
    ) -> Poll<io::Result<()>> {
        loop {
            if self.refused {
                self.start = self.end;
            }
            while self.start < self.end {
                let bytes = &self.buffer[self.start..self.end];
                let written = match ready!(Pin::new(&mut *writer).poll_write(cx, bytes)) {
                    Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Ok(written) => written,
                    Err(_) if counted == Counted::Written => {
                        self.refused = true;
                        self.start = self.end;
                        break;
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                };
                self.start += written;
                self.unflushed = true;
                if counted == Counted::Written {
                    count(written as u64);
                }
            }
            if !self.ended {
                self.allocate();
                let mut space = ReadBuf::new(&mut self.buffer);
                if let Poll::Ready(read) = Pin::new(&mut *reader).poll_read(cx, &mut space) {
                    (self.start, self.end) = (0, space.filled().len());
                    self.filled |= self.end == self.buffer.len();
                    match read {
                        Err(error) if counted == Counted::Read => self.broken = Some(error),
                        read => read?,
                    }
                    self.ended = self.end == 0;
                    if counted == Counted::Read && !self.ended {
                        count(self.end as u64);
                    }
                    continue;
                }
            }
            if self.unflushed && !self.refused {
                ready!(Pin::new(&mut *writer).poll_flush(cx))?;
                self.unflushed = false;
            }
            if !self.ended {
                return Poll::Pending;
            }
            if !self.shut && !self.refused && self.broken.is_none() {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                self.shut = true;
            }
            return Poll::Ready(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests;
