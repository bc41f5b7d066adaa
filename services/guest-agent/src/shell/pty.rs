//! A pseudo-terminal: the agent holds the master, a shell has the terminal itself.
#![allow(unsafe_code)] // window sizes and controlling terminals are ioctls

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Bytes taken from a terminal at a time.
pub const READ_BYTES: usize = 16 * 1024;

/// What reading a terminal finds.
pub enum Output {
    Bytes(Vec<u8>),
    /// Nothing now.
    Quiet,
    /// Nobody has the terminal open any more.
    Ended,
}

/// The agent's end of a terminal. Dropping it hangs up: the shell and its foreground job get SIGHUP.
pub struct Pty {
    master: File,
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}

impl Pty {
    /// A new terminal, of no size, and its path in this devpts.
    pub fn open() -> io::Result<(Self, String)> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname_r(&master)?;
        Ok((Self { master: File::from(OwnedFd::from(master)) }, path))
    }

    /// Takes what was written to the terminal, without blocking.
    pub fn read(&mut self) -> io::Result<Output> {
        let mut bytes = vec![0; READ_BYTES];
        match self.master.read(&mut bytes) {
            Ok(0) => Ok(Output::Ended),
            Ok(count) => {
                bytes.truncate(count);
                Ok(Output::Bytes(bytes))
            }
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(Output::Ended),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Output::Quiet),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Output::Quiet),
            Err(error) => Err(error),
        }
    }

    /// Types bytes without blocking; how many there was room for.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.master.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            other => other,
        }
    }

    /// Sets the size; the foreground job gets SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the request reads one winsize, which lives until the call returns.
        let set =
            unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, std::ptr::from_ref(&size)) };
        Errno::result(set)?;
        Ok(())
    }
}

/// Makes the terminal of that path the standard streams and the controlling terminal of the calling process, which
/// leads a session without one. For the short life between fork and exec.
pub fn adopt(path: &str) -> io::Result<()> {
    let terminal = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: takes an integer; 0 is "do not take it from another session".
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)?;
    if terminal.as_raw_fd() <= 2 {
        // It took a free place among them itself and must stay open.
        std::mem::forget(terminal);
    }
    Ok(())
}
