//! A slot in somebody's hands.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};

use crate::dialer::Dialer;
use crate::relay::Relay;
use crate::settings::Egress;

/// A taken slot. Dropping it stops the resolver relay and leaves the namespace
/// for a later [`Pool::adopt`](crate::Pool::adopt); [`Pool::recycle`](crate::Pool::recycle) removes it.
#[derive(Debug)]
pub struct Slot {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) egress: Egress,
    pub(crate) dialer: Dialer,
    pub(crate) relay: Option<Relay>,
}

impl Slot {
    /// Number of the slot within its pool.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Name of its namespace under `/run/netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its guest may reach.
    #[must_use]
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// Opens sockets in the slot, for tasks of their own.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// Connects from inside the slot; see [`Dialer::connect`].
    ///
    /// # Errors
    /// What the attempt met; `TimedOut` after `timeout`.
    pub async fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.dialer.connect(address, timeout).await
    }

    /// A UDP socket bound inside the slot.
    pub async fn bind_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.dialer.bind_udp(address).await
    }
}
