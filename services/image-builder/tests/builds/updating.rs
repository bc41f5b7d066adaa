//! Versions that follow each other, built for real.

use api::image::v1::*;
use image_builder::adapters::catalog::{BaseEntry, Change};

use crate::machine::{build, ended, log};
use crate::world::{SNAPSHOTS, World, until};

/// A base under AWS's name, pinned to its older version; the newer one cannot
/// be built on, for its files are nowhere.
#[tokio::test]
async fn a_built_version_takes_over_and_one_deleted_gives_way() {
    let world = World::start().await;
    world.tiny_base().await;
    let base = BaseImage { name: "debian-12".into(), version: "2".into(), ..BaseImage::default() };
    let newer = BaseEntry { base: Some(base), key: "bases/none".into(), digest: "0".repeat(64) };
    world.catalog.apply(Change::new().new_base(&newer)).await.unwrap();
    let builder = world.builder(world.settings("builder")).await;
    let mut client = builder.client.clone();
    let files = [("Dockerfile", "FROM debian-12\nCMD [\"/x\"]\n")];
    let mut order = world.order("app", &files).await;
    let configuration = order.configuration.as_mut().unwrap();
    configuration.base_image_arn = "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1".to_owned();
    configuration.base_image_version = "1".to_owned();
    let configuration = order.configuration.clone();

    let first = build(&mut client, order).await;
    assert_eq!(first.state(), BuildState::Successful, "{}", first.state_reason);
    let (lines, _) = log(&mut client, &first.build_id, false).await;
    let has = |text: &str| lines.iter().any(|line| line.contains(text));
    assert!(has("Base image debian-12 version 1."), "{lines:#?}");
    let image = || async {
        let request = GetImageRequest { image_identifier: "app".into() };
        client.clone().get_image(request).await.unwrap().into_inner().image.unwrap()
    };
    let settled = image().await;
    assert_eq!((settled.state(), settled.latest_active_image_version.as_str()), (ImageState::Created, "1.0"));

    let update =
        UpdateImageRequest { image_identifier: "app".into(), configuration, client_token: String::new() };
    let updated = client.clone().update_image(update).await.unwrap().into_inner();
    assert_eq!(updated.image.unwrap().latest_active_image_version, "1.0");
    let second = ended(&mut client.clone(), "app").await;
    assert_eq!(second.state(), BuildState::Successful, "{}", second.state_reason);
    let settled = image().await;
    assert_eq!((settled.state(), settled.latest_active_image_version.as_str()), (ImageState::Updated, "2.0"));

    let mine = |number: &str| format!("images/{}/{number}/", settled.id);
    assert!(!world.keys(SNAPSHOTS, &mine("2.0")).await.is_empty());
    let delete = DeleteImageVersionRequest { image_identifier: "app".into(), image_version: "2.0".into() };
    let version = client.clone().delete_image_version(delete).await.unwrap().into_inner().version;
    assert_eq!(version.unwrap().state(), VersionState::Deleting);
    until("the version is gone", || async { image().await.state() == ImageState::Updated }).await;
    assert_eq!(image().await.latest_active_image_version, "1.0");
    assert_eq!(world.keys(SNAPSHOTS, &mine("2.0")).await, Vec::<String>::new());
    assert!(!world.keys(SNAPSHOTS, &mine("1.0")).await.is_empty());
    builder.stop().await;
}
