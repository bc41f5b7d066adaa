//! A session whose guest sleeps: what the host and the edge agree on, so that the stream can go on here, or on another host
//! after this connection has ended.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{LINGER, LINGER_PAUSE, Session};
use crate::channel::{Channel, Event, NUMBER_MAX, Signal};

/// Longest wait for the edge to say that nothing more follows. It answers at once, unless its client does not take what it
/// is sent.
const HELD_WAIT: Duration = Duration::from_millis(500);
/// Most bytes that are on their way when the edge is asked to stop.
const UNDER_WAY_MAX: usize = 8 << 20;

/// What was said about the guest's sleep.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Number of the latest HOLD.
    number: u32,
    /// The edge has been sent it, or will be, and no RESUME since.
    told: bool,
    /// The client has sent something since.
    spoke: bool,
}

impl<S, G> Session<Channel<S>, G>
where
    S: AsyncRead + AsyncWrite + Unpin,
    G: AsyncRead + AsyncWrite + Unpin,
{
    /// After [`Ended::Held`](super::Ended::Held): brings the edge to a stop. True when it has stopped: then nothing is under
    /// way between the two, and the stream is the guest's connection and [`Session::for_guest`]. False when the edge did not
    /// answer in time: then the stream can go on over this connection only.
    pub async fn stop_edge(&mut self) -> bool {
        let stopped = tokio::time::timeout(HELD_WAIT, self.exchange_hold()).await;
        matches!(stopped, Ok(Ok(())))
    }

    async fn exchange_hold(&mut self) -> io::Result<()> {
        self.held.number = self.held.number % NUMBER_MAX + 1;
        // What the guest said last goes first.
        while self.down.start < self.down.end {
            self.down.start += self.tunnel.write(&self.down.buffer[self.down.start..self.down.end]).await?;
        }
        self.tunnel.signal(Signal::Hold(self.held.number));
        self.held.told = true;
        self.tunnel.flush().await?;
        loop {
            match self.next_event().await? {
                Event::Signal(Signal::Held(number)) if number == self.held.number => return Ok(()),
                Event::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                Event::Bytes | Event::Signal(_) => {}
            }
        }
    }

    /// After [`Ended::Held`](super::Ended::Held), instead of all that follows: ends the stream. The edge is told, after what the
    /// guest said last; the guest's connection is given back.
    pub async fn end(mut self) -> Option<G> {
        // An edge that does not take it notices that the connection closes.
        self.say_last(&[], HELD_WAIT).await;
        self.guest.take()
    }

    /// Bytes are put behind those that the guest has not taken yet. Cancel-safe.
    async fn next_event(&mut self) -> io::Result<Event> {
        // Small: sleeping sessions wait in here.
        let mut space = [0; 1024];
        let mut space = ReadBuf::new(&mut space);
        let event = poll_fn(|cx| self.tunnel.poll_event(cx, &mut space)).await?;
        if event == Event::Bytes {
            self.held.spoke = true;
            let (up, bytes) = (&mut self.up, space.filled());
            if up.end - up.start + bytes.len() > UNDER_WAY_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too much is under way"));
            }
            up.buffer.truncate(up.end);
            up.buffer.extend_from_slice(bytes);
            up.end = up.buffer.len();
        }
        Ok(event)
    }

    /// What the client has sent and the guest has not taken.
    #[must_use]
    pub fn for_guest(&self) -> &[u8] {
        &self.up.buffer[self.up.start..self.up.end]
    }

    /// Gives a fresh session what the guest is still to be given of the stream's earlier life.
    pub fn put_for_guest(&mut self, bytes: Vec<u8>) {
        (self.up.start, self.up.end) = (0, bytes.len());
        self.up.buffer = bytes;
    }

    /// Takes the guest's connection out, for the time that the guest sleeps.
    pub fn take_guest(&mut self) -> Option<G> {
        self.up.give_back();
        self.down.give_back();
        self.tunnel.give_back();
        self.guest.take()
    }

    /// Goes on with the guest's connection of after its sleep.
    pub fn attach(&mut self, guest: G) {
        self.guest = Some(guest);
        if std::mem::take(&mut self.held.told) {
            self.tunnel.signal(Signal::Resume);
            self.down.unflushed = true;
        }
    }

    /// Instead of going on: the guest had closed its half before it fell asleep, and `rest` is what it said last. The edge is
    /// told it, and of the end.
    pub async fn finish(mut self, rest: &[u8]) {
        if self.held.told {
            self.tunnel.signal(Signal::Resume);
        }
        if self.say_last(rest, LINGER).await {
            let never = CancellationToken::new();
            self.linger(LINGER_PAUSE, [&never, &never]).await;
        }
    }

    /// Tells the edge what it has not taken yet of the guest's bytes, then `rest`, then the end. True when it has taken all within
    /// `wait`.
    async fn say_last(&mut self, rest: &[u8], wait: Duration) -> bool {
        let told = async {
            self.tunnel.write_all(&self.down.buffer[self.down.start..self.down.end]).await?;
            self.tunnel.write_all(rest).await?;
            self.tunnel.shutdown().await
        };
        matches!(tokio::time::timeout(wait, told).await, Ok(Ok(())))
    }

    /// While held: waits for the client. True when it has sent something or is about to; false when it, or the edge, is
    /// gone. Cancel-safe.
    pub async fn client_speaks(&mut self) -> bool {
        loop {
            if std::mem::take(&mut self.held.spoke) {
                return true;
            }
            match self.next_event().await {
                Ok(Event::Signal(Signal::Wake)) => return true,
                Ok(Event::Bytes | Event::Signal(_)) => {}
                Ok(Event::End) | Err(_) => return false,
            }
        }
    }
}
