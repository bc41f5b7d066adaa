//! Starting one child the way every component is started: its output into a
//! log file, its own process group, killed by the kernel when the supervisor
//! dies, and for those that need no rights, an unprivileged user who can gain none.
#![allow(unsafe_code)] // `pre_exec` runs between fork and exec: only async-signal-safe calls below.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Stdio;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use tokio::process::{Child, Command};

use super::components::Component;
use super::plan::users;

/// Files a component may have open: a connection is one.
const OPEN_FILES_MAX: u64 = 65_536;

/// Starts a component. Must be called from the supervisor's main thread: the
/// parent-death signal is tied to the thread that forks, not to the process.
pub fn start(component: &Component, log: &Path) -> io::Result<Child> {
    let log = open_log(log)?;
    let mut command = Command::new(&component.program);
    command
        .args(&component.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true);
    if component.clean_environment {
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let (user, binds_low_ports) = (component.user, component.binds_low_ports);
    let group = users::group(user.unwrap_or_default(), component.number);
    let parent = nix::unistd::getpid();
    // SAFETY: the closure makes system calls only, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            // The limit of the machine may be lower; then what we have stays.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX, OPEN_FILES_MAX);
            if let Some(user) = user {
                become_user(user, group, binds_low_ports)?;
                nix::sys::prctl::set_no_new_privs()?;
            }
            // After the change of user, which resets it.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                // The supervisor died before the line above took hold.
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Changes the calling process, which has one thread, into an unprivileged user's. Of all that root may do it keeps at most
/// the right to listen on low ports, and hands it on to the program that it starts.
fn become_user(user: u32, group: u32, binds_low_ports: bool) -> io::Result<()> {
    thread::set_keep_capabilities(binds_low_ports)?;
    thread::set_thread_groups(&[])?;
    thread::set_thread_gid(Gid::from_raw(group))?;
    thread::set_thread_uid(Uid::from_raw(user))?;
    if binds_low_ports {
        let right = CapabilitySet::NET_BIND_SERVICE;
        let sets = CapabilitySets { effective: right, permitted: right, inheritable: right };
        thread::set_capabilities(None, sets)?;
        thread::configure_capability_in_ambient_set(right, true)?;
    }
    Ok(())
}

/// Opens a log for appending, so that it can be cut while it is written.
fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
