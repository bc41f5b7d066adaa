//! Hosts without a lease, and what schedulers have promised them; etcd that is away.

use std::time::Duration;

use api::errors::reason;
use api::host::v1::{
    HostState, ListHostsRequest, RegisterHostRequest, RegisterHostResponse, VouchForHostRequest,
    VouchForHostResponse,
};
use api::microvm::v1::MicrovmState;
use model::limits::VOUCHED_MAX;
use rpc::Role;
use scheduler::vouches::VOUCH;

use crate::host::FakeHost;
use crate::world::*;
use MicrovmState::{Running, Terminated};

/// Longer than a promise binds after it is over for the host.
const AFTER_VOUCH: Duration = Duration::from_secs(15);
const GIVEN_UP_SOON: [&str; 2] = ["fence_grace_seconds=1", "host_lost_grace_seconds=1"];

/// A host that runs one microVM of an image that only it has room for.
async fn host_that_runs(
    world: &World,
    scheduler: &Scheduler,
    client: &Client,
    id: &str,
) -> (FakeHost, String) {
    let host = FakeHost::start(world, id).await;
    world.placeable(scheduler, 1).await;
    let microvm = running(client).await.microvm_id;
    (host, microvm)
}

async fn register(
    world: &World,
    scheduler: &Scheduler,
    host: &FakeHost,
    vouchers: &[&str],
) -> RegisterHostResponse {
    let held = host.asked(|inner| inner.held.values().cloned().collect());
    let request = RegisterHostRequest {
        spec: Some(host.spec.clone()),
        observed: held,
        vouchers: vouchers.iter().map(|&address| address.to_owned()).collect(),
        ..Default::default()
    };
    world.host(scheduler, &host.spec.host_id).register_host(request).await.unwrap().into_inner()
}

async fn vouch(world: &World, scheduler: &Scheduler, host: &FakeHost) -> VouchForHostResponse {
    let request = VouchForHostRequest { host_id: host.spec.host_id.clone() };
    world.host(scheduler, &host.spec.host_id).vouch_for_host(request).await.unwrap().into_inner()
}

async fn is_lost(world: &World, scheduler: &Scheduler, host: &FakeHost) -> String {
    eventually("LOST", || async {
        let mut hosts = world.hosts(scheduler, Role::Admin);
        let listed = hosts.list_hosts(ListHostsRequest::default()).await.ok()?.into_inner().hosts;
        let lost = listed.into_iter().find(|one| one.spec.as_ref().is_some_and(|spec| *spec == host.spec))?;
        (lost.state() == HostState::Lost).then_some(lost.state_reason)
    })
    .await
}

#[tokio::test]
async fn nothing_of_a_host_is_given_up_while_a_promise_to_it_binds() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&GIVEN_UP_SOON);
    let client = world.client(&scheduler, Role::Admin);
    world.ready(&client).await;
    let (first, vouched) = host_that_runs(&world, &scheduler, &client, "h1").await;
    first.lease.revoke().await.unwrap();
    is_lost(&world, &scheduler, &first).await;
    let (second, other) = host_that_runs(&world, &scheduler, &client, "h2").await;
    first.announce_anew(&world).await;
    world.placeable(&scheduler, 2).await;
    // Nothing is promised by the process before this one any more.
    world.clock.advance(AFTER_VOUCH);
    let answer = register(&world, &scheduler, &first, &[&scheduler.address, "elsewhere:1"]).await;
    assert!(answer.vouchers_recorded && !answer.withdraw_vouchers);
    assert_eq!(world.listed("vouchers/").await, ["vouchers/h1"]);
    let promise = vouch(&world, &scheduler, &first).await;
    assert_eq!(promise.scheduler, scheduler.address);
    assert_eq!(api::duration(&promise.valid_for.unwrap()).unwrap(), VOUCH);
    for host in [&first, &second] {
        world
            .store
            .delete_if(&format!("hosts/{}", host.spec.host_id), records::Expect::Any, None)
            .await
            .unwrap();
    }
    let reason = is_lost(&world, &scheduler, &first).await;
    assert!(reason.contains("vouches"), "{reason}");
    is_lost(&world, &scheduler, &second).await;
    world.clock.advance(Duration::from_secs(2));
    // Who goes by no promise is given up in the same sweep.
    assert_eq!(becomes(&client, &other, Terminated).await.state_reason, "Host h2 was lost.");
    assert_eq!(get(&client, &vouched).await.unwrap().state(), Running);
    // Another promise, as long as it is asked for.
    world.clock.advance(VOUCH);
    vouch(&world, &scheduler, &first).await;
    world.clock.advance(VOUCH);
    assert_eq!(get(&client, &vouched).await.unwrap().state(), Running);
    world.clock.advance(AFTER_VOUCH);
    assert_eq!(becomes(&client, &vouched, Terminated).await.state_reason, "Host h1 was lost.");
}

#[tokio::test]
async fn a_leader_that_a_host_does_not_ask_waits_as_long_as_the_host_may_go_on() {
    let world = World::on_manual_clock().await;
    let mut first = world.here(&GIVEN_UP_SOON);
    let client = world.client(&first, Role::Admin);
    world.ready(&client).await;
    let (host, id) = host_that_runs(&world, &first, &client, "h1").await;
    assert!(register(&world, &first, &host, &[&first.address]).await.vouchers_recorded);
    first.kill();
    // Another scheduler leads, which the host's settings do not list.
    let second = world.here(&GIVEN_UP_SOON);
    let client = world.client(&second, Role::Admin);
    becomes(&client, &id, Running).await;
    world.store.delete_if("hosts/h1", records::Expect::Any, None).await.unwrap();
    is_lost(&world, &second, &host).await;
    let (other, ends) = {
        let other = FakeHost::start(&world, "h2").await;
        world.placeable(&second, 1).await;
        (other, running(&client).await.microvm_id)
    };
    world.store.delete_if("hosts/h2", records::Expect::Any, None).await.unwrap();
    is_lost(&world, &second, &other).await;
    world.clock.advance(AFTER_VOUCH);
    becomes(&client, &ends, Terminated).await;
    assert_eq!(get(&client, &id).await.unwrap().state(), Running, "it may go on by the first one's vouches");
    // The host is back: it stops going by them, and then they are forgotten.
    host.announce_anew(&world).await;
    let answer = register(&world, &second, &host, &[&first.address]).await;
    assert!(!answer.vouchers_recorded && answer.withdraw_vouchers);
    assert_eq!(world.listed("vouchers/").await, ["vouchers/h1"], "the host has not stopped yet");
    let answer = register(&world, &second, &host, &[]).await;
    assert!(!answer.vouchers_recorded && !answer.withdraw_vouchers);
    assert_eq!(world.listed("vouchers/").await, Vec::<String>::new());
    // Once more recorded by one that is not there: it is waited for, and no longer.
    let listed = serde_json::to_vec(&["elsewhere:1"]).unwrap();
    world.store.put_if("vouchers/h1", listed, records::Expect::Any, None).await.unwrap();
    drop(second);
    let third = world.here(&GIVEN_UP_SOON);
    let client = world.client(&third, Role::Admin);
    becomes(&client, &id, Running).await;
    world.store.delete_if("hosts/h1", records::Expect::Any, None).await.unwrap();
    is_lost(&world, &third, &host).await;
    world.clock.advance(VOUCHED_MAX + Duration::from_secs(120));
    becomes(&client, &id, Terminated).await;
}

#[tokio::test]
async fn while_etcd_is_away_errors_say_so_and_schedulers_vouch() {
    let (mut world, scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    world.etcd.kill();
    let status = eventually("an error that says it", || async {
        let error = run(&client, app()).await.err()?;
        (api::errors::reason_of(&error).as_deref() == Some(reason::STORE_UNAVAILABLE)
            && error.message().starts_with("The record store (etcd) has been out of reach"))
        .then_some(error)
    })
    .await;
    assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some());
    assert_eq!(vouch(&world, &scheduler, &host).await.scheduler, scheduler.address);
    world.etcd.restart().await;
    becomes(&client, &id, Running).await;
}

#[tokio::test]
async fn a_host_names_few_schedulers() {
    let (world, scheduler, host, _client) = World::with_host(&[]).await;
    let request = RegisterHostRequest {
        spec: Some(host.spec.clone()),
        vouchers: (0..17).map(|number| format!("scheduler:{number}")).collect(),
        ..Default::default()
    };
    let refusal = world.host(&scheduler, &host.spec.host_id).register_host(request).await;
    refused(refusal, reason::INVALID_ARGUMENT, "vouchers: must name at most 16 schedulers");
}
