//! Records as callers see them.

use std::collections::HashSet;
use std::time::SystemTime;

use api::common::v1::Metering;
use api::connector::v1::{NetworkConnector, UpdateStatus};
use api::domain::v1::{Domain, domain::Target};
use api::microvm::v1 as wire;
use model::{ConnectorArn, ImageName};

use crate::adapters::connectors::wire_state as wire_connector_state;
use crate::adapters::microvms::{wire_idle_policy, wire_recovery, wire_state};
use crate::config::Config;
use crate::domain::catalog::Catalog;
use crate::domain::connector::Connector;
use crate::domain::microvm::Microvm;
use crate::domain::usage::Day;
use crate::term::subscribers::Change;

/// Port that an HTTPS URL does not name.
const HTTPS_PORT: u16 = 443;

fn endpoint_url(endpoint: &str, port: u16) -> String {
    if port == HTTPS_PORT { format!("https://{endpoint}/") } else { format!("https://{endpoint}:{port}/") }
}

/// A record on the wire. The payload and the client token are never shown.
pub fn microvm(record: &Microvm, config: &Config) -> wire::Microvm {
    let spec = &record.spec;
    let endpoint = format!("{}.{}", spec.endpoint_label, config.endpoint_domain);
    wire::Microvm {
        microvm_id: record.id.to_string(),
        state: wire_state(record.state).into(),
        endpoint_url: endpoint_url(&endpoint, config.endpoint_port),
        endpoint,
        image_arn: spec.image.to_string(),
        image_name: spec.image.name.to_string(),
        image_version: spec.version.to_string(),
        execution_role_arn: spec.execution_role_arn.clone(),
        kms_key_identifier: spec.kms_key_identifier.clone(),
        token_revocations: record.token_revocations,
        idle_policy: spec.idle_policy.map(wire_idle_policy),
        maximum_duration: Some(api::duration_proto(spec.maximum_duration)),
        start_time: Some(api::timestamp(record.start_time)),
        terminate_time: record.terminate_time.map(api::timestamp),
        state_time: Some(api::timestamp(record.state_time)),
        state_reason: record.state_reason.clone(),
        ingress_network_connectors: spec.ingress.iter().map(ToString::to_string).collect(),
        egress_network_connectors: spec.egress.iter().map(ToString::to_string).collect(),
        host_id: record.placement.host.to_string(),
        generation: record.placement.generation,
        snapshot: record.snapshot.clone(),
        metering: record.metering,
        last_transition: record.last_transition.clone(),
        memory_mib: spec.snapshot.memory_mib,
        baseline_memory_mib: spec.baseline_mib,
        idleness: None,
        checkpoint_interval: spec.checkpoint_interval.map(api::duration_proto),
        recovery: record.recovery.as_ref().map(wire_recovery),
    }
}

/// A connector as its newest version has it, or as the given one does.
pub fn connector(
    connector: &Connector,
    version: Option<u64>,
    config: &Config,
    now: SystemTime,
) -> NetworkConnector {
    let one = version.and_then(|number| Some((number, connector.versions.get(&number)?)));
    let (number, shown) = one.unwrap_or_else(|| connector.newest());
    let id = connector.id.clone();
    let update_reason = connector.update_reason.clone().filter(|_| one.is_none());
    let update_status = match update_reason {
        None => UpdateStatus::Unspecified,
        Some(_) if connector.is_updating(now) => UpdateStatus::InProgress,
        Some(_) => UpdateStatus::Successful,
    };
    let life = one.map_or(connector.life, |(_, version)| version.life);
    NetworkConnector {
        id: connector.id.to_string(),
        name: connector.name.to_string(),
        connector_arn: ConnectorArn::customer(&config.region, &config.account, id, None).to_string(),
        version: number,
        state: wire_connector_state(life.state(now)).into(),
        state_reason: if one.is_none() { connector.state_reason.clone() } else { String::new() },
        last_update_status: update_status.into(),
        last_update_status_reason: update_reason.unwrap_or_default(),
        configuration: Some(shown.content.configuration.clone()),
        operator_role: shown.content.operator_role.clone(),
        tags: connector.tags.clone().into_iter().collect(),
        create_time: Some(api::timestamp(connector.life.made)),
        update_time: Some(api::timestamp(shown.life.made)),
    }
}

/// An own domain with the URL of its microVM.
pub fn domain(domain: Domain, config: &Config) -> Domain {
    let url = match domain.target {
        Some(Target::MicrovmId(_)) => endpoint_url(&domain.name, config.endpoint_port),
        Some(Target::ImageName(_)) | None => String::new(),
    };
    Domain { url, ..domain }
}

pub fn change(change: &Change, config: &Config) -> wire::WatchMicrovmsResponse {
    wire::WatchMicrovmsResponse {
        microvm: Some(microvm(&change.microvm, config)),
        tunnel_address: change.tunnel_address.clone(),
        synced: false,
        deleted: change.deleted,
    }
}

/// What was used by day and image, with the tags of the images that are still there.
pub fn usage(used: Vec<(Day, ImageName, Metering)>, catalog: &Catalog) -> wire::GetUsageResponse {
    let named: HashSet<&ImageName> = used.iter().map(|(_, image, _)| image).collect();
    let tagged = catalog.tags().filter(|(image, _)| named.contains(image));
    let images =
        tagged.map(|(image, tags)| wire::ImageTags { image_name: image.to_string(), tags: tags.clone() });
    let images = images.collect();
    let rows = used.into_iter().map(|(day, image, used)| wire::UsageRow {
        day: Some(api::timestamp(day.start())),
        image_name: image.to_string(),
        used: Some(used),
    });
    wire::GetUsageResponse { rows: rows.collect(), images }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_port_only_where_a_client_needs_it() {
        for (port, url) in
            [(443, "https://x.microvms.localhost/"), (8443, "https://x.microvms.localhost:8443/")]
        {
            assert_eq!(endpoint_url("x.microvms.localhost", port), url);
        }
    }
}
