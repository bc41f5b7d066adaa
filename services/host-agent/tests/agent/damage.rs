//! Full disks and flipped bytes: no session is lost, nothing starts on bad
//! memory, and the message names what to look at.

use std::time::{Duration, Instant};

use api::errors::reason_of;
use api::microvm::v1::MicrovmState;
use rpc::Role;
use tonic::Code;

use crate::calls::*;
use crate::world::{BUCKET, PATIENCE, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_the_session_running() {
    let world = World::start().await;
    let agent = world.agent_with(1024, "[disk]\nreserve_percent_max = 0\n").await;
    let snapshot = image(&world, &agent, None).await;
    let one = spec(&snapshot);
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "1");
    let filler = agent.data.join("filler");
    fill(&filler);
    let refused = suspend(&agent, id, 1).await.unwrap_err();
    eprintln!("{}", refused.message());
    assert_eq!(
        (refused.code(), reason_of(&refused).as_deref()),
        (Code::ResourceExhausted, Some("DISK_FULL"))
    );
    assert!(refused.message().contains(&agent.data.display().to_string()), "{}", refused.message());
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Running);
    assert_eq!(get(&agent, id, "count").await, "2");
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(suspend(&agent, id, 1).await.unwrap().state(), MicrovmState::Suspended);
    assert_eq!(get(&agent, id, "count").await, "3");
    terminate(&agent, id, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_host_takes_nothing_new_and_goes_on_with_what_it_has() {
    let (_world, mut agent, snapshot) = World::with_image(1024).await;
    let (one, two) = (spec(&snapshot), spec(&snapshot));
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "1");
    let reserve = agent.data.join("reserve");
    wait_for("a reserve", || std::fs::metadata(&reserve).is_ok_and(|data| data.len() > 64 << 20)).await;
    let fillers = [agent.data.join("filler-1"), agent.data.join("filler-2")];
    fill(&fillers[0]);

    let refused = launch(&agent, &two, 1).await.unwrap_err();
    eprintln!("{}", refused.message());
    assert_eq!(reason_of(&refused).as_deref(), Some("INSUFFICIENT_CAPACITY"));
    assert!(refused.message().contains("disk"), "{}", refused.message());
    // Out of the reserve.
    assert_eq!(suspend(&agent, id, 1).await.unwrap().state(), MicrovmState::Suspended);
    assert_eq!(get(&agent, id, "count").await, "2");

    fill(&fillers[1]);
    assert_eq!(get(&agent, id, "writing").await, "ok");
    until(&agent, id, |one| one.state_reason.contains("disk is full")).await;
    let stands = Instant::now();
    // The next agent starts on a full disk, and finds the guest as it stands.
    agent.kill();
    agent.start(None).await;
    let (found, _) = until(&agent, id, |one| one.state_reason.contains("disk is full")).await;
    assert_eq!(found.state(), MicrovmState::Running);
    let refused = suspend(&agent, id, 1).await.unwrap_err();
    eprintln!("{}", refused.message());
    assert_eq!(reason_of(&refused).as_deref(), Some("DISK_FULL"));
    assert!(refused.message().contains("stands still"), "{}", refused.message());
    // Long enough for its clock to be told from a right one.
    wait_for("time to pass", || stands.elapsed() > Duration::from_secs(3)).await;

    fillers.iter().for_each(|filler| std::fs::remove_file(filler).unwrap());
    let (went_on, _) = until(&agent, id, |one| one.state_reason.is_empty()).await;
    assert_eq!(went_on.state(), MicrovmState::Running);
    let before = seconds_now();
    let clock: u64 = get(&agent, id, "date").await.parse().unwrap();
    assert!((before - 1..=seconds_now() + 1).contains(&clock), "{clock} when it was {before}");
    assert_eq!(get(&agent, id, "count").await, "3");
    assert_eq!(suspend(&agent, id, 1).await.unwrap().state(), MicrovmState::Suspended);
    assert_eq!(launch(&agent, &two, 1).await.unwrap().state(), MicrovmState::Running);
    for id in [id, two.microvm_id.as_str()] {
        terminate(&agent, id, 1).await.unwrap();
    }
}

fn seconds_now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Takes all room but a little.
fn fill(path: &std::path::Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    let block = vec![1u8; 1 << 20];
    while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
    while file.write_all(&block[..4096]).and_then(|()| file.sync_data()).is_ok() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_on_bad_bytes() {
    let (world, agent, snapshot) = World::with_image(2048).await;
    let evict =
        api::hostagent::v1::EvictImageRequest { manifest_key: snapshot.manifest_key.clone(), generation: 0 };
    client(&agent, Role::Scheduler).evict_image(evict).await.unwrap();
    assert!(agent.names("image-snapshots").is_empty());
    let prefix = snapshot.manifest_key.trim_end_matches("manifest.json");
    let chunks = world.s3.store().list_prefix(BUCKET, &format!("{prefix}memory/"), 1000).await.unwrap();
    let key = &chunks[chunks.len() / 2].key;
    let path = world.s3.object_path(BUCKET, key);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let one = spec(&snapshot);
    let refused = launch(&agent, &one, 1).await.unwrap_err();
    eprintln!("{}", refused.message());
    assert_eq!((refused.code(), reason_of(&refused).as_deref()), (Code::DataLoss, Some("CORRUPT_OBJECT")));
    assert!(refused.message().contains(key.as_str()), "{}", refused.message());
    assert!(
        agent.engines().is_empty()
            && agent.names("microvms").is_empty()
            && agent.names("image-snapshots").is_empty()
    );
    std::fs::write(&path, &good).unwrap();
    let launched = launch(&agent, &one, 1).await.unwrap();
    eprintln!("from S3 {}", steps(&launched));
    assert_eq!(get(&agent, &one.microvm_id, "count").await, "1");
    terminate(&agent, &one.microvm_id, 1).await.unwrap();
}
