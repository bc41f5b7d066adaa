//! Rules of launches, tokens and quotas, with the sentences callers read.

use api::common::v1::IdlePolicy;
use api::errors::reason;
use api::hostagent::v1::egress::Reach;
use api::hostagent::v1::{Egress, Ingress, Internet};
use api::image::v1::{Image, ImageState};
use api::microvm::v1::{
    CreateMicrovmShellAuthTokenRequest, ListMicrovmsRequest, MicrovmState, RunMicrovmRequest,
};
use prost::Message as _;
use token::{Key, KeySet, Kind};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::host::FakeHost;
use crate::world::*;
use MicrovmState::{Running, Suspended, Terminated};

const MANAGED: &str = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:";
const SHELL_NEEDED: &str =
    "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM.";
const ALL_ALONE: &str = "ALL_INGRESS cannot be combined with other ingress network connectors; use \
                         HTTP_INGRESS and/or SHELL_INGRESS instead";

fn with_ingress(names: &[&str]) -> RunMicrovmRequest {
    RunMicrovmRequest {
        ingress_network_connectors: names.iter().map(|name| format!("{MANAGED}{name}")).collect(),
        ..app()
    }
}

async fn shell(client: &Client, id: &str, life: i64) -> Result<(String, i64), Status> {
    let request = CreateMicrovmShellAuthTokenRequest { microvm_id: id.into(), expiration: seconds(life) };
    let answer = client.clone().create_microvm_shell_auth_token(request).await?;
    let mut answer = answer.into_inner();
    assert_eq!(answer.auth_token.len(), 1);
    let token = answer.auth_token.remove("X-aws-proxy-auth").unwrap();
    Ok((token, answer.expire_time.unwrap().seconds))
}

#[tokio::test]
async fn rules_that_share_a_world() {
    let (world, _scheduler, host, client) = World::with_roomy_host().await;
    shell_tokens_need_the_shells_connector(&world, &client).await;
    defaults_are_in_the_record(&world, &host, &client).await;
    images_are_named_by_arn_or_name_of_this_account(&client).await;
}

async fn shell_tokens_need_the_shells_connector(world: &World, client: &Client) {
    for (ingress, sentence) in [
        (&[][..], SHELL_NEEDED),
        (&["HTTP_INGRESS"], SHELL_NEEDED),
        (&["ALL_INGRESS"], SHELL_NEEDED),
        (&["NO_INGRESS"], SHELL_NEEDED),
        (&["ALL_INGRESS", "SHELL_INGRESS"], ALL_ALONE),
        (&["HTTP_INGRESS", "ALL_INGRESS"], ALL_ALONE),
    ] {
        // The launch takes the pair; only the shell says no.
        let id = run(client, with_ingress(ingress)).await.unwrap().microvm_id;
        let status = shell(client, &id, 60).await.unwrap_err();
        assert_eq!(status.message(), sentence, "{ingress:?}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata["resource"], id);
        refused::<()>(Err(status), reason::SHELL_NOT_ALLOWED, "");
    }
    let request = with_ingress(&["HTTP_INGRESS", "SHELL_INGRESS"]);
    let id = run(client, request).await.unwrap().microvm_id;
    becomes(client, &id, Running).await;
    suspend(client, &id).await.unwrap();
    let (token, expires) = shell(client, &id, 120).await.unwrap();
    let keys = world.store.list("keys/").await.unwrap().0;
    let keys = keys.iter().map(|(_, value)| serde_json::from_slice::<Key>(&value.value).unwrap()).collect();
    let now = u64::try_from(expires).unwrap() - 1;
    let claims = KeySet::new(keys).unwrap().verify(&token, now).unwrap();
    assert_eq!((claims.kind, claims.microvm_id.as_str()), (Kind::Shell, id.as_str()));
    assert_eq!(claims.expires_at - claims.issued_at, 120);
    assert!(claims.ports.is_empty(), "a shell's token opens no port");
    for life in [0, 59, 90, 3601] {
        refused(shell(client, &id, life).await, reason::INVALID_ARGUMENT, "expirationInMinutes");
    }
    shell(client, &id, 3600).await.unwrap();
    terminate(client, &id).await.unwrap();
    let text = format!("The MicroVM {id} has been terminated and its state cannot be changed.");
    refused(shell(client, &id, 60).await, reason::TERMINATED, &text);
    let unknown = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    refused(shell(client, unknown, 60).await, reason::NOT_FOUND, &format!("MicroVM not found: {unknown}"));
}

async fn defaults_are_in_the_record(world: &World, host: &FakeHost, client: &Client) {
    let microvm = running(client).await;
    assert_eq!(microvm.maximum_duration, seconds(28_800));
    assert_eq!(microvm.ingress_network_connectors, [format!("{MANAGED}HTTP_INGRESS")]);
    assert_eq!(microvm.egress_network_connectors, [format!("{MANAGED}INTERNET_EGRESS")]);
    assert_eq!(microvm.idle_policy, None);
    assert_eq!((microvm.state_reason.as_str(), microvm.execution_role_arn.as_str()), ("", ""));
    assert_eq!(microvm.image_arn, "arn:aws:lambda:us-east-1:000000000000:microvm-image:app");
    let told = host.launched(&microvm.microvm_id);
    assert_eq!(told.ingress, Some(Ingress { http: true, shell: false }));
    assert_eq!(told.egress, Some(Egress { reach: Some(Reach::Internet(Internet {})) }));
    // In the record, not made up when it is read.
    let key = format!("microvms/{}", microvm.microvm_id);
    let stored = world.store.get(&key).await.unwrap().unwrap().value;
    for arn in [&microvm.ingress_network_connectors[0], &microvm.egress_network_connectors[0]] {
        assert!(stored.windows(arn.len()).any(|window| window == arn.as_bytes()));
    }
}

async fn images_are_named_by_arn_or_name_of_this_account(client: &Client) {
    let of = |image: &str| RunMicrovmRequest { image_identifier: image.into(), ..Default::default() };
    let arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:app";
    run(client, of(arn)).await.unwrap();
    for (image, reason, text) in [
        (
            "arn:aws:lambda:us-east-1:000000000000:microvm-image:nothing",
            reason::NO_ACTIVE_VERSION,
            "No active version found for MicroVM image \
             arn:aws:lambda:us-east-1:000000000000:microvm-image:nothing",
        ),
        (
            "arn:aws:lambda:us-east-1:123456789012:microvm-image:app",
            reason::PERMISSION_DENIED,
            "arn:aws:lambda:us-east-1:123456789012:microvm-image:app belongs to another account",
        ),
        (
            "arn:aws:lambda:us-east-1:000000000000:microvm-image/app",
            reason::INVALID_ARGUMENT,
            "Invalid ARN format: arn:aws:lambda:us-east-1:000000000000:microvm-image/app",
        ),
    ] {
        let status = run(client, of(image)).await.unwrap_err();
        assert_eq!(status.message(), text);
        refused::<()>(Err(status), reason, text);
    }
    let pinned = RunMicrovmRequest { image_version: "7.0".into(), ..of(arn) };
    let status = run(client, pinned).await.unwrap_err();
    assert_eq!(status.message(), format!("No active version found for MicroVM image {arn} and version 7.0"));
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["resource"], arn);
    let foreign = ListMicrovmsRequest {
        image_identifier: "arn:aws:lambda:us-east-1:123456789012:microvm-image:app".into(),
        ..Default::default()
    };
    refused(
        client.clone().list_microvms(foreign).await,
        reason::PERMISSION_DENIED,
        "belongs to another account",
    );
}

#[tokio::test]
async fn the_memory_quota_counts_all_that_has_not_ended() {
    let settings = ["quotas.memory_mib=1536"];
    let (world, mut scheduler, _host, client) = World::with_process(&settings).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(running(&client).await.microvm_id);
    }
    let full = async |client: &Client| {
        let status = run(client, app()).await.unwrap_err();
        assert_eq!(
            status.message(),
            "The base maximum allocated memory limit has been reached for this account."
        );
        let metadata = status.get_details_error_info().unwrap().metadata;
        for (key, value) in
            [("quota", "memory"), ("limit_mib", "1536"), ("allocated_mib", "1536"), ("asked_mib", "512")]
        {
            assert_eq!(metadata[key], value);
        }
        refused::<()>(Err(status), reason::QUOTA_EXCEEDED, "");
    };
    full(&client).await;
    suspend(&client, &ids[0]).await.unwrap();
    full(&client).await;
    assert_eq!(get(&client, &ids[0]).await.unwrap().state(), Suspended);
    // The next leader counts the same.
    scheduler.kill();
    let again = world.scheduler_at(&scheduler.address.clone(), &settings);
    world.ready(&client).await;
    world.placeable(&again, 1).await;
    full(&client).await;
    terminate(&client, &ids[0]).await.unwrap();
    becomes(&client, &ids[0], Terminated).await;
    running(&client).await;
    full(&client).await;
}

#[tokio::test]
async fn without_a_quota_memory_is_what_the_hosts_have() {
    // The host has 4096 MiB, a microVM takes 512 of them while it runs.
    let (_world, _scheduler, _host, client) = World::with_host(&[]).await;
    for _ in 0..8 {
        let id = running(&client).await.microvm_id;
        suspend(&client, &id).await.unwrap();
    }
    for _ in 0..8 {
        running(&client).await;
    }
    refused(run(&client, app()).await, reason::INSUFFICIENT_CAPACITY, "");
}

#[tokio::test]
async fn bounds_of_a_launch() {
    let (_world, _scheduler, _host, client) = World::with_host(&["run_hook_payload_bytes_max=10"]).await;
    let policy = |idle: Option<i64>, suspended: Option<i64>| {
        Some(IdlePolicy {
            max_idle_duration: idle.and_then(seconds),
            suspended_duration: suspended.and_then(seconds),
            auto_resume_enabled: true,
            awake_while: None,
        })
    };
    type Change = Box<dyn Fn(&mut RunMicrovmRequest)>;
    let cases: [(Change, &str); 12] = [
        (Box::new(|r| r.maximum_duration = seconds(1)), ""),
        (
            Box::new(|r| r.maximum_duration = seconds(0)),
            "maximumDurationInSeconds: must be whole seconds, 1 to 28800",
        ),
        (
            Box::new(|r| r.maximum_duration = seconds(28_801)),
            "maximumDurationInSeconds: must be whole seconds, 1 to 28800",
        ),
        (Box::new(|r| r.run_hook_payload = "1234567890".into()), ""),
        (Box::new(|r| r.run_hook_payload = "12345678901".into()), "runHookPayload: must be at most 10 bytes"),
        (Box::new(move |r| r.idle_policy = policy(Some(60), Some(0))), ""),
        (
            Box::new(move |r| r.idle_policy = policy(Some(59), Some(0))),
            "idlePolicy.maxIdleDurationSeconds: must be whole seconds, 60 to 28800",
        ),
        (
            Box::new(move |r| r.idle_policy = policy(Some(60), Some(-1))),
            "idlePolicy.suspendedDurationSeconds: must be whole seconds",
        ),
        (
            Box::new(move |r| r.idle_policy = policy(None, Some(0))),
            "idlePolicy.maxIdleDurationSeconds: must not be left out",
        ),
        (Box::new(|r| r.client_token = "t".repeat(128)), ""),
        (Box::new(|r| r.client_token = "t".repeat(129)), "clientToken"),
        (Box::new(|r| r.execution_role_arn = "not a role".into()), "executionRoleArn"),
    ];
    for (number, (change, text)) in cases.into_iter().enumerate() {
        let mut request = app();
        change(&mut request);
        match run(&client, request).await {
            Ok(microvm) => {
                assert_eq!(text, "", "case {number}");
                terminate(&client, &microvm.microvm_id).await.unwrap();
            }
            Err(status) => {
                assert_eq!(status.code(), Code::InvalidArgument, "case {number}: {status:?}");
                assert!(
                    !text.is_empty() && status.message().contains(text),
                    "case {number}: {}",
                    status.message()
                );
            }
        }
    }
}

#[tokio::test]
async fn a_token_means_the_same_microvm_also_when_it_has_ended() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let request = RunMicrovmRequest { client_token: "once".into(), ..app() };
    let id = run(&client, request.clone()).await.unwrap().microvm_id;
    for state in [Running, Suspended, Terminated] {
        match state {
            Suspended => drop(suspend(&client, &id).await.unwrap()),
            Terminated => drop(terminate(&client, &id).await.unwrap()),
            _ => {}
        }
        becomes(&client, &id, state).await;
        let again = run(&client, request.clone()).await.unwrap();
        assert_eq!((again.microvm_id.as_str(), again.state()), (id.as_str(), state));
    }
    assert_eq!(host.asked(|inner| inner.launches.len()), 1);
}

#[tokio::test]
async fn too_many_callers_of_one_microvm_are_told_to_slow_down() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    host.script(|inner| inner.on_suspend.push_back(crate::host::Step::Hang));
    let mut waiting = futures::stream::FuturesUnordered::new();
    for _ in 0..20 {
        waiting.push(suspend(&client, &id));
    }
    let answer = futures::StreamExt::next(&mut waiting).await.unwrap();
    let status = answer.unwrap_err();
    assert!(status.get_details_retry_info().is_some());
    refused::<()>(Err(status), reason::THROTTLED, &format!("Too many calls wait for the MicroVM {id}."));
}

#[tokio::test]
async fn whoever_deletes_an_image_hears_of_every_launch_that_came_before() {
    let (world, _scheduler, _host, client) = World::with_host(&[]).await;
    let request =
        || ListMicrovmsRequest { image_identifier: "app".into(), unlaunchable: true, ..Default::default() };
    let early = client.clone().list_microvms(request()).await;
    refused(early, reason::STORE_UNAVAILABLE, "do not say yet that it cannot be launched");
    let launched = run(&client, app()).await.unwrap().microvm_id;
    let deleting = Image { name: "app".into(), state: ImageState::Deleting.into(), ..Default::default() };
    let asked = tokio::spawn({
        let mut client = client.clone();
        async move { client.list_microvms(request()).await }
    });
    world.store.put_if("images/app", deleting.encode_to_vec(), records::Expect::Any, None).await.unwrap();
    let seen = asked.await.unwrap().unwrap().into_inner().microvms;
    assert_eq!(seen.into_iter().map(|one| one.microvm_id).collect::<Vec<_>>(), [launched]);
    refused(run(&client, app()).await, reason::NO_ACTIVE_VERSION, "No active version found");
}
