//! The user's side: a terminal in raw mode, or a pipe.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::thread;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use super::keys::Keys;
use crate::error::CliError;

/// Bytes taken from standard input at a time.
const READ_BYTES: usize = 8 * 1024;

/// Readings of standard input that wait for the connection. A person has to type more than that into a shell that
/// hangs before `~.` is not seen any more.
const QUEUE_MAX: usize = 256;

/// Signals that end the command, after the terminal has been put right.
const ENDING: [(SignalKind, &str); 4] = [
    (SignalKind::terminate(), "SIGTERM"),
    (SignalKind::hangup(), "SIGHUP"),
    (SignalKind::interrupt(), "SIGINT"),
    (SignalKind::quit(), "SIGQUIT"),
];

/// What leaves a shell that is not connected: Ctrl-C and Ctrl-D.
const INTERRUPTS: [u8; 2] = [3, 4];

/// Why the user's side ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// By `~.`, or a key while there is no connection.
    Asked,
    Signal(&'static str),
}

/// Columns and rows.
pub type Size = (u16, u16);

/// Where input comes from. Dropping it puts the terminal right.
pub struct Console {
    /// What is typed; closed where standard input ends.
    pub typed: mpsc::Receiver<Vec<u8>>,
    pub leave: mpsc::Receiver<Leave>,
    /// Told when the terminal's size has changed.
    pub resized: Arc<Notify>,
    /// The terminal's size now; `None` for a pipe.
    pub size: fn() -> Option<Size>,
    raw: Option<RawMode>,
}

impl Console {
    /// Standard input: a terminal is put into raw mode, and signals are heard.
    pub fn start() -> Result<Self, CliError> {
        let (typing, typed) = mpsc::channel(QUEUE_MAX);
        let (leaving, leave) = mpsc::channel(1);
        let resized = Arc::new(Notify::new());
        let terminal = std::io::stdin().is_terminal();
        let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        let raw = if terminal {
            listen_for_signals(&leaving, &resized)?;
            Some(RawMode::enter()?)
        } else {
            None
        };
        let keys = terminal.then(Keys::default);
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || read(input, keys, &typing, &leaving))?;
        Ok(Self { typed, leave, resized, size: if terminal { size } else { || None }, raw })
    }

    /// True when a person types.
    pub fn is_terminal(&self) -> bool {
        self.raw.is_some()
    }

    /// A remark, on a line of its own whatever the shell has left there.
    pub fn say(&self, text: &str) {
        let _ = write!(std::io::stderr(), "\r\ntorpor: {text}\r\n");
    }

    /// Waits until the user does not want to wait any longer. Other keys are dropped: no shell is there to take them.
    pub async fn interrupted(&mut self) -> Leave {
        loop {
            tokio::select! {
                Some(leave) = self.leave.recv() => return leave,
                typed = self.typed.recv() => match typed {
                    Some(keys) if !keys.iter().any(|key| INTERRUPTS.contains(key)) => {}
                    _ => return Leave::Asked,
                },
            }
        }
    }

    /// A console that a test types into.
    #[cfg(test)]
    pub fn scripted(
        typed: mpsc::Receiver<Vec<u8>>,
        leave: mpsc::Receiver<Leave>,
        size: fn() -> Option<Size>,
    ) -> Self {
        Self { typed, leave, resized: Arc::default(), size, raw: None }
    }
}

/// Reads standard input to its end, or until nobody listens.
fn read(
    mut input: File,
    mut keys: Option<Keys>,
    typing: &mpsc::Sender<Vec<u8>>,
    leaving: &mpsc::Sender<Leave>,
) {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let typed = match input.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => &bytes[..count],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let (passed, leave) = match &mut keys {
            Some(keys) => keys.take(typed),
            None => (typed.to_vec(), false),
        };
        if leave {
            // Ahead of what is queued: a shell that hangs takes none of it.
            let _ = leaving.try_send(Leave::Asked);
            return;
        }
        if !passed.is_empty() && typing.blocking_send(passed).is_err() {
            return;
        }
    }
}

fn listen_for_signals(leaving: &mpsc::Sender<Leave>, resized: &Arc<Notify>) -> Result<(), CliError> {
    for (kind, name) in ENDING {
        let (mut arrivals, leaving) = (signal(kind)?, leaving.clone());
        tokio::spawn(async move {
            arrivals.recv().await;
            // Full: it is leaving already.
            let _ = leaving.try_send(Leave::Signal(name));
        });
    }
    let (mut arrivals, resized) = (signal(SignalKind::window_change())?, Arc::clone(resized));
    tokio::spawn(async move {
        while arrivals.recv().await.is_some() {
            resized.notify_one();
        }
    });
    Ok(())
}

/// The size of the terminal on standard input.
#[allow(unsafe_code)] // a window size is read with an ioctl
fn size() -> Option<Size> {
    let mut size = MaybeUninit::<nix::pty::Winsize>::zeroed();
    // SAFETY: the request writes one winsize, which lives until the call returns; all zero is a valid one.
    let size = unsafe {
        let read = nix::libc::ioctl(std::io::stdin().as_raw_fd(), nix::libc::TIOCGWINSZ, size.as_mut_ptr());
        (read == 0).then(|| size.assume_init())?
    };
    Some((size.ws_col, size.ws_row))
}

/// A terminal in raw mode: every key goes to the shell. Dropped, it is as it was before, after a panic too.
struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    fn enter() -> Result<Self, CliError> {
        let terminal = std::io::stdin().as_fd().try_clone_to_owned()?;
        let failed = |error: nix::Error| CliError::failed(format!("cannot use the terminal: {error}"));
        let before = tcgetattr(&terminal).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSADRAIN, &raw).map_err(failed)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // It may be gone, with the window.
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}
