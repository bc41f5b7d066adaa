//! One shell session: bytes between a WebSocket and a terminal, until one of them ends.
//!
//! One thread polls the socket, the terminal and the process. Each side is read only while the other takes what it
//! was given: a client that reads slowly stops the shell's output, a program that does not read stops the client's input.

use std::io::{self, Read as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use super::process::Process;
use super::pty::{Output, Pty};
use super::{MESSAGE_BYTES_MAX, control};

/// Reason of the close when the shell has ended.
const EXITED: &str = "shell exited";

/// Most bytes of a close's reason: a control frame has 125, and the code takes two.
const REASON_BYTES_MAX: usize = 123;

/// How long the client may take to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what a shell wrote before its end may take to reach the client.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes sent after a shell's end: jobs that it left behind may write for ever.
const LAST_OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Most messages of a turn, so that what the terminal shows is sent to a client that types without end, too.
const TURN_MESSAGES_MAX: usize = 64;

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Exited,
    /// The client sent a close.
    Closed,
    TooLarge,
    /// The connection broke.
    Lost,
}

/// What is left to send once the shell has ended.
struct Last {
    deadline: Instant,
    bytes: usize,
}

pub struct Session {
    socket: WebSocket<TcpStream>,
    pty: Pty,
    process: Process,
    /// Bytes that the terminal has not taken yet. Below one message.
    input: Vec<u8>,
    /// True while the socket has not taken all that it was given.
    unsent: bool,
    /// True once nobody has the terminal open.
    deserted: bool,
    last: Option<Last>,
}

impl Session {
    /// A session on a socket that does not block.
    pub fn new(socket: WebSocket<TcpStream>, pty: Pty, process: Process) -> Self {
        Self { socket, pty, process, input: Vec::new(), unsent: false, deserted: false, last: None }
    }

    /// Serves until the shell has ended or the client has gone.
    pub fn run(mut self) {
        let end = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(_) => break End::Lost,
            }
        };
        let Self { socket, pty, process, .. } = self;
        // The terminal first: its hang-up is what ends a shell whose client has gone.
        drop(pty);
        part(socket, end);
        drop(process);
    }

    /// Moves what can be moved, then waits for more.
    fn turn(&mut self) -> io::Result<Option<End>> {
        let more = match self.take_messages() {
            Ok(more) => more,
            Err(end) => return Ok(Some(end)),
        };
        // Asked first: what a shell wrote before its end is there to be read afterwards.
        let ended = self.process.has_ended();
        if ended && self.last.is_none() {
            self.last = Some(Last { deadline: Instant::now() + LAST_OUTPUT_TIMEOUT, bytes: 0 });
        }
        let moved = match self.send_output() {
            Ok(moved) => moved,
            Err(_) => return Ok(Some(End::Lost)),
        };
        if let Some(last) = &self.last {
            let all_read = !self.unsent && (!moved || last.bytes > LAST_OUTPUT_BYTES_MAX);
            if all_read || Instant::now() > last.deadline {
                return Ok(Some(End::Exited));
            }
        }
        if more || (moved && !self.unsent) {
            // There may be more at once.
            return Ok(None);
        }
        self.wait()
    }

    /// Types what the client sent until the socket is empty or the terminal takes no more; whether there may be more at once.
    /// Messages that arrive together are read together, and the poll does not tell of those that are left.
    fn take_messages(&mut self) -> Result<bool, End> {
        self.type_input();
        for _ in 0..TURN_MESSAGES_MAX {
            if !self.input.is_empty() {
                return Ok(false);
            }
            match self.socket.read() {
                Ok(Message::Text(text)) => match control::resize(text.as_str()) {
                    // A terminal that nobody has open has no size to set.
                    Some((columns, rows)) => drop(self.pty.resize(columns, rows)),
                    None => self.input.extend_from_slice(text.as_bytes()),
                },
                Ok(Message::Binary(bytes)) => self.input.extend_from_slice(&bytes),
                Ok(Message::Close(_)) => return Err(End::Closed),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(Error::Capacity(_)) => return Err(End::TooLarge),
                Err(_) => return Err(End::Lost),
            }
            self.type_input();
        }
        Ok(self.input.is_empty())
    }

    fn type_input(&mut self) {
        if self.deserted || self.last.is_some() {
            self.input.clear();
        }
        if !self.input.is_empty() {
            // What a terminal refuses for good is lost, as it is when typed into one whose program has gone.
            let count = self.pty.write(&self.input).unwrap_or(self.input.len());
            self.input.drain(..count);
        }
    }

    /// Sends one reading of the terminal, if the socket has taken the one before; true when there was one.
    fn send_output(&mut self) -> Result<bool, Error> {
        if self.unsent {
            self.unsent = blocked(self.socket.flush())?;
        }
        if self.unsent || self.deserted {
            return Ok(false);
        }
        match self.pty.read()? {
            Output::Quiet => Ok(false),
            Output::Ended => {
                self.deserted = true;
                Ok(false)
            }
            Output::Bytes(bytes) => {
                if let Some(last) = &mut self.last {
                    last.bytes += bytes.len();
                }
                self.unsent = blocked(self.socket.send(Message::binary(bytes)))?;
                Ok(true)
            }
        }
    }

    /// Waits until something can be moved; an end when the client has gone while its input cannot be read.
    fn wait(&mut self) -> io::Result<Option<End>> {
        let reading = self.input.is_empty();
        let mut of_socket =
            if reading { PollFlags::POLLIN } else { PollFlags::from_bits_retain(libc::POLLRDHUP) };
        of_socket.set(PollFlags::POLLOUT, self.unsent);
        let mut of_pty = PollFlags::empty();
        of_pty.set(PollFlags::POLLIN, !self.unsent && !self.deserted);
        of_pty.set(PollFlags::POLLOUT, !reading);
        let mut set = vec![PollFd::new(self.socket.get_ref().as_fd(), of_socket)];
        // With nothing to wait for, an end or a hang-up would still wake us for ever.
        let pty = (!of_pty.is_empty()).then(|| {
            set.push(PollFd::new(self.pty.as_fd(), of_pty));
            set.len() - 1
        });
        if self.last.is_none() {
            set.push(PollFd::new(self.process.as_fd(), PollFlags::POLLIN));
        }
        let timeout = self.last.as_ref().map_or(PollTimeout::NONE, |last| {
            let left = last.deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut set, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // POLLRDHUP is not among the flags that nix knows, so `None` is the peer's end too.
        let gone =
            set[0].revents().is_none_or(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR));
        let hung_up = pty
            .and_then(|index| set[index].revents())
            .is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if hung_up {
            // Nobody will read it.
            self.input.clear();
        }
        Ok((gone && !reading).then_some(End::Lost))
    }
}

/// Whether the socket has not taken all of it.
fn blocked(sent: Result<(), Error>) -> Result<bool, Error> {
    match sent {
        Ok(()) => Ok(false),
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Leaves the client in the way that the session ended.
fn part(mut socket: WebSocket<TcpStream>, end: End) {
    match end {
        End::Exited => close(socket, CloseCode::Normal, EXITED),
        End::Closed => {
            // The answer to the client's close.
            let _ = socket.get_ref().set_nonblocking(false);
            let _ = socket.flush();
        }
        End::TooLarge => {
            let reason = format!("a message is longer than {MESSAGE_BYTES_MAX} bytes");
            close(socket, CloseCode::Size, &reason);
        }
        End::Lost => {}
    }
}

/// Closes with a code and a reason, and gives the client a while to answer.
pub fn close(mut socket: WebSocket<TcpStream>, code: CloseCode, reason: &str) {
    let stream = socket.get_ref();
    if stream.set_nonblocking(false).is_err() || stream.set_read_timeout(Some(CLOSE_TIMEOUT)).is_err() {
        return;
    }
    let mut reason = reason.to_owned();
    guest_link::truncate_text(&mut reason, REASON_BYTES_MAX);
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    if socket.close(Some(CloseFrame { code, reason: reason.into() })).is_err() || socket.flush().is_err() {
        return;
    }
    while Instant::now() < deadline {
        match socket.read() {
            Ok(_) => {}
            Err(Error::Capacity(_)) => return discard(socket.get_ref(), deadline),
            Err(_) => return,
        }
    }
}

/// Reads a stream to its end. Closing it with bytes unread would reset it, and the close be lost with it.
fn discard(mut stream: &TcpStream, deadline: Instant) {
    let _ = stream.shutdown(Shutdown::Write);
    let mut bytes = vec![0; 16 * 1024];
    while Instant::now() < deadline && stream.read(&mut bytes).is_ok_and(|count| count > 0) {}
}
