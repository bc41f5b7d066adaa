//! Runs `ip` and `nft`, with a script on standard input and a bound on time.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Longest run of one command. They take milliseconds; this is for a machine in trouble.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
/// Most of a command's complaint that goes into an error, in bytes.
const COMPLAINT_MAX: usize = 512;

/// A command that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("cannot run {program}")]
    Io { program: &'static str, source: std::io::Error },
    #[error("{program} took longer than {} s", COMMAND_TIMEOUT.as_secs())]
    TimedOut { program: &'static str },
    #[error("{program} failed: {complaint}")]
    Failed { program: &'static str, complaint: String },
}

/// Runs `program` with `script` as its input and returns its output.
pub(crate) async fn run(
    program: &'static str,
    arguments: &[&str],
    script: &str,
) -> Result<Vec<u8>, CommandError> {
    let io = |source| CommandError::Io { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(io)?;
    let mut input = child.stdin.take().expect("standard input was asked to be piped");
    let talk = async {
        let feed = async move {
            // A command that fails early stops reading; its exit status says why.
            let _ = input.write_all(script.as_bytes()).await;
            drop(input);
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        output
    };
    let output = tokio::time::timeout(COMMAND_TIMEOUT, talk)
        .await
        .map_err(|_| CommandError::TimedOut { program })?
        .map_err(io)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let end = output.stderr.len().min(COMPLAINT_MAX);
    let complaint = String::from_utf8_lossy(&output.stderr[..end]).trim().replace('\n', "; ");
    Err(CommandError::Failed { program, complaint })
}
