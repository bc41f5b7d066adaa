//! Access keys.

use api::access::v1::*;
use api::errors::reason;
use prost::Message as _;
use rpc::Role;
use tonic::Status;

use crate::world::*;

async fn led(settings: &[&str]) -> (World, Scheduler, Keys) {
    let world = World::new().await;
    let scheduler = world.here(settings);
    led_by(world, scheduler).await
}

async fn led_process(settings: &[&str]) -> (World, Scheduler, Keys) {
    let world = World::new().await;
    let scheduler = world.scheduler(settings);
    led_by(world, scheduler).await
}

async fn led_by(world: World, scheduler: Scheduler) -> (World, Scheduler, Keys) {
    world.ready(&world.client(&scheduler, Role::Admin)).await;
    let keys = world.keys(&scheduler, Role::Admin);
    (world, scheduler, keys)
}

async fn create(keys: &Keys, request: CreateAccessKeyRequest) -> Result<(AccessKey, String), Status> {
    let answer = keys.clone().create_access_key(request).await?.into_inner();
    Ok((answer.access_key.unwrap(), answer.secret_access_key))
}

async fn list(keys: &Keys, page_size: u32, page_token: &str) -> Result<ListAccessKeysResponse, Status> {
    let request = ListAccessKeysRequest { page_size, page_token: page_token.into() };
    Ok(keys.clone().list_access_keys(request).await?.into_inner())
}

async fn delete(keys: &Keys, id: &str) -> Result<(), Status> {
    let request = DeleteAccessKeyRequest { access_key_id: id.into() };
    keys.clone().delete_access_key(request).await.map(drop)
}

fn policy() -> Option<Policy> {
    Some(Policy {
        statements: vec![Statement {
            effect: Effect::Allow.into(),
            actions: vec!["lambda:Get*".into()],
            resources: vec!["arn:aws:lambda:*:*:microvm-image:team-*".into()],
        }],
    })
}

#[tokio::test]
async fn a_key_is_made_listed_and_deleted() {
    let filter = "telemetry.log_filter='scheduler=trace,records=trace,debug'";
    let (world, scheduler, keys) = led_process(&[filter]).await;
    let request = CreateAccessKeyRequest {
        description: "builders".into(),
        policy: policy(),
        expire_time: Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 }),
    };
    let (key, secret) = create(&keys, request.clone()).await.unwrap();
    let id = key.access_key_id.as_str();
    assert!(id.starts_with("AKIA") && id.len() == 20, "{id}");
    assert_eq!((secret.len(), key.account_id.as_str()), (40, "000000000000"));
    assert_eq!(
        (key.description.as_str(), &key.policy, key.expire_time),
        ("builders", &request.policy, request.expire_time)
    );
    assert!(key.create_time.is_some());
    // What the edges watch.
    let found = world.store.get(&format!("access-keys/{id}")).await.unwrap().unwrap();
    let stored = StoredAccessKey::decode(found.value.as_slice()).unwrap();
    assert_eq!(stored.access_key.as_ref(), Some(&key));
    assert_eq!(stored.secret_access_key, secret);
    assert_eq!(list(&keys, 0, "").await.unwrap().access_keys, std::slice::from_ref(&key));

    delete(&keys, id).await.unwrap();
    assert!(world.listed("access-keys/").await.is_empty());
    let status = delete(&keys, id).await.unwrap_err();
    assert_eq!(status.message(), format!("Access key not found: {id}"));
    refused::<()>(Err(status), reason::NOT_FOUND, id);
    let log = world.log(&scheduler);
    assert!(log.contains("access key made") && log.contains(id));
    assert!(!log.contains(&secret), "a secret is in the log");
}

#[tokio::test]
async fn rules_that_share_a_world() {
    let (world, scheduler, keys) = led(&[]).await;
    what_is_wrong_names_the_field(&world, &keys).await;
    only_operators_may_call(&world, &scheduler).await;
}

async fn what_is_wrong_names_the_field(world: &World, keys: &Keys) {
    let bad = CreateAccessKeyRequest {
        description: "d".repeat(257),
        policy: Some(Policy {
            statements: vec![Statement {
                effect: Effect::Unspecified.into(),
                actions: vec!["lambda-microvms:RunMicrovm".into()],
                resources: vec![],
            }],
        }),
        expire_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
    };
    let status = create(keys, bad).await.unwrap_err();
    for field in [
        "description: must be at most 256",
        "policy.statements[0].effect: must be ALLOW or DENY",
        "policy.statements[0].actions[0]: must be",
        "policy.statements[0].resources: must have 1 to 50",
        "expireTime: must be in the future",
    ] {
        assert!(status.message().contains(field), "{}", status.message());
    }
    refused::<()>(Err(status), reason::INVALID_ARGUMENT, "");
    for id in ["", "AKIA", "../keys", "akiaaaaaaaaaaaaaaaaa"] {
        refused(delete(keys, id).await, reason::INVALID_ARGUMENT, "accessKeyId: must be 20 characters");
    }
    refused(list(keys, 0, "x").await, reason::INVALID_ARGUMENT, "pageToken");
    assert!(world.listed("access-keys/").await.is_empty());
}

async fn only_operators_may_call(world: &World, scheduler: &Scheduler) {
    for role in [Role::EdgeProxy, Role::ImageBuilder, Role::HostAgent, Role::Scheduler] {
        let keys = world.keys(scheduler, role);
        let denied = reason::PERMISSION_DENIED;
        refused(create(&keys, CreateAccessKeyRequest::default()).await, denied, role.name());
        refused(list(&keys, 0, "").await, denied, role.name());
        refused(delete(&keys, "AKIAAAAAAAAAAAAAAAAA").await, denied, role.name());
    }
    assert!(world.listed("access-keys/").await.is_empty());
}

#[tokio::test]
async fn keys_are_paged_and_limited() {
    let (_world, _scheduler, keys) = led(&["quotas.access_keys_max=5"]).await;
    let runs = (0..8).map(|_| create(&keys, CreateAccessKeyRequest::default()));
    let made = futures::future::join_all(runs).await;
    let (good, bad): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (5, 3), "the limit holds at once");
    for answer in bad {
        refused(answer, reason::QUOTA_EXCEEDED, "The limit of 5 access keys is reached.");
    }
    let mut ids: Vec<String> = good.into_iter().map(|made| made.unwrap().0.access_key_id).collect();
    ids.sort();
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(&keys, 2, &token).await.unwrap();
        assert!(page.access_keys.len() <= 2);
        found.extend(page.access_keys.into_iter().map(|key| key.access_key_id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ids);
}

#[tokio::test]
async fn keys_outlive_their_leader_and_a_deposed_one_makes_none() {
    let (world, mut scheduler, keys) = led_process(&[]).await;
    let (kept, _) = create(&keys, CreateAccessKeyRequest::default()).await.unwrap();
    let before = world.store.list("access-keys/").await.unwrap().0;
    world.depose().await;
    refused(create(&keys, CreateAccessKeyRequest::default()).await, reason::NOT_LEADER, "does not lead");
    refused(delete(&keys, &kept.access_key_id).await, reason::NOT_LEADER, "does not lead");
    assert_eq!(world.store.list("access-keys/").await.unwrap().0, before);
    scheduler.kill();
    world.store.delete_if("elections/scheduler", records::Expect::Any, None).await.unwrap();
    let next = world.scheduler(&[]);
    let keys = world.keys(&next, Role::Admin);
    let listed = eventually("the next leader", || async { list(&keys, 0, "").await.ok() }).await;
    assert_eq!(listed.access_keys, std::slice::from_ref(&kept));
    delete(&keys, &kept.access_key_id).await.unwrap();
    assert!(list(&keys, 0, "").await.unwrap().access_keys.is_empty());
}
