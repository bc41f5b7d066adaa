//! Run, sleep, wake, end.

use std::collections::HashMap;
use std::time::Duration;

use api::microvm::v1::*;
use client::{AUTH_HEADER, HttpVersion};

use crate::world::World;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_microvm_sleeps_when_idle_and_wakes_with_the_next_request() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run_idle(image, Duration::from_secs(2), Duration::from_secs(600)).await;
    assert_eq!(microvm.count().await, 1);
    let pid = microvm.get("/count").await["pid"].clone();
    assert_eq!(microvm.get("/file").await["count"], 1);
    assert!(microvm.engine_pid().is_some());

    let asleep = fleet.wait(&microvm.id, MicrovmState::Suspended).await;
    assert!(microvm.engine_pid().is_none(), "a sleeping microVM has no process");
    let copies = asleep.snapshot.unwrap();
    assert!(copies.local, "the host's copy is what makes it SUSPENDED");
    assert!(copies.difference_bytes < 12 * MIB, "difference of {} bytes", copies.difference_bytes);

    let answer = microvm.try_get("/count").await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["count"], 3, "memory is intact");
    assert_eq!(answer.json()["pid"], pid, "processes are intact");
    let timing = answer.header("server-timing").expect("a wake shows its phases").to_owned();
    assert!(timing.contains("restore") || timing.contains("process"), "{timing}");
    assert_eq!(microvm.get("/file").await["count"], 2, "the disk is intact");
    microvm.terminate().await;
}

#[tokio::test]
async fn an_app_keeps_its_microvm_awake_until_the_lease_is_given_up() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let idle = Duration::from_secs(2);
    let microvm = fleet.run_idle(image, idle, Duration::from_secs(600)).await;
    assert_eq!(microvm.get("/awake?seconds=28801").await["status"], 400);
    assert_eq!(microvm.get("/awake?seconds=600").await["status"], 202);
    let within = Duration::from_secs(10);
    let leased = fleet
        .until("the lease", within, || async {
            microvm.idleness().await.filter(|idleness| idleness.awake_reason() == AwakeReason::Lease)
        })
        .await;
    assert_eq!(leased.sleep_time, leased.lease_end_time);
    tokio::time::sleep(idle * 2).await;
    assert_eq!(microvm.record().await.state(), MicrovmState::Running);

    let release = KeepMicrovmAwakeRequest { microvm_id: microvm.id.clone(), duration: None, release: true };
    // It may have fallen asleep by the time of the answer.
    let released = fleet.context.call(release).await.unwrap().microvm.unwrap().idleness;
    assert_eq!(released.and_then(|idleness| idleness.lease_end_time), None);
    let asleep = fleet.wait(&microvm.id, MicrovmState::Suspended).await;
    let last = asleep.last_transition.unwrap();
    assert_eq!((last.kind.as_str(), last.cause()), ("suspend", TransitionCause::Idle));
    assert!(last.reason.starts_with("idle for "), "{}", last.reason);
    assert_eq!(asleep.state_reason, "", "the AWS API shows none on one that sleeps well");
    microvm.terminate().await;
}

#[tokio::test]
async fn suspend_and_resume_by_call_keep_the_endpoint_and_the_session() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run(image).await;
    for round in 1..=3 {
        assert_eq!(microvm.count().await, round);
        let asleep = microvm.suspend().await.unwrap();
        assert_eq!(asleep.state(), MicrovmState::Suspended);
        assert_eq!(microvm.suspend().await.unwrap().state(), MicrovmState::Suspended, "repeating succeeds");
        let answer = microvm.try_get("/count").await.unwrap();
        assert_eq!(
            (answer.status, answer.text()),
            (502, String::new()),
            "no idle policy, no wake by request"
        );
        let awake = microvm.resume().await.unwrap();
        assert_eq!(awake.state(), MicrovmState::Running);
        assert_eq!(awake.endpoint, microvm.endpoint);
    }
    assert_eq!(microvm.count().await, 4);
    let remote = fleet
        .until("the remote copy", Duration::from_secs(30), || async {
            microvm.record().await.snapshot.filter(|copies| copies.sequence >= 1)
        })
        .await;
    assert!(remote.sequence >= 3);
    microvm.terminate().await;
}

#[tokio::test]
async fn many_requests_at_once_wake_a_microvm_once() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run_idle(image, Duration::from_secs(600), Duration::from_secs(600)).await;
    assert_eq!(microvm.count().await, 1);
    let before = microvm.suspend().await.unwrap();
    let answers = futures::future::join_all((0..16).map(|_| microvm.count())).await;
    let mut seen = answers.clone();
    seen.sort_unstable();
    assert_eq!(seen, (2..18).collect::<Vec<u64>>(), "each request was answered once, by one microVM");
    let after = microvm.record().await;
    assert_eq!(after.generation, before.generation);
    assert_eq!(after.host_id, before.host_id);
    microvm.terminate().await;
}

#[tokio::test]
async fn hooks_are_called_in_their_places_from_guest_loopback() {
    let fleet = World::open();
    let image = fleet.hooked_image().await;
    let microvm =
        fleet.run_with(image, |request| request.run_hook_payload = "{\"a\":1}".to_owned()).await.unwrap();
    let microvm = fleet.attach(microvm).await;
    microvm.suspend().await.unwrap();
    microvm.resume().await.unwrap();
    let hooks = microvm.get("/hooks").await["hooks"].clone();
    let names: Vec<_> = hooks.as_array().unwrap().iter().map(|hook| hook[0].as_str().unwrap()).collect();
    assert_eq!(names, ["ready", "run", "suspend", "resume"], "validate ran on another clone");
    for hook in hooks.as_array().unwrap() {
        assert_eq!(hook[2], "127.0.0.1");
    }
    let body: serde_json::Value = serde_json::from_str(hooks[1][1].as_str().unwrap()).unwrap();
    assert_eq!(body["microvmId"], microvm.id);
    assert_eq!(body["runHookPayload"], "{\"a\":1}", "a string inside JSON");
    microvm.terminate().await;
}

#[tokio::test]
async fn http_1_and_2_reach_the_app_and_the_token_does_not() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run(image).await;
    let headers = HashMap::from([
        (AUTH_HEADER, microvm.token.as_str()),
        ("x-aws-proxy-port", "8080"),
        ("x-mine", "kept"),
    ]);
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let answer = fleet.request(&microvm.endpoint, "/headers", &headers, version).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.header("x-amzn-requestid").is_some());
        let seen = answer.json()["headers"].clone();
        assert_eq!(seen["x-mine"], "kept");
        assert!(seen.as_object().unwrap().keys().all(|name| !name.starts_with("x-aws-proxy-")), "{seen}");
    }
    microvm.terminate().await;
}

#[tokio::test]
async fn the_app_gets_its_environment_and_its_output_is_logged() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run(image).await;
    let environment = microvm.get("/environment").await["environment"].clone();
    assert_eq!(environment["AWS_LAMBDA_MICROVM_IMAGE_NAME"], image);
    assert_eq!(environment["AWS_LAMBDA_MICROVM_IMAGE_VERSION"], "1.0");
    assert!(environment.get("SSL_CERT_FILE").is_none(), "the build's CA settings stay in the build");
    microvm.get("/say?text=hello-from-the-app").await;
    microvm.suspend().await.unwrap();
    microvm.resume().await.unwrap();
    microvm.get("/say?text=hello-again").await;
    let client = fleet.context.microvms().unwrap();
    let lines = fleet
        .until("both lines in the log", Duration::from_secs(20), || {
            let mut client = client.clone();
            let request =
                FollowMicrovmLogRequest { microvm_id: microvm.id.clone(), from_sequence: 0, follow: false };
            async move {
                let mut stream = client.follow_microvm_log(request).await.ok()?.into_inner();
                let mut lines = Vec::new();
                while let Some(message) = stream.message().await.ok()? {
                    lines.extend(message.lines);
                }
                let has = |text: &str| lines.iter().any(|line: &api::common::v1::LogLine| line.text == text);
                (has("hello-from-the-app") && has("hello-again")).then_some(lines)
            }
        })
        .await;
    assert!(lines.windows(2).all(|pair| pair[0].sequence < pair[1].sequence), "sequences rise");
    microvm.terminate().await;
    microvm.record().await;
}

#[tokio::test]
async fn a_client_token_names_one_microvm() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let token = uuid::Uuid::new_v4().to_string();
    let run = || fleet.run_with(image, |request| request.client_token = token.clone());
    let (first, second) = futures::future::join(run(), run()).await;
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.microvm_id, second.microvm_id);
    let conflict = fleet
        .run_with(image, |request| {
            request.client_token = token.clone();
            request.maximum_duration = Some(api::duration_proto(Duration::from_secs(77)));
        })
        .await
        .unwrap_err();
    assert_eq!(api::errors::reason_of(&conflict).as_deref(), Some("CLIENT_TOKEN_CONFLICT"));
    fleet.attach(first).await.terminate().await;
}

#[tokio::test]
async fn a_flood_of_output_harms_nobody() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let microvm = fleet.run(image).await;
    microvm.get("/flood?seconds=3").await;
    let other = fleet.run(image).await;
    for round in 1..=5 {
        assert_eq!(microvm.count().await, round);
        assert_eq!(other.count().await, round);
    }
    other.terminate().await;
    microvm.suspend().await.unwrap();
    microvm.terminate().await;
}
