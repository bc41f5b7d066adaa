//! Starting an engine process: detached, in its network namespace, with exactly the files it is given.
//!
//! The process must outlive this program, so nothing it needs may end with us: it has its own session, and what it says
//! on standard error goes into a pipe that never blocks and may break. What it says is in part up to the guest, so it is
//! bounded and never reaches a disk.

#![allow(unsafe_code)] // Code between fork and exec can only be given through an unsafe function.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::{KillOnDrop, Process};
use crate::error::{Error, Result};

/// Kept of what a process says on standard error; the rest is dropped.
const STDERR_BYTES_MAX: usize = 8 << 10;

/// What a host that runs out of memory counts in addition to an engine's own, in thousandths of its memory: engines end
/// before the services, which all of its microVMs need.
const OOM_SCORE: &[u8] = b"500";

/// What to start.
pub(crate) struct Launch<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    /// Working directory.
    pub(crate) directory: &'a Path,
    /// Network namespace to start in.
    pub(crate) netns: Option<OwnedFd>,
    /// Files the process gets, under the same numbers as here; it gets no others.
    pub(crate) files: Vec<BorrowedFd<'a>>,
}

/// A process that dies when this is dropped before [`Spawned::keep`].
pub(crate) struct Spawned {
    pub(crate) process: Arc<Process>,
    pub(crate) stderr: Stderr,
    guard: KillOnDrop,
}

impl Spawned {
    pub(crate) fn new(process: Arc<Process>, stderr: Stderr) -> Self {
        let guard = KillOnDrop::new(process.clone());
        Self { process, stderr, guard }
    }

    pub(crate) fn keep(self) -> (Arc<Process>, Stderr) {
        self.guard.release();
        (self.process, self.stderr)
    }
}

/// What the process has said on standard error, its first few KiB.
#[derive(Clone, Default)]
pub(crate) struct Stderr(Arc<Mutex<Vec<u8>>>);

impl Stderr {
    pub(crate) fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).trim().replace('\n', "; ")
    }

    fn collect(reader: OwnedFd) -> Result<Self> {
        let mut reader =
            pipe::Receiver::from_owned_fd(reader).map_err(|e| Error::io("read standard error", e))?;
        let kept = Self::default();
        let sink = kept.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                let mut bytes = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
                let room = STDERR_BYTES_MAX - bytes.len();
                bytes.extend_from_slice(&buffer[..count.min(room)]);
            }
        });
        Ok(kept)
    }
}

/// Starts the process. Blocks for the fork and the exec; call it where that is allowed, inside a runtime.
pub(crate) fn spawn(launch: Launch<'_>) -> Result<Spawned> {
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| Error::io("make a pipe", e))?;
    // Nobody may be reading when the process speaks: then the words are lost instead of the process waiting.
    rustix::io::ioctl_fionbio(&writer, true).map_err(|e| Error::io("make a pipe", e))?;
    let second = writer.try_clone().map_err(|e| Error::io("make a pipe", e))?;
    let stderr = Stderr::collect(reader)?;

    let mut command = Command::new(launch.binary);
    command.args(&launch.arguments).current_dir(launch.directory).env_clear();
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let files: Vec<RawFd> = launch.files.iter().map(AsRawFd::as_raw_fd).collect();
    let netns = launch.netns.as_ref().map(AsRawFd::as_raw_fd);
    // SAFETY: `isolate` only makes system calls and touches no memory but its own arguments, so it is sound in a child that
    // has one thread and whatever locks the others held.
    unsafe { command.pre_exec(move || isolate(netns, &files)) };
    let mut child = command.spawn().map_err(|e| Error::Start(format!("{}: {e}", launch.binary.display())))?;
    // Nobody else reaps it, so the id is surely still this child's. The standard library's handle does nothing on drop.
    match Process::of_child(child.id()) {
        Ok(process) => Ok(Spawned::new(Arc::new(process), stderr)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn isolate(netns: Option<RawFd>, files: &[RawFd]) -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // A core dump would put the guest's memory on the disk.
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls with arguments that live through them.
    unsafe {
        if let Some(netns) = netns {
            check(libc::setns(netns, libc::CLONE_NEWNET))?;
        }
        check(libc::setsid())?;
        libc::umask(0o077);
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core))?;
        // Where `/proc` cannot be written to, engines are as likely to end as services.
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, OOM_SCORE.as_ptr().cast(), OOM_SCORE.len());
            libc::close(score);
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // Other parts of this program may have opened files carelessly; none of them gets through.
        check(libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int))?;
        for file in files {
            check(libc::fcntl(*file, libc::F_SETFD, 0))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_ends_before_services_when_memory_runs_out() {
        let launch = Launch {
            binary: Path::new("/bin/sleep"),
            arguments: vec!["60".into()],
            directory: Path::new("/"),
            netns: None,
            files: Vec::new(),
        };
        let spawned = spawn(launch).unwrap();
        let pid = spawned.process.handle().pid;
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score.trim().as_bytes(), OOM_SCORE);
        spawned.process.stop().await.unwrap();
    }
}
