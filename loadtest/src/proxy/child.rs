//! Processes that a measurement starts and ends: parts of this program, and other proxies. Each ends with the
//! measurement, also when that is killed.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{ChildStdout, Command};

/// Longest time from a child's start to its address.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that is told to end when this is dropped.
pub struct Child {
    process: tokio::process::Child,
    pid: i32,
}

impl Child {
    /// Starts `program`; what it says on standard error goes to the file `log`, or to ours.
    pub fn start(program: &OsStr, arguments: &[&OsStr], log: Option<&Path>) -> anyhow::Result<Self> {
        let stderr = match log {
            Some(path) => Stdio::from(std::fs::File::create(path)?),
            None => Stdio::inherit(),
        };
        // The kernel ends it when the thread that starts it, our first one, is gone.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let pid = process.id().and_then(|id| i32::try_from(id).ok()).context("a child without an id")?;
        Ok(Self { process, pid })
    }

    /// Starts a part of this program, which prints the address that it listens on.
    pub async fn part(arguments: &[&OsStr]) -> anyhow::Result<(Self, SocketAddr)> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut child = Self::start(program.as_os_str(), arguments, None)?;
        let output = child.process.stdout.take().context("a child without an output")?;
        let address = tokio::time::timeout(START_TIMEOUT, address(output));
        let address = address.await.context("a part of the load test does not start")??;
        Ok((child, address))
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // While it has not been waited for, its id is nobody else's.
        if !self.ended() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
        }
    }
}

async fn address(output: ChildStdout) -> anyhow::Result<SocketAddr> {
    let mut line = String::new();
    // No address is longer.
    BufReader::new(output).take(64).read_line(&mut line).await?;
    match line.trim().parse() {
        Ok(address) => Ok(address),
        Err(_) => bail!("a part of the load test said '{}' in place of an address", line.trim()),
    }
}
