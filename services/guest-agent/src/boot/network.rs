//! The guest's link, the same inside every microVM: 169.254.100.2/30 on eth0, the
//! host at 169.254.100.1. Done with the classic ioctls; there is no `ip` here.
#![allow(unsafe_code)] // interface and route requests are ioctls

use std::fs;
use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen as start_listening, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{Error, Step as _};

pub const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);
/// The host's side of the link.
pub const HOST: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 1);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);

const BACKLOG: i32 = 16;

/// How long the kernel keeps a connection without a first byte from the agent, in seconds.
const DEFER_SECONDS: libc::c_int = 1;

/// Kernel settings before the link comes up: no IPv6 chatter on it, and what
/// container runtimes give apps without CAP_NET_BIND_SERVICE and CAP_NET_RAW.
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv6/conf/eth0/disable_ipv6", "1"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // A peer that a snapshot left behind is gone for good; do not probe it for long.
    ("net/ipv4/tcp_retries2", "8"),
];

/// Brings up loopback and the link.
pub fn bring_up() -> Result<(), Error> {
    for (name, value) in SYSCTLS {
        // Best effort: none of them decides whether the guest works.
        let _ = fs::write(format!("/proc/sys/{name}"), value);
    }
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .step("open a socket")?;
    set_up(&control, "lo")?;
    // A guest without a link has nobody to serve, so this is an error too.
    request(&control, libc::SIOCSIFADDR, &address_request("eth0", GUEST), "address of eth0")?;
    request(&control, libc::SIOCSIFNETMASK, &address_request("eth0", NETMASK), "netmask of eth0")?;
    set_up(&control, "eth0")?;
    default_route(&control)
}

/// A listener on the guest's address. What is set here, accepted connections inherit.
///
/// A connection shows up with its first bytes, which on a wake saves the agent one turn
/// of its loop; one that sends nothing shows up after about a second.
pub fn listen(port: u16, send_timeout: Duration) -> io::Result<TcpListener> {
    let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    setsockopt(&listener, sockopt::SendTimeout, &TimeVal::seconds(send_timeout.as_secs().cast_signed()))?;
    // SAFETY: the option takes one int, which lives until the call returns.
    let deferred = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            std::ptr::from_ref(&DEFER_SECONDS).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(deferred)?;
    bind(listener.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(GUEST, port)))?;
    start_listening(&listener, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(listener))
}

fn named(interface: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain old data; all zero is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: sockaddr_in is plain old data.
    let mut inet: libc::sockaddr_in = unsafe { zeroed() };
    inet.sin_family = libc::AF_INET as libc::sa_family_t;
    inet.sin_addr.s_addr = u32::from_ne_bytes(address.octets());
    // SAFETY: both are 16 bytes of plain data, and the kernel reads the one as the other.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) }
}

fn address_request(interface: &str, address: Ipv4Addr) -> libc::ifreq {
    let mut request = named(interface);
    request.ifr_ifru.ifru_addr = socket_address(address);
    request
}

fn set_up(control: &OwnedFd, interface: &str) -> Result<(), Error> {
    let mut up = named(interface);
    up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    request(control, libc::SIOCSIFFLAGS, &up, &format!("bring up {interface}"))
}

fn default_route(control: &OwnedFd) -> Result<(), Error> {
    // SAFETY: rtentry is plain old data; null pointers in it mean "not given".
    let mut route: libc::rtentry = unsafe { zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(HOST);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    request(control, libc::SIOCADDRT, &route, "default route")
}

fn request<T>(control: &OwnedFd, code: libc::c_ulong, argument: &T, step: &str) -> Result<(), Error> {
    // SAFETY: every caller pairs the code with the structure the kernel expects for
    // it, and the kernel only reads from it.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), code, std::ptr::from_ref(argument)) };
    Errno::result(result).step(step).map(drop)
}
