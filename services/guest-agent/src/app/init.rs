//! Between fork and exec of the app: the agent's own binary, now process 1 of the app's
//! process namespace, single-threaded, turns itself into the app.
//!
//! Standard input carries the [`StartAppRequest`]; argument 1 is the descriptor on
//! which a reason is written if the app cannot be started. A successful exec closes it.
#![allow(unsafe_code)] // adopts descriptors by number and resets signals

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::Path;
use std::process::ExitCode;

use api::guest::v1::StartAppRequest;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, dup2_stdin, execve, setgid, setgroups, setsid, setuid};
use prost::Message as _;

use super::{capabilities, environment, program, user, view};
use crate::boot::mounts::APP_CGROUP;

/// Open files of the app, soft and hard: Docker's default.
const OPEN_FILES_MAX: u64 = 1_048_576;

/// Runs the app in place of this process; returns only when that failed.
pub fn main() -> ExitCode {
    let Some(number) = std::env::args().nth(1).and_then(|number| number.parse().ok()) else {
        return ExitCode::FAILURE;
    };
    // SAFETY: the agent opened this descriptor for us and nothing else here owns it.
    let mut status = File::from(unsafe { OwnedFd::from_raw_fd(number) });
    let Err(reason) = become_app(&status);
    let _ = status.write_all(reason.as_bytes());
    ExitCode::FAILURE
}

pub(super) fn reason<E: std::fmt::Display>(step: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{step}: {error}")
}

fn become_app(status: &File) -> Result<Infallible, String> {
    fcntl(status, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(reason("guard the status pipe"))?;
    let mut plan = Vec::new();
    std::io::stdin().lock().read_to_end(&mut plan).map_err(reason("read the request"))?;
    let request = StartAppRequest::decode(plan.as_slice()).map_err(reason("read the request"))?;
    let all = request.all_capabilities;

    settle_process(APP_CGROUP)?;
    view::make(all)?;
    let user = user::resolve_in_root(&request.user)?;
    enter_working_directory(&request.working_directory)?;
    settle_streams(&user)?;

    become_user(&user, all)?;
    run(&request, &user)
}

/// The user's ids, and no more capabilities than the container has.
pub(super) fn become_user(user: &user::User, all_capabilities: bool) -> Result<(), String> {
    let mask = if all_capabilities { u64::MAX } else { capabilities::default_mask() };
    if !all_capabilities {
        capabilities::bound(mask).map_err(reason("drop capabilities"))?;
    }
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(reason("set groups"))?;
    setgid(Gid::from_raw(user.gid)).map_err(reason("set the group"))?;
    setuid(Uid::from_raw(user.uid)).map_err(reason("set the user"))?;
    if user.uid == 0 && !all_capabilities {
        // For another user setuid has cleared them.
        capabilities::set(mask).map_err(reason("set capabilities"))?;
    }
    Ok(())
}

/// Session, cgroup, limits, signals: what a process of the container inherits from no one.
pub(super) fn settle_process(cgroup: &str) -> Result<(), String> {
    setsid().map_err(reason("start a session"))?;
    // "0" is the writer itself, whatever its number in this namespace.
    fs::write(format!("{cgroup}/cgroup.procs"), "0").map_err(reason("join the app's cgroup"))?;
    fs::write("/proc/self/oom_score_adj", "0").map_err(reason("give up the agent's OOM protection"))?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX, OPEN_FILES_MAX).map_err(reason("limit open files"))?;
    umask(Mode::from_bits_truncate(0o022));
    // Rust ignores SIGPIPE, which an exec would pass on.
    // SAFETY: the default action runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(reason("reset signals"))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(reason("reset signals"))?;
    Ok(())
}

fn enter_working_directory(directory: &str) -> Result<(), String> {
    let directory = if directory.is_empty() { "/" } else { directory };
    if !directory.starts_with('/') {
        return Err(format!("the working directory {directory:?} is not absolute"));
    }
    fs::create_dir_all(directory).map_err(reason("make the working directory"))?;
    chdir(directory).map_err(reason("enter the working directory"))
}

/// Standard input becomes /dev/null; the output pipes become the user's, so that
/// `/dev/stdout` can be opened again without root.
fn settle_streams(user: &user::User) -> Result<(), String> {
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(reason("open /dev/null"))?;
    dup2_stdin(&null).map_err(reason("set standard input"))?;
    for done in [
        fchown(std::io::stdout(), Some(user.uid), Some(user.gid)),
        fchown(std::io::stderr(), Some(user.uid), Some(user.gid)),
    ] {
        done.map_err(reason("hand over standard output"))?;
    }
    Ok(())
}

pub(super) fn strings(words: &[String]) -> Result<Vec<CString>, String> {
    words.iter().map(|word| CString::new(word.as_str()).map_err(reason("argument"))).collect()
}

fn run(request: &StartAppRequest, user: &user::User) -> Result<Infallible, String> {
    let environment = environment::complete(&request.environment, &user.home);
    let argv = strings(&request.argv)?;
    let envp = strings(&environment)?;
    let asked = request.argv.first().ok_or("argv names no program")?;
    let mut last = Errno::ENOENT;
    let mut explained = None;
    for candidate in environment::candidates(asked, &environment) {
        let path = CString::new(candidate.as_str()).map_err(reason("program"))?;
        let Err(error) = execve(&path, &argv, &envp);
        explained = explained.or_else(|| program::explain(Path::new(&candidate), error));
        match error {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Keep looking, but say so if nothing else is found.
            Errno::EACCES => last = Errno::EACCES,
            other => {
                last = other;
                break;
            }
        }
    }
    Err(format!("run {asked:?}: {}", explained.unwrap_or_else(|| last.to_string())))
}
