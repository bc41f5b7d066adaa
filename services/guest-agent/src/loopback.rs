//! Where on guest loopback an app's port may be reached.
//!
//! Apps bind `127.0.0.1`, or `::1` (what `localhost` means to Node), or another address of 127.0.0.0/8. The two usual ones
//! are tried without a look at the kernel's table, so that a request to a usual app does not pay for the unusual one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::tcp_table::listening_addresses;

/// Most addresses besides the usual two that are tried for one connection.
const OTHERS_MAX: usize = 4;

/// The addresses of one port, in the order in which they are tried.
#[derive(Debug)]
pub struct Addresses {
    port: u16,
    next: Next,
}

#[derive(Debug)]
enum Next {
    V4,
    V6,
    Table,
    Others(std::vec::IntoIter<SocketAddr>),
}

impl Addresses {
    pub fn of(port: u16) -> Self {
        Self { port, next: Next::V4 }
    }

    fn others(&self) -> Vec<SocketAddr> {
        let usual = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let other = |address: &SocketAddr| {
            address.port() == self.port && address.ip().is_loopback() && !usual.contains(&address.ip())
        };
        listening_addresses().into_iter().filter(other).take(OTHERS_MAX).collect()
    }
}

impl Iterator for Addresses {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        loop {
            match &mut self.next {
                Next::V4 => {
                    self.next = Next::V6;
                    return Some((Ipv4Addr::LOCALHOST, self.port).into());
                }
                Next::V6 => {
                    self.next = Next::Table;
                    return Some((Ipv6Addr::LOCALHOST, self.port).into());
                }
                Next::Table => self.next = Next::Others(self.others().into_iter()),
                Next::Others(others) => return others.next(),
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::net::TcpListener;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket, sockopt,
    };

    use super::*;

    /// Listeners of every kind that only guest loopback reaches; those of IPv6 only where the machine has it.
    pub fn listeners() -> Vec<TcpListener> {
        let v4 = ["127.0.0.1:0", "127.0.0.2:0"].map(|address| TcpListener::bind(address).unwrap());
        let v6 = TcpListener::bind("[::1]:0").map(|own| [own, v6_only()]);
        v4.into_iter().chain(v6.into_iter().flatten()).collect()
    }

    /// Listens on every IPv6 address, and on no IPv4 address.
    fn v6_only() -> TcpListener {
        let stream = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&stream, sockopt::Ipv6V6Only, &true).unwrap();
        let any = std::net::SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0);
        bind(std::os::fd::AsRawFd::as_raw_fd(&stream), &SockaddrIn6::from(any)).unwrap();
        listen(&stream, Backlog::new(16).unwrap()).unwrap();
        TcpListener::from(stream)
    }

    #[test]
    fn the_usual_addresses_come_first_and_then_what_the_table_knows() {
        let listener = TcpListener::bind("127.0.0.9:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses: Vec<String> = Addresses::of(port).map(|address| address.to_string()).collect();
        let expected = ["127.0.0.1", "[::1]", "127.0.0.9"].map(|address| format!("{address}:{port}"));
        assert_eq!(addresses, expected);
    }
}
