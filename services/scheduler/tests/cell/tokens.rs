//! Tokens after they were made.

use api::errors::reason;
use api::microvm::v1::{
    AllPorts, CreateMicrovmAuthTokenRequest, Microvm, MicrovmState, PortScope,
    RevokeMicrovmAuthTokensRequest, WatchMicrovmsRequest, port_scope::Scope,
};
use rpc::Role;
use token::{Claims, Key, KeySet};
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
