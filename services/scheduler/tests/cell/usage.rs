//! What microVMs used, by day and image.

use std::time::Duration;

use api::common::v1::Metering;
use api::errors::reason;
use api::host::v1::{HeartbeatRequest, RegisterHostRequest};
use api::microvm::v1::{GetUsageRequest, MicrovmState, RunMicrovmRequest};
use rpc::Role;

use crate::host::FakeHost;
use crate::world::*;
use MicrovmState::{Running, Terminated};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Days from the first one asked for, and the vCPU seconds of each that has some.
async fn used(client: &Client, days: u32) -> Vec<(i64, f64)> {
    let answer = client.clone().get_usage(GetUsageRequest { days }).await.unwrap().into_inner();
    let first = answer.rows.first().map_or(0, |row| row.day.unwrap().seconds);
    let rows = answer.rows.iter().map(|row| {
        assert_eq!(row.image_name, "app");
        ((row.day.unwrap().seconds - first) / 86_400, row.used.unwrap().vcpu_seconds)
    });
    rows.collect()
}

/// The host reports what a running microVM has used by now.
async fn reports(world: &World, scheduler: &Scheduler, host: &FakeHost, id: &str, vcpu_seconds: f64) {
    let mut hosts = world.host(scheduler, "h1");
    let mut observed = host.observes(id, Running);
    observed.metering = Some(Metering { vcpu_seconds, ..Default::default() });
    let spec = Some(host.spec.clone());
    hosts.register_host(RegisterHostRequest { spec, ..Default::default() }).await.unwrap();
    let news = HeartbeatRequest { host_id: "h1".into(), observed: vec![observed], ..Default::default() };
    hosts.heartbeat(news).await.unwrap();
}

#[tokio::test]
async fn use_is_counted_once_on_its_day_and_outlives_records_and_leaders() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&["retention_seconds=1000"]);
    let (world, mut scheduler, host, client) = world.and_host(scheduler).await;
    let counted = || async { world.store.get("usage-counted").await.unwrap() };
    let first = eventually("a first day", counted).await;
    let long = RunMicrovmRequest { maximum_duration: seconds(28_800), ..app() };
    let id = run(&client, long).await.unwrap().microvm_id;
    becomes(&client, &id, Running).await;
    assert_eq!(used(&client, 0).await, []);
    reports(&world, &scheduler, &host, &id, 5.0).await;
    assert_eq!(used(&client, 1).await, [(0, 5.0)], "of today, so far");
    // Durable with the next change; until then a new leader hears of it from the host again.
    suspend(&client, &id).await.unwrap();
    let ended = running(&client).await.microvm_id;
    reports(&world, &scheduler, &host, &ended, 2.0).await;
    terminate(&client, &ended).await.unwrap();
    becomes(&client, &ended, Terminated).await;
    assert_eq!(used(&client, 1).await, [(0, 7.0)]);
    // Another leader, the day after: what was used is yesterday's, and the record of the second is forgotten.
    scheduler.kill();
    world.clock.advance(DAY);
    let again = world.here(&["retention_seconds=1000"]);
    let client = world.client(&again, Role::Admin);
    world.ready(&client).await;
    eventually("the day to be over", || async {
        counted().await.filter(|counted| counted.value != first.value)
    })
    .await;
    eventually("the record to go", || async { get(&client, &ended).await.err() }).await;
    let days = used(&client, 2).await;
    assert_eq!(days, [(0, 7.0)], "each once");
    assert_eq!(used(&client, 1).await, [], "nothing today");
    refused(
        client.clone().get_usage(GetUsageRequest { days: 93 }).await,
        reason::INVALID_ARGUMENT,
        "1 to 92",
    );
}
