//! The connector a build's traffic takes.

use api::image::v1::ImageConfiguration;
use model::{ConnectorArn, ManagedConnector, Violations};

use super::Offer;

const PATH: &str = "egressNetworkConnectors";

/// Checks the connector, and names that to the internet when there is none.
pub(super) fn complete(given: &mut ImageConfiguration, offer: &Offer<'_>, violations: &mut Violations) {
    let internet = ConnectorArn::managed(offer.region, ManagedConnector::InternetEgress);
    let connectors = &mut given.egress_network_connectors;
    violations.check(connectors.len() <= 1, PATH, "must be at most 1");
    let Some(connector) = connectors.first() else {
        connectors.push(internet.to_string());
        return;
    };
    let at = format!("{PATH}[0]");
    match violations.keep(&at, connector.parse::<ConnectorArn>()) {
        Some(arn) if arn != internet => violations
            .add(at, format!("Builds cannot use the network connector {arn}; they can use {internet}.")),
        _ => {}
    }
}
