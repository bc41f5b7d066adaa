//! The resolver relay of one slot: takes the guest's DNS questions on the
//! gateway address and asks the host's resolvers from outside.
//!
//! It passes on plain questions and nothing else, by UDP and by TCP (`question.rs`). A guest that asks too much
//! is not answered, and its own resolver tries again; the relay never waits for a guest and never queues.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

use crate::dialer::Dialer;
use crate::question::{is_answer, is_plain};
use crate::{DNS_PORT, GATEWAY_ADDRESS};

/// Questions by UDP in flight per slot.
const QUESTIONS_IN_FLIGHT: usize = 32;
/// TCP connections per slot, with one question in flight each.
const CONNECTIONS: usize = 8;
/// Questions per second per slot, by UDP and TCP together, and how many may come at once.
const QUESTIONS_PER_SECOND: f64 = 100.0;
const QUESTIONS_BURST: f64 = 200.0;
/// Largest datagram either way and largest question by TCP, in bytes; the usual EDNS limit.
const DATAGRAM_MAX: usize = 4096;
/// Largest answer by TCP, in bytes: what its frame can say.
const ANSWER_MAX: usize = u16::MAX as usize;
/// How long one resolver is given.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Resolvers asked in turn per question.
const RESOLVERS_TRIED: usize = 3;
/// Longest life of a TCP connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a socket error, so that a broken socket cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// A running relay; dropping it stops it.
#[derive(Debug)]
pub(crate) struct Relay {
    task: JoinHandle<()>,
}

impl Relay {
    /// Binds the gateway's DNS port in the slot and starts to serve.
    pub(crate) async fn start(dialer: &Dialer, resolvers: Arc<[SocketAddr]>) -> io::Result<Self> {
        let address = SocketAddr::from((GATEWAY_ADDRESS, DNS_PORT));
        let socket = Arc::new(dialer.bind_udp(address).await?);
        let listener = dialer.listen(address).await?;
        let rate = Arc::new(Rate::new());
        let task = tokio::spawn(async move {
            let datagrams = serve_datagrams(socket, resolvers.clone(), rate.clone());
            tokio::join!(datagrams, serve_connections(listener, resolvers, rate));
        });
        Ok(Self { task })
    }

    /// Stops and waits until the sockets are closed.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        // An aborted task reports that it was aborted.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The host's resolvers as `/etc/resolv.conf` names them.
pub(crate) fn system_resolvers() -> Vec<SocketAddr> {
    parse_resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    servers.map(|address| SocketAddr::new(address, DNS_PORT)).collect()
}

async fn serve_datagrams(socket: Arc<UdpSocket>, resolvers: Arc<[SocketAddr]>, rate: Arc<Rate>) {
    let mut questions = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, guest)) => {
                while questions.try_join_next().is_some() {}
                let question = &buffer[..length];
                if !is_plain(question) || questions.len() >= QUESTIONS_IN_FLIGHT || !rate.take() {
                    continue;
                }
                questions.spawn(answer(socket.clone(), guest, question.to_vec(), resolvers.clone()));
            }
            Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
        }
    }
}

async fn answer(socket: Arc<UdpSocket>, guest: SocketAddr, question: Vec<u8>, resolvers: Arc<[SocketAddr]>) {
    for resolver in resolvers.iter().take(RESOLVERS_TRIED) {
        if let Ok(Ok(answer)) = tokio::time::timeout(RESOLVER_TIMEOUT, ask(*resolver, &question)).await {
            // A guest that is gone needs no answer.
            let _ = socket.send_to(&answer, guest).await;
            return;
        }
    }
}

/// Asks one resolver from a fresh port, which is what makes a forged answer hard.
async fn ask(resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(question, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn serve_connections(listener: TcpListener, resolvers: Arc<[SocketAddr]>, rate: Arc<Rate>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((guest, _)) => {
                while connections.try_join_next().is_some() {}
                if connections.len() < CONNECTIONS {
                    let (resolvers, rate) = (resolvers.clone(), rate.clone());
                    connections.spawn(async move {
                        let served = serve_connection(guest, &resolvers, &rate);
                        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
                    });
                }
            }
            Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
        }
    }
}

/// Answers one question after the other. Anything that is none ends the connection, and so does a question too many.
async fn serve_connection(mut guest: TcpStream, resolvers: &[SocketAddr], rate: &Rate) -> io::Result<()> {
    loop {
        let question = read_message(&mut guest, DATAGRAM_MAX).await?;
        if !is_plain(&question) || !rate.take() {
            return Ok(());
        }
        let Some(answer) = answer_by_tcp(&question, resolvers).await else { return Ok(()) };
        write_message(&mut guest, &answer).await?;
    }
}

async fn answer_by_tcp(question: &[u8], resolvers: &[SocketAddr]) -> Option<Vec<u8>> {
    for resolver in resolvers.iter().take(RESOLVERS_TRIED) {
        if let Ok(Ok(answer)) = tokio::time::timeout(RESOLVER_TIMEOUT, ask_by_tcp(*resolver, question)).await
        {
            return Some(answer);
        }
    }
    None
}

/// Asks one resolver on a connection of the question's own, and takes one message from it.
async fn ask_by_tcp(resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(resolver).await?;
    write_message(&mut upstream, question).await?;
    let answer = read_message(&mut upstream, ANSWER_MAX).await?;
    if !is_answer(question, &answer) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not the answer to the question"));
    }
    Ok(answer)
}

/// A message by TCP comes after its length, in two bytes.
async fn read_message(stream: &mut TcpStream, bytes_max: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a longer message than there may be"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // In one piece: there are resolvers that take the length alone for a message.
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

/// What a slot's questions come at, whichever way they come.
struct Rate(Mutex<Bucket>);

impl Rate {
    fn new() -> Self {
        Self(Mutex::new(Bucket::new(Instant::now())))
    }

    fn take(&self) -> bool {
        // A bucket is whole after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }
}

/// A token bucket; the clock is passed in.
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { level: QUESTIONS_BURST, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * QUESTIONS_PER_SECOND;
        self.level = (self.level + gained).min(QUESTIONS_BURST);
        self.at = now;
        if self.level < 1.0 {
            return false;
        }
        self.level -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::tests::message;

    #[test]
    fn resolvers_are_read() {
        let text =
            "# nameserver 1.1.1.1\nsearch lan\nnameserver 9.9.9.9\nnameserver ::1\nnameserver fe80::1%eth0\n";
        assert_eq!(parse_resolvers(text), ["9.9.9.9:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
    }

    #[test]
    fn the_bucket_refills() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let taken = (0..1000).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 200);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..1000).filter(|_| bucket.take(later)).count(), 50);
    }

    /// A resolver that sends every message back as an answer and says how many connections and messages it has had.
    async fn resolver(
        answer: fn(Vec<u8>) -> Vec<u8>,
    ) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, messages) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                while let Ok(message) = read_message(&mut stream, ANSWER_MAX).await {
                    seen.send(message.clone()).unwrap();
                    write_message(&mut stream, &answer(message)).await.unwrap();
                }
            }
        });
        (address, messages)
    }

    fn echo(mut message: Vec<u8>) -> Vec<u8> {
        message[2] |= 0x80;
        message
    }

    /// A guest's connection to a relay that asks `resolvers`.
    async fn connection(resolvers: &[SocketAddr], rate: Rate) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        let resolvers = resolvers.to_vec();
        tokio::spawn(async move { serve_connection(served, &resolvers, &rate).await });
        guest
    }

    #[tokio::test]
    async fn questions_by_tcp_are_answered_one_after_the_other() {
        let (good, mut messages) = resolver(echo).await;
        let (wrong, _messages) = resolver(|message| message).await;
        let mut guest = connection(&[wrong, good], Rate::new()).await;
        for kind in [1, 28] {
            let question = message(1, &["example", "com"], kind);
            write_message(&mut guest, &question).await.unwrap();
            assert_eq!(read_message(&mut guest, ANSWER_MAX).await.unwrap(), echo(question.clone()));
            assert_eq!(messages.recv().await.unwrap(), question);
        }
    }

    #[tokio::test]
    async fn what_is_no_plain_question_ends_the_connection_and_reaches_no_resolver() {
        let (resolver, mut messages) = resolver(echo).await;
        let long = [message(1, &["a"], 1), vec![0; DATAGRAM_MAX]].concat();
        for refused in [message(1, &["a"], 252), message(5 << 3, &["a"], 6), long, Vec::new()] {
            let mut guest = connection(&[resolver], Rate::new()).await;
            write_message(&mut guest, &refused).await.unwrap();
            // It ends with a reset when bytes of the message are left unread.
            assert!(guest.read_u16().await.is_err());
        }
        assert!(messages.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_question_by_tcp_that_comes_too_fast_ends_the_connection() {
        let (resolver, mut messages) = resolver(echo).await;
        // Nothing comes into this bucket until the first question has been refused.
        let at = Instant::now() + Duration::from_secs(3600);
        let mut guest = connection(&[resolver], Rate(Mutex::new(Bucket { level: 0.0, at }))).await;
        write_message(&mut guest, &message(1, &["a"], 1)).await.unwrap();
        assert!(guest.read_u16().await.is_err());
        assert!(messages.try_recv().is_err());
    }
}
