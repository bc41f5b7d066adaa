//! What goes wrong around a scheduler, and what its callers see then.

use std::time::{Duration, Instant, SystemTime};

use api::errors::{reason, status};
use api::host::v1::{HeartbeatRequest, RegisterHostRequest, StaleMicrovm};
use api::microvm::v1::{FollowMicrovmLogRequest, MicrovmState, RunMicrovmRequest, SnapshotCopies};
use rpc::Role;
use tonic::Code;

use crate::host::{FakeHost, Step};
use crate::world::*;
use MicrovmState::{Pending, Running, Suspended, Terminated};

#[tokio::test]
async fn a_killed_scheduler_goes_on_where_it_was() {
    let (world, mut scheduler, host, client) = World::with_process(&[]).await;
    let asleep = running(&client).await.microvm_id;
    suspend(&client, &asleep).await.unwrap();
    host.script(|inner| inner.on_launch.push_back(Step::Hang));
    let launching = run(&client, app()).await.unwrap().microvm_id;
    eventually("the launch", || async { host.asked(|inner| (inner.launches.len() == 2).then_some(())) })
        .await;
    scheduler.kill();
    let killed = Instant::now();
    let address = scheduler.address.clone();
    let _again = world.scheduler_at(&address, &[]);
    let now = becomes(&client, &launching, Running).await;
    assert!(killed.elapsed().as_secs() < 10, "{:?}", killed.elapsed());
    assert_eq!(now.generation, 1);
    let asked = host.asked(|inner| inner.launches.clone());
    let again: Vec<u64> = asked.iter().filter(|(id, _)| *id == launching).map(|(_, g)| *g).collect();
    assert!(again.len() >= 2 && again.iter().all(|generation| *generation == 1), "{again:?}");
    assert_eq!(get(&client, &asleep).await.unwrap().state(), Suspended);
    assert_eq!(resume(&client, &asleep).await.unwrap().state(), Running);
}

#[tokio::test]
async fn an_end_that_was_decided_is_carried_out_by_the_next_leader() {
    let (world, mut scheduler, host, client) = World::with_process(&[]).await;
    let id = running(&client).await.microvm_id;
    host.lease.revoke().await.unwrap(); // the host cannot be asked now
    world.placeable(&scheduler, 0).await;
    terminate(&client, &id).await.unwrap();
    scheduler.kill();
    let _again = world.scheduler_at(&scheduler.address.clone(), &[]);
    let lease = world.store.lease(std::time::Duration::from_secs(10)).await.unwrap();
    let key = format!("hosts/{}", host.spec.host_id);
    world.store.put_leased(&key, prost::Message::encode_to_vec(&host.spec), &lease).await.unwrap();
    assert_eq!(becomes(&client, &id, Terminated).await.state_reason, "Success.");
    assert_eq!(host.asked(|inner| inner.terminates.len()), 1);
}

#[tokio::test]
async fn a_standby_names_the_leader_and_takes_over() {
    let (world, mut scheduler, _host, client) = World::with_process(&[]).await;
    let id = running(&client).await.microvm_id;
    let second = world.scheduler(&[]);
    let standby = world.client(&second, Role::Admin);
    let status = eventually("the standby to know", || async {
        let status = get(&standby, &id).await.err()?;
        let named = tonic_types::StatusExt::get_details_error_info(&status)?.metadata.get("leader").cloned();
        (named.as_deref() == Some(scheduler.address.as_str())).then_some(status)
    })
    .await;
    refused::<()>(Err(status), reason::NOT_LEADER, "does not lead");
    scheduler.kill();
    let killed = Instant::now();
    becomes(&standby, &id, Running).await;
    assert!(killed.elapsed().as_secs() < 10, "{:?}", killed.elapsed());
    eventually("the host to be known", || async { suspend(&standby, &id).await.ok() }).await;
}

#[tokio::test]
async fn etcd_may_be_killed() {
    let (mut world, _scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    for _ in 0..2 {
        world.etcd.kill();
        // Long enough for the leader's lease to end by its own clock.
        eventually("leadership to end", || async {
            let error = run(&client, app()).await.err()?;
            (error.code() == Code::Unavailable).then_some(())
        })
        .await;
        world.etcd.restart().await;
        let back = Instant::now();
        becomes(&client, &id, Running).await;
        eventually("the host to be known", || async { suspend(&client, &id).await.ok() }).await;
        eventually("a wake", || async { resume(&client, &id).await.ok() }).await;
        assert!(back.elapsed().as_secs() < 10, "{:?}", back.elapsed());
    }
    let running = host.asked(|inner| inner.held.values().filter(|held| held.state() == Running).count());
    let listed = client.clone().list_microvms(api::microvm::v1::ListMicrovmsRequest::default()).await;
    let listed = listed.unwrap().into_inner().microvms;
    let alive =
        listed.iter().filter(|microvm| microvm.state() == Running || microvm.state() == Pending).count();
    assert!(alive >= running, "nothing runs that has no record");
}

#[tokio::test]
async fn a_failed_launch_says_why_and_a_lost_answer_is_asked_again() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let reason = "Run lifecycle hook returned HTTP status 400.";
    let failed = status(Code::FailedPrecondition, reason::HOOK_FAILED, reason, &[]);
    host.script(|inner| inner.on_launch.push_back(Step::Refuse(failed)));
    let id = run(&client, app()).await.unwrap().microvm_id;
    assert_eq!(becomes(&client, &id, Terminated).await.state_reason, reason);
    let request = FollowMicrovmLogRequest { microvm_id: id, ..Default::default() };
    let log = client.clone().follow_microvm_log(request).await.map(|_| ());
    refused(log, reason::NOT_FOUND, &format!("no longer available. It has ended: {reason}"));
    host.script(|inner| inner.on_launch.push_back(Step::LoseAnswer));
    let id = running(&client).await.microvm_id;
    let asked = host.asked(|inner| inner.launches.iter().filter(|(asked, _)| *asked == id).count());
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn a_failed_suspend_and_a_failed_wake_leave_it_as_it_was() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    let id = running(&client).await.microvm_id;
    let full = status(Code::FailedPrecondition, reason::DISK_FULL, "no space left on the host", &[]);
    host.script(|inner| inner.on_suspend.push_back(Step::Refuse(full)));
    refused(suspend(&client, &id).await, reason::DISK_FULL, "no space");
    assert_eq!(get(&client, &id).await.unwrap().state(), Running);
    suspend(&client, &id).await.unwrap();
    let corrupt = status(Code::DataLoss, reason::CORRUPT_OBJECT, "chunk x is damaged", &[("object", "x")]);
    host.script(|inner| inner.on_resume.push_back(Step::Refuse(corrupt)));
    refused(resume(&client, &id).await, reason::CORRUPT_OBJECT, "chunk x");
    assert_eq!(get(&client, &id).await.unwrap().state(), Suspended);
    assert_eq!(resume(&client, &id).await.unwrap().state(), Running);
}

#[tokio::test]
async fn an_end_goes_before_a_launch_that_hangs() {
    let (_world, _scheduler, host, client) = World::with_host(&[]).await;
    host.script(|inner| inner.on_launch.push_back(Step::Hang));
    let id = run(&client, app()).await.unwrap().microvm_id;
    let conflict = suspend(&client, &id).await;
    refused(conflict, reason::STATE_CONFLICT, "PENDING");
    terminate(&client, &id).await.unwrap();
    assert_eq!(becomes(&client, &id, Terminated).await.state_reason, "Success.");
    assert_eq!(host.asked(|inner| inner.terminates.len()), 1);
}

/// As soon as the host has stopped its traffic, long before it is given up.
#[tokio::test]
async fn what_ran_on_a_lost_host_goes_on_elsewhere_from_its_recovery_point() {
    let settings = ["fence_grace_seconds=1", "host_lost_grace_seconds=600"];
    let (world, scheduler, host, client) = World::with_process(&settings).await;
    let mut hosts = world.host(&scheduler, "h1");
    let register =
        RegisterHostRequest { spec: Some(host.spec.clone()), observed: vec![], ..Default::default() };
    hosts.register_host(register).await.unwrap();
    let pointed = RunMicrovmRequest { checkpoint_interval: seconds(5), ..app() };
    let id = run(&client, pointed).await.unwrap().microvm_id;
    let other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    becomes(&client, &id, Running).await;
    // What its host says of a point that it has made and uploaded.
    let made = SystemTime::now() - Duration::from_secs(60);
    let mut observed = host.observes(&id, Running);
    observed.snapshot = Some(SnapshotCopies {
        local: true,
        remote: true,
        sequence: 7,
        manifest_key: format!("{id}/7"),
        manifest_digest: "d".repeat(64),
        time: Some(api::timestamp(made)),
        ..Default::default()
    });
    let news = HeartbeatRequest { host_id: "h1".into(), observed: vec![observed], ..Default::default() };
    hosts.heartbeat(news).await.unwrap();
    host.lease.revoke().await.unwrap();
    let back = eventually("goes on elsewhere", || async {
        let microvm = get(&client, &id).await.unwrap();
        (microvm.state() == Running && microvm.generation == 2).then_some(microvm)
    });
    let back = back.await;
    assert_eq!(back.host_id, "h2");
    let recovery = back.recovery.unwrap();
    assert_eq!((recovery.host_id.as_str(), recovery.point_time), ("h1", Some(api::timestamp(made))));
    let asked = other.asked(|inner| inner.resumes[0].clone());
    let (copies, spec) = (asked.snapshot.unwrap(), asked.spec.unwrap());
    assert_eq!((copies.manifest_key, copies.local), (format!("{id}/7"), false));
    assert_eq!(spec.checkpoint_interval, seconds(5));
    // The lost host is back and still holds what it ran.
    let back = vec![host.observes(&id, Running)];
    let register =
        RegisterHostRequest { spec: Some(host.spec.clone()), observed: back, ..Default::default() };
    let told = hosts.register_host(register).await.unwrap().into_inner();
    assert_eq!(told.stale, [StaleMicrovm { microvm_id: id, generation: 1 }]);
}

#[tokio::test]
async fn a_lost_host_ends_what_ran_and_what_slept_wakes_elsewhere() {
    let settings = ["fence_grace_seconds=1", "host_lost_grace_seconds=2"];
    let (world, mut scheduler, host, client) = World::with_process(&settings).await;
    let ran = running(&client).await.microvm_id;
    let later = running(&client).await.microvm_id;
    suspend(&client, &later).await.unwrap();
    let slept = running(&client).await.microvm_id;
    suspend(&client, &slept).await.unwrap();
    let other = FakeHost::start(&world, "h2").await;
    world.placeable(&scheduler, 2).await;
    host.lease.revoke().await.unwrap();
    // The host would still answer: first the scheduler has to know.
    world.placeable(&scheduler, 1).await;
    let woken = eventually("a wake elsewhere", || async { resume(&client, &slept).await.ok() }).await;
    assert_eq!((woken.state(), woken.host_id.as_str(), woken.generation), (Running, "h2", 2));
    let asked = other.asked(|inner| inner.resumes[0].clone());
    assert_eq!((asked.generation, asked.snapshot.unwrap().manifest_key), (2, format!("{slept}/1")));
    assert_eq!(becomes(&client, &ran, Terminated).await.state_reason, "Host h1 was lost.");
    // A leader that never saw the host comes to the same conclusion.
    scheduler.kill();
    let _again = world.scheduler_at(&scheduler.address.clone(), &settings);
    let woken = eventually("a wake elsewhere", || async { resume(&client, &later).await.ok() }).await;
    assert_eq!((woken.state(), woken.host_id.as_str()), (Running, "h2"));
}
