//! The image a run works with: one that exists, or one that is built for the run and deleted after it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use api::common::v1::Resources;
use api::image::v1::*;
use api::microvm::v1::{ListMicrovmsRequest, MicrovmState, TerminateMicrovmRequest};
use client::Context;
use futures::stream::{self, StreamExt as _};
use indicatif::ProgressBar;
use tonic::Code;

use crate::{hosts, interrupted};

const BUILD_TIMEOUT: Duration = Duration::from_secs(600);
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest wait for everything launched to be ended.
const END_TIMEOUT: Duration = Duration::from_secs(300);
/// MicroVMs on a listed page: the most that the API gives.
pub const PAGE_SIZE: usize = 50;
/// Calls at a time that end microVMs.
const CONCURRENT: usize = 32;
const POLL: Duration = Duration::from_millis(250);
const DOCKERFILE: &str = include_str!("../../deploy/walkthrough/Dockerfile");
const APP: &str = include_str!("../../deploy/walkthrough/app.py");
/// How an image of one Python file is built that needs nothing beside Python.
const PYTHON_DOCKERFILE: &str = include_str!("../apps/Dockerfile");
/// Base of the images that run.
const BASE: &str = "debian-12";
/// Baseline memory of an image that is never booted, in MiB: the smallest class.
const SMALLEST_MIB: u32 = 512;
/// What would be in it, were it ever booted.
const NEVER_BOOTED: [(&str, &str); 2] =
    [("Dockerfile", "FROM scratch\nCOPY app /app\nCMD [\"/app\"]\n"), ("app", "never started\n")];

pub struct Image {
    pub name: String,
    pub snapshot: SnapshotRef,
    /// True when this run made it and must delete it.
    pub ours: bool,
}

impl Image {
    /// The image of this name; without one, one that is built for the run.
    pub async fn chosen(context: &Context, name: Option<&str>, memory_mib: u32) -> anyhow::Result<Self> {
        match name {
            Some(name) => Self::existing(context, name).await,
            None => Self::build(context, memory_mib).await,
        }
    }

    /// The newest launchable version of an image.
    async fn existing(context: &Context, name: &str) -> anyhow::Result<Self> {
        let request =
            GetImageVersionRequest { image_identifier: name.to_owned(), image_version: String::new() };
        let answer = context.call(request).await.with_context(|| format!("image {name}"))?;
        let version = answer.version.context("an answer without a version")?;
        let snapshot = version.snapshot.with_context(|| format!("image {name} has no snapshot yet"))?;
        Ok(Self { name: name.to_owned(), snapshot, ours: false })
    }

    async fn build(context: &Context, memory_mib: u32) -> anyhow::Result<Self> {
        let files = [("Dockerfile", DOCKERFILE), ("app.py", APP)];
        let draft = Draft::create(context, BASE, memory_mib, &files).await?;
        let built = draft.built(context).await;
        draft.remove_artifact(context).await?;
        built
    }

    /// Removes what [`Image::build`] made, with everything that was launched of it.
    pub async fn clean_up(&self, context: &Context) -> anyhow::Result<()> {
        match self.ours {
            true => clean_up(context, &self.name).await,
            false => Ok(()),
        }
    }
}

/// An image whose first version is being built.
pub struct Draft {
    pub name: String,
    artifact_key: String,
}

impl Draft {
    /// Begins to build an image of `files`, one of which is a Dockerfile.
    pub async fn create(
        context: &Context,
        base: &str,
        memory_mib: u32,
        files: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let name = format!("loadtest-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let directory = tempfile::tempdir()?;
        for (file, text) in files {
            std::fs::write(directory.path().join(file), text)?;
        }
        let mut zip = std::io::Cursor::new(Vec::new());
        client::zip_directory(directory.path(), &mut zip)?;
        let draft = Self { artifact_key: format!("loadtest/{name}.zip"), name };
        object_store::Store::connect(&context.object_store())?
            .put(client::ARTIFACT_BUCKET, &draft.artifact_key, zip.into_inner().into())
            .await?;
        let request = CreateImageRequest {
            name: draft.name.clone(),
            configuration: Some(ImageConfiguration {
                code_artifact: Some(CodeArtifact {
                    uri: format!("s3://{}/{}", client::ARTIFACT_BUCKET, draft.artifact_key),
                }),
                base_image_arn: base.to_owned(),
                build_role_arn: "arn:aws:iam::000000000000:role/loadtest".to_owned(),
                resources: Some(Resources { minimum_memory_mib: memory_mib }),
                ..ImageConfiguration::default()
            }),
            ..CreateImageRequest::default()
        };
        let created = context.call(request).await;
        if created.is_err() {
            draft.remove_artifact(context).await?;
        }
        created.context("create the image")?;
        Ok(draft)
    }

    /// Begins to build an image whose app is one Python file that serves port 8080.
    pub async fn python(context: &Context, memory_mib: u32, app: &str) -> anyhow::Result<Self> {
        let files = [("Dockerfile", PYTHON_DOCKERFILE), ("app.py", app)];
        Self::create(context, BASE, memory_mib, &files).await
    }

    /// Begins to build an image for simulated hosts, which names `base`.
    pub async fn never_booted(context: &Context, base: &str) -> anyhow::Result<Self> {
        Self::create(context, base, SMALLEST_MIB, &NEVER_BOOTED).await
    }

    /// Does `work` and removes the image then, with everything that was launched of it; also after Ctrl-C.
    pub async fn removed_after<R>(
        &self,
        context: &Context,
        work: impl Future<Output = anyhow::Result<R>>,
    ) -> anyhow::Result<R> {
        let worked = tokio::select! {
            worked = work => worked,
            interrupted = interrupted() => Err(interrupted),
        };
        let cleaned = self.clean_up(context).await;
        let result = worked?;
        cleaned?;
        Ok(result)
    }

    /// As [`Draft::built`], of an image that only simulated hosts may bake.
    pub async fn built_on_simulated_hosts(&self, context: &Context) -> anyhow::Result<Image> {
        let image = self.built(context).await?;
        let engine = &image.snapshot.engine;
        ensure!(engine == hosts::ENGINE, "the bake went to a real host: {engine}");
        Ok(image)
    }

    pub async fn built(&self, context: &Context) -> anyhow::Result<Image> {
        let bar = ProgressBar::new_spinner();
        bar.set_message(format!("building {}", self.name));
        bar.enable_steady_tick(Duration::from_millis(100));
        let built = wait_for_build(context, &self.name).await;
        bar.finish_and_clear();
        built?;
        Ok(Image { ours: true, ..Image::existing(context, &self.name).await? })
    }

    /// Deletes the uploaded artifact; a build under way may fail for it.
    pub async fn remove_artifact(&self, context: &Context) -> anyhow::Result<()> {
        let store = object_store::Store::connect(&context.object_store())?;
        store.delete(client::ARTIFACT_BUCKET, &self.artifact_key).await?;
        Ok(())
    }

    /// Ends every microVM of the image, then deletes it with what it was built of.
    pub async fn clean_up(&self, context: &Context) -> anyhow::Result<()> {
        clean_up(context, &self.name).await?;
        self.remove_artifact(context).await
    }
}

/// Ends every microVM of an image, then deletes it. Over gRPC: no throttle is in the way.
async fn clean_up(context: &Context, name: &str) -> anyhow::Result<()> {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar.set_message("ending what was launched");
    let deadline = Instant::now() + END_TIMEOUT;
    while end_all(context, name).await? > 0 {
        if Instant::now() > deadline {
            bail!("microVMs of {name} are left over");
        }
        tokio::time::sleep(POLL).await;
    }
    bar.set_message(format!("deleting {name}"));
    let removed = remove(context, name).await;
    bar.finish_and_clear();
    removed
}

/// Deletes an image and waits until it is gone. A build that is under way ends first.
async fn remove(context: &Context, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + REMOVAL_TIMEOUT;
    loop {
        let request = DeleteImageRequest { image_identifier: name.to_owned() };
        let last = match context.call(request).await {
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            Err(status) => status.message().to_owned(),
            Ok(_) => "it is being deleted".to_owned(),
        };
        ensure!(Instant::now() < deadline, "{name} is left over: {last}");
        tokio::time::sleep(POLL).await;
    }
}

/// Asks every microVM of an image to end; how many have not ended yet.
async fn end_all(context: &Context, image: &str) -> anyhow::Result<usize> {
    let mut client = context.settled().await.context("the scheduler that leads")?.microvms()?;
    let (mut alive, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListMicrovmsRequest {
            page_size: PAGE_SIZE as u32,
            page_token,
            image_identifier: image.to_owned(),
            image_version: String::new(),
            unlaunchable: false,
        };
        let page = client.list_microvms(request).await.context("list the microVMs")?.into_inner();
        let left = page.microvms.into_iter().filter(|one| one.state() != MicrovmState::Terminated);
        alive.extend(left);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let wanted = alive.iter().filter(|one| one.state() != MicrovmState::Terminating);
    let ends = wanted.map(|one| {
        let (mut client, microvm_id) = (client.clone(), one.microvm_id.clone());
        async move { client.terminate_microvm(TerminateMicrovmRequest { microvm_id }).await }
    });
    let ends: Vec<_> = ends.collect();
    let mut ends = stream::iter(ends).buffer_unordered(CONCURRENT);
    while let Some(ended) = ends.next().await {
        ended.context("end a microVM")?;
    }
    Ok(alive.len())
}

/// A base for the image to name; nothing of it is used.
pub async fn any_base(context: &Context) -> anyhow::Result<String> {
    let listed = context.call(ListBaseImagesRequest::default()).await.context("list the base images")?;
    let first = listed.base_images.into_iter().next();
    Ok(first.context("no base image to name; make one with: torpor base build debian-12")?.name)
}

async fn wait_for_build(context: &Context, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + BUILD_TIMEOUT;
    loop {
        ensure!(Instant::now() < deadline, "the build of {name} takes longer than {BUILD_TIMEOUT:?}");
        let request = ListImageBuildsRequest { image_identifier: name.to_owned(), ..Default::default() };
        let builds = context.call(request).await?.builds;
        let build = builds.first().context("no build")?;
        match build.state() {
            BuildState::Successful => return Ok(()),
            BuildState::Failed => bail!("the build of {name} failed: {}", build.state_reason),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}
