//! MicroVMs.

use api::common::v1::IdlePolicy;
use api::microvm::v1::{
    GetMicrovmRequest, ListMicrovmsRequest, Microvm, ResumeMicrovmRequest, RunMicrovmRequest,
    SuspendMicrovmRequest, TerminateMicrovmRequest,
};
use aws_model::Input;
use prost_types::Duration;
use serde_json::{Map, Value, json};
use tonic::Status;

use super::{Answer, Call, Failure, client_token, configuration, members, missing, text, word};
use crate::aws::members::Members;

/// Longest wait for a suspend or resume to be done: hooks may take a minute, and
/// clients give up about then. Most are done within milliseconds, and refusals
/// are known at once.
const TRANSITION_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// RunMicrovm.
pub async fn run(call: Call<'_>, input: Input) -> Answer {
    let image_identifier = call.image(&input)?;
    let mut request = Members::from(input.into_members());
    let message = RunMicrovmRequest {
        image_identifier,
        image_version: request.text("imageVersion"),
        execution_role_arn: request.text("executionRoleArn"),
        idle_policy: request.structure("idlePolicy").map(idle_policy),
        maximum_duration: request.integer("maximumDurationInSeconds").map(seconds),
        run_hook_payload: request.text("runHookPayload"),
        logging: request.structure("logging").map(configuration::logging),
        ingress_network_connectors: request.texts("ingressNetworkConnectors"),
        egress_network_connectors: request.texts("egressNetworkConnectors"),
        client_token: client_token(request.optional_text("clientToken")),
    };
    let ran =
        call.services
            .microvms(call.request_id, message, |mut client, request| async move {
                client.run_microvm(request).await
            })
            .await?;
    detail(call, ran.microvm)
}

/// GetMicrovm.
pub async fn get(call: Call<'_>, input: Input) -> Answer {
    let message = GetMicrovmRequest { microvm_id: id(&input) };
    let found =
        call.services
            .microvms(call.request_id, message, |mut client, request| async move {
                client.get_microvm(request).await
            })
            .await?;
    detail(call, found.microvm)
}

/// ListMicrovms.
pub async fn list(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let image_identifier = match input.text("imageIdentifier") {
        Some(_) => call.image(&input)?,
        None => String::new(),
    };
    let message = ListMicrovmsRequest {
        page_size,
        page_token,
        image_identifier,
        image_version: input.text("imageVersion").unwrap_or_default().to_owned(),
    };
    let listed = call
        .services
        .microvms(call.request_id, message, |mut client, request| async move {
            client.list_microvms(request).await
        })
        .await?;
    let items = listed.microvms.into_iter().map(|microvm| {
        members([
            ("startedAt", call.time(microvm.start_time)),
            ("state", state(&microvm)),
            ("imageArn", microvm.image_arn.into()),
            ("imageVersion", microvm.image_version.into()),
            ("microvmId", microvm.microvm_id.into()),
        ])
    });
    Ok(call.items(&input, items, &listed.next_page_token))
}

/// SuspendMicrovm.
pub async fn suspend(call: Call<'_>, input: Input) -> Answer {
    let message = SuspendMicrovmRequest { microvm_id: id(&input) };
    let asked = call.services.microvms(call.request_id, message, |mut client, request| async move {
        client.suspend_microvm(request).await
    });
    begun(asked).await
}

/// The answer to a change of state: empty, when it is done or well under way. The
/// scheduler finishes what it began whether or not somebody still waits.
async fn begun<T>(asked: impl Future<Output = Result<T, Status>>) -> Answer {
    match tokio::time::timeout(TRANSITION_WAIT, asked).await {
        Ok(Err(status)) => Err(status.into()),
        Ok(Ok(_)) | Err(_) => Ok(Map::new()),
    }
}

/// ResumeMicrovm.
pub async fn resume(call: Call<'_>, input: Input) -> Answer {
    let message = ResumeMicrovmRequest { microvm_id: id(&input) };
    let asked = call.services.microvms(call.request_id, message, |mut client, request| async move {
        client.resume_microvm(request).await
    });
    begun(asked).await
}

/// TerminateMicrovm.
pub async fn terminate(call: Call<'_>, input: Input) -> Answer {
    let message = TerminateMicrovmRequest { microvm_id: id(&input) };
    call.services
        .microvms(call.request_id, message, |mut client, request| async move {
            client.terminate_microvm(request).await
        })
        .await?;
    Ok(Map::new())
}

/// The id that a request names.
pub fn id(input: &Input) -> String {
    input.text("microvmIdentifier").unwrap_or_default().to_owned()
}

fn detail(call: Call<'_>, microvm: Option<Microvm>) -> Result<Map<String, Value>, Failure> {
    let microvm = microvm.ok_or_else(|| missing("a microVM"))?;
    let idle_policy = |policy: IdlePolicy| {
        json!({
            "autoResumeEnabled": policy.auto_resume_enabled,
            "maxIdleDurationSeconds": whole_seconds(policy.max_idle_duration),
            "suspendedDurationSeconds": whole_seconds(policy.suspended_duration),
        })
    };
    Ok(members([
        ("startedAt", call.time(microvm.start_time)),
        ("state", state(&microvm)),
        ("terminatedAt", call.time(microvm.terminate_time)),
        ("egressNetworkConnectors", microvm.egress_network_connectors.into()),
        ("endpoint", microvm.endpoint.into()),
        ("executionRoleArn", text(microvm.execution_role_arn)),
        ("idlePolicy", microvm.idle_policy.map_or(Value::Null, idle_policy)),
        ("imageArn", microvm.image_arn.into()),
        ("imageVersion", microvm.image_version.into()),
        ("ingressNetworkConnectors", microvm.ingress_network_connectors.into()),
        ("maximumDurationInSeconds", whole_seconds(microvm.maximum_duration)),
        ("microvmId", microvm.microvm_id.into()),
        ("stateReason", text(microvm.state_reason)),
    ]))
}

fn state(microvm: &Microvm) -> Value {
    word(microvm.state().as_str_name(), "MICROVM_STATE_")
}

fn idle_policy(mut policy: Members) -> IdlePolicy {
    IdlePolicy {
        max_idle_duration: policy.integer("maxIdleDurationSeconds").map(seconds),
        suspended_duration: policy.integer("suspendedDurationSeconds").map(seconds),
        auto_resume_enabled: policy.flag("autoResumeEnabled"),
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

fn whole_seconds(duration: Option<Duration>) -> Value {
    duration.map_or(Value::Null, |duration| duration.seconds.into())
}
