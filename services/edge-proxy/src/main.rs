//! `torpor-edge-proxy --config FILE [--print-config]`

use std::process::ExitCode;

use clap::Parser;
use edge_proxy::app::App;
use edge_proxy::config::Config;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const SERVICE: &str = "edge-proxy";

/// The public face of a Torpor fleet.
#[derive(Parser)]
#[command(name = "torpor-edge-proxy", version)]
struct Arguments {
    #[command(flatten)]
    settings: settings::Cli,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torpor-edge-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Some(config) = settings::load::<Config>(SERVICE, &arguments.settings)? else {
        return Ok(());
    };
    let telemetry = telemetry::init(SERVICE, &config.telemetry).await?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = App::build(config, &telemetry.registry()).await?;
    tracing::info!(address = %app.local_address()?, "serving endpoints");
    if let Some(address) = app.api_address()? {
        tracing::info!(%address, "serving the AWS-compatible API");
    }
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    app.run(shutdown).await;
    Ok(())
}
