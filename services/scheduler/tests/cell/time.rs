//! Wall clocks that are set: the leader's, and those of hosts.

use std::time::{Duration, SystemTime};

use api::common::v1::IdlePolicy;
use api::errors::reason;
use api::host::v1::{
    HeartbeatRequest, Host, HostState, ListHostsRequest, ListHostsResponse, RegisterHostRequest,
};
use api::microvm::v1::{MicrovmState, RunMicrovmRequest};
use rpc::Role;

use crate::host::FakeHost;
use crate::world::*;
use MicrovmState::{Running, Suspended, Terminated};

const HOUR: Duration = Duration::from_secs(3600);

/// Runs a microVM and puts it to sleep; it may sleep for `window` seconds.
async fn asleep(client: &Client, window: i64) -> String {
    let policy = IdlePolicy {
        max_idle_duration: seconds(60),
        suspended_duration: seconds(window),
        auto_resume_enabled: true,
        awake_while: None,
    };
    let id = run(client, RunMicrovmRequest { idle_policy: Some(policy), ..app() }).await.unwrap().microvm_id;
    becomes(client, &id, Running).await;
    suspend(client, &id).await.unwrap();
    id
}

async fn cell(world: &World, scheduler: &Scheduler) -> ListHostsResponse {
    let mut hosts = world.hosts(scheduler, Role::Admin);
    hosts.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner()
}

async fn alarms(world: &World, scheduler: &Scheduler) -> Vec<String> {
    cell(world, scheduler).await.alarms.into_iter().map(|alarm| alarm.code).collect()
}

/// Returns once the leader has looked at its deadlines: one that is over has been served.
async fn deadlines_were_looked_at(client: &Client) {
    let id = asleep(client, 0).await;
    becomes(client, &id, Terminated).await;
}

#[tokio::test]
async fn a_wall_clock_that_is_set_ends_and_forgets_nothing() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&["retention_seconds=3600"]);
    let (world, scheduler, _host, client) = world.and_host(scheduler).await;
    let start = world.clock.now();
    let runs = running(&client).await.microvm_id;
    let sleeps = asleep(&client, 7200).await;
    let ended = running(&client).await.microvm_id;
    terminate(&client, &ended).await.unwrap();
    becomes(&client, &ended, Terminated).await;
    assert_eq!(alarms(&world, &scheduler).await, Vec::<String>::new());
    for wall in [start + 9 * HOUR, start - 3 * HOUR] {
        world.clock.set_wall(wall);
        assert_eq!(alarms(&world, &scheduler).await, ["CLOCK_JUMPED"]);
        deadlines_were_looked_at(&client).await;
        for (id, state) in [(&runs, Running), (&sleeps, Suspended), (&ended, Terminated)] {
            assert_eq!(get(&client, id).await.unwrap().state(), state, "{wall:?}");
        }
    }
    // What is due by the time that passes happens all the same, though the wall clock is hours behind.
    world.clock.advance(Duration::from_secs(7300));
    becomes(&client, &sleeps, Terminated).await;
    eventually("forgotten", || async { get(&client, &ended).await.err() }).await;
    assert_eq!(get(&client, &runs).await.unwrap().state(), Running);
}

#[tokio::test]
async fn the_next_leader_knows_of_a_jump_or_waits_until_somebody_could_have_seen_it() {
    let world = World::on_manual_clock().await;
    let first = world.here(&[]);
    let (world, mut first, _host, client) = world.and_host(first).await;
    let sleeps = asleep(&client, 7200).await;
    eventually("a mark", || async { world.store.get("clock").await.unwrap() }).await;
    first.kill();
    // The same machine: the time that passed since the mark is known.
    let start = world.clock.now();
    world.clock.set_wall(start + 9 * HOUR);
    let mut second = world.here(&[]);
    let client = world.client(&second, Role::Admin);
    world.ready(&client).await;
    assert_eq!(alarms(&world, &second).await, ["CLOCK_JUMPED"]);
    world.placeable(&second, 1).await;
    deadlines_were_looked_at(&client).await;
    assert_eq!(get(&client, &sleeps).await.unwrap().state(), Suspended);
    second.kill();
    // After a reboot it is not: ends wait, and an operator can see that.
    world.clock.reboot();
    let third = world.here(&[]);
    let client = world.client(&third, Role::Admin);
    world.ready(&client).await;
    assert_eq!(alarms(&world, &third).await, ["ENDS_HELD_BACK"]);
    assert_eq!(get(&client, &sleeps).await.unwrap().state(), Suspended);
    world.clock.advance(Duration::from_secs(600));
    becomes(&client, &sleeps, Terminated).await;
    assert_eq!(alarms(&world, &third).await, Vec::<String>::new());
}

fn registers(host: &FakeHost, shows: SystemTime) -> RegisterHostRequest {
    RegisterHostRequest {
        spec: Some(host.spec.clone()),
        observed: vec![],
        clock_time: Some(api::timestamp(shows)),
        ..Default::default()
    }
}

fn reports(host: &FakeHost, shows: SystemTime) -> HeartbeatRequest {
    HeartbeatRequest {
        host_id: host.spec.host_id.clone(),
        clock_time: Some(api::timestamp(shows)),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_host_whose_clock_differs_is_refused_and_told_by_how_much() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, scheduler, host, client) = world.and_host(scheduler).await;
    let mut hosts = world.host(&scheduler, "h1");
    let now = world.clock.now();
    let held = running(&client).await.microvm_id;
    let behind = "The clock of the host h1 is 3h 0m 0s behind compared with the scheduler's";
    let answer = hosts.register_host(registers(&host, now - 3 * HOUR)).await;
    refused(answer, reason::CLOCK_DIFFERS, behind);
    let shown: Host = cell(&world, &scheduler).await.hosts.remove(0);
    assert_eq!(shown.state(), HostState::Refused);
    assert!(shown.state_reason.starts_with(behind) && shown.state_reason.contains("NTP"), "{shown:?}");
    refused(run(&client, app()).await, reason::INSUFFICIENT_CAPACITY, "1 not ready");
    // What it holds goes on.
    suspend(&client, &held).await.unwrap();
    assert_eq!(resume(&client, &held).await.unwrap().state(), Running);
    // As much as a report may take on its way.
    hosts.register_host(registers(&host, now - Duration::from_secs(10))).await.unwrap();
    running(&client).await;
    let ahead = hosts.heartbeat(reports(&host, now + Duration::from_secs(11))).await;
    refused(ahead, reason::CLOCK_DIFFERS, "is 11.0s ahead compared");
    assert_eq!(cell(&world, &scheduler).await.hosts[0].state(), HostState::Refused);
    hosts.heartbeat(reports(&host, now)).await.unwrap();
    assert_eq!(cell(&world, &scheduler).await.hosts[0].state(), HostState::Ready);
}

#[tokio::test]
async fn a_leader_that_its_hosts_disagree_with_ends_nothing_by_its_clock() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&[]);
    let (world, scheduler, host, client) = world.and_host(scheduler).await;
    let other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    let mut hosts = world.host(&scheduler, "h1");
    let now = world.clock.now();
    let first = hosts.register_host(registers(&host, now - 9 * HOUR)).await;
    refused(first, reason::CLOCK_DIFFERS, "9h 0m 0s behind");
    let mut h2 = world.host(&scheduler, "h2");
    h2.register_host(registers(&other, now - 9 * HOUR)).await.unwrap();
    hosts.register_host(registers(&host, now - 9 * HOUR)).await.unwrap();
    assert_eq!(alarms(&world, &scheduler).await, ["CLOCK_OUTVOTED"]);
    world.placeable(&scheduler, 2).await;
    let sleeps = asleep(&client, 0).await;
    assert_eq!(get(&client, &sleeps).await.unwrap().state(), Suspended);
    hosts.heartbeat(reports(&host, now)).await.unwrap();
    becomes(&client, &sleeps, Terminated).await;
}
