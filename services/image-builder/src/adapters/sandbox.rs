//! Where a user's build steps run.
//!
//! A Dockerfile's RUN steps are the user's programs, run as root inside containers that BuildKit makes. Those are
//! not the boundary: everything of BuildKit runs inside one, too. It is a user namespace (its root is an unused user id
//! of this machine and owns nothing here), a root file system made of the toolbox's `/usr` read-only, six
//! harmless devices and the directories the build needs, and its own processes, mounts, host name and
//! network. Killing the first process kills all of it, and its mounts go with it.
//!
//! ```text
//! image-builder --spawn--> outer (real root): join network, make the root, pivot
//!                            `-> inner (new user namespace): become its root
//!                                  `-> first process of new pid and mount namespaces: the command
//! ```
//!
//! Each stage is this program again, so that nothing has to run between `fork` and `exec`. A stage ends when
//! the one before it does: the builder may be killed at any moment and leaves no process behind.
//!
//! Not here: what is run. `no_new_privs` is not set, because set-user-id programs in an image can gain
//! nothing but the sandbox's own powerless root, and Dockerfiles use `sudo`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;

use crate::adapters::output::Lines;

mod inner;
mod outer;
mod root;

/// User ids of a sandbox that are its own on this machine.
pub const IDS: u32 = 65_536;
/// Ids above them, up to 2^31, lie from here on, the same for all sandboxes: files of an image may have any owner. What they
/// own is in directories that one sandbox alone can enter.
const HIGH_IDS: u32 = 1 << 31;
/// Longest wait for a killed sandbox to be gone.
const REAP_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for output that was already written when the command ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

const OUTER: &str = "sandbox-outer";
const INNER: &str = "sandbox-inner";
const FIRST: &str = "sandbox-first";

/// A directory or file of the machine that is visible inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    /// Whether the sandbox may write to it (its ids must own it, too).
    pub writable: bool,
}

impl Bind {
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: false }
    }

    pub fn writable(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: true }
    }
}

/// One command and all it may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Network namespace to join, a path under `/run/netns`; absent means one with nothing in it.
    pub network: Option<PathBuf>,
    /// Root file system that the programs come from.
    pub toolbox: PathBuf,
    /// An empty directory for the root to be mounted on.
    pub root: PathBuf,
    /// First of the sandbox's user ids on the machine.
    pub uid_base: u32,
    /// What is visible besides the system's programs.
    pub binds: Vec<Bind>,
    /// Small files, by their paths: their text, and whether they are programs.
    pub files: BTreeMap<PathBuf, (String, bool)>,
    pub resolvers: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub command: Vec<String>,
    pub processes_max: u64,
    /// Control groups to join: their `cgroup.procs` files.
    pub cgroups: Vec<PathBuf>,
}

/// Runs a stage if this process was started as one. Called before anything else
/// in `main`; never returns for a stage.
pub fn enter_if_stage() {
    let mut arguments = std::env::args();
    let run: fn() -> io::Result<i32> = match arguments.nth(1).as_deref() {
        Some(OUTER) => outer::run,
        Some(INNER) => inner::run,
        Some(FIRST) => inner::run_first,
        _ => return,
    };
    let code = run().unwrap_or_else(|error| {
        // Goes to the build's log, like all output of the sandbox.
        eprintln!("sandbox: {error}");
        EXIT_BROKEN
    });
    std::process::exit(code);
}

/// Exit code of a sandbox that could not be set up.
pub const EXIT_BROKEN: i32 = 125;

#[derive(Debug, Clone)]
pub struct Sandbox {
    program: PathBuf,
}

impl Sandbox {
    /// Sandboxes whose stages are run by `program`, this program by default.
    pub fn new(program: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self { program: program.map_or_else(std::env::current_exe, Ok)? })
    }

    /// Runs a command and gives every line of its output (standard output and error, in order) to `line`.
    /// Dropping the future kills everything in the sandbox.
    pub async fn run(&self, spec: &Spec, mut line: impl FnMut(String)) -> io::Result<ExitStatus> {
        let (reader, writer) = io::pipe()?;
        let mut child = Command::new(&self.program)
            .arg(OUTER)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::from(OwnedFd::from(writer.try_clone()?)))
            .stderr(Stdio::from(OwnedFd::from(writer)))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        // The open pipe is what keeps the sandbox alive; it closes with us.
        let mut lifeline = child.stdin.take().expect("standard input was piped");
        let mut text = serde_json::to_vec(spec)?;
        text.push(b'\n');
        lifeline.write_all(&text).await?;
        let mut lines = Lines::new(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        let status = loop {
            tokio::select! {
                biased;
                next = lines.next() => match next? {
                    Some(text) => line(text),
                    None => break child.wait().await?,
                },
                status = child.wait() => {
                    let status = status?;
                    // Its processes are dead or dying. One that still holds the pipe must
                    // not keep the builder waiting for output.
                    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
                        while let Ok(Some(text)) = lines.next().await {
                            line(text);
                        }
                    });
                    let _ = drained.await;
                    break status;
                }
            }
        };
        drop(lifeline);
        Ok(status)
    }
}

/// Waits until no process is in a control group any more, so that mounts and
/// files of a killed sandbox can go. Returns at a deadline at the latest.
pub async fn wait_until_empty(procs: &Path) {
    let deadline = tokio::time::Instant::now() + REAP_TIMEOUT;
    while tokio::time::Instant::now() < deadline {
        match tokio::fs::read_to_string(procs).await {
            Ok(text) if !text.trim().is_empty() => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => return,
        }
    }
}
