//! A cluster of which some members are lost: a port where nothing listens stands for one that was killed, a listener that
//! answers nothing for one that stands still.

use testkit::Etcd;
use tokio::net::TcpListener;

use super::*;

/// A store whose first member is at `first`, and whose second is `etcd`.
async fn store(etcd: &Etcd, first: &str) -> Store {
    let endpoints = vec![first.to_owned(), etcd.endpoint()];
    Store::connect(&EtcdSettings { endpoints, ..etcd.settings() }).await.unwrap()
}

#[tokio::test]
async fn the_loss_of_a_killed_member_is_not_felt() {
    let etcd = Etcd::start().await;
    let killed = format!("http://127.0.0.1:{}", free_port());
    let store = store(&etcd, &killed).await;
    let revision = store.put_if("a", "1", Expect::Absent, None).await.expect("never sent to the killed one");
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, revision);
    let reading =
        Store::connect(&EtcdSettings { endpoints: vec![killed, etcd.endpoint()], ..etcd.settings() });
    assert_eq!(reading.await.unwrap().list("").await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn a_member_that_stands_still_is_left_after_one_call() {
    let etcd = Etcd::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let store_a = store(&etcd, &address).await;
    // What changes nothing is asked again by itself.
    assert!(store_a.get("a").await.unwrap().is_none());
    store_a.put_if("a", "1", Expect::Absent, None).await.expect("the silent one was left");
    let mut watch = store_a.watch("");
    assert!(
        matches!(within("a snapshot", watch.next()).await, Event::Snapshot(entries) if entries.len() == 1)
    );
    // What changes something is not: it may have been done.
    let store_b = store(&etcd, &address).await;
    let lost = store_b.put_if("b", "1", Expect::Absent, None).await.expect_err("no answer");
    assert!(lost.is_unavailable() && !lost.is_determinate(), "{lost}");
    store_b.put_if("b", "1", Expect::Absent, None).await.expect("the silent one was left");
}
