//! What every service's `main` is: arguments, settings, telemetry, the service, an exit code. It lives here
//! because it needs settings and telemetry, and telemetry knows settings already.

use std::fmt::Display;
use std::process::ExitCode;

use serde::Serialize;
use serde::de::DeserializeOwned;
use settings::TelemetrySettings;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{Error, Guard};

/// Runs `service` ("scheduler"), whose `--help` begins with `about`: reads its settings, has `prepare` check
/// them and point at the telemetry section, then starts a runtime with telemetry and has `run` do the rest.
/// `prepare` runs before there is any other thread. An error becomes one line on standard error that begins
/// with `torpor-<service>: `, printed as `{:#}`, so that an `anyhow::Error` shows its sources.
///
/// Generic code is compiled where it is called: call this from a plain function
/// of the service's library, and let `main.rs` call that one.
pub fn run_service<S, E>(
    service: &'static str,
    about: &'static str,
    prepare: impl FnOnce(&S) -> Result<&TelemetrySettings, E>,
    run: impl AsyncFnOnce(S, &Guard) -> Result<(), E>,
) -> ExitCode
where
    S: Serialize + DeserializeOwned,
    E: Display + From<settings::Error> + From<Error> + From<std::io::Error>,
{
    match try_run(service, about, prepare, run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torpor-{service}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_run<S, E>(
    service: &'static str,
    about: &'static str,
    prepare: impl FnOnce(&S) -> Result<&TelemetrySettings, E>,
    run: impl AsyncFnOnce(S, &Guard) -> Result<(), E>,
) -> Result<(), E>
where
    S: Serialize + DeserializeOwned,
    E: From<settings::Error> + From<Error> + From<std::io::Error>,
{
    let arguments = settings::Cli::parse_as(service, about);
    let Some(settings) = settings::load::<S>(service, &arguments)? else {
        return Ok(());
    };
    let telemetry = prepare(&settings)?.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let guard = crate::init(service, &telemetry).await?;
        run(settings, &guard).await
    })
}

/// A token that the first SIGTERM or SIGINT cancels. From this call on neither
/// ends the process by itself. Needs a tokio runtime.
pub fn shutdown_on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    Ok(shutdown)
}
