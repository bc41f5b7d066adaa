//! Connectors that a launch names: whether they can be used, and what they let
//! out together.

use std::sync::Arc;

use api::connector::v1::ComputeResourceType;
use api::hostagent::v1::EgressPolicy;
use model::ConnectorArn;
use model::state::ConnectorState;

use super::Term;
use super::connectors::ConnectorRef;
use crate::domain::connector::{Connector, Version};
use crate::domain::connectors::Entry;
use crate::domain::egress;
use crate::refusal::Refusal;

impl Term {
    /// What the customer's connectors among these let out together; absent when
    /// none is among them.
    ///
    /// # Errors
    /// [`Refusal`] for the first that cannot be used.
    pub(crate) fn egress_policy(&self, connectors: &[ConnectorArn]) -> Result<Option<EgressPolicy>, Refusal> {
        let attached: Vec<ConnectorRef> = connectors.iter().filter_map(ConnectorRef::of).collect();
        if attached.is_empty() {
            return Ok(None);
        }
        let internet = attached.len() < connectors.len();
        let entries = attached.iter().map(|named| self.connector(named));
        let entries: Vec<Arc<Entry>> = entries.collect::<Result<_, _>>()?;
        let mut used = Vec::new();
        for (named, entry) in attached.iter().zip(&entries) {
            let arn = self.connector_arn(named);
            let version =
                usable(&entry.connector, named.version).map_err(|state| Refusal::ConnectorState {
                    text: format!("The network connector {arn} is {state}; it must be ACTIVE to be used."),
                    arn: arn.to_string(),
                    state: state.name(),
                })?;
            let configuration = &version.content.configuration;
            let fits = configuration
                .associated_compute_resource_types()
                .any(|kind| kind == ComputeResourceType::MicroVm);
            if !fits {
                return Err(Refusal::sentence(
                    "egressNetworkConnectors",
                    format!("The network connector {arn} is not for compute resources of type MicroVm."),
                ));
            }
            used.push((&entry.connector.tags, configuration.network_protocol()));
        }
        Ok(Some(egress::policy(used.into_iter(), internet)))
    }
}

/// The version a launch uses, or the state that forbids it.
fn usable(connector: &Connector, version: Option<u64>) -> Result<&Version, ConnectorState> {
    if connector.state != ConnectorState::Active {
        return Err(connector.state);
    }
    let found = match version {
        Some(number) => connector.versions.get(&number),
        None => connector.usable().map(|(_, version)| version),
    };
    match found {
        Some(version) if version.state == ConnectorState::Active => Ok(version),
        Some(version) => Err(version.state),
        None => Err(ConnectorState::Deleted),
    }
}
