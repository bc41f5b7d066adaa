//! What callers can do with images and versions. Each call is a few reads, a decision, and one transaction;
//! the work behind it is the queue's and the remover's.

use std::sync::Arc;

use api::image::v1::{Image, ImageBuild, ImageVersion};
use clock::Clock;
use model::{ImageArn, ImageIdentifier, ImageName};
use tokio::sync::Mutex;

use crate::adapters::catalog::{Catalog, Change, Record};
use crate::adapters::peers::Peers;
use crate::bases::BaseImages;
use crate::config::Config;
use crate::deletion::Remover;
use crate::domain::lifecycle;
use crate::refusal::Refusal;

mod build;
mod delete;
mod list;
mod request;
mod set_status;
mod tags;

pub use request::BuildRequest;

/// Times a call starts over because records changed under it.
const CONFLICTS_MAX: u32 = 8;

#[derive(Debug, Clone)]
pub struct Images {
    pub(crate) catalog: Catalog,
    pub(crate) peers: Peers,
    pub(crate) remover: Remover,
    pub(crate) bases: BaseImages,
    pub(crate) config: Arc<Config>,
    pub(crate) clock: Clock,
    /// Held while a call counts what a quota bounds and adds to it; other
    /// replicas are kept out by [`crate::adapters::catalog::Change::admit`].
    pub(crate) admission: Arc<Mutex<()>>,
}

impl Images {
    pub fn name(&self, identifier: &str) -> Result<ImageName, Refusal> {
        let parsed = ImageIdentifier::parse(identifier, &self.config.region, &self.config.account);
        parsed
            .map(ImageIdentifier::into_name)
            .map_err(|error| Refusal::invalid("imageIdentifier", error.to_string()))
    }

    fn arn(&self, name: &ImageName) -> String {
        let (region, account) = (self.config.region.clone(), self.config.account.clone());
        ImageArn { region, account, name: name.clone() }.to_string()
    }

    pub async fn get(&self, identifier: &str) -> Result<Record<Image>, Refusal> {
        let name = self.name(identifier)?;
        let found = self.catalog.image(name.as_str()).await?;
        found.ok_or_else(|| Refusal::ImageNotFound(self.arn(&name)))
    }

    /// One version; the newest that may be launched without a number.
    pub async fn get_version(
        &self,
        identifier: &str,
        version: &str,
    ) -> Result<Record<ImageVersion>, Refusal> {
        let found = self.get(identifier).await.map_err(|refusal| match refusal {
            // A caller that asked for a version reads about the version.
            Refusal::ImageNotFound(arn) if !version.is_empty() => {
                Refusal::VersionNotFound(arn, version.to_owned())
            }
            other => other,
        });
        let image = found?.value;
        if version.is_empty() && image.latest_active_image_version.is_empty() {
            return Err(Refusal::NoActiveVersion(image.image_arn));
        }
        let number = if version.is_empty() { &image.latest_active_image_version } else { version };
        self.version_of(&image, number).await
    }

    pub async fn get_build(&self, id: &str) -> Result<ImageBuild, Refusal> {
        let found = self.catalog.build(id).await?;
        Ok(found.ok_or_else(|| Refusal::BuildNotFound(id.to_owned()))?.value)
    }

    async fn versions_of(&self, image: &Image) -> Result<Vec<ImageVersion>, Refusal> {
        let versions = self.catalog.versions(&image.name).await?;
        Ok(versions.into_iter().map(|record| record.value).collect())
    }

    /// Writes a version, and with it the image, which names versions by what they have become.
    async fn write_version(
        &self,
        image: &mut Record<Image>,
        version: &Record<ImageVersion>,
        mut others: Vec<ImageVersion>,
    ) -> Result<(), Refusal> {
        others.push(version.value.clone());
        lifecycle::recount(&mut image.value, &others);
        let change = Change::new()
            .version(&version.value, Some(version.revision))
            .image(&image.value, Some(image.revision));
        self.catalog.apply(change).await?;
        Ok(())
    }

    /// A version of an image by its number.
    pub async fn version_of(&self, image: &Image, number: &str) -> Result<Record<ImageVersion>, Refusal> {
        // What is no number names no version, and no key either.
        let found = match number.parse::<model::VersionNumber>() {
            Ok(_) => self.catalog.version(&image.name, number).await?,
            Err(_) => None,
        };
        found.ok_or_else(|| Refusal::VersionNotFound(image.image_arn.clone(), number.to_owned()))
    }
}

/// Starts a call over as long as records change under it, within bounds.
async fn retry_on_conflict<T, F>(attempt: impl Fn() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    for _ in 1..CONFLICTS_MAX {
        match attempt().await {
            Err(Refusal::Conflict) => {}
            outcome => return outcome,
        }
    }
    attempt().await
}

fn already(image: &Image) -> Refusal {
    Refusal::State {
        arn: image.image_arn.clone(),
        sentence: format!(
            "MicroVM Image is already in state: {}",
            lifecycle::image_state_name(image.state())
        ),
    }
}
