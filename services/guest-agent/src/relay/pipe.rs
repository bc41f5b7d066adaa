//! One direction of a relayed connection: a bounded buffer between two
//! non-blocking streams, and the half-close behind it.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

/// Bytes in flight in one direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// A direction; the streams are given at each step.
pub struct Pipe {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    ended: bool,
    shut: bool,
    toward: Toward,
}

/// The end that a direction leads to, which decides what it means when one of its ends fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    /// Where the output fails the connection is over.
    Host,
    /// An app that reads no more may still have something to say: what comes is thrown away until it has.
    App,
}

impl Pipe {
    /// An empty, open direction.
    pub fn new(toward: Toward) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into();
        Self { buffer, start: 0, end: 0, ended: false, shut: false, toward }
    }

    /// True while it makes sense to wait for input.
    pub fn wants_input(&self) -> bool {
        !self.ended && self.start == self.end
    }

    /// True while output waits for room.
    pub fn has_output(&self) -> bool {
        self.start < self.end
    }

    /// True once everything, the end included, has been passed on.
    pub fn finished(&self) -> bool {
        self.shut
    }

    /// Moves what can be moved without blocking.
    pub fn pump(&mut self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        while !self.shut {
            if self.start == self.end {
                if self.ended {
                    self.accept(to.shutdown(Shutdown::Write))?;
                    self.shut = true;
                    return Ok(());
                }
                let read = from.read(&mut self.buffer);
                match not_blocked(self.end_of(read))? {
                    None => return Ok(()),
                    Some(count) => {
                        (self.start, self.end) = (0, count);
                        self.ended = count == 0;
                    }
                }
            } else {
                let written = not_blocked(to.write(&self.buffer[self.start..self.end]));
                match self.accept(written)? {
                    Some(None) => return Ok(()),
                    Some(Some(count)) => self.start += count,
                    None => self.start = self.end,
                }
            }
        }
        Ok(())
    }

    /// An app that closes without having read everything resets its connection, behind its answer. Whether that is met here or by
    /// the direction that writes to it is a matter of moments, and both mean the end of what it says.
    fn end_of(&self, read: io::Result<usize>) -> io::Result<usize> {
        match read {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && self.toward == Toward::Host => {
                Ok(0)
            }
            other => other,
        }
    }

    /// What the output says; `None` when it takes no more and that is no reason to end.
    fn accept<T>(&self, result: io::Result<T>) -> io::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(_) if self.toward == Toward::App => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn not_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
