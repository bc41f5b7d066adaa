//! Whose a snapshot is: what a host leaves alone until the scheduler has recorded what it did.

use api::microvm::v1::{MicrovmState, SnapshotCopies};

use crate::calls::*;
use crate::world::{Agent, BUCKET, World};

/// A host that nobody hears of goes on by itself, and another goes on from what the record names: nothing that either may still
/// need is removed, and the session that was recorded is the one that goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_recorded_supersedes_nothing() {
    let (world, mut agent, snapshot) = World::with_image(4096).await;
    let one = spec(&snapshot);
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "1");
    suspend(&agent, id, 1).await.unwrap();
    let recorded = uploaded(&agent, id, 1).await;
    assert_eq!((recorded.generation, manifests(&world, id).await), (1, names(&["g1/s1"])));

    // From now on its reports are heard and not recorded. It wakes and sleeps by its own decision.
    world.reports.lock().unwrap().records_nothing = true;
    assert_eq!(get(&agent, id, "count").await, "2");
    suspend(&agent, id, 1).await.unwrap();
    uploaded(&agent, id, 2).await;
    testkit::until("the report", || async {
        let reports = world.reports.lock().unwrap();
        let copies = reports.latest.get(id).and_then(|one| one.snapshot.clone()).unwrap_or_default();
        copies.remote && copies.sequence == 2
    })
    .await;
    assert_eq!(manifests(&world, id).await, names(&["g1/s1", "g1/s2"]));

    // The record names the first snapshot, and another host goes on with it.
    let elsewhere = world.agent(4096).await;
    resume(&elsewhere, &one, 2, Some(recorded)).await.unwrap();
    for count in ["2", "3"] {
        assert_eq!(get(&elsewhere, id, "count").await, count);
    }
    suspend(&elsewhere, id, 2).await.unwrap();
    let recorded = uploaded(&elsewhere, id, 2).await;
    assert_eq!(recorded.generation, 2);

    // Back on the first host, whose own snapshot has the same number and is another session.
    resume(&agent, &one, 3, Some(recorded)).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "4");
    assert_eq!(manifests(&world, id).await, names(&["g1/s1", "g1/s2", "g2/s2"]));
    suspend(&agent, id, 3).await.unwrap();
    uploaded(&agent, id, 3).await;
    assert_eq!(get(&agent, id, "count").await, "5");
    suspend(&agent, id, 3).await.unwrap();
    world.reports.lock().unwrap().records_nothing = false;
    uploaded(&agent, id, 4).await;
    testkit::until("what this placement superseded is removed, and nothing else", || async {
        manifests(&world, id).await == names(&["g1/s1", "g1/s2", "g2/s2", "g3/s4"])
    })
    .await;

    // Its engine dies with its agent. The end alone removes nothing; that it is recorded removes everything.
    world.reports.lock().unwrap().records_nothing = true;
    assert_eq!(get(&agent, id, "count").await, "6");
    let two = spec(&snapshot);
    launch(&agent, &two, 1).await.unwrap();
    die_with_engines(&mut agent);
    spoil_journal(&agent, &two.microvm_id);
    std::fs::create_dir(agent.data.join("microvms/no-id")).unwrap();
    agent.start(None).await;

    // A journal that cannot be read is put aside with all that lies beside it, and reported; what is no microVM's goes.
    let two = two.microvm_id.as_str();
    assert_eq!((agent.names("microvms"), agent.names("quarantine")), (names(&[]), names(&[two])));
    assert!(agent.data.join("quarantine").join(two).join("disk.live").exists());
    testkit::until("it is reported", || async {
        world.reports.lock().unwrap().usage.unreadable_microvm_ids == [two]
    })
    .await;

    until_state(&agent, id, MicrovmState::Terminated).await;
    testkit::until("the report", || async {
        let reports = world.reports.lock().unwrap();
        reports.latest.get(id).is_some_and(|one| one.state() == MicrovmState::Terminated)
    })
    .await;
    assert_eq!(manifests(&world, id).await.len(), 4);
    world.reports.lock().unwrap().records_nothing = false;
    agent.kill();
    agent.start(None).await;
    testkit::until("S3 is cleared", || async { manifests(&world, id).await.is_empty() }).await;
}

/// Waits until the snapshot of this number is in S3.
async fn uploaded(agent: &Agent, id: &str, sequence: u64) -> SnapshotCopies {
    let is = |copies: &SnapshotCopies| copies.remote && copies.sequence == sequence;
    let (one, _) = until(agent, id, |one| one.snapshot.as_ref().is_some_and(is)).await;
    one.snapshot.unwrap()
}

/// The whole snapshots of a microVM in S3.
async fn manifests(world: &World, id: &str) -> Vec<String> {
    let prefix = format!("microvms/{id}/");
    let listed = world.s3.store().list_prefix(BUCKET, &prefix, 10_000).await.unwrap();
    let keys = listed.iter().filter_map(|object| object.key.strip_prefix(&prefix));
    keys.filter_map(|key| key.strip_suffix("/manifest.json")).map(str::to_owned).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// As an agent would find it that is older than the one which wrote it.
fn spoil_journal(agent: &Agent, id: &str) {
    let journal = agent.data.join("microvms").join(id).join("journal.json");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.replacen('{', r#"{"x":1,"#, 1)).unwrap();
}

fn die_with_engines(agent: &mut Agent) {
    agent.kill();
    for pid in agent.engines() {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}
