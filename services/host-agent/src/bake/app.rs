//! Starting the app in a booted guest as a container runtime would, and waiting until it is ready.

use std::time::Duration;

use api::guest::v1::{AwaitReadyRequest, ReadyOutcome, StartAppRequest};
use api::hostagent::v1::BakeRequest;
use guest_link::Link;
use tokio::sync::watch;

use super::Progress;
use crate::domain::HostError;
use crate::domain::app_end::AppEnd;
use crate::domain::hooks::{HookName, Hooks};
use crate::microvm::link_error;

/// Longest wait for a port to listen when the request names none.
const SETTLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Port awaited when the image exposes none.
const PORT_DEFAULT: u32 = 8080;
/// How long the app's exit status may take after the news that it has ended.
const EXIT_STATUS_TIMEOUT: Duration = Duration::from_secs(1);

pub async fn start(link: &Link, request: &BakeRequest, region: &str) -> Result<(), HostError> {
    let app = request.app.clone().unwrap_or_default();
    let start = StartAppRequest {
        argv: app.entrypoint.iter().chain(&app.command).cloned().collect(),
        environment: environment(request, region),
        working_directory: app.working_directory,
        user: app.user,
        all_capabilities: request.all_capabilities,
        name_servers: vec![slot::GATEWAY_ADDRESS.to_string()],
    };
    match link.start_app(start).await {
        Ok(_) => Ok(()),
        Err(guest_link::Error::Failed { message, .. }) => Err(HostError::Guest {
            message: format!("the application could not be started: {message}"),
            outcome: "start_failed",
            exit_code: None,
        }),
        Err(error) => Err(link_error(&error)),
    }
}

/// The image's environment, then the caller's, then the platform's; a later
/// value of a name replaces an earlier one.
fn environment(request: &BakeRequest, region: &str) -> Vec<String> {
    let app = request.app.as_ref();
    let mut entries: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| {
        entries.retain(|(held, _)| held != name);
        entries.push((name.to_owned(), value.to_owned()));
    };
    for entry in app.iter().flat_map(|app| &app.environment) {
        if let Some((name, value)) = entry.split_once('=') {
            set(name, value);
        }
    }
    let mut own: Vec<_> = request.environment_variables.iter().collect();
    own.sort();
    for (name, value) in own {
        set(name, value);
    }
    set("AWS_LAMBDA_MICROVM_IMAGE_ARN", &request.image_arn);
    set("AWS_LAMBDA_MICROVM_IMAGE_NAME", &request.image_name);
    set("AWS_LAMBDA_MICROVM_IMAGE_VERSION", &request.image_version);
    set("AWS_REGION", region);
    entries.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Waits for the ready hook, or without one for a port to listen; without a
/// hook the wait running out is no failure, but returned as a warning.
pub async fn await_ready(
    link: &Link,
    request: &BakeRequest,
    progress: &Progress,
    ended: &mut watch::Receiver<Option<AppEnd>>,
) -> Result<Option<String>, HostError> {
    let hook = Hooks::from_wire(request.hooks.as_ref()).enabled(HookName::Ready);
    let settle = request.settle_timeout.as_ref().and_then(|timeout| api::duration(timeout).ok());
    let timeout = hook.map_or(settle.unwrap_or(SETTLE_TIMEOUT_DEFAULT), |hook| hook.timeout);
    let exposed = request.app.as_ref().map(|app| app.exposed_ports.clone()).unwrap_or_default();
    let ports = if exposed.is_empty() { vec![PORT_DEFAULT] } else { exposed };
    let wait = AwaitReadyRequest {
        hook_port: hook.map_or(0, |hook| hook.port),
        timeout: Some(api::duration_proto(timeout)),
        listen_ports: if hook.is_some() { Vec::new() } else { ports.clone() },
    };
    let answer = link.await_ready(wait).await.map_err(|error| link_error(&error))?;
    let seconds = timeout.as_secs();
    match (answer.outcome(), hook) {
        (ReadyOutcome::Ready, _) => {
            if answer.listening_port > 0 {
                progress.say(format!("port {} listens", answer.listening_port)).await;
            }
            Ok(None)
        }
        (ReadyOutcome::TimedOut, None) => {
            let warning = not_up(&ports, seconds);
            progress.say(warning.clone()).await;
            Ok(Some(warning))
        }
        (ReadyOutcome::AppExited, _) => Err(exited(ended, request.memory_mib).await),
        (ReadyOutcome::TimedOut, Some(_)) => Err(HostError::Hook {
            hook: "ready",
            message: format!("Ready lifecycle hook did not answer 200 within {seconds} seconds."),
            http_status: answer.http_status,
            timed_out: true,
        }),
        (_, _) => Err(HostError::Hook {
            hook: "ready",
            message: format!("Ready lifecycle hook returned HTTP status {}.", answer.http_status),
            http_status: answer.http_status,
            timed_out: false,
        }),
    }
}

/// What is said of an app that was not up in time. The snapshot is taken all the same: not every app listens.
fn not_up(ports: &[u32], seconds: u64) -> String {
    let which = match ports {
        [port] => format!("port {port}"),
        _ => format!("any of the ports {}", ports.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    };
    format!(
        "The application did not listen on {which} within {seconds} s, so its snapshot was taken as it was and \
         every launch waits for the rest of its start. EXPOSE the port it listens on in the Dockerfile, or \
         enable the ready hook, whose timeout is longer."
    )
}

/// The app ended before it was ready.
pub async fn exited(ended: &mut watch::Receiver<Option<AppEnd>>, memory_mib: u32) -> HostError {
    let known = tokio::time::timeout(EXIT_STATUS_TIMEOUT, ended.wait_for(Option::is_some)).await;
    let end = match known {
        Ok(Ok(end)) => *end,
        _ => None,
    };
    let message = match end {
        Some(end) => end.sentence(memory_mib),
        None => "The application exited.".to_owned(),
    };
    HostError::Guest { message, outcome: "app_exited", exit_code: end.map(|end| end.exit_code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_ports_time_and_next_step() {
        for (ports, which) in
            [(&[8080][..], "on port 8080 within 30 s"), (&[80, 90], "any of the ports 80, 90 within")]
        {
            let warning = not_up(ports, 30);
            assert!(warning.contains(which) && warning.contains("EXPOSE"), "{warning}");
        }
    }

    #[test]
    fn later_values_replace_earlier_ones() {
        let request = BakeRequest {
            image_name: "app".to_owned(),
            image_version: "1.0".to_owned(),
            app: Some(api::image::v1::AppConfiguration {
                environment: vec!["PATH=/bin".to_owned(), "A=1=2".to_owned(), "AWS_REGION=mine".to_owned()],
                ..Default::default()
            }),
            environment_variables: [("A".to_owned(), "3".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(
            environment(&request, "us-east-1"),
            [
                "PATH=/bin",
                "A=3",
                "AWS_LAMBDA_MICROVM_IMAGE_ARN=",
                "AWS_LAMBDA_MICROVM_IMAGE_NAME=app",
                "AWS_LAMBDA_MICROVM_IMAGE_VERSION=1.0",
                "AWS_REGION=us-east-1"
            ]
        );
    }
}
