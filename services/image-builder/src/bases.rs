//! The platform's base images: which there are, where their files are, and how one is made. A base's version
//! has a record in etcd, a compressed tar in S3, and a copy of the tar on each replica that has needed it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use api::image::v1::{BaseImage, BaseImageVersion};
use clock::Clock;
use object_store::Store as Objects;

use crate::adapters::catalog::{Catalog, Error as CatalogError};
use crate::adapters::debootstrap;
use crate::adapters::layout::Layout;
use crate::config::Config;
use crate::domain::base_images::{self, Bases, stored_name};
use crate::paging::{Page, page, sort_key_desc};
use crate::refusal::Refusal;

mod make;

const BASE_BYTES_MAX: u64 = 8 << 30;

#[derive(Debug, Clone)]
pub struct BaseImages {
    pub catalog: Catalog,
    pub objects: Objects,
    pub layout: Layout,
    pub config: Arc<Config>,
    pub clock: Clock,
    /// Name of this replica, which holds the lock of a base that it makes.
    pub instance: String,
}

impl BaseImages {
    /// The versions there are, by name of the base.
    pub async fn known(&self) -> Result<Bases, CatalogError> {
        let mut bases = Bases::default();
        for base in self.entries().await? {
            if let Ok(version) = base.version.parse() {
                bases.0.entry(base.name).or_default().push(version);
            }
        }
        Ok(bases)
    }

    /// A page of [`BaseImages::all`].
    pub async fn list(&self, wanted: Page<'_>) -> Result<(Vec<BaseImage>, String), Refusal> {
        page("bases", self.all().await?, wanted, |base: &BaseImage| base.name.clone())
    }

    /// Every base, under each of its names, with its newest version.
    async fn all(&self) -> Result<Vec<BaseImage>, CatalogError> {
        let aliases = &self.config.build.base_image_aliases;
        Ok(base_images::bases(self.entries().await?, aliases, &self.config.region))
    }

    /// The versions of one base, newest first.
    pub async fn list_versions(
        &self,
        identifier: &str,
        wanted: Page<'_>,
    ) -> Result<(Vec<BaseImageVersion>, String), Refusal> {
        let region = &self.config.region;
        let name = base_images::name(identifier, region)
            .map_err(|error| Refusal::invalid("imageIdentifier", error.to_string()))?;
        let stored = stored_name(name.as_str(), &self.config.build.base_image_aliases);
        let versions = base_images::versions(self.entries().await?, stored, &name, region);
        if versions.is_empty() {
            return Err(Refusal::ImageNotFound(base_images::arn(region, &name)));
        }
        let key = |version: &BaseImageVersion| sort_key_desc(version.version.parse().unwrap_or(0));
        page(&format!("bases/{name}"), versions, wanted, key)
    }

    async fn entries(&self) -> Result<Vec<BaseImage>, CatalogError> {
        let entries = self.catalog.bases().await?.into_iter();
        Ok(entries.filter_map(|record| record.value.base).collect())
    }

    /// The compressed tar of a base image on this machine and its digest; fetched from S3 when
    /// another replica made it. The digest is checked when it arrives.
    pub async fn local_tar(&self, name: &str, version: &str) -> io::Result<(PathBuf, String)> {
        let bases = self.catalog.bases().await.map_err(io::Error::other)?;
        let is_wanted = |base: &BaseImage| base.name == name && base.version == version;
        let entry = bases
            .into_iter()
            .map(|record| record.value)
            .find(|entry| entry.base.as_ref().is_some_and(is_wanted))
            .ok_or_else(|| io::Error::other("there is no such base image any more"))?;
        let path = self.layout.base(name, version);
        if path.exists() {
            return Ok((path, entry.digest));
        }
        let arriving = path.with_extension(format!("{}.part", uuid::Uuid::new_v4()));
        let bucket = &self.config.snapshot_bucket;
        let fetched = self
            .objects
            .get_file(bucket, &entry.key, &arriving, BASE_BYTES_MAX, &|_, _| {})
            .await
            .map_err(io::Error::other);
        let checked = match fetched {
            Ok(_) => verified(arriving.clone(), &entry.digest).await,
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            let _ = tokio::fs::remove_file(&arriving).await;
            return Err(error);
        }
        // Dying before this line leaves a file that is never read.
        tokio::fs::rename(&arriving, &path).await?;
        Ok((path, entry.digest))
    }
}

async fn verified(path: PathBuf, expected: &str) -> io::Result<()> {
    let digest =
        tokio::task::spawn_blocking(move || debootstrap::digest(&path)).await.map_err(io::Error::other)??;
    if digest == expected {
        Ok(())
    } else {
        Err(io::Error::other("its stored bytes do not match their digest"))
    }
}
