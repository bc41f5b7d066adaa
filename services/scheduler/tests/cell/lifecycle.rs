//! The life of a microVM as its callers see it.

use api::common::v1::{AwakeWhile, IdlePolicy};
use api::errors::reason;
use api::host::v1::{HeartbeatRequest, RegisterHostRequest};
use api::microvm::v1::{
    CreateMicrovmAuthTokenRequest, FollowMicrovmLogRequest, GetMicrovmRequest, Idleness,
    KeepMicrovmAwakeRequest, ListMicrovmsRequest, MicrovmState, PortScope, RunMicrovmRequest,
    TransitionCause, port_scope,
};
use rpc::Role;
use std::time::Duration;
use token::{Key, KeySet};
use tonic::Code;

use crate::host::{FakeHost, Step};
use crate::world::*;
use MicrovmState::{Pending, Running, Suspended, Terminated, Terminating};

#[tokio::test]
async fn run_suspend_resume_terminate() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let request = RunMicrovmRequest { run_hook_payload: "hi".into(), ..app() };
    let accepted = run(&client, request).await.unwrap();
    assert_eq!(accepted.state(), Pending);
    assert_eq!(accepted.endpoint_url, format!("https://{}:8443/", accepted.endpoint));
    assert!(!accepted.microvm_id.contains(accepted.endpoint.split('.').next().unwrap()));
    let id = accepted.microvm_id.as_str();
    let now = becomes(&client, id, Running).await;
    assert_eq!((now.host_id.as_str(), now.generation, now.memory_mib), ("h1", 1, 2048));
    assert_eq!(now.endpoint, accepted.endpoint);

    let asleep = suspend(&client, id).await.unwrap();
    assert_eq!(asleep.state(), Suspended);
    assert!(asleep.snapshot.unwrap().local);
    assert_eq!(suspend(&client, id).await.unwrap().state(), Suspended, "again is a success");
    assert_eq!(resume(&client, id).await.unwrap().state(), Running);
    assert_eq!(resume(&client, id).await.unwrap().state(), Running, "again is a success");
    assert_eq!(host.asked(|inner| inner.resumes.len()), 1);
    assert_eq!(host.asked(|inner| inner.resumes[0].spec.as_ref().unwrap().run_hook_payload.clone()), "");

    let ending = terminate(&client, id).await.unwrap();
    assert!(matches!(ending.state(), Terminating | Terminated));
    let ended = becomes(&client, id, Terminated).await;
    assert_eq!(ended.state_reason, "Success.");
    assert!(ended.terminate_time.is_some());
    assert_eq!(terminate(&client, id).await.unwrap().state(), Terminated, "again is a success");
    let text = format!("The MicroVM {id} has been terminated and its state cannot be changed.");
    refused(suspend(&client, id).await, reason::TERMINATED, &text);
    refused(resume(&client, id).await, reason::TERMINATED, &text);
    let told = host.asked(|inner| inner.terminates.clone());
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].reason.as_str(), told[0].discard), ("Success.", false));
}

#[tokio::test]
async fn what_keeps_one_awake_is_its_hosts_to_say() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let awake_while = Some(AwakeWhile { stream: true, shell: false, cpu_percent: Some(20) });
    let policy = IdlePolicy {
        max_idle_duration: seconds(60),
        suspended_duration: seconds(60),
        auto_resume_enabled: true,
        awake_while,
    };
    let request = RunMicrovmRequest { idle_policy: Some(policy), ..app() };
    let id = run(&client, request).await.unwrap().microvm_id;
    let shown = becomes(&client, &id, Running).await;
    assert_eq!(shown.idle_policy.unwrap().awake_while, awake_while);
    assert_eq!(host.launched(&id).idle_policy.unwrap().awake_while, awake_while);

    let said = Idleness { message: "a request came".into(), sleep_time: at(9), ..Idleness::default() };
    host.script(|inner| inner.idleness = Some(said.clone()));
    let ask = |with_idleness| {
        let request = GetMicrovmRequest { microvm_id: id.clone(), with_idleness };
        let mut client = client.clone();
        async move { client.get_microvm(request).await.unwrap().into_inner().microvm.unwrap().idleness }
    };
    assert_eq!((ask(true).await, ask(false).await), (Some(said.clone()), None));

    let keep = |duration, release| {
        let request = KeepMicrovmAwakeRequest { microvm_id: id.clone(), duration, release };
        let mut client = client.clone();
        async move { client.keep_microvm_awake(request).await.map(|answer| answer.into_inner().microvm.unwrap()) }
    };
    assert_eq!(keep(seconds(1800), false).await.unwrap().idleness, Some(said));
    keep(None, true).await.unwrap();
    let asked = host.asked(|inner| inner.kept_awake.clone());
    assert_eq!(asked.iter().map(|request| request.duration).collect::<Vec<_>>(), [seconds(1800), None]);
    refused(keep(seconds(28_801), false).await, reason::INVALID_ARGUMENT, "duration");

    // One that sleeps is not woken for it.
    suspend(&client, &id).await.unwrap();
    assert_eq!(host.asked(|inner| inner.suspends[0].cause()), TransitionCause::Requested);
    refused(keep(seconds(60), false).await, reason::STATE_CONFLICT, "kept awake");
    assert_eq!(ask(true).await, None);
    assert_eq!(get(&client, &id).await.unwrap().state(), Suspended);
    terminate(&client, &id).await.unwrap();
    becomes(&client, &id, Terminated).await;
    refused(keep(seconds(60), false).await, reason::TERMINATED, &id);
}

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

#[tokio::test]
async fn what_cannot_be_run_says_why() {
    let (world, scheduler, _host, client) = World::with_host(&["microvms_max=2"]).await;
    world.image("plain", "1.0", api::image::v1::VersionStatus::Active, false).await;
    world.image("retired", "1.0", api::image::v1::VersionStatus::Inactive, false).await;
    let of = |image: &str, version: &str| RunMicrovmRequest {
        image_identifier: image.into(),
        image_version: version.into(),
        ..Default::default()
    };
    let none =
        "No active version found for MicroVM image arn:aws:lambda:us-east-1:000000000000:microvm-image:";
    for (request, text) in [
        (of("absent", ""), format!("{none}absent")),
        (of("retired", ""), format!("{none}retired")),
        (of("app", "2.0"), format!("{none}app and version 2.0")),
    ] {
        refused(run(&client, request).await, reason::NO_ACTIVE_VERSION, &text);
    }
    let payload = RunMicrovmRequest { run_hook_payload: "x".into(), ..of("plain", "1.0") };
    let text = "The run hook must be enabled in the MicroVM image to pass the run hook payload";
    let answer = eventually("the image to be known", || async {
        Some(run(&client, payload.clone()).await)
            .filter(|answer| answer.as_ref().is_err_and(|status| status.code() != Code::NotFound))
    })
    .await;
    refused(answer, reason::INVALID_ARGUMENT, text);
    let bad = RunMicrovmRequest { maximum_duration: seconds(0), ..of("bad name!", "x") };
    let status = run(&client, bad).await.unwrap_err();
    for field in ["imageIdentifier", "imageVersion", "maximumDurationInSeconds"] {
        assert!(status.message().contains(field), "{}", status.message());
    }
    let first = running(&client).await;
    running(&client).await;
    refused(run(&client, app()).await, reason::QUOTA_EXCEEDED, "limit of 2");
    terminate(&client, &first.microvm_id).await.unwrap();
    becomes(&client, &first.microvm_id, Terminated).await;
    running(&client).await;
    let stranger = world.client(&scheduler, Role::HostAgent);
    refused(run(&stranger, app()).await, reason::PERMISSION_DENIED, "host-agent");
    let unknown = "microvm-0190a5e2-7c3b-3f00-8000-000000000001";
    let text = format!("MicroVM not found: {unknown}");
    refused(get(&client, unknown).await, reason::NOT_FOUND, &text);
    refused(get(&client, "mvm-1").await, reason::INVALID_ARGUMENT, "microvm-");
}

#[tokio::test]
async fn one_client_token_is_one_microvm() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let request = RunMicrovmRequest { client_token: "once".into(), ..app() };
    let runs = (0..24).map(|_| {
        let (client, request) = (client.clone(), request.clone());
        async move { run(&client, request).await.unwrap().microvm_id }
    });
    let ids = futures::future::join_all(runs).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    becomes(&client, &ids[0], Running).await;
    assert_eq!(host.asked(|inner| inner.launches.len()), 1);
    suspend(&client, &ids[0]).await.unwrap();
    let again = run(&client, request.clone()).await.unwrap();
    assert_eq!((again.microvm_id.as_str(), again.state()), (ids[0].as_str(), Suspended));
    let other = RunMicrovmRequest { maximum_duration: seconds(100), ..request };
    refused(
        run(&client, other).await,
        reason::CLIENT_TOKEN_CONFLICT,
        "The client token was used before with other parameters.",
    );
}

#[tokio::test]
async fn lists_are_paged_newest_first_and_filtered() {
    let (world, _scheduler, _host, client) = World::with_host(&[]).await;
    world.image("other", "1.0", api::image::v1::VersionStatus::Active, false).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(running(&client).await.microvm_id);
    }
    let other = RunMicrovmRequest { image_identifier: "other".into(), ..Default::default() };
    let other = eventually("the other image", || async { run(&client, other.clone()).await.ok() }).await;
    ids.reverse();
    let list = |image: &str, token: String| {
        let request = ListMicrovmsRequest {
            page_size: 2,
            page_token: token,
            image_identifier: image.into(),
            image_version: String::new(),
            unlaunchable: false,
        };
        let mut client = client.clone();
        async move { client.list_microvms(request).await.map(|answer| answer.into_inner()) }
    };
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let page = list("app", token).await.unwrap();
        assert!(page.microvms.len() <= 2);
        found.extend(page.microvms.into_iter().map(|microvm| microvm.microvm_id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ids);
    assert_eq!(list("", String::new()).await.unwrap().microvms[0].microvm_id, other.microvm_id);
    assert!(list("absent", String::new()).await.unwrap().microvms.is_empty());
    refused(list("", "made-up".into()).await, reason::INVALID_ARGUMENT, "nextToken");
}

#[tokio::test]
async fn rules_that_share_a_world() {
    let (world, _scheduler, host, client) = World::with_roomy_host().await;
    tokens_open_what_they_name(&world, &client).await;
    logs_are_the_hosts(&host, &client).await;
}

async fn tokens_open_what_they_name(world: &World, client: &Client) {
    let id = running(client).await.microvm_id;
    let request = CreateMicrovmAuthTokenRequest {
        microvm_id: id.clone(),
        expiration: seconds(60),
        allowed_ports: vec![PortScope { scope: Some(port_scope::Scope::Port(8080)) }],
        ..Default::default()
    };
    suspend(client, &id).await.unwrap();
    let answer = client.clone().create_microvm_auth_token(request.clone()).await.unwrap().into_inner();
    let token = &answer.auth_token["X-aws-proxy-auth"];
    let keys = world.store.list("keys/").await.unwrap().0;
    let keys = keys.iter().map(|(_, value)| serde_json::from_slice::<Key>(&value.value).unwrap()).collect();
    let now = u64::try_from(answer.expire_time.unwrap().seconds).unwrap() - 1;
    let keys = KeySet::new(keys).unwrap();
    let claims = keys.verify(token, now).unwrap();
    assert!(keys.verify(token, now + 1).is_err(), "its minute is over");
    assert_eq!(claims.expires_at - claims.issued_at, 60);
    assert_eq!(claims.microvm_id, id);
    assert!(claims.allows(8080) && !claims.allows(8081));
    terminate(client, &id).await.unwrap();
    let answer = client.clone().create_microvm_auth_token(request.clone()).await;
    refused(answer, reason::TERMINATED, &id);
    let bad = CreateMicrovmAuthTokenRequest { expiration: seconds(3601), allowed_ports: vec![], ..request };
    let answer = client.clone().create_microvm_auth_token(bad).await;
    refused(answer, reason::INVALID_ARGUMENT, "allowedPorts");
}

#[tokio::test]
async fn lives_and_windows_end_by_the_clock() {
    let world = World::on_manual_clock().await;
    let scheduler = world.here(&["retention_seconds=1000"]);
    let (world, _scheduler, _host, client) = world.and_host(scheduler).await;
    let pass = |seconds| world.clock.advance(Duration::from_secs(seconds));
    let lifetime = "MicroVM exceeded maximum lifetime.";
    let short = RunMicrovmRequest { maximum_duration: seconds(500), ..app() };
    let short = run(&client, short).await.unwrap();
    becomes(&client, &short.microvm_id, Running).await;
    let policy = |window| IdlePolicy {
        max_idle_duration: seconds(60),
        suspended_duration: seconds(window),
        auto_resume_enabled: true,
        awake_while: None,
    };
    let windowed = RunMicrovmRequest { idle_policy: Some(policy(100)), ..app() };
    let windowed = run(&client, windowed).await.unwrap().microvm_id;
    let zero = RunMicrovmRequest { idle_policy: Some(policy(0)), ..app() };
    let zero = run(&client, zero).await.unwrap().microvm_id;
    for id in [&windowed, &zero] {
        becomes(&client, id, Running).await;
        suspend(&client, id).await.unwrap();
    }
    assert_eq!(becomes(&client, &zero, Terminated).await.state_reason, lifetime);
    for (left, id, state) in [(99, &windowed, Suspended), (399, &short.microvm_id, Running)] {
        pass(left);
        assert_eq!(get(&client, id).await.unwrap().state(), state, "a second is left");
        pass(1);
        assert_eq!(becomes(&client, id, Terminated).await.state_reason, lifetime);
    }
    pass(999);
    assert_eq!(get(&client, &short.microvm_id).await.unwrap().state(), Terminated);
    pass(1);
    // Retention: then the record is gone, here and in etcd.
    eventually("forgotten", || async {
        get(&client, &short.microvm_id).await.err().filter(|status| status.code() == Code::NotFound)
    })
    .await;
    assert_eq!(world.store.get(&format!("microvms/{}", short.microvm_id)).await.unwrap(), None);
}

/// With no window its end is decided when the host's news of the sleep arrives, which may be before the answer to the call.
#[tokio::test]
async fn a_suspend_that_the_end_overtakes_is_a_success() {
    let (world, scheduler, host, client) = World::with_host(&[]).await;
    let mut hosts = world.host(&scheduler, "h1");
    let register = RegisterHostRequest { spec: Some(host.spec.clone()), ..Default::default() };
    hosts.register_host(register).await.unwrap();
    let policy = IdlePolicy {
        max_idle_duration: seconds(60),
        suspended_duration: seconds(0),
        auto_resume_enabled: false,
        awake_while: None,
    };
    let id = run(&client, RunMicrovmRequest { idle_policy: Some(policy), ..app() }).await.unwrap().microvm_id;
    becomes(&client, &id, Running).await;
    host.script(|inner| inner.on_suspend.push_back(Step::Hang));
    let call = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { suspend(&client, &id).await }
    });
    eventually("asked to", || async { host.asked(|inner| (!inner.suspends.is_empty()).then_some(())) }).await;
    let observed = vec![host.observes(&id, Suspended)];
    let news =
        HeartbeatRequest { host_id: "h1".into(), usage: None, observed, complete: false, clock_time: None };
    hosts.heartbeat(news).await.unwrap();
    assert!(matches!(call.await.unwrap().unwrap().state(), Suspended | Terminating | Terminated));
    becomes(&client, &id, Terminated).await;
}

async fn logs_are_the_hosts(host: &FakeHost, client: &Client) {
    let id = running(client).await.microvm_id;
    let request = FollowMicrovmLogRequest { microvm_id: id.clone(), from_sequence: 7, follow: false };
    let mut lines = client.clone().follow_microvm_log(request.clone()).await.unwrap().into_inner();
    let line = lines.message().await.unwrap().unwrap().lines.remove(0);
    assert_eq!((line.text.as_str(), line.sequence), ("hello", 7));
    host.script(|inner| inner.held.clear());
    let gone = client.clone().follow_microvm_log(request).await.map(|_| ());
    refused(gone, reason::NOT_FOUND, "no longer available");
}
