//! A root shell in the container of the running app: the same namespaces, view, control group, environment, working
//! directory and capabilities, and a terminal of its own.
//!
//! [`spawn`] is the agent's side. [`main`] is the agent's own binary between fork and exec, as in `init`. Standard
//! input carries the app's [`StartAppRequest`], standard output is where a reason is written if there is no shell;
//! a successful exec closes it. The arguments are the app's process and the path of the terminal.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use api::guest::v1::StartAppRequest;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, chdir, execve, pipe2};
use prost::Message as _;

use super::init::{become_user, reason, settle_process, strings};
use super::{Container, REASON_BYTES_MAX, SHELL_INIT_NAME, environment, memory_file, user};
use crate::shell::process::Process;
use crate::shell::pty;

/// Programs tried in this order.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// What is told where an image has none of them.
const NO_SHELL: &str = "the image has neither /bin/bash nor /bin/sh";

/// What programs on the terminal may take it for.
const TERM: &str = "TERM=xterm";

const CGROUPS: &str = "/sys/fs/cgroup";

/// Starts a shell on the terminal of that path. The error is a sentence.
pub(super) fn spawn(container: &Container, terminal: &str) -> Result<Process, String> {
    let app = container.app;
    let processes = File::open(format!("/proc/{app}/ns/pid")).map_err(reason("find the app"))?;
    let (status, status_end) = pipe2(OFlag::O_CLOEXEC).map_err(reason("make a pipe"))?;
    let plan = memory_file(&container.request.encode_to_vec()).map_err(reason("hand over the container"))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(SHELL_INIT_NAME)
        .args([app.to_string(), terminal.to_owned()])
        .env_clear()
        .stdin(Stdio::from(plan))
        .stdout(Stdio::from(status_end))
        .stderr(Stdio::null());
    // setns changes what later children of this one thread get, so it has a thread of its own.
    let spawned = thread::spawn(move || {
        setns(&processes, CloneFlags::CLONE_NEWPID)?;
        let child = command.spawn()?;
        Process::of(Pid::from_raw(child.id().cast_signed()))
    });
    let process = spawned
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the starting thread panicked")))
        .map_err(reason("start a process"))?;
    let mut why_not = String::new();
    // Ends when the shell's exec closes the pipe, or with the reason why there was none.
    let read = File::from(status).take(REASON_BYTES_MAX).read_to_string(&mut why_not);
    read.map_err(reason("learn how the start went"))?;
    if why_not.is_empty() { Ok(process) } else { Err(why_not) }
}

/// Runs a shell in place of this process; returns only when that failed.
pub fn main() -> ExitCode {
    // A copy that the exec closes; the streams themselves become the terminal before that.
    let Ok(status) = std::io::stdout().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let Err(reason) = become_shell();
    let _ = File::from(status).write_all(reason.as_bytes());
    ExitCode::FAILURE
}

fn become_shell() -> Result<Infallible, String> {
    let mut arguments = std::env::args().skip(1);
    let (Some(app), Some(terminal)) = (arguments.next(), arguments.next()) else {
        return Err("the shell was started without its arguments".to_owned());
    };
    let mut plan = Vec::new();
    std::io::stdin().lock().read_to_end(&mut plan).map_err(reason("read the container"))?;
    let request = StartAppRequest::decode(plan.as_slice()).map_err(reason("read the container"))?;

    enter(&app)?;
    pty::adopt(&terminal).map_err(reason("take the terminal"))?;
    let root = user::resolve_in_root("")?;
    if request.working_directory.is_empty() || chdir(request.working_directory.as_str()).is_err() {
        // The app may have removed it since.
        chdir("/").map_err(reason("enter the root directory"))?;
    }
    become_user(&root, request.all_capabilities)?;
    let environment = environment_of_shell(&request.environment, &root.home);
    let envp = strings(&environment)?;
    for shell in SHELLS {
        let path = CString::new(shell).map_err(reason("program"))?;
        match execve(&path, std::slice::from_ref(&path), &envp) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => return Err(format!("run {shell}: {error}")),
            Ok(never) => return Ok(never),
        }
    }
    Err(NO_SHELL.to_owned())
}

/// Joins the namespaces and the control group of a process that the agent's /proc shows.
fn enter(app: &str) -> Result<(), String> {
    let open = |kind: &str| File::open(format!("/proc/{app}/ns/{kind}")).map_err(reason("find the app"));
    let (mounts, cgroups) = (open("mnt")?, open("cgroup")?);
    // An app with every capability may have moved itself below the group that it was started in.
    let groups =
        fs::read_to_string(format!("/proc/{app}/cgroup")).map_err(reason("find the app's cgroup"))?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    settle_process(&format!("{CGROUPS}{group}"))?;
    setns(&cgroups, CloneFlags::CLONE_NEWCGROUP).map_err(reason("enter the app's cgroup"))?;
    // Last: from here on paths are the container's.
    setns(&mounts, CloneFlags::CLONE_NEWNS).map_err(reason("enter the app's view"))
}

fn environment_of_shell(given: &[String], home: &str) -> Vec<String> {
    let mut environment = environment::complete(given, home);
    environment.retain(|entry| !entry.starts_with("TERM="));
    environment.push(TERM.to_owned());
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_has_the_apps_environment_and_its_own_terminal() {
        let given = ["A=1", "TERM=dumb", "TERMINFO=/x", "PATH=/p"].map(str::to_owned);
        let expected = ["A=1", "TERMINFO=/x", "PATH=/p", "HOME=/root", TERM];
        assert_eq!(environment_of_shell(&given, "/root"), expected);
    }
}
