//! The connectors a launch names, by ARN.

use model::limits::CONNECTORS_MAX;
use model::{ConnectorArn, ConnectorResource, Direction, ManagedConnector};

use super::{Findings, other_region};
use crate::config::Config;
use crate::refusal::Refusal;

/// Longest ARN of a connector, characters.
const ARN_MAX: usize = 2048;
const INGRESS: &str = "ingressNetworkConnectors";
const EGRESS: &str = "egressNetworkConnectors";

/// Ingress connectors, the default one when none is named.
pub fn ingress(given: &[String], config: &Config, findings: &mut Findings) -> Vec<ConnectorArn> {
    let arns = parse(given, Direction::Ingress, config, findings);
    let closed = arns.iter().any(|arn| arn.managed_connector() == Some(ManagedConnector::NoIngress));
    if closed && arns.len() > 1 {
        findings.refuse(Refusal::sentence(
            INGRESS,
            "NO_INGRESS cannot be combined with other ingress network connectors",
        ));
    }
    arns
}

/// Egress connectors, the default one when none is named.
pub fn egress(given: &[String], config: &Config, findings: &mut Findings) -> Vec<ConnectorArn> {
    parse(given, Direction::Egress, config, findings)
}

fn parse(
    given: &[String],
    direction: Direction,
    config: &Config,
    findings: &mut Findings,
) -> Vec<ConnectorArn> {
    if given.is_empty() {
        let default = ManagedConnector::of(direction).take(1);
        return default.map(|connector| ConnectorArn::managed(&config.region, connector)).collect();
    }
    let list = match direction {
        Direction::Ingress => INGRESS,
        Direction::Egress => EGRESS,
    };
    findings.violations.check(
        given.len() <= CONNECTORS_MAX,
        list,
        format!("must have at most {CONNECTORS_MAX} entries"),
    );
    let mut arns = Vec::new();
    for (index, text) in given.iter().take(CONNECTORS_MAX).enumerate() {
        let field = format!("{list}[{index}]");
        if text.chars().count() > ARN_MAX {
            findings.violations.add(field, format!("must be at most {ARN_MAX} characters"));
            continue;
        }
        match one(text, &field, direction, config) {
            Ok(arn) => arns.push(arn),
            Err(refusal) => findings.refuse(refusal),
        }
    }
    arns
}

fn one(text: &str, field: &str, direction: Direction, config: &Config) -> Result<ConnectorArn, Refusal> {
    let arn: ConnectorArn =
        text.parse().map_err(|error: model::IdError| Refusal::sentence(field, error.to_string()))?;
    let fits = match &arn.resource {
        ConnectorResource::Customer { account, .. } if *account != config.account => {
            return Err(Refusal::ForeignAccount(text.to_owned()));
        }
        _ if arn.region != config.region => return Err(other_region(field, text)),
        // An account's own connectors let out only.
        ConnectorResource::Customer { .. } => direction == Direction::Egress,
        ConnectorResource::Managed(_) => {
            arn.managed_connector().is_some_and(|connector| connector.direction() == direction)
        }
    };
    if fits {
        return Ok(arn);
    }
    let word = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let known: Vec<&str> = ManagedConnector::of(direction).map(ManagedConnector::name).collect();
    let known = known.join(", ");
    Err(Refusal::sentence(field, format!("{text} is not an {word} network connector; known are {known}")))
}
