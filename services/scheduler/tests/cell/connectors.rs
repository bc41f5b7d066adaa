//! Network connectors as their callers see them, and what is left of them when
//! a scheduler dies in between.

use std::collections::HashMap;
use std::time::Instant;

use api::connector::v1::*;
use api::errors::reason;
use rpc::Role;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::rig::*;
use NetworkConnectorState::{Active, Deleting, Pending};

pub const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:network-connector:";

/// Settings under which nothing settles by itself in a test's time.
const SLOW: &str = "connector_settle_ms=600000";
const QUICK: &str = "connector_settle_ms=50";

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
    let request = GetNetworkConnectorRequest {
        identifier: identifier.into(),
    };
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
    let request = DeleteNetworkConnectorRequest {
        identifier: identifier.into(),
    };
    let answer = client.clone().delete_network_connector(request).await?;
    Ok(answer.into_inner().connector.unwrap())
}

pub fn tagged(tags: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = tags
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
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

fn subnets(identifier: &str, subnets: &[&str], token: &str) -> UpdateNetworkConnectorRequest {
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

async fn led(settings: &[&str]) -> (Rig, Scheduler, Connectors) {
    let rig = Rig::new().await;
    let scheduler = rig.scheduler(settings);
    rig.ready(&rig.client(&scheduler, Role::Admin)).await;
    let client = rig.connectors(&scheduler, Role::EdgeProxy);
    (rig, scheduler, client)
}

#[tokio::test]
async fn a_connectors_life() {
    let (rig, _scheduler, client) = led(&["connector_settle_ms=400"]).await;
    let made = create(&client, request("net")).await.unwrap();
    assert_eq!((made.state(), made.version), (Pending, 1));
    let uuid = made.id.strip_prefix("nc-").unwrap();
    assert!(uuid::Uuid::parse_str(uuid).is_ok(), "{}", made.id);
    assert_eq!(made.connector_arn, format!("{ARN}{}", made.id));
    assert_eq!(made.state_reason, "Initial creation");
    assert_eq!(made.configuration, request("net").configuration);
    assert_eq!(
        read(&client, "net").await.unwrap().1,
        0,
        "no version may be used yet"
    );
    let conflict = delete(&client, "net").await;
    refused(
        conflict,
        Code::FailedPrecondition,
        reason::STATE_CONFLICT,
        "is PENDING and cannot be changed now.",
    );

    let first = eventually("ACTIVE", || async {
        let (connector, latest) = read(&client, &made.connector_arn).await.ok()?;
        (connector.state() == Active && latest == 1).then_some(connector)
    })
    .await;
    assert_eq!(first.state_reason, "Initial creation");
    assert_eq!(first.last_update_status(), UpdateStatus::Unspecified);
    assert_eq!(read(&client, &made.id).await.unwrap().0, first);
    assert_eq!(read(&client, "net").await.unwrap().0, first);

    // A change: ACTIVE all the time, a new version, the old one as it was.
    let changing = update(&client, subnets("net", &["subnet-2", "subnet-3"], "u1"))
        .await
        .unwrap();
    assert_eq!((changing.state(), changing.version), (Active, 2));
    assert_eq!(changing.last_update_status(), UpdateStatus::InProgress);
    let configuration = changing.configuration.clone().unwrap();
    assert_eq!(configuration.subnet_ids, ["subnet-2", "subnet-3"]);
    assert_eq!(
        configuration.security_group_ids, [""; 0],
        "a configuration replaces the old one"
    );
    assert_eq!(configuration.network_protocol(), NetworkProtocol::Ipv4);
    assert_eq!(
        read(&client, "net").await.unwrap().1,
        1,
        "the old version until it is done"
    );
    refused(
        update(&client, subnets("net", &["subnet-9"], "u2")).await,
        Code::FailedPrecondition,
        reason::STATE_CONFLICT,
        "is being updated and cannot be changed now.",
    );
    let changed = eventually("the update", || async {
        let (connector, latest) = read(&client, "net").await.ok()?;
        assert_eq!(connector.state(), Active);
        (latest == 2).then_some(connector)
    })
    .await;
    assert_eq!(changed.last_update_status(), UpdateStatus::Successful);
    assert_eq!(
        (
            changed.last_update_status_reason.as_str(),
            changed.state_reason.as_str()
        ),
        ("", "")
    );
    let (old, _) = read(&client, &format!("{}:1", made.connector_arn)).await.unwrap();
    assert_eq!(
        (old.version, &old.configuration, old.state()),
        (1, &made.configuration, Active)
    );

    // No change: no version.
    let same = update(&client, subnets("net", &["subnet-2", "subnet-3"], "u3"))
        .await
        .unwrap();
    assert_eq!(
        (same.version, same.last_update_status()),
        (2, UpdateStatus::Successful)
    );
    assert_eq!(
        same.last_update_status_reason,
        "No configuration changes detected"
    );

    let deleting = delete(&client, "net").await.unwrap();
    assert_eq!(deleting.state(), Deleting);
    assert_eq!(read(&client, "net").await.unwrap().0.state(), Deleting);
    assert_eq!(
        delete(&client, "net").await.unwrap().state(),
        Deleting,
        "again is a success"
    );
    let status = gone(&client, "net").await;
    refused::<()>(
        Err(status),
        Code::NotFound,
        reason::NOT_FOUND,
        &format!("Network connector not found for: {ARN}net"),
    );
    assert_eq!(rig.listed("connectors/").await, [""; 0]);
    create(&client, request("net")).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_is_said_in_the_services_words() {
    let (_rig, _scheduler, client) = led(&[QUICK]).await;
    type Change = fn(&mut CreateNetworkConnectorRequest);
    let cases: [(Change, &str, &str); 5] = [
        (
            |r| r.client_token.clear(),
            "clientToken",
            "ClientToken is a required field",
        ),
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
        let status = create(&client, request).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, sentence)
        );
        let details = status.get_details_bad_request().unwrap();
        assert_eq!(details.field_violations[0].field, field);
    }
    let absent = "nc-does-not-exist";
    let text = format!("Network connector not found for: {ARN}{absent}");
    let status = read(&client, absent).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, text.as_str()));
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["resource"], format!("{ARN}{absent}"));
    for answer in [
        delete(&client, absent).await,
        update(&client, subnets(absent, &["subnet-1"], "u")).await,
    ] {
        refused(answer, Code::NotFound, reason::NOT_FOUND, &text);
    }
    let foreign = ARN.replace("000000000000", "111111111111") + "nc-1";
    refused(
        read(&client, &foreign).await,
        Code::PermissionDenied,
        reason::PERMISSION_DENIED,
        &format!("{foreign} belongs to another account"),
    );
}

#[tokio::test]
async fn one_client_token_is_one_connector_and_one_update() {
    let (_rig, _scheduler, client) = led(&[QUICK]).await;
    let runs = (0..16).map(|_| create(&client, request("net")));
    let made = futures::future::join_all(runs).await;
    let id = made[0].as_ref().unwrap().id.clone();
    assert!(
        made.iter().all(|made| made.as_ref().unwrap().id == id),
        "{made:?}"
    );
    let other = CreateNetworkConnectorRequest {
        tags: tagged(&[("team", "a")]),
        ..request("net")
    };
    refused(
        create(&client, other).await,
        Code::AlreadyExists,
        reason::CLIENT_TOKEN_CONFLICT,
        "The client token was used before with other parameters.",
    );
    let again = CreateNetworkConnectorRequest {
        client_token: "fresh".into(),
        ..request("net")
    };
    refused(
        create(&client, again).await,
        Code::AlreadyExists,
        reason::ALREADY_EXISTS,
        "A network connector with the name 'net' already exists in this account",
    );
    let shadow = CreateNetworkConnectorRequest {
        client_token: "shadow".into(),
        ..request(&id)
    };
    refused(
        create(&client, shadow).await,
        Code::AlreadyExists,
        reason::ALREADY_EXISTS,
        "already exists",
    );
    active(&client, request("net")).await;
    let first = update(&client, subnets("net", &["subnet-2"], "u")).await.unwrap();
    let repeated = update(&client, subnets("net", &["subnet-2"], "u")).await.unwrap();
    assert_eq!((first.version, repeated.version), (2, 2));
    refused(
        update(&client, subnets("net", &["subnet-3"], "u")).await,
        Code::AlreadyExists,
        reason::CLIENT_TOKEN_CONFLICT,
        "client token",
    );
    let tokenless = update(&client, subnets("net", &["subnet-3"], "")).await;
    assert_eq!(
        tokenless.unwrap_err().message(),
        "ClientToken is a required field"
    );
}

#[tokio::test]
async fn limits_of_the_account_and_of_a_connector() {
    let settings = [
        QUICK,
        "quotas.connectors_max=2",
        "quotas.connector_versions_max=2",
    ];
    let (_rig, _scheduler, client) = led(&settings).await;
    active(&client, request("a")).await;
    active(&client, request("b")).await;
    let status = create(&client, request("c")).await.unwrap_err();
    let info = status.get_details_error_info().unwrap();
    assert_eq!(
        (info.metadata["quota"].as_str(), info.metadata["limit"].as_str()),
        ("connectors", "2")
    );
    refused::<()>(
        Err(status),
        Code::ResourceExhausted,
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
        Code::ResourceExhausted,
        reason::QUOTA_EXCEEDED,
        "has reached its limit of 2 versions; delete older ones first.",
    );
    // The newest goes only with the connector; an older one makes room.
    let arn = read(&client, "a").await.unwrap().0.connector_arn;
    refused(
        delete(&client, &format!("{arn}:2")).await,
        Code::FailedPrecondition,
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

#[tokio::test]
async fn lists_are_paged_by_name_and_filtered_by_state() {
    let (_rig, _scheduler, client) = led(&["connector_settle_ms=1500"]).await;
    for name in ["c", "a", "e", "b", "d"] {
        create(&client, request(name)).await.unwrap();
    }
    let list = |size: u32, token: &str, state: NetworkConnectorState| {
        let request = ListNetworkConnectorsRequest {
            page_size: size,
            page_token: token.into(),
            state: state.into(),
        };
        let mut client = client.clone();
        async move {
            client
                .list_network_connectors(request)
                .await
                .map(|answer| answer.into_inner())
        }
    };
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(2, &token, NetworkConnectorState::Unspecified).await.unwrap();
        assert!(page.connectors.len() <= 2);
        names.extend(page.connectors.into_iter().map(|connector| connector.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert!(list(0, "", Active).await.unwrap().connectors.is_empty());
    eventually("all ACTIVE", || async {
        let page = list(100, "", Active).await.ok()?;
        (page.connectors.len() == 5).then_some(())
    })
    .await;
    delete(&client, "b").await.unwrap();
    let deleting = list(0, "", Deleting).await.unwrap().connectors;
    assert_eq!((deleting.len(), deleting[0].name.as_str()), (1, "b"));
    let failed = list(0, "", NetworkConnectorState::Failed).await.unwrap();
    assert!(failed.connectors.is_empty());
    for (size, token, text) in [(101, "", "maxResults: must be 1 to 100"), (1, "a b", "pageToken")] {
        refused(
            list(size, token, NetworkConnectorState::Unspecified).await,
            Code::InvalidArgument,
            reason::INVALID_ARGUMENT,
            text,
        );
    }
}

#[tokio::test]
async fn versions_are_listed_newest_first() {
    let (_rig, _scheduler, client) = led(&[QUICK]).await;
    active(&client, request("net")).await;
    for number in 2..=4u64 {
        update(
            &client,
            subnets("net", &[&format!("subnet-{number}")], &format!("u{number}")),
        )
        .await
        .unwrap();
        eventually("the version", || async {
            (read(&client, "net").await.ok()?.1 == number).then_some(())
        })
        .await;
    }
    let list = |token: String| {
        let request = ListNetworkConnectorVersionsRequest {
            identifier: "net".into(),
            page_size: 3,
            page_token: token,
            state: NetworkConnectorState::Unspecified.into(),
        };
        let mut client = client.clone();
        async move {
            let answer = client.list_network_connector_versions(request).await;
            answer.map(|answer| answer.into_inner())
        }
    };
    let page = list(String::new()).await.unwrap();
    let numbers: Vec<u64> = page.versions.iter().map(|version| version.version).collect();
    assert_eq!(numbers, [4, 3, 2]);
    let subnet = |version: &NetworkConnector| version.configuration.clone().unwrap().subnet_ids[0].clone();
    assert_eq!(subnet(&page.versions[1]), "subnet-3");
    let last = list(page.next_page_token).await.unwrap();
    assert_eq!((last.versions.len(), last.versions[0].version), (1, 1));
    assert_eq!(last.next_page_token, "");
    let bad = list("x".into()).await;
    refused(bad, Code::InvalidArgument, reason::INVALID_ARGUMENT, "pageToken");
}

#[tokio::test]
async fn tags_are_set_and_removed_without_a_version() {
    let (_rig, _scheduler, client) = led(&[QUICK]).await;
    active(
        &client,
        CreateNetworkConnectorRequest {
            tags: tagged(&[("team", "a"), ("stage", "test")]),
            ..request("net")
        },
    )
    .await;
    let tag = |tags: &[(&str, &str)]| {
        let request = TagNetworkConnectorRequest {
            identifier: "net".into(),
            tags: tagged(tags),
        };
        let mut client = client.clone();
        async move {
            let answer = client.tag_network_connector(request).await?;
            Ok::<_, Status>(answer.into_inner().connector.unwrap())
        }
    };
    let now = tag(&[("team", "b"), ("torpor:deny-cidrs", "10.0.0.0/8")])
        .await
        .unwrap();
    let expected = [
        ("team", "b"),
        ("stage", "test"),
        ("torpor:deny-cidrs", "10.0.0.0/8"),
    ];
    assert_eq!((now.tags, now.version), (tagged(&expected), 1));
    for (key, value, text) in [
        ("torpor:deny-cidrs", "10.0.0.0/33", "'10.0.0.0/33' is not a CIDR"),
        (
            "torpor:allow-cidrs",
            "2001:db8::/32",
            "needs NetworkProtocol DualStack",
        ),
        ("torpor:allowcidrs", "10.0.0.0/8", "reserved"),
        ("", "x", "keys must be 1 to 128"),
    ] {
        refused(
            tag(&[(key, value)]).await,
            Code::InvalidArgument,
            reason::INVALID_ARGUMENT,
            text,
        );
    }
    let many: Vec<(String, String)> = (0..48).map(|n| (format!("k{n}"), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    refused(
        tag(&many).await,
        Code::InvalidArgument,
        reason::INVALID_ARGUMENT,
        "tags: must have at most 50 entries",
    );
    let request = UntagNetworkConnectorRequest {
        identifier: "net".into(),
        tag_keys: vec!["team".into(), "torpor:deny-cidrs".into(), "absent".into()],
    };
    let now = client.clone().untag_network_connector(request).await.unwrap();
    assert_eq!(
        now.into_inner().connector.unwrap().tags,
        tagged(&[("stage", "test")])
    );
}

#[tokio::test]
async fn who_may_call() {
    let (rig, scheduler, client) = led(&[QUICK]).await;
    active(&client, request("net")).await;
    let builder = rig.connectors(&scheduler, Role::ImageBuilder);
    read(&builder, "net").await.unwrap();
    refused(
        delete(&builder, "net").await,
        Code::PermissionDenied,
        reason::PERMISSION_DENIED,
        "image-builder",
    );
    let host = rig.connectors(&scheduler, Role::HostAgent);
    refused(
        read(&host, "net").await,
        Code::PermissionDenied,
        reason::PERMISSION_DENIED,
        "host-agent",
    );
}

#[tokio::test]
async fn a_killed_scheduler_leaves_nothing_half_done() {
    let (rig, mut scheduler, client) = led(&[QUICK]).await;
    active(&client, request("updated")).await;
    active(&client, request("deleted")).await;
    scheduler.kill();
    // A leader that dies before it settles anything.
    let mut scheduler = rig.scheduler(&[SLOW]);
    let client = rig.connectors(&scheduler, Role::Admin);
    eventually("the next leader", || async {
        read(&client, "updated").await.ok()
    })
    .await;
    let created = create(&client, request("created")).await.unwrap();
    update(&client, subnets("updated", &["subnet-2"], "u"))
        .await
        .unwrap();
    delete(&client, "deleted").await.unwrap();
    let before = rig.listed("connectors/").await.len();
    assert_eq!(before, 2 + 3 + 2, "a key each and one for each version");
    scheduler.kill();
    let killed = Instant::now();
    let scheduler = rig.scheduler(&[QUICK]);
    let client = rig.connectors(&scheduler, Role::Admin);
    let settled = eventually("all settled", || async {
        let (created, _) = read(&client, "created").await.ok()?;
        let (updated, latest) = read(&client, "updated").await.ok()?;
        let gone = read(&client, "deleted").await.err()?.code() == Code::NotFound;
        let done = updated.last_update_status() == UpdateStatus::Successful && latest == 2;
        (created.state() == Active && done && gone).then_some(created)
    })
    .await;
    assert!(killed.elapsed().as_secs() < 10, "{:?}", killed.elapsed());
    assert_eq!(settled.id, created.id);
    assert_eq!(rig.listed("connectors/").await.len(), 2 + 3);
    // The token of the request before the crash still means that connector.
    let again = create(&client, request("created")).await.unwrap();
    assert_eq!(again.id, created.id);
    assert_eq!(
        update(&client, subnets("updated", &["subnet-2"], "u"))
            .await
            .unwrap()
            .version,
        2
    );
}

#[tokio::test]
async fn a_deposed_leader_writes_nothing() {
    let (rig, _scheduler, client) = led(&[QUICK]).await;
    let made = active(&client, request("net")).await;
    let before = rig.store.list("connectors/").await.unwrap().0;
    rig.depose().await;
    let answer = create(&client, request("other")).await;
    refused(answer, Code::Unavailable, reason::NOT_LEADER, "does not lead");
    for answer in [
        update(&client, subnets("net", &["subnet-2"], "u")).await,
        delete(&client, "net").await,
    ] {
        refused(answer, Code::Unavailable, reason::NOT_LEADER, "does not lead");
    }
    assert_eq!(rig.store.list("connectors/").await.unwrap().0, before);
    rig.store
        .delete_if("elections/scheduler", records::Expect::Any, None)
        .await
        .unwrap();
    let back = eventually("to lead again", || async { read(&client, "net").await.ok() }).await;
    assert_eq!(back.0, made);
    create(&client, request("other")).await.unwrap();
}

#[tokio::test]
async fn what_somebody_else_wrote_is_followed() {
    let (rig, _scheduler, client) = led(&[QUICK]).await;
    let made = active(&client, request("net")).await;
    let key = format!("connectors/{}", made.id);
    let found = rig.store.get(&key).await.unwrap().unwrap();
    rig.store
        .put_if(&key, found.value, records::Expect::Any, None)
        .await
        .unwrap();
    let answer = update(&client, subnets("net", &["subnet-2"], "u")).await;
    refused(
        answer,
        Code::Unavailable,
        reason::STORE_UNAVAILABLE,
        "somebody else",
    );
    assert_eq!(read(&client, "net").await.unwrap().0, made);
    let now = update(&client, subnets("net", &["subnet-2"], "u")).await.unwrap();
    assert_eq!(now.version, 2);
}

#[tokio::test]
async fn the_largest_connectors_fit_into_pages_and_records() {
    let (_rig, _scheduler, client) = led(&["connector_settle_ms=1"]).await;
    let id = |prefix: &str| format!("{prefix}{}", "1".repeat(1024 - prefix.len()));
    let largest = |name: &str| CreateNetworkConnectorRequest {
        configuration: Some(NetworkConnectorConfiguration {
            subnet_ids: vec![id("subnet-"); 16],
            security_group_ids: vec![id("sg-"); 16],
            ..request(name).configuration.unwrap()
        }),
        operator_role: format!("arn:aws:iam::000000000000:role/{}", "r".repeat(10_000 - 31)),
        // Characters of four bytes each.
        tags: (0..50)
            .map(|n| (format!("{n:02}{}", "𐐀".repeat(126)), "𐐀".repeat(256)))
            .collect(),
        ..request(name)
    };
    for number in 0..30 {
        create(&client, largest(&format!("n{number:02}"))).await.unwrap();
    }
    let (mut names, mut token) = (Vec::new(), String::new());
    let mut pages = 0;
    loop {
        let request = ListNetworkConnectorsRequest {
            page_token: token,
            ..Default::default()
        };
        let page = client
            .clone()
            .list_network_connectors(request)
            .await
            .unwrap()
            .into_inner();
        names.extend(page.connectors.into_iter().map(|connector| connector.name));
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..30).map(|number| format!("n{number:02}")).collect();
    assert_eq!(names, expected);
    assert!(pages > 1, "they do not fit into one");
}
