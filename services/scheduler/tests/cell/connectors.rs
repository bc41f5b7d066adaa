//! Network connectors as their callers see them.

mod lists;
mod takeover;

use api::connector::v1::*;
use api::errors::reason;
use rpc::Role;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::*;
use NetworkConnectorState::{Active, Deleting, Pending};
use scheduler::domain::connector::SETTLE;

pub const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:network-connector:";

pub fn request(name: &str) -> CreateNetworkConnectorRequest {
    CreateNetworkConnectorRequest {
        name: name.into(),
        configuration: Some(NetworkConnectorConfiguration {
            subnet_ids: vec!["subnet-1".into()],
            security_group_ids: vec!["sg-1".into()],
            network_protocol: NetworkProtocol::Ipv4.into(),
            associated_compute_resource_types: vec![ComputeResourceType::MicroVm.into()],
            elastic_ip_type: ElasticIpType::Unspecified.into(),
        }),
        operator_role: "arn:aws:iam::000000000000:role/operator".into(),
        client_token: format!("create-{name}"),
        tags: HashMap::new(),
    }
}

pub async fn create(
    client: &Connectors,
    request: CreateNetworkConnectorRequest,
) -> Result<NetworkConnector, Status> {
    let answer = client.clone().create_network_connector(request).await?;
    Ok(answer.into_inner().connector.unwrap())
}

pub async fn read(client: &Connectors, identifier: &str) -> Result<(NetworkConnector, u64), Status> {
    let request = GetNetworkConnectorRequest { identifier: identifier.into() };
    let answer = client.clone().get_network_connector(request).await?.into_inner();
    Ok((answer.connector.unwrap(), answer.latest_version))
}

pub async fn update(
    client: &Connectors,
    request: UpdateNetworkConnectorRequest,
) -> Result<NetworkConnector, Status> {
    let answer = client.clone().update_network_connector(request).await?;
    Ok(answer.into_inner().connector.unwrap())
}

pub async fn delete(client: &Connectors, identifier: &str) -> Result<NetworkConnector, Status> {
    let request = DeleteNetworkConnectorRequest { identifier: identifier.into() };
    let answer = client.clone().delete_network_connector(request).await?;
    Ok(answer.into_inner().connector.unwrap())
}

pub fn tagged(tags: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    owned.collect()
}

/// Creates a connector and waits until it is ACTIVE.
pub async fn active(client: &Connectors, request: CreateNetworkConnectorRequest) -> NetworkConnector {
    let id = create(client, request).await.unwrap().id;
    eventually("ACTIVE", || async {
        let (connector, _) = read(client, &id).await.ok()?;
        (connector.state() == Active).then_some(connector)
    })
    .await
}

async fn gone(client: &Connectors, identifier: &str) -> Status {
    eventually("gone", || async {
        let refused = read(client, identifier).await.err()?;
        (refused.code() == Code::NotFound).then_some(refused)
    })
    .await
}

pub fn subnets(identifier: &str, subnets: &[&str], token: &str) -> UpdateNetworkConnectorRequest {
    UpdateNetworkConnectorRequest {
        identifier: identifier.into(),
        configuration: Some(NetworkConnectorConfiguration {
            subnet_ids: subnets.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        }),
        operator_role: String::new(),
        client_token: token.into(),
    }
}

async fn led(settings: &[&str]) -> (World, Scheduler, Connectors) {
    let world = World::new().await;
    let scheduler = world.here(settings);
    world.led_by(scheduler).await
}

async fn led_on_manual_clock() -> (World, Scheduler, Connectors) {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    world.led_by(scheduler).await
}

impl World {
    async fn led_by(self, scheduler: Scheduler) -> (Self, Scheduler, Connectors) {
        self.ready(&self.client(&scheduler, Role::Admin)).await;
        let client = self.connectors(&scheduler, Role::EdgeProxy);
        (self, scheduler, client)
    }
}

#[tokio::test]
async fn a_connectors_life() {
    let (world, _scheduler, client) = led_on_manual_clock().await;
    let made = create(&client, request("net")).await.unwrap();
    assert_eq!((made.state(), made.version), (Pending, 1));
    let uuid = made.id.strip_prefix("nc-").unwrap();
    assert!(uuid::Uuid::parse_str(uuid).is_ok(), "{}", made.id);
    assert_eq!(made.connector_arn, format!("{ARN}{}", made.id));
    assert_eq!(made.state_reason, "Initial creation");
    assert_eq!(made.configuration, request("net").configuration);
    assert_eq!(read(&client, "net").await.unwrap().1, 0, "no version may be used yet");
    let conflict = delete(&client, "net").await;
    refused(conflict, reason::STATE_CONFLICT, "is PENDING and cannot be changed now.");

    world.clock.advance(SETTLE);
    let (first, latest) = read(&client, &made.connector_arn).await.unwrap();
    assert_eq!((first.state(), latest), (Active, 1));
    assert_eq!(first.state_reason, "Initial creation");
    assert_eq!(first.last_update_status(), UpdateStatus::Unspecified);
    assert_eq!(read(&client, &made.id).await.unwrap().0, first);
    assert_eq!(read(&client, "net").await.unwrap().0, first);

    // A change: ACTIVE all the time, a new version, the old one as it was.
    let changing = update(&client, subnets("net", &["subnet-2", "subnet-3"], "u1")).await.unwrap();
    assert_eq!((changing.state(), changing.version), (Active, 2));
    assert_eq!(changing.last_update_status(), UpdateStatus::InProgress);
    let configuration = changing.configuration.clone().unwrap();
    assert_eq!(configuration.subnet_ids, ["subnet-2", "subnet-3"]);
    assert_eq!(configuration.security_group_ids, [""; 0], "a configuration replaces the old one");
    assert_eq!(configuration.network_protocol(), NetworkProtocol::Ipv4);
    assert_eq!(read(&client, "net").await.unwrap().1, 1, "the old version until it is done");
    refused(
        update(&client, subnets("net", &["subnet-9"], "u2")).await,
        reason::STATE_CONFLICT,
        "is being updated and cannot be changed now.",
    );
    world.clock.advance(SETTLE);
    let (changed, latest) = read(&client, "net").await.unwrap();
    assert_eq!((changed.state(), latest), (Active, 2));
    assert_eq!(changed.last_update_status(), UpdateStatus::Successful);
    assert_eq!((changed.last_update_status_reason.as_str(), changed.state_reason.as_str()), ("", ""));
    let (old, _) = read(&client, &format!("{}:1", made.connector_arn)).await.unwrap();
    assert_eq!((old.version, &old.configuration, old.state()), (1, &made.configuration, Active));

    // No change: no version.
    let same = update(&client, subnets("net", &["subnet-2", "subnet-3"], "u3")).await.unwrap();
    assert_eq!((same.version, same.last_update_status()), (2, UpdateStatus::Successful));
    assert_eq!(same.last_update_status_reason, "No configuration changes detected");

    let deleting = delete(&client, "net").await.unwrap();
    assert_eq!(deleting.state(), Deleting);
    assert_eq!(read(&client, "net").await.unwrap().0.state(), Deleting);
    assert_eq!(delete(&client, "net").await.unwrap().state(), Deleting, "again is a success");
    world.clock.advance(SETTLE);
    let status = gone(&client, "net").await;
    refused::<()>(Err(status), reason::NOT_FOUND, &format!("Network connector not found for: {ARN}net"));
    assert_eq!(world.listed("connectors/").await, [""; 0]);
    create(&client, request("net")).await.unwrap();
}

#[tokio::test]
async fn rules_that_share_a_world() {
    let (world, scheduler, client) = led(&[]).await;
    what_is_wrong_is_said_in_the_services_words(&client).await;
    lists::tags_are_set_and_removed_without_a_version(&client).await;
    who_may_call(&world, &scheduler, &client).await;
}

async fn what_is_wrong_is_said_in_the_services_words(client: &Connectors) {
    type Change = fn(&mut CreateNetworkConnectorRequest);
    let cases: [(Change, &str, &str); 5] = [
        (|r| r.client_token.clear(), "clientToken", "ClientToken is a required field"),
        (
            |r| {
                let configuration = r.configuration.as_mut().unwrap();
                configuration.associated_compute_resource_types.clear();
            },
            "configuration.associatedComputeResourceTypes",
            "AssociatedComputeResourceTypes is required for VPC_EGRESS connector type",
        ),
        (
            |r| r.configuration.as_mut().unwrap().network_protocol = 0,
            "configuration.networkProtocol",
            "NetworkProtocol cannot be null or empty for VPC_EGRESS connector",
        ),
        (
            |r| r.operator_role.clear(),
            "operatorRole",
            "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type",
        ),
        (
            |r| {
                // Seventeen subnets are told before anything else that is missing.
                r.configuration.as_mut().unwrap().subnet_ids = vec!["subnet-1".into(); 17];
                r.client_token.clear();
                r.operator_role.clear();
            },
            "configuration.subnetIds",
            "configuration.subnetIds: must have at most 16 entries",
        ),
    ];
    for (change, field, sentence) in cases {
        let mut request = request("net");
        change(&mut request);
        let status = create(client, request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, sentence));
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, field);
    }
    let absent = "nc-does-not-exist";
    let text = format!("Network connector not found for: {ARN}{absent}");
    let status = read(client, absent).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, text.as_str()));
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["resource"], format!("{ARN}{absent}"));
    for answer in [delete(client, absent).await, update(client, subnets(absent, &["subnet-1"], "u")).await] {
        refused(answer, reason::NOT_FOUND, &text);
    }
    let foreign = ARN.replace("000000000000", "111111111111") + "nc-1";
    refused(
        read(client, &foreign).await,
        reason::PERMISSION_DENIED,
        &format!("{foreign} belongs to another account"),
    );
}

#[tokio::test]
async fn one_client_token_is_one_connector_and_one_update() {
    let (_world, _scheduler, client) = led(&[]).await;
    let runs = (0..16).map(|_| create(&client, request("net")));
    let made = futures::future::join_all(runs).await;
    let id = made[0].as_ref().unwrap().id.clone();
    assert!(made.iter().all(|made| made.as_ref().unwrap().id == id), "{made:?}");
    let other = CreateNetworkConnectorRequest { tags: tagged(&[("team", "a")]), ..request("net") };
    refused(
        create(&client, other).await,
        reason::CLIENT_TOKEN_CONFLICT,
        "The client token was used before with other parameters.",
    );
    let again = CreateNetworkConnectorRequest { client_token: "fresh".into(), ..request("net") };
    refused(
        create(&client, again).await,
        reason::ALREADY_EXISTS,
        "A network connector with the name 'net' already exists in this account",
    );
    let shadow = CreateNetworkConnectorRequest { client_token: "shadow".into(), ..request(&id) };
    refused(create(&client, shadow).await, reason::ALREADY_EXISTS, "already exists");
    active(&client, request("net")).await;
    let first = update(&client, subnets("net", &["subnet-2"], "u")).await.unwrap();
    let repeated = update(&client, subnets("net", &["subnet-2"], "u")).await.unwrap();
    assert_eq!((first.version, repeated.version), (2, 2));
    refused(
        update(&client, subnets("net", &["subnet-3"], "u")).await,
        reason::CLIENT_TOKEN_CONFLICT,
        "client token",
    );
    let tokenless = update(&client, subnets("net", &["subnet-3"], "")).await;
    assert_eq!(tokenless.unwrap_err().message(), "ClientToken is a required field");
}

#[tokio::test]
async fn limits_of_the_account_and_of_a_connector() {
    let settings = ["quotas.connectors_max=2", "quotas.connector_versions_max=2"];
    let (_world, _scheduler, client) = led(&settings).await;
    active(&client, request("a")).await;
    active(&client, request("b")).await;
    let status = create(&client, request("c")).await.unwrap_err();
    let info = status.get_details_error_info().unwrap();
    assert_eq!((info.metadata["quota"].as_str(), info.metadata["limit"].as_str()), ("connectors", "2"));
    refused::<()>(
        Err(status),
        reason::QUOTA_EXCEEDED,
        "The limit of 2 network connectors is reached for this account.",
    );
    let version = |number: u64| {
        let client = client.clone();
        async move {
            eventually("the version", || async {
                (read(&client, "a").await.ok()?.1 == number).then_some(())
            })
            .await;
        }
    };
    update(&client, subnets("a", &["subnet-2"], "u2")).await.unwrap();
    version(2).await;
    refused(
        update(&client, subnets("a", &["subnet-3"], "u3")).await,
        reason::QUOTA_EXCEEDED,
        "has reached its limit of 2 versions; delete older ones first.",
    );
    // The newest goes only with the connector; an older one makes room.
    let arn = read(&client, "a").await.unwrap().0.connector_arn;
    refused(
        delete(&client, &format!("{arn}:2")).await,
        reason::STATE_CONFLICT,
        "delete the connector to remove it",
    );
    let dropped = delete(&client, &format!("{arn}:1")).await.unwrap();
    assert_eq!((dropped.version, dropped.state()), (1, Deleting));
    gone(&client, &format!("{arn}:1")).await;
    assert_eq!(read(&client, "a").await.unwrap().0.state(), Active);
    update(&client, subnets("a", &["subnet-3"], "u4")).await.unwrap();
    version(3).await;
    delete(&client, "b").await.unwrap();
    gone(&client, "b").await;
    create(&client, request("c")).await.unwrap();
}

async fn who_may_call(world: &World, scheduler: &Scheduler, client: &Connectors) {
    active(client, request("called")).await;
    let builder = world.connectors(scheduler, Role::ImageBuilder);
    read(&builder, "called").await.unwrap();
    refused(delete(&builder, "called").await, reason::PERMISSION_DENIED, "image-builder");
    let host = world.connectors(scheduler, Role::HostAgent);
    refused(read(&host, "called").await, reason::PERMISSION_DENIED, "host-agent");
}
