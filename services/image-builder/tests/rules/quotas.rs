//! Quotas, exact also when calls come at the same time.

use super::*;

/// Creates images at the same time, over all clients; returns the refusals.
async fn create(clients: &[ImageServiceClient<Channel>], orders: Vec<CreateImageRequest>) -> Vec<Status> {
    let calls = orders.into_iter().enumerate().map(|(index, order)| {
        let mut client = clients[index % clients.len()].clone();
        async move { client.create_image(order).await }
    });
    let answers = futures::future::join_all(calls).await;
    answers.into_iter().filter_map(Result::err).collect()
}

#[track_caller]
fn quota(status: Status, quota: &str, limit: &str, message: &str) {
    let status = refused::<()>(Err(status), "QUOTA_EXCEEDED", message);
    assert_eq!(
        (metadata(&status, "quota"), metadata(&status, "limit")),
        (quota.to_owned(), limit.to_owned())
    );
}

#[tokio::test]
async fn quotas() {
    run![; own five_builds_at_a_time, as_many_images_as_are_allowed, as_many_versions_as_are_allowed];
}

async fn five_builds_at_a_time(world: &World) {
    let cell = Cell::without_s3(world).await;
    let mut orders = Vec::new();
    for number in 0..9 {
        orders.push(cell.order(&format!("app-{number}")).await);
    }
    let refusals = create(std::slice::from_ref(&cell.client), orders).await;
    assert_eq!(refusals.len(), 4, "{refusals:?}");
    let message = "Account 000000000000 has reached the maximum number of concurrent builds allowed.";
    for status in refusals {
        quota(status, "concurrent_builds", "5", message);
    }
    // Nothing was made for those, and an update is a build as well.
    assert_eq!(cell.catalog.images().await.unwrap().len(), 5);
    cell.seed("built", ImageState::Created, &[built("1.0")]).await;
    let update = cell.update("built").await;
    let status = cell.client.clone().update_image(update).await.unwrap_err();
    quota(status, "concurrent_builds", "5", message);
    assert_eq!(cell.get("built").await.state(), ImageState::Created);
    cell.stop().await;
}

async fn as_many_images_as_are_allowed(world: &World) {
    let change = |settings: &mut Config| {
        settings.images_max = 3;
        settings.build.unfinished_max = 100;
    };
    let cell = Cell::with(world, change).await;
    let second = cell.second().await;
    let clients = [cell.client.clone(), second.client.clone()];
    let mut orders = Vec::new();
    for number in 0..8 {
        orders.push(cell.order(&format!("app-{number}")).await);
    }
    let refusals = create(&clients, orders).await;
    assert_eq!(refusals.len(), 5, "{refusals:?}");
    for status in refusals {
        let message = "Account 000000000000 has reached the maximum number of MicroVM images allowed: 3.";
        quota(status, "images", "3", message);
    }
    let images = cell.catalog.images().await.unwrap();
    assert_eq!(images.len(), 3);
    for image in &images {
        cell.until_state(&image.value.name, ImageState::CreateFailed).await;
    }
    let gone = &images[0].value.name;
    cell.delete(gone).await.unwrap();
    cell.until_gone(gone).await;
    let order = cell.order("another").await;
    let refusals = create(&clients, vec![order]).await;
    assert!(refusals.is_empty(), "one may come for one that went: {refusals:?}");
    cell.until_state("another", ImageState::CreateFailed).await;
    second.stop().await;
    cell.stop().await;
}

async fn as_many_versions_as_are_allowed(world: &World) {
    let cell = Cell::with(world, |settings| settings.versions_max = 2).await;
    cell.seed("app", ImageState::Updated, &[built("1.0"), built("2.0")]).await;
    let update = cell.update("app").await;
    let status = cell.client.clone().update_image(update.clone()).await.unwrap_err();
    let message = "The MicroVM image has reached the maximum number of versions allowed: 2.";
    quota(status, "image_versions", "2", message);
    cell.delete_version("app", "1.0").await.unwrap();
    cell.until_state("app", ImageState::Updated).await;
    cell.client.clone().update_image(update).await.unwrap();
    cell.until_state("app", ImageState::UpdateFailed).await;
    cell.stop().await;
}

#[test]
fn the_defaults_are_those_of_the_service() {
    let settings = Config::default();
    assert_eq!((settings.images_max, settings.versions_max, settings.build.unfinished_max), (100, 50, 5));
    assert_eq!(settings.region, "us-east-1");
}
