//! The way into a running guest. A gate lives as long as one run of the
//! engine: when it closes, every connection through it is cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::host::Host;

/// Longest wait for the guest's kernel to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the relay's answer.
const RELAY_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes through a microVM's tunnel, stamped by connections and read by the
/// idle timer. Monotonic milliseconds come from the one clock of `Host`.
#[derive(Debug, Default)]
pub struct Activity {
    bytes: AtomicU64,
    last_ms: AtomicU64,
    last_wall_ms: AtomicU64,
}

impl Activity {
    /// Counts `bytes` moved now. Zero bytes stamp the time alone.
    pub fn stamp(&self, bytes: u64, host: &Host) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last_ms.fetch_max(host.monotonic_ms(), Ordering::Relaxed);
        self.last_wall_ms.fetch_max(host.now_ms(), Ordering::Relaxed);
    }

    /// Bytes of earlier runs of the agent.
    pub fn restore(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes in both directions.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Monotonic time of the last activity.
    pub fn last_ms(&self) -> u64 {
        self.last_ms.load(Ordering::Relaxed)
    }

    /// Wall-clock time of the last activity; `None` before the first.
    pub fn last_wall_ms(&self) -> Option<u64> {
        match self.last_wall_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(ms),
        }
    }
}

/// Why a guest port was not reached.
#[derive(Debug, PartialEq, Eq)]
pub enum GateError {
    /// The gate has closed; look at the microVM's state again.
    Closed,
    /// Nothing listens on the port.
    Refused,
    Busy,
    /// The guest does not answer.
    Silent,
}

/// The way into one run of a guest.
pub struct Gate {
    dialer: slot::Dialer,
    closed: CancellationToken,
    connections: Arc<Semaphore>,
}

/// A connection to a guest port.
pub struct GuestStream {
    pub stream: TcpStream,
    /// Cancelled when the connection must be cut.
    pub closed: CancellationToken,
    /// Its place among the microVM's connections.
    pub permit: OwnedSemaphorePermit,
}

impl Gate {
    /// A gate through `dialer` for at most `connections_max` connections.
    pub fn new(dialer: slot::Dialer, connections_max: usize) -> Self {
        Self {
            dialer,
            closed: CancellationToken::new(),
            connections: Arc::new(Semaphore::new(connections_max)),
        }
    }

    /// Cuts every connection; new ones are refused.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Connects to a guest port: straight to the guest's address, and where
    /// nothing listens there through the relay, for apps on guest loopback.
    ///
    /// # Errors
    /// [`GateError`].
    pub async fn connect(&self, port: u16) -> Result<GuestStream, GateError> {
        let permit = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| GateError::Busy)?;
        let attempt = async {
            match self.dial(port).await {
                Err(GateError::Refused) => self.relay(port).await,
                other => other,
            }
        };
        let stream = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(GateError::Closed),
            stream = attempt => stream?,
        };
        Ok(GuestStream { stream, closed: self.closed.clone(), permit })
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

/// Where the guest-agent listens, in every slot.
pub fn control_address() -> SocketAddr {
    let address: Ipv4Addr = slot::GUEST_ADDRESS;
    SocketAddr::from((address, guest_link::CONTROL_PORT))
}
