//! `torpor-image-builder --config FILE`.

use std::process::ExitCode;

use clock::Clock;
use image_builder::adapters::sandbox;
use image_builder::app::App;
use image_builder::config::Config;

fn main() -> ExitCode {
    // A stage of a build's sandbox is this program too, and none of the below.
    sandbox::enter_if_stage();
    telemetry::run_service(
        "image-builder",
        "Builds images for Torpor",
        |config: &Config| Ok(&config.telemetry),
        run,
    )
}

async fn run(config: Config, telemetry: &telemetry::Guard) -> anyhow::Result<()> {
    let app = App::build(config, &telemetry.registry(), Clock::system()).await?;
    app.run(telemetry::shutdown_on_signal()?).await
}
