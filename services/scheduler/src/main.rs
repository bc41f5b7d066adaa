//! `torpor-scheduler`: one replica of the scheduler.

use std::process::ExitCode;

use scheduler::app::App;
use scheduler::config::Settings;

fn main() -> ExitCode {
    telemetry::run_service(
        "scheduler",
        "Keeps microVM records, places microVMs on hosts and drives their lives",
        |settings: &Settings| {
            settings.check()?;
            Ok(&settings.telemetry)
        },
        run,
    )
}

async fn run(settings: Settings, telemetry: &telemetry::Guard) -> anyhow::Result<()> {
    let app = App::bind(settings, &telemetry.registry()).await?;
    app.run(telemetry::shutdown_on_signal()?).await
}
