//! `torpor shell`: a terminal in a microVM's container.
//!
//! ```text
//! stdin ── keys ──> console ── events ──> talk ──> WebSocket through the edge ──> guest-agent
//! stdout <───────────────────────────────┘
//! ```
//!
//! A shell ends with its connection. When that breaks on a person's terminal, a new one is opened.

use std::time::{Duration, Instant};

use backoff::Backoff;

use super::Session;
use super::calls::microvm_id;
use crate::cli::microvm::Shell;
use crate::durations;
use crate::error::{CliError, Kind};

mod connect;
mod console;
mod keys;
mod talk;

use connect::{Line, Route};
use console::{Console, Leave};
use talk::End;

/// First and longest pause before another attempt to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// How long a broken connection is tried again.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(600);

pub async fn run(session: &Session, arguments: Shell) -> Result<(), CliError> {
    let id = microvm_id(session, &arguments.id).await?;
    let route = Route::to(session, id, arguments.max_time).await?;
    let mut line = route.open().await?;
    let mut console = Console::start()?;
    loop {
        let why = match talk::talk(line, &mut console, &mut std::io::stdout()).await? {
            End::Exited => return Ok(()),
            End::Left(leave) => {
                console.say("left the shell");
                return left(leave);
            }
            End::Refused(error) => return Err(error),
            End::Broken(why) => why,
        };
        if !console.is_terminal() {
            // The rest of a script must not go to another shell.
            return Err(CliError::new(Kind::Unavailable, format!("{why} before the shell exited"))
                .next(format!("see its state: torpor get {}", arguments.id)));
        }
        line = match again(&route, &mut console, &why).await? {
            Ok(line) => line,
            Err(leave) => return left(leave),
        };
    }
}

fn left(leave: Leave) -> Result<(), CliError> {
    match leave {
        Leave::Asked => Ok(()),
        Leave::Signal(name) => Err(CliError::failed(format!("{name} ended the shell"))),
    }
}

/// Connects again, with pauses that grow; the inner error is a user who does not want to wait.
async fn again(route: &Route<'_>, console: &mut Console, why: &str) -> Result<Result<Line, Leave>, CliError> {
    let deadline = Instant::now() + RECONNECT_TIMEOUT;
    let mut pauses = Backoff::new(PAUSES.0, PAUSES.1);
    let mut why = why.to_owned();
    loop {
        let pause = pauses.next_pause();
        console.say(&format!("{why}; a new shell in {}, Ctrl-C leaves", durations::short(pause)));
        let attempt = async {
            tokio::time::sleep(pause).await;
            route.open().await
        };
        let opened = tokio::select! {
            opened = attempt => opened,
            leave = console.interrupted() => return Ok(Err(leave)),
        };
        match opened {
            Ok(line) => {
                console.say("connected to a new shell");
                return Ok(Ok(line));
            }
            Err(error) if !matches!(error.kind, Kind::Unavailable | Kind::Timeout) => return Err(error),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(error) => why = error.message,
        }
    }
}
