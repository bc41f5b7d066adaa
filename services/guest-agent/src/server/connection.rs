//! One control connection: whole frames out under a lock, frames in as they come.

use std::io::{self, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use api::guest::v1::Failure;
use guest_link::frame::{self, Body, Frame, FrameError};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// Bytes taken from the stream at a time.
const RECEIVE_BYTES: usize = 16 * 1024;

/// The sending half; shared by everyone who answers.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    sending: Mutex<()>,
    /// True once nobody reads answers any more.
    retired: AtomicBool,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// Takes an accepted stream whose send timeout is set.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, sending: Mutex::new(()), retired: AtomicBool::new(false) }
    }

    /// Sends a frame. A host that does not take it loses the connection.
    pub fn send(&self, frame: &Frame) {
        let bytes = match frame::encode(frame) {
            Ok(bytes) => bytes,
            Err(error) => {
                // Every answer is bounded far below the limit.
                crate::console::say(&format!("an answer does not fit a frame: {error}"));
                return self.close();
            }
        };
        let sent = {
            let _sending = self.sending.lock();
            if self.is_retired() { Ok(()) } else { (&self.stream).write_all(&bytes) }
        };
        if sent.is_err() {
            self.close();
        }
    }

    /// Answers an exchange with a failure.
    pub fn fail(&self, exchange: u32, message: &str, invalid: bool) {
        let failure = Failure { message: message.to_owned(), invalid };
        self.send(&Frame { exchange, body: Some(Body::Failure(failure)) });
    }

    /// Marks it as one that nobody reads; sends nothing.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// True once nobody reads answers any more.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Ends it; a sender that is stuck in it comes back.
    pub fn close(&self) {
        self.retire();
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The receiving half; only the server's thread has it.
pub struct Receiver {
    connection: Arc<Connection>,
    buffer: Vec<u8>,
}

impl Receiver {
    pub fn new(connection: Arc<Connection>) -> Self {
        Self { connection, buffer: Vec::new() }
    }

    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Takes what has arrived, without blocking, and hands on whole frames; false when
    /// the host has closed the connection. The buffer stays below one frame and one read.
    pub fn receive(&mut self, mut take: impl FnMut(Frame)) -> Result<bool, FrameError> {
        let mut chunk = [0; RECEIVE_BYTES];
        loop {
            let count = match recv(self.connection.stream.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(Errno::EAGAIN) => return Ok(true),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            self.buffer.extend_from_slice(&chunk[..count]);
            let mut taken = 0;
            while let Some((frame, length)) = frame::split_first(&self.buffer[taken..])? {
                taken += length;
                take(frame);
            }
            self.buffer.drain(..taken);
            if count < chunk.len() {
                // Most likely all there is; the next poll tells, without a call that finds nothing.
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use api::guest::v1::StreamLogsRequest;

    use super::*;

    fn pair() -> (TcpStream, Arc<Connection>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (guest, _) = listener.accept().unwrap();
        guest.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        (host, Arc::new(Connection::new(guest)))
    }

    fn follow(exchange: u32) -> Frame {
        let body = Body::StreamLogsRequest(StreamLogsRequest { from_sequence: 1 });
        Frame { exchange, body: Some(body) }
    }

    fn receive_until(receiver: &mut Receiver, wanted: usize) -> Vec<u32> {
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let mut exchanges = Vec::new();
        while exchanges.len() < wanted && std::time::Instant::now() < deadline {
            assert!(receiver.receive(|frame| exchanges.push(frame.exchange)).unwrap());
        }
        exchanges
    }

    #[test]
    fn frames_arrive_whole_however_they_were_sent() {
        let (mut host, connection) = pair();
        let mut receiver = Receiver::new(connection);
        let bytes: Vec<u8> = (1..=3).flat_map(|exchange| frame::encode(&follow(exchange)).unwrap()).collect();
        host.set_nodelay(true).unwrap();
        for byte in &bytes {
            host.write_all(&[*byte]).unwrap();
        }
        assert_eq!(receive_until(&mut receiver, 3), [1, 2, 3]);
        host.write_all(&[0xff; 8]).unwrap();
        let error = loop {
            match receiver.receive(|_| {}) {
                Ok(open) => assert!(open),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, FrameError::TooLarge(_)));
    }

    #[test]
    fn a_host_that_takes_nothing_loses_the_connection() {
        let (_host, connection) = pair();
        for _ in 0..1000 {
            connection.fail(1, &"x".repeat(60_000), false);
            if connection.is_retired() {
                return;
            }
        }
        panic!("a full socket never ended the connection");
    }
}
