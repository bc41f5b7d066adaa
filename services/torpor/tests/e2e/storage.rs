//! Snapshots in S3: another host starts from them, and damage is noticed.

use std::time::Duration;

use api::host::v1::{DrainHostRequest, HostState, ListHostsRequest, UndrainHostRequest};
use api::image::v1::GetImageVersionRequest;
use api::microvm::v1::*;

use crate::app;
use crate::world::World;

#[tokio::test]
async fn a_host_that_never_saw_the_image_fetches_it_and_launches() {
    let fleet = World::open();
    let name = "e2e-elsewhere";
    fleet.ensure_image(name, |_| ()).await;
    let first = fleet.run(name).await;
    let baked_on = first.record().await.host_id;
    fleet.context.call(DrainHostRequest { host_id: baked_on.clone(), ..Default::default() }).await.unwrap();
    fleet.wait(&first.id, MicrovmState::Suspended).await;
    let second = fleet.run(name).await;
    let record = second.record().await;
    assert_ne!(record.host_id, baked_on, "a drained host takes no launches");
    assert_eq!(second.count().await, 1);
    second.terminate().await;
    fleet.context.call(UndrainHostRequest { host_id: baked_on.clone() }).await.unwrap();
    first.resume().await.unwrap();
    assert_eq!(first.count().await, 1);
    first.terminate().await;
    let listed = fleet.context.call(ListHostsRequest::default()).await.unwrap().hosts;
    assert!(listed.iter().all(|host| host.state() == HostState::Ready), "{listed:?}");
}

#[tokio::test]
async fn a_flipped_byte_in_a_chunk_is_data_loss_and_starts_nothing() {
    let fleet = World::open();
    let name = "e2e-damaged";
    let built = fleet.build(name, app::zip_with(app::DOCKERFILE), |_| ()).await;
    assert!(built.build.state_reason.is_empty(), "{}", built.build.state_reason);
    let manifest = manifest_key(&fleet, name).await;
    let prefix = manifest.rsplit_once('/').unwrap().0.to_owned();
    let damaged = flip_a_byte_below(&fleet.data_dir.join("s3/torpor-snapshots").join(&prefix));

    // The host that baked it has its own copy: make the other one fetch.
    let listed = fleet.context.call(ListHostsRequest::default()).await.unwrap().hosts;
    let holder = listed
        .iter()
        .find(|host| host.usage.as_ref().is_some_and(|usage| usage.cached_manifest_keys.contains(&manifest)))
        .map(|host| host.spec.as_ref().unwrap().host_id.clone())
        .expect("a host holds the image");
    fleet.context.call(DrainHostRequest { host_id: holder.clone(), ..Default::default() }).await.unwrap();
    let microvm = fleet.run_with(name, |_| ()).await.unwrap();
    let ended =
        fleet.wait_within(&microvm.microvm_id, MicrovmState::Terminated, Duration::from_secs(60)).await;
    fleet.context.call(UndrainHostRequest { host_id: holder }).await.unwrap();
    assert!(ended.state_reason.contains(&damaged), "'{}' names {damaged}", ended.state_reason);
    assert!(ended.state_reason.contains("DATA_LOSS"), "{}", ended.state_reason);
}

/// Key of the manifest of an image's newest version.
async fn manifest_key(fleet: &World, image: &str) -> String {
    let request =
        GetImageVersionRequest { image_identifier: image.to_owned(), ..GetImageVersionRequest::default() };
    let version = fleet.context.call(request).await.unwrap().version.unwrap();
    version.snapshot.unwrap().manifest_key
}

/// Damages one memory chunk; returns the end of its key.
fn flip_a_byte_below(directory: &std::path::Path) -> String {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() { pending.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let chunk = files
        .into_iter()
        .find(|path| {
            path.to_string_lossy().contains("/memory/") && !path.to_string_lossy().ends_with(".json")
        })
        .expect("a memory chunk");
    let mut bytes = std::fs::read(&chunk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x01;
    std::fs::write(&chunk, bytes).unwrap();
    format!("memory/{}", chunk.file_name().unwrap().to_string_lossy())
}

#[tokio::test]
async fn deleting_an_image_leaves_nothing_of_it() {
    let fleet = World::open();
    let name = "e2e-deleted";
    fleet.ensure_image(name, |_| ()).await;
    let microvm = fleet.run(name).await;
    let request = api::image::v1::DeleteImageRequest { image_identifier: name.to_owned() };
    let refused = fleet.context.call(request.clone()).await.unwrap_err();
    assert_eq!(refused.message(), "Cannot delete microvm image with running microvms.");
    microvm.terminate().await;
    let prefix = manifest_key(&fleet, name).await.rsplit_once('/').unwrap().0.to_owned();
    fleet.context.call(request).await.unwrap();
    fleet
        .until("the image to be gone", Duration::from_secs(60), || async {
            let request = api::image::v1::GetImageRequest { image_identifier: name.to_owned() };
            let answer = fleet.context.call(request).await;
            answer.err().filter(|status| status.code() == tonic::Code::NotFound)
        })
        .await;
    let store = object_store::Store::connect(&fleet.context.object_store()).unwrap();
    let left = store.list_prefix("torpor-snapshots", &format!("{prefix}/"), 100_000).await.unwrap();
    assert!(left.is_empty(), "{} objects left", left.len());
}
