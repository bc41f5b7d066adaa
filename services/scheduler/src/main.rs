//! `torpor-scheduler`: one replica of the scheduler.

use std::process::ExitCode;

use clap::Parser;
use scheduler::app::App;
use scheduler::config::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Keeps microVM records, places microVMs on hosts and drives their lives.
#[derive(Parser)]
#[command(name = "torpor-scheduler", version)]
struct Arguments {
    #[command(flatten)]
    settings: settings::Cli,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torpor-scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Some(settings) = settings::load::<Settings>("scheduler", &arguments.settings)? else {
        return Ok(());
    };
    settings.check()?;
    let telemetry = telemetry::init("scheduler", &settings.telemetry).await?;
    let app = App::bind(settings, &telemetry.registry()).await?;
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        stop.cancel();
    });
    app.run(shutdown).await
}
