//! Hosts: reports, placement, drains, bakes.

use api::errors::{reason, status};
use api::host::v1::{
    DrainHostRequest, HeartbeatRequest, HostSpec, HostState, HostUsage, ObservedMicrovm, PlaceBakeRequest,
    RegisterHostRequest, ReleaseBakeRequest, StaleMicrovm, UndrainHostRequest,
};
use api::microvm::v1::{MicrovmState, TransitionCause};
use rpc::Role;
use tonic::Code;

use crate::host::{FakeHost, Step};
use crate::world::*;
use MicrovmState::{Running, Suspended, Terminated};

fn beat(host: &str, observed: Vec<ObservedMicrovm>) -> HeartbeatRequest {
    HeartbeatRequest { host_id: host.into(), usage: None, observed, complete: false, clock_time: None }
}

fn stale(id: &str, generation: u64) -> StaleMicrovm {
    StaleMicrovm { microvm_id: id.into(), generation }
}

#[tokio::test]
async fn reports_are_merged_in_order_and_the_stale_are_named() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let mut hosts = world.host(&scheduler, "h1");
    let id = running(&client).await.microvm_id;
    let told = hosts.heartbeat(beat("h1", vec![])).await.unwrap().into_inner();
    assert!(told.register, "it must register first");
    let register = RegisterHostRequest { spec: Some(host.spec.clone()), ..Default::default() };
    let told = hosts.register_host(register).await.unwrap().into_inner();
    assert_eq!(told.heartbeat_interval.unwrap().seconds, 1);
    // Idle suspends are the host's own doing.
    let before = host.observes(&id, Running);
    let suspending = host.observes(&id, MicrovmState::Suspending);
    let asleep = host.observes(&id, Suspended);
    hosts.heartbeat(beat("h1", vec![asleep.clone()])).await.unwrap();
    assert_eq!(get(&client, &id).await.unwrap().state(), Suspended);
    hosts.heartbeat(beat("h1", vec![before, suspending])).await.unwrap();
    assert_eq!(get(&client, &id).await.unwrap().state(), Suspended, "older reports change nothing");
    // What says nothing new is not written.
    let revision = async || world.store.list("microvms/").await.unwrap().0[0].1.revision;
    let written = revision().await;
    hosts.heartbeat(beat("h1", vec![asleep.clone()])).await.unwrap();
    assert_eq!(revision().await, written);
    // What is placed elsewhere, unknown or ended is told to go; an older placement
    // on the same host is about to be replaced by the newer one.
    let older = ObservedMicrovm { generation: 0, observation: 99, ..asleep.clone() };
    let unknown = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    let strange = ObservedMicrovm { microvm_id: unknown.into(), ..asleep.clone() };
    let told = hosts.heartbeat(beat("h1", vec![older, strange])).await.unwrap().into_inner();
    assert_eq!(told.stale, [stale(unknown, asleep.generation)]);
    let other = FakeHost::start(&world, "h2").await;
    let register = RegisterHostRequest {
        spec: Some(other.spec.clone()),
        observed: vec![asleep.clone()],
        ..Default::default()
    };
    let mut h2 = world.host(&scheduler, "h2");
    let told = h2.register_host(register).await.unwrap().into_inner();
    assert_eq!(told.stale, [stale(&id, asleep.generation)]);
    assert_eq!(get(&client, &id).await.unwrap().state(), Suspended);
    // A newer generation than was ever given out is nobody's to drop.
    let future = ObservedMicrovm { generation: 9, observation: 99, ..asleep };
    let told = hosts.heartbeat(beat("h1", vec![future])).await.unwrap().into_inner();
    assert!(told.stale.is_empty());
    // The guest ended by itself.
    let ended =
        ObservedMicrovm { state_reason: "guest powered off".into(), ..host.observes(&id, Terminated) };
    hosts.heartbeat(beat("h1", vec![ended])).await.unwrap();
    let now = get(&client, &id).await.unwrap();
    assert_eq!((now.state(), now.state_reason.as_str()), (Terminated, "guest powered off"));
    let alive = host.observes(&id, Running);
    let told = hosts.heartbeat(beat("h1", vec![alive])).await.unwrap().into_inner();
    assert_eq!(told.stale, [stale(&id, 1)]);
    let admin = world.hosts(&scheduler, Role::Admin).heartbeat(beat("h1", vec![])).await;
    refused(admin, reason::PERMISSION_DENIED, "admin");
}

#[tokio::test]
async fn a_host_speaks_for_itself_only_and_no_other_is_taken_for_it() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    // Another host's certificate: it would be sent what is launched on h1, or end what runs there.
    let mut other = world.host(&scheduler, "h2");
    let register = RegisterHostRequest { spec: Some(host.spec.clone()), ..Default::default() };
    let said = "certificate is of the host-agent of h2: it may not speak for host 'h1'";
    refused(other.register_host(register).await, reason::PERMISSION_DENIED, said);
    let ended = host.observes(&id, Terminated);
    refused(other.heartbeat(beat("h1", vec![ended])).await, reason::PERMISSION_DENIED, said);
    assert_eq!(get(&client, &id).await.unwrap().state(), Running);
    // A certificate of the role alone speaks for no host.
    let mut nobody = world.hosts(&scheduler, Role::HostAgent);
    let said = "of a host-agent of no host: it may not speak for host 'h1'";
    refused(nobody.heartbeat(beat("h1", vec![])).await, reason::PERMISSION_DENIED, said);
    // A host that answers at the address of another is not asked for anything of its.
    let posing = FakeHost::start(&world, "h2").await;
    let spec = HostSpec { grpc_address: posing.spec.grpc_address.clone(), ..host.spec.clone() };
    let register = RegisterHostRequest { spec: Some(spec), ..Default::default() };
    world.host(&scheduler, "h1").register_host(register).await.unwrap();
    let said = "the host-agent of h1 was called, and the certificate is of the host-agent of h2";
    refused(suspend(&client, &id).await, reason::PERMISSION_DENIED, said);
    assert!(posing.asked(|inner| inner.suspends.is_empty()));
}

#[tokio::test]
async fn a_launch_prefers_the_cache_and_moves_on_when_a_host_is_full() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let other = FakeHost::start_with(&world, "h2", 1024).await;
    world.placeable(&scheduler, 2).await;
    let mut hosts = world.host(&scheduler, "h2");
    let register = RegisterHostRequest { spec: Some(other.spec.clone()), ..Default::default() };
    hosts.register_host(register).await.unwrap();
    let usage = Some(FakeHost::usage(&["app/1.0/manifest"]));
    hosts.heartbeat(HeartbeatRequest { usage, ..beat("h2", vec![]) }).await.unwrap();
    assert_eq!(running(&client).await.host_id, "h2", "the smaller one, for its cache");
    let full = status(Code::ResourceExhausted, reason::INSUFFICIENT_CAPACITY, "no slot", &[]);
    other.script(|inner| inner.on_launch.push_back(Step::Refuse(full)));
    let moved = running(&client).await;
    assert_eq!((moved.host_id.as_str(), moved.generation), ("h1", 2));
    assert_eq!(running(&client).await.host_id, "h2");
    for _ in 0..7 {
        assert_eq!(running(&client).await.host_id, "h1");
    }
    let refusal = run(&client, app()).await;
    refused(refusal, reason::INSUFFICIENT_CAPACITY, "2 full");
    assert_eq!(host.asked(|inner| inner.held.len()), 8);
}

#[tokio::test]
async fn a_host_that_is_short_of_disk_gets_nothing_new() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let mut hosts = world.host(&scheduler, "h1");
    let register =
        RegisterHostRequest { spec: Some(host.spec.clone()), observed: vec![], ..Default::default() };
    hosts.register_host(register).await.unwrap();
    let usage = |disk_short| HostUsage {
        disk_capacity_bytes: 64 << 30,
        disk_free_bytes: 32 << 30,
        disk_short,
        ..Default::default()
    };
    let report = |disk_short| HeartbeatRequest { usage: Some(usage(disk_short)), ..beat("h1", vec![]) };
    hosts.heartbeat(report(true)).await.unwrap();
    let refusal = run(&client, app()).await;
    refused(refusal, reason::INSUFFICIENT_CAPACITY, "1 short of disk");
    hosts.heartbeat(report(false)).await.unwrap();
    running(&client).await;
}

#[tokio::test]
async fn a_drained_host_sleeps_and_its_microvms_wake_elsewhere() {
    let (world, mut scheduler, host, client) = World::with_process(&[]).await;
    let id = running(&client).await.microvm_id;
    let mut hosts = world.hosts(&scheduler, Role::Admin);
    let request = || DrainHostRequest { host_id: "h1".into(), ..Default::default() };
    let answer = hosts.drain_host(DrainHostRequest { host_id: "none".into(), ..Default::default() }).await;
    refused(answer, reason::NOT_FOUND, "none");
    hosts.drain_host(request()).await.unwrap();
    becomes(&client, &id, Suspended).await;
    assert_eq!(host.asked(|inner| inner.suspends[0].cause()), TransitionCause::Drain);
    let drained = hosts.drain_host(request()).await.unwrap().into_inner().host.unwrap();
    assert_eq!(drained.state(), HostState::Drained);
    let refusal = run(&client, app()).await;
    refused(refusal, reason::INSUFFICIENT_CAPACITY, "not ready");
    // The mark outlives the leader.
    scheduler.kill();
    let scheduler = world.scheduler_at(&scheduler.address.clone(), &[]);
    world.ready(&client).await;
    let refusal = run(&client, app()).await;
    refused(refusal, reason::INSUFFICIENT_CAPACITY, "not ready");
    let _other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 1).await;
    let woken = resume(&client, &id).await.unwrap();
    assert_eq!((woken.host_id.as_str(), woken.generation), ("h2", 2));
    let mut hosts = world.hosts(&scheduler, Role::Admin);
    let host = hosts.undrain_host(UndrainHostRequest { host_id: "h1".into() }).await.unwrap();
    assert_eq!(host.into_inner().host.unwrap().state(), HostState::Ready);
}

#[tokio::test]
async fn bakes_reserve_room() {
    let (world, scheduler, _host, client) = World::with_host(&[]).await;
    let mut hosts = world.hosts(&scheduler, Role::ImageBuilder);
    let bake = |build: &str| PlaceBakeRequest {
        build_id: build.into(),
        memory_mib: 4096,
        reservation: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let placed = hosts.place_bake(bake("one")).await.unwrap().into_inner();
    assert_eq!(placed.host_id, "h1");
    assert_eq!(hosts.place_bake(bake("one")).await.unwrap().into_inner(), placed);
    let full = |answer| refused(answer, reason::INSUFFICIENT_CAPACITY, "full");
    full(hosts.place_bake(bake("two")).await.map(|_| ()));
    full(run(&client, app()).await.map(|_| ()));
    hosts.release_bake(ReleaseBakeRequest { build_id: "one".into() }).await.unwrap();
    running(&client).await;
}
