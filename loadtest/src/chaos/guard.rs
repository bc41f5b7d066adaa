//! Undoing faults whatever becomes of this program. A fault undoes itself when it is dropped, also after Ctrl-C. Should
//! the program be killed, a process of its own that was told beforehand finds its standard input closed and undoes
//! everything; to undo twice does no harm.

use std::io::{BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use serde::{Deserialize, Serialize};

use super::fleet::Process;

/// What puts an end to a fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undo {
    /// Lets a process go on.
    Continue(Process),
    /// Removes a file.
    Remove(PathBuf),
    /// Removes a table of the firewall.
    Delete(String),
    /// Sets the machine's wall clock to what it was ahead of the time since boot.
    Clock { ahead: Duration },
}

impl Undo {
    fn run(&self) {
        match self {
            Self::Continue(process) => process.signal(Signal::SIGCONT),
            // It is not there when it has been removed before.
            Self::Remove(path) => drop(std::fs::remove_file(path)),
            Self::Clock { ahead } => drop(set_wall_clock(*ahead)),
            // Adding it first makes the removal of one that is gone no error.
            Self::Delete(table) => drop(firewall(&format!("add table {table}\ndelete table {table}\n"))),
        }
    }
}

/// How far the machine's wall clock is ahead of the time since boot.
pub fn wall_clock_ahead() -> anyhow::Result<Duration> {
    let [wall, boot] = [ClockId::CLOCK_REALTIME, ClockId::CLOCK_BOOTTIME].map(clock_gettime);
    Ok(Duration::from(wall?).saturating_sub(Duration::from(boot?)))
}

/// Sets the machine's wall clock to be so far ahead of the time since boot.
pub fn set_wall_clock(ahead: Duration) -> anyhow::Result<()> {
    let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    let set = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(boot + ahead));
    set.context("set the machine's wall clock (CAP_SYS_TIME)")
}

/// Has nftables do what is written, all or nothing.
pub fn firewall(commands: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("nft is needed for partitions (package nftables)")?;
    child.stdin.take().context("the input of nft")?.write_all(commands.as_bytes())?;
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "nft did not take: {commands}");
    Ok(())
}

/// The process that stands by. Clones share it.
#[derive(Clone)]
pub struct Guard {
    child: Arc<Mutex<Child>>,
}

impl Guard {
    pub fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let child = Command::new(program)
            .arg("chaos-guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C is for the program; the guard ends after it.
            .process_group(0)
            .spawn()
            .context("start the guard")?;
        Ok(Self { child: Arc::new(Mutex::new(child)) })
    }

    /// Makes sure that a fault is undone; only then may it be made.
    pub fn undoing(&self, undo: Undo) -> anyhow::Result<Undoing> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let stdin = child.stdin.as_mut().context("the guard's input")?;
        let mut line = serde_json::to_string(&undo)?;
        line.push('\n');
        stdin.write_all(line.as_bytes()).context("the guard is gone")?;
        Ok(Undoing(undo))
    }

    /// Ends it, after it has undone everything once more.
    pub fn end(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

/// A fault that is undone when this is dropped.
pub struct Undoing(Undo);

impl Drop for Undoing {
    fn drop(&mut self) {
        self.0.run();
    }
}

/// What the process that stands by does.
pub fn stand_by() {
    // The last line may be cut off; its fault was not made then.
    let undos = std::io::stdin().lock().lines().map_while(Result::ok);
    let undos: Vec<Undo> = undos.filter_map(|line| serde_json::from_str(&line).ok()).collect();
    for undo in undos {
        undo.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_crosses_the_pipe() {
        let undo = Undo::Continue(Process { pid: 1, start_time: 2 });
        let text = serde_json::to_string(&undo).unwrap();
        assert_eq!(serde_json::from_str::<Undo>(&text).unwrap(), undo);
        let file = tempfile::NamedTempFile::new().unwrap();
        let remove = Undoing(Undo::Remove(file.path().to_owned()));
        assert!(file.path().exists());
        drop(remove);
        assert!(!file.path().exists());
    }
}
