//! Deleting: the checks and the records; files go in the background.

use api::image::v1::{Image, ImageVersion};
use model::state::{ImageEvent, VersionEvent};

use super::{Images, Refusal, check_number};
use crate::adapters::catalog::Change;
use crate::domain::lifecycle;
use crate::pipeline::now;

impl Images {
    /// Begins to delete an image with all its versions.
    pub async fn delete(&self, identifier: &str) -> Result<Image, Refusal> {
        let mut image = self.get(identifier).await?;
        let versions = self.catalog.versions(&image.value.name).await?;
        let state = lifecycle::image_state_name(image.value.state());
        let refused = || {
            Refusal::State(format!(
                "Cannot delete MicroVM image in its current state: {state}"
            ))
        };
        let draining = versions
            .iter()
            .any(|version| lifecycle::version_state_name(version.value.state()) == "DELETING");
        if draining && state != "DELETING" {
            return Err(refused());
        }
        if lifecycle::image(&mut image.value, ImageEvent::DeleteBegan, now()).is_err() {
            return Err(refused());
        }
        self.check_unused(&image.value.image_arn, None).await?;
        // Dying after this line: the next sweep of any replica goes on.
        self.catalog
            .apply(Change::new().image(&image.value, Some(image.revision)))
            .await?;
        tracing::info!(image = image.value.name, "image DELETING");
        self.remover.notify(&image.value.name);
        Ok(image.value)
    }

    /// Begins to delete one version.
    pub async fn delete_version(&self, identifier: &str, number: &str) -> Result<ImageVersion, Refusal> {
        check_number(number)?;
        let mut image = self.get(identifier).await?;
        let mut version = self.get_version(identifier, number).await?;
        let versions = self.catalog.versions(&image.value.name).await?;
        let again = lifecycle::version_state_name(version.value.state()) == "DELETING";
        if versions.len() <= 1 && !again {
            let text = "The last version of a MicroVM image cannot be deleted; delete the image";
            return Err(Refusal::State(text.to_owned()));
        }
        let state = lifecycle::version_state_name(version.value.state());
        if lifecycle::version(&mut version.value, VersionEvent::DeleteBegan, now()).is_err() {
            let text = format!("Cannot delete MicroVM image version in its current state: {state}");
            return Err(Refusal::State(text));
        }
        self.check_unused(&image.value.image_arn, Some(number)).await?;
        let mut all: Vec<ImageVersion> = versions.into_iter().map(|record| record.value).collect();
        all.retain(|other| other.image_version != number);
        all.push(version.value.clone());
        lifecycle::recount(&mut image.value, &all);
        let change = Change::new()
            .version(&version.value, Some(version.revision))
            .image(&image.value, Some(image.revision));
        self.catalog.apply(change).await?;
        tracing::info!(image = image.value.name, version = number, "version DELETING");
        self.remover.notify(&image.value.name);
        Ok(version.value)
    }

    async fn check_unused(&self, arn: &str, version: Option<&str>) -> Result<(), Refusal> {
        match self.fleet.in_use(arn, version).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(Refusal::InUse),
            Err(status) => Err(Refusal::Unavailable(format!(
                "The scheduler cannot say whether microVMs of the image are alive: {}",
                status.message()
            ))),
        }
    }
}
