//! Drains: what runs goes on elsewhere, and why it does not; hosts upgraded one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::errors::{reason, status};
use api::host::v1::{
    DrainHostRequest, DrainProgress, Host, HostState, ListHostsRequest, RegisterHostRequest,
    UndrainHostRequest,
};
use api::microvm::v1::MicrovmState;
use rpc::Role;
use tonic::Code;

use crate::host::{FakeHost, Step};
use crate::world::*;
use MicrovmState::{Running, Suspended};

/// Longer than it takes until a microVM that did not move is tried again.
const AGAIN: Duration = Duration::from_secs(11);

/// A microVM that sleeps on h1, which has no room to wake it; h2 has.
async fn asleep_on_a_full_host() -> (World, Scheduler, [FakeHost; 2], Client, String) {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    suspend(&client, &id).await.unwrap();
    let other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    let full = status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, "no memory", &[]);
    host.script(|inner| inner.on_resume.push_back(Step::Refuse(full)));
    (world, scheduler, [host, other], client, id)
}

#[tokio::test]
async fn one_host_has_dropped_its_copy_before_another_wakes_it() {
    let (_world, _scheduler, [host, other], client, id) = asleep_on_a_full_host().await;
    // It does not answer to that: nobody knows whether it wakes it a moment later.
    host.script(|inner| inner.on_terminate.push_back(tonic::Status::unavailable("away")));
    assert_eq!(resume(&client, &id).await.unwrap_err().code(), Code::Unavailable);
    let asleep = get(&client, &id).await.unwrap();
    assert_eq!((asleep.state(), asleep.host_id.as_str(), asleep.generation), (Suspended, "h1", 1));
    assert_eq!(other.asked(|inner| inner.resumes.len()), 0);

    let full = status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, "no memory", &[]);
    host.script(|inner| inner.on_resume.push_back(Step::Refuse(full)));
    let woken = resume(&client, &id).await.unwrap();
    assert_eq!((woken.host_id.as_str(), woken.generation), ("h2", 2));
    let told = host.asked(|inner| inner.terminates.clone());
    let named = told[1].asleep_with.as_ref().unwrap();
    assert_eq!((told.len(), told[1].generation, named.sequence, named.remote), (2, 1, 1, true));
}

#[tokio::test]
async fn what_has_woken_by_itself_stays_where_it_is() {
    let (_world, _scheduler, [host, other], client, id) = asleep_on_a_full_host().await;
    // A request came when there was room again.
    host.observes(&id, Running);
    let woken = resume(&client, &id).await.unwrap();
    assert_eq!((woken.state(), woken.host_id.as_str(), woken.generation), (Running, "h1", 1));
    assert_eq!(other.asked(|inner| inner.resumes.len()), 0);
    assert!(host.asked(|inner| inner.held.contains_key(&id)));
}

/// Begins the drain of a host, or asks how far it has come.
async fn drain(world: &World, scheduler: &Scheduler, id: &str) -> (HostState, DrainProgress) {
    let request = DrainHostRequest { host_id: id.into(), wake_elsewhere: true };
    let drained = world.hosts(scheduler, Role::Admin).drain_host(request).await.unwrap();
    let host = drained.into_inner().host.unwrap();
    (host.state(), host.drain.unwrap())
}

async fn drained(world: &World, scheduler: &Scheduler, id: &str) {
    eventually("the drain to be done", || async {
        let (state, progress) = drain(world, scheduler, id).await;
        (state == HostState::Drained && progress == DrainProgress::default()).then_some(())
    })
    .await;
}

async fn undrain(world: &World, scheduler: &Scheduler, id: &str) -> Host {
    let request = UndrainHostRequest { host_id: id.into() };
    world.hosts(scheduler, Role::Admin).undrain_host(request).await.unwrap().into_inner().host.unwrap()
}

/// Waits until a drain says of one microVM that it stays, and why.
async fn stays(world: &World, scheduler: &Scheduler, text: &str) -> DrainProgress {
    eventually("why it stays", || async {
        let (_, progress) = drain(world, scheduler, "h1").await;
        progress.left.iter().any(|left| left.reason.contains(text)).then_some(progress)
    })
    .await
}

#[tokio::test]
async fn what_runs_goes_on_elsewhere_and_what_sleeps_sleeps_on() {
    let (world, mut scheduler, _host, client) = World::with_process(&[]).await;
    let runs = running(&client).await.microvm_id;
    let sleeps = running(&client).await.microvm_id;
    suspend(&client, &sleeps).await.unwrap();
    let _other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    drain(&world, &scheduler, "h1").await;
    // Whoever leads next goes on with it.
    scheduler.kill();
    let scheduler = world.scheduler_at(&scheduler.address.clone(), &[]);
    world.ready(&client).await;
    world.placeable(&scheduler, 1).await;
    drained(&world, &scheduler, "h1").await;
    let moved = becomes(&client, &runs, Running).await;
    assert_eq!((moved.host_id.as_str(), moved.generation), ("h2", 2));
    let asleep = get(&client, &sleeps).await.unwrap();
    assert_eq!((asleep.state(), asleep.host_id.as_str()), (Suspended, "h1"));
    assert_eq!(resume(&client, &sleeps).await.unwrap().host_id, "h2");
    let host = undrain(&world, &scheduler, "h1").await;
    assert_eq!((host.state(), host.drain), (HostState::Ready, None));
}

#[tokio::test]
async fn without_room_elsewhere_nothing_is_lost_and_the_drain_says_so() {
    let (world, scheduler, _host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    let progress = stays(&world, &scheduler, "No host").await;
    assert_eq!((progress.running, progress.only_here, progress.to_wake), (0, 0, 1));
    assert!(progress.left[0].refused && progress.left[0].microvm_id == id, "{progress:?}");
    let asleep = get(&client, &id).await.unwrap();
    assert_eq!(asleep.state(), Suspended);
    // It goes on where it was.
    undrain(&world, &scheduler, "h1").await;
    assert_eq!(becomes(&client, &id, Running).await.host_id, "h1");
}

#[tokio::test]
async fn a_copy_that_only_the_host_has_is_waited_for_and_a_refused_suspend_is_tried_again() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, scheduler, host, client) = world.and_host(scheduler).await;
    let id = running(&client).await.microvm_id;
    let _other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    let full = status(Code::ResourceExhausted, reason::DISK_FULL, "the disk is full", &[]);
    host.script(|inner| {
        inner.remote_copies = false;
        inner.on_suspend.push_back(Step::Refuse(full));
    });
    let progress = stays(&world, &scheduler, "the disk is full").await;
    assert_eq!((progress.running, progress.only_here, progress.to_wake), (1, 0, 0));
    assert_eq!(get(&client, &id).await.unwrap().state(), Running);
    world.clock.advance(AGAIN);
    let progress = stays(&world, &scheduler, "on its way to S3").await;
    assert_eq!((progress.running, progress.only_here, progress.to_wake), (0, 1, 0));
    assert_eq!(get(&client, &id).await.unwrap().host_id, "h1");
    // A caller that wants it awake is not turned away meanwhile.
    if let Ok(answer) = tokio::time::timeout(Duration::from_secs(1), resume(&client, &id)).await {
        panic!("{answer:?}");
    }
    let mut hosts = world.host(&scheduler, &host.spec.host_id);
    let clock_time = Some(api::timestamp(world.clock.now()));
    // What it holds is named: of what a host does not name at its registration it has nothing.
    let observed = vec![host.uploads(&id)];
    let registration =
        RegisterHostRequest { spec: Some(host.spec.clone()), clock_time, observed, ..Default::default() };
    hosts.register_host(registration).await.unwrap();
    drained(&world, &scheduler, "h1").await;
    assert_eq!(becomes(&client, &id, Running).await.host_id, "h2");
}

#[tokio::test]
async fn a_host_on_which_something_is_being_woken_cannot_go_yet() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    suspend(&client, &id).await.unwrap();
    host.script(|inner| inner.on_resume.push_back(Step::Hang));
    let waking = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { resume(&client, &id).await }
    });
    eventually("the host to be asked", || async {
        host.asked(|inner| !inner.resumes.is_empty()).then_some(())
    })
    .await;
    let progress = stays(&world, &scheduler, "it is being woken").await;
    assert_eq!((progress.running, progress.only_here, progress.to_wake), (1, 0, 0));
    waking.abort();
}

#[tokio::test]
async fn what_the_other_host_does_not_wake_at_once_is_tried_again() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, scheduler, _host, client) = world.and_host(scheduler).await;
    let id = running(&client).await.microvm_id;
    let other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    let fails = status(Code::Internal, reason::ENGINE_FAILED, "the engine failed", &[]);
    other.script(|inner| inner.on_resume.push_back(Step::Refuse(fails)));
    drained(&world, &scheduler, "h1").await;
    let asleep = get(&client, &id).await.unwrap();
    assert_eq!((asleep.state(), asleep.host_id.as_str()), (Suspended, "h2"));
    let woken = eventually("it goes on", || async {
        // The wake that fails may be noted only now.
        world.clock.advance(AGAIN);
        let microvm = get(&client, &id).await.unwrap();
        (microvm.state() == Running).then_some(microvm)
    });
    assert_eq!(woken.await.host_id, "h2");
}

/// The procedure of the operators' documentation: drain, stop, replace, start, undrain; one host after the other.
#[tokio::test]
async fn hosts_are_upgraded_one_after_the_other_while_everything_goes_on() {
    let (world, scheduler, first, client) = World::with_host(&[]).await;
    let mut old = vec![first];
    for id in ["h2", "h3"] {
        old.push(FakeHost::start(&world, id).await);
    }
    world.placeable(&scheduler, 3).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(running(&client).await.microvm_id);
    }
    let over = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn(traffic(client.clone(), ids.clone(), Arc::clone(&over)));
    let mut new = Vec::new();
    for host in old {
        let id = host.spec.host_id.clone();
        drained(&world, &scheduler, &id).await;
        host.lease.revoke().await.unwrap();
        drop(host);
        world.placeable(&scheduler, 2).await;
        let mut host = FakeHost::start(&world, &id).await;
        host.spec.agent_version = "9.0.0".into();
        host.announce(&world).await;
        undrain(&world, &scheduler, &id).await;
        world.placeable(&scheduler, 3).await;
        new.push(host);
    }
    over.store(true, Ordering::Relaxed);
    let calls = traffic.await.unwrap();
    assert!(calls > 0);
    for id in &ids {
        becomes(&client, id, Running).await;
    }
    let listed = world.hosts(&scheduler, Role::Admin).list_hosts(ListHostsRequest::default()).await.unwrap();
    let versions: Vec<String> =
        listed.into_inner().hosts.into_iter().map(|host| host.spec.unwrap().agent_version).collect();
    assert_eq!(versions, ["9.0.0"; 3]);
}

/// What edges and callers do all the while: requests, each of which wakes its microVM if it sleeps, and launches. None fails.
async fn traffic(client: Client, ids: Vec<String>, over: Arc<AtomicBool>) -> usize {
    let mut calls = 0;
    while !over.load(Ordering::Relaxed) {
        for id in &ids {
            eventually("a request to be answered", || async { resume(&client, id).await.ok() }).await;
            calls += 1;
        }
        let launched = running(&client).await.microvm_id;
        terminate(&client, &launched).await.unwrap();
    }
    calls
}
