//! `kill -9` of the agent at every durable step. After the restart each microVM
//! is in a true state, its last good snapshot works, and nothing is left over.

use std::time::{Duration, Instant};

use api::microvm::v1::MicrovmState;

use crate::calls::*;
use crate::world::{Agent, BUCKET, PATIENCE, World};

#[tokio::test(flavor = "multi_thread")]
async fn launches_suspends_and_wakes_survive_the_agent() {
    let (_world, mut agent, snapshot) = World::with_image(4096).await;

    for point in ["launch-begun", "launch-restored", "launch-identity", "launch-journaled"] {
        let one = spec(&snapshot);
        let id = one.microvm_id.as_str();
        die_at(&mut agent, point).await;
        launch(&agent, &one, 1).await.expect_err("the agent dies");
        reborn(&mut agent).await;
        if point == "launch-journaled" {
            assert_eq!(observed(&agent).await[id].state(), MicrovmState::Running, "{point}");
        } else {
            assert!(!observed(&agent).await.contains_key(id), "{point}");
            assert!(agent.names("microvms").is_empty(), "{point}");
        }
        // The scheduler repeats what was not answered.
        launch(&agent, &one, 1).await.unwrap();
        assert_eq!(get(&agent, id, "count").await, "1", "{point}");
        terminate(&agent, id, 1).await.unwrap();
        clean(&agent, 0, point).await;
    }

    let one = spec(&snapshot);
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    let mut count = 0;
    for (point, expected) in [
        ("suspend-begun", MicrovmState::Running),
        ("suspend-paused", MicrovmState::Running),
        ("suspend-files", MicrovmState::Running),
        ("suspend-manifest", MicrovmState::Suspended),
        ("suspend-stopped", MicrovmState::Suspended),
        ("wake-begun", MicrovmState::Suspended),
        ("wake-restored", MicrovmState::Suspended),
        ("wake-identity", MicrovmState::Suspended),
        ("wake-journaled", MicrovmState::Running),
    ] {
        let waking = point.starts_with("wake");
        if waking {
            suspend(&agent, id, 1).await.unwrap();
        } else {
            resume(&agent, &one, 1, None).await.unwrap();
        }
        die_at(&mut agent, point).await;
        // An agent that restarts adopts or finds it asleep; then the command meets the failpoint.
        if waking {
            resume(&agent, &one, 1, None).await.expect_err("the agent dies");
        } else {
            suspend(&agent, id, 1).await.expect_err("the agent dies");
        }
        reborn(&mut agent).await;
        assert_eq!(observed(&agent).await[id].state(), expected, "{point}");
        let engines = usize::from(expected == MicrovmState::Running);
        clean(&agent, engines, point).await;
        count += 1;
        assert_eq!(get(&agent, id, "count").await, count.to_string(), "{point}");
        eprintln!("{point}: {expected:?}, the counter goes on at {count}");
    }

    die_at(&mut agent, "end-begun").await;
    terminate(&agent, id, 1).await.expect_err("the agent dies");
    reborn(&mut agent).await;
    let (ended, _) = until_state(&agent, id, MicrovmState::Terminated).await;
    assert_eq!(ended.state_reason, "The test is over.");
    clean(&agent, 0, "end-begun").await;
    assert!(agent.names("microvms").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bakes_leave_nothing() {
    let world = World::start().await;
    let mut agent = world.agent(4096).await;
    let disk = store_disk(&world).await;
    for point in ["bake-fetched", "bake-booted", "bake-ready", "bake-snapshotted", "bake-upload-begun"] {
        die_at(&mut agent, point).await;
        let request = bake_request(disk.clone(), &[], None);
        let prefix = request.destination_prefix.clone();
        let died = bake(&agent, request).await.result.expect_err("the agent dies");
        eprintln!("{point}: {}", died.message());
        reborn(&mut agent).await;
        clean(&agent, 0, point).await;
        let stored = world.s3.store().list_prefix(BUCKET, &prefix, 1000).await.unwrap();
        assert!(stored.is_empty(), "{point}: {}", stored.len());
    }
    // A caller that hangs up in the middle.
    let mut stream = client(&agent, rpc::Role::ImageBuilder)
        .bake(bake_request(disk, &[], None))
        .await
        .unwrap()
        .into_inner();
    while stream.message().await.unwrap().unwrap().step != "ready" {}
    assert_eq!(agent.engines().len(), 1);
    drop(stream);
    clean(&agent, 0, "hang-up").await;
}

async fn die_at(agent: &mut Agent, point: &str) {
    agent.kill();
    agent.start(Some(point)).await;
}

async fn reborn(agent: &mut Agent) {
    agent.wait_dead().await;
    agent.start(None).await;
}

/// Waits until there are as many engines as there should be, no bake, and no
/// namespace beyond the ready ones, theirs and those of engines made ahead.
async fn clean(agent: &Agent, engines: usize, point: &str) {
    let began = Instant::now();
    loop {
        let found =
            (agent.engines().len(), agent.namespaces().len(), agent.names("bakes"), agent.names("tmp"));
        let waiting = agent.engines_ahead().len();
        if found.0 == engines && found.1 <= engines + waiting + 2 && found.2.is_empty() && found.3.is_empty()
        {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{point}: left over: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
