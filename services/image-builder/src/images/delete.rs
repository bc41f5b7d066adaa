//! Deleting: the checks and the records; files go in the background.

use api::image::v1::{Image, ImageState, ImageVersion, VersionState};
use model::state::{ImageEvent, VersionEvent};

use super::{Images, already, retry_on_conflict};
use crate::adapters::catalog::Change;
use crate::domain::lifecycle;
use crate::refusal::Refusal;

impl Images {
    /// Begins to delete an image with all its versions. One that is being deleted is answered as it is.
    pub async fn delete(&self, identifier: &str) -> Result<Image, Refusal> {
        let image = retry_on_conflict(|| self.try_delete(identifier)).await?;
        self.remover.notify(&image.name);
        Ok(image)
    }

    async fn try_delete(&self, identifier: &str) -> Result<Image, Refusal> {
        let mut image = self.get(identifier).await?;
        if image.value.state() == ImageState::Deleting {
            return Ok(image.value);
        }
        let state = lifecycle::image_state_name(image.value.state());
        if lifecycle::image(&mut image.value, ImageEvent::DeleteBegan, self.clock.now()).is_err() {
            let sentence = format!("Cannot delete MicroVM image in its current state: {state}");
            return Err(not_deletable(&image.value, sentence));
        }
        self.check_unused(&image.value.image_arn, None).await?;
        // Dying after this line: the next sweep of any replica goes on.
        self.catalog.apply(Change::new().image(&image.value, Some(image.revision))).await?;
        tracing::info!(image = image.value.name, "image DELETING");
        Ok(image.value)
    }

    /// Begins to delete one version. One that is being deleted is answered as it is.
    pub async fn delete_version(&self, identifier: &str, number: &str) -> Result<ImageVersion, Refusal> {
        let version = retry_on_conflict(|| self.try_delete_version(identifier, number)).await?;
        self.remover.notify(&version.image_name);
        Ok(version)
    }

    async fn try_delete_version(&self, identifier: &str, number: &str) -> Result<ImageVersion, Refusal> {
        let mut image = self.get(identifier).await?;
        let mut version = self.version_of(&image.value, number).await?;
        if version.value.state() == VersionState::Deleting {
            return Ok(version.value);
        }
        let mut all = self.versions_of(&image.value).await?;
        let is_built = |version: &ImageVersion| {
            matches!(version.state(), VersionState::Pending | VersionState::InProgress)
        };
        let busy = all.iter().any(is_built);
        if busy || lifecycle::image(&mut image.value, ImageEvent::TrimBegan, self.clock.now()).is_err() {
            return Err(already(&image.value));
        }
        all.retain(|other| other.image_version != number);
        if all.iter().all(|other| other.state() == VersionState::Deleting) {
            let text = "The last version of a MicroVM image cannot be deleted; delete the image";
            return Err(not_deletable(&image.value, text.to_owned()));
        }
        let state = lifecycle::version_state_name(version.value.state());
        if lifecycle::version(&mut version.value, VersionEvent::DeleteBegan, self.clock.now()).is_err() {
            let sentence = format!("Cannot delete MicroVM image version in its current state: {state}");
            return Err(not_deletable(&image.value, sentence));
        }
        self.check_unused(&image.value.image_arn, Some(number)).await?;
        // Dying after this line: the next sweep of any replica goes on.
        self.write_version(&mut image, &version, all).await?;
        tracing::info!(image = image.value.name, version = number, "version DELETING");
        Ok(version.value)
    }

    async fn check_unused(&self, arn: &str, version: Option<&str>) -> Result<(), Refusal> {
        match self.peers.in_use(arn, version, false).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(Refusal::InUse(if version.is_some() { " version" } else { "" })),
            Err(status) => Err(Refusal::Unavailable(format!(
                "The scheduler cannot say whether microVMs of the image are alive: {}",
                status.message()
            ))),
        }
    }
}

fn not_deletable(image: &Image, sentence: String) -> Refusal {
    let arn = image.image_arn.clone();
    Refusal::NotDeletable { arn, sentence }
}
