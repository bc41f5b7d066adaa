//! What an image's and a version's state allow.

use super::*;

#[tokio::test]
async fn an_image_that_is_built_takes_no_other_change() {
    let ground = Ground::new().await;
    let building = unbuilt("2.0", VersionState::InProgress);
    for (name, state, text, versions) in [
        ("later", ImageState::Updating, "UPDATING", &[built("1.0"), building][..]),
        ("first", ImageState::Creating, "CREATING", &[unbuilt("1.0", VersionState::Pending)][..]),
    ] {
        ground.seed(name, state, versions).await;
        let busy = format!("MicroVM Image is already in state: {text}");
        let conflict = (Code::FailedPrecondition, "STATE_CONFLICT", busy.as_str());
        let answer = ground.patch(name, "1.0", VersionStatus::Inactive).await;
        let status = refused(answer, conflict.0, conflict.1, conflict.2);
        assert_eq!(metadata(&status, "resource"), arn(name));
        let update = ground.update(name).await;
        let answer = ground.client.clone().update_image(update).await;
        refused(answer, conflict.0, conflict.1, conflict.2);
        let answer = ground.delete_version(name, "1.0").await;
        refused(answer, conflict.0, conflict.1, conflict.2);
        assert_eq!(ground.get(name).await.state(), state, "nothing changed");
    }
    ground.stop().await;
}

#[tokio::test]
async fn an_update_replaces_everything_and_makes_a_version() {
    let ground = Ground::new().await;
    ground.seed("app", ImageState::Created, &[built("1.0")]).await;
    let mut update = ground.update("app").await;
    let configuration = update.configuration.as_mut().unwrap();
    configuration.description = "second".to_owned();
    configuration.hooks = Some(api::common::v1::Hooks { port: 8080, ..Default::default() });
    let answer = ground.client.clone().update_image(update).await.unwrap().into_inner();
    let (image, version) = (answer.image.unwrap(), answer.version.unwrap());
    assert_eq!(image.state(), ImageState::Updating);
    assert_eq!(image.latest_active_image_version, "1.0", "still the old one");
    assert_eq!((version.image_version.as_str(), version.state()), ("2.0", VersionState::Pending));
    ground.until_state("app", ImageState::UpdateFailed).await;
    let failed = ground.version("app", "2.0").await.unwrap();
    assert_eq!(
        (failed.state(), failed.state_reason.as_str()),
        (VersionState::Failed, ""),
        "the reason is the build's"
    );
    assert_eq!(ground.get("app").await.latest_failed_image_version, "2.0");

    let update = ground.update("app").await;
    let answer = ground.client.clone().update_image(update).await.unwrap().into_inner();
    let third = answer.version.unwrap();
    assert_eq!(third.image_version, "3.0");
    let configuration = third.configuration.unwrap();
    assert_eq!((configuration.hooks, configuration.description.as_str()), (None, ""));
    ground.until_state("app", ImageState::UpdateFailed).await;
    assert_eq!(ground.versions("app").await, ["3.0", "2.0", "1.0"]);
    ground.stop().await;
}

#[tokio::test]
async fn versions_are_retired_and_brought_back() {
    let ground = Ground::new().await;
    let failed = unbuilt("3.0", VersionState::Failed);
    ground.seed("app", ImageState::UpdateFailed, &[built("1.0"), built("2.0"), failed]).await;
    let latest = || async { ground.get("app").await.latest_active_image_version };
    let retired = ground.patch(&arn("app"), "2.0", VersionStatus::Inactive).await;
    let retired = retired.unwrap();
    assert_eq!((retired.state(), retired.status()), (VersionState::Successful, VersionStatus::Inactive));
    assert_eq!(latest().await, "1.0", "falls back");
    ground.patch("app", "1.0", VersionStatus::Inactive).await.unwrap();
    assert_eq!(latest().await, "");
    refused(
        ground.version("app", "").await,
        Code::NotFound,
        "NO_ACTIVE_VERSION",
        &format!("No active version found for MicroVM image {}", arn("app")),
    );
    ground.patch("app", "2.0", VersionStatus::Active).await.unwrap();
    assert_eq!(latest().await, "2.0");
    ground.patch("app", "1.0", VersionStatus::Active).await.unwrap();
    assert_eq!(latest().await, "2.0", "an older one changes nothing");
    refused(
        ground.patch("app", "3.0", VersionStatus::Active).await,
        Code::FailedPrecondition,
        "STATE_CONFLICT",
        "MicroVM Image version is in state: FAILED",
    );
    refused(
        ground.patch("app", "1.0", VersionStatus::Unspecified).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
        "status: must be ACTIVE or INACTIVE",
    );
    ground.stop().await;
}

#[tokio::test]
async fn flips_at_the_same_time_all_count() {
    let ground = Ground::new().await;
    let numbers: Vec<String> = (1..=4).map(|major| format!("{major}.0")).collect();
    let versions: Vec<Seed<'_>> = numbers.iter().map(|number| built(number)).collect();
    ground.seed("app", ImageState::Updated, &versions).await;
    let flips = numbers.iter().map(|number| ground.patch("app", number, VersionStatus::Inactive));
    for flipped in futures::future::join_all(flips).await {
        flipped.unwrap();
    }
    assert_eq!(ground.get("app").await.latest_active_image_version, "");
    ground.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let ground = Ground::new().await;
    ground.seed("app", ImageState::Created, &[built("1.0")]).await;
    let none = format!("MicroVMImage not found for MicroVMImageID: {}", arn("none"));
    let status = refused(ground.try_get("none").await, Code::NotFound, "NOT_FOUND", &none);
    assert_eq!(metadata(&status, "resource"), arn("none"));
    for number in ["2.0", "1", "01.0", "one", "1.0/../1.0"] {
        let none = format!("MicroVMImage not found for MicroVMImage: {}, Version: {number}", arn("app"));
        let none = |answer: Result<ImageVersion, Status>| {
            refused(answer, Code::NotFound, "NOT_FOUND", &none);
        };
        none(ground.version(&arn("app"), number).await);
        none(ground.patch("app", number, VersionStatus::Active).await);
        none(ground.delete_version("app", number).await);
        let builds = ListImageBuildsRequest {
            image_identifier: "app".to_owned(),
            image_version: number.to_owned(),
            ..Default::default()
        };
        let answer = ground.client.clone().list_image_builds(builds).await;
        none(answer.map(|_| ImageVersion::default()));
    }
    for identifier in ["arn:aws:lambda:us-east-1:000000000000:microvm-image/app", "arn:aws"] {
        refused(
            ground.try_get(identifier).await,
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            &format!("Invalid ARN format: {identifier}"),
        );
    }
    ground.stop().await;
}

#[tokio::test]
async fn a_listing_goes_on_when_an_image_goes_in_between() {
    let ground = Ground::new().await;
    for name in ["a", "b", "c"] {
        ground.seed(name, ImageState::Created, &[built("1.0")]).await;
    }
    let page = |page_token: String| {
        let request = ListImagesRequest { page_size: 1, page_token, name_filter: String::new() };
        let mut client = ground.client.clone();
        async move { client.list_images(request).await.unwrap().into_inner() }
    };
    let first = page(String::new()).await;
    assert_eq!(first.images[0].name, "a");
    ground.delete("a").await.unwrap();
    ground.until_gone("a").await;
    let second = page(first.next_page_token).await;
    assert_eq!(second.images[0].name, "b");
    let last = page(second.next_page_token).await;
    assert_eq!((last.images[0].name.as_str(), last.next_page_token.as_str()), ("c", ""));
    ground.stop().await;
}
