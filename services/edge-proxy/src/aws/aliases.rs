//! The other names of what a request is about. A policy is asked about a
//! resource under every name it has, so that none is a way around a denial: a
//! connector has an id and a name, and a microVM belongs to an image.
//!
//! Costs a look-up each, so it is done for keys that have a policy only.

use std::collections::HashMap;

use api::connector::v1::GetNetworkConnectorRequest;
use api::microvm::v1::GetMicrovmRequest;
use aws_model::Operation;
use serde_json::{Map, Value};
use tonic::{Code, Status};

use crate::aws::access;
use crate::aws::arn::{Fleet, Kind};
use crate::aws::services::Services;

/// Names by the name that a request uses.
#[derive(Debug, Default)]
pub struct Aliases(HashMap<String, Vec<String>>);

impl Aliases {
    /// Other names of `resource`.
    #[must_use]
    pub fn of(&self, resource: &str) -> &[String] {
        self.0.get(resource).map_or(&[], Vec::as_slice)
    }

    /// Says that `resource` is called `names` too.
    pub fn add(&mut self, resource: &str, names: impl IntoIterator<Item = String>) {
        self.0.entry(resource.to_owned()).or_default().extend(names);
    }
}

/// Finds the other names of everything that a request is about. What does not
/// exist has none.
///
/// # Errors
/// When a service does not answer: nothing is permitted then.
pub async fn find(
    services: &Services,
    fleet: &Fleet,
    request_id: &str,
    operation: &Operation,
    members: &Map<String, Value>,
    resource: &str,
) -> Result<Aliases, Status> {
    let mut aliases = Aliases::default();
    if let Some(id) = members.get("microvmIdentifier").and_then(Value::as_str) {
        let message = GetMicrovmRequest { microvm_id: id.to_owned() };
        let found = services.microvms(request_id, message, |mut client, request| async move {
            client.get_microvm(request).await
        });
        let microvm = existing(found.await)?.and_then(|found| found.microvm);
        aliases.add(resource, microvm.map(|microvm| microvm.image_arn));
    }
    let named = std::iter::once(resource).chain(access::connectors(operation, members));
    for name in named.filter(|name| fleet.is_own(Kind::Connector, name)) {
        if !aliases.of(name).is_empty() {
            continue;
        }
        let message = GetNetworkConnectorRequest { identifier: name.to_owned() };
        let found = services.connectors(request_id, message, |mut client, request| async move {
            client.get_network_connector(request).await
        });
        if let Some(connector) = existing(found.await)?.and_then(|found| found.connector) {
            let by_name = fleet.arn(Kind::Connector, &connector.name);
            aliases.add(name, [connector.connector_arn, by_name]);
        }
    }
    Ok(aliases)
}

/// What was found. A name that is none, or of nothing, is for the operation itself
/// to refuse.
fn existing<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(status)
            if matches!(status.code(), Code::NotFound | Code::InvalidArgument | Code::PermissionDenied) =>
        {
            Ok(None)
        }
        Err(status) => Err(status),
    }
}
