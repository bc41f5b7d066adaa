//! What an image's and a version's state allow.

use super::*;

#[tokio::test]
async fn states() {
    run![
        an_image_that_is_built_takes_no_other_change,
        an_update_replaces_everything_and_makes_a_version,
        versions_are_retired_and_brought_back,
        flips_at_the_same_time_all_count,
        what_is_not_there_is_named,
        a_listing_goes_on_when_an_image_goes_in_between
    ];
}

async fn an_image_that_is_built_takes_no_other_change(cell: &Cell<'_>) {
    let building = unbuilt("2.0", VersionState::InProgress);
    for (name, state, text, versions) in [
        ("later", ImageState::Updating, "UPDATING", &[built("1.0"), building][..]),
        ("first", ImageState::Creating, "CREATING", &[unbuilt("1.0", VersionState::Pending)][..]),
    ] {
        cell.seed(name, state, versions).await;
        let busy = format!("MicroVM Image is already in state: {text}");
        let answer = cell.patch(name, "1.0", VersionStatus::Inactive).await;
        let status = refused(answer, "STATE_CONFLICT", &busy);
        assert_eq!(metadata(&status, "resource"), arn(name));
        let update = cell.update(name).await;
        let answer = cell.client.clone().update_image(update).await;
        refused(answer, "STATE_CONFLICT", &busy);
        let answer = cell.delete_version(name, "1.0").await;
        refused(answer, "STATE_CONFLICT", &busy);
        assert_eq!(cell.get(name).await.state(), state, "nothing changed");
    }
}

async fn an_update_replaces_everything_and_makes_a_version(cell: &Cell<'_>) {
    cell.seed("app", ImageState::Created, &[built("1.0")]).await;
    let mut update = cell.update("app").await;
    let configuration = update.configuration.as_mut().unwrap();
    configuration.description = "second".to_owned();
    configuration.hooks = Some(api::common::v1::Hooks { port: 8080, ..Default::default() });
    let answer = cell.client.clone().update_image(update).await.unwrap().into_inner();
    let (image, version) = (answer.image.unwrap(), answer.version.unwrap());
    assert_eq!(image.state(), ImageState::Updating);
    assert_eq!(image.latest_active_image_version, "1.0", "still the old one");
    assert_eq!((version.image_version.as_str(), version.state()), ("2.0", VersionState::Pending));
    cell.until_state("app", ImageState::UpdateFailed).await;
    let failed = cell.version("app", "2.0").await.unwrap();
    assert_eq!(
        (failed.state(), failed.state_reason.as_str()),
        (VersionState::Failed, ""),
        "the reason is the build's"
    );
    assert_eq!(cell.get("app").await.latest_failed_image_version, "2.0");

    let update = cell.update("app").await;
    let answer = cell.client.clone().update_image(update).await.unwrap().into_inner();
    let third = answer.version.unwrap();
    assert_eq!(third.image_version, "3.0");
    let configuration = third.configuration.unwrap();
    assert_eq!((configuration.hooks, configuration.description.as_str()), (None, ""));
    cell.until_state("app", ImageState::UpdateFailed).await;
    assert_eq!(cell.versions("app").await, ["3.0", "2.0", "1.0"]);
}

async fn versions_are_retired_and_brought_back(cell: &Cell<'_>) {
    let failed = unbuilt("3.0", VersionState::Failed);
    cell.seed("app", ImageState::UpdateFailed, &[built("1.0"), built("2.0"), failed]).await;
    let latest = || async { cell.get("app").await.latest_active_image_version };
    let retired = cell.patch(&arn("app"), "2.0", VersionStatus::Inactive).await;
    let retired = retired.unwrap();
    assert_eq!((retired.state(), retired.status()), (VersionState::Successful, VersionStatus::Inactive));
    assert_eq!(latest().await, "1.0", "falls back");
    cell.patch("app", "1.0", VersionStatus::Inactive).await.unwrap();
    assert_eq!(latest().await, "");
    refused(
        cell.version("app", "").await,
        "NO_ACTIVE_VERSION",
        &format!("No active version found for MicroVM image {}", arn("app")),
    );
    cell.patch("app", "2.0", VersionStatus::Active).await.unwrap();
    assert_eq!(latest().await, "2.0");
    cell.patch("app", "1.0", VersionStatus::Active).await.unwrap();
    assert_eq!(latest().await, "2.0", "an older one changes nothing");
    refused(
        cell.patch("app", "3.0", VersionStatus::Active).await,
        "STATE_CONFLICT",
        "MicroVM Image version is in state: FAILED",
    );
    refused(
        cell.patch("app", "1.0", VersionStatus::Unspecified).await,
        "INVALID_ARGUMENT",
        "status: must be ACTIVE or INACTIVE",
    );
}

async fn flips_at_the_same_time_all_count(cell: &Cell<'_>) {
    let numbers: Vec<String> = (1..=4).map(|major| format!("{major}.0")).collect();
    let versions: Vec<Seed<'_>> = numbers.iter().map(|number| built(number)).collect();
    cell.seed("app", ImageState::Updated, &versions).await;
    let flips = numbers.iter().map(|number| cell.patch("app", number, VersionStatus::Inactive));
    for flipped in futures::future::join_all(flips).await {
        flipped.unwrap();
    }
    assert_eq!(cell.get("app").await.latest_active_image_version, "");
}

async fn what_is_not_there_is_named(cell: &Cell<'_>) {
    cell.seed("app", ImageState::Created, &[built("1.0")]).await;
    let none = format!("MicroVMImage not found for MicroVMImageID: {}", arn("none"));
    let status = refused(cell.try_get("none").await, "NOT_FOUND", &none);
    assert_eq!(metadata(&status, "resource"), arn("none"));
    for number in ["2.0", "1", "01.0", "one", "1.0/../1.0"] {
        let none = format!("MicroVMImage not found for MicroVMImage: {}, Version: {number}", arn("app"));
        let none = |answer: Result<ImageVersion, Status>| {
            refused(answer, "NOT_FOUND", &none);
        };
        none(cell.version(&arn("app"), number).await);
        none(cell.patch("app", number, VersionStatus::Active).await);
        none(cell.delete_version("app", number).await);
        let builds = ListImageBuildsRequest {
            image_identifier: "app".to_owned(),
            image_version: number.to_owned(),
            ..Default::default()
        };
        let answer = cell.client.clone().list_image_builds(builds).await;
        none(answer.map(|_| ImageVersion::default()));
    }
    for identifier in ["arn:aws:lambda:us-east-1:000000000000:microvm-image/app", "arn:aws"] {
        refused(
            cell.try_get(identifier).await,
            "INVALID_ARGUMENT",
            &format!("Invalid ARN format: {identifier}"),
        );
    }
}

async fn a_listing_goes_on_when_an_image_goes_in_between(cell: &Cell<'_>) {
    for name in ["a", "b", "c"] {
        cell.seed(name, ImageState::Created, &[built("1.0")]).await;
    }
    let page = |page_token: String| {
        let request = ListImagesRequest { page_size: 1, page_token, name_filter: String::new() };
        let mut client = cell.client.clone();
        async move { client.list_images(request).await.unwrap().into_inner() }
    };
    let first = page(String::new()).await;
    assert_eq!(first.images[0].name, "a");
    cell.delete("a").await.unwrap();
    cell.until_gone("a").await;
    let second = page(first.next_page_token).await;
    assert_eq!(second.images[0].name, "b");
    let last = page(second.next_page_token).await;
    assert_eq!((last.images[0].name.as_str(), last.next_page_token.as_str()), ("c", ""));
}
