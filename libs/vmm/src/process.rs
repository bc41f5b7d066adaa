//! Engine processes: started so that they outlive this program, named so that they cannot be mistaken, and always reaped.
//!
//! A [`Process`] holds a pidfd, so signals and waits reach that process or nobody. One task per process waits for its end,
//! also when every other handle is gone: a process that was ours to reap never stays behind as a zombie.

mod spawn;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

pub(crate) use spawn::{Launch, Spawned, Stderr, spawn};

use crate::engine::Usage;
use crate::error::{Error, Result};

/// How long the kernel may take to end a killed process: it gives back gigabytes of memory, on a busy host.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// Unit of the times in `/proc/PID/stat`: fixed by Linux for all programs, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// Names one process for good: ids are reused, but not together with the start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessHandle {
    pub pid: u32,
    /// Start time in clock ticks since the host booted.
    pub start_time: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    /// It was not our child, so only the fact is known.
    Unknown,
}

pub(crate) struct Process {
    handle: ProcessHandle,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Takes hold of a running process; `None` when it is gone or its id is another process's now.
    pub(crate) fn adopt(handle: &ProcessHandle) -> Result<Option<Self>> {
        let Some(pidfd) = open_pidfd(handle.pid)? else {
            return Ok(None);
        };
        // The pidfd came first: if the start time is right now, the pidfd is of that very process.
        match stat(handle.pid) {
            Ok(stat) if stat.start_time == handle.start_time && stat.state != 'Z' => {
                Ok(Some(Self::watch(*handle, pidfd)?))
            }
            Ok(_) => Ok(None),
            Err(_) => Ok(None),
        }
    }

    /// Takes hold of a child that nobody has waited for yet.
    fn of_child(pid: u32) -> Result<Self> {
        let pidfd = open_pidfd(pid)?.ok_or(Error::Gone)?;
        let start_time = stat(pid).map_err(|e| Error::io(format!("read /proc/{pid}/stat"), e))?.start_time;
        Self::watch(ProcessHandle { pid, start_time }, pidfd)
    }

    fn watch(handle: ProcessHandle, pidfd: OwnedFd) -> Result<Self> {
        let pidfd = Arc::new(pidfd);
        let (sender, exit) = watch::channel(None);
        // SAFETY: the file behind the `Arc` stays open and the same until the `AsyncFd` is dropped.
        #[allow(unsafe_code)] // The trait bound cannot tell that a reference-counted file never changes.
        let waiting = unsafe { AsyncFd::register_with_interest(pidfd.clone(), Interest::READABLE) }
            .map_err(|e| Error::io("watch the engine process", e))?;
        tokio::spawn(async move {
            // A pidfd becomes readable once, at the end; an error can only mean that the runtime shuts down.
            if waiting.readable().await.is_ok() {
                sender.send_replace(Some(reap(waiting.get_ref())));
            }
        });
        Ok(Self { handle, pidfd, exit })
    }

    pub(crate) fn handle(&self) -> ProcessHandle {
        self.handle
    }

    /// Sends SIGKILL; a process that is gone already is no error.
    pub(crate) fn kill(&self) {
        // The only possible failures are "gone" and "not permitted", and a child cannot become foreign.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }

    pub(crate) async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Unknown),
            Err(_) => Exit::Unknown, // the runtime is shutting down
        }
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Kills and waits until the process is reaped.
    pub(crate) async fn stop(&self) -> Result<Exit> {
        self.kill();
        tokio::time::timeout(KILL_TIMEOUT, self.exited())
            .await
            .map_err(|_| Error::Timeout { step: "ending the engine process", limit: KILL_TIMEOUT })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let pid = self.handle.pid;
        let stat = stat(pid).map_err(|_| Error::Gone)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| Error::Gone)?;
        let kib = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
        };
        if stat.start_time != self.handle.start_time {
            return Err(Error::Gone);
        }
        Ok(Usage {
            cpu_seconds: stat.cpu_ticks as f64 / TICKS_PER_SECOND,
            anonymous_bytes: kib("RssAnon:") * 1024,
        })
    }
}

/// Kills the process unless it is let go; holds it while a machine is being made, so that an error or a dropped
/// future leaves nothing behind.
pub(crate) struct KillOnDrop(Option<Arc<Process>>);

impl KillOnDrop {
    pub(crate) fn new(process: Arc<Process>) -> Self {
        Self(Some(process))
    }

    pub(crate) fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill();
        }
    }
}

fn open_pidfd(pid: u32) -> Result<Option<OwnedFd>> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(e) => Err(Error::io("open the engine process", e)),
    }
}

fn reap(pidfd: &OwnedFd) -> Exit {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        },
        // Not our child: whoever adopted it reaps it.
        Ok(None) | Err(_) => Exit::Unknown,
    }
}

struct Stat {
    state: char,
    start_time: u64,
    cpu_ticks: u64,
}

fn stat(pid: u32) -> io::Result<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not the form of /proc/PID/stat"))
}

/// The second field is the program's name in brackets and may hold anything, so count from its last bracket.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.trim().parse::<u64>().ok(); // proc(5) counts from 1
    Some(Stat {
        state: fields.first()?.chars().next()?,
        start_time: number(22)?,
        cpu_ticks: number(14)? + number(15)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_any_program_name() {
        let text = "42 (a) S (b) R 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 987654 1000 1 2\n";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.start_time, stat.cpu_ticks), ('R', 987_654, 12));
        assert!(parse_stat("42 (x").is_none());
    }

    #[tokio::test]
    async fn a_reused_id_is_not_adopted() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let real = stat(child.id()).unwrap().start_time;
        let handle = |start_time| ProcessHandle { pid: child.id(), start_time };
        assert!(Process::adopt(&handle(real + 1)).unwrap().is_none());
        let process = Process::adopt(&handle(real)).unwrap().unwrap();
        assert!(!process.has_exited());
        assert_eq!(process.stop().await.unwrap(), Exit::Signal(9));
        assert_eq!(process.stop().await.unwrap(), Exit::Signal(9));
        assert!(Process::adopt(&handle(real)).unwrap().is_none());
        let _ = child.try_wait();
    }
}
