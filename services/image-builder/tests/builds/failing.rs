//! Hosts, apps, builders and build steps that fail.

use std::time::{Duration, Instant};

use api::image::v1::*;
use tonic::Code;

use crate::machine::{self, build, ended, log};
use crate::peers::BakeEnd;
use crate::world::{SNAPSHOTS, World, until};

#[tokio::test]
async fn hosts_and_apps_that_fail_are_told_apart() {
    let world = World::start().await;
    world.tiny_base().await;
    let builder = world.builder(world.settings("builder")).await;
    let mut client = builder.client.clone();
    let files = [("Dockerfile", "FROM debian-12\nCMD [\"/x\"]\n")];
    let refuse = |reason, metadata| BakeEnd::Refuse(Code::FailedPrecondition, reason, metadata);
    for (name, step, code, text) in [
        (
            "never-ready",
            refuse("HOOK_FAILED", vec![("hook", "ready"), ("outcome", "timed_out")]),
            "READY_HOOK_TIMEOUT",
            "Ready hook invocation timed out after PT30S",
        ),
        (
            "ready-500",
            refuse("HOOK_FAILED", vec![("hook", "ready"), ("http_status", "500")]),
            "HOOK_FAILED",
            "Ready hook check failed: the application returned a server error (HTTP 5xx) response.",
        ),
        (
            "exits",
            refuse("GUEST_FAILED", vec![("outcome", "app_exited"), ("exit_code", "3")]),
            "APP_EXITED",
            "The application exited with status 3 before it was ready.",
        ),
    ] {
        world.set(|script| script.bakes = vec![step]);
        let order = world.order(name, &files).await;
        let ended = build(&mut client, order).await;
        assert_eq!((ended.reason_code.as_str(), ended.state_reason.as_str()), (code, text), "{name}");
        let sizes = ended.snapshot_build.unwrap();
        assert!(sizes.code_install_size_bytes > 0, "{name}: {sizes:?}");
        assert_eq!(
            (sizes.memory_snapshot_size_bytes, sizes.disk_snapshot_size_bytes, sizes.stored_size_bytes),
            (0, 0, 0),
            "{name}"
        );
    }
    // A host that breaks is not the app's fault: the bake is done again, under a higher generation.
    world.set(|script| {
        script.bakes = vec![BakeEnd::Break];
        script.requests.clear();
        script.released = 0;
    });
    let order = world.order("again", &files).await;
    assert_eq!(build(&mut client, order).await.state(), BuildState::Successful);
    let (generations, released): (Vec<u64>, usize) = {
        let script = world.script.lock().unwrap();
        (script.requests.iter().map(|request| request.generation).collect(), script.released)
    };
    assert_eq!((generations, released), (vec![101, 102], 2));
    builder.stop().await;
}

#[tokio::test]
async fn a_dead_builders_build_is_taken_over_and_failed_when_it_dies_again() {
    let world = World::start().await;
    world.tiny_base().await;
    let first = world.settings("first");
    let mut process = world.process(&first).await;
    world.set(|script| script.bakes = vec![BakeEnd::Hang]);
    let order = world.order("app", &[("Dockerfile", "FROM debian-12\nRUN true\nCMD [\"/x\"]\n")]).await;
    process.client.create_image(order).await.unwrap();
    until("the bake hangs", || async { world.script.lock().unwrap().requests.len() == 1 }).await;
    process.kill();
    let builder = world.builder(world.settings("second")).await;
    let mut client = builder.client.clone();
    let finished = ended(&mut client, "app").await;
    assert_eq!(finished.state(), BuildState::Successful, "{}", finished.state_reason);
    assert_eq!(world.script.lock().unwrap().requests.last().unwrap().generation, 201);
    builder.stop().await;

    // What the first left on the machine goes when it starts again.
    let mut process = world.process(&first).await;
    until("the first builder has cleaned up", || async { machine::is_clean(&first.data_dir) }).await;

    // Twice is enough. Here it dies in the middle of a RUN step, whose processes must not outlive it.
    let steps = "FROM debian-12\nRUN sleep 31337\nCMD [\"/x\"]\n";
    let order = world.order("doomed", &[("Dockerfile", steps)]).await;
    process.client.create_image(order).await.unwrap();
    for _ in 1..=2 {
        until("the step runs", || async { sleepers() > 0 }).await;
        process.kill();
        until("the step is gone", || async { sleepers() == 0 }).await;
        process = world.process(&first).await;
    }
    let mut client = process.client.clone();
    let failed = ended(&mut client, "doomed").await;
    assert_eq!(failed.reason_code, "BUILDER_LOST");
    assert_eq!(failed.state_reason, "The builder stopped in the middle of the build 2 times.");
    until("no disk is left", || async { world.keys(SNAPSHOTS, "disks/").await.is_empty() }).await;
}

/// Processes of this machine that run the test's `sleep`.
fn sleepers() -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.starts_with(b"sleep\x0031337\0")
        })
        .count()
}

#[tokio::test]
async fn a_flood_of_output_is_bounded_and_a_hanging_step_is_ended() {
    let world = World::start().await;
    world.tiny_base().await;
    let mut settings = world.settings("builder");
    settings.log.bytes_max = 1 << 20;
    settings.build.timeout_seconds = 8;
    let builder = world.builder(settings).await;
    let mut client = builder.client.clone();
    // 330 MiB of output and then the end of the step.
    let flood = "FROM debian-12\nRUN timeout 5 cat /dev/zero | head -c 330000000; echo; echo flood is over\nCMD [\"/x\"]\n";
    let started = Instant::now();
    let order = world.order("flood", &[("Dockerfile", flood)]).await;
    let ended = build(&mut client, order).await;
    assert_eq!(ended.state(), BuildState::Successful, "{}", ended.state_reason);
    let lines = "FROM debian-12\nRUN while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done\nCMD [\"/x\"]\n";
    let order = world.order("hangs", &[("Dockerfile", lines)]).await;
    let ended = build(&mut client, order).await;
    assert_eq!(ended.reason_code, "BUILD_TIMEOUT", "{}", ended.state_reason);
    let (lines, _) = log(&mut client, &ended.build_id, false).await;
    let size: usize = lines.iter().map(String::len).sum();
    assert!(size < 2 << 20, "{size}");
    assert!(lines.iter().any(|line| line.contains("the rest is not kept")));
    assert!(started.elapsed() < Duration::from_secs(60));
    builder.stop().await;
}
