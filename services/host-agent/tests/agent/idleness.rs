//! Why microVMs sleep and what keeps them awake, and what becomes of requests around the moment.

use std::time::{Duration, Instant};

use api::common::v1::AwakeWhile;
use api::host::v1::ObservedMicrovm;
use api::hostagent::v1::MicrovmSpec;
use api::microvm::v1::{AwakeReason, MicrovmState, TransitionCause};
use api::tunnel::v1::{OpenResponse, OpenStatus};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::app_disk::{ECHO_PORT, SLOW_PORT};
use crate::calls::*;
use crate::world::{Agent, PATIENCE, World};

const IDLE: Duration = Duration::from_secs(2);
/// Longer than any microVM of these tests is looked at.
const LONG: Duration = Duration::from_secs(600);
/// How long the suspend and resume hooks take where they are slow.
const HOOK_SECONDS: u32 = 3;

fn why(one: &ObservedMicrovm) -> (TransitionCause, String) {
    let last = one.last_transition.clone().unwrap();
    (last.cause(), last.reason)
}

fn awake_while(spec: MicrovmSpec, awake_while: AwakeWhile) -> MicrovmSpec {
    let mut spec = sleepy(spec, IDLE);
    spec.idle_policy.as_mut().unwrap().awake_while = Some(awake_while);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sleep_and_wake_says_why_and_a_lease_survives_the_agent() {
    let (_world, mut agent, snapshot) = World::with_image(4096).await;
    let one = sleepy(spec(&snapshot), IDLE);
    let id = one.microvm_id.as_str();
    let launched = launch(&agent, &one, 1).await.unwrap();
    assert_eq!(why(&launched).0, TransitionCause::Requested);
    assert_eq!(get(&agent, id, "count").await, "1");
    let awake = idleness(&agent, id).await.unwrap();
    assert_eq!(awake.awake_reason(), AwakeReason::Activity);
    assert!(awake.sleep_time.is_some() && awake.lease_end_time.is_none(), "{awake:?}");
    let (asleep, _) = until_state(&agent, id, MicrovmState::Suspended).await;
    let (cause, reason) = why(&asleep);
    assert_eq!((cause, asleep.state_reason.as_str()), (TransitionCause::Idle, ""));
    assert!(reason.starts_with("idle for 2 s since its last request"), "{reason}");
    assert_eq!(idleness(&agent, id).await, None);
    let refused = keep_awake(&agent, id, Some(LONG)).await.unwrap_err();
    assert_eq!(api::errors::reason_of(&refused).as_deref(), Some("STATE_CONFLICT"));

    // Awake by a request, and kept so by a lease, of which the longer counts.
    assert_eq!(get(&agent, id, "count").await, "2");
    assert_eq!(why(&observed(&agent).await[id]).0, TransitionCause::Traffic);
    let leased = keep_awake(&agent, id, Some(LONG)).await.unwrap().unwrap();
    assert_eq!(leased.awake_reason(), AwakeReason::Lease);
    let shorter = keep_awake(&agent, id, Some(Duration::from_secs(1))).await.unwrap().unwrap();
    assert_eq!(shorter.lease_end_time.unwrap().seconds, leased.lease_end_time.unwrap().seconds);
    agent.kill();
    agent.start(None).await;
    let adopted = idleness(&agent, id).await.unwrap();
    assert_eq!(adopted.awake_reason(), AwakeReason::Lease);
    assert!(adopted.lease_end_time.unwrap().seconds.abs_diff(leased.lease_end_time.unwrap().seconds) <= 1);
    // Longer than it may be idle, which it is all the while.
    tokio::time::sleep(IDLE * 2).await;
    assert_eq!(observed(&agent).await[id].state(), MicrovmState::Running);
    // It may have fallen asleep by the time of the answer.
    let released = keep_awake(&agent, id, None).await.unwrap();
    assert_eq!(released.and_then(|idleness| idleness.lease_end_time), None);
    let (asleep, _) = until_state(&agent, id, MicrovmState::Suspended).await;
    assert_eq!(why(&asleep).0, TransitionCause::Idle);

    // A suspend that is asked for does not wait for a lease, and ends it.
    resume(&agent, &one, 1, None).await.unwrap();
    assert_eq!(why(&observed(&agent).await[id]).0, TransitionCause::Requested);
    keep_awake(&agent, id, Some(LONG)).await.unwrap();
    let asleep = suspend(&agent, id, 1).await.unwrap();
    assert_eq!(why(&asleep), (TransitionCause::Requested, "asked for by a caller".to_owned()));
    resume(&agent, &one, 1, None).await.unwrap();
    assert_eq!(idleness(&agent, id).await.unwrap().lease_end_time, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_keeps_it_awake_where_its_policy_says_so() {
    let (_world, agent, snapshot) = World::with_image(4096).await;
    let kept = awake_while(spec(&snapshot), AwakeWhile { stream: true, ..AwakeWhile::default() });
    let plain = sleepy(spec(&snapshot), IDLE);
    let mut streams = Vec::new();
    for one in [&kept, &plain] {
        launch(&agent, one, 1).await.unwrap();
        let (response, mut stream) = open(&agent, &one.microvm_id, ECHO_PORT, true).await;
        assert_eq!(response.status(), OpenStatus::Connected);
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        streams.push(stream);
    }
    let (asleep, _) = until_state(&agent, &plain.microvm_id, MicrovmState::Suspended).await;
    assert!(why(&asleep).1.contains("no bytes moved on its open connection"), "{:?}", why(&asleep));
    testkit::until("its policy keeps the other awake", || async {
        let awake = idleness(&agent, &kept.microvm_id).await;
        awake.is_some_and(|awake| awake.awake_reason() == AwakeReason::Stream)
    })
    .await;
    drop(streams);
    let (asleep, _) = until_state(&agent, &kept.microvm_id, MicrovmState::Suspended).await;
    assert_eq!(why(&asleep).0, TransitionCause::Idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn cpu_use_keeps_it_awake_where_its_policy_says_so() {
    let (_world, agent, snapshot) = World::with_image(4096).await;
    let one = awake_while(spec(&snapshot), AwakeWhile { cpu_percent: Some(30), ..AwakeWhile::default() });
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, "work").await, "ok");
    testkit::until("its policy keeps it awake", || async {
        let awake = idleness(&agent, id).await;
        awake.is_some_and(|awake| awake.awake_reason() == AwakeReason::Cpu)
    })
    .await;
    // Until the work is done.
    until_state(&agent, id, MicrovmState::Suspended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_while_the_suspend_hook_runs_are_answered_once() {
    let world = World::start().await;
    let agent = world.agent(4096).await;
    let hooks = Some(hooks(&["suspend", "resume"]));
    let snapshot = image(&world, &agent, hooks).await;
    for asked in [true, false] {
        let mut one = spec(&snapshot);
        one.hooks = hooks;
        if !asked {
            one = sleepy(one, IDLE);
        }
        let id = one.microvm_id.as_str();
        launch(&agent, &one, 1).await.unwrap();
        assert_eq!(get(&agent, id, &format!("set?suspend-takes={HOOK_SECONDS}")).await, "ok");
        // On a connection from before, as an edge keeps them.
        let (response, mut early) = open(&agent, id, SLOW_PORT, true).await;
        assert_eq!(response.status(), OpenStatus::Connected);
        let suspended = async {
            if asked {
                suspend(&agent, id, 1).await.unwrap();
            }
        };
        let requests = async {
            until_state(&agent, id, MicrovmState::Suspending).await;
            early.write_all(b"go\n").await.unwrap();
            let late = get(&agent, id, "count");
            let mut answer = String::new();
            let answered = tokio::time::timeout(PATIENCE, early.read_to_string(&mut answer));
            let (late, answered) = tokio::join!(late, answered);
            answered.unwrap().unwrap();
            let mut counts = [late, answer.trim().to_owned()];
            counts.sort();
            counts
        };
        let ((), counts) = tokio::join!(suspended, requests);
        assert_eq!(counts, ["1", "2"], "each was carried out once, asked for: {asked}");
        let now = observed(&agent).await[id].clone();
        // One that was asked for is finished first; the microVM's own is called off.
        let expected = if asked { TransitionCause::Traffic } else { TransitionCause::Requested };
        assert_eq!((now.state(), why(&now).0), (MicrovmState::Running, expected), "asked for: {asked}");
        let called_off = "suspend called off: a request came".to_owned();
        assert_eq!(log_lines(&agent, id).await.contains(&called_off), !asked);
        // Either way the app was told of both, once.
        assert_eq!(hooks_called(&agent, id).await, ["suspend", "resume"], "asked for: {asked}");
        terminate(&agent, id, 1).await.unwrap();
    }
}

/// The hooks that the app has been called, in order.
async fn hooks_called(agent: &Agent, id: &str) -> Vec<String> {
    let told = get(agent, id, "hooks").await;
    told.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_calls_an_idle_suspend_off_and_not_one_that_is_asked_for_meanwhile() {
    let world = World::start().await;
    let agent = world.agent(4096).await;
    let hooks = Some(hooks(&["suspend", "resume"]));
    let snapshot = image(&world, &agent, hooks).await;
    let one = MicrovmSpec { hooks, ..sleepy(spec(&snapshot), IDLE) };
    let id = one.microvm_id.as_str();
    launch(&agent, &one, 1).await.unwrap();
    assert_eq!(get(&agent, id, &format!("set?suspend-takes={HOOK_SECONDS}")).await, "ok");
    until_state(&agent, id, MicrovmState::Suspending).await;
    assert_eq!(get(&agent, id, "count").await, "1");
    assert_eq!(agent.log_text().matches("to=Suspended").count(), 0);

    // Idle once more. The request is answered, and the suspend that was asked for takes place.
    until_state(&agent, id, MicrovmState::Suspending).await;
    let asked = async {
        // The host has the command while the hook runs.
        suspend(&agent, id, 1).await.unwrap()
    };
    let (suspended, count) = tokio::join!(asked, get(&agent, id, "count"));
    assert_eq!((suspended.state(), count.as_str()), (MicrovmState::Suspended, "2"));
    assert_eq!(why(&suspended).0, TransitionCause::Requested);

    // A resume hook that fails then costs nothing but a word.
    assert_eq!(get(&agent, id, "set?resume=500").await, "ok");
    until_state(&agent, id, MicrovmState::Suspending).await;
    assert_eq!(get(&agent, id, "count").await, "3");
    let now = observed(&agent).await[id].clone();
    assert_eq!(now.state(), MicrovmState::Running);
    assert!(now.state_reason.starts_with("Resume lifecycle hook returned HTTP status 500"), "{now:?}");
    terminate(&agent, id, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_of_one_microvm_leave_room_for_the_others() {
    let world = World::start().await;
    let agent = world.agent_with(4096, "[limits]\nwaiting_opens_per_microvm = 2\nwakes_at_once = 1\n").await;
    let hooks = Some(hooks(&["resume"]));
    let snapshot = image(&world, &agent, hooks).await;
    let (mut slow, other) = (spec(&snapshot), spec(&snapshot));
    slow.hooks = hooks;
    for one in [&slow, &other] {
        launch(&agent, one, 1).await.unwrap();
    }
    assert_eq!(get(&agent, &slow.microvm_id, &format!("set?resume-takes={HOOK_SECONDS}")).await, "ok");
    for one in [&slow, &other] {
        suspend(&agent, &one.microvm_id, 1).await.unwrap();
    }
    let began = Instant::now();
    let opens = (0..4).map(|_| open(&agent, &slow.microvm_id, ECHO_PORT, true));
    let slow_opens = async { (futures::future::join_all(opens).await, began.elapsed()) };
    let other_page = async { (page(&agent, &other.microvm_id, "count").await, began.elapsed()) };
    let ((opened, slow_after), ((of_other, woken), other_after)) = tokio::join!(slow_opens, other_page);
    assert_eq!(of_other, "1");
    // Only one is woken at a time, and a turn ends before the hook.
    assert!(other_after < slow_after, "{other_after:?} {slow_after:?}");
    let waited = |response: &OpenResponse| response.phases.iter().any(|phase| phase.name == "queue");
    assert!(waited(&woken) || opened.iter().any(|(response, _)| waited(response)), "{woken:?}");
    let busy: Vec<_> = opened.iter().filter(|(response, _)| response.status() == OpenStatus::Busy).collect();
    assert_eq!((busy.len(), opened.len()), (2, 4), "after {:?}", began.elapsed());
    for (response, _) in busy {
        assert!(
            response.retry_after.is_some() && response.message.contains("wait for the microVM"),
            "{response:?}"
        );
    }
}
