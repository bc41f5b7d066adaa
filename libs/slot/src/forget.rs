//! Deletes connections of slots that are gone from the root namespace's connection table. What is left there would take
//! room and ports of the host for up to five days, and a later slot of the same address would meet it.
//!
//! The root namespace's rules mark every connection with its slot's outer address. The kernel deletes by mark and
//! mask in one message (`CTA_MARK` of ctnetlink, Linux `include/uapi/linux/netfilter/nfnetlink_conntrack.h`); a listing,
//! filtered or not, would visit the whole table with interrupts' work held up.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use model::Subnet;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

/// The kernel answers before the message has been sent; this is for a kernel in trouble.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER: usize = 16;
const MESSAGE: usize = HEADER + 4 + 8 + 8;

/// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`.
const DELETE: u16 = 0x0102;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const FLAGS: u16 = 0x5;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
const AF_INET: u8 = 2;
/// Type of an answer: an error number, zero for none.
const NLMSG_ERROR: u16 = 2;

/// Deletes the connections of all slots whose outer addresses lie in these networks.
pub(crate) async fn forget(networks: Vec<Subnet>) -> io::Result<()> {
    let work = move || {
        let socket = open()?;
        networks.iter().try_for_each(|network| delete(&socket, network))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

fn delete(socket: &OwnedFd, network: &Subnet) -> io::Result<()> {
    send(socket, &message(network), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(socket, &mut answer[..], RecvFlags::empty())?;
    match error_number(&answer[..length]) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer to a deletion")),
    }
}

fn message(network: &Subnet) -> Vec<u8> {
    // A network of no length would be every connection of the machine; settings have none (`PoolSettings::check`).
    let mask = u32::MAX.checked_shl(32 - u32::from(network.length)).unwrap_or(0);
    let mut message = Vec::with_capacity(MESSAGE);
    message.extend_from_slice(&(MESSAGE as u32).to_ne_bytes());
    message.extend_from_slice(&DELETE.to_ne_bytes());
    message.extend_from_slice(&FLAGS.to_ne_bytes());
    // Sequence and port: there is one message at a time.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[AF_INET, 0, 0, 0]);
    for (attribute, value) in [(CTA_MARK, network.address.to_bits()), (CTA_MARK_MASK, mask)] {
        message.extend_from_slice(&8u16.to_ne_bytes());
        message.extend_from_slice(&attribute.to_ne_bytes());
        message.extend_from_slice(&value.to_be_bytes());
    }
    message
}

fn error_number(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(number.saturating_neg())
}
