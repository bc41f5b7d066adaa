//! Network connectors.

use api::connector::v1::*;
use aws_model::{Members, Rejection};
use serde_json::{Value, json};

use super::{Answer, Call, given, members, text, texts, word};

const TYPE: &str = "VPC_EGRESS";

pub(super) fn create(call: &Call<'_>) -> Result<CreateNetworkConnectorRequest, Rejection> {
    let request = call.members();
    Ok(CreateNetworkConnectorRequest {
        name: request.string("Name"),
        configuration: configuration(request),
        operator_role: request.string("OperatorRole"),
        client_token: request.string("ClientToken"),
        tags: request.map("Tags"),
    })
}

pub(super) fn get(call: &Call<'_>) -> Result<GetNetworkConnectorRequest, Rejection> {
    Ok(GetNetworkConnectorRequest { identifier: identifier(call) })
}

pub(super) fn found(call: &Call<'_>, found: GetNetworkConnectorResponse) -> Answer {
    let latest = found.latest_version;
    let mut connector = found.connector.ok_or_else(|| call.lacks("connector"))?;
    let more = members([
        ("LatestVersion", version(latest)),
        ("LatestVersionArn", version_arn(&connector, latest)),
        ("StateReason", text(std::mem::take(&mut connector.state_reason))),
    ]);
    let mut answer = updated(call, connector)?;
    answer.extend(more);
    Ok(answer)
}

pub(super) fn list(call: &Call<'_>) -> Result<ListNetworkConnectorsRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    Ok(ListNetworkConnectorsRequest { page_size, page_token, state: state(call).into() })
}

pub(super) fn listed(call: &Call<'_>, page: ListNetworkConnectorsResponse) -> Answer {
    let item = |connector: NetworkConnector| {
        given([
            ("LastModified", call.time(connector.update_time)),
            ("LatestVersion", version(connector.version)),
            ("LatestVersionArn", version_arn(&connector, connector.version)),
            ("State", state_name(&connector)),
            ("Arn", connector.connector_arn.into()),
            ("Id", connector.id.into()),
            ("Name", connector.name.into()),
            ("Type", TYPE.into()),
        ])
    };
    Ok(members([
        ("NetworkConnectors", page.connectors.into_iter().map(item).collect()),
        ("NextMarker", call.next(&page.next_page_token)),
    ]))
}

pub(super) fn update(call: &Call<'_>) -> Result<UpdateNetworkConnectorRequest, Rejection> {
    Ok(UpdateNetworkConnectorRequest {
        identifier: identifier(call),
        configuration: configuration(call.members()),
        operator_role: call.members().string("OperatorRole"),
        client_token: call.members().string("ClientToken"),
    })
}

pub(super) fn updated(call: &Call<'_>, mut connector: NetworkConnector) -> Answer {
    let more = members([
        ("LastModified", call.time(connector.update_time)),
        ("LastUpdateStatus", update_status(&connector)),
        ("LastUpdateStatusReason", text(std::mem::take(&mut connector.last_update_status_reason))),
    ]);
    let mut answer = changed(call, connector)?;
    answer.extend(more);
    Ok(answer)
}

pub(super) fn delete(call: &Call<'_>) -> Result<DeleteNetworkConnectorRequest, Rejection> {
    Ok(DeleteNetworkConnectorRequest { identifier: identifier(call) })
}

pub(super) fn versions(call: &Call<'_>) -> Result<ListNetworkConnectorVersionsRequest, Rejection> {
    let (page_size, page_token) = call.page()?;
    let (identifier, state) = (identifier(call), state(call).into());
    Ok(ListNetworkConnectorVersionsRequest { identifier, page_size, page_token, state })
}

pub(super) fn listed_versions(call: &Call<'_>, page: ListNetworkConnectorVersionsResponse) -> Answer {
    let item = |connector: NetworkConnector| {
        given([
            ("LastModified", call.time(connector.update_time)),
            ("State", state_name(&connector)),
            ("Version", version(connector.version)),
            ("VersionArn", version_arn(&connector, connector.version)),
            ("Arn", connector.connector_arn.into()),
            ("Id", connector.id.into()),
            ("Name", connector.name.into()),
            ("StateReason", text(connector.state_reason)),
        ])
    };
    Ok(members([
        ("NetworkConnectorVersions", page.versions.into_iter().map(item).collect()),
        ("NextMarker", call.next(&page.next_page_token)),
    ]))
}

/// What every answer about one connector tells.
pub(super) fn changed(_: &Call<'_>, connector: NetworkConnector) -> Answer {
    Ok(members([
        ("State", state_name(&connector)),
        ("Version", version(connector.version)),
        ("VersionArn", version_arn(&connector, connector.version)),
        ("Arn", connector.connector_arn.into()),
        ("Configuration", connector.configuration.map_or(Value::Null, write_configuration)),
        ("Id", connector.id.into()),
        ("Name", connector.name.into()),
        ("OperatorRole", text(connector.operator_role)),
    ]))
}

fn identifier(call: &Call<'_>) -> String {
    call.members().string("Identifier")
}

fn state(call: &Call<'_>) -> NetworkConnectorState {
    let name = call.members().text("State").map(|name| format!("NETWORK_CONNECTOR_STATE_{name}"));
    name.and_then(|name| NetworkConnectorState::from_str_name(&name)).unwrap_or_default()
}

fn state_name(connector: &NetworkConnector) -> Value {
    word(connector.state().as_str_name(), "NETWORK_CONNECTOR_STATE_")
}

fn update_status(connector: &NetworkConnector) -> Value {
    match connector.last_update_status() {
        UpdateStatus::Unspecified => Value::Null,
        UpdateStatus::InProgress => "InProgress".into(),
        UpdateStatus::Successful => "Successful".into(),
        UpdateStatus::Failed => "Failed".into(),
    }
}

/// A version's number; null before the first.
fn version(version: u64) -> Value {
    if version == 0 { Value::Null } else { version.into() }
}

fn version_arn(connector: &NetworkConnector, version: u64) -> Value {
    if version == 0 { Value::Null } else { format!("{}:{version}", connector.connector_arn).into() }
}

fn configuration(request: Members<'_>) -> Option<NetworkConnectorConfiguration> {
    let vpc = request.structure("Configuration")?.structure("VpcEgressConfiguration")?;
    let protocol = match vpc.text("NetworkProtocol") {
        Some("IPv4") => NetworkProtocol::Ipv4,
        Some("DualStack") => NetworkProtocol::DualStack,
        _ => NetworkProtocol::Unspecified,
    };
    let types = vpc.texts("AssociatedComputeResourceTypes").map(|name| match name {
        "MicroVm" => ComputeResourceType::MicroVm.into(),
        "WebFunction" => ComputeResourceType::WebFunction.into(),
        _ => ComputeResourceType::Unspecified.into(),
    });
    let elastic = vpc.structure("ElasticIpConfiguration").unwrap_or_default();
    let elastic = match elastic.text("Type") {
        Some("None") => ElasticIpType::None,
        Some("ServiceManaged") => ElasticIpType::ServiceManaged,
        _ => ElasticIpType::Unspecified,
    };
    Some(NetworkConnectorConfiguration {
        subnet_ids: vpc.strings("SubnetIds"),
        security_group_ids: vpc.strings("SecurityGroupIds"),
        network_protocol: protocol.into(),
        associated_compute_resource_types: types.collect(),
        elastic_ip_type: elastic.into(),
    })
}

fn write_configuration(configuration: NetworkConnectorConfiguration) -> Value {
    let protocol = match configuration.network_protocol() {
        NetworkProtocol::Unspecified => Value::Null,
        NetworkProtocol::Ipv4 => "IPv4".into(),
        NetworkProtocol::DualStack => "DualStack".into(),
    };
    let elastic = match configuration.elastic_ip_type() {
        ElasticIpType::Unspecified => Value::Null,
        ElasticIpType::None => json!({"Type": "None"}),
        ElasticIpType::ServiceManaged => json!({"Type": "ServiceManaged"}),
    };
    let types: Vec<Value> = configuration
        .associated_compute_resource_types()
        .map(|kind| match kind {
            ComputeResourceType::Unspecified => Value::Null,
            ComputeResourceType::MicroVm => "MicroVm".into(),
            ComputeResourceType::WebFunction => "WebFunction".into(),
        })
        .collect();
    let vpc = given([
        ("SubnetIds", texts(configuration.subnet_ids)),
        ("SecurityGroupIds", configuration.security_group_ids.into()),
        ("NetworkProtocol", protocol),
        ("AssociatedComputeResourceTypes", types.into()),
        ("ElasticIpConfiguration", elastic),
    ]);
    json!({"VpcEgressConfiguration": vpc})
}
