//! What is left of connectors when their leader dies or is deposed in between.

use std::time::{Instant, SystemTime};

use api::connector::v1::*;
use api::errors::reason;
use clock::Clock;
use rpc::Role;
use tonic::Code;

use super::*;

#[tokio::test]
async fn a_killed_scheduler_leaves_nothing_half_done() {
    let (mut world, mut scheduler, client) = led(&[]).await;
    active(&client, request("updated")).await;
    active(&client, request("deleted")).await;
    scheduler.kill();
    // A leader that dies before anything settles.
    world.clock = Clock::manual(SystemTime::now());
    let mut scheduler = world.here(&[]);
    let client = world.connectors(&scheduler, Role::Admin);
    eventually("the next leader", || async { read(&client, "updated").await.ok() }).await;
    let created = create(&client, request("created")).await.unwrap();
    update(&client, subnets("updated", &["subnet-2"], "u")).await.unwrap();
    delete(&client, "deleted").await.unwrap();
    let before = world.listed("connectors/").await.len();
    assert_eq!(before, 2 + 3 + 2, "a key each and one for each version");
    scheduler.kill();
    let killed = Instant::now();
    let scheduler = world.scheduler(&[]);
    let client = world.connectors(&scheduler, Role::Admin);
    let settled = eventually("all settled", || async {
        let (created, _) = read(&client, "created").await.ok()?;
        let (updated, latest) = read(&client, "updated").await.ok()?;
        let gone = read(&client, "deleted").await.err()?.code() == Code::NotFound;
        let done = updated.last_update_status() == UpdateStatus::Successful && latest == 2;
        (created.state() == Active && done && gone).then_some(created)
    })
    .await;
    assert!(killed.elapsed().as_secs() < 10, "{:?}", killed.elapsed());
    assert_eq!(settled.id, created.id);
    assert_eq!(world.listed("connectors/").await.len(), 2 + 3);
    // The token of the request before the crash still means that connector.
    let again = create(&client, request("created")).await.unwrap();
    assert_eq!(again.id, created.id);
    assert_eq!(update(&client, subnets("updated", &["subnet-2"], "u")).await.unwrap().version, 2);
}

#[tokio::test]
async fn a_deposed_leader_writes_nothing() {
    let (world, _scheduler, client) = led(&[]).await;
    let made = active(&client, request("net")).await;
    let before = world.store.list("connectors/").await.unwrap().0;
    world.depose().await;
    let answer = create(&client, request("other")).await;
    refused(answer, reason::NOT_LEADER, "does not lead");
    for answer in [update(&client, subnets("net", &["subnet-2"], "u")).await, delete(&client, "net").await] {
        refused(answer, reason::NOT_LEADER, "does not lead");
    }
    assert_eq!(world.store.list("connectors/").await.unwrap().0, before);
    world.store.delete_if("elections/scheduler", records::Expect::Any, None).await.unwrap();
    let back = eventually("to lead again", || async { read(&client, "net").await.ok() }).await;
    assert_eq!(back.0, made);
    create(&client, request("other")).await.unwrap();
}

#[tokio::test]
async fn what_somebody_else_wrote_is_followed() {
    let (world, _scheduler, client) = led(&[]).await;
    let made = active(&client, request("net")).await;
    let key = format!("connectors/{}", made.id);
    let found = world.store.get(&key).await.unwrap().unwrap();
    world.store.put_if(&key, found.value, records::Expect::Any, None).await.unwrap();
    let answer = update(&client, subnets("net", &["subnet-2"], "u")).await;
    refused(answer, reason::STORE_UNAVAILABLE, "somebody else");
    assert_eq!(read(&client, "net").await.unwrap().0, made);
    let now = update(&client, subnets("net", &["subnet-2"], "u")).await.unwrap();
    assert_eq!(now.version, 2);
}

#[tokio::test]
async fn etcd_may_be_killed_under_a_change() {
    let (mut world, _scheduler, client) = led(&[]).await;
    active(&client, request("updated")).await;
    for round in 0..3 {
        let name = format!("n{round}");
        let change = subnets("updated", &[&format!("subnet-{round}x")], &name);
        let begun = (
            tokio::spawn({
                let (client, request) = (client.clone(), request(&name));
                async move { create(&client, request).await }
            }),
            tokio::spawn({
                let (client, change) = (client.clone(), change.clone());
                async move { update(&client, change).await }
            }),
        );
        world.etcd.kill();
        world.etcd.restart().await;
        // Whatever became of the first calls, the same calls again mean the same.
        let made = eventually("the connector", || async { create(&client, request(&name)).await.ok() }).await;
        if let Ok(first) = begun.0.await.unwrap() {
            assert_eq!(first.id, made.id);
        }
        let changed = eventually("the change", || async { update(&client, change.clone()).await.ok() }).await;
        assert_eq!(changed.version, round + 2);
        if let Ok(first) = begun.1.await.unwrap() {
            assert_eq!(first.version, round + 2);
        }
        eventually("all settled", || async {
            let (updated, latest) = read(&client, "updated").await.ok()?;
            let (made, _) = read(&client, &name).await.ok()?;
            let done = updated.last_update_status() == UpdateStatus::Successful && latest == round + 2;
            (done && made.state() == Active).then_some(())
        })
        .await;
    }
    assert_eq!(
        world.listed("connectors/").await.len(),
        (1 + 4) + 3 * 2,
        "one connector with four versions, three with one"
    );
}
