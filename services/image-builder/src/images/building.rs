//! Beginning a build: of a new image, or of a new version of one.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use api::common::v1::Architecture;
use api::image::v1::{
    BuildState, Image, ImageBuild, ImageConfiguration, ImageState, ImageVersion, VersionState, VersionStatus,
};
use model::state::ImageEvent;
use model::{ClientToken, ImageName, VersionNumber, Violations};
use uuid::Uuid;

use super::{Attempt, Images, Refusal, already, digest, invalid, over_again};
use crate::adapters::catalog::{Change, QueueEntry, TokenEntry};
use crate::domain::configuration::{self, Offer};
use crate::domain::lifecycle;
use crate::pipeline::{bases, now};

/// A request to build: a new image, or a new version of one.
#[derive(Debug, Clone)]
pub struct Order {
    /// Name or ARN.
    pub name: String,
    /// What to build.
    pub configuration: Option<ImageConfiguration>,
    /// Tags; of a new image only.
    pub tags: HashMap<String, String>,
    /// Idempotency token; empty means none.
    pub client_token: String,
    /// True for a new image.
    pub create: bool,
}

impl Order {
    /// Which calls share client tokens with this one.
    fn kind(&self) -> &'static str {
        if self.create { "create" } else { "update" }
    }
}

impl Images {
    /// Begins a build: records of image, version, build, token and queue, all or
    /// nothing. A token that was used before gives the answer it gave then.
    pub async fn build(&self, mut order: Order) -> Result<(Image, ImageVersion), Refusal> {
        if !order.create {
            order.name = self.name(&order.name)?.into();
        }
        if !order.client_token.is_empty()
            && let Err(error) = order.client_token.parse::<ClientToken>()
        {
            return Err(invalid("clientToken", &error.to_string()));
        }
        let digest = digest::of(&order);
        let _alone = self.admission.lock().await;
        over_again(|| self.try_build(&order, &digest)).await
    }

    async fn try_build(&self, order: &Order, digest: &str) -> Result<(Image, ImageVersion), Attempt> {
        if !order.client_token.is_empty()
            && let Some(entry) = self.catalog.token(order.kind(), &order.client_token).await?
        {
            return Ok(replay(entry.value, order, digest)?);
        }
        let (name, configuration) = self.check(order).await?;
        // Before anything that a quota bounds is counted.
        let admission = self.catalog.admission().await?;
        let existing = self.catalog.image(name.as_str()).await?;
        let (image, revision) = match (existing, order.create) {
            (Some(_), true) => return Err(Refusal::AlreadyExists(name.to_string()).into()),
            (None, false) => return Err(Refusal::ImageNotFound(self.arn(&name)).into()),
            (None, true) => (self.new_image(&name, order).await?, None),
            (Some(image), false) => (self.updated(&image.value).await?, Some(image.revision)),
        };
        self.check_builds().await?;
        let version = new_version(&image, configuration);
        let mut change = Change::new().admit(admission).image(&image, revision).version(&version, None);
        for (build, entry) in self.new_builds(&image, &version) {
            change = change.new_build(&build, &entry);
        }
        if !order.client_token.is_empty() {
            let entry = token_entry(digest, &image, &version);
            change = change.token(order.kind(), &order.client_token, &entry);
        }
        // Dying after this line: the caller repeats with its token and gets the
        // same answer; the queue has the build either way.
        self.catalog.apply(change).await?;
        let state = lifecycle::image_state_name(image.state());
        tracing::info!(image = image.name, version = version.image_version, state, "image build queued");
        Ok((image, version))
    }

    async fn check(&self, order: &Order) -> Result<(ImageName, ImageConfiguration), Attempt> {
        let mut violations = Violations::default();
        let name = violations.keep("name", order.name.parse::<ImageName>());
        let known = bases::known(&self.catalog).await?;
        let architectures = self.architectures();
        let offer = Offer {
            bases: &known,
            base_aliases: &self.settings.build.base_image_aliases,
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
        names.filter_map(|name| Architecture::from_str_name(&format!("ARCHITECTURE_{name}"))).collect()
    }

    async fn check_builds(&self) -> Result<(), Attempt> {
        let limit = self.settings.build.unfinished_max;
        if self.catalog.queue().await?.len() < limit {
            return Ok(());
        }
        let account = &self.settings.account;
        let refusal = Refusal::Quota {
            quota: "concurrent_builds",
            limit,
            sentence: format!(
                "Account {account} has reached the maximum number of concurrent builds allowed."
            ),
        };
        Err(refusal.into())
    }

    async fn new_image(&self, name: &ImageName, order: &Order) -> Result<Image, Attempt> {
        let limit = self.settings.images_max;
        if self.catalog.images().await?.len() >= limit {
            let account = &self.settings.account;
            let refusal = Refusal::Quota {
                quota: "images",
                limit,
                sentence: format!(
                    "Account {account} has reached the maximum number of MicroVM images allowed: {limit}."
                ),
            };
            return Err(refusal.into());
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
            return Err(already(&image).into());
        }
        let limit = self.settings.versions_max;
        if self.catalog.versions(&image.name).await?.len() >= limit {
            let refusal = Refusal::Quota {
                quota: "image_versions",
                limit,
                sentence: format!(
                    "The MicroVM image has reached the maximum number of versions allowed: {limit}."
                ),
            };
            return Err(refusal.into());
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
        let wanted = configuration::architectures(&complete, &offered).into_iter().take(1);
        let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let queued_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        wanted
            .map(|architecture| {
                let build = ImageBuild {
                    build_id: Uuid::new_v4().to_string(),
                    image_name: image.name.clone(),
                    image_version: version.image_version.clone(),
                    architecture: architecture.into(),
                    chipset_generation: self.settings.build.chipset_generation.clone(),
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
}

/// What a token's first use answered.
fn replay(entry: TokenEntry, order: &Order, digest: &str) -> Result<(Image, ImageVersion), Refusal> {
    if entry.request_digest != digest {
        return Err(Refusal::TokenConflict);
    }
    let (Some(image), Some(mut version)) = (entry.image, entry.version) else {
        return Err(Refusal::Internal("a client token without its answer".to_owned()));
    };
    if let (Some(answered), Some(asked)) = (&mut version.configuration, &order.configuration) {
        // The same as then, or the digest were another one.
        answered.environment_variables.clone_from(&asked.environment_variables);
    }
    Ok((image, version))
}

fn token_entry(digest: &str, image: &Image, version: &ImageVersion) -> TokenEntry {
    let mut version = version.clone();
    if let Some(configuration) = &mut version.configuration {
        configuration.environment_variables.clear();
    }
    TokenEntry { request_digest: digest.to_owned(), image: Some(image.clone()), version: Some(version) }
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
