//! `torpor-host-agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    telemetry::run_service(
        "host-agent",
        "Runs microVMs on this machine for a Torpor scheduler",
        host_agent::check,
        async |config, telemetry| host_agent::serve(config, telemetry).await,
    )
}
