//! Recovery points: a microVM that runs goes on from one when its engine, its agent, or its host is lost.

use std::time::Duration;

use api::microvm::v1::{MicrovmState, SnapshotCopies};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls::*;
use crate::world::World;

/// Longer than the test: after the first point there is no other by itself.
const INTERVAL: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_goes_on_from_its_recovery_point() {
    let (world, mut agent, snapshot) = World::with_image(4096).await;
    let mut one = spec(&snapshot);
    one.checkpoint_interval = Some(api::duration_proto(INTERVAL));
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "1");
    let engine = agent.engines()[0];
    let remote = |copies: &SnapshotCopies| copies.remote && copies.time.is_some();
    let (pointed, took) = until(&agent, id, |one| one.snapshot.as_ref().is_some_and(remote)).await;
    eprintln!("a point on S3 after {took:?}");
    assert_eq!((pointed.state(), pointed.snapshot.unwrap().sequence), (MicrovmState::Running, 1));
    // The next by itself would be in an hour; this one is asked for.
    let asked = checkpoint(&agent, id, 1).await.unwrap().snapshot.unwrap();
    assert_eq!((asked.sequence, asked.remote, asked.goes_back), (2, false, true));
    eprintln!("stood still for {:?}", asked.stood_still.unwrap());
    let second = |copies: &SnapshotCopies| copies.remote && copies.sequence == 2;
    let (pointed, _) = until(&agent, id, |one| one.snapshot.as_ref().is_some_and(second)).await;
    let point = pointed.snapshot.unwrap();
    assert_eq!((point.time, agent.engines()), (asked.time, vec![engine]));
    // It ran on all the while; this is what will be undone.
    assert_eq!(get(&agent, id, "count").await, "2");

    // Agent and engine at once, as when a machine loses its power; the agent comes back.
    agent.kill();
    kill(Pid::from_raw(engine), Signal::SIGKILL).unwrap();
    agent.start(None).await;
    assert_eq!(get(&agent, id, "count").await, "2", "as of the point");
    let (back, _) = until_state(&agent, id, MicrovmState::Running).await;
    let went_back = back.went_back.unwrap();
    assert_eq!(went_back.point_time, point.time);
    let lines = log_lines(&agent, id).await;
    let told = "The engine was lost while its agent was down. It goes back to its recovery point of ";
    assert!(lines.iter().any(|line| line.starts_with(told)), "{lines:?}");

    // The host is gone for good: another has the copy in S3 and nothing else.
    let other = world.agent(4096).await;
    resume(&other, &one, 1, Some(SnapshotCopies { local: false, ..point })).await.unwrap();
    assert_eq!(get(&other, id, "count").await, "2", "as of the point, elsewhere");
    assert_eq!(get(&other, id, "count").await, "3");

    // A point that ends its engine would do so for ever.
    kill(Pid::from_raw(agent.engines()[0]), Signal::SIGKILL).unwrap();
    let (ended, _) = until_state(&agent, id, MicrovmState::Terminated).await;
    assert_eq!(ended.state_reason, "The engine process was killed (signal 9).");
    terminate(&other, id, 1).await.unwrap();
    assert!(other.engines().is_empty() && other.names("microvms").is_empty());
}
