//! Lists of images, of an image's versions, and of a version's builds.

use api::image::v1::{Image, ImageBuild, ImageVersion};
use model::VersionNumber;

use super::Images;
use crate::paging::{Page, page, sort_key_desc};
use crate::refusal::Refusal;

impl Images {
    /// Images whose names contain `filter`, by name.
    pub async fn list(&self, filter: &str, wanted: Page<'_>) -> Result<(Vec<Image>, String), Refusal> {
        let images = self.catalog.images().await?.into_iter().map(|record| record.value);
        let images = images.filter(|image| image.name.contains(filter)).collect();
        page("images", images, wanted, |image: &Image| image.name.clone())
    }

    pub async fn list_versions(
        &self,
        identifier: &str,
        wanted: Page<'_>,
    ) -> Result<(Vec<ImageVersion>, String), Refusal> {
        let image = self.get(identifier).await?.value;
        let versions = self.catalog.versions(&image.name).await?;
        let versions = versions.into_iter().map(|record| record.value).collect();
        page(&format!("versions/{}", image.id), versions, wanted, version_key)
    }

    /// The builds of a version, of the newest one without a number, newest first.
    pub async fn list_builds(
        &self,
        identifier: &str,
        number: &str,
        wanted: Page<'_>,
    ) -> Result<(Vec<ImageBuild>, String), Refusal> {
        let image = self.get(identifier).await?.value;
        let number = if number.is_empty() { &image.latest_image_version } else { number };
        let number = self.version_of(&image, number).await?.value.image_version;
        let builds = self.catalog.builds(&image.name, &number).await?;
        let builds = builds.into_iter().map(|record| record.value).collect();
        page(&format!("builds/{}/{number}", image.id), builds, wanted, build_key)
    }
}

fn version_key(version: &ImageVersion) -> String {
    let number = version.image_version.parse::<VersionNumber>();
    let (major, minor) = number.map_or((0, 0), |number| (number.major, number.minor));
    format!("{}.{}", sort_key_desc(major.into()), sort_key_desc(minor.into()))
}

/// Builds of one moment are in the order of their ids, as the catalog has them.
fn build_key(build: &ImageBuild) -> String {
    let time = build.create_time.unwrap_or_default();
    let seconds = sort_key_desc(u64::try_from(time.seconds).unwrap_or(0));
    let nanos = sort_key_desc(u64::try_from(time.nanos).unwrap_or(0));
    format!("{seconds}.{nanos}/{}", build.build_id)
}
