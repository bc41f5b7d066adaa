//! Engine processes that an earlier agent started and no journal names: found
//! by the data directory in their command line, killed and waited for.

use std::os::fd::AsFd as _;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};

/// Longest wait for a killed process to be gone, in milliseconds.
const GONE_TIMEOUT_MS: u16 = 10_000;

/// Kills every process whose command line names a file under `root` as an
/// engine's does, except those in `keep`. Returns how many there were.
pub async fn reap(root: &Path, engine_name: &str, keep: &[u32]) -> usize {
    let mut count = 0;
    for pid in engines(root, engine_name) {
        if keep.contains(&pid) {
            continue;
        }
        tracing::warn!(pid, "an engine process that no journal names; killing it");
        count += 1;
        end(pid).await;
    }
    count
}

fn engines(root: &Path, engine_name: &str) -> Vec<u32> {
    let root = format!("{}/", root.display());
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let Ok(bytes) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
                return false;
            };
            let text = String::from_utf8_lossy(&bytes);
            let program = text.split('\0').next().unwrap_or_default();
            program.contains(engine_name) && text.contains(&root)
        })
        .collect()
}

async fn end(pid: u32) {
    // The descriptor pins the process, so that the id cannot come to mean another one in between.
    let Some(process) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    let Ok(descriptor) = pidfd_open(process, PidfdFlags::NONBLOCK) else {
        return;
    };
    if let Err(error) = rustix::process::pidfd_send_signal(&descriptor, rustix::process::Signal::KILL) {
        tracing::warn!(pid, %error, "it could not be killed");
        return;
    }
    let wait = tokio::task::spawn_blocking(move || {
        let mut events = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut events, GONE_TIMEOUT_MS), Ok(1..))
    });
    if !wait.await.unwrap_or(false) {
        tracing::error!(pid, "a killed engine process is still there");
    }
}
