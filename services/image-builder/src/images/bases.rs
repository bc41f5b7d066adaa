//! The platform's base images.

use api::image::v1::{BaseImage, BaseImageVersion};

use super::{Images, Refusal, invalid};
use crate::domain::configuration::stored_name;
use crate::domain::managed;

impl Images {
    /// Every base with its newest version, by name.
    pub async fn bases(&self) -> Result<Vec<BaseImage>, Refusal> {
        Ok(managed::bases(self.base_entries().await?, &self.settings.region))
    }

    /// The versions of one base, newest first.
    pub async fn base_versions(&self, identifier: &str) -> Result<Vec<BaseImageVersion>, Refusal> {
        let region = &self.settings.region;
        let name = managed::name(identifier, region)
            .map_err(|error| invalid("imageIdentifier", &error.to_string()))?;
        let stored = stored_name(name.as_str(), &self.settings.build.base_image_aliases);
        let versions = managed::versions(self.base_entries().await?, stored, &name, region);
        if versions.is_empty() {
            return Err(Refusal::ImageNotFound(managed::arn(region, &name)));
        }
        Ok(versions)
    }

    async fn base_entries(&self) -> Result<Vec<BaseImage>, Refusal> {
        let entries = self.catalog.bases().await?.into_iter();
        Ok(entries.filter_map(|record| record.value.base).collect())
    }
}
