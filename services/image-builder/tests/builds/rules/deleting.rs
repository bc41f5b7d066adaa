//! Deleting images and versions.

use super::*;
use api::microvm::v1::{Microvm, MicrovmState};

fn living(ground: &Ground, alive: bool) {
    ground.rig.set(|script| {
        script.microvms.clear();
        if alive {
            script.microvms.push(Microvm { state: MicrovmState::Terminating.into(), ..Microvm::default() });
        }
    });
}

#[tokio::test]
async fn an_image_is_not_deleted_while_it_is_built() {
    let ground = Ground::new().await;
    let pending = unbuilt("1.0", VersionState::Pending);
    let building = unbuilt("2.0", VersionState::InProgress);
    ground.seed("first", ImageState::Creating, &[pending]).await;
    ground.seed("later", ImageState::Updating, &[built("1.0"), building]).await;
    for (name, state) in [("first", "CREATING"), ("later", "UPDATING")] {
        let status = refused(
            ground.delete(name).await,
            Code::FailedPrecondition,
            "NOT_DELETABLE",
            &format!("Cannot delete MicroVM image in its current state: {state}"),
        );
        assert_eq!(metadata(&status, "resource"), arn(name));
    }
    ground.stop().await;
}

#[tokio::test]
async fn what_microvms_live_of_is_not_deleted() {
    let ground = Ground::new().await;
    ground.seed("app", ImageState::Updated, &[built("1.0"), built("2.0")]).await;
    living(&ground, true);
    refused(
        ground.delete("app").await,
        Code::FailedPrecondition,
        "IMAGE_IN_USE",
        "Cannot delete microvm image with running microvms.",
    );
    refused(
        ground.delete_version("app", "1.0").await,
        Code::FailedPrecondition,
        "IMAGE_IN_USE",
        "Cannot delete microvm image version with running microvms.",
    );
    assert_eq!(ground.get("app").await.state(), ImageState::Updated);
    living(&ground, false);
    ground.delete("app").await.unwrap();
    ground.until_gone("app").await;
    ground.stop().await;
}

#[tokio::test]
async fn an_image_being_deleted_keeps_its_name_and_answers_again() {
    let ground = Ground::new().await;
    // It cannot go while the scheduler knows a microVM of it.
    living(&ground, true);
    ground.seed("app", ImageState::Deleting, &[built("1.0")]).await;
    for _ in 0..2 {
        let again = ground.delete(&arn("app")).await.unwrap();
        assert_eq!((again.state(), again.image_arn), (ImageState::Deleting, arn("app")));
    }
    let order = ground.order("app").await;
    let taken = ground.client.clone().create_image(order.clone()).await;
    let status = refused(
        taken,
        Code::AlreadyExists,
        "ALREADY_EXISTS",
        "A MicroVM image with the name 'app' already exists in this account",
    );
    assert_eq!(metadata(&status, "resource"), "app");
    let update = ground.update("app").await;
    let already = "MicroVM Image is already in state: DELETING";
    refused(
        ground.client.clone().update_image(update).await,
        Code::FailedPrecondition,
        "STATE_CONFLICT",
        already,
    );
    refused(
        ground.patch("app", "1.0", VersionStatus::Inactive).await,
        Code::FailedPrecondition,
        "STATE_CONFLICT",
        already,
    );
    living(&ground, false);
    ground.until_gone("app").await;
    refused(
        ground.delete("app").await,
        Code::NotFound,
        "NOT_FOUND",
        &format!("MicroVMImage not found for MicroVMImageID: {}", arn("app")),
    );
    let anew = ground.client.clone().create_image(order).await.unwrap().into_inner();
    assert_ne!(anew.image.unwrap().id, "id-of-app");
    ground.until_state("app", ImageState::CreateFailed).await;
    ground.stop().await;
}

#[tokio::test]
async fn a_deleted_version_leaves_the_image_with_the_others() {
    let ground = Ground::new().await;
    let failed = unbuilt("3.0", VersionState::Failed);
    ground.seed("app", ImageState::UpdateFailed, &[built("1.0"), built("2.0"), failed]).await;
    let deleting = ground.delete_version("app", "2.0").await.unwrap();
    assert_eq!((deleting.state(), deleting.image_version.as_str()), (VersionState::Deleting, "2.0"));
    assert_eq!(ground.get("app").await.latest_active_image_version, "1.0");
    ground.until_state("app", ImageState::Updated).await;
    assert_eq!(ground.versions("app").await, ["3.0", "1.0"]);
    refused(
        ground.delete_version("app", "2.0").await,
        Code::NotFound,
        "NOT_FOUND",
        &format!("MicroVMImage not found for MicroVMImage: {}, Version: 2.0", arn("app")),
    );
    ground.delete_version("app", "3.0").await.unwrap();
    ground.until_state("app", ImageState::Updated).await;
    let image = ground.get("app").await;
    assert_eq!(image.latest_failed_image_version, "");
    assert_eq!(image.latest_image_version, "3.0", "numbers are never used twice");
    let status = refused(
        ground.delete_version("app", "1.0").await,
        Code::FailedPrecondition,
        "NOT_DELETABLE",
        "The last version of a MicroVM image cannot be deleted; delete the image",
    );
    assert_eq!(metadata(&status, "resource"), arn("app"));
    assert_eq!(ground.versions("app").await, ["1.0"]);
    ground.stop().await;
}

#[tokio::test]
async fn an_image_waits_for_its_versions_that_go() {
    let ground = Ground::new().await;
    let going = |number| unbuilt(number, VersionState::Deleting);
    ground.seed("app", ImageState::Updating, &[going("1.0"), going("2.0"), built("3.0"), built("4.0")]).await;
    refused(
        ground.delete("app").await,
        Code::FailedPrecondition,
        "NOT_DELETABLE",
        "Cannot delete MicroVM image in its current state: UPDATING",
    );
    refused(
        ground.patch("app", "3.0", VersionStatus::Inactive).await,
        Code::FailedPrecondition,
        "STATE_CONFLICT",
        "MicroVM Image is already in state: UPDATING",
    );
    // Another one may go at the same time, and one that goes is told so again;
    // this also wakes the remover.
    for number in ["3.0", "1.0"] {
        let again = ground.delete_version("app", number).await;
        assert!(
            again.as_ref().is_ok_and(|version| version.state() == VersionState::Deleting)
                // It was faster.
                || again.as_ref().is_err_and(|status| status.code() == Code::NotFound),
            "{again:?}"
        );
    }
    ground.until_state("app", ImageState::Updated).await;
    assert_eq!(ground.versions("app").await, ["4.0"]);
    ground.delete("app").await.unwrap();
    ground.until_gone("app").await;
    ground.stop().await;
}

#[tokio::test]
async fn the_last_two_versions_do_not_go_together() {
    let ground = Ground::new().await;
    ground.seed("app", ImageState::Updated, &[built("1.0"), built("2.0")]).await;
    let (one, other) = tokio::join!(ground.delete_version("app", "1.0"), ground.delete_version("app", "2.0"));
    let refusals: Vec<Status> = [one, other].into_iter().filter_map(Result::err).collect();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(reason_of(&refusals[0]).as_deref(), Some("NOT_DELETABLE"));
    ground.until_state("app", ImageState::Updated).await;
    assert_eq!(ground.versions("app").await.len(), 1);
    ground.stop().await;
}

/// Each replica's remover sees both versions, and only the end of the second
/// lets the image go on.
#[tokio::test]
async fn replicas_that_delete_versions_of_one_image_agree() {
    let ground = Ground::new().await;
    let second = ground.rig.builder(ground.rig.settings("second")).await;
    for round in 0..5 {
        let name = format!("app-{round}");
        ground.seed(&name, ImageState::Updated, &[built("1.0"), built("2.0"), built("3.0")]).await;
        let other =
            DeleteImageVersionRequest { image_identifier: name.clone(), image_version: "2.0".to_owned() };
        let mut client = second.client.clone();
        let (one, other) =
            tokio::join!(ground.delete_version(&name, "1.0"), client.delete_image_version(other));
        one.unwrap();
        other.unwrap();
        ground.until_state(&name, ImageState::Updated).await;
        assert_eq!(ground.versions(&name).await, ["3.0"]);
        let update = ground.update(&name).await;
        ground.client.clone().update_image(update).await.unwrap();
        ground.until_state(&name, ImageState::UpdateFailed).await;
    }
    second.stop().await;
    ground.stop().await;
}

#[tokio::test]
async fn a_version_that_cannot_be_deleted_says_so_and_frees_its_image() {
    let ground = Ground::new().await;
    living(&ground, true);
    let going = unbuilt("1.0", VersionState::Deleting);
    ground.seed("app", ImageState::Updating, &[going, built("2.0")]).await;
    ground.delete_version("app", "1.0").await.unwrap();
    ground.until_state("app", ImageState::Updated).await;
    let stuck = ground.version("app", "1.0").await.unwrap();
    assert_eq!(
        (stuck.state(), stuck.state_reason.as_str()),
        (VersionState::DeleteFailed, "The deletion failed: microVMs of it are still alive.")
    );
    living(&ground, false);
    ground.delete_version("app", "1.0").await.unwrap();
    ground.until_state("app", ImageState::Updated).await;
    assert_eq!(ground.versions("app").await, ["2.0"]);
    ground.stop().await;
}
