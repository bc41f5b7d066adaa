//! What is left of microVMs that have ended, and how much room records may take.

use api::errors::reason;
use api::host::v1::ListHostsRequest;
use api::microvm::v1::MicrovmState;
use futures::stream::{self, StreamExt as _};
use records::{Expect, Write};
use rpc::Role;

use crate::world::*;
use MicrovmState::Terminated;

const PREFIX: &str = "microvms/";

/// Runs a microVM and ends it at once.
async fn come_and_go(client: &Client) -> String {
    let id = running(client).await.microvm_id;
    terminate(client, &id).await.unwrap();
    becomes(client, &id, Terminated).await;
    id
}

/// Copies of a record under ids of their own, a hundred in a transaction.
async fn copy_record(world: &World, id: &str, count: u32) {
    let record = world.store.get(&format!("{PREFIX}{id}")).await.unwrap().unwrap().value;
    let at = record.windows(id.len()).position(|part| part == id.as_bytes()).unwrap();
    let copies: Vec<Write> = (0..count)
        .map(|number| {
            let copy = format!("microvm-00000000-0000-4000-8000-{number:012x}");
            let mut value = record.clone();
            value[at..at + id.len()].copy_from_slice(copy.as_bytes());
            Write::Put { key: format!("{PREFIX}{copy}"), value, expect: Expect::Absent, lease: None }
        })
        .collect();
    for batch in copies.chunks(100) {
        world.store.txn(batch.to_vec(), None).await.unwrap();
    }
}

#[tokio::test]
async fn terminated_records_stay_within_their_number_however_fast_they_come() {
    let (world, mut scheduler, _host, client) = World::with_host(&[]).await;
    let id = come_and_go(&client).await;
    scheduler.kill();
    // What a burst of launches leaves behind: more than a leader that erased a fixed number in each round would get rid of
    // within the patience of this test.
    copy_record(&world, &id, 6000).await;
    let scheduler = world.here(&["retained_max=50"]);
    let client = world.client(&scheduler, Role::Admin);
    world.ready(&client).await;
    let within = || async { (world.store.count(PREFIX).await.unwrap() <= 50).then_some(()) };
    eventually("the number", within).await;
    world.placeable(&scheduler, 1).await;
    stream::iter(0..200).for_each_concurrent(4, |_| async { drop(come_and_go(&client).await) }).await;
    eventually("the number again", within).await;
}

#[tokio::test]
async fn what_is_kept_too_long_is_erased_many_at_a_time() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&["retention_seconds=1000"]);
    let (world, mut scheduler, _host, client) = world.and_host(scheduler).await;
    let id = come_and_go(&client).await;
    scheduler.kill();
    copy_record(&world, &id, 1000).await;
    let scheduler = world.here(&["retention_seconds=1000"]);
    world.ready(&world.client(&scheduler, Role::Admin)).await;
    assert_eq!(world.store.count(PREFIX).await.unwrap(), 1001);
    world.clock.advance(std::time::Duration::from_secs(1000));
    eventually("nothing", || async { (world.store.count(PREFIX).await.unwrap() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_full_store_refuses_launches_and_serves_what_lives() {
    let (world, mut scheduler, _host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    scheduler.kill();
    // Less than an empty etcd takes.
    let scheduler = world.here(&["etcd_bytes_max=1000"]);
    let client = world.client(&scheduler, Role::Admin);
    world.ready(&client).await;
    world.placeable(&scheduler, 1).await;
    let answer = eventually("a refusal", || async { run(&client, app()).await.err() }).await;
    refused::<()>(Err(answer), reason::INSUFFICIENT_CAPACITY, "retention_seconds or retained_max");
    let mut hosts = world.hosts(&scheduler, Role::Admin);
    let alarms = hosts.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner().alarms;
    assert_eq!(alarms.iter().map(|alarm| alarm.code.as_str()).collect::<Vec<_>>(), ["STORE_FULL"]);
    assert!(alarms[0].message.contains("launches are refused from 80 % on"), "{alarms:?}");
    suspend(&client, &id).await.unwrap();
    resume(&client, &id).await.unwrap();
    terminate(&client, &id).await.unwrap();
    becomes(&client, &id, Terminated).await;
}
