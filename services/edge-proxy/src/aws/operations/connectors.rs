//! Network connectors.

use api::connector::v1::{
    ComputeResourceType, CreateNetworkConnectorRequest, DeleteNetworkConnectorRequest, ElasticIpType,
    GetNetworkConnectorRequest, ListNetworkConnectorVersionsRequest, ListNetworkConnectorsRequest,
    NetworkConnector, NetworkConnectorConfiguration, NetworkConnectorState, NetworkProtocol,
    UpdateNetworkConnectorRequest, UpdateStatus,
};
use aws_model::Input;
use serde_json::{Value, json};

use super::{Answer, Call, Failure, given, members, missing, text, texts, word};
use crate::aws::members::Members;

/// The one type of connectors.
const TYPE: &str = "VPC_EGRESS";

/// CreateNetworkConnector.
pub async fn create(call: Call<'_>, input: Input) -> Answer {
    let mut request = Members::from(input.into_members());
    let message = CreateNetworkConnectorRequest {
        name: request.text("Name"),
        configuration: configuration(&mut request),
        operator_role: request.text("OperatorRole"),
        client_token: request.text("ClientToken"),
        tags: request.map("Tags"),
    };
    let made = call
        .services
        .connectors(call.request_id, message, |mut client, request| async move {
            client.create_network_connector(request).await
        })
        .await?;
    changed(made.connector)
}

/// GetNetworkConnector.
pub async fn get(call: Call<'_>, input: Input) -> Answer {
    let (mut connector, latest) = find(call, identifier(&input)).await?;
    let reasons = members([
        ("LastModified", call.time(connector.update_time)),
        ("LastUpdateStatus", update_status(&connector)),
        ("LastUpdateStatusReason", text(std::mem::take(&mut connector.last_update_status_reason))),
        ("LatestVersion", version(latest)),
        ("LatestVersionArn", version_arn(&connector, latest)),
        ("StateReason", text(std::mem::take(&mut connector.state_reason))),
    ]);
    let mut answer = changed(Some(connector))?;
    answer.extend(reasons);
    Ok(answer)
}

/// ListNetworkConnectors.
pub async fn list(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let message = ListNetworkConnectorsRequest { page_size, page_token, state: state(&input).into() };
    let listed = call
        .services
        .connectors(call.request_id, message, |mut client, request| async move {
            client.list_network_connectors(request).await
        })
        .await?;
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
        ("NetworkConnectors", listed.connectors.into_iter().map(item).collect()),
        ("NextMarker", call.next(&input, &listed.next_page_token)),
    ]))
}

/// UpdateNetworkConnector.
pub async fn update(call: Call<'_>, input: Input) -> Answer {
    let identifier = identifier(&input);
    let mut request = Members::from(input.into_members());
    let message = UpdateNetworkConnectorRequest {
        identifier,
        configuration: configuration(&mut request),
        operator_role: request.text("OperatorRole"),
        client_token: request.text("ClientToken"),
    };
    let updated = call
        .services
        .connectors(call.request_id, message, |mut client, request| async move {
            client.update_network_connector(request).await
        })
        .await?;
    let mut connector = updated.connector.ok_or_else(|| missing("a connector"))?;
    let reasons = members([
        ("LastModified", call.time(connector.update_time)),
        ("LastUpdateStatus", update_status(&connector)),
        ("LastUpdateStatusReason", text(std::mem::take(&mut connector.last_update_status_reason))),
    ]);
    let mut answer = changed(Some(connector))?;
    answer.extend(reasons);
    Ok(answer)
}

/// DeleteNetworkConnector.
pub async fn delete(call: Call<'_>, input: Input) -> Answer {
    let message = DeleteNetworkConnectorRequest { identifier: identifier(&input) };
    let deleted = call
        .services
        .connectors(call.request_id, message, |mut client, request| async move {
            client.delete_network_connector(request).await
        })
        .await?;
    changed(deleted.connector)
}

/// ListNetworkConnectorVersions.
pub async fn versions(call: Call<'_>, input: Input) -> Answer {
    let (page_size, page_token) = call.page(&input)?;
    let message = ListNetworkConnectorVersionsRequest {
        identifier: identifier(&input),
        page_size,
        page_token,
        state: state(&input).into(),
    };
    let listed = call
        .services
        .connectors(call.request_id, message, |mut client, request| async move {
            client.list_network_connector_versions(request).await
        })
        .await?;
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
        ("NetworkConnectorVersions", listed.versions.into_iter().map(item).collect()),
        ("NextMarker", call.next(&input, &listed.next_page_token)),
    ]))
}

/// Reads a connector; also its newest version that may be used.
pub async fn find(call: Call<'_>, identifier: String) -> Result<(NetworkConnector, u64), Failure> {
    let message = GetNetworkConnectorRequest { identifier };
    let found = call
        .services
        .connectors(call.request_id, message, |mut client, request| async move {
            client.get_network_connector(request).await
        })
        .await?;
    let connector = found.connector.ok_or_else(|| missing("a connector"))?;
    Ok((connector, found.latest_version))
}

/// What every answer about one connector tells.
fn changed(connector: Option<NetworkConnector>) -> Answer {
    let connector = connector.ok_or_else(|| missing("a connector"))?;
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

fn identifier(input: &Input) -> String {
    input.text("Identifier").unwrap_or_default().to_owned()
}

fn state(input: &Input) -> NetworkConnectorState {
    let name = input.text("State").map(|name| format!("NETWORK_CONNECTOR_STATE_{name}"));
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

fn configuration(request: &mut Members) -> Option<NetworkConnectorConfiguration> {
    let mut vpc = request.structure("Configuration")?.structure("VpcEgressConfiguration")?;
    let protocol = match vpc.text("NetworkProtocol").as_str() {
        "IPv4" => NetworkProtocol::Ipv4,
        "DualStack" => NetworkProtocol::DualStack,
        _ => NetworkProtocol::Unspecified,
    };
    let types = vpc.texts("AssociatedComputeResourceTypes").into_iter();
    let types = types.map(|name| match name.as_str() {
        "MicroVm" => ComputeResourceType::MicroVm.into(),
        "WebFunction" => ComputeResourceType::WebFunction.into(),
        _ => ComputeResourceType::Unspecified.into(),
    });
    let elastic = vpc.structure("ElasticIpConfiguration");
    let elastic =
        elastic.map_or(ElasticIpType::Unspecified, |mut elastic| match elastic.text("Type").as_str() {
            "None" => ElasticIpType::None,
            "ServiceManaged" => ElasticIpType::ServiceManaged,
            _ => ElasticIpType::Unspecified,
        });
    Some(NetworkConnectorConfiguration {
        subnet_ids: vpc.texts("SubnetIds"),
        security_group_ids: vpc.texts("SecurityGroupIds"),
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
