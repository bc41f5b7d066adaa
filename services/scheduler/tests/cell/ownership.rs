//! Whose a snapshot is: what hosts are told of the records, and who clears S3.

use std::collections::BTreeMap;
use std::time::Duration;

use api::errors::{reason, status};
use api::host::v1::{
    HeartbeatRequest, HostUsage, ListHostsRequest, ObservedMicrovm, RecordedMicrovm, RegisterHostRequest,
    StaleMicrovm,
};
use api::microvm::v1::MicrovmState;
use rpc::Role;
use tonic::Code;

use crate::host::{FakeHost, Step};
use crate::world::*;
use MicrovmState::{Pending, Running, Suspended, Terminated};

fn registration(host: &FakeHost, observed: Vec<ObservedMicrovm>) -> RegisterHostRequest {
    RegisterHostRequest { spec: Some(host.spec.clone()), observed, ..Default::default() }
}

fn beat(host: &str, observed: Vec<ObservedMicrovm>) -> HeartbeatRequest {
    HeartbeatRequest { host_id: host.into(), observed, ..Default::default() }
}

#[tokio::test]
async fn a_host_is_told_what_the_record_of_each_reported_microvm_names() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let mut hosts = world.host(&scheduler, "h1");
    hosts.register_host(registration(&host, vec![])).await.unwrap();
    let id = running(&client).await.microvm_id;
    let recorded = |snapshot_sequence, ended| RecordedMicrovm {
        microvm_id: id.clone(),
        generation: 1,
        snapshot_generation: u64::from(snapshot_sequence > 0),
        snapshot_sequence,
        ended,
    };
    let awake = host.observes(&id, Running);
    let told = hosts.heartbeat(beat("h1", vec![awake])).await.unwrap().into_inner();
    assert!(told.recorded.is_empty(), "it has never slept");
    let first = host.observes(&id, Suspended);
    let told = hosts.heartbeat(beat("h1", vec![first.clone()])).await.unwrap().into_inner();
    assert_eq!(told.recorded, [recorded(1, false)]);
    // The next snapshot is not in S3 yet: the record names none that a host could rely on.
    host.observes(&id, Running);
    host.script(|inner| inner.remote_copies = false);
    let second = host.observes(&id, Suspended);
    let told = hosts.heartbeat(beat("h1", vec![second.clone()])).await.unwrap().into_inner();
    assert!(told.recorded.is_empty());
    let mut uploaded = second;
    uploaded.observation += 1;
    uploaded.snapshot.as_mut().unwrap().remote = true;
    let told = hosts.heartbeat(beat("h1", vec![first, uploaded.clone()])).await.unwrap().into_inner();
    assert!(told.recorded.contains(&recorded(2, false)), "{:?}", told.recorded);

    // Another host holds an old copy: it is told of whom the record is, and that its own must go.
    let other = FakeHost::start(&world, "h2").await;
    let mut h2 = world.host(&scheduler, "h2");
    let told = h2.register_host(registration(&other, vec![uploaded.clone()])).await.unwrap().into_inner();
    assert_eq!(told.stale, [StaleMicrovm { microvm_id: id.clone(), generation: 1 }]);
    assert_eq!(told.recorded, [recorded(2, false)]);

    let ended = ObservedMicrovm {
        state: Terminated.into(),
        observation: uploaded.observation + 1,
        ..uploaded.clone()
    };
    let told = hosts.heartbeat(beat("h1", vec![ended])).await.unwrap().into_inner();
    assert_eq!((told.stale.len(), told.recorded.as_slice()), (0, &[recorded(0, true)][..]));
    // Who comes back with an ended one is told so as well, and so is who reports one that nobody knows, but not that it ended.
    let told = hosts.heartbeat(beat("h1", vec![uploaded.clone()])).await.unwrap().into_inner();
    assert_eq!((told.stale.len(), told.recorded.as_slice()), (1, &[recorded(0, true)][..]));
    let strange = "microvm-0190a5e2-7c3b-3f00-8000-000000000001".to_owned();
    let strange = ObservedMicrovm { microvm_id: strange, ..uploaded };
    let told = hosts.heartbeat(beat("h1", vec![strange])).await.unwrap().into_inner();
    assert_eq!((told.stale.len(), told.recorded.len()), (1, 0));
}

#[tokio::test]
async fn launches_and_wakes_name_the_lease_of_the_hosts_record() {
    let (world, _scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    suspend(&client, &id).await.unwrap();
    // The host has another lease than the leader has heard of, twice, and then the leader hears of it.
    let changed = status(Code::Unavailable, reason::LEASE_CHANGED, "another lease", &[]);
    host.script(|inner| inner.on_resume.extend([Step::Refuse(changed.clone()), Step::Refuse(changed)]));
    let waking = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { resume(&client, &id).await }
    });
    eventually("the first refusal", || async {
        host.asked(|inner| (!inner.resumes.is_empty()).then_some(()))
    })
    .await;
    let next = world.store.lease(Duration::from_secs(10)).await.unwrap();
    host.announce_under(&world, &next).await;
    assert_eq!(waking.await.unwrap().unwrap().state(), Running);
    let (launched, woken) = host.asked(|inner| {
        (inner.launched_under.clone(), inner.resumes.iter().map(|request| request.lease).collect::<Vec<_>>())
    });
    assert_eq!(launched, [host.lease.id()]);
    assert_eq!((woken.first(), woken.last()), (Some(&host.lease.id()), Some(&next.id())), "{woken:?}");
}

#[tokio::test]
async fn what_its_host_gave_up_for_a_move_that_nobody_recorded_is_placed_again() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let (in_s3, only_there) = (running(&client).await.microvm_id, running(&client).await.microvm_id);
    suspend(&client, &in_s3).await.unwrap();
    host.script(|inner| inner.remote_copies = false);
    suspend(&client, &only_there).await.unwrap();
    let gone = status(Code::NotFound, reason::NOT_HERE, "dropped", &[]);
    host.script(|inner| inner.on_resume.push_back(Step::Refuse(gone.clone())));
    // It is the only host: under a new generation it may have it again.
    let woken = resume(&client, &in_s3).await.unwrap();
    assert_eq!((woken.state(), woken.host_id.as_str(), woken.generation), (Running, "h1", 2));
    let told = host.asked(|inner| inner.resumes.last().cloned().unwrap());
    assert!(told.generation == 2 && told.snapshot.unwrap().remote);

    host.script(|inner| inner.on_resume.push_back(Step::Refuse(gone)));
    assert_eq!(resume(&client, &only_there).await.unwrap_err().code(), Code::NotFound);
    let asleep = get(&client, &only_there).await.unwrap();
    assert_eq!((asleep.state(), asleep.generation), (Suspended, 1), "nobody else has it");
}

#[tokio::test]
async fn an_end_without_its_host_is_cleared_from_s3_by_another() {
    let settings = ["fence_grace_seconds=1", "host_lost_grace_seconds=1"];
    let (world, scheduler, host, client) = World::with_host(&settings).await;
    let (asked, lost) = (running(&client).await.microvm_id, running(&client).await.microvm_id);
    let never_slept = running(&client).await.microvm_id;
    suspend(&client, &asked).await.unwrap();
    suspend(&client, &lost).await.unwrap();
    resume(&client, &lost).await.unwrap();
    let other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    host.lease.revoke().await.unwrap();
    world.placeable(&scheduler, 1).await;
    terminate(&client, &asked).await.unwrap();
    for id in [&asked, &lost, &never_slept] {
        becomes(&client, id, Terminated).await;
    }
    eventually("the removals", || async { other.asked(|inner| (inner.removals.len() == 2).then_some(())) })
        .await;
    let mut removed = other.asked(|inner| inner.removals.clone());
    removed.sort_by_key(|request| request.microvm_id != asked);
    let removed: Vec<_> = removed.iter().map(|one| (one.microvm_id.as_str(), one.minimum_age)).collect();
    assert_eq!(removed, [(asked.as_str(), None), (lost.as_str(), None)]);
}

#[tokio::test]
async fn the_sweep_removes_what_no_living_record_names() {
    let (_world, _scheduler, host, client) =
        World::with_host(&["orphan_sweep_seconds=1", "orphan_age_seconds=7200"]).await;
    let (awake, ended) = (running(&client).await.microvm_id, running(&client).await.microvm_id);
    let asleep = running(&client).await.microvm_id;
    suspend(&client, &asleep).await.unwrap();
    terminate(&client, &ended).await.unwrap();
    becomes(&client, &ended, Terminated).await;
    let unknown = "microvm-0190a5e2-7c3b-3f00-8000-000000000001".to_owned();
    let all = [&awake, &ended, &asleep, &unknown];
    let stored: BTreeMap<String, u64> = all.map(|id| (id.clone(), 3)).into();
    host.script(|inner| inner.stored = stored);
    let left = eventually("the sweep", || async {
        host.asked(|inner| (inner.stored.len() <= 2).then(|| inner.stored.clone()))
    })
    .await;
    assert!(left.contains_key(&awake) && left.contains_key(&asleep), "{left:?}");
    let removals = host.asked(|inner| inner.removals.clone());
    assert!(removals.iter().all(|one| one.minimum_age == seconds(7200)), "{removals:?}");
}

#[tokio::test]
async fn one_that_sleeps_in_files_that_its_host_cannot_read_is_kept() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, scheduler, host, client) = world.and_host(scheduler).await;
    host.script(|inner| inner.remote_copies = false);
    let (asleep, awake) = (running(&client).await.microvm_id, running(&client).await.microvm_id);
    suspend(&client, &asleep).await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    let mut hosts = world.host(&scheduler, "h1");
    let unreadable_microvm_ids = vec![asleep.clone(), awake.clone()];
    let usage = Some(HostUsage { unreadable_microvm_ids, ..HostUsage::default() });
    hosts.register_host(RegisterHostRequest { usage, ..registration(&host, vec![]) }).await.unwrap();
    assert_eq!(get(&client, &awake).await.unwrap().state(), Terminated, "its engine is gone");
    assert_eq!(get(&client, &asleep).await.unwrap().state(), Suspended);
    let listed = world.hosts(&scheduler, Role::Admin).list_hosts(ListHostsRequest::default()).await.unwrap();
    let usage = listed.into_inner().hosts[0].usage.clone().unwrap();
    assert_eq!(usage.unreadable_microvm_ids.len(), 2, "shown to operators");
    // An operator has given it up.
    let usage = Some(HostUsage::default());
    hosts.register_host(RegisterHostRequest { usage, ..registration(&host, vec![]) }).await.unwrap();
    assert_eq!(get(&client, &asleep).await.unwrap().state(), Terminated);
}

#[tokio::test]
async fn a_launch_that_succeeded_while_nobody_led_is_not_ended() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, mut scheduler, host, client) = world.and_host(scheduler).await;
    host.script(|inner| inner.on_launch.push_back(Step::Hang));
    let id = run(&client, app()).await.unwrap().microvm_id;
    eventually("the launch", || async { host.asked(|inner| (!inner.launches.is_empty()).then_some(())) })
        .await;
    scheduler.kill();
    // The host gets there, and nobody hears of it for longer than a launch may take.
    host.observes(&id, Running);
    world.clock.advance(Duration::from_secs(1000));
    let second = world.here(&[]);
    let client = world.client(&second, Role::Admin);
    world.ready(&client).await;
    let now = eventually("decided", || async {
        get(&client, &id).await.ok().filter(|microvm| microvm.state() != Pending)
    })
    .await;
    assert_eq!((now.state(), now.generation), (Running, 1), "{}", now.state_reason);
}
