//! The relay: lets the host reach apps that listen only on guest loopback. The host connects, sends a port
//! (u16, big-endian), gets one byte of [`RelayAnswer`], then bytes flow both ways with half-closes kept.
//!
//! One thread polls all connections, so a wake's first request starts no thread. In a clone of an image every connection
//! from before is dead without a word; the epoch tells them apart. Over a sleep the host carries them; one that it could not
//! carry is found dead by keep-alive probes.
//!
//! ```text
//! Port ── two bytes ──> Connecting ── connected ──> Open ── both directions ended ──> gone
//!   └─ 5 s ─> gone          └─ refused everywhere, 3 s ─> answer, gone
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use guest_link::RelayAnswer;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, setsockopt, socket, sockopt,
};

use crate::loopback::Addresses;

mod pipe;

use pipe::{Pipe, Toward};

/// Most connections at a time; more are answered Busy.
const CONNECTIONS_MAX: usize = 256;

/// How long the host may take to send the port.
const PORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection to loopback may take (an app whose backlog is full).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Counts restores for the relay, and wakes it.
#[derive(Debug)]
pub struct Epoch {
    number: AtomicU64,
    connections: AtomicUsize,
    wake: EventFd,
}

impl Epoch {
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            number: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            wake: EventFd::new()?,
        }))
    }

    /// Marks every connection so far as dead. Cheap; call before the host may connect.
    pub fn advance(&self) {
        self.number.fetch_add(1, Ordering::Release);
    }

    /// Has the relay drop the dead connections, if it holds any.
    pub fn sweep(&self) {
        if self.connections.load(Ordering::Acquire) == 0 {
            // One that is being accepted just now is noticed with its first byte.
            return;
        }
        // It can only fail when the counter is full, and then the relay is awake.
        let _ = self.wake.write(1);
    }
}

enum ConnectionState {
    Port {
        have: Vec<u8>,
        deadline: Instant,
    },
    /// `rest` are the addresses to try when this one refuses.
    Connecting {
        inner: TcpStream,
        rest: Addresses,
        deadline: Instant,
    },
    Open {
        inner: TcpStream,
        inward: Pipe,
        outward: Pipe,
    },
}

struct Connection {
    epoch: u64,
    outer: TcpStream,
    phase: ConnectionState,
}

/// Finds out within a minute and a half that the host is gone from a silent connection.
fn keep_alive(outer: &TcpStream) {
    let _ = setsockopt(outer, sockopt::KeepAlive, &true);
    let _ = setsockopt(outer, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(outer, sockopt::TcpKeepInterval, &10);
    let _ = setsockopt(outer, sockopt::TcpKeepCount, &3);
}

/// The relay's thread; owns all its connections.
pub struct Relay {
    listener: TcpListener,
    host: IpAddr,
    epoch: Arc<Epoch>,
    connections: Vec<Connection>,
}

impl Relay {
    /// A relay on a bound listener that serves only `host`.
    pub fn new(listener: TcpListener, host: IpAddr, epoch: Arc<Epoch>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, host, epoch, connections: Vec::new() })
    }

    /// Serves for ever; an error of the listener or of polling ends it.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let timeout = self.wait_time();
            let mut set = vec![
                PollFd::new(self.epoch.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            let mut ends = Vec::with_capacity(self.connections.len());
            for connection in &self.connections {
                connection.interests(&mut set);
                ends.push(set.len());
            }
            match poll(&mut set, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let swept = ready(&set[0]);
            let waiting = ready(&set[1]);
            let mut start = 2;
            let mut due: Vec<bool> = Vec::with_capacity(ends.len());
            for end in ends {
                due.push(set[start..end].iter().any(ready));
                start = end;
            }
            drop(set);
            if swept {
                let _ = self.epoch.wake.read();
            }
            let epoch = self.epoch.number.load(Ordering::Acquire);
            let now = Instant::now();
            let mut due = due.into_iter();
            self.connections.retain_mut(|connection| {
                let due = due.next() == Some(true) || connection.is_late(now);
                connection.epoch == epoch && (!due || connection.advance(now))
            });
            if waiting {
                self.accept(epoch, now)?;
            }
            self.epoch.connections.store(self.connections.len(), Ordering::Release);
        }
    }

    fn accept(&mut self, epoch: u64, now: Instant) -> io::Result<()> {
        loop {
            let (outer, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The peer gave up, or no descriptors: those we have will come back.
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            if peer.ip() != self.host || outer.set_nonblocking(true).is_err() {
                continue;
            }
            let _ = outer.set_nodelay(true);
            keep_alive(&outer);
            if self.connections.len() >= CONNECTIONS_MAX {
                say(&outer, RelayAnswer::Busy);
                continue;
            }
            let phase = ConnectionState::Port { have: Vec::new(), deadline: now + PORT_TIMEOUT };
            let mut connection = Connection { epoch, outer, phase };
            if connection.advance(now) {
                self.connections.push(connection);
            }
        }
    }

    fn wait_time(&self) -> PollTimeout {
        self.connections.iter().filter_map(Connection::deadline).min().map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        })
    }
}

fn ready(descriptor: &PollFd<'_>) -> bool {
    descriptor.revents().is_some_and(|events| !events.is_empty())
}

fn say(outer: &TcpStream, answer: RelayAnswer) -> bool {
    use io::Write as _;
    let mut stream = outer;
    // One byte into an empty send buffer does not block.
    stream.write_all(&[answer as u8]).is_ok()
}

impl Connection {
    fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            ConnectionState::Port { deadline, .. } | ConnectionState::Connecting { deadline, .. } => {
                Some(*deadline)
            }
            ConnectionState::Open { .. } => None,
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    fn interests<'a>(&'a self, set: &mut Vec<PollFd<'a>>) {
        let mut add = |descriptor: BorrowedFd<'a>, read: bool, write: bool| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, read);
            events.set(PollFlags::POLLOUT, write);
            // With nothing to wait for, an error or hang-up would still wake us for ever.
            if !events.is_empty() {
                set.push(PollFd::new(descriptor, events));
            }
        };
        match &self.phase {
            ConnectionState::Port { .. } => add(self.outer.as_fd(), true, false),
            ConnectionState::Connecting { inner, .. } => add(inner.as_fd(), false, true),
            ConnectionState::Open { inner, inward, outward } => {
                add(self.outer.as_fd(), inward.wants_input(), outward.has_output());
                add(inner.as_fd(), outward.wants_input(), inward.has_output());
            }
        }
    }

    /// Does what can be done without blocking; false when the connection is over.
    fn advance(&mut self, now: Instant) -> bool {
        match self.try_advance(now) {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(_) => false,
        }
    }

    fn try_advance(&mut self, now: Instant) -> io::Result<bool> {
        if self.is_late(now) {
            if matches!(self.phase, ConnectionState::Connecting { .. }) {
                say(&self.outer, RelayAnswer::Refused);
            }
            return Ok(false);
        }
        loop {
            match &mut self.phase {
                ConnectionState::Port { have, .. } => {
                    let Some(port) = read_port(&self.outer, have)? else {
                        return Ok(false);
                    };
                    let mut rest = Addresses::of(port);
                    let Some(inner) = begin_to_connect(&mut rest) else {
                        say(&self.outer, RelayAnswer::Refused);
                        return Ok(false);
                    };
                    self.phase = ConnectionState::Connecting { inner, rest, deadline: now + CONNECT_TIMEOUT };
                }
                ConnectionState::Connecting { inner, rest, .. } => match connected(inner) {
                    None => return Ok(true),
                    Some(false) => {
                        let Some(next) = begin_to_connect(rest) else {
                            say(&self.outer, RelayAnswer::Refused);
                            return Ok(false);
                        };
                        *inner = next;
                    }
                    Some(true) => {
                        if !say(&self.outer, RelayAnswer::Connected) {
                            return Ok(false);
                        }
                        let inner = inner.try_clone()?;
                        // An app may answer and close without reading to the end; its answer counts.
                        let inward = Pipe::new(Toward::App);
                        self.phase =
                            ConnectionState::Open { inner, inward, outward: Pipe::new(Toward::Host) };
                    }
                },
                ConnectionState::Open { inner, inward, outward } => {
                    inward.pump(&self.outer, inner)?;
                    outward.pump(inner, &self.outer)?;
                    return Ok(!(inward.finished() && outward.finished()));
                }
            }
        }
    }
}

/// The port once both bytes are there; `None` when the host closed before.
fn read_port(mut outer: &TcpStream, have: &mut Vec<u8>) -> io::Result<Option<u16>> {
    use io::Read as _;
    loop {
        if let [high, low] = have[..] {
            return Ok(Some(u16::from_be_bytes([high, low])));
        }
        let mut byte = [0; 1];
        if outer.read(&mut byte)? == 0 {
            return Ok(None);
        }
        have.push(byte[0]);
    }
}

/// A connection attempt at the first of the addresses that does not refuse it at once; `None` when all do.
fn begin_to_connect(addresses: &mut Addresses) -> Option<TcpStream> {
    addresses.find_map(|address| begin_to_connect_to(address).ok())
}

fn begin_to_connect_to(address: SocketAddr) -> nix::Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let inner = socket(family, SockType::Stream, flags, None)?;
    match connect(inner.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {
            let inner = TcpStream::from(inner);
            let _ = inner.set_nodelay(true);
            Ok(inner)
        }
        Err(error) => Err(error),
    }
}

/// Whether a connection attempt has ended, and how.
fn connected(inner: &TcpStream) -> Option<bool> {
    let mut set = [PollFd::new(inner.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut set, PollTimeout::ZERO) {
        Ok(0) | Err(Errno::EINTR) => None,
        Ok(_) => Some(getsockopt(inner, sockopt::SocketError) == Ok(0)),
        Err(_) => Some(false),
    }
}

#[cfg(test)]
mod tests;
