//! A cluster of which some members are lost: a port where nothing listens stands for one that was killed, a listener that
//! answers nothing, or a member that was stopped, for one that stands still.

use std::process::{Child, Command, Stdio};

use records::{Committed, Tenure};
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

/// Three members on this machine. Dropping it kills them.
struct Cluster {
    _directory: tempfile::TempDir,
    members: Vec<Child>,
    endpoints: Vec<String>,
}

impl Cluster {
    async fn start() -> Self {
        let urls = || (0..3).map(|_| format!("http://127.0.0.1:{}", free_port())).collect::<Vec<_>>();
        let (directory, endpoints, peers) = (tempfile::tempdir().unwrap(), urls(), urls());
        let named = peers.iter().enumerate().map(|(number, peer)| format!("m{number}={peer}"));
        let named = named.collect::<Vec<_>>().join(",");
        let start = |number: usize| {
            let (client, peer) = (&endpoints[number], &peers[number]);
            let data = directory.path().join(format!("m{number}"));
            let log = std::fs::File::create(data.with_extension("log")).unwrap();
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("m{number}"), "--data-dir"]).arg(data);
            command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
            command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
            command.args(["--initial-cluster", &named, "--log-level", "error"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
        };
        let members = (0..3).map(start).collect();
        let cluster = Self { _directory: directory, members, endpoints };
        until("the members to have a leader", || async { cluster.store(0).await.get("a").await.is_ok() })
            .await;
        cluster
    }

    /// A store that asks member `first` first.
    async fn store(&self, first: usize) -> Store {
        let mut endpoints = self.endpoints.clone();
        endpoints.rotate_left(first);
        let root = "/torpor/".to_owned();
        Store::connect(&EtcdSettings { endpoints, root, tls: None }).await.unwrap()
    }

    fn signal(&self, member: usize, signal: &str) {
        let pid = self.members[member].id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// What was asked of the member that stands still as well is done once, also when that goes on and reads it.
#[tokio::test]
async fn what_is_committed_while_a_member_stands_still_is_done_once() {
    let cluster = Cluster::start().await;
    for stopped in 0..3 {
        let store = cluster.store(stopped).await;
        let lease = within("a lease", store.lease(Duration::from_secs(60))).await.unwrap();
        let key = format!("k{stopped}");
        let write =
            |value: &str, expect| Write::Put { key: key.clone(), value: value.into(), expect, lease: None };
        let commit = |value: &str, expect| store.commit(vec![write(value, expect)], Tenure::Holder(&lease));
        let first = within("a commit", commit("1", Expect::Absent)).await.unwrap();
        let Committed::At(first) = first else { panic!("{first:?}") };
        cluster.signal(stopped, "-STOP");
        let second = within("a commit", commit("2", Expect::Revision(first))).await.unwrap();
        let Committed::At(second) = second else { panic!("{second:?}") };
        let third = within("a commit", commit("3", Expect::Revision(second))).await.unwrap();
        let Committed::At(third) = third else { panic!("{third:?}") };
        cluster.signal(stopped, "-CONT");
        // The member has read all that was meant for it by the time it answers again.
        let late = cluster.store(stopped).await;
        let found = within("the member", late.get(&key)).await.unwrap().unwrap();
        assert_eq!((found.value.as_slice(), found.revision), (b"3".as_slice(), third));
        let differs = within("a commit", commit("4", Expect::Revision(second))).await.unwrap();
        assert_eq!(differs, Committed::Differs(Some(found)));
    }
}
