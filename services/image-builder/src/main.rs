//! `torpor-image-builder --config FILE`.

use std::process::ExitCode;

use image_builder::adapters::sandbox;
use image_builder::app::App;
use image_builder::config::Config;

fn main() -> ExitCode {
    // A stage of a build's sandbox is this program too, and none of the below.
    sandbox::enter_if_stage();
    telemetry::run_service(
        "image-builder",
        "Builds images for Torpor",
        |settings: &Config| Ok(&settings.telemetry),
        run,
    )
}

async fn run(settings: Config, telemetry: &telemetry::Guard) -> anyhow::Result<()> {
    let app = App::build(settings, &telemetry.registry()).await?;
    app.run(telemetry::shutdown_on_signal()?).await
}
