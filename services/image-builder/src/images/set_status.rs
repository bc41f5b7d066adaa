//! Which versions may be launched.

use api::image::v1::{ImageState, ImageVersion, VersionState, VersionStatus};

use super::{Images, already, retry_on_conflict};
use crate::domain::lifecycle;
use crate::refusal::Refusal;

impl Images {
    /// Makes a version launchable or retires it.
    pub async fn set_status(
        &self,
        identifier: &str,
        number: &str,
        status: VersionStatus,
    ) -> Result<ImageVersion, Refusal> {
        if status == VersionStatus::Unspecified {
            return Err(Refusal::invalid("status", "must be ACTIVE or INACTIVE"));
        }
        retry_on_conflict(|| self.try_set_status(identifier, number, status)).await
    }

    async fn try_set_status(
        &self,
        identifier: &str,
        number: &str,
        status: VersionStatus,
    ) -> Result<ImageVersion, Refusal> {
        let mut image = self.get(identifier).await?;
        let mut version = self.version_of(&image.value, number).await?;
        if matches!(image.value.state(), ImageState::Creating | ImageState::Updating | ImageState::Deleting) {
            return Err(already(&image.value));
        }
        if version.value.state() != VersionState::Successful {
            let state = lifecycle::version_state_name(version.value.state());
            let refusal = Refusal::State {
                arn: image.value.image_arn,
                sentence: format!("MicroVM Image version is in state: {state}"),
            };
            return Err(refusal);
        }
        version.value.set_status(status);
        version.value.update_time = Some(api::timestamp(self.clock.now()));
        let mut others = self.versions_of(&image.value).await?;
        others.retain(|other| other.image_version != version.value.image_version);
        self.write_version(&mut image, &version, others).await?;
        tracing::info!(
            image = image.value.name,
            version = number,
            status = status.as_str_name(),
            "version status"
        );
        Ok(version.value)
    }
}
