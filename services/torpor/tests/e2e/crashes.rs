//! `kill -9` of each process of the fleet, in turn, with one microVM running and one asleep; and a record store that answers
//! nobody for longer than a lease. (Crashes at chosen points inside the host-agent are in that service's own tests.)

use std::path::Path;
use std::time::{Duration, Instant};

use api::errors::{reason, reason_of};
use api::microvm::v1::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::world::{Running, World};

const HEALED_WITHIN: Duration = Duration::from_secs(10);
/// A host's lease is 10 s, and so is what a vouch lasts after it.
const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(14);

#[tokio::test]
async fn every_process_may_die_at_any_time() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let awake = fleet.run(image).await;
    let asleep = fleet.run_idle(image, Duration::from_secs(600), Duration::from_secs(1800)).await;
    let pid = awake.get("/count").await["pid"].clone();
    let mut expected = 1;
    let mut expected_asleep = 0;
    for component in ["scheduler", "image-builder", "edge-proxy", "host-agent-1", "host-agent-2", "etcd"] {
        asleep.suspend().await.unwrap();
        let engine = awake.engine_pid();
        kill(pid_of(&fleet.data_dir, component), Signal::SIGKILL).unwrap();
        let began = Instant::now();
        expected += 1;
        let count = answers(&awake, component, expected).await;
        assert_eq!(count["pid"], pid);
        assert_eq!(awake.engine_pid(), engine, "{component}: the engine is untouched");
        expected_asleep += 1;
        answers(&asleep, component, expected_asleep).await;
        fleet
            .until(&format!("the control plane after the end of {component}"), HEALED_WITHIN, || async {
                let record = fleet.get(&awake.id).await.ok()?;
                let asleep = fleet.get(&asleep.id).await.ok()?;
                (record.state() == MicrovmState::Running && asleep.state() == MicrovmState::Running)
                    .then_some(())
            })
            .await;
        println!("{component}: healed after {:?}", began.elapsed());
        healthy(&fleet, component).await;
    }
    let list = fleet
        .context
        .call(ListMicrovmsRequest { image_identifier: image.to_owned(), ..ListMicrovmsRequest::default() })
        .await
        .unwrap();
    for id in [&awake.id, &asleep.id] {
        assert_eq!(list.microvms.iter().filter(|microvm| microvm.microvm_id == **id).count(), 1);
    }
    awake.terminate().await;
    asleep.terminate().await;
}

#[tokio::test]
async fn what_runs_answers_and_what_sleeps_wakes_while_the_store_answers_nobody() {
    let fleet = World::open();
    let image = fleet.app_image().await;
    let awake = fleet.run(image).await;
    let asleep = fleet.run_idle(image, Duration::from_secs(600), Duration::from_secs(1800)).await;
    asleep.suspend().await.unwrap();
    let store = Stopped::stop(pid_of(&fleet.data_dir, "etcd"));
    let began = Instant::now();
    let mut expected = 0;
    let mut refused = false;
    while began.elapsed() < LONGER_THAN_A_LEASE {
        expected += 1;
        counts(&awake, expected).await;
        if !refused {
            // As soon as the leader knows, it says so.
            let answer = fleet.get(&awake.id).await;
            refused = answer.is_err_and(|e| reason_of(&e).as_deref() == Some(reason::STORE_UNAVAILABLE));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(refused, "the control plane has not said that the store is away");
    counts(&asleep, 1).await;
    drop(store);
    // Its leases are over when it goes on: until the hosts have others, what all schedulers vouch for holds.
    let deadline = Instant::now() + Duration::from_secs(30);
    while fleet.get(&awake.id).await.is_err() {
        assert!(Instant::now() < deadline, "the control plane does not come back");
        expected += 1;
        counts(&awake, expected).await;
    }
    healthy(&fleet, "etcd's pause").await;
    for (microvm, count) in [(&awake, expected + 1), (&asleep, 2)] {
        counts(microvm, count).await;
        // What woke meanwhile is told of with the host's next report.
        let record = fleet.wait_within(&microvm.id, MicrovmState::Running, HEALED_WITHIN).await;
        assert_eq!(record.generation, 1, "{}", record.state_reason);
    }
    awake.terminate().await;
    asleep.terminate().await;
}

/// The one request is answered with success, and is the app's so many-th.
async fn counts(microvm: &Running<'_>, expected: u64) {
    let answer = microvm.try_get("/count").await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["count"], expected);
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(process: Pid) -> Self {
        kill(process, Signal::SIGSTOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been ended by another.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// What the microVM says once it answers after the end of `component`: this many
/// requests reached it, nothing lost, nothing twice.
async fn answers(microvm: &Running<'_>, component: &str, expected: u64) -> Value {
    let what = format!("an answer of {} after the end of {component}", microvm.id);
    let count = microvm
        .fleet
        .until(&what, HEALED_WITHIN, || async {
            let answer = microvm.try_get("/count").await.ok()?;
            (answer.status == 200).then(|| answer.json())
        })
        .await;
    assert_eq!(count["count"], expected, "{what}: nothing lost, nothing twice");
    count
}

/// The process of a component, by its pid file.
fn pid_of(data_dir: &Path, component: &str) -> Pid {
    let file = data_dir.join(format!("run/{component}.pid"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let digits: String =
        text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    Pid::from_raw(digits.parse().unwrap())
}

/// Waits until both hosts are ready again, so that the next kill meets a whole fleet.
async fn healthy(fleet: &World, component: &str) {
    use api::host::v1::{HostState, ListHostsRequest};
    fleet
        .until(&format!("a whole fleet after the end of {component}"), Duration::from_secs(30), || async {
            let hosts = fleet.context.call(ListHostsRequest::default()).await.ok()?;
            let ready = hosts.hosts.iter().filter(|host| host.state() == HostState::Ready).count();
            let images = fleet.context.call(api::image::v1::ListImagesRequest::default()).await;
            (ready == 2 && images.is_ok()).then_some(())
        })
        .await;
}
