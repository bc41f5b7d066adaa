//! The rules of images, versions, tokens, quotas, tags and bases, with the sentences callers read. Builds
//! here fail at once, for their artifact does not exist; images in other states are written as builds leave
//! them. No build gets as far as a sandbox, so that these tests need no machine of their own.
//!
//! One test per file, whose cases share an etcd and an S3. Each case has records of its own.

#![allow(clippy::unwrap_used)] // a test that cannot go on ends

mod bases;
mod deleting;
#[path = "../support/peers.rs"]
#[allow(dead_code)] // bakes are for tests of builds
mod peers;
mod quotas;
mod requests;
mod states;
mod tags;
mod tokens;
#[path = "../support/world.rs"]
#[allow(dead_code)] // some of it is for tests of builds
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};

use api::errors::reason_of;
use api::image::v1::image_service_client::ImageServiceClient;
use api::image::v1::*;
use image_builder::adapters::catalog::{BaseEntry, Catalog, Change};
use image_builder::config::Config;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{ARTIFACTS, Builder, World, until};

/// A running builder with one base, over records that no other case sees.
struct Cell<'a> {
    world: &'a World,
    catalog: Catalog,
    settings: Config,
    builder: Builder,
    client: ImageServiceClient<Channel>,
}

/// Runs cases one after the other, each in a cell of its own; those after "own" make theirs. The last name in the
/// output is that of the case that failed.
macro_rules! run {
    ($($case:ident),* $(,)?) => { run![$($case),*; own] };
    ($($case:ident),*; own $($own:ident),*) => {{
        let world = World::start().await;
        $(
            println!("case {}", stringify!($case));
            let cell = Cell::new(&world).await;
            $case(&cell).await;
            cell.stop().await;
        )*
        $(
            println!("case {}", stringify!($own));
            $own(&world).await;
        )*
    }};
}
use run;

/// A version as a build leaves it.
type Seed<'a> = (&'a str, VersionState, VersionStatus);

const SENTINEL: &str = "sentinel";
const BUILT: (VersionState, VersionStatus) = (VersionState::Successful, VersionStatus::Active);

fn built(number: &str) -> Seed<'_> {
    (number, BUILT.0, BUILT.1)
}

fn unbuilt(number: &str, state: VersionState) -> Seed<'_> {
    (number, state, VersionStatus::Inactive)
}

impl<'a> Cell<'a> {
    async fn new(world: &'a World) -> Self {
        Self::with(world, |_| ()).await
    }

    async fn with(world: &'a World, change: impl FnOnce(&mut Config)) -> Self {
        let mut settings = Self::settings(world);
        change(&mut settings);
        let catalog = catalog(&settings).await;
        // The remover's first sweep is over when this is gone; the next comes when the test is over.
        let sentinel =
            Image { name: SENTINEL.to_owned(), state: ImageState::Deleting.into(), ..Image::default() };
        catalog.apply(Change::new().image(&sentinel, None)).await.unwrap();
        let cell = Self::over(world, settings, catalog).await;
        cell.until_gone(SENTINEL).await;
        cell
    }

    /// A builder that finds no S3. It waits for S3, and no build begins meanwhile.
    async fn without_s3(world: &'a World) -> Self {
        let mut settings = Self::settings(world);
        settings.s3.endpoint = Some("http://127.0.0.1:1".to_owned());
        let catalog = catalog(&settings).await;
        Self::over(world, settings, catalog).await
    }

    fn settings(world: &World) -> Config {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut settings = world.settings(&format!("builder-{number}"));
        settings.etcd.root = format!("/cell-{number}/");
        // Nothing here is built.
        settings.build.sandbox_program = Some("/bin/true".into());
        settings
    }

    async fn over(world: &'a World, settings: Config, catalog: Catalog) -> Self {
        let base = BaseImage { name: "debian-12".into(), version: "1".into(), ..BaseImage::default() };
        let entry = BaseEntry { base: Some(base), ..BaseEntry::default() };
        catalog.apply(Change::new().new_base(&entry)).await.unwrap();
        let builder = world.builder(settings.clone()).await;
        let client = builder.client.clone();
        Self { world, catalog, settings, builder, client }
    }

    /// A second builder over the same records.
    async fn second(&self) -> Builder {
        let fresh = Self::settings(self.world);
        let (listen, data_dir) = (fresh.listen, fresh.data_dir);
        self.world.builder(Config { listen, data_dir, ..self.settings.clone() }).await
    }

    async fn stop(self) {
        self.builder.stop().await;
    }

    /// A request whose build fails at once.
    async fn order(&self, name: &str) -> CreateImageRequest {
        let mut order = self.world.store(name, Vec::new()).await;
        let configuration = order.configuration.as_mut().unwrap();
        configuration.code_artifact.as_mut().unwrap().uri = "s3://torpor-artifacts/none".to_owned();
        order
    }

    async fn update(&self, name: &str) -> UpdateImageRequest {
        UpdateImageRequest {
            image_identifier: name.to_owned(),
            configuration: self.order(name).await.configuration,
            client_token: String::new(),
        }
    }

    /// Writes an image with its versions.
    async fn seed(&self, name: &str, state: ImageState, versions: &[Seed<'_>]) -> Image {
        let configuration = self.order(name).await.configuration;
        let newest = |wanted: &dyn Fn(&Seed<'_>) -> bool| {
            let found = versions.iter().rev().find(|version| wanted(version));
            found.map_or("", |version| version.0).to_owned()
        };
        let image = Image {
            name: name.to_owned(),
            image_arn: arn(name),
            id: format!("id-of-{name}"),
            state: state.into(),
            latest_active_image_version: newest(&|version| (version.1, version.2) == BUILT),
            latest_failed_image_version: newest(&|version| version.1 == VersionState::Failed),
            latest_image_version: newest(&|_| true),
            ..Image::default()
        };
        let mut change = Change::new().image(&image, None);
        for (number, state, status) in versions {
            let version = ImageVersion {
                image_name: name.to_owned(),
                image_arn: image.image_arn.clone(),
                image_version: (*number).to_owned(),
                state: (*state).into(),
                status: (*status).into(),
                configuration: configuration.clone(),
                ..ImageVersion::default()
            };
            change = change.version(&version, None);
        }
        self.catalog.apply(change).await.unwrap();
        image
    }

    async fn try_get(&self, name: &str) -> Result<Image, Status> {
        let request = GetImageRequest { image_identifier: name.to_owned() };
        let answer = self.client.clone().get_image(request).await?;
        Ok(answer.into_inner().image.unwrap())
    }

    async fn get(&self, name: &str) -> Image {
        self.try_get(name).await.unwrap()
    }

    async fn version(&self, name: &str, number: &str) -> Result<ImageVersion, Status> {
        let request =
            GetImageVersionRequest { image_identifier: name.to_owned(), image_version: number.to_owned() };
        let answer = self.client.clone().get_image_version(request).await?;
        Ok(answer.into_inner().version.unwrap())
    }

    async fn patch(&self, name: &str, number: &str, status: VersionStatus) -> Result<ImageVersion, Status> {
        let request = UpdateImageVersionRequest {
            image_identifier: name.to_owned(),
            image_version: number.to_owned(),
            status: status.into(),
        };
        let answer = self.client.clone().update_image_version(request).await?;
        Ok(answer.into_inner().version.unwrap())
    }

    async fn delete(&self, name: &str) -> Result<Image, Status> {
        let request = DeleteImageRequest { image_identifier: name.to_owned() };
        let answer = self.client.clone().delete_image(request).await?;
        Ok(answer.into_inner().image.unwrap())
    }

    async fn delete_version(&self, name: &str, number: &str) -> Result<ImageVersion, Status> {
        let request =
            DeleteImageVersionRequest { image_identifier: name.to_owned(), image_version: number.to_owned() };
        let answer = self.client.clone().delete_image_version(request).await?;
        Ok(answer.into_inner().version.unwrap())
    }

    async fn versions(&self, name: &str) -> Vec<String> {
        let request = ListImageVersionsRequest { image_identifier: name.to_owned(), ..Default::default() };
        let answer = self.client.clone().list_image_versions(request).await.unwrap();
        let versions = answer.into_inner().versions.into_iter();
        versions.map(|version| version.image_version).collect()
    }

    async fn until_gone(&self, name: &str) {
        until("the image is gone", || async {
            self.try_get(name).await.is_err_and(|status| status.code() == Code::NotFound)
        })
        .await;
    }

    async fn until_state(&self, name: &str, state: ImageState) {
        until("the image is in its state", || async { self.get(name).await.state() == state }).await;
    }
}

async fn catalog(settings: &Config) -> Catalog {
    Catalog::new(records::Store::connect(&settings.etcd).await.unwrap())
}

fn arn(name: &str) -> String {
    format!("arn:aws:lambda:us-east-1:000000000000:microvm-image:{name}")
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, reason: &str, message: &str) -> Status {
    let status = testkit::refusal(answer, reason);
    assert_eq!(status.message(), message);
    status
}

fn metadata(status: &Status, key: &str) -> String {
    let info = status.get_details_error_info().unwrap();
    info.metadata.get(key).cloned().unwrap_or_default()
}
