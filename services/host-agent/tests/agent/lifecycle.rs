//! The path every microVM goes: bake, launch, tunnel, suspend, wake, end.

use std::time::Duration;

use api::errors::reason_of;
use api::host::v1::{ObservedMicrovm, StaleMicrovm};
use api::hostagent::v1::{Egress, EgressPolicy, egress};
use api::microvm::v1::MicrovmState;
use api::tunnel::v1::OpenStatus;
use rpc::Role;
use tonic::Code;

use crate::calls::*;
use crate::world::{BUCKET, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_sleeps_and_wakes_with_its_memory_and_disk() {
    let world = World::start().await;
    let mut agent = world.agent(4096).await;
    let disk = store_disk(&world).await;
    let names = ["ready", "validate", "run", "resume", "suspend", "terminate"];
    let baked = bake(&agent, bake_request(disk, &[("GREETING", "caller")], Some(hooks(&names)))).await;
    let result = baked.result.unwrap_or_else(|status| panic!("{status:?} {:?}", baked.lines));
    assert_eq!(baked.steps, ["fetch", "boot", "ready", "snapshot", "validate", "upload"]);
    assert!(
        baked.lines.iter().any(|line| line == "app: starting with GREETING=caller image=app"),
        "{:?}",
        baked.lines
    );
    let snapshot = result.snapshot.unwrap();
    eprintln!(
        "bake: memory {} B, disk {} B, stored {} B",
        result.memory_bytes, result.disk_difference_bytes, result.stored_bytes
    );
    assert!(agent.engines().is_empty() && agent.names("bakes").is_empty());

    // Two clones, told apart.
    let mut one = spec(&snapshot);
    one.hooks = Some(hooks(&names));
    one.run_hook_payload = "{\"a\":1}".to_owned();
    let two = spec(&snapshot);
    let launched = launch(&agent, &one, 1).await.unwrap();
    eprintln!("{}", steps(&launched));
    assert_eq!(launched.state(), MicrovmState::Running);
    assert_eq!(launch(&agent, &one, 1).await.unwrap().state(), MicrovmState::Running, "a repeat");
    eprintln!("{}", steps(&launch(&agent, &two, 1).await.unwrap()));
    let (id, other) = (one.microvm_id.as_str(), two.microvm_id.as_str());
    assert_ne!(get(&agent, id, "uuid").await, get(&agent, other, "uuid").await);
    assert_ne!(get(&agent, id, "host").await, get(&agent, other, "host").await);
    let told = get(&agent, id, "hooks").await;
    assert!(
        told.contains(&format!(
            "hook: run {{\"microvmId\":\"{id}\",\"runHookPayload\":\"{{\\\"a\\\":1}}\"}}"
        )),
        "{told}"
    );
    for expected in ["1", "2", "3"] {
        assert_eq!(get(&agent, id, "count").await, expected);
    }
    let written = get(&agent, id, "write").await;

    // Asleep: no process, no slot; both copies appear.
    let suspended = suspend(&agent, id, 1).await.unwrap();
    eprintln!("{} difference {} B", steps(&suspended), suspended.snapshot.as_ref().unwrap().difference_bytes);
    assert_eq!(suspended.state(), MicrovmState::Suspended);
    assert_eq!(agent.engines().len(), 1);
    assert!(suspended.snapshot.as_ref().unwrap().difference_bytes < 12 << 20);
    let (response, _) = open(&agent, id, 8080, false).await;
    assert_eq!(response.status(), OpenStatus::Suspended);
    let (uploaded, _) =
        until(&agent, id, |one| one.snapshot.as_ref().is_some_and(|copies| copies.remote)).await;
    assert!(uploaded.snapshot.unwrap().manifest_key.contains("/g1/s1/"));

    // Awake with the next request; a crowd wakes it once.
    let crowd = futures::future::join_all((0..8).map(|_| get(&agent, id, "uuid"))).await;
    assert!(crowd.iter().all(|text| text.len() == 36), "{crowd:?}");
    assert_eq!(get(&agent, id, "count").await, "4");
    assert_eq!(get(&agent, id, "read").await, written);
    let woken = observed(&agent).await[id].clone();
    eprintln!("{}", steps(&woken));
    assert_eq!(woken.last_transition.as_ref().unwrap().kind, "wake");
    assert_eq!(agent.log_text().matches("from=Waking to=Running").count(), 1);
    for _ in 0..3 {
        let suspended = suspend(&agent, id, 1).await.unwrap();
        eprintln!("{}", steps(&suspended));
        let (_, response) = page(&agent, id, "count").await;
        assert!(response.phases.iter().any(|phase| phase.name == "restore"), "{response:?}");
        eprintln!("{}", steps(&observed(&agent).await[id]));
    }
    let metering = observed(&agent).await[id].metering.unwrap();
    assert!(
        metering.vcpu_seconds > 0.0 && metering.baseline_gib_seconds > 0.0 && metering.endpoint_bytes > 0
    );

    // A port that nothing listens on, an older command, a stranger.
    assert_eq!(open(&agent, id, 81, true).await.0.status(), OpenStatus::PortClosed);
    let raised = resume(&agent, &one, 5, None).await.unwrap();
    assert_eq!((raised.generation, raised.state()), (5, MicrovmState::Running));
    let stale = suspend(&agent, id, 4).await.unwrap_err();
    assert_eq!(reason_of(&stale).as_deref(), Some("STALE_GENERATION"));
    let stranger = client(&agent, Role::EdgeProxy)
        .suspend(api::hostagent::v1::SuspendRequest {
            microvm_id: id.to_owned(),
            generation: 5,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(stranger.code(), Code::PermissionDenied);

    // An agent that is stopped or killed leaves microVMs alone.
    for round in 0..2 {
        if round == 0 {
            agent.stop()
        } else {
            agent.kill()
        }
        agent.start(None).await;
        assert_eq!(observed(&agent).await[id].state(), MicrovmState::Running);
        let before: u32 = get(&agent, id, "count").await.parse().unwrap();
        assert_eq!(get(&agent, id, "count").await, (before + 1).to_string());
        assert_eq!(agent.engines().len(), 2);
    }

    // The end: nothing is left here or in S3, and it is reported.
    let ended = terminate(&agent, id, 5).await.unwrap();
    assert_eq!((ended.state(), ended.state_reason.as_str()), (MicrovmState::Terminated, "The test is over."));
    terminate(&agent, id, 5).await.expect("a repeat succeeds");
    terminate(&agent, other, 1).await.unwrap();
    assert!(agent.engines().is_empty() && agent.names("microvms").is_empty());
    let began = std::time::Instant::now();
    loop {
        let left = world.s3.store().list_prefix(BUCKET, &format!("microvms/{id}/"), 1000).await.unwrap();
        let known = world.reports.lock().unwrap().latest.get(id).map(|one| one.state());
        if left.is_empty() && known == Some(MicrovmState::Terminated) {
            break;
        }
        assert!(began.elapsed() < crate::world::PATIENCE, "{} objects, {known:?}", left.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idle_sleep_by_themselves_and_wake_on_another_host() {
    let (world, agent, snapshot) = World::with_image(4096).await;
    let one = sleepy(spec(&snapshot), Duration::from_secs(2));
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "1");
    let (_, idle) = until_state(&agent, id, MicrovmState::Suspended).await;
    eprintln!("asleep {idle:?} after the last request");
    assert!(idle > Duration::from_millis(1500), "{idle:?}");
    let (uploaded, _) =
        until(&agent, id, |one| one.snapshot.as_ref().is_some_and(|copies| copies.remote)).await;

    // A host that never saw it: image and difference come from S3.
    let elsewhere = world.agent(4096).await;
    let nowhere = resume(&elsewhere, &one, 2, None).await.unwrap_err();
    assert_eq!(reason_of(&nowhere).as_deref(), Some("NOT_HERE"));
    let first = uploaded.snapshot.unwrap();
    let woken = resume(&elsewhere, &one, 2, Some(first.clone())).await.unwrap();
    eprintln!("elsewhere {}", steps(&woken));
    assert_eq!(get(&elsewhere, id, "count").await, "2");

    // The first host hears that its copy is stale and drops it, without touching S3.
    let stored =
        || async { world.s3.store().list_prefix(BUCKET, &format!("microvms/{id}/"), 1000).await.unwrap() };
    let before = stored().await;
    assert!(!before.is_empty());
    let stale = StaleMicrovm { microvm_id: id.to_owned(), generation: 1 };
    world.reports.lock().unwrap().stale.insert(agent.host_id.clone(), vec![stale]);
    testkit::until("the copy is dropped", || async { agent.names("microvms").is_empty() }).await;
    assert!(
        agent.names("ended").is_empty(),
        "a stale one leaves no report, or its host would remove it from S3"
    );
    assert_eq!(stored().await.len(), before.len());
    assert_eq!(get(&elsewhere, id, "count").await, "3", "the one that was placed anew runs on");

    // Before it is placed elsewhere again, its host drops it, unless it is awake or has slept again since.
    let refused = give_up(&elsewhere, id, 2, &first).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("STATE_CONFLICT"), "{refused}");
    assert_eq!(get(&elsewhere, id, "count").await, "4");
    suspend(&elsewhere, id, 2).await.unwrap();
    let in_s3 =
        |one: &ObservedMicrovm| one.snapshot.as_ref().is_some_and(|it| it.remote && it.generation == 2);
    let (uploaded, _) = until(&elsewhere, id, in_s3).await;
    give_up(&elsewhere, id, 2, &first).await.unwrap_err();
    let before = stored().await;
    let uploaded = uploaded.snapshot.unwrap();
    give_up(&elsewhere, id, 2, &uploaded).await.unwrap();
    assert!(elsewhere.names("microvms").is_empty() && elsewhere.names("ended").is_empty());
    assert_eq!(stored().await.len(), before.len());
    assert!(observed(&elsewhere).await.is_empty(), "its record lives on: nothing is said of its end");

    // What was on its way meanwhile: a wake of the placement that it gave up, and anything sent under a lease of before.
    let late = resume(&elsewhere, &one, 2, Some(uploaded.clone())).await.unwrap_err();
    assert_eq!(reason_of(&late).as_deref(), Some("NOT_HERE"), "{late}");
    let sent_before = resume_under(&elsewhere, (&one, 3), Some(uploaded.clone()), 1).await.unwrap_err();
    assert_eq!(
        (sent_before.code(), reason_of(&sent_before).as_deref()),
        (Code::Unavailable, Some("LEASE_CHANGED"))
    );
    assert!(elsewhere.names("microvms").is_empty());
    resume(&elsewhere, &one, 3, Some(uploaded)).await.unwrap();
    assert_eq!(get(&elsewhere, id, "count").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_egress_policy_is_in_force_for_as_long_as_the_guest_runs() {
    const ALLOWED: &str = "ip daddr 45.1.2.0/24 meta l4proto tcp accept";
    let (_world, mut agent, snapshot) = World::with_image(4096).await;
    let mut one = spec(&snapshot);
    let policy = |allow: &[&str]| {
        let policy = EgressPolicy {
            allow_cidrs: allow.iter().map(|text| (*text).to_owned()).collect(),
            deny_cidrs: vec!["45.1.2.128/25".to_owned()],
        };
        Some(Egress { reach: Some(egress::Reach::Policy(policy)) })
    };
    one.egress = policy(&["45.1.2.0/24", "45.1.2.0"]);
    let refused = launch(&agent, &one, 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("spec.egress.policy.allow_cidrs[1]"), "{refused}");

    one.egress = policy(&["45.1.2.0/24"]);
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    launch(&agent, &spec(&snapshot), 1).await.unwrap();
    assert_eq!(agent.slots_with_rule(ALLOWED), 1, "its own slot and no other");
    assert_eq!(get(&agent, id, "count").await, "1", "its endpoint is another matter");
    agent.kill();
    assert_eq!(agent.slots_with_rule(ALLOWED), 1, "without an agent");
    agent.start(None).await;
    assert_eq!(get(&agent, id, "count").await, "2");
    assert_eq!(agent.slots_with_rule(ALLOWED), 1, "adopted");
    suspend(&agent, id, 1).await.unwrap();
    testkit::until("the slot goes with its guest", || async { agent.slots_with_rule(ALLOWED) == 0 }).await;
    assert_eq!(get(&agent, id, "count").await, "3");
    assert_eq!(agent.slots_with_rule(ALLOWED), 1, "woken");
    terminate(&agent, id, 1).await.unwrap();
}
