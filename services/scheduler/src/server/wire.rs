//! Records as callers see them.

use api::microvm::v1 as wire;

use crate::adapters::codec::{wire_idle_policy, wire_state};
use crate::config::Settings;
use crate::domain::microvm::Microvm;
use crate::term::subscribers::Change;

/// A record on the wire. The payload and the client token are never shown.
pub fn microvm(record: &Microvm, settings: &Settings) -> wire::Microvm {
    let spec = &record.spec;
    let endpoint = format!("{}.{}", spec.endpoint_label, settings.endpoint_domain);
    wire::Microvm {
        microvm_id: record.id.to_string(),
        state: wire_state(record.state).into(),
        endpoint_url: format!("https://{endpoint}:{}/", settings.endpoint_port),
        endpoint,
        image_arn: spec.image.to_string(),
        image_name: spec.image.name.to_string(),
        image_version: spec.version.to_string(),
        execution_role_arn: spec.execution_role_arn.clone(),
        idle_policy: spec.idle_policy.map(wire_idle_policy),
        maximum_duration: Some(api::duration_proto(spec.maximum_duration)),
        start_time: Some(api::timestamp(record.start_time)),
        terminate_time: record.terminate_time.map(api::timestamp),
        state_time: Some(api::timestamp(record.state_time)),
        state_reason: record.state_reason.clone(),
        ingress_network_connectors: spec.ingress.clone(),
        egress_network_connectors: spec.egress.clone(),
        host_id: record.placement.host.to_string(),
        generation: record.placement.generation,
        snapshot: record.snapshot.clone(),
        metering: record.metering,
        last_transition: record.last_transition.clone(),
        memory_mib: spec.snapshot.memory_mib,
    }
}

/// A change for a watcher.
pub fn change(change: &Change, settings: &Settings) -> wire::WatchMicrovmsResponse {
    wire::WatchMicrovmsResponse {
        microvm: Some(microvm(&change.microvm, settings)),
        tunnel_address: change.tunnel_address.clone(),
        synced: false,
        deleted: change.deleted,
    }
}
