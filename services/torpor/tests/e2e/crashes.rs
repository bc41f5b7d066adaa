//! `kill -9` of each process of the fleet, in turn, with one microVM running and one asleep. (Crashes at
//! chosen points inside the host-agent are in that service's own tests.)

use std::path::Path;
use std::time::{Duration, Instant};

use api::microvm::v1::*;
use serde_json::Value;

use crate::world::{Running, World};

const HEALED_WITHIN: Duration = Duration::from_secs(10);

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
        kill(&fleet.data_dir, component);
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

/// Ends a component by the pid in its pid file.
fn kill(data_dir: &Path, component: &str) {
    let file = data_dir.join(format!("run/{component}.pid"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let digits: String =
        text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let pid = nix::unistd::Pid::from_raw(digits.parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
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
