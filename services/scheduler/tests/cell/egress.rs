//! Connectors that launches name.

use api::connector::v1::{
    ComputeResourceType, CreateNetworkConnectorRequest, NetworkConnectorConfiguration, NetworkProtocol,
    UpdateNetworkConnectorRequest,
};
use api::errors::reason;
use api::hostagent::v1::egress::Reach;
use api::hostagent::v1::{EgressPolicy, Internet, MicrovmSpec};
use api::microvm::v1::{MicrovmState, RunMicrovmRequest};
use rpc::Role;

use crate::connectors::{ARN, active, create, delete, read, request, tagged, update};
use crate::world::*;

const INTERNET: &str = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS";

fn through(connectors: &[&str]) -> RunMicrovmRequest {
    RunMicrovmRequest {
        egress_network_connectors: connectors.iter().map(|arn| (*arn).to_owned()).collect(),
        ..app()
    }
}

fn policy(allow: &[&str], deny: &[&str]) -> Option<Reach> {
    let owned = |list: &[&str]| list.iter().map(|cidr| (*cidr).to_owned()).collect();
    Some(Reach::Policy(EgressPolicy { allow_cidrs: owned(allow), deny_cidrs: owned(deny) }))
}

fn reach(spec: MicrovmSpec) -> Option<Reach> {
    spec.egress.unwrap().reach
}

fn with_tags(name: &str, tags: &[(&str, &str)]) -> CreateNetworkConnectorRequest {
    CreateNetworkConnectorRequest { tags: tagged(tags), ..request(name) }
}

#[tokio::test]
async fn a_policy_is_resolved_at_the_launch_and_stays_for_life() {
    let (world, mut scheduler, host, client) = World::with_process(&[]).await;
    let connectors = world.connectors(&scheduler, Role::Admin);
    let tags = [("torpor:allow-cidrs", "10.0.0.0/8 192.168.0.0/16"), ("torpor:deny-cidrs", "10.9.0.0/16")];
    let arn = active(&connectors, with_tags("net", &tags)).await.connector_arn;
    let plain = running(&client).await;
    assert_eq!(plain.egress_network_connectors, [INTERNET]);
    assert_eq!(reach(host.launched(&plain.microvm_id)), Some(Reach::Internet(Internet {})));

    let request = RunMicrovmRequest { client_token: "once".into(), ..through(&[&arn]) };
    let id = run(&client, request.clone()).await.unwrap().microvm_id;
    let microvm = becomes(&client, &id, MicrovmState::Running).await;
    assert_eq!(microvm.egress_network_connectors, std::slice::from_ref(&arn));
    let expected = policy(&["10.0.0.0/8", "192.168.0.0/16"], &["10.9.0.0/16"]);
    assert_eq!(reach(host.launched(&id)), expected);

    for (connectors, expected) in [
        (vec![arn.as_str(), INTERNET], policy(&[], &["10.9.0.0/16"])),
        (vec![&*format!("{arn}:1")], expected.clone()),
        (vec![&*format!("{ARN}net")], expected.clone()),
    ] {
        let id = run(&client, through(&connectors)).await.unwrap().microvm_id;
        becomes(&client, &id, MicrovmState::Running).await;
        assert_eq!(reach(host.launched(&id)), expected, "{connectors:?}");
    }

    // Whatever becomes of the connector and of the scheduler, it stays as it was.
    suspend(&client, &id).await.unwrap();
    delete(&connectors, "net").await.unwrap();
    eventually("gone", || async { read(&connectors, "net").await.err() }).await;
    assert_eq!(run(&client, request).await.unwrap().microvm_id, id, "a replay asks for no connector");
    refused(
        run(&client, through(&[&arn])).await,
        reason::NOT_FOUND,
        &format!("Network connector not found for: {arn}"),
    );
    scheduler.kill();
    let again = world.scheduler_at(&scheduler.address.clone(), &[]);
    eventually("a wake", || async { resume(&client, &id).await.ok() }).await;
    let spec = host.asked(|inner| inner.resumes.last().unwrap().spec.clone().unwrap());
    assert_eq!(reach(spec), expected);
    drop(again);
}

#[tokio::test]
async fn tags_and_versions_count_from_the_next_launch_on() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let connectors = world.connectors(&scheduler, Role::Admin);
    let arn = active(&connectors, request("net")).await.connector_arn;
    let launched = async |connector: &str| {
        let id = run(&client, through(&[connector])).await.unwrap().microvm_id;
        becomes(&client, &id, MicrovmState::Running).await;
        reach(host.launched(&id))
    };
    assert_eq!(launched(&arn).await, policy(&[], &["::/0"]));
    let dual = UpdateNetworkConnectorRequest {
        identifier: "net".into(),
        configuration: Some(NetworkConnectorConfiguration {
            network_protocol: NetworkProtocol::DualStack.into(),
            ..Default::default()
        }),
        operator_role: String::new(),
        client_token: "u".into(),
    };
    update(&connectors, dual).await.unwrap();
    eventually("version 2", || async { (read(&connectors, "net").await.ok()?.1 == 2).then_some(()) }).await;
    assert_eq!(launched(&arn).await, policy(&[], &[]));
    assert_eq!(launched(&format!("{arn}:1")).await, policy(&[], &["::/0"]));
    let tag = api::connector::v1::TagNetworkConnectorRequest {
        identifier: "net".into(),
        tags: tagged(&[("torpor:deny-cidrs", "::/0+10.0.0.0/8")]),
    };
    connectors.clone().tag_network_connector(tag).await.unwrap();
    assert_eq!(launched(&arn).await, policy(&[], &["::/0", "10.0.0.0/8"]));
}

#[tokio::test]
async fn what_cannot_be_attached_says_why() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, scheduler, _host, client) = world.and_host(scheduler).await;
    let connectors = world.connectors(&scheduler, Role::Admin);
    let arn = create(&connectors, request("net")).await.unwrap().connector_arn;
    let text = format!("The network connector {arn} is PENDING; it must be ACTIVE to be used.");
    let status = run(&client, through(&[&arn])).await.unwrap_err();
    let info = tonic_types::StatusExt::get_details_error_info(&status).unwrap();
    assert_eq!((info.metadata["state"].as_str(), &info.metadata["resource"]), ("PENDING", &arn));
    refused::<()>(Err(status), reason::STATE_CONFLICT, &text);
    let foreign = arn.replace("000000000000", "123456789012");
    for (connector, reason, text) in [
        ("INTERNET_EGRESS", reason::INVALID_ARGUMENT, "Malformed network connector ARN".to_owned()),
        (&foreign, reason::PERMISSION_DENIED, format!("{foreign} belongs to another account")),
        (
            &format!("{ARN}nc-absent"),
            reason::NOT_FOUND,
            format!("Network connector not found for: {ARN}nc-absent"),
        ),
        (&format!("{arn}:7"), reason::NOT_FOUND, format!("Network connector not found for: {arn}:7")),
    ] {
        let status = run(&client, through(&[connector])).await.unwrap_err();
        assert_eq!(status.message(), text);
        refused::<()>(Err(status), reason, &text);
    }
    assert!(world.listed("microvms/").await.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn a_connector_of_web_functions_is_not_for_microvms() {
    let (world, scheduler, _host, client) = World::with_host(&[]).await;
    let connectors = world.connectors(&scheduler, Role::Admin);
    let mut web = request("web");
    web.configuration.as_mut().unwrap().associated_compute_resource_types =
        vec![ComputeResourceType::WebFunction.into()];
    let arn = active(&connectors, web).await.connector_arn;
    refused(
        run(&client, through(&[&arn])).await,
        reason::INVALID_ARGUMENT,
        &format!("The network connector {arn} is not for compute resources of type MicroVm."),
    );
}
