//! Second stage: becomes root of a new user namespace. Third stage: first process of new pid and mount
//! namespaces; finishes the root and runs the command.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid};

use super::outer::{exit_code, expect};
use super::{FIRST, Spec, root};

pub(super) fn run() -> io::Result<i32> {
    let mut parent = stdin_stream()?;
    unshare(CloneFlags::CLONE_NEWUSER)?;
    parent.write_all(b"u")?;
    expect(&mut parent, b'm')?;
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    // Only now: changing ids clears it. The parent waits for the signal, so it
    // cannot have died unnoticed in between.
    set_pdeathsig(Signal::SIGKILL)?;
    parent.write_all(b"d")?;
    let mut text = String::new();
    BufReader::new(&parent).read_line(&mut text)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child =
        Command::new("/proc/self/exe").arg(FIRST).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    expect(&mut ours, b'd')?;
    ours.write_all(text.as_bytes())?;
    Ok(exit_code(child.wait()?))
}

pub(super) fn run_first() -> io::Result<i32> {
    let mut parent = stdin_stream()?;
    set_pdeathsig(Signal::SIGKILL)?;
    parent.write_all(b"d")?;
    let mut text = String::new();
    BufReader::new(&parent).read_line(&mut text)?;
    let spec: Spec = serde_json::from_str(&text)?;
    root::finish()?;
    sethostname("torpor-build")?;
    setrlimit(Resource::RLIMIT_NPROC, spec.processes_max, spec.processes_max)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (program, arguments) =
        spec.command.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
    let error = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&spec.environment)
        .stdin(Stdio::from(File::open("/dev/null")?))
        .exec();
    Err(error)
}

fn stdin_stream() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}
