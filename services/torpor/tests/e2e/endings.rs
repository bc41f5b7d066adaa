//! How a microVM ends, and that the record says why.

use std::time::{Duration, Instant};

use api::microvm::v1::*;

use crate::world::{Running, World};

const SOON: Duration = Duration::from_secs(2);

async fn ends_with(microvm: &Running<'_>, reason: &str, within: Duration) {
    let began = Instant::now();
    let ended = microvm.fleet.wait_within(&microvm.id, MicrovmState::Terminated, within).await;
    assert!(ended.state_reason.contains(reason), "'{}' lacks '{reason}'", ended.state_reason);
    assert!(ended.terminate_time.is_some());
    println!("{reason}: {:?}", began.elapsed());
    assert!(microvm.engine_pid().is_none());
    let answer = microvm.try_get("/count").await.unwrap();
    assert_eq!((answer.status, answer.text()), (502, String::new()));
    assert_eq!(answer.header("x-aws-proxy-error"), Some("MICROVM_CONNECT_FAILED"));
}

#[tokio::test]
async fn the_end_of_the_app_ends_the_microvm() {
    let fleet = World::open();
    let microvm = fleet.run(fleet.app_image().await).await;
    microvm.get("/exit").await;
    ends_with(&microvm, "exited with status 3", SOON + Duration::from_millis(200)).await;
}

#[tokio::test]
async fn a_panic_and_a_power_off_of_the_guest_are_told_apart() {
    let fleet = World::open();
    let image = fleet.hooked_image().await;
    for (key, reason) in [("c", "panic"), ("o", "powered off")] {
        let microvm = fleet.run(image).await;
        microvm.get(&format!("/sysrq?key={key}")).await;
        ends_with(&microvm, reason, SOON + Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_killed_engine_ends_its_microvm_only() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let (one, two) = futures::future::join(fleet.run(image), fleet.run(image)).await;
    let pid = one.engine_pid().expect("an engine");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    ends_with(&one, "engine", SOON).await;
    assert_eq!(two.count().await, 1);
    two.terminate().await;
}

#[tokio::test]
async fn terminate_is_final_and_repeatable() {
    let fleet = World::open();
    let microvm = fleet.run(fleet.app_image().await).await;
    let ended = microvm.terminate().await;
    assert_eq!(ended.state_reason, "Success.");
    microvm.terminate().await;
    for status in [microvm.suspend().await.unwrap_err(), microvm.resume().await.unwrap_err()] {
        assert_eq!(
            status.message(),
            format!("The MicroVM {} has been terminated and its state cannot be changed.", microvm.id)
        );
        assert_eq!(api::errors::reason_of(&status).as_deref(), Some("TERMINATED"));
    }
}

#[tokio::test]
async fn the_maximum_duration_ends_even_a_sleeping_microvm() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let run = |suspend: bool| {
        let fleet = &fleet;
        async move {
            let microvm = fleet
                .run_with(image, |request| {
                    request.maximum_duration = Some(api::duration_proto(Duration::from_secs(8)));
                })
                .await
                .unwrap();
            let microvm = fleet.attach(microvm).await;
            if suspend {
                microvm.suspend().await.unwrap();
            }
            let ended =
                fleet.wait_within(&microvm.id, MicrovmState::Terminated, Duration::from_secs(20)).await;
            assert_eq!(ended.state_reason, "MicroVM exceeded maximum lifetime.");
        }
    };
    futures::future::join(run(false), run(true)).await;
}

#[tokio::test]
async fn the_suspended_window_ends_a_sleeping_microvm() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run_idle(image, Duration::from_secs(2), Duration::from_secs(2)).await;
    let ended = fleet.wait_within(&microvm.id, MicrovmState::Terminated, Duration::from_secs(20)).await;
    assert_eq!(ended.state_reason, "MicroVM exceeded maximum lifetime.");
}
