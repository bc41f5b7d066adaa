//! The `torpor` command: the fleet's clients for people and scripts, and
//! `torpor up`, which runs a whole fleet on one machine.
//!
//! Not here: anything the services do. This crate talks to them over their
//! public protocols, like every other client.

mod artifact;
mod cli;
mod commands;
mod durations;
mod error;
mod flags;
mod fleet;
mod output;
mod policy_file;

use clap::Parser as _;

use crate::error::Kind;

/// Runs the command line that the process was started with.
pub fn main() -> std::process::ExitCode {
    let cli = cli::Cli::parse();
    // One thread starts every child: the kernel ties a child's "parent died"
    // signal to the thread that forked it (fleet/spawn.rs).
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::report(&error::CliError::failed(format!("cannot start: {error}")));
            return std::process::ExitCode::from(Kind::Failed.code());
        }
    };
    let result = runtime.block_on(commands::dispatch(cli));
    // A task that still waits for a peer must not hold the command back.
    runtime.shutdown_background();
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            output::report(&failure);
            std::process::ExitCode::from(failure.kind.code())
        }
    }
}
