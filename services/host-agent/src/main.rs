//! Torpor's host-agent: owns the microVMs of one machine.

mod adapters;
mod app;
mod bake;
mod config;
mod domain;
mod failpoint;
mod fleet;
mod host;
mod metrics;
mod microvm;
mod server;

use clap::Parser as _;

/// Runs microVMs on this machine for a Torpor scheduler.
#[derive(clap::Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    settings: settings::Cli,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Some(config) = settings::load::<config::Config>("host-agent", &arguments.settings)? else {
        return Ok(());
    };
    config.check().map_err(anyhow::Error::msg)?;
    failpoint::arm(config.failpoints);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let telemetry = telemetry::init("host-agent", &config.telemetry).await?;
            app::App::build(config, &telemetry).await?.run().await
        })
}
