//! The app: started once, watched until it ends, its output collected.
//!
//! ```text
//! NotStarted ── start ──> Running ── wait ──> Exited (kept for every later link)
//! ```

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use api::guest::v1::{AppExited, StartAppRequest};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};
use prost::Message as _;

mod capabilities;
pub mod enter;
mod environment;
pub mod init;
pub mod logs;
mod program;
mod user;
mod view;

use logs::Logs;

use crate::boot::mounts::APP_CGROUP;
use crate::shell::process::Process;

/// Name under which the agent runs itself between fork and exec of the app.
pub const INIT_NAME: &str = "torpor-app-init";

/// Name under which the agent runs itself between fork and exec of a shell.
pub const SHELL_INIT_NAME: &str = "torpor-shell-init";

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;
/// A shell's exit status for a command that a signal ended, less the signal.
const SHELL_SIGNAL_BASE: i32 = 128;

/// Longest reason taken from a start that failed, in bytes.
const REASON_BYTES_MAX: u64 = 4096;

/// Why an app was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The request cannot work: no program, no such user, started before.
    #[error("{0}")]
    Invalid(String),
    /// A step of the start failed.
    #[error("{step}: {source}")]
    Step { step: &'static str, source: io::Error },
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Step { step, source: source.into() }
}

#[derive(Debug, Default)]
enum State {
    #[default]
    NotStarted,
    Starting,
    Running(Arc<Container>),
    Exited(AppExited),
}

/// What a running app lives in, for those who enter it later.
#[derive(Debug)]
struct Container {
    /// Its process 1 in the guest's own numbers.
    app: Pid,
    request: StartAppRequest,
}

/// The one app of the microVM.
#[derive(Debug, Default)]
pub struct App {
    state: Mutex<State>,
    /// User and group id of the app.
    owner: Mutex<(u32, u32)>,
    pub logs: Arc<Logs>,
}

impl App {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the app ended, once it has.
    pub fn exited(&self) -> Option<AppExited> {
        match &*self.state() {
            State::Exited(exited) => Some(*exited),
            State::NotStarted | State::Starting | State::Running(_) => None,
        }
    }

    /// User and group id of the app; root until it is started.
    pub fn owner(&self) -> (u32, u32) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a root shell in the app's container, on the terminal of that path. The error is a sentence.
    pub fn open_shell(&self, terminal: &str) -> Result<Process, String> {
        let container = match &*self.state() {
            State::Running(container) => Arc::clone(container),
            State::NotStarted | State::Starting => return Err("the app does not run yet".to_owned()),
            State::Exited(_) => return Err("the app has ended".to_owned()),
        };
        enter::spawn(&container, terminal)
    }

    /// Starts the app; its process id in the guest. `on_exit` runs once, when it
    /// has ended and its output has been collected.
    pub fn start(
        self: &Arc<Self>,
        request: &StartAppRequest,
        on_exit: impl FnOnce(AppExited) + Send + 'static,
    ) -> Result<u32, StartError> {
        if request.argv.first().is_none_or(String::is_empty) {
            return Err(StartError::Invalid("argv names no program".to_owned()));
        }
        {
            let mut state = self.state();
            if !matches!(*state, State::NotStarted) {
                return Err(StartError::Invalid("the app was started before".to_owned()));
            }
            *state = State::Starting;
        }
        let launched = self.launch(request);
        match launched {
            Ok((pid, collector)) => {
                let container = Container { app: pid, request: request.clone() };
                *self.state() = State::Running(Arc::new(container));
                let app = Arc::clone(self);
                let waiter = thread::Builder::new().name("app-wait".to_owned());
                waiter
                    .spawn(move || {
                        let exited = with_cause(wait_for(pid));
                        // All processes of the app's namespace are dead, so its pipes end.
                        let _ = collector.join();
                        *app.state() = State::Exited(exited);
                        on_exit(exited);
                    })
                    .map_err(failed("start the thread that waits"))?;
                Ok(pid.as_raw().cast_unsigned())
            }
            Err(error) => {
                *self.state() = State::NotStarted;
                Err(error)
            }
        }
    }

    fn launch(&self, request: &StartAppRequest) -> Result<(Pid, thread::JoinHandle<()>), StartError> {
        let user = user::resolve_in_root(&request.user).map_err(StartError::Invalid)?;
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = (user.uid, user.gid);
        let (stdout, stdout_end) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
        let (stderr, stderr_end) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
        let (status, status_end) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
        let plan = memory_file(&request.encode_to_vec()).map_err(failed("hand over the request"))?;
        let pid = spawn(plan, stdout_end, stderr_end, status_end).map_err(failed("start a process"))?;
        let mut reason = String::new();
        // Ends when the app's exec closes the pipe, or with the reason why there was none.
        File::from(status)
            .take(REASON_BYTES_MAX)
            .read_to_string(&mut reason)
            .map_err(failed("learn how the start went"))?;
        if !reason.is_empty() {
            let _ = waitpid(pid, None);
            return Err(StartError::Invalid(reason));
        }
        let logs = Arc::clone(&self.logs);
        let collector = thread::Builder::new().name("app-logs".to_owned());
        let collector = collector
            .spawn(move || logs::collect(&logs, stdout, stderr))
            .map_err(failed("start the thread that collects output"))?;
        Ok((pid, collector))
    }
}

fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"start-app", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// Runs the agent's binary as process 1 of a new process namespace.
fn spawn(plan: File, stdout: OwnedFd, stderr: OwnedFd, status: OwnedFd) -> io::Result<Pid> {
    // unshare changes what later children of this one thread get, so it has a thread of its own.
    let spawned = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        fcntl(&status, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let child = Command::new("/proc/self/exe")
            .arg0(INIT_NAME)
            .arg(status.as_raw_fd().to_string())
            .env_clear()
            .stdin(Stdio::from(plan))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .spawn()?;
        // Reaped by pid later; a std Child does nothing when dropped.
        Ok(Pid::from_raw(child.id().cast_signed()))
    });
    spawned.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
}

/// Adds that memory ran out. From inside its namespace nothing can kill the app, and the agent never does; a shell that lost
/// its only command to a kill passes that on as its own exit status.
fn with_cause(exited: AppExited) -> AppExited {
    let killed = exited.signal == SIGKILL || exited.exit_code == SHELL_SIGNAL_BASE + SIGKILL;
    let events = std::fs::read_to_string(format!("{APP_CGROUP}/memory.events")).unwrap_or_default();
    AppExited { out_of_memory: killed && oom_kills(&events) > 0, ..exited }
}

/// Processes of a control group that the kernel has killed for want of memory, from its `memory.events`.
fn oom_kills(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Reaps children until the app itself has ended, then whatever is left.
fn wait_for(app: Pid) -> AppExited {
    let mut exited = AppExited { exit_code: -1, ..AppExited::default() };
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == app => exited.exit_code = code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == app => exited.signal = signal as i32,
            Ok(_) | Err(nix::Error::EINTR) => continue,
            Err(_) => return exited,
        }
        // The app was the only child that lives; orphans of its namespace died with it.
        return exited;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_for_want_of_memory_are_counted() {
        let events = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(oom_kills(events), 1);
        assert_eq!(oom_kills(""), 0);
    }
}
