//! A shell's process, held by a descriptor: whoever reaps it first, no signal ever reaches another one.
#![allow(unsafe_code)] // pidfds are plain system calls

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How long a shell whose terminal hung up may take to end before it is killed, and after that before it is let be.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A child process. Dropping it waits for its end, kills it when that takes too long, and reaps it.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Process {
    /// Takes hold of a child just started.
    pub fn of(pid: Pid) -> io::Result<Self> {
        // SAFETY: pidfd_open with integer arguments.
        let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let number = Errno::result(opened)?;
        let number = i32::try_from(number).expect("descriptors are small");
        // SAFETY: the kernel made this descriptor for us and nothing else owns it.
        Ok(Self { pidfd: unsafe { OwnedFd::from_raw_fd(number) } })
    }

    /// True once it has ended.
    pub fn has_ended(&self) -> bool {
        self.ends_within(PollTimeout::ZERO)
    }

    fn ends_within(&self, time: PollTimeout) -> bool {
        let mut set = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut set, time) {
                Ok(count) => return count > 0,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn kill(&self) {
        let (number, no_info) = (self.pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: pidfd_send_signal with integers and no siginfo. One that has ended is past it.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, no_info, 0) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let patience = PollTimeout::try_from(END_TIMEOUT).expect("seconds fit");
        if !self.ends_within(patience) {
            self.kill();
            self.ends_within(patience);
        }
        // The thread that waits for the app reaps every child and may have been faster.
        let _ = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }
}
