//! TCP connections that outlive their socket: while a guest sleeps, the host's end of a connection is a few numbers and the
//! bytes in its queues, and when the guest wakes, in another slot or on another host, a new socket goes on from there. The
//! guest's end is in the guest's memory and notices nothing but a pause.
//!
//! The kernel's interface is `TCP_REPAIR` (tcp(7) does not describe it; Linux `include/uapi/linux/tcp.h` does). It needs
//! `CAP_NET_ADMIN`.
#![allow(unsafe_code)] // socket options that no safe wrapper knows

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use serde::{Deserialize, Serialize};

/// Most bytes in either queue of a connection that can be frozen: what sockets of this kernel hold by default.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;

const TCP_REPAIR: libc::c_int = 19;
const TCP_REPAIR_QUEUE: libc::c_int = 20;
const TCP_QUEUE_SEQ: libc::c_int = 21;
const TCP_REPAIR_OPTIONS: libc::c_int = 22;
const TCP_TIMESTAMP: libc::c_int = 24;
const TCP_REPAIR_WINDOW: libc::c_int = 29;

const REPAIR_ON: libc::c_int = 1;
const REPAIR_OFF: libc::c_int = 0;
/// Off, without telling the peer: for a socket that was only looked at.
const REPAIR_OFF_QUIETLY: libc::c_int = -1;

const OPTION_MSS: u32 = 2;
const OPTION_WINDOW_SCALE: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMPS: u32 = 8;
/// Bits of `tcpi_options`.
const INFO_TIMESTAMPS: u8 = 1;
const INFO_SACK: u8 = 2;
const INFO_WINDOW_SCALE: u8 = 4;
/// Segments that a new connection sends before the first acknowledgement (ten, RFC 6928), with something to spare.
const SEGMENTS_AT_ONCE: u32 = 8;
const STATE_ESTABLISHED: u8 = 1;
/// The guest has closed its half; ours is open.
const STATE_CLOSE_WAIT: u8 = 8;
/// Bytes not sent yet (`linux/sockios.h`).
const SIOCOUTQNSD: libc::c_ulong = 0x894B;
/// Which buffers keep the size they were set to (`asm-generic/socket.h`).
const SO_BUF_LOCK: libc::c_int = 72;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Queue {
    Receive = 1,
    Send = 2,
}

/// `struct tcp_repair_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
struct Window {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

/// An established connection without its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenTcp {
    local: SocketAddrV4,
    remote: SocketAddrV4,
    /// Sequence number of the first byte in the send queue.
    send_seq: u32,
    /// What was written and not acknowledged by the guest.
    send_queue: Vec<u8>,
    /// How many of its last bytes were never sent.
    unsent: usize,
    /// Sequence number of the first byte in the receive queue.
    receive_seq: u32,
    /// What the guest has sent and nobody has read.
    receive_queue: Vec<u8>,
    mss: u32,
    /// The guest's scale and ours, when both are scaled.
    window_scales: Option<(u8, u8)>,
    sack: bool,
    /// Our clock as the guest has last seen it, when there are timestamps.
    timestamp: Option<u32>,
    window: Window,
}

/// A connection whose guest stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frozen {
    /// It can go on when the guest wakes.
    Open(FrozenTcp),
    /// The guest has said its last, of which nobody has read this.
    Closed(Vec<u8>),
}

/// Copies the state of a connected socket. The socket stays as it is; the copy is of use as long as neither end moves a byte,
/// so the guest must be standing still.
///
/// # Errors
/// When the connection is not (or no longer) open, but for the guest's half, a queue is longer than [`QUEUE_BYTES_MAX`], or the
/// kernel refuses.
pub fn freeze(socket: &impl AsFd) -> io::Result<Frozen> {
    let fd = socket.as_fd();
    set(fd, TCP_REPAIR, &REPAIR_ON)?;
    let frozen = copy_state(fd);
    set(fd, TCP_REPAIR, &REPAIR_OFF_QUIETLY)?;
    frozen
}

fn copy_state(fd: BorrowedFd<'_>) -> io::Result<Frozen> {
    let info: [u8; 8] = get(fd, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let [state, _, _, _, _, options, scales, _] = info;
    if state == STATE_CLOSE_WAIT {
        return Ok(Frozen::Closed(read_queue(fd, Queue::Receive, libc::FIONREAD)?.0));
    }
    if state != STATE_ESTABLISHED {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "the connection is closing"));
    }
    let (receive_queue, received_to) = read_queue(fd, Queue::Receive, libc::FIONREAD)?;
    let (send_queue, written_to) = read_queue(fd, Queue::Send, libc::TIOCOUTQ)?;
    let has = |bit| options & bit != 0;
    Ok(Frozen::Open(FrozenTcp {
        local: ipv4(rustix::net::getsockname(fd)?.try_into()?)?,
        remote: ipv4(rustix::net::getpeername(fd)?.ok_or(io::ErrorKind::NotConnected)?.try_into()?)?,
        send_seq: written_to.wrapping_sub(length(&send_queue)?),
        unsent: queued(fd, SIOCOUTQNSD)?.min(send_queue.len()),
        send_queue,
        receive_seq: received_to.wrapping_sub(length(&receive_queue)?),
        receive_queue,
        mss: get(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG)?,
        // Two bit fields in one byte: the peer's in the low half.
        window_scales: has(INFO_WINDOW_SCALE).then_some((scales & 0xf, scales >> 4)),
        sack: has(INFO_SACK),
        timestamp: if has(INFO_TIMESTAMPS) { Some(get(fd, libc::IPPROTO_TCP, TCP_TIMESTAMP)?) } else { None },
        window: get(fd, libc::IPPROTO_TCP, TCP_REPAIR_WINDOW)?,
    }))
}

impl FrozenTcp {
    /// Bytes in both queues.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.send_queue.len() + self.receive_queue.len()
    }

    /// Makes a fresh TCP socket this connection. It sends at once what was not sent yet, and shows the guest its window.
    ///
    /// # Errors
    /// What the kernel refused; the socket is of no further use.
    pub(crate) fn thaw_into(&self, socket: &impl AsFd) -> io::Result<()> {
        let fd = socket.as_fd();
        set(fd, TCP_REPAIR, &REPAIR_ON)?;
        rustix::net::sockopt::set_socket_reuseaddr(fd, true)?;
        rustix::net::bind(fd, &self.local)?;
        set_buffers(fd, self.send_queue.len(), self.receive_queue.len())?;
        set_sequence(fd, Queue::Send, self.send_seq)?;
        set_sequence(fd, Queue::Receive, self.receive_seq)?;
        // In repair this sends nothing.
        rustix::net::connect(fd, &self.remote)?;
        self.set_options(fd)?;
        write_queue(fd, Queue::Receive, &self.receive_queue)?;
        let (sent, unsent) = self.send_queue.split_at(self.sent_bytes());
        write_queue(fd, Queue::Send, sent)?;
        set(fd, TCP_REPAIR_WINDOW, &self.window)?;
        set(fd, TCP_REPAIR, &REPAIR_OFF)?;
        rustix::net::sockopt::set_tcp_nodelay(fd, true)?;
        write_all(fd, unsent)?;
        // What is in them stays; without this they would double with every sleep of a guest that does not read.
        set_buffers(fd, 0, 0)
    }

    /// How much of the send queue counts as under way. What does is sent again only when the first timeout of a new connection
    /// is over, a second, because whatever was under way is lost with the slot; so little counts as not sent yet. Not more than
    /// leaves at once: the guest may have had it before it slept and acknowledges it as soon as it is awake, and an
    /// acknowledgement of what was never sent is ignored.
    fn sent_bytes(&self) -> usize {
        let segments = self.mss.saturating_mul(SEGMENTS_AT_ONCE);
        let at_once = usize::try_from(segments.min(self.window.snd_wnd)).unwrap_or(usize::MAX);
        if self.send_queue.len() <= at_once { 0 } else { self.send_queue.len().saturating_sub(self.unsent) }
    }

    fn set_options(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        #[derive(Clone, Copy)]
        #[repr(C)]
        struct Option {
            code: u32,
            value: u32,
        }
        set(fd, TCP_REPAIR_OPTIONS, &Option { code: OPTION_MSS, value: self.mss })?;
        if let Some((guests, ours)) = self.window_scales {
            let value = u32::from(guests) | u32::from(ours) << 16;
            set(fd, TCP_REPAIR_OPTIONS, &Option { code: OPTION_WINDOW_SCALE, value })?;
        }
        if self.sack {
            set(fd, TCP_REPAIR_OPTIONS, &Option { code: OPTION_SACK, value: 0 })?;
        }
        if let Some(timestamp) = self.timestamp {
            set(fd, TCP_REPAIR_OPTIONS, &Option { code: OPTION_TIMESTAMPS, value: 0 })?;
            set(fd, TCP_TIMESTAMP, &timestamp)?;
        }
        Ok(())
    }
}

/// Buffers of a socket before the kernel sizes them by use, in bytes.
const BUFFER_BYTES: usize = 128 * 1024;

/// A fresh socket's buffers are small and grow with use; the frozen one's may have grown.
fn set_buffers(fd: BorrowedFd<'_>, send: usize, receive: usize) -> io::Result<()> {
    for (option, bytes) in [(libc::SO_SNDBUFFORCE, send), (libc::SO_RCVBUFFORCE, receive)] {
        let size = libc::c_int::try_from(bytes.max(BUFFER_BYTES)).map_err(|_| io::ErrorKind::FileTooLarge)?;
        set_at(fd, libc::SOL_SOCKET, option, &size)?;
    }
    // From here on the kernel sizes them again by itself.
    set_at(fd, libc::SOL_SOCKET, SO_BUF_LOCK, &0i32)
}

/// The bytes of a queue, and the sequence number after the last.
fn read_queue(fd: BorrowedFd<'_>, queue: Queue, count: libc::c_ulong) -> io::Result<(Vec<u8>, u32)> {
    set(fd, TCP_REPAIR_QUEUE, &(queue as libc::c_int))?;
    let end: u32 = get(fd, libc::IPPROTO_TCP, TCP_QUEUE_SEQ)?;
    let length = queued(fd, count)?;
    if length > QUEUE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("a queue of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    if length > 0 {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let (read, _) = rustix::net::recv(fd, &mut bytes[..], flags)?;
        if read != length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{read} of {length} queued bytes"),
            ));
        }
    }
    Ok((bytes, end))
}

fn set_sequence(fd: BorrowedFd<'_>, queue: Queue, sequence: u32) -> io::Result<()> {
    set(fd, TCP_REPAIR_QUEUE, &(queue as libc::c_int))?;
    set(fd, TCP_QUEUE_SEQ, &sequence)
}

/// In repair, what is written goes into the selected queue as if it had come or gone over the wire.
fn write_queue(fd: BorrowedFd<'_>, queue: Queue, bytes: &[u8]) -> io::Result<()> {
    set(fd, TCP_REPAIR_QUEUE, &(queue as libc::c_int))?;
    write_all(fd, bytes)
}

/// A socket of ours takes what the frozen one held; one that does not is a failure, not a wait.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::net::send(fd, bytes, rustix::net::SendFlags::DONTWAIT)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn ipv4(address: SocketAddr) -> io::Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "connections to guests are IPv4"))
        }
    }
}

fn queued(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: these requests write one int.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut count) } < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(count).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn set<T: Copy>(fd: BorrowedFd<'_>, name: libc::c_int, value: &T) -> io::Result<()> {
    set_at(fd, libc::IPPROTO_TCP, name, value)
}

fn set_at<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(mem::size_of::<T>()).expect("options are small");
    // SAFETY: the kernel reads `size` bytes of a plain value.
    let set =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), size) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option. `T` is made of integers only, so that every bit pattern is one.
fn get<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut size = libc::socklen_t::try_from(mem::size_of::<T>()).expect("options are small");
    // SAFETY: the kernel writes at most `size` bytes; what it leaves is zero.
    if unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut size) } < 0
    {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: initialised, and every bit pattern of an integer is valid.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests;
