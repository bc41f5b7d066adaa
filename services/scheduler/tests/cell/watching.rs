//! Watching microVMs.

use api::errors::reason;
use api::microvm::v1::{MicrovmState, WatchMicrovmsRequest, WatchMicrovmsResponse};
use tonic::Streaming;

use crate::world::*;

async fn next(stream: &mut Streaming<WatchMicrovmsResponse>) -> WatchMicrovmsResponse {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    message.unwrap().unwrap()
}

#[tokio::test]
async fn a_watch_lists_then_follows() {
    let (_world, mut scheduler, _host, client) = World::with_process(&["retention_seconds=1"]).await;
    let id = running(&client).await.microvm_id;
    let mut all = client.clone().watch_microvms(WatchMicrovmsRequest::default()).await.unwrap().into_inner();
    let listed = next(&mut all).await;
    assert_eq!(listed.microvm.unwrap().microvm_id, id);
    assert_eq!(listed.tunnel_address, "tunnel-h1");
    assert!(next(&mut all).await.synced);
    let only = WatchMicrovmsRequest { microvm_id: id.clone() };
    let mut one = client.clone().watch_microvms(only).await.unwrap().into_inner();
    assert!(next(&mut one).await.microvm.is_some() && next(&mut one).await.synced);
    let other = running(&client).await.microvm_id;
    terminate(&client, &id).await.unwrap();
    let mut states = Vec::new();
    loop {
        let change = next(&mut one).await;
        let microvm = change.microvm.unwrap();
        assert_eq!(microvm.microvm_id, id, "the other one is not asked for");
        if change.deleted {
            break;
        }
        states.push(microvm.state());
    }
    assert_eq!(states, [MicrovmState::Terminating, MicrovmState::Terminated]);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let change = next(&mut all).await.microvm.unwrap();
        if change.microvm_id == other {
            seen.push(change.state());
        }
    }
    assert_eq!(seen, [MicrovmState::Pending, MicrovmState::Running]);
    let unknown = WatchMicrovmsRequest { microvm_id: "microvm-0190a5e2-7c3b-3f00-8000-000000000001".into() };
    let answer = client.clone().watch_microvms(unknown).await.map(|_| ());
    refused(answer, reason::NOT_FOUND, "not found");
    scheduler.kill();
    let ended = async {
        loop {
            match all.message().await {
                Ok(Some(_)) => {}
                other => return other,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("the watch ends");
    assert!(ended.is_err(), "a cut watch is an error, never a quiet end: {ended:?}");
}
