//! The image a run works with: one that exists, or a small web app built for the
//! run and deleted after it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use api::common::v1::Resources;
use api::image::v1::*;
use client::Context;
use indicatif::ProgressBar;

const BUILD_TIMEOUT: Duration = Duration::from_secs(600);
const DOCKERFILE: &str = include_str!("../../deploy/walkthrough/Dockerfile");
const APP: &str = include_str!("../../deploy/walkthrough/app.py");

/// A built image.
pub struct Image {
    pub name: String,
    pub snapshot: SnapshotRef,
    /// True when this run made it and must delete it.
    pub ours: bool,
}

impl Image {
    /// The newest launchable version of an image.
    pub async fn existing(context: &Context, name: &str) -> anyhow::Result<Self> {
        let request = GetImageVersionRequest {
            image_identifier: name.to_owned(),
            image_version: String::new(),
        };
        let version = context
            .images()?
            .get_image_version(request)
            .await
            .with_context(|| format!("image {name}"))?
            .into_inner()
            .version
            .context("an answer without a version")?;
        let snapshot = version
            .snapshot
            .with_context(|| format!("image {name} has no snapshot yet"))?;
        Ok(Self {
            name: name.to_owned(),
            snapshot,
            ours: false,
        })
    }

    /// Builds the walkthrough's app.
    pub async fn build(context: &Context, memory_mib: u32) -> anyhow::Result<Self> {
        let name = format!("loadtest-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("Dockerfile"), DOCKERFILE)?;
        std::fs::write(directory.path().join("app.py"), APP)?;
        let mut zip = std::io::Cursor::new(Vec::new());
        client::zip_directory(directory.path(), &mut zip)?;
        let key = format!("loadtest/{name}.zip");
        let store = object_store::Store::connect(&context.object_store())?;
        store
            .put(client::ARTIFACT_BUCKET, &key, zip.into_inner().into())
            .await?;
        let request = CreateImageRequest {
            name: name.clone(),
            configuration: Some(ImageConfiguration {
                code_artifact: Some(CodeArtifact {
                    uri: format!("s3://{}/{key}", client::ARTIFACT_BUCKET),
                }),
                base_image_arn: "debian-12".to_owned(),
                build_role_arn: "arn:aws:iam::000000000000:role/loadtest".to_owned(),
                resources: Some(Resources {
                    minimum_memory_mib: memory_mib,
                }),
                ..ImageConfiguration::default()
            }),
            ..CreateImageRequest::default()
        };
        context
            .images()?
            .create_image(request)
            .await
            .context("create the image")?;
        let bar = ProgressBar::new_spinner();
        bar.set_message(format!("building {name}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        let built = wait_for_build(context, &name).await;
        bar.finish_and_clear();
        store.delete(client::ARTIFACT_BUCKET, &key).await?;
        built?;
        Ok(Self {
            ours: true,
            ..Self::existing(context, &name).await?
        })
    }

    /// Deletes what [`Image::build`] made.
    pub async fn clean_up(&self, context: &Context) -> anyhow::Result<()> {
        if self.ours {
            let request = DeleteImageRequest {
                image_identifier: self.name.clone(),
            };
            context
                .images()?
                .delete_image(request)
                .await
                .with_context(|| format!("delete {}", self.name))?;
        }
        Ok(())
    }
}

async fn wait_for_build(context: &Context, name: &str) -> anyhow::Result<()> {
    let mut images = context.images()?;
    let deadline = Instant::now() + BUILD_TIMEOUT;
    loop {
        ensure!(
            Instant::now() < deadline,
            "the build of {name} takes longer than {BUILD_TIMEOUT:?}"
        );
        let request = ListImageBuildsRequest {
            image_identifier: name.to_owned(),
            ..Default::default()
        };
        let builds = images.list_image_builds(request).await?.into_inner().builds;
        let build = builds.first().context("no build")?;
        match build.state() {
            BuildState::Successful => return Ok(()),
            BuildState::Failed => bail!("the build of {name} failed: {}", build.state_reason),
            _ => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}
