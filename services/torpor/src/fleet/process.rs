//! Telling one process from a later one with the same id: a pid and the time the kernel started it. Pid files
//! survive a supervisor that was killed; the next one stops what they still name, and nothing else.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::files;
use crate::error::CliError;

/// How long a killed process may take to go.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
const GONE_PAUSE: Duration = Duration::from_millis(20);

/// A process, never confused with another that reuses its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this id now; `None` when there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, start_time: start_time(&stat)? })
    }

    pub fn own() -> Self {
        let pid = std::process::id();
        Self::of(pid).unwrap_or(Self { pid, start_time: 0 })
    }

    /// True while the process runs (a zombie does not).
    pub fn alive(self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return false;
        };
        start_time(&stat) == Some(self.start_time) && state(&stat) != Some('Z')
    }

    /// Sends a signal if the process is still the same one.
    pub fn signal(self, signal: Signal) {
        if let (true, Ok(pid)) = (self.alive(), i32::try_from(self.pid)) {
            // It may end between the look and the signal; then there is nothing to do.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Kills the process and waits until it is gone; false when it is still there.
    pub fn kill_and_wait(self) -> bool {
        self.signal(Signal::SIGKILL);
        let started = Instant::now();
        while self.alive() {
            if started.elapsed() > GONE_TIMEOUT {
                return false;
            }
            std::thread::sleep(GONE_PAUSE);
        }
        true
    }

    /// Writes the process to `<run_dir>/<name>.pid`.
    pub fn save(self, run_dir: &Path, name: &str) -> Result<(), CliError> {
        let text = serde_json::to_vec(&self).map_err(|error| CliError::failed(error.to_string()))?;
        files::write_public(&run_dir.join(format!("{name}.pid")), &text)?;
        Ok(())
    }
}

/// Stops every process that the pid files in `run_dir` still name and removes
/// the files. Returns the names of those that were alive.
pub fn stop_stale(run_dir: &Path) -> Result<Vec<String>, CliError> {
    let mut stopped = Vec::new();
    for entry in std::fs::read_dir(run_dir)? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else {
            continue;
        };
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let process =
            std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<ProcessId>(&text).ok());
        if let Some(process) = process.filter(|process| process.alive()) {
            // A kill, not a request: a host-agent that is asked to stop may end
            // what should outlive it, and every service recovers from a kill.
            if !process.kill_and_wait() {
                return Err(CliError::failed(format!("process {} ({name}) cannot be stopped", process.pid)));
            }
            stopped.push(name.to_owned());
        }
        std::fs::remove_file(&path)?;
    }
    Ok(stopped)
}

/// Field 22 of /proc/PID/stat. The name in field 2 may hold spaces and brackets.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.split_whitespace().next()?.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name_is() {
        let line = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!((start_time(line), state(line)), (Some(4242), Some('S')));
        assert_eq!(start_time("nonsense"), None);
    }

    #[test]
    fn stale_processes_are_stopped_and_strangers_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(process.alive());
        process.save(directory.path(), "ours").unwrap();
        // The same id with another start time is a stranger: this test itself.
        ProcessId { start_time: 1, ..ProcessId::own() }.save(directory.path(), "stranger").unwrap();
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(stop_stale(directory.path()).unwrap(), ["ours"]);
        assert!(!process.alive() && !reaper.join().unwrap().success());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
