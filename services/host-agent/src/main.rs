//! Torpor's host-agent: owns the microVMs of one machine.

mod adapters;
mod app;
mod bake;
mod config;
mod domain;
mod engines_ahead;
mod failpoint;
mod fleet;
mod host;
mod metrics;
mod microvm;
mod resources;
mod server;

use std::process::ExitCode;

use config::Config;

fn main() -> ExitCode {
    telemetry::run_service(
        "host-agent",
        "Runs microVMs on this machine for a Torpor scheduler",
        |config: &Config| {
            config.check().map_err(anyhow::Error::msg)?;
            failpoint::arm(config.failpoints);
            Ok(&config.telemetry)
        },
        async |config, telemetry| app::App::build(config, telemetry).await?.run().await,
    )
}
