//! A microVM's record as bytes in etcd, under `microvms/<id>`.
//!
//! One protobuf message of our own around the API's messages. Fields are only
//! ever added; a `format` this code does not know is refused, never guessed at.

use std::time::SystemTime;

use api::common::v1::{Hooks, IdlePolicy as WireIdlePolicy, Logging, Metering};
use api::hostagent::v1::egress::Reach;
use api::hostagent::v1::{Egress, EgressPolicy, Ingress, Internet, MicrovmSpec};
use api::image::v1::SnapshotRef;
use api::microvm::v1::{LastTransition, MicrovmState as WireState, Recovery as WireRecovery, SnapshotCopies};
use model::state::MicrovmState;
use model::{ConnectorArn, HostId, IdError, MicrovmId};
use prost::Message;
use prost_types::{Duration as WireDuration, Timestamp};

use crate::domain::idempotency::TokenUse;
use crate::domain::microvm::{IdlePolicy, Intent, Microvm, Payload, Placement, Recovery, Spec};

pub const PREFIX: &str = "microvms/";
const FORMAT: u32 = 1;

pub fn key(id: &MicrovmId) -> String {
    format!("{PREFIX}{id}")
}

/// Bytes that are no record of ours.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("not a microVM record: {0}")]
    Malformed(String),
    #[error("record format {0} is not known")]
    Format(u32),
    #[error("not a microVM record: {0}")]
    Id(#[from] IdError),
    #[error("not a microVM record: {0}")]
    Conversion(#[from] api::ConversionError),
}

/// What was asked for. Connectors are kept as they were named; what a host is
/// told of them is worked out anew for each call.
#[derive(Clone, PartialEq, Message)]
struct StoredSpec {
    #[prost(string, tag = "1")]
    microvm_id: String,
    #[prost(string, tag = "2")]
    endpoint_label: String,
    #[prost(string, tag = "4")]
    image_arn: String,
    #[prost(string, tag = "5")]
    image_version: String,
    #[prost(message, optional, tag = "6")]
    snapshot: Option<SnapshotRef>,
    #[prost(message, optional, tag = "7")]
    hooks: Option<Hooks>,
    #[prost(message, optional, tag = "8")]
    idle_policy: Option<WireIdlePolicy>,
    #[prost(string, tag = "9")]
    run_hook_payload: String,
    #[prost(string, repeated, tag = "10")]
    ingress: Vec<String>,
    #[prost(string, repeated, tag = "11")]
    egress: Vec<String>,
    #[prost(message, optional, tag = "30")]
    egress_policy: Option<EgressPolicy>,
    #[prost(bool, tag = "13")]
    end_connections: bool,
    #[prost(message, optional, tag = "14")]
    checkpoint_interval: Option<WireDuration>,
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(message, optional, tag = "2")]
    spec: Option<StoredSpec>,
    #[prost(string, tag = "3")]
    execution_role_arn: String,
    #[prost(string, tag = "23")]
    kms_key_identifier: String,
    #[prost(message, optional, tag = "4")]
    maximum_duration: Option<WireDuration>,
    #[prost(message, optional, tag = "5")]
    logging: Option<Logging>,
    #[prost(uint32, tag = "6")]
    baseline_mib: u32,
    #[prost(bytes = "vec", tag = "7")]
    token_digest: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    parameters_digest: Vec<u8>,
    #[prost(bool, tag = "9")]
    end: bool,
    #[prost(string, tag = "10")]
    host_id: String,
    #[prost(uint64, tag = "11")]
    generation: u64,
    #[prost(message, optional, tag = "12")]
    placement_time: Option<Timestamp>,
    #[prost(string, tag = "13")]
    fingerprint: String,
    #[prost(enumeration = "WireState", tag = "14")]
    state: i32,
    #[prost(string, tag = "15")]
    state_reason: String,
    #[prost(message, optional, tag = "16")]
    state_time: Option<Timestamp>,
    #[prost(message, optional, tag = "17")]
    start_time: Option<Timestamp>,
    #[prost(message, optional, tag = "18")]
    terminate_time: Option<Timestamp>,
    #[prost(uint64, tag = "19")]
    observation: u64,
    #[prost(message, optional, tag = "20")]
    snapshot: Option<SnapshotCopies>,
    #[prost(message, optional, tag = "21")]
    metering: Option<Metering>,
    #[prost(message, optional, tag = "22")]
    last_transition: Option<LastTransition>,
    #[prost(uint64, tag = "24")]
    token_revocations: u64,
    #[prost(message, optional, tag = "25")]
    recovery: Option<WireRecovery>,
    #[prost(message, optional, tag = "26")]
    metering_before: Option<Metering>,
    #[prost(message, optional, tag = "27")]
    metering_counted: Option<Metering>,
}

pub fn encode(microvm: &Microvm) -> Vec<u8> {
    Stored {
        format: FORMAT,
        spec: Some(stored_spec(microvm)),
        execution_role_arn: microvm.spec.execution_role_arn.clone(),
        kms_key_identifier: microvm.spec.kms_key_identifier.clone(),
        maximum_duration: Some(api::duration_proto(microvm.spec.maximum_duration)),
        logging: microvm.spec.logging.clone(),
        baseline_mib: microvm.spec.baseline_mib,
        token_digest: microvm.token.map(|used| used.token.to_vec()).unwrap_or_default(),
        parameters_digest: microvm.token.map(|used| used.parameters.to_vec()).unwrap_or_default(),
        end: microvm.intent == Intent::End,
        host_id: microvm.placement.host.to_string(),
        generation: microvm.placement.generation,
        placement_time: Some(api::timestamp(microvm.placement.time)),
        fingerprint: microvm.placement.fingerprint.clone(),
        state: wire_state(microvm.state).into(),
        state_reason: microvm.state_reason.clone(),
        state_time: Some(api::timestamp(microvm.state_time)),
        start_time: Some(api::timestamp(microvm.start_time)),
        terminate_time: microvm.terminate_time.map(api::timestamp),
        observation: microvm.observation,
        snapshot: microvm.snapshot.clone(),
        metering: microvm.metering,
        metering_before: microvm.metering_before,
        metering_counted: microvm.metering_counted,
        last_transition: microvm.last_transition.clone(),
        token_revocations: microvm.token_revocations,
        recovery: microvm.recovery.as_ref().map(wire_recovery),
    }
    .encode_to_vec()
}

/// A record from bytes.
pub fn decode(bytes: &[u8]) -> Result<Microvm, CodecError> {
    let stored = Stored::decode(bytes).map_err(|error| CodecError::Malformed(error.to_string()))?;
    if stored.format != FORMAT {
        return Err(CodecError::Format(stored.format));
    }
    let missing = |what: &str| CodecError::Malformed(format!("{what} is missing"));
    let time = |value: Option<Timestamp>, what: &str| -> Result<SystemTime, CodecError> {
        Ok(api::system_time(&value.ok_or_else(|| missing(what))?)?)
    };
    let state = model_state(WireState::try_from(stored.state).unwrap_or_default());
    let host: HostId = stored.host_id.parse()?;
    let spec = stored.spec.ok_or_else(|| missing("spec"))?;
    let maximum = stored.maximum_duration.ok_or_else(|| missing("maximum duration"))?;
    let digests = (stored.token_digest.try_into().ok(), stored.parameters_digest.try_into().ok());
    let token = match digests {
        (Some(token), Some(parameters)) => Some(TokenUse { token, parameters }),
        _ => None,
    };
    Ok(Microvm {
        id: spec.microvm_id.parse()?,
        spec: Spec {
            image: spec.image_arn.parse()?,
            version: spec.image_version.parse()?,
            snapshot: spec.snapshot.ok_or_else(|| missing("snapshot"))?,
            hooks: spec.hooks,
            end_connections: spec.end_connections,
            baseline_mib: stored.baseline_mib,
            endpoint_label: spec.endpoint_label,
            execution_role_arn: stored.execution_role_arn,
            kms_key_identifier: stored.kms_key_identifier,
            idle_policy: spec.idle_policy.as_ref().map(idle_policy).transpose()?,
            maximum_duration: api::duration(&maximum)?,
            payload: Payload(spec.run_hook_payload),
            logging: stored.logging,
            ingress: connectors(&spec.ingress)?,
            egress: connectors(&spec.egress)?,
            egress_policy: spec.egress_policy,
            checkpoint_interval: spec.checkpoint_interval.as_ref().map(api::duration).transpose()?,
        },
        token,
        intent: if stored.end { Intent::End } else { Intent::Live },
        placement: Placement {
            host,
            generation: stored.generation,
            time: time(stored.placement_time, "placement time")?,
            fingerprint: stored.fingerprint,
        },
        state: state.ok_or_else(|| missing("state"))?,
        state_reason: stored.state_reason,
        state_time: time(stored.state_time, "state time")?,
        start_time: time(stored.start_time, "start time")?,
        terminate_time: stored.terminate_time.as_ref().map(api::system_time).transpose()?,
        observation: stored.observation,
        snapshot: stored.snapshot,
        metering: stored.metering,
        metering_before: stored.metering_before,
        metering_counted: stored.metering_counted,
        last_transition: stored.last_transition,
        token_revocations: stored.token_revocations,
        recovery: match stored.recovery {
            None => None,
            Some(recovery) => Some(Recovery {
                host: recovery.host_id.parse()?,
                time: time(recovery.time, "time of the recovery")?,
                point_time: time(recovery.point_time, "time of the recovery point")?,
            }),
        },
    })
}

fn stored_spec(microvm: &Microvm) -> StoredSpec {
    let spec = &microvm.spec;
    let texts = |arns: &[ConnectorArn]| arns.iter().map(ToString::to_string).collect();
    StoredSpec {
        microvm_id: microvm.id.to_string(),
        endpoint_label: spec.endpoint_label.clone(),
        image_arn: spec.image.to_string(),
        image_version: spec.version.to_string(),
        snapshot: Some(spec.snapshot.clone()),
        hooks: spec.hooks,
        idle_policy: spec.idle_policy.map(wire_idle_policy),
        run_hook_payload: spec.payload.0.clone(),
        ingress: texts(&spec.ingress),
        egress: texts(&spec.egress),
        egress_policy: spec.egress_policy.clone(),
        end_connections: spec.end_connections,
        checkpoint_interval: spec.checkpoint_interval.map(api::duration_proto),
    }
}

fn connectors(texts: &[String]) -> Result<Vec<ConnectorArn>, IdError> {
    texts.iter().map(|text| text.parse()).collect()
}

/// What a host needs of a record to run it. Here connectors become what they mean; a host knows no ARN.
pub fn host_spec(microvm: &Microvm, now: SystemTime) -> MicrovmSpec {
    let spec = &microvm.spec;
    MicrovmSpec {
        microvm_id: microvm.id.to_string(),
        endpoint_label: spec.endpoint_label.clone(),
        image_name: spec.image.name.to_string(),
        image_arn: spec.image.to_string(),
        image_version: spec.version.to_string(),
        snapshot: Some(spec.snapshot.clone()),
        hooks: spec.hooks,
        idle_policy: spec.idle_policy.map(wire_idle_policy),
        run_hook_payload: spec.payload.0.clone(),
        ingress: Some(Ingress { http: spec.lets_requests_in(), shell: spec.lets_shells_in() }),
        egress: Some(Egress { reach: reach(spec) }),
        life_left: Some(api::duration_proto(microvm.deadline().duration_since(now).unwrap_or_default())),
        deadline: None,
        end_connections_at_suspend: spec.end_connections,
        checkpoint_interval: spec.checkpoint_interval.map(api::duration_proto),
    }
}

/// What the customer's connectors let out, or without them the platform's. With neither nothing is let out.
fn reach(spec: &Spec) -> Option<Reach> {
    match &spec.egress_policy {
        Some(policy) => Some(Reach::Policy(policy.clone())),
        None => spec.reaches_the_internet().then_some(Reach::Internet(Internet {})),
    }
}

pub fn wire_recovery(recovery: &Recovery) -> WireRecovery {
    WireRecovery {
        host_id: recovery.host.to_string(),
        time: Some(api::timestamp(recovery.time)),
        point_time: Some(api::timestamp(recovery.point_time)),
    }
}

pub fn wire_idle_policy(policy: IdlePolicy) -> WireIdlePolicy {
    WireIdlePolicy {
        max_idle_duration: Some(api::duration_proto(policy.max_idle)),
        suspended_duration: Some(api::duration_proto(policy.suspended)),
        auto_resume_enabled: policy.auto_resume,
        awake_while: policy.awake_while,
    }
}

fn idle_policy(policy: &WireIdlePolicy) -> Result<IdlePolicy, CodecError> {
    Ok(IdlePolicy {
        max_idle: api::duration(&policy.max_idle_duration.unwrap_or_default())?,
        suspended: api::duration(&policy.suspended_duration.unwrap_or_default())?,
        auto_resume: policy.auto_resume_enabled,
        awake_while: policy.awake_while,
    })
}

pub fn wire_state(state: MicrovmState) -> WireState {
    match state {
        MicrovmState::Pending => WireState::Pending,
        MicrovmState::Running => WireState::Running,
        MicrovmState::Suspending => WireState::Suspending,
        MicrovmState::Suspended => WireState::Suspended,
        MicrovmState::Terminating => WireState::Terminating,
        MicrovmState::Terminated => WireState::Terminated,
    }
}

/// The state from the wire; `None` when unspecified.
pub fn model_state(state: WireState) -> Option<MicrovmState> {
    Some(match state {
        WireState::Unspecified => return None,
        WireState::Pending => MicrovmState::Pending,
        WireState::Running => MicrovmState::Running,
        WireState::Suspending => MicrovmState::Suspending,
        WireState::Suspended => MicrovmState::Suspended,
        WireState::Terminating => MicrovmState::Terminating,
        WireState::Terminated => MicrovmState::Terminated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::microvm::tests::sample;
    use api::common::v1::AwakeWhile;
    use model::ManagedConnector;
    use std::time::Duration;

    #[test]
    fn records_round_trip() {
        let start = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let plain = sample(7, start);
        let mut full = plain.clone();
        full.token = Some(TokenUse::of("t", b"p"));
        full.spec.end_connections = true;
        full.spec.idle_policy = Some(IdlePolicy {
            max_idle: Duration::from_secs(60),
            suspended: Duration::ZERO,
            auto_resume: true,
            awake_while: Some(AwakeWhile { stream: true, shell: false, cpu_percent: Some(20) }),
        });
        full.intent = Intent::End;
        full.state = MicrovmState::Terminated;
        full.terminate_time = Some(start);
        full.token_revocations = 2;
        full.snapshot = Some(SnapshotCopies { remote: true, sequence: 3, ..Default::default() });
        full.spec.ingress = vec![ConnectorArn::managed("us-east-1", ManagedConnector::NoIngress)];
        full.spec.egress = vec![
            "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:2".parse().unwrap(),
            ConnectorArn::managed("us-east-1", ManagedConnector::InternetEgress),
        ];
        full.spec.egress_policy = Some(EgressPolicy {
            allow_cidrs: vec!["10.0.0.0/8".into()],
            deny_cidrs: vec!["10.1.0.0/16".into()],
        });
        for microvm in [plain, full] {
            assert_eq!(decode(&encode(&microvm)).unwrap(), microvm);
            assert_eq!(
                host_spec(&microvm, SystemTime::UNIX_EPOCH).end_connections_at_suspend,
                microvm.spec.end_connections
            );
        }
    }

    #[test]
    fn a_host_is_told_what_connectors_mean() {
        let mut microvm = sample(7, SystemTime::UNIX_EPOCH);
        let mut told = |egress: &[ManagedConnector], policy: Option<EgressPolicy>| {
            let arns = egress.iter().map(|one| ConnectorArn::managed("us-east-1", *one));
            microvm.spec.egress = arns.collect();
            microvm.spec.egress_policy = policy;
            host_spec(&microvm, SystemTime::UNIX_EPOCH)
        };
        let internet = [ManagedConnector::InternetEgress];
        let policy = EgressPolicy { allow_cidrs: vec!["10.0.0.0/8".into()], deny_cidrs: vec![] };
        for (egress, given, reach) in [
            (&internet[..], None, Some(Reach::Internet(Internet {}))),
            (&internet, Some(policy.clone()), Some(Reach::Policy(policy.clone()))),
            (&[], Some(policy.clone()), Some(Reach::Policy(policy.clone()))),
            (&[], None, None),
        ] {
            let spec = told(egress, given);
            assert_eq!(spec.egress, Some(Egress { reach }));
            assert_eq!(spec.ingress, Some(Ingress { http: true, shell: false }));
        }
        microvm.spec.ingress = vec![ConnectorArn::managed("us-east-1", ManagedConnector::NoIngress)];
        assert_eq!(
            host_spec(&microvm, SystemTime::UNIX_EPOCH).ingress,
            Some(Ingress { http: false, shell: false })
        );
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
        for bytes in [&b""[..], b"\xff", b"hello"] {
            assert!(decode(bytes).is_err());
        }
        let newer = Stored { format: 2, ..Default::default() }.encode_to_vec();
        assert!(matches!(decode(&newer), Err(CodecError::Format(2))));
    }
}
