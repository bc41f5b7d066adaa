//! MicroVMs.

use api::common::v1::IdlePolicy;
use api::microvm::v1::{
    GetMicrovmRequest, ListMicrovmsRequest, ListMicrovmsResponse, Microvm, ResumeMicrovmRequest,
    RunMicrovmRequest, SuspendMicrovmRequest, TerminateMicrovmRequest, TerminateMicrovmResponse,
};
use aws_model::{Members, Rejection};
use prost_types::Duration;
use serde_json::{Map, Value, json};
use tonic::Status;

use super::{Answer, Call, configuration, members, text, word};
use crate::aws::services::ask;

/// Longest wait for a suspend or resume to be done: hooks may take a minute, and clients give up about then. Most are done
/// within milliseconds, and refusals are known at once.
const TRANSITION_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

pub(super) fn run(call: &Call<'_>) -> Result<RunMicrovmRequest, Rejection> {
    let request = call.members();
    Ok(RunMicrovmRequest {
        image_identifier: image(call)?,
        image_version: request.string("imageVersion"),
        execution_role_arn: request.string("executionRoleArn"),
        idle_policy: request.structure("idlePolicy").map(idle_policy),
        maximum_duration: request.integer("maximumDurationInSeconds").map(seconds),
        run_hook_payload: request.string("runHookPayload"),
        logging: request.structure("logging").map(configuration::logging),
        ingress_network_connectors: request.strings("ingressNetworkConnectors"),
        egress_network_connectors: request.strings("egressNetworkConnectors"),
        client_token: call.client_token(),
        kms_key_identifier: request.string("kmsKeyIdentifier"),
        // Ours alone: the service has none.
        checkpoint_interval: None,
    })
}

pub(super) fn get(call: &Call<'_>) -> Result<GetMicrovmRequest, Rejection> {
    Ok(GetMicrovmRequest { microvm_id: id(call), with_idleness: false })
}

pub(super) fn detail(call: &Call<'_>, microvm: Microvm) -> Answer {
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
        ("kmsKeyIdentifier", text(microvm.kms_key_identifier)),
        ("stateReason", text(microvm.state_reason)),
    ]))
}

pub(super) fn list(call: &Call<'_>) -> Result<ListMicrovmsRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    let image_identifier = match call.members().text("imageIdentifier") {
        Some(_) => image(call)?,
        None => String::new(),
    };
    let image_version = call.members().string("imageVersion");
    Ok(ListMicrovmsRequest { page_size, page_token, image_identifier, image_version, unlaunchable: false })
}

pub(super) fn listed(call: &Call<'_>, page: ListMicrovmsResponse) -> Answer {
    let items = page.microvms.into_iter().map(|microvm| {
        members([
            ("startedAt", call.time(microvm.start_time)),
            ("state", state(&microvm)),
            ("imageArn", microvm.image_arn.into()),
            ("imageVersion", microvm.image_version.into()),
            ("microvmId", microvm.microvm_id.into()),
        ])
    });
    call.items(items, &page.next_page_token)
}

pub(super) async fn suspend(call: &Call<'_>) -> Answer {
    let message = SuspendMicrovmRequest { microvm_id: id(call) };
    begun(call, ask!(call.services, call.request_id, microvms.suspend_microvm, message)).await
}

pub(super) async fn resume(call: &Call<'_>) -> Answer {
    let message = ResumeMicrovmRequest { microvm_id: id(call) };
    begun(call, ask!(call.services, call.request_id, microvms.resume_microvm, message)).await
}

/// The answer to a change of state: empty, when it is done or well under way. The scheduler finishes what it began whether
/// or not the edge still waits.
async fn begun<T>(call: &Call<'_>, asked: impl Future<Output = Result<T, Status>>) -> Answer {
    match tokio::time::timeout(TRANSITION_WAIT, asked).await {
        Ok(answer) => call.answered(answer).map(|_| Map::new()),
        Err(_) => Ok(Map::new()),
    }
}

pub(super) fn terminate(call: &Call<'_>) -> Result<TerminateMicrovmRequest, Rejection> {
    Ok(TerminateMicrovmRequest { microvm_id: id(call) })
}

pub(super) fn terminated(_: &Call<'_>, _: TerminateMicrovmResponse) -> Answer {
    Ok(Map::new())
}

/// The id that a request names.
pub(super) fn id(call: &Call<'_>) -> String {
    call.members().string("microvmIdentifier")
}

/// The image that a request names; these operations have words of their own for what is none.
fn image(call: &Call<'_>) -> Result<String, Rejection> {
    call.image_or(|_| "Malformed ARN - doesn't start with 'arn:'".to_owned())
}

fn state(microvm: &Microvm) -> Value {
    word(microvm.state().as_str_name(), "MICROVM_STATE_")
}

fn idle_policy(policy: Members<'_>) -> IdlePolicy {
    IdlePolicy {
        max_idle_duration: policy.integer("maxIdleDurationSeconds").map(seconds),
        suspended_duration: policy.integer("suspendedDurationSeconds").map(seconds),
        auto_resume_enabled: policy.flag("autoResumeEnabled"),
        // The AWS API has no word for it.
        awake_while: None,
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

fn whole_seconds(duration: Option<Duration>) -> Value {
    duration.map_or(Value::Null, |duration| duration.seconds.into())
}
