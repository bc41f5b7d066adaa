//! The other names of what a request is about. A policy is asked about a resource under every name it has, so
//! that none is a way around a denial: a connector has an id and a name, and a microVM belongs to an image.
//!
//! Costs a look-up each, so it is done for keys that have a policy only.

use std::collections::HashMap;

use api::connector::v1::GetNetworkConnectorRequest;
use api::microvm::v1::GetMicrovmRequest;
use tonic::{Code, Status};

use super::{Asked, Subject, connectors};
use crate::aws::account::{Account, Kind};
use crate::aws::services::{Services, ask};

/// Names by the name that a request uses.
#[derive(Debug, Default)]
pub(crate) struct Aliases(HashMap<String, Vec<String>>);

impl Aliases {
    pub(crate) fn of(&self, resource: &str) -> &[String] {
        self.0.get(resource).map_or(&[], Vec::as_slice)
    }

    /// Says that `resource` is called `names` too.
    pub(crate) fn add(&mut self, resource: &str, names: impl IntoIterator<Item = String>) {
        self.0.entry(resource.to_owned()).or_default().extend(names);
    }
}

/// Finds the other names of everything that a request is about. What does not exist has none.
pub(crate) async fn find(
    services: &Services,
    account: &Account,
    request_id: &str,
    asked: Asked<'_>,
) -> Result<Aliases, Status> {
    let Asked { needs, members, resource, .. } = asked;
    let mut aliases = Aliases::default();
    if needs.subject == Subject::Microvm {
        let message =
            GetMicrovmRequest { microvm_id: members.string("microvmIdentifier"), with_idleness: false };
        let found = ask!(services, request_id, microvms.get_microvm, message).await;
        let microvm = existing(found)?.and_then(|found| found.microvm);
        aliases.add(resource, microvm.map(|microvm| microvm.image_arn));
    }
    let named = std::iter::once(resource).chain(connectors(needs.passes, members));
    for name in named.filter(|name| account.is_own(Kind::Connector, name)) {
        if !aliases.of(name).is_empty() {
            continue;
        }
        let message = GetNetworkConnectorRequest { identifier: name.to_owned() };
        let found = ask!(services, request_id, connectors.get_network_connector, message).await;
        if let Some(connector) = existing(found)?.and_then(|found| found.connector) {
            let by_name = account.arn(Kind::Connector, &connector.name);
            aliases.add(name, [connector.connector_arn, by_name]);
        }
    }
    Ok(aliases)
}

/// What was found. A malformed name, or the name of nothing, passes here: the operation itself refuses it.
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
