//! Tokens after they were made, and the keys that seal them.

use std::time::{Duration, SystemTime};

use api::errors::reason;
use api::microvm::v1::{
    AllPorts, CreateMicrovmAuthTokenRequest, Microvm, MicrovmState, PortScope,
    RevokeMicrovmAuthTokensRequest, WatchMicrovmsRequest, port_scope::Scope,
};
use rpc::Role;
use scheduler::adapters::token_keys::{TokenKeys, seconds as since_1970};
use token::{Claims, Key, KeySet, Kind, VerifyError};
use tonic::Status;

use crate::world::*;

/// The keys in etcd, as an edge follows them.
async fn keys(world: &World) -> KeySet {
    let entries = world.store.list("keys/").await.unwrap().0;
    let parsed = entries.iter().map(|(_, value)| serde_json::from_slice::<Key>(&value.value).unwrap());
    KeySet::new(parsed.collect()).unwrap()
}

/// A fresh token for every port, opened as an edge opens it.
async fn minted(world: &World, client: &Client, id: &str) -> Claims {
    let request = CreateMicrovmAuthTokenRequest {
        microvm_id: id.into(),
        expiration: seconds(60),
        allowed_ports: vec![PortScope { scope: Some(Scope::AllPorts(AllPorts {})) }],
        ..Default::default()
    };
    let answer = client.clone().create_microvm_auth_token(request).await.unwrap().into_inner();
    keys(world).await.verify(&answer.auth_token["X-aws-proxy-auth"], 0).unwrap()
}

async fn revoke(client: &Client, id: &str) -> Result<Microvm, Status> {
    let request = RevokeMicrovmAuthTokensRequest { microvm_id: id.into() };
    Ok(client.clone().revoke_microvm_auth_tokens(request).await?.into_inner().microvm.unwrap())
}

#[tokio::test]
async fn a_revocation_outlives_its_leader_and_the_next_tokens_know_of_it() {
    let (world, mut scheduler, _host, client) = World::with_host(&[]).await;
    let [id, other] = [running(&client).await.microvm_id, running(&client).await.microvm_id];
    let old = minted(&world, &client, &id).await;
    assert_eq!(old.revocations, 0);
    let only = WatchMicrovmsRequest { microvm_id: id.clone() };
    let mut news = client.clone().watch_microvms(only).await.unwrap().into_inner();
    let mut next = async || news.message().await.unwrap().unwrap();
    assert_eq!(next().await.microvm.unwrap().token_revocations, 0);
    assert!(next().await.synced);
    let revoked = revoke(&client, &id).await.unwrap();
    assert_eq!((revoked.token_revocations, revoked.state()), (1, MicrovmState::Running));
    assert_eq!(next().await.microvm.unwrap().token_revocations, 1, "what edges hear");
    let new = minted(&world, &client, &id).await;
    assert!(old.is_revoked(1) && !new.is_revoked(1));
    assert_eq!(minted(&world, &client, &other).await.revocations, 0);

    // Only operators may, and not what has ended.
    let edge = world.client(&scheduler, Role::EdgeProxy);
    refused(revoke(&edge, &id).await, reason::PERMISSION_DENIED, "edge-proxy");
    refused(revoke(&client, "mvm").await, reason::INVALID_ARGUMENT, "microvmIdentifier");
    terminate(&client, &other).await.unwrap();
    refused(revoke(&client, &other).await, reason::TERMINATED, &other);

    // Asleep, and under the next leader.
    suspend(&client, &id).await.unwrap();
    assert_eq!(revoke(&client, &id).await.unwrap().token_revocations, 2);
    scheduler.kill();
    let next = world.here(&[]);
    let client = world.client(&next, Role::Admin);
    world.ready(&client).await;
    assert_eq!(get(&client, &id).await.unwrap().token_revocations, 2);
    assert_eq!(minted(&world, &client, &id).await.revocations, 2);
}

/// A token that lives as long as any, sealed at some time.
fn longest(keys: &TokenKeys, now: SystemTime) -> String {
    let claims = Claims {
        microvm_id: "microvm-0190a5e2-7c3b-3f00-8000-000000000001".into(),
        kind: Kind::Browser,
        ports: vec![token::PortScope::Single(8080)],
        paths: vec![],
        methods: vec![],
        issued_at: since_1970(now),
        expires_at: since_1970(now + model::limits::BROWSER_SESSION_MAX),
        revocations: 0,
    };
    keys.mint(&claims, now).unwrap()
}

#[tokio::test]
async fn a_key_opens_tokens_until_the_last_that_it_sealed_has_expired() {
    let world = World::new().await;
    let leadership = world.store.campaign("scheduler", "test", Duration::from_secs(30)).await.unwrap();
    let (start, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
    let at = |hours: u64, more: u64| start + Duration::from_secs(hours * 3600 + more);
    let rotating = TokenKeys::load(&world.store, &leadership, start).await.unwrap();
    let rotate = async |now| rotating.rotate(&world.store, &leadership, day, now).await.unwrap();
    let opens = async |token: &str, now| keys(&world).await.verify(token, since_1970(now)).map(drop);
    let first = keys(&world).await;
    rotate(at(23, 3599)).await;
    assert_eq!(keys(&world).await, first, "not yet");
    let early = longest(&rotating, at(23, 3599));
    rotate(at(24, 0)).await;
    assert_eq!(keys(&world).await.keys().len(), 2);
    // Edges hear of the successor before it seals.
    let last = longest(&rotating, at(24, 5));
    assert_eq!(first.verify(&last, 0).map(drop), Ok(()));
    let next = longest(&rotating, at(24, 30));
    assert_eq!(first.verify(&next, 0).map(drop), Err(VerifyError::UnknownKey));
    rotate(at(36, 4)).await;
    for (token, now, opened) in [
        (&early, at(35, 3598), Ok(())),
        (&early, at(36, 4), Err(VerifyError::Expired)),
        (&last, at(36, 4), Ok(())),
        (&last, at(36, 5), Err(VerifyError::Expired)),
        (&next, at(36, 5), Ok(())),
    ] {
        assert_eq!(opens(token, now).await, opened);
    }
    rotate(at(37, 1)).await;
    assert_eq!(opens(&last, at(24, 6)).await, Err(VerifyError::UnknownKey), "a retired key opens nothing");
    assert_eq!(opens(&next, at(36, 5)).await, Ok(()));
    // As often as the settings allow, there are never more keys than a set takes.
    let hour = Duration::from_secs(3600);
    for hours in 38..70 {
        rotating.rotate(&world.store, &leadership, hour, at(hours, 0)).await.unwrap();
        assert!(keys(&world).await.keys().len() <= 16, "{hours}");
        longest(&rotating, at(hours, 20));
    }
}
