//! What callers can do with images and versions. Each call is a few reads, a
//! decision, and one transaction; the work behind it is the queue's and the
//! remover's.

use std::time::UNIX_EPOCH;

use api::common::v1::Architecture;
use api::image::v1::{
    BuildState, Image, ImageBuild, ImageConfiguration, ImageState, ImageVersion, VersionState, VersionStatus,
};
use model::state::ImageEvent;
use model::{ImageArn, ImageIdentifier, ImageName, VersionNumber, Violations};
use uuid::Uuid;

use crate::adapters::catalog::{Catalog, Change, Error as CatalogError, QueueEntry, Record, TokenEntry};
use crate::adapters::hosts::Fleet;
use crate::config::Settings;
use crate::deletion::Remover;
use crate::domain::configuration::{self, Offer};
use crate::domain::lifecycle;
use crate::pipeline::{bases, now};

mod digest;
mod removal;

/// Times a call starts over because records changed under it.
const CONFLICTS_MAX: u32 = 8;

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Fields break rules.
    #[error("{0}")]
    Invalid(Violations),
    /// Nothing has this name: kind and name.
    #[error("{0} not found: {1}")]
    NotFound(&'static str, String),
    /// The name is taken.
    #[error("A MicroVM image with the name '{0}' already exists in this account")]
    AlreadyExists(String),
    /// The token was used for something else.
    #[error("The client token was used with other parameters")]
    TokenConflict,
    /// The state forbids it.
    #[error("{0}")]
    State(String),
    /// MicroVMs of it are alive.
    #[error("Cannot delete microvm image with running microvms.")]
    InUse,
    /// No version can be launched.
    #[error("No active version found for MicroVM image {0}")]
    NoActiveVersion(String),
    /// A limit of the account.
    #[error("{0}")]
    Quota(String),
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
            _ if error.is_conflict() => Self::State("The image changed meanwhile; try again".to_owned()),
            _ => Self::Internal(error.to_string()),
        }
    }
}

/// A request to build: a new image, or a new version of one.
#[derive(Debug, Clone)]
pub struct Order {
    /// Name or ARN.
    pub name: String,
    /// What to build.
    pub configuration: Option<ImageConfiguration>,
    /// Tags; of a new image only.
    pub tags: std::collections::HashMap<String, String>,
    /// Idempotency token; empty means none.
    pub client_token: String,
    /// True for a new image.
    pub create: bool,
}

/// Images of one fleet.
#[derive(Debug, Clone)]
pub struct Images {
    pub(crate) catalog: Catalog,
    pub(crate) fleet: Fleet,
    pub(crate) remover: Remover,
    pub(crate) settings: Settings,
}

impl Images {
    /// The name a caller means.
    pub fn name(&self, identifier: &str) -> Result<ImageName, Refusal> {
        let parsed = ImageIdentifier::parse(identifier, &self.settings.region, &self.settings.account);
        parsed
            .map(ImageIdentifier::into_name)
            .map_err(|error| invalid("image_identifier", &error.to_string()))
    }

    fn arn(&self, name: &ImageName) -> String {
        let (region, account) = (self.settings.region.clone(), self.settings.account.clone());
        ImageArn {
            region,
            account,
            name: name.clone(),
        }
        .to_string()
    }

    /// One image.
    pub async fn get(&self, identifier: &str) -> Result<Record<Image>, Refusal> {
        let name = self.name(identifier)?;
        let found = self.catalog.image(name.as_str()).await?;
        found.ok_or_else(|| Refusal::NotFound("MicroVM image", self.arn(&name)))
    }

    /// One version; the newest that may be launched without a number.
    pub async fn get_version(
        &self,
        identifier: &str,
        version: &str,
    ) -> Result<Record<ImageVersion>, Refusal> {
        let image = self.get(identifier).await?.value;
        if version.is_empty() && image.latest_active_image_version.is_empty() {
            return Err(Refusal::NoActiveVersion(image.image_arn));
        }
        let number = if version.is_empty() {
            &image.latest_active_image_version
        } else {
            version
        };
        check_number(number)?;
        let found = self.catalog.version(&image.name, number).await?;
        found.ok_or_else(|| {
            Refusal::NotFound(
                "MicroVM image version",
                format!("{}, Version: {number}", image.image_arn),
            )
        })
    }

    /// Begins a build: records of image, version, build, token and queue, all or
    /// nothing.
    pub async fn build(&self, order: Order) -> Result<(Image, ImageVersion), Refusal> {
        for _ in 0..CONFLICTS_MAX {
            match self.try_build(&order).await {
                Err(Attempt::Again) => {}
                Err(Attempt::Refused(refusal)) => return Err(refusal),
                Ok(built) => return Ok(built),
            }
        }
        Err(Refusal::Unavailable(
            "The image changes too often; try again".to_owned(),
        ))
    }

    async fn try_build(&self, order: &Order) -> Result<(Image, ImageVersion), Attempt> {
        let digest = digest::of(order);
        let mut used = None;
        if !order.client_token.is_empty() {
            if let Err(error) = order.client_token.parse::<model::ClientToken>() {
                return Err(invalid("client_token", &error.to_string()).into());
            }
            used = self.catalog.token(&order.client_token).await?;
            if let Some(entry) = &used
                && let Some(before) = self.replay(&entry.value, &digest).await?
            {
                return Ok(before);
            }
        }
        let (name, configuration) = self.check(order).await?;
        let existing = self.catalog.image(name.as_str()).await?;
        let (image, revision) = match (existing, order.create) {
            (Some(_), true) => return Err(Refusal::AlreadyExists(name.to_string()).into()),
            (None, false) => return Err(Refusal::NotFound("MicroVM image", self.arn(&name)).into()),
            (None, true) => (self.new_image(&name, order).await?, None),
            (Some(image), false) => (self.updated(&image.value).await?, Some(image.revision)),
        };
        self.check_queue().await?;
        let version = new_version(&image, configuration);
        let mut change = Change::new().image(&image, revision).version(&version, None);
        for (build, entry) in self.new_builds(&image, &version) {
            change = change.new_build(&build, &entry);
        }
        if !order.client_token.is_empty() {
            let entry = TokenEntry {
                request_digest: digest,
                image_name: image.name.clone(),
                image_id: image.id.clone(),
                image_version: version.image_version.clone(),
            };
            change = change.token(&order.client_token, &entry, used.map(|record| record.revision));
        }
        // Dying after this line: the caller repeats with its token and gets the
        // same answer; the queue has the build either way.
        self.catalog.apply(change).await?;
        let state = lifecycle::image_state_name(image.state());
        tracing::info!(
            image = image.name,
            version = version.image_version,
            state,
            "image build queued"
        );
        Ok((image, version))
    }

    /// What a token's first use made, if it is still there.
    async fn replay(
        &self,
        entry: &TokenEntry,
        digest: &str,
    ) -> Result<Option<(Image, ImageVersion)>, Attempt> {
        let image = self.catalog.image(&entry.image_name).await?;
        let image = image.filter(|image| image.value.id == entry.image_id);
        let version = self
            .catalog
            .version(&entry.image_name, &entry.image_version)
            .await?;
        match (image, version) {
            (Some(_), _) if entry.request_digest != digest => Err(Refusal::TokenConflict.into()),
            (Some(image), Some(version)) => Ok(Some((image.value, version.value))),
            // Deleted since: a token does not bring anything back.
            _ => Ok(None),
        }
    }

    async fn check(&self, order: &Order) -> Result<(ImageName, ImageConfiguration), Attempt> {
        let mut violations = Violations::default();
        let name = if order.create {
            violations.keep("name", order.name.parse::<ImageName>())
        } else {
            Some(self.name(&order.name)?)
        };
        let known = bases::known(&self.catalog).await?;
        let architectures = self.architectures();
        let offer = Offer {
            bases: &known,
            region: &self.settings.region,
            default_base: &self.settings.build.default_base_image,
            architectures: &architectures,
            memory_default_mib: self.settings.bake.memory_default_mib,
        };
        let complete = configuration::complete(order.configuration.clone(), &offer, &mut violations);
        configuration::check_tags(&order.tags, &mut violations);
        match (name, violations.finish()) {
            (Some(name), Ok(())) => Ok((name, complete)),
            (_, Err(violations)) => Err(Refusal::Invalid(violations).into()),
            (None, Ok(())) => Err(Refusal::Internal("a name without a violation".to_owned()).into()),
        }
    }

    fn architectures(&self) -> Vec<Architecture> {
        let names = self.settings.build.architectures.iter();
        names
            .filter_map(|name| Architecture::from_str_name(&format!("ARCHITECTURE_{name}")))
            .collect()
    }

    async fn check_queue(&self) -> Result<(), Attempt> {
        if self.catalog.queue().await?.len() >= self.settings.build.queued_max {
            let account = &self.settings.account;
            let text =
                format!("Account {account} has reached the maximum number of concurrent builds allowed.");
            return Err(Refusal::Quota(text).into());
        }
        Ok(())
    }

    async fn new_image(&self, name: &ImageName, order: &Order) -> Result<Image, Attempt> {
        let limit = self.settings.images_max;
        if self.catalog.images().await?.len() >= limit {
            return Err(Refusal::Quota(format!("The account has {limit} images, which is its limit")).into());
        }
        let time = Some(api::timestamp(now()));
        Ok(Image {
            name: name.to_string(),
            image_arn: self.arn(name),
            id: Uuid::new_v4().to_string(),
            state: ImageState::Creating.into(),
            latest_image_version: VersionNumber::FIRST.to_string(),
            create_time: time,
            update_time: time,
            tags: order.tags.clone(),
            ..Image::default()
        })
    }

    /// An image with its next version begun. Numbers are never used twice.
    async fn updated(&self, image: &Image) -> Result<Image, Attempt> {
        let mut image = image.clone();
        if lifecycle::image(&mut image, ImageEvent::UpdateBegan, now()).is_err() {
            return Err(Refusal::State(already(&image)).into());
        }
        let limit = self.settings.versions_max;
        if self.catalog.versions(&image.name).await?.len() >= limit {
            return Err(Refusal::Quota(format!("The image has {limit} versions, which is its limit")).into());
        }
        let newest = image.latest_image_version.parse::<VersionNumber>();
        let next = newest.map(VersionNumber::next).unwrap_or(VersionNumber::FIRST);
        image.latest_image_version = next.to_string();
        Ok(image)
    }

    fn new_builds(&self, image: &Image, version: &ImageVersion) -> Vec<(ImageBuild, QueueEntry)> {
        let complete = version.configuration.clone().unwrap_or_default();
        let offered = self.architectures();
        // One build today: all architectures a fleet of one kind can have.
        let wanted = configuration::architectures(&complete, &offered)
            .into_iter()
            .take(1);
        let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let queued_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        wanted
            .map(|architecture| {
                let build = ImageBuild {
                    build_id: Uuid::new_v4().to_string(),
                    image_name: image.name.clone(),
                    image_version: version.image_version.clone(),
                    architecture: architecture.into(),
                    state: BuildState::Pending.into(),
                    create_time: version.create_time,
                    ..ImageBuild::default()
                };
                let entry = QueueEntry {
                    build_id: build.build_id.clone(),
                    image_name: image.name.clone(),
                    image_version: version.image_version.clone(),
                    image_id: image.id.clone(),
                    queued_unix_ms,
                    attempt: 0,
                };
                (build, entry)
            })
            .collect()
    }

    /// Makes a version launchable or retires it.
    pub async fn set_status(
        &self,
        identifier: &str,
        number: &str,
        status: VersionStatus,
    ) -> Result<ImageVersion, Refusal> {
        check_number(number)?;
        if status == VersionStatus::Unspecified {
            return Err(invalid("status", "must be ACTIVE or INACTIVE"));
        }
        let mut image = self.get(identifier).await?;
        if matches!(
            image.value.state(),
            ImageState::Creating | ImageState::Updating | ImageState::Deleting
        ) {
            return Err(Refusal::State(already(&image.value)));
        }
        let mut version = self.get_version(identifier, number).await?;
        if version.value.state() != VersionState::Successful {
            let state = lifecycle::version_state_name(version.value.state());
            return Err(Refusal::State(format!(
                "MicroVM image version is in state: {state}"
            )));
        }
        version.value.set_status(status);
        version.value.update_time = Some(api::timestamp(now()));
        let others = self.catalog.versions(&image.value.name).await?;
        let mut all: Vec<ImageVersion> = others.into_iter().map(|record| record.value).collect();
        all.retain(|other| other.image_version != version.value.image_version);
        all.push(version.value.clone());
        lifecycle::recount(&mut image.value, &all);
        let change = Change::new()
            .version(&version.value, Some(version.revision))
            .image(&image.value, Some(image.revision));
        self.catalog.apply(change).await?;
        tracing::info!(
            image = image.value.name,
            version = number,
            status = status.as_str_name(),
            "version status"
        );
        Ok(version.value)
    }
}

/// One attempt's outcome.
enum Attempt {
    Again,
    Refused(Refusal),
}

impl From<Refusal> for Attempt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<CatalogError> for Attempt {
    fn from(error: CatalogError) -> Self {
        if error.is_conflict() {
            Self::Again
        } else {
            Self::Refused(error.into())
        }
    }
}

fn new_version(image: &Image, configuration: ImageConfiguration) -> ImageVersion {
    ImageVersion {
        image_name: image.name.clone(),
        image_arn: image.image_arn.clone(),
        image_version: image.latest_image_version.clone(),
        state: VersionState::Pending.into(),
        // Becomes ACTIVE by itself when it is built.
        status: VersionStatus::Inactive.into(),
        configuration: Some(configuration),
        create_time: image.update_time,
        update_time: image.update_time,
        ..ImageVersion::default()
    }
}

fn already(image: &Image) -> String {
    format!(
        "MicroVM Image is already in state: {}",
        lifecycle::image_state_name(image.state())
    )
}

fn invalid(field: &str, message: &str) -> Refusal {
    let mut violations = Violations::default();
    violations.add(field, message);
    Refusal::Invalid(violations)
}

fn check_number(number: &str) -> Result<(), Refusal> {
    match number.parse::<VersionNumber>() {
        Ok(_) => Ok(()),
        Err(error) => Err(invalid("image_version", &error.to_string())),
    }
}
