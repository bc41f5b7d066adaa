//! Connectors and tags: requests as the services get them, and answers as clients get them.

use api::connector::v1::*;
use api::image::v1::{UntagImageRequest, UntagImageResponse};
use serde_json::{Value, json};

use crate::samples::{self, MICROVM};
use crate::translation::{map, ok};
use crate::world::{ACCOUNT, World, image};

const CONNECTORS: &str = "/2026-04-04/network-connectors";

fn connector() -> NetworkConnector {
    NetworkConnector {
        id: "nc-0190a5e2".into(),
        name: "office".into(),
        connector_arn: format!("arn:aws:lambda:us-east-1:{ACCOUNT}:network-connector:nc-0190a5e2"),
        version: 2,
        state: NetworkConnectorState::Active.into(),
        state_reason: "Initial creation".into(),
        last_update_status: UpdateStatus::Successful.into(),
        last_update_status_reason: "No configuration changes detected".into(),
        configuration: Some(NetworkConnectorConfiguration {
            subnet_ids: vec!["subnet-1".into()],
            security_group_ids: vec!["sg-1".into()],
            network_protocol: NetworkProtocol::Ipv4.into(),
            associated_compute_resource_types: vec![ComputeResourceType::MicroVm.into()],
            elastic_ip_type: ElasticIpType::None.into(),
        }),
        operator_role: format!("arn:aws:iam::{ACCOUNT}:role/operator"),
        tags: map(&[("torpor:allow-cidrs", "10.0.0.0/8")]),
        create_time: Some(samples::CREATED),
        update_time: Some(samples::CREATED),
    }
}

fn connector_json() -> Value {
    let arn = connector().connector_arn;
    json!({
        "Arn": arn, "Id": "nc-0190a5e2", "Name": "office", "State": "ACTIVE",
        "Version": 2, "VersionArn": format!("{arn}:2"),
        "OperatorRole": format!("arn:aws:iam::{ACCOUNT}:role/operator"),
        "Configuration": {"VpcEgressConfiguration": {
            "SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "IPv4",
            "AssociatedComputeResourceTypes": ["MicroVm"], "ElasticIpConfiguration": {"Type": "None"},
        }},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connectors_are_made_changed_and_deleted() {
    let world = World::start().await;
    let scheduler = &world.scheduler;
    let made = Some(connector());
    scheduler
        .answer("CreateNetworkConnector", Ok(CreateNetworkConnectorResponse { connector: made.clone() }));
    scheduler
        .answer("UpdateNetworkConnector", Ok(UpdateNetworkConnectorResponse { connector: made.clone() }));
    scheduler.answer("DeleteNetworkConnector", Ok(DeleteNetworkConnectorResponse { connector: made }));
    let json = connector_json();
    let body = json!({
        "Name": "office", "Configuration": json["Configuration"], "OperatorRole": json["OperatorRole"],
        "ClientToken": "token", "Tags": {"torpor:allow-cidrs": "10.0.0.0/8"},
    });
    let answer = ok(&world.ask("POST", CONNECTORS, &body.to_string()).await, 202);
    assert_eq!(answer, json);
    let asked: CreateNetworkConnectorRequest = scheduler.only("CreateNetworkConnector");
    assert_eq!(asked.configuration, connector().configuration);
    assert_eq!((asked.name.as_str(), asked.client_token.as_str()), ("office", "token"));
    assert_eq!(asked.operator_role, connector().operator_role);
    assert_eq!(asked.tags, connector().tags);

    let target = format!("{CONNECTORS}/office");
    let body = json!({"ClientToken": "token", "OperatorRole": json["OperatorRole"]});
    let answer = ok(&world.ask("PUT", &target, &body.to_string()).await, 202);
    let mut expected = json.clone();
    expected["LastUpdateStatus"] = "Successful".into();
    expected["LastUpdateStatusReason"] = "No configuration changes detected".into();
    expected["LastModified"] = "2026-07-30T05:20:00.250Z".into();
    assert_eq!(answer, expected);
    let asked: UpdateNetworkConnectorRequest = scheduler.only("UpdateNetworkConnector");
    assert!(asked.configuration.is_none());
    assert_eq!((asked.identifier.as_str(), asked.client_token.as_str()), ("office", "token"));

    let encoded = format!("{CONNECTORS}/{}", connector().connector_arn.replace(':', "%3A"));
    assert_eq!(ok(&world.ask("DELETE", &encoded, "").await, 202), json);
    let asked: DeleteNetworkConnectorRequest = scheduler.only("DeleteNetworkConnector");
    assert_eq!(asked.identifier, connector().connector_arn);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connectors_are_read_and_listed() {
    let world = World::start().await;
    let scheduler = &world.scheduler;
    scheduler.answer(
        "GetNetworkConnector",
        Ok(GetNetworkConnectorResponse { connector: Some(connector()), latest_version: 0 }),
    );
    scheduler.answer(
        "ListNetworkConnectors",
        Ok(ListNetworkConnectorsResponse { connectors: vec![connector()], next_page_token: "more".into() }),
    );
    scheduler.answer(
        "ListNetworkConnectorVersions",
        Ok(ListNetworkConnectorVersionsResponse { versions: vec![connector()], ..Default::default() }),
    );
    let target = format!("{CONNECTORS}/nc-0190a5e2");
    let mut expected = connector_json();
    for (name, value) in [
        ("LastUpdateStatus", "Successful"),
        ("LastUpdateStatusReason", "No configuration changes detected"),
        ("LastModified", "2026-07-30T05:20:00.250Z"),
        ("StateReason", "Initial creation"),
    ] {
        expected[name] = value.into();
    }
    // Nothing may be passed to launches yet, so there is no latest version.
    assert_eq!(ok(&world.ask("GET", &target, "").await, 200), expected);
    scheduler.take();

    let arn = connector().connector_arn;
    let page = ok(&world.ask("GET", &format!("{CONNECTORS}?State=ACTIVE&MaxItems=9"), "").await, 200);
    let asked: ListNetworkConnectorsRequest = scheduler.only("ListNetworkConnectors");
    assert_eq!((asked.state(), asked.page_size), (NetworkConnectorState::Active, 9));
    assert_eq!(
        page["NetworkConnectors"],
        json!([{
            "Arn": arn, "Id": "nc-0190a5e2", "Name": "office", "State": "ACTIVE", "Type": "VPC_EGRESS",
            "LatestVersion": 2, "LatestVersionArn": format!("{arn}:2"), "LastModified": "2026-07-30T05:20:00.250Z",
        }])
    );
    let marker = page["NextMarker"].as_str().unwrap();
    let next = format!("{CONNECTORS}?State=ACTIVE&MaxItems=9&Marker={marker}");
    ok(&world.ask("GET", &next, "").await, 200);
    let asked: ListNetworkConnectorsRequest = scheduler.only("ListNetworkConnectors");
    assert_eq!(asked.page_token, "more");

    let page = ok(&world.ask("GET", &format!("{target}/versions"), "").await, 200);
    let asked: ListNetworkConnectorVersionsRequest = scheduler.only("ListNetworkConnectorVersions");
    assert_eq!(asked.identifier, "nc-0190a5e2");
    assert_eq!(
        page,
        json!({"NetworkConnectorVersions": [{
            "Arn": arn, "Id": "nc-0190a5e2", "Name": "office", "State": "ACTIVE", "Version": 2,
            "VersionArn": format!("{arn}:2"), "StateReason": "Initial creation",
            "LastModified": "2026-07-30T05:20:00.250Z",
        }]})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connectors_and_images_have_tags() {
    let world = World::start().await;
    let scheduler = &world.scheduler;
    scheduler.answer(
        "GetNetworkConnector",
        Ok(GetNetworkConnectorResponse { connector: Some(connector()), latest_version: 2 }),
    );
    scheduler.answer("TagNetworkConnector", Ok(TagNetworkConnectorResponse::default()));
    scheduler.answer("UntagNetworkConnector", Ok(UntagNetworkConnectorResponse::default()));
    world.image_builder.answer("UntagImage", Ok(UntagImageResponse::default()));
    let tags = |arn: &str| format!("/2017-03-31/tags/{arn}");
    let arn = connector().connector_arn;
    let listed = ok(&world.ask("GET", &tags(&arn), "").await, 200);
    assert_eq!(listed, json!({"Tags": {"torpor:allow-cidrs": "10.0.0.0/8"}}));
    scheduler.take();
    let answer = world.ask("POST", &tags(&arn), r#"{"Tags": {"a": "b"}}"#).await;
    assert_eq!((answer.status, answer.body.as_slice()), (204, &b""[..]));
    let asked: TagNetworkConnectorRequest = scheduler.only("TagNetworkConnector");
    assert_eq!(asked.tags, map(&[("a", "b")]));
    let target = format!("{}?tagKeys=a&tagKeys=b", tags(&arn));
    assert_eq!(world.ask("DELETE", &target, "").await.status, 204);
    let asked: UntagNetworkConnectorRequest = scheduler.only("UntagNetworkConnector");
    assert_eq!(asked.tag_keys, ["a", "b"]);
    let target = format!("{}?tagKeys=a%2Fb", tags(&image("app")));
    assert_eq!(world.ask("DELETE", &target, "").await.status, 204);
    let asked: UntagImageRequest = world.image_builder.only("UntagImage");
    assert_eq!((asked.image_identifier, asked.tag_keys), (image("app"), vec!["a/b".to_owned()]));
    // The older API's other kinds of resources: well-formed, and nobody has any.
    let function = format!("arn:aws:lambda:us-east-1:{ACCOUNT}:function:f");
    let answer = world.ask("GET", &tags(&function), "").await;
    assert_eq!((answer.status, answer.class()), (404, "ResourceNotFoundException"));
    // A microVM has no tags at all.
    let microvm = format!("arn:aws:lambda:us-east-1:{ACCOUNT}:microvm:{MICROVM}");
    let answer = world.ask("GET", &tags(&microvm), "").await;
    assert_eq!((answer.status, answer.class()), (400, "ValidationException"));
}
