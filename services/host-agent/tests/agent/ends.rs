//! Ends nobody asked for, and bakes that cannot succeed: a reason within two seconds, and nothing left.

use std::time::Duration;

use api::errors::reason_of;
use api::hostagent::v1::BakeRequest;
use api::microvm::v1::MicrovmState;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::calls::*;
use crate::world::World;

/// How long after a guest's end its record may still say otherwise.
const NOTICED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn every_end_has_its_reason() {
    let (_world, agent, snapshot) = World::with_image(4096).await;
    for (cause, reason) in [
        ("exit", "The application exited with status 3."),
        ("off", "The guest powered off."),
        ("panic", "The guest kernel panicked: sysrq triggered crash"),
        ("engine", "The engine process was killed (signal 9)."),
    ] {
        let one = spec(&snapshot);
        let id = one.microvm_id.as_str();
        launch(&agent, &one, 1).await.unwrap();
        assert_eq!(get(&agent, id, "count").await, "1");
        if cause == "engine" {
            let pid = nix::unistd::Pid::from_raw(agent.engines()[0]);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        } else {
            get(&agent, id, cause).await;
        }
        let (ended, took) = until_state(&agent, id, MicrovmState::Terminated).await;
        eprintln!("{cause}: {} after {took:?}", ended.state_reason);
        assert_eq!(ended.state_reason, reason);
        assert!(took < NOTICED, "{cause}: {took:?}");
        assert!(agent.engines().is_empty() && agent.names("microvms").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_that_fail_say_so() {
    let world = World::start().await;
    let agent = world.agent(4096).await;
    let disk = store_disk(&world).await;

    // A run hook that refuses ends the microVM; a suspend hook that refuses leaves it running.
    let baked = bake(&agent, bake_request(disk.clone(), &[("HOOK_run", "500")], None)).await;
    let snapshot = baked.result.unwrap().snapshot.unwrap();
    let mut one = spec(&snapshot);
    one.hooks = Some(hooks(&["run"]));
    let refused = launch(&agent, &one, 1).await.unwrap_err();
    let sentence = "Run lifecycle hook returned HTTP status 500. Please check your hook endpoint and application logs for more details.";
    assert_eq!((reason_of(&refused).as_deref(), refused.message()), (Some("HOOK_FAILED"), sentence));
    assert!(agent.engines().is_empty() && agent.names("microvms").is_empty());
    let lines = log_lines(&agent, &one.microvm_id).await;
    assert!(lines.contains(&format!("launch failed: {sentence}")), "{lines:?}");

    let mut two = spec(&snapshot);
    two.hooks = Some(hooks(&["suspend", "resume"]));
    let id = two.microvm_id.as_str();
    launch(&agent, &two, 1).await.unwrap();
    assert_eq!(get(&agent, id, "set?suspend=500").await, "ok");
    let refused = suspend(&agent, id, 1).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("HOOK_FAILED"));
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Running);
    assert_eq!(get(&agent, id, "set?suspend=200").await, "ok");
    assert_eq!(get(&agent, id, "set?resume=500").await, "ok");
    suspend(&agent, id, 1).await.unwrap();
    // A resume hook that refuses leaves it asleep, and the snapshot as it was.
    let refused = resume(&agent, &two, 1, None).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("HOOK_FAILED"));
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Suspended);
    assert!(agent.engines().is_empty());
    let lines = log_lines(&agent, id).await;
    let failed = "wake failed: Resume lifecycle hook returned HTTP status 500.";
    assert!(lines.iter().any(|line| line.starts_with(failed)), "{lines:?}");
    two.hooks = None;
    resume(&agent, &two, 1, None).await.unwrap();
    assert_eq!(get(&agent, id, "count").await, "1");

    // Bakes: an app that exits, a hook that refuses, a hook that never agrees.
    for (environment, names, reason, metadata) in [
        (("EXIT_AT_ONCE", "3"), &[][..], "GUEST_FAILED", ("exit_code", "3")),
        (("HOOK_ready", "500"), &["ready"][..], "HOOK_FAILED", ("http_status", "500")),
        (("HOOK_ready", "503"), &["ready"][..], "HOOK_FAILED", ("outcome", "timed_out")),
        (("HOOK_validate", "500"), &["validate"][..], "HOOK_FAILED", ("hook", "validate")),
    ] {
        let mut wanted = hooks(names);
        if environment.1 == "503" {
            wanted.ready.as_mut().unwrap().timeout = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        }
        let request = bake_request(disk.clone(), &[environment], Some(wanted));
        let prefix = request.destination_prefix.clone();
        let baked = bake(&agent, request).await;
        let status = baked.result.unwrap_err();
        eprintln!("{environment:?}: {}", status.message());
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert_eq!(reason_of(&status).as_deref(), Some(reason), "{environment:?}");
        let details = status.get_details_error_info().unwrap();
        assert_eq!(details.metadata.get(metadata.0).map(String::as_str), Some(metadata.1), "{details:?}");
        let stored = world.s3.store().list_prefix(crate::world::BUCKET, &prefix, 1000).await.unwrap();
        assert!(stored.is_empty() && agent.names("bakes").is_empty());
    }
    terminate(&agent, id, 1).await.unwrap();
    assert!(agent.engines().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_not_up_in_time_is_baked_with_a_warning() {
    let world = World::start().await;
    let agent = world.agent(4096).await;
    let disk = store_disk(&world).await;
    let settle_timeout = Some(api::duration_proto(Duration::from_secs(1)));
    let late = BakeRequest { settle_timeout, ..bake_request(disk, &[("NEVER_LISTEN", "1")], None) };
    let baked = bake(&agent, late).await;
    let warnings = baked.result.unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("on port 8080 within 1 s"), "{warnings:?}");
    assert!(baked.lines.contains(&warnings[0]), "{:?}", baked.lines);
}
