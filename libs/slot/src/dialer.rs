//! Sockets that live in a slot and are used from outside.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::frozen::FrozenTcp;
use crate::inside::{Inside, Namespace};

/// Waiting connections of a listener in a slot.
const BACKLOG: u32 = 64;

/// Opens sockets in one slot. Cheap to clone. A clone kept after the slot was recycled reaches nothing.
#[derive(Debug, Clone)]
pub struct Dialer {
    namespace: Arc<Namespace>,
    inside: Inside,
}

impl Dialer {
    pub(crate) fn new(namespace: Arc<Namespace>, inside: Inside) -> Self {
        Self { namespace, inside }
    }

    /// Connects from inside the slot, without Nagle's delay.
    ///
    /// # Errors
    /// What the connection attempt met: `ConnectionRefused` when nothing listens, `TimedOut` after `timeout`.
    pub async fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let attempt = async {
            let stream = self.tcp_socket().await?.connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        tokio::time::timeout(timeout, attempt).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// A frozen connection, going on inside the slot.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn thaw(&self, frozen: &FrozenTcp) -> io::Result<TcpStream> {
        let socket = self.std_socket().await?;
        frozen.thaw_into(&socket)?;
        TcpStream::from_std(socket)
    }

    /// A UDP socket bound inside the slot.
    pub async fn bind_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.inside.run(&self.namespace, move || StdUdpSocket::bind(address)).await?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    /// A TCP listener inside the slot.
    pub async fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.tcp_socket().await?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }

    async fn tcp_socket(&self) -> io::Result<TcpSocket> {
        // An unconnected socket: the conversion only carries the descriptor over.
        Ok(TcpSocket::from_std_stream(self.std_socket().await?))
    }

    async fn std_socket(&self) -> io::Result<StdTcpStream> {
        let made = self.inside.run(&self.namespace, || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?)
        });
        Ok(StdTcpStream::from(made.await?))
    }
}
