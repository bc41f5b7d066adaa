//! Requests about network connectors. Forms and lengths first, all of them; then what the service asks for
//! although its model does not, one sentence at a time and in its order.

use std::collections::{BTreeMap, HashMap};

use api::connector::v1::{
    ComputeResourceType, CreateNetworkConnectorRequest, ElasticIpType, NetworkConnectorConfiguration,
    NetworkConnectorState, NetworkProtocol, UpdateNetworkConnectorRequest,
};
use model::limits::{
    CONNECTOR_NETWORK_ID_MAX, CONNECTOR_NETWORKS_MAX, CONNECTOR_ROLE_MAX, CONNECTOR_TOKEN_MAX, TAG_KEY_MAX,
    TAG_VALUE_MAX, TAGS_MAX,
};
use model::state::ConnectorState;
use model::{ConnectorArn, ConnectorName, ConnectorResource, Violations};
use prost::Message as _;

use super::{Findings, other_region};
use crate::config::Config;
use crate::domain::connector::{Change, Content};
use crate::domain::egress;
use crate::domain::idempotency::TokenUse;
use crate::refusal::Refusal;
use crate::term::connectors::{ConnectorRef, NewConnector};

/// Longest text that names a connector, characters.
const IDENTIFIER_MAX: usize = 140;

/// What a subnet's id begins with; capitals do not follow.
const SUBNET: &str = "subnet-";

/// A connector named by name, id or ARN.
pub fn identifier(text: &str, config: &Config) -> Result<ConnectorRef, Refusal> {
    const FIELD: &str = "identifier";
    let mut findings = Findings::default();
    if text.is_empty() || text.chars().count() > IDENTIFIER_MAX {
        findings.violations.add(FIELD, format!("must be 1 to {IDENTIFIER_MAX} characters"));
        return findings.finish(None);
    }
    if !text.starts_with("arn:") {
        let key = findings.violations.keep(FIELD, text.parse());
        return findings.finish(key.map(|key| ConnectorRef { key, version: None }));
    }
    match text.parse::<ConnectorArn>() {
        Err(error) => Err(Refusal::sentence(FIELD, error.to_string())),
        Ok(arn) if arn.region != config.region => Err(other_region(FIELD, text)),
        Ok(ConnectorArn { resource: ConnectorResource::Customer { account, key, version }, .. })
            if account == config.account =>
        {
            Ok(ConnectorRef { key, version })
        }
        Ok(_) => Err(Refusal::ForeignAccount(text.to_owned())),
    }
}

/// A connector that is named as a whole, without a version.
pub fn unqualified(text: &str, config: &Config) -> Result<ConnectorRef, Refusal> {
    let named = identifier(text, config)?;
    match named.version {
        None => Ok(named),
        Some(_) => Err(Refusal::sentence(
            "identifier",
            format!("{text} names one version; this call is about the whole network connector"),
        )),
    }
}

pub fn create(request: &CreateNetworkConnectorRequest) -> Result<NewConnector, Refusal> {
    let mut findings = Findings::default();
    let found = &mut findings.violations;
    let name: Option<ConnectorName> = found.keep("name", request.name.parse());
    token_form(&request.client_token, found);
    role(&request.operator_role, found);
    let tags = tags(&request.tags, found);
    let given = request.configuration.clone().unwrap_or_default();
    configuration(&given, found);
    if given.network_protocol() != NetworkProtocol::Unspecified {
        egress::check(&tags, given.network_protocol(), found);
    }
    required(request, &mut findings);
    let name = findings.finish(name)?;
    let plain = CreateNetworkConnectorRequest {
        client_token: String::new(),
        tags: HashMap::new(),
        ..request.clone()
    };
    // A map's encoding has no fixed order; its sorted form does.
    let parameters = [plain.encode_to_vec(), format!("{tags:?}").into_bytes()].concat();
    Ok(NewConnector {
        name,
        content: Content { configuration: given, operator_role: request.operator_role.clone() },
        tags,
        token: TokenUse::of(&request.client_token, &parameters),
    })
}

/// What the service asks for, in its order and words.
fn required(request: &CreateNetworkConnectorRequest, findings: &mut Findings) {
    let given = request.configuration.as_ref();
    let rules = [
        (!request.client_token.is_empty(), "clientToken", "ClientToken is a required field"),
        (given.is_some(), "configuration", "Configuration is a required field"),
        (
            given.is_some_and(|given| !given.associated_compute_resource_types.is_empty()),
            "configuration.associatedComputeResourceTypes",
            "AssociatedComputeResourceTypes is required for VPC_EGRESS connector type",
        ),
        (
            given.is_some_and(|given| given.network_protocol() != NetworkProtocol::Unspecified),
            "configuration.networkProtocol",
            "NetworkProtocol cannot be null or empty for VPC_EGRESS connector",
        ),
        (
            !request.operator_role.is_empty(),
            "operatorRole",
            "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type",
        ),
        (
            given.is_some_and(|given| !given.subnet_ids.is_empty()),
            "configuration.subnetIds",
            "SubnetIds is required for VPC_EGRESS connector type",
        ),
    ];
    if let Some((_, field, sentence)) = rules.into_iter().find(|(holds, ..)| !holds) {
        findings.refuse(Refusal::sentence(field, sentence));
    }
}

/// A change of a connector, with its client token.
pub fn update(request: &UpdateNetworkConnectorRequest) -> Result<(Change, TokenUse), Refusal> {
    let mut findings = Findings::default();
    token_form(&request.client_token, &mut findings.violations);
    role(&request.operator_role, &mut findings.violations);
    if let Some(given) = &request.configuration {
        configuration(given, &mut findings.violations);
    }
    if request.client_token.is_empty() {
        findings.refuse(Refusal::sentence("clientToken", "ClientToken is a required field"));
    }
    findings.finish(Some(()))?;
    let plain = UpdateNetworkConnectorRequest { client_token: String::new(), ..request.clone() };
    let role = Some(request.operator_role.clone()).filter(|role| !role.is_empty());
    let change = Change { configuration: request.configuration.clone(), operator_role: role };
    Ok((change, TokenUse::of(&request.client_token, &plain.encode_to_vec())))
}

pub fn tags_to_set(given: &HashMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    let mut findings = Findings::default();
    let tags = tags(given, &mut findings.violations);
    findings.finish(Some(tags))
}

pub fn tags_to_remove(given: &[String]) -> Result<Vec<String>, Refusal> {
    let mut findings = Findings::default();
    findings.violations.check(
        (1..=TAGS_MAX).contains(&given.len()),
        "tagKeys",
        format!("must have 1 to {TAGS_MAX} entries"),
    );
    for (index, key) in given.iter().take(TAGS_MAX).enumerate() {
        tag_key(key, &format!("tagKeys[{index}]"), &mut findings.violations);
    }
    findings.finish(Some(given.to_vec()))
}

/// A state to filter by; those that no connector ever has match nothing.
pub fn state(given: NetworkConnectorState) -> Option<ConnectorState> {
    match given {
        NetworkConnectorState::Unspecified => None,
        NetworkConnectorState::Pending => Some(ConnectorState::Pending),
        NetworkConnectorState::Active => Some(ConnectorState::Active),
        NetworkConnectorState::Deleting => Some(ConnectorState::Deleting),
        NetworkConnectorState::Inactive
        | NetworkConnectorState::Failed
        | NetworkConnectorState::DeleteFailed => Some(ConnectorState::Deleted),
    }
}

fn token_form(token: &str, violations: &mut Violations) {
    let length = token.chars().count();
    violations.check(
        length <= CONNECTOR_TOKEN_MAX,
        "clientToken",
        format!("must be 1 to {CONNECTOR_TOKEN_MAX} characters"),
    );
}

/// A role's ARN; whether there is such a role nobody here knows.
fn role(text: &str, violations: &mut Violations) {
    let well_formed = || {
        let (partition, rest) = text.strip_prefix("arn:")?.split_once(":iam::")?;
        let (account, name) = rest.split_once(":role")?;
        let name = name.strip_prefix('/').unwrap_or(name);
        let partition = match partition.strip_prefix("aws") {
            Some(rest) => rest.chars().all(|c| c.is_ascii_alphabetic() || c == '-'),
            None => partition.is_empty(),
        };
        let account = account.len() == 12 && account.chars().all(|c| c.is_ascii_digit());
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-/".contains(c);
        (partition && account && !name.is_empty() && name.chars().all(allowed)).then_some(())
    };
    violations.check(
        text.is_empty() || (text.len() <= CONNECTOR_ROLE_MAX && well_formed().is_some()),
        "operatorRole",
        format!(
            "must be the ARN of a role, 'arn:aws:iam::<12 digits>:role/<name>', of at most \
             {CONNECTOR_ROLE_MAX} characters"
        ),
    );
}

fn configuration(given: &NetworkConnectorConfiguration, violations: &mut Violations) {
    let field = |name: &str| format!("configuration.{name}");
    networks(&given.subnet_ids, SUBNET, &field("subnetIds"), violations);
    networks(&given.security_group_ids, "sg-", &field("securityGroupIds"), violations);
    let types = &given.associated_compute_resource_types;
    let known = |kind: &i32| ComputeResourceType::try_from(*kind).is_ok_and(|kind| kind as i32 != 0);
    violations.check(
        types.len() <= 1 && types.iter().all(known),
        field("associatedComputeResourceTypes"),
        "must be exactly one of MicroVm, WebFunction",
    );
    violations.check(
        NetworkProtocol::try_from(given.network_protocol).is_ok(),
        field("networkProtocol"),
        "must be IPv4 or DualStack",
    );
    violations.check(
        ElasticIpType::try_from(given.elastic_ip_type).is_ok(),
        field("elasticIpConfiguration.type"),
        "must be None or ServiceManaged",
    );
}

fn networks(ids: &[String], prefix: &str, field: &str, violations: &mut Violations) {
    violations.check(
        ids.len() <= CONNECTOR_NETWORKS_MAX,
        field,
        format!("must have at most {CONNECTOR_NETWORKS_MAX} entries"),
    );
    for (index, id) in ids.iter().take(CONNECTOR_NETWORKS_MAX).enumerate() {
        let rest = id.strip_prefix(prefix);
        let lower = prefix == SUBNET;
        let allowed = |c: char| c.is_ascii_alphanumeric() && !(lower && c.is_ascii_uppercase());
        let well_formed = rest.is_some_and(|rest| rest.chars().all(allowed));
        violations.check(
            well_formed && id.len() <= CONNECTOR_NETWORK_ID_MAX,
            format!("{field}[{index}]"),
            format!(
                "must be '{prefix}' and letters or digits, at most {CONNECTOR_NETWORK_ID_MAX} characters"
            ),
        );
    }
}

fn tags(given: &HashMap<String, String>, violations: &mut Violations) -> BTreeMap<String, String> {
    violations.check(given.len() <= TAGS_MAX, "tags", format!("must have at most {TAGS_MAX} entries"));
    let sorted: BTreeMap<String, String> = given.clone().into_iter().take(TAGS_MAX).collect();
    for (key, value) in &sorted {
        tag_key(key, "tags", violations);
        violations.check(
            value.chars().count() <= TAG_VALUE_MAX && value.chars().all(is_tag_character),
            "tags",
            format!(
                "values must be at most {TAG_VALUE_MAX} letters, digits, spaces or characters of _.:/=+-@"
            ),
        );
    }
    sorted
}

fn tag_key(key: &str, field: &str, violations: &mut Violations) {
    violations.check(
        (1..=TAG_KEY_MAX).contains(&key.chars().count()) && key.chars().all(is_tag_character),
        field,
        format!("keys must be 1 to {TAG_KEY_MAX} letters, digits, spaces or characters of _.:/=+-@"),
    );
}

/// Letters, numbers and separators of every script, and a few signs.
fn is_tag_character(c: char) -> bool {
    c.is_alphanumeric() || (c.is_whitespace() && !c.is_control()) || "_.:/=+-@".contains(c)
}

#[cfg(test)]
mod tests;
