//! First stage, still the machine's root: joins the network and control groups,
//! makes the root file system, and starts the second stage with its id map.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};

use nix::sched::{CloneFlags, setns, unshare};

use super::{EXIT_BROKEN, HIGH_IDS, IDS, INNER, Spec, root};

pub(super) fn run() -> io::Result<i32> {
    let mut input = io::stdin().lock();
    let mut text = String::new();
    input.read_line(&mut text)?;
    let spec: Spec = serde_json::from_str(&text)?;
    for group in &spec.cgroups {
        std::fs::write(group, std::process::id().to_string())?;
    }
    match &spec.network {
        Some(network) => setns(File::open(network)?, CloneFlags::CLONE_NEWNET)?,
        None => unshare(CloneFlags::CLONE_NEWNET)?,
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    root::enter(&spec)?;
    drop(input);
    let mut child = start_inner(&spec, &text)?;
    // When the builder goes, so does this process; the next stage asked the kernel to be killed then.
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(EXIT_BROKEN);
    });
    Ok(exit_code(child.wait()?))
}

fn start_inner(spec: &Spec, text: &str) -> io::Result<std::process::Child> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let child =
        Command::new("/proc/self/exe").arg(INNER).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    expect(&mut ours, b'u')?;
    let map = format!("0 {} {IDS}\n{IDS} {} {}\n", spec.uid_base, HIGH_IDS + IDS, u32::MAX - HIGH_IDS - IDS);
    std::fs::write(format!("/proc/{}/uid_map", child.id()), &map)?;
    std::fs::write(format!("/proc/{}/gid_map", child.id()), &map)?;
    ours.write_all(b"m")?;
    expect(&mut ours, b'd')?;
    ours.write_all(text.as_bytes())?;
    // Open for as long as this process lives.
    std::mem::forget(ours);
    Ok(child)
}

/// Waits for the other side's signal; an end of stream means that it failed.
pub(super) fn expect(stream: &mut UnixStream, signal: u8) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    if byte[0] == signal { Ok(()) } else { Err(io::Error::other("a stage broke the protocol")) }
}

pub(super) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
