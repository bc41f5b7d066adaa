//! Torpor's host-agent: owns the microVMs of one machine.

mod adapters;
mod app;
mod bake;
mod config;
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

use std::pin::Pin;

pub use config::Config;

/// Checks what was configured, before anything is bound.
///
/// # Errors
/// One sentence naming the key.
pub fn check(config: &Config) -> anyhow::Result<&settings::TelemetrySettings> {
    config.check().map_err(anyhow::Error::msg)?;
    failpoint::arm(config.failpoints);
    Ok(&config.telemetry)
}

/// Serves until SIGTERM or SIGINT. Boxed, so that its machinery is compiled here and not in every caller.
///
/// # Errors
/// One clear line about the setting or the machine.
pub fn serve(
    config: Config,
    telemetry: &telemetry::Guard,
) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + '_>> {
    Box::pin(async move { app::App::build(config, telemetry).await?.run().await })
}
