//! Beginning a build: of a new image, or of a new version of one.

use std::time::UNIX_EPOCH;

use api::common::v1::Architecture;
use api::image::v1::{
    BuildState, Image, ImageBuild, ImageConfiguration, ImageState, ImageVersion, VersionState, VersionStatus,
};
use model::state::ImageEvent;
use model::{ClientToken, ImageName, VersionNumber, Violations};
use uuid::Uuid;

use super::request::token_entry;
use super::{BuildRequest, Images, already, retry_on_conflict};
use crate::adapters::catalog::{Change, QueueEntry};
use crate::domain::configuration::{self, Offer};
use crate::domain::lifecycle;
use crate::refusal::Refusal;

impl Images {
    /// Begins a build: records of image, version, build, token and queue, all or
    /// nothing. A token that was used before gives the answer it gave then.
    pub async fn build(&self, mut request: BuildRequest) -> Result<(Image, ImageVersion), Refusal> {
        if !request.create {
            request.name = self.name(&request.name)?.into();
        }
        if !request.client_token.is_empty()
            && let Err(error) = request.client_token.parse::<ClientToken>()
        {
            return Err(Refusal::invalid("clientToken", error.to_string()));
        }
        let digest = request.digest();
        let _alone = self.admission.lock().await;
        retry_on_conflict(|| self.try_build(&request, &digest)).await
    }

    async fn try_build(
        &self,
        request: &BuildRequest,
        digest: &str,
    ) -> Result<(Image, ImageVersion), Refusal> {
        if !request.client_token.is_empty()
            && let Some(entry) = self.catalog.token(request.kind(), &request.client_token).await?
        {
            return request.replay(entry.value, digest);
        }
        let (name, configuration) = self.check(request).await?;
        // Before anything that a quota bounds is counted.
        let admission = self.catalog.admission().await?;
        let existing = self.catalog.image(name.as_str()).await?;
        let (image, revision) = match (existing, request.create) {
            (Some(_), true) => return Err(Refusal::AlreadyExists(name.to_string())),
            (None, false) => return Err(Refusal::ImageNotFound(self.arn(&name))),
            (None, true) => (self.new_image(&name, request).await?, None),
            (Some(image), false) => (self.updated(&image.value).await?, Some(image.revision)),
        };
        self.check_builds().await?;
        let version = new_version(&image, configuration);
        let mut change = Change::new().admit(admission).image(&image, revision).version(&version, None);
        for (build, entry) in self.new_builds(&image, &version) {
            change = change.new_build(&build, &entry);
        }
        if !request.client_token.is_empty() {
            change =
                change.token(request.kind(), &request.client_token, &token_entry(digest, &image, &version));
        }
        // Dying after this line: the caller repeats with its token and gets the
        // same answer; the queue has the build either way.
        self.catalog.apply(change).await?;
        let state = lifecycle::image_state_name(image.state());
        tracing::info!(image = image.name, version = version.image_version, state, "image build queued");
        Ok((image, version))
    }

    async fn check(&self, request: &BuildRequest) -> Result<(ImageName, ImageConfiguration), Refusal> {
        let mut violations = Violations::default();
        let name = violations.keep("name", request.name.parse::<ImageName>());
        let known = self.bases.known().await?;
        let architectures = self.architectures();
        let offer = Offer {
            bases: &known,
            base_aliases: &self.config.build.base_image_aliases,
            region: &self.config.region,
            default_base: &self.config.build.default_base_image,
            architectures: &architectures,
            memory_default_mib: self.config.bake.memory_default_mib,
            own_buckets: [&self.config.snapshot_bucket, &self.config.log_bucket],
        };
        let complete = configuration::complete(request.configuration.clone(), &offer, &mut violations);
        configuration::check_tags(&request.tags, &mut violations);
        match (name, violations.finish()) {
            (Some(name), Ok(())) => Ok((name, complete)),
            (_, Err(violations)) => Err(Refusal::Invalid(violations)),
            (None, Ok(())) => Err(Refusal::Internal("a name without a violation".to_owned())),
        }
    }

    fn architectures(&self) -> Vec<Architecture> {
        let names = self.config.build.architectures.iter();
        names.filter_map(|name| Architecture::from_str_name(&format!("ARCHITECTURE_{name}"))).collect()
    }

    async fn check_builds(&self) -> Result<(), Refusal> {
        let account = &self.config.account;
        let sentence =
            format!("Account {account} has reached the maximum number of concurrent builds allowed.");
        let count = self.catalog.count_queue().await?;
        within("concurrent_builds", self.config.build.unfinished_max, count, sentence)
    }

    async fn new_image(&self, name: &ImageName, request: &BuildRequest) -> Result<Image, Refusal> {
        let (account, limit) = (&self.config.account, self.config.images_max);
        let sentence =
            format!("Account {account} has reached the maximum number of MicroVM images allowed: {limit}.");
        within("images", limit, self.catalog.count_images().await?, sentence)?;
        let time = Some(api::timestamp(self.clock.now()));
        Ok(Image {
            name: name.to_string(),
            image_arn: self.arn(name),
            id: Uuid::new_v4().to_string(),
            state: ImageState::Creating.into(),
            latest_image_version: VersionNumber::FIRST.to_string(),
            create_time: time,
            update_time: time,
            tags: request.tags.clone(),
            ..Image::default()
        })
    }

    /// An image with its next version begun. Numbers are never used twice.
    async fn updated(&self, image: &Image) -> Result<Image, Refusal> {
        let mut image = image.clone();
        if lifecycle::image(&mut image, ImageEvent::UpdateBegan, self.clock.now()).is_err() {
            return Err(already(&image));
        }
        let limit = self.config.versions_max;
        let sentence =
            format!("The MicroVM image has reached the maximum number of versions allowed: {limit}.");
        within("image_versions", limit, self.catalog.count_versions(&image.name).await?, sentence)?;
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
        let since = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let queued_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        wanted
            .map(|architecture| {
                let build = ImageBuild {
                    build_id: Uuid::new_v4().to_string(),
                    image_name: image.name.clone(),
                    image_version: version.image_version.clone(),
                    architecture: architecture.into(),
                    chipset_generation: self.config.build.chipset_generation.clone(),
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

fn within(quota: &'static str, limit: usize, count: usize, sentence: String) -> Result<(), Refusal> {
    if count < limit { Ok(()) } else { Err(Refusal::Quota { quota, limit, sentence }) }
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
