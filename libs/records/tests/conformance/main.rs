//! What every user of records relies on, against a real etcd that is killed and restarted underneath.

// Helpers outside #[test] functions fail the test the same way.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use records::{Error, Event, Expect, Store, Watch, Write};
use settings::EtcdSettings;
use testkit::{Etcd, PATIENCE, certificates, free_port, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

mod commit;
mod members;
mod mirror;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// How many watches stand on this etcd, as it says itself.
async fn watchers(etcd: &Etcd) -> u64 {
    let address = etcd.endpoint();
    let address = address.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let number = answer.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    number.expect("etcd counts its watches").parse().unwrap()
}

/// Applies events until the view is as wanted.
async fn view_becomes(watch: &mut Watch, view: &mut BTreeMap<String, Vec<u8>>, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, Vec<u8>> =
        wanted.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
    within("the view", async {
        while *view != wanted {
            match watch.next().await {
                Event::Snapshot(entries) => {
                    *view = entries.into_iter().map(|(key, value)| (key, value.value)).collect();
                }
                Event::Put(key, value) => drop(view.insert(key, value.value)),
                Event::Delete(key) => drop(view.remove(&key)),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_was_overwritten_is_compacted_once() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let empty = store.size().await.unwrap();
    assert!(empty.used_bytes > 0 && empty.alarms.is_empty(), "{empty:?}");
    for value in ["one", "two"] {
        store.put_if("a", value, Expect::Any, None).await.unwrap();
    }
    let size = store.size().await.unwrap();
    assert!(size.revision >= empty.revision + 2, "{empty:?} {size:?}");
    store.compact(size.revision).await.unwrap();
    assert!(matches!(store.compact(size.revision).await, Err(Error::Refused { .. })));
    assert_eq!(store.get("a").await.unwrap().unwrap().value, b"two");
}

#[tokio::test]
async fn compare_and_set_lets_one_of_many_win() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let first = store.put_if("a/x", "0", Expect::Absent, None).await.unwrap();
    assert!(matches!(
        store.put_if("a/x", "again", Expect::Absent, None).await,
        Err(Error::Conflict { key }) if key == "a/x"
    ));
    let racers = (0..16).map(|racer| {
        let store = store.clone();
        async move { store.put_if("a/x", format!("{racer}"), Expect::Revision(first), None).await }
    });
    let results = futures::future::join_all(racers).await;
    let winners: Vec<i64> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(Error::Conflict { .. }))));
    let now = store.get("a/x").await.unwrap().unwrap();
    assert_eq!(now.revision, winners[0]);
    assert!(store.delete_if("a/x", Expect::Revision(first), None).await.is_err());
    store.delete_if("a/x", Expect::Revision(now.revision), None).await.unwrap();
    assert_eq!(store.get("a/x").await.unwrap(), None);
}

#[tokio::test]
async fn a_transaction_writes_all_or_nothing() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    store.put_if("t/taken", "1", Expect::Absent, None).await.unwrap();
    let put = |key: &str| Write::Put {
        key: key.to_owned(),
        value: b"v".to_vec(),
        expect: Expect::Absent,
        lease: None,
    };
    let refused = store.txn(vec![put("t/new"), put("t/taken")], None).await;
    assert!(matches!(refused, Err(Error::Conflict { key }) if key == "t/taken"));
    assert_eq!(store.get("t/new").await.unwrap(), None);
    let without = |key: &str| Write::Absent { key: key.to_owned() };
    let refused = store.txn(vec![put("t/new"), without("t/taken")], None).await;
    assert!(matches!(refused, Err(Error::Conflict { key }) if key == "t/taken"));
    assert_eq!(store.get("t/new").await.unwrap(), None);
    let done = store.txn(vec![put("t/alone"), without("t/new")], None).await.unwrap();
    assert_eq!(store.get("t/alone").await.unwrap().unwrap().revision, done);
    assert_eq!(store.get("t/new").await.unwrap(), None);
    store.delete_if("t/alone", Expect::Any, None).await.unwrap();
    store.txn(vec![put("t/new"), put("t/other")], None).await.unwrap();
    let (entries, revision) = store.list("t/").await.unwrap();
    let keys: Vec<_> = entries.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["t/new", "t/other", "t/taken"]);
    assert!(revision >= entries.iter().map(|(_, value)| value.revision).max().unwrap());
}

#[tokio::test]
async fn bounds_are_errors_and_long_lists_are_paged() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let huge = vec![0; records::VALUE_BYTES_MAX + 1];
    assert!(matches!(store.put_if("b", huge, Expect::Any, None).await, Err(Error::TooLarge { .. })));
    let long = "k".repeat(records::KEY_BYTES_MAX);
    assert!(matches!(store.get(&long).await, Err(Error::TooLarge { .. })));
    // Small ones first, so that a page of them is a large one; then some that are too much for such a page.
    let batches = (0..12).map(|batch| (batch * 100, 100, 20));
    let large = (0..50).map(|batch| (1200 + batch * 14, 14, records::VALUE_BYTES_MAX));
    for (first, count, bytes) in batches.chain(large) {
        let writes = (first..first + count)
            .map(|index| Write::Put {
                key: format!("many/{index:05}"),
                value: vec![7; bytes],
                expect: Expect::Absent,
                lease: None,
            })
            .collect();
        store.txn(writes, None).await.unwrap();
    }
    store.put_if("manz", "outside", Expect::Absent, None).await.unwrap();
    let (entries, _) = store.list("many/").await.unwrap();
    assert_eq!(entries.len(), 1900);
    assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
}

#[tokio::test]
async fn a_guard_refuses_after_leadership_moved() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let ttl = Duration::from_secs(30);
    let first = within("election", store.campaign("e", "one", ttl)).await.unwrap();
    assert_eq!(store.leader("e").await.unwrap().as_deref(), Some("one"));
    store.put_if("g", "1", Expect::Any, Some(&first)).await.unwrap();
    // Another process of the same instance takes over while the first still believes.
    let second = within("takeover", store.campaign("e", "one", ttl)).await.unwrap();
    assert!(first.is_leader(), "the local clock alone cannot know yet");
    assert!(second.create_revision() > first.create_revision());
    let refused = store.put_if("g", "2", Expect::Any, Some(&first)).await;
    assert!(matches!(refused, Err(Error::LeadershipLost)), "{refused:?}");
    assert!(!first.is_leader(), "a refused guard ends it");
    within("lost", first.lost()).await;
    store.put_if("g", "3", Expect::Any, Some(&second)).await.unwrap();
    // Another instance waits until the leader steps down: it watches the key,
    // which it does only after its claim was refused.
    assert_eq!(watchers(&etcd).await, 0);
    let other = store.clone();
    let waiting = tokio::spawn(async move { other.campaign("e", "two", ttl).await });
    until("a watch of the leader's key", || async { watchers(&etcd).await == 1 }).await;
    assert!(!waiting.is_finished());
    second.resign().await.unwrap();
    let third = within("succession", waiting).await.unwrap().unwrap();
    assert!(third.is_leader() && !second.is_leader());
}

#[tokio::test]
async fn a_watch_survives_kill_and_restart_of_etcd() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    store.put_if("w/a", "1", Expect::Absent, None).await.unwrap();
    store.put_if("other", "1", Expect::Absent, None).await.unwrap();
    let mut watch = store.watch("w/");
    let mut view = BTreeMap::new();
    view_becomes(&mut watch, &mut view, &[("w/a", "1")]).await;
    for round in 0..2 {
        etcd.kill();
        let asked = Instant::now();
        let error = store.put_if("w/no", "x", Expect::Absent, None).await.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        assert!(asked.elapsed() < Duration::from_secs(4), "quickly: {:?}", asked.elapsed());
        etcd.restart().await;
        // A writer elsewhere, before our watch is necessarily back.
        let value = format!("{}", round + 2);
        until("a write after the restart", || async {
            store.put_if("w/b", value.clone(), Expect::Any, None).await.is_ok()
        })
        .await;
        view_becomes(&mut watch, &mut view, &[("w/a", "1"), ("w/b", &value)]).await;
    }
    store.delete_if("w/a", Expect::Any, None).await.unwrap();
    view_becomes(&mut watch, &mut view, &[("w/b", "3")]).await;
}

#[tokio::test]
async fn a_watch_lists_again_after_compaction() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    store.put_if("c/gone", "1", Expect::Absent, None).await.unwrap();
    let mut watch = store.watch("c/");
    let mut view = BTreeMap::new();
    view_becomes(&mut watch, &mut view, &[("c/gone", "1")]).await;
    etcd.kill();
    // While our watch is cut off, history moves on and is compacted: another
    // client works on the same data at another port for a while.
    let (endpoint, mut elsewhere) = start_elsewhere(&etcd);
    let other =
        Store::connect(&EtcdSettings { endpoints: vec![endpoint.clone()], ..etcd.settings() }).await.unwrap();
    until("the other etcd", || async { other.get("c/gone").await.is_ok() }).await;
    other.delete_if("c/gone", Expect::Any, None).await.unwrap();
    let last = other.put_if("c/new", "2", Expect::Absent, None).await.unwrap();
    let mut raw = etcd_client::Client::connect([endpoint], None).await.unwrap();
    raw.compact(last, None).await.unwrap();
    elsewhere.kill().unwrap();
    elsewhere.wait().unwrap();
    etcd.restart().await;
    view_becomes(&mut watch, &mut view, &[("c/new", "2")]).await;
}

/// The same data directory served at another client port.
fn start_elsewhere(etcd: &Etcd) -> (String, std::process::Child) {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let child = std::process::Command::new("etcd")
        .args(["--name", "t", "--log-level", "error", "--data-dir"])
        .arg(etcd.directory().join("data"))
        .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
        .args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", free_port())])
        .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    (endpoint, child)
}

#[tokio::test]
async fn a_lease_ends_for_its_holder_before_it_ends_for_others() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    let ttl = Duration::from_secs(2);
    let lease = store.lease(ttl).await.unwrap();
    store.put_leased("l/host", "here", &lease).await.unwrap();
    tokio::time::sleep(ttl + Duration::from_millis(500)).await;
    assert!(lease.is_alive(), "kept alive beyond its time to live");
    etcd.kill();
    let cut = Instant::now();
    within("local loss", lease.lost()).await;
    assert!(cut.elapsed() <= ttl + Duration::from_millis(200), "{:?}", cut.elapsed());
    assert!(!lease.is_alive());
    assert!(matches!(store.put_leased("l/host", "again", &lease).await, Err(Error::LeaseLost)));
    etcd.restart().await;
    until("the key to go with the lease", || async { matches!(store.get("l/host").await, Ok(None)) }).await;
    assert!(!lease.is_alive(), "once over it stays over");
}

#[tokio::test]
async fn a_short_outage_does_not_end_a_lease_and_revoke_frees_at_once() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    let lease = store.lease(Duration::from_secs(15)).await.unwrap();
    store.put_leased("l/a", "1", &lease).await.unwrap();
    let before = lease.deadline();
    etcd.restart().await;
    until("a keepalive after the outage", || async { lease.deadline() > before }).await;
    assert!(lease.is_alive());
    lease.revoke().await.unwrap();
    assert!(!lease.is_alive());
    assert_eq!(store.get("l/a").await.unwrap(), None);
}

#[tokio::test]
async fn leadership_passes_when_the_leader_dies_silently() {
    let etcd = Etcd::start().await;
    let (one, two) = (etcd.store().await, etcd.store().await);
    let ttl = Duration::from_secs(2);
    let first = within("election", one.campaign("e", "one", ttl)).await.unwrap();
    drop(first); // no resignation: like a crash
    let second = within("succession", two.campaign("e", "two", ttl)).await.unwrap();
    assert!(second.is_leader());
}

#[tokio::test]
async fn speaks_tls_with_client_certificates() {
    let directory = tempfile::tempdir().unwrap();
    certificates::write(directory.path(), &[("etcd", &["127.0.0.1"])]);
    let etcd = Etcd::start_with(Some(certificates::files(directory.path(), "etcd"))).await;
    let store = etcd.store().await;
    until("a write over TLS", || async { store.put_if("tls", "yes", Expect::Any, None).await.is_ok() }).await;
    assert_eq!(store.get("tls").await.unwrap().unwrap().value, b"yes");
    let mut settings = etcd.settings();
    settings.tls.as_mut().unwrap().key = directory.path().join("none.pem");
    let error = Store::connect(&settings).await.unwrap_err();
    assert!(error.to_string().contains("none.pem"), "{error}");
}
