//! `torpor-image-builder --config FILE`.

use clap::Parser;
use image_builder::adapters::sandbox;
use image_builder::app::App;
use image_builder::config::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Builds images for Torpor.
#[derive(Parser)]
#[command(name = "torpor-image-builder", version)]
struct Arguments {
    #[command(flatten)]
    settings: settings::Cli,
}

fn main() -> std::process::ExitCode {
    // A stage of a build's sandbox is this program too, and none of the below.
    sandbox::enter_if_stage();
    let arguments = Arguments::parse();
    let settings = match settings::load::<Settings>("image-builder", &arguments.settings) {
        Ok(Some(settings)) => settings,
        Ok(None) => return std::process::ExitCode::SUCCESS,
        Err(error) => return fail(&error.into()),
    };
    match run(settings) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

#[tokio::main]
async fn run(settings: Settings) -> anyhow::Result<()> {
    let telemetry = telemetry::init("image-builder", &settings.telemetry).await?;
    let shutdown = CancellationToken::new();
    let app = App::build(settings, &telemetry.registry()).await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    app.run(shutdown).await
}

fn fail(error: &anyhow::Error) -> std::process::ExitCode {
    eprintln!("torpor-image-builder: {error:#}");
    std::process::ExitCode::FAILURE
}
