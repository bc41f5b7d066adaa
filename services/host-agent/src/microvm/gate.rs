//! The way into a running guest. A gate lives as long as one run of the engine. When the guest falls asleep, its connections
//! are frozen with it and go on through the next gate; when it ends, they are cut.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Longest wait for the guest's kernel to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for connections to give their sockets up: each does when it owes no answer, or after its own wait for one.
const HOLD_TIMEOUT: Duration = tunnel::ANSWER_WAIT.saturating_add(Duration::from_secs(2));
/// How long a connection of a guest that has woken waits for its edge. Edges follow the scheduler's word of it within
/// moments; one that has not come by then has no client any more.
const CLAIM_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for the relay's answer.
const RELAY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a guest port was not reached.
#[derive(Debug, PartialEq, Eq)]
pub enum GateError {
    /// The gate has closed; look at the microVM's state again.
    Closed,
    Refused,
    Busy,
    /// The guest does not answer.
    Silent,
    /// Nothing of that name waits for its edge.
    Gone,
}

/// An edge's name for a stream, unique within the microVM.
pub type StreamId = [u8; 16];

/// What makes a sleeping connection independent of this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portable {
    pub stream_id: StreamId,
    /// What the client has sent and the guest has not taken.
    pub for_guest: Vec<u8>,
}

/// The way into one run of a guest.
///
/// ```text
/// open --hold--> held: no new connections; those there give their sockets up, to be frozen with the guest
///   |              |
///   +----close-----+--> closed: what is still connected is cut
/// ```
pub struct Gate {
    dialer: slot::Dialer,
    closed: CancellationToken,
    hold: CancellationToken,
    end_at_hold: bool,
    connections: Arc<Semaphore>,
    /// What connections send their sockets to when the guest is about to sleep; absent once it is.
    held: Mutex<Option<mpsc::UnboundedSender<Held>>>,
    collect: Mutex<Option<mpsc::UnboundedReceiver<Held>>>,
    /// Connections that slept and whose edge is still to come.
    unclaimed: Mutex<HashMap<StreamId, (TcpStream, Vec<u8>)>>,
}

/// A connection to a guest port.
pub struct GuestStream {
    pub stream: TcpStream,
    pub pass: Pass,
}

/// What becomes of a connection that has given its socket up.
pub enum Successor {
    /// It goes on.
    Stream(GuestStream),
    /// The guest had closed its half before it fell asleep, and this is what it said last.
    Rest(Vec<u8>),
}

/// A connection's place at the gate.
pub struct Pass {
    /// Cancelled when the connection must be cut.
    pub closed: CancellationToken,
    /// Cancelled when the guest is about to sleep: the connection then gives its socket up ([`Pass::give_up`]), or ends.
    pub hold: CancellationToken,
    /// Which of the two.
    pub end_at_hold: bool,
    held: mpsc::UnboundedSender<Held>,
    _permit: OwnedSemaphorePermit,
}

/// A connection that waits for its guest to wake.
pub struct Held {
    pub stream: TcpStream,
    pub waiting: Waiting,
}

/// The other side of a sleeping connection.
pub struct Waiting {
    /// Absent when the stream can go on over its present tunnel only.
    pub portable: Option<Portable>,
    /// Where the successor is sent; dropped when there will be none. Absent when no tunnel of this process waits for it.
    pub back: Option<oneshot::Sender<Successor>>,
}

impl Pass {
    /// Gives the socket up for the time that the guest sleeps. What is returned brings the one to go on with, or fails when
    /// the microVM has ended.
    pub fn give_up(self, stream: TcpStream, portable: Option<Portable>) -> oneshot::Receiver<Successor> {
        let (back, successor) = oneshot::channel();
        // A gate that no longer collects has closed: the successor then never comes.
        let _ = self.held.send(Held { stream, waiting: Waiting { portable, back: Some(back) } });
        successor
    }
}

impl Gate {
    /// A gate through `dialer` for at most `connections_max` connections, which end when the guest falls asleep or sleep with
    /// it.
    pub fn new(dialer: slot::Dialer, connections_max: usize, end_at_hold: bool) -> Self {
        let (held, collect) = mpsc::unbounded_channel();
        Self {
            dialer,
            closed: CancellationToken::new(),
            hold: CancellationToken::new(),
            end_at_hold,
            connections: Arc::new(Semaphore::new(connections_max)),
            held: Mutex::new(Some(held)),
            collect: Mutex::new(Some(collect)),
            unclaimed: Mutex::default(),
        }
    }

    /// Cuts every connection; new ones are refused.
    pub fn close(&self) {
        self.hold.cancel();
        self.closed.cancel();
        lock(&self.unclaimed).clear();
    }

    /// Lets no new connection through and gathers the sockets of those there are, once; where connections end, waits until they
    /// have. A connection that does not give its socket up in time stays with the gate and is cut when that closes.
    pub async fn hold(&self) -> Vec<Held> {
        drop(lock(&self.held).take());
        self.hold.cancel();
        let unclaimed = std::mem::take(&mut *lock(&self.unclaimed)).into_iter();
        let mut gathered: Vec<_> = unclaimed
            .map(|(stream_id, (stream, for_guest))| {
                let portable = Some(Portable { stream_id, for_guest });
                Held { stream, waiting: Waiting { portable, back: None } }
            })
            .collect();
        let Some(mut collect) = lock(&self.collect).take() else { return gathered };
        let all = async {
            // Ends when every connection has sent its socket or is gone.
            while let Some(held) = collect.recv().await {
                gathered.push(held);
            }
        };
        let _ = tokio::time::timeout(HOLD_TIMEOUT, all).await;
        gathered
    }

    /// Lets a connection that was held go on with a socket of this gate's guest: over the tunnel that waits for it, or over
    /// the one that its edge opens next ([`Gate::claim`]), if it comes in time.
    pub fn rejoin(self: &Arc<Self>, stream: TcpStream, waiting: Waiting) {
        let Waiting { portable, back } = waiting;
        if let Some(back) = back.filter(|back| !back.is_closed()) {
            if let Ok(pass) = self.pass() {
                // When the client is gone meanwhile, nobody takes it: it is closed.
                let _ = back.send(Successor::Stream(GuestStream { stream, pass }));
            }
        } else if let Some(Portable { stream_id, for_guest }) = portable {
            lock(&self.unclaimed).insert(stream_id, (stream, for_guest));
        }
    }

    /// Closes what no edge has come for in time. To be called when the gate opens.
    pub fn expire_unclaimed(self: &Arc<Self>) {
        if lock(&self.unclaimed).is_empty() {
            return;
        }
        let gate = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = gate.hold.cancelled() => {}
                () = tokio::time::sleep(CLAIM_WAIT) => lock(&gate.unclaimed).clear(),
            }
        });
    }

    /// The connection of a stream that slept, and what its guest is to be given first.
    pub fn claim(&self, stream_id: &[u8]) -> Result<(GuestStream, Vec<u8>), GateError> {
        let pass = self.pass()?;
        let stream_id: StreamId = stream_id.try_into().map_err(|_| GateError::Gone)?;
        let (stream, for_guest) = lock(&self.unclaimed).remove(&stream_id).ok_or(GateError::Gone)?;
        Ok((GuestStream { stream, pass }, for_guest))
    }

    fn pass(&self) -> Result<Pass, GateError> {
        let held = lock(&self.held).clone().ok_or(GateError::Closed)?;
        let permit = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| GateError::Busy)?;
        let (closed, hold) = (self.closed.clone(), self.hold.clone());
        Ok(Pass { closed, hold, end_at_hold: self.end_at_hold, held, _permit: permit })
    }

    /// Connects to a guest port: straight to the guest's address, and where
    /// nothing listens there through the relay, for apps on guest loopback.
    pub async fn connect(&self, port: u16) -> Result<GuestStream, GateError> {
        let pass = self.pass()?;
        let attempt = async {
            match self.dial(port).await {
                // An older guest-agent has no shell; what listens on that port of its loopback is no substitute.
                Err(GateError::Refused) if port != guest_link::SHELL_PORT => self.relay(port).await,
                other => other,
            }
        };
        let stream = tokio::select! {
            biased;
            () = self.hold.cancelled() => return Err(GateError::Closed),
            stream = attempt => stream?,
        };
        Ok(GuestStream { stream, pass })
    }

    async fn dial(&self, port: u16) -> Result<TcpStream, GateError> {
        let address = SocketAddr::from((slot::GUEST_ADDRESS, port));
        self.dialer.connect(address, CONNECT_TIMEOUT).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => GateError::Refused,
            _ => GateError::Silent,
        })
    }

    async fn relay(&self, port: u16) -> Result<TcpStream, GateError> {
        let mut stream = self.dial(guest_link::RELAY_PORT).await?;
        let mut answer = [0u8; 1];
        let exchange = async {
            stream.write_all(&port.to_be_bytes()).await?;
            stream.read_exact(&mut answer).await
        };
        match tokio::time::timeout(RELAY_TIMEOUT, exchange).await {
            Ok(Ok(_)) => {}
            _ => return Err(GateError::Silent),
        }
        match guest_link::RelayAnswer::from_byte(answer[0]) {
            Some(guest_link::RelayAnswer::Connected) => Ok(stream),
            Some(guest_link::RelayAnswer::Busy) => Err(GateError::Busy),
            _ => Err(GateError::Refused),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the guest-agent listens, in every slot.
pub fn control_address() -> SocketAddr {
    let address: Ipv4Addr = slot::GUEST_ADDRESS;
    SocketAddr::from((address, guest_link::CONTROL_PORT))
}
