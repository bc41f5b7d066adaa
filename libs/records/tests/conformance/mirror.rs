//! A prefix in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use records::{Entries, Expect, Mirror};
use testkit::Etcd;
use tokio::sync::watch;

use super::{PATIENCE, until, watchers};

/// Numbers as text; at most three of them.
fn numbers() -> Entries<u32> {
    Entries::new(3, |_, value| std::str::from_utf8(value).ok()?.parse().ok())
}

/// Their sum; a sum of 13 is not wanted.
fn sum(all: &BTreeMap<String, u32>) -> Option<u32> {
    Some(all.values().sum()).filter(|sum| *sum != 13)
}

#[tokio::test]
async fn a_mirror_follows_its_prefix_and_keeps_the_last_good_value() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    for (key, value) in [("n/a", "1"), ("n/b", "x"), ("m", "100")] {
        store.put_if(key, value, Expect::Absent, None).await.unwrap();
    }
    let mirror = Mirror::follow(&store, "n/", numbers(), sum);
    assert_eq!(*mirror.get().await.unwrap(), 1);
    let becomes = async |wanted: u32| {
        let reached = mirror.when(PATIENCE, |sum| *sum == wanted).await;
        assert!(reached.is_some(), "not {wanted}, but {:?}", mirror.get().await);
    };
    for (key, value, sum) in [
        ("n/b", "2", 3),
        ("n/c", "5", 8),
        ("n/d", "1000", 8), // one too many
        ("n/c", "10", 8),   // the sum is not wanted
        ("n/c", "20", 23),
        ("n/b", "bad", 21), // what turned bad counts no longer
    ] {
        store.put_if(key, value, Expect::Any, None).await.unwrap();
        becomes(sum).await;
    }
    store.delete_if("n/a", Expect::Any, None).await.unwrap();
    becomes(20).await;
    drop(mirror);
    until("the watch to end", || async { watchers(&etcd).await == 0 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_waits_a_bounded_time_and_only_so_many_wait() {
    let (sender, current) = watch::channel(None);
    let mirror = Mirror::of(current);
    assert_eq!(mirror.get().await, None);
    let waiting: Vec<_> = (0..300)
        .map(|_| {
            let mirror = mirror.clone();
            tokio::spawn(async move { mirror.get().await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    sender.send_replace(Some(Arc::new(7)));
    let mut served = 0;
    for waiter in waiting {
        served += usize::from(waiter.await.unwrap().is_some());
    }
    assert_eq!(served, 256);
    assert_eq!(mirror.get().await.as_deref(), Some(&7));
    assert_eq!(mirror.when(Duration::from_secs(1), |value| *value == 8).await, None);
}
