//! `torpor-edge-proxy --config FILE [--print-config]`

use std::process::ExitCode;

use clock::Clock;
use edge_proxy::app::App;
use edge_proxy::config::Config;

fn main() -> ExitCode {
    telemetry::run_service(
        "edge-proxy",
        "The public face of a Torpor fleet",
        |config: &Config| Ok(&config.telemetry),
        run,
    )
}

async fn run(config: Config, telemetry: &telemetry::Guard) -> anyhow::Result<()> {
    let shutdown = telemetry::shutdown_on_signal()?;
    let app = App::build(config, Clock::system(), &telemetry.registry()).await?;
    tracing::info!(address = %app.local_address()?, "serving endpoints");
    #[cfg(feature = "aws")]
    if let Some(address) = app.api_address()? {
        tracing::info!(%address, "serving the AWS-compatible API");
    }
    app.run(shutdown).await;
    Ok(())
}
