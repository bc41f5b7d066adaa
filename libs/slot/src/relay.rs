//! The resolver relay of one slot: takes the guest's DNS questions on the
//! gateway address and asks the host's resolvers from outside.
//!
//! It understands no more of DNS than it takes to tell a question from an answer. A guest that asks too much
//! is not answered, and its own resolver tries again; the relay never waits for a guest and never queues.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};

use crate::dialer::Dialer;
use crate::{DNS_PORT, GATEWAY_ADDRESS};

/// Questions in flight per slot.
const QUESTIONS_IN_FLIGHT: usize = 32;
/// TCP connections per slot.
const CONNECTIONS: usize = 8;
/// Questions per second per slot, and how many may come at once.
const QUESTIONS_PER_SECOND: f64 = 100.0;
const QUESTIONS_BURST: f64 = 200.0;
/// Largest datagram either way, in bytes; the usual EDNS limit.
const DATAGRAM_MAX: usize = 4096;
/// A DNS header, in bytes.
const HEADER: usize = 12;
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
        let task = tokio::spawn(async move {
            tokio::join!(serve_datagrams(socket, resolvers.clone()), serve_connections(listener, resolvers));
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

async fn serve_datagrams(socket: Arc<UdpSocket>, resolvers: Arc<[SocketAddr]>) {
    let mut questions = JoinSet::new();
    let mut bucket = Bucket::new(Instant::now());
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, guest)) => {
                while questions.try_join_next().is_some() {}
                let question = &buffer[..length];
                if !is_question(question)
                    || questions.len() >= QUESTIONS_IN_FLIGHT
                    || !bucket.take(Instant::now())
                {
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
        if length >= HEADER && buffer[..2] == question[..2] && buffer[2] & 0x80 != 0 {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

/// A query of the standard kind: not an answer, opcode 0.
fn is_question(datagram: &[u8]) -> bool {
    datagram.len() > HEADER && datagram[2] & 0xf8 == 0
}

async fn serve_connections(listener: TcpListener, resolvers: Arc<[SocketAddr]>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((guest, _)) => {
                while connections.try_join_next().is_some() {}
                if connections.len() < CONNECTIONS {
                    let resolvers = resolvers.clone();
                    connections.spawn(async move {
                        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, relay_connection(guest, &resolvers))
                            .await;
                    });
                }
            }
            Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
        }
    }
}

async fn relay_connection(mut guest: TcpStream, resolvers: &[SocketAddr]) -> io::Result<()> {
    for resolver in resolvers.iter().take(RESOLVERS_TRIED) {
        if let Ok(Ok(mut upstream)) =
            tokio::time::timeout(RESOLVER_TIMEOUT, TcpStream::connect(resolver)).await
        {
            tokio::io::copy_bidirectional(&mut guest, &mut upstream).await?;
            return Ok(());
        }
    }
    Ok(())
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

    #[test]
    fn only_questions_pass() {
        let mut question = [0u8; 20];
        assert!(is_question(&question));
        question[2] = 0x80;
        assert!(!is_question(&question));
        assert!(!is_question(&[0; HEADER]));
    }
}
