//! Torpor's host-agent: owns the microVMs of one machine.

mod adapters;
mod app;
mod bake;
mod config;
mod disk;
mod domain;
mod engines_ahead;
mod failpoint;
mod host;
mod metrics;
mod microvm;
mod microvms;
mod reporter;
mod resources;
mod server;
mod stopwatch;
mod vouches;
mod wakes;

use std::process::ExitCode;

pub use config::Config;
pub use wakes::{QueueFull, Turn, Wakes};

/// The whole program: settings, telemetry, the service, an exit code.
pub fn main() -> ExitCode {
    telemetry::run_service(
        "host-agent",
        "Runs microVMs on this machine for a Torpor scheduler",
        |config: &Config| {
            config.check().map_err(anyhow::Error::msg)?;
            failpoint::arm(config.failpoints);
            Ok(&config.telemetry)
        },
        async |config: Config, telemetry: &telemetry::Guard| {
            app::App::build(config, telemetry).await?.run().await
        },
    )
}
