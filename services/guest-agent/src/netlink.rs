//! TCP connections that a restore leaves without a peer, aborted (ECONNABORTED for the app), so that an app's stale
//! connections fail at once instead of hanging. A clone's are all that were open when its image was made: listed when that
//! snapshot is prepared. Those of a microVM that slept are what it opened itself: listed first thing after the wake, while
//! those that its host opened are carried across. New connections have other cookies and are never touched. Speaks
//! sock_diag; needs the modules inet_diag and tcp_diag, and without them does nothing.
#![allow(unsafe_code)] // netlink messages are plain structures read from bytes

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// Most connections of one snapshot that are aborted.
const CONNECTIONS_MAX: usize = 4096;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

/// Every state except TIME_WAIT (6), CLOSE (7), LISTEN (10) and NEW_SYN_RECV (12).
const LIVE_STATES: u32 = 0xffe & !(1 << 6 | 1 << 7 | 1 << 10);

/// `struct inet_diag_sockid`: ports and addresses in network order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct SocketId {
    source_port: [u8; 2],
    peer_port: [u8; 2],
    source: [u8; 16],
    peer: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Request {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    states: u32,
    id: SocketId,
}

/// `struct nlmsghdr` and the start of `struct inet_diag_msg`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Answer {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
}

/// Bytes of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// One connection, named so that no later one can be meant by it.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    family: u8,
    id: SocketId,
}

impl Connection {
    /// Whether the guest opened it. Whatever the host opens comes from its address, and not from the port where it answers.
    fn is_outbound(&self, host: Ipv4Addr) -> bool {
        address(self.family, &self.id.peer) != host || self.id.peer_port == DNS_PORT.to_be_bytes()
    }
}

/// Where the host answers, at its own address: names only.
const DNS_PORT: u16 = 53;

/// The connections to the outside that the guest opened.
pub fn outbound_connections(host: Ipv4Addr) -> nix::Result<Vec<Connection>> {
    let mut connections = outside_connections()?;
    connections.retain(|connection| connection.is_outbound(host));
    Ok(connections)
}

/// The connections that leave the guest, but for those to one of its ports, where one may just have been opened.
pub fn outside_connections_but(port: u16) -> nix::Result<Vec<Connection>> {
    let mut connections = outside_connections()?;
    connections.retain(|connection| connection.id.source_port != port.to_be_bytes());
    Ok(connections)
}

/// The connections that leave the guest (their peer is not loopback).
pub fn outside_connections() -> nix::Result<Vec<Connection>> {
    let netlink = open()?;
    let mut found = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let any = SocketId {
            source_port: [0; 2],
            peer_port: [0; 2],
            source: [0; 16],
            peer: [0; 16],
            interface: 0,
            cookie: [u32::MAX; 2],
        };
        request(&netlink, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, any)?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let count = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if count == 0 || !parse(&buffer[..count], &mut found) {
                break;
            }
        }
    }
    Ok(found)
}

/// Aborts connections. One that is gone already is fine.
pub fn abort(connections: &[Connection]) -> nix::Result<()> {
    if connections.is_empty() {
        return Ok(());
    }
    let netlink = open()?;
    for connection in connections {
        // Without NLM_F_ACK the kernel answers only errors, which pile up unread and are
        // dropped: the message is handled inside this call either way.
        request(&netlink, SOCK_DESTROY, NLM_F_REQUEST, connection.family, connection.id)?;
    }
    Ok(())
}

fn open() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)
}

fn request(netlink: &OwnedFd, kind: u16, flags: u16, family: u8, id: SocketId) -> nix::Result<()> {
    let request = Request {
        length: size_of::<Request>() as u32,
        kind,
        flags,
        sequence: 1,
        port: 0,
        family,
        protocol: libc::IPPROTO_TCP as u8,
        extensions: 0,
        padding: 0,
        states: LIVE_STATES,
        id,
    };
    // SAFETY: Request has no padding bytes (checked by a test), so all of it is initialised.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(&request).cast::<u8>(), size_of::<Request>())
    };
    send(netlink.as_raw_fd(), bytes, MsgFlags::empty()).map(drop)
}

/// Takes the connections out of one datagram; false when the dump has ended.
fn parse(mut bytes: &[u8], found: &mut Vec<Connection>) -> bool {
    while let (Some(length), Some(kind)) = (bytes.first_chunk::<4>(), bytes.get(4..6)) {
        let length = u32::from_ne_bytes(*length) as usize;
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        if length < HEADER_BYTES || length > bytes.len() || matches!(kind, NLMSG_DONE | NLMSG_ERROR) {
            return false;
        }
        if kind == SOCK_DIAG_BY_FAMILY && length >= size_of::<Answer>() && found.len() < CONNECTIONS_MAX {
            // SAFETY: at least size_of::<Answer>() bytes are there, and any bytes are a valid Answer.
            let answer = unsafe { bytes.as_ptr().cast::<Answer>().read_unaligned() };
            if !address(answer.family, &answer.id.peer).is_loopback() {
                found.push(Connection { family: answer.family, id: answer.id });
            }
        }
        // Messages are aligned to four bytes.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

fn address(family: u8, bytes: &[u8; 16]) -> IpAddr {
    if i32::from(family) == libc::AF_INET {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
    } else {
        Ipv6Addr::from(*bytes).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_the_kernels() {
        assert_eq!((size_of::<SocketId>(), size_of::<Request>()), (48, 72));
        // `struct inet_diag_msg` is 72 bytes; what follows the id is not read.
        assert_eq!(size_of::<Answer>(), HEADER_BYTES + 52);
    }

    #[test]
    fn cut_and_hostile_datagrams_end_the_dump() {
        let mut found = Vec::new();
        for bytes in [&[][..], &[0; 3], &[0; 16], &[255; 40], &[100, 0, 0, 0, 20, 0, 0, 0]] {
            parse(bytes, &mut found);
        }
        assert!(found.is_empty());
    }

    fn v4(address: Ipv4Addr) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address.octets());
        bytes
    }

    #[test]
    fn loopback_peers_stay() {
        let inet6 = libc::AF_INET6 as u8;
        let inet = libc::AF_INET as u8;
        for (family, peer, expected) in [
            (inet, v4(Ipv4Addr::LOCALHOST), true),
            (inet, v4(Ipv4Addr::new(10, 0, 0, 1)), false),
            (inet6, Ipv6Addr::LOCALHOST.octets(), true),
            (inet6, Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets(), true),
            (inet6, Ipv4Addr::new(1, 1, 1, 1).to_ipv6_mapped().octets(), false),
        ] {
            assert_eq!(address(family, &peer).is_loopback(), expected);
        }
    }

    #[test]
    fn what_the_host_opened_is_not_outbound() {
        let host = Ipv4Addr::new(169, 254, 100, 1);
        let outbound = |family: i32, peer: [u8; 16], peer_port: u16| {
            let id = SocketId {
                source_port: 8080u16.to_be_bytes(),
                peer_port: peer_port.to_be_bytes(),
                source: [0; 16],
                peer,
                interface: 0,
                cookie: [0; 2],
            };
            Connection { family: family as u8, id }.is_outbound(host)
        };
        for (peer, peer_port, expected) in
            [(host, 40_000, false), (host, 53, true), (Ipv4Addr::new(10, 0, 0, 1), 40_000, true)]
        {
            assert_eq!(outbound(libc::AF_INET, v4(peer), peer_port), expected, "{peer}:{peer_port}");
            let mapped = peer.to_ipv6_mapped().octets();
            assert_eq!(outbound(libc::AF_INET6, mapped, peer_port), expected, "{peer}:{peer_port} mapped");
        }
    }
}
