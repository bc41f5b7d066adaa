//! Commits whose answers are lost, whose keys others change, whose time is over.

use std::time::Duration;

use records::{Committed, Error, Expect, Store, Tenure, Write};
use testkit::Etcd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{until, within};

const TTL: Duration = Duration::from_secs(30);

/// A way to etcd that loses its answers while it is told to.
struct Wire {
    store: Store,
    deaf: watch::Sender<bool>,
    /// How many answers it has lost.
    lost: watch::Receiver<u32>,
}

impl Wire {
    async fn to(etcd: &Etcd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let target = etcd.endpoint().strip_prefix("http://").unwrap().to_owned();
        let (deaf, hears) = watch::channel(false);
        let (loses, lost) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&target).await.unwrap();
                tokio::spawn(relay(client, server, (hears.clone(), loses.clone())));
            }
        });
        let options = settings::EtcdSettings { endpoints: vec![endpoint], ..etcd.settings() };
        Self { store: Store::connect(&options).await.unwrap(), deaf, lost }
    }

    /// Passes answers on again after the next loss: that of an answer which is on its way now, or of its repetition.
    async fn hear_again(&self) {
        let mut lost = self.lost.clone();
        let before = *lost.borrow();
        within("an answer to be lost", lost.wait_for(|lost| *lost > before)).await.unwrap();
        self.deaf.send_replace(false);
    }
}

/// Passes requests on always, answers unless it is deaf: then the connection breaks.
async fn relay(
    client: TcpStream,
    server: TcpStream,
    (hears, loses): (watch::Receiver<bool>, watch::Sender<u32>),
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            if *hears.borrow() {
                loses.send_modify(|lost| *lost += 1);
                return;
            }
            if to_client.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
    }
}

fn put(key: &str, value: &str, expect: Expect) -> Write {
    Write::Put { key: key.to_owned(), value: value.into(), expect, lease: None }
}

#[tokio::test]
async fn a_lost_answer_is_found_out() {
    let etcd = Etcd::start().await;
    let (store, wire) = (etcd.store().await, Wire::to(&etcd).await);
    let leader = within("election", wire.store.campaign("e", "one", TTL)).await.unwrap();
    let lease = wire.store.lease(TTL).await.unwrap();
    for (round, tenure) in [Tenure::Leader(&leader), Tenure::Holder(&lease)].into_iter().enumerate() {
        let (key, other) = (format!("c/{round}"), format!("d/{round}"));
        let writes = vec![put(&key, "ours", Expect::Absent), put(&other, "too", Expect::Absent)];
        wire.deaf.send_replace(true);
        let (committed, ()) = tokio::join!(wire.store.commit(writes, tenure), async {
            until("the write", || async { store.get(&key).await.unwrap().is_some() }).await;
            wire.hear_again().await;
        });
        let found = store.get(&key).await.unwrap().unwrap();
        assert_eq!(committed.unwrap(), Committed::At(found.revision));
        assert_eq!(store.get(&other).await.unwrap().unwrap().revision, found.revision);

        // The same for a removal, whose revision nobody knows any more.
        let removal = Write::Delete { key: key.clone(), expect: Expect::Revision(found.revision) };
        wire.deaf.send_replace(true);
        let (committed, ()) = tokio::join!(wire.store.commit(vec![removal], tenure), async {
            until("the removal", || async { store.get(&key).await.unwrap().is_none() }).await;
            wire.hear_again().await;
        });
        assert_eq!(committed.unwrap(), Committed::At(0));
    }
}

#[tokio::test]
async fn what_another_wrote_after_a_lost_answer_is_told() {
    let etcd = Etcd::start().await;
    let (store, wire) = (etcd.store().await, Wire::to(&etcd).await);
    let lease = wire.store.lease(TTL).await.unwrap();
    wire.deaf.send_replace(true);
    let writes = vec![put("c", "ours", Expect::Absent)];
    let (committed, ()) = tokio::join!(wire.store.commit(writes, Tenure::Holder(&lease)), async {
        until("the write", || async { store.get("c").await.unwrap().is_some() }).await;
        store.put_if("c", "theirs", Expect::Any, None).await.unwrap();
        wire.hear_again().await;
    });
    let theirs = store.get("c").await.unwrap();
    assert_eq!(theirs.as_ref().unwrap().value, b"theirs");
    assert_eq!(committed.unwrap(), Committed::Differs(theirs));
}

#[tokio::test]
async fn without_a_lost_answer_an_equal_value_is_somebody_elses() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let lease = store.lease(TTL).await.unwrap();
    let tenure = Tenure::Holder(&lease);
    let first = store.commit(vec![put("a", "same", Expect::Absent)], tenure).await.unwrap();
    let found = store.get("a").await.unwrap().unwrap();
    assert_eq!(first, Committed::At(found.revision));
    let again = store.commit(vec![put("a", "same", Expect::Absent)], tenure).await.unwrap();
    assert_eq!(again, Committed::Differs(Some(found.clone())));

    // Another key differs: the witness is as expected, and nothing was written.
    let expected = Expect::Revision(found.revision);
    let writes = vec![put("a", "new", expected), put("b", "x", Expect::Revision(1))];
    assert_eq!(store.commit(writes, tenure).await.unwrap(), Committed::Differs(Some(found)));
    let gone = store.commit(vec![put("nothing", "x", Expect::Revision(1))], tenure).await.unwrap();
    assert_eq!(gone, Committed::Differs(None));
    let large = vec![put("a", &"x".repeat(records::VALUE_BYTES_MAX + 1), expected)];
    assert!(matches!(store.commit(large, tenure).await, Err(Error::TooLarge { .. })));
}

#[tokio::test]
async fn a_commit_ends_with_its_tenure() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    let first = within("election", store.campaign("e", "one", TTL)).await.unwrap();
    let _second = within("takeover", store.campaign("e", "one", TTL)).await.unwrap();
    let refused = store.commit(vec![put("c", "x", Expect::Any)], Tenure::Leader(&first)).await;
    assert!(matches!(refused, Err(Error::LeadershipLost)), "{refused:?}");

    let lease = store.lease(Duration::from_secs(2)).await.unwrap();
    etcd.kill();
    let writes = vec![put("c", "x", Expect::Any)];
    let refused = within("the lease's end", store.commit(writes, Tenure::Holder(&lease))).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
}
