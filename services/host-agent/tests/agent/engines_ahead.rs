//! Engines made ahead: used by launch and wake, once each; gone with their image, with the agent and after its death.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::hostagent::v1::EvictImageRequest;
use api::microvm::v1::MicrovmState;

use crate::calls::*;
use crate::world::{Agent, PATIENCE, World};

/// `limits.engines_ahead` by default.
const PER_IMAGE: usize = 2;

/// Waits until so many engines wait; their process ids.
async fn waiting(agent: &Agent, count: usize) -> BTreeSet<i32> {
    let began = Instant::now();
    loop {
        let found: BTreeSet<i32> = agent.engines_ahead().into_iter().collect();
        if found.len() == count && agent.names("ahead").len() == count {
            return found;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{count} engines should wait: {found:?}, {:?}",
            agent.names("ahead")
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn running(agent: &Agent) -> BTreeSet<i32> {
    agent.engines().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn launches_and_wakes_use_them_once_each() {
    let (_world, mut agent, snapshot) = World::with_image(4096).await;
    assert!(agent.engines_ahead().is_empty(), "an image that nobody uses");
    let (one, two) = (spec(&snapshot), spec(&snapshot));
    let (first, second) = (one.microvm_id.as_str(), two.microvm_id.as_str());

    let launched = launch(&agent, &one, 1).await.unwrap();
    assert!(steps(&launched).contains("restore.process"), "{}", steps(&launched));
    let ahead = waiting(&agent, PER_IMAGE).await;
    let before = running(&agent);
    let launched = launch(&agent, &two, 1).await.unwrap();
    eprintln!("made ahead: {}", steps(&launched));
    assert!(!steps(&launched).contains("restore.process"), "{}", steps(&launched));
    let used: BTreeSet<i32> = running(&agent).difference(&before).copied().collect();
    assert!(used.len() == 1 && used.is_subset(&ahead), "{used:?} of {ahead:?}");
    assert_ne!(get(&agent, first, "uuid").await, get(&agent, second, "uuid").await);
    for expected in ["1", "2"] {
        assert_eq!(get(&agent, second, "count").await, expected);
    }
    let written = get(&agent, second, "write").await;

    // Asleep nothing of it is left; it wakes in another engine, with its own memory and disk.
    for round in 3..6 {
        suspend(&agent, second, 1).await.unwrap();
        assert_eq!(running(&agent), before, "nothing runs of a microVM that sleeps");
        let ahead = waiting(&agent, PER_IMAGE).await;
        assert!(ahead.is_disjoint(&used), "an engine was used twice");
        let woken = resume(&agent, &two, 1, None).await.unwrap();
        eprintln!("made ahead: {}", steps(&woken));
        assert!(!steps(&woken).contains("restore.process"), "{}", steps(&woken));
        assert_eq!(get(&agent, second, "count").await, round.to_string());
        assert_eq!(get(&agent, second, "read").await, written);
    }

    // `kill -9` leaves them; the next agent ends them, and nothing else.
    let ahead = waiting(&agent, PER_IMAGE).await;
    let running_before = running(&agent);
    agent.kill();
    assert_eq!(agent.engines_ahead().into_iter().collect::<BTreeSet<_>>(), ahead, "they outlive their agent");
    agent.start(None).await;
    assert_eq!(waiting(&agent, 0).await, BTreeSet::new());
    assert_eq!(running(&agent), running_before);
    assert_eq!(get(&agent, second, "count").await, "6", "adopted where it was moved to");
    testkit::until("no slot is left over", || async { agent.namespaces().len() <= 2 + 2 }).await;

    // An agent that is stopped takes them along; an image that is evicted too.
    launch(&agent, &spec(&snapshot), 1).await.unwrap();
    waiting(&agent, PER_IMAGE).await;
    agent.stop();
    assert!(agent.engines_ahead().is_empty());
    agent.start(None).await;
    suspend(&agent, second, 1).await.unwrap();
    resume(&agent, &two, 1, None).await.unwrap();
    waiting(&agent, PER_IMAGE).await;
    for id in agent.names("microvms") {
        terminate(&agent, &id, 1).await.unwrap();
    }
    let request = EvictImageRequest { manifest_key: snapshot.manifest_key.clone(), generation: 1 };
    client(&agent, rpc::Role::ImageBuilder).evict_image(request).await.unwrap();
    assert_eq!(waiting(&agent, 0).await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_with_one_in_hand_leaves_nothing() {
    let (_world, mut agent, snapshot) = World::with_image(4096).await;
    let one = spec(&snapshot);
    let id = one.microvm_id.as_str();
    agent.kill();
    agent.start(Some("wake-restored")).await;
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "1");
    waiting(&agent, PER_IMAGE).await;
    suspend(&agent, id, 1).await.unwrap();
    waiting(&agent, PER_IMAGE).await;
    resume(&agent, &one, 1, None).await.expect_err("the agent dies");
    agent.wait_dead().await;
    agent.start(None).await;
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Suspended);
    assert_eq!(waiting(&agent, 0).await, BTreeSet::new());
    assert!(agent.engines().is_empty());
    assert_eq!(get(&agent, id, "count").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn they_make_room_for_microvms() {
    let (_world, agent, snapshot) = World::with_image(4096).await;
    // 2048 MiB hold eight guests of 256 MiB, and then no engine that waits.
    for count in 1..=8 {
        let one = spec(&snapshot);
        launch(&agent, &one, 1).await.unwrap_or_else(|status| panic!("guest {count}: {status}"));
        if count == 5 {
            waiting(&agent, PER_IMAGE).await;
        }
    }
    assert_eq!(agent.engines().len(), 8);
    assert_eq!(waiting(&agent, 0).await, BTreeSet::new(), "there is no memory for them");
    let refused = launch(&agent, &spec(&snapshot), 1).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
}
