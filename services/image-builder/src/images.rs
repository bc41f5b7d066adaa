//! What callers can do with images and versions. Each call is a few reads, a
//! decision, and one transaction; the work behind it is the queue's and the
//! remover's.

use std::sync::Arc;

use api::image::v1::{Image, ImageVersion};
use model::{ImageArn, ImageIdentifier, ImageName, Violations};
use tokio::sync::Mutex;

use crate::adapters::catalog::{Catalog, Error as CatalogError, Record};
use crate::adapters::hosts::Fleet;
use crate::config::Settings;
use crate::deletion::Remover;
use crate::domain::lifecycle;

mod bases;
mod building;
mod digest;
mod removal;
mod status;
mod tags;

pub use building::Order;

/// Times a call starts over because records changed under it.
const CONFLICTS_MAX: u32 = 8;

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Fields break rules.
    #[error("{0}")]
    Invalid(Violations),
    /// No image, or base, has this ARN.
    #[error("MicroVMImage not found for MicroVMImageID: {0}")]
    ImageNotFound(String),
    /// The image with this ARN has no such version.
    #[error("MicroVMImage not found for MicroVMImage: {0}, Version: {1}")]
    VersionNotFound(String, String),
    /// The name is taken.
    #[error("A MicroVM image with the name '{0}' already exists in this account")]
    AlreadyExists(String),
    /// The token was used for something else.
    #[error("The client token was used with other parameters")]
    TokenConflict,
    /// The state of the image with this ARN forbids it.
    #[error("{sentence}")]
    State {
        /// ARN of the image.
        arn: String,
        /// Which state, in a sentence.
        sentence: String,
    },
    /// The image with this ARN, or a version of it, cannot be deleted as it is.
    #[error("{sentence}")]
    NotDeletable {
        /// ARN of the image.
        arn: String,
        /// Why, in a sentence.
        sentence: String,
    },
    /// MicroVMs of it are alive; of what is said by the text, " version" or nothing.
    #[error("Cannot delete microvm image{0} with running microvms.")]
    InUse(&'static str),
    /// No version can be launched.
    #[error("No active version found for MicroVM image {0}")]
    NoActiveVersion(String),
    /// A limit of the account.
    #[error("{sentence}")]
    Quota {
        /// Name of the limit.
        quota: &'static str,
        /// How many there may be.
        limit: usize,
        /// What has reached it, in a sentence.
        sentence: String,
    },
    /// A neighbour did not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Records are broken.
    #[error("{0}")]
    Internal(String),
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Self {
        match &error {
            CatalogError::Store(store) if store.is_unavailable() => Self::Unavailable(error.to_string()),
            _ if error.is_conflict() => {
                Self::Unavailable("The image changes too often; try again".to_owned())
            }
            _ => Self::Internal(error.to_string()),
        }
    }
}

/// Images of one fleet.
#[derive(Debug, Clone)]
pub struct Images {
    pub(crate) catalog: Catalog,
    pub(crate) fleet: Fleet,
    pub(crate) remover: Remover,
    pub(crate) settings: Settings,
    /// Held while a call counts what a quota bounds and adds to it; other
    /// replicas are kept out by [`crate::adapters::catalog::Change::admit`].
    pub(crate) admission: Arc<Mutex<()>>,
}

impl Images {
    /// The name a caller means.
    pub fn name(&self, identifier: &str) -> Result<ImageName, Refusal> {
        let parsed = ImageIdentifier::parse(identifier, &self.settings.region, &self.settings.account);
        parsed.map(ImageIdentifier::into_name).map_err(|error| invalid("imageIdentifier", &error.to_string()))
    }

    fn arn(&self, name: &ImageName) -> String {
        let (region, account) = (self.settings.region.clone(), self.settings.account.clone());
        ImageArn { region, account, name: name.clone() }.to_string()
    }

    /// One image.
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
            // Who asked for a version is told of the version.
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

/// One attempt's outcome.
enum Attempt {
    Again(CatalogError),
    Refused(Refusal),
}

impl From<Refusal> for Attempt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<CatalogError> for Attempt {
    fn from(error: CatalogError) -> Self {
        if error.is_conflict() { Self::Again(error) } else { Self::Refused(error.into()) }
    }
}

/// Starts a call over as long as records change under it, within bounds.
async fn over_again<T, F>(attempt: impl Fn() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Attempt>>,
{
    for _ in 1..CONFLICTS_MAX {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(Attempt::Refused(refusal)) => return Err(refusal),
            Err(Attempt::Again(_)) => {}
        }
    }
    attempt().await.map_err(|last| match last {
        Attempt::Again(error) => error.into(),
        Attempt::Refused(refusal) => refusal,
    })
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

fn invalid(field: &str, message: &str) -> Refusal {
    let mut violations = Violations::default();
    violations.add(field, message);
    Refusal::Invalid(violations)
}
