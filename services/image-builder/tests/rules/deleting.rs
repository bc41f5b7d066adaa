//! Deleting images and versions.

use super::*;
use api::microvm::v1::{Microvm, MicrovmState};

fn living(cell: &Cell<'_>, alive: bool) {
    cell.world.set(|script| {
        script.microvms.clear();
        if alive {
            script.microvms.push(Microvm { state: MicrovmState::Terminating.into(), ..Microvm::default() });
        }
    });
}

#[tokio::test]
async fn deletions() {
    run![
        an_image_is_not_deleted_while_it_is_built,
        what_microvms_live_of_is_not_deleted,
        an_image_being_deleted_keeps_its_name_and_answers_again,
        a_deleted_version_leaves_the_image_with_the_others,
        an_image_waits_for_its_versions_that_go,
        the_last_two_versions_do_not_go_together,
        replicas_that_delete_versions_of_one_image_agree,
        a_version_that_cannot_be_deleted_says_so_and_frees_its_image,
        an_uploaded_artifact_goes_with_the_last_version_that_names_it
    ];
}

async fn an_image_is_not_deleted_while_it_is_built(cell: &Cell<'_>) {
    let pending = unbuilt("1.0", VersionState::Pending);
    let building = unbuilt("2.0", VersionState::InProgress);
    cell.seed("first", ImageState::Creating, &[pending]).await;
    cell.seed("later", ImageState::Updating, &[built("1.0"), building]).await;
    for (name, state) in [("first", "CREATING"), ("later", "UPDATING")] {
        let status = refused(
            cell.delete(name).await,
            "NOT_DELETABLE",
            &format!("Cannot delete MicroVM image in its current state: {state}"),
        );
        assert_eq!(metadata(&status, "resource"), arn(name));
    }
}

async fn what_microvms_live_of_is_not_deleted(cell: &Cell<'_>) {
    cell.seed("app", ImageState::Updated, &[built("1.0"), built("2.0")]).await;
    living(cell, true);
    refused(cell.delete("app").await, "IMAGE_IN_USE", "Cannot delete microvm image with running microvms.");
    refused(
        cell.delete_version("app", "1.0").await,
        "IMAGE_IN_USE",
        "Cannot delete microvm image version with running microvms.",
    );
    assert_eq!(cell.get("app").await.state(), ImageState::Updated);
    living(cell, false);
    cell.delete("app").await.unwrap();
    cell.until_gone("app").await;
}

async fn an_image_being_deleted_keeps_its_name_and_answers_again(cell: &Cell<'_>) {
    // It cannot go while the scheduler knows a microVM of it.
    living(cell, true);
    cell.seed("app", ImageState::Deleting, &[built("1.0")]).await;
    for _ in 0..2 {
        let again = cell.delete(&arn("app")).await.unwrap();
        assert_eq!((again.state(), again.image_arn), (ImageState::Deleting, arn("app")));
    }
    let order = cell.order("app").await;
    let taken = cell.client.clone().create_image(order.clone()).await;
    let status = refused(
        taken,
        "ALREADY_EXISTS",
        "A MicroVM image with the name 'app' already exists in this account",
    );
    assert_eq!(metadata(&status, "resource"), "app");
    let update = cell.update("app").await;
    let already = "MicroVM Image is already in state: DELETING";
    refused(cell.client.clone().update_image(update).await, "STATE_CONFLICT", already);
    refused(cell.patch("app", "1.0", VersionStatus::Inactive).await, "STATE_CONFLICT", already);
    living(cell, false);
    cell.until_gone("app").await;
    refused(
        cell.delete("app").await,
        "NOT_FOUND",
        &format!("MicroVMImage not found for MicroVMImageID: {}", arn("app")),
    );
    let anew = cell.client.clone().create_image(order).await.unwrap().into_inner();
    assert_ne!(anew.image.unwrap().id, "id-of-app");
    cell.until_state("app", ImageState::CreateFailed).await;
}

async fn a_deleted_version_leaves_the_image_with_the_others(cell: &Cell<'_>) {
    let failed = unbuilt("3.0", VersionState::Failed);
    cell.seed("app", ImageState::UpdateFailed, &[built("1.0"), built("2.0"), failed]).await;
    let deleting = cell.delete_version("app", "2.0").await.unwrap();
    assert_eq!((deleting.state(), deleting.image_version.as_str()), (VersionState::Deleting, "2.0"));
    assert_eq!(cell.get("app").await.latest_active_image_version, "1.0");
    cell.until_state("app", ImageState::Updated).await;
    assert_eq!(cell.versions("app").await, ["3.0", "1.0"]);
    refused(
        cell.delete_version("app", "2.0").await,
        "NOT_FOUND",
        &format!("MicroVMImage not found for MicroVMImage: {}, Version: 2.0", arn("app")),
    );
    cell.delete_version("app", "3.0").await.unwrap();
    cell.until_state("app", ImageState::Updated).await;
    let image = cell.get("app").await;
    assert_eq!(image.latest_failed_image_version, "");
    assert_eq!(image.latest_image_version, "3.0", "numbers are never used twice");
    let status = refused(
        cell.delete_version("app", "1.0").await,
        "NOT_DELETABLE",
        "The last version of a MicroVM image cannot be deleted; delete the image",
    );
    assert_eq!(metadata(&status, "resource"), arn("app"));
    assert_eq!(cell.versions("app").await, ["1.0"]);
}

async fn an_image_waits_for_its_versions_that_go(cell: &Cell<'_>) {
    let going = |number| unbuilt(number, VersionState::Deleting);
    cell.seed("app", ImageState::Updating, &[going("1.0"), going("2.0"), built("3.0"), built("4.0")]).await;
    refused(
        cell.delete("app").await,
        "NOT_DELETABLE",
        "Cannot delete MicroVM image in its current state: UPDATING",
    );
    refused(
        cell.patch("app", "3.0", VersionStatus::Inactive).await,
        "STATE_CONFLICT",
        "MicroVM Image is already in state: UPDATING",
    );
    // Another one may go at the same time, and one that goes is told so again; this also wakes the remover.
    for number in ["3.0", "1.0"] {
        let again = cell.delete_version("app", number).await;
        assert!(
            again.as_ref().is_ok_and(|version| version.state() == VersionState::Deleting)
                // It was faster.
                || again.as_ref().is_err_and(|status| status.code() == Code::NotFound),
            "{again:?}"
        );
    }
    cell.until_state("app", ImageState::Updated).await;
    assert_eq!(cell.versions("app").await, ["4.0"]);
    cell.delete("app").await.unwrap();
    cell.until_gone("app").await;
}

async fn the_last_two_versions_do_not_go_together(cell: &Cell<'_>) {
    cell.seed("app", ImageState::Updated, &[built("1.0"), built("2.0")]).await;
    let (one, other) = tokio::join!(cell.delete_version("app", "1.0"), cell.delete_version("app", "2.0"));
    let refusals: Vec<Status> = [one, other].into_iter().filter_map(Result::err).collect();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(reason_of(&refusals[0]).as_deref(), Some("NOT_DELETABLE"));
    cell.until_state("app", ImageState::Updated).await;
    assert_eq!(cell.versions("app").await.len(), 1);
}

/// Each replica's remover sees both versions, and only the end of the second lets the image go on.
async fn replicas_that_delete_versions_of_one_image_agree(cell: &Cell<'_>) {
    let second = cell.second().await;
    for round in 0..5 {
        let name = format!("app-{round}");
        cell.seed(&name, ImageState::Updated, &[built("1.0"), built("2.0"), built("3.0")]).await;
        let other =
            DeleteImageVersionRequest { image_identifier: name.clone(), image_version: "2.0".to_owned() };
        let mut client = second.client.clone();
        let (one, other) =
            tokio::join!(cell.delete_version(&name, "1.0"), client.delete_image_version(other));
        one.unwrap();
        other.unwrap();
        cell.until_state(&name, ImageState::Updated).await;
        assert_eq!(cell.versions(&name).await, ["3.0"]);
        let update = cell.update(&name).await;
        cell.client.clone().update_image(update).await.unwrap();
        cell.until_state(&name, ImageState::UpdateFailed).await;
    }
    second.stop().await;
}

async fn a_version_that_cannot_be_deleted_says_so_and_frees_its_image(cell: &Cell<'_>) {
    living(cell, true);
    let going = unbuilt("1.0", VersionState::Deleting);
    cell.seed("app", ImageState::Updating, &[going, built("2.0")]).await;
    cell.delete_version("app", "1.0").await.unwrap();
    cell.until_state("app", ImageState::Updated).await;
    let stuck = cell.version("app", "1.0").await.unwrap();
    assert_eq!(
        (stuck.state(), stuck.state_reason.as_str()),
        (VersionState::DeleteFailed, "The deletion failed: microVMs of it are still alive.")
    );
    living(cell, false);
    cell.delete_version("app", "1.0").await.unwrap();
    cell.until_state("app", ImageState::Updated).await;
    assert_eq!(cell.versions("app").await, ["2.0"]);
}

async fn an_uploaded_artifact_goes_with_the_last_version_that_names_it(cell: &Cell<'_>) {
    let uploaded = "app/0123456789abcdef0123456789abcdef.zip";
    let store = cell.world.s3.store();
    for key in [uploaded, "app.zip"] {
        store.put(ARTIFACTS, key, "zip".into()).await.unwrap();
    }
    let is_there = async |key| store.head(ARTIFACTS, key).await.is_ok();
    for (name, versions) in [("app", ["1.0", "2.0"].as_slice()), ("same", &["1.0"]), ("own", &["1.0"])] {
        let seeds: Vec<Seed<'_>> = versions.iter().map(|number| built(number)).collect();
        cell.seed(name, ImageState::Updated, &seeds).await;
        for number in versions {
            let mut record = cell.catalog.version(name, number).await.unwrap().unwrap();
            let configuration = record.value.configuration.as_mut().unwrap();
            let key = if name == "own" { "app.zip" } else { uploaded };
            configuration.code_artifact = Some(CodeArtifact { uri: format!("s3://{ARTIFACTS}/{key}") });
            let change = Change::new().version(&record.value, Some(record.revision));
            cell.catalog.apply(change).await.unwrap();
        }
    }
    cell.delete_version("app", "1.0").await.unwrap();
    cell.until_state("app", ImageState::Updated).await;
    assert!(is_there(uploaded).await, "another version names it");
    cell.delete("app").await.unwrap();
    cell.until_gone("app").await;
    assert!(is_there(uploaded).await, "a version of another image names it");
    for name in ["same", "own"] {
        cell.delete(name).await.unwrap();
        cell.until_gone(name).await;
    }
    assert!(!is_there(uploaded).await);
    assert!(is_there("app.zip").await, "its owner chose that name");
}
