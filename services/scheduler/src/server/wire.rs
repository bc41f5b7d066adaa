//! Records as callers see them.

use api::connector::v1::{NetworkConnector, UpdateStatus};
use api::microvm::v1 as wire;
use model::ConnectorArn;

use crate::adapters::codec::{wire_idle_policy, wire_state};
use crate::adapters::connectors::wire_state as wire_connector_state;
use crate::config::Settings;
use crate::domain::connector::Connector;
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
        kms_key_identifier: spec.kms_key_identifier.clone(),
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

/// A connector as its newest version has it, or as the given one does.
pub fn connector(connector: &Connector, version: Option<u64>, settings: &Settings) -> NetworkConnector {
    let one = version.and_then(|number| Some((number, connector.versions.get(&number)?)));
    let (number, shown) = one.unwrap_or_else(|| connector.newest());
    let id = connector.id.clone();
    let update = connector.update.as_ref().filter(|_| one.is_none());
    NetworkConnector {
        id: connector.id.to_string(),
        name: connector.name.to_string(),
        connector_arn: ConnectorArn::customer(&settings.region, &settings.account, id, None).to_string(),
        version: number,
        state: wire_connector_state(one.map_or(connector.state, |(_, version)| version.state)).into(),
        state_reason: if one.is_none() { connector.state_reason.clone() } else { String::new() },
        last_update_status: update
            .map_or(UpdateStatus::Unspecified, |update| match update.done {
                true => UpdateStatus::Successful,
                false => UpdateStatus::InProgress,
            })
            .into(),
        last_update_status_reason: update.map_or_else(String::new, |update| update.reason.clone()),
        configuration: Some(shown.content.configuration.clone()),
        operator_role: shown.content.operator_role.clone(),
        tags: connector.tags.clone().into_iter().collect(),
        create_time: Some(api::timestamp(connector.create_time)),
        update_time: Some(api::timestamp(shown.time)),
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
