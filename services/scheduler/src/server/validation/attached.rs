//! The connectors a launch names, by ARN.

use model::limits::CONNECTORS_MAX;
use model::{ConnectorArn, ConnectorName, ConnectorResource};

use super::{Findings, other_region};
use crate::config::Settings;
use crate::refusal::Refusal;
use crate::term::connectors::ConnectorRef;

/// Longest ARN of a connector, characters.
const ARN_MAX: usize = 2048;
const NO_INGRESS: &str = "NO_INGRESS";

/// Platform connectors of a direction; the first is the default.
struct Direction {
    field: &'static str,
    word: &'static str,
    known: &'static [&'static str],
}

const INGRESS: Direction = Direction {
    field: "ingressNetworkConnectors",
    word: "ingress",
    known: &["HTTP_INGRESS", "ALL_INGRESS", "SHELL_INGRESS", NO_INGRESS],
};
const EGRESS: Direction =
    Direction { field: "egressNetworkConnectors", word: "egress", known: &["INTERNET_EGRESS"] };

/// Egress connectors of a launch.
#[derive(Debug, Default, PartialEq)]
pub struct Egress {
    /// All of them.
    pub arns: Vec<String>,
    /// Those of the customer.
    pub customer: Vec<ConnectorRef>,
    /// Whether the platform's connector to everywhere is among them.
    pub internet: bool,
}

/// Ingress connectors, the default one when none is named.
pub fn ingress(given: &[String], settings: &Settings, findings: &mut Findings) -> Vec<String> {
    let arns = parse(given, &INGRESS, settings, findings);
    let closed = arns.iter().any(|arn| is(arn, NO_INGRESS));
    if closed && arns.len() > 1 {
        findings.refuse(Refusal::sentence(
            INGRESS.field,
            "NO_INGRESS cannot be combined with other ingress network connectors",
        ));
    }
    arns.iter().map(ToString::to_string).collect()
}

/// Egress connectors, the default one when none is named.
pub fn egress(given: &[String], settings: &Settings, findings: &mut Findings) -> Egress {
    let mut egress = Egress::default();
    for arn in parse(given, &EGRESS, settings, findings) {
        egress.arns.push(arn.to_string());
        match arn.resource {
            ConnectorResource::Managed(_) => egress.internet = true,
            ConnectorResource::Customer { key, version, .. } => {
                egress.customer.push(ConnectorRef { key, version });
            }
        }
    }
    egress
}

fn is(arn: &ConnectorArn, name: &str) -> bool {
    matches!(&arn.resource, ConnectorResource::Managed(found) if found.as_str() == name)
}

fn parse(
    given: &[String],
    direction: &Direction,
    settings: &Settings,
    findings: &mut Findings,
) -> Vec<ConnectorArn> {
    if given.is_empty() {
        let default: ConnectorName = direction.known[0].parse().expect("our own names are names");
        return vec![ConnectorArn::managed(&settings.region, default)];
    }
    let violations = &mut findings.violations;
    violations.check(
        given.len() <= CONNECTORS_MAX,
        direction.field,
        format!("must have at most {CONNECTORS_MAX} entries"),
    );
    let mut arns = Vec::new();
    for (index, text) in given.iter().take(CONNECTORS_MAX).enumerate() {
        let field = format!("{}[{index}]", direction.field);
        if text.chars().count() > ARN_MAX {
            let message = format!("must be at most {ARN_MAX} characters");
            findings.violations.add(field, message);
            continue;
        }
        match one(text, &field, direction, settings) {
            Ok(arn) => arns.push(arn),
            Err(refusal) => findings.refuse(refusal),
        }
    }
    arns
}

fn one(text: &str, field: &str, direction: &Direction, settings: &Settings) -> Result<ConnectorArn, Refusal> {
    let arn: ConnectorArn =
        text.parse().map_err(|error: model::IdError| Refusal::sentence(field, error.to_string()))?;
    match &arn.resource {
        ConnectorResource::Customer { account, .. } if *account != settings.account => {
            return Err(Refusal::ForeignAccount(text.to_owned()));
        }
        _ if arn.region != settings.region => return Err(other_region(field, text)),
        ConnectorResource::Managed(name) if direction.known.contains(&name.as_str()) => {}
        ConnectorResource::Customer { .. } if direction.field == EGRESS.field => {}
        ConnectorResource::Managed(_) | ConnectorResource::Customer { .. } => {
            let (word, known) = (direction.word, direction.known.join(", "));
            return Err(Refusal::sentence(
                field,
                format!("{text} is not an {word} network connector; known are {known}"),
            ));
        }
    }
    Ok(arn)
}
