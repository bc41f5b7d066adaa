//! Recovery points on request.

use std::time::Duration;

use api::errors::reason;
use api::host::v1::HeartbeatRequest;
use api::microvm::v1::{CheckpointMicrovmRequest, CheckpointMicrovmResponse, MicrovmState, SnapshotCopies};
use tonic::Status;

use crate::host::{FakeHost, Step};
use crate::world::*;
use MicrovmState::{Running, Terminated};

async fn checkpoint(client: &Client, id: &str) -> Result<CheckpointMicrovmResponse, Status> {
    let request = CheckpointMicrovmRequest { microvm_id: id.into() };
    Ok(client.clone().checkpoint_microvm(request).await?.into_inner())
}

async fn uploaded(world: &World, scheduler: &Scheduler, client: &Client, host: &FakeHost, id: &str) {
    let mut hosts = world.host(scheduler, &host.spec.host_id);
    let registration =
        api::host::v1::RegisterHostRequest { spec: Some(host.spec.clone()), ..Default::default() };
    hosts.register_host(registration).await.unwrap();
    let observed = vec![host.uploads(id)];
    let sequence = observed[0].snapshot.as_ref().unwrap().sequence;
    let host_id = host.spec.host_id.clone();
    hosts.heartbeat(HeartbeatRequest { host_id, observed, ..Default::default() }).await.unwrap();
    let snapshot = get(client, id).await.unwrap().snapshot.unwrap();
    assert_eq!((snapshot.sequence, snapshot.remote), (sequence, true));
}

#[tokio::test]
async fn a_point_that_was_asked_for_is_gone_on_from_when_the_host_is_lost() {
    let settings = ["fence_grace_seconds=1", "host_lost_grace_seconds=1"];
    let (world, scheduler, host, client) = World::with_host(&settings).await;
    let id = running(&client).await.microvm_id;
    let other = running(&client).await.microvm_id;
    let made = checkpoint(&client, &id).await.unwrap();
    let point = made.recovery_point.unwrap();
    assert_eq!((point.sequence, point.local, point.remote, point.goes_back), (1, true, false, true));
    assert_eq!(api::duration(&point.stood_still.unwrap()).unwrap(), Duration::from_millis(7));
    assert_eq!(made.microvm.unwrap().state(), Running);
    uploaded(&world, &scheduler, &client, &host, &id).await;
    // The next point is not on S3 yet: the one before is what it goes on from.
    let second = checkpoint(&client, &id).await.unwrap();
    assert_eq!(second.recovery_point.unwrap().sequence, 2);
    let kept = second.microvm.unwrap().snapshot.unwrap();
    assert_eq!((kept.sequence, kept.local, kept.remote, kept.goes_back), (1, false, true, true));

    let elsewhere = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    // Somebody waits for the host, which does not answer any more: going on elsewhere does not wait with them.
    host.script(|inner| inner.on_suspend.push_back(Step::Hang));
    let (caller, waited_for) = (client.clone(), id.clone());
    let waiting = tokio::spawn(async move { suspend(&caller, &waited_for).await });
    eventually("the suspend", || async { host.asked(|inner| (!inner.suspends.is_empty()).then_some(())) })
        .await;
    host.lease.revoke().await.unwrap();
    let ended = becomes(&client, &other, Terminated).await;
    assert_eq!(ended.state_reason, "Host h1 was lost.");
    let on = eventually("going on elsewhere", || async {
        get(&client, &id).await.ok().filter(|one| one.host_id == "h2" && one.state() == Running)
    })
    .await;
    assert!(on.recovery.is_some());
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
    let resumed = elsewhere.asked(|inner| inner.resumes[0].snapshot.clone().unwrap());
    assert_eq!(resumed, SnapshotCopies { local: false, ..kept });
}

#[tokio::test]
async fn only_what_runs_has_points_made() {
    let (_world, _scheduler, _host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    suspend(&client, &id).await.unwrap();
    let text = "is SUSPENDED; it cannot be given a recovery point now";
    refused(checkpoint(&client, &id).await, reason::STATE_CONFLICT, text);
    terminate(&client, &id).await.unwrap();
    becomes(&client, &id, Terminated).await;
    refused(checkpoint(&client, &id).await, reason::TERMINATED, "has been terminated");
    refused(checkpoint(&client, "x").await, reason::INVALID_ARGUMENT, "microvmId");
}
