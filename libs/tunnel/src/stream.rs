//! The edge's end of a stream: the guest's bytes, whichever connection they come by. When the guest falls asleep the host
//! asks for silence; what is written then asks the host to wake the guest, and waits. When the connection ends while the
//! guest sleeps, because it will wake elsewhere, the stream is taken up again over another one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::channel::{Channel, Event, Signal};

/// Finds the guest of a stream again.
pub trait Reattach<S>: Send + Sync {
    /// Waits until the guest is awake, or wakes it as soon as `wake` is cancelled; then opens the stream anew. An error ends
    /// the stream.
    fn reattach(&self, wake: CancellationToken) -> BoxFuture<'static, io::Result<Channel<S>>>;

    /// Returns when the guest is elsewhere than where the stream was opened or taken up last: its host, if it is lost, says nothing of
    /// it, and neither does the connection.
    fn moved(&self) -> BoxFuture<'static, ()>;
}

/// One stream. Read and write it from one task: what is read brings a write on.
pub struct Stream<S> {
    state: State<S>,
    reattach: Box<dyn Reattach<S>>,
    /// Of where it leads now.
    moved: BoxFuture<'static, ()>,
}

enum State<S> {
    Open(Channel<S>),
    /// The guest sleeps. The flag: the host has been asked to wake it.
    Held(Channel<S>, bool),
    /// The guest sleeps or wakes, and the stream has no connection.
    Detached(BoxFuture<'static, io::Result<Channel<S>>>, CancellationToken),
    Closed,
}

impl<S> std::fmt::Debug for Stream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            State::Open(_) => "open",
            State::Held(..) => "held",
            State::Detached(..) => "detached",
            State::Closed => "closed",
        };
        f.debug_struct("Stream").field("state", &state).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// A stream that has just been opened.
    pub fn new(channel: Channel<S>, reattach: Box<dyn Reattach<S>>) -> Self {
        let moved = reattach.moved();
        Self { state: State::Open(channel), reattach, moved }
    }

    /// The open channel, once there is one. `speak` says that the client has something for the guest.
    fn poll_open(&mut self, cx: &mut Context<'_>, speak: bool) -> Poll<io::Result<&mut Channel<S>>> {
        loop {
            match std::mem::replace(&mut self.state, State::Closed) {
                State::Open(channel) => {
                    self.state = State::Open(channel);
                    break;
                }
                State::Held(mut channel, mut asked) => {
                    if speak && !asked {
                        channel.signal(Signal::Wake);
                        asked = true;
                    }
                    match poll_held(&mut channel, cx) {
                        Poll::Pending => {
                            self.state = State::Held(channel, asked);
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(Signal::Resume)) => self.state = State::Open(channel),
                        Poll::Ready(Ok(signal)) => {
                            if let Signal::Hold(number) = signal {
                                channel.signal(Signal::Held(number));
                            }
                            self.state = State::Held(channel, asked);
                        }
                        Poll::Ready(Err(_)) => {
                            let wake = CancellationToken::new();
                            if asked {
                                wake.cancel();
                            }
                            self.state = State::Detached(self.reattach.reattach(wake.clone()), wake);
                        }
                    }
                }
                State::Detached(mut reattached, wake) => {
                    if speak {
                        wake.cancel();
                    }
                    match reattached.as_mut().poll(cx) {
                        Poll::Pending => {
                            self.state = State::Detached(reattached, wake);
                            return Poll::Pending;
                        }
                        Poll::Ready(channel) => {
                            self.state = State::Open(channel?);
                            self.moved = self.reattach.moved();
                        }
                    }
                }
                State::Closed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            }
        }
        match &mut self.state {
            State::Open(channel) => Poll::Ready(Ok(channel)),
            _ => unreachable!("the loop ends with an open channel"),
        }
    }
}

/// The next signal on a held channel, its answers sent. Bytes or an end are a breach, and as good as a break.
fn poll_held<S>(channel: &mut Channel<S>, cx: &mut Context<'_>) -> Poll<io::Result<Signal>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Poll::Ready(Err(error)) = Pin::new(&mut *channel).poll_flush(cx) {
        return Poll::Ready(Err(error));
    }
    let mut none = [0; 1];
    match ready!(channel.poll_event(cx, &mut ReadBuf::new(&mut none)))? {
        Event::Signal(signal) => Poll::Ready(Ok(signal)),
        Event::Bytes | Event::End => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let channel = ready!(self.poll_open(cx, false))?;
            let Poll::Ready(event) = channel.poll_event(cx, buffer) else {
                // A guest that fell asleep would have been held before it went elsewhere: this host is lost with what is under way.
                ready!(self.moved.as_mut().poll(cx));
                self.state = State::Closed;
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            match event? {
                Event::Bytes | Event::End => return Poll::Ready(Ok(())),
                Event::Signal(Signal::Hold(number)) => {
                    channel.signal(Signal::Held(number));
                    if let State::Open(mut channel) = std::mem::replace(&mut self.state, State::Closed) {
                        channel.give_back();
                        self.state = State::Held(channel, false);
                    }
                }
                Event::Signal(_) => {}
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let channel = ready!(self.poll_open(cx, true))?;
        // A broken connection is told to whoever reads, behind what had come before it broke: an app may answer a request that it
        // does not read to its end, and what has its write fail does not look for the answer.
        Poll::Ready(Ok(ready!(Pin::new(channel).poll_write(cx, bytes)).unwrap_or(bytes.len())))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(channel) | State::Held(channel, _) => {
                Pin::new(channel).poll_flush(cx).map(|_| Ok(())) // for whoever reads, too
            }
            State::Detached(..) | State::Closed => Poll::Ready(Ok(())),
        }
    }

    /// While the guest sleeps this closes the stream, since nobody wakes a guest to tell it that.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Open(channel) => Pin::new(channel).poll_shutdown(cx),
            State::Held(..) | State::Detached(..) | State::Closed => {
                self.state = State::Closed;
                Poll::Ready(Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::{Ended, Session};

    /// Gives the connection that it was made with, once it is asked to wake the guest.
    struct Once(Mutex<Option<DuplexStream>>);

    /// A guest that is elsewhere as soon as the token says so.
    struct Lost(CancellationToken);

    impl Reattach<DuplexStream> for Lost {
        fn reattach(&self, _: CancellationToken) -> BoxFuture<'static, io::Result<Channel<DuplexStream>>> {
            unreachable!("it does not sleep")
        }

        fn moved(&self) -> BoxFuture<'static, ()> {
            let lost = self.0.clone();
            Box::pin(async move { lost.cancelled().await })
        }
    }

    impl Reattach<DuplexStream> for Once {
        fn reattach(&self, wake: CancellationToken) -> BoxFuture<'static, io::Result<Channel<DuplexStream>>> {
            let next = self.0.lock().unwrap().take();
            Box::pin(async move {
                wake.cancelled().await;
                next.map(Channel::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
            })
        }

        fn moved(&self) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    /// Carries until held, with the client's side read on, and brings the edge to a stop.
    async fn hold(
        session: &mut Session<Channel<DuplexStream>, DuplexStream>,
        client: &mut Stream<DuplexStream>,
    ) {
        let hold = CancellationToken::new();
        hold.cancel();
        let stop = CancellationToken::new();
        let held = async {
            assert!(matches!(session.carry(|_| (), &stop, &hold).await, Ended::Held));
            session.stop_edge().await
        };
        tokio::select! {
            stopped = held => assert!(stopped),
            read = client.read_u8() => panic!("{read:?}"),
        }
    }

    /// Echoes from a guest of 1,024 bytes.
    async fn echo(
        session: &mut Session<Channel<DuplexStream>, DuplexStream>,
        client: &mut Stream<DuplexStream>,
        guest: &mut DuplexStream,
        what: &[u8],
    ) {
        let stop = CancellationToken::new();
        let never = CancellationToken::new();
        let exchange = async {
            client.write_all(what).await.unwrap();
            client.flush().await.unwrap();
            let mut heard = vec![0; what.len()];
            let answer = async {
                guest.read_exact(&mut heard).await.unwrap();
                guest.write_all(&heard).await.unwrap();
            };
            let mut answered = vec![0; what.len()];
            let (_, read) = tokio::join!(answer, client.read_exact(&mut answered));
            read.unwrap();
            assert_eq!(answered, what);
        };
        tokio::select! {
            ended = session.carry(|_| (), &stop, &never) => panic!("{ended:?}"),
            () = exchange => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_over_the_same_connection() {
        let (here, there) = duplex(64);
        let mut client = Stream::new(Channel::new(here), Box::new(Once(Mutex::default())));
        let (guest_end, mut guest) = duplex(1024);
        let mut session = Session::new(Channel::new(there), guest_end);
        echo(&mut session, &mut client, &mut guest, b"hello").await;
        for _ in 0..3 {
            hold(&mut session, &mut client).await;
            let slept = session.take_guest().unwrap();
            // The guest is woken before the client's bytes come.
            let (woken, written) = tokio::join!(session.client_speaks(), async {
                tokio::select! {
                    _ = client.write_all(b"never before it is awake") => true,
                    () = tokio::time::sleep(std::time::Duration::from_secs(1)) => false,
                }
            });
            assert!(woken && !written);
            session.attach(slept);
            echo(&mut session, &mut client, &mut guest, b"again").await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_its_guest_goes_on_elsewhere_and_its_host_says_nothing() {
        let (here, mut silent) = duplex(64);
        let lost = CancellationToken::new();
        let mut client = Stream::new(Channel::new(here), Box::new(Lost(lost.clone())));
        client.write_all(b"question").await.unwrap();
        client.flush().await.unwrap();
        silent.read_u8().await.unwrap();
        let answer = tokio::time::timeout(std::time::Duration::from_secs(900), client.read_u8());
        assert!(answer.await.is_err(), "its host may still answer");
        lost.cancel();
        assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_where_the_host_has_it_end() {
        let (here, there) = duplex(64);
        let mut client = Stream::new(Channel::new(here), Box::new(Once(Mutex::default())));
        let (guest_end, mut guest) = duplex(1024);
        let mut session = Session::new(Channel::new(there), guest_end);
        echo(&mut session, &mut client, &mut guest, b"hello").await;
        let (stop, hold) = (CancellationToken::new(), CancellationToken::new());
        hold.cancel();
        assert!(matches!(session.carry(|_| (), &stop, &hold).await, Ended::Held));
        drop(session.end().await.unwrap());
        let mut byte = [0; 1];
        assert_eq!((client.read(&mut byte).await.unwrap(), guest.read(&mut byte).await.unwrap()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_over_another_connection() {
        let (here, there) = duplex(1 << 16);
        let (next_here, next_there) = duplex(64);
        let mut client = Stream::new(Channel::new(here), Box::new(Once(Mutex::new(Some(next_here)))));
        let (guest_end, mut guest) = duplex(8);
        let mut session = Session::new(Channel::new(there), guest_end);
        // Of what the client sends the guest takes a little.
        client.write_all(&[7; 100]).await.unwrap();
        hold(&mut session, &mut client).await;
        let (slept, rest) = (session.take_guest().unwrap(), session.for_guest().to_vec());
        assert!(rest.len() >= 84, "{}", rest.len());
        drop(session);
        let mut session = Session::new(Channel::new(next_there), slept);
        session.put_for_guest(rest);
        let (stop, never) = (CancellationToken::new(), CancellationToken::new());
        let mut heard = vec![0; 105];
        let heard = async {
            // It wakes the guest.
            client.write_all(b"after").await.unwrap();
            client.flush().await.unwrap();
            guest.read_exact(&mut heard).await.unwrap();
            heard
        };
        tokio::select! {
            ended = session.carry(|_| (), &stop, &never) => panic!("{ended:?}"),
            heard = heard => assert_eq!(heard, [&[7; 100][..], b"after"].concat()),
        }
        // A stream that cannot be taken up again has ended.
        hold(&mut session, &mut client).await;
        drop(session);
        client.write_all(b"nobody").await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_is_the_guests() {
        let (here, there) = duplex(1 << 16);
        let mut client = Stream::new(Channel::new(here), Box::new(Once(Mutex::default())));
        let (guest_end, _guest) = duplex(64);
        let mut session = Session::new(Channel::new(there), guest_end);
        let (stop, hold) = (CancellationToken::new(), CancellationToken::new());
        hold.cancel();
        assert!(matches!(session.carry(|_| (), &stop, &hold).await, Ended::Held));
        // Sent before the edge hears that it must not.
        client.write_all(b"late").await.unwrap();
        client.flush().await.unwrap();
        let mut byte = [0; 1];
        tokio::select! {
            stopped = session.stop_edge() => assert!(stopped),
            read = client.read(&mut byte) => panic!("{read:?}"),
        }
        assert_eq!(session.for_guest(), b"late");
        assert!(session.client_speaks().await);
        // An edge that does not answer leaves it at that.
        assert!(!session.stop_edge().await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_guest_said_before_it_closed_comes_though_it_sleeps() {
        let (here, there) = duplex(1 << 16);
        let mut client = Stream::new(Channel::new(here), Box::new(Once(Mutex::default())));
        let (guest_end, mut guest) = duplex(64);
        let mut session = Session::new(Channel::new(there), guest_end);
        guest.write_all(b"an ").await.unwrap();
        let (stop, never) = (CancellationToken::new(), CancellationToken::new());
        let mut begun = [0; 3];
        tokio::select! {
            ended = session.carry(|_| (), &stop, &never) => panic!("{ended:?}"),
            read = client.read_exact(&mut begun) => assert_eq!(read.unwrap(), 3),
        }
        hold(&mut session, &mut client).await;
        let mut rest = String::new();
        let ((), read) = tokio::join!(session.finish(b"answer"), client.read_to_string(&mut rest));
        read.unwrap();
        assert_eq!(rest, "answer");
    }
}
